//! Scenarios: targets that exist because they were deployed, not because somebody declared them.

use sqlx::PgConnection;
use strongroom_proto::TargetName;

use crate::jobs::{column, parsed};
use crate::{AuditEntry, Catalog, CatalogError, audit};

/// A scenario that was deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The target that its files are.
    pub target: TargetName,
    /// Where they lay when it was deployed last.
    pub path: String,
}

impl Catalog {
    /// Every scenario that was deployed, by name.
    pub async fn scenarios(&self) -> Result<Vec<Scenario>, CatalogError> {
        let rows = sqlx::query("SELECT target_identifier, path FROM scenarios ORDER BY target_identifier")
            .fetch_all(&self.pool)
            .await
            .map_err(|e| CatalogError::new("list the scenarios", e))?;
        rows.iter()
            .map(|row| {
                Ok(Scenario {
                    target: parsed(row, "target_identifier")?,
                    path: column(row, "path")?,
                })
            })
            .collect()
    }

    /// Forgets a scenario until it is deployed again; its backups stay. `false` where none has this name.
    pub async fn forget_scenario(&self, target: &TargetName, principal: &str) -> Result<bool, CatalogError> {
        let failed = |e| CatalogError::new("forget a scenario", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let done = sqlx::query("DELETE FROM scenarios WHERE target_identifier = $1")
            .bind(target.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let entry = AuditEntry {
            principal: principal.to_owned(),
            action: "forget scenario",
            object: target.to_string(),
            detail: serde_json::json!({}),
        };
        audit::write(&mut tx, &entry).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }
}

/// Notes where a scenario's files lie, as part of the transaction that asks for their backup.
pub(crate) async fn remember(
    connection: &mut PgConnection,
    target: &TargetName,
    path: &str,
) -> Result<(), CatalogError> {
    sqlx::query(
        "INSERT INTO scenarios (target_identifier, path) VALUES ($1, $2)
         ON CONFLICT (target_identifier) DO UPDATE SET path = $2, deployed_at = now()",
    )
    .bind(target.as_str())
    .bind(path)
    .execute(connection)
    .await
    .map_err(|e| CatalogError::new("note where a scenario lies", e))?;
    Ok(())
}
