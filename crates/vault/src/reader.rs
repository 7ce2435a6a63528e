//! Reading a backup: every byte handed out has been checked against its chunk's keyed id, every entry against its
//! digest.
//!
//! The chain of trust: a signer's key, the receipt, the digests of manifest and list of packs in it, the digests of
//! index objects in that list. Memory is bounded: what [`Fetcher`](crate::fetch::Fetcher) holds, the extents of a few
//! entries, and the index of this backup, about 50 bytes a chunk.

use std::io::{self, Write};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use strongroom_proto::manifest::{Entry, EntrySink, EntrySource, Listed};
use strongroom_proto::{BackupId, ChunkId, Sha256Digest};
use tokio::runtime::Handle;

use crate::commit::CommittedReceipt;
use crate::error::ReadError;
use crate::fetch::{self, Fetcher};
use crate::index::{self, IndexBody};
use crate::keys::{ChunkIdKey, Identity};
use crate::layout;
use crate::manifest::{ENTRY_LINE_BYTES, End, EntryLine, Extent, Needed, Part, Root};
use crate::store::sha256;
use crate::vault::Vault;

/// Index objects read at the same time.
const INDEX_READS: usize = 4;

/// Where a chunk lies in a decrypted pack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) chunk: ChunkId,
    pub(crate) pack: u32,
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) raw_bytes: u32,
}

/// What is called for an extent of an entry, with where its chunk lies, and with none for an entry that has no extents.
pub(crate) type EachExtent<'a> = dyn FnMut(&Entry, Option<(&Extent, Result<Place, ReadError>)>) + 'a;

/// Reads one backup; its [`EntrySource`] calls block and belong on a thread that may.
pub struct BackupReader {
    pub(crate) vault: Vault,
    pub(crate) runtime: Handle,
    pub(crate) identity: Identity,
    pub(crate) ids: ChunkIdKey,
    committed: CommittedReceipt,
    root: Root,
    pub(crate) packs: Vec<Sha256Digest>,
    /// Sorted by chunk.
    places: Vec<Place>,
}

impl std::fmt::Debug for BackupReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupReader")
            .field("backup_id", &self.root.backup_id)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens a backup for reading. The reader uses the runtime this is called on.
    pub async fn open_backup(&self, id: &BackupId, identity: &Identity) -> Result<BackupReader, ReadError> {
        let committed = self
            .receipt(id)
            .await?
            .ok_or_else(|| ReadError::NoBackup { id: id.clone() })?;
        let attempt = committed.receipt.attempt;
        let manifest_name = layout::manifest(id, attempt);
        let list_name = layout::packs_list(id, attempt);
        let manifest = self.get_artifact(&committed, &manifest_name).await?;
        let list = self.get_artifact(&committed, &list_name).await?;

        let root = Root::open(&manifest_name, &manifest, identity)?;
        if root.backup_id != *id {
            return Err(ReadError::Misplaced {
                object: manifest_name,
                found: root.backup_id.to_string(),
                expected: id.to_string(),
            });
        }
        let writer_key = self.open_writer_key(&root.writer_key, identity).await?;
        let needed = Needed::decode(&list_name, &list)?;
        let packs: Vec<Sha256Digest> = needed.packs().collect();
        let macs = writer_key.macs();
        let mut places = Vec::new();
        let mut objects = futures::stream::iter(needed.indexes())
            .map(|digest| async move { Ok::<_, ReadError>((digest, index::get(self.store(), &digest).await?)) })
            .buffer_unordered(INDEX_READS);
        while let Some((digest, bytes)) = objects.try_next().await? {
            IndexBody::open(&digest, &bytes)?.for_each(&macs, |line| {
                // An index may list packs this backup does not use.
                if let Ok(pack) = packs.binary_search(&line.pack) {
                    places.push(Place {
                        chunk: line.chunk,
                        pack: pack as u32,
                        offset: line.offset,
                        stored_bytes: line.stored,
                        raw_bytes: line.raw,
                    });
                }
            })?;
        }
        drop(objects);
        places.sort_unstable_by_key(|place| place.chunk);
        places.dedup_by_key(|place| place.chunk);
        Ok(BackupReader {
            vault: self.clone(),
            runtime: Handle::current(),
            identity: identity.clone(),
            ids: writer_key.chunk_ids(),
            committed,
            root,
            packs,
            places,
        })
    }

    /// An object that the receipt vouches for, with the digest it vouches for.
    async fn get_artifact(&self, committed: &CommittedReceipt, object: &str) -> Result<Bytes, ReadError> {
        let receipt = &committed.receipt;
        // By its end: a vault may have been moved or copied since.
        let artifact = receipt
            .artifacts
            .iter()
            .find(|artifact| artifact.uri.ends_with(&format!("/{object}")))
            .ok_or_else(|| ReadError::NothingStored {
                id: receipt.backup_id.clone(),
            })?;
        let bytes = self
            .store()
            .get(object, layout::MANIFEST_BYTES)
            .await
            .map_err(|source| ReadError::store(format!("read {object}"), source))?
            .ok_or_else(|| ReadError::Missing {
                object: object.to_owned(),
            })?;
        if bytes.len() as u64 == artifact.bytes && sha256(&bytes) == artifact.sha256 {
            Ok(bytes)
        } else {
            Err(ReadError::Damaged {
                object: object.to_owned(),
                problem: "its SHA-256 is not the one in the receipt",
            })
        }
    }
}

