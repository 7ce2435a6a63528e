//! Packs being filled: zstd frames one after the other, sealed as they come, digested as they are sealed.

use std::io::{self, Write};

use ring::digest;
use strongroom_proto::{ChunkId, Sha256Digest};

use crate::keys::{self, Recipient};
use crate::store::finished;

/// A pack is closed before it would become larger than this, sealed.
pub const PACK_BYTES: usize = 32 * 1024 * 1024;
/// A pack of tiny chunks is closed at this many, so that its part of an index stays small.
const PACK_CHUNKS: usize = 50_000;
/// age adds a tag of 16 bytes to each 64 KiB, and a header of about 200 bytes a recipient.
const SEAL_SLACK_BYTES: usize = 64 * 1024;

/// Where one chunk lies in a pack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedChunk {
    pub(crate) chunk: ChunkId,
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) raw_bytes: u32,
}

/// A pack that is full and sealed.
pub(crate) struct FullPack {
    pub(crate) digest: Sha256Digest,
    pub(crate) sealed: Vec<u8>,
    pub(crate) chunks: Vec<PackedChunk>,
}

/// A pack that is being filled.
pub(crate) struct PackBuilder {
    writer: age::stream::StreamWriter<Digesting>,
    chunks: Vec<PackedChunk>,
    plain_bytes: u64,
}

impl PackBuilder {
    /// Begins a pack in this buffer, whose content is let go.
    pub(crate) fn begin(recipients: &[Recipient], mut buffer: Vec<u8>) -> io::Result<Self> {
        buffer.clear();
        let writer = keys::seal(
            recipients,
            Digesting {
                sealed: buffer,
                context: digest::Context::new(&digest::SHA256),
            },
        )?;
        Ok(Self {
            writer,
            chunks: Vec::new(),
            plain_bytes: 0,
        })
    }

    /// Whether the pack should be closed before a frame of this size.
    pub(crate) fn is_full_for(&self, frame_bytes: usize) -> bool {
        let sealed_bytes = self.plain_bytes as usize + self.plain_bytes as usize / 4096 + SEAL_SLACK_BYTES;
        !self.chunks.is_empty() && (sealed_bytes + frame_bytes > PACK_BYTES || self.chunks.len() >= PACK_CHUNKS)
    }

    pub(crate) fn append(&mut self, chunk: ChunkId, raw_bytes: u32, frame: &[u8]) -> io::Result<()> {
        self.writer.write_all(frame)?;
        self.chunks.push(PackedChunk {
            chunk,
            offset: self.plain_bytes,
            stored_bytes: u32::try_from(frame.len()).map_err(io::Error::other)?,
            raw_bytes,
        });
        self.plain_bytes += frame.len() as u64;
        Ok(())
    }

    pub(crate) fn finish(self) -> io::Result<FullPack> {
        let Digesting { sealed, context } = self.writer.finish()?;
        Ok(FullPack {
            digest: finished(context),
            sealed,
            chunks: self.chunks,
        })
    }
}

struct Digesting {
    sealed: Vec<u8>,
    context: digest::Context,
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.context.update(bytes);
        self.sealed.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
