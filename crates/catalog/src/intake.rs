//! Receipts on their way into the catalog: what a receipt in the vault makes known, whoever brings it.
//!
//! The worker that made the receipt brings it when its attempt ends; a rebuild brings all that a vault holds. Both come
//! through here, so that a catalog that was lost and refilled says what it said before. Taking a receipt again changes
//! nothing.

use sqlx::{PgConnection, Postgres, Transaction};
use strongroom_proto::receipt::{
    BackupReceipt, CheckOutcome, Operator, ReceiptStatus, RestoreReceipt, ValidationMethod, VerificationReceipt,
};
use strongroom_proto::{Attempt, BackupId, JobId, JobKind, Sha256Digest, TargetName};

use crate::finish::{FinishedBackup, FinishedRestore, FinishedVerification, changes_column};
use crate::jobs::{attempt_column, bytes_column, initiator_column};
use crate::triggers::storable;
use crate::{Catalog, CatalogError};

/// The pool of jobs whose receipts alone are left: nothing of them is dispatched again.
const PAST_POOL: &str = "default";

/// What became of a receipt that a rebuild brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The catalog did not have it.
    New,
    /// The catalog had it already.
    Known,
    /// The backup it is about is not in the catalog, or its job goes on.
    NotYet,
}

/// A job that has ended, as its receipt tells of it.
struct PastJob<'a> {
    id: JobId,
    kind: JobKind,
    attempt: Attempt,
    backup_id: &'a BackupId,
    target: &'a TargetName,
    operator: &'a Operator,
    started_at: chrono::DateTime<chrono::Utc>,
    completed_at: chrono::DateTime<chrono::Utc>,
    sha256: Sha256Digest,
    error: Option<String>,
}

impl Catalog {
    /// Takes the receipt of a backup from a vault.
    pub async fn adopt_backup(&self, done: &FinishedBackup) -> Result<Taken, CatalogError> {
        let failed = |e| CatalogError::new("adopt a backup", e);
        let receipt = &done.receipt;
        let mut tx = self.pool.begin().await.map_err(failed)?;
        sqlx::query(
            "INSERT INTO backup_jobs (id, kind, type, target, target_identifier, pool, status, attempt, created_at,
                 started_at, completed_at, backup_id, size_bytes, stored_bytes, storage_path, checksum, partial,
                 progress_bytes, progress_files, initiated_by, principal, retention_until)
             VALUES ($1, 'backup', $2::backup_type, $3::target_kind, $4, $5, 'completed', $6, $7, $7, $8, $9, $10, $11,
                 $12, $13, $14, $10, $15, $16::initiator, $17, $18)
             ON CONFLICT DO NOTHING",
        )
        .bind(receipt.job_id.as_uuid())
        .bind(receipt.backup_type.as_str())
        .bind(receipt.target_kind.as_str())
        .bind(receipt.target.as_str())
        .bind(PAST_POOL)
        .bind(attempt_column(receipt.attempt))
        .bind(receipt.started_at)
        .bind(receipt.completed_at)
        .bind(receipt.backup_id.as_str())
        .bind(bytes_column(receipt.totals.content_bytes))
        .bind(bytes_column(receipt.totals.stored_bytes))
        .bind(&done.storage_path)
        .bind(done.sha256.to_string())
        .bind(receipt.status == ReceiptStatus::Partial)
        .bind(bytes_column(receipt.totals.entries))
        .bind(initiator_column(receipt.operator.initiated_by))
        .bind(&receipt.operator.principal)
        .bind(receipt.retention_until)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        // A job that goes on will bring its receipt itself.
        let has_ended: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM backup_jobs
                 WHERE id = $1 AND backup_id = $2 AND kind = 'backup' AND status = 'completed')",
        )
        .bind(receipt.job_id.as_uuid())
        .bind(receipt.backup_id.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if !has_ended {
            return Ok(Taken::NotYet);
        }
        let taken = take_backup(&mut tx, receipt.job_id, done).await?;
        tx.commit().await.map_err(failed)?;
        Ok(taken)
    }

    /// Takes the receipt of a verification from a vault.
    pub async fn adopt_verification(&self, done: &FinishedVerification) -> Result<Taken, CatalogError> {
        let failed = |e| CatalogError::new("adopt a verification", e);
        let receipt = &done.receipt;
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let job = PastJob {
            id: receipt.job_id,
            kind: JobKind::Verify,
            attempt: receipt.attempt,
            backup_id: &receipt.backup_id,
            target: &receipt.target,
            operator: &receipt.operator,
            started_at: receipt.started_at,
            completed_at: receipt.completed_at,
            sha256: done.sha256,
            error: (!receipt.integrity.validated).then(|| storable(&failures(receipt))),
        };
        if !put_past_job(&mut tx, &job).await? {
            return Ok(Taken::NotYet);
        }
        let taken = take_verification(&mut tx, receipt.job_id, done).await?;
        sqlx::query("UPDATE backups SET verification_asked = true WHERE backup_id = $1")
            .bind(receipt.backup_id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(taken)
    }

    /// Takes the receipt of a restore from a vault.
    pub async fn adopt_restore(&self, done: &FinishedRestore) -> Result<Taken, CatalogError> {
        let failed = |e| CatalogError::new("adopt a restore", e);
        let receipt = &done.receipt;
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let job = PastJob {
            id: receipt.job_id,
            kind: JobKind::Restore,
            attempt: receipt.attempt,
            backup_id: &receipt.backup_id,
            target: &receipt.target,
            operator: &receipt.operator,
            started_at: receipt.started_at,
            completed_at: receipt.completed_at,
            sha256: done.sha256,
            error: (!receipt.success).then(|| "the restore did not put everything in place".to_owned()),
        };
        if !put_past_job(&mut tx, &job).await? {
            return Ok(Taken::NotYet);
        }
        sqlx::query(
            "UPDATE backup_jobs SET size_bytes = $2, progress_bytes = $2, partial = $3, changes = $4
             WHERE id = $1 AND kind = 'restore' AND size_bytes IS NULL",
        )
        .bind(receipt.job_id.as_uuid())
        .bind(bytes_column(receipt.restored_bytes))
        .bind(!receipt.skipped.is_empty())
        .bind(receipt.change_list().as_ref().map(changes_column).transpose()?)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        sqlx::query(
            "INSERT INTO restores (job_id, backup_id, destination, started_at, completed_at, success, error)
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (job_id) DO NOTHING",
        )
        .bind(receipt.job_id.as_uuid())
        .bind(receipt.backup_id.as_str())
        .bind(&receipt.destination)
        .bind(receipt.started_at)
        .bind(receipt.completed_at)
        .bind(receipt.success)
        .bind(&job.error)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let taken = take_restore(&mut tx, receipt.job_id, done).await?;
        tx.commit().await.map_err(failed)?;
        Ok(taken)
    }
}

