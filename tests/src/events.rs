//! A subscriber to what Strongroom publishes: it reads the stream from its beginning, as one that was away would.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream;
use futures::StreamExt as _;
use serde_json::Value;
use strongroom_testkit::wait_for_async;

/// The events of a stream, by subject.
pub struct Events {
    url: String,
    subject: String,
}

impl Events {
    pub(crate) fn new(url: String, subject: &str) -> Self {
        Self {
            url,
            subject: subject.to_owned(),
        }
    }

    /// Every event that is on the stream now, as the CloudEvents' JSON, in order.
    pub async fn all(&self) -> Result<Vec<Value>> {
        let client = async_nats::connect(&self.url).await?;
        let stream = jetstream::new(client).get_stream("BACKUP").await?;
        let config = jetstream::consumer::pull::OrderedConfig {
            filter_subject: self.subject.clone(),
            ..Default::default()
        };
        let mut consumer = stream.create_consumer(config).await?;
        let mut pending = consumer.info().await?.num_pending;
        let mut messages = consumer.messages().await?;
        let mut events = Vec::new();
        while pending > 0 {
            let next = tokio::time::timeout(Duration::from_secs(10), messages.next()).await;
            let message = next
                .context("the stream's next message")?
                .context("the stream's end")??;
            events.push(serde_json::from_slice(&message.payload)?);
            pending -= 1;
        }
        Ok(events)
    }

    /// Listens from now on, as who is there at the time does; what comes is the CloudEvents' JSON.
    pub async fn listen(&self) -> Result<impl futures::Stream<Item = Value> + Unpin + use<>> {
        let client = async_nats::connect(&self.url).await?;
        let subscriber = client.subscribe(self.subject.clone()).await?;
        client.flush().await?;
        Ok(Box::pin(subscriber.filter_map(|message| async move {
            serde_json::from_slice(&message.payload).ok()
        })))
    }

    /// Waits for an event whose data has this value under this key.
    pub async fn wait(&self, key: &str, value: &str) -> Result<Value> {
        wait_for_async(
            &format!("an event on {} with {key} {value}", self.subject),
            crate::SOON,
            || async {
                self.all()
                    .await
                    .ok()?
                    .into_iter()
                    .find(|event| event["data"][key] == value)
            },
        )
        .await
    }
}
