//! Which keys the backups of a vault depend on, told without any key.
//!
//! Every index object says which generation of keys its packs are sealed to, and every backup lists its index objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use strongroom_proto::{BackupId, Sha256Digest, TargetName};

use crate::error::ReadError;
use crate::index::{self, IndexBody};
use crate::layout;
use crate::manifest::Needed;
use crate::store::sha256;
use crate::vault::Vault;

/// One generation of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyGeneration {
    /// From 1.
    pub number: u32,
    /// Since when it is, or was, in force.
    pub created_at: DateTime<Utc>,
    /// Who can read what was written while it was.
    pub recipients: Vec<String>,
    /// The id of its writer key.
    pub writer_key_id: String,
    /// Who signed.
    pub signers: Vec<String>,
    /// Why it was made.
    pub reason: String,
}

/// The keys that a backup depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupKeys {
    /// The backup.
    pub backup_id: BackupId,
    /// What it is a backup of.
    pub target: TargetName,
    /// The generations that its content is sealed to. To restore it takes, of each, the identity of one recipient.
    pub generations: BTreeSet<u32>,
}

/// A backup of which it cannot be told what it depends on.
#[derive(Debug)]
pub struct UnknownKeys {
    /// The backup.
    pub backup_id: BackupId,
    /// What of it is missing, damaged or not to be trusted.
    pub problem: ReadError,
}

/// What keys there are, and what depends on them.
#[derive(Debug)]
pub struct KeyUse {
    /// The oldest first; the last one is in force.
    pub generations: Vec<KeyGeneration>,
    /// Every backup that is kept, but those that are [`unknown`](Self::unknown).
    pub backups: Vec<BackupKeys>,
    /// Backups whose receipt or lists are missing or damaged: they may depend on any keys.
    pub unknown: Vec<UnknownKeys>,
}

/// Backups that only identities open whose recipients are no longer in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiredDependency {
    /// The generation they are sealed to.
    pub generation: u32,
    /// Its recipients, none of which is in force.
    pub recipients: Vec<String>,
    /// When the last of them went out of force.
    pub retired_at: DateTime<Utc>,
    /// The backups.
    pub backups: Vec<BackupId>,
}

impl KeyUse {
    /// What depends on retired recipients, where they were retired longer than `grace` ago.
    pub fn retired_dependencies(&self, now: DateTime<Utc>, grace: TimeDelta) -> Vec<RetiredDependency> {
        let mut found = Vec::new();
        for (place, generation) in self.generations.iter().enumerate() {
            let names_one_of_them =
                |other: &KeyGeneration| other.recipients.iter().any(|r| generation.recipients.contains(r));
            let later = self.generations.get(place..).unwrap_or_default();
            let last_in_force = later.iter().rposition(names_one_of_them).unwrap_or(0);
            let Some(successor) = later.get(last_in_force + 1) else {
                continue;
            };
            let needs_it = |backup: &&BackupKeys| backup.generations.contains(&generation.number);
            let backups: Vec<BackupId> = self
                .backups
                .iter()
                .filter(needs_it)
                .map(|b| b.backup_id.clone())
                .collect();
            if !backups.is_empty() && now - successor.created_at > grace {
                found.push(RetiredDependency {
                    generation: generation.number,
                    recipients: generation.recipients.clone(),
                    retired_at: successor.created_at,
                    backups,
                });
            }
        }
        found
    }
}

impl Vault {
    /// What keys there are, and which backups depend on which. An error where the store fails; a backup whose receipt or
    /// lists are damaged is told of among the others.
    pub async fn key_use(&self) -> Result<KeyUse, ReadError> {
        let vault = self.newer().await?.unwrap_or_else(|| self.clone());
        let generations = vault.generations().map(|found| KeyGeneration {
            number: found.number,
            created_at: found.created_at,
            recipients: found.recipients.clone(),
            writer_key_id: found.writer_key_id.clone(),
            signers: found.signers.iter().map(|signer| signer.principal.clone()).collect(),
            reason: found.reason.clone(),
        });
        let generations: Vec<KeyGeneration> = generations.collect();
        let (mut backups, mut unknown) = (Vec::new(), Vec::new());
        let mut sealed_to = HashMap::new();
        for backup_id in vault.backups().await? {
            match vault.backup_keys(&backup_id, &mut sealed_to).await {
                Ok(found) => backups.extend(found),
                Err(problem) if problem.is_damage() => unknown.push(UnknownKeys { backup_id, problem }),
                Err(error) => return Err(error),
            }
        }
        Ok(KeyUse {
            generations,
            backups,
            unknown,
        })
    }

