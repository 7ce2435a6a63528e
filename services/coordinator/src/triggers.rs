//! The NATS door: events on the trigger subjects, and requests on `backup.create`.

use std::sync::Arc;
use std::time::Duration;

use strongroom_bus::{ConsumerSpec, Delivery};
use strongroom_catalog::{CreateOutcome, Origin};
use strongroom_proto::api::CreateBackup;
use strongroom_proto::events::{self, Ask};
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_proto::{TriggerId, subjects};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::telemetry;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::Coordinator;
use crate::admission::Refusal;

/// Triggers that are admitted at once.
const TRIGGER_CONCURRENCY: usize = 32;
/// A trigger whose coordinator died is taken by another after so long.
const TRIGGER_ACK_WAIT: Duration = Duration::from_secs(15);

pub(crate) async fn consume(coordinator: Arc<Coordinator>, stop: &CancellationToken) {
    let spec = ConsumerSpec {
        stream: subjects::TRIGGERS_STREAM,
        durable: "coordinator".to_owned(),
        filter_subject: String::new(),
        ack_wait: TRIGGER_ACK_WAIT,
        concurrency: TRIGGER_CONCURRENCY,
    };
    let bus = coordinator.bus.clone();
    strongroom_bus::consume(&bus, &spec, stop, |delivery| {
        let coordinator = coordinator.clone();
        async move {
            let delivery = Arc::new(delivery);
            let handling = tokio::spawn({
                let (coordinator, delivery) = (coordinator.clone(), delivery.clone());
                async move { take(&coordinator, &delivery).await }
            });
            // A message that brings its handling down would do so each time it comes again.
            if handling.await.is_err() {
                let id = TriggerId::of_event("panic", &delivery.position());
                refuse(
                    &coordinator,
                    &delivery,
                    &id,
                    "its handling panicked: this is a defect, please report it",
                )
                .await;
            }
        }
    })
    .await;
}

async fn take(coordinator: &Coordinator, delivery: &Delivery) {
    let subject = delivery.subject().to_owned();
    let position = delivery.position();
    let parsed = events::parse_trigger(&subject, &|name| delivery.header(name), delivery.body(), &position);
    let trigger = match parsed {
        Ok(trigger) => trigger,
        Err(error) => {
            let id = TriggerId::of_event(&subject, &position);
            return refuse(coordinator, delivery, &id, &one_line(&error)).await;
        }
    };
    let span = tracing::info_span!("trigger", subject, id = trigger.id.as_str());
    telemetry::set_parent(&span, trigger.traceparent.as_deref());
    async {
        let origin = Origin {
            trigger: Some(trigger.id.clone()),
            door: subject.clone(),
            schedule: None,
            operator: Operator {
                initiated_by: InitiatedBy::Automation,
                principal: subject.clone(),
            },
            traceparent: telemetry::current_traceparent().or_else(|| trigger.traceparent.clone()),
        };
        match coordinator.admit(&trigger.ask, &origin).await {
            Ok(outcome) => {
                log_outcome(&outcome);
                delivery.ack().await;
            }
            Err(Refusal::Catalog(error)) if error.is_retryable() => {
                tracing::info!(error = %one_line(&error), "trigger waits for the catalog");
                delivery.retry_after(Duration::from_secs(1)).await;
            }
            Err(refusal) => refuse(coordinator, delivery, &trigger.id, &one_line(&refusal)).await,
        }
    }
    .instrument(span)
    .await;
}

/// A refused trigger is kept as a dead letter and announced as an alert; the same one is refused in silence.
async fn refuse(coordinator: &Coordinator, delivery: &Delivery, id: &TriggerId, reason: &str) {
    tracing::warn!(subject = delivery.subject(), reason, "trigger refused");
    match coordinator
        .catalog
        .refuse_trigger(id, delivery.subject(), reason, delivery.body())
        .await
    {
        Ok(()) => {
            coordinator.relay.kick();
            delivery.ack().await;
        }
        Err(error) => {
            tracing::info!(error = %one_line(&error), "refusal not written down, trying again");
            delivery.retry_after(Duration::from_secs(1)).await;
        }
    }
}

