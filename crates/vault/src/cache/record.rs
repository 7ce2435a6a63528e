//! What is kept of a file, and how it lies in a cache file.

use strongroom_proto::manifest::FileVersion;
use strongroom_proto::{ChunkId, Sha256Digest};

use crate::blocks::BlockDigest;
use crate::manifest::{Extent, Part};

/// A file as the last backup stored it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CachedFile {
    pub(crate) version: FileVersion,
    /// The length of what was stored, holes included.
    pub(crate) bytes: u64,
    pub(crate) blake3: Sha256Digest,
    pub(crate) parts: Vec<Part>,
    /// Of a large file without holes.
    pub(crate) blocks: Option<Blocks>,
}

/// The digests of a file's blocks, the last of which may be short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) block_bytes: u32,
    pub(crate) digests: Vec<BlockDigest>,
    /// BLAKE3 of the first block alone, as the digest of a file that is cut off after it.
    pub(crate) first: Sha256Digest,
}

/// The chunks of these files, each once.
pub(super) fn chunks_of<'a>(files: impl Iterator<Item = &'a CachedFile>) -> Vec<ChunkId> {
    let mut chunks = Vec::new();
    let mut chunk_before = None;
    for part in files.flat_map(|file| &file.parts) {
        if let Part::Extent(extent) = part
            && chunk_before.replace(extent.chunk) != Some(extent.chunk)
        {
            chunks.push(extent.chunk);
        }
    }
    chunks.sort_unstable();
    chunks.dedup();
    chunks
}

pub(super) fn write_record(out: &mut Vec<u8>, path: &[u8], file: &CachedFile) {
    let CachedFile {
        version,
        bytes,
        blake3,
        parts,
        blocks,
    } = file;
    put_u32(out, path.len() as u32);
    out.extend_from_slice(path);
    for number in [version.device, version.inode, version.bytes] {
        put_u64(out, number);
    }
    for (seconds, nanoseconds) in [version.mtime, version.ctime] {
        put_u64(out, seconds as u64);
        put_u32(out, nanoseconds);
    }
    put_u64(out, *bytes);
    out.extend_from_slice(blake3.as_bytes());
    put_u32(out, parts.len() as u32);
    let mut chunk_before = None;
    for part in parts {
        match part {
            Part::Hole(hole) => {
                out.push(0);
                put_u64(out, *hole);
            }
            Part::Extent(extent) => {
                let again = chunk_before.replace(extent.chunk) == Some(extent.chunk);
                out.push(if again { 2 } else { 1 });
                if !again {
                    out.extend_from_slice(extent.chunk.as_bytes());
                }
                put_u32(out, extent.offset);
                put_u32(out, extent.bytes);
            }
        }
    }
    match blocks {
        None => put_u32(out, 0),
        Some(blocks) => {
            put_u32(out, blocks.block_bytes);
            put_u32(out, blocks.digests.len() as u32);
            out.extend(blocks.digests.iter().flatten());
            out.extend_from_slice(blocks.first.as_bytes());
        }
    }
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// The fields of a record that are not yet read.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<(i64, u32)> {
        Some((self.u64()? as i64, self.u32()?))
    }

    pub(super) fn record(&mut self) -> Option<(Vec<u8>, CachedFile)> {
        let path_bytes = self.u32()? as usize;
        let path = self.bytes(path_bytes)?.to_vec();
        let version = FileVersion {
            device: self.u64()?,
            inode: self.u64()?,
            bytes: self.u64()?,
            mtime: self.time()?,
            ctime: self.time()?,
        };
        let bytes = self.u64()?;
        let blake3 = Sha256Digest::from_bytes(self.array()?);
        let part_count = self.u32()? as usize;
        let mut parts = Vec::with_capacity(part_count.min(self.0.len() / 9));
        let mut chunk = None;
        for _ in 0..part_count {
            let kind = self.array::<1>()?;
            parts.push(match kind {
                [0] => Part::Hole(self.u64()?),
                [1] | [2] => {
                    if kind == [1] {
                        chunk = Some(ChunkId::from_bytes(self.array()?));
                    }
                    Part::Extent(Extent {
                        chunk: chunk?,
                        offset: self.u32()?,
                        bytes: self.u32()?,
                    })
                }
                _ => return None,
            });
        }
        let blocks = match self.u32()? {
            0 => None,
            block_bytes => {
                let count = self.u32()? as usize;
                let (digests, _) = self.bytes(count.checked_mul(size_of::<BlockDigest>())?)?.as_chunks();
                Some(Blocks {
                    block_bytes,
                    digests: digests.to_vec(),
                    first: Sha256Digest::from_bytes(self.array()?),
                })
            }
        };
        Some((
            path,
            CachedFile {
                version,
                bytes,
                blake3,
                parts,
                blocks,
            },
        ))
    }
}
