//! Schedules: what is due becomes jobs, once, whatever number of coordinators look at the clock.
//!
//! A due instant is a trigger with an identity of its own (`schedule/<id>#<instant>`), so firing it twice makes jobs
//! once; moving the schedule on to its next instant is compare-and-set.

use std::time::Duration;

use chrono::Utc;
use strongroom_catalog::Origin;
use strongroom_policy::schedule::{self, Schedule, ScheduleError};
use strongroom_proto::TriggerId;
use strongroom_proto::api::{CreateBackup, ScheduleSpec, ScheduleView};
use strongroom_proto::events::Ask;
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_runtime::entry::one_line;
use tokio_util::sync::CancellationToken;

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
    let now = Utc::now();
    for view in coordinator.catalog.due_schedules(now).await? {
        let Some(due) = view.next_run else { continue };
        let parsed = match Schedule::parse(&view.spec.cron_expression, &view.spec.timezone) {
            Ok(parsed) => parsed,
            Err(error) => {
                // It was valid when it was made; the time zone database may have changed since.
                tracing::error!(schedule = view.spec.name, error = %one_line(&error), "schedule cannot be read; it does not fire");
                continue;
            }
        };
        let plan = schedule::plan(
            due,
            now,
            &parsed,
            schedule::DueRules {
                catch_up: view.spec.catch_up,
                jitter: schedule::jitter(view.id, view.spec.jitter_seconds),
            },
        );
        if plan.next_due == Some(due) {
            continue;
        }
        if let Some(instant) = plan.fire
            && let Err(refusal) = fire(coordinator, &view, instant).await
        {
            match refusal {
                Refusal::Catalog(error) => return Err(error),
                refusal => {
                    let id = trigger_id(&view, instant);
                    let reason = format!("schedule {:?}: {}", view.spec.name, one_line(&refusal));
                    tracing::warn!(reason, "schedule refused");
                    coordinator
                        .catalog
                        .refuse_trigger(&id, "schedule", &reason, b"{}")
                        .await?;
                    coordinator.relay.kick();
                }
            }
        }
        coordinator
            .catalog
            .advance_schedule(view.id, due, plan.next_due, plan.fire)
            .await?;
    }
    Ok(())
}

fn trigger_id(view: &ScheduleView, due: chrono::DateTime<Utc>) -> TriggerId {
    TriggerId::of_event(&format!("schedule/{}", view.id), &due.to_rfc3339())
}

async fn fire(coordinator: &Coordinator, view: &ScheduleView, due: chrono::DateTime<Utc>) -> Result<(), Refusal> {
    let origin = Origin {
        trigger: Some(trigger_id(view, due)),
        door: "schedule".to_owned(),
        schedule: Some(view.id),
        operator: Operator {
            initiated_by: InitiatedBy::Automation,
            principal: format!("schedule {} by {}", view.spec.name, view.created_by),
        },
        traceparent: None,
    };
    let ask = Ask::Backup(CreateBackup {
        backup_type: view.spec.backup_type,
        targets: view.spec.targets.clone(),
        description: Some(format!("schedule {}", view.spec.name)),
        retention_days: view.spec.retention_days,
        git: None,
    });
    coordinator.admit(&ask, &origin).await?;
    tracing::info!(schedule = view.spec.name, %due, "fired");
    Ok(())
}
