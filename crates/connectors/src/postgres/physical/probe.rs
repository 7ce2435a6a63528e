//! What is asked of a cluster beside its backup: whether it could be backed up, and what its slot holds back.

use strongroom_proto::wal::{Lsn, SystemIdentifier};

use super::base_error::BaseBackupError;
use super::commands;
use super::error::WireError;
use super::session::Session;
use super::target::ClusterTarget;
use crate::postgres::sql::{Sql, SqlError};

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
    /// Whether anybody uses it now.
    pub is_active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` where it holds back nothing yet.
    pub wal_status: Option<String>,
    /// The oldest WAL it holds back.
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
        self.wal_status.as_deref() == Some("lost")
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

/// Asks a server about a receiver's slot; `None` where there is no such slot. Any role that may log in may ask. Blocks.
pub fn check_slot(target: &ClusterTarget) -> Result<Option<SlotFacts>, BaseBackupError> {
    let endpoint = target.endpoint().map_err(|source| BaseBackupError::Target { source })?;
    let slot = target.slot().map_err(|source| BaseBackupError::Target { source })?;
    let asked = || -> Result<Option<SlotFacts>, SqlError> {
        let mut sql = Sql::connect(&endpoint)?;
        let rows = sql.rows(&format!(
            "WITH now AS (SELECT CASE WHEN pg_is_in_recovery()
                                      THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                                      ELSE pg_current_wal_flush_lsn() END AS lsn)
             SELECT active, wal_status, restart_lsn, now.lsn, greatest(now.lsn - restart_lsn, 0)::bigint, safe_wal_size
             FROM pg_replication_slots, now WHERE slot_name = '{slot}' AND slot_type = 'physical'"
        ))?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(None);
        };
        let strange = || SqlError::other("the server sent something that is not a slot");
        let [active, wal_status, restart, end, behind, safe] = row.try_into().map_err(|_| strange())?;
        let lsn = |text: String| text.parse::<Lsn>().map_err(|_| strange());
        Ok(Some(SlotFacts {
            is_active: active.as_deref() == Some("t"),
            wal_status,
            restart_lsn: restart.map(lsn).transpose()?,
            server_end: end.map(lsn).transpose()?.ok_or_else(strange)?,
            behind_bytes: behind.and_then(|bytes| bytes.parse().ok()),
            // Below zero where the limit is passed already.
            safe_bytes: safe
                .and_then(|bytes| bytes.parse::<i64>().ok())
                .map(|bytes| bytes.max(0) as u64),
        }))
    };
    asked().map_err(|source| BaseBackupError::Ask {
        server: endpoint.to_string(),
        problem: Box::new(source.problem()),
        source,
    })
}
