//! How far a server is, and by which way it came: for who gets its WAL otherwise than from a slot.

use chrono::{DateTime, Utc};
use strongroom_proto::wal::{Lsn, SystemIdentifier, TimelineHistory};

use super::base_error::BaseBackupError;
use super::error::WireError;
use super::session::Session;
use super::target::ClusterTarget;
use super::{commands, streaming};

/// How far a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline it is on.
    pub timeline: u32,
    /// The history of that timeline; `None` for the first one, and where the server does not have it any more.
    pub history: Option<TimelineHistory>,
    /// What it has written, or a standby has received.
    pub at: Lsn,
    /// Its clock: what was committed before lies before `at`. A standby cannot tell, for its primary may be ahead.
    pub time: Option<DateTime<Utc>>,
    /// The size of its WAL segments, in bytes.
    pub segment_bytes: u32,
}

/// Connects to a cluster for replication and asks how far it is. The right to replicate is enough. Blocks.
pub fn standing(target: &ClusterTarget) -> Result<Standing, BaseBackupError> {
    let endpoint = target.endpoint().map_err(|source| BaseBackupError::Target { source })?;
    let failed = |source| BaseBackupError::server("ask how far the server is", &endpoint, source);
    // The clock before the place, and each on a connection of its own: the question about the clock ends one.
    let time = Session::open(&endpoint)
        .and_then(|mut session| session.run(async |connection| streaming::server_clock(connection).await))
        .map_err(failed)?;
    let mut session = Session::open(&endpoint).map_err(failed)?;
    let asked = session.run(async |connection| {
        commands::version(connection)?;
        let segment_bytes = commands::segment_bytes(connection).await?;
        let is_standby = commands::is_standby(connection).await?;
        let identity = commands::identify(connection).await?;
        let history = match identity.timeline {
            0 | 1 => None,
            timeline => match commands::history(connection, timeline).await {
                Ok((_, history)) => Some(history),
                Err(WireError::Server { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        Ok(Standing {
            system_identifier: identity.system,
            timeline: identity.timeline,
            history,
            at: identity.at,
            time: (!is_standby).then_some(time),
            segment_bytes,
        })
    });
    asked.map_err(failed)
}
