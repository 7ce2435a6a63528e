//! Restores into a tree that is there already: only what differs is touched.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use strongroom_connectors::files::{Change, Existing, FilesRestoreError, RestoreOptions, Selection};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};

use crate::files::{
    Changes, backup, describe, options, past, reasons, restore, set_attribute, set_mode, set_time, tree,
};
use crate::memory::Memory;

fn in_place(delete: bool) -> RestoreOptions {
    RestoreOptions {
        delete,
        ..options(Existing::InPlace)
    }
}

/// Into the tree that was backed up, where everything was made long before that.
fn untouched_since() -> RestoreOptions {
    RestoreOptions {
        backup_began: Some(SystemTime::now() + Duration::from_secs(3600)),
        ..in_place(false)
    }
}

/// Restores for real after a dry run, which has to change nothing and to foresee everything.
fn restore_twice(memory: &Memory, destination: &Path, options: RestoreOptions) -> Changes {
    let before = describe(destination);
    let dry_run = RestoreOptions {
        dry_run: true,
        ..options.clone()
    };
    let (foreseen_counts, foreseen) = restore(memory, destination, dry_run).unwrap();
    assert_eq!(describe(destination), before, "a dry run changed something");
    let (counts, changes) = restore(memory, destination, options).unwrap();
    assert_eq!(changes, foreseen);
    assert_eq!(counts, foreseen_counts);
    changes
}

fn told(changes: &Changes) -> Vec<(Change, &str)> {
    changes
        .iter()
        .map(|(change, path, _)| (*change, path.as_str()))
        .collect()
}

/// A tree, its backup and a copy of it.
fn restored_tree() -> (tempfile::TempDir, Memory, tempfile::TempDir) {
    let source = tree();
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    restore(&memory, &scratch.path().join("d"), options(Existing::Refuse)).unwrap();
    (source, memory, scratch)
}

