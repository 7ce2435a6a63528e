//! Folders that live as long as an operation, and do not stay behind even where its process is killed.
//!
//! Each is locked by who made it; the kernel drops the lock with the process. A folder whose lock is free is therefore
//! a leftover, and the next operation of its kind removes it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A folder that exists as long as this value.
#[derive(Debug)]
pub(crate) struct ScratchDir {
    path: PathBuf,
    _lock: File,
}

impl ScratchDir {
    /// Makes a folder in `parent` with a name that begins with `prefix`, after removing leftovers of the same kind;
    /// `before_removal` sees each of those first.
    pub(crate) fn create(parent: &Path, prefix: &str, mode: u32, before_removal: fn(&Path)) -> io::Result<Self> {
        remove_leftovers(parent, prefix, before_removal);
        loop {
            let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
            // Until it is locked, somebody else may take it for a leftover.
            let lock = match File::open(dir.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            let is_locked = lock.try_lock().is_ok();
            let is_still_there = std::fs::metadata(dir.path())
                .is_ok_and(|there| lock.metadata().is_ok_and(|ours| there.ino() == ours.ino()));
            if is_locked && is_still_there {
                lock.set_permissions(Permissions::from_mode(mode))?;
                return Ok(Self {
                    path: dir.keep(),
                    _lock: lock,
                });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a scratch folder could not be removed");
        }
    }
}

/// Removes the folders of this kind whose process is gone.
fn remove_leftovers(parent: &Path, prefix: &str, before_removal: fn(&Path)) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_of_this_kind = entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes());
        if !is_of_this_kind || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        before_removal(&path);
        match std::fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed what a killed process had left"),
            Err(error) => tracing::info!(path = %path.display(), %error, "a leftover could not be removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_goes_and_what_is_in_use_stays() {
        let parent = tempfile::tempdir().unwrap();
        let used = ScratchDir::create(parent.path(), "kind-", 0o700, |_| {}).unwrap();
        let leftover = parent.path().join("kind-dead");
        let other = parent.path().join("other");
        std::fs::create_dir_all(leftover.join("deep")).unwrap();
        std::fs::create_dir(&other).unwrap();
        let second = ScratchDir::create(parent.path(), "kind-", 0o700, |_| {}).unwrap();
        assert!(!leftover.exists());
        assert!(used.path().exists() && second.path().exists() && other.exists());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
    }

    #[test]
    fn those_who_begin_at_once_take_nothing_from_each_other() {
        let parent = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let dir = ScratchDir::create(parent.path(), "kind-", 0o750, |_| {}).unwrap();
                        let mode = std::fs::metadata(dir.path()).unwrap().permissions().mode();
                        assert_eq!(mode & 0o777, 0o750);
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
