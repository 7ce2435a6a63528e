//! Backups, their receipts, and the verifications that are still owed.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use strongroom_proto::api::{BackupView, ReceiptView};
use strongroom_proto::receipt::{Integrity, ValidationMethod};
use strongroom_proto::{BackupId, BackupType, JobId, RestorePointId, TargetKind, TargetName};
use uuid::Uuid;

use crate::jobs::{bytes_of, column, parsed};
use crate::{Catalog, CatalogError};

/// A backup that nobody has tried to restore yet.
#[derive(Debug, Clone)]
pub struct OwedVerification {
    /// The backup.
    pub backup_id: BackupId,
    /// Its target.
    pub target: TargetName,
    /// The target's kind.
    pub target_kind: TargetKind,
    /// Trace context of the trigger that led to the backup.
    pub traceparent: Option<String>,
}

/// A piece of SQL that several statements share; a macro, so that every statement stays a literal.
macro_rules! select_backup {
    () => {
        "SELECT b.id, b.backup_id, b.type::text, b.target::text, b.target_identifier, b.started_at,
    b.completed_at, b.size_bytes, b.stored_bytes, b.partial, b.verified, b.verified_at, b.validation_method::text,
    b.verification_error, b.retention_until, j.storage_path
    FROM backups b JOIN backup_jobs j ON j.id = b.id"
    };
}

/// Which backups to list.
#[derive(Debug, Clone, Default)]
pub struct BackupFilter {
    /// Only of this type.
    pub backup_type: Option<BackupType>,
    /// Only of this target.
    pub target: Option<String>,
    /// Only those completed since.
    pub since: Option<DateTime<Utc>>,
    /// At most so many.
    pub limit: u32,
}

