//! Jobs: creating them, claiming an attempt, holding its lease, and reading them.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use strongroom_proto::api::JobView;
use strongroom_proto::events::{Fact, JobStarted};
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_proto::{
    Attempt, BackupId, BackupType, JobId, JobKind, JobStatus, Progress, ScheduleId, TargetKind, TargetName, TriggerId,
};
use uuid::Uuid;

use crate::{Catalog, CatalogError, listen, outbox, scenarios};

/// A piece of SQL that several statements share; a macro, so that every statement stays a literal.
macro_rules! select_job {
    () => {
        "SELECT j.id, j.kind::text, j.type::text, j.target::text, j.target_identifier,
    j.status::text, j.created_at, j.started_at, j.completed_at, j.size_bytes, j.compression_ratio, j.storage_path,
    j.checksum, j.retention_until, j.metadata, j.backup_id, j.attempt, j.worker, j.error, j.progress_bytes,
    j.progress_total_bytes, j.progress_files, j.progress_rate_bytes, j.partial, coalesce(b.verified, false) AS verified
    FROM backup_jobs j LEFT JOIN backups b ON b.backup_id = j.backup_id"
    };
}

/// A job to be created.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// What it reads.
    pub backup_type: BackupType,
    /// Its target.
    pub target: TargetName,
    /// The target's kind.
    pub target_kind: TargetKind,
    /// Which workers reach the target.
    pub pool: String,
    /// The backup it makes, verifies or restores.
    pub backup_id: BackupId,
    /// Until when the backup is kept.
    pub retention_until: Option<DateTime<Utc>>,
    /// Description, git and the like; for people.
    pub metadata: serde_json::Value,
    /// What the worker needs beyond the target's configuration; no secrets.
    pub params: serde_json::Value,
    /// What the worker needs and nobody may read later.
    pub secret: Option<String>,
    /// A deployed scenario's folder: from then on the target is known to lie there.
    pub scenario_path: Option<String>,
}

/// Why jobs are created, and by whom.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The trigger, where it has an identity; a repetition makes no second job.
    pub trigger: Option<TriggerId>,
    /// Where it came: a subject, `api`, `schedule`.
    pub door: String,
    /// The schedule that fired.
    pub schedule: Option<ScheduleId>,
    /// Who asked.
    pub operator: Operator,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// What became of a request for jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateOutcome {
    /// Jobs exist, new or joined.
    Created(Vec<Created>),
    /// The trigger was taken before; these are its jobs.
    Repeated(Vec<JobId>),
}

/// One job that a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The job.
    pub job_id: JobId,
    /// Its target.
    pub target: TargetName,
    /// Whether it was already waiting.
    pub coalesced: bool,
}

/// A job in the hands of a worker.
#[derive(Clone)]
pub struct ClaimedJob {
    /// The job.
    pub id: JobId,
    /// The attempt that was claimed.
    pub attempt: Attempt,
    /// What it does.
    pub kind: JobKind,
    /// What it reads.
    pub backup_type: BackupType,
    /// Its target.
    pub target: TargetName,
    /// The target's kind.
    pub target_kind: TargetKind,
    /// The backup it makes, verifies or restores.
    pub backup_id: BackupId,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When this attempt was claimed.
    pub started_at: DateTime<Utc>,
    /// Description, git and the like.
    pub metadata: serde_json::Value,
    /// What the worker needs beyond the target's configuration.
    pub params: serde_json::Value,
    /// What the worker needs and nobody may read later.
    pub secret: Option<String>,
    /// Who asked.
    pub operator: Operator,
    /// Attempts that were spent before this one.
    pub retry_count: u32,
    /// W3C trace context of the trigger.
    pub traceparent: Option<String>,
    /// Until when the backup is to be kept, where the request said.
    pub retention_until: Option<DateTime<Utc>>,
}

impl std::fmt::Debug for ClaimedJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClaimedJob")
            .field("id", &self.id)
            .field("attempt", &self.attempt)
            .field("kind", &self.kind)
            .field("target", &self.target)
            .field("backup_id", &self.backup_id)
            .finish_non_exhaustive()
    }
}

/// How a lease stands after an attempt to renew it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It is held.
    Held,
    /// Somebody asked to stop the job.
    CancelRequested,
    /// Another attempt has the job, or it ended.
    Lost,
}

