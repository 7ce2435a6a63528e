//! The reconciler: a timed full scan without input that repairs whatever events missed: expired leases, lost work
//! messages, verifications that are owed, holes in WAL, streams of it that nobody tends, alerts of targets that are gone.

use std::time::Duration;

use strongroom_catalog::{CatalogError, CreateOutcome, Origin};
use strongroom_policy::retry::{self, RetryDecision, RetryRules};
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_proto::{Attempt, TriggerId};
use strongroom_runtime::entry::one_line;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Refusal;
use crate::{Coordinator, alerts, gaps, streams};

/// An attempt that nobody claimed for so long may have lost its message.
const UNCLAIMED_SECONDS: u32 = 20;
/// And for so long, whatever the queue holds.
const UNCLAIMED_LONG_SECONDS: u32 = 900;
/// Sent messages are forgotten after so many days.
const OUTBOX_DAYS: i32 = 7;
/// Changes are gathered for so long before they are looked at.
const CHANGES_GATHERED: Duration = Duration::from_millis(100);
/// Verifications that one scan asks for.
const VERIFY_BATCH: u32 = 200;

/// What earlier scans saw of clusters.
#[derive(Default)]
struct Clusters {
    holes: gaps::Seen,
    heard: streams::Heard,
    left_behind: alerts::LeftBehind,
}

pub(crate) async fn run(coordinator: &Coordinator, stop: &CancellationToken) {
    let config = &coordinator.loaded.config;
    let interval = Duration::from_secs(u64::from(config.coordinator.reconcile_seconds.max(1)));
    let lease = Duration::from_secs(u64::from(config.worker.lease_seconds));
    // Workers could not renew while the catalog was away; their leases are not held against them at once.
    let grace = lease.min(Duration::from_secs(10)) + interval;
    let mut leases_count_from = Instant::now() + grace;
    let mut trim_next = Instant::now();
    let mut clusters = Clusters::default();
    loop {
        let trim = Instant::now() >= trim_next;
        match scan(coordinator, &mut clusters, Instant::now() >= leases_count_from, trim).await {
            Ok(()) if trim => trim_next = Instant::now() + Duration::from_secs(3600),
            Ok(()) => {}
            Err(error) => {
                tracing::info!(error = %one_line(&error), "reconciliation waits");
                leases_count_from = Instant::now() + grace;
            }
        }
        let next = Instant::now() + interval;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => break,
                // The event's half: a backup may just have been completed.
                () = coordinator.changed.notified() => {}
            }
            tokio::time::sleep(CHANGES_GATHERED).await;
            if coordinator.loaded.config.coordinator.verify_after_backup
                && let Err(error) = ask_for_verifications(coordinator).await
            {
                tracing::info!(error = %one_line(&error), "verifications wait");
            }
        }
    }
}

async fn scan(coordinator: &Coordinator, clusters: &mut Clusters, leases: bool, trim: bool) -> Result<(), Refusal> {
    if leases {
        expire_leases(coordinator).await?;
    }
    find_lost_messages(coordinator).await?;
    refill_facts(coordinator).await?;
    if coordinator.loaded.config.coordinator.verify_after_backup {
        ask_for_verifications(coordinator).await?;
    }
    gaps::close(coordinator, &mut clusters.holes).await?;
    streams::watch(coordinator, &mut clusters.heard).await?;
    alerts::clear_left_behind(coordinator, &mut clusters.left_behind).await?;
    if trim {
        coordinator.catalog.trim_outbox(OUTBOX_DAYS).await?;
    }
    coordinator.dispatch.notify_one();
    coordinator.relay.kick();
    Ok(())
}

async fn expire_leases(coordinator: &Coordinator) -> Result<(), CatalogError> {
    let config = &coordinator.loaded.config.coordinator;
    let rules = RetryRules {
        max_attempts: config.max_attempts,
        backoff_seconds: config.backoff_seconds.clone(),
    };
    for lost in coordinator.catalog.expired_leases().await? {
        let error = format!("worker {} was not heard of within its lease", lost.worker);
        tracing::warn!(job = %lost.id, attempt = %lost.attempt, worker = lost.worker, "lease expired");
        // The death of a worker says nothing about the job: the next attempt need not wait.
        match retry::decide(&rules, Attempt::new(lost.retry_count + 1), true) {
            RetryDecision::Retry { .. } => coordinator.catalog.expire(lost.id, lost.attempt, &error).await?,
            RetryDecision::GiveUp { reason } => {
                coordinator
                    .catalog
                    .expire_and_fail(lost.id, lost.attempt, &format!("{error} ({reason})"))
                    .await?
            }
        };
    }
    Ok(())
}

/// Messages that the queue has lost, with its disk or by somebody's hand: more attempts wait for a claim than the queue
/// holds messages beside those of running jobs. What hides behind stale messages is found when it has waited for long.
async fn find_lost_messages(coordinator: &Coordinator) -> Result<(), CatalogError> {
    let catalog = &coordinator.catalog;
    let waiting = catalog.unclaimed(UNCLAIMED_SECONDS).await?;
    if waiting == 0 {
        return Ok(());
    }
    let Some(queued) = coordinator.bus.queued_work().await else {
        return Ok(());
    };
    let unheard = queued.saturating_sub(catalog.running().await?);
    let patience = if unheard < waiting {
        UNCLAIMED_SECONDS
    } else {
        UNCLAIMED_LONG_SECONDS
    };
    let taken = catalog.take_back_unclaimed(patience).await?;
    if taken > 0 {
        tracing::warn!(waiting, queued, taken, "attempts were not claimed; sending them again");
    }
    Ok(())
}

/// Facts that a stream held which is gone: the present one is younger than what was sent.
async fn refill_facts(coordinator: &Coordinator) -> Result<(), CatalogError> {
    if let Some(born) = coordinator.bus.facts_since().await {
        let again = coordinator.catalog.resend_facts(born).await?;
        if again > 0 {
            tracing::warn!(
                again,
                "the stream of facts was made anew; publishing again what it held"
            );
        }
    }
    Ok(())
}

async fn ask_for_verifications(coordinator: &Coordinator) -> Result<(), Refusal> {
    for backup in coordinator.catalog.unverified(VERIFY_BATCH).await? {
        let origin = Origin {
            // Of several coordinators that see the same debt, one pays it.
            trigger: Some(TriggerId::of_event("verify", backup.backup_id.as_str())),
            door: "reconcile".to_owned(),
            schedule: None,
            operator: Operator {
                initiated_by: InitiatedBy::Automation,
                principal: "coordinator".to_owned(),
            },
            traceparent: backup.traceparent,
        };
        let request = coordinator.verify_request(backup.backup_id, backup.target, backup.target_kind);
        if let CreateOutcome::Created(jobs) = coordinator.create(&origin, &[request]).await? {
            for job in jobs {
                tracing::debug!(job = %job.job_id, target = %job.target, "verification asked for");
            }
        }
    }
    Ok(())
}
