//! Writing a backup: entries in, everything but the receipt out.
//!
//! All content flows as one stream that is cut by its content, so that small files share chunks; an entry is a list of
//! extents. A stream larger than the average chunk is cut off from its neighbours on both sides, so that it
//! deduplicates whatever they do, and a database's file is cut at fixed places. The entry list flows through a second
//! stream of the same kind. What an earlier backup of the target stored and has not changed, whole files or blocks of
//! large ones, does not flow at all: its extents are written again.
//!
//! The order of what is stored: packs, barrier, index objects, barrier, manifest, list of packs. The first barrier keeps
//! the promise of the index after a power failure, the second that of the table of chunks; [`Vault::commit`] has the
//! ones around the receipt. A large backup stores parts of its index on the way, so that another attempt finds what this
//! one stored.

mod base;
mod entry_list;
mod keeper;
mod pages;
mod reused;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;

use strongroom_proto::manifest::{BackupSink, Entry, EntryKind, EntrySink, FileVersion};
use strongroom_proto::receipt::{Artifact, Totals};
use strongroom_proto::{Attempt, BackupId, ChunkId, Sha256Digest};
use tokio::runtime::Handle;

use crate::blocks::{self, BlockDigest, BlockHasher};
use crate::cache::{Blocks, CacheReader, CacheWriter, CachedFile};
use crate::chunk_index::ChunkIndex;
use crate::chunker::Chunker;
use crate::describe::FORMAT;
use crate::error::WriteError;
use crate::index::IndexKeys;
use crate::keys::WriterKey;
use crate::manifest::{End, EntryLine, Extent, Hole, Needed, Part, Root};
use crate::pipeline::Pipeline;
use crate::vault::Vault;

use self::base::{Base, is_fragmented};
use self::entry_list::EntryList;
use self::keeper::{Counted, Keeper};
use self::reused::ReusedPacks;

/// Entries whose content is not yet cut into chunks; with more of them the stream is cut where it is.
const PENDING_ENTRIES: usize = 16_384;
/// With so much memory taken by them, too.
const PENDING_BYTES: usize = 32 * 1024 * 1024;
/// What an entry takes at least.
const OPEN_ENTRY_BYTES: usize = 512;
/// Parts of one entry that wait likewise.
const PENDING_PIECES: usize = 65_536;
/// Chunks of a database's file.
const PAGED_CHUNK_BYTES: usize = 1024 * 1024;

/// What a receipt needs to know of a backup that is stored but not yet committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The manifest and the list of packs.
    pub artifacts: Vec<Artifact>,
    /// Sizes.
    pub totals: Totals,
    /// Files that lie in so many pieces that the next backup that reads them stores them anew. Backups that read changed
    /// pages only never do, and their restore opens many chunks for little of each: with many such files a full backup pays.
    pub fragmented_entries: u64,
}

/// Writes one attempt of a backup; to be used from a thread that may block.
///
/// Dropped before [`finish`](Self::finish) it leaves no backup, at most packs that no backup refers to.
pub struct BackupWriter {
    keeper: Keeper,
    content: Chunker,
    list: EntryList,
    /// Entries whose extents are not all known yet, in order.
    open: VecDeque<OpenEntry>,
    current: Option<Current>,
    known: Known,
    entries: u64,
    content_bytes: u64,
    /// About what `open` takes in memory.
    open_bytes: usize,
    fragmented_entries: u64,
    /// After an error nothing is certain any more.
    has_failed: bool,
}

impl std::fmt::Debug for BackupWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupWriter")
            .field("backup_id", &self.keeper.backup_id)
            .field("attempt", &self.keeper.attempt)
            .finish_non_exhaustive()
    }
}

/// An entry that is not yet written to the entry list as a whole.
struct OpenEntry {
    /// Until its first line is written.
    entry: Option<Box<Entry>>,
    /// What its content consists of, as far as it is not written.
    pieces: VecDeque<Piece>,
    end: Option<End>,
    /// What the next backup is to know of it; its parts gather as they are written.
    remembered: Option<Box<(Vec<u8>, CachedFile)>>,
    /// What it was counted with in `open_bytes`.
    counted_bytes: usize,
}

/// About what an entry takes in memory.
fn weight(entry: &Entry, pieces: usize, blocks: Option<&Blocks>) -> usize {
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    let digests = blocks.map_or(0, |blocks| blocks.digests.len() * size_of::<BlockDigest>());
    OPEN_ENTRY_BYTES + entry.path.len() + xattrs + pieces * 2 * size_of::<Piece>() + digests
}

