//! Who did what that could harm: overwriting restores, changed schedules, cancelled jobs.

use sqlx::PgConnection;

use crate::CatalogError;

/// One line of the audit log.
#[derive(Debug, Clone)]
pub(crate) struct AuditEntry {
    /// Who.
    pub(crate) principal: String,
    /// What, as a verb: `restore`, `create schedule`.
    pub(crate) action: &'static str,
    /// To what.
    pub(crate) object: String,
    /// What else is worth knowing; no secrets.
    pub(crate) detail: serde_json::Value,
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
