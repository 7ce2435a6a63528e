//! What servers and connections say, and what it means to a person.

use std::fmt;
use std::io;

use bytes::Bytes;

use crate::postgres::problem::Problem;

/// An error or a warning of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    severity: String,
    code: String,
    message: String,
    detail: String,
    hint: String,
}

impl ServerError {
    pub(super) fn parse(body: &Bytes) -> Self {
        let mut error = Self::default();
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else {
                continue;
            };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {}
            }
        }
        error
    }

    /// The SQLSTATE code.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The message proper.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn is_fatal(&self) -> bool {
        matches!(&*self.severity, "FATAL" | "PANIC")
    }

    /// Whether WAL was asked for that is there no longer.
    pub(super) fn is_wal_removed(&self) -> bool {
        self.code == "58P01" || (self.message.contains("WAL segment") && self.message.contains("already been removed"))
    }

    /// Whether a slot was given up because it held back too much.
    pub(super) fn is_slot_invalidated(&self) -> bool {
        self.message
            .starts_with("can no longer get changes from replication slot")
            || self.message.starts_with("can no longer access replication slot")
            || self.message.contains("has been invalidated")
            || self.detail.contains("has been invalidated")
    }

    /// Whether WAL was asked for that the server does not have yet, or that is of a history that is not its own.
    pub(super) fn is_other_history(&self) -> bool {
        self.message
            .contains("is ahead of the WAL flush position of this server")
            || self.message.contains("is not in this server's history")
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for more in [&self.detail, &self.hint].into_iter().filter(|text| !text.is_empty()) {
            write!(f, " ({more})")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// What went wrong on a connection for replication.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The way to the server.
    #[error("{source}")]
    Io {
        /// Why.
        source: io::Error,
    },
    /// The server said no.
    #[error("{source}")]
    Server {
        /// What it said.
        source: Box<ServerError>,
    },
    /// Logging in.
    #[error("{message}")]
    LogIn {
        /// Why.
        message: String,
    },
    /// It was asked to end.
    #[error("it was stopped")]
    Stopped,
    /// The server sent what nobody understands.
    #[error("the server sent {what} that is not valid: check that it is PostgreSQL, and the network between")]
    Protocol {
        /// The thing.
        what: &'static str,
    },
}

impl WireError {
    pub(super) fn io(kind: io::ErrorKind, message: &'static str) -> Self {
        Self::Io {
            source: io::Error::new(kind, message),
        }
    }

    pub(super) fn log_in(message: impl Into<String>) -> Self {
        Self::LogIn {
            message: message.into(),
        }
    }

    pub(super) fn protocol(what: &'static str) -> Self {
        Self::Protocol { what }
    }

    /// What the server said, where it was the server.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server { source } => Some(source),
            _ => None,
        }
    }

    /// The same in plain words.
    pub fn problem(&self) -> Problem {
        let code = self.server().map(|error| error.code.as_str());
        let message = self.to_string();
        for (text, advice, is_retryable) in KNOWN {
            if message.contains(text) {
                return Problem {
                    words: message,
                    advice: (*advice).to_owned(),
                    is_retryable: *is_retryable,
                    is_disk_full: false,
                };
            }
        }
        let mut problem = Problem::of_message(&message, code);
        // Whatever happens to a connection passes, but for what a person has to change.
        if matches!(self, Self::Io { .. }) && problem.advice.is_empty() {
            problem.is_retryable = true;
            problem.advice = "the connection to the server was lost; it is tried again".to_owned();
        }
        problem
    }
}

impl From<ServerError> for WireError {
    fn from(source: ServerError) -> Self {
        Self::Server {
            source: Box::new(source),
        }
    }
}

/// What only servers of replication say: a part of the message, what to do, and whether time alone can help.
const KNOWN: &[(&str, &str, bool)] = &[
    (
        "for replication connection",
        "allow this host and role to connect to \"replication\" in the server's pg_hba.conf",
        false,
    ),
    (
        "no pg_hba.conf entry for replication",
        "allow this host and role to connect to \"replication\" in the server's pg_hba.conf",
        false,
    ),
    (
        "must be superuser or replication role",
        "give the role the attribute: ALTER ROLE name REPLICATION",
        false,
    ),
    (
        "permission denied to start WAL sender",
        "give the role the attribute: ALTER ROLE name REPLICATION",
        false,
    ),
    (
        "permission denied to use replication slots",
        "give the role the attribute: ALTER ROLE name REPLICATION",
        false,
    ),
    (
        "number of requested standby connections exceeds max_wal_senders",
        "raise max_wal_senders, or end some of the server's standbys and receivers",
        true,
    ),
    (
        "all replication slots are in use",
        "drop a slot that nobody uses, or raise max_replication_slots",
        false,
    ),
    (
        "is active for PID",
        "another receiver uses this slot: give each its own, or wait for the server to notice that the last one ended",
        true,
    ),
    (
        "WAL streaming (max_wal_senders > 0)",
        "set max_wal_senders to at least 3 and wal_level to replica on the server",
        false,
    ),
    (
        "replication slots can only be used if",
        "set max_replication_slots above 0 and wal_level to replica on the server",
        false,
    ),
    (
        "checksum verification failure",
        "pages of the database are damaged on its server: look at its disk and its log, and restore what is damaged",
        false,
    ),
    ("WAL generated with", "set full_page_writes to on at the primary", false),
];
