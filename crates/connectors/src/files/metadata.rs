//! Owner, mode, times and attributes of what is restored: what they should be, whether they are, and setting them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Statx, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use strongroom_proto::manifest::{Entry, EntryKind};

use super::attributes::{Attributes, Object};
use super::facts::{MODE_BITS, device_of};
use super::paths::invalid;
use super::rights::Rights;

const SET_ID_BITS: u32 = 0o6000;
const SET_GROUP_ID_BIT: u32 = 0o2000;
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// What is known of an object whose metadata is to be set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Before {
    /// This process made it with this mode, and nothing above it had a say in that.
    Made(u32),
    /// Anything.
    Unknown,
}

/// Sets metadata, as far as this process may.
#[derive(Debug)]
pub(super) struct Setter {
    pub(super) rights: Rights,
    attributes: Attributes,
    /// What was not permitted, for the report.
    problems: Vec<String>,
}

impl Setter {
    pub(super) fn new() -> Self {
        Self {
            rights: Rights::of_this_process(),
            attributes: Attributes::new(),
            problems: Vec::new(),
        }
    }

    /// What could not be set since this was last asked.
    pub(super) fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    /// The permission bits an object should have. Bits that would give our own rights to others are left out.
    pub(super) fn mode_of(&self, entry: &Entry) -> Option<u32> {
        let mode = entry.mode? & MODE_BITS;
        let is_ours = self.rights.is_root || entry.uid == Some(self.rights.uid);
        Some(if is_ours { mode } else { mode & !SET_ID_BITS })
    }

    /// The mode to make a file with.
    pub(super) fn mode_to_make(&self, entry: &Entry) -> u32 {
        let mode = self.mode_of(entry).unwrap_or(0o600) & 0o777;
        // Its owner has to be able to write to it until its attributes are set.
        if entry.xattrs.is_empty() { mode } else { mode | 0o600 }
    }

    /// Whether owner, mode, time and attributes are those of the entry, as far as they could be set.
    pub(super) fn is_set(&mut self, entry: &Entry, facts: &Statx, object: Object<'_>) -> io::Result<bool> {
        let is_owner_right =
            !self.rights.is_root || (entry.uid, entry.gid) == (Some(facts.stx_uid), Some(facts.stx_gid));
        let mode = u32::from(facts.stx_mode) & MODE_BITS;
        let is_mode_right = entry.kind == EntryKind::Symlink || self.mode_of(entry).is_none_or(|wanted| wanted == mode);
        let mut found = BTreeMap::new();
        self.attributes.read(object, Some(device_of(facts)), &mut found)?;
        let visible = |name: &&String| self.rights.is_root || !is_privileged(name);
        let are_attributes_right = found
            .iter()
            .filter(|(name, _)| visible(name))
            .eq(entry.xattrs.iter().filter(|(name, _)| visible(name)));
        Ok(is_owner_right && is_mode_right && are_attributes_right && is_time_set(entry, facts))
    }

    /// Sets everything on something open. The order counts: a new owner clears bits of the mode and capabilities, and
    /// attributes change times.
    pub(super) fn set(&mut self, file: BorrowedFd<'_>, entry: &Entry, before: Before) -> io::Result<()> {
        let object = Object::Open(file);
        let mut mode = self.mode_of(entry);
        if !self.set_owner(entry, before, |uid, gid| rustix::fs::fchown(file, uid, gid))? {
            mode = mode.map(|mode| mode & !SET_ID_BITS);
        }
        let has_acl = ACLS.iter().any(|acl| entry.xattrs.contains_key(*acl));
        self.set_attributes(object, entry, before)?;
        if let Some(mode) = mode {
            let is_right = matches!(before, Before::Made(made) if made & !self.rights.umask == mode);
            if !is_right || has_acl {
                self.permitted("its mode", rustix::fs::fchmod(file, Mode::from_raw_mode(mode)))?;
            }
        }
        if let Some(times) = times(entry) {
            self.permitted("its time", rustix::fs::futimens(file, &times))?;
        }
        Ok(())
    }

