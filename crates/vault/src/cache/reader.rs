//! Reading a cache file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use strongroom_proto::{ChunkId, VaultId};

use super::directory::Directory;
use super::record::{CachedFile, Fields, chunks_of};
use super::{BLOCK_BYTES, BLOCK_MAX_BYTES, FILE_ID_BYTES, MAC_BYTES, Seal};
use crate::keys::WriterKey;

/// Reads a cache file, along with a walk or in any order.
pub(crate) struct CacheReader {
    file: BufReader<File>,
    seal: Seal,
    /// The records of the block read last that the walk has not come to.
    waiting: VecDeque<(Vec<u8>, CachedFile)>,
    /// The chunks of the blocks read since they were last taken.
    chunks_ahead: Vec<ChunkId>,
    /// Made when it is first needed.
    directory: Option<Directory>,
}

impl CacheReader {
    /// Opens a cache of this vault and key; `None` where there is none that can be used.
    pub(crate) fn open(path: &Path, vault: VaultId, writer_key: &WriterKey) -> Option<Self> {
        let mut file = match File::open(path) {
            Ok(file) => BufReader::with_capacity(BLOCK_BYTES, file),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the file cache cannot be read; every file is read again");
                }
                return None;
            }
        };
        let seal = Seal::new(vault, writer_key);
        let mut header = vec![0; seal.header.len()];
        let mut file_id = [0; FILE_ID_BYTES];
        let read = file
            .read_exact(&mut header)
            .and_then(|()| file.read_exact(&mut file_id));
        if read.is_err() || header != seal.header {
            tracing::info!(path = %path.display(), "the file cache is of another vault, key or version; every file is read again");
            return None;
        }
        Some(Self {
            file,
            seal: seal.of_file(file_id),
            waiting: VecDeque::new(),
            chunks_ahead: Vec::new(),
            directory: None,
        })
    }

    /// What is known of this path, in whatever order paths are asked for.
    pub(crate) fn find_anywhere(&mut self, path: &[u8]) -> Option<CachedFile> {
        let found = self.directory()?.find(path);
        let chunks = self.directory()?.take_chunks();
        self.chunks_ahead.extend(chunks);
        found
    }

    /// The note that was left.
    pub(crate) fn note(&mut self) -> Option<Vec<u8>> {
        self.directory()?.note()
    }

    fn directory(&mut self) -> Option<&mut Directory> {
        if self.directory.is_none() {
            let made = Directory::read(self.file.get_ref(), &self.seal);
            let noted = made.inspect_err(|error| {
                tracing::warn!(%error, "the file cache cannot be read; every file is read again");
            });
            self.directory = noted.ok();
        }
        self.directory.as_mut()
    }

    /// What is known of this path. Paths have to be asked for in the order of the walk.
    pub(crate) fn find(&mut self, path: &[u8]) -> Option<CachedFile> {
        loop {
            if self.waiting.is_empty() {
                self.read_block();
            }
            let (found, _) = self.waiting.front()?;
            match walk_order(found, path) {
                std::cmp::Ordering::Less => self.waiting.pop_front(),
                std::cmp::Ordering::Equal => return self.waiting.pop_front().map(|(_, file)| file),
                std::cmp::Ordering::Greater => return None,
            };
        }
    }

    /// The chunks of files that the walk has not come to yet, each block's once, when its first file was looked at: so
    /// they can be looked up together.
    pub(crate) fn take_chunks_ahead(&mut self) -> Vec<ChunkId> {
        std::mem::take(&mut self.chunks_ahead)
    }

    fn read_block(&mut self) {
        let block = self.next_block().unwrap_or_else(|error| {
            tracing::warn!(%error, "the file cache is damaged from here on; the files after it are read again");
            Vec::new()
        });
        let records = || {
            std::iter::from_fn({
                let mut fields = Fields(&block);
                move || fields.record()
            })
        };
        self.waiting.extend(records());
        self.chunks_ahead
            .extend(chunks_of(self.waiting.iter().map(|(_, file)| file)));
    }

    /// Reads the next block, an empty one at the end.
    fn next_block(&mut self) -> io::Result<Vec<u8>> {
        let mut block = Vec::new();
        let mut length = [0; 4];
        if let Err(error) = self.file.read_exact(&mut length) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Ok(block),
                _ => Err(error),
            };
        }
        let length = u32::from_le_bytes(length) as usize;
        let mut mac = [0; MAC_BYTES];
        self.file.read_exact(&mut mac)?;
        if length <= BLOCK_MAX_BYTES {
            (&mut self.file).take(length as u64).read_to_end(&mut block)?;
        }
        if block.len() != length || self.seal.next_mac(&block) != blake3::Hash::from_bytes(mac) {
            // Nothing after it is in its place either.
            self.file = BufReader::with_capacity(1, File::open("/dev/null")?);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a block does not match its MAC",
            ));
        }
        Ok(block)
    }
}

/// The order in which a walk comes to paths: depth first, the names of a directory sorted by their bytes.
fn walk_order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_a_walk() {
        let walked = ["a", "a/b", "a/b/c", "a/b.c", "a-b", "a.b", "b"];
        // `a` and all below it come before `a-b`, although `-` and `.` sort before `/`.
        for (n, pair) in walked.windows(2).enumerate() {
            assert_eq!(
                walk_order(pair[0].as_bytes(), pair[1].as_bytes()),
                std::cmp::Ordering::Less,
                "{n}"
            );
        }
    }
}
