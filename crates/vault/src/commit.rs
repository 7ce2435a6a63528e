//! Receipts in the vault: signed, written once, and believed only with a signature that holds.
//!
//! The order is always signature, then receipt: whoever finds a receipt finds its signature. The signature's name
//! holds the attempt, because a second attempt of the same job signs another receipt, and stored bytes stay.

use serde::Serialize;
use serde::de::DeserializeOwned;
use strongroom_proto::receipt::{BackupReceipt, RestoreReceipt, VerificationReceipt};
use strongroom_proto::{BackupId, JobId, Sha256Digest};

use crate::error::{CommitError, ReadError};
use crate::layout;
use crate::signing::{self, Signer};
use crate::store::{Created, sha256};
use crate::vault::Vault;

/// A receipt that is in the vault, with a signature that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct CommittedReceipt {
    /// What it says.
    pub receipt: BackupReceipt,
    /// Its bytes as stored.
    pub bytes: Vec<u8>,
    /// The digest of these bytes.
    pub sha256: Sha256Digest,
}

/// Whose receipt is the backup's.
#[derive(Debug, Clone, PartialEq)]
pub enum Committed {
    /// The one that was offered.
    Ours(CommittedReceipt),
    /// Another attempt's, which was there before; what was offered does not count.
    Theirs(CommittedReceipt),
}

impl Vault {
    /// Commits a backup: from here on it exists, and is durable.
    ///
    /// Of all attempts of a backup the first to come here wins; the others get its receipt back. Calling again with
    /// the same receipt, e.g. after an error whose outcome is unknown, is safe.
    pub async fn commit(&self, receipt: &BackupReceipt, signer: &Signer) -> Result<Committed, CommitError> {
        if receipt.vault_id != self.id() {
            return Err(CommitError::WrongVault {
                found: receipt.vault_id,
                expected: self.id(),
            });
        }
        let object = layout::receipt(&receipt.backup_id);
        let signature = layout::receipt_signature(&receipt.backup_id, receipt.attempt);
        let (bytes, created) = self.put_signed(receipt, signer, &object, signature).await?;
        let ours = CommittedReceipt {
            receipt: receipt.clone(),
            sha256: sha256(&bytes),
            bytes,
        };
        if created == Created::Now {
            return Ok(Committed::Ours(ours));
        }
        let existing = |source| CommitError::Existing { source };
        let stored = self.receipt(&receipt.backup_id).await.map_err(existing)?;
        let stored = stored.ok_or(existing(ReadError::Missing { object }))?;
        // Our own earlier try may have landed although its answer was lost.
        if stored.bytes == ours.bytes {
            Ok(Committed::Ours(ours))
        } else {
            Ok(Committed::Theirs(stored))
        }
    }

    /// Puts the evidence of a verification beside its backup and returns the digest of its bytes.
    ///
    /// Calling again with the same receipt is safe; another one for the same job is refused.
    pub async fn put_verification(
        &self,
        receipt: &VerificationReceipt,
        signer: &Signer,
    ) -> Result<Sha256Digest, CommitError> {
        let object = layout::verification(&receipt.backup_id, receipt.job_id);
        let signature = layout::verification_signature(&receipt.backup_id, receipt.job_id, receipt.attempt);
        self.put_evidence(receipt, signer, object, signature).await
    }

    /// Puts the evidence of a restore beside its backup and returns the digest of its bytes.
    ///
    /// Calling again with the same receipt is safe; another one for the same job is refused.
    pub async fn put_restore(&self, receipt: &RestoreReceipt, signer: &Signer) -> Result<Sha256Digest, CommitError> {
        let object = layout::restore(&receipt.backup_id, receipt.job_id);
        let signature = layout::restore_signature(&receipt.backup_id, receipt.job_id, receipt.attempt);
        self.put_evidence(receipt, signer, object, signature).await
    }

