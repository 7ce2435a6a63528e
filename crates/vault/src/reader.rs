//! Reading a backup: every byte handed out has been checked against its chunk's keyed id, every entry against its
//! digest.
//!
//! The chain of trust: a signer's key, the receipt, the digests of manifest and list of packs in it, the digests of
//! index objects in that list. Memory is bounded: a chunk or two, [`PACKS_OPEN`] packs with two read windows each, and
//! the index of this backup, about 50 bytes a chunk.

use std::io::{self, Read, Seek, SeekFrom, Write};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use strongroom_proto::manifest::{Entry, EntrySink, EntrySource, Listed};
use strongroom_proto::{BackupId, ChunkId, Sha256Digest};
use tokio::runtime::Handle;
use zstd::bulk::Decompressor;

use crate::codec;
use crate::commit::CommittedReceipt;
use crate::error::ReadError;
use crate::index;
use crate::keys::{ChunkIdKey, Identity};
use crate::layout;
use crate::manifest::{ENTRY_LINE_BYTES, End, EntryLine, Extent, Needed, Root};
use crate::ranged::RangedObject;
use crate::store::sha256;
use crate::vault::Vault;

/// Packs open at the same time; a backup that reuses much jumps between as many as there were changes.
const PACKS_OPEN: usize = 6;
/// Index objects read at the same time.
const INDEX_READS: usize = 4;

/// Where a chunk lies in a decrypted pack.
#[derive(Debug, Clone, Copy)]
struct Place {
    chunk: ChunkId,
    pack: u32,
    offset: u64,
    stored_bytes: u32,
    raw_bytes: u32,
}

/// Reads one backup; its [`EntrySource`] calls block and belong on a thread that may.
pub struct BackupReader {
    vault: Vault,
    runtime: Handle,
    identity: Identity,
    ids: ChunkIdKey,
    committed: CommittedReceipt,
    root: Root,
    packs: Vec<Sha256Digest>,
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

        let writer_key = self.open_writer_key(self.writer_key_id(), identity).await?;
        self.check_writer_key(&writer_key).await?;

        let root = Root::open(&manifest_name, &manifest, identity)?;
        if root.backup_id != *id {
            return Err(ReadError::Misplaced {
                object: manifest_name,
                found: root.backup_id.to_string(),
                expected: id.to_string(),
            });
        }
        let needed = Needed::decode(&list_name, &list)?;
        let packs: Vec<Sha256Digest> = needed.packs().collect();
        let macs = writer_key.macs();
        let mut places = Vec::new();
        let mut objects = futures::stream::iter(needed.indexes())
            .map(|digest| async move { Ok::<_, ReadError>((digest, index::get(self.store(), &digest).await?)) })
            .buffer_unordered(INDEX_READS);
        while let Some((digest, bytes)) = objects.try_next().await? {
            index::decode(&digest, &bytes, &macs, |line| {
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

    fn fetcher(&self) -> Result<Fetcher<'_>, ReadError> {
        Ok(Fetcher {
            reader: self,
            open: Vec::with_capacity(PACKS_OPEN),
            decoder: Decompressor::new().map_err(|source| ReadError::malformed("zstd", source))?,
            frame: Vec::new(),
            content: None,
        })
    }

    fn lines(&self) -> ListLines<'_> {
        ListLines {
            chunks: self.root.chunks.iter(),
            object: layout::manifest(&self.root.backup_id, self.committed.receipt.attempt),
            bytes: Vec::new(),
            start: 0,
            raw: Vec::new(),
            entries_left: self.root.entries,
        }
    }
}

impl EntrySource for BackupReader {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut fetcher = self.fetcher()?;
        let mut lines = self.lines();
        while let Some(entry) = lines.next_entry(&mut fetcher)? {
            let end = loop {
                match lines.next_part(&mut fetcher)? {
                    Part::Extent(_) => {}
                    Part::End(end) => break end,
                }
            };
            each(Listed {
                entry: &entry,
                bytes: end.bytes,
                hole_bytes: 0,
                blake3: end.blake3,
            })?;
        }
        Ok(())
    }