/// A piece of an entry's content.
#[derive(Debug, Clone, Copy)]
enum Piece {
    /// In the stream of content, between these places.
    Fresh { from: u64, to: u64 },
    /// In chunks that the vault has, or nowhere.
    Kept(Part),
}

/// The entry between `begin` and `end`.
struct Current {
    hashing: Hashing,
    bytes: u64,
    cutting: Cutting,
    has_holes: bool,
    /// The blocks of an earlier backup, while this one is laid over it.
    base: Option<Base>,
    /// The length of an entry that is put as pages laid over the base.
    overlay_bytes: Option<u64>,
}

/// How the content of an entry that is begun will come.
#[derive(Clone, Copy)]
enum Coming<'a> {
    /// In one piece, and nobody asks for it again.
    Whole,
    /// As a file in this version.
    File(&'a FileVersion),
    /// As a cluster's file of so many bytes.
    Paged(u64),
}

/// The digest of an entry's content.
enum Hashing {
    Whole(Box<blake3::Hasher>),
    Blocks(BlockHasher),
}

/// How a stream of content is cut while an entry flows through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cutting {
    /// By its content, along with its neighbours.
    Content,
    /// By its content; whether it is cut off from its neighbours depends on how long it gets.
    Undecided,
    /// By its content, apart from its neighbours.
    Isolated,
    /// At fixed places, if it begins as a database's file does.
    UndecidedPages { file_bytes: u64 },
    /// At fixed places.
    Pages,
}

