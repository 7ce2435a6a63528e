//! What a backup does not hold although it was there stays where it is.

use std::fs;
use std::path::Path;

use strongroom_connectors::files::{
    self, Change, Existing, FilesReport, FilesRestoreError, Lacks, RestoreOptions, SnapshotOptions, Untold,
};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink as _};
use strongroom_proto::receipt::{LeftOut, Missing, SourceFacts};

use crate::files::{options, restore, skipped};
use crate::memory::Memory;

const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55";

fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn with_delete(lacks: Lacks) -> RestoreOptions {
    RestoreOptions {
        delete: true,
        lacks,
        ..options(Existing::InPlace)
    }
}

fn missing(name: &str, torn: bool) -> Missing {
    Missing {
        name: name.to_owned(),
        reason: "cannot be read: input/output error".to_owned(),
        torn,
    }
}

/// A backup of a tree, and what its receipt says that it lacks.
fn backup(root: &Path, options: &SnapshotOptions, more: &[Missing]) -> (Memory, Lacks) {
    let mut memory = Memory::default();
    let report: FilesReport = files::snapshot(root, options, &mut memory, &mut || {}).unwrap();
    assert!(report.missing.is_empty(), "{:?}", report.missing);
    let source = SourceFacts {
        excluded: Some(report.excluded),
        left_out: Some(LeftOut {
            patterns: options.exclude.clone(),
            caches: options.exclude_caches,
            files_over_bytes: options.max_file_bytes,
        }),
        ..SourceFacts::default()
    };
    (memory, Lacks::of(more, &source))
}

#[test]
fn what_was_left_out_is_not_deleted() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for path in [
        "kept",
        "a/one.tmp",
        "build/x",
        "large",
        "cache/content",
        "cache/below/content",
    ] {
        write(root, path, "as it was");
    }
    write(root, "large", [1; 2_000]);
    write(root, "cache/CACHEDIR.TAG", CACHE_TAG);
    let settings = SnapshotOptions {
        exclude: vec!["*.tmp".to_owned(), "/build/".to_owned()],
        exclude_caches: true,
        max_file_bytes: Some(1_000),
        ..SnapshotOptions::default()
    };
    let (memory, lacks) = backup(root, &settings, &[]);
    for path in [
        "a/two.tmp",
        "a/three.tmp/below",
        "build/y",
        "larger",
        "cache/more",
        "extra",
        "folder/extra",
    ] {
        write(root, path, "since then");
    }
    write(root, "larger", [1; 1_001]);
    fs::remove_file(root.join("kept")).unwrap();
    let deleted = |dry_run| {
        let options = RestoreOptions {
            dry_run,
            ..with_delete(lacks.clone())
        };
        let (_, changes) = restore(&memory, root, options).unwrap();
        let deleted = changes.into_iter().filter(|(change, ..)| *change == Change::Delete);
        deleted.map(|(_, path, _)| path).collect::<Vec<_>>()
    };
    assert_eq!(deleted(true), ["extra", "folder"]);
    assert_eq!(deleted(false), ["extra", "folder"]);
    for path in [
        "kept",
        "a/one.tmp",
        "a/two.tmp",
        "a/three.tmp/below",
        "build/x",
        "build/y",
        "large",
        "larger",
        "cache/content",
        "cache/below/content",
        "cache/more",
        "cache/CACHEDIR.TAG",
    ] {
        assert!(root.join(path).exists(), "{path}");
    }
    assert!(!root.join("extra").exists() && !root.join("folder").exists());
}

#[test]
fn what_could_not_be_taken_is_not_deleted_and_is_told() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(root, "kept", "x");
    fs::create_dir(root.join("closed")).unwrap();
    // As where the directory could not be listed, and the file not be read.
    let named = [missing("closed", false), missing("unreadable", false)];
    let (memory, lacks) = backup(root, &SnapshotOptions::default(), &named);
    for path in ["closed/file", "closed/below/file", "unreadable", "extra"] {
        write(root, path, "x");
    }
    let (_, mut changes) = restore(&memory, root, with_delete(lacks)).unwrap();
    // The directories got their times back.
    changes.retain(|(change, ..)| *change != Change::Metadata);
    let told: Vec<_> = changes
        .iter()
        .map(|(change, path, _)| (*change, path.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Change::Skip, "closed"),
            (Change::Delete, "extra"),
            (Change::Skip, "unreadable")
        ]
    );
    assert!(
        changes[0]
            .2
            .as_deref()
            .unwrap()
            .starts_with("missing from the backup: ")
    );
    for path in ["closed/file", "closed/below/file", "unreadable"] {
        assert!(root.join(path).exists(), "{path}");
    }
}

