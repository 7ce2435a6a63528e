//! Drills of file trees: what they pass and what they find.

use std::fs;
use std::io;

use strongroom_connectors::files::{FilesRestore, drill_files};
use strongroom_proto::Sha256Digest;
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};
use strongroom_proto::receipt::{Check, CheckOutcome};

use crate::files::{backup, tree};
use crate::memory::Memory;

fn failed(checks: &[Check]) -> Vec<&str> {
    let is_failed = |check: &&Check| check.outcome == CheckOutcome::Failed;
    checks
        .iter()
        .filter(is_failed)
        .map(|check| check.name.as_str())
        .collect()
}

#[test]
fn a_good_backup_passes_and_leaves_nothing_behind() {
    let memory = backup(tree().path());
    let scratch = tempfile::tempdir().unwrap();
    let checks = drill_files(&memory, scratch.path()).unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(names, ["restore", "file contents"]);
    assert!(
        checks.iter().all(|check| check.outcome == CheckOutcome::Passed),
        "{checks:?}"
    );
    assert!(checks[1].detail.contains("expected 7 files"), "{checks:?}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_drill_notices_what_cannot_be_restored() {
    for paths in [["good", "../bad"], ["twice", "twice"], ["file", "file/below"]] {
        let mut memory = Memory::default();
        for path in paths {
            memory.begin(&Entry::bare(path, EntryKind::File)).unwrap();
            memory.write(b"content").unwrap();
            memory.end().unwrap();
        }
        let scratch = tempfile::tempdir().unwrap();
        let checks = drill_files(&memory, scratch.path()).unwrap();
        assert_eq!(checks[0].outcome, CheckOutcome::Failed, "{checks:?}");
        assert_eq!(checks[1].outcome, CheckOutcome::Skipped, "{checks:?}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

/// A source that gives other content than it lists.
struct Fickle<'a> {
    truth: &'a Memory,
    replays: std::sync::atomic::AtomicUsize,
    /// Which of the replays is false.
    false_replay: usize,
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
        if self.replays.fetch_add(1, std::sync::atomic::Ordering::Relaxed) != self.false_replay {
            return self.truth.replay_where(wanted, sink);
        }
        self.truth.replay_where(wanted, &mut Falsifying(sink))
    }
}

struct Falsifying<'a>(&'a mut dyn EntrySink);

impl EntrySink for Falsifying<'_> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.0.begin(entry)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes.to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        self.0.write(&bytes)
    }
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.0.hole(bytes)
    }
    fn end(&mut self) -> io::Result<()> {
        self.0.end()
    }
}

#[test]
fn a_restored_file_that_differs_fails_the_check_of_contents_and_no_other() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("a"), "as it was").unwrap();
    let plain = backup(tree.path());
    let sparse = fs::File::create(tree.path().join("a")).unwrap();
    sparse.set_len(1 << 24).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 1 << 23).unwrap();
    let with_holes = backup(tree.path());
    for memory in [&plain, &with_holes] {
        let scratch = tempfile::tempdir().unwrap();
        let source = Fickle {
            truth: memory,
            replays: std::sync::atomic::AtomicUsize::new(0),
            false_replay: 0,
        };
        let checks = drill_files(&source, scratch.path()).unwrap();
        assert_eq!(failed(&checks), ["file contents"], "{checks:?}");
        assert!(checks[1].detail.contains("first a: "), "{checks:?}");
    }
}

#[test]
fn a_restore_that_has_less_than_the_list_fails() {
    struct Shorter<'a>(&'a Memory);
    impl EntrySource for Shorter<'_> {
        fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
            self.0.for_each_entry(each)?;
            each(Listed {
                entry: &Entry::bare("zz", EntryKind::File),
                bytes: 0,
                hole_bytes: 0,
                blake3: Sha256Digest::from_bytes([0; 32]),
            })
        }
        fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
            self.0.copy_content(path, out)
        }
        fn replay_where(
            &self,
            wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
            sink: &mut dyn EntrySink,
        ) -> io::Result<()> {
            self.0.replay_where(wanted, sink)
        }
    }
    let memory = backup(tree().path());
    let scratch = tempfile::tempdir().unwrap();
    let checks = drill_files(&Shorter(&memory), scratch.path()).unwrap();
    assert_eq!(failed(&checks), ["restore", "file contents"], "{checks:?}");
    assert_eq!(
        FilesRestore::create(&scratch.path().join("still"), false)
            .unwrap()
            .finish()
            .unwrap()
            .files,
        0
    );
}
