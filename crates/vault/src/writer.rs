//! Writing a backup: entries in, everything but the receipt out.
//!
//! All content flows as one stream that is cut by its content, so that small files share chunks; an entry is a list of
//! extents. A stream larger than the average chunk is cut off from its neighbours on both sides, so that it
//! deduplicates whatever they do. The entry list flows through a second stream of the same kind.
//!
//! The order of what is stored: packs, barrier, index objects, manifest, list of packs. The barrier keeps the promise
//! of the index after a power failure; [`Vault::commit`] has the ones around the receipt.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use strongroom_proto::manifest::{BackupSink, Entry, EntryKind, EntrySink, FileVersion};
use strongroom_proto::receipt::{Artifact, Totals};
use strongroom_proto::{Attempt, BackupId, ChunkId, Sha256Digest};
use tokio::runtime::Handle;

use crate::chunker::{CHUNK_AVG_BYTES, Chunker};
use crate::describe::FORMAT;
use crate::error::{StoreError, WriteError};
use crate::index::{self, ChunkIdHasher, ChunkIndex};
use crate::keys::{ChunkIdKey, MacKey, WriterKey};
use crate::layout;
use crate::manifest::{ENTRY_LINE_BYTES, End, EntryLine, Extent, Needed, Root};
use crate::pipeline::{Pipeline, StoredPack};
use crate::store::sha256;
use crate::vault::Vault;

/// Entries whose content is not yet cut into chunks; with more of them the stream is cut where it is.
const PENDING_ENTRIES: usize = 16_384;

/// What a receipt needs to know of a backup that is stored but not yet committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The manifest and the list of packs.
    pub artifacts: Vec<Artifact>,
    /// Sizes.
    pub totals: Totals,
}

/// Writes one attempt of a backup; to be used from a thread that may block.
///
/// Dropped before [`finish`](Self::finish) it leaves no backup, at most packs that nothing refers to.
pub struct BackupWriter {
    vault: Vault,
    runtime: Handle,
    backup_id: BackupId,
    attempt: Attempt,
    macs: MacKey,
    keeper: Keeper,
    content: Chunker,
    list: Chunker,
    list_chunks: Vec<ChunkId>,
    /// Entries whose extents are not all known yet, in order.
    open: VecDeque<OpenEntry>,
    current: Option<Current>,
    entries: u64,
    content_bytes: u64,
    line: Vec<u8>,
}

impl std::fmt::Debug for BackupWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupWriter")
            .field("backup_id", &self.backup_id)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// An entry in the stream of content, from `start` to its end.
struct OpenEntry {
    /// Until its first line is written.
    entry: Option<Box<Entry>>,
    start: u64,
    end: Option<(u64, Sha256Digest)>,
}

/// The entry between `begin` and `end`.
struct Current {
    hasher: blake3::Hasher,
    start: u64,
    isolation: Isolation,
}

/// Whether a stream is cut off from its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isolation {
    Never,
    Undecided,
    Isolated,
}

impl BackupWriter {
    /// Begins an attempt of a backup. `index` says what need not be stored again; refresh it before.
    ///
    /// `runtime` does the uploads; it has to have threads of its own, and outlive the writer.
    pub fn begin(
        vault: &Vault,
        writer_key: &WriterKey,
        index: Arc<ChunkIndex>,
        backup_id: BackupId,
        attempt: Attempt,
        runtime: Handle,
    ) -> Result<Self, WriteError> {
        if !index.is_of(vault) {
            return Err(WriteError::ForeignIndex);
        }
        runtime
            .block_on(vault.check_writer_key(writer_key))
            .map_err(|source| WriteError::Vault { source })?;
        let pipeline = Pipeline::new(vault.store().clone(), Arc::clone(vault.sealed_to()), runtime.clone());
        Ok(Self {
            vault: vault.clone(),
            runtime,
            backup_id,
            attempt,
            macs: writer_key.macs(),
            keeper: Keeper {
                ids: writer_key.chunk_ids(),
                index,
                stored: HashSet::default(),
                reused_packs: BTreeSet::new(),
                pipeline,
                totals: Totals::default(),
            },
            content: Chunker::default(),
            list: Chunker::default(),
            list_chunks: Vec::new(),
            open: VecDeque::new(),
            current: None,
            entries: 0,
            content_bytes: 0,
            line: Vec::new(),
        })
    }

