//! What happened to a target, and what is wrong with it: annotations and alerts.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use strongroom_proto::TargetName;
use strongroom_proto::events::{Alert, Fact};
use strongroom_proto::timeline::{ActiveAlert, Annotation, AnnotationKind};

use crate::jobs::{column, notify_jobs, parsed};
use crate::triggers::storable;
use crate::{Catalog, CatalogError, outbox};

impl Catalog {
    /// Writes something on a target's timeline. With a key it is written once, however often it is asked for.
    pub async fn annotate(
        &self,
        target: &TargetName,
        annotation: &Annotation,
        key: Option<&str>,
    ) -> Result<(), CatalogError> {
        let failed = |e| CatalogError::new("write an annotation", e);
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        put_annotation(&mut connection, target, annotation, key).await
    }

    /// The last annotations of a target, at most `limit`, the oldest first.
    pub async fn annotations(&self, target: &TargetName, limit: u32) -> Result<Vec<Annotation>, CatalogError> {
        let rows = sqlx::query(
            "SELECT at, kind::text, text, source FROM annotations WHERE target_identifier = $1
             ORDER BY at DESC, id DESC LIMIT $2",
        )
        .bind(target.as_str())
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list annotations", e))?;
        rows.iter()
            .rev()
            .map(|row| {
                Ok(Annotation {
                    at: column(row, "at")?,
                    kind: parsed(row, "kind")?,
                    text: column(row, "text")?,
                    source: column(row, "source")?,
                })
            })
            .collect()
    }

    /// Raises an alert: `kind` is its subject in one word, `message` says what happened and what to do. It is announced
    /// and written on the timeline once; while it lasts, raising it again only renews its message. Returns whether it
    /// is new.
    pub async fn raise_alert(&self, target: &TargetName, kind: &str, message: &str) -> Result<bool, CatalogError> {
        let failed = |e| CatalogError::new("raise an alert", e);
        let message = storable(message);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let raised: Option<(i64, DateTime<Utc>)> = sqlx::query_as(
            "INSERT INTO alerts (target_identifier, kind, message) VALUES ($1, $2, $3)
             ON CONFLICT (target_identifier, kind) WHERE cleared_at IS NULL DO NOTHING RETURNING id, raised_at",
        )
        .bind(target.as_str())
        .bind(kind)
        .bind(&message)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        if let Some((id, at)) = raised {
            announce(
                &mut tx,
                target,
                kind,
                &message,
                at,
                &format!("alert-{id}"),
                Resolved::No,
            )
            .await?;
        } else {
            sqlx::query(
                "UPDATE alerts SET message = $3, seen_at = now()
                 WHERE target_identifier = $1 AND kind = $2 AND cleared_at IS NULL",
            )
            .bind(target.as_str())
            .bind(kind)
            .bind(&message)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(raised.is_some())
    }

    /// Says that what an alert told is right again; that is announced, and written on the timeline. Returns whether
    /// there was such an alert.
    pub async fn clear_alert(&self, target: &TargetName, kind: &str) -> Result<bool, CatalogError> {
        let failed = |e| CatalogError::new("clear an alert", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let cleared: Option<(i64, DateTime<Utc>, String)> = sqlx::query_as(
            "UPDATE alerts SET cleared_at = greatest(now(), raised_at)
             WHERE target_identifier = $1 AND kind = $2 AND cleared_at IS NULL RETURNING id, cleared_at, message",
        )
        .bind(target.as_str())
        .bind(kind)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        if let Some((id, at, message)) = &cleared {
            let message = format!("resolved: {message}");
            let id = format!("alert-{id}-resolved");
            announce(&mut tx, target, kind, &message, *at, &id, Resolved::Yes).await?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(cleared.is_some())
    }

    /// What is wrong now: with one target, or with any.
    pub async fn active_alerts(
        &self,
        target: Option<&TargetName>,
    ) -> Result<Vec<(TargetName, ActiveAlert)>, CatalogError> {
        let rows = sqlx::query(
            "SELECT target_identifier, kind, message, raised_at, seen_at FROM alerts
             WHERE cleared_at IS NULL AND ($1::text IS NULL OR target_identifier = $1) ORDER BY raised_at, id",
        )
        .bind(target.map(TargetName::as_str))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list alerts", e))?;
        rows.iter()
            .map(|row| {
                let alert = ActiveAlert {
                    kind: column(row, "kind")?,
                    message: column(row, "message")?,
                    raised_at: column(row, "raised_at")?,
                    seen_at: column(row, "seen_at")?,
                };
                Ok((parsed(row, "target_identifier")?, alert))
            })
            .collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolved {
    Yes,
    No,
}

/// Publishes an alert and writes it on the timeline. `id` is the same however often this is tried.
async fn announce(
    connection: &mut PgConnection,
    target: &TargetName,
    kind: &str,
    message: &str,
    at: DateTime<Utc>,
    id: &str,
    resolved: Resolved,
) -> Result<(), CatalogError> {
    let annotation = Annotation {
        at,
        kind: AnnotationKind::Alert,
        text: message.to_owned(),
        source: kind.to_owned(),
    };
    put_annotation(connection, target, &annotation, Some(id)).await?;
    let fact = Fact::Alert(Alert {
        subject: kind.to_owned(),
        message: message.to_owned(),
        job_id: None,
        targets: vec![target.clone()],
        resolved: resolved == Resolved::Yes,
    });
    // Ids of a catalog that was made anew begin at one again; the time keeps them apart from the old one's.
    let message_id = format!("{id}.{}", at.timestamp_micros());
    outbox::put_fact(connection, &message_id, &fact, None).await?;
    // The relay is woken by changes of jobs.
    notify_jobs(connection).await
}

async fn put_annotation(
    connection: &mut PgConnection,
    target: &TargetName,
    annotation: &Annotation,
    key: Option<&str>,
) -> Result<(), CatalogError> {
    sqlx::query(
        "INSERT INTO annotations (target_identifier, at, kind, text, source, key)
         VALUES ($1, $2, $3::annotation_kind, $4, $5, $6) ON CONFLICT (key) DO NOTHING",
    )
    .bind(target.as_str())
    .bind(annotation.at)
    .bind(annotation.kind.as_str())
    .bind(storable(&annotation.text))
    .bind(storable(&annotation.source))
    .bind(key)
    .execute(connection)
    .await
    .map_err(|e| CatalogError::new("write an annotation", e))?;
    Ok(())
}
