//! What the tests of file trees share: a tree with something of everything, and what there is to say of one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags};
use strongroom_connectors::files::{
    self, Change, Existing, FilesError, FilesReport, FilesRestoreError, FilesRestored, Lacks, RestoreOptions,
    Selection, SnapshotOptions,
};
use strongroom_proto::manifest::{BackupSink, EntrySource};

use crate::memory::Memory;

pub(crate) fn snapshot(root: &Path, sink: &mut dyn BackupSink) -> Result<FilesReport, FilesError> {
    files::snapshot(root, &SnapshotOptions::default(), sink, &mut || {})
}

/// A backup of a tree that has everything.
pub(crate) fn backup(root: &Path) -> Memory {
    let mut memory = Memory::default();
    let report = snapshot(root, &mut memory).unwrap();
    assert!(report.missing.is_empty(), "{:?}", report.missing);
    memory
}

pub(crate) type Changes = Vec<(Change, String, Option<String>)>;

pub(crate) fn options(existing: Existing) -> RestoreOptions {
    RestoreOptions {
        select: Selection::everything(),
        existing,
        delete: false,
        dry_run: false,
        backup_began: None,
        lacks: Lacks::nothing(),
    }
}

/// Restores, and answers what changed, sorted by path.
pub(crate) fn restore(
    source: &dyn EntrySource,
    destination: &Path,
    options: RestoreOptions,
) -> Result<(FilesRestored, Changes), FilesRestoreError> {
    let mut changes = Vec::new();
    let restored = files::restore(source, destination, options, &mut |change, path, reason| {
        let path = path.as_os_str().as_bytes().escape_ascii().to_string();
        changes.push((change, path, reason.map(str::to_owned)));
    })?;
    changes.sort_by(|left, right| (&left.1, left.0).cmp(&(&right.1, right.0)));
    Ok((restored, changes))
}

/// The whole chain of an error's reasons.
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that a part of a test was not run, and why.
pub(crate) fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Long enough ago for times to be trusted.
pub(crate) fn past() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 123_456_789)
}

pub(crate) fn set_time(path: &Path, time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let time = Timespec {
        tv_sec: since.as_secs() as i64,
        tv_nsec: i64::from(since.subsec_nanos()),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// An ACL that lets user 4711 read, in the form the kernel takes.
pub(crate) fn acl() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, 4711),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Sets an attribute, or answers that the file system has none.
pub(crate) fn set_attribute(path: &Path, name: &str, value: &[u8]) -> bool {
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) => true,
        Err(error) => {
            skipped(&format!("the attribute {name} cannot be set here: {error}"));
            false
        }
    }
}

/// A tree with something of everything that can be made by anybody.
pub(crate) fn tree() -> tempfile::TempDir {
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
    symlink(OsStr::from_bytes(b"to-\xfe-bytes"), root.join("a/link-to-bytes")).unwrap();
    fs::hard_link(root.join("a/small"), root.join("z-other-name")).unwrap();
    rustix::fs::mknodat(CWD, root.join("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(12 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 6 << 20).unwrap();
    fs::write(root.join("attributed"), "x").unwrap();
    set_attribute(&root.join("attributed"), "user.colour", b"\x00blue\xff");
    set_attribute(&root.join("attributed"), "system.posix_acl_access", &acl());
    set_attribute(&root.join("empty"), "system.posix_acl_default", &acl());
    set_mode(&root.join("a/small"), 0o640);
    set_mode(&root.join("new\nline"), 0o4755);
    set_mode(&root.join("empty"), 0o500);
    set_mode(root, 0o751);
    for path in ["a/small", "a/deep", "sparse", "a/link", "pipe", "."] {
        set_time(&root.join(path), past());
    }
    dir
}

/// Everything about a tree that a restore must bring back, a line for each name, the root among them.
pub(crate) fn describe(root: &Path) -> Vec<String> {
    let mut names = std::collections::BTreeMap::new();
    let walk = walkdir::WalkDir::new(root).sort_by_file_name().into_iter();
    walk.map(|item| {
        let item = item.unwrap();
        let facts = item.path().symlink_metadata().unwrap();
        let kind = facts.file_type();
        let content = match () {
            () if facts.is_file() => blake3::hash(&fs::read(item.path()).unwrap()).to_string(),
            () if facts.is_symlink() => format!("{:?}", fs::read_link(item.path()).unwrap()),
            () if kind.is_char_device() || kind.is_block_device() => facts.rdev().to_string(),
            () => String::new(),
        };
        let path = item.path().strip_prefix(root).unwrap().as_os_str().as_bytes();
        let path = path.escape_ascii().to_string();
        let first_name = names
            .entry((facts.is_dir(), facts.ino()))
            .or_insert_with(|| path.clone());
        format!(
            "{path} {:o} {}:{} {}.{} {content} ={first_name} {:?}",
            facts.mode(),
            facts.uid(),
            facts.gid(),
            facts.mtime(),
            facts.mtime_nsec(),
            attributes(item.path()),
        )
    })
    .collect()
}

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, list.as_mut_slice()).unwrap_or(0);
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect();
    found.sort();
    found
}
