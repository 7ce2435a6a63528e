//! Why WAL is not followed any longer.

use std::io;

use strongroom_proto::wal::{Lsn, SystemIdentifier};

use super::error::{ServerError, WireError};
use super::storing::WalDamage;
use crate::postgres::problem::Problem;
use crate::postgres::target::{Endpoint, TargetError};

/// Why a receiver ended. What was stored before is good; what was not comes again, the slot holds it back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The configuration.
    #[error("receive the WAL of a cluster")]
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
    /// Another cluster answers at the address.
    #[error(
        "{server} is the cluster {found}, and the vault has WAL of {expected}: check the target's url; where the cluster was \
         made anew, take a first base backup of it"
    )]
    OtherSystem {
        /// Which, without the password.
        server: String,
        /// The one that was expected.
        expected: SystemIdentifier,
        /// The one that answers.
        found: SystemIdentifier,
    },
    /// The server never was where the vault's WAL ends.
    #[error(
        "the vault has WAL of timeline {timeline} up to {at}, which {server} does not have: it was set back without a new \
         timeline, or is a standby that lags behind. Look which server is the right one; where it was set back, take a new \
         base backup into a vault folder of its own"
    )]
    OtherHistory {
        /// Which, without the password.
        server: String,
        /// The timeline.
        timeline: u32,
        /// The end of the vault's WAL on it.
        at: Lsn,
        /// What the server said, where it was asked.
        #[source]
        source: Option<WireError>,
    },
    /// The server has neither what was asked for nor what comes after it.
    #[error("the server does not have its WAL at {at}: look at its pg_wal folder and its log")]
    Unavailable {
        /// Where.
        at: Lsn,
    },
    /// What came is not the WAL that was asked for.
    #[error("WAL from {server} is refused")]
    Damaged {
        /// Which, without the password.
        server: String,
        /// Why.
        #[source]
        source: WalDamage,
    },
    /// WAL could not be stored, or what is stored not be listed.
    #[error("store WAL; it comes again")]
    Store {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was stopped before it began.
    #[error("receiving WAL was stopped before it began")]
    Stopped,
}

impl ReceiveError {
    /// Whether it can go on by itself when it is tried again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Target { .. } | Self::OtherSystem { .. } | Self::OtherHistory { .. } => false,
            Self::Damaged { source, .. } => !matches!(source, WalDamage::System { .. }),
            Self::Server { problem, .. } => problem.is_retryable,
            Self::Unavailable { .. } | Self::Store { .. } | Self::Stopped => true,
        }
    }

    pub(super) fn server(doing: &'static str, endpoint: &Endpoint, source: WireError) -> Self {
        Self::Server {
            doing,
            server: endpoint.to_string(),
            problem: Box::new(source.problem()),
            source,
        }
    }

    pub(super) fn is_wal_removed(&self) -> bool {
        self.said().is_some_and(ServerError::is_wal_removed)
    }

    pub(super) fn is_slot_invalidated(&self) -> bool {
        self.said().is_some_and(ServerError::is_slot_invalidated)
    }

    fn said(&self) -> Option<&ServerError> {
        match self {
            Self::Server { source, .. } => source.server(),
            _ => None,
        }
    }
}
