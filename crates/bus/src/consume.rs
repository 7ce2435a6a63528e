//! Consuming a stream with bounded concurrency: a durable pull consumer that is made anew when it was lost.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, Consumer};
use async_nats::jetstream::{self, AckKind};
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Bus;

/// How long the server holds an unanswered pull. Heartbeats are not asked for: async-nats 0.51 loses the wake-up after
/// one, and the pull with it. A connection that was made anew ends the pull instead.
const PULL_EXPIRES: Duration = Duration::from_secs(10);
/// At most so many messages are pulled at once.
const PULL_MESSAGES: usize = 64;
/// The pause before a consumer that failed is tried again.
const REOPEN_PAUSE: Duration = Duration::from_millis(300);

type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A durable consumer, as code.
#[derive(Debug, Clone)]
pub struct ConsumerSpec {
    /// The stream.
    pub stream: &'static str,
    /// Its name; consumers of the same name share the messages.
    pub durable: String,
    /// Only messages of this subject; all where it is empty.
    pub filter_subject: String,
    /// A message that was neither acknowledged nor reported in progress for so long is delivered again.
    pub ack_wait: Duration,
    /// How many messages are handled at once.
    pub concurrency: usize,
}

/// A message in the hands of its consumer, who must acknowledge it.
pub struct Delivery {
    message: jetstream::Message,
}

impl Delivery {
    /// Where it was published.
    pub fn subject(&self) -> &str {
        &self.message.subject
    }

    /// Its body.
    pub fn body(&self) -> &[u8] {
        &self.message.payload
    }

    /// A header by its exact name.
    pub fn header(&self, name: &str) -> Option<String> {
        self.message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(name))
            .map(ToString::to_string)
    }

    /// A text that names this message of this stream and no other, ever: a stream made anew counts from 1 again, so
    /// the time belongs to it.
    pub fn position(&self) -> String {
        match self.message.info() {
            Ok(info) => format!("{}@{}", info.stream_sequence, info.published.unix_timestamp_nanos()),
            Err(_) => "unknown".to_owned(),
        }
    }

    /// How often it was delivered, this time included.
    pub fn deliveries(&self) -> u64 {
        self.message.info().map_or(1, |info| info.delivered.unsigned_abs())
    }

    /// Done with it. A lost acknowledgement brings the message again; its handling must bear that.
    pub async fn ack(&self) {
        if let Err(error) = self.message.ack().await {
            tracing::debug!(%error, "acknowledgement not sent");
        }
    }

    /// Not now: deliver it again after `delay`.
    pub async fn retry_after(&self, delay: Duration) {
        if let Err(error) = self.message.ack_with(AckKind::Nak(Some(delay))).await {
            tracing::debug!(%error, "negative acknowledgement not sent");
        }
    }

    /// Still at it: the time until redelivery begins again.
    pub async fn in_progress(&self) {
        if let Err(error) = self.message.ack_with(AckKind::Progress).await {
            tracing::debug!(%error, "progress not sent");
        }
    }
}

/// Hands every message to `handle`, at most `concurrency` at once, until `stop`; then waits for those in hand.
pub async fn consume<H, F>(bus: &Bus, spec: &ConsumerSpec, stop: &CancellationToken, handle: H)
where
    H: Fn(Delivery) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(spec.concurrency.max(1)));
    let tasks = TaskTracker::new();
    while !stop.is_cancelled() {
        let consumer = match open(bus, spec).await {
            Ok(consumer) => consumer,
            Err(error) => {
                tracing::info!(consumer = %spec.durable, error = %chain(&*error), "consumer not available, trying again");
                pause(stop).await;
                continue;
            }
        };
        if let Err(error) = pull_until_interrupted(bus, &consumer, &permits, &tasks, stop, &handle).await {
            tracing::info!(consumer = %spec.durable, error = %chain(&*error), "consumer interrupted, opening it again");
            pause(stop).await;
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Pulls as many messages as there are free hands, again and again: a message pulled before there is a hand for it
/// would wait out its time unseen.
async fn pull_until_interrupted<H, F>(
    bus: &Bus,
    consumer: &Consumer<pull::Config>,
    permits: &Arc<Semaphore>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    handle: &H,
) -> Result<(), BoxError>
where
    H: Fn(Delivery) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = bus.connections.clone();
    connections.mark_unchanged();
    loop {
        let mut hands = Vec::new();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            permit = permits.clone().acquire_owned() => hands.push(permit?),
        }
        while hands.len() < PULL_MESSAGES
            && let Ok(permit) = permits.clone().try_acquire_owned()
        {
            hands.push(permit);
        }
        let mut batch = consumer
            .batch()
            .max_messages(hands.len())
            .expires(PULL_EXPIRES)
            .messages()
            .await?;
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                next = batch.next() => next,
                // The server forgot the pull with the old connection.
                _ = connections.changed() => return Err("the connection was made anew".into()),
            };
            let Some(message) = next else { break };
            let work = handle(Delivery { message: message? });
            let hand = hands.pop();
            tasks.spawn(async move {
                work.await;
                drop(hand);
            });
        }
    }
}

async fn open(bus: &Bus, spec: &ConsumerSpec) -> Result<Consumer<pull::Config>, BoxError> {
    let config = pull::Config {
        durable_name: Some(spec.durable.clone()),
        filter_subject: spec.filter_subject.clone(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: spec.ack_wait,
        max_ack_pending: -1,
        ..pull::Config::default()
    };
    match bus
        .jetstream
        .create_consumer_on_stream(config.clone(), spec.stream)
        .await
    {
        Ok(consumer) => Ok(consumer),
        Err(_) => {
            // The stream may be gone with its server's disk: make it anew.
            bus.ensure_streams().await?;
            Ok(bus.jetstream.create_consumer_on_stream(config, spec.stream).await?)
        }
    }
}

async fn pause(stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(REOPEN_PAUSE) => {}
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