    async fn backup_keys(
        &self,
        id: &BackupId,
        sealed_to: &mut HashMap<Sha256Digest, u32>,
    ) -> Result<Option<BackupKeys>, ReadError> {
        // Listed a moment ago; it may have expired since.
        let Some(committed) = self.receipt(id).await? else {
            return Ok(None);
        };
        let receipt = committed.receipt;
        let mut generations = BTreeSet::new();
        let name = layout::packs_list(id, receipt.attempt);
        let artifact = receipt.artifacts.iter().find(|a| a.uri.ends_with(&format!("/{name}")));
        if let Some(artifact) = artifact {
            let bytes = self.store().get(&name, layout::MANIFEST_BYTES).await;
            let bytes = bytes.map_err(|source| ReadError::store(format!("read {name}"), source))?;
            let bytes = bytes.ok_or_else(|| ReadError::Missing { object: name.clone() })?;
            if sha256(&bytes) != artifact.sha256 {
                return Err(ReadError::Damaged {
                    object: name,
                    problem: "its SHA-256 is not the one in the receipt",
                });
            }
            for digest in Needed::decode(&name, &bytes)?.indexes() {
                let generation = match sealed_to.get(&digest) {
                    Some(generation) => *generation,
                    None => {
                        let bytes = index::get(self.store(), &digest).await?;
                        IndexBody::open(&digest, &bytes)?.keys.generation
                    }
                };
                sealed_to.insert(digest, generation);
                generations.insert(generation);
            }
        }
        Ok(Some(BackupKeys {
            backup_id: receipt.backup_id,
            target: receipt.target,
            generations,
        }))
    }
}

impl KeyUse {
    /// How many backups need each recipient's identity, or that of another recipient of the same generation.
    pub fn backups_by_recipient(&self) -> BTreeMap<&str, u64> {
        let mut count: BTreeMap<&str, u64> = BTreeMap::new();
        for generation in &self.generations {
            for recipient in &generation.recipients {
                count.entry(recipient).or_default();
            }
        }
        for backup in &self.backups {
            let of_it = self
                .generations
                .iter()
                .filter(|g| backup.generations.contains(&g.number));
            let recipients: BTreeSet<&str> = of_it.flat_map(|g| g.recipients.iter().map(String::as_str)).collect();
            for recipient in recipients {
                *count.entry(recipient).or_default() += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use strongroom_proto::JobId;

    use super::*;

    fn day(number: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + number * 86_400, 0).unwrap()
    }

    fn generation(number: u32, created: i64, recipients: &[&str]) -> KeyGeneration {
        KeyGeneration {
            number,
            created_at: day(created),
            recipients: recipients.iter().map(|r| (*r).to_owned()).collect(),
            writer_key_id: "k".to_owned(),
            signers: Vec::new(),
            reason: String::new(),
        }
    }

    #[test]
    fn a_dependency_on_retired_recipients_is_told_once_the_grace_is_over() {
        let backup = |number, generations: &[u32]| BackupKeys {
            backup_id: BackupId::for_job(JobId::fresh(), day(number)),
            target: "orders".parse().unwrap(),
            generations: generations.iter().copied().collect(),
        };
        let uses = KeyUse {
            generations: vec![
                generation(1, 0, &["a"]),
                generation(2, 10, &["a", "b"]),
                generation(3, 20, &["b"]),
                generation(4, 30, &["c"]),
            ],
            backups: vec![backup(1, &[1]), backup(2, &[2, 4]), backup(3, &[4])],
            unknown: Vec::new(),
        };
        let grace = TimeDelta::days(90);
        // "a" went out of force on day 20, the last of "a" and "b" on day 30.
        assert_eq!(uses.retired_dependencies(day(110), grace), []);
        let found = uses.retired_dependencies(day(111), grace);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].generation, found[0].retired_at), (1, day(20)));
        assert_eq!(found[0].backups, [uses.backups[0].backup_id.clone()]);
        let found = uses.retired_dependencies(day(121), grace);
        assert_eq!(found.iter().map(|d| d.generation).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(found[1].backups, [uses.backups[1].backup_id.clone()]);
        // Nothing that is kept needs generation 3, and what is in force is not retired.
        assert_eq!(uses.backups_by_recipient(), [("a", 2), ("b", 1), ("c", 2)].into());
    }
}
