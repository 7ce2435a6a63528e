//! What a walk takes, what it leaves out, and what it says it could not take.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{CWD, FileType, Mode};
use strongroom_connectors::files::{self, FilesError, FilesReport, SnapshotOptions};
use strongroom_proto::manifest::{BackupSink, Entry, EntryKind, EntrySink, EntrySource as _, FileVersion};

use crate::files::{backup, is_root, past, set_mode, set_time, skipped, snapshot, tree};
use crate::memory::Memory;

fn snapshot_with(root: &Path, options: &SnapshotOptions) -> (Memory, FilesReport) {
    let mut memory = Memory::default();
    let report = files::snapshot(root, options, &mut memory, &mut || {}).unwrap();
    (memory, report)
}

/// Waits until the times of what was made before are old enough to be trusted.
fn settle(root: &Path) {
    let since = SystemTime::now();
    let changed = || {
        let walk = walkdir::WalkDir::new(root).into_iter().flatten();
        let ctimes = walk
            .filter_map(|item| item.path().symlink_metadata().ok())
            .map(|facts| facts.ctime());
        ctimes.max().unwrap_or_default()
    };
    let newest = changed();
    loop {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        if now.as_secs() as i64 > newest + 3 {
            return;
        }
        assert!(since.elapsed().unwrap().as_secs() < 60, "the clock stands still");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn every_kind_of_thing_is_an_entry_with_its_metadata_in_the_order_of_the_tree() {
    let source = tree();
    let _socket = std::os::unix::net::UnixListener::bind(source.path().join("socket")).unwrap();
    let mut memory = Memory::default();
    let mut seen = 0;
    let report = files::snapshot(source.path(), &SnapshotOptions::default(), &mut memory, &mut || {
        seen += 1
    })
    .unwrap();
    assert!(report.missing.is_empty(), "{:?}", report.missing);
    let expected = [
        ".",
        "a",
        "a/deep",
        "a/deep/er",
        "a/deep/er/large",
        "a/link",
        "a/link-to-bytes",
        "a/nothing",
        "a/small",
        "attributed",
        "bad-\u{fffd}-name",
        "empty",
        "new\nline",
        "pipe",
        "socket",
        "sparse",
        "z-other-name",
    ];
    assert_eq!(memory.paths(), expected);
    assert_eq!(seen, expected.len() - 1);
    assert_eq!(report.facts.files, Some(8));
    let counts = (
        report.files,
        report.hardlinks,
        report.directories,
        report.links,
        report.others,
        report.sockets,
    );
    assert_eq!(counts, (7, 1, 5, 2, 1, 1));
    let kind = |path: &str| memory.entry(path).kind;
    assert_eq!(kind("socket"), EntryKind::Socket);
    assert_eq!(kind("pipe"), EntryKind::Fifo);
    assert_eq!(kind("z-other-name"), EntryKind::Hardlink);
    assert_eq!(memory.entry("z-other-name").link_target.as_deref(), Some("a/small"));
    assert_eq!(
        memory.entry("bad-\u{fffd}-name").path_hex,
        Some(hex::encode(b"bad-\xff-name"))
    );
    let link = memory.entry("a/link-to-bytes");
    assert_eq!(link.link_target_hex, Some(hex::encode(b"to-\xfe-bytes")));
    let small = memory.entry("a/small");
    assert_eq!(
        (small.mode, small.mtime_seconds, small.mtime_nanoseconds),
        (Some(0o100_640), Some(1_500_000_000), Some(123_456_789))
    );
    assert_eq!(small.uid, Some(rustix::process::geteuid().as_raw()));
    assert_eq!(memory.entry(".").mode, Some(0o40_751));
    // Between its holes there is one block.
    assert!(
        memory.content("sparse").len() < 1 << 20,
        "{} bytes were read",
        memory.content("sparse").len()
    );
}

#[test]
fn devices_are_taken_with_their_numbers() {
    let source = tempfile::tempdir().unwrap();
    let node = source.path().join("null");
    let made = rustix::fs::mknodat(
        CWD,
        &node,
        FileType::CharacterDevice,
        Mode::RUSR,
        rustix::fs::makedev(1, 3),
    );
    if made.is_err() {
        skipped("only root makes devices");
        return;
    }
    let memory = backup(source.path());
    let entry = memory.entry("null");
    assert_eq!(
        (entry.kind, entry.device_major, entry.device_minor),
        (EntryKind::CharDevice, Some(1), Some(3))
    );
}

#[test]
fn a_path_longer_than_the_kernel_takes_is_walked() {
    let source = tempfile::tempdir().unwrap();
    let mut directory: std::os::fd::OwnedFd = File::open(source.path()).unwrap().into();
    let name = "d".repeat(200);
    for _ in 0..100 {
        rustix::fs::mkdirat(&directory, name.as_str(), Mode::RWXU).unwrap();
        directory = rustix::fs::openat(
            &directory,
            name.as_str(),
            rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY,
            Mode::empty(),
        )
        .unwrap();
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&directory, "file", flags, Mode::RUSR).unwrap();
    File::from(file).write_all(b"deep").unwrap();
    let memory = backup(source.path());
    let path = format!("{}/file", vec![name; 100].join("/"));
    assert!(path.len() > 20_000);
    assert_eq!(memory.content(&path), b"deep");
    let scratch = tempfile::tempdir().unwrap();
    let checks = files::drill_files(&memory, scratch.path()).unwrap();
    let outcomes: Vec<_> = checks.iter().map(|check| check.outcome).collect();
    assert_eq!(
        outcomes,
        [strongroom_proto::receipt::CheckOutcome::Passed; 2],
        "{checks:?}"
    );
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn what_has_not_changed_since_an_earlier_backup_is_not_read() {
    let source = tree();
    settle(source.path());
    let first = backup(source.path());
    assert!(first.has_version("a/small"));
    let mut second = first.next();
    let report = snapshot(source.path(), &mut second).unwrap();
    assert_eq!((report.files, report.unchanged, report.hardlinks), (7, 7, 1));
    assert_eq!(second.entries, first.entries);

    // The same length and the same modification time, but not the same change time.
    fs::write(source.path().join("a/small"), "HELLO").unwrap();
    set_time(&source.path().join("a/small"), past());
    set_mode(&source.path().join("a/nothing"), 0o600);
    let mut third = second.next();
    let report = snapshot(source.path(), &mut third).unwrap();
    assert_eq!((report.files, report.unchanged), (7, 5));
    assert_eq!(third.content("a/small"), b"HELLO");
    assert!(
        !third
            .unchanged
            .iter()
            .any(|path| path == "a/small" || path == "a/nothing")
    );

    let everything = SnapshotOptions {
        read_everything: true,
        ..SnapshotOptions::default()
    };
    let mut fourth = third.next();
    let report = files::snapshot(source.path(), &everything, &mut fourth, &mut || {}).unwrap();
    assert_eq!((report.files, report.unchanged), (7, 0));
}

#[test]
fn a_file_that_has_just_been_written_is_not_offered_as_unchanged_next_time() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("fresh"), "x").unwrap();
    // Its modification time may say what it likes.
    set_time(&source.path().join("fresh"), past());
    let memory = backup(source.path());
    assert!(!memory.has_version("fresh"));
    let ahead = SystemTime::now() + std::time::Duration::from_secs(3600);
    set_time(&source.path().join("fresh"), ahead);
    // One that a database may have mapped into memory: a change to a page not yet written out shows in no time.
    let mapped = File::create(source.path().join("mapped")).unwrap();
    mapped.set_len(16 << 20).unwrap();
    settle(source.path());
    let memory = backup(source.path());
    assert!(!memory.has_version("fresh"), "a clock that runs ahead is not trusted");
    assert!(!memory.has_version("mapped"), "large files are trusted later");
}

#[test]
fn a_terabyte_of_holes_takes_no_longer_than_its_data() {
    let source = tempfile::tempdir().unwrap();
    let file = File::create(source.path().join("disk")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&[5; 100_000], 1 << 39).unwrap();
    file.write_all_at(b"end", (1 << 40) - 3).unwrap();
    let memory = backup(source.path());
    assert!(memory.content("disk").len() < 1 << 20);
    let scratch = tempfile::tempdir().unwrap();
    let destination = scratch.path().join("new");
    let options = crate::files::options(files::Existing::Refuse);
    let (restored, _) = crate::files::restore(&memory, &destination, options).unwrap();
    assert_eq!(restored.bytes, 1 << 40);
    let copy = File::open(destination.join("disk")).unwrap();
    let facts = copy.metadata().unwrap();
    assert_eq!(facts.len(), 1 << 40);
    assert!(facts.blocks() * 512 < 1 << 20, "{} blocks", facts.blocks());
    let mut found = [0; 100_000];
    copy.read_exact_at(&mut found, 1 << 39).unwrap();
    assert!(found.iter().all(|byte| *byte == 5));
    let mut found = [0; 3];
    copy.read_exact_at(&mut found, (1 << 40) - 3).unwrap();
    assert_eq!(&found, b"end");
    let checks = files::drill_files(&memory, &scratch.path().join("drill")).unwrap();
    assert!(
        checks
            .iter()
            .all(|check| check.outcome == strongroom_proto::receipt::CheckOutcome::Passed),
        "{checks:?}"
    );
}

#[test]
fn what_is_excluded_is_left_out_and_counted() {
    let source = tempfile::tempdir().unwrap();
    for path in [
        "keep/x.log",
        "keep/important.log",
        "node_modules/a/b",
        "build/out",
        "src/build",
        "src/main.rs",
    ] {
        let path = source.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    fs::write(source.path().join("big"), [0; 5_000]).unwrap();
    let (memory, report) = snapshot_with(
        source.path(),
        &SnapshotOptions {
            exclude: ["# a comment", "*.log", "!important.log", "node_modules/", "/build"]
                .map(str::to_owned)
                .to_vec(),
            max_file_bytes: Some(4_999),
            ..SnapshotOptions::default()
        },
    );
    assert_eq!(
        memory.paths(),
        [".", "keep", "keep/important.log", "src", "src/build", "src/main.rs"]
    );
    assert_eq!((report.excluded, report.too_large), (4, 1));
    assert!(report.missing.is_empty(), "{:?}", report.missing);

    let bad = SnapshotOptions {
        exclude: vec!["fine".to_owned(), "a[z-b".to_owned()],
        ..SnapshotOptions::default()
    };
    let error = files::snapshot(source.path(), &bad, &mut Memory::default(), &mut || {}).unwrap_err();
    assert!(
        matches!(&error, FilesError::Exclude { pattern, .. } if pattern == "a[z-b"),
        "{error}"
    );
    assert!(!error.is_retryable());
}

#[test]
fn the_content_of_caches_is_left_out_and_their_tag_is_kept() {
    let source = tempfile::tempdir().unwrap();
    let tag = "Signature: 8a477f597d28d172789f06886806bc55\n# made by a test";
    for (cache, tag) in [
        ("cache", tag),
        ("no-cache", "Signature: something else, and of the same length."),
    ] {
        fs::create_dir_all(source.path().join(cache).join("below")).unwrap();
        fs::write(source.path().join(cache).join("CACHEDIR.TAG"), tag).unwrap();
        fs::write(source.path().join(cache).join("data"), "x").unwrap();
    }
    // The root is what was asked for.
    fs::write(source.path().join("CACHEDIR.TAG"), tag).unwrap();
    let (memory, report) = snapshot_with(
        source.path(),
        &SnapshotOptions {
            exclude_caches: true,
            ..SnapshotOptions::default()
        },
    );
    assert_eq!(
        memory.paths(),
        [
            ".",
            "CACHEDIR.TAG",
            "cache",
            "cache/CACHEDIR.TAG",
            "no-cache",
            "no-cache/CACHEDIR.TAG",
            "no-cache/below",
            "no-cache/data"
        ]
    );
    assert_eq!(report.excluded, 1);
    assert_eq!(snapshot_with(source.path(), &SnapshotOptions::default()).1.files, 5);
}

#[test]
fn another_file_system_is_a_directory_without_content_where_only_one_is_asked_for() {
    if !Path::new("/proc/self/mountinfo").exists() || !Path::new("/dev/shm").exists() {
        skipped("no other file system is mounted here");
        return;
    }
    let (memory, _) = snapshot_with(
        Path::new("/dev"),
        &SnapshotOptions {
            one_file_system: true,
            exclude: ["/*", "!/shm"].map(str::to_owned).to_vec(),
            ..SnapshotOptions::default()
        },
    );
    let is_mount = Path::new("/dev/shm").metadata().unwrap().dev() != Path::new("/dev").metadata().unwrap().dev();
    if !is_mount {
        skipped("/dev/shm is no mount");
        return;
    }
    let inside = tempfile::tempdir_in("/dev/shm").unwrap();
    assert_eq!(memory.paths(), [".", "shm"]);
    let (memory, _) = snapshot_with(
        Path::new("/dev"),
        &SnapshotOptions {
            exclude: ["/*", "!/shm"].map(str::to_owned).to_vec(),
            ..SnapshotOptions::default()
        },
    );
    let name = format!("shm/{}", inside.path().file_name().unwrap().display());
    assert!(memory.paths().contains(&name.as_str()), "{:?}", memory.paths());
}

/// Removes or changes files of the tree while it is read.
struct Meddling<F: FnMut(&Entry, usize)> {
    memory: Memory,
    open: Option<Entry>,
    written: usize,
    meddle: F,
}

impl<F: FnMut(&Entry, usize)> Meddling<F> {
    fn new(meddle: F) -> Self {
        Self {
            memory: Memory::default(),
            open: None,
            written: 0,
            meddle,
        }
    }

    fn begun(&mut self, entry: &Entry) {
        self.open = Some(entry.clone());
        self.written = 0;
        (self.meddle)(entry, 0);
    }
}

impl<F: FnMut(&Entry, usize)> EntrySink for Meddling<F> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.begun(entry);
        self.memory.begin(entry)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        (self.meddle)(self.open.as_ref().unwrap(), self.written);
        self.memory.write(bytes)
    }
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.memory.hole(bytes)
    }
    fn end(&mut self) -> io::Result<()> {
        self.memory.end()
    }
}

