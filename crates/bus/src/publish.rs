//! Publishing what was committed: with a message id, and counted as done only when the stream has stored it.

use async_nats::jetstream::message::PublishMessage;

use crate::Bus;

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
#[error("publish on {subject}: no stream has confirmed it")]
pub struct PublishError {
    subject: String,
    #[source]
    source: async_nats::jetstream::context::PublishError,
}

impl Bus {
    /// Publishes messages in order and waits until each is stored. The answers stand in the order of the messages.
    pub async fn publish(&self, messages: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let mut sent = Vec::with_capacity(messages.len());
        for message in messages {
            let mut publish = PublishMessage::build()
                .message_id(&message.message_id)
                .header("content-type", message.content_type)
                .payload(message.body.into());
            if let Some(traceparent) = &message.traceparent {
                publish = publish.header("traceparent", traceparent.as_str());
            }
            let ack = self.jetstream.send_publish(message.subject.clone(), publish).await;
            sent.push((message.subject, ack));
        }
        let mut results = Vec::with_capacity(sent.len());
        for (subject, ack) in sent {
            let stored = match ack {
                Ok(ack) => ack.await.map(|_| ()),
                Err(source) => Err(source),
            };
            results.push(stored.map_err(|source| PublishError { subject, source }));
        }
        results
    }
}
