//! Why there is no base backup.

use std::io;

use strongroom_proto::manifest::Entry;

use super::error::WireError;
use crate::postgres::problem::Problem;
use crate::postgres::target::{Endpoint, TargetError};
use crate::sink::may_be_stored_later;

/// What came is not what the server sent, or the server does not send what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DamageError {
    /// An archive that nobody announced.
    #[error("the server sent an archive {name:?} that is none of its tablespaces")]
    Archive {
        /// Its name.
        name: String,
    },
    /// Not tar.
    #[error("an archive of the base backup is damaged: a header is not valid")]
    Header,
    /// The end is missing.
    #[error("an archive of the base backup is not whole")]
    Short,
    /// A link that no tablespace explains.
    #[error("the server sent a link {path:?} that is none of its tablespaces")]
    Link {
        /// Its path.
        path: String,
    },
    /// A file came again.
    #[error("the server sent {path:?} twice")]
    Twice {
        /// Its path.
        path: String,
    },
    /// An incremental file.
    #[error("the incremental file of {path:?} is damaged")]
    Incremental {
        /// The path of the whole file.
        path: String,
    },
    /// The label.
    #[error("the backup_label is damaged")]
    Label,
    /// The manifest.
    #[error("the server's backup manifest is damaged")]
    Manifest,
    /// The manifest is not what the server wrote.
    #[error("the server's backup manifest does not match its own checksum")]
    ManifestChecksum,
    /// A file that the manifest lists did not come.
    #[error("{path:?} is in the server's backup manifest and did not come")]
    Missing {
        /// Its path.
        path: String,
    },
    /// A file came otherwise than the manifest says.
    #[error("{path:?} came with another length or checksum than the server's backup manifest says")]
    Content {
        /// Its path.
        path: String,
    },
    /// Files came that the manifest does not list.
    #[error("{files} files came that are not in the server's backup manifest")]
    Unlisted {
        /// How many.
        files: usize,
    },
}

/// Why there is no base backup. What was written to the sink before is not one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseBackupError {
    /// The configuration.
    #[error("back up a cluster")]
    Target {
        /// What is wrong with it.
        #[source]
        source: TargetError,
    },
    /// The server did not let us in, failed, or was lost.
    #[error("{doing} of {server}: {problem}")]
    Server {
        /// The step.
        doing: &'static str,
        /// Which, without the password.
        server: String,
        /// What it means.
        problem: Box<Problem>,
        /// What was said.
        #[source]
        source: WireError,
    },
    /// The server found damaged pages in its own files.
    #[error(
        "the server {server} found damaged pages in its files ({said}): look at its disk and its log, and restore what is \
         damaged from an earlier backup"
    )]
    Checksums {
        /// Which, without the password.
        server: String,
        /// What it said of them.
        said: String,
    },
    /// The stream was damaged.
    #[error("the base backup is not whole; it is tried again")]
    Damaged {
        /// Where.
        #[source]
        source: DamageError,
    },
    /// What was read could not be put away.
    #[error("store {entry}")]
    Sink {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An incremental backup cannot be laid over the last one after all: begin again with [`Want::Full`](super::Want::Full).
    #[error("an incremental backup is not possible: {reason}")]
    NeedsFull {
        /// Why, for the notes of the full one.
        reason: String,
    },
    /// It was asked to end.
    #[error("the base backup was stopped")]
    Stopped,
}

impl BaseBackupError {
    /// Whether another attempt can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Target { .. } | Self::Checksums { .. } => false,
            Self::Server { problem, .. } => problem.is_retryable,
            Self::Damaged { .. } | Self::NeedsFull { .. } | Self::Stopped => true,
            Self::Sink { source, .. } => may_be_stored_later(source),
        }
    }

    pub(super) fn sink(entry: &Entry, source: io::Error) -> Self {
        Self::Sink {
            entry: entry.path.clone(),
            source,
        }
    }

    pub(super) fn damaged(source: DamageError) -> Self {
        Self::Damaged { source }
    }

    pub(super) fn server(doing: &'static str, endpoint: &Endpoint, source: WireError) -> Self {
        match source {
            WireError::Stopped => Self::Stopped,
            source => Self::Server {
                doing,
                server: endpoint.to_string(),
                problem: Box::new(source.problem()),
                source,
            },
        }
    }
}
