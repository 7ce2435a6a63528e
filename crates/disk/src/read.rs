//! Reading.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt as _;

use rustix::io::Errno;

use crate::buffers::{BLOCK_BYTES, BUFFER_BYTES, Buffers};
use crate::{LARGE_BYTES, set_direct};

/// A part of a large file that is shorter is read through the page cache.
const DIRECT_BYTES: u64 = 64 * 1024;

/// Reads a part of a file that is not read again soon, past the page cache where the file is large, and lends it to
/// `each` piece by piece until that breaks off. A part that goes beyond the file's end is as much shorter.
///
/// The file's flags are changed, so nobody else may read by this description of it meanwhile.
///
/// # Errors
///
/// Those of the disk.
pub fn read_once(
    file: &File,
    part: Range<u64>,
    buffers: &Buffers,
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    let is_large = part.end.saturating_sub(part.start) >= DIRECT_BYTES && file.metadata()?.len() >= LARGE_BYTES;
    let mut is_direct = is_large && set_direct(file, true).is_ok();
    let mut buffer = buffers.take();
    let mut at = part.start;
    let read = loop {
        let left = part.end.saturating_sub(at);
        if left == 0 {
            break Ok(());
        }
        // From where a block begins to where one ends.
        let lead = if is_direct {
            (at % BLOCK_BYTES as u64) as usize
        } else {
            0
        };
        let wanted = usize::try_from(left).map_or(BUFFER_BYTES - lead, |left| left.min(BUFFER_BYTES - lead));
        let asked = if is_direct {
            (lead + wanted).next_multiple_of(BLOCK_BYTES)
        } else {
            wanted
        };
        let window = buffer.window().get_mut(..asked).unwrap_or_default();
        let read = match file.read_at(window, at - lead as u64) {
            Ok(read) => read.saturating_sub(lead).min(wanted),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The file system takes the flag and not the read, e.g. because its blocks are larger.
            Err(error) if is_direct && Errno::from_io_error(&error) == Some(Errno::INVAL) => 0,
            Err(error) => break Err(error),
        };
        if read == 0 {
            if !is_direct {
                break Ok(());
            }
            // Nor does every file system read the end of a file so.
            is_direct = false;
            if let Err(error) = set_direct(file, false) {
                break Err(error);
            }
            continue;
        }
        at += read as u64;
        if each(window.get(lead..lead + read).unwrap_or_default()).is_break() {
            break Ok(());
        }
    };
    buffers.put_back(buffer);
    read
}

/// The same as one piece of memory.
///
/// # Errors
///
/// As of [`read_once`].
pub fn read_part(file: &File, part: Range<u64>, buffers: &Buffers) -> io::Result<Vec<u8>> {
    let length = part.end.saturating_sub(part.start);
    let mut bytes = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
    read_once(file, part, buffers, |piece| {
        bytes.extend_from_slice(piece);
        ControlFlow::Continue(())
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rustix::fs::OFlags;

    use super::*;

    #[test]
    fn a_part_is_read_up_to_the_end_of_the_file() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let buffers = Buffers::default();
        for length in [
            100_000,
            LARGE_BYTES as usize,
            2 * BUFFER_BYTES,
            2 * BUFFER_BYTES + 1_234,
        ] {
            let path = folder.path().join(length.to_string());
            let whole: Vec<u8> = (0..length)
                .map(|number| ((number * 31 + number / 251) % 256) as u8)
                .collect();
            std::fs::write(&path, &whole).unwrap();
            for from in [0, 1, 4_095, 4_096, length - 1, length, length + 1, length + 5_000] {
                for to in [
                    from,
                    from + 1,
                    from + 70_000,
                    length.max(from),
                    length + 1,
                    length + 10_000,
                ] {
                    let file = File::open(&path).unwrap();
                    let part = whole
                        .get(from.min(length)..to.min(length).max(from.min(length)))
                        .unwrap();
                    // A part that ends before it begins is an empty one.
                    let read = read_part(&file, from as u64..to as u64, &buffers).unwrap();
                    assert!(read == part, "{length}: {from} to {to}");
                }
            }
        }
        assert_eq!(buffers.spare().len(), 1);
    }

    #[test]
    fn a_large_part_of_a_large_file_is_read_past_the_page_cache_where_that_can_be_done() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; LARGE_BYTES as usize]).unwrap();
        let can = set_direct(&File::open(&path).unwrap(), true).is_ok();
        for (bytes, is_large) in [(DIRECT_BYTES - 1, false), (DIRECT_BYTES, true)] {
            let file = File::open(&path).unwrap();
            read_part(&file, 5..5 + bytes, &Buffers::default()).unwrap();
            let flags = rustix::fs::fcntl_getfl(&file).unwrap();
            assert_eq!(flags.contains(OFlags::DIRECT), can && is_large);
        }
        // Nor is a file that is not large.
        std::fs::write(&path, vec![1; LARGE_BYTES as usize - 1]).unwrap();
        let file = File::open(&path).unwrap();
        read_part(&file, 0..LARGE_BYTES, &Buffers::default()).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
    }

    #[test]
    fn a_refused_direct_read_goes_through_the_page_cache() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("file");
        let whole: Vec<u8> = (0..2 * LARGE_BYTES).map(|number| (number % 251) as u8).collect();
        std::fs::write(&path, &whole).unwrap();
        let buffers = Buffers::default();
        // No address that a disk takes.
        let mut buffer = buffers.take();
        buffer.start = (buffer.start + 1) % BLOCK_BYTES;
        buffers.put_back(buffer);
        let file = File::open(&path).unwrap();
        assert!(read_part(&file, 7..2 * LARGE_BYTES, &buffers).unwrap() == whole.get(7..).unwrap());
        assert!(!rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
    }

    #[test]
    fn reading_ends_where_its_reader_breaks_off_and_where_the_disk_fails() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 3 * BUFFER_BYTES]).unwrap();
        let mut pieces = 0;
        let file = File::open(&path).unwrap();
        read_once(&file, 0..u64::MAX, &Buffers::default(), |_| {
            pieces += 1;
            if pieces == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
        assert_eq!(pieces, 2);
        let not_readable = File::options().write(true).open(&path).unwrap();
        assert!(read_part(&not_readable, 0..LARGE_BYTES, &Buffers::default()).is_err());
    }
}