impl<F: FnMut(&Entry, usize)> BackupSink for Meddling<F> {
    fn put_unchanged(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<bool> {
        self.memory.put_unchanged(entry, version)
    }
    fn begin_paged(&mut self, entry: &Entry, bytes: u64) -> io::Result<()> {
        self.memory.begin_paged(entry, bytes)
    }

    fn begin_overlay(&mut self, entry: &Entry, bytes: u64) -> io::Result<bool> {
        self.memory.begin_overlay(entry, bytes)
    }

    fn page(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.page(offset, bytes)
    }

    fn note(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.memory.note()
    }

    fn leave_note(&mut self, note: Vec<u8>) {
        self.memory.leave_note(note);
    }

    fn begin_file(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<()> {
        self.begun(entry);
        self.memory.begin_file(entry, version)
    }
}

#[test]
fn a_file_that_vanishes_or_changes_is_named_and_never_passed_off_as_whole() {
    let source = tempfile::tempdir().unwrap();
    let path = |name: &str| source.path().join(name);
    for name in ["b-vanishes", "z-stays"] {
        fs::write(path(name), "content").unwrap();
    }
    fs::create_dir(path("d-vanishes")).unwrap();
    for name in ["a-shrinks", "c-grows", "e-is-touched"] {
        fs::write(path(name), vec![1; 4_000_000]).unwrap();
    }
    settle(source.path());
    let mut sink = Meddling::new(|entry: &Entry, written| match entry.path.as_str() {
        "a-shrinks" if written == 0 => {
            fs::remove_file(path("b-vanishes")).unwrap();
            fs::remove_dir(path("d-vanishes")).unwrap();
        }
        "a-shrinks" => {
            let file = fs::OpenOptions::new().write(true).open(path("a-shrinks")).unwrap();
            file.set_len(1_000_000).unwrap();
        }
        "c-grows" if written > 0 => {
            let mut file = fs::OpenOptions::new().append(true).open(path("c-grows")).unwrap();
            file.write_all(b"more").unwrap();
        }
        // The same length and the same modification time.
        "e-is-touched" if written > 0 => {
            let before = path("e-is-touched").metadata().unwrap().modified().unwrap();
            let file = fs::OpenOptions::new().write(true).open(path("e-is-touched")).unwrap();
            file.write_all_at(b"other", 3_999_000).unwrap();
            file.set_modified(before).unwrap();
        }
        _ => {}
    });
    let report = snapshot(source.path(), &mut sink).unwrap();
    let missing: Vec<&str> = report.missing.iter().map(|missing| missing.name.as_str()).collect();
    assert_eq!(
        missing,
        ["a-shrinks", "b-vanishes", "c-grows", "d-vanishes", "e-is-touched"]
    );
    assert_eq!(report.facts.files, Some(1));
    assert_eq!(sink.memory.content("c-grows").len(), 4_000_000);
    assert!(!sink.memory.paths().contains(&"d-vanishes"));
    // What was not whole is not found unchanged by the next backup.
    assert!(!sink.memory.has_version("a-shrinks"));
    let mut second = sink.memory.next();
    let report = snapshot(source.path(), &mut second).unwrap();
    assert!(
        report.missing.is_empty() && second.unchanged == ["z-stays"],
        "{report:?} {:?}",
        second.unchanged
    );
    assert_eq!(second.content("a-shrinks").len(), 1_000_000);
}

#[test]
fn a_link_that_takes_the_place_of_a_directory_or_file_is_not_followed() {
    let source = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "not to be read").unwrap();
    let path = |name: &str| source.path().join(name);
    fs::write(path("a"), "x").unwrap();
    fs::create_dir(path("b")).unwrap();
    fs::write(path("b/secret"), "x").unwrap();
    let mut sink = Meddling::new(|entry: &Entry, written| {
        if entry.path == "a" && written == 0 {
            fs::remove_dir_all(path("b")).unwrap();
            symlink(outside.path(), path("b")).unwrap();
        }
    });
    let report = snapshot(source.path(), &mut sink).unwrap();
    assert_eq!(sink.memory.paths(), [".", "a", "b"]);
    assert_eq!(sink.memory.entry("b").kind, EntryKind::Symlink);
    assert!(report.missing.is_empty(), "{:?}", report.missing);
}

#[test]
fn a_directory_that_is_moved_away_while_it_is_read_is_told_and_the_rest_goes_on() {
    let source = tempfile::tempdir().unwrap();
    // Deeper than directories are kept open, so that the one at the top has to be found again.
    let deep = vec!["d"; 80].join("/");
    fs::create_dir_all(source.path().join("a").join(&deep)).unwrap();
    fs::write(source.path().join("a").join(&deep).join("file"), "x").unwrap();
    fs::write(source.path().join("a/z"), "x").unwrap();
    fs::write(source.path().join("later"), "x").unwrap();
    let elsewhere = tempfile::tempdir_in(source.path().parent().unwrap()).unwrap();
    let mut sink = Meddling::new(|entry: &Entry, written| {
        if entry.path.ends_with("/file") && written == 0 {
            // Both what leads down there and the way back up.
            fs::rename(source.path().join("a/d/d"), elsewhere.path().join("moved")).unwrap();
            fs::rename(source.path().join("a"), elsewhere.path().join("a")).unwrap();
        }
    });
    let report = snapshot(source.path(), &mut sink).unwrap();
    let missing: Vec<&str> = report.missing.iter().map(|missing| missing.name.as_str()).collect();
    assert_eq!(missing, ["a/z"], "{:?}", report.missing);
    assert!(sink.memory.paths().contains(&"later"));
}

#[test]
fn what_may_not_be_read_is_named_and_the_rest_is_taken() {
    if is_root() {
        skipped("root may read everything; run as another user to try this");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("closed"), "x").unwrap();
    fs::create_dir(source.path().join("shut")).unwrap();
    fs::write(source.path().join("open"), "x").unwrap();
    set_mode(&source.path().join("closed"), 0);
    set_mode(&source.path().join("shut"), 0);
    let mut memory = Memory::default();
    let report = snapshot(source.path(), &mut memory).unwrap();
    set_mode(&source.path().join("shut"), 0o700);
    let missing: Vec<&str> = report.missing.iter().map(|missing| missing.name.as_str()).collect();
    assert_eq!(missing, ["closed", "shut"]);
    assert_eq!(memory.paths(), [".", "open", "shut"]);
    assert_eq!(memory.entry("shut").mode, Some(0o40_000));
}

#[test]
fn the_next_name_of_a_file_that_could_not_be_read_is_the_file() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a"), vec![1; 4_000_000]).unwrap();
    fs::hard_link(source.path().join("a"), source.path().join("b")).unwrap();
    fs::hard_link(source.path().join("a"), source.path().join("c")).unwrap();
    let mut sink = Meddling::new(|entry: &Entry, written| {
        if entry.path == "a" && written > 0 {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(source.path().join("a"))
                .unwrap();
            file.set_len(3_000_000).unwrap();
        }
    });
    let report = snapshot(source.path(), &mut sink).unwrap();
    assert_eq!(report.missing.len(), 1);
    assert_eq!(sink.memory.entry("b").kind, EntryKind::File);
    assert_eq!(sink.memory.content("b").len(), 3_000_000);
    assert_eq!(sink.memory.entry("c").link_target.as_deref(), Some("b"));
    assert_eq!((report.files, report.hardlinks), (1, 1));
}