fn log_outcome(outcome: &CreateOutcome) {
    match outcome {
        CreateOutcome::Created(jobs) => {
            for job in jobs {
                tracing::info!(job = %job.job_id, target = %job.target, joined = job.coalesced, "admitted");
            }
        }
        CreateOutcome::Repeated(jobs) => tracing::info!(jobs = jobs.len(), "trigger repeated; its jobs exist"),
    }
}

pub(crate) async fn serve_endpoint(coordinator: Arc<Coordinator>, stop: &CancellationToken) {
    let bus = coordinator.bus.clone();
    strongroom_bus::serve(&bus, subjects::CREATE_ENDPOINT, stop, |body, traceparent| {
        let coordinator = coordinator.clone();
        async move {
            let span = tracing::info_span!("request", subject = subjects::CREATE_ENDPOINT);
            telemetry::set_parent(&span, traceparent.as_deref());
            answer(&coordinator, &body).instrument(span).await
        }
    })
    .await;
    // Without an endpoint the other doors still stand open.
    stop.cancelled().await;
}

async fn answer(coordinator: &Coordinator, body: &[u8]) -> strongroom_bus::Answer {
    let ask: CreateBackup =
        serde_json::from_slice(body).map_err(|error| (400, format!("the request is not understood: {error}")))?;
    let origin = Origin {
        trigger: None,
        door: subjects::CREATE_ENDPOINT.to_owned(),
        schedule: None,
        operator: Operator {
            initiated_by: InitiatedBy::Human,
            principal: "nats".to_owned(),
        },
        traceparent: telemetry::current_traceparent(),
    };
    let created = coordinator
        .create_backup(ask, &origin)
        .await
        .map_err(|refusal| (422, one_line(&refusal)))?;
    serde_json::to_vec(&created).map_err(|error| (500, error.to_string()))
}

impl Coordinator {
    /// Admits a request that waits for an answer.
    pub(crate) async fn create_backup(
        &self,
        ask: CreateBackup,
        origin: &Origin,
    ) -> Result<strongroom_proto::api::BackupCreated, Refusal> {
        use strongroom_proto::api::{BackupCreated, CreatedJob};
        let ask = Ask::Backup(ask);
        let jobs: Vec<CreatedJob> = match self.admit(&ask, origin).await? {
            CreateOutcome::Created(jobs) => jobs
                .into_iter()
                .map(|job| CreatedJob {
                    job_id: job.job_id,
                    target: job.target,
                    coalesced: job.coalesced,
                })
                .collect(),
            CreateOutcome::Repeated(_) => Vec::new(),
        };
        log_created(&jobs);
        let mut longest = None;
        for job in &jobs {
            longest = longest.max(self.estimate(strongroom_proto::JobKind::Backup, &job.target).await?);
        }
        let first = jobs
            .first()
            .ok_or_else(|| Refusal::Invalid("the request came to no job".to_owned()))?
            .job_id;
        Ok(BackupCreated {
            job_id: first,
            estimated_duration: longest.map_or_else(|| "unknown".to_owned(), strongroom_policy::estimate::humanize),
            status: strongroom_proto::JobStatus::Pending,
            targets: jobs.iter().map(|job| job.target.clone()).collect(),
            jobs,
        })
    }

    /// How long a job of this kind on this target has taken before.
    pub(crate) async fn estimate(
        &self,
        kind: strongroom_proto::JobKind,
        target: &strongroom_proto::TargetName,
    ) -> Result<Option<Duration>, Refusal> {
        let seconds = self.catalog.past_durations_seconds(kind, target).await?;
        let past: Vec<Duration> = seconds
            .into_iter()
            .map(|s| Duration::from_secs_f64(s.max(0.0)))
            .collect();
        Ok(strongroom_policy::estimate::estimate(&past))
    }
}

fn log_created(jobs: &[strongroom_proto::api::CreatedJob]) {
    for job in jobs {
        tracing::info!(job = %job.job_id, target = %job.target, joined = job.coalesced, "admitted");
    }
}
