//! Reading WAL: every byte handed out was signed by a signer of the vault, for the place it was asked for.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use strongroom_proto::Sha256Digest;
use strongroom_proto::wal::{StoredPiece, SystemIdentifier, WalPiece, WalSegment, WalSource};

use super::is_in_one_segment;
use super::object::{self, Opened, StatementOf};
use crate::error::ReadError;
use crate::keys::Identity;
use crate::layout::{self, WalObject};
use crate::store::sha256;
use crate::vault::Vault;

/// The size of segments of nearly every cluster.
const USUAL_SEGMENT_BYTES: u32 = 16 * 1024 * 1024;
/// How many copies of a timeline's history are read at once.
const HISTORIES_AT_ONCE: usize = 8;

/// Reads WAL from a vault. Many calls may run at once.
pub struct WalReader {
    vault: Vault,
    identity: Arc<Identity>,
    /// The size of segments that was found last.
    segment_bytes: AtomicU32,
}

impl std::fmt::Debug for WalReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalReader")
            .field("vault", &self.vault)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// All WAL that the vault holds, as the names tell, by cluster; nothing is opened, and no key is needed.
    pub async fn stored_wal(&self) -> Result<BTreeMap<SystemIdentifier, Vec<StoredPiece>>, ReadError> {
        let mut clusters: BTreeMap<SystemIdentifier, Vec<StoredPiece>> = BTreeMap::new();
        for (piece, stored) in list_pieces(self, layout::WAL_FOLDER).await? {
            clusters.entry(piece.system_identifier).or_default().push(stored);
        }
        Ok(clusters)
    }

    /// A reader of WAL.
    pub fn wal_reader(&self, identity: Arc<Identity>) -> WalReader {
        WalReader {
            vault: self.clone(),
            identity,
            segment_bytes: AtomicU32::new(USUAL_SEGMENT_BYTES),
        }
    }
}

/// Every size that segments can have.
fn segment_sizes() -> impl Iterator<Item = u32> {
    (20..=30).map(|power| 1 << power)
}

impl WalReader {
    async fn pieces_of(
        &self,
        system: SystemIdentifier,
        segment: WalSegment,
        segment_bytes: u32,
    ) -> Result<Vec<StoredPiece>, ReadError> {
        let folder = layout::wal_segment(system, segment, segment_bytes);
        let found = list_pieces(&self.vault, &folder).await?;
        // A file of this name is another segment where segments are of another size.
        let is_of_size = |(piece, stored): (WalPiece, _)| (piece.segment_bytes == segment_bytes).then_some(stored);
        Ok(found.into_iter().filter_map(is_of_size).collect())
    }

    async fn get(&self, object: &WalObject, digest: &Sha256Digest) -> Result<(StatementOf, Vec<u8>), ReadError> {
        let path = object.path(digest);
        let found = self.vault.store().get(&path, object::limit_bytes(object)).await;
        let sealed = found.map_err(|source| ReadError::store(format!("read {path}"), source))?;
        let sealed = sealed.ok_or(ReadError::Missing { object: path })?;
        open_object(&self.vault, object, digest, sealed, &self.identity).await
    }
}

/// Opens an object by what its name tells, and checks everything it says of itself.
pub(crate) async fn open_object(
    vault: &Vault,
    object: &WalObject,
    digest: &Sha256Digest,
    sealed: Bytes,
    identity: &Arc<Identity>,
) -> Result<(StatementOf, Vec<u8>), ReadError> {
    let path = object.path(digest);
    let (opening, digest, identity) = (path.clone(), *digest, Arc::clone(identity));
    let opened = blocking(&path, move || {
        if sha256(&sealed) != digest {
            return Err(ReadError::Damaged {
                object: opening,
                problem: "its SHA-256 is not its name",
            });
        }
        Opened::open(&opening, &sealed, &identity)
    })
    .await?;
    if let Err(error) = opened.check_signature(&path, vault.public_lines()) {
        // Its signer may have come with newer keys than those this vault was opened with.
        match vault.newer().await? {
            Some(newer) => opened.check_signature(&path, newer.public_lines())?,
            None => return Err(error),
        }
    }
    let (reading, object, vault_id) = (path.clone(), object.clone(), vault.id());
    blocking(&path, move || opened.read(&reading, vault_id, &object)).await
}

async fn blocking<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| {
        Err(ReadError::Interrupted {
            doing: format!("read {path}"),
        })
    })
}

/// The pieces in a folder, in the order of where they begin.
pub(super) async fn list_pieces(vault: &Vault, folder: &str) -> Result<Vec<(WalPiece, StoredPiece)>, ReadError> {
    let listed = vault.store().list_times(folder).await;
    let listed = listed.map_err(|source| ReadError::store(format!("list {folder}"), source))?;
    let mut pieces: Vec<(WalPiece, StoredPiece)> = listed
        .iter()
        .filter_map(|(path, stored_at)| match layout::wal_object(path)? {
            (WalObject::Piece(piece), sha256) => Some((
                piece.clone(),
                StoredPiece {
                    timeline: piece.timeline,
                    from: piece.from,
                    to: piece.to,
                    sha256,
                    stored_at: *stored_at,
                },
            )),
            (WalObject::History { .. }, _) => None,
        })
        .collect();
    pieces.sort_by_key(|(_, stored)| (stored.from, stored.to, stored.stored_at));
    Ok(pieces)
}

