//! The open directories from a root to where one stands in its tree.
//!
//! Invariants: a name is only ever resolved in an open directory, one component at a time and without following links,
//! so that nothing leads out of the tree and paths may be of any length; only so many directories are open at once,
//! however deep the tree, and one that is opened again is known to be the same.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::facts::{DirectoryId, directory_id};

/// How a directory of a tree is opened.
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);
/// How many directories below the root are open at once.
const MAX_OPEN: usize = 64;

/// A stack of directories, each in the one before it. Each carries a value.
#[derive(Debug)]
pub(super) struct Descent<T> {
    /// The first is the root, which stays open.
    levels: Vec<Level<T>>,
    /// The path of the last level, relative to the root.
    path: Vec<u8>,
}

#[derive(Debug)]
struct Level<T> {
    directory: Opened,
    /// How much of the path leads here.
    path_bytes: usize,
    value: T,
}

#[derive(Debug)]
enum Opened {
    Open(OwnedFd),
    Closed(DirectoryId),
}

impl<T> Descent<T> {
    pub(super) fn new(root: OwnedFd, value: T) -> Self {
        Self {
            levels: vec![Level {
                directory: Opened::Open(root),
                path_bytes: 0,
                value,
            }],
            path: Vec::new(),
        }
    }

    /// Where one stands, relative to the root; empty in the root.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// How many directories lie above.
    pub(super) fn depth(&self) -> usize {
        self.levels.len().saturating_sub(1)
    }

    pub(super) fn value_mut(&mut self) -> Option<&mut T> {
        self.levels.last_mut().map(|level| &mut level.value)
    }