#[test]
fn what_is_as_it_should_be_is_not_touched() {
    let (_source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    let ctimes = |root: &Path| {
        let walk = walkdir::WalkDir::new(root).sort_by_file_name().into_iter();
        let changed = |item: walkdir::DirEntry| {
            item.path()
                .symlink_metadata()
                .map(|facts| (facts.ctime(), facts.ctime_nsec()))
        };
        walk.map(|item| changed(item.unwrap()).unwrap()).collect::<Vec<_>>()
    };
    let before = ctimes(&destination);
    assert_eq!(told(&restore_twice(&memory, &destination, in_place(true))), []);
    assert_eq!(ctimes(&destination), before);
}

#[test]
fn only_what_differs_is_written() {
    let (source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    let path = |name: &str| destination.join(name);
    // Content of the same length, with another time and with the same.
    fs::write(path("attributed"), "y").unwrap();
    // Only the time.
    set_time(&path("a/deep/er/large"), past());
    let large = path("a/deep/er/large").metadata().unwrap().ino();
    set_mode(&path("a/nothing"), 0o777);
    fs::remove_file(path("a/link")).unwrap();
    symlink("elsewhere", path("a/link")).unwrap();
    fs::remove_file(path("pipe")).unwrap();
    fs::write(path("pipe"), "a file now").unwrap();
    fs::remove_dir(path("empty")).unwrap();
    fs::write(path("empty"), "a file now").unwrap();
    fs::write(path("mine"), "kept").unwrap();
    set_mode(&path("a/deep"), 0o700);
    set_mode(&destination, 0o700);
    let changes = restore_twice(&memory, &destination, in_place(false));
    assert_eq!(
        told(&changes),
        [
            (Change::Metadata, "."),
            (Change::Metadata, "a"),
            (Change::Metadata, "a/deep"),
            (Change::Metadata, "a/deep/er/large"),
            (Change::Replace, "a/link"),
            (Change::Metadata, "a/nothing"),
            (Change::Replace, "attributed"),
            (Change::Replace, "empty"),
            (Change::Replace, "pipe"),
        ]
    );
    assert_eq!(path("a/deep/er/large").metadata().unwrap().ino(), large);
    fs::remove_file(path("mine")).unwrap();
    let restored = describe(&destination);
    assert_eq!(restored[1..], describe(source.path())[1..]);
    assert_eq!(
        told(&restore_twice(&memory, &destination, in_place(false))),
        [(Change::Metadata, ".")]
    );
    assert_eq!(describe(&destination), describe(source.path()));
}

#[test]
fn content_that_differs_under_the_same_length_and_another_time_is_found() {
    let (source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    let large = destination.join("a/deep/er/large");
    let mut content = fs::read(&large).unwrap();
    content[2_000_000] ^= 1;
    fs::write(&large, content).unwrap();
    let changes = restore_twice(&memory, &destination, in_place(false));
    assert_eq!(told(&changes), [(Change::Replace, "a/deep/er/large")]);
    assert_eq!(describe(&destination), describe(source.path()));
}

#[test]
fn content_that_differs_under_the_same_length_and_time_is_found_unless_the_file_was_not_touched_since_the_backup() {
    let (source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    let change = || {
        for (name, at) in [("a/deep/er/large", 2_000_000), ("sparse", 6 << 20), ("a/small", 1)] {
            let path = destination.join(name);
            let time = path.metadata().unwrap().modified().unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"!", at).unwrap();
            drop(file);
            set_time(&path, time);
        }
    };
    let began = |backup_began| RestoreOptions {
        backup_began,
        ..in_place(false)
    };
    change();
    assert_eq!(told(&restore_twice(&memory, &destination, untouched_since())), []);
    for options in [began(None), began(Some(past())), began(Some(SystemTime::now()))] {
        let changes = restore_twice(&memory, &destination, options.clone());
        assert_eq!(
            told(&changes),
            [
                (Change::Replace, "a/deep/er/large"),
                (Change::Replace, "a/small"),
                (Change::Replace, "sparse"),
                (Change::Replace, "z-other-name"),
            ]
        );
        assert_eq!(describe(&destination), describe(source.path()));
        // Once more, and nothing is written that is as it should be.
        assert_eq!(told(&restore_twice(&memory, &destination, options)), []);
        change();
    }
}

#[test]
fn attributes_are_compared_and_set() {
    let (source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    if !set_attribute(&destination.join("a/nothing"), "user.extra", b"x") {
        return;
    }
    set_attribute(&destination.join("attributed"), "user.colour", b"red");
    set_attribute(&destination.join("a/deep"), "user.extra", b"x");
    let changes = restore_twice(&memory, &destination, in_place(false));
    assert_eq!(
        told(&changes),
        [
            (Change::Metadata, "a/deep"),
            (Change::Metadata, "a/nothing"),
            (Change::Metadata, "attributed"),
        ]
    );
    assert_eq!(describe(&destination), describe(source.path()));
}

#[test]
fn names_of_the_same_file_are_joined_and_parted_again() {
    let (source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    // The two names become two files; two files become one.
    fs::remove_file(destination.join("z-other-name")).unwrap();
    fs::copy(destination.join("a/small"), destination.join("z-other-name")).unwrap();
    fs::remove_file(destination.join("new\nline")).unwrap();
    fs::hard_link(destination.join("attributed"), destination.join("new\nline")).unwrap();
    let changes = restore_twice(&memory, &destination, in_place(false));
    assert_eq!(
        told(&changes),
        [
            (Change::Metadata, "."),
            (Change::Replace, "new\\nline"),
            (Change::Replace, "z-other-name"),
        ]
    );
    assert_eq!(describe(&destination), describe(source.path()));
    // A file that is written again takes its other names along.
    fs::write(destination.join("a/small"), "other content").unwrap();
    let changes = restore_twice(&memory, &destination, in_place(false));
    assert_eq!(
        told(&changes),
        [(Change::Replace, "a/small"), (Change::Replace, "z-other-name")]
    );
    assert_eq!(describe(&destination), describe(source.path()));
}

#[test]
fn delete_removes_what_the_backup_lacks_and_nothing_else() {
    let (source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "untouched").unwrap();
    let path = |name: &str| destination.join(name);
    fs::create_dir_all(path("a/extra/deep")).unwrap();
    fs::write(path("a/extra/deep/file"), "x").unwrap();
    symlink(&outside, path("a/extra/link")).unwrap();
    symlink(&outside, path("0-link")).unwrap();
    fs::write(path("zz"), "x").unwrap();
    fs::write(path("a/deep/er/large2"), "x").unwrap();
    fs::write(path(".strongroom-restore-1-0"), "left by a process that was killed").unwrap();
    set_mode(&path("empty"), 0o700);
    fs::write(path("empty/file"), "x").unwrap();
    set_mode(&path("empty"), 0o500);
    let changes = restore_twice(&memory, &destination, in_place(true));
    let deleted: Vec<&str> = changes
        .iter()
        .filter(|(change, _, _)| *change == Change::Delete)
        .map(|(_, path, _)| path.as_str())
        .collect();
    let expected = [
        ".strongroom-restore-1-0",
        "0-link",
        "a/deep/er/large2",
        "a/extra",
        "empty/file",
        "zz",
    ];
    assert_eq!(deleted, expected);
    assert!(
        changes
            .iter()
            .all(|(change, _, _)| matches!(change, Change::Delete | Change::Metadata)),
        "{changes:?}"
    );
    assert_eq!(describe(&destination), describe(source.path()));
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "untouched");
}

#[test]
fn delete_keeps_to_the_paths_that_are_selected() {
    let (_source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    for name in ["extra", "a/extra", "a/deep/extra", "a/deep/er/extra", "a/deep-extra"] {
        fs::write(destination.join(name), "x").unwrap();
    }
    let select = |paths: &[&str], patterns: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        RestoreOptions {
            select: Selection::new(&owned(paths), &owned(patterns)).unwrap(),
            ..in_place(true)
        }
    };
    let changes = restore_twice(&memory, &destination, select(&["a/deep", "a/small"], &[]));
    let deleted: Vec<_> = told(&changes)
        .into_iter()
        .filter(|(change, _)| *change == Change::Delete)
        .collect();
    assert_eq!(
        deleted,
        [(Change::Delete, "a/deep/er/extra"), (Change::Delete, "a/deep/extra")]
    );
    assert!(destination.join("a/deep-extra").exists() && destination.join("extra").exists());
    // What patterns do not match may be in the backup.
    let error = restore(&memory, &destination, select(&["a"], &["*.x"])).unwrap_err();
    assert!(matches!(error, FilesRestoreError::CannotDelete), "{error}");
    let error = restore(
        &memory,
        &destination,
        RestoreOptions {
            delete: true,
            ..options(Existing::Replace)
        },
    )
    .unwrap_err();
    assert!(matches!(error, FilesRestoreError::CannotDelete), "{error}");
}

#[test]
fn what_has_become_something_else_is_replaced() {
    let (source, memory, scratch) = restored_tree();
    let destination = scratch.path().join("d");
    let path = |name: &str| destination.join(name);
    fs::remove_dir_all(path("a/deep")).unwrap();
    symlink("../..", path("a/deep")).unwrap();
    fs::remove_file(path("attributed")).unwrap();
    fs::create_dir_all(path("attributed/full/of")).unwrap();
    fs::write(path("attributed/full/of/things"), "x").unwrap();
    fs::remove_file(path("a/link")).unwrap();
    fs::create_dir(path("a/link")).unwrap();
    // Nothing that is not empty goes without being told to.
    let error = restore(&memory, &destination, in_place(false)).unwrap_err();
    assert!(
        reasons(&error).contains("let the restore delete"),
        "{}",
        reasons(&error)
    );
    assert!(path("attributed/full/of/things").exists());
    restore_twice(&memory, &destination, in_place(true));
    assert_eq!(describe(&destination), describe(source.path()));
}

#[test]
fn entries_out_of_order_are_restored_but_nothing_is_deleted_by_them() {
    let mut memory = Memory::default();
    for path in ["b", "a"] {
        memory.begin(&Entry::bare(path, EntryKind::File)).unwrap();
        memory.write(path.as_bytes()).unwrap();
        memory.end().unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("a"), "old").unwrap();
    fs::write(scratch.path().join("c"), "mine").unwrap();
    let error = restore(&memory, scratch.path(), in_place(true)).unwrap_err();
    assert!(reasons(&error).contains("without deleting"), "{}", reasons(&error));
    assert_eq!(fs::read_to_string(scratch.path().join("a")).unwrap(), "old");
    restore_twice(&memory, scratch.path(), in_place(false));
    assert_eq!(fs::read_to_string(scratch.path().join("a")).unwrap(), "a");
    assert_eq!(fs::read_to_string(scratch.path().join("c")).unwrap(), "mine");
}

/// A backup whose content of one file cannot be read to its end.
struct Damaged<'a> {
    backup: &'a Memory,
    path: &'a str,
}

impl EntrySource for Damaged<'_> {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        self.backup.for_each_entry(each)
    }

    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
        self.backup.copy_content(path, out)
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        struct Cut<'a> {
            sink: &'a mut dyn EntrySink,
            path: &'a str,
            is_open: bool,
        }
        impl EntrySink for Cut<'_> {
            fn begin(&mut self, entry: &Entry) -> io::Result<()> {
                self.is_open = entry.path == self.path;
                self.sink.begin(entry)
            }
            fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
                if self.is_open {
                    self.sink.write(&bytes[..bytes.len() / 2])?;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "chunk 7 is damaged"));
                }
                self.sink.write(bytes)
            }
            fn hole(&mut self, bytes: u64) -> io::Result<()> {
                self.sink.hole(bytes)
            }
            fn end(&mut self) -> io::Result<()> {
                self.sink.end()
            }
        }
        let path = self.path;
        let is_open = false;
        self.backup.replay_where(wanted, &mut Cut { sink, path, is_open })
    }
}

