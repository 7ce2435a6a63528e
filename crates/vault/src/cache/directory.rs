//! Where the record of each file lies in a cache file, for entries that come in an order of their own.
//!
//! Reading it takes one pass over the file, which checks every MAC; what is held is about 100 bytes a file, and the
//! records of one block. A block is checked again whenever it is read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use strongroom_proto::ChunkId;

use super::record::{CachedFile, Fields, chunks_of};
use super::{BLOCK_MAX_BYTES, MAC_BYTES, NOTE, Seal};

/// What a block begins with: its length and its MAC.
const FRONT_BYTES: usize = 4 + MAC_BYTES;

pub(super) struct Directory {
    file: File,
    seal: Seal,
    /// Where each block begins.
    blocks: Vec<u64>,
    /// The number of the block that holds the record of a path.
    files: HashMap<Box<[u8]>, u32>,
    /// The records of the block read last that nobody has asked for.
    loaded: HashMap<Vec<u8>, CachedFile>,
    /// The chunks of the blocks read since they were last taken.
    chunks: Vec<ChunkId>,
    note: Option<u32>,
}

impl Directory {
    /// Reads where everything lies. What comes after a damaged block is not believed.
    pub(super) fn read(file: &File, seal: &Seal) -> io::Result<Self> {
        let mut directory = Self {
            file: file.try_clone()?,
            seal: seal.clone(),
            blocks: Vec::new(),
            files: HashMap::new(),
            loaded: HashMap::new(),
            chunks: Vec::new(),
            note: None,
        };
        let end = file.metadata()?.len();
        let mut place = seal.header.len() as u64;
        while place < end {
            let number = directory.blocks.len() as u32;
            let block = match directory.block_at(place, number) {
                Ok(block) => block,
                Err(error) => {
                    tracing::warn!(%error, "the file cache is damaged from here on; the files after it are read again");
                    break;
                }
            };
            directory.blocks.push(place);
            place += (FRONT_BYTES + block.len()) as u64;
            if block.starts_with(&NOTE) {
                directory.note = Some(number);
                continue;
            }
            let mut fields = Fields(&block);
            while let Some((path, _)) = fields.record() {
                directory.files.insert(path.into(), number);
            }
        }
        Ok(directory)
    }

    fn block_at(&self, place: u64, number: u32) -> io::Result<Vec<u8>> {
        let mut front = [0; FRONT_BYTES];
        self.file.read_exact_at(&mut front, place)?;
        let mut fields = Fields(&front);
        let (length, mac) = (fields.u32().unwrap_or(u32::MAX) as usize, fields.array());
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a block does not match its MAC");
        let left = self.file.metadata()?.len().saturating_sub(place);
        if length > BLOCK_MAX_BYTES || length as u64 > left {
            return Err(damaged());
        }
        let mut block = vec![0; length];
        self.file.read_exact_at(&mut block, place + FRONT_BYTES as u64)?;
        match mac {
            Some(mac) if self.seal.mac(u64::from(number), &block) == blake3::Hash::from_bytes(mac) => Ok(block),
            _ => Err(damaged()),
        }
    }

    fn block(&self, number: u32) -> Option<Vec<u8>> {
        let place = self.blocks.get(number as usize)?;
        let block = self.block_at(*place, number);
        let block = block.inspect_err(|error| {
            tracing::warn!(%error, "the file cache was damaged meanwhile; the files in it are read again");
        });
        block.ok()
    }

    /// What is known of this path.
    pub(super) fn find(&mut self, path: &[u8]) -> Option<CachedFile> {
        let number = *self.files.get(path)?;
        if !self.loaded.contains_key(path) {
            let block = self.block(number)?;
            let mut fields = Fields(&block);
            self.loaded = std::iter::from_fn(|| fields.record()).collect();
            self.chunks.extend(chunks_of(self.loaded.values()));
        }
        self.loaded.remove(path)
    }

    /// The chunks of the records that were read, each block's once.
    pub(super) fn take_chunks(&mut self) -> Vec<ChunkId> {
        std::mem::take(&mut self.chunks)
    }

    /// The note that was left.
    pub(super) fn note(&self) -> Option<Vec<u8>> {
        let mut block = self.block(self.note?)?;
        block.drain(..NOTE.len());
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use strongroom_proto::{ChunkId, VaultId};

    use super::super::CacheReader;
    use super::super::tests::{file, for_each_damage, write};
    use crate::keys::WriterKey;

    fn open(path: &Path, vault: VaultId, key: &WriterKey) -> Option<CacheReader> {
        CacheReader::open(path, vault, key)
    }

    #[test]
    fn records_are_found_in_any_order_and_as_often_as_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        write(&path, vault, &key, 5_000);
        let mut reader = open(&path, vault, &key).unwrap();
        assert_eq!(reader.take_chunks_ahead(), []);
        for number in [4_999_u32, 0, 0, 2_500, 2_499, 17, 4_998] {
            let found = reader.find_anywhere(format!("d/{number:06}").as_bytes());
            assert_eq!(found, Some(file(number as u8)), "{number}");
        }
        let chunks = reader.take_chunks_ahead();
        assert!(
            [1, 2]
                .iter()
                .all(|chunk| chunks.contains(&ChunkId::from_bytes([*chunk; 32])))
        );
        assert_eq!(reader.find_anywhere(b"d/005000"), None);
        assert_eq!(reader.note(), Some(vec![1; 1_000]));
        // A walk through the same file goes on beside it.
        assert_eq!(reader.find(b"d/000003"), Some(file(3)));
        assert_eq!(reader.find_anywhere(b"d/000003"), Some(file(3)));
        assert_eq!(reader.find(b"z"), None);
    }

    #[test]
    fn any_damage_ends_what_is_believed_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        write(&path, vault, &key, 3_000);
        for_each_damage(&path, 61, || {
            let Some(mut reader) = open(&path, vault, &key) else {
                return;
            };
            for number in (0..3_000_u32).rev().step_by(7) {
                if let Some(found) = reader.find_anywhere(format!("d/{number:06}").as_bytes()) {
                    assert_eq!(found, file(number as u8));
                }
            }
            if let Some(note) = reader.note() {
                assert_eq!(note, vec![1; 1_000]);
            }
        });
    }
}
