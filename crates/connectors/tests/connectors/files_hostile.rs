//! Backups that somebody made up to write where they must not.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use strongroom_connectors::files::{Existing, FilesRestore, FilesRestoreError, RestoreOptions};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink};

use crate::files::{describe, options, restore};
use crate::memory::Memory;

fn file(path: &str) -> Entry {
    Entry::bare(path, EntryKind::File)
}

fn link(path: &str, target: &Path) -> Entry {
    Entry {
        link_target: Some(target.display().to_string()),
        ..Entry::bare(path, EntryKind::Symlink)
    }
}

fn hardlink(path: &str, target: &str) -> Entry {
    Entry {
        link_target: Some(target.to_owned()),
        ..Entry::bare(path, EntryKind::Hardlink)
    }
}

fn attacks(outside: &Path) -> Vec<Vec<Entry>> {
    let hex = |path: &str, bytes: &str| Entry {
        path_hex: Some(hex::encode(bytes)),
        ..file(path)
    };
    let target = |bytes: &str| Entry {
        link_target_hex: Some(hex::encode(bytes)),
        ..hardlink("linked", "harmless")
    };
    let attribute = |name: &str, value: &str| {
        let mut entry = file("file");
        entry.xattrs.insert(name.to_owned(), value.to_owned());
        entry
    };
    vec![
        vec![file("../outside/victim")],
        vec![file("/tmp/strongroom-escape")],
        vec![file("a/../../outside/victim")],
        vec![file("a//b")],
        vec![file("")],
        vec![file(".")],
        vec![file("./a")],
        vec![file("..")],
        vec![file("a\0b")],
        vec![hex("harmless", "../outside/victim")],
        vec![hex("harmless", "other")],
        vec![Entry {
            path_hex: Some("no hex".to_owned()),
            ..file("harmless")
        }],
        vec![Entry::bare("../outside/new", EntryKind::Directory)],
        vec![link("../outside/new", outside)],
        vec![link("way", outside), file("way/victim")],
        vec![link("way", outside), Entry::bare("way/new", EntryKind::Directory)],
        vec![link("way", outside), Entry::bare("way/new", EntryKind::Fifo)],
        vec![link("way", outside), link("way/new", outside)],
        vec![Entry::bare("way", EntryKind::Symlink)],
        // Hard links out of the destination, through links, to links and to nothing.
        vec![hardlink("x", "../outside/victim")],
        vec![hardlink("x", &outside.join("victim").display().to_string())],
        vec![link("way", outside), hardlink("x", "way/victim")],
        vec![link("way", &outside.join("victim")), hardlink("x", "way")],
        vec![Entry::bare("d", EntryKind::Directory), hardlink("x", "d")],
        vec![hardlink("x", "nothing")],
        vec![hardlink("x", "x")],
        vec![Entry::bare("x", EntryKind::Hardlink)],
        vec![file("harmless"), target("../outside/victim")],
        vec![attribute("user.x", "no hex")],
        vec![Entry::stream("stream", "postgres-dump")],
    ]
}

#[test]
fn no_entry_is_written_outside_the_destination() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let before = describe(&outside);
    for (number, attack) in attacks(&outside).iter().enumerate() {
        let mut memory = Memory::default();
        for entry in attack {
            memory.begin(entry).unwrap();
            if entry.kind.has_content() {
                memory.write(b"owned").unwrap();
            }
            memory.end().unwrap();
        }
        for existing in [Existing::Refuse, Existing::Replace, Existing::InPlace] {
            let destination = scratch.path().join(format!("d{number}-{existing:?}"));
            let error = restore(&memory, &destination, options(existing)).expect_err(&format!("{attack:?}"));
            assert!(!error.is_retryable(), "{attack:?} {error:?}");
            let refused = matches!(
                error,
                FilesRestoreError::Destination { .. } | FilesRestoreError::Entry { .. }
            );
            assert!(refused, "{attack:?} {error:?}");
        }
        assert_eq!(describe(&outside), before, "{attack:?}");
        assert!(!Path::new("/tmp/strongroom-escape").exists());
    }
}

#[test]
fn a_link_at_the_destination_is_replaced_and_not_written_through() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let mut memory = Memory::default();
    memory.begin(&file("file")).unwrap();
    memory.write(b"new").unwrap();
    memory.end().unwrap();
    for existing in [Existing::Replace, Existing::InPlace] {
        let destination = scratch.path().join(format!("{existing:?}"));
        fs::create_dir(&destination).unwrap();
        symlink(outside.join("victim"), destination.join("file")).unwrap();
        restore(&memory, &destination, options(existing)).unwrap();
        assert!(destination.join("file").symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read_to_string(destination.join("file")).unwrap(), "new");
    }
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
    // A destination that is a link itself is none.
    let way = scratch.path().join("way");
    symlink(&outside, &way).unwrap();
    for existing in [Existing::Refuse, Existing::Replace, Existing::InPlace] {
        assert!(restore(&memory, &way, options(existing)).is_err());
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_directory_that_becomes_a_link_to_elsewhere_is_not_gone_through_in_place() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir_all(outside.join("extra")).unwrap();
    fs::write(outside.join("file"), "untouched").unwrap();
    let mut memory = Memory::default();
    memory.begin(&Entry::bare("d", EntryKind::Directory)).unwrap();
    memory.end().unwrap();
    memory.begin(&file("d/file")).unwrap();
    memory.write(b"new").unwrap();
    memory.end().unwrap();
    let destination = scratch.path().join("new");
    fs::create_dir(&destination).unwrap();
    symlink(&outside, destination.join("d")).unwrap();
    let error = restore(&memory, &destination, options(Existing::Replace)).unwrap_err();
    assert!(matches!(error, FilesRestoreError::Destination { .. }), "{error:?}");
    let with_delete = RestoreOptions {
        delete: true,
        ..options(Existing::InPlace)
    };
    restore(&memory, &destination, with_delete).unwrap();
    assert_eq!(fs::read_to_string(destination.join("d/file")).unwrap(), "new");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "untouched");
    assert!(outside.join("extra").exists());
}

#[test]
fn a_path_that_comes_twice_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("victim");
    fs::write(&outside, "untouched").unwrap();
    let mut sink = FilesRestore::create(&scratch.path().join("new"), false).unwrap();
    sink.begin(&link("file", &outside)).unwrap();
    sink.end().unwrap();
    let error = sink.begin(&file("file")).unwrap_err();
    assert!(error.to_string().contains("names it twice"), "{error}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
}

#[test]
fn content_where_none_belongs_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut sink = FilesRestore::create(&scratch.path().join("new"), false).unwrap();
    assert!(sink.write(b"x").is_err());
    assert!(sink.hole(1).is_err());
    assert!(sink.end().is_err());
    sink.begin(&Entry::bare("d", EntryKind::Directory)).unwrap();
    let error = sink.write(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    sink.end().unwrap();
    sink.begin(&file("f")).unwrap();
    assert!(sink.begin(&file("g")).is_err(), "an entry inside another");
    sink.hole(u64::MAX).unwrap();
    assert!(sink.hole(2).is_err());
    assert!(sink.end().is_err(), "no file is that long");
    assert!(sink.finish().is_err());
}
