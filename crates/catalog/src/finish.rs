//! The end of an attempt. One transaction holds everything that follows from it: the job's row, the receipt, what is
//! announced. Each is refused when the attempt is no longer the current one.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Postgres, Transaction};
use std::time::Duration;
use strongroom_proto::cluster_tables::ClusterTables;
use strongroom_proto::events::{
    Alert, Fact, JobCompleted, JobFailed, RestoreCompleted, RestoreFailed, VerifyCompleted, VerifyFailed,
};
use strongroom_proto::receipt::{BackupReceipt, ReceiptStatus, RestoreReceipt, ValidationMethod, VerificationReceipt};
use strongroom_proto::restore::RestoreChanges;
use strongroom_proto::{Attempt, BackupId, JobId, JobKind, JobStatus, Sha256Digest, TargetName};

use crate::intake::{failures, take_backup, take_restore, take_verification};
use crate::jobs::{attempt_column, bytes_column, column, notify_jobs, parsed};
use crate::triggers::storable;
use crate::{AuditEntry, Catalog, CatalogError, audit, outbox};

/// A piece of SQL that several statements share; a macro, so that every statement stays a literal.
macro_rules! returning {
    () => {
        "RETURNING kind::text, target_identifier, backup_id, started_at,
    coalesce(completed_at, now()) AS completed_at, retry_count, principal, traceparent"
    };
}

/// Whether an attempt's end was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It was the current attempt; the change is committed.
    Accepted,
    /// Another attempt has the job, or it ended before: nothing changed.
    Stale,
}

/// A backup that has its receipt.
#[derive(Debug, Clone)]
pub struct FinishedBackup {
    /// The receipt in the vault.
    pub receipt: BackupReceipt,
    /// The digest of its bytes.
    pub sha256: Sha256Digest,
    /// Where it lies.
    pub storage_path: String,
    /// The vault's URL.
    pub vault_url: String,
}

/// A verification that has its receipt.
#[derive(Debug, Clone)]
pub struct FinishedVerification {
    /// The receipt in the vault.
    pub receipt: VerificationReceipt,
    /// The digest of its bytes.
    pub sha256: Sha256Digest,
    /// What the tables of a whole cluster held. The vault does not have it: it may be lost, and another drill brings it back.
    pub tables: Option<ClusterTables>,
}

/// A restore that has its receipt.
#[derive(Debug, Clone)]
pub struct FinishedRestore {
    /// The receipt in the vault.
    pub receipt: RestoreReceipt,
    /// The digest of its bytes.
    pub sha256: Sha256Digest,
}

/// On whose word an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// The worker that claimed it.
    Worker,
    /// Nobody's: the lease must have run out.
    Nobody,
}

/// What the catalog knows of a job at its end.
pub(crate) struct Ended {
    kind: JobKind,
    target: TargetName,
    backup_id: BackupId,
    started_at: Option<DateTime<Utc>>,
    completed_at: DateTime<Utc>,
    retry_count: i32,
    principal: String,
    traceparent: Option<String>,
}