    /// The directory one stands in.
    pub(super) fn directory(&mut self) -> io::Result<BorrowedFd<'_>> {
        if let Some(Level {
            directory: Opened::Closed(id),
            ..
        }) = self.levels.last()
        {
            let found = self.find(*id)?;
            if let Some(level) = self.levels.last_mut() {
                level.directory = Opened::Open(found);
            }
        }
        match self.levels.last() {
            Some(Level {
                directory: Opened::Open(directory),
                ..
            }) => Ok(directory.as_fd()),
            _ => Err(io::Error::other("the root was left")),
        }
    }

    /// The root, once more.
    pub(super) fn root(&self) -> io::Result<OwnedFd> {
        match self.levels.first() {
            Some(Level {
                directory: Opened::Open(root),
                ..
            }) => root.try_clone(),
            _ => Err(io::Error::other("the root was left")),
        }
    }

    /// Goes into a directory that was opened in this one.
    pub(super) fn push(&mut self, name: &[u8], directory: OwnedFd, value: T) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self.levels.push(Level {
            directory: Opened::Open(directory),
            path_bytes: self.path.len(),
            value,
        });
        let last_to_close = self.levels.len().saturating_sub(MAX_OPEN + 1);
        if last_to_close > 0
            && let Some(level) = self.levels.get_mut(last_to_close)
            && let Opened::Open(directory) = &level.directory
            && let Ok(id) = directory_id(directory.as_fd())
        {
            level.directory = Opened::Closed(id);
        }
    }

    /// Goes back to the directory above. Answers the one that was left, if it was open, and its value; nothing is left
    /// after the root.
    pub(super) fn pop(&mut self) -> Option<(Option<OwnedFd>, T)> {
        let left = self.levels.pop()?;
        self.path
            .truncate(self.levels.last().map_or(0, |level| level.path_bytes));
        let directory = match left.directory {
            Opened::Open(directory) => Some(directory),
            Opened::Closed(_) => None,
        };
        if let Some(level) = self.levels.last_mut()
            && let Opened::Closed(id) = level.directory
            && let Some(below) = &directory
            && let Ok(above) = rustix::fs::openat(below, c"..", DIRECTORY, Mode::empty())
            && directory_id(above.as_fd()).is_ok_and(|found| found == id)
        {
            level.directory = Opened::Open(above);
        }
        Some((directory, left.value))
    }

    /// The components of `path` that lead there from where one stands, or nothing where it lies elsewhere.
    pub(super) fn rest_of<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        if self.path.is_empty() {
            return Some(path);
        }
        match path.strip_prefix(self.path.as_slice())? {
            [] => Some(&[]),
            [b'/', rest @ ..] => Some(rest),
            _ => None,
        }
    }

    /// Opens the directory one stands in by its path, as long as it is still the same.
    fn find(&self, id: DirectoryId) -> io::Result<OwnedFd> {
        let Some(Level {
            directory: Opened::Open(root),
            ..
        }) = self.levels.first()
        else {
            return Err(io::Error::other("the root was left"));
        };
        let mut directory = root.try_clone()?;
        for component in self.path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            directory = rustix::fs::openat(&directory, component, DIRECTORY, Mode::empty())?;
        }
        if directory_id(directory.as_fd())? != id {
            return Err(io::Error::other("another directory has taken its place"));
        }
        Ok(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: BorrowedFd<'_>, name: &[u8]) -> OwnedFd {
        rustix::fs::openat(directory, name, DIRECTORY, Mode::empty()).unwrap()
    }

    /// A chain of so many directories named `d`, entered to its end.
    fn chain(root: &std::path::Path, depth: usize) -> Descent<usize> {
        let root = rustix::fs::openat(rustix::fs::CWD, root, DIRECTORY, Mode::empty()).unwrap();
        let mut descent = Descent::new(root, 0);
        for level in 1..=depth {
            let here = descent.directory().unwrap();
            rustix::fs::mkdirat(here, c"d", Mode::RWXU).unwrap();
            let below = open(here, b"d");
            descent.push(b"d", below, level);
        }
        descent
    }

    #[test]
    fn few_directories_are_open_and_each_is_found_again_on_the_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut descent = chain(dir.path(), 300);
        let is_open = |level: &&Level<usize>| matches!(level.directory, Opened::Open(_));
        assert_eq!(descent.levels.iter().filter(is_open).count(), MAX_OPEN + 1);
        assert_eq!(descent.path().len(), 300 * 2 - 1);
        for level in (0..=300).rev() {
            assert_eq!(descent.depth(), level);
            rustix::fs::statat(descent.directory().unwrap(), c".", rustix::fs::AtFlags::empty()).unwrap();
            assert_eq!(descent.pop().unwrap().1, level);
        }
        assert!(descent.pop().is_none());
    }

    #[test]
    fn a_directory_that_was_moved_meanwhile_is_not_mistaken_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut descent = chain(dir.path(), 100);
        // What lies under d/d is now elsewhere, and there is a new d/d.
        std::fs::rename(dir.path().join("d/d"), dir.path().join("moved")).unwrap();
        std::fs::create_dir(dir.path().join("d/d")).unwrap();
        while descent.depth() > 3 {
            descent.pop();
            descent.directory().unwrap();
        }
        // The directory moved along with what it holds, and is found from below.
        descent.pop();
        descent.directory().unwrap();
        assert_eq!(descent.path(), b"d/d");
        // What lies above it now is not what lay above it then.
        descent.pop();
        let found = directory_id(descent.directory().unwrap()).unwrap();
        let named = open(rustix::fs::CWD, dir.path().join("d").as_os_str().as_encoded_bytes());
        assert_eq!(found, directory_id(named.as_fd()).unwrap());
    }

    #[test]
    fn the_rest_of_a_path_is_told_by_components() {
        let dir = tempfile::tempdir().unwrap();
        let descent = chain(dir.path(), 2);
        assert_eq!(descent.rest_of(b"d/d/x/y"), Some(b"x/y".as_slice()));
        assert_eq!(descent.rest_of(b"d/d"), Some(b"".as_slice()));
        assert_eq!(descent.rest_of(b"d/dd/x"), None);
        assert_eq!(descent.rest_of(b"d"), None);
    }
}