#[test]
fn damage_in_the_backup_destroys_nothing_that_was_whole() {
    let source = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "new", "same"] {
        fs::write(source.path().join(name), format!("{name} as it was")).unwrap();
    }
    let backup = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    restore(&backup, &scratch.path().join("d"), options(Existing::Refuse)).unwrap();
    let path = |name: &str| scratch.path().join("d").join(name);
    for name in ["a", "b", "c"] {
        fs::write(path(name), format!("{name} as it is today")).unwrap();
    }
    fs::write(path("mine"), "not in the backup").unwrap();
    fs::remove_file(path("new")).unwrap();
    let same = path("same").metadata().unwrap().ino();
    for (damaged, whole) in [("b", ["a"].as_slice()), ("new", &["a", "b", "c"])] {
        let source = Damaged {
            backup: &backup,
            path: damaged,
        };
        let error = restore(&source, &scratch.path().join("d"), in_place(true)).unwrap_err();
        assert!(!error.is_retryable());
        assert!(reasons(&error).contains("chunk 7 is damaged"), "{}", reasons(&error));
        for name in ["a", "b", "c"] {
            let now = if whole.contains(&name) { "was" } else { "is today" };
            assert_eq!(fs::read_to_string(path(name)).unwrap(), format!("{name} as it {now}"));
        }
        // Nothing is deleted before everything is restored, and no half of a file is left.
        assert_eq!(
            names(&scratch.path().join("d")),
            ["a", "b", "c", "mine", "same"],
            "{damaged}"
        );
        assert_eq!(path("same").metadata().unwrap().ino(), same);
    }
    // A directory stays until there is a file to take its place.
    fs::remove_file(path("b")).unwrap();
    fs::create_dir_all(path("b/below")).unwrap();
    fs::write(path("b/below/x"), "not in the backup").unwrap();
    let source = Damaged {
        backup: &backup,
        path: "b",
    };
    restore(&source, &scratch.path().join("d"), in_place(true)).unwrap_err();
    assert_eq!(fs::read_to_string(path("b/below/x")).unwrap(), "not in the backup");
    restore(&backup, &scratch.path().join("d"), in_place(true)).unwrap();
    assert_eq!(fs::read_to_string(path("b")).unwrap(), "b as it was");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_dry_run_into_nothing_makes_nothing() {
    let memory = backup(tree().path());
    let scratch = tempfile::tempdir().unwrap();
    let destination = scratch.path().join("new");
    let dry_run = |existing| RestoreOptions {
        dry_run: true,
        ..options(existing)
    };
    for existing in [Existing::Refuse, Existing::Replace, Existing::InPlace] {
        let (foreseen_counts, foreseen) = restore(&memory, &destination, dry_run(existing)).unwrap();
        assert!(!destination.exists());
        let made = scratch.path().join(format!("{existing:?}"));
        let (counts, changes) = restore(&memory, &made, options(existing)).unwrap();
        let without_root = |changes: Changes| changes.into_iter().filter(|change| change.1 != ".").collect::<Vec<_>>();
        assert_eq!(without_root(changes), without_root(foreseen));
        assert_eq!(
            (counts.files, counts.bytes),
            (foreseen_counts.files, foreseen_counts.bytes)
        );
    }
    fs::create_dir(&destination).unwrap();
    fs::write(destination.join("x"), "x").unwrap();
    let error = restore(&memory, &destination, dry_run(Existing::Refuse)).unwrap_err();
    assert!(matches!(error, FilesRestoreError::NotEmpty { .. }), "{error}");
}