#[test]
fn attributes_that_cannot_be_stored_are_named_with_their_file() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("file");
    fs::write(&path, "x").unwrap();
    let name = OsStr::from_bytes(b"user.\xffodd");
    if rustix::fs::setxattr(&path, name, b"x", rustix::fs::XattrFlags::empty()).is_err() {
        skipped("this file system has no user attributes");
        return;
    }
    let mut memory = Memory::default();
    let report = snapshot(source.path(), &mut memory).unwrap();
    assert_eq!(memory.content("file"), b"x");
    let [missing] = report.missing.as_slice() else {
        panic!("{:?}", report.missing)
    };
    assert_eq!(missing.name, "file");
    assert!(missing.reason.contains("user.\u{fffd}odd"), "{missing:?}");
}

#[test]
fn a_root_that_is_no_directory_or_goes_away_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    symlink(dir.path(), &link).unwrap();
    for path in [link.clone(), link.join("")] {
        let result = snapshot(&path, &mut Memory::default());
        assert!(matches!(result, Err(FilesError::NotADirectory { .. })), "{result:?}");
    }
    let missing = dir.path().join("missing");
    assert!(matches!(
        snapshot(&missing, &mut Memory::default()),
        Err(FilesError::Root { .. })
    ));
    assert!(matches!(
        snapshot(dir.path(), &mut Memory::full_after(0)),
        Ok(report) if report.facts.files == Some(0)
    ));
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a"), "x").unwrap();
    fs::write(root.join("b"), "x").unwrap();
    let mut sink = Meddling::new(|entry: &Entry, written| {
        if entry.path == "a" && written == 0 {
            fs::remove_dir_all(&root).unwrap();
        }
    });
    let result = snapshot(&root, &mut sink);
    assert!(matches!(result, Err(FilesError::Vanished { .. })), "{result:?}");
}

#[test]
fn a_full_vault_ends_the_walk() {
    let source = tree();
    let error = snapshot(source.path(), &mut Memory::full_after(1_000)).unwrap_err();
    let FilesError::Sink { path, source } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(
        (path.as_str(), source.kind()),
        ("a/deep/er/large", io::ErrorKind::StorageFull)
    );
    assert!(!error.is_retryable());
}

#[test]
fn the_order_is_what_a_list_of_entries_says_too() {
    let source = tempfile::tempdir().unwrap();
    for path in ["a/b", "a-b", "a.c/x", "A", "a0"] {
        let path = source.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let memory = backup(source.path());
    assert_eq!(memory.paths(), [".", "A", "a", "a/b", "a-b", "a.c", "a.c/x", "a0"]);
    let mut listed = Vec::new();
    memory
        .for_each_entry(&mut |listed_entry| {
            listed.push(listed_entry.entry.path.clone());
            Ok(())
        })
        .unwrap();
    assert_eq!(listed, memory.paths());
}
