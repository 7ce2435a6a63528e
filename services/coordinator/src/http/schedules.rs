//! Schedules.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use strongroom_policy::selector;
use strongroom_proto::ScheduleId;
use strongroom_proto::api::{ScheduleList, ScheduleSpec, ScheduleView};
use strongroom_runtime::entry::one_line;

use super::problem::{ApiError, json};
use super::{Api, principal};
use crate::Coordinator;
use crate::admission::check_retention;
use crate::schedules::next_run;

pub(super) async fn list(State(coordinator): Api) -> Result<Json<ScheduleList>, ApiError> {
    Ok(Json(ScheduleList {
        schedules: coordinator.catalog.schedules().await?,
    }))
}

pub(super) async fn show(State(coordinator): Api, Path(name): Path<String>) -> Result<Json<ScheduleView>, ApiError> {
    coordinator
        .catalog
        .schedule(&name)
        .await?
        .map(Json)
        .ok_or_else(|| missing(&name))
}

pub(super) async fn create(
    State(coordinator): Api,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<ScheduleView>), ApiError> {
    let spec: ScheduleSpec = json(&body)?;
    let next = check(&coordinator, &spec).await?;
    let view = coordinator
        .catalog
        .create_schedule(ScheduleId::fresh(), &spec, next, &principal(&headers))
        .await?;
    Ok((StatusCode::CREATED, Json(view)))
}

pub(super) async fn update(
    State(coordinator): Api,
    headers: HeaderMap,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<ScheduleView>, ApiError> {
    let spec: ScheduleSpec = json(&body)?;
    replace(&coordinator, &name, spec, &headers).await
}

pub(super) async fn delete(
    State(coordinator): Api,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    if coordinator.catalog.delete_schedule(&name, &principal(&headers)).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(missing(&name))
}

pub(super) async fn enable(
    State(coordinator): Api,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Json<ScheduleView>, ApiError> {
    change(&coordinator, &name, |spec| spec.enabled = true, &headers).await
}

pub(super) async fn disable(
    State(coordinator): Api,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Json<ScheduleView>, ApiError> {
    change(&coordinator, &name, |spec| spec.enabled = false, &headers).await
}

async fn change(
    coordinator: &Coordinator,
    name: &str,
    edit: impl FnOnce(&mut ScheduleSpec),
    headers: &HeaderMap,
) -> Result<Json<ScheduleView>, ApiError> {
    let view = coordinator.catalog.schedule(name).await?.ok_or_else(|| missing(name))?;
    let mut spec = view.spec;
    edit(&mut spec);
    replace(coordinator, name, spec, headers).await
}

async fn replace(
    coordinator: &Coordinator,
    name: &str,
    spec: ScheduleSpec,
    headers: &HeaderMap,
) -> Result<Json<ScheduleView>, ApiError> {
    let next = check(coordinator, &spec).await?;
    let view = coordinator
        .catalog
        .update_schedule(name, &spec, next, &principal(headers))
        .await?;
    view.map(Json).ok_or_else(|| missing(name))
}

/// Refuses what would never fire, and says when it fires first.
async fn check(
    coordinator: &Coordinator,
    spec: &ScheduleSpec,
) -> Result<Option<chrono::DateTime<chrono::Utc>>, ApiError> {
    let refused = |detail: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "urn:strongroom:refused", detail);
    if spec.name.is_empty() || spec.name.len() > 128 || spec.name.contains(|c: char| c.is_control() || c == '/') {
        return Err(refused(
            "a schedule's name has 1 to 128 characters, without '/' and control characters".to_owned(),
        ));
    }
    check_retention(spec.retention_days)?;
    let known: Vec<_> = coordinator
        .known_targets()
        .await?
        .into_iter()
        .map(|(name, target)| (name, target.kind))
        .collect();
    selector::select(&known, &spec.targets).map_err(|error| refused(one_line(&error)))?;
    let next = next_run(spec).map_err(|error| refused(one_line(&error)))?;
    if next.is_none() {
        return Err(refused(format!(
            "{:?} never comes: check day and month",
            spec.cron_expression
        )));
    }
    Ok(next)
}

fn missing(name: &str) -> ApiError {
    ApiError::not_found(format!(
        "there is no schedule {name:?}: `strongroom schedule list` shows those there are"
    ))
}
