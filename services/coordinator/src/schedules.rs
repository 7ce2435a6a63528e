//! Schedules: what is due becomes jobs, once, whatever number of coordinators look at the clock.
//!
//! Moving a schedule on to its next instant is compare-and-set, in one transaction with the jobs of the instant that is
//! due; and the due instant is a trigger with an identity of its own, so that it makes jobs once.

use std::time::Duration;

use chrono::Utc;
use strongroom_catalog::Origin;
use strongroom_policy::schedule::{self, Schedule, ScheduleError};
use strongroom_proto::TriggerId;
use strongroom_proto::api::{CreateBackup, ScheduleSpec, ScheduleView};
use strongroom_proto::events::Ask;
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::telemetry;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::Coordinator;
use crate::admission::Refusal;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(500);

pub(crate) async fn run(coordinator: &Coordinator, stop: &CancellationToken) {
    loop {
        if let Err(error) = fire_due(coordinator).await {
            tracing::info!(error = %one_line(&error), "schedules wait for the catalog");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// When a schedule of this make fires next after now; an error says what is wrong with it.
pub(crate) fn next_run(spec: &ScheduleSpec) -> Result<Option<chrono::DateTime<Utc>>, ScheduleError> {
    Ok(Schedule::parse(&spec.cron_expression, &spec.timezone)?.next_after(Utc::now()))
}

async fn fire_due(coordinator: &Coordinator) -> Result<(), strongroom_catalog::CatalogError> {
    for view in coordinator.catalog.due_schedules(Utc::now()).await? {
        // One schedule that cannot be served must not keep the others waiting.
        let span = tracing::info_span!("schedule", name = view.spec.name);
        if let Err(error) = serve(coordinator, &view).instrument(span).await {
            if error.is_retryable() {
                return Err(error);
            }
            tracing::error!(schedule = view.spec.name, error = %one_line(&error), "schedule not served");
        }
    }
    Ok(())
}

async fn serve(coordinator: &Coordinator, view: &ScheduleView) -> Result<(), strongroom_catalog::CatalogError> {
    let Some(due) = view.next_run else { return Ok(()) };
    let parsed = match Schedule::parse(&view.spec.cron_expression, &view.spec.timezone) {
        Ok(parsed) => parsed,
        Err(error) => {
            // It was valid when it was made; the time zone database may have changed since.
            tracing::error!(schedule = view.spec.name, error = %one_line(&error), "schedule cannot be read; it does not fire");
            return Ok(());
        }
    };
    let rules = schedule::DueRules {
        catch_up: view.spec.catch_up,
        jitter: schedule::jitter(view.id, view.spec.jitter_seconds),
    };
    let plan = schedule::plan(due, Utc::now(), &parsed, rules);
    if plan.next_due == Some(due) {
        return Ok(());
    }
    let Some(instant) = plan.fire else {
        tracing::warn!(
            schedule = view.spec.name,
            missed = plan.missed,
            "missed, and not made up for"
        );
        coordinator
            .catalog
            .advance_schedule(view.id, due, plan.next_due, None)
            .await?;
        return Ok(());
    };
    let origin = Origin {
        trigger: Some(TriggerId::of_event(&format!("schedule/{}", view.id), &due.to_rfc3339())),
        door: "schedule".to_owned(),
        schedule: Some(view.id),
        operator: Operator {
            initiated_by: InitiatedBy::Automation,
            principal: format!("schedule {} by {}", view.spec.name, view.created_by),
        },
        traceparent: telemetry::current_traceparent(),
    };
    let ask = CreateBackup {
        backup_type: view.spec.backup_type,
        targets: view.spec.targets.clone(),
        description: Some(format!("schedule {}", view.spec.name)),
        retention_days: view.spec.retention_days,
        git: None,
    };
    match coordinator.requests(&Ask::Backup(ask)).await {
        Ok(requests) => {
            let catalog = &coordinator.catalog;
            let fired = catalog
                .fire_schedule(view.id, due, plan.next_due, instant, &origin, &requests)
                .await?;
            if fired.is_some() {
                tracing::info!(schedule = view.spec.name, due = %instant, "fired");
                coordinator.dispatch.notify_one();
            }
        }
        Err(Refusal::Catalog(error)) => return Err(error),
        Err(refusal) => {
            let reason = format!("schedule {:?}: {}", view.spec.name, one_line(&refusal));
            if coordinator
                .catalog
                .advance_schedule(view.id, due, plan.next_due, Some(instant))
                .await?
                && let Some(id) = &origin.trigger
            {
                tracing::warn!(reason, "schedule refused");
                coordinator
                    .catalog
                    .refuse_trigger(id, "schedule", &reason, b"{}")
                    .await?;
                coordinator.relay.kick();
            }
        }
    }
    Ok(())
}