impl Catalog {
    /// Completes a backup job with its receipt.
    pub async fn finish_backup(
        &self,
        id: JobId,
        attempt: Attempt,
        done: &FinishedBackup,
    ) -> Result<Finish, CatalogError> {
        let failed = |e| CatalogError::new("finish a backup", e);
        let receipt = &done.receipt;
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let partial = receipt.status == ReceiptStatus::Partial;
        let row = sqlx::query(concat!(
            "UPDATE backup_jobs SET status = 'completed', completed_at = now(), lease_expires_at = NULL, secret = NULL,
                 size_bytes = $3, stored_bytes = $4, storage_path = $5, checksum = $6, partial = $7, error = NULL,
                 progress_bytes = $3, progress_files = $8, progress_rate_bytes = NULL
             WHERE id = $1 AND attempt = $2 AND status = 'running' AND kind = 'backup' ",
            returning!()
        ))
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(bytes_column(receipt.totals.content_bytes))
        .bind(bytes_column(receipt.totals.stored_bytes))
        .bind(&done.storage_path)
        .bind(done.sha256.to_string())
        .bind(partial)
        .bind(bytes_column(receipt.totals.entries))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(Finish::Stale) };
        let ended = ended(&row)?;
        take_backup(&mut tx, id, done).await?;
        let fact = Fact::JobCompleted(JobCompleted {
            job_id: id,
            status: JobStatus::Completed,
            duration: seconds_text(ended.started_at, ended.completed_at),
            size_bytes: receipt.totals.content_bytes,
            stored_bytes: receipt.totals.stored_bytes,
            targets: vec![ended.target.clone()],
            backup_id: receipt.backup_id.clone(),
            partial,
        });
        announce(&mut tx, id, &ended, &[("completed", fact)]).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Finish::Accepted)
    }

    /// Completes a verify job with its receipt; the backup is marked as proven or disproven.
    pub async fn finish_verification(
        &self,
        id: JobId,
        attempt: Attempt,
        done: &FinishedVerification,
    ) -> Result<Finish, CatalogError> {
        let failed = |e| CatalogError::new("finish a verification", e);
        let receipt = &done.receipt;
        let passed = receipt.integrity.validated;
        let failures = storable(&failures(receipt));
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let row = sqlx::query(concat!(
            "UPDATE backup_jobs SET status = CASE WHEN $3 THEN 'completed'::job_status ELSE 'failed' END,
                 completed_at = now(), lease_expires_at = NULL, secret = NULL, checksum = $4, error = $5
             WHERE id = $1 AND attempt = $2 AND status = 'running' AND kind = 'verify' ",
            returning!()
        ))
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(passed)
        .bind(done.sha256.to_string())
        .bind((!passed).then_some(&failures))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(Finish::Stale) };
        let ended = ended(&row)?;
        take_verification(&mut tx, id, done).await?;
        let facts = if passed {
            vec![(
                "completed",
                Fact::VerifyCompleted(VerifyCompleted {
                    job_id: id,
                    backup_id: receipt.backup_id.clone(),
                    targets: vec![ended.target.clone()],
                    validation_method: receipt
                        .integrity
                        .validation_method
                        .unwrap_or(ValidationMethod::FullRestoreTest),
                    validated_at: receipt.completed_at,
                    checks_passed: u32::try_from(receipt.checks.len()).unwrap_or(u32::MAX),
                }),
            )]
        } else {
            verification_failed(id, &ended, &failures)
        };
        announce(&mut tx, id, &ended, &facts).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Finish::Accepted)
    }

    /// Completes a restore job with its receipt.
    pub async fn finish_restore(
        &self,
        id: JobId,
        attempt: Attempt,
        done: &FinishedRestore,
    ) -> Result<Finish, CatalogError> {
        let failed = |e| CatalogError::new("finish a restore", e);
        let receipt = &done.receipt;
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let row = sqlx::query(concat!(
            "UPDATE backup_jobs SET status = 'completed', completed_at = now(), lease_expires_at = NULL, secret = NULL,
                 size_bytes = $3, checksum = $4, error = NULL, progress_bytes = $3, progress_rate_bytes = NULL,
                 partial = $5, changes = $6
             WHERE id = $1 AND attempt = $2 AND status = 'running' AND kind = 'restore' ",
            returning!()
        ))
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(bytes_column(receipt.restored_bytes))
        .bind(done.sha256.to_string())
        .bind(!receipt.skipped.is_empty())
        .bind(receipt.change_list().as_ref().map(changes_column).transpose()?)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(Finish::Stale) };
        let ended = ended(&row)?;
        take_restore(&mut tx, id, done).await?;
        end_restore(&mut tx, id, &ended, Some(&receipt.destination), None).await?;
        let fact = Fact::RestoreCompleted(RestoreCompleted {
            restore_id: id,
            targets: vec![ended.target.clone()],
            success: true,
            backup_id: receipt.backup_id.clone(),
            destination: receipt.destination.clone(),
        });
        announce(&mut tx, id, &ended, &[("completed", fact)]).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Finish::Accepted)
    }

    /// Gives the job back for another attempt after `delay`; this one is spent.
    pub async fn retry(
        &self,
        id: JobId,
        attempt: Attempt,
        error: &str,
        delay: Duration,
    ) -> Result<Finish, CatalogError> {
        self.give_back(id, attempt, Holder::Worker, Some(error), delay).await
    }

    /// Gives the job back because its worker shuts down; no attempt is spent.
    pub async fn interrupt(&self, id: JobId, attempt: Attempt) -> Result<Finish, CatalogError> {
        self.give_back(id, attempt, Holder::Worker, None, Duration::ZERO).await
    }

    /// Takes the job from a worker whose lease has run out, for another attempt. A lease renewed in the meantime is
    /// left alone.
    pub async fn expire(&self, id: JobId, attempt: Attempt, error: &str) -> Result<Finish, CatalogError> {
        self.give_back(id, attempt, Holder::Nobody, Some(error), Duration::ZERO)
            .await
    }

    /// Gives up a job whose worker's lease has run out.
    pub async fn expire_and_fail(&self, id: JobId, attempt: Attempt, error: &str) -> Result<Finish, CatalogError> {
        self.give_up(id, attempt, Holder::Nobody, error).await
    }

    async fn give_back(
        &self,
        id: JobId,
        attempt: Attempt,
        holder: Holder,
        error: Option<&str>,
        delay: Duration,
    ) -> Result<Finish, CatalogError> {
        let failed = |e| CatalogError::new("give a job back", e);
        let error = error.map(storable);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        // A job that somebody cancelled is not tried again.
        let cancelled = sqlx::query(concat!(
            "UPDATE backup_jobs SET status = 'cancelled', completed_at = now(), lease_expires_at = NULL, secret = NULL
             WHERE id = $1 AND attempt = $2 AND status = 'running' AND cancel_requested
               AND (NOT $3 OR lease_expires_at < now()) ",
            returning!()
        ))
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(holder == Holder::Nobody)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        if let Some(row) = cancelled {
            announce_cancelled(&mut tx, id, &ended(&row)?).await?;
            tx.commit().await.map_err(failed)?;
            return Ok(Finish::Accepted);
        }
        let done = sqlx::query(
            "UPDATE backup_jobs SET status = 'pending', lease_expires_at = NULL, dispatched_at = NULL,
                 not_before = now() + make_interval(secs => $4), error = coalesce($3, error),
                 retry_count = retry_count + CASE WHEN $3::text IS NULL THEN 0 ELSE 1 END
             WHERE id = $1 AND attempt = $2 AND status = 'running' AND (NOT $5 OR lease_expires_at < now())",
        )
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(&error)
        .bind(delay.as_secs_f64())
        .bind(holder == Holder::Nobody)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(Finish::Stale);
        }
        notify_jobs(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Finish::Accepted)
    }

    /// Gives the job up: a dead letter, an event and an alert say why. Of a dry run only the job itself says so: nothing
    /// was to be restored.
    pub async fn fail(&self, id: JobId, attempt: Attempt, error: &str) -> Result<Finish, CatalogError> {
        self.give_up(id, attempt, Holder::Worker, error).await
    }

    async fn give_up(&self, id: JobId, attempt: Attempt, holder: Holder, error: &str) -> Result<Finish, CatalogError> {
        let failed = |e| CatalogError::new("fail a job", e);
        let error = &*storable(error);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let row = sqlx::query(concat!(
            "UPDATE backup_jobs SET status = 'failed', completed_at = now(), lease_expires_at = NULL, secret = NULL,
                 error = $3
             WHERE id = $1 AND attempt = $2 AND status = 'running' AND (NOT $4 OR lease_expires_at < now()) ",
            returning!()
        ))
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(error)
        .bind(holder == Holder::Nobody)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(Finish::Stale) };
        let ended = ended(&row)?;
        if ended.kind == JobKind::Restore && end_restore(&mut tx, id, &ended, None, Some(error)).await? == Trial::Yes {
            notify_jobs(&mut tx).await?;
            tx.commit().await.map_err(failed)?;
            return Ok(Finish::Accepted);
        }
        sqlx::query(
            "INSERT INTO dead_letters (subject, reference, reason, payload) VALUES ($1, $2, $3, $4)
             ON CONFLICT (subject, reference) DO NOTHING",
        )
        .bind(ended.kind.as_str())
        .bind(id.to_string())
        .bind(error)
        .bind(serde_json::json!({ "target": ended.target, "backup_id": ended.backup_id, "attempts": ended.retry_count + 1 }))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let targets = vec![ended.target.clone()];
        let facts = match ended.kind {
            JobKind::Verify => verification_failed(id, &ended, error),
            JobKind::Restore => vec![(
                "failed",
                Fact::RestoreFailed(RestoreFailed {
                    restore_id: id,
                    targets,
                    success: false,
                    backup_id: ended.backup_id.clone(),
                    error: error.to_owned(),
                }),
            )],
            JobKind::Backup => vec![
                (
                    "failed",
                    Fact::JobFailed(JobFailed {
                        job_id: id,
                        error: error.to_owned(),
                        retry_count: ended.retry_count.unsigned_abs(),
                        targets: targets.clone(),
                        kind: ended.kind,
                    }),
                ),
                (
                    "alert",
                    Fact::Alert(Alert {
                        subject: "dead_letter".to_owned(),
                        message: format!("the backup of {} was given up: {error}", ended.target),
                        job_id: Some(id),
                        targets,
                        resolved: false,
                    }),
                ),
            ],
        };
        announce(&mut tx, id, &ended, &facts).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Finish::Accepted)
    }

    /// Ends a running job because somebody asked for it.
    pub async fn cancelled(&self, id: JobId, attempt: Attempt) -> Result<Finish, CatalogError> {
        let failed = |e| CatalogError::new("cancel a job", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let row = sqlx::query(concat!(
            "UPDATE backup_jobs SET status = 'cancelled', completed_at = now(), lease_expires_at = NULL, secret = NULL
             WHERE id = $1 AND attempt = $2 AND status = 'running' ",
            returning!()
        ))
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(Finish::Stale) };
        announce_cancelled(&mut tx, id, &ended(&row)?).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Finish::Accepted)
    }

    /// Asks for a job to stop: one that waits ends at once, one that runs is told at its next heartbeat. `false` where
    /// there is no such job or it has ended.
    pub async fn request_cancel(&self, id: JobId, principal: &str) -> Result<bool, CatalogError> {
        let failed = |e| CatalogError::new("cancel a job", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let row = sqlx::query(concat!(
            "UPDATE backup_jobs SET cancel_requested = true,
                 status = CASE status WHEN 'pending' THEN 'cancelled'::job_status ELSE status END,
                 completed_at = CASE status WHEN 'pending' THEN now() END,
                 secret = CASE status WHEN 'pending' THEN NULL ELSE secret END
             WHERE id = $1 AND status IN ('pending', 'running') ",
            returning!(),
            ", status::text"
        ))
        .bind(id.as_uuid())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(false) };
        let entry = AuditEntry {
            principal: principal.to_owned(),
            action: "cancel job",
            object: id.to_string(),
            detail: serde_json::json!({}),
        };
        audit::write(&mut tx, &entry).await?;
        if parsed::<JobStatus>(&row, "status")? == JobStatus::Cancelled {
            announce_cancelled(&mut tx, id, &ended(&row)?).await?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }
}

