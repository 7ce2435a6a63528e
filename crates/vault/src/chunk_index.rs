//! What a writer deduplicates against: the chunks that the vault's index lists and that were made with its writer key.
//!
//! They are looked up in a [`ChunkTable`], many at a time: the catalog, which the workers share and whose size is no
//! matter of memory, or, without a catalog, one in memory that is read from the vault. Either holds what the index
//! objects of the vault say and nothing else, and an index object that is gone from the vault counts no more.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use strongroom_proto::{ChunkId, Sha256Digest, VaultId};

use crate::error::{ReadError, StoreError};
use crate::index::{self, IndexBody, IndexObject};
use crate::keys::{MacKey, WriterKey};
use crate::layout;
use crate::pipeline::StoredPack;
use crate::store::Store;
use crate::vault::Vault;

/// Index objects read at the same time.
const INDEX_READS: usize = 4;
/// Listing may take this share of a process's time: one listing of d seconds in 20 d.
const LISTING_SHARE: u32 = 20;

/// Where a chunk lies, as far as a writer has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// The pack that holds it.
    pub pack: Sha256Digest,
    /// The index object that lists the pack.
    pub index_object: Sha256Digest,
    /// The size of the pack as stored, in bytes, where the index object tells.
    pub pack_bytes: Option<u64>,
}

/// What an index object lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedChunks {
    /// The index object.
    pub index_object: Sha256Digest,
    /// Its packs.
    pub packs: Vec<IndexedPack>,
}

/// A pack that an index object lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedPack {
    /// The pack.
    pub pack: Sha256Digest,
    /// Its size as stored, in bytes, where the index object tells.
    pub pack_bytes: Option<u64>,
    /// The chunks in it.
    pub chunks: Vec<ChunkId>,
}

/// Why a table did not answer.
pub type TableError = Box<dyn std::error::Error + Send + Sync>;

/// The chunks that index objects list, to be looked up by id.
///
/// A table is filled from the vault and may be lost at any time. Additions are whole or not at all, and adding an index
/// object again changes nothing.
#[async_trait::async_trait]
pub trait ChunkTable: Send + Sync {
    /// The index objects whose chunks it holds.
    async fn index_objects(&self, vault: VaultId) -> Result<Vec<Sha256Digest>, TableError>;
    /// Adds what an index object lists.
    async fn add(&self, vault: VaultId, chunks: IndexedChunks) -> Result<(), TableError>;
    /// Forgets what index objects list that are no longer in the vault.
    async fn forget(&self, vault: VaultId, index_objects: &[Sha256Digest]) -> Result<(), TableError>;
    /// Where each of these chunks lies, in their order; `None` for one that no index object lists.
    ///
    /// A chunk may lie in several packs. Places in the packs of `without`, which are gone or damaged, do not count.
    async fn look_up(
        &self,
        vault: VaultId,
        chunks: &[ChunkId],
        without: &[Sha256Digest],
    ) -> Result<Vec<Option<ChunkPlace>>, TableError>;
}

/// The chunks of a vault that a writer need not store again; shared by all jobs of a process.
pub struct ChunkIndex {
    vault: VaultId,
    store: Store,
    writer_key: String,
    macs: MacKey,
    table: Arc<dyn ChunkTable>,
    /// When the vault's index was listed last, and the index objects of other writer keys, which are not read again.
    listed: tokio::sync::Mutex<Listed>,
}

#[derive(Default)]
struct Listed {
    last: Option<(Instant, Duration)>,
    foreign: HashSet<Sha256Digest>,
}

impl std::fmt::Debug for ChunkIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkIndex")
            .field("vault", &self.vault)
            .finish_non_exhaustive()
    }
}

impl ChunkIndex {
    /// An index in memory, about 50 bytes a chunk, that knows nothing until [`refresh`](Self::refresh) fills it.
    pub fn new(vault: &Vault, writer_key: &WriterKey) -> Self {
        Self::in_table(vault, writer_key, Arc::new(MemoryTable::default()))
    }