#[async_trait]
impl WalSource for WalReader {
    async fn timelines(&self, system: SystemIdentifier) -> io::Result<Vec<u32>> {
        let store = self.vault.store();
        let failed = |source| ReadError::store(format!("list the WAL of cluster {system}"), source);
        let names = store.list_folders(&layout::wal_cluster(system)).await.map_err(failed)?;
        let mut timelines = Vec::new();
        for name in names {
            let timeline = u32::from_str_radix(&name, 16).unwrap_or(0);
            let folder = layout::wal_timeline(system, timeline);
            let is_one = timeline > 0 && folder.ends_with(&name);
            if is_one && store.has_any(&folder).await.map_err(failed)? {
                timelines.push(timeline);
            }
        }
        timelines.sort_unstable();
        Ok(timelines)
    }

    async fn segment_pieces(&self, system: SystemIdentifier, segment: WalSegment) -> io::Result<Vec<StoredPiece>> {
        let known = self.segment_bytes.load(Ordering::Relaxed);
        let found = self.pieces_of(system, segment, known).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        let others = segment_sizes().filter(|size| *size != known);
        let lists = others.map(|size| async move { Ok((size, self.pieces_of(system, segment, size).await?)) });
        let lists: Vec<(u32, Vec<StoredPiece>)> = try_join_all(lists).await.map_err(|error: ReadError| error)?;
        Ok(match lists.into_iter().find(|(_, pieces)| !pieces.is_empty()) {
            Some((size, pieces)) => {
                self.segment_bytes.store(size, Ordering::Relaxed);
                pieces
            }
            None => Vec::new(),
        })
    }

    async fn segments(&self, system: SystemIdentifier, timeline: u32) -> io::Result<Vec<WalSegment>> {
        let pieces = list_pieces(&self.vault, &layout::wal_timeline(system, timeline)).await?;
        let mut segments: Vec<WalSegment> = pieces.iter().map(|(piece, _)| piece.segment()).collect();
        segments.sort_unstable();
        segments.dedup();
        Ok(segments)
    }

    async fn read(&self, system: SystemIdentifier, piece: &StoredPiece) -> io::Result<(WalPiece, Vec<u8>)> {
        // Its name has the size of segments in it, which is nearly always that of the piece before.
        let known = self.segment_bytes.load(Ordering::Relaxed);
        let others = segment_sizes().filter(|size| *size != known);
        let mut missing = None;
        for segment_bytes in std::iter::once(known).chain(others) {
            let named = WalPiece {
                system_identifier: system,
                timeline: piece.timeline,
                from: piece.from,
                to: piece.to,
                segment_bytes,
                server_time: None,
            };
            if named.is_empty() || !is_in_one_segment(&named) {
                continue;
            }
            match self.get(&WalObject::Piece(named), &piece.sha256).await {
                Ok((StatementOf::WalPiece(said), bytes)) => return Ok((said, bytes)),
                Ok((StatementOf::WalHistory { .. }, _)) => {}
                Err(error @ ReadError::Missing { .. }) => missing = missing.or(Some(error)),
                Err(error) => return Err(error.into()),
            }
        }
        let object = format!("the WAL from {} to {}", piece.from, piece.to);
        Err(missing.unwrap_or(ReadError::Missing { object }).into())
    }

    async fn history(&self, system: SystemIdentifier, timeline: u32) -> io::Result<Option<String>> {
        let folder = layout::wal_histories(system, timeline);
        let listed = self.vault.store().list(&folder).await;
        let listed = listed.map_err(|source| ReadError::store(format!("list {folder}"), source))?;
        let candidates: Vec<(WalObject, Sha256Digest)> = listed
            .iter()
            .filter_map(|path| layout::wal_object(path))
            .filter(|(object, _)| matches!(object, WalObject::History { .. }))
            .collect();
        let mut read = futures::stream::iter(candidates)
            .map(|(object, digest)| async move { self.get(&object, &digest).await })
            .buffer_unordered(HISTORIES_AT_ONCE);
        let mut history: Option<Vec<u8>> = None;
        let mut set_aside: Option<ReadError> = None;
        while let Some(candidate) = read.next().await {
            match candidate {
                Ok((_, text)) => match &history {
                    Some(before) if *before != text => return Err(ReadError::Contradiction { folder }.into()),
                    _ => history = Some(text),
                },
                // Anybody who can write to the store can put one there; a sound one beside it says the same as ever.
                Err(error) if error.is_bad_object() => {
                    tracing::warn!(%system, timeline, %error, "a copy of a timeline's history is set aside");
                    set_aside = set_aside.or(Some(error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let (None, Some(error)) = (&history, set_aside) {
            return Err(error.into());
        }
        let text = history.map(String::from_utf8).transpose();
        Ok(text.map_err(|source| ReadError::malformed(folder, source))?)
    }
}
