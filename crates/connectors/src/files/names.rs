//! The names in one directory, sorted, in one piece of memory.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::RawDir;

/// How much of a directory is read at once.
const LIST_BYTES: usize = 64 << 10;

/// Reads the names of directories.
#[derive(Debug)]
pub(super) struct Lister {
    buffer: Vec<MaybeUninit<u8>>,
}

/// The names in a directory without `.` and `..`, sorted by their bytes.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each name begins, and its length.
    spans: Vec<(u32, u32)>,
    next: usize,
}

impl Lister {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![MaybeUninit::uninit(); LIST_BYTES],
        }
    }

    /// The names in a directory that is read from its beginning, and why they may not be all.
    pub(super) fn list(&mut self, directory: BorrowedFd<'_>) -> (Names, Option<io::Error>) {
        let mut names = Names::default();
        let mut problem = None;
        let mut entries = RawDir::new(directory, &mut self.buffer);
        while let Some(entry) = entries.next() {
            let added = entry
                .map_err(io::Error::from)
                .and_then(|entry| names.add(entry.file_name().to_bytes()));
            if let Err(error) = added {
                problem = Some(error);
                break;
            }
        }
        names.sort();
        (names, problem)
    }
}

impl Names {
    fn add(&mut self, name: &[u8]) -> io::Result<()> {
        if matches!(name, b"." | b"..") {
            return Ok(());
        }
        let too_many = |_| io::Error::other("the directory holds more than 4 GiB of names");
        let start = u32::try_from(self.bytes.len()).map_err(too_many)?;
        let length = u32::try_from(name.len()).map_err(too_many)?;
        self.bytes.extend_from_slice(name);
        self.spans.push((start, length));
        Ok(())
    }

    fn sort(&mut self) {
        let Self { bytes, spans, .. } = self;
        spans.sort_unstable_by(|left, right| slice(bytes, *left).cmp(slice(bytes, *right)));
    }

    /// The next name in order.
    pub(super) fn peek(&self) -> Option<&[u8]> {
        self.spans.get(self.next).map(|span| slice(&self.bytes, *span))
    }

    /// Goes on behind the next name.
    pub(super) fn skip(&mut self) {
        self.next += 1;
    }

    pub(super) fn contain(&self, name: &[u8]) -> bool {
        self.spans
            .binary_search_by(|span| slice(&self.bytes, *span).cmp(name))
            .is_ok()
    }

    /// Forgets every name but this one.
    pub(super) fn keep_only(&mut self, name: &[u8]) {
        let bytes = &self.bytes;
        self.spans.retain(|span| slice(bytes, *span) == name);
    }

    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }
}

fn slice(bytes: &[u8], (start, length): (u32, u32)) -> &[u8] {
    let start = start as usize;
    bytes.get(start..start + length as usize).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn names_come_sorted_by_their_bytes_however_many_there_are() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..3_000 {
            std::fs::write(
                dir.path().join(format!("{}-{}", "x".repeat(60), number * 7919 % 3_000)),
                "",
            )
            .unwrap();
        }
        std::fs::write(dir.path().join("a-"), "").unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        let directory = std::fs::File::open(dir.path()).unwrap();
        let (mut names, problem) = Lister::new().list(directory.as_fd());
        assert!(problem.is_none());
        assert_eq!(names.len(), 3_002);
        assert!(names.contain(b"a-") && !names.contain(b".") && !names.contain(b"b"));
        let mut seen = Vec::new();
        while let Some(name) = names.peek() {
            seen.push(name.to_vec());
            names.skip();
        }
        assert_eq!(seen[..2], [b"a".to_vec(), b"a-".to_vec()]);
        assert!(seen.is_sorted() && seen.len() == 3_002);
        names.keep_only(b"a");
        assert_eq!(names.len(), 1);
    }
}
