//! Triggers that came to nothing: refused ones, and messages nobody can read.

use strongroom_proto::TriggerId;
use strongroom_proto::events::{Alert, Fact};

use crate::{Catalog, CatalogError, outbox};

/// The longest reason or error that is kept.
const ERROR_CHARACTERS: usize = 16_000;

impl Catalog {
    /// Writes down that a trigger was refused, and announces it; its repetitions are refused in silence.
    pub async fn refuse_trigger(
        &self,
        id: &TriggerId,
        subject: &str,
        reason: &str,
        payload: &[u8],
    ) -> Result<(), CatalogError> {
        let failed = |e| CatalogError::new("refuse a trigger", e);
        let reason = &storable(reason);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let new = sqlx::query(
            "INSERT INTO triggers (id, subject, job_ids, refusal) VALUES ($1, $2, '{}', $3) ON CONFLICT (id) DO NOTHING",
        )
        .bind(id.as_str())
        .bind(subject)
        .bind(reason.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if new.rows_affected() == 0 {
            return Ok(());
        }
        // What cannot be read as JSON is kept as text, shortened: enough to see who sent it.
        let payload = serde_json::from_slice(payload).unwrap_or_else(|_| {
            let text: String = String::from_utf8_lossy(payload)
                .chars()
                .filter(|c| *c != '\0')
                .take(2000)
                .collect();
            serde_json::Value::String(text)
        });
        sqlx::query(
            "INSERT INTO dead_letters (subject, reference, reason, payload) VALUES ($1, $2, $3, $4)
             ON CONFLICT (subject, reference) DO NOTHING",
        )
        .bind(subject)
        .bind(id.as_str())
        .bind(reason.as_str())
        .bind(without_nul(payload))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let fact = Fact::Alert(Alert {
            subject: "trigger_refused".to_owned(),
            message: format!("a message on {subject} started no job: {reason}"),
            job_id: None,
            targets: Vec::new(),
            resolved: false,
        });
        outbox::put_fact(&mut tx, &format!("{}.refused", id.as_str()), &fact, None).await?;
        tx.commit().await.map_err(failed)?;
        Ok(())
    }
}

/// Reasons repeat what came from outside: no NUL, which Postgres does not store, and not without bound.
pub(crate) fn storable(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').take(ERROR_CHARACTERS).collect()
}

/// jsonb holds no NUL character.
fn without_nul(value: serde_json::Value) -> serde_json::Value {
    let text = value.to_string();
    if text.contains("\\u0000") {
        serde_json::Value::String(text.replace("\\u0000", "\\ufffd"))
    } else {
        value
    }
}
