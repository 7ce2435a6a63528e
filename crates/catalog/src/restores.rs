//! What restores of files changed, or would change.

use strongroom_proto::restore::RestoreChanges;
use strongroom_proto::{Attempt, JobId};

use crate::finish::{changes_column, end_restore, ended};
use crate::jobs::{attempt_column, notify_jobs};
use crate::{Catalog, CatalogError, Finish};

impl Catalog {
    /// Completes a restore job that was to change nothing. Nothing is announced: nothing was restored.
    pub async fn finish_dry_run(
        &self,
        id: JobId,
        attempt: Attempt,
        changes: &RestoreChanges,
    ) -> Result<Finish, CatalogError> {
        let failed = |e| CatalogError::new("finish a dry run", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let row = sqlx::query(
            "UPDATE backup_jobs SET status = 'completed', completed_at = now(), lease_expires_at = NULL, secret = NULL,
                 error = NULL, progress_rate_bytes = NULL, changes = $3
             WHERE id = $1 AND attempt = $2 AND status = 'running' AND kind = 'restore'
             RETURNING kind::text, target_identifier, backup_id, started_at, completed_at, retry_count, principal,
                 traceparent",
        )
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(changes_column(changes)?)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(Finish::Stale) };
        end_restore(&mut tx, id, &ended(&row)?, Some(&changes.destination), None).await?;
        notify_jobs(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Finish::Accepted)
    }

    /// What a restore changed, or would change. `None` where there is no such job, it has not ended, or it is not about
    /// files.
    pub async fn changes(&self, id: JobId) -> Result<Option<RestoreChanges>, CatalogError> {
        let found: Option<Option<serde_json::Value>> =
            sqlx::query_scalar("SELECT changes FROM backup_jobs WHERE id = $1")
                .bind(id.as_uuid())
                .fetch_optional(&self.pool)
                .await
                .map_err(|e| CatalogError::new("read what a restore changed", e))?;
        found
            .flatten()
            .map(|changes| serde_json::from_value(changes).map_err(|e| CatalogError::decode("backup_jobs.changes", e)))
            .transpose()
    }
}
