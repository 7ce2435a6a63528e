//! Why a recovery was refused, or ended before its moment.

use std::io;
use std::path::{Path, PathBuf};

use strongroom_proto::wal::{Lsn, SystemIdentifier};

use crate::files::FilesRestoreError;
use crate::postgres::cluster::ClusterError;
use crate::postgres::restore::is_damage;
use crate::postgres::sql::SqlError;

/// Why a recovery was refused, or ended before its moment. Whatever it is, no server was promoted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// What was asked for cannot be.
    #[error("{what}")]
    Refused {
        /// Why, and what to do.
        what: String,
    },
    /// A folder that the recovery would take over holds something.
    #[error("{} is not empty: name an empty folder, or one that is not there", folder.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
    },
    /// No server of the backup's major version is installed.
    #[error(
        "the backup is of PostgreSQL {major}, of which no server is installed here: install postgresql-{major}, or name \
         the folder of its programs in worker.pg_bin_dirs"
    )]
    NoServer {
        /// The major version.
        major: u32,
    },
    /// The way to a server of our own.
    #[error("prepare a server for the recovery")]
    Server {
        /// Why.
        #[source]
        source: ClusterError,
    },
    /// A step on the file system failed.
    #[error("{doing} {}", path.display())]
    File {
        /// The step.
        doing: &'static str,
        /// The object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The backup could not be read.
    #[error("read {entry} from the backup")]
    Read {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The backup could not be laid down.
    #[error("lay down the base backup")]
    LayDown {
        /// Why.
        #[source]
        source: FilesRestoreError,
    },
    /// The backup is not what it is said to be.
    #[error("the base backup is not usable: {what}; choose another backup")]
    BadBackup {
        /// What is wrong with it.
        what: String,
    },
    /// The files are of another cluster.
    #[error("the base backup holds cluster {found}, its receipt names cluster {expected}: choose another backup")]
    OtherCluster {
        /// As the receipt says.
        expected: SystemIdentifier,
        /// As the control file says.
        found: SystemIdentifier,
    },
    /// A program of Postgres failed.
    #[error("{doing}: {output}")]
    Tool {
        /// The step.
        doing: String,
        /// What it said.
        output: String,
    },
    /// WAL could not be brought.
    #[error(
        "the vault could not be read during recovery, at {name}: the server was stopped and not promoted; make the vault \
         readable and try again"
    )]
    Wal {
        /// The file that the server asked for.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// WAL ended, or something else came, before the moment.
    #[error("the recovery did not reach {target}: {what}; the server was stopped and not promoted")]
    NotReached {
        /// The moment.
        target: String,
        /// Where replay ended, and what comes next.
        what: String,
    },
    /// What the server says it reached is not what was asked for.
    #[error("the recovery came to another moment than {target}: {what}; the server was stopped and not promoted")]
    OtherMoment {
        /// The moment.
        target: String,
        /// What was found.
        what: String,
    },
    /// The server ended, or did not do what it was told.
    #[error("{doing}: {log}")]
    Ended {
        /// What it was at.
        doing: &'static str,
        /// The last lines of its log, and what to do.
        log: String,
    },
    /// The server did not answer a question.
    #[error("{doing} the recovered server: {problem}")]
    Sql {
        /// The question.
        doing: &'static str,
        /// What it means.
        problem: String,
        /// What was said.
        #[source]
        source: SqlError,
    },
    /// The recovery was told to stop.
    #[error("the recovery was told to stop: the server was stopped and not promoted")]
    Stopped,
}

impl RecoveryError {
    /// Whether another attempt can succeed without anybody doing anything. One after an outage goes on where the last
    /// one was, in the same destination.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read { source, .. } => !is_damage(source),
            Self::Wal { source, .. } => !is_damaged_wal(source) && !is_refusal(source),
            Self::LayDown { source } => source.is_retryable(),
            Self::Stopped => true,
            _ => false,
        }
    }

    /// Whether it says that the backup, or its WAL, is bad: not that something stands in the way here.
    pub fn is_about_backup(&self) -> bool {
        match self {
            Self::BadBackup { .. }
            | Self::OtherCluster { .. }
            | Self::NotReached { .. }
            | Self::OtherMoment { .. }
            | Self::Ended { .. }
            | Self::Sql { .. } => true,
            Self::Read { source, .. } => is_damage(source),
            Self::Wal { source, .. } => is_damaged_wal(source),
            Self::LayDown {
                source: FilesRestoreError::Read { source },
            } => is_damage(source),
            _ => false,
        }
    }

    /// A failed step on an object of the file system.
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    /// A question that was not answered.
    pub(super) fn sql(doing: &'static str) -> impl FnOnce(SqlError) -> Self {
        move |source| Self::Sql {
            doing,
            problem: source.problem().to_string(),
            source,
        }
    }

    /// What happened at a moment, as people read it.
    pub(super) fn at(lsn: Option<Lsn>) -> String {
        lsn.map_or_else(|| "before it was consistent".to_owned(), |lsn| format!("at {lsn}"))
    }
}

/// Whether WAL is there and bad. What is not found may be a vault that is away: absence is no error of a fetch.
fn is_damaged_wal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Whether somebody has to do something first: open a file, make room.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull | io::ErrorKind::InvalidInput
    )
}