/// An attempt whose worker has not been heard of in time.
#[derive(Debug, Clone)]
pub struct ExpiredLease {
    /// The job.
    pub id: JobId,
    /// Its attempt.
    pub attempt: Attempt,
    /// Attempts that were spent before this one.
    pub retry_count: u32,
    /// The worker that held it.
    pub worker: String,
}

impl Catalog {
    /// Creates jobs for a request, all or none. A backup whose target has one waiting joins that one (the wider type
    /// and the longer retention win). A trigger that was taken before creates nothing.
    pub async fn create_jobs(&self, origin: &Origin, requests: &[JobRequest]) -> Result<CreateOutcome, CatalogError> {
        let failed = |e| CatalogError::new("create jobs", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let outcome = create_in(&mut tx, origin, requests).await?;
        tx.commit().await.map_err(failed)?;
        Ok(outcome)
    }

    /// Claims an attempt for a worker: the lease begins and the job's start is announced. `None` when the attempt is
    /// not the current one, was claimed before, or the job ended: the message is then worth nothing.
    pub async fn claim(
        &self,
        id: JobId,
        attempt: Attempt,
        worker: &str,
        lease_seconds: u32,
    ) -> Result<Option<ClaimedJob>, CatalogError> {
        let failed = |e| CatalogError::new("claim a job", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let row = sqlx::query(
            "UPDATE backup_jobs SET status = 'running', worker = $3, started_at = now(),
                 lease_expires_at = now() + make_interval(secs => $4), progress_bytes = 0, progress_total_bytes = NULL,
                 progress_files = 0, progress_rate_bytes = NULL
             WHERE id = $1 AND attempt = $2 AND status = 'pending' AND dispatched_at IS NOT NULL AND NOT cancel_requested
             RETURNING id, attempt, kind::text, type::text, target::text, target_identifier, backup_id, created_at,
                 started_at, metadata, params, secret, initiated_by::text, principal, retry_count, traceparent,
                 retention_until",
        )
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(worker)
        .bind(f64::from(lease_seconds))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let job = claimed(&row)?;
        let fact = Fact::JobStarted(JobStarted {
            job_id: job.id,
            backup_type: job.backup_type,
            targets: vec![job.target.clone()],
            kind: job.kind,
            attempt: job.attempt,
            backup_id: job.backup_id.clone(),
            worker: worker.to_owned(),
        });
        let message_id = format!("{}.{}.started", job.id, job.attempt);
        outbox::put_fact(&mut tx, &message_id, &fact, job.traceparent.as_deref()).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(job))
    }

    /// Extends the lease of an attempt and stores its progress.
    pub async fn renew(
        &self,
        id: JobId,
        attempt: Attempt,
        lease_seconds: u32,
        progress: &Progress,
    ) -> Result<LeaseState, CatalogError> {
        let cancel: Option<bool> = sqlx::query_scalar(
            "UPDATE backup_jobs SET lease_expires_at = now() + make_interval(secs => $3), progress_bytes = $4,
                 progress_total_bytes = $5, progress_files = $6, progress_rate_bytes = $7
             WHERE id = $1 AND attempt = $2 AND status = 'running' RETURNING cancel_requested",
        )
        .bind(id.as_uuid())
        .bind(attempt_column(attempt))
        .bind(f64::from(lease_seconds))
        .bind(bytes_column(progress.bytes))
        .bind(progress.total_bytes.map(bytes_column))
        .bind(bytes_column(progress.files))
        .bind(progress.rate_bytes_per_second.map(bytes_column))
        .fetch_optional(&self.pool)
        .await
        .map_err(|e| CatalogError::new("renew a lease", e))?;
        Ok(match cancel {
            Some(false) => LeaseState::Held,
            Some(true) => LeaseState::CancelRequested,
            None => LeaseState::Lost,
        })
    }

    /// Attempts whose lease ran out, oldest first.
    pub async fn expired_leases(&self) -> Result<Vec<ExpiredLease>, CatalogError> {
        let failed = |e| CatalogError::new("look for expired leases", e);
        let rows = sqlx::query(
            "SELECT id, attempt, retry_count, worker FROM backup_jobs
             WHERE status = 'running' AND lease_expires_at < now() ORDER BY lease_expires_at LIMIT 500",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| {
                Ok(ExpiredLease {
                    id: JobId::from_uuid(row.try_get("id").map_err(failed)?),
                    attempt: attempt_of(row)?,
                    retry_count: count_of(row, "retry_count")?,
                    worker: row.try_get("worker").map_err(failed)?,
                })
            })
            .collect()
    }