#[test]
fn nothing_is_deleted_where_it_is_not_told_what_was_not_taken() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "kept", "x");
    let (memory, _) = backup(root.path(), &SnapshotOptions::default(), &[]);
    write(root.path(), "extra", "x");
    let excluded = SourceFacts {
        excluded: Some(1),
        ..SourceFacts::default()
    };
    for (lacks, expected) in [
        (
            Lacks::of(&[missing("…", false)], &SourceFacts::default()),
            Untold::Unnamed,
        ),
        (Lacks::of(&[], &excluded), Untold::Rules),
    ] {
        let error = restore(&memory, root.path(), with_delete(lacks)).unwrap_err();
        assert!(
            matches!(&error, FilesRestoreError::Untold { source } if *source == expected),
            "{error:?}"
        );
        assert!(root.path().join("extra").exists());
    }
    // What is not named is told whatever is selected.
    let part = RestoreOptions {
        select: files::Selection::new(&["kept".to_owned()], &[]).unwrap(),
        lacks: Lacks::of(&[missing("…", false)], &SourceFacts::default()),
        ..options(Existing::Refuse)
    };
    let scratch = tempfile::tempdir().unwrap();
    let (_, changes) = restore(&memory, &scratch.path().join("new"), part).unwrap();
    assert!(
        changes.iter().any(|(change, ..)| *change == Change::Skip),
        "{changes:?}"
    );
    // Nor is anything replaced where any file may be one of which the backup has a part.
    let unnamed = RestoreOptions {
        lacks: Lacks::of(&[missing("…", false)], &SourceFacts::default()),
        ..options(Existing::Replace)
    };
    assert!(restore(&memory, root.path(), unnamed).is_err());
}

#[test]
fn another_file_system_is_not_emptied() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let settings = SnapshotOptions {
        one_file_system: true,
        ..SnapshotOptions::default()
    };
    let mount = |name: &str| {
        fs::create_dir(root.join(name)).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(root.join(name))
            .output();
        let is_mounted = mount.is_ok_and(|mount| mount.status.success());
        if is_mounted {
            write(root, &format!("{name}/file"), "x");
        }
        is_mounted
    };
    if !mount("before") {
        skipped("no file system can be mounted here");
        return;
    }
    let (memory, lacks) = backup(root, &settings, &[]);
    let is_mounted = mount("since");
    write(root, "extra", "x");
    let result = restore(&memory, root, with_delete(lacks));
    let left = ["before", "since"].map(|name| root.join(name).join("file").exists());
    for name in ["before", "since"] {
        let unmounted = std::process::Command::new("umount").arg(root.join(name)).status();
        assert!(unmounted.unwrap().success());
    }
    assert!(is_mounted);
    result.unwrap();
    assert_eq!(left, [true, true]);
    assert!(!root.join("extra").exists());
}

#[test]
fn a_part_of_a_file_never_takes_its_place() {
    let mut memory = Memory::default();
    for path in ["gone", "there"] {
        memory.begin(&Entry::bare(path, EntryKind::File)).unwrap();
        memory.write(b"a part").unwrap();
        memory.end().unwrap();
    }
    let lacks = Lacks::of(
        // Also where something else is missing of it.
        &[missing("gone", true), missing("there", true), missing("there", false)],
        &SourceFacts::default(),
    );
    let scratch = tempfile::tempdir().unwrap();
    for existing in [Existing::Refuse, Existing::Replace, Existing::InPlace] {
        for dry_run in [true, false] {
            let destination = scratch.path().join(format!("{existing:?} {dry_run}"));
            if existing != Existing::Refuse {
                write(&destination, "there", "all of it");
            }
            let options = RestoreOptions {
                dry_run,
                lacks: lacks.clone(),
                ..options(existing)
            };
            let (_, changes) = restore(&memory, &destination, options).unwrap();
            let told = |path: &str| {
                let of_path = changes.iter().filter(|(_, changed, _)| changed == path);
                let mut kinds: Vec<Change> = of_path.map(|(change, ..)| *change).collect();
                kinds.sort();
                kinds
            };
            assert_eq!(told("gone"), [Change::Create, Change::Skip]);
            if existing == Existing::Refuse {
                assert_eq!(told("there"), [Change::Create, Change::Skip]);
            } else {
                assert_eq!(told("there"), [Change::Skip]);
                assert_eq!(fs::read_to_string(destination.join("there")).unwrap(), "all of it");
            }
            if !dry_run {
                assert_eq!(fs::read_to_string(destination.join("gone")).unwrap(), "a part");
            }
        }
    }
}
