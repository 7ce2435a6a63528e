//! Making a folder durable, and never forgetting that it could not be.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The disks that a vault lies on.
///
/// The kernel tells of a failed write once to whoever had a file open when it happened, and to nobody who comes later:
/// so one is open from the beginning, and the first error stands for the life of the process.
#[derive(Default)]
pub(super) struct Sync {
    folder: OnceLock<File>,
    /// Folders of the vault that lie on other disks, by these.
    others: Mutex<HashMap<u64, File>>,
    has_failed: AtomicBool,
}

impl Sync {
    pub(super) fn begin(&self, folder: &std::path::Path) -> io::Result<()> {
        if self.folder.get().is_none() {
            let _ = self.folder.set(File::open(folder)?);
        }
        self.open_others(folder)
    }

    /// Opens what of the vault's folders leads to another disk.
    fn open_others(&self, folder: &std::path::Path) -> io::Result<()> {
        let root = std::fs::metadata(folder)?.dev();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let found = match std::fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if !found.is_dir() || found.dev() == root {
                continue;
            }
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            if let Entry::Vacant(other) = others.entry(found.dev()) {
                other.insert(File::open(&path)?);
            }
        }
        Ok(())
    }

    pub(super) fn run(&self, folder: &std::path::Path) -> io::Result<()> {
        self.begin(folder)?;
        let Some(open) = self.folder.get() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if self.has_failed.load(Ordering::SeqCst) {
            return Err(io::Error::other(
                "an earlier write did not reach the disk; see to the disk, check the vault and start the service again",
            ));
        }
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(open).chain(others.values()).try_for_each(|disk| {
            rustix::fs::syncfs(disk).map_err(|error| {
                self.has_failed.store(true, Ordering::SeqCst);
                io::Error::from(error)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_leads_to_another_disk_is_synced_too() {
        let root = tempfile::tempdir().unwrap();
        let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
            eprintln!("SKIPPED: there is no other disk here");
            return;
        };
        if elsewhere.path().metadata().unwrap().dev() == root.path().metadata().unwrap().dev() {
            eprintln!("SKIPPED: there is no other disk here");
            return;
        }
        std::fs::create_dir(root.path().join("index")).unwrap();
        std::os::unix::fs::symlink(root.path().join("nowhere"), root.path().join("wal")).unwrap();
        let sync = Sync::default();
        sync.begin(root.path()).unwrap();
        assert_eq!(sync.others.lock().unwrap().len(), 0);
        // Also one that comes later, once however many folders lead there.
        for name in ["packs", "backups"] {
            std::os::unix::fs::symlink(elsewhere.path(), root.path().join(name)).unwrap();
        }
        sync.run(root.path()).unwrap();
        assert_eq!(sync.others.lock().unwrap().len(), 1);
    }
}
