use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use strongroom_connectors::files::{FilesError, FilesRestore, drill_files, snapshot};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};
use strongroom_proto::receipt::CheckOutcome;

use crate::memory::Memory;

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("a/deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("a/small"), "hello").unwrap();
    fs::write(root.join("a/nothing"), "").unwrap();
    fs::write(root.join("a/deep/er/large"), vec![7; 3_000_001]).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"bad-\xff-name")), "bytes").unwrap();
    fs::write(root.join("new\nline"), "x").unwrap();
    symlink("../outside/target", root.join("a/link")).unwrap();
    fs::set_permissions(root.join("a/small"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o500)).unwrap();
    let at = std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 123_456_789);
    fs::File::open(root.join("a/small")).unwrap().set_modified(at).unwrap();
    fs::File::open(root.join("a/deep")).unwrap().set_modified(at).unwrap();
    dir
}

/// Everything about a tree that a restore must bring back.
fn describe(root: &Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter();
    walk.map(|item| {
        let item = item.unwrap();
        let facts = item.path().symlink_metadata().unwrap();
        let content = match () {
            () if facts.is_file() => blake3::hash(&fs::read(item.path()).unwrap()).to_string(),
            () if facts.is_symlink() => fs::read_link(item.path()).unwrap().display().to_string(),
            () => String::new(),
        };
        let path = item
            .path()
            .strip_prefix(root)
            .unwrap()
            .as_os_str()
            .as_bytes()
            .escape_ascii()
            .to_string();
        format!(
            "{path} {:o} {}:{} {}.{} {content}",
            facts.mode(),
            facts.uid(),
            facts.gid(),
            facts.mtime(),
            facts.mtime_nsec()
        )
    })
    .collect()
}

fn restore_into(memory: &Memory, destination: &Path, allow_non_empty: bool) -> io::Result<()> {
    let mut restore = FilesRestore::create(destination, allow_non_empty)?;
    memory.replay(&mut restore)?;
    restore.finish().map(|_| ())
}

#[test]
fn a_tree_comes_back_with_names_modes_times_and_links() {
    let source = tree();
    let mut memory = Memory::default();
    let report = snapshot(source.path(), &mut memory).unwrap();
    assert_eq!(report.facts.files, Some(5));
    assert!(report.missing.is_empty(), "{:?}", report.missing);
    let scratch = tempfile::tempdir().unwrap();
    let destination = scratch.path().join("new");
    restore_into(&memory, &destination, false).unwrap();
    assert_eq!(describe(&destination), describe(source.path()));

    let checks = drill_files(&memory, &scratch.path().join("drill")).unwrap();
    assert_eq!(
        checks.iter().map(|check| check.name.as_str()).collect::<Vec<_>>(),
        ["restore", "file contents"]
    );
    assert!(
        checks.iter().all(|check| check.outcome == CheckOutcome::Passed),
        "{checks:?}"
    );
    assert_eq!(fs::read_dir(scratch.path().join("drill")).unwrap().count(), 0);
}

#[test]
fn what_is_no_file_is_reported_as_skipped() {
    let source = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.path().join("socket")).unwrap();
    assert!(source.path().join("socket").metadata().unwrap().file_type().is_socket());
    fs::write(source.path().join("kept"), "x").unwrap();
    let mut memory = Memory::default();
    let report = snapshot(source.path(), &mut memory).unwrap();
    assert_eq!(memory.paths(), ["kept"]);
    assert_eq!(report.missing.len(), 1);
    assert_eq!(report.missing[0].name, "socket");
    assert!(report.missing[0].reason.contains("socket"), "{:?}", report.missing);
}

/// Removes or changes files of the tree while it is read.
struct Meddling<F: FnMut(&Entry, usize)> {
    memory: Memory,
    open: Option<Entry>,
    written: usize,
    meddle: F,
}

impl<F: FnMut(&Entry, usize)> EntrySink for Meddling<F> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.open = Some(entry.clone());
        self.written = 0;
        (self.meddle)(entry, 0);
        self.memory.begin(entry)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        (self.meddle)(self.open.as_ref().unwrap(), self.written);
        self.memory.write(bytes)
    }
    fn end(&mut self) -> io::Result<()> {
        self.memory.end()
    }
}

#[test]
fn a_file_that_vanishes_or_changes_is_named_and_never_passed_off_as_whole() {
    let source = tempfile::tempdir().unwrap();
    let path = |name: &str| source.path().join(name);
    for name in ["b-vanishes", "z-stays"] {
        fs::write(path(name), "content").unwrap();
    }
    fs::write(path("a-shrinks"), vec![1; 4_000_000]).unwrap();
    fs::write(path("c-grows"), vec![1; 4_000_000]).unwrap();
    let mut sink = Meddling {
        memory: Memory::default(),
        open: None,
        written: 0,
        meddle: |entry: &Entry, written| match entry.path.as_str() {
            "a-shrinks" if written == 0 => fs::remove_file(path("b-vanishes")).unwrap(),
            "a-shrinks" => {
                fs::OpenOptions::new()
                    .write(true)
                    .open(path("a-shrinks"))
                    .unwrap()
                    .set_len(1_000_000)
                    .unwrap();
            }
            "c-grows" if written > 0 => {
                fs::OpenOptions::new()
                    .append(true)
                    .open(path("c-grows"))
                    .unwrap()
                    .write_all(b"more")
                    .unwrap();
            }
            _ => {}
        },
    };
    let report = snapshot(source.path(), &mut sink).unwrap();
    let missing: Vec<&str> = report.missing.iter().map(|missing| missing.name.as_str()).collect();
    assert_eq!(missing, ["a-shrinks", "b-vanishes", "c-grows"]);
    assert_eq!(report.facts.files, Some(1));
    assert_eq!(sink.memory.content("c-grows").len(), 4_000_000);
}