    /// One job.
    pub async fn job(&self, id: JobId) -> Result<Option<JobView>, CatalogError> {
        let row = sqlx::query(concat!(select_job!(), " WHERE j.id = $1"))
            .bind(id.as_uuid())
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| CatalogError::new("read a job", e))?;
        row.as_ref().map(job_view).transpose()
    }

    /// Jobs, newest first: those of one status, or all.
    pub async fn jobs(&self, status: Option<JobStatus>, limit: u32) -> Result<Vec<JobView>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_job!(),
            " WHERE ($1::text IS NULL OR j.status = $1::job_status) ORDER BY j.created_at DESC, j.id DESC LIMIT $2"
        ))
        .bind(status.map(JobStatus::as_str))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list jobs", e))?;
        rows.iter().map(job_view).collect()
    }

    /// Jobs that wait or run, oldest first.
    pub async fn active_jobs(&self, limit: u32) -> Result<Vec<JobView>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_job!(),
            " WHERE j.status IN ('pending', 'running') ORDER BY j.created_at, j.id LIMIT $1"
        ))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list active jobs", e))?;
        rows.iter().map(job_view).collect()
    }

    /// Jobs that ended, the last first.
    pub async fn ended_jobs(&self, limit: u32) -> Result<Vec<JobView>, CatalogError> {
        let rows = sqlx::query(concat!(
            select_job!(),
            " WHERE j.completed_at IS NOT NULL ORDER BY j.completed_at DESC LIMIT $1"
        ))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list ended jobs", e))?;
        rows.iter().map(job_view).collect()
    }

    /// Seconds that the last completed jobs of this kind and target took, newest first; for estimates.
    pub async fn past_durations_seconds(&self, kind: JobKind, target: &TargetName) -> Result<Vec<f64>, CatalogError> {
        sqlx::query_scalar(
            "SELECT extract(epoch FROM completed_at - started_at)::float8 FROM backup_jobs
             WHERE kind = $1::job_kind AND target_identifier = $2 AND status = 'completed' AND started_at IS NOT NULL
               AND params->'dry_run' IS DISTINCT FROM 'true'
             ORDER BY completed_at DESC LIMIT 9",
        )
        .bind(kind.as_str())
        .bind(target.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("read past durations", e))
    }
}