impl BackupReader {
    /// The receipt of this backup.
    pub const fn receipt(&self) -> &CommittedReceipt {
        &self.committed
    }

    /// Calls `each` for every extent of every entry, with where its chunk lies, which is an error where no index of the
    /// backup says; once for an entry without extents, e.g. a hard link.
    ///
    /// It takes a whole entry list: where that is damaged itself, there is no telling.
    pub(crate) fn for_each_extent(&self, each: &mut EachExtent<'_>) -> Result<(), ReadError> {
        let mut lines = self.lines();
        while let Some(planned) = lines.next_entry()? {
            let mut has_extents = false;
            for part in &planned.parts {
                if let Part::Extent(extent) = part {
                    has_extents = true;
                    each(&planned.entry, Some((extent, self.place(&extent.chunk))));
                }
            }
            if !has_extents {
                each(&planned.entry, None);
            }
        }
        Ok(())
    }

    pub(crate) fn place(&self, chunk: &ChunkId) -> Result<Place, ReadError> {
        let places = &self.places;
        let found = places.binary_search_by_key(chunk, |place| place.chunk).ok();
        found
            .and_then(|at| places.get(at).copied())
            .ok_or(ReadError::ChunkUnknown { chunk: *chunk })
    }

    fn lines(&self) -> ListLines<'_> {
        ListLines {
            reader: self,
            chunks: self.root.chunks.iter(),
            object: layout::manifest(&self.root.backup_id, self.committed.receipt.attempt),
            opener: fetch::Opener::new(self),
            bytes: Vec::new(),
            start: 0,
            entries_left: self.root.entries,
        }
    }
}

impl EntrySource for BackupReader {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut lines = self.lines();
        while let Some(planned) = lines.next_entry()? {
            each(planned.listed())?;
        }
        Ok(())
    }

    fn copy_content(&self, path: &str, out: &mut dyn Write) -> io::Result<()> {
        let mut copied = CopiedContent { out, is_found: false };
        let mut is_taken = false;
        self.replay_where(
            &mut |listed| Ok(listed.entry.path == path && !std::mem::replace(&mut is_taken, true)),
            &mut copied,
        )?;
        match copied.is_found {
            true => Ok(()),
            false => Err(ReadError::NoEntry { path: path.to_owned() }.into()),
        }
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        let mut lines = self.lines();
        let mut next = || -> io::Result<Option<Planned>> {
            while let Some(planned) = lines.next_entry()? {
                if wanted(planned.listed())? {
                    return Ok(Some(planned));
                }
            }
            Ok(None)
        };
        Fetcher::run(self, |fetcher| {
            while let Some(planned) = fetcher.next_entry(&mut next)? {
                let mut hasher = blake3::Hasher::new();
                sink.begin(&planned.entry)?;
                for part in &planned.parts {
                    match part {
                        Part::Hole(bytes) => sink.hole(*bytes)?,
                        Part::Extent(extent) => {
                            let content = fetcher.content(&extent.chunk, &mut next)?;
                            let from = extent.offset as usize;
                            let content = content.get(from..from + extent.bytes as usize);
                            let content = content.ok_or_else(|| planned.corrupt())?;
                            hasher.update(content);
                            sink.write(content)?;
                            fetcher.release(&extent.chunk);
                        }
                    }
                }
                if planned.end.blake3.as_bytes() != hasher.finalize().as_bytes() {
                    return Err(planned.corrupt().into());
                }
                sink.end()?;
            }
            Ok(())
        })
    }
}

