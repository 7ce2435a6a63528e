//! What can be recovered of a target, and what happened to it.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use chrono::Utc;
use strongroom_proto::TargetName;
use strongroom_proto::timeline::{Annotation, CreateAnnotation, TargetTimeline};

use super::problem::{ApiError, json};
use super::{Api, principal};

pub(super) async fn show(State(coordinator): Api, Path(name): Path<String>) -> Result<Json<TargetTimeline>, ApiError> {
    Ok(Json(coordinator.timeline(&target(&name)?).await?))
}

pub(super) async fn annotate(
    State(coordinator): Api,
    headers: HeaderMap,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Annotation>), ApiError> {
    let ask: CreateAnnotation = json(&body)?;
    let at = ask.at.unwrap_or_else(Utc::now);
    let written = coordinator
        .write_note(&target(&name)?, &ask.text, at, principal(&headers))
        .await?;
    Ok((StatusCode::CREATED, Json(written)))
}

fn target(name: &str) -> Result<TargetName, ApiError> {
    name.parse().map_err(|error| ApiError::bad_request(format!("{error}")))
}