    /// An index in a table that it may share with others.
    pub fn in_table(vault: &Vault, writer_key: &WriterKey, table: Arc<dyn ChunkTable>) -> Self {
        Self {
            vault: vault.id(),
            store: vault.store().clone(),
            writer_key: writer_key.key_id(),
            macs: writer_key.macs(),
            table,
            listed: tokio::sync::Mutex::default(),
        }
    }

    /// Brings the table up to the vault's index: adds what appeared there, and forgets what is gone.
    ///
    /// Calls that follow one another closely are answered from what is known: to know a chunk late costs some space,
    /// never correctness, and a listing grows with the vault. What this process stored itself is known at once. An index
    /// object that is damaged adds nothing and stops nobody.
    pub async fn refresh(&self) -> Result<(), ReadError> {
        let mut listed = self.listed.lock().await;
        if let Some((at, took)) = listed.last
            && at.elapsed() < took * LISTING_SHARE
        {
            return Ok(());
        }
        let began = Instant::now();
        // What the table holds is asked first: what is added to both meanwhile is in neither list, and is no matter.
        let held = self.table.index_objects(self.vault).await.map_err(table_error)?;
        let held: HashSet<Sha256Digest> = held.into_iter().collect();
        let paths = self
            .store
            .list(layout::INDEX_FOLDER)
            .await
            .map_err(|source| ReadError::store("list the vault's index", source))?;
        let took = began.elapsed();
        let there: HashSet<Sha256Digest> = paths
            .iter()
            .filter_map(|path| path.rsplit('/').next()?.parse().ok())
            .collect();
        let gone: Vec<Sha256Digest> = held.difference(&there).copied().collect();
        if !gone.is_empty() {
            self.table.forget(self.vault, &gone).await.map_err(table_error)?;
        }
        let unseen = there
            .iter()
            .filter(|object| !held.contains(*object) && !listed.foreign.contains(*object));
        let mut reads = futures::stream::iter(unseen.copied().collect::<Vec<_>>())
            .map(|object| async move { (object, index::get(&self.store, &object).await) })
            .buffer_unordered(INDEX_READS);
        while let Some((object, found)) = reads.next().await {
            match found.and_then(|bytes| self.read_object(object, &bytes)) {
                Ok(Some(chunks)) => self.table.add(self.vault, chunks).await.map_err(table_error)?,
                Ok(None) => {
                    listed.foreign.insert(object);
                }
                // Swept since it was listed.
                Err(ReadError::Missing { .. }) => {}
                // Its chunks are stored again; a check tells whom the damage hits.
                Err(
                    error @ (ReadError::Damaged { .. }
                    | ReadError::Malformed { .. }
                    | ReadError::Store {
                        source: StoreError::TooLarge { .. },
                        ..
                    }),
                ) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "an index object is damaged and not used; check the vault");
                }
                Err(error) => return Err(error),
            }
        }
        drop(reads);
        listed.last = Some((began, took));
        Ok(())
    }

    /// What an index object lists; `None` where it is of another writer key, whose chunk ids are not ours.
    fn read_object(&self, index_object: Sha256Digest, bytes: &[u8]) -> Result<Option<IndexedChunks>, ReadError> {
        let body = IndexBody::open(&index_object, bytes)?;
        if body.keys.writer_key != self.writer_key {
            return Ok(None);
        }
        // Whole or not at all: a damaged object adds nothing.
        let mut packs: Vec<IndexedPack> = Vec::new();
        body.for_each(&self.macs, |line| match packs.last_mut() {
            Some(last) if last.pack == line.pack => last.chunks.push(line.chunk),
            _ => packs.push(IndexedPack {
                pack: line.pack,
                pack_bytes: line.pack_bytes,
                chunks: vec![line.chunk],
            }),
        })?;
        Ok(Some(IndexedChunks { index_object, packs }))
    }

    /// Adds what this process has stored, without reading it back.
    pub(crate) async fn add_stored(&self, object: &IndexObject, packs: &[StoredPack]) -> Result<(), ReadError> {
        let chunks = IndexedChunks {
            index_object: object.digest,
            packs: packs
                .iter()
                .map(|pack| IndexedPack {
                    pack: pack.digest,
                    pack_bytes: Some(pack.sealed_bytes),
                    chunks: pack.chunks.iter().map(|chunk| chunk.chunk).collect(),
                })
                .collect(),
        };
        self.table.add(self.vault, chunks).await.map_err(table_error)
    }

    /// Whether an index object is in the vault as it was stored. One that is not is forgotten.
    pub(crate) async fn still_holds(&self, index_object: &Sha256Digest) -> Result<bool, ReadError> {
        let object = layout::index(index_object);
        let found = self.store.digest(&object).await;
        let found = found.map_err(|source| ReadError::store(format!("read {object}"), source))?;
        if found.is_some_and(|(digest, _)| digest == *index_object) {
            return Ok(true);
        }
        let forgotten = self.table.forget(self.vault, &[*index_object]).await;
        forgotten.map_err(table_error)?;
        Ok(false)
    }

    /// Where each of these chunks lies, in their order, other than in these packs.
    pub(crate) async fn look_up(
        &self,
        chunks: &[ChunkId],
        without: &[Sha256Digest],
    ) -> Result<Vec<Option<ChunkPlace>>, ReadError> {
        let found = self.table.look_up(self.vault, chunks, without).await;
        found.map_err(table_error)
    }

    pub(crate) fn is_of(&self, vault: &Vault) -> bool {
        self.vault == vault.id()
    }
}