    fn copy_content(&self, path: &str, out: &mut dyn Write) -> io::Result<()> {
        let mut fetcher = self.fetcher()?;
        let mut lines = self.lines();
        while let Some(entry) = lines.next_entry(&mut fetcher)? {
            if entry.path == path {
                return copy_entry(&entry, &mut lines, &mut fetcher, &mut |bytes| out.write_all(bytes));
            }
            while let Part::Extent(_) = lines.next_part(&mut fetcher)? {}
        }
        Err(ReadError::NoEntry { path: path.to_owned() }.into())
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        let _ = wanted;
        let mut fetcher = self.fetcher()?;
        let mut lines = self.lines();
        while let Some(entry) = lines.next_entry(&mut fetcher)? {
            sink.begin(&entry)?;
            copy_entry(&entry, &mut lines, &mut fetcher, &mut |bytes| sink.write(bytes))?;
            sink.end()?;
        }
        Ok(())
    }
}

/// Copies the content of the entry whose first line was just read; an error where it is not what was written.
fn copy_entry(
    entry: &Entry,
    lines: &mut ListLines<'_>,
    fetcher: &mut Fetcher<'_>,
    out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    let corrupt = || ReadError::EntryCorrupt {
        path: entry.path.clone(),
    };
    loop {
        match lines.next_part(fetcher)? {
            Part::Extent(extent) => {
                let raw = fetcher.content(&extent.chunk)?;
                let from = extent.offset as usize;
                let part = raw.get(from..from + extent.bytes as usize).ok_or_else(corrupt)?;
                hasher.update(part);
                bytes += part.len() as u64;
                out(part)?;
            }
            Part::End(end) if end.bytes == bytes && end.blake3.as_bytes() == hasher.finalize().as_bytes() => {
                return Ok(());
            }
            Part::End(_) => return Err(corrupt().into()),
        }
    }
}

enum Part {
    Extent(Extent),
    End(End),
}

/// The lines of the entry list, chunk by chunk.
struct ListLines<'a> {
    chunks: std::slice::Iter<'a, ChunkId>,
    object: String,
    bytes: Vec<u8>,
    start: usize,
    raw: Vec<u8>,
    entries_left: u64,
}

impl ListLines<'_> {
    fn next_entry(&mut self, fetcher: &mut Fetcher<'_>) -> Result<Option<Entry>, ReadError> {
        match self.next_line(fetcher)? {
            None if self.entries_left == 0 => Ok(None),
            None => Err(self.malformed("it ends before its last entry")),
            Some(EntryLine::Entry(_)) if self.entries_left == 0 => {
                Err(self.malformed("it has more entries than it says"))
            }
            Some(EntryLine::Entry(entry)) => {
                self.entries_left -= 1;
                Ok(Some(*entry))
            }
            Some(_) => Err(self.malformed("an entry is missing")),
        }
    }

    fn next_part(&mut self, fetcher: &mut Fetcher<'_>) -> Result<Part, ReadError> {
        match self.next_line(fetcher)? {
            Some(EntryLine::Extent(extent)) => Ok(Part::Extent(extent)),
            Some(EntryLine::End(end)) => Ok(Part::End(end)),
            _ => Err(self.malformed("an entry does not end")),
        }
    }

    fn next_line(&mut self, fetcher: &mut Fetcher<'_>) -> Result<Option<EntryLine>, ReadError> {
        let mut searched = 0;
        loop {
            let waiting = self.bytes.get(self.start..).unwrap_or_default();
            let found = waiting
                .get(searched..)
                .and_then(|rest| rest.iter().position(|b| *b == b'\n'));
            if let Some(at) = found {
                let line = waiting.get(..searched + at).unwrap_or_default();
                let parsed = serde_json::from_slice(line).map_err(|e| ReadError::malformed(&self.object, e))?;
                self.start += searched + at + 1;
                return Ok(Some(parsed));
            }
            searched = waiting.len();
            if searched > ENTRY_LINE_BYTES {
                return Err(self.malformed("a line of it is longer than any may be"));
            }
            let Some(chunk) = self.chunks.next() else {
                return match searched {
                    0 => Ok(None),
                    _ => Err(self.malformed("it ends within a line")),
                };
            };
            self.bytes.drain(..self.start);
            self.start = 0;
            fetcher.fetch(chunk, &mut self.raw)?;
            self.bytes.extend_from_slice(&self.raw);
        }
    }

    fn malformed(&self, problem: &str) -> ReadError {
        ReadError::malformed(&self.object, format!("the entry list is wrong: {problem}"))
    }
}