/// Creates jobs as part of a transaction.
pub(crate) async fn create_in(
    connection: &mut PgConnection,
    origin: &Origin,
    requests: &[JobRequest],
) -> Result<CreateOutcome, CatalogError> {
    let failed = |e| CatalogError::new("create jobs", e);
    let ids = |created: &[Created]| created.iter().map(|c| c.job_id.as_uuid()).collect::<Vec<_>>();
    if let Some(trigger) = &origin.trigger {
        let taken =
            sqlx::query("INSERT INTO triggers (id, subject, job_ids) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING")
                .bind(trigger.as_str())
                .bind(&origin.door)
                .bind(requests.iter().map(|r| r.id.as_uuid()).collect::<Vec<_>>())
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
        if taken.rows_affected() == 0 {
            let ids: Vec<Uuid> = sqlx::query_scalar("SELECT job_ids FROM triggers WHERE id = $1")
                .bind(trigger.as_str())
                .fetch_one(&mut *connection)
                .await
                .map_err(failed)?;
            return Ok(CreateOutcome::Repeated(ids.into_iter().map(JobId::from_uuid).collect()));
        }
    }
    // Two requests for the same targets in another order would wait for each other's rows.
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by(|a, b| requests[*a].target.cmp(&requests[*b].target));
    let mut created: Vec<Option<Created>> = vec![None; requests.len()];
    for index in order {
        created[index] = Some(create_one(connection, origin, &requests[index]).await?);
    }
    let created: Vec<Created> = created.into_iter().flatten().collect();
    if let Some(trigger) = &origin.trigger
        && created.iter().any(|c| c.coalesced)
    {
        sqlx::query("UPDATE triggers SET job_ids = $2 WHERE id = $1")
            .bind(trigger.as_str())
            .bind(ids(&created))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    notify_jobs(connection).await?;
    Ok(CreateOutcome::Created(created))
}

async fn create_one(
    connection: &mut PgConnection,
    origin: &Origin,
    request: &JobRequest,
) -> Result<Created, CatalogError> {
    let failed = |e| CatalogError::new("create a job", e);
    // Joining may race with the waiting job's claim, and inserting with another request: one more round settles it.
    if let Some(path) = &request.scenario_path {
        scenarios::remember(connection, &request.target, path).await?;
    }
    for _ in 0..8 {
        if request.kind == JobKind::Backup {
            let waiting: Option<Uuid> = sqlx::query_scalar(
                "UPDATE backup_jobs SET
                     type = CASE WHEN $2 = 'full' THEN 'full'::backup_type ELSE type END,
                     -- Without an end is longest.
                     retention_until = CASE WHEN retention_until IS NULL OR $3 IS NULL THEN NULL
                         ELSE greatest(retention_until, $3) END,
                     -- What the joining request knows better: a scenario may have moved.
                     params = params || $4, metadata = metadata || jsonb_strip_nulls($5), pool = $6
                 WHERE target_identifier = $1 AND kind = 'backup' AND status = 'pending' AND started_at IS NULL
                   AND NOT cancel_requested
                 RETURNING id",
            )
            .bind(request.target.as_str())
            .bind(request.backup_type.as_str())
            .bind(request.retention_until)
            .bind(&request.params)
            .bind(&request.metadata)
            .bind(&request.pool)
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
            if let Some(id) = waiting {
                return Ok(Created {
                    job_id: JobId::from_uuid(id),
                    target: request.target.clone(),
                    coalesced: true,
                });
            }
        }
        let inserted = sqlx::query(
            "INSERT INTO backup_jobs (id, kind, type, target, target_identifier, pool, backup_id, retention_until,
                 metadata, params, secret, trigger_id, schedule_id, initiated_by, principal, traceparent)
             VALUES ($1, $2::job_kind, $3::backup_type, $4::target_kind, $5, $6, $7, $8, $9, $10, $11, $12, $13,
                 $14::initiator, $15, $16)
             ON CONFLICT (target_identifier) WHERE kind = 'backup' AND status = 'pending' AND started_at IS NULL
             DO NOTHING",
        )
        .bind(request.id.as_uuid())
        .bind(request.kind.as_str())
        .bind(request.backup_type.as_str())
        .bind(request.target_kind.as_str())
        .bind(request.target.as_str())
        .bind(&request.pool)
        .bind(request.backup_id.as_str())
        .bind(request.retention_until)
        .bind(&request.metadata)
        .bind(&request.params)
        .bind(&request.secret)
        .bind(origin.trigger.as_ref().map(TriggerId::as_str))
        .bind(origin.schedule.map(ScheduleId::as_uuid))
        .bind(initiator_column(origin.operator.initiated_by))
        .bind(&origin.operator.principal)
        .bind(&origin.traceparent)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
        if inserted.rows_affected() == 1 {
            match request.kind {
                JobKind::Backup => {}
                JobKind::Restore => create_restore_row(connection, request).await?,
                JobKind::Verify => note_verification_asked(connection, request).await?,
            }
            return Ok(Created {
                job_id: request.id,
                target: request.target.clone(),
                coalesced: false,
            });
        }
    }
    Err(CatalogError::decode(
        "backup_jobs",
        format!("the waiting job of {} keeps changing; ask again", request.target),
    ))
}

async fn create_restore_row(connection: &mut PgConnection, request: &JobRequest) -> Result<(), CatalogError> {
    let text = |key: &str| request.params.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let dry_run = request.params.get("dry_run").and_then(serde_json::Value::as_bool);
    sqlx::query(
        "INSERT INTO restores (job_id, backup_id, destination, overwrite_reason, dry_run) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(request.id.as_uuid())
    .bind(request.backup_id.as_str())
    .bind(text("destination").unwrap_or_default())
    .bind(text("overwrite_reason"))
    .bind(dry_run.unwrap_or(false))
    .execute(connection)
    .await
    .map_err(|e| CatalogError::new("create a restore", e))?;
    Ok(())
}

async fn note_verification_asked(connection: &mut PgConnection, request: &JobRequest) -> Result<(), CatalogError> {
    sqlx::query("UPDATE backups SET verification_asked = true WHERE backup_id = $1 AND NOT verification_asked")
        .bind(request.backup_id.as_str())
        .execute(connection)
        .await
        .map_err(|e| CatalogError::new("note that a verification was asked for", e))?;
    Ok(())
}

pub(crate) async fn notify_jobs(connection: &mut PgConnection) -> Result<(), CatalogError> {
    sqlx::query("SELECT pg_notify($1, '')")
        .bind(listen::JOBS_CHANNEL)
        .execute(connection)
        .await
        .map_err(|e| CatalogError::new("announce a change of jobs", e))?;
    Ok(())
}

pub(crate) const fn initiator_column(initiated_by: InitiatedBy) -> &'static str {
    match initiated_by {
        InitiatedBy::Automation => "automation",
        InitiatedBy::Human => "human",
    }
}

