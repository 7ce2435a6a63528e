//! Dispatch: waiting jobs whose limits allow it get an attempt and a message in the outbox.

use sqlx::Row;
use strongroom_proto::subjects::WorkService;
use strongroom_proto::work::WorkMessage;
use strongroom_proto::{Attempt, JobId, JobKind, TargetKind};

use crate::jobs::{column, parsed};
use crate::{Catalog, CatalogError, outbox};

/// How many jobs of one kind may be with workers at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispatchLimits {
    /// For one target.
    pub per_target: u32,
    /// In one pool.
    pub per_pool: u32,
}

/// What a dispatch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatched {
    /// So many jobs got an attempt and a message.
    Jobs(usize),
    /// Another dispatcher was at it, and may have begun before what the caller knows of was committed.
    Busy,
}

/// At most so many jobs get their message in one transaction.
const DISPATCH_BATCH: i64 = 500;
/// The lock that lets one dispatcher count and dispatch at a time, over all coordinators.
const DISPATCH_LOCK: i64 = 0x5352_4449_5350;

impl Catalog {
    /// Dispatches what the limits allow, oldest first; as many as one batch holds. Where another dispatcher is at it,
    /// nothing is done.
    pub async fn dispatch(&self, limits: DispatchLimits) -> Result<Dispatched, CatalogError> {
        let failed = |e| CatalogError::new("dispatch jobs", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
            .bind(DISPATCH_LOCK)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        if !ours {
            return Ok(Dispatched::Busy);
        }
        let rows = sqlx::query(
            "WITH busy AS (
                 SELECT kind, target_identifier, pool FROM backup_jobs
                 WHERE status = 'running' OR (status = 'pending' AND dispatched_at IS NOT NULL)
             ), busy_targets AS (SELECT kind, target_identifier, count(*) AS n FROM busy GROUP BY 1, 2),
             busy_pools AS (SELECT kind, pool, count(*) AS n FROM busy GROUP BY 1, 2),
             free AS (
                 SELECT j.id, j.kind, j.pool, j.created_at,
                     coalesce(t.n, 0) + row_number() OVER (PARTITION BY j.kind, j.target_identifier ORDER BY j.created_at, j.id) AS target_rank
                 FROM backup_jobs j LEFT JOIN busy_targets t USING (kind, target_identifier)
                 WHERE j.status = 'pending' AND j.dispatched_at IS NULL AND j.not_before <= now()
                   AND coalesce(t.n, 0) < $1
             ), ranked AS (
                 SELECT f.id, f.created_at,
                     coalesce(p.n, 0) + row_number() OVER (PARTITION BY f.kind, f.pool ORDER BY f.created_at, f.id) AS pool_rank
                 FROM free f LEFT JOIN busy_pools p USING (kind, pool) WHERE f.target_rank <= $1
             ), chosen AS (
                 SELECT id FROM ranked WHERE pool_rank <= $2 ORDER BY created_at, id LIMIT $3
             )
             UPDATE backup_jobs j SET attempt = attempt + 1, dispatched_at = now()
             FROM chosen WHERE j.id = chosen.id
             RETURNING j.id, j.attempt, j.kind::text, j.target::text, j.target_identifier, j.pool, j.traceparent",
        )
        .bind(i64::from(limits.per_target))
        .bind(i64::from(limits.per_pool))
        .bind(DISPATCH_BATCH)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        if rows.is_empty() {
            return Ok(Dispatched::Jobs(0));
        }
        let work = rows.iter().map(work_of).collect::<Result<Vec<_>, _>>()?;
        outbox::put_work(&mut tx, &work).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Dispatched::Jobs(rows.len()))
    }

    /// How many jobs run.
    pub async fn running(&self) -> Result<u64, CatalogError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM backup_jobs WHERE status = 'running'")
            .fetch_one(&self.pool)
            .await
            .map_err(|e| CatalogError::new("count running jobs", e))?;
        Ok(count.unsigned_abs())
    }

    /// How many attempts have been in the queue for longer than `seconds` without a claim.
    pub async fn unclaimed(&self, seconds: u32) -> Result<u64, CatalogError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM backup_jobs WHERE status = 'pending' AND dispatched_at < now() - make_interval(secs => $1)",
        )
        .bind(f64::from(seconds))
        .fetch_one(&self.pool)
        .await
        .map_err(|e| CatalogError::new("count unclaimed jobs", e))?;
        Ok(count.unsigned_abs())
    }

    /// Takes back attempts that nobody claimed for `seconds`, because the queue lost their messages; the next dispatch
    /// gives them another attempt and message. A message that turns up after all is for an attempt that is over.
    pub async fn take_back_unclaimed(&self, seconds: u32) -> Result<u64, CatalogError> {
        let done = sqlx::query(
            "UPDATE backup_jobs SET dispatched_at = NULL
             WHERE status = 'pending' AND dispatched_at < now() - make_interval(secs => $1)
               AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.sent_at IS NULL
                   AND o.message_id = backup_jobs.id::text || '.' || backup_jobs.attempt::text)",
        )
        .bind(f64::from(seconds))
        .execute(&self.pool)
        .await
        .map_err(|e| CatalogError::new("take back unclaimed jobs", e))?;
        Ok(done.rows_affected())
    }
}

fn work_of(row: &sqlx::postgres::PgRow) -> Result<(String, WorkMessage), CatalogError> {
    let kind: JobKind = parsed(row, "kind")?;
    let target_kind: TargetKind = parsed(row, "target")?;
    let pool: String = column(row, "pool")?;
    let attempt: i32 = row.try_get("attempt").map_err(|e| CatalogError::decode("attempt", e))?;
    let work = WorkMessage {
        job_id: JobId::from_uuid(column(row, "id")?),
        attempt: Attempt::new(attempt.unsigned_abs()),
        kind,
        target: parsed(row, "target_identifier")?,
        traceparent: column(row, "traceparent")?,
    };
    Ok((WorkService::of(kind, target_kind).subject(&pool), work))
}
