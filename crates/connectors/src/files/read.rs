//! Reading one file: opened without following links, in pieces, without its holes.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, SeekFrom, Statx};
use rustix::io::Errno;

use super::facts::{is_regular, look, version_of};

/// Files up to this size are read whole before they are stored, so that a bad one leaves nothing behind; of a larger
/// one so much is read at once.
pub(super) const BUFFER_BYTES: usize = 1 << 20;
/// A shorter hole is read as the zeros it stands for.
const MIN_HOLE_BYTES: u64 = 64 << 10;
/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// Opens a regular file for reading, and looks at it.
pub(super) fn open_file(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<(OwnedFd, Statx)> {
    // Not blocking, for what has become a named pipe since it was looked at.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(directory, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may leave the time of access alone.
        Err(Errno::PERM) => rustix::fs::openat(directory, name, flags, Mode::empty()),
        opened => opened,
    };
    let file = opened.map_err(|error| match error {
        Errno::LOOP => io::Error::other("it has become a link"),
        error => error.into(),
    })?;
    let facts = look(file.as_fd())?;
    if !is_regular(&facts) {
        return Err(io::Error::other("it is no longer a regular file"));
    }
    Ok((file, facts))
}

/// Whether a file is read whole before it is stored.
pub(super) fn is_small(facts: &Statx) -> bool {
    facts.stx_size <= BUFFER_BYTES as u64 && !is_sparse(facts)
}

fn is_sparse(facts: &Statx) -> bool {
    facts.stx_size >= MIN_HOLE_BYTES && facts.stx_blocks.saturating_mul(BLOCK_BYTES) < facts.stx_size
}

/// Whether nothing was written between two looks at a file.
pub(super) fn is_same_version(before: &Statx, after: &Statx) -> bool {
    version_of(before) == version_of(after)
}

/// Reads a file from its beginning until the buffer is full, and answers how much there was.
pub(super) fn read_whole(file: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match read_at(file, &mut buffer[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stretch<'b> {
    Bytes(&'b [u8]),
    Hole(u64),
}

/// Reads a file piece by piece, to the length it had: one that grows as fast as it is read would never end.
#[derive(Debug)]
pub(super) struct Pieces<'f> {
    file: BorrowedFd<'f>,
    bytes: u64,
    position: u64,
    /// Where the data ends that begins at or before the position.
    data_end: u64,
}

impl<'f> Pieces<'f> {
    pub(super) fn new(file: BorrowedFd<'f>, facts: &Statx) -> Self {
        Self {
            file,
            bytes: facts.stx_size,
            position: 0,
            data_end: if is_sparse(facts) { 0 } else { facts.stx_size },
        }
    }

    /// The next stretch, read into `buffer`; nothing at the end.
    pub(super) fn next<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<Option<Stretch<'b>>> {
        if self.position >= self.bytes {
            return Ok(None);
        }
        if self.position >= self.data_end
            && let Some(hole) = self.find_data()?
        {
            return Ok(Some(Stretch::Hole(hole)));
        }
        let wanted = usize::try_from(self.data_end - self.position).map_or(buffer.len(), |left| left.min(buffer.len()));
        let length = read_at(self.file, &mut buffer[..wanted], self.position)?;
        if length == 0 {
            return Err(io::Error::other("it was cut short"));
        }
        self.position += length as u64;
        Ok(Some(Stretch::Bytes(&buffer[..length])))
    }

    /// Finds the next data and where it ends. Answers the length of the hole before it, if it is worth being one.
    fn find_data(&mut self) -> io::Result<Option<u64>> {
        let data = match rustix::fs::seek(self.file, SeekFrom::Data(self.position)) {
            Ok(data) => data.min(self.bytes),
            // No data any more.
            Err(Errno::NXIO) => self.bytes,
            // A file system that does not tell.
            Err(Errno::INVAL | Errno::NOTSUP) => {
                self.data_end = self.bytes;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let hole = data.saturating_sub(self.position);
        if hole >= MIN_HOLE_BYTES {
            self.position = data;
            return Ok(Some(hole));
        }
        self.data_end = if data < self.bytes {
            rustix::fs::seek(self.file, SeekFrom::Hole(data))?.min(self.bytes)
        } else {
            self.bytes
        };
        Ok(None)
    }
}

fn read_at(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match rustix::io::pread(file, &mut *buffer, offset) {
            Err(Errno::INTR) => {}
            read => return Ok(read?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn stretches(file: &File) -> Vec<(bool, u64)> {
        let facts = look(file.as_fd()).unwrap();
        let mut pieces = Pieces::new(file.as_fd(), &facts);
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut found = Vec::new();
        while let Some(stretch) = pieces.next(&mut buffer).unwrap() {
            found.push(match stretch {
                Stretch::Bytes(bytes) => (false, bytes.len() as u64),
                Stretch::Hole(bytes) => (true, bytes),
            });
        }
        found
    }

    #[test]
    fn holes_are_told_apart_where_they_are_worth_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&[1; 4096], 1 << 30).unwrap();
        // Too small a hole.
        file.write_all_at(&[1; 4096], (1 << 30) + 8192).unwrap();
        file.sync_all().unwrap();
        let found = stretches(&file);
        assert_eq!(found.iter().map(|(_, bytes)| bytes).sum::<u64>(), 1 << 40);
        if found.iter().all(|(is_hole, _)| !is_hole) {
            eprintln!("SKIPPED: this file system does not tell holes");
            return;
        }
        assert_eq!(found.first(), Some(&(true, 1 << 30)));
        let data: u64 = found
            .iter()
            .filter(|(is_hole, _)| !is_hole)
            .map(|(_, bytes)| bytes)
            .sum();
        assert_eq!(data, 12_288);
        assert_eq!(found.last(), Some(&(true, (1 << 40) - (1 << 30) - 12_288)));
    }

    #[test]
    fn a_file_that_is_cut_short_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 2 << 20], 0).unwrap();
        let facts = look(file.as_fd()).unwrap();
        let mut pieces = Pieces::new(file.as_fd(), &facts);
        let mut buffer = vec![0; BUFFER_BYTES];
        assert!(matches!(pieces.next(&mut buffer), Ok(Some(Stretch::Bytes(_)))));
        file.set_len(1 << 20).unwrap();
        assert!(pieces.next(&mut buffer).is_err());
    }
}