fn table_error(source: TableError) -> ReadError {
    ReadError::Table { source }
}

/// A table in memory, of one vault.
#[derive(Default)]
struct MemoryTable(RwLock<Held>);

#[derive(Default)]
struct Held {
    chunks: HashMap<ChunkId, u32, BuildHasherDefault<ChunkIdHasher>>,
    /// The other packs of the few chunks that lie in several.
    more: HashMap<ChunkId, Vec<u32>, BuildHasherDefault<ChunkIdHasher>>,
    /// Pack and index object; `None` for one that is gone.
    packs: Vec<Option<ChunkPlace>>,
    objects: HashSet<Sha256Digest>,
}

// Changes are whole before the lock is let go, so a panic elsewhere leaves nothing to fear.
#[async_trait::async_trait]
impl ChunkTable for MemoryTable {
    async fn index_objects(&self, _: VaultId) -> Result<Vec<Sha256Digest>, TableError> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(held.objects.iter().copied().collect())
    }

    async fn add(&self, _: VaultId, added: IndexedChunks) -> Result<(), TableError> {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let index_object = added.index_object;
        if !held.objects.insert(index_object) {
            return Ok(());
        }
        for IndexedPack {
            pack,
            pack_bytes,
            chunks,
        } in added.packs
        {
            let number = held.packs.len() as u32;
            held.packs.push(Some(ChunkPlace {
                pack,
                index_object,
                pack_bytes,
            }));
            for chunk in chunks {
                let known = held
                    .chunks
                    .get(&chunk)
                    .and_then(|number| held.packs.get(*number as usize));
                match known {
                    Some(Some(_)) => held.more.entry(chunk).or_default().push(number),
                    _ => {
                        held.chunks.insert(chunk, number);
                    }
                }
            }
        }
        Ok(())
    }

    async fn forget(&self, _: VaultId, index_objects: &[Sha256Digest]) -> Result<(), TableError> {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for object in index_objects {
            held.objects.remove(object);
        }
        let Held {
            packs, objects, more, ..
        } = &mut *held;
        for pack in &mut *packs {
            pack.take_if(|place| !objects.contains(&place.index_object));
        }
        more.retain(|_, numbers| {
            numbers.retain(|number| matches!(packs.get(*number as usize), Some(Some(_))));
            !numbers.is_empty()
        });
        Ok(())
    }

    async fn look_up(
        &self,
        _: VaultId,
        chunks: &[ChunkId],
        without: &[Sha256Digest],
    ) -> Result<Vec<Option<ChunkPlace>>, TableError> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let without: HashSet<&Sha256Digest> = without.iter().collect();
        let in_pack = |number: &u32| {
            let place = held.packs.get(*number as usize).copied().flatten();
            place.filter(|place| !without.contains(&place.pack))
        };
        let place = |chunk: &ChunkId| {
            let first = held.chunks.get(chunk)?;
            in_pack(first).or_else(|| held.more.get(chunk)?.iter().find_map(in_pack))
        };
        Ok(chunks.iter().map(place).collect())
    }
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