    /// Bytes of content taken so far.
    pub const fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Stores what is left; blocks until everything but the receipt is in the vault.
    pub fn finish(mut self) -> Result<Sealed, WriteError> {
        if self.current.is_some() {
            return Err(WriteError::Order {
                found: "the backup was finished within an entry",
            });
        }
        self.cut_content(self.content.pending())?;
        self.settle(None)?;
        while self.list.pending() > 0 {
            let length = self.list.next(self.list.pending());
            self.take_list_chunk(length)?;
        }
        let Keeper {
            index,
            reused_packs,
            pipeline,
            totals,
            ..
        } = self.keeper;
        let packs = pipeline.finish()?;
        let root = Root {
            format: FORMAT,
            backup_id: self.backup_id.clone(),
            entries: self.entries,
            content_bytes: self.content_bytes,
            chunks: self.list_chunks,
        };
        let closing = Closing {
            vault: &self.vault,
            macs: &self.macs,
            backup_id: &self.backup_id,
            attempt: self.attempt,
            totals: Totals {
                entries: self.entries,
                content_bytes: self.content_bytes,
                ..totals
            },
        };
        self.runtime
            .block_on(closing.store(&packs, &reused_packs, &index, &root))
    }

    fn begin_entry(&mut self, entry: &Entry) -> Result<(), WriteError> {
        if self.current.is_some() {
            return Err(WriteError::Order {
                found: "an entry was begun within another",
            });
        }
        if self.open.len() >= PENDING_ENTRIES {
            self.cut_content(self.content.pending())?;
        }
        let start = self.content.end_position();
        self.open.push_back(OpenEntry {
            entry: Some(Box::new(entry.clone())),
            start,
            end: None,
        });
        self.current = Some(Current {
            hasher: blake3::Hasher::new(),
            start,
            isolation: match entry.kind {
                EntryKind::Stream => Isolation::Undecided,
                _ => Isolation::Never,
            },
        });
        self.entries += 1;
        Ok(())
    }

    fn write_content(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let Some(current) = &mut self.current else {
                return Err(WriteError::Order {
                    found: "content came outside an entry",
                });
            };
            let (taken, rest) = bytes.split_at(self.content.append(bytes));
            current.hasher.update(taken);
            self.content_bytes += taken.len() as u64;
            bytes = rest;
            let so_far = self.content.end_position() - current.start;
            if current.isolation == Isolation::Undecided && so_far > CHUNK_AVG_BYTES as u64 {
                current.isolation = Isolation::Isolated;
                // Nothing of the entry has been cut yet: the chunker looks ahead by the average chunk.
                let before = current.start.saturating_sub(self.content.position());
                self.cut_content(before as usize)?;
            }
            while let Some(length) = self.content.ready() {
                self.take_content_chunk(length)?;
            }
        }
        Ok(())
    }

    fn end_entry(&mut self) -> Result<(), WriteError> {
        let Some(current) = self.current.take() else {
            return Err(WriteError::Order {
                found: "an entry was ended that was not begun",
            });
        };
        let blake3 = Sha256Digest::from_bytes(*current.hasher.finalize().as_bytes());
        if let Some(open) = self.open.back_mut() {
            open.end = Some((self.content.end_position(), blake3));
        }
        if current.isolation == Isolation::Isolated {
            self.cut_content(self.content.pending())?;
        }
        self.settle(None)
    }

    /// Cuts the first bytes waiting into chunks, as if the stream ended after them.
    fn cut_content(&mut self, mut bytes: usize) -> Result<(), WriteError> {
        while bytes > 0 {
            let length = self.content.next(bytes);
            self.take_content_chunk(length)?;
            bytes -= length;
        }
        Ok(())
    }

    fn take_content_chunk(&mut self, length: usize) -> Result<(), WriteError> {
        let start = self.content.position();
        let chunk = self.keeper.keep(self.content.front(length), Counted::Content)?;
        self.content.consume(length);
        self.settle(Some((chunk, start)))
    }

    /// Writes the lines that are known now: the extents in the chunk just cut, and the ends of entries it completes.
    fn settle(&mut self, chunk: Option<(ChunkId, u64)>) -> Result<(), WriteError> {
        let cut_to = self.content.position();
        while let Some(first) = self.open.front_mut() {
            let end = first.end;
            let entry_end = end.map_or(u64::MAX, |(position, _)| position);
            let start = first.start;
            let header = match (start < cut_to || entry_end <= cut_to, first.entry.take()) {
                (true, header) => header,
                (false, waiting) => {
                    first.entry = waiting;
                    return Ok(());
                }
            };
            if let Some(entry) = header {
                self.write_line(&EntryLine::Entry(entry))?;
            }
            if let Some((chunk, chunk_start)) = chunk {
                let (from, to) = (start.max(chunk_start), entry_end.min(cut_to));
                if from < to {
                    // Both fit: no chunk is larger than a few MiB.
                    self.write_line(&EntryLine::Extent(Extent {
                        chunk,
                        offset: (from - chunk_start) as u32,
                        bytes: (to - from) as u32,
                    }))?;
                }
            }
            match end {
                Some((position, blake3)) if position <= cut_to => {
                    self.write_line(&EntryLine::End(End {
                        bytes: position - start,
                        blake3,
                    }))?;
                    self.open.pop_front();
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn write_line(&mut self, line: &EntryLine) -> Result<(), WriteError> {
        let mut text = std::mem::take(&mut self.line);
        text.clear();
        serde_json::to_writer(&mut text, line).map_err(|source| WriteError::Encode {
            object: "an entry",
            source,
        })?;
        if let EntryLine::Entry(entry) = line
            && text.len() > ENTRY_LINE_BYTES
        {
            return Err(WriteError::EntryTooLarge {
                path: entry.path.chars().take(100).collect(),
                bytes: text.len(),
                limit_bytes: ENTRY_LINE_BYTES,
            });
        }
        text.push(b'\n');
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            let taken = self.list.append(rest);
            rest = rest.get(taken..).unwrap_or_default();
            while let Some(length) = self.list.ready() {
                self.take_list_chunk(length)?;
            }
        }
        self.line = text;
        Ok(())
    }

    fn take_list_chunk(&mut self, length: usize) -> Result<(), WriteError> {
        let chunk = self.keeper.keep(self.list.front(length), Counted::EntryList)?;
        self.list.consume(length);
        self.list_chunks.push(chunk);
        Ok(())
    }
}

impl EntrySink for BackupWriter {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.begin_entry(entry).map_err(io::Error::from)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_content(bytes).map_err(io::Error::from)
    }
    fn end(&mut self) -> io::Result<()> {
        self.end_entry().map_err(io::Error::from)
    }
}

impl BackupSink for BackupWriter {
    fn put_unchanged(&mut self, _: &Entry, _: &FileVersion) -> io::Result<bool> {
        Ok(false)
    }
    fn begin_file(&mut self, entry: &Entry, _: &FileVersion) -> io::Result<()> {
        self.begin(entry)
    }
}

/// Decides for each chunk whether the vault has it.
struct Keeper {
    ids: ChunkIdKey,
    index: Arc<ChunkIndex>,
    stored: HashSet<ChunkId, BuildHasherDefault<ChunkIdHasher>>,
    reused_packs: BTreeSet<u32>,
    pipeline: Pipeline,
    totals: Totals,
}

/// Whether a chunk counts in the totals; the entry list is no content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Content,
    EntryList,
}

