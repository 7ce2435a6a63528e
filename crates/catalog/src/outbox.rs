//! The outbox: what must be published because it was committed.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use strongroom_proto::events::Fact;
use strongroom_proto::work::WorkMessage;

use crate::{Catalog, CatalogError};

/// One message that waits to be published.
#[derive(Debug, Clone)]
pub struct OutboxMessage {
    position: i64,
    /// Its identity on the stream and, for a fact, the id of its CloudEvent.
    pub message_id: String,
    /// Where it goes.
    pub subject: String,
    /// Its payload.
    pub body: serde_json::Value,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// When it was committed.
    pub created_at: DateTime<Utc>,
}

impl Catalog {
    /// Hands up to `limit` unsent messages, oldest first, to `publish`, and marks those it says were stored. Several
    /// relays may run at once: each message is locked by one of them. Returns how many were sent.
    pub async fn relay_outbox<F>(&self, limit: u32, publish: F) -> Result<usize, CatalogError>
    where
        F: AsyncFnOnce(&[OutboxMessage]) -> Vec<bool>,
    {
        let failed = |e| CatalogError::new("read the outbox", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let rows = sqlx::query(
            "SELECT position, message_id, subject, body, traceparent, created_at FROM outbox
             WHERE sent_at IS NULL ORDER BY position LIMIT $1 FOR UPDATE SKIP LOCKED",
        )
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        if rows.is_empty() {
            return Ok(0);
        }
        let messages = rows
            .iter()
            .map(|row| {
                Ok(OutboxMessage {
                    position: row.try_get("position")?,
                    message_id: row.try_get("message_id")?,
                    subject: row.try_get("subject")?,
                    body: row.try_get("body")?,
                    traceparent: row.try_get("traceparent")?,
                    created_at: row.try_get("created_at")?,
                })
            })
            .collect::<Result<Vec<_>, sqlx::Error>>()
            .map_err(failed)?;
        let stored = publish(&messages).await;
        let sent: Vec<i64> = messages
            .iter()
            .zip(stored)
            .filter(|(_, stored)| *stored)
            .map(|(m, _)| m.position)
            .collect();
        sqlx::query("UPDATE outbox SET sent_at = now() WHERE position = ANY($1)")
            .bind(&sent)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(sent.len())
    }

    /// Forgets messages that were sent more than `days` ago.
    pub async fn trim_outbox(&self, days: i32) -> Result<u64, CatalogError> {
        let done = sqlx::query("DELETE FROM outbox WHERE sent_at < now() - make_interval(days => $1)")
            .bind(days)
            .execute(&self.pool)
            .await
            .map_err(|e| CatalogError::new("trim the outbox", e))?;
        Ok(done.rows_affected())
    }

    /// Has facts published again that were sent before `since`, the birth of the stream that is to hold them: an older
    /// one is gone with what it held. Their ids are the same, so a repetition is recognised.
    pub async fn resend_facts(&self, since: DateTime<Utc>) -> Result<u64, CatalogError> {
        let done = sqlx::query("UPDATE outbox SET sent_at = NULL WHERE sent_at < $1 AND subject NOT LIKE 'work.%'")
            .bind(since)
            .execute(&self.pool)
            .await
            .map_err(|e| CatalogError::new("resend facts", e))?;
        Ok(done.rows_affected())
    }
}

pub(crate) async fn put_fact(
    connection: &mut PgConnection,
    message_id: &str,
    fact: &Fact,
    traceparent: Option<&str>,
) -> Result<(), CatalogError> {
    let body = serde_json::to_value(fact).map_err(|e| CatalogError::decode("outbox.body", e))?;
    sqlx::query(
        "INSERT INTO outbox (message_id, subject, body, traceparent) VALUES ($1, $2, $3, $4)
         ON CONFLICT (message_id) DO NOTHING",
    )
    .bind(message_id)
    .bind(fact.subject())
    .bind(&body)
    .bind(traceparent)
    .execute(connection)
    .await
    .map_err(|e| CatalogError::new("write the outbox", e))?;
    Ok(())
}

pub(crate) async fn put_work(
    connection: &mut PgConnection,
    work: &[(String, WorkMessage)],
) -> Result<(), CatalogError> {
    let bodies = work
        .iter()
        .map(|(_, message)| serde_json::to_value(message))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| CatalogError::decode("outbox.body", e))?;
    sqlx::query(
        "INSERT INTO outbox (message_id, subject, body, traceparent)
         SELECT * FROM unnest($1::text[], $2::text[], $3::jsonb[], $4::text[]) ON CONFLICT (message_id) DO NOTHING",
    )
    .bind(work.iter().map(|(_, message)| message.message_id()).collect::<Vec<_>>())
    .bind(work.iter().map(|(subject, _)| subject.clone()).collect::<Vec<_>>())
    .bind(bodies)
    .bind(
        work.iter()
            .map(|(_, message)| message.traceparent.clone())
            .collect::<Vec<_>>(),
    )
    .execute(connection)
    .await
    .map_err(|e| CatalogError::new("write the outbox", e))?;
    Ok(())
}