    /// Sets everything on what has a name and cannot be opened: a link, a pipe or a node.
    pub(super) fn set_named(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        before: Before,
    ) -> io::Result<()> {
        let mut mode = self.mode_of(entry);
        let chown = |uid, gid| rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        if !self.set_owner(entry, before, chown)? {
            mode = mode.map(|mode| mode & !SET_ID_BITS);
        }
        self.set_attributes(Object::Named(directory, name), entry, before)?;
        if let Some(mode) = mode
            && entry.kind != EntryKind::Symlink
        {
            self.permitted("its mode", change_mode(directory, name, mode))?;
        }
        if let Some(times) = times(entry) {
            let set = rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW);
            self.permitted("its time", set)?;
        }
        Ok(())
    }

    /// Whether the object has the entry's owner now, as far as bits that lend rights are concerned.
    fn set_owner(
        &mut self,
        entry: &Entry,
        before: Before,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> io::Result<bool> {
        let (Some(uid), Some(gid)) = (entry.uid, entry.gid) else {
            return Ok(true);
        };
        let is_made = matches!(before, Before::Made(_));
        if is_made && (uid, gid) == (self.rights.uid, self.rights.gid) {
            return Ok(true);
        }
        if self.rights.is_root {
            return self.permitted("its owner", chown(Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))));
        }
        // Others than root can give their files to groups they belong to, and do so where they can.
        let is_group_set = uid == self.rights.uid && chown(None, Some(Gid::from_raw(gid))).is_ok();
        Ok(is_group_set || entry.mode.is_none_or(|mode| mode & SET_GROUP_ID_BIT == 0))
    }

    fn set_attributes(&mut self, object: Object<'_>, entry: &Entry, before: Before) -> io::Result<()> {
        if matches!(before, Before::Unknown) {
            self.remove_others(object, entry)?;
        }
        for (name, value) in &entry.xattrs {
            let value = hex::decode(value).map_err(|_| invalid(&format!("the attribute {name} is not hex")))?;
            match self.attributes.set(object, name, &value) {
                Ok(()) => {}
                Err(Errno::NOSPC | Errno::DQUOT) if is_full(object) => return Err(Errno::NOSPC.into()),
                Err(Errno::IO) => return Err(Errno::IO.into()),
                Err(error) => self.problems.push(format!("its attribute {name} was not set: {error}")),
            }
        }
        Ok(())
    }

    /// Removes attributes that the entry has not: those of what was there before, or ACLs that were inherited.
    fn remove_others(&mut self, object: Object<'_>, entry: &Entry) -> io::Result<()> {
        let mut found = BTreeMap::new();
        self.attributes.read(object, None, &mut found)?;
        for name in found.keys() {
            if entry.xattrs.contains_key(name) || (is_privileged(name) && !self.rights.is_root) {
                continue;
            }
            if let Err(error) = self.attributes.remove(object, name)
                && !matches!(error, Errno::NODATA | Errno::NOTSUP)
            {
                self.problems.push(format!(
                    "its attribute {name}, which the backup lacks, was not removed: {error}"
                ));
            }
        }
        Ok(())
    }

    /// Notes what is not permitted, and lets anything else fail.
    fn permitted(&mut self, what: &str, result: rustix::io::Result<()>) -> io::Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOTSUP)) => {
                self.problems.push(format!("{what} was not set: {error}"));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the modification time is the entry's.
pub(super) fn is_time_set(entry: &Entry, facts: &Statx) -> bool {
    let found = (facts.stx_mtime.tv_sec, facts.stx_mtime.tv_nsec);
    entry
        .mtime_seconds
        .is_none_or(|seconds| (seconds, entry.mtime_nanoseconds.unwrap_or(0)) == found)
}

/// The modification time, as the time of access too.
fn times(entry: &Entry) -> Option<Timestamps> {
    let time = Timespec {
        tv_sec: entry.mtime_seconds?,
        tv_nsec: i64::from(entry.mtime_nanoseconds.unwrap_or(0)),
    };
    Some(Timestamps {
        last_access: time,
        last_modification: time,
    })
}

/// Attributes that others than root neither see nor set.
fn is_privileged(name: &str) -> bool {
    name.starts_with("security.") || name.starts_with("trusted.")
}

/// Changes the mode of what cannot be opened, never of what a link points to.
pub(super) fn change_mode(directory: BorrowedFd<'_>, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Whether the file system is full: some say so of an attribute that is too large for them.
fn is_full(object: Object<'_>) -> bool {
    let (Object::Open(file) | Object::Named(file, _)) = object;
    rustix::fs::fstatvfs(file).is_ok_and(|facts| facts.f_bavail == 0)
}
