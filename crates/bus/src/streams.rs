//! The streams, declared as code and reconciled at start. A stream that was lost is made anew.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use chrono::{DateTime, Utc};
use strongroom_proto::subjects;

use crate::Bus;

/// How long triggers are kept for a coordinator that is away.
const TRIGGERS_KEPT: Duration = Duration::from_secs(7 * 86_400);
/// How long facts are kept for subscribers that are away.
const FACTS_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How long a repeated message id is recognised by the stream itself; the catalog recognises it for ever.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// A stream that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("create or update stream {stream}: another stream may hold its subjects, or the server lacks space")]
pub struct StreamError {
    stream: &'static str,
    #[source]
    source: jetstream::context::CreateStreamError,
}

impl Bus {
    /// Creates the streams, or brings them to the declared configuration.
    pub async fn ensure_streams(&self) -> Result<(), StreamError> {
        for config in [
            self.stream(
                subjects::TRIGGERS_STREAM,
                subjects::TRIGGERS_SUBJECTS,
                RetentionPolicy::Limits,
                TRIGGERS_KEPT,
            ),
            self.stream(
                subjects::BACKUP_STREAM,
                subjects::BACKUP_SUBJECTS,
                RetentionPolicy::Limits,
                FACTS_KEPT,
            ),
            self.stream(
                subjects::WORK_STREAM,
                subjects::WORK_SUBJECTS,
                RetentionPolicy::WorkQueue,
                Duration::ZERO,
            ),
        ] {
            let stream = match config.name.as_str() {
                subjects::TRIGGERS_STREAM => subjects::TRIGGERS_STREAM,
                subjects::BACKUP_STREAM => subjects::BACKUP_STREAM,
                _ => subjects::WORK_STREAM,
            };
            self.jetstream
                .create_or_update_stream(config)
                .await
                .map_err(|source| StreamError { stream, source })?;
        }
        Ok(())
    }

    /// Messages that lie in the work queue. `None` where the stream does not answer.
    pub async fn queued_work(&self) -> Option<u64> {
        let mut stream = self.jetstream.get_stream(subjects::WORK_STREAM).await.ok()?;
        stream.info().await.ok().map(|info| info.state.messages)
    }

    /// When the stream of facts was made; it holds nothing older. `None` where it does not answer.
    pub async fn facts_since(&self) -> Option<DateTime<Utc>> {
        let stream = self.jetstream.get_stream(subjects::BACKUP_STREAM).await.ok()?;
        DateTime::from_timestamp(stream.cached_info().created.unix_timestamp(), 0)
    }

    fn stream(&self, name: &str, subjects: &[&str], retention: RetentionPolicy, max_age: Duration) -> Config {
        Config {
            name: name.to_owned(),
            subjects: subjects.iter().map(|s| (*s).to_owned()).collect(),
            retention,
            max_age,
            storage: StorageType::File,
            // A full stream pushes back; it never drops what it took.
            discard: DiscardPolicy::New,
            num_replicas: self.replicas,
            duplicate_window: DUPLICATE_WINDOW,
            ..Config::default()
        }
    }
}
