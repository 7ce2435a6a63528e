//! Trees that come back, whole and in part.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use strongroom_connectors::files::{Change, Existing, FilesRestore, FilesRestoreError, RestoreOptions, Selection};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink as _, EntrySource};

use crate::files::{
    acl, backup, describe, is_root, options, past, reasons, restore, set_attribute, set_mode, set_time, skipped, tree,
};
use crate::memory::Memory;

fn selected(paths: &[&str], patterns: &[&str]) -> RestoreOptions {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    RestoreOptions {
        select: Selection::new(&owned(paths), &owned(patterns)).unwrap(),
        ..options(Existing::Refuse)
    }
}

/// The paths of a tree, sorted.
fn paths(root: &Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name();
    let path = |item: walkdir::DirEntry| item.path().strip_prefix(root).unwrap().display().to_string();
    walk.into_iter().map(|item| path(item.unwrap())).collect()
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let source = tree();
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    let destination = scratch.path().join("new");
    let (restored, changes) = restore(&memory, &destination, options(Existing::Refuse)).unwrap();
    assert_eq!(describe(&destination), describe(source.path()));
    assert_eq!((restored.files, restored.hardlinks, restored.directories), (7, 1, 5));
    assert_eq!(
        (restored.symlinks, restored.others, restored.skipped, restored.problems),
        (2, 1, 0, 0)
    );
    assert!(
        changes.iter().all(|(change, _, _)| *change == Change::Create),
        "{changes:?}"
    );
    assert_eq!(
        changes.len(),
        memory.entries.len() - 1,
        "the destination itself is not told of"
    );
    let sparse = destination.join("sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < sparse.len() / 4, "{} blocks", sparse.blocks());
}

#[test]
fn the_sink_restores_as_well() {
    let source = tree();
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    let destination = scratch.path().join("new");
    let mut sink = FilesRestore::create(&destination, false).unwrap();
    memory.replay(&mut sink).unwrap();
    assert_eq!(sink.finish().unwrap().files, 7);
    assert_eq!(describe(&destination), describe(source.path()));
    let error = FilesRestore::create(&destination, false).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
    FilesRestore::create(&destination, true).unwrap();
}

#[test]
fn owners_devices_and_attributes_of_the_system_come_back_where_root_restores() {
    if !is_root() {
        skipped("only root gives files away");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let path = |name: &str| source.path().join(name);
    fs::write(path("file"), "x").unwrap();
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("dir/below"), "x").unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let device = rustix::fs::makedev(1, 7);
    if rustix::fs::mknodat(CWD, path("full"), FileType::CharacterDevice, Mode::RUSR, device).is_err() {
        skipped("this root makes no devices");
    }
    for (number, name) in ["file", "dir", "dir/below", "link", "fifo"].into_iter().enumerate() {
        std::os::unix::fs::lchown(path(name), Some(4_000 + number as u32), Some(5_000)).unwrap();
    }
    set_mode(&path("file"), 0o6711);
    set_mode(&path("dir"), 0o2770);
    set_mode(&path("fifo"), 0o622);
    set_attribute(&path("file"), "trusted.note", b"x");
    set_attribute(&path("link"), "trusted.link", b"y");
    // A capability, which a later change of owner would take away: net_bind_service.
    let mut capability = vec![1, 0, 0, 2];
    capability.extend(1024_u32.to_le_bytes());
    capability.extend([0; 12]);
    set_attribute(&path("dir/below"), "security.capability", &capability);
    for name in ["file", "dir/below", "dir", "link", "fifo"] {
        set_time(&path(name), past());
    }
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    let (restored, _) = restore(&memory, &scratch.path().join("new"), options(Existing::Refuse)).unwrap();
    assert_eq!(describe(&scratch.path().join("new")), describe(source.path()));
    assert_eq!((restored.skipped, restored.problems), (0, 0));
}

#[test]
fn what_the_destination_hands_down_does_not_show_in_what_is_restored() {
    let source = tree();
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    let destination = scratch.path().join("new");
    fs::create_dir(&destination).unwrap();
    set_attribute(&destination, "system.posix_acl_default", &acl());
    set_mode(&destination, 0o2777);
    restore(&memory, &destination, options(Existing::Refuse)).unwrap();
    assert_eq!(describe(&destination), describe(source.path()));
}

#[test]
fn sockets_are_skipped_and_told() {
    let mut memory = Memory::default();
    for kind in [EntryKind::Socket, EntryKind::File] {
        memory.begin(&Entry::bare(format!("{kind:?}"), kind)).unwrap();
        memory.end().unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let (restored, changes) = restore(&memory, scratch.path(), options(Existing::Refuse)).unwrap();
    assert_eq!((restored.skipped, restored.files), (1, 1));
    assert_eq!(changes[0], (Change::Create, "File".to_owned(), None));
    assert!(matches!(&changes[1], (Change::Skip, path, Some(reason)) if path == "Socket" && reason.contains("socket")));
}

#[test]
fn attributes_that_cannot_be_set_are_told_and_the_file_is_restored() {
    let mut entry = Entry::bare("file", EntryKind::File);
    entry.xattrs.insert("nosuchnamespace.x".to_owned(), "00".to_owned());
    let mut memory = Memory::default();
    memory.begin(&entry).unwrap();
    memory.write(b"content").unwrap();
    memory.end().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (restored, changes) = restore(&memory, scratch.path(), options(Existing::Refuse)).unwrap();
    assert_eq!((restored.files, restored.problems), (1, 1));
    assert!(
        matches!(&changes[1], (Change::Skip, _, Some(reason)) if reason.contains("nosuchnamespace.x")),
        "{changes:?}"
    );
    assert_eq!(fs::read(scratch.path().join("file")).unwrap(), b"content");
}

#[test]
fn a_part_comes_with_the_directories_above_it() {
    let source = tree();
    set_mode(&source.path().join("a/deep"), 0o711);
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    let to = |name: &str| scratch.path().join(name);
    restore(&memory, &to("path"), selected(&["a/deep/er"], &[])).unwrap();
    assert_eq!(paths(&to("path")), ["a", "a/deep", "a/deep/er", "a/deep/er/large"]);
    let whole = describe(source.path());
    let part = describe(&to("path"));
    assert!(part[1..].iter().all(|line| whole.contains(line)), "{part:#?}");
    assert_eq!(
        to("path").metadata().unwrap().permissions().mode() & 0o777,
        0o777 & !umask()
    );

    restore(&memory, &to("patterns"), selected(&["empty"], &["small", "new*"])).unwrap();
    assert_eq!(paths(&to("patterns")), ["a", "a/small", "empty", "new\nline"]);
}

fn umask() -> u32 {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("d")).unwrap();
    !scratch.path().join("d").metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_further_name_brings_the_content_where_the_first_is_not_selected() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir_all(source.path().join("z/y")).unwrap();
    fs::write(source.path().join("first"), "content").unwrap();
    for name in ["z/second", "z/y/third"] {
        fs::hard_link(source.path().join("first"), source.path().join(name)).unwrap();
    }
    set_mode(&source.path().join("z"), 0o711);
    set_time(&source.path().join("z"), past());
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    for existing in [Existing::Refuse, Existing::InPlace] {
        let destination = scratch.path().join(format!("{existing:?}"));
        let part = RestoreOptions {
            existing,
            ..selected(&["z"], &[])
        };
        let dry_run = RestoreOptions {
            dry_run: true,
            ..part.clone()
        };
        let (_, foreseen) = restore(&memory, &destination, dry_run).unwrap();
        let (restored, changes) = restore(&memory, &destination, part).unwrap();
        assert_eq!(changes, foreseen);
        assert_eq!((restored.files, restored.hardlinks), (1, 1));
        assert_eq!(paths(&destination), ["z", "z/second", "z/y", "z/y/third"]);
        let facts = |name: &str| destination.join(name).metadata().unwrap();
        assert_eq!(facts("z/second").ino(), facts("z/y/third").ino());
        assert_eq!(fs::read(destination.join("z/second")).unwrap(), b"content");
        assert_eq!(facts("z").mtime(), 1_500_000_000);
        assert_eq!(facts("z").mode() & 0o7777, 0o711);
    }
}

#[test]
fn a_selection_that_finds_nothing_is_refused_before_anything_is_written() {
    let memory = backup(tree().path());
    let scratch = tempfile::tempdir().unwrap();
    let error = restore(&memory, scratch.path(), selected(&["a", "nowhere"], &[])).unwrap_err();
    assert!(
        matches!(&error, FilesRestoreError::NotInBackup { path } if path == "nowhere"),
        "{error}"
    );
    let error = restore(&memory, scratch.path(), selected(&[], &["*.nothing"])).unwrap_err();
    assert!(matches!(error, FilesRestoreError::NothingSelected), "{error}");
    assert_eq!(paths(scratch.path()).len(), 0);
}

#[test]
fn a_destination_with_anything_in_it_is_refused_unless_allowed() {
    let source = tree();
    let memory = backup(source.path());
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("a")).unwrap();
    fs::write(scratch.path().join("a/small"), "old").unwrap();
    fs::write(scratch.path().join("mine"), "kept").unwrap();
    std::os::unix::fs::symlink("mine", scratch.path().join("new\nline")).unwrap();
    set_mode(scratch.path(), 0o700);
    let error = restore(&memory, scratch.path(), options(Existing::Refuse)).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(fs::read_to_string(scratch.path().join("a/small")).unwrap(), "old");
    let (_, changes) = restore(&memory, scratch.path(), options(Existing::Replace)).unwrap();
    assert_eq!(fs::read_to_string(scratch.path().join("a/small")).unwrap(), "hello");
    assert_eq!(fs::read_to_string(scratch.path().join("mine")).unwrap(), "kept");
    let replaced: Vec<_> = changes.iter().filter(|change| change.0 == Change::Replace).collect();
    assert_eq!(replaced.len(), 2, "{changes:?}");
    // It holds other things as well, and is whose it was.
    assert_eq!(scratch.path().metadata().unwrap().mode() & 0o777, 0o700);
    // All over again: everything is there.
    restore(&memory, scratch.path(), options(Existing::Replace)).unwrap();
    fs::remove_file(scratch.path().join("mine")).unwrap();
    assert_eq!(describe(scratch.path())[1..], describe(source.path())[1..]);
}

