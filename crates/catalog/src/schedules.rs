//! Schedules. What is due is decided by `policy`; here the due instant moves on by compare-and-set, so that of any
//! number of coordinators one moves it.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use strongroom_proto::api::{ScheduleSpec, ScheduleView};
use strongroom_proto::{BackupType, ScheduleId};

use crate::jobs::{self, column};
use crate::{AuditEntry, Catalog, CatalogError, CreateOutcome, JobRequest, Origin, audit};

/// A piece of SQL that several statements share; a macro, so that every statement stays a literal.
macro_rules! select_schedule {
    () => {
        "SELECT id, name, cron_expression, timezone, backup_type::text, targets, retention_days,
    enabled, catch_up, jitter_seconds, last_run, next_run, created_by FROM backup_schedules"
    };
}

impl Catalog {
    /// Makes a schedule.
    pub async fn create_schedule(
        &self,
        id: ScheduleId,
        spec: &ScheduleSpec,
        next_run: Option<DateTime<Utc>>,
        principal: &str,
    ) -> Result<ScheduleView, CatalogError> {
        let failed = |e| CatalogError::new("create a schedule", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let done = sqlx::query(
            "INSERT INTO backup_schedules (id, name, cron_expression, timezone, backup_type, targets, retention_days,
                 enabled, catch_up, jitter_seconds, next_run, created_by)
             VALUES ($1, $2, $3, $4, $5::backup_type, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (name) DO NOTHING",
        )
        .bind(id.as_uuid())
        .bind(&spec.name)
        .bind(&spec.cron_expression)
        .bind(&spec.timezone)
        .bind(spec.backup_type.map(BackupType::as_str))
        .bind(&spec.targets)
        .bind(spec.retention_days.map(days_column))
        .bind(spec.enabled)
        .bind(spec.catch_up)
        .bind(days_column(spec.jitter_seconds))
        .bind(next_run.filter(|_| spec.enabled))
        .bind(principal)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Err(CatalogError::Exists {
                object: format!("schedule {:?}", spec.name),
            });
        }
        write_audit(&mut tx, principal, "create schedule", spec).await?;
        tx.commit().await.map_err(failed)?;
        self.schedule(&spec.name)
            .await?
            .ok_or_else(|| CatalogError::decode("backup_schedules", "gone again"))
    }

    /// Replaces what the schedule of this name is made of. `None` where there is no such schedule.
    pub async fn update_schedule(
        &self,
        name: &str,
        spec: &ScheduleSpec,
        next_run: Option<DateTime<Utc>>,
        principal: &str,
    ) -> Result<Option<ScheduleView>, CatalogError> {
        let failed = |e: sqlx::Error| match &e {
            sqlx::Error::Database(db) if db.is_unique_violation() => CatalogError::Exists {
                object: format!("schedule {:?}", spec.name),
            },
            _ => CatalogError::new("update a schedule", e),
        };
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let done = sqlx::query(
            "UPDATE backup_schedules SET name = $2, cron_expression = $3, timezone = $4, backup_type = $5::backup_type,
                 targets = $6, retention_days = $7, enabled = $8, catch_up = $9, jitter_seconds = $10, next_run = $11
             WHERE name = $1",
        )
        .bind(name)
        .bind(&spec.name)
        .bind(&spec.cron_expression)
        .bind(&spec.timezone)
        .bind(spec.backup_type.map(BackupType::as_str))
        .bind(&spec.targets)
        .bind(spec.retention_days.map(days_column))
        .bind(spec.enabled)
        .bind(spec.catch_up)
        .bind(days_column(spec.jitter_seconds))
        .bind(next_run.filter(|_| spec.enabled))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(None);
        }
        write_audit(&mut tx, principal, "update schedule", spec).await?;
        tx.commit().await.map_err(failed)?;
        self.schedule(&spec.name).await
    }

    /// Removes a schedule; `false` where there is no such one.
    pub async fn delete_schedule(&self, name: &str, principal: &str) -> Result<bool, CatalogError> {
        let failed = |e| CatalogError::new("delete a schedule", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let done = sqlx::query("DELETE FROM backup_schedules WHERE name = $1")
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let entry = AuditEntry {
            principal: principal.to_owned(),
            action: "delete schedule",
            object: name.to_owned(),
            detail: serde_json::json!({}),
        };
        audit::write(&mut tx, &entry).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    /// One schedule.
    pub async fn schedule(&self, name: &str) -> Result<Option<ScheduleView>, CatalogError> {
        let row = sqlx::query(concat!(select_schedule!(), " WHERE name = $1"))
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| CatalogError::new("read a schedule", e))?;
        row.as_ref().map(schedule_view).transpose()
    }

    /// All schedules, by name.
    pub async fn schedules(&self) -> Result<Vec<ScheduleView>, CatalogError> {
        let rows = sqlx::query(concat!(select_schedule!(), " ORDER BY name"))
            .fetch_all(&self.pool)
            .await
            .map_err(|e| CatalogError::new("list schedules", e))?;
        rows.iter().map(schedule_view).collect()
    }

    /// Enabled schedules whose next run is not after `now`.
    pub async fn due_schedules(&self, now: DateTime<Utc>) -> Result<Vec<ScheduleView>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_schedule!(),
            " WHERE enabled AND next_run <= $1 ORDER BY next_run LIMIT 500"
        ))
        .bind(now)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("look for due schedules", e))?;
        rows.iter().map(schedule_view).collect()
    }

    /// Moves a schedule's next run on and creates the jobs of the due instant, both or neither. `None` when another
    /// coordinator did, or the schedule was changed.
    pub async fn fire_schedule(
        &self,
        id: ScheduleId,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
        fired: DateTime<Utc>,
        origin: &Origin,
        requests: &[JobRequest],
    ) -> Result<Option<CreateOutcome>, CatalogError> {
        let failed = |e| CatalogError::new("fire a schedule", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        if !advance(&mut tx, id, from, to, Some(fired)).await? {
            return Ok(None);
        }
        let outcome = jobs::create_in(&mut tx, origin, requests).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(outcome))
    }

    /// Moves a schedule's next run on; `false` when another coordinator did, or the schedule was changed.
    pub async fn advance_schedule(
        &self,
        id: ScheduleId,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
        fired: Option<DateTime<Utc>>,
    ) -> Result<bool, CatalogError> {
        let mut connection = self
            .pool
            .acquire()
            .await
            .map_err(|e| CatalogError::new("advance a schedule", e))?;
        advance(&mut connection, id, from, to, fired).await
    }
}