pub(crate) fn ended(row: &sqlx::postgres::PgRow) -> Result<Ended, CatalogError> {
    Ok(Ended {
        kind: parsed(row, "kind")?,
        target: parsed(row, "target_identifier")?,
        backup_id: parsed(row, "backup_id")?,
        started_at: column(row, "started_at")?,
        completed_at: column(row, "completed_at")?,
        retry_count: column(row, "retry_count")?,
        principal: column(row, "principal")?,
        traceparent: column(row, "traceparent")?,
    })
}

/// One message id a job and outcome: however an attempt's end is repeated, subscribers see one fact.
async fn announce(
    tx: &mut Transaction<'_, Postgres>,
    id: JobId,
    ended: &Ended,
    facts: &[(&str, Fact)],
) -> Result<(), CatalogError> {
    for (suffix, fact) in facts {
        outbox::put_fact(tx, &format!("{id}.{suffix}"), fact, ended.traceparent.as_deref()).await?;
    }
    notify_jobs(tx).await
}

async fn announce_cancelled(tx: &mut Transaction<'_, Postgres>, id: JobId, ended: &Ended) -> Result<(), CatalogError> {
    if ended.kind == JobKind::Restore {
        end_restore(tx, id, ended, None, Some("cancelled")).await?;
    }
    let fact = Fact::JobFailed(JobFailed {
        job_id: id,
        error: "cancelled on request".to_owned(),
        retry_count: ended.retry_count.unsigned_abs(),
        targets: vec![ended.target.clone()],
        kind: ended.kind,
    });
    announce(tx, id, ended, &[("failed", fact)]).await
}

