//! Writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::Advice;
use rustix::io::Errno;

use crate::buffers::{BLOCK_BYTES, BUFFER_BYTES, Buffer, Buffers};
use crate::{LARGE_BYTES, set_direct};

/// So much is written through the page cache before the disk is asked to begin with it.
const WRITE_OUT_BYTES: u64 = 8 * 1024 * 1024;

/// A file that is written from its beginning to its end. [`finish`](Self::finish) ends it.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// Where in the file goes what is written next, or what is in the buffer.
    position: u64,
    ends_with_hole: bool,
    way: Way,
    buffers: Buffers,
}

/// How bytes get to the disk.
#[derive(Debug)]
enum Way {
    /// As they come.
    Small,
    /// In large pieces.
    Large {
        buffer: Buffer,
        /// Past the page cache, or by it with so many bytes since the disk was last asked to begin.
        direct: Result<(), u64>,
    },
}

impl NewFile {
    /// Writes a file that is empty and was opened for writing.
    pub fn begin(file: File, buffers: &Buffers) -> Self {
        Self {
            file,
            position: 0,
            ends_with_hole: false,
            way: Way::Small,
            buffers: buffers.clone(),
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// Those of the disk, also with bytes of an earlier call. The file is then not whole and nothing more may be
    /// written.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.ends_with_hole = false;
        if matches!(self.way, Way::Small) && self.position.saturating_add(bytes.len() as u64) >= LARGE_BYTES {
            self.way = Way::Large {
                buffer: self.buffers.take(),
                direct: set_direct(&self.file, true).map_err(|_| 0),
            };
        }
        while !bytes.is_empty() {
            let Way::Large { buffer, .. } = &mut self.way else {
                self.file.write_all_at(bytes, self.position)?;
                self.position += bytes.len() as u64;
                return Ok(());
            };
            let taken = buffer.take(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if buffer.filled == BUFFER_BYTES {
                self.write_out(false)?;
            }
        }
        Ok(())
    }

    /// Appends a hole: zeros that take no space.
    ///
    /// # Errors
    ///
    /// As of [`write`](Self::write), and a file of an impossible length.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.write_out(true)?;
        self.position = self
            .position
            .checked_add(bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a file of an impossible length"))?;
        self.ends_with_hole = true;
        Ok(())
    }

    /// Writes what is left. The file is whole then, and an ordinary one.
    ///
    /// # Errors
    ///
    /// As of [`write`](Self::write).
    pub fn finish(&mut self) -> io::Result<&File> {
        self.write_out(true)?;
        if self.ends_with_hole {
            self.file.set_len(self.position)?;
        }
        if let Way::Large { buffer, direct } = std::mem::replace(&mut self.way, Way::Small) {
            match direct {
                Ok(()) => set_direct(&self.file, false)?,
                Err(_) => begin_writing_out(&self.file),
            }
            self.buffers.put_back(buffer);
        }
        Ok(&self.file)
    }

    /// Writes the whole blocks of what is in the buffer, or all of it.
    fn write_out(&mut self, all: bool) -> io::Result<()> {
        let Way::Large { buffer, direct } = &mut self.way else {
            return Ok(());
        };
        loop {
            let in_block = (self.position % BLOCK_BYTES as u64) as usize;
            let whole = buffer.filled - buffer.filled % BLOCK_BYTES;
            let part = match in_block {
                0 if whole > 0 => whole,
                0 if all => buffer.filled,
                0 => 0,
                // Up to where a block begins.
                _ => buffer.filled.min(BLOCK_BYTES - in_block),
            };
            if part == 0 {
                return Ok(());
            }
            let is_aligned = in_block == 0 && part % BLOCK_BYTES == 0;
            write_part(&self.file, buffer.first(part), self.position, is_aligned, direct)?;
            self.position += part as u64;
            buffer.drop_first(part);
        }
    }
}

fn write_part(
    file: &File,
    part: &[u8],
    position: u64,
    is_aligned: bool,
    direct: &mut Result<(), u64>,
) -> io::Result<()> {
    if direct.is_ok() {
        if !is_aligned {
            set_direct(file, false)?;
            file.write_all_at(part, position)?;
            return set_direct(file, true);
        }
        match file.write_all_at(part, position) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                // The file system takes the flag and not the write, e.g. because its blocks are larger.
                set_direct(file, false)?;
                *direct = Err(0);
            }
            written => return written,
        }
    }
    file.write_all_at(part, position)?;
    if let Err(unasked) = direct {
        *unasked += part.len() as u64;
        if *unasked >= WRITE_OUT_BYTES {
            begin_writing_out(file);
            *unasked = 0;
        }
    }
    Ok(())
}

