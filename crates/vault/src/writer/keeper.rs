//! Deciding for each chunk whether the vault has it, and the objects that are stored when all chunks are handed in.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use bytes::Bytes;
use strongroom_proto::receipt::{Artifact, Totals};
use strongroom_proto::{Attempt, BackupId, ChunkId, Sha256Digest};
use tokio::runtime::Handle;

use super::Sealed;
use super::reused::ReusedPacks;
use crate::chunk_index::{ChunkIdHasher, ChunkIndex};
use crate::error::{StoreError, WriteError};
use crate::index::{self, IndexKeys};
use crate::keys::{ChunkIdKey, MacKey};
use crate::layout;
use crate::manifest::{Needed, Part, Root};
use crate::pipeline::{Pipeline, StoredPack};
use crate::store::sha256;
use crate::vault::Vault;

/// With so much in packs that no index lists, their part of the index is stored.
pub(super) const UNLISTED_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// With so many chunks in them, too.
pub(super) const UNLISTED_CHUNKS: usize = 100_000;
/// How many new chunks come between two looks at that.
const LISTING_STEP_CHUNKS: usize = 64;
/// Chunks that are looked up together.
const LOOK_UP_CHUNKS: usize = 8;
/// With so much content in them they are not waited for.
const LOOK_UP_BYTES: usize = 8 * 1024 * 1024;
/// Chunks of unchanged files, which are known by their ids, that are looked up together.
const LOOK_UP_IDS: usize = 1000;

/// Decides for each chunk whether the vault has it, and sees to it that it does.
pub(super) struct Keeper {
    pub(super) vault: Vault,
    pub(super) runtime: Handle,
    pub(super) backup_id: BackupId,
    pub(super) attempt: Attempt,
    pub(super) keys: IndexKeys,
    pub(super) ids: ChunkIdKey,
    pub(super) macs: MacKey,
    pub(super) index: Arc<ChunkIndex>,
    /// The chunks that this writer has been given and no index lists yet.
    pub(super) stored: HashSet<ChunkId, ById>,
    /// The packs of the chunks that were looked up and found, as numbers of `reused`.
    pub(super) known: HashMap<ChunkId, u32, ById>,
    pub(super) reused: ReusedPacks,
    /// Chunks that nobody has looked up yet.
    pub(super) unsettled: Vec<(ChunkId, Vec<u8>, Counted)>,
    pub(super) unsettled_bytes: usize,
    pub(super) pipeline: Pipeline,
    /// Packs that are stored and that no index lists yet.
    pub(super) unlisted: Vec<StoredPack>,
    pub(super) unlisted_limit_bytes: u64,
    pub(super) unlisted_limit_chunks: usize,
    /// How many chunks were handed to the pipeline.
    pub(super) submitted: usize,
    /// What the backup needs, so far.
    pub(super) needed: Needed,
    pub(super) totals: Totals,
}

pub(super) type ById = BuildHasherDefault<ChunkIdHasher>;

/// Whether a chunk counts in the totals; the entry list is no content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    Content,
    EntryList,
}

impl Keeper {
    pub(super) fn keep(&mut self, raw: &[u8], counted: Counted) -> Result<ChunkId, WriteError> {
        let chunk = self.ids.id(raw);
        if counted == Counted::Content {
            self.totals.chunks += 1;
        }
        if self.stored.contains(&chunk) {
            return Ok(chunk);
        }
        if let Some(pack) = self.known.get(&chunk) {
            self.reused.need(*pack);
            return Ok(chunk);
        }
        let mut content = self.pipeline.buffer();
        content.extend_from_slice(raw);
        self.unsettled.push((chunk, content, counted));
        self.unsettled_bytes += raw.len();
        self.stored.insert(chunk);
        if self.unsettled.len() >= LOOK_UP_CHUNKS || self.unsettled_bytes >= LOOK_UP_BYTES {
            self.settle()?;
        }
        Ok(chunk)
    }