/// What is known of earlier backups of the target, and what will be of this one.
#[derive(Default)]
struct Known {
    before: Option<CacheReader>,
    after: Option<CacheWriter>,
    /// The file that was found last and has changed.
    found: Option<(Vec<u8>, CachedFile)>,
    /// For the next backup.
    note: Option<Vec<u8>>,
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
        let vault = &runtime
            .block_on(vault.for_writing(writer_key))
            .map_err(|source| WriteError::Vault { source })?;
        let pipeline = Pipeline::new(vault.store().clone(), Arc::clone(vault.sealed_to()), runtime.clone());
        Ok(Self {
            keeper: Keeper {
                vault: vault.clone(),
                runtime,
                backup_id,
                attempt,
                keys: IndexKeys {
                    writer_key: writer_key.key_id(),
                    generation: vault.key_generation(),
                },
                ids: writer_key.chunk_ids(),
                macs: writer_key.macs(),
                index,
                stored: HashSet::default(),
                known: HashMap::default(),
                reused: ReusedPacks::default(),
                unsettled: Vec::new(),
                unsettled_bytes: 0,
                pipeline,
                unlisted: Vec::new(),
                unlisted_limit_bytes: keeper::UNLISTED_BYTES,
                unlisted_limit_chunks: keeper::UNLISTED_CHUNKS,
                submitted: 0,
                needed: Needed::default(),
                totals: Totals::default(),
            },
            content: Chunker::new(vault.description().chunker.clone()),
            list: EntryList::new(Chunker::new(vault.description().chunker.clone())),
            open: VecDeque::new(),
            current: None,
            known: Known::default(),
            entries: 0,
            content_bytes: 0,
            open_bytes: 0,
            fragmented_entries: 0,
            has_failed: false,
        })
    }

    /// Uses the file at `path` to know what earlier backups of this target stored, and leaves there what this one did.
    ///
    /// Files in a version have to be put depth first, the names of a directory sorted by their bytes; a cluster's files in
    /// any order. A file at `path` that is missing, damaged or cannot be written costs time, never correctness.
    #[must_use]
    pub fn with_cache(mut self, path: &Path, writer_key: &WriterKey) -> Self {
        let vault = self.keeper.vault.id();
        self.known.before = CacheReader::open(path, vault, writer_key);
        self.known.after = Some(CacheWriter::create(path, vault, writer_key));
        self
    }

    /// Compresses at this level of zstd, 1 to 19, in place of 3. To be said before anything is written.
    #[must_use]
    pub fn with_zstd_level(self, level: i32) -> Self {
        self.keeper.pipeline.set_level(level.clamp(1, 19));
        self
    }

    /// Stores a part of the index with so much in packs that none lists, sealed bytes or chunks, in place of 2 GiB and
    /// 100,000: for tests, which need not store as much.
    #[doc(hidden)]
    #[must_use]
    pub const fn with_unlisted_limits(mut self, sealed_bytes: u64, chunks: usize) -> Self {
        self.keeper.unlisted_limit_bytes = sealed_bytes;
        self.keeper.unlisted_limit_chunks = chunks;
        self
    }

    /// Bytes of content taken so far.
    pub const fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Stores what is left; blocks until everything but the receipt is in the vault.
    pub fn finish(mut self) -> Result<Sealed, WriteError> {
        if self.has_failed {
            return Err(WriteError::GivenUp);
        }
        if self.current.is_some() {
            return Err(WriteError::Order {
                found: "the backup was finished within an entry",
            });
        }
        self.cut_content(self.content.pending())?;
        self.settle(None)?;
        let list_chunks = self.list.finish(&mut self.keeper)?;
        self.keeper.totals.entries = self.entries;
        self.keeper.totals.content_bytes = self.content_bytes;
        let root = Root {
            format: FORMAT,
            backup_id: self.keeper.backup_id.clone(),
            writer_key: self.keeper.keys.writer_key.clone(),
            entries: self.entries,
            content_bytes: self.content_bytes,
            chunks: list_chunks,
        };
        let sealed = self.keeper.close(&root)?;
        if let Some(cache) = self.known.after {
            cache.finish(self.known.note);
        }
        Ok(Sealed {
            fragmented_entries: self.fragmented_entries,
            ..sealed
        })
    }

    fn begin_entry(&mut self, entry: &Entry, coming: Coming<'_>) -> Result<(), WriteError> {
        if self.current.is_some() {
            return Err(WriteError::Order {
                found: "an entry was begun within another",
            });
        }
        self.make_room()?;
        let (file_bytes, in_blocks) = match coming {
            Coming::Whole => (0, false),
            Coming::File(version) => (version.bytes, version.bytes >= blocks::BLOCKS_FROM_BYTES),
            Coming::Paged(bytes) => (bytes, true),
        };
        let base = match coming {
            Coming::File(_) if in_blocks => self.base_of(entry, file_bytes)?,
            Coming::Paged(bytes) => self.base_of_paged(entry, bytes)?,
            _ => None,
        };
        let cutting = match (entry.kind, coming) {
            (EntryKind::Stream, _) => Cutting::Undecided,
            (_, Coming::Paged(bytes)) if base.is_none() && bytes >= PAGED_CHUNK_BYTES as u64 => {
                self.cut_content(self.content.pending())?;
                Cutting::Pages
            }
            (EntryKind::File, Coming::File(_)) if in_blocks && base.is_none() => Cutting::UndecidedPages { file_bytes },
            _ => Cutting::Content,
        };
        let version = match coming {
            Coming::Whole => None,
            Coming::File(version) => Some(*version),
            Coming::Paged(bytes) => Some(pages::version_of_none(bytes)),
        };
        let current = Current {
            bytes: 0,
            has_holes: false,
            cutting,
            hashing: match in_blocks {
                true => Hashing::Blocks(BlockHasher::new(file_bytes)),
                false => Hashing::Whole(Box::default()),
            },
            base,
            overlay_bytes: None,
        };
        self.open_entry(entry, version, current);
        Ok(())
    }

    /// Lets nobody wait for more entries than there may be at once.
    fn make_room(&mut self) -> Result<(), WriteError> {
        if self.open.len() >= PENDING_ENTRIES || self.open_bytes >= PENDING_BYTES {
            self.cut_content(self.content.pending())?;
        }
        Ok(())
    }

    fn open_entry(&mut self, entry: &Entry, version: Option<FileVersion>, current: Current) {
        self.current = Some(current);
        let remembered = match (version, &self.known.after) {
            (Some(version), Some(_)) => Some(Box::new((
                path_bytes(entry),
                CachedFile {
                    version,
                    bytes: 0,
                    blake3: Sha256Digest::from_bytes([0; 32]),
                    parts: Vec::new(),
                    blocks: None,
                },
            ))),
            _ => None,
        };
        let counted_bytes = weight(entry, 0, None);
        self.open.push_back(OpenEntry {
            entry: Some(Box::new(entry.clone())),
            pieces: VecDeque::new(),
            end: None,
            remembered,
            counted_bytes,
        });
        self.open_bytes += counted_bytes;
        self.entries += 1;
    }

    /// The file as an earlier backup stored it, where this one may be laid over it.
    fn base_of(&mut self, entry: &Entry, file_bytes: u64) -> Result<Option<Base>, WriteError> {
        let path = path_bytes(entry);
        let found = match self.known.found.take() {
            Some((found, file)) if found == path => file,
            _ => match self.find(&path)? {
                Some(file) => file,
                None => return Ok(None),
            },
        };
        Ok(self.base_in(found, file_bytes))
    }

    /// A file as a base, where it is not better stored anew and the vault still holds it.
    fn base_in(&self, found: CachedFile, file_bytes: u64) -> Option<Base> {
        let fits = !is_fragmented(&found) && self.keeper.has_all(&found.parts);
        Base::new(found).filter(|base| fits && base.blocks.block_bytes == blocks::block_bytes(file_bytes))
    }

    /// What an earlier backup stored for this path.
    fn find(&mut self, path: &[u8]) -> Result<Option<CachedFile>, WriteError> {
        let Some(before) = &mut self.known.before else {
            return Ok(None);
        };
        let found = before.find(path);
        // Found or not, it may have come to chunks that nobody has looked up yet.
        let chunks = before.take_chunks_ahead();
        self.keeper.learn(&chunks)?;
        Ok(found)
    }

    fn put_known(&mut self, entry: &Entry, version: &FileVersion) -> Result<bool, WriteError> {
        if self.current.is_some() {
            return Err(WriteError::Order {
                found: "an entry was put within another",
            });
        }
        if self.known.before.is_none() {
            return Ok(false);
        }
        let path = path_bytes(entry);
        let Some(found) = self.find(&path)? else {
            return Ok(false);
        };
        if found.version != *version || found.bytes != version.bytes || !self.keeper.has_all(&found.parts) {
            self.known.found = Some((path, found));
            return Ok(false);
        }
        self.make_room()?;
        self.keeper.reuse(&found.parts);
        let counted_bytes = weight(entry, found.parts.len(), found.blocks.as_ref());
        self.open_bytes += counted_bytes;
        self.entries += 1;
        self.content_bytes += found.bytes;
        self.open.push_back(OpenEntry {
            entry: Some(Box::new(entry.clone())),
            pieces: found.parts.iter().map(|part| Piece::Kept(*part)).collect(),
            end: Some(End {
                bytes: found.bytes,
                blake3: found.blake3,
            }),
            remembered: Some(Box::new((
                path,
                CachedFile {
                    parts: Vec::new(),
                    ..found
                },
            ))),
            counted_bytes,
        });
        self.settle(None)?;
        Ok(true)
    }

    fn write_content(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.refuse_within_overlay()?;
        // Taken out while the rest of the writer is used; after an error nothing can be written any more.
        let Some(mut current) = self.current.take() else {
            return Err(WriteError::Order {
                found: "content came outside an entry",
            });
        };
        current.bytes += bytes.len() as u64;
        self.content_bytes += bytes.len() as u64;
        match (&mut current.hashing, &mut current.base) {
            (Hashing::Blocks(hasher), Some(base)) => {
                hasher.update(bytes, |number, digest, block| {
                    self.put_block(base, number, digest, block, &mut current.cutting)
                })?;
            }
            (Hashing::Blocks(hasher), None) => {
                hasher.update(bytes, |_, _, _| Ok::<_, WriteError>(()))?;
                self.put_fresh(bytes, &mut current.cutting)?;
            }
            (Hashing::Whole(hasher), _) => {
                hasher.update(bytes);
                self.put_fresh(bytes, &mut current.cutting)?;
            }
        }
        self.current = Some(current);
        Ok(())
    }

    /// Keeps a block that is as it was, and stores any other.
    fn put_block(
        &mut self,
        base: &mut Base,
        number: u64,
        digest: BlockDigest,
        block: &[u8],
        cutting: &mut Cutting,
    ) -> Result<(), WriteError> {
        if base.blocks.digests.get(number as usize) != Some(&digest) {
            return self.put_fresh(block, cutting);
        }
        let from = number * u64::from(base.blocks.block_bytes);
        self.keep_range(base, from, from + block.len() as u64)
    }

    /// Keeps a range of the base, which begins no earlier than the last one ended.
    fn keep_range(&mut self, base: &mut Base, from: u64, to: u64) -> Result<(), WriteError> {
        let keeper = &mut self.keeper;
        let Some(open) = self.open.back_mut() else {
            return Ok(());
        };
        base.range(from, to, |extent| match open.pieces.back_mut() {
            Some(Piece::Kept(Part::Extent(last)))
                if last.chunk == extent.chunk && last.offset + last.bytes == extent.offset =>
            {
                last.bytes += extent.bytes;
            }
            _ => {
                keeper.reuse(&[Part::Extent(extent)]);
                open.pieces.push_back(Piece::Kept(Part::Extent(extent)));
            }
        });
        if open.pieces.len() > PENDING_PIECES {
            self.cut_content(self.content.pending())?;
            self.settle(None)?;
        }
        Ok(())
    }

    /// Sends content of the current entry into the stream.
    fn put_fresh(&mut self, mut bytes: &[u8], cutting: &mut Cutting) -> Result<(), WriteError> {
        if let Cutting::UndecidedPages { file_bytes } = *cutting {
            *cutting = match blocks::is_paged(bytes, file_bytes) {
                true => {
                    self.cut_content(self.content.pending())?;
                    Cutting::Pages
                }
                false => Cutting::Content,
            };
        }
        while !bytes.is_empty() {
            let from = self.content.end_position();
            let (taken, rest) = bytes.split_at(self.content.append(bytes));
            bytes = rest;
            let to = self.content.end_position();
            let Some(open) = self.open.back_mut() else {
                return Ok(());
            };
            match open.pieces.back_mut() {
                Some(Piece::Fresh { to: end, .. }) if *end == from => *end = to,
                _ => open.pieces.push_back(Piece::Fresh { from, to }),
            }
            debug_assert_eq!(to - from, taken.len() as u64);
            match *cutting {
                Cutting::Undecided => {
                    let start = match open.pieces.front() {
                        Some(Piece::Fresh { from, .. }) => *from,
                        _ => from,
                    };
                    if to - start > self.content.ahead() as u64 {
                        *cutting = Cutting::Isolated;
                        // Nothing of the entry has been cut yet: the chunker looks ahead by so much.
                        let before = start.saturating_sub(self.content.position());
                        self.cut_content(before as usize)?;
                    }
                }
                Cutting::Pages => {
                    while self.content.pending() >= PAGED_CHUNK_BYTES {
                        self.take_content_chunk(PAGED_CHUNK_BYTES)?;
                    }
                }
                Cutting::Content | Cutting::Isolated | Cutting::UndecidedPages { .. } => {}
            }
            while let Some(length) = self.content.ready() {
                self.take_content_chunk(length)?;
            }
        }
        Ok(())
    }

    fn put_hole(&mut self, bytes: u64) -> Result<(), WriteError> {
        self.refuse_within_overlay()?;
        let Some(mut current) = self.current.take() else {
            return Err(WriteError::Order {
                found: "a hole came outside an entry",
            });
        };
        if bytes > 0 {
            if current.base.take().is_some()
                && let Hashing::Blocks(hasher) = &current.hashing
            {
                // What was held back to become a block.
                let partial = hasher.partial().to_vec();
                self.put_fresh(&partial, &mut current.cutting)?;
            }
            current.has_holes = true;
            current.bytes += bytes;
            self.content_bytes += bytes;
            if let Some(open) = self.open.back_mut() {
                match open.pieces.back_mut() {
                    Some(Piece::Kept(Part::Hole(last))) => *last += bytes,
                    _ => open.pieces.push_back(Piece::Kept(Part::Hole(bytes))),
                }
            }
        }
        self.current = Some(current);
        Ok(())
    }

    fn end_entry(&mut self) -> Result<(), WriteError> {
        let Some(mut current) = self.current.take() else {
            return Err(WriteError::Order {
                found: "an entry was ended that was not begun",
            });
        };
        self.keep_to_the_end(&mut current)?;
        let (blake3, blocks) = match current.hashing {
            Hashing::Whole(hasher) => (Sha256Digest::from_bytes(*hasher.finalize().as_bytes()), None),
            Hashing::Blocks(mut hasher) => {
                hasher.finish(|number, digest, block| match &mut current.base {
                    Some(base) => self.put_block(base, number, digest, block, &mut current.cutting),
                    None => Ok(()),
                })?;
                let (blake3, blocks) = hasher.finalize();
                (blake3, (!current.has_holes).then_some(blocks))
            }
        };
        if let Some(open) = self.open.back_mut() {
            open.end = Some(End {
                bytes: current.bytes,
                blake3,
            });
            if let Some((_, file)) = open.remembered.as_deref_mut() {
                file.bytes = current.bytes;
                file.blake3 = blake3;
                file.blocks = blocks;
                let digests = file.blocks.as_ref().map_or(0, |blocks| blocks.digests.len());
                let more = digests * size_of::<BlockDigest>() + open.pieces.len() * 2 * size_of::<Piece>();
                open.counted_bytes += more;
                self.open_bytes += more;
            }
        }
        if matches!(current.cutting, Cutting::Isolated | Cutting::Pages) {
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

    /// Writes the lines that are known now: the extents in the chunk just cut, and all that waited for them.
    fn settle(&mut self, cut: Option<(ChunkId, u64)>) -> Result<(), WriteError> {
        let cut_to = self.content.position();
        while let Some(first) = self.open.front_mut() {
            if let Some(entry) = first.entry.take() {
                self.list.write(&EntryLine::Entry(entry), &mut self.keeper)?;
            }
            while let Some(piece) = first.pieces.front_mut() {
                let part = match piece {
                    Piece::Kept(part) => *part,
                    Piece::Fresh { from, to } => match cut {
                        Some((chunk, start)) if *from < cut_to => {
                            let part = Extent {
                                chunk,
                                // Both fit: no chunk is larger than a few MiB.
                                offset: (*from - start) as u32,
                                bytes: ((*to).min(cut_to) - *from) as u32,
                            };
                            *from += u64::from(part.bytes);
                            Part::Extent(part)
                        }
                        _ => return Ok(()),
                    },
                };
                let line = match part {
                    Part::Extent(extent) => EntryLine::Extent(extent),
                    Part::Hole(bytes) => EntryLine::Hole(Hole { bytes }),
                };
                self.list.write(&line, &mut self.keeper)?;
                if let Some((_, file)) = first.remembered.as_deref_mut() {
                    file.parts.push(part);
                }
                if let Piece::Fresh { from, to } = piece
                    && *from < *to
                {
                    // Not all of it is cut.
                    return Ok(());
                }
                first.pieces.pop_front();
            }
            let Some(end) = first.end.take() else {
                return Ok(());
            };
            self.list.write(&EntryLine::End(end), &mut self.keeper)?;
            if let (Some(remembered), Some(cache)) = (first.remembered.take(), &mut self.known.after) {
                let (path, file) = *remembered;
                self.fragmented_entries += u64::from(is_fragmented(&file));
                cache.put(&path, &file);
            }
            self.open_bytes = self.open_bytes.saturating_sub(first.counted_bytes);
            self.open.pop_front();
        }
        Ok(())
    }
}

fn path_bytes(entry: &Entry) -> Vec<u8> {
    match entry.path_hex.as_deref().map(hex::decode) {
        Some(Ok(bytes)) => bytes,
        _ => entry.path.as_bytes().to_vec(),
    }
}

impl BackupWriter {
    /// Runs a step, unless one failed before: what that left undone nobody knows.
    fn step<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, WriteError>) -> io::Result<T> {
        if self.has_failed {
            return Err(WriteError::GivenUp.into());
        }
        let done = step(self);
        // A call out of order is refused before it does anything.
        self.has_failed = matches!(&done, Err(error) if !matches!(error, WriteError::Order { .. }));
        Ok(done?)
    }
}

impl EntrySink for BackupWriter {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.step(|writer| writer.begin_entry(entry, Coming::Whole))
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.step(|writer| writer.write_content(bytes))
    }
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.step(|writer| writer.put_hole(bytes))
    }
    fn end(&mut self) -> io::Result<()> {
        self.step(Self::end_entry)
    }
}

impl BackupSink for BackupWriter {
    fn put_unchanged(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<bool> {
        self.step(|writer| writer.put_known(entry, version))
    }
    fn begin_file(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<()> {
        self.step(|writer| writer.begin_entry(entry, Coming::File(version)))
    }
    fn begin_paged(&mut self, entry: &Entry, bytes: u64) -> io::Result<()> {
        self.step(|writer| writer.begin_entry(entry, Coming::Paged(bytes)))
    }
    fn begin_overlay(&mut self, entry: &Entry, bytes: u64) -> io::Result<bool> {
        self.step(|writer| writer.begin_laid_over(entry, bytes))
    }
    fn page(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.step(|writer| writer.put_pages(offset, bytes))
    }
    fn note(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.known.before.as_mut().and_then(CacheReader::note))
    }
    fn leave_note(&mut self, note: Vec<u8>) {
        self.known.note = Some(note);
    }
}
