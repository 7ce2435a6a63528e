//! Errors of the API, as `application/problem+json`.

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use strongroom_catalog::CatalogError;
use strongroom_proto::api::Problem;
use strongroom_runtime::entry::one_line;

use crate::admission::Refusal;

/// An answer that is an error.
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    detail: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            detail: detail.into(),
        }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "urn:strongroom:not-found", detail)
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "urn:strongroom:bad-request", detail)
    }

    pub(crate) fn unauthorised() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "urn:strongroom:unauthorised",
            "send the API token as `Authorization: Bearer …`; `strongroom standalone` writes it into DIR/env",
        )
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        if let CatalogError::Exists { .. } = error {
            return Self::new(StatusCode::CONFLICT, "urn:strongroom:exists", error.to_string());
        }
        let status = if error.is_retryable() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        tracing::warn!(error = %one_line(&error), "request failed");
        Self::new(status, "urn:strongroom:catalog", one_line(&error))
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Catalog(error) => error.into(),
            Refusal::NotFound(detail) => Self::not_found(detail),
            Refusal::Recovery(refused) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "urn:strongroom:not-recoverable",
                refused.to_string(),
            ),
            refusal @ (Refusal::Select(_) | Refusal::Invalid(_)) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "urn:strongroom:refused",
                one_line(&refusal),
            ),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: self.kind.to_owned(),
            title: self.status.canonical_reason().unwrap_or("error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}

/// Reads a JSON body; the error says where it is wrong.
pub(crate) fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("the body is not understood: {error}")))
}
