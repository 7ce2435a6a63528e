//! The HTTP client of the coordinator's API: one request, one answer, one error that says what to do.

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use strongroom_proto::JobId;
use strongroom_proto::api::{
    BackupCreated, BackupList, CreateBackup, CreateRestore, CreateVerify, JobView, ListBackups, Problem,
    RestoreCreated, VerifyCreated,
};
use strongroom_runtime::Loaded;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(
        "cannot reach the coordinator at {url}: start it with `strongroom standalone --dir DIR`, or set STRONGROOM_API"
    )]
    Unreachable {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the coordinator at {url} refused {token}: {advice}")]
    Unauthorized {
        url: String,
        token: String,
        advice: &'static str,
    },
    #[error("{}", problem.detail)]
    Refused { problem: Problem },
    #[error("{url} answered {status}, which is not an answer of this API: check api.url (STRONGROOM_API)")]
    Unexpected { url: String, status: StatusCode },
    #[error("{url} sent an answer that this version does not understand: compare `strongroom version`")]
    Misunderstood {
        url: String,
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    /// Whether the same request may work a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { problem } => problem.status >= 500,
            Self::Unexpected { status, .. } => status.is_server_error(),
            Self::Unauthorized { .. } | Self::Misunderstood { .. } => false,
        }
    }

    /// Whether the API understood the request and said no.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { problem } if (400..500).contains(&problem.status))
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { problem } if problem.status == 404)
    }
}

/// An answer: as sent, and as understood.
pub(crate) struct Answer<T> {
    pub(crate) json: String,
    pub(crate) value: T,
}

/// A client of one coordinator.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    token_origin: String,
}

impl Client {
    pub(crate) fn new(loaded: &Loaded) -> anyhow::Result<Self> {
        let base = Url::parse(&loaded.config.api.url)
            .map_err(|error| anyhow::anyhow!("api.url is not a valid URL: {error}"))?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .user_agent(concat!("strongroom/", env!("CARGO_PKG_VERSION")));
        // A proxy of the environment cannot reach this machine's own addresses.
        if matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            builder = builder.no_proxy();
        }
        let origin = ["api.token", "api.token_file"]
            .iter()
            .find_map(|key| loaded.origins.get(*key));
        Ok(Self {
            http: builder.build()?,
            base,
            token: loaded.config.api_token()?,
            token_origin: origin.map(ToString::to_string).unwrap_or_default(),
        })
    }

    /// The API's address, as in the configuration.
    pub(crate) fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Answer<T>, ClientError> {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Answer<T>, ClientError> {
        let text = self.send(Method::GET, path, query, None::<&()>).await?;
        self.understand(text)
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<Answer<T>, ClientError> {
        let text = self.send(Method::POST, path, &[], body).await?;
        self.understand(text)
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<Answer<T>, ClientError> {
        let text = self.send(Method::PUT, path, &[], Some(body)).await?;
        self.understand(text)
    }

    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, &[], None::<&()>).await.map(drop)
    }

    pub(crate) async fn job(&self, id: JobId) -> Result<Answer<JobView>, ClientError> {
        self.get(&["api", "v1", "jobs", &id.to_string()]).await
    }

    pub(crate) async fn backups(&self, filter: &ListBackups) -> Result<Answer<BackupList>, ClientError> {
        let mut query = Vec::new();
        let parts = [
            ("type", filter.backup_type.map(|kind| kind.to_string())),
            ("target", filter.target.clone()),
            ("since", filter.since.clone()),
            ("limit", filter.limit.map(|limit| limit.to_string())),
        ];
        for (name, value) in parts {
            query.extend(value.map(|value| (name, value)));
        }
        self.get_with(&["api", "v1", "backup", "list"], &query).await
    }

    pub(crate) async fn create_backup(&self, request: &CreateBackup) -> Result<Answer<BackupCreated>, ClientError> {
        self.post(&["api", "v1", "backup", "create"], Some(request)).await
    }

    pub(crate) async fn create_verify(&self, request: &CreateVerify) -> Result<Answer<VerifyCreated>, ClientError> {
        self.post(&["api", "v1", "backup", "verify"], Some(request)).await
    }

    pub(crate) async fn create_restore(&self, request: &CreateRestore) -> Result<Answer<RestoreCreated>, ClientError> {
        self.post(&["api", "v1", "restore", "create"], Some(request)).await
    }

    fn address(&self, path: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> Result<String, ClientError> {
        let mut request = self
            .http
            .request(method, self.address(path, query))
            .header("x-strongroom-principal", principal());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |source: reqwest::Error| ClientError::Unreachable {
            url: self.url().to_owned(),
            // The address is in the message already.
            source: source.without_url(),
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let is_problem = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
        let text = response.text().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(text);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(self.unauthorized());
        }
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) if is_problem => Err(ClientError::Refused { problem }),
            _ => Err(ClientError::Unexpected {
                url: self.url().to_owned(),
                status,
            }),
        }
    }

    fn unauthorized(&self) -> ClientError {
        let url = self.url().to_owned();
        if self.token.is_some() {
            ClientError::Unauthorized {
                url,
                token: format!("the token from {}", self.token_origin),
                advice: "it belongs to another coordinator or is out of date; standalone writes its own into DIR/env",
            }
        } else {
            ClientError::Unauthorized {
                url,
                token: "a request without a token".to_owned(),
                advice: "set STRONGROOM_TOKEN or api.token_file; standalone writes it into DIR/env (`source DIR/env`)",
            }
        }
    }

    fn understand<T: DeserializeOwned>(&self, json: String) -> Result<Answer<T>, ClientError> {
        match serde_json::from_str(&json) {
            Ok(value) => Ok(Answer { json, value }),
            Err(source) => Err(ClientError::Misunderstood {
                url: self.url().to_owned(),
                source,
            }),
        }
    }
}

/// Who asks, for receipts and the audit log: `user@host` as far as it is known. A claim, not a proof.
fn principal() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let named = format!("{}@{}", user.as_deref().unwrap_or("cli"), host.trim());
    named.chars().filter(char::is_ascii_graphic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Client {
        strongroom_runtime::entry::install_tls_provider();
        let mut loaded = Loaded::defaults();
        loaded.config.api.url = url.to_owned();
        Client::new(&loaded).unwrap()
    }

    #[test]
    fn names_in_an_address_are_escaped() {
        let address = client("http://h:1/base/").address(&["api", "a/../b?c"], &[("q", "x&y".to_owned())]);
        assert_eq!(address.as_str(), "http://h:1/base/api/a%2F..%2Fb%3Fc?q=x%26y");
    }

    #[tokio::test]
    async fn nobody_listening_says_how_to_start_the_coordinator() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = client(&format!("http://{free}"))
            .get::<serde_json::Value>(&["health"])
            .await
            .err()
            .unwrap();
        assert!(error.is_transient());
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("cannot reach the coordinator at http://{free}: start it")),
            "{message}"
        );
    }
}
