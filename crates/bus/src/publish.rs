//! Publishing what was committed: with a message id, and counted as done only when the stream has stored it.

use std::future::IntoFuture as _;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, HeaderValue};

use crate::Bus;

/// How long the streams may take to store a batch.
const STORED_WITHIN: Duration = Duration::from_secs(5);
/// How long a message may wait for room in the client's queue.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// One message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub subject: String,
    /// Its identity; the stream stores the same id once.
    pub message_id: String,
    /// Media type of the body.
    pub content_type: &'static str,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// A message that no stream has confirmed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The server refused it, or the stream did.
    #[error("publish on {subject}")]
    Refused {
        /// Where to.
        subject: String,
        /// Why.
        #[source]
        source: async_nats::jetstream::context::PublishError,
    },
    /// Nothing was heard in time.
    #[error("publish on {subject}: no stream has confirmed it in time")]
    Unconfirmed {
        /// Where to.
        subject: String,
    },
}

impl Bus {
    /// Publishes messages in order and waits until each is stored, for all of them together no longer than a few
    /// seconds. The answers stand in the order of the messages.
    pub async fn publish(&self, messages: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let deadline = tokio::time::Instant::now() + STORED_WITHIN;
        let mut sent = Vec::with_capacity(messages.len());
        for message in messages {
            let ack = self
                .jetstream
                .send_publish(message.subject.clone(), with_headers(&message, message.body.clone()));
            sent.push((message.subject, tokio::time::timeout_at(deadline, ack).await));
        }
        let mut results = Vec::with_capacity(sent.len());
        for (subject, ack) in sent {
            let stored = match ack {
                Ok(Ok(ack)) => tokio::time::timeout_at(deadline, ack.into_future()).await,
                Ok(Err(source)) => Ok(Err(source)),
                Err(elapsed) => Err(elapsed),
            };
            results.push(match stored {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(source)) => Err(PublishError::Refused { subject, source }),
                Err(_) => Err(PublishError::Unconfirmed { subject }),
            });
        }
        results
    }

    /// Publishes a message for who listens now, and waits for nobody: it is lost where the server is away.
    pub async fn tell(&self, message: &Outgoing) {
        if !self.is_connected() {
            return;
        }
        let headers = headers(message);
        let body = message.body.clone().into();
        let told = self.client.publish_with_headers(message.subject.clone(), headers, body);
        if !matches!(tokio::time::timeout(TOLD_WITHIN, told).await, Ok(Ok(()))) {
            tracing::debug!(subject = message.subject, "not told");
        }
    }
}

fn with_headers(message: &Outgoing, body: Vec<u8>) -> PublishMessage {
    PublishMessage::build().headers(headers(message)).payload(body.into())
}

/// A text that cannot be a header is left out; the client would panic on it.
fn headers(message: &Outgoing) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", message.content_type);
    if let Ok(id) = message.message_id.parse::<HeaderValue>() {
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
    }
    if let Some(Ok(traceparent)) = message.traceparent.as_ref().map(|text| text.parse::<HeaderValue>()) {
        headers.insert("traceparent", traceparent);
    }
    headers
}
