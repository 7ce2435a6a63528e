//! What the kernel says of a name or an open file, and what an entry says of it.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use strongroom_proto::manifest::{Entry, EntryKind, FileVersion};

/// Permission bits without the file type.
pub(super) const MODE_BITS: u32 = 0o7777;
/// A file that was changed so short a time ago may be changed again without its times telling: clocks of file systems
/// are coarse.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// Databases map their files into memory, and a change to a page that is not yet written out shows in no time. The kernel
/// writes out within 35 seconds.
const MAPPED_SETTLED_AFTER: Duration = Duration::from_secs(40);
/// Smaller files are hardly those of a database.
const MAPPED_FROM_BYTES: u64 = 16 * 1024 * 1024;

/// Which directory it is, for as long as it exists.
pub(super) type DirectoryId = (u64, u64);

/// Looks at a name in a directory, and not at what a link there points to.
pub(super) fn look_at(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)?)
}

/// Looks at what is open.
pub(super) fn look(file: BorrowedFd<'_>) -> io::Result<Statx> {
    Ok(rustix::fs::statx(
        file,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    )?)
}

pub(super) fn directory_id(directory: BorrowedFd<'_>) -> io::Result<DirectoryId> {
    look(directory).map(|facts| inode_of(&facts))
}

pub(super) fn device_of(facts: &Statx) -> u64 {
    rustix::fs::makedev(facts.stx_dev_major, facts.stx_dev_minor)
}

/// The file system and the number in it.
pub(super) fn inode_of(facts: &Statx) -> (u64, u64) {
    (device_of(facts), facts.stx_ino)
}

pub(super) fn type_of(facts: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(facts.stx_mode))
}

pub(super) fn is_regular(facts: &Statx) -> bool {
    type_of(facts) == FileType::RegularFile
}

pub(super) fn is_directory(facts: &Statx) -> bool {
    type_of(facts) == FileType::Directory
}

/// The kind of entry that stands for it; hard links are told by who knows the other names.
pub(super) fn kind_of(facts: &Statx) -> Option<EntryKind> {
    match type_of(facts) {
        FileType::RegularFile => Some(EntryKind::File),
        FileType::Directory => Some(EntryKind::Directory),
        FileType::Symlink => Some(EntryKind::Symlink),
        FileType::Fifo => Some(EntryKind::Fifo),
        FileType::CharacterDevice => Some(EntryKind::CharDevice),
        FileType::BlockDevice => Some(EntryKind::BlockDevice),
        FileType::Socket => Some(EntryKind::Socket),
        _ => None,
    }
}

pub(super) fn version_of(facts: &Statx) -> FileVersion {
    FileVersion {
        device: device_of(facts),
        inode: facts.stx_ino,
        bytes: facts.stx_size,
        mtime: (facts.stx_mtime.tv_sec, facts.stx_mtime.tv_nsec),
        ctime: (facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec),
    }
}

/// Whether a change after it was looked at would show in its times.
pub(super) fn is_settled(version: &FileVersion, looked_at: SystemTime) -> bool {
    let after = match version.bytes >= MAPPED_FROM_BYTES {
        true => MAPPED_SETTLED_AFTER,
        false => SETTLED_AFTER,
    };
    let Ok(limit) = (looked_at - after).duration_since(UNIX_EPOCH) else {
        return false;
    };
    let limit = (i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), limit.subsec_nanos());
    version.mtime <= limit && version.ctime <= limit
}

/// Fills in path, kind, owner, mode and time, and clears the rest. The entry is used again for the next one, so that a
/// tree of files costs no allocation each.
pub(super) fn describe(entry: &mut Entry, path: &[u8], kind: EntryKind, facts: &Statx) {
    describe_path(entry, path);
    entry.kind = kind;
    entry.mode = Some(u32::from(facts.stx_mode));
    entry.uid = Some(facts.stx_uid);
    entry.gid = Some(facts.stx_gid);
    entry.mtime_seconds = Some(facts.stx_mtime.tv_sec);
    entry.mtime_nanoseconds = Some(facts.stx_mtime.tv_nsec);
    let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
    entry.device_major = is_device.then_some(facts.stx_rdev_major);
    entry.device_minor = is_device.then_some(facts.stx_rdev_minor);
    entry.link_target = None;
    entry.link_target_hex = None;
    entry.xattrs.clear();
}

/// Fills in the path.
pub(super) fn describe_path(entry: &mut Entry, path: &[u8]) {
    entry.path.clear();
    match std::str::from_utf8(path) {
        Ok(path) => {
            entry.path.push_str(path);
            entry.path_hex = None;
        }
        Err(_) => {
            entry.path.push_str(&String::from_utf8_lossy(path));
            entry.path_hex = Some(hex::encode(path));
        }
    }
}

/// Fills in where a link points.
pub(super) fn describe_target(entry: &mut Entry, target: &[u8]) {
    entry.link_target = Some(String::from_utf8_lossy(target).into_owned());
    entry.link_target_hex = std::str::from_utf8(target).is_err().then(|| hex::encode(target));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_that_are_past_for_a_while_are_trusted() {
        let now = UNIX_EPOCH + Duration::new(1_000, 500);
        let version = |mtime, ctime| FileVersion {
            device: 1,
            inode: 1,
            bytes: 1,
            mtime,
            ctime,
        };
        assert!(is_settled(&version((998, 500), (998, 500)), now));
        assert!(!is_settled(&version((998, 501), (998, 500)), now));
        assert!(!is_settled(&version((1, 0), (998, 501)), now));
        assert!(
            !is_settled(&version((2_000, 0), (1, 0)), now),
            "a clock that runs ahead is not trusted"
        );
    }
}