/// An entry with all its lines.
pub(crate) struct Planned {
    pub(crate) entry: Entry,
    pub(crate) parts: Vec<Part>,
    end: End,
}

impl Planned {
    fn listed(&self) -> Listed<'_> {
        let holes = self.parts.iter().filter(|part| matches!(part, Part::Hole(_)));
        Listed {
            entry: &self.entry,
            bytes: self.end.bytes,
            hole_bytes: holes.map(Part::bytes).sum(),
            blake3: self.end.blake3,
        }
    }

    fn corrupt(&self) -> ReadError {
        ReadError::EntryCorrupt {
            path: self.entry.path.clone(),
        }
    }
}

/// A sink of one entry's content.
struct CopiedContent<'a> {
    out: &'a mut dyn Write,
    is_found: bool,
}

impl EntrySink for CopiedContent<'_> {
    fn begin(&mut self, _: &Entry) -> io::Result<()> {
        self.is_found = true;
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }
    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of the entry list, chunk by chunk.
struct ListLines<'a> {
    reader: &'a BackupReader,
    chunks: std::slice::Iter<'a, ChunkId>,
    object: String,
    opener: fetch::Opener<'a>,
    bytes: Vec<u8>,
    start: usize,
    entries_left: u64,
}

impl ListLines<'_> {
    fn next_entry(&mut self) -> Result<Option<Planned>, ReadError> {
        let entry = match self.next_line()? {
            None if self.entries_left == 0 => return Ok(None),
            None => return Err(self.malformed("it ends before its last entry")),
            Some(EntryLine::Entry(_)) if self.entries_left == 0 => {
                return Err(self.malformed("it has more entries than it says"));
            }
            Some(EntryLine::Entry(entry)) => *entry,
            Some(_) => return Err(self.malformed("an entry is missing")),
        };
        self.entries_left -= 1;
        let mut parts = Vec::new();
        let mut bytes: u64 = 0;
        loop {
            let part = match self.next_line()? {
                Some(EntryLine::Extent(extent)) => Part::Extent(extent),
                Some(EntryLine::Hole(hole)) => Part::Hole(hole.bytes),
                Some(EntryLine::End(end)) if end.bytes == bytes => {
                    return Ok(Some(Planned { entry, parts, end }));
                }
                Some(EntryLine::End(_)) => return Err(ReadError::EntryCorrupt { path: entry.path }),
                _ => return Err(self.malformed("an entry does not end")),
            };
            let sum = bytes.checked_add(part.bytes());
            bytes = sum.ok_or_else(|| self.malformed("an entry is longer than anything can be"))?;
            parts.push(part);
        }
    }

    fn next_line(&mut self) -> Result<Option<EntryLine>, ReadError> {
        let mut searched = 0;
        loop {
            let waiting = self.bytes.get(self.start..).unwrap_or_default();
            let found = waiting
                .get(searched..)
                .and_then(|rest| rest.iter().position(|b| *b == b'\n'));
            if found.map_or(waiting.len(), |at| searched + at) > ENTRY_LINE_BYTES {
                return Err(self.malformed("a line of it is longer than any may be"));
            }
            if let Some(at) = found {
                let line = waiting.get(..searched + at).unwrap_or_default();
                let parsed = serde_json::from_slice(line).map_err(|e| ReadError::malformed(&self.object, e))?;
                self.start += searched + at + 1;
                return Ok(Some(parsed));
            }
            searched = waiting.len();
            let Some(chunk) = self.chunks.next() else {
                return match searched {
                    0 => Ok(None),
                    _ => Err(self.malformed("it ends within a line")),
                };
            };
            self.bytes.drain(..self.start);
            self.start = 0;
            let place = self.reader.place(chunk)?;
            let content = self.opener.open_one(&place)?;
            self.bytes.extend_from_slice(&content);
        }
    }

    fn malformed(&self, problem: &str) -> ReadError {
        ReadError::malformed(&self.object, format!("the entry list is wrong: {problem}"))
    }
}