    async fn put_evidence<R: Serialize>(
        &self,
        receipt: &R,
        signer: &Signer,
        object: String,
        signature: String,
    ) -> Result<Sha256Digest, CommitError> {
        let (bytes, created) = self.put_signed(receipt, signer, &object, signature).await?;
        if created == Created::Before {
            let stored = self
                .store()
                .get(&object, layout::DOCUMENT_BYTES)
                .await
                .map_err(|source| CommitError::Store {
                    doing: "read the receipt that is there already",
                    source,
                })?;
            if stored.is_none_or(|stored| stored != bytes) {
                return Err(CommitError::AlreadyExists { object });
            }
        }
        Ok(sha256(&bytes))
    }

    async fn put_signed<R: Serialize>(
        &self,
        receipt: &R,
        signer: &Signer,
        object: &str,
        signature: String,
    ) -> Result<(Vec<u8>, Created), CommitError> {
        let unknown = || CommitError::UnknownSigner {
            principal: signer.principal().to_owned(),
        };
        let line = signer.public_line().map_err(|_| unknown())?;
        if !self.signers_in_force().any(|known| known == line) {
            let newer = self.newer().await.map_err(|source| CommitError::Existing { source })?;
            if !newer.is_some_and(|newer| newer.signers_in_force().any(|known| known == line)) {
                return Err(unknown());
            }
        }
        let mut bytes = serde_json::to_vec_pretty(receipt).map_err(|source| CommitError::Encode { source })?;
        bytes.push(b'\n');
        let limit_bytes = layout::DOCUMENT_BYTES as usize;
        if bytes.len() > limit_bytes {
            return Err(CommitError::TooLarge {
                bytes: bytes.len(),
                limit_bytes,
            });
        }
        let armored = signer.sign(&bytes)?;
        let put = self.store().put(&signature, armored.into()).await;
        put.map_err(|source| match source {
            crate::StoreError::Exists { object } => CommitError::AlreadyExists { object },
            source => CommitError::Store {
                doing: "store the receipt's signature",
                source,
            },
        })?;
        let created = self.store().put_commit(object, bytes.clone().into()).await;
        let created = created.map_err(|source| CommitError::Store {
            doing: "store the receipt",
            source,
        })?;
        Ok((bytes, created))
    }

    /// The receipt of a backup, where it has one: `None` means that there is no such backup.
    ///
    /// An error where the signature does not hold, or the receipt belongs elsewhere.
    pub async fn receipt(&self, id: &BackupId) -> Result<Option<CommittedReceipt>, ReadError> {
        let object = layout::receipt(id);
        let Some(bytes) = self.get_document("read a receipt", &object).await? else {
            return Ok(None);
        };
        let receipt: BackupReceipt =
            serde_json::from_slice(&bytes).map_err(|source| ReadError::malformed(&object, source))?;
        self.check_place(&object, &receipt.backup_id, id)?;
        if receipt.vault_id != self.id() {
            return Err(ReadError::Misplaced {
                object,
                found: format!("vault {}", receipt.vault_id),
                expected: format!("vault {}", self.id()),
            });
        }
        let signature = layout::receipt_signature(id, receipt.attempt);
        self.check_signature(&object, &bytes, &signature).await?;
        Ok(Some(CommittedReceipt {
            receipt,
            sha256: sha256(&bytes),
            bytes: bytes.into(),
        }))
    }

    /// The evidence of one verification with the digest of its bytes, where it is there.
    pub async fn verification(
        &self,
        id: &BackupId,
        job: JobId,
    ) -> Result<Option<(VerificationReceipt, Sha256Digest)>, ReadError> {
        self.evidence(&layout::verification(id, job)).await
    }

    /// The evidence of one restore with the digest of its bytes, where it is there.
    pub async fn restore(
        &self,
        id: &BackupId,
        job: JobId,
    ) -> Result<Option<(RestoreReceipt, Sha256Digest)>, ReadError> {
        self.evidence(&layout::restore(id, job)).await
    }