async fn advance(
    connection: &mut sqlx::PgConnection,
    id: ScheduleId,
    from: DateTime<Utc>,
    to: Option<DateTime<Utc>>,
    fired: Option<DateTime<Utc>>,
) -> Result<bool, CatalogError> {
    let done = sqlx::query(
        "UPDATE backup_schedules SET next_run = $3, last_run = coalesce($4, last_run)
         WHERE id = $1 AND next_run = $2 AND enabled",
    )
    .bind(id.as_uuid())
    .bind(from)
    .bind(to)
    .bind(fired)
    .execute(connection)
    .await
    .map_err(|e| CatalogError::new("advance a schedule", e))?;
    Ok(done.rows_affected() == 1)
}

async fn write_audit(
    connection: &mut sqlx::PgConnection,
    principal: &str,
    action: &'static str,
    spec: &ScheduleSpec,
) -> Result<(), CatalogError> {
    let detail = serde_json::to_value(spec).map_err(|e| CatalogError::decode("audit_log.detail", e))?;
    let entry = AuditEntry {
        principal: principal.to_owned(),
        action,
        object: spec.name.clone(),
        detail,
    };
    audit::write(connection, &entry).await
}

fn days_column(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn schedule_view(row: &PgRow) -> Result<ScheduleView, CatalogError> {
    let number = |name| -> Result<u32, CatalogError> {
        let value: i32 = column(row, name)?;
        u32::try_from(value).map_err(|e| CatalogError::decode(name, e))
    };
    let days: Option<i32> = column(row, "retention_days")?;
    Ok(ScheduleView {
        id: ScheduleId::from_uuid(column(row, "id")?),
        spec: ScheduleSpec {
            name: column(row, "name")?,
            cron_expression: column(row, "cron_expression")?,
            timezone: column(row, "timezone")?,
            backup_type: column::<Option<String>>(row, "backup_type")?
                .map(|word| word.parse().map_err(|e| CatalogError::decode("backup_type", e)))
                .transpose()?,
            targets: column(row, "targets")?,
            retention_days: days.map(i32::unsigned_abs),
            enabled: column(row, "enabled")?,
            catch_up: column(row, "catch_up")?,
            jitter_seconds: number("jitter_seconds")?,
        },
        last_run: column(row, "last_run")?,
        next_run: column(row, "next_run")?,
        created_by: column(row, "created_by")?,
    })
}
