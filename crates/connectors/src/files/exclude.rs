//! What a snapshot leaves out because it was told to.

use std::io;
use std::os::fd::BorrowedFd;

use ignore::gitignore::Gitignore;
use rustix::fs::{Mode, OFlags};

use super::facts::{is_regular, look};
use super::select::{PatternError, matcher};

/// The name of the file that marks a directory as a cache; see <https://bford.info/cachedir/>.
pub(super) const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
/// How such a file begins.
const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// Patterns as in `.gitignore`. What lies below a directory that is left out is not looked at at all.
#[derive(Debug)]
pub(super) struct Excluded(Gitignore);

impl Excluded {
    /// Answers the pattern that cannot be read.
    pub(super) fn new(patterns: &[String]) -> Result<Self, (String, PatternError)> {
        matcher(patterns).map(Self)
    }

    /// Whether the thing with this path, relative to the root, is left out.
    pub(super) fn contains(&self, path: &[u8], is_directory: bool) -> bool {
        use std::os::unix::ffi::OsStrExt as _;
        !self.0.is_empty()
            && self
                .0
                .matched(std::ffi::OsStr::from_bytes(path), is_directory)
                .is_ignore()
    }
}

/// Whether a directory's file `CACHEDIR.TAG` says that it is a cache.
pub(super) fn is_cache(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tag = rustix::fs::openat(directory, CACHE_TAG, flags, Mode::empty())?;
    let mut beginning = [0; CACHE_SIGNATURE.len()];
    if !is_regular(&look(std::os::fd::AsFd::as_fd(&tag))?) {
        return Ok(false);
    }
    let length = rustix::io::pread(&tag, beginning.as_mut_slice(), 0)?;
    Ok(length == beginning.len() && beginning == *CACHE_SIGNATURE)
}
