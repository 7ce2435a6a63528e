//! What has no content of its own, made at a destination: links, pipes, device nodes and further names of files.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use strongroom_proto::manifest::{Entry, EntryKind};

use super::compare::{Difference, enter, look_if_there, without_content};
use super::descend::Descent;
use super::facts::{inode_of, is_regular};
use super::metadata::Before;
use super::paths::{invalid, link_source_of, split, target_of};
use super::restore::{Change, Existing};
use super::writer::{Place, Writer};

/// Why devices are skipped.
pub(super) const DEVICE_NOT_PERMITTED: &str = "a device node, which this process may not make";

impl Writer<'_> {
    /// Makes a link, a pipe or a device node.
    pub(super) fn make_node(&mut self, path: &[u8], name: &[u8], entry: &Entry) -> io::Result<()> {
        if let Place::Taken(facts) = self.look_at_place(name)?
            && self.existing == Existing::InPlace
        {
            let here = self.descent.directory()?;
            match without_content(here, name, &facts, entry, &mut self.setter)? {
                Difference::Nothing => {
                    self.restored.unchanged += 1;
                    return Ok(());
                }
                Difference::Metadata => {
                    self.setter.set_named(here, name, entry, Before::Unknown)?;
                    self.restored.metadata += 1;
                    self.report(Change::Metadata, path);
                    self.report_problems(path);
                    return Ok(());
                }
                Difference::Other | Difference::Missing => {}
            }
        }
        let target = match entry.kind {
            EntryKind::Symlink => target_of(entry)?,
            _ => Vec::new(),
        };
        let make = |here: BorrowedFd<'_>, name: &[u8]| match entry.kind {
            EntryKind::Symlink => rustix::fs::symlinkat(target.as_slice(), here, name),
            EntryKind::Fifo => make_special(here, name, FileType::Fifo, entry),
            EntryKind::CharDevice => make_special(here, name, FileType::CharacterDevice, entry),
            _ => make_special(here, name, FileType::BlockDevice, entry),
        };
        self.open_up()?;
        let made = make(self.descent.directory()?, name);
        let (change, temporary) = match made {
            Err(Errno::EXIST) => {
                self.clear_place(name, entry)?;
                match self.temporary(|here, name| make(here, name)) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_device(entry) => {
                        self.skip(path, DEVICE_NOT_PERMITTED);
                        return Ok(());
                    }
                    temporary => (Change::Replace, Some(temporary?.0)),
                }
            }
            Err(Errno::PERM | Errno::ACCESS) if is_device(entry) => {
                self.skip(path, DEVICE_NOT_PERMITTED);
                return Ok(());
            }
            made => {
                made?;
                (Change::Create, None)
            }
        };
        let here = self.descent.directory()?;
        let before = if self.inherits {
            Before::Unknown
        } else {
            Before::Made(0o600)
        };
        let made_name = temporary.as_deref().map_or(name, str::as_bytes);
        let set = self
            .setter
            .set_named(here, made_name, entry, before)
            .and_then(|()| match &temporary {
                Some(temporary) => Ok(rustix::fs::renameat(here, temporary.as_bytes(), here, name)?),
                None => Ok(()),
            });
        if let Err(error) = set {
            let _ = rustix::fs::unlinkat(here, made_name, AtFlags::empty());
            return Err(error);
        }
        match entry.kind {
            EntryKind::Symlink => self.restored.symlinks += 1,
            _ => self.restored.others += 1,
        }
        self.report(change, path);
        self.report_problems(path);
        Ok(())
    }

    pub(super) fn make_hardlink(&mut self, path: &[u8], name: &[u8], entry: &Entry) -> io::Result<()> {
        let source = link_source_of(entry)?;
        let (source_parent, source_name) = split(&source);
        // Its directory, without going there: this one is not left yet.
        let elsewhere = self.open_from_root(source_parent)?;
        let Some(facts) = look_if_there(elsewhere.as_fd(), source_name)? else {
            return Err(invalid("a hard link to what was not restored before it"));
        };
        if !is_regular(&facts) {
            return Err(invalid("a hard link to something that is not a regular file"));
        }
        if self.existing != Existing::Refuse
            && let Place::Taken(there) = self.look_at_place(name)?
            && inode_of(&there) == inode_of(&facts)
        {
            self.restored.unchanged += 1;
            return Ok(());
        }
        self.open_up()?;
        let link = |here: BorrowedFd<'_>, name: &[u8]| {
            rustix::fs::linkat(&elsewhere, source_name, here, name, AtFlags::empty())
        };
        let change = match link(self.descent.directory()?, name) {
            Err(Errno::EXIST) => {
                self.clear_place(name, entry)?;
                let (temporary, ()) = self.temporary(|here, name| link(here, name))?;
                let here = self.descent.directory()?;
                if let Err(error) = rustix::fs::renameat(here, temporary.as_bytes(), here, name) {
                    let _ = rustix::fs::unlinkat(here, temporary.as_bytes(), AtFlags::empty());
                    return Err(error.into());
                }
                Change::Replace
            }
            linked => {
                linked?;
                Change::Create
            }
        };
        self.restored.hardlinks += 1;
        self.report(change, path);
        Ok(())
    }

    fn open_from_root(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        if path == self.descent.path() {
            return self.descent.directory()?.try_clone_to_owned();
        }
        let mut descent = Some(Descent::new(self.descent.root()?, ()));
        match enter(&mut descent, path)? {
            Some(directory) => Ok(directory.try_clone_to_owned()?),
            None => Err(invalid("a hard link to what was not restored before it")),
        }
    }
}

fn is_device(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice)
}

fn make_special(here: BorrowedFd<'_>, name: &[u8], kind: FileType, entry: &Entry) -> rustix::io::Result<()> {
    let device = match (entry.device_major, entry.device_minor) {
        (Some(major), Some(minor)) => rustix::fs::makedev(major, minor),
        _ => 0,
    };
    rustix::fs::mknodat(here, name, kind, Mode::RUSR | Mode::WUSR, device)
}
