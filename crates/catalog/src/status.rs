//! Sums over all backups, for the status page.

use chrono::{DateTime, Utc};

use crate::jobs::column;
use crate::{Catalog, CatalogError};

/// Sums over all backups.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Bytes of content.
    pub content_bytes: u64,
    /// Bytes they added to the vault.
    pub stored_bytes: u64,
    /// When the last was completed.
    pub last_completed_at: Option<DateTime<Utc>>,
    /// When the last passed a verification.
    pub last_verified_at: Option<DateTime<Utc>>,
    /// Targets whose last verification did not pass.
    pub disproven_targets: u64,
    /// Jobs given up in the last 24 hours whose target has no completed job of the kind since.
    pub unrepaired_failures: u64,
    /// Messages committed and not yet published.
    pub unsent: u64,
}

impl Catalog {
    /// Sums over all backups.
    pub async fn totals(&self) -> Result<Totals, CatalogError> {
        let row = sqlx::query(
            "SELECT
                (SELECT coalesce(sum(size_bytes), 0)::int8 FROM backups) AS content_bytes,
                (SELECT coalesce(sum(stored_bytes), 0)::int8 FROM backups) AS stored_bytes,
                (SELECT max(completed_at) FROM backups) AS last_completed_at,
                (SELECT max(verified_at) FROM backups) AS last_verified_at,
                (SELECT count(*) FROM (SELECT DISTINCT ON (target_identifier) verification_error FROM backups
                    ORDER BY target_identifier, completed_at DESC) last WHERE verification_error IS NOT NULL) AS disproven,
                (SELECT count(*) FROM backup_jobs f WHERE f.status = 'failed' AND f.completed_at > now() - interval '1 day'
                    AND NOT EXISTS (SELECT 1 FROM backup_jobs g WHERE g.target_identifier = f.target_identifier
                        AND g.kind = f.kind AND g.status = 'completed' AND g.completed_at > f.completed_at)) AS failures,
                (SELECT count(*) FROM outbox WHERE sent_at IS NULL) AS unsent",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|e| CatalogError::new("sum up backups", e))?;
        let count = |name| column::<i64>(&row, name).map(i64::unsigned_abs);
        Ok(Totals {
            content_bytes: count("content_bytes")?,
            stored_bytes: count("stored_bytes")?,
            last_completed_at: column(&row, "last_completed_at")?,
            last_verified_at: column(&row, "last_verified_at")?,
            disproven_targets: count("disproven")?,
            unrepaired_failures: count("failures")?,
            unsent: count("unsent")?,
        })
    }
}
