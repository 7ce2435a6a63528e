//! Which backups, and with an identity which files, each damaged object concerns.
//!
//! The lists of backups are read a second time for this, so that a check need not remember who needs what.

use std::collections::{HashMap, HashSet};

use strongroom_proto::manifest::{Entry, EntryKind};
use strongroom_proto::{BackupId, ChunkId, Sha256Digest};

use super::{HitBackup, HitFiles, NAMED_FILES, Run};
use crate::error::ReadError;
use crate::keys::Identity;
use crate::layout;
use crate::manifest::Needed;
use crate::vault::Vault;

/// What is lost of a damaged pack.
#[derive(Clone)]
enum Lost {
    All,
    Chunks(HashSet<ChunkId>),
}

impl Run<'_> {
    /// Adds to every damaged object the backups it concerns; with an identity reads every entry list.
    pub(super) async fn name_hits(&mut self, backups: &[BackupId]) -> Result<(), ReadError> {
        let mut lost = HashMap::new();
        for damaged in self.damaged.values() {
            if let Some(digest) = digest_in(&damaged.object, layout::PACKS_FOLDER) {
                let is_opened = self.identity.is_some() && damaged.problem != "is missing";
                let chunks = damaged.chunks.iter().copied().collect();
                lost.insert(digest, if is_opened { Lost::Chunks(chunks) } else { Lost::All });
            }
        }
        if lost.is_empty() && self.damaged.is_empty() && self.identity.is_none() {
            return Ok(());
        }
        for id in backups {
            self.name_hits_of(id, &lost).await?;
        }
        Ok(())
    }

    async fn name_hits_of(&mut self, id: &BackupId, lost: &HashMap<Sha256Digest, Lost>) -> Result<(), ReadError> {
        let folder = format!("{}/{id}/", layout::BACKUPS_FOLDER);
        let own: Vec<String> = self
            .damaged
            .keys()
            .filter(|object| object.starts_with(&folder))
            .cloned()
            .collect();
        let is_evidence = |object: &str| {
            [layout::verifications_folder(id), layout::restores_folder(id)]
                .iter()
                .any(|f| object.starts_with(f))
        };
        for object in &own {
            let files = match is_evidence(object) {
                // Its content does not depend on what was said of it later.
                true => HitFiles::Named {
                    count: 0,
                    paths: Vec::new(),
                },
                false => HitFiles::All {
                    reason: "it cannot be opened without this object".to_owned(),
                },
            };
            self.add_hit(object, id, files);
        }
        if own.iter().any(|object| !is_evidence(object)) {
            return Ok(());
        }
        let needed = match self.needed(id).await {
            Ok(Some(needed)) => needed,
            Ok(None) => return Ok(()),
            Err(error) => return self.take_error(error),
        };
        let damaged_indexes: Vec<String> = needed
            .indexes()
            .map(|digest| layout::index(&digest))
            .filter(|object| self.damaged.contains_key(object))
            .collect();
        let damaged_packs: Vec<Sha256Digest> = needed.packs().filter(|digest| lost.contains_key(digest)).collect();
        drop(needed);
        for object in &damaged_indexes {
            let files = match self.identity {
                Some(_) => HitFiles::All {
                    reason: "it cannot be opened without this object".to_owned(),
                },
                None => HitFiles::NotLookedFor,
            };
            self.add_hit(object, id, files);
        }
        let Some(identity) = self.identity.filter(|_| damaged_indexes.is_empty()) else {
            for digest in damaged_packs {
                self.add_hit(&layout::pack(&digest), id, HitFiles::NotLookedFor);
            }
            return Ok(());
        };
        let hits = files_hit(self.vault, id, identity, lost, &damaged_packs).await;
        match hits {
            Ok(hits) => {
                self.report.entries += hits.entries;
                if !hits.unresolved.is_empty() {
                    let manifest = self.manifest_of(id).await?;
                    self.damage(manifest.clone(), "names content that no index of the backup has");
                    let files = named(hits.unresolved);
                    self.add_hit(&manifest, id, files);
                }
                for (digest, files) in hits.by_pack {
                    self.add_hit(&layout::pack(&digest), id, named(files));
                }
            }
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                if damaged_packs.is_empty() {
                    self.take_error(error)?;
                } else {
                    // Its list of entries lies in one of them.
                    for digest in damaged_packs {
                        let reason = "its list of entries cannot be read any more".to_owned();
                        self.add_hit(&layout::pack(&digest), id, HitFiles::All { reason });
                    }
                }
            }
        }
        Ok(())
    }

    async fn needed(&self, id: &BackupId) -> Result<Option<Needed>, ReadError> {
        let Some(committed) = self.vault.receipt(id).await? else {
            return Ok(None);
        };
        let object = layout::packs_list(id, committed.receipt.attempt);
        let bytes = self.vault.store().get(&object, layout::MANIFEST_BYTES).await;
        let bytes = bytes.map_err(|source| ReadError::store(format!("read {object}"), source))?;
        bytes.map(|bytes| Needed::decode(&object, &bytes)).transpose()
    }

    async fn manifest_of(&self, id: &BackupId) -> Result<String, ReadError> {
        let committed = self.vault.receipt(id).await?;
        let committed = committed.ok_or_else(|| ReadError::NoBackup { id: id.clone() })?;
        Ok(layout::manifest(id, committed.receipt.attempt))
    }

    fn add_hit(&mut self, object: &str, id: &BackupId, files: HitFiles) {
        if let Some(damaged) = self.damaged.get_mut(object) {
            damaged.backups.push(HitBackup {
                backup_id: id.clone(),
                files,
            });
        }
    }
}

