//! A restore that changes nothing and reports what it would change.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::Statx;
use strongroom_proto::manifest::{Entry, EntryKind, Listed};

use super::compare::{Comparer, Difference};
use super::facts::{inode_of, is_directory};
use super::lacks::Lacks;
use super::metadata::Setter;
use super::nodes::DEVICE_NOT_PERMITTED;
use super::paths::{link_source_of, path_of, split};
use super::plan::Plan;
use super::restore::{Change, Existing, FilesRestored, torn_reason};
use super::walk::ROOT_PATH;
use super::writer::{SOCKET_NOT_MADE, check_place, named, not_a_directory};

/// Compares a destination, which may be missing, with the entries of a backup.
pub(super) struct Preview<'a> {
    comparer: Comparer,
    setter: Setter,
    plan: &'a Plan,
    lacks: &'a Lacks,
    existing: Existing,
    removes_directories: bool,
    /// Hashes of the paths of files that would be written: hard links to them would be made again.
    written: HashSet<u64>,
    pub(super) restored: FilesRestored,
    changed: &'a mut dyn FnMut(Change, &Path, Option<&str>),
}

impl<'a> Preview<'a> {
    pub(super) fn new(
        root: Option<OwnedFd>,
        plan: &'a Plan,
        lacks: &'a Lacks,
        existing: Existing,
        removes_directories: bool,
        changed: &'a mut dyn FnMut(Change, &Path, Option<&str>),
    ) -> Self {
        Self {
            comparer: Comparer::new(root),
            setter: Setter::new(),
            plan,
            lacks,
            existing,
            removes_directories,
            written: HashSet::new(),
            restored: FilesRestored::default(),
            changed,
        }
    }

    /// As for [`Comparer::trusting`].
    pub(super) fn trusting(self, backup_began: Option<SystemTime>) -> Self {
        Self {
            comparer: self.comparer.trusting(backup_began),
            ..self
        }
    }

    /// Reports what would become of the next entry.
    pub(super) fn entry(&mut self, listed: Listed<'_>) -> io::Result<()> {
        if !self.plan.wants(listed.entry)? {
            return Ok(());
        }
        let Some(entry) = self.plan.restored_as(listed.entry)? else {
            return Ok(());
        };
        let path = path_of(&entry)?;
        let torn = match entry.kind {
            EntryKind::File => self.lacks.torn(&path_of(listed.entry)?),
            _ => None,
        };
        let is_there = torn.is_some() && self.existing != Existing::Refuse && self.comparer.look(&path)?.is_some();
        if !is_there {
            let renamed = Listed {
                entry: &entry,
                ..listed
            };
            self.look(&path, renamed).map_err(named(&entry.path))?;
        }
        if let Some(reason) = torn {
            self.skip(&path, &torn_reason(reason, is_there));
        }
        Ok(())
    }

    fn look(&mut self, path: &[u8], listed: Listed<'_>) -> io::Result<()> {
        let entry = listed.entry;
        let difference = match entry.kind {
            EntryKind::Stream => {
                return Err(super::paths::invalid(
                    "a stream of another kind of target in a tree of files",
                ));
            }
            EntryKind::Socket => {
                self.skip(path, SOCKET_NOT_MADE);
                return Ok(());
            }
            EntryKind::Directory => return self.directory(path, listed),
            EntryKind::Hardlink => self.hardlink(path, entry)?,
            _ if self.existing == Existing::InPlace => self.comparer.compare(path, listed, &mut self.setter)?,
            _ => self.presence(path)?,
        };
        let is_device = matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let change = match difference {
            Difference::Nothing => {
                self.restored.unchanged += 1;
                return Ok(());
            }
            Difference::Metadata => {
                self.restored.metadata += 1;
                self.report(Change::Metadata, path);
                return Ok(());
            }
            Difference::Other => {
                self.check(path, entry)?;
                Change::Replace
            }
            Difference::Missing => Change::Create,
        };
        if is_device && !self.setter.rights.makes_devices {
            self.skip(path, DEVICE_NOT_PERMITTED);
            return Ok(());
        }
        match entry.kind {
            EntryKind::File => {
                self.written.insert(hash(path));
                self.restored.files += 1;
                self.restored.bytes = self.restored.bytes.saturating_add(listed.bytes);
            }
            EntryKind::Hardlink => self.restored.hardlinks += 1,
            EntryKind::Symlink => self.restored.symlinks += 1,
            _ => self.restored.others += 1,
        }
        self.report(change, path);
        Ok(())
    }

    fn directory(&mut self, path: &[u8], listed: Listed<'_>) -> io::Result<()> {
        self.restored.directories += 1;
        let (at, shown) = if path.is_empty() {
            // It is there, or is made without that being a change of an entry.
            if self.existing != Existing::InPlace {
                return Ok(());
            }
            (ROOT_PATH.as_bytes(), ROOT_PATH.as_bytes())
        } else {
            (path, path)
        };
        let change = match self.comparer.compare(at, listed, &mut self.setter)? {
            Difference::Nothing => return Ok(()),
            Difference::Missing if path.is_empty() => return Ok(()),
            Difference::Missing => Change::Create,
            Difference::Metadata if self.existing == Existing::Refuse => return Ok(()),
            Difference::Metadata => {
                self.restored.metadata += 1;
                Change::Metadata
            }
            Difference::Other if self.existing == Existing::InPlace => Change::Replace,
            Difference::Other => return Err(not_a_directory(split(path).1)),
        };
        self.report(change, shown);
        Ok(())
    }

    fn hardlink(&mut self, path: &[u8], entry: &Entry) -> io::Result<Difference> {
        let source = link_source_of(entry)?;
        let Some(facts) = self.comparer.look(path)? else {
            return Ok(Difference::Missing);
        };
        let is_written = self.written.contains(&hash(&source));
        let is_same = |other: Statx| inode_of(&other) == inode_of(&facts);
        Ok(if !is_written && self.comparer.look(&source)?.is_some_and(is_same) {
            Difference::Nothing
        } else {
            Difference::Other
        })
    }

    fn presence(&mut self, path: &[u8]) -> io::Result<Difference> {
        Ok(match self.comparer.look(path)? {
            Some(_) => Difference::Other,
            None => Difference::Missing,
        })
    }

    fn check(&mut self, path: &[u8], entry: &Entry) -> io::Result<()> {
        let Some(facts) = self.comparer.look(path)? else {
            return Ok(());
        };
        if !is_directory(&facts) && self.existing != Existing::Refuse {
            return Ok(());
        }
        let (parent, name) = split(path);
        match self.comparer.enter(parent)? {
            Some(directory) => check_place(directory, name, &facts, self.existing, self.removes_directories, entry),
            None => Ok(()),
        }
    }

    fn report(&mut self, change: Change, path: &[u8]) {
        (self.changed)(change, Path::new(std::ffi::OsStr::from_bytes(path)), None);
    }

    fn skip(&mut self, path: &[u8], reason: &str) {
        self.restored.skipped += 1;
        (self.changed)(Change::Skip, Path::new(std::ffi::OsStr::from_bytes(path)), Some(reason));
    }
}

fn hash(path: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}