#[test]
fn a_directory_in_the_way_of_a_file_is_not_removed_silently() {
    let mut memory = Memory::default();
    memory.begin(&Entry::bare("x", EntryKind::File)).unwrap();
    memory.end().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("x")).unwrap();
    fs::write(scratch.path().join("x/mine"), "kept").unwrap();
    for existing in [Existing::Replace, Existing::InPlace] {
        let error = restore(&memory, scratch.path(), options(existing)).unwrap_err();
        assert!(
            reasons(&error).contains("in its way: move it away"),
            "{}",
            reasons(&error)
        );
        assert_eq!(fs::read_to_string(scratch.path().join("x/mine")).unwrap(), "kept");
    }
}

/// A source that breaks off in the middle of its second file.
struct Breaking(Memory);

impl EntrySource for Breaking {
    fn for_each_entry(
        &self,
        each: &mut dyn FnMut(strongroom_proto::manifest::Listed<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.0.for_each_entry(each)
    }
    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
        self.0.copy_content(path, out)
    }
    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(strongroom_proto::manifest::Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn strongroom_proto::manifest::EntrySink,
    ) -> io::Result<()> {
        self.0.for_each_entry(&mut |listed| wanted(listed).map(drop))?;
        sink.begin(&self.0.entries[0].0)?;
        sink.write(b"whole")?;
        sink.end()?;
        sink.begin(&self.0.entries[1].0)?;
        sink.write(b"half")?;
        Err(io::Error::new(io::ErrorKind::ConnectionReset, "the vault is gone"))
    }
}