/// Writes down a job that has ended, where the backup that it was about is known; whether it is, and the job has ended.
async fn put_past_job(tx: &mut Transaction<'_, Postgres>, job: &PastJob<'_>) -> Result<bool, CatalogError> {
    let failed = |e| CatalogError::new("write down a job of the past", e);
    sqlx::query(
        "INSERT INTO backup_jobs (id, kind, type, target, target_identifier, pool, status, attempt, created_at,
             started_at, completed_at, backup_id, checksum, error, initiated_by, principal)
         SELECT $1, $2::job_kind, b.type, b.target, $3, $4, $5::job_status, $6, $7, $7, $8, b.backup_id, $9, $10,
             $11::initiator, $12
         FROM backups b WHERE b.backup_id = $13
         ON CONFLICT DO NOTHING",
    )
    .bind(job.id.as_uuid())
    .bind(job.kind.as_str())
    .bind(job.target.as_str())
    .bind(PAST_POOL)
    .bind(if job.error.is_some() { "failed" } else { "completed" })
    .bind(attempt_column(job.attempt))
    .bind(job.started_at)
    .bind(job.completed_at)
    .bind(job.sha256.to_string())
    .bind(&job.error)
    .bind(initiator_column(job.operator.initiated_by))
    .bind(&job.operator.principal)
    .bind(job.backup_id.as_str())
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM backup_jobs j JOIN backups b USING (backup_id)
             WHERE j.id = $1 AND j.backup_id = $2 AND j.kind = $3::job_kind AND j.completed_at IS NOT NULL)",
    )
    .bind(job.id.as_uuid())
    .bind(job.backup_id.as_str())
    .bind(job.kind.as_str())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed)
}

/// What the receipt of a backup makes known; its job is completed in the same transaction, or was before.
pub(crate) async fn take_backup(
    tx: &mut Transaction<'_, Postgres>,
    id: JobId,
    done: &FinishedBackup,
) -> Result<Taken, CatalogError> {
    let receipt: &BackupReceipt = &done.receipt;
    let taken = put_receipt(tx, "backup", id, &receipt.backup_id, done.sha256, receipt).await?;
    sqlx::query(
        "INSERT INTO backups (id, backup_id, type, target, target_identifier, destination, size_bytes, stored_bytes,
             started_at, completed_at, partial, receipt_sha256, retention_until)
         SELECT id, backup_id, type, target, target_identifier, $2, size_bytes, stored_bytes, $3, $4, partial,
             checksum, retention_until
         FROM backup_jobs WHERE id = $1
         ON CONFLICT (backup_id) DO NOTHING",
    )
    .bind(id.as_uuid())
    .bind(&done.vault_url)
    .bind(receipt.started_at)
    .bind(receipt.completed_at)
    .execute(&mut **tx)
    .await
    .map_err(|e| CatalogError::new("take a backup", e))?;
    Ok(taken)
}

