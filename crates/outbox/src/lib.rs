//! The outbox's way to the streams: it joins `catalog`, where messages are committed, and `bus`, where they go.
//! What nobody keeps, progress, goes to NATS at once.
//!
//! Every service runs one, so that what it commits is published at once; any of them
//! publishes what another left behind.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use strongroom_bus::{Bus, Outgoing};
use strongroom_catalog::{Catalog, OutboxMessage};
use strongroom_proto::events::{self, Fact, JobProgress, STRUCTURED};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use strongroom_runtime::entry::one_line;

/// Messages that one transaction takes from the outbox.
const RELAY_BATCH: u32 = 100;
/// How often the outbox is looked through without being told to.
const RELAY_INTERVAL: Duration = Duration::from_secs(1);

/// Publishes the outbox; cheap to clone.
#[derive(Clone)]
pub struct Relay {
    catalog: Catalog,
    bus: Bus,
    source: Arc<str>,
    wake: Arc<Notify>,
}

impl Relay {
    /// A relay whose events name `environment` in their source.
    pub fn new(catalog: Catalog, bus: Bus, environment: &str) -> Self {
        let source = format!("/strongroom/{}", uri_segment(environment));
        Self {
            catalog,
            bus,
            source: source.into(),
            wake: Arc::new(Notify::new()),
        }
    }

    /// Something was committed: publish now.
    pub fn kick(&self) {
        self.wake.notify_one();
    }

    /// Publishes until `stop`, then once more.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut healthy = true;
        loop {
            match self.drain().await {
                Ok(()) => healthy = true,
                Err(error) if healthy => {
                    tracing::info!(error = %error, "outbox waits: it will be published when catalog and NATS answer");
                    healthy = false;
                }
                Err(_) => {}
            }
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(RELAY_INTERVAL) => {}
            }
        }
    }

    async fn drain(&self) -> Result<(), String> {
        loop {
            // Without a connection the messages, and their rows' locks, would wait for nothing.
            if !self.bus.is_connected() {
                return Err("NATS is not connected".to_owned());
            }
            let mut refused = None;
            let sent = self
                .catalog
                .relay_outbox(RELAY_BATCH, async |messages| {
                    let outgoing: Vec<Outgoing> = messages.iter().map(|message| self.outgoing(message)).collect();
                    let results = self.bus.publish(outgoing).await;
                    refused = results.iter().find_map(|r| r.as_ref().err().map(|e| one_line(e)));
                    results.iter().map(Result::is_ok).collect()
                })
                .await
                .map_err(|error| one_line(&error))?;
            if let Some(error) = refused {
                // The streams may be gone with the server's disk: make them anew, and come back.
                if self.bus.is_connected() {
                    self.bus.ensure_streams().await.map_err(|error| one_line(&error))?;
                }
                return Err(error);
            }
            if sent < RELAY_BATCH as usize {
                return Ok(());
            }
        }
    }

    fn outgoing(&self, message: &OutboxMessage) -> Outgoing {
        let plain = |body: &serde_json::Value, content_type| Outgoing {
            subject: message.subject.clone(),
            message_id: message.message_id.clone(),
            content_type,
            traceparent: message.traceparent.clone(),
            body: body.to_string().into_bytes(),
        };
        if message.subject.starts_with("work.") {
            return plain(&message.body, "application/json");
        }
        let event = self.event(
            &message.subject,
            &message.body,
            &message.message_id,
            message.created_at,
            message.traceparent.as_deref(),
        );
        match event {
            Some(event) => plain(&event, STRUCTURED),
            // Unreachable with the attributes above; the fact itself is better than silence.
            None => plain(&message.body, "application/json"),
        }
    }

    fn event(
        &self,
        subject: &str,
        data: &serde_json::Value,
        id: &str,
        time: DateTime<Utc>,
        traceparent: Option<&str>,
    ) -> Option<serde_json::Value> {
        let event = events::cloud_event(subject, data.clone(), id, &self.source, time, traceparent).ok()?;
        serde_json::to_value(&event).ok()
    }

    /// Tells who listens now how far a job is; `id` names this message alone. It is lost where nobody listens or NATS is away.
    pub async fn tell(&self, progress: JobProgress, id: String, traceparent: Option<&str>) {
        let fact = Fact::JobProgress(progress);
        let subject = fact.subject();
        let Ok(body) = serde_json::to_value(&fact) else { return };
        let Some(event) = self.event(subject, &body, &id, Utc::now(), traceparent) else {
            return;
        };
        let message = Outgoing {
            subject: subject.to_owned(),
            message_id: id,
            content_type: STRUCTURED,
            traceparent: traceparent.map(str::to_owned),
            body: event.to_string().into_bytes(),
        };
        self.bus.tell(&message).await;
    }
}

/// A source is a URI reference: what does not belong into one is replaced.
fn uri_segment(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-._~".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}
