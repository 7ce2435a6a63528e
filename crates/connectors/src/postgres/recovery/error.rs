//! Why a recovery was refused, or ended before its moment.

use std::io;
use std::path::{Path, PathBuf};

use strongroom_proto::wal::{Lsn, SystemIdentifier};

use crate::files::FilesRestoreError;
use crate::postgres::cluster::ClusterError;
use crate::postgres::own_folder::FileError;
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
    #[error("prepare a server for the recovery: mend what stands in the way and try again")]
    Server {
        /// Why.
        #[source]
        source: ClusterError,
    },
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(FileError),
    /// A step on a file or folder failed.
    #[error("{doing} {}: mend what stands in the way and try again", path.display())]
    Step {
        /// The step.
        doing: &'static str,
        /// The object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The backup could not be read.
    #[error(
        "{entry} could not be read from the backup: make the vault readable and try again, or choose another backup where \
         this one is damaged"
    )]
    Read {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The backup could not be laid down.
    #[error(
        "lay down the base backup: mend what stands in the way and try again, or choose another backup where this one is \
         damaged"
    )]
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
    #[error("{doing}: {output}; mend what it says and try again")]
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
    #[error(
        "the recovery did not reach {target}: {what}; the server was stopped and not promoted; choose a moment that \
         `strongroom timeline` shows, or `latest`"
    )]
    NotReached {
        /// The moment.
        target: String,
        /// Where replay ended, and what comes next.
        what: String,
    },
    /// What the server says it reached is not what was asked for.
    #[error(
        "the recovery came to another moment than {target}: {what}; the server was stopped and not promoted; tell the \
         moment in another way, as a time or a place in WAL that `strongroom timeline` shows"
    )]
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
    /// The server ended, or did not do what it was told, because of this machine and not of what it recovers.
    #[error("{doing}: {log}")]
    Here {
        /// What it was at.
        doing: &'static str,
        /// The last lines of its log, and what to do.
        log: String,
    },
    /// The server did not answer a question.
    #[error("{doing} the recovered server: {problem}; try again, and where it stays so choose another backup")]
    Sql {
        /// The question.
        doing: String,
        /// What it means.
        problem: String,
        /// What was said.
        #[source]
        source: SqlError,
    },
    /// The recovery was told to stop.
    #[error(
        "the recovery was told to stop: the server was stopped and not promoted; restore again where it is still wanted"
    )]
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
            | Self::Ended { .. } => true,
            Self::Sql { source, .. } => is_of_content(source),
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
        let step = FileError::step(doing, path);
        move |source| step(source).into()
    }

    /// A question that was not answered.
    pub(super) fn sql(doing: impl Into<String>) -> impl FnOnce(SqlError) -> Self {
        let doing = doing.into();
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

impl From<FileError> for RecoveryError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Step { doing, path, source } => Self::Step { doing, path, source },
            error => Self::File(error),
        }
    }
}

/// Whether WAL is there and bad. What is not found may be a vault that is away: absence is no error of a fetch.
fn is_damaged_wal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// How a process ended that the kernel, or somebody, killed: nothing that it read makes it do so.
pub(super) const KILLED: &str = "killed by signal 9";

/// The same of a tool that has ended.
pub(super) fn was_killed(status: std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal() == Some(9)
}

/// Whether what a server says tells of what this machine lacks.
pub(super) fn is_local_trouble(said: &str) -> bool {
    [
        "No space left on device",
        "Disk quota exceeded",
        // A library that is not installed here.
        "could not access file",
        "could not load library",
        "Cannot allocate memory",
        "out of memory",
        "Too many open files",
        "terminated by signal 9",
        "could not open shared memory segment",
        "could not create shared memory segment",
        "could not map anonymous shared memory",
        "could not create semaphores",
        "could not fork",
    ]
    .iter()
    .any(|trouble| said.contains(trouble))
}

/// Whether an answer of a server tells of the content it was asked for: not that it did not come, came too late, or was
/// refused for want of something.
fn is_of_content(error: &SqlError) -> bool {
    // Resources, the operator's doing, and timeouts.
    const LOCAL: [&str; 3] = ["53", "57", "08"];
    error
        .code()
        .is_some_and(|code| !LOCAL.iter().any(|class| code.starts_with(class)) && !is_local_trouble(&error.to_string()))
}

/// Whether somebody has to do something first: open a file, make room.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull | io::ErrorKind::InvalidInput
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_says_what_to_do() {
        let text = String::new;
        let away = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let folder = || PathBuf::from("/srv/copy");
        let system = SystemIdentifier(1);
        // Without those whose whole text is made where they arise.
        let errors = [
            RecoveryError::NoServer { major: 17 },
            RecoveryError::Server {
                source: ClusterError::PortTaken { port: 5432 },
            },
            RecoveryError::file("create", &folder())(away()),
            FileError::NotEmpty { folder: folder() }.into(),
            FileError::Obstacle { folder: folder() }.into(),
            RecoveryError::LayDown {
                source: FilesRestoreError::Read { source: away() },
            },
            RecoveryError::BadBackup { what: text() },
            RecoveryError::OtherCluster {
                expected: system,
                found: system,
            },
            RecoveryError::Read {
                entry: text(),
                source: away(),
            },
            RecoveryError::Tool {
                doing: text(),
                output: text(),
            },
            RecoveryError::Wal {
                name: text(),
                source: away(),
            },
            RecoveryError::NotReached {
                target: text(),
                what: text(),
            },
            RecoveryError::OtherMoment {
                target: text(),
                what: text(),
            },
            RecoveryError::sql("ask")(SqlError::answer("no", None)),
            RecoveryError::Stopped,
        ];
        for error in errors {
            let said = error.to_string();
            assert!(
                [
                    "try again",
                    "choose",
                    "tell the moment in another way",
                    "restore again",
                    "install",
                    "name an empty folder",
                ]
                .iter()
                .any(|advice| said.contains(advice)),
                "{said}"
            );
        }
    }

    #[test]
    fn what_this_machine_lacks_is_not_about_the_backup() {
        let answer = |code, message: &str| RecoveryError::sql("ask")(SqlError::answer(message, code));
        for (code, message) in [
            (None, "could not connect within 10 s (timeout expired)"),
            (
                Some("53100"),
                "could not extend file \"base/5/1\": No space left on device",
            ),
            (Some("53200"), "out of memory"),
            (Some("57014"), "canceling statement due to statement timeout"),
            (Some("57P03"), "the database system is starting up"),
            (
                Some("58P01"),
                "could not access file \"$libdir/postgis-3\": No such file or directory",
            ),
        ] {
            assert!(!answer(code, message).is_about_backup(), "{message}");
        }
        for (code, message) in [
            ("XX001", "invalid page in block 0 of relation base/5/1259"),
            (
                "58P01",
                "could not open file \"base/5/1259\": No such file or directory",
            ),
        ] {
            assert!(answer(Some(code), message).is_about_backup(), "{message}");
        }
        let doing = "run a server";
        let log = String::new();
        assert!(
            RecoveryError::Ended {
                doing,
                log: log.clone()
            }
            .is_about_backup()
        );
        assert!(!RecoveryError::Here { doing, log }.is_about_backup());
    }
}
