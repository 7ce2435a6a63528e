//! Backups, verifications and jobs.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::{Deserialize, Serialize};
use strongroom_catalog::{BackupFilter, CreateOutcome};
use strongroom_proto::api::{
    BackupCreated, BackupList, CreateBackup, CreateVerify, JobView, ListBackups, ReceiptView, VerifyCreated,
};
use strongroom_proto::{BackupId, JobId, JobKind, JobStatus};

use super::problem::{ApiError, json};
use super::{Api, origin, principal};

/// Rows of a list where the request names no limit, and the most it may name.
const DEFAULT_ROWS: u32 = 100;
const MOST_ROWS: u32 = 10_000;

pub(super) async fn create(
    State(coordinator): Api,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<BackupCreated>), ApiError> {
    let ask: CreateBackup = json(&body)?;
    let created = coordinator.create_backup(ask, &origin(&headers)).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn verify(
    State(coordinator): Api,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<VerifyCreated>), ApiError> {
    let ask: CreateVerify = json(&body)?;
    let backup = coordinator.find_backup(&ask.backup_id).await?;
    let request = coordinator.verify_request(backup.backup_id.clone(), backup.target.clone(), backup.target_kind);
    let job_id = request.id;
    let estimate = coordinator.estimate(JobKind::Verify, &backup.target).await?;
    coordinator.create(&origin(&headers), &[request]).await?;
    let created = VerifyCreated {
        job_id,
        backup_id: backup.backup_id,
        status: JobStatus::Pending,
        estimated_duration: estimate.map_or_else(|| "unknown".to_owned(), strongroom_policy::estimate::humanize),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn list(
    State(coordinator): Api,
    query: Result<Query<ListBackups>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<BackupList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let filter = BackupFilter {
        backup_type: query.backup_type,
        target: query.target,
        since: query.since.as_deref().map(since).transpose()?,
        limit: query.limit.unwrap_or(DEFAULT_ROWS).min(MOST_ROWS),
    };
    Ok(Json(BackupList {
        backups: coordinator.catalog.backups(&filter).await?,
    }))
}

fn since(text: &str) -> Result<DateTime<Utc>, ApiError> {
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(NaiveTime::MIN).and_utc());
    }
    text.parse()
        .map_err(|_| ApiError::bad_request(format!("since {text:?} is neither YYYY-MM-DD nor an RFC 3339 time")))
}

pub(super) async fn receipt(State(coordinator): Api, Path(id): Path<String>) -> Result<Json<ReceiptView>, ApiError> {
    let id: BackupId = id.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let view = coordinator.catalog.receipt(&id).await?;
    view.map(Json)
        .ok_or_else(|| ApiError::not_found(format!("there is no backup {id}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListJobs {
    status: Option<JobStatus>,
    limit: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct JobList {
    jobs: Vec<JobView>,
}

pub(super) async fn jobs(
    State(coordinator): Api,
    query: Result<Query<ListJobs>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<JobList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(DEFAULT_ROWS).min(MOST_ROWS);
    Ok(Json(JobList {
        jobs: coordinator.catalog.jobs(query.status, limit).await?,
    }))
}

pub(super) async fn job(State(coordinator): Api, Path(id): Path<String>) -> Result<Json<JobView>, ApiError> {
    let id = job_id(&id)?;
    let view = coordinator.catalog.job(id).await?;
    view.map(Json)
        .ok_or_else(|| ApiError::not_found(format!("there is no job {id}")))
}

pub(super) async fn cancel(
    State(coordinator): Api,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let id = job_id(&id)?;
    let asked = coordinator.catalog.request_cancel(id, &principal(&headers)).await?;
    coordinator.relay.kick();
    let view = coordinator
        .catalog
        .job(id)
        .await?
        .ok_or_else(|| ApiError::not_found(format!("there is no job {id}")))?;
    if asked {
        return Ok(Json(view));
    }
    let detail = format!("job {id} is {} already: there is nothing to cancel", view.status);
    Err(ApiError::new(StatusCode::CONFLICT, "urn:strongroom:ended", detail))
}

pub(super) fn job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("{error}")))
}

/// The outcome of a request that cannot be a repetition.
pub(super) fn only_job(outcome: CreateOutcome) -> Result<JobId, ApiError> {
    let job = match outcome {
        CreateOutcome::Created(jobs) => jobs.first().map(|job| job.job_id),
        CreateOutcome::Repeated(jobs) => jobs.first().copied(),
    };
    job.ok_or_else(|| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "about:blank", "no job was created"))
}
