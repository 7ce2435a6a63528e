//! Packs being filled: zstd frames one after the other, laid where they will lie, then sealed and digested.

use std::io;

use strongroom_proto::{ChunkId, Sha256Digest};

use crate::age_file::{self, Unsealed};
use crate::keys::Recipient;
use crate::store::sha256;

/// A pack is closed before it would become larger than this, sealed.
pub const PACK_BYTES: usize = 32 * 1024 * 1024;
/// A pack of tiny chunks is closed at this many, so that its part of an index stays small.
const PACK_CHUNKS: usize = 50_000;

/// Where one chunk lies in a pack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedChunk {
    pub(crate) chunk: ChunkId,
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) raw_bytes: u32,
}

/// A pack that is sealed.
pub(crate) struct SealedPack {
    pub(crate) digest: Sha256Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) chunks: Vec<PackedChunk>,
}

/// A pack that is being filled, or full and not yet sealed.
pub(crate) struct PackBuilder {
    file: Unsealed,
    chunks: Vec<PackedChunk>,
    plain_bytes: u64,
}

impl PackBuilder {
    /// Begins a pack in this buffer, whose content is let go.
    pub(crate) fn begin(recipients: &[Recipient], buffer: Vec<u8>) -> io::Result<Self> {
        Ok(Self {
            file: age_file::begin(recipients, buffer)?,
            chunks: Vec::new(),
            plain_bytes: 0,
        })
    }

    /// Whether the pack should be closed before a frame of this size.
    pub(crate) fn is_full_for(&self, frame_bytes: usize) -> bool {
        !self.chunks.is_empty()
            && (self.file.sealed_bytes_with(frame_bytes) > PACK_BYTES || self.chunks.len() >= PACK_CHUNKS)
    }

    pub(crate) fn append(&mut self, chunk: ChunkId, raw_bytes: u32, frame: &[u8]) -> io::Result<()> {
        self.file.append(frame);
        self.chunks.push(PackedChunk {
            chunk,
            offset: self.plain_bytes,
            stored_bytes: u32::try_from(frame.len()).map_err(io::Error::other)?,
            raw_bytes,
        });
        self.plain_bytes += frame.len() as u64;
        Ok(())
    }

    pub(crate) fn seal(self) -> io::Result<SealedPack> {
        let bytes = self.file.seal()?;
        Ok(SealedPack {
            digest: sha256(&bytes),
            bytes,
            chunks: self.chunks,
        })
    }
}