/// What the receipt of a verification makes known: its backup is proven or disproven.
pub(crate) async fn take_verification(
    tx: &mut Transaction<'_, Postgres>,
    id: JobId,
    done: &FinishedVerification,
) -> Result<Taken, CatalogError> {
    let failed = |e| CatalogError::new("take a verification", e);
    let receipt: &VerificationReceipt = &done.receipt;
    let passed = receipt.integrity.validated;
    let failures = storable(&failures(receipt));
    let taken = put_receipt(tx, "verification", id, &receipt.backup_id, done.sha256, receipt).await?;
    let method = receipt
        .integrity
        .validation_method
        .filter(|_| passed)
        .map(method_column);
    let checks = serde_json::to_value(&receipt.checks).map_err(|e| CatalogError::decode("verifications.checks", e))?;
    let tables = done.tables.as_ref().map(serde_json::to_value).transpose();
    let tables = tables.map_err(|e| CatalogError::decode("verifications.tables", e))?;
    sqlx::query(
        "INSERT INTO verifications (job_id, backup_id, passed, method, completed_at, checks, tables)
         VALUES ($1, $2, $3, $4::validation_method, $5, $6, $7) ON CONFLICT (job_id) DO NOTHING",
    )
    .bind(id.as_uuid())
    .bind(receipt.backup_id.as_str())
    .bind(passed)
    .bind(method)
    .bind(receipt.completed_at)
    .bind(checks)
    .bind(tables)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    // A backup that once passed and now does not is damaged: what is shown follows the last verification.
    sqlx::query(
        "UPDATE backups SET verified = $2, verified_at = CASE WHEN $2 THEN $3 END,
             validation_method = CASE WHEN $2 THEN $4::validation_method END, verification_error = $5
         WHERE backup_id = $1
           AND NOT EXISTS (SELECT 1 FROM verifications v WHERE v.backup_id = $1 AND v.completed_at > $3)",
    )
    .bind(receipt.backup_id.as_str())
    .bind(passed)
    .bind(receipt.completed_at)
    .bind(method)
    .bind((!passed).then_some(&failures))
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    if passed {
        sqlx::query(
            "UPDATE restore_points p SET verified = true, verification_date = $2
             WHERE $1 = ANY(p.backup_job_ids) AND NOT EXISTS (
                 SELECT 1 FROM unnest(p.backup_job_ids) AS job LEFT JOIN backups b ON b.id = job
                 WHERE NOT coalesce(b.verified, false))",
        )
        .bind(
            sqlx::query_scalar::<_, uuid::Uuid>("SELECT id FROM backups WHERE backup_id = $1")
                .bind(receipt.backup_id.as_str())
                .fetch_optional(&mut **tx)
                .await
                .map_err(failed)?,
        )
        .bind(receipt.completed_at)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    }
    Ok(taken)
}

/// What the receipt of a restore makes known.
pub(crate) async fn take_restore(
    tx: &mut Transaction<'_, Postgres>,
    id: JobId,
    done: &FinishedRestore,
) -> Result<Taken, CatalogError> {
    let receipt: &RestoreReceipt = &done.receipt;
    put_receipt(tx, "restore", id, &receipt.backup_id, done.sha256, receipt).await
}

async fn put_receipt(
    connection: &mut PgConnection,
    kind: &'static str,
    id: JobId,
    backup_id: &BackupId,
    sha256: Sha256Digest,
    receipt: &impl serde::Serialize,
) -> Result<Taken, CatalogError> {
    let body = serde_json::to_value(receipt).map_err(|e| CatalogError::decode("receipts.body", e))?;
    let put = sqlx::query(
        "INSERT INTO receipts (sha256, kind, job_id, backup_id, body) VALUES ($1, $2::receipt_kind, $3, $4, $5)
         ON CONFLICT DO NOTHING",
    )
    .bind(sha256.to_string())
    .bind(kind)
    .bind(id.as_uuid())
    .bind(backup_id.as_str())
    .bind(body)
    .execute(connection)
    .await
    .map_err(|e| CatalogError::new("store a receipt", e))?;
    Ok(if put.rows_affected() == 0 {
        Taken::Known
    } else {
        Taken::New
    })
}

/// What did not pass, for a person.
pub(crate) fn failures(receipt: &VerificationReceipt) -> String {
    let lines: Vec<String> = receipt
        .checks
        .iter()
        .filter(|check| check.outcome != CheckOutcome::Passed)
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    if lines.is_empty() {
        "no check was made".to_owned()
    } else {
        lines.join("; ")
    }
}

const fn method_column(method: ValidationMethod) -> &'static str {
    match method {
        ValidationMethod::Checksum => "checksum",
        ValidationMethod::SpotRestore => "spot_restore",
        ValidationMethod::FullRestoreTest => "full_restore_test",
    }
}
