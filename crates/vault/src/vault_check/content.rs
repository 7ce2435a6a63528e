//! The packs and index objects of a vault, each read once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use strongroom_proto::{ChunkId, Sha256Digest};
use zstd::bulk::Decompressor;

use super::{Run, Unchecked};
use crate::age_file;
use crate::codec;
use crate::error::ReadError;
use crate::index::{IndexBody, IndexLine};
use crate::keys::{ChunkIdKey, Identity, MacKey};
use crate::layout;
use crate::store::sha256;

/// Packs read at the same time: a store may be far away, and each is opened by a thread of its own.
const PACK_READS: usize = 4;

/// The keys that index objects were made with; none where the identity does not open them.
type Opened = HashMap<String, Option<(MacKey, ChunkIdKey)>>;

/// What reading a pack came to.
struct PackOutcome {
    digest: Sha256Digest,
    bytes: u64,
    chunks: u64,
    state: PackState,
}

enum PackState {
    Sound,
    Missing,
    /// Its bytes are not those that were stored; these chunks cannot be had any more, where that was looked for.
    Damaged {
        problem: &'static str,
        lost: Vec<ChunkId>,
    },
    Unreadable(ReadError),
    WrongIdentity,
}

impl Run<'_> {
    /// Reads every index object and every pack that is needed.
    pub(super) async fn check_content(&mut self) -> Result<(), ReadError> {
        self.progress
            .expect(self.objects.indexes.len() + self.objects.packs.len());
        let mut left = self.objects.packs.clone();
        let mut opened = Opened::new();
        for digest in self.objects.indexes.clone() {
            let lines = self.check_index(&digest, &mut opened).await?;
            let Some((ids, lines)) = lines else { continue };
            let mut packs: HashMap<Sha256Digest, Vec<IndexLine>> = HashMap::new();
            for line in lines {
                if left.contains(&line.pack) {
                    packs.entry(line.pack).or_default().push(line);
                }
            }
            for digest in packs.keys() {
                left.remove(digest);
            }
            self.check_packs(packs, ids).await?;
        }
        if self.identity.is_some() {
            // Their index object is damaged or cannot be opened, which has been said; they may be whole all the same.
            tracing::debug!(packs = left.len(), "packs are checked by their digest only");
        }
        self.check_packs(left.into_iter().map(|digest| (digest, Vec::new())).collect(), None)
            .await
    }

    /// Reads every pack and index object that no backup needs: the next one may.
    pub(super) async fn check_unlisted(&mut self, listed: &[(String, u64)]) -> Result<(), ReadError> {
        let mut unlisted = Vec::new();
        for (path, _) in listed {
            let Some(digest) = path.rsplit('/').next().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let (needed, use_of_it) = match path.split('/').next() {
                Some(layout::PACKS_FOLDER) => (
                    self.objects.packs.contains(&digest) && *path == layout::pack(&digest),
                    "used by no backup yet; the next one may reuse it",
                ),
                Some(layout::INDEX_FOLDER) => (
                    self.objects.indexes.contains(&digest) && *path == layout::index(&digest),
                    "used by no backup, and the next one does not rely on it either",
                ),
                _ => continue,
            };
            if !needed {
                unlisted.push((path, digest, use_of_it));
            }
        }
        self.progress.expect(unlisted.len());
        let vault = self.vault;
        let mut outcomes = futures::stream::iter(unlisted)
            .map(|(path, digest, use_of_it)| async move {
                let found = vault.store().digest(path).await;
                (path, digest, use_of_it, found)
            })
            .buffer_unordered(PACK_READS);
        while let Some((path, digest, use_of_it, found)) = outcomes.next().await {
            match found.map_err(|source| ReadError::store(format!("check {path}"), source)) {
                Ok(Some((found, bytes))) => {
                    self.count(bytes);
                    if found != digest {
                        self.damage(path.clone(), format!("does not match its digest: {use_of_it}"));
                    }
                }
                // Swept since the vault was listed.
                Ok(None) => self.count(0),
                Err(error) => self.take_error(error)?,
            }
        }
        Ok(())
    }

    /// Checks an index object; its lines, and the key of the chunk ids in it, where there is an identity to use them.
    async fn check_index(
        &mut self,
        digest: &Sha256Digest,
        opened: &mut Opened,
    ) -> Result<Option<(Option<ChunkIdKey>, Vec<IndexLine>)>, ReadError> {
        let object = layout::index(digest);
        let found = self.vault.store().get(&object, layout::INDEX_OBJECT_BYTES).await;
        let bytes = match found.map_err(|source| ReadError::store(format!("check {object}"), source)) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.damage(object, "is missing");
                return Ok(None);
            }
            Err(error) => return self.take_error(error).map(|()| None),
        };
        self.count(bytes.len() as u64);
        let body = match IndexBody::open(digest, &bytes) {
            Ok(body) => body,
            Err(error) => return self.take_error(error).map(|()| None),
        };
        let keys = body.keys.clone();
        if !self.knows(&keys) {
            self.damage(
                object,
                format!(
                    "goes with generation {} of the keys, which is gone or another",
                    keys.generation
                ),
            );
            return Ok(None);
        }
        let Some(identity) = self.identity else {
            return Ok(None);
        };
        if !opened.contains_key(&keys.writer_key) {
            let key = match self.vault.open_writer_key(&keys.writer_key, identity).await {
                Ok(key) => Some((key.macs(), key.chunk_ids())),
                Err(error) => {
                    self.take_error(error)?;
                    None
                }
            };
            opened.insert(keys.writer_key.clone(), key);
        }
        let Some(Some((macs, ids))) = opened.get(&keys.writer_key) else {
            return Ok(None);
        };
        let mut lines = Vec::new();
        match body.for_each(macs, |line| lines.push(line)) {
            Ok(()) => Ok(Some((Some(ids.clone()), lines))),
            Err(error) => self.take_error(error).map(|()| None),
        }
    }

    async fn check_packs(
        &mut self,
        packs: HashMap<Sha256Digest, Vec<IndexLine>>,
        ids: Option<ChunkIdKey>,
    ) -> Result<(), ReadError> {
        let (vault, identity) = (
            self.vault.clone(),
            self.identity.map(|identity| Arc::new(identity.clone())),
        );
        let mut outcomes = futures::stream::iter(packs)
            .map(|(digest, lines)| {
                let (vault, identity, ids) = (vault.clone(), identity.clone(), ids.clone());
                async move {
                    let outcome = |bytes, chunks, state| PackOutcome {
                        digest,
                        bytes,
                        chunks,
                        state,
                    };
                    let object = layout::pack(&digest);
                    let (Some(identity), Some(ids)) = (identity, ids) else {
                        return match vault.store().digest(&object).await {
                            Ok(Some((found, bytes))) if found == digest => outcome(bytes, 0, PackState::Sound),
                            Ok(Some((_, bytes))) => outcome(
                                bytes,
                                0,
                                PackState::Damaged {
                                    problem: "does not match its digest",
                                    lost: Vec::new(),
                                },
                            ),
                            Ok(None) => outcome(0, 0, PackState::Missing),
                            Err(source) => {
                                let error = ReadError::store(format!("check {object}"), source);
                                outcome(0, 0, PackState::Unreadable(error))
                            }
                        };
                    };
                    let bytes = match vault.store().get(&object, layout::PACK_OBJECT_BYTES).await {
                        Ok(Some(bytes)) => bytes,
                        Ok(None) => return outcome(0, 0, PackState::Missing),
                        Err(source) => {
                            let error = ReadError::store(format!("check {object}"), source);
                            return outcome(0, 0, PackState::Unreadable(error));
                        }
                    };
                    let (size, chunks) = (bytes.len() as u64, lines.len() as u64);
                    let checked =
                        tokio::task::spawn_blocking(move || check_pack(&digest, &bytes, &lines, &identity, &ids));
                    let state = checked.await.unwrap_or_else(|_| {
                        PackState::Unreadable(ReadError::Interrupted {
                            doing: format!("check {object}"),
                        })
                    });
                    outcome(size, chunks, state)
                }
            })
            .buffer_unordered(PACK_READS);
        while let Some(outcome) = outcomes.next().await {
            let object = layout::pack(&outcome.digest);
            if outcome.bytes > 0 {
                self.count(outcome.bytes);
                self.report.chunks += outcome.chunks;
            }
            match outcome.state {
                PackState::Sound => {}
                PackState::Missing => drop(self.damage(object, "is missing")),
                PackState::Damaged { problem, lost } => self.damage(object, problem).chunks = lost,
                PackState::Unreadable(error) => self.take_error(error)?,
                PackState::WrongIdentity => {
                    self.report.chunks -= outcome.chunks;
                    self.report.unchecked.push(Unchecked {
                        object,
                        reason: "the identity does not open it".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Opens every chunk of a pack and compares it with its id.
fn check_pack(
    digest: &Sha256Digest,
    bytes: &Bytes,
    lines: &[IndexLine],
    identity: &Identity,
    ids: &ChunkIdKey,
) -> PackState {
    let is_as_stored = sha256(bytes) == *digest;
    let all_lost = |problem| PackState::Damaged {
        problem,
        lost: lines.iter().map(|line| line.chunk).collect(),
    };
    let file = match age_file::open(bytes, bytes.len() as u64, identity) {
        Ok(file) => file,
        Err(age::DecryptError::NoMatchingKeys) if is_as_stored => return PackState::WrongIdentity,
        Err(_) if is_as_stored => return all_lost("is no age file, though it matches its digest"),
        Err(_) => return all_lost("does not match its digest"),
    };
    let Ok(mut decoder) = Decompressor::new() else {
        return PackState::Unreadable(ReadError::Interrupted {
            doing: format!("check {}", layout::pack(digest)),
        });
    };
    let content_bytes = file.content_bytes().unwrap_or(0);
    // All at once; where that fails, chunk by chunk, so that only what the damage reaches is lost.
    let open = |from: u64, to: u64| {
        let segments = file.segments(from..to);
        let mut part = bytes.get(segments.start as usize..segments.end as usize)?.to_vec();
        file.open_segments(segments, &mut part).ok()?;
        Some((part, segments.lead))
    };
    let whole = match content_bytes {
        0 => None,
        content_bytes => open(0, content_bytes).map(|(whole, _)| whole),
    };
    let mut raw = Vec::new();
    let mut lost = Vec::new();
    for line in lines {
        let (from, stored) = (line.offset, line.stored as usize);
        let part;
        let frame = match &whole {
            Some(whole) => whole.get(from as usize..).and_then(|rest| rest.get(..stored)),
            None if from + line.stored as u64 > content_bytes => None,
            None => {
                part = open(from, from + line.stored as u64);
                part.as_ref().and_then(|(part, lead)| part.get(*lead..lead + stored))
            }
        };
        let is_right = frame.is_some_and(|frame| {
            codec::decode(&mut decoder, frame, line.raw as usize, &mut raw).is_ok() && ids.id(&raw) == line.chunk
        });
        if !is_right {
            lost.push(line.chunk);
        }
    }
    match (is_as_stored, lost.is_empty()) {
        (true, true) => PackState::Sound,
        (false, _) => PackState::Damaged {
            problem: "does not match its digest",
            lost,
        },
        (true, false) => PackState::Damaged {
            problem: "holds chunks that are not what their ids promise, though it matches its digest",
            lost,
        },
    }
}
