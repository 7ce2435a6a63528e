//! Which chunks a vault holds, and where.
//!
//! An index object is one zstd frame of JSON lines, the keys it goes with and then one line a chunk, and a skippable
//! frame with a MAC over the first; it is named by the SHA-256 of all its bytes. It is stored after its packs are
//! durable, so a chunk that it lists is in the vault.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use strongroom_proto::{ChunkId, Sha256Digest};

use crate::chunker::CHUNK_MAX_BYTES;
use crate::codec;
use crate::error::ReadError;
use crate::keys::MacKey;
use crate::layout;
use crate::pack::PACK_BYTES;
use crate::pipeline::StoredPack;
use crate::store::{Store, sha256};

/// An index object is closed with the pack that brings it over this many lines.
const INDEX_LINES: usize = 200_000;
/// A line is about 230 bytes, the first of a pack 25 more.
const LINE_BYTES: u64 = 1024;
/// The longest frame zstd makes of the longest chunk, with room to spare.
const FRAME_STORED_MAX_BYTES: usize = CHUNK_MAX_BYTES + CHUNK_MAX_BYTES / 128 + 1024;

const SKIPPABLE_MAGIC: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();
const MAC_BYTES: usize = 32;
/// Magic number, length, MAC.
const MAC_FRAME_BYTES: usize = 4 + 4 + MAC_BYTES;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IndexLine {
    pub(crate) chunk: ChunkId,
    pub(crate) pack: Sha256Digest,
    pub(crate) offset: u64,
    pub(crate) stored: u32,
    pub(crate) raw: u32,
    /// The size of the pack as stored, which its first line tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pack_bytes: Option<u64>,
}

/// The first line of an index object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexHeader {
    pub(crate) index: IndexKeys,
}

/// The keys that an index object goes with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexKeys {
    /// The writer key that its chunk ids and its MAC are made with.
    pub(crate) writer_key: String,
    /// The generation of keys whose recipients its packs are sealed to.
    pub(crate) generation: u32,
}

/// An index object about to be stored.
pub(crate) struct IndexObject {
    pub(crate) digest: Sha256Digest,
    pub(crate) bytes: Bytes,
    /// Which of the packs it was made from, as a range.
    pub(crate) packs: std::ops::Range<usize>,
}

/// The index objects of these packs: as few as the limit on their lines allows, a pack never in two.
pub(crate) fn encode(packs: &[StoredPack], keys: &IndexKeys, key: &MacKey) -> io::Result<Vec<IndexObject>> {
    let mut objects = Vec::new();
    let mut header = serde_json::to_vec(&IndexHeader { index: keys.clone() })?;
    header.push(b'\n');
    let begin = || -> io::Result<_> {
        let mut frame = codec::document_encoder()?;
        frame.write_all(&header)?;
        Ok(frame)
    };
    let (mut frame, mut line_count, mut first) = (begin()?, 0, 0);
    for (number, pack) in packs.iter().enumerate() {
        let mut pack_bytes = Some(pack.sealed_bytes);
        for chunk in &pack.chunks {
            let line = IndexLine {
                chunk: chunk.chunk,
                pack: pack.digest,
                offset: chunk.offset,
                stored: chunk.stored_bytes,
                raw: chunk.raw_bytes,
                pack_bytes: pack_bytes.take(),
            };
            serde_json::to_writer(&mut frame, &line)?;
            frame.write_all(b"\n")?;
        }
        line_count += pack.chunks.len();
        if line_count >= INDEX_LINES || number + 1 == packs.len() {
            let mut bytes = std::mem::replace(&mut frame, begin()?).finish()?;
            let mac = key.mac(&bytes);
            bytes.extend_from_slice(&SKIPPABLE_MAGIC);
            bytes.extend_from_slice(&(MAC_BYTES as u32).to_le_bytes());
            bytes.extend_from_slice(mac.as_bytes());
            objects.push(IndexObject {
                digest: sha256(&bytes),
                bytes: bytes.into(),
                packs: first..number + 1,
            });
            (line_count, first) = (0, number + 1);
        }
    }
    Ok(objects)
}

