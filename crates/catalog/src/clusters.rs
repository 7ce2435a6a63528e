//! Base backups of clusters: what their receipts say of their place in the WAL.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use strongroom_proto::cluster_tables::ClusterTables;
use strongroom_proto::receipt::SourceFacts;
use strongroom_proto::wal::ClusterFacts;
use strongroom_proto::{BackupId, BackupType, TargetName, VaultId};

use crate::jobs::{bytes_of, column, parsed};
use crate::{Catalog, CatalogError};

/// A base backup of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterBackup {
    /// The backup.
    pub backup_id: BackupId,
    /// The vault it lies in.
    pub vault: VaultId,
    /// What was asked to be read.
    pub backup_type: BackupType,
    /// Where it lies in the WAL.
    pub facts: ClusterFacts,
    /// When it was complete.
    pub completed_at: DateTime<Utc>,
    /// Bytes of content.
    pub size_bytes: u64,
    /// Bytes it added to the vault.
    pub stored_bytes: u64,
    /// Whether a verification has passed.
    pub verified: bool,
    /// What the last verification that did not pass found.
    pub verification_error: Option<String>,
}

/// The newest drill of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    /// Whether it passed.
    pub passed: bool,
    /// When it ended.
    pub completed_at: DateTime<Utc>,
    /// What it counted, where it is still known.
    pub tables: Option<ClusterTables>,
}

/// A piece of SQL that several statements share; a macro, so that every statement stays a literal.
macro_rules! select_cluster {
    () => {
        "SELECT b.backup_id, b.type::text, b.completed_at, b.size_bytes, b.stored_bytes, b.verified,
             b.verification_error, r.body ->> 'vault_id' AS vault_id, r.body #> '{source,cluster}' AS cluster
         FROM backups b JOIN receipts r ON r.backup_id = b.backup_id AND r.kind = 'backup'
         WHERE r.body #> '{source,cluster}' IS NOT NULL "
    };
}

impl Catalog {
    /// The base backups of a target, the oldest first.
    pub async fn cluster_backups(&self, target: &TargetName) -> Result<Vec<ClusterBackup>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_cluster!(),
            "AND b.target_identifier = $1 ORDER BY b.completed_at"
        ))
        .bind(target.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list base backups", e))?;
        rows.iter().map(cluster_backup).collect()
    }

    /// One backup, where it is a base backup of a cluster.
    pub async fn cluster_backup(&self, id: &BackupId) -> Result<Option<ClusterBackup>, CatalogError> {
        let row = sqlx::query(concat!(select_cluster!(), "AND b.backup_id = $1"))
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| CatalogError::new("read a base backup", e))?;
        row.as_ref().map(cluster_backup).transpose()
    }

    /// The newest drill of a backup; nothing where none has ended.
    pub async fn newest_drill(&self, id: &BackupId) -> Result<Option<Drill>, CatalogError> {
        let row = sqlx::query(
            "SELECT passed, completed_at, tables FROM verifications WHERE backup_id = $1
             ORDER BY completed_at DESC LIMIT 1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(|e| CatalogError::new("read the newest drill of a backup", e))?;
        let Some(row) = row else { return Ok(None) };
        let tables: Option<serde_json::Value> = column(&row, "tables")?;
        Ok(Some(Drill {
            passed: column(&row, "passed")?,
            completed_at: column(&row, "completed_at")?,
            tables: tables
                .map(serde_json::from_value)
                .transpose()
                .map_err(|e| CatalogError::decode("verifications.tables", e))?,
        }))
    }

    /// What the receipt of a backup says of its source; nothing where it is not known.
    pub async fn source_facts(&self, id: &BackupId) -> Result<SourceFacts, CatalogError> {
        let source: Option<serde_json::Value> = sqlx::query_scalar(
            "SELECT body -> 'source' FROM receipts WHERE backup_id = $1 AND kind = 'backup' ORDER BY created_at LIMIT 1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(|e| CatalogError::new("read what a backup is of", e))?
        .flatten();
        source.map_or_else(
            || Ok(SourceFacts::default()),
            |source| serde_json::from_value(source).map_err(|e| CatalogError::decode("receipts.body.source", e)),
        )
    }
}

fn cluster_backup(row: &PgRow) -> Result<ClusterBackup, CatalogError> {
    let facts: serde_json::Value = column(row, "cluster")?;
    Ok(ClusterBackup {
        backup_id: parsed(row, "backup_id")?,
        vault: parsed(row, "vault_id")?,
        backup_type: parsed(row, "type")?,
        facts: serde_json::from_value(facts).map_err(|e| CatalogError::decode("receipts.body.source.cluster", e))?,
        completed_at: column(row, "completed_at")?,
        size_bytes: bytes_of(row, "size_bytes")?.unwrap_or(0),
        stored_bytes: bytes_of(row, "stored_bytes")?.unwrap_or(0),
        verified: column(row, "verified")?,
        verification_error: column(row, "verification_error")?,
    })
}
