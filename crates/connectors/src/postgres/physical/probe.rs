//! What is asked of a cluster beside its backup: whether it could be backed up, and what its slot holds back.

use strongroom_proto::wal::{Lsn, SystemIdentifier};

use super::base_error::BaseBackupError;
use super::commands;
use super::error::WireError;
use super::session::Session;
use super::target::ClusterTarget;
use crate::postgres::sql::Sql;

/// What a look at a cluster tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterProbe {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline it is on.
    pub timeline: u32,
    /// What it has written, or a standby has received.
    pub at: Lsn,
    /// Version of the server, e.g. `15.18`.
    pub server_version: String,
    /// Its major version.
    pub server_major: u32,
    /// The size of its WAL segments, in bytes.
    pub segment_bytes: u32,
    /// What its WAL holds: `replica` or `logical`.
    pub wal_level: String,
    /// Whether its pages have checksums, so that a base backup finds damage.
    pub has_checksums: bool,
    /// Whether it keeps what incremental backups need; `None` where it is too old to.
    pub summarizes_wal: Option<bool>,
    /// The size of its tablespaces, in bytes; `None` where the role may not ask.
    pub data_bytes: Option<u64>,
}

/// A receiver's slot, as its server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// The oldest WAL it holds back; `None` where the server gave it up.
    pub restart_lsn: Option<Lsn>,
    /// What the server has written, or a standby has received.
    pub server_end: Lsn,
    /// WAL that the server keeps for the slot, in bytes: how far what the slot was told is behind.
    pub behind_bytes: Option<u64>,
    /// What may still be written before the slot is lost, in bytes; `None` where the server sets no limit
    /// (`max_slot_wal_keep_size`).
    pub safe_bytes: Option<u64>,
}

impl SlotFacts {
    /// Whether the WAL that a receiver needs next may be gone.
    pub fn is_lost(&self) -> bool {
        self.restart_lsn.is_none()
    }
}

/// Connects to a cluster for replication and looks whether it could be backed up. Blocks.
pub fn probe(target: &ClusterTarget) -> Result<ClusterProbe, BaseBackupError> {
    let endpoint = target.endpoint().map_err(|source| BaseBackupError::Target { source })?;
    target.slot().map_err(|source| BaseBackupError::Target { source })?;
    let mut session = Session::open(&endpoint)
        .map_err(|source| BaseBackupError::server("connect for replication to look at the state", &endpoint, source))?;
    let asked = session.run(async |connection| {
        let (server_version, server_major) = commands::version(connection)?;
        let identity = commands::identify(connection).await?;
        let wal_level = commands::show(connection, "wal_level").await?;
        if wal_level == "minimal" {
            return Err(WireError::log_in(
                "the server's wal_level is minimal: set it to replica and restart the server",
            ));
        }
        let summarizes_wal = match commands::show(connection, "summarize_wal").await {
            Ok(value) => Some(value == "on"),
            // Older servers do not know it.
            Err(WireError::Server { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(ClusterProbe {
            system_identifier: identity.system,
            timeline: identity.timeline,
            at: identity.at,
            server_version,
            server_major,
            segment_bytes: commands::segment_bytes(connection).await?,
            wal_level,
            has_checksums: commands::show(connection, "data_checksums").await? == "on",
            summarizes_wal,
            data_bytes: None,
        })
    });
    let mut facts = asked.map_err(|source| BaseBackupError::server("look at the state", &endpoint, source))?;
    // A role that may do no more than replicate is enough for a backup.
    let bytes = Sql::connect(&endpoint)
        .and_then(|mut sql| sql.number("SELECT sum(pg_tablespace_size(oid))::bigint FROM pg_tablespace"));
    match bytes {
        Ok(bytes) => facts.data_bytes = Some(bytes),
        Err(error) => tracing::debug!(server = %endpoint, %error, "the size of the cluster is not known"),
    }
    Ok(facts)
}

/// Asks a server about a receiver's slot; `None` where there is no such slot. The right to replicate is enough. Blocks.
pub fn check_slot(target: &ClusterTarget) -> Result<Option<SlotFacts>, BaseBackupError> {
    let endpoint = target.endpoint().map_err(|source| BaseBackupError::Target { source })?;
    let slot = target.slot().map_err(|source| BaseBackupError::Target { source })?;
    let failed = |source| BaseBackupError::server("ask about the replication slot", &endpoint, source);
    let mut session = Session::open(&endpoint).map_err(failed)?;
    let asked = session.run(async |connection| {
        commands::version(connection)?;
        let Some(found) = commands::slot(connection, slot).await? else {
            return Ok(None);
        };
        let server_end = commands::identify(connection).await?.at;
        let segment_bytes = u64::from(commands::segment_bytes(connection).await?);
        let limit_bytes = commands::size(connection, "max_slot_wal_keep_size").await?;
        let kept_bytes = commands::size(connection, "wal_keep_size").await?.unwrap_or(0);
        Ok(Some(SlotFacts {
            restart_lsn: found.restart,
            server_end,
            behind_bytes: found.restart.map(|restart| server_end.0.saturating_sub(restart.0)),
            safe_bytes: found.restart.zip(limit_bytes).map(|(restart, limit)| {
                // As the server counts: in segments, and what it keeps for all is kept for the slot.
                let segments = restart.0 / segment_bytes + limit.max(kept_bytes) / segment_bytes + 1;
                segments.saturating_mul(segment_bytes).saturating_sub(server_end.0)
            }),
        }))
    });
    asked.map_err(failed)
}
