//! Holes in the WAL of clusters: what is written after one can be recovered only from a new base backup, so one is asked
//! for, and an alert lasts until it is there.
//!
//! This is a timed scan of what the catalog holds, whoever brought it; the worker that meets a hole need not survive it.

use std::collections::HashMap;

use chrono::Utc;
use strongroom_catalog::{CreateOutcome, Origin};
use strongroom_proto::api::CreateBackup;
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_proto::wal::Lsn;
use strongroom_proto::{BackupType, JobKind, TargetName, TriggerId};

use crate::Coordinator;
use crate::admission::Refusal;

/// The alert about WAL that no base backup reaches.
const ALERT: &str = "wal_gap";

/// Jobs that are looked through for a backup that waits or runs.
const ACTIVE_JOBS: u32 = 10_000;

/// The holes that the last scan saw. Pieces may be told of in another order than that of their places, so a hole counts
/// when it is still there at the next scan.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<TargetName, WalPlace>);

/// A timeline, and where its newest WAL without a hole begins.
type WalPlace = (u32, Lsn);

/// Looks for clusters whose newest WAL no base backup reaches.
pub(crate) async fn close(coordinator: &Coordinator, seen: &mut Seen) -> Result<(), Refusal> {
    for (name, target) in coordinator.targets.all() {
        if target.is_physical() {
            close_of(coordinator, &name, seen).await?;
        }
    }
    Ok(())
}

async fn close_of(coordinator: &Coordinator, target: &TargetName, seen: &mut Seen) -> Result<(), Refusal> {
    let known = coordinator.clusters(target).await?;
    // Before the first base backup, nothing was promised.
    let Some(last) = known.backups.last() else {
        return Ok(());
    };
    let streamed = known.stream.as_ref().and_then(|stream| stream.view.system_identifier);
    let system = streamed.unwrap_or(last.facts.system_identifier);
    let Some(unreached) = known.survey().unreached(system) else {
        seen.0.remove(target);
        if coordinator.catalog.clear_alert(target, ALERT).await? {
            tracing::info!(%target, "a base backup reaches the newest WAL again");
        }
        return Ok(());
    };
    let place = (unreached.timeline, unreached.from);
    if seen.0.insert(target.clone(), place) != Some(place) {
        return Ok(());
    }
    let message = format!(
        "WAL of {target} is missing before {} on timeline {}: what is written since cannot be recovered until a new base \
         backup is complete, which was asked for; `strongroom timeline {target}` shows what can be",
        unreached.from, unreached.timeline
    );
    if coordinator.catalog.raise_alert(target, ALERT, &message).await? {
        tracing::warn!(%target, from = %unreached.from, timeline = unreached.timeline, "no base backup reaches the newest WAL");
    }
    if is_being_backed_up(coordinator, target).await? {
        return Ok(());
    }
    let alerts = coordinator.catalog.active_alerts(Some(target)).await?;
    let raised_at = alerts
        .iter()
        .find(|(_, alert)| alert.kind == ALERT)
        .map(|(_, alert)| alert.raised_at);
    let hours = raised_at.map_or(0, |at| (Utc::now() - at).num_hours());
    let hole = format!("{target}/{system}/{}/{}/{hours}", unreached.timeline, unreached.from);
    let origin = Origin {
        // One base backup an hour, however many coordinators see the hole: the last one may have been given up.
        trigger: Some(TriggerId::of_event("wal-gap", &hole)),
        door: "reconcile".to_owned(),
        schedule: None,
        operator: Operator {
            initiated_by: InitiatedBy::Automation,
            principal: "coordinator".to_owned(),
        },
        traceparent: None,
    };
    let ask = CreateBackup {
        backup_type: Some(BackupType::Incremental),
        targets: vec![target.to_string()],
        description: Some("WAL was missing".to_owned()),
        retention_days: None,
        git: None,
    };
    let requests = coordinator.backups(&ask).await?;
    if let CreateOutcome::Created(jobs) = coordinator.create(&origin, &requests).await? {
        for job in jobs {
            tracing::info!(job = %job.job_id, target = %job.target, "base backup after a hole asked for");
        }
    }
    Ok(())
}

async fn is_being_backed_up(coordinator: &Coordinator, target: &TargetName) -> Result<bool, Refusal> {
    let active = coordinator.catalog.active_jobs(ACTIVE_JOBS).await?;
    Ok(active
        .iter()
        .any(|job| job.kind == JobKind::Backup && job.target_identifier == *target))
}
