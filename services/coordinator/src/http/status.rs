//! How the system is, and what it protects.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use strongroom_proto::TargetName;
use strongroom_proto::api::{Health, Status, StorageUsage, SystemStatus, TargetList, TargetView};
use strongroom_runtime::entry::one_line;

use super::problem::ApiError;
use super::{Api, principal};
use crate::Coordinator;

/// Jobs that the status shows of each sort.
const STATUS_JOBS: u32 = 50;
/// Messages that may wait for publication before that is worth a word.
const UNSENT_WORTH_A_WORD: u64 = 1000;
/// Alerts that the status repeats.
const ALERTS_SHOWN: usize = 20;

pub(super) async fn health(State(coordinator): Api) -> Response {
    let mut checks = BTreeMap::new();
    let catalog = coordinator.catalog.ping().await;
    checks.insert(
        "catalog".to_owned(),
        catalog.as_ref().map_or_else(|e| one_line(e), |()| "ok".to_owned()),
    );
    let nats = coordinator.bus.is_connected();
    checks.insert("nats".to_owned(), if nats { "ok" } else { "not connected" }.to_owned());
    let healthy = catalog.is_ok() && nats;
    let health = Health {
        status: if healthy { "healthy" } else { "unhealthy" }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        checks,
    };
    let status = if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health)).into_response()
}

pub(super) async fn status(State(coordinator): Api) -> Result<Json<Status>, ApiError> {
    let totals = coordinator.catalog.totals().await?;
    let mut reasons = Vec::new();
    let mut system_status = SystemStatus::Healthy;
    if totals.unrepaired_failures > 0 {
        system_status = SystemStatus::Degraded;
        reasons.push(format!(
            "{} job(s) failed in the last day without one that succeeded since",
            totals.unrepaired_failures
        ));
    }
    if totals.unsent > UNSENT_WORTH_A_WORD {
        system_status = SystemStatus::Degraded;
        reasons.push(format!("{} messages wait to be published", totals.unsent));
    }
    for (_, alert) in coordinator
        .catalog
        .active_alerts(None)
        .await?
        .into_iter()
        .take(ALERTS_SHOWN)
    {
        system_status = SystemStatus::Degraded;
        reasons.push(alert.message);
    }
    if totals.disproven_targets > 0 {
        system_status = SystemStatus::Critical;
        reasons.push(format!(
            "the newest backup of {} target(s) did not restore when it was tried",
            totals.disproven_targets
        ));
    }
    if !coordinator.bus.is_connected() {
        system_status = SystemStatus::Critical;
        reasons.push("NATS does not answer: no job is handed out".to_owned());
    }
    let ratio = (totals.stored_bytes > 0).then(|| totals.content_bytes as f64 / totals.stored_bytes as f64);
    Ok(Json(Status {
        system_status,
        reasons,
        active_jobs: coordinator.catalog.active_jobs(STATUS_JOBS).await?,
        recent_jobs: coordinator.catalog.ended_jobs(STATUS_JOBS).await?,
        last_successful_backup: totals.last_completed_at,
        last_verified_backup: totals.last_verified_at,
        storage_usage: StorageUsage {
            used_gb: totals.stored_bytes as f64 / 1e9,
            available_gb: available_gb(&coordinator),
            compression_ratio: ratio,
        },
    }))
}

/// Free space below a vault on this machine's disks.
fn available_gb(coordinator: &Coordinator) -> Option<f64> {
    let url = &coordinator.loaded.config.vault.url;
    let path = match url.strip_prefix("file://") {
        Some(path) => path,
        None if url.starts_with('/') => url,
        None => return None,
    };
    let space = rustix::fs::statvfs(path).ok()?;
    Some((space.f_bavail as f64) * (space.f_frsize as f64) / 1e9)
}

pub(super) async fn targets(State(coordinator): Api) -> Result<Json<TargetList>, ApiError> {
    let last = coordinator.catalog.last_backups().await?;
    let targets = coordinator
        .known_targets()
        .await?
        .into_iter()
        .map(|(name, target)| {
            let backup = last.iter().find(|backup| backup.target == name);
            TargetView {
                kind: target.kind,
                surface: target.surface().to_owned(),
                pool: target.pool.clone(),
                location: target.location(),
                last_backup: backup.map(|b| b.backup_id.clone()),
                last_backup_at: backup.map(|b| b.completed_at),
                last_backup_verified: backup.is_some_and(|b| b.verified),
                name,
            }
        })
        .collect();
    Ok(Json(TargetList { targets }))
}

/// Forgets a scenario. What is declared in a file goes with the file.
pub(super) async fn forget(
    State(coordinator): Api,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name: TargetName = name
        .parse()
        .map_err(|error| ApiError::bad_request(format!("{error}")))?;
    if coordinator.catalog.forget_scenario(&name, &principal(&headers)).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::not_found(format!(
        "no scenario was deployed as {name}: `strongroom target list` shows the targets"
    )))
}