pub(crate) fn changes_column(changes: &RestoreChanges) -> Result<serde_json::Value, CatalogError> {
    serde_json::to_value(changes).map_err(|e| CatalogError::decode("backup_jobs.changes", e))
}

/// Whether a restore was to change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trial {
    Yes,
    No,
}

/// Closes the row of a restore, and writes down in the audit log what it did.
pub(crate) async fn end_restore(
    connection: &mut PgConnection,
    id: JobId,
    ended: &Ended,
    destination: Option<&str>,
    error: Option<&str>,
) -> Result<Trial, CatalogError> {
    let failed = |e| CatalogError::new("end a restore", e);
    let row = sqlx::query(
        "UPDATE restores SET started_at = $2, completed_at = $3, success = $4, error = $5,
             destination = coalesce($6, destination)
         WHERE job_id = $1
         RETURNING destination, overwrite_reason, dry_run, (SELECT params FROM backup_jobs WHERE id = $1) AS params",
    )
    .bind(id.as_uuid())
    .bind(ended.started_at)
    .bind(ended.completed_at)
    .bind(error.is_none())
    .bind(error)
    .bind(destination)
    .fetch_one(&mut *connection)
    .await
    .map_err(failed)?;
    let params: serde_json::Value = column(&row, "params")?;
    let dry_run: bool = column(&row, "dry_run")?;
    let entry = AuditEntry {
        principal: ended.principal.clone(),
        action: if dry_run { "try restore" } else { "restore" },
        object: ended.backup_id.to_string(),
        detail: serde_json::json!({
            "job_id": id,
            "destination": column::<String>(&row, "destination")?,
            "overwrite_reason": column::<Option<String>>(&row, "overwrite_reason")?,
            "in_place": params.get("in_place"),
            "delete": params.get("delete"),
            "success": error.is_none(),
            "error": error,
        }),
    };
    audit::write(connection, &entry).await?;
    Ok(if dry_run { Trial::Yes } else { Trial::No })
}

fn verification_failed(id: JobId, ended: &Ended, error: &str) -> Vec<(&'static str, Fact)> {
    let targets = vec![ended.target.clone()];
    let alert = Alert {
        subject: "verification_failed".to_owned(),
        message: format!(
            "backup {} of {} is not proven to restore: {error}",
            ended.backup_id, ended.target
        ),
        job_id: Some(id),
        targets: targets.clone(),
        resolved: false,
    };
    let fact = VerifyFailed {
        job_id: id,
        backup_id: ended.backup_id.clone(),
        targets,
        error: error.to_owned(),
    };
    vec![("failed", Fact::VerifyFailed(fact)), ("alert", Fact::Alert(alert))]
}

fn seconds_text(from: Option<DateTime<Utc>>, to: DateTime<Utc>) -> String {
    let milliseconds = from.map_or(0, |from| (to - from).num_milliseconds().max(0));
    format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000)
}