    /// Looks up the chunks that wait for it, and stores those that the vault lacks.
    fn settle(&mut self) -> Result<(), WriteError> {
        let unsettled = std::mem::take(&mut self.unsettled);
        self.unsettled_bytes = 0;
        let ids: Vec<ChunkId> = unsettled.iter().map(|(chunk, ..)| *chunk).collect();
        self.learn(&ids)?;
        for (chunk, content, counted) in unsettled {
            if let Some(pack) = self.known.get(&chunk) {
                self.reused.need(*pack);
                self.stored.remove(&chunk);
                continue;
            }
            if counted == Counted::Content {
                self.totals.new_chunks += 1;
                self.totals.new_content_bytes += content.len() as u64;
            }
            self.pipeline.submit(chunk, content)?;
            self.submitted += 1;
            if self.submitted.is_multiple_of(LISTING_STEP_CHUNKS) {
                self.store_index_if_large()?;
            }
        }
        Ok(())
    }

    /// Looks up chunks, those of them that nothing is known of. One that lies only in packs that are gone or cut short
    /// counts as one that the vault lacks.
    pub(super) fn learn(&mut self, chunks: &[ChunkId]) -> Result<(), WriteError> {
        let unknown: Vec<ChunkId> = chunks
            .iter()
            .filter(|chunk| !self.known.contains_key(*chunk))
            .copied()
            .collect();
        for batch in unknown.chunks(LOOK_UP_IDS) {
            let mut wanted = batch.to_vec();
            while !wanted.is_empty() {
                wanted = self.learn_once(&wanted)?;
            }
        }
        Ok(())
    }

    /// Looks up chunks once; those that were found in a pack that turned out to be of no use, so that another may hold
    /// them.
    fn learn_once(&mut self, wanted: &[ChunkId]) -> Result<Vec<ChunkId>, WriteError> {
        let found = self
            .runtime
            .block_on(self.index.look_up(wanted, self.reused.of_no_use()));
        let found = found.map_err(|source| WriteError::Vault { source })?;
        let looked_at = self.reused.look_at(self.vault.store(), found.iter().flatten());
        let lost = self.runtime.block_on(looked_at)?;
        let mut again = Vec::new();
        for (chunk, place) in wanted.iter().zip(found) {
            let Some(place) = place else { continue };
            match self.reused.number(&place.pack) {
                Some(number) => {
                    self.known.insert(*chunk, number);
                }
                None if lost.contains(&place.pack) => again.push(*chunk),
                None => {}
            }
        }
        Ok(again)
    }

    /// Whether the vault has all chunks of these parts, as far as was looked up.
    pub(super) fn has_all(&self, parts: &[Part]) -> bool {
        let mut before = None;
        parts.iter().all(|part| match part {
            Part::Extent(extent) => {
                before.replace(extent.chunk) == Some(extent.chunk) || self.known.contains_key(&extent.chunk)
            }
            Part::Hole(_) => true,
        })
    }

    /// Notes that the backup needs these parts, which the vault has.
    pub(super) fn reuse(&mut self, parts: &[Part]) {
        let mut before = None;
        for part in parts {
            if let Part::Extent(extent) = part
                && before.replace(extent.chunk) != Some(extent.chunk)
                && let Some(pack) = self.known.get(&extent.chunk)
            {
                self.reused.need(*pack);
                self.totals.chunks += 1;
            }
        }
    }

    fn store_index_if_large(&mut self) -> Result<(), WriteError> {
        self.unlisted.extend(self.pipeline.take_stored());
        let bytes: u64 = self.unlisted.iter().map(|pack| pack.sealed_bytes).sum();
        let chunks: usize = self.unlisted.iter().map(|pack| pack.chunks.len()).sum();
        if bytes >= self.unlisted_limit_bytes || chunks >= self.unlisted_limit_chunks {
            self.runtime.clone().block_on(self.store_index())?;
        }
        Ok(())
    }