pub(crate) fn attempt_column(attempt: Attempt) -> i32 {
    i32::try_from(attempt.number()).unwrap_or(i32::MAX)
}

pub(crate) fn bytes_column(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Reads a column, with its name in the error.
pub(crate) fn column<'r, T>(row: &'r PgRow, name: &'static str) -> Result<T, CatalogError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(name).map_err(|e| CatalogError::decode(name, e))
}

/// Reads a text column that holds a typed word or id.
pub(crate) fn parsed<T>(row: &PgRow, name: &'static str) -> Result<T, CatalogError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text: String = column(row, name)?;
    text.parse().map_err(|e: T::Err| CatalogError::decode(name, e))
}

pub(crate) fn bytes_of(row: &PgRow, name: &'static str) -> Result<Option<u64>, CatalogError> {
    let value: Option<i64> = column(row, name)?;
    value
        .map(|v| u64::try_from(v).map_err(|e| CatalogError::decode(name, e)))
        .transpose()
}

fn count_of(row: &PgRow, name: &'static str) -> Result<u32, CatalogError> {
    let value: i32 = column(row, name)?;
    u32::try_from(value).map_err(|e| CatalogError::decode(name, e))
}

fn attempt_of(row: &PgRow) -> Result<Attempt, CatalogError> {
    Ok(Attempt::new(count_of(row, "attempt")?))
}

fn claimed(row: &PgRow) -> Result<ClaimedJob, CatalogError> {
    let initiated_by = match column::<String>(row, "initiated_by")?.as_str() {
        "human" => InitiatedBy::Human,
        _ => InitiatedBy::Automation,
    };
    Ok(ClaimedJob {
        id: JobId::from_uuid(column(row, "id")?),
        attempt: attempt_of(row)?,
        kind: parsed(row, "kind")?,
        backup_type: parsed(row, "type")?,
        target: parsed(row, "target_identifier")?,
        target_kind: parsed(row, "target")?,
        backup_id: parsed(row, "backup_id")?,
        created_at: column(row, "created_at")?,
        started_at: column(row, "started_at")?,
        metadata: column(row, "metadata")?,
        params: column(row, "params")?,
        secret: column(row, "secret")?,
        operator: Operator {
            initiated_by,
            principal: column(row, "principal")?,
        },
        retry_count: count_of(row, "retry_count")?,
        traceparent: column(row, "traceparent")?,
        retention_until: column(row, "retention_until")?,
    })
}

fn job_view(row: &PgRow) -> Result<JobView, CatalogError> {
    Ok(JobView {
        id: JobId::from_uuid(column(row, "id")?),
        kind: parsed(row, "kind")?,
        backup_type: parsed(row, "type")?,
        target: parsed(row, "target")?,
        target_identifier: parsed(row, "target_identifier")?,
        status: parsed(row, "status")?,
        created_at: column(row, "created_at")?,
        started_at: column(row, "started_at")?,
        completed_at: column(row, "completed_at")?,
        size_bytes: bytes_of(row, "size_bytes")?,
        compression_ratio: column(row, "compression_ratio")?,
        storage_path: column(row, "storage_path")?,
        checksum: column(row, "checksum")?,
        retention_until: column(row, "retention_until")?,
        metadata: column(row, "metadata")?,
        backup_id: parsed(row, "backup_id")?,
        attempt: attempt_of(row)?,
        worker: column(row, "worker")?,
        error: column(row, "error")?,
        progress: Progress::new(
            bytes_of(row, "progress_bytes")?.unwrap_or(0),
            bytes_of(row, "progress_files")?.unwrap_or(0),
            bytes_of(row, "progress_total_bytes")?,
            bytes_of(row, "progress_rate_bytes")?,
        ),
        partial: column(row, "partial")?,
        verified: column(row, "verified")?,
    })
}
