//! Why a cluster of our own does not do what it should.

use std::path::PathBuf;

use super::super::own_folder::FileError;
use super::super::sql::SqlError;
use super::super::target::TargetError;

/// Why a cluster could not be made, started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// No server is installed.
    #[error(
        "{}: install postgresql-{}",
        newest.map_or_else(
            || "there is no PostgreSQL server here".to_owned(),
            |major| format!("the newest PostgreSQL server here is {major}, {min_major} or newer is needed"),
        ),
        if *min_major == 0 { "15 or newer".to_owned() } else { min_major.to_string() }
    )]
    NoServer {
        /// The major version that is needed at least.
        min_major: u32,
        /// The newest there is.
        newest: Option<u32>,
    },
    /// Options that contradict each other.
    #[error("{what}")]
    Options {
        /// What is wrong.
        what: &'static str,
    },
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A socket path that the kernel would refuse.
    #[error("the socket folder {} has too long a path: choose one of less than 90 bytes", path.display())]
    SocketPath {
        /// The folder.
        path: PathBuf,
    },
    /// initdb failed.
    #[error("create a cluster in {}: {output}", data_dir.display())]
    Initdb {
        /// The data folder.
        data_dir: PathBuf,
        /// What initdb said.
        output: String,
    },
    /// Somebody else has the port.
    #[error("port {port} is taken by another program: stop it or choose another port")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The server ended while it started.
    #[error("the server of {} did not start ({ending}): {log}", data_dir.display())]
    Ended {
        /// The data folder.
        data_dir: PathBuf,
        /// How.
        ending: String,
        /// The last lines of its log.
        log: String,
    },
    /// The server started and does not answer.
    #[error("the server of {} does not answer: {log}", data_dir.display())]
    NotReady {
        /// The data folder.
        data_dir: PathBuf,
        /// The last lines of its log.
        log: String,
        /// What connecting said last.
        #[source]
        source: Option<SqlError>,
    },
    /// Our own URL was not understood.
    #[error("connect to a cluster of our own")]
    Url {
        /// Why.
        #[source]
        source: TargetError,
    },
}