/// Has the disk begin to write what is in the page cache, so that a later sync has little left to wait for. Only
/// advice.
fn begin_writing_out(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use rustix::fs::OFlags;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize),
        Skip(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let length = prop_oneof![
            0..10_usize,
            4_000..4_200_usize,
            Just(BLOCK_BYTES),
            0..BUFFER_BYTES + 9_000,
            Just(BUFFER_BYTES)
        ];
        let step = (length, any::<bool>()).prop_map(|(length, is_written)| match is_written {
            true => Step::Write(length),
            false => Step::Skip(length as u64),
        });
        proptest::collection::vec(step, 0..8)
    }

    fn content(at: usize, bytes: usize) -> Vec<u8> {
        (at..at + bytes)
            .map(|number| ((number * 31 + number / 251) % 255 + 1) as u8)
            .collect()
    }

    fn written(mut writing: NewFile, steps: &[Step]) -> Vec<u8> {
        let mut expected = Vec::new();
        for step in steps {
            match step {
                Step::Write(bytes) => {
                    let bytes = content(expected.len(), *bytes);
                    // In pieces of odd lengths, as they come.
                    for piece in bytes.chunks(1_234_567) {
                        writing.write(piece).unwrap();
                    }
                    expected.extend(bytes);
                }
                Step::Skip(bytes) => {
                    writing.skip(*bytes).unwrap();
                    expected.resize(expected.len() + *bytes as usize, 0);
                }
            }
        }
        let file = writing.finish().unwrap();
        // The file is an ordinary one again.
        assert!(!rustix::fs::fcntl_getfl(file).unwrap().contains(OFlags::DIRECT));
        expected
    }

    fn create(path: &std::path::Path, buffers: &Buffers) -> NewFile {
        NewFile::begin(File::create(path).unwrap(), buffers)
    }

    /// Changes what the first bytes would have begun.
    fn begun_large(mut writing: NewFile, change: impl FnOnce(&mut Buffer, &mut Result<(), u64>)) -> NewFile {
        let mut buffer = Buffer::new();
        let mut direct = set_direct(&writing.file, true).map_err(|_| 0);
        change(&mut buffer, &mut direct);
        set_direct(&writing.file, direct.is_ok()).unwrap();
        writing.way = Way::Large { buffer, direct };
        writing
    }

    fn here() -> tempfile::TempDir {
        // The build folder is on a disk; the one for temporary files may be in memory.
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_file_holds_what_was_written(steps in steps(), is_cached: bool) {
            let folder = here();
            let buffers = Buffers::default();
            for name in ["first", "the same memory again"] {
                let path = folder.path().join(name);
                let mut writing = create(&path, &buffers);
                if is_cached {
                    writing = begun_large(writing, |_, direct| *direct = Err(0));
                }
                let expected = written(writing, &steps);
                prop_assert!(std::fs::read(&path).unwrap() == expected);
            }
        }
    }

    #[test]
    fn a_file_goes_past_the_page_cache_from_so_many_bytes_on_where_that_can_be_done() {
        let folder = here();
        let can = set_direct(&File::create(folder.path().join("other")).unwrap(), true).is_ok();
        let mut writing = create(&folder.path().join("file"), &Buffers::default());
        let is_direct = |writing: &NewFile| rustix::fs::fcntl_getfl(&writing.file).unwrap().contains(OFlags::DIRECT);
        writing.write(&vec![1; LARGE_BYTES as usize - 1]).unwrap();
        assert!(!is_direct(&writing));
        writing.write(&[1]).unwrap();
        assert_eq!(is_direct(&writing), can);
        // Whole blocks were written, and nothing was refused.
        writing.write(&vec![1; 2 * BUFFER_BYTES]).unwrap();
        assert_eq!(is_direct(&writing), can);
    }

    #[test]
    fn a_refused_direct_write_goes_through_the_page_cache() {
        let folder = here();
        let path = folder.path().join("file");
        let buffers = Buffers::default();
        // No address that a disk takes.
        let writing = begun_large(create(&path, &buffers), |buffer, _| {
            buffer.start = (buffer.start + 1) % BLOCK_BYTES;
        });
        let expected = written(writing, &[Step::Write(3 * BUFFER_BYTES + 5)]);
        assert_eq!(buffers.spare().len(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn a_hole_takes_no_space() {
        let folder = here();
        let path = folder.path().join("file");
        let mut writing = create(&path, &Buffers::default());
        writing.write(&content(0, 10)).unwrap();
        writing.skip(1 << 30).unwrap();
        writing.write(&content(0, 10)).unwrap();
        writing.skip(1 << 20).unwrap();
        let facts = rustix::fs::fstat(writing.finish().unwrap()).unwrap();
        assert_eq!(facts.st_size, 20 + (1 << 30) + (1 << 20));
        assert!(facts.st_blocks * 512 < 1 << 20, "{}", facts.st_blocks);
    }

    #[test]
    fn an_impossible_length_and_a_full_disk_are_errors() {
        for bytes in [100, 2 * BUFFER_BYTES] {
            let folder = here();
            let mut writing = create(&folder.path().join("file"), &Buffers::default());
            writing.skip(u64::MAX).unwrap();
            let error = writing.skip(1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let full = File::options().write(true).open("/dev/full").unwrap();
            let mut writing = NewFile::begin(full, &Buffers::default());
            let error = writing
                .write(&vec![1; bytes])
                .and_then(|()| writing.finish().map(drop))
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }
}