    /// Makes the packs stored so far durable and lists their chunks in the vault's index.
    async fn store_index(&mut self) -> Result<(), WriteError> {
        let packs = std::mem::take(&mut self.unlisted);
        if packs.is_empty() {
            return Ok(());
        }
        let barrier = self.vault.store().barrier().await;
        barrier.map_err(failed("make the packs durable"))?;
        let objects = index::encode(&packs, &self.keys, &self.macs).map_err(|source| WriteError::Seal {
            object: "the index",
            source,
        })?;
        for pack in &packs {
            self.needed.add(layout::pack(&pack.digest), pack.digest);
            self.totals.stored_bytes += pack.sealed_bytes;
        }
        for object in &objects {
            let name = layout::index(&object.digest);
            self.put(&name, object.bytes.clone(), "store the index").await?;
            self.needed.add(name, object.digest);
        }
        // What a table is told stays there: not before a power failure can no longer take it back.
        let barrier = self.vault.store().barrier().await;
        barrier.map_err(failed("make the index durable"))?;
        for object in &objects {
            let listed = packs.get(object.packs.clone()).unwrap_or_default();
            let added = self.index.add_stored(object, listed).await;
            added.map_err(|source| WriteError::Vault { source })?;
            for pack in listed {
                self.reused.trust(pack.digest, object.digest);
            }
        }
        for chunk in packs.iter().flat_map(|pack| &pack.chunks) {
            self.stored.remove(&chunk.chunk);
        }
        Ok(())
    }

    /// Stores what is stored when all chunks are handed in.
    pub(super) fn close(mut self, root: &Root) -> Result<Sealed, WriteError> {
        self.settle()?;
        self.unlisted.extend(self.pipeline.finish()?);
        let runtime = self.runtime.clone();
        runtime.block_on(self.store_documents(root))
    }

    async fn store_documents(&mut self, root: &Root) -> Result<Sealed, WriteError> {
        self.store_index().await?;
        let earlier: HashSet<Sha256Digest> = self.reused.needed().map(|pack| pack.index_object).collect();
        for object in &earlier {
            let holds = self.index.still_holds(object).await;
            if !holds.map_err(|source| WriteError::Vault { source })? {
                return Err(WriteError::IndexGone {
                    object: layout::index(object),
                });
            }
        }
        for pack in self.reused.needed() {
            self.needed.add(layout::pack(&pack.pack), pack.pack);
            self.needed.add(layout::index(&pack.index_object), pack.index_object);
        }
        let manifest = root.seal(self.vault.sealed_to()).map_err(|source| WriteError::Seal {
            object: "the manifest",
            source,
        })?;
        let manifest_name = layout::manifest(&self.backup_id, self.attempt);
        self.needed.add(manifest_name.clone(), sha256(&manifest));
        let list = self.needed.encode();
        for (object, bytes) in [("manifest", manifest.len()), ("list of packs", list.len())] {
            if bytes as u64 > layout::MANIFEST_BYTES {
                return Err(WriteError::TooLarge {
                    object,
                    bytes: bytes as u64,
                    limit_bytes: layout::MANIFEST_BYTES,
                });
            }
        }
        let list_name = layout::packs_list(&self.backup_id, self.attempt);
        let artifacts = vec![
            self.put(&manifest_name, manifest, "store the manifest").await?,
            self.put(&list_name, list, "store the list of packs").await?,
        ];
        Ok(Sealed {
            artifacts,
            totals: self.totals,
            fragmented_entries: 0,
        })
    }

    async fn put(&mut self, object: &str, bytes: Bytes, doing: &'static str) -> Result<Artifact, WriteError> {
        let artifact = Artifact {
            uri: format!("{}/{object}", self.vault.url()),
            sha256: sha256(&bytes),
            bytes: bytes.len() as u64,
        };
        self.totals.stored_bytes += artifact.bytes;
        self.vault.store().put(object, bytes).await.map_err(failed(doing))?;
        Ok(artifact)
    }
}

fn failed(doing: &'static str) -> impl FnOnce(StoreError) -> WriteError {
    move |source| WriteError::Store { doing, source }
}
