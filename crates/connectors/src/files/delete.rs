//! Removing from a destination what the backup lacks: its list of entries beside the listings of the directories.
//!
//! Both are in the same order, which the plan has checked, so nothing has to be held but the names of the directories
//! on the way to where one stands. It runs when everything else is in place.
//!
//! What the backup lacks because it was not taken stays, and so does what lies on another file system than the directory
//! it is mounted in.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, Statx, Timespec, Timestamps};
use rustix::io::Errno;
use strongroom_proto::manifest::{Entry, EntryKind};

use super::descend::{DIRECTORY, Descent};
use super::exclude::is_cache;
use super::facts::{device_of, look, look_at};
use super::lacks::Untaken;
use super::names::{Lister, Names};
use super::paths::{path_of, split};
use super::plan::Plan;
use super::remove::remove_tree;

/// Goes through a destination beside the entries of a backup.
pub(super) struct Deleting<'a> {
    /// Only directories that are restored whole have a listing.
    descent: Descent<Option<Listing>>,
    lister: Lister,
    plan: &'a Plan,
    untaken: Untaken<'a>,
    dry_run: bool,
    /// Called with the path of each thing that is removed.
    removed: &'a mut dyn FnMut(&[u8]),
}

struct Listing {
    names: Names,
    facts: Statx,
    /// Whether something was removed, so that the directory's time has to be set back.
    is_changed: bool,
}

impl<'a> Deleting<'a> {
    pub(super) fn new(
        root: OwnedFd,
        plan: &'a Plan,
        untaken: Untaken<'a>,
        dry_run: bool,
        removed: &'a mut dyn FnMut(&[u8]),
    ) -> io::Result<Self> {
        let mut deleting = Self {
            descent: Descent::new(root, None),
            lister: Lister::new(),
            plan,
            untaken,
            dry_run,
            removed,
        };
        let is_listed = !deleting.untaken.is_unlisted(super::walk::ROOT_PATH.as_bytes());
        if is_listed && plan.covers(&Entry::bare(super::walk::ROOT_PATH, EntryKind::Directory)) {
            let root = deleting.descent.root()?;
            let listing = deleting.list(&root)?;
            if let Some(value) = deleting.descent.value_mut() {
                *value = Some(listing);
            }
        }
        Ok(deleting)
    }

    /// The next entry of the backup.
    pub(super) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let path = path_of(entry)?;
        if path.is_empty() || !self.plan.covers(entry) {
            return Ok(());
        }
        let (parent, name) = split(&path);
        if !self.enter(parent)? {
            return Ok(());
        }
        self.remove_before(Some(name))?;
        if entry.kind == EntryKind::Directory {
            match rustix::fs::openat(self.descent.directory()?, name, DIRECTORY, Mode::empty()) {
                Ok(directory) => {
                    let listing = match self.was_taken(&directory, &path)? {
                        true => Some(self.list(&directory)?),
                        false => None,
                    };
                    self.descent.push(name, directory, listing);
                }
                // In a dry run, what will be a directory may not be one yet.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether what the backup lacks of a directory was not there. The one it lies in is where one stands.
    fn was_taken(&mut self, directory: &OwnedFd, path: &[u8]) -> io::Result<bool> {
        // Of a tag that cannot be read it is not known what it says.
        let is_cache = || match is_cache(directory.as_fd()) {
            Ok(is_cache) => is_cache,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        Ok(!self.untaken.is_unlisted(path)
            && device_of(&look(directory.as_fd())?) == device_of(&look(self.descent.directory()?)?)
            && !(self.untaken.caches && is_cache()))
    }

    /// No entry is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        while self.descent.depth() > 0 {
            self.leave()?;
        }
        self.leave()
    }

    /// Goes to a directory; answers `false` where there is none.
    fn enter(&mut self, path: &[u8]) -> io::Result<bool> {
        while self.descent.rest_of(path).is_none() {
            self.leave()?;
        }
        let rest = self.descent.rest_of(path).unwrap_or_default().to_vec();
        for name in rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match rustix::fs::openat(self.descent.directory()?, name, DIRECTORY, Mode::empty()) {
                Ok(directory) => self.descent.push(name, directory, None),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn leave(&mut self) -> io::Result<()> {
        self.remove_before(None)?;
        self.descent.directory()?;
        if let Some((Some(directory), Some(listing))) = self.descent.pop()
            && listing.is_changed
        {
            let time = Timespec {
                tv_sec: listing.facts.stx_mtime.tv_sec,
                tv_nsec: i64::from(listing.facts.stx_mtime.tv_nsec),
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            if is_closed(&listing.facts) {
                rustix::fs::fchmod(&directory, mode(u32::from(listing.facts.stx_mode)))?;
            }
            rustix::fs::futimens(&directory, &times)?;
        }
        Ok(())
    }

    /// Removes the names that come before one that the backup has, or all that are left.
    fn remove_before(&mut self, kept: Option<&[u8]>) -> io::Result<()> {
        loop {
            let Some(Some(listing)) = self.descent.value_mut() else {
                return Ok(());
            };
            let Some(next) = listing.names.peek() else {
                return Ok(());
            };
            if kept.is_some_and(|kept| next > kept) {
                return Ok(());
            }
            let name = next.to_vec();
            listing.names.skip();
            if kept == Some(name.as_slice()) {
                return Ok(());
            }
            let device = device_of(&listing.facts);
            let mut path = self.descent.path().to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let facts = match look_at(self.descent.directory()?, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                facts => facts?,
            };
            if self.untaken.contains(&path, &facts) || device_of(&facts) != device {
                continue;
            }
            let Some(Some(listing)) = self.descent.value_mut() else {
                return Ok(());
            };
            let must_open = !listing.is_changed && is_closed(&listing.facts);
            let open_mode = mode(u32::from(listing.facts.stx_mode) | 0o700);
            listing.is_changed |= !self.dry_run;
            if !self.dry_run {
                let here = self.descent.directory()?;
                if must_open {
                    let _ = rustix::fs::fchmod(here, open_mode);
                }
                remove_tree(here, &name).map_err(|error| {
                    let shown = String::from_utf8_lossy(&path);
                    io::Error::new(error.kind(), format!("remove {shown}: {error}"))
                })?;
            }
            (self.removed)(&path);
        }
    }

    fn list(&mut self, directory: &OwnedFd) -> io::Result<Listing> {
        // Read through another description, for who holds this one reads it from the beginning too.
        let again = rustix::fs::openat(directory, c".", DIRECTORY, Mode::empty())?;
        match self.lister.list(again.as_fd()) {
            (_, Some(error)) => Err(error),
            (names, None) => Ok(Listing {
                names,
                facts: look(again.as_fd())?,
                is_changed: false,
            }),
        }
    }
}

/// Whether a directory forbids its owner to remove something from it.
fn is_closed(facts: &Statx) -> bool {
    u32::from(facts.stx_mode) & 0o300 != 0o300 && !rustix::process::geteuid().is_root()
}

fn mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}