    /// The evidence of all verifications of a backup, in the order of their completion.
    pub async fn verifications(&self, id: &BackupId) -> Result<Vec<VerificationReceipt>, ReadError> {
        let mut found = Vec::new();
        for job in self.verification_jobs(id).await? {
            found.extend(self.verification(id, job).await?.map(|(receipt, _)| receipt));
        }
        found.sort_by_key(|receipt: &VerificationReceipt| receipt.completed_at);
        Ok(found)
    }

    /// The jobs whose evidence of a verification of this backup is there.
    pub async fn verification_jobs(&self, id: &BackupId) -> Result<Vec<JobId>, ReadError> {
        self.evidence_jobs(&layout::verifications_folder(id)).await
    }

    /// The jobs whose evidence of a restore of this backup is there.
    pub async fn restore_jobs(&self, id: &BackupId) -> Result<Vec<JobId>, ReadError> {
        self.evidence_jobs(&layout::restores_folder(id)).await
    }

    async fn evidence_jobs(&self, folder: &str) -> Result<Vec<JobId>, ReadError> {
        let paths = self.store().list(folder).await;
        let paths = paths.map_err(|source| ReadError::store(format!("list {folder}"), source))?;
        let receipts = paths.iter().filter(|path| path.ends_with(".json"));
        let mut jobs = Vec::new();
        for object in receipts {
            let job = layout::evidence_job(object);
            jobs.push(job.ok_or_else(|| ReadError::malformed(object, "its name is not that of a job"))?);
        }
        Ok(jobs)
    }

    async fn evidence<R: Evidence>(&self, object: &str) -> Result<Option<(R, Sha256Digest)>, ReadError> {
        let Some(bytes) = self.get_document("read a receipt", object).await? else {
            return Ok(None);
        };
        let receipt: R = serde_json::from_slice(&bytes).map_err(|source| ReadError::malformed(object, source))?;
        let place = receipt.place();
        if place != object {
            return Err(ReadError::Misplaced {
                object: object.to_owned(),
                found: place,
                expected: object.to_owned(),
            });
        }
        self.check_signature(object, &bytes, &receipt.signature_place()).await?;
        Ok(Some((receipt, sha256(&bytes))))
    }

    async fn check_signature(&self, object: &str, bytes: &[u8], signature: &str) -> Result<(), ReadError> {
        let found = self.get_document("read a receipt's signature", signature).await?;
        let found = found.ok_or_else(|| ReadError::Missing {
            object: signature.to_owned(),
        })?;
        match signing::verify(object, bytes, &found, self.public_lines()) {
            Ok(()) => Ok(()),
            // Its signer may have come with newer keys than those this vault was opened with.
            Err(error) => match self.newer().await? {
                Some(newer) => signing::verify(object, bytes, &found, newer.public_lines()),
                None => Err(error),
            },
        }
    }

    fn check_place(&self, object: &str, found: &BackupId, expected: &BackupId) -> Result<(), ReadError> {
        if found == expected {
            return Ok(());
        }
        Err(ReadError::Misplaced {
            object: object.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        })
    }
}

/// A receipt that lies beside its backup.
trait Evidence: DeserializeOwned {
    /// Where it belongs.
    fn place(&self) -> String;
    /// Where its signature belongs.
    fn signature_place(&self) -> String;
}

impl Evidence for VerificationReceipt {
    fn place(&self) -> String {
        layout::verification(&self.backup_id, self.job_id)
    }
    fn signature_place(&self) -> String {
        layout::verification_signature(&self.backup_id, self.job_id, self.attempt)
    }
}

impl Evidence for RestoreReceipt {
    fn place(&self) -> String {
        layout::restore(&self.backup_id, self.job_id)
    }
    fn signature_place(&self) -> String {
        layout::restore_signature(&self.backup_id, self.job_id, self.attempt)
    }
}