fn digest_in(object: &str, folder: &str) -> Option<Sha256Digest> {
    object.strip_prefix(folder)?.rsplit('/').next()?.parse().ok()
}

/// The first files that are hit, and how many there are.
#[derive(Default)]
struct Files {
    count: u64,
    first: Vec<String>,
    last: Option<String>,
    /// All of them, for the hard links to them that come later.
    all: HashSet<NameDigest>,
}

/// The beginning of a name's digest: names can be long, and there may be many.
type NameDigest = [u8; 16];

fn digest_of_name(name: &str, hex_digits: Option<&str>) -> NameDigest {
    let bytes = hex_digits.and_then(|digits| hex::decode(digits).ok());
    let digest = blake3::hash(bytes.as_deref().unwrap_or(name.as_bytes()));
    digest.as_bytes().first_chunk().copied().unwrap_or_default()
}

impl Files {
    /// Entries come in order, each perhaps several times.
    fn add(&mut self, entry: &Entry) {
        let path = &entry.path;
        if self.last.as_ref() == Some(path) {
            return;
        }
        self.last = Some(path.clone());
        self.all.insert(digest_of_name(path, entry.path_hex.as_deref()));
        self.count += 1;
        if self.first.len() < NAMED_FILES {
            self.first.push(path.clone());
        }
    }

    /// Adds a hard link to one of the files, whose content it shares.
    fn add_link(&mut self, entry: &Entry, target: &NameDigest) {
        if self.all.contains(target) {
            self.add(entry);
        }
    }

    const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

fn named(files: Files) -> HitFiles {
    HitFiles::Named {
        count: files.count,
        paths: files.first,
    }
}

struct Hits {
    entries: u64,
    by_pack: Vec<(Sha256Digest, Files)>,
    unresolved: Files,
}

/// Walks a backup's entry list.
async fn files_hit(
    vault: &Vault,
    id: &BackupId,
    identity: &Identity,
    lost: &HashMap<Sha256Digest, Lost>,
    packs: &[Sha256Digest],
) -> Result<Hits, ReadError> {
    let reader = vault.open_backup(id, identity).await?;
    let mut lost: HashMap<Sha256Digest, (Lost, Files)> = packs
        .iter()
        .filter_map(|digest| Some((*digest, (lost.get(digest)?.clone(), Files::default()))))
        .collect();
    let walked = tokio::task::spawn_blocking(move || {
        let (mut entries, mut unresolved) = (0_u64, Files::default());
        let mut last = None;
        reader.for_each_extent(&mut |entry, found| {
            let Some((extent, place)) = found else {
                if let (EntryKind::Hardlink, Some(target)) = (entry.kind, &entry.link_target) {
                    let target = digest_of_name(target, entry.link_target_hex.as_deref());
                    let hit = lost.values_mut().map(|(_, files)| files);
                    hit.chain([&mut unresolved])
                        .for_each(|files| files.add_link(entry, &target));
                }
                return;
            };
            if last.as_ref() != Some(&entry.path) {
                last = Some(entry.path.clone());
                entries += 1;
            }
            match place {
                Ok(place) if u64::from(extent.offset) + u64::from(extent.bytes) <= u64::from(place.raw_bytes) => {
                    let pack = reader
                        .packs
                        .get(place.pack as usize)
                        .and_then(|pack| lost.get_mut(pack));
                    if let Some((what, files)) = pack {
                        let is_hit = match what {
                            Lost::All => true,
                            Lost::Chunks(chunks) => chunks.contains(&extent.chunk),
                        };
                        if is_hit {
                            files.add(entry);
                        }
                    }
                }
                _ => unresolved.add(entry),
            }
        })?;
        Ok(Hits {
            entries,
            by_pack: lost.into_iter().map(|(digest, (_, files))| (digest, files)).collect(),
            unresolved,
        })
    });
    walked.await.unwrap_or_else(|_| {
        Err(ReadError::Interrupted {
            doing: format!("read the list of entries of {id}"),
        })
    })
}