#[test]
fn a_file_that_ends_badly_is_not_there() {
    let mut memory = Memory::default();
    for path in ["a", "b"] {
        memory.begin(&Entry::bare(path, EntryKind::File)).unwrap();
        memory.write(b"different").unwrap();
        memory.end().unwrap();
    }
    let source = Breaking(memory);
    let scratch = tempfile::tempdir().unwrap();
    for (existing, before) in [
        (Existing::Refuse, None),
        (Existing::Replace, Some("old")),
        (Existing::InPlace, Some("old")),
    ] {
        let destination = scratch.path().join(format!("{existing:?}"));
        if let Some(before) = before {
            fs::create_dir(&destination).unwrap();
            fs::write(destination.join("b"), before).unwrap();
        }
        let error = restore(&source, &destination, options(existing)).unwrap_err();
        assert!(
            matches!(error, FilesRestoreError::Read { .. }) && error.is_retryable(),
            "{error:?}"
        );
        assert_eq!(fs::read_to_string(destination.join("a")).unwrap(), "whole");
        assert_eq!(fs::read_to_string(destination.join("b")).ok().as_deref(), before);
        let names = fs::read_dir(&destination).unwrap().count();
        assert_eq!(names, 1 + usize::from(before.is_some()), "something was left behind");
    }
}