/// Fetches chunks, keeping the packs they come from open for the next.
struct Fetcher<'a> {
    reader: &'a BackupReader,
    /// The most recently used last.
    open: Vec<(u32, age::stream::StreamReader<RangedObject>)>,
    decoder: Decompressor<'static>,
    frame: Vec<u8>,
    /// The content chunk fetched last: small entries share one.
    content: Option<(ChunkId, Vec<u8>)>,
}

impl Fetcher<'_> {
    fn content(&mut self, chunk: &ChunkId) -> Result<&[u8], ReadError> {
        let (held, mut raw) = self.content.take().unzip();
        let mut raw = raw.take().unwrap_or_default();
        if held != Some(*chunk) {
            self.fetch(chunk, &mut raw)?;
        }
        Ok(&self.content.insert((*chunk, raw)).1)
    }

    /// Puts the chunk's content, checked, into `raw`.
    fn fetch(&mut self, chunk: &ChunkId, raw: &mut Vec<u8>) -> Result<(), ReadError> {
        let places = &self.reader.places;
        let place = places
            .binary_search_by_key(chunk, |place| place.chunk)
            .ok()
            .and_then(|at| places.get(at).copied())
            .ok_or(ReadError::ChunkUnknown { chunk: *chunk })?;
        let pack_name = || {
            let digest = self.reader.packs.get(place.pack as usize);
            digest.map(ToString::to_string).unwrap_or_default()
        };
        let mut pack = self.take_open(place.pack)?;
        self.frame.clear();
        self.frame.resize(place.stored_bytes as usize, 0);
        let read = pack
            .seek(SeekFrom::Start(place.offset))
            .and_then(|_| pack.read_exact(&mut self.frame));
        read.map_err(|source| ReadError::ReadChunk {
            chunk: *chunk,
            pack: pack_name(),
            source,
        })?;
        self.open.push((place.pack, pack));
        let corrupt = || ReadError::ChunkCorrupt {
            chunk: *chunk,
            pack: pack_name(),
        };
        codec::decode(&mut self.decoder, &self.frame, place.raw_bytes as usize, raw).map_err(|_| corrupt())?;
        if self.reader.ids.id(raw) == *chunk {
            Ok(())
        } else {
            Err(corrupt())
        }
    }

    fn take_open(&mut self, number: u32) -> Result<age::stream::StreamReader<RangedObject>, ReadError> {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == number) {
            return Ok(self.open.remove(at).1);
        }
        if self.open.len() >= PACKS_OPEN {
            self.open.remove(0);
        }
        let reader = self.reader;
        let digest = reader.packs.get(number as usize).copied();
        let object = digest.map(|digest| layout::pack(&digest)).unwrap_or_default();
        let ranged = RangedObject::open(reader.vault.store().clone(), reader.runtime.clone(), object.clone())?;
        reader.identity.open(ranged).map_err(|source| match source {
            age::DecryptError::NoMatchingKeys => ReadError::WrongIdentity {
                object,
                source: Box::new(source),
            },
            source => ReadError::malformed(object, source),
        })
    }
}
