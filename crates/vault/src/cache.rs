//! What the last backup of a target stored for each file: a local file beside the writer, never in the vault.
//!
//! It lets a writer keep the extents of a file that has not changed without reading it, and of one that has changed
//! the blocks that are as they were. Losing it costs the reading of everything once; a damaged one is noticed, block by
//! block, by MACs under the writer key, and what it says is used only where the vault still holds the chunks.
//!
//! A header, then blocks: length, MAC, records. The header ends in random bytes and every MAC is over it, so that no
//! block of another file of the same key is believed. Records are in the order of the walk, depth first and sorted by
//! name, so that reading the old file and writing the new one go along with the walk and take no memory. Where entries
//! come in another order, [`directory`] says where the record of each lies. A note may follow the records.

mod directory;
mod reader;
mod record;
mod writer;

use strongroom_proto::VaultId;

use crate::keys::{MacKey, WriterKey};

pub(crate) use self::reader::CacheReader;
pub(crate) use self::record::{Blocks, CachedFile};
pub(crate) use self::writer::CacheWriter;

const MAGIC: &[u8; 24] = b"strongroom file cache 3\n";
/// A block is closed at this size; a single record may be longer.
const BLOCK_BYTES: usize = 256 * 1024;
/// Nothing longer is believed.
const BLOCK_MAX_BYTES: usize = 512 * 1024 * 1024;
const MAC_BYTES: usize = 32;
/// The random bytes that tell one cache file from another.
const FILE_ID_BYTES: usize = 16;
/// What a block that is a note begins with: no path is so long.
const NOTE: [u8; 4] = u32::MAX.to_le_bytes();

/// Keys and names the blocks of one cache file.
#[derive(Clone)]
struct Seal {
    key: [u8; 32],
    header: Vec<u8>,
    next_block: u64,
}

impl Seal {
    fn new(vault: VaultId, writer_key: &WriterKey) -> Self {
        let macs: MacKey = writer_key.macs();
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(vault.to_string().as_bytes());
        header.extend_from_slice(writer_key.key_id().as_bytes());
        Self {
            key: *macs.mac(b"file cache").as_bytes(),
            header,
            next_block: 0,
        }
    }

    /// Of this file alone.
    fn of_file(mut self, file_id: [u8; FILE_ID_BYTES]) -> Self {
        self.header.extend_from_slice(&file_id);
        self
    }

    fn next_mac(&mut self, records: &[u8]) -> blake3::Hash {
        let mac = self.mac(self.next_block, records);
        self.next_block += 1;
        mac
    }

    fn mac(&self, block: u64, records: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.header);
        hasher.update(&block.to_le_bytes());
        hasher.update(records);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use strongroom_proto::manifest::FileVersion;
    use strongroom_proto::{ChunkId, Sha256Digest};

    use super::*;
    use crate::manifest::{Extent, Part};

    pub(super) fn file(number: u8) -> CachedFile {
        let extent = |chunk, offset| {
            Part::Extent(Extent {
                chunk: ChunkId::from_bytes([chunk; 32]),
                offset,
                bytes: 10,
            })
        };
        CachedFile {
            version: FileVersion {
                device: 1,
                inode: u64::from(number),
                bytes: 30,
                mtime: (-5, 999_999_999),
                ctime: (i64::MAX, 0),
            },
            bytes: 30,
            blake3: Sha256Digest::from_bytes([number; 32]),
            parts: vec![
                extent(1, 0),
                extent(1, 20),
                Part::Hole(1 << 40),
                extent(2, 0),
                extent(1, 0),
            ],
            blocks: number.is_multiple_of(2).then(|| Blocks {
                block_bytes: 8192,
                digests: vec![[number; 32], [7; 32]],
                first: Sha256Digest::from_bytes([number; 32]),
            }),
        }
    }

    pub(super) fn write(path: &Path, vault: VaultId, key: &WriterKey, count: u32) {
        let mut writer = CacheWriter::create(path, vault, key);
        for number in 0..count {
            writer.put(format!("d/{number:06}").as_bytes(), &file(number as u8));
        }
        writer.finish(Some(vec![1; 1_000]));
    }

    /// Calls `check` with the file cut off, and with a bit flipped, at each of so many places.
    pub(super) fn for_each_damage(path: &Path, places: usize, mut check: impl FnMut()) {
        let whole = std::fs::read(path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / places) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            for damaged in [&flipped, &whole[..at]] {
                std::fs::write(path, damaged).unwrap();
                check();
            }
        }
    }

    #[test]
    fn records_come_back_in_order_and_only_those_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        assert!(CacheReader::open(&path, vault, &key).is_none());
        write(&path, vault, &key, 10_000);
        let mut reader = CacheReader::open(&path, vault, &key).unwrap();
        assert_eq!(reader.find(b"c"), None);
        for number in [0_u32, 1, 5, 4_000, 9_999] {
            assert_eq!(reader.find(format!("d/{number:06}x").as_bytes()), None);
            let asked = reader.find(format!("d/{:06}", number + 1).as_bytes());
            assert_eq!(asked, (number < 9_999).then(|| file((number + 1) as u8)), "{number}");
        }
        assert_eq!(reader.find(b"z"), None);
        assert!(CacheReader::open(&path, VaultId::fresh(), &key).is_none());
        assert!(CacheReader::open(&path, vault, &WriterKey::generate()).is_none());
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn any_damage_ends_what_is_believed_and_says_nothing_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        write(&path, vault, &key, 3_000);
        for_each_damage(&path, 97, || {
            let Some(mut reader) = CacheReader::open(&path, vault, &key) else {
                return;
            };
            for number in 0..3_000_u32 {
                if let Some(found) = reader.find(format!("d/{number:06}").as_bytes()) {
                    assert_eq!(found, file(number as u8));
                }
            }
        });
    }

    /// Where each block begins.
    fn blocks(bytes: &[u8], header_bytes: usize) -> Vec<std::ops::Range<usize>> {
        let mut blocks = Vec::new();
        let mut at = header_bytes;
        while at < bytes.len() {
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            blocks.push(at..at + 4 + MAC_BYTES + length);
            at = blocks.last().unwrap().end;
        }
        blocks
    }

    #[test]
    fn a_block_of_an_older_cache_of_the_same_target_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        write(&path, vault, &key, 3_000);
        let older = std::fs::read(&path).unwrap();
        write(&path, vault, &key, 3_000);
        let newer = std::fs::read(&path).unwrap();
        let header_bytes = Seal::new(vault, &key).header.len() + FILE_ID_BYTES;
        let blocks = blocks(&newer, header_bytes);
        assert!(blocks.len() > 3, "{blocks:?}");
        // The records are the same, and their blocks are not.
        assert_eq!(older.len(), newer.len());
        let second = blocks[1].clone();
        let spliced = [&newer[..second.start], &older[second.clone()], &newer[second.end..]].concat();
        std::fs::write(&path, spliced).unwrap();
        let open = || CacheReader::open(&path, vault, &key).unwrap();
        assert_eq!(open().find(b"d/000000"), Some(file(0)));
        assert_eq!(open().find_anywhere(b"d/000000"), Some(file(0)));
        assert_eq!(open().find(b"d/002999"), None);
        assert_eq!(open().find_anywhere(b"d/002999"), None);
        assert_eq!(open().note(), None);
        std::fs::write(&path, &newer).unwrap();
        assert_eq!(open().find(b"d/002999"), Some(file(2_999_u32 as u8)));
    }
}