#[test]
fn a_full_disk_ends_the_restore() {
    let scratch = tempfile::tempdir().unwrap();
    let full = scratch.path().join("full");
    fs::create_dir(&full).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&full)
        .output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        skipped("no file system can be mounted here");
        return;
    }
    let mut memory = Memory::default();
    memory.begin(&Entry::bare("large", EntryKind::File)).unwrap();
    memory.write(&[1; 1 << 20]).unwrap();
    memory.end().unwrap();
    let result = restore(&memory, &full, options(Existing::Refuse));
    let left = fs::read_dir(&full).unwrap().count();
    let unmounted = std::process::Command::new("umount").arg(&full).status().unwrap();
    assert!(unmounted.success());
    let error = result.unwrap_err();
    let FilesRestoreError::Destination { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert!(source.to_string().starts_with("large: "), "{source}");
    assert_eq!(left, 0);
}

#[test]
fn another_user_restores_what_it_may() {
    if is_root() {
        skipped("root may restore everything; run as another user to try this");
        return;
    }
    let mut memory = Memory::default();
    let theirs = Entry {
        mode: Some(0o104_755),
        uid: Some(0),
        gid: Some(0),
        ..Entry::bare("theirs", EntryKind::File)
    };
    let device = Entry {
        device_major: Some(1),
        device_minor: Some(3),
        ..Entry::bare("device", EntryKind::CharDevice)
    };
    for entry in [&device, &theirs] {
        memory.begin(entry).unwrap();
        memory.end().unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let foreseen = RestoreOptions {
        dry_run: true,
        ..options(Existing::Refuse)
    };
    let (_, foreseen) = restore(&memory, scratch.path(), foreseen).unwrap();
    let (restored, changes) = restore(&memory, scratch.path(), options(Existing::Refuse)).unwrap();
    assert_eq!(changes, foreseen);
    assert_eq!((restored.files, restored.skipped), (1, 1));
    assert!(
        matches!(&changes[0], (Change::Skip, path, Some(_)) if path == "device"),
        "{changes:?}"
    );
    // Its bits would lend our rights, not those of root.
    assert_eq!(scratch.path().join("theirs").metadata().unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_directory_is_closed_and_gets_its_time_when_all_in_it_is_made() {
    let mut memory = Memory::default();
    let directory = |path: &str| Entry {
        mode: Some(0o40_555),
        mtime_seconds: Some(1_000_000_000),
        ..Entry::bare(path, EntryKind::Directory)
    };
    let mut put = |entry: Entry, content: &[u8]| {
        memory.begin(&entry).unwrap();
        memory.write(content).unwrap();
        memory.end().unwrap();
    };
    put(directory("."), b"");
    put(directory("a"), b"");
    let content = vec![1; 900_000];
    put(Entry::bare("a/x", EntryKind::File), &content);
    put(directory("b"), b"");
    // Restored without the name that holds it, it is made before the directory it is in comes.
    let further = Entry {
        link_target: Some("a/x".to_owned()),
        ..Entry::bare("b/y", EntryKind::Hardlink)
    };
    put(further, b"");
    for number in 0..300 {
        let name = format!("c{number:03}");
        put(directory(&name), b"");
        put(Entry::bare(format!("{name}/file"), EntryKind::File), b"small");
    }
    let scratch = tempfile::tempdir().unwrap();
    for (round, options) in [options(Existing::Refuse), selected(&["b"], &["c*"])]
        .into_iter()
        .enumerate()
    {
        for attempt in 0..5 {
            let destination = scratch.path().join(format!("{round} {attempt}"));
            restore(&memory, &destination, options.clone()).unwrap();
            assert!(fs::read(destination.join("b/y")).unwrap() == content);
            for directory in ["b".to_owned(), "c000".to_owned(), "c299".to_owned()] {
                let facts = fs::metadata(destination.join(&directory)).unwrap();
                assert_eq!((facts.mtime(), facts.mode()), (1_000_000_000, 0o40_555), "{directory}");
                set_mode(&destination.join(&directory), 0o755);
            }
        }
    }
}
