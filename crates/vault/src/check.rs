//! Checking a backup without any key: every object it needs against its digest, the digests against the receipt, the
//! receipt against its signature.
//!
//! It reads every stored byte and goes on after damage, so that the report is whole. What it cannot see, whether the
//! sealed content is what was given in, takes an identity and [`BackupReader`](crate::BackupReader).

use std::fmt;

use bytes::Bytes;
use futures::StreamExt;
use strongroom_proto::{BackupId, Sha256Digest};

use crate::error::ReadError;
use crate::layout;
use crate::manifest::Needed;
use crate::store::sha256;
use crate::vault::Vault;

/// Objects read at the same time.
const CHECK_READS: usize = 4;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// The backup.
    pub backup_id: BackupId,
    /// Objects that were looked at.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Every object that is not as it was stored.
    pub damage: Vec<Damage>,
}

impl CheckReport {
    /// Whether everything is as it was stored.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// An object that is not as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.object, self.problem)
    }
}

/// What can be wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Problem {
    /// It is not there.
    Missing,
    /// Its SHA-256 is another.
    DigestDiffers,
    /// It cannot be taken apart.
    Malformed,
    /// No signer of the vault signed it.
    NotSigned,
    /// It belongs to another backup or vault.
    Misplaced,
    /// It names no manifest or no list of packs.
    NamesNothing,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::DigestDiffers => "does not match its digest",
            Self::Malformed => "cannot be decoded",
            Self::NotSigned => "has no valid signature of a signer of this vault",
            Self::Misplaced => "belongs to another backup or vault",
            Self::NamesNothing => "names no manifest or no list of packs",
        })
    }
}

impl Vault {
    /// Checks every stored byte of a backup against its digest, without any key.
    ///
    /// An error where the backup does not exist or the store fails; damage is in the report.
    pub async fn check(&self, id: &BackupId) -> Result<CheckReport, ReadError> {
        let mut report = CheckReport {
            backup_id: id.clone(),
            objects: 1,
            bytes: 0,
            damage: Vec::new(),
        };
        let committed = match self.receipt(id).await {
            Ok(Some(committed)) => committed,
            Ok(None) => return Err(ReadError::NoBackup { id: id.clone() }),
            Err(error) => {
                let (object, problem) = match error {
                    ReadError::Missing { object } => (object, Problem::Missing),
                    ReadError::BadSignature { object } => (object, Problem::NotSigned),
                    ReadError::Malformed { object, .. } => (object, Problem::Malformed),
                    ReadError::Misplaced { object, .. } => (object, Problem::Misplaced),
                    other => return Err(other),
                };
                // Nothing that an untrusted receipt names proves anything.
                report.damage.push(Damage { object, problem });
                return Ok(report);
            }
        };
        report.bytes += committed.bytes.len() as u64;
        let receipt = &committed.receipt;
        let list_name = layout::packs_list(id, receipt.attempt);
        let manifest_name = layout::manifest(id, receipt.attempt);
        let digest_of = |object: &str| {
            let artifact = receipt
                .artifacts
                .iter()
                .find(|a| a.uri.ends_with(&format!("/{object}")));
            artifact.map(|artifact| artifact.sha256)
        };
        let (Some(list_digest), Some(manifest_digest)) = (digest_of(&list_name), digest_of(&manifest_name)) else {
            report.damage.push(Damage {
                object: layout::receipt(id),
                problem: Problem::NamesNothing,
            });
            return Ok(report);
        };
        let mut objects = vec![(manifest_name, manifest_digest)];
        match self.read_list(&list_name, &list_digest, &mut report).await? {
            Ok(needed) => objects.extend(
                needed
                    .objects
                    .into_iter()
                    .filter(|(path, _)| !path.ends_with("/manifest")),
            ),
            Err(problem) => report.damage.push(Damage {
                object: list_name,
                problem,
            }),
        }
        let mut checks = futures::stream::iter(objects)
            .map(|(object, expected)| async move {
                let found = self.store().digest(&object).await;
                (object, expected, found)
            })
            .buffer_unordered(CHECK_READS);
        while let Some((object, expected, found)) = checks.next().await {
            report.objects += 1;
            let found = found.map_err(|source| ReadError::store(format!("check {object}"), source))?;
            let problem = match found {
                Some((digest, bytes)) => {
                    report.bytes += bytes;
                    (digest != expected).then_some(Problem::DigestDiffers)
                }
                None => Some(Problem::Missing),
            };
            report.damage.extend(problem.map(|problem| Damage { object, problem }));
        }
        drop(checks);
        report.damage.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(report)
    }

    async fn read_list(
        &self,
        object: &str,
        expected: &Sha256Digest,
        report: &mut CheckReport,
    ) -> Result<Result<Needed, Problem>, ReadError> {
        let bytes: Option<Bytes> = self
            .store()
            .get(object, layout::MANIFEST_BYTES)
            .await
            .map_err(|source| ReadError::store(format!("check {object}"), source))?;
        report.objects += 1;
        let Some(bytes) = bytes else {
            return Ok(Err(Problem::Missing));
        };
        report.bytes += bytes.len() as u64;
        if sha256(&bytes) != *expected {
            return Ok(Err(Problem::DigestDiffers));
        }
        Ok(Needed::decode(object, &bytes).map_err(|_| Problem::Malformed))
    }
}