/// An index object whose name is its digest, taken apart but not yet believed.
pub(crate) struct IndexBody<'a> {
    object: String,
    pub(crate) keys: IndexKeys,
    frame: &'a [u8],
    mac: [u8; MAC_BYTES],
    lines: BufReader<zstd::stream::read::Decoder<'a, &'a [u8]>>,
}

impl<'a> IndexBody<'a> {
    /// Takes the object apart.
    pub(crate) fn open(digest: &Sha256Digest, bytes: &'a [u8]) -> Result<Self, ReadError> {
        let object = layout::index(digest);
        let damaged = |problem| ReadError::Damaged {
            object: object.clone(),
            problem,
        };
        if sha256(bytes) != *digest {
            return Err(damaged("its SHA-256 is not its name"));
        }
        let (frame, mac_frame) = bytes
            .len()
            .checked_sub(MAC_FRAME_BYTES)
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or_else(|| damaged("it is too short"))?;
        let mac = mac_frame
            .strip_prefix(&SKIPPABLE_MAGIC)
            .and_then(|rest| rest.strip_prefix(&(MAC_BYTES as u32).to_le_bytes()))
            .and_then(|mac| <[u8; MAC_BYTES]>::try_from(mac).ok())
            .ok_or_else(|| damaged("it does not end with a MAC"))?;
        let decoder = zstd::stream::read::Decoder::with_buffer(frame)
            .map_err(|source| ReadError::malformed(&object, source))?
            .single_frame();
        let mut lines = BufReader::new(decoder);
        let header: IndexHeader =
            next_line(&mut lines, &object)?.ok_or_else(|| damaged("it says nothing of its keys"))?;
        Ok(Self {
            keys: header.index,
            object,
            frame,
            mac,
            lines,
        })
    }

    /// Calls `each` for every line, once the MAC holds.
    pub(crate) fn for_each(self, key: &MacKey, each: impl FnMut(IndexLine)) -> Result<(), ReadError> {
        // The comparison of `blake3::Hash` takes the same time wherever the bytes differ.
        if key.mac(self.frame) != blake3::Hash::from_bytes(self.mac) {
            return Err(ReadError::Damaged {
                object: self.object,
                problem: "its MAC was not made with this vault's writer key",
            });
        }
        self.for_each_unproven(each)
    }

    /// Calls `each` for every line, whoever wrote it.
    pub(crate) fn for_each_unproven(mut self, mut each: impl FnMut(IndexLine)) -> Result<(), ReadError> {
        let damaged = |problem| ReadError::Damaged {
            object: self.object.clone(),
            problem,
        };
        while let Some(line) = next_line::<IndexLine>(&mut self.lines, &self.object)? {
            if line.raw as usize > CHUNK_MAX_BYTES || line.stored as usize > FRAME_STORED_MAX_BYTES {
                return Err(damaged("a chunk is larger than any may be"));
            }
            if line.offset > PACK_BYTES as u64 {
                return Err(damaged("a chunk lies where no pack reaches"));
            }
            each(line);
        }
        // Others read what would follow.
        match self.lines.into_inner().finish().is_empty() {
            true => Ok(()),
            false => Err(damaged("it holds more than one frame")),
        }
    }
}

fn next_line<T: serde::de::DeserializeOwned>(lines: &mut impl BufRead, object: &str) -> Result<Option<T>, ReadError> {
    let mut line = Vec::new();
    let read = lines
        .take(LINE_BYTES)
        .read_until(b'\n', &mut line)
        .map_err(|source| ReadError::malformed(object, source))?;
    if read == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|source| ReadError::malformed(object, source))
}

/// An index object's bytes, not yet checked.
pub(crate) async fn get(store: &Store, digest: &Sha256Digest) -> Result<Bytes, ReadError> {
    let object = layout::index(digest);
    store
        .get(&object, layout::INDEX_OBJECT_BYTES)
        .await
        .map_err(|source| ReadError::store("read the vault's index", source))?
        .ok_or(ReadError::Missing { object })
}
