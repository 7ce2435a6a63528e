//! One SQL session, blocking, with texts for results.
//!
//! Statements may hold password hashes (globals do), so none is ever logged or repeated in an error.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _, ValueRef as _};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::problem::Problem;
use super::target::Endpoint;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server, or the way to it, answered instead of a result.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    message: String,
    code: Option<String>,
}

impl SqlError {
    /// The SQLSTATE code, where the server sent one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The same in plain words.
    pub fn problem(&self) -> Problem {
        Problem::of_message(&self.message, self.code())
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: None,
        }
    }

    /// As a server would answer.
    #[cfg(test)]
    pub(crate) fn answer(message: &str, code: Option<&str>) -> Self {
        Self {
            message: message.to_owned(),
            code: code.map(str::to_owned),
        }
    }

    fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(database) => Self {
                message: database.message().to_owned(),
                code: database.code().map(|code| code.into_owned()),
            },
            other => Self::other(other.to_string()),
        }
    }
}

/// The rows of a result: each value as the server writes it, `None` for NULL.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// An open session.
pub(crate) struct Sql {
    // Before the runtime, which must outlive it.
    connection: PgConnection,
    runtime: Runtime,
    cancelled: Arc<Notify>,
}

impl Sql {
    pub(crate) fn connect(endpoint: &Endpoint) -> Result<Self, SqlError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| SqlError::other(format!("start a runtime for a session: {error}")))?;
        let options = connect_options(endpoint);
        let connection = runtime.block_on(async {
            match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
                Ok(result) => result.map_err(|error| SqlError::of(&error)),
                Err(_) => Err(SqlError::other("could not connect within 10 s (timeout expired)")),
            }
        })?;
        Ok(Self {
            connection,
            runtime,
            cancelled: Arc::new(Notify::new()),
        })
    }

    /// Notified, it makes the running statement fail, or the next.
    pub(crate) fn canceller(&self) -> Arc<Notify> {
        Arc::clone(&self.cancelled)
    }

    /// Runs statements and returns the rows of all of them.
    pub(crate) fn rows(&mut self, sql: &str) -> Result<Rows, SqlError> {
        let statement = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let rows = self.runtime.block_on(async {
            tokio::select! {
                rows = statement.fetch_all(&mut self.connection) => rows.map_err(|error| SqlError::of(&error)),
                () = self.cancelled.notified() => Err(SqlError::other("cancelled")),
            }
        })?;
        let text = |row: &sqlx::postgres::PgRow, at: usize| -> Result<Option<String>, SqlError> {
            let value = row.try_get_raw(at).map_err(|error| SqlError::of(&error))?;
            if value.is_null() {
                return Ok(None);
            }
            let bytes = value.as_bytes().map_err(|error| SqlError::other(error.to_string()))?;
            Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
        };
        rows.iter()
            .map(|row| (0..row.len()).map(|at| text(row, at)).collect())
            .collect()
    }

    /// Runs statements whose results do not matter.
    pub(crate) fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.rows(sql).map(|_| ())
    }

    /// The first value of the first row; empty for NULL.
    pub(crate) fn value(&mut self, sql: &str) -> Result<String, SqlError> {
        let rows = self.rows(sql)?;
        let first = rows.into_iter().next().and_then(|row| row.into_iter().next());
        first
            .map(Option::unwrap_or_default)
            .ok_or_else(|| SqlError::other("the server sent no row"))
    }

    /// The first value of the first row as a number.
    pub(crate) fn number(&mut self, sql: &str) -> Result<u64, SqlError> {
        self.value(sql)?
            .parse()
            .map_err(|_| SqlError::other("the server sent something that is not a number"))
    }

    /// The first column.
    pub(crate) fn column(&mut self, sql: &str) -> Result<Vec<String>, SqlError> {
        let rows = self.rows(sql)?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect())
    }
}

fn connect_options(endpoint: &Endpoint) -> PgConnectOptions {
    let mode = match endpoint.tls("sslmode") {
        Some("disable") => PgSslMode::Disable,
        Some("allow") => PgSslMode::Allow,
        Some("require") => PgSslMode::Require,
        Some("verify-ca") => PgSslMode::VerifyCa,
        Some("verify-full") => PgSslMode::VerifyFull,
        _ => PgSslMode::Prefer,
    };
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&endpoint.host)
        .port(endpoint.port)
        .username(&endpoint.user)
        .password(endpoint.password.as_deref().unwrap_or_default())
        .database(&endpoint.database)
        .application_name("strongroom")
        .ssl_mode(mode)
        .disable_statement_logging();
    if endpoint.host.starts_with('/') {
        options = options.socket(&endpoint.host);
    }
    if let Some(path) = endpoint.tls("sslrootcert") {
        options = options.ssl_root_cert(path);
    }
    if let Some(path) = endpoint.tls("sslcert") {
        options = options.ssl_client_cert(path);
    }
    if let Some(path) = endpoint.tls("sslkey") {
        options = options.ssl_client_key(path);
    }
    options
}
