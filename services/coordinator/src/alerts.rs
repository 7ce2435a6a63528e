//! Alerts that outlived what they were about: a target that is no longer declared, or declared otherwise, is seen by nobody
//! who could say that it is well again.
//!
//! All alerts that the catalog keeps are about WAL. One about a deployed scenario would have to be let stand here.

use std::collections::HashMap;

use strongroom_proto::TargetName;
use strongroom_runtime::{TargetConfig, WalTransport};

use crate::admission::Refusal;
use crate::{Coordinator, streams};

/// Alerts about a replication stream, which a server that pushes its WAL does not have.
const OF_STREAMS: [&str; 3] = [streams::ALERT, "wal_not_received", "wal_behind"];

/// In so many scans in a row a target is not declared before its alerts are cleared. They are not raised again, and a
/// folder of targets may be away for a moment.
const SCANS: u32 = 3;

/// Alerts that were left behind when this was last looked at, and in how many scans in a row.
#[derive(Debug, Default)]
pub(crate) struct LeftBehind(HashMap<(TargetName, String), u32>);

impl LeftBehind {
    /// Whether what is left behind now has been in enough scans.
    fn is_certain(&mut self, alert: &(TargetName, String), now: &mut HashMap<(TargetName, String), u32>) -> bool {
        let scans = self.0.remove(alert).unwrap_or(0) + 1;
        now.insert(alert.clone(), scans);
        scans >= SCANS
    }
}

/// Clears the alerts that nobody will clear.
pub(crate) async fn clear_left_behind(coordinator: &Coordinator, left: &mut LeftBehind) -> Result<(), Refusal> {
    let mut now = HashMap::new();
    for (target, alert) in coordinator.catalog.active_alerts(None).await? {
        let is_certain = !concerns(&alert.kind, coordinator.targets.get(&target).as_ref())
            && left.is_certain(&(target.clone(), alert.kind.clone()), &mut now);
        if !is_certain {
            continue;
        }
        // Whoever received its WAL may not have heard yet, and raise it once more: the next scan meets that.
        if coordinator.catalog.clear_alert(&target, &alert.kind).await? {
            tracing::info!(%target, kind = alert.kind, "its alert is cleared: the target is not declared so any more");
        }
    }
    // What is declared again begins anew.
    left.0 = now;
    Ok(())
}

/// Whether an alert of this kind can be about a target that is declared like this, or not at all.
fn concerns(kind: &str, target: Option<&TargetConfig>) -> bool {
    target.is_some_and(|target| {
        target.is_physical() && (target.wal_transport() == WalTransport::Stream || !OF_STREAMS.contains(&kind))
    })
}

#[cfg(test)]
mod tests {
    use strongroom_proto::TargetKind;
    use strongroom_runtime::config::PostgresMethod;

    use super::*;

    #[test]
    fn a_target_that_is_away_for_a_moment_keeps_its_alerts() {
        let alert = ("shop".parse().unwrap(), "wal_gap".to_owned());
        let mut left = LeftBehind::default();
        let mut scan = |is_away: bool| {
            let mut now = HashMap::new();
            let is_certain = is_away && left.is_certain(&alert, &mut now);
            left.0 = now;
            is_certain
        };
        let scans = [true, true, false, true, true, true, true].map(&mut scan);
        assert_eq!(scans, [false, false, false, false, false, true, true]);
    }

    #[test]
    fn an_alert_concerns_a_cluster_that_is_declared_and_one_of_streams_a_stream() {
        let cluster = |wal| TargetConfig {
            method: Some(PostgresMethod::PhysicalBasebackup),
            wal,
            ..TargetConfig::of_kind(TargetKind::Postgres)
        };
        let dumped = TargetConfig::of_kind(TargetKind::Postgres);
        for (target, gap, gone) in [
            (None, false, false),
            (Some(dumped), false, false),
            (Some(cluster(None)), true, true),
            (Some(cluster(Some(WalTransport::Stream))), true, true),
            (Some(cluster(Some(WalTransport::Push))), true, false),
        ] {
            let concerns = |kind| concerns(kind, target.as_ref());
            assert_eq!(
                (concerns("wal_gap"), concerns("wal_receiver_gone")),
                (gap, gone),
                "{target:?}"
            );
        }
    }
}
