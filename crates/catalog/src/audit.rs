//! Who did what that could harm: overwriting restores, changed schedules, cancelled jobs.

use sqlx::PgConnection;

use crate::{Catalog, CatalogError};

/// One line of the audit log.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    /// Who.
    pub principal: String,
    /// What, as a verb: `restore`, `create schedule`.
    pub action: &'static str,
    /// To what.
    pub object: String,
    /// What else is worth knowing; no secrets.
    pub detail: serde_json::Value,
}

impl Catalog {
    /// Writes a line of the audit log.
    pub async fn audit(&self, entry: &AuditEntry) -> Result<(), CatalogError> {
        let mut connection = self
            .pool
            .acquire()
            .await
            .map_err(|e| CatalogError::new("write the audit log", e))?;
        write(&mut connection, entry).await
    }
}

pub(crate) async fn write(connection: &mut PgConnection, entry: &AuditEntry) -> Result<(), CatalogError> {
    sqlx::query("INSERT INTO audit_log (principal, action, object, detail) VALUES ($1, $2, $3, $4)")
        .bind(&entry.principal)
        .bind(entry.action)
        .bind(&entry.object)
        .bind(&entry.detail)
        .execute(connection)
        .await
        .map_err(|e| CatalogError::new("write the audit log", e))?;
    Ok(())
}
