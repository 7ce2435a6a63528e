//! Restores into real destinations.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use strongroom_proto::api::{CreateRestore, RestoreCreated, ValidationResult};
use strongroom_proto::restore::RestoreChanges;
use strongroom_proto::timeline::RestorePreview;
use strongroom_proto::{JobKind, JobStatus};

use super::backups::{job_id, only_job};
use super::problem::{ApiError, json};
use super::{Api, origin};

pub(super) async fn create(
    State(coordinator): Api,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<RestoreCreated>), ApiError> {
    let ask: CreateRestore = json(&body)?;
    let (request, restoring) = coordinator.restore_request(&ask).await?;
    let backup = restoring.backup;
    let estimate = coordinator.estimate(JobKind::Restore, &backup.target).await?;
    let detail = match (backup.verified_at, &backup.verification_error) {
        (Some(at), _) => format!(
            "a restore of it was tried and passed at {}",
            at.format("%Y-%m-%d %H:%M:%SZ")
        ),
        (None, Some(error)) => format!("the last verification did not pass: {error}"),
        (None, None) => "it was never verified".to_owned(),
    };
    let restore_id = only_job(coordinator.create(&origin(&headers), &[request]).await?)?;
    let created = RestoreCreated {
        restore_id,
        estimated_duration: estimate.map_or_else(|| "unknown".to_owned(), strongroom_policy::estimate::humanize),
        status: JobStatus::Pending,
        validation_results: vec![ValidationResult {
            backup_id: backup.backup_id,
            validated: backup.verified,
            detail,
        }],
        notes: restoring
            .recovering
            .map(|recovering| recovering.notes)
            .unwrap_or_default(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn preview(State(coordinator): Api, body: Bytes) -> Result<Json<RestorePreview>, ApiError> {
    let ask: CreateRestore = json(&body)?;
    Ok(Json(coordinator.preview(&ask).await?))
}

pub(super) async fn changes(State(coordinator): Api, Path(id): Path<String>) -> Result<Json<RestoreChanges>, ApiError> {
    let id = job_id(&id)?;
    if let Some(changes) = coordinator.catalog.changes(id).await? {
        return Ok(Json(changes));
    }
    let job = coordinator.catalog.job(id).await?;
    Err(ApiError::not_found(match job {
        None => format!("there is no job {id}"),
        Some(job) if !job.status.is_final() => format!("job {id} is {}: ask again when it has ended", job.status),
        Some(_) => {
            format!("job {id} is no restore of files, and no dry run, that was completed: there is nothing to show")
        }
    }))
}
