//! Which chunks a vault holds, and where.
//!
//! An index object is one zstd frame of JSON lines, the keys it goes with and then one line a chunk, and a skippable
//! frame with a MAC over the first; it is named by the SHA-256 of all its bytes. It is stored after its packs are
//! durable, so a chunk that it lists is in the vault. [`ChunkIndex`] is what a writer deduplicates against: the chunks
//! of all index objects that were made with its writer key.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use strongroom_proto::{ChunkId, Sha256Digest, VaultId};

use crate::chunker::CHUNK_MAX_BYTES;
use crate::codec;
use crate::error::ReadError;
use crate::keys::{MacKey, WriterKey};
use crate::layout;
use crate::pipeline::StoredPack;
use crate::store::{Store, sha256};
use crate::vault::Vault;

/// An index object is closed with the pack that brings it over this many lines.
const INDEX_LINES: usize = 200_000;
/// A line is about 230 bytes.
const LINE_BYTES: u64 = 1024;
/// The longest frame zstd makes of the longest chunk, with room to spare.
const FRAME_STORED_MAX_BYTES: usize = CHUNK_MAX_BYTES + CHUNK_MAX_BYTES / 128 + 1024;
/// Index objects read at the same time.
const INDEX_READS: usize = 4;
/// Listing may take this share of a process's time: one listing of d seconds in 20 d.
const LISTING_SHARE: u32 = 20;

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
        for chunk in &pack.chunks {
            let line = IndexLine {
                chunk: chunk.chunk,
                pack: pack.digest,
                offset: chunk.offset,
                stored: chunk.stored_bytes,
                raw: chunk.raw_bytes,
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
        while let Some(line) = next_line::<IndexLine>(&mut self.lines, &self.object)? {
            if line.raw as usize > CHUNK_MAX_BYTES || line.stored as usize > FRAME_STORED_MAX_BYTES {
                return Err(ReadError::Damaged {
                    object: self.object,
                    problem: "a chunk is larger than any may be",
                });
            }
            each(line);
        }
        Ok(())
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

/// The chunks of a vault that a writer need not store again; shared by all jobs of a process.
///
/// About 50 bytes of memory a chunk.
pub struct ChunkIndex {
    vault: VaultId,
    store: Store,
    writer_key: String,
    macs: MacKey,
    held: RwLock<Held>,
    listed: tokio::sync::Mutex<Option<Listed>>,
}

#[derive(Default)]
struct Held {
    chunks: HashMap<ChunkId, u32, BuildHasherDefault<ChunkIdHasher>>,
    packs: Vec<(Sha256Digest, u32)>,
    objects: Vec<Sha256Digest>,
    object_set: HashSet<Sha256Digest>,
}

struct Listed {
    at: Instant,
    took: Duration,
}

impl std::fmt::Debug for ChunkIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkIndex")
            .field("chunks", &self.held().chunks.len())
            .finish_non_exhaustive()
    }
}

impl ChunkIndex {
    /// An index that knows nothing yet; [`refresh`](Self::refresh) fills it.
    pub fn new(vault: &Vault, writer_key: &WriterKey) -> Self {
        Self {
            vault: vault.id(),
            store: vault.store().clone(),
            writer_key: writer_key.key_id(),
            macs: writer_key.macs(),
            held: RwLock::default(),
            listed: tokio::sync::Mutex::new(None),
        }
    }

    /// How many chunks it knows.
    pub fn chunks(&self) -> usize {
        self.held().chunks.len()
    }

    /// Reads the index objects that appeared since the last call.
    ///
    /// Calls that follow one another closely are answered from what is known: to know a chunk late costs some space,
    /// never correctness, and a listing grows with the vault. What this process stored itself is known at once.
    pub async fn refresh(&self) -> Result<(), ReadError> {
        let mut listed = self.listed.lock().await;
        if let Some(last) = &*listed
            && last.at.elapsed() < last.took * LISTING_SHARE
        {
            return Ok(());
        }
        let began = Instant::now();
        let paths = self
            .store
            .list(layout::INDEX_FOLDER)
            .await
            .map_err(|source| ReadError::store("list the vault's index", source))?;
        let took = began.elapsed();
        let unseen: Vec<Sha256Digest> = {
            let held = self.held();
            paths
                .iter()
                .filter_map(|path| path.rsplit('/').next()?.parse().ok())
                .filter(|digest| !held.object_set.contains(digest))
                .collect()
        };
        futures::stream::iter(unseen)
            .map(|digest| async move { Ok((digest, get(&self.store, &digest).await?)) })
            .buffer_unordered(INDEX_READS)
            .try_for_each(|(digest, bytes)| {
                let added = self.add_object(digest, &bytes);
                std::future::ready(added)
            })
            .await?;
        *listed = Some(Listed { at: began, took });
        Ok(())
    }

    fn add_object(&self, digest: Sha256Digest, bytes: &[u8]) -> Result<(), ReadError> {
        // Whole or not at all: a damaged object adds nothing.
        let mut lines = Vec::new();
        let mut packs: Vec<Sha256Digest> = Vec::new();
        let body = IndexBody::open(&digest, bytes)?;
        if body.keys.writer_key != self.writer_key {
            // Of another time: its chunk ids are not ours.
            self.add(digest, &[], std::iter::empty());
            return Ok(());
        }
        body.for_each(&self.macs, |line| {
            if packs.last() != Some(&line.pack) {
                packs.push(line.pack);
            }
            lines.push((line.chunk, packs.len() - 1));
        })?;
        self.add(digest, &packs, lines.into_iter());
        Ok(())
    }

    /// Adds what this process has stored, without reading it back.
    pub(crate) fn add_stored(&self, object: &IndexObject, packs: &[StoredPack]) {
        let digests: Vec<Sha256Digest> = packs.iter().map(|pack| pack.digest).collect();
        let lines = packs
            .iter()
            .enumerate()
            .flat_map(|(number, pack)| pack.chunks.iter().map(move |chunk| (chunk.chunk, number)));
        self.add(object.digest, &digests, lines);
    }

    fn add(&self, object: Sha256Digest, packs: &[Sha256Digest], lines: impl Iterator<Item = (ChunkId, usize)>) {
        let mut held = self.held_mut();
        if !held.object_set.insert(object) {
            return;
        }
        let object_number = held.objects.len() as u32;
        held.objects.push(object);
        let first_pack = held.packs.len();
        held.packs.extend(packs.iter().map(|pack| (*pack, object_number)));
        for (chunk, pack) in lines {
            held.chunks.entry(chunk).or_insert((first_pack + pack) as u32);
        }
    }

    /// The number of a pack that holds the chunk.
    pub(crate) fn pack_of(&self, chunk: &ChunkId) -> Option<u32> {
        self.held().chunks.get(chunk).copied()
    }

    /// The pack with this number, and the index object that lists its chunks.
    pub(crate) fn pack(&self, number: u32) -> Option<(Sha256Digest, Sha256Digest)> {
        let held = self.held();
        let (pack, object) = held.packs.get(number as usize)?;
        Some((*pack, *held.objects.get(*object as usize)?))
    }

    pub(crate) fn is_of(&self, vault: &Vault) -> bool {
        self.vault == vault.id()
    }

    // Additions are whole before the lock is let go, so a panic elsewhere leaves nothing to fear.
    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
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

/// Chunk ids are uniformly random to whoever lacks the writer key; hashing them again would only cost time.
#[derive(Default)]
pub(crate) struct ChunkIdHasher(u64);

impl Hasher for ChunkIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}