#[test]
fn a_root_that_is_no_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    symlink(dir.path(), &link).unwrap();
    assert!(matches!(
        snapshot(&link, &mut Memory::default()),
        Err(FilesError::NotADirectory { .. })
    ));
    let missing = dir.path().join("missing");
    assert!(matches!(
        snapshot(&missing, &mut Memory::default()),
        Err(FilesError::Root { .. })
    ));
    assert!(matches!(
        snapshot(dir.path(), &mut Memory::full_after(0)),
        Ok(report) if report.facts.files == Some(0)
    ));
}

#[test]
fn no_entry_is_written_outside_the_destination() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let file = |path: &str| Entry::bare(path, EntryKind::File);
    let link = |path: &str, target: &Path| Entry {
        link_target: Some(target.display().to_string()),
        ..Entry::bare(path, EntryKind::Symlink)
    };
    let hex = Entry {
        path_hex: Some(hex::encode("../outside/victim")),
        ..file("harmless")
    };
    let attacks: Vec<Vec<Entry>> = vec![
        vec![file("../outside/victim")],
        vec![file("/tmp/strongroom-escape")],
        vec![file("a/../../outside/victim")],
        vec![file("a//b")],
        vec![file("")],
        vec![hex],
        vec![link("way", &outside), file("way/victim")],
        vec![link("way", &outside), Entry::bare("way/new", EntryKind::Directory)],
        vec![Entry::stream("stream", "postgres-dump")],
    ];
    for (number, attack) in attacks.iter().enumerate() {
        let mut restore = FilesRestore::create(&scratch.path().join(format!("d{number}")), false).unwrap();
        let result = attack.iter().try_for_each(|entry| {
            restore.begin(entry)?;
            if entry.kind == EntryKind::File {
                restore.write(b"owned")?;
            }
            restore.end()
        });
        assert!(result.is_err(), "{attack:?}");
    }
    // A link as the last component is replaced, not written through.
    let destination = scratch.path().join("last");
    let mut restore = FilesRestore::create(&destination, false).unwrap();
    restore.begin(&link("file", &outside.join("victim"))).unwrap();
    restore.end().unwrap();
    restore.begin(&file("file")).unwrap();
    restore.write(b"new").unwrap();
    restore.end().unwrap();
    restore.finish().unwrap();
    assert_eq!(fs::read_to_string(destination.join("file")).unwrap(), "new");
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_destination_with_anything_in_it_is_refused_unless_allowed() {
    let source = tree();
    let mut memory = Memory::default();
    snapshot(source.path(), &mut memory).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("a")).unwrap();
    fs::write(scratch.path().join("a/small"), "old").unwrap();
    fs::write(scratch.path().join("mine"), "kept").unwrap();
    let error = restore_into(&memory, scratch.path(), false).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    assert_eq!(fs::read_to_string(scratch.path().join("a/small")).unwrap(), "old");
    restore_into(&memory, scratch.path(), true).unwrap();
    assert_eq!(fs::read_to_string(scratch.path().join("a/small")).unwrap(), "hello");
    assert_eq!(fs::read_to_string(scratch.path().join("mine")).unwrap(), "kept");
}

#[test]
fn a_drill_notices_a_file_that_cannot_be_restored() {
    let mut memory = Memory::default();
    for path in ["good", "../bad"] {
        memory.begin(&Entry::bare(path, EntryKind::File)).unwrap();
        memory.write(b"content").unwrap();
        memory.end().unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let checks = drill_files(&memory, scratch.path()).unwrap();
    assert_eq!(checks[0].outcome, CheckOutcome::Failed, "{checks:?}");
    assert_eq!(checks[1].outcome, CheckOutcome::Skipped, "{checks:?}");
}

/// Says something else the second time.
struct Fickle<'a> {
    truth: &'a Memory,
    replays: std::sync::atomic::AtomicUsize,
}

impl EntrySource for Fickle<'_> {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        self.truth.for_each_entry(each)
    }

    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
        self.truth.copy_content(path, out)
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        if self.replays.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            return self.truth.replay_where(wanted, sink);
        }
        let mut entries = Vec::new();
        self.truth.for_each_entry(&mut |listed| {
            entries.push(listed.entry.clone());
            Ok(())
        })?;
        for entry in entries {
            sink.begin(&entry)?;
            if entry.kind == EntryKind::File {
                sink.write(b"something else")?;
            }
            sink.end()?;
        }
        Ok(())
    }
}

#[test]
fn a_restored_file_that_differs_fails_the_check_of_contents_and_no_other() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("a"), "as it was").unwrap();
    let mut memory = Memory::default();
    snapshot(tree.path(), &mut memory).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let source = Fickle {
        truth: &memory,
        replays: std::sync::atomic::AtomicUsize::new(0),
    };
    let checks = drill_files(&source, scratch.path()).unwrap();
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check.outcome == CheckOutcome::Failed)
        .map(|check| check.name.as_str())
        .collect();
    assert_eq!(failed, ["file contents"], "{checks:?}");
}
