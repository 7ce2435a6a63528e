//! The packs that a backup reuses, each looked at before anything relies on it.
//!
//! An index tells what was stored once. Packs get lost all the same: deleted by hand, cut short by a failing disk, left
//! out by a copy. A backup that reused such a pack would end as a success and never be restored, and so would every
//! later one. So a backup asks its store for each pack before the first chunk of it is reused. That costs few requests:
//! one a pack, at the same time, and a listing of all packs in their place where a backup needs many.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use strongroom_proto::Sha256Digest;

use crate::chunk_index::ChunkPlace;
use crate::error::{StoreError, WriteError};
use crate::layout;
use crate::store::Store;

/// So many packs of a backup are asked for one by one; more take a listing.
const ASKED_PACKS: usize = 64;
/// Requests at the same time.
const REQUESTS: usize = 16;

/// A pack of an earlier backup, or of an earlier part of this one.
pub(super) struct ReusedPack {
    pub(super) pack: Sha256Digest,
    pub(super) index_object: Sha256Digest,
    is_needed: bool,
}

/// What a writer knows of the packs that it may reuse.
#[derive(Default)]
pub(super) struct ReusedPacks {
    /// Those that are in the store, by number.
    there: Vec<ReusedPack>,
    numbers: HashMap<Sha256Digest, u32>,
    /// Those that are not there, or not as they were stored.
    of_no_use: Vec<Sha256Digest>,
    asked: usize,
    /// The sizes of all packs, once they were listed.
    listed: Option<HashMap<Sha256Digest, u64>>,
}

impl ReusedPacks {
    /// The number of a pack that was looked at and is there.
    pub(super) fn number(&self, pack: &Sha256Digest) -> Option<u32> {
        self.numbers.get(pack).copied()
    }

    /// The packs that were looked at and are not there as they were stored.
    pub(super) fn of_no_use(&self) -> &[Sha256Digest] {
        &self.of_no_use
    }

    /// Notes that the backup needs this pack.
    pub(super) fn need(&mut self, number: u32) {
        if let Some(pack) = self.there.get_mut(number as usize) {
            pack.is_needed = true;
        }
    }

    /// The packs that the backup needs.
    pub(super) fn needed(&self) -> impl Iterator<Item = &ReusedPack> {
        self.there.iter().filter(|pack| pack.is_needed)
    }

    /// Notes a pack that this writer has just stored.
    pub(super) fn trust(&mut self, pack: Sha256Digest, index_object: Sha256Digest) {
        let next = self.there.len() as u32;
        self.numbers.entry(pack).or_insert_with(|| {
            self.there.push(ReusedPack {
                pack,
                index_object,
                is_needed: false,
            });
            next
        });
    }

    /// Looks at the packs of these places that nobody has looked at yet; which of them turned out to be of no use.
    ///
    /// An error of the store is an error and never an absence.
    pub(super) async fn look_at(
        &mut self,
        store: &Store,
        places: impl Iterator<Item = &ChunkPlace>,
    ) -> Result<HashSet<Sha256Digest>, WriteError> {
        let mut unseen: HashMap<Sha256Digest, ChunkPlace> = HashMap::new();
        for place in places {
            if !self.numbers.contains_key(&place.pack) && !self.of_no_use.contains(&place.pack) {
                unseen.insert(place.pack, *place);
            }
        }
        if unseen.is_empty() {
            return Ok(HashSet::new());
        }
        if self.listed.is_none() && self.asked + unseen.len() > ASKED_PACKS {
            self.listed = Some(list(store).await.map_err(failed)?);
        }
        let (mut found, mut asked) = (Vec::with_capacity(unseen.len()), Vec::new());
        for place in unseen.into_values() {
            match self.listed.as_ref().and_then(|listed| listed.get(&place.pack)) {
                Some(bytes) => found.push((place, Some(*bytes))),
                // Stored since, perhaps.
                None => asked.push(place),
            }
        }
        self.asked += asked.len();
        let answers = futures::stream::iter(asked)
            .map(|place| async move {
                let size = store.size(&layout::pack(&place.pack)).await?;
                Ok::<_, StoreError>((place, size))
            })
            .buffer_unordered(REQUESTS)
            .try_collect::<Vec<_>>();
        found.extend(answers.await.map_err(failed)?);
        let mut lost = HashSet::new();
        for (place, bytes) in found {
            let is_as_stored = match (bytes, place.pack_bytes) {
                (Some(bytes), Some(expected)) => bytes == expected,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if is_as_stored {
                self.trust(place.pack, place.index_object);
            } else {
                lost.insert(place.pack);
            }
        }
        if let Some(first) = lost.iter().min() {
            tracing::warn!(
                packs = lost.len(),
                first = layout::pack(first),
                "packs of earlier backups are missing or have another size; what this backup needs of them is stored \
                 again; check the vault",
            );
        }
        self.of_no_use.extend(lost.iter().copied());
        Ok(lost)
    }
}

/// The sizes of all packs.
async fn list(store: &Store) -> Result<HashMap<Sha256Digest, u64>, StoreError> {
    let listed = store.list_sizes(layout::PACKS_FOLDER).await?;
    let packs = listed.into_iter().filter_map(|(path, bytes)| {
        let digest: Sha256Digest = path.rsplit('/').next()?.parse().ok()?;
        (layout::pack(&digest) == path).then_some((digest, bytes))
    });
    Ok(packs.collect())
}

fn failed(source: StoreError) -> WriteError {
    WriteError::Store {
        doing: "look at the packs of earlier backups",
        source,
    }
}
