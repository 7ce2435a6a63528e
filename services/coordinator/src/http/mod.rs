//! The HTTP door: the API under `/api/v1`, and `/health`.

mod backups;
mod problem;
mod restores;
mod schedules;
mod status;
mod timeline;

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use strongroom_catalog::Origin;
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_runtime::telemetry;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::Coordinator;
use problem::ApiError;

/// How long answers under way may take after a shutdown was asked for.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

type Api = State<Arc<Coordinator>>;

pub(crate) async fn serve(coordinator: Arc<Coordinator>, listener: tokio::net::TcpListener, stop: &CancellationToken) {
    let api = Router::new()
        .route("/backup/create", post(backups::create))
        .route("/backup/verify", post(backups::verify))
        .route("/backup/status", get(status::status))
        .route("/backup/list", get(backups::list))
        .route("/backups/{backup_id}/receipt", get(backups::receipt))
        .route("/restore/create", post(restores::create))
        .route("/restore/preview", post(restores::preview))
        .route("/jobs", get(backups::jobs))
        .route("/jobs/{id}", get(backups::job))
        .route("/jobs/{id}/cancel", post(backups::cancel))
        .route("/jobs/{id}/changes", get(restores::changes))
        .route("/targets", get(status::targets))
        .route("/targets/{name}", delete(status::forget))
        .route("/targets/{name}/timeline", get(timeline::show))
        .route("/targets/{name}/annotations", post(timeline::annotate))
        .route("/schedules", get(schedules::list).post(schedules::create))
        .route(
            "/schedules/{name}",
            get(schedules::show).put(schedules::update).delete(schedules::delete),
        )
        .route("/schedules/{name}/enable", post(schedules::enable))
        .route("/schedules/{name}/disable", post(schedules::disable))
        .fallback(async || ApiError::not_found("there is no such endpoint: /api/v1/openapi.json lists them"))
        .layer(middleware::from_fn_with_state(coordinator.clone(), authorise))
        .route("/openapi.json", get(openapi));
    let app = Router::new()
        .route("/health", get(status::health))
        .nest("/api/v1", api)
        .layer(middleware::from_fn(trace))
        .with_state(coordinator);
    let (graceful, stop) = (stop.clone(), stop.clone());
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move { graceful.cancelled().await });
    tokio::select! {
        served = serving.into_future() => {
            if let Err(error) = served {
                tracing::error!(%error, "the API stopped");
            }
        }
        // A client that never ends its request does not keep the coordinator alive.
        () = async { stop.cancelled().await; tokio::time::sleep(LAST_ANSWERS).await } => {}
    }
}

async fn openapi() -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        strongroom_proto::documents::OPENAPI,
    )
        .into_response()
}

/// Lets a request pass that brings the token.
async fn authorise(State(coordinator): Api, request: Request, next: Next) -> Response {
    let brought = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    if brought.is_some_and(|token| same(token.as_bytes(), coordinator.token.as_bytes())) {
        return next.run(request).await;
    }
    ApiError::unauthorised().into_response()
}

/// Compares without telling by its duration how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

async fn trace(request: Request, next: Next) -> Response {
    let span = tracing::info_span!("http", method = %request.method(), path = request.uri().path());
    let parent = request
        .headers()
        .get("traceparent")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    telemetry::set_parent(&span, parent.as_deref());
    next.run(request).instrument(span).await
}

/// Who asks, as the client says; the token is what proves that it may.
fn principal(headers: &HeaderMap) -> String {
    let named = headers
        .get("x-strongroom-principal")
        .and_then(|value| value.to_str().ok());
    let name: String = named
        .unwrap_or("api")
        .chars()
        .filter(|c| !c.is_control())
        .take(128)
        .collect();
    if name.is_empty() { "api".to_owned() } else { name }
}

fn origin(headers: &HeaderMap) -> Origin {
    Origin {
        trigger: None,
        door: "api".to_owned(),
        schedule: None,
        operator: Operator {
            initiated_by: InitiatedBy::Human,
            principal: principal(headers),
        },
        traceparent: telemetry::current_traceparent(),
    }
}
