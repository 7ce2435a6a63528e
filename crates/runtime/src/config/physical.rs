//! The options of `postgres` targets that are taken as a whole cluster's files, with its WAL.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_proto::TargetName;

use super::target::TargetConfig;

/// How long WAL waits for its segment to be full, where nothing is said.
const WAL_INTERVAL_SECONDS: u64 = 10;
/// The longest such time.
const WAL_INTERVAL_SECONDS_MAX: u64 = 3600;
/// Rates that a server takes.
const RATE_BYTES: std::ops::RangeInclusive<u64> = 32 * 1024..=1024 * 1024 * 1024;
/// The longest name of a replication slot.
const SLOT_NAME_BYTES: usize = 63;

/// How a database is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostgresMethod {
    /// One database by SQL, as of one moment.
    #[default]
    LogicalDump,
    /// The whole cluster's files and its WAL: any moment can be recovered.
    PhysicalBasebackup,
}

/// How a cluster's WAL comes into the vault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalTransport {
    /// We receive it through a replication slot.
    #[default]
    Stream,
    /// The server's `archive_command` brings it.
    Push,
}

impl TargetConfig {
    /// Whether it is a whole cluster's files, with its WAL.
    pub fn is_physical(&self) -> bool {
        self.method == Some(PostgresMethod::PhysicalBasebackup)
    }

    /// The replication slot: what was said, or `strongroom_` and the target's name in the characters that slots have.
    pub fn slot_name(&self, target: &TargetName) -> String {
        self.slot.clone().unwrap_or_else(|| {
            let plain = |c: char| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '_'
                }
            };
            format!("strongroom_{}", target.as_str().chars().map(plain).collect::<String>())
        })
    }

    /// How long WAL waits for its segment to be full before it is stored.
    pub fn wal_interval(&self) -> Duration {
        Duration::from_secs(self.wal_interval_seconds.unwrap_or(WAL_INTERVAL_SECONDS))
    }

    /// How WAL comes.
    pub fn wal_transport(&self) -> WalTransport {
        self.wal.unwrap_or_default()
    }
}

/// What of the options cannot work, and what to do.
pub(super) fn find_fault(target: &TargetConfig) -> Option<String> {
    let of_clusters = [
        ("slot", target.slot.is_some()),
        ("wal_interval_seconds", target.wal_interval_seconds.is_some()),
        ("max_rate_bytes", target.max_rate_bytes.is_some()),
        ("wal", target.wal.is_some()),
    ];
    if !target.is_physical() {
        return of_clusters
            .iter()
            .find(|(_, is_set)| *is_set)
            .map(|(key, _)| format!("{key} belongs to whole clusters: add method: physical_basebackup, or remove it"));
    }
    if target.large_table_bytes.is_some() {
        return Some("large_table_bytes belongs to method: logical_dump: remove it".to_owned());
    }
    if target.wal_transport() == WalTransport::Push {
        for (key, is_set) in [
            ("slot", target.slot.is_some()),
            ("wal_interval_seconds", target.wal_interval_seconds.is_some()),
        ] {
            if is_set {
                return Some(format!(
                    "{key} belongs to wal: stream, and its wal is pushed: remove it"
                ));
            }
        }
    }
    if target
        .wal_interval_seconds
        .is_some_and(|seconds| !(1..=WAL_INTERVAL_SECONDS_MAX).contains(&seconds))
    {
        return Some(format!("wal_interval_seconds must be 1 to {WAL_INTERVAL_SECONDS_MAX}"));
    }
    if target.max_rate_bytes.is_some_and(|bytes| !RATE_BYTES.contains(&bytes)) {
        return Some(format!(
            "max_rate_bytes must be {} to {}, or left out for no limit",
            RATE_BYTES.start(),
            RATE_BYTES.end()
        ));
    }
    None
}

/// What is wrong with the name of its slot, which may follow from the target's.
pub(super) fn find_slot_fault(target: &TargetConfig, name: &TargetName) -> Option<String> {
    if !target.is_physical() || target.wal_transport() == WalTransport::Push {
        return None;
    }
    let slot = target.slot_name(name);
    let is_name = !slot.is_empty()
        && slot.len() <= SLOT_NAME_BYTES
        && slot
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    (!is_name).then(|| {
        format!(
            "{slot:?} is no name of a replication slot: set slot to 1 to {SLOT_NAME_BYTES} characters of a-z, 0-9 and _"
        )
    })
}