impl Keeper {
    fn keep(&mut self, raw: &[u8], counted: Counted) -> Result<ChunkId, WriteError> {
        let chunk = self.ids.id(raw);
        let is_new = if self.stored.contains(&chunk) {
            false
        } else if let Some(pack) = self.index.pack_of(&chunk) {
            self.reused_packs.insert(pack);
            false
        } else {
            self.pipeline.submit(chunk, raw)?;
            self.stored.insert(chunk);
            true
        };
        if counted == Counted::Content {
            self.totals.chunks += 1;
            if is_new {
                self.totals.new_chunks += 1;
                self.totals.new_content_bytes += raw.len() as u64;
            }
        }
        Ok(chunk)
    }
}

/// The objects that are stored when all packs are.
struct Closing<'a> {
    vault: &'a Vault,
    macs: &'a MacKey,
    backup_id: &'a BackupId,
    attempt: Attempt,
    totals: Totals,
}

impl Closing<'_> {
    async fn store(
        mut self,
        packs: &[StoredPack],
        reused_packs: &BTreeSet<u32>,
        index: &ChunkIndex,
        root: &Root,
    ) -> Result<Sealed, WriteError> {
        let store = self.vault.store();
        let mut needed = Needed::default();
        for number in reused_packs {
            let (pack, index_object) = index.pack(*number).ok_or(WriteError::StageEnded)?;
            needed.add(layout::pack(&pack), pack);
            needed.add(layout::index(&index_object), index_object);
        }
        for pack in packs {
            needed.add(layout::pack(&pack.digest), pack.digest);
            self.totals.stored_bytes += pack.sealed_bytes;
        }
        if !packs.is_empty() {
            store.barrier().await.map_err(failed("make the packs durable"))?;
        }
        let index_objects = index::encode(packs, self.macs).map_err(|source| WriteError::Seal {
            object: "the index",
            source,
        })?;
        for object in &index_objects {
            let name = layout::index(&object.digest);
            self.put(&name, object.bytes.clone(), "store the index").await?;
            index.add_stored(object, packs.get(object.packs.clone()).unwrap_or_default());
            needed.add(name, object.digest);
        }
        let manifest = root.seal(self.vault.sealed_to()).map_err(|source| WriteError::Seal {
            object: "the manifest",
            source,
        })?;
        let manifest_name = layout::manifest(self.backup_id, self.attempt);
        needed.add(manifest_name.clone(), sha256(&manifest));
        let list = needed.encode();
        let artifacts = vec![
            self.put(&manifest_name, manifest, "store the manifest").await?,
            self.put(
                &layout::packs_list(self.backup_id, self.attempt),
                list,
                "store the list of packs",
            )
            .await?,
        ];
        Ok(Sealed {
            artifacts,
            totals: self.totals,
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
