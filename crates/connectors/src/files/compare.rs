//! What is at a destination, compared with an entry of the backup.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{Mode, Statx};
use rustix::io::Errno;
use strongroom_proto::manifest::{Entry, EntryKind, Listed};

use super::attributes::Object;
use super::descend::{DIRECTORY, Descent};
use super::facts::{inode_of, is_settled, kind_of, look_at, version_of};
use super::metadata::{Before, Setter, is_time_set};
use super::paths::{split, target_of};
use super::read::{BUFFER_BYTES, Pieces, Stretch, open_file};

/// How a thing at the destination differs from its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// It is as it should be.
    Nothing,
    /// Owner, mode, time or attributes.
    Metadata,
    /// It is something else, or its content is.
    Other,
    /// It is not there.
    Missing,
}

/// Looks at a destination, without changing it.
#[derive(Debug)]
pub(super) struct Comparer {
    descent: Option<Descent<()>>,
    /// Files with other names that an entry stands for already: another entry is not the same file.
    claimed: HashSet<(u64, u64)>,
    backup_began: Option<SystemTime>,
}

impl Comparer {
    /// Compares with what is in an open directory, or with nothing at all. Every file is read.
    pub(super) fn new(root: Option<OwnedFd>) -> Self {
        Self {
            descent: root.map(|root| Descent::new(root, ())),
            claimed: HashSet::new(),
            backup_began: None,
        }
    }

    /// Does not read a file that the kernel says was not touched since then, where its length and time are the entry's.
    pub(super) fn trusting(self, backup_began: Option<SystemTime>) -> Self {
        Self { backup_began, ..self }
    }

    /// Compares an entry with what has its path.
    pub(super) fn compare(&mut self, path: &[u8], listed: Listed<'_>, setter: &mut Setter) -> io::Result<Difference> {
        let (parent, name) = split(path);
        let Some(directory) = enter(&mut self.descent, parent)? else {
            return Ok(Difference::Missing);
        };
        let Some(facts) = look_if_there(directory, name)? else {
            return Ok(Difference::Missing);
        };
        if listed.entry.kind != EntryKind::File {
            return without_content(directory, name, &facts, listed.entry, setter);
        }
        let is_another = facts.stx_nlink > 1 && !self.claimed.insert(inode_of(&facts));
        if is_another || kind_of(&facts) != Some(EntryKind::File) || facts.stx_size != listed.bytes {
            return Ok(Difference::Other);
        }
        // Who changes content can set back the time of the modification, but not that of the change.
        let is_time_equal = listed.entry.mtime_seconds.is_some() && is_time_set(listed.entry, &facts);
        let is_settled_at = |began| is_settled(&version_of(&facts), began);
        let is_untouched = is_time_equal && self.backup_began.is_some_and(is_settled_at);
        if !is_untouched && !is_same_content(directory, name, listed, is_time_equal)? {
            return Ok(Difference::Other);
        }
        metadata(Object::Named(directory, name), &facts, listed.entry, setter)
    }

    /// Sets the metadata of a file, and answers whether that was possible.
    pub(super) fn set_metadata(&mut self, path: &[u8], entry: &Entry, setter: &mut Setter) -> io::Result<bool> {
        let (parent, name) = split(path);
        let Some(directory) = enter(&mut self.descent, parent)? else {
            return Ok(false);
        };
        let Ok((file, _)) = open_file(directory, name) else {
            return Ok(false);
        };
        setter.set(file.as_fd(), entry, Before::Unknown)?;
        Ok(true)
    }

    /// The directory with this path, if there is one.
    pub(super) fn enter(&mut self, path: &[u8]) -> io::Result<Option<BorrowedFd<'_>>> {
        enter(&mut self.descent, path)
    }

    /// What has this path, if anything.
    pub(super) fn look(&mut self, path: &[u8]) -> io::Result<Option<Statx>> {
        let (parent, name) = split(path);
        match enter(&mut self.descent, parent)? {
            Some(directory) => look_if_there(directory, name),
            None => Ok(None),
        }
    }
}

/// Compares anything but a file with a name in a directory. A hard link is compared by who knows its other name.
pub(super) fn without_content(
    directory: BorrowedFd<'_>,
    name: &[u8],
    facts: &Statx,
    entry: &Entry,
    setter: &mut Setter,
) -> io::Result<Difference> {
    if kind_of(facts) != Some(entry.kind) {
        return Ok(Difference::Other);
    }
    let is_same = match entry.kind {
        EntryKind::Symlink => {
            rustix::fs::readlinkat(directory, name, Vec::new())?.as_bytes() == target_of(entry)?.as_slice()
        }
        EntryKind::CharDevice | EntryKind::BlockDevice => {
            (entry.device_major, entry.device_minor) == (Some(facts.stx_rdev_major), Some(facts.stx_rdev_minor))
        }
        _ => true,
    };
    if !is_same {
        return Ok(Difference::Other);
    }
    metadata(Object::Named(directory, name), facts, entry, setter)
}

pub(super) fn look_if_there(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Statx>> {
    match look_at(directory, name) {
        Ok(facts) => Ok(Some(facts)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Goes to a directory that is there, or answers nothing where there is none.
pub(super) fn enter<'d>(descent: &'d mut Option<Descent<()>>, path: &[u8]) -> io::Result<Option<BorrowedFd<'d>>> {
    let Some(descent) = descent else { return Ok(None) };
    while descent.rest_of(path).is_none() {
        descent.pop();
    }
    let rest = descent.rest_of(path).unwrap_or_default().to_vec();
    for name in rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        match rustix::fs::openat(descent.directory()?, name, DIRECTORY, Mode::empty()) {
            Ok(directory) => descent.push(name, directory, ()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    descent.directory().map(Some)
}

fn metadata(object: Object<'_>, facts: &Statx, entry: &Entry, setter: &mut Setter) -> io::Result<Difference> {
    Ok(if setter.is_set(entry, facts, object)? {
        Difference::Nothing
    } else {
        Difference::Metadata
    })
}

/// Whether a file of the right length has the content. Of holes only the sum is known: that is enough where the time is the
/// entry's too.
fn is_same_content(
    directory: BorrowedFd<'_>,
    name: &[u8],
    listed: Listed<'_>,
    is_time_equal: bool,
) -> io::Result<bool> {
    if listed.hole_bytes > 0 && !is_time_equal {
        return Ok(false);
    }
    let Ok((file, facts)) = open_file(directory, name) else {
        return Ok(false);
    };
    let mut hasher = blake3::Hasher::new();
    if listed.hole_bytes == 0 {
        hasher.update_reader(File::from(file))?;
        return Ok(hasher.finalize().as_bytes() == listed.blake3.as_bytes());
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut pieces = Pieces::new(file.as_fd(), &facts);
    let mut hole_bytes = 0;
    while let Some(stretch) = pieces.next(&mut buffer)? {
        match stretch {
            Stretch::Bytes(bytes) => _ = hasher.update(bytes),
            Stretch::Hole(bytes) => hole_bytes += bytes,
        }
    }
    Ok(hole_bytes == listed.hole_bytes && hasher.finalize().as_bytes() == listed.blake3.as_bytes())
}