impl Catalog {
    /// Backups, newest first.
    pub async fn backups(&self, filter: &BackupFilter) -> Result<Vec<BackupView>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_backup!(),
            " WHERE ($1::text IS NULL OR b.type = $1::backup_type)
               AND ($2::text IS NULL OR b.target_identifier = $2)
               AND ($3::timestamptz IS NULL OR b.completed_at >= $3)
             ORDER BY b.completed_at DESC LIMIT $4"
        ))
        .bind(filter.backup_type.map(BackupType::as_str))
        .bind(&filter.target)
        .bind(filter.since)
        .bind(i64::from(filter.limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list backups", e))?;
        rows.iter().map(backup_view).collect()
    }

    /// One backup.
    pub async fn backup(&self, id: &BackupId) -> Result<Option<BackupView>, CatalogError> {
        let row = sqlx::query(concat!(select_backup!(), " WHERE b.backup_id = $1"))
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| CatalogError::new("read a backup", e))?;
        row.as_ref().map(backup_view).transpose()
    }

    /// The backup a job made.
    pub async fn backup_of_job(&self, id: JobId) -> Result<Option<BackupView>, CatalogError> {
        let row = sqlx::query(concat!(select_backup!(), " WHERE b.id = $1"))
            .bind(id.as_uuid())
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| CatalogError::new("read a backup", e))?;
        row.as_ref().map(backup_view).transpose()
    }

    /// The backups of a restore point.
    pub async fn restore_point(&self, id: RestorePointId) -> Result<Vec<BackupView>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_backup!(),
            " JOIN restore_points p ON b.id = ANY(p.backup_job_ids) WHERE p.id = $1 ORDER BY b.target_identifier"
        ))
        .bind(id.as_uuid())
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("read a restore point", e))?;
        rows.iter().map(backup_view).collect()
    }

    /// The last backup of every target that has one.
    pub async fn last_backups(&self) -> Result<Vec<BackupView>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_backup!(),
            " WHERE b.id IN (
                 SELECT DISTINCT ON (target_identifier) id FROM backups ORDER BY target_identifier, completed_at DESC)"
        ))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list last backups", e))?;
        rows.iter().map(backup_view).collect()
    }

    /// Bytes of content of a target's last backup; what the next one will come to, as far as anybody can tell.
    pub async fn last_content_bytes(&self, target: &TargetName) -> Result<Option<u64>, CatalogError> {
        let row = sqlx::query(
            "SELECT size_bytes FROM backups WHERE target_identifier = $1 ORDER BY completed_at DESC LIMIT 1",
        )
        .bind(target.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(|e| CatalogError::new("read the size of the last backup", e))?;
        Ok(row
            .as_ref()
            .map(|row| bytes_of(row, "size_bytes"))
            .transpose()?
            .flatten())
    }

    /// A backup's receipt with what has been proven since.
    pub async fn receipt(&self, id: &BackupId) -> Result<Option<ReceiptView>, CatalogError> {
        let failed = |e| CatalogError::new("read a receipt", e);
        let Some(backup) = self.backup(id).await? else {
            return Ok(None);
        };
        let rows = sqlx::query(
            "SELECT kind::text, sha256, body FROM receipts WHERE backup_id = $1 AND kind <> 'restore' ORDER BY created_at DESC",
        )
        .bind(id.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        let integrity = Integrity {
            validated: backup.verified,
            validation_method: backup.validation_method,
            validated_at: backup.verified_at,
        };
        let mut view = None;
        let mut verifications = Vec::new();
        for row in &rows {
            let body: serde_json::Value = column(row, "body")?;
            if column::<String>(row, "kind")? == "backup" {
                view = Some((body, column::<String>(row, "sha256")?));
            } else {
                verifications.push(body);
            }
        }
        let Some((mut receipt, sha256)) = view else {
            return Ok(None);
        };
        if let Some(slot) = receipt.get_mut("integrity") {
            *slot = serde_json::to_value(&integrity).map_err(|e| CatalogError::decode("receipts.body", e))?;
        }
        Ok(Some(ReceiptView {
            receipt,
            sha256,
            integrity,
            verifications,
        }))
    }

    /// Backups that no verify job exists for, oldest first: the verifications that are still owed.
    pub async fn unverified(&self, limit: u32) -> Result<Vec<OwedVerification>, CatalogError> {
        let rows = sqlx::query(
            "SELECT b.backup_id, b.target_identifier, b.target::text, m.traceparent
             FROM backups b JOIN backup_jobs m ON m.id = b.id
             WHERE NOT b.verification_asked
             ORDER BY b.completed_at LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("look for unverified backups", e))?;
        rows.iter()
            .map(|row| {
                Ok(OwedVerification {
                    backup_id: parsed(row, "backup_id")?,
                    target: parsed(row, "target_identifier")?,
                    target_kind: parsed(row, "target")?,
                    traceparent: column(row, "traceparent")?,
                })
            })
            .collect()
    }
}

fn backup_view(row: &PgRow) -> Result<BackupView, CatalogError> {
    let method: Option<String> = row
        .try_get("validation_method")
        .map_err(|e| CatalogError::decode("validation_method", e))?;
    let validation_method = match method.as_deref() {
        None => None,
        Some("checksum") => Some(ValidationMethod::Checksum),
        Some("spot_restore") => Some(ValidationMethod::SpotRestore),
        Some("full_restore_test") => Some(ValidationMethod::FullRestoreTest),
        Some(other) => return Err(CatalogError::decode("validation_method", other)),
    };
    Ok(BackupView {
        backup_id: parsed(row, "backup_id")?,
        job_id: JobId::from_uuid(column::<Uuid>(row, "id")?),
        target: parsed(row, "target_identifier")?,
        target_kind: parsed(row, "target")?,
        backup_type: parsed(row, "type")?,
        started_at: column(row, "started_at")?,
        completed_at: column(row, "completed_at")?,
        size_bytes: bytes_of(row, "size_bytes")?.unwrap_or(0),
        stored_bytes: bytes_of(row, "stored_bytes")?.unwrap_or(0),
        partial: column(row, "partial")?,
        verified: column(row, "verified")?,
        verified_at: column(row, "verified_at")?,
        validation_method,
        verification_error: column(row, "verification_error")?,
        retention_until: column(row, "retention_until")?,
        storage_path: column::<Option<String>>(row, "storage_path")?.unwrap_or_default(),
    })
}
