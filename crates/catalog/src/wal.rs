//! Which WAL a vault holds, as ranges without a hole, and the histories of its timelines.
//!
//! The vault's pieces are the truth; what is here is filled by whoever stores one, by who looks into the vault for pieces that
//! nobody told of, and again by a rebuild. Adding in any order, twice, or with overlaps comes to the same.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, Transaction};
use strongroom_proto::VaultId;
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, TimelineHistory, WalRange};

use crate::jobs::{column, parsed};
use crate::{Catalog, CatalogError};

impl Catalog {
    /// Adds WAL that a vault holds: it becomes one range with what it touches or overlaps. An empty range is nothing.
    pub async fn add_wal(
        &self,
        vault: VaultId,
        system: SystemIdentifier,
        range: &WalRange,
    ) -> Result<(), CatalogError> {
        if range.from >= range.to {
            return Ok(());
        }
        let failed = |e| CatalogError::new("add WAL to the catalog", e);
        let mut tx = self.pool.begin().await.map_err(failed)?;
        lock(&mut tx, vault, system, range.timeline).await?;
        join_range(&mut tx, vault, system, range).await?;
        tx.commit().await.map_err(failed)
    }

    /// Adds what a vault lists, for a catalog that was lost. The pieces' names tell no time of the server's, so that the
    /// moments when they were stored stand for it: a range may seem to end some intervals earlier than it does, and one of
    /// few pieces up to an interval later, until its stream goes on.
    pub async fn add_stored_wal(
        &self,
        vault: VaultId,
        system: SystemIdentifier,
        pieces: &[StoredPiece],
    ) -> Result<(), CatalogError> {
        for range in joined(pieces) {
            self.add_wal(vault, system, &range).await?;
        }
        Ok(())
    }

    /// Notes that a server had nothing after `to` at `time`: the range that ends there lasts so long. `false` where no
    /// range ends there.
    pub async fn touch_wal(
        &self,
        vault: VaultId,
        system: SystemIdentifier,
        timeline: u32,
        to: Lsn,
        time: DateTime<Utc>,
    ) -> Result<bool, CatalogError> {
        let done = sqlx::query(
            "UPDATE wal_ranges SET last_time = greatest(last_time, $5)
             WHERE vault_id = $1 AND system_identifier = $2 AND timeline = $3 AND to_lsn = $4::pg_lsn",
        )
        .bind(vault.as_uuid())
        .bind(system.to_string())
        .bind(i64::from(timeline))
        .bind(to.to_string())
        .bind(time)
        .execute(&self.pool)
        .await
        .map_err(|e| CatalogError::new("note that WAL is idle", e))?;
        Ok(done.rows_affected() > 0)
    }

    /// The WAL of a cluster that a vault holds, by timeline and place.
    pub async fn wal_ranges(&self, vault: VaultId, system: SystemIdentifier) -> Result<Vec<WalRange>, CatalogError> {
        let rows = sqlx::query(
            "SELECT timeline, from_lsn::text, to_lsn::text, first_time, last_time FROM wal_ranges
             WHERE vault_id = $1 AND system_identifier = $2 ORDER BY timeline, wal_ranges.from_lsn",
        )
        .bind(vault.as_uuid())
        .bind(system.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list the WAL of a cluster", e))?;
        rows.iter()
            .map(|row| {
                Ok(WalRange {
                    timeline: timeline_of(row)?,
                    from: parsed(row, "from_lsn")?,
                    to: parsed(row, "to_lsn")?,
                    first_time: column(row, "first_time")?,
                    last_time: column(row, "last_time")?,
                })
            })
            .collect()
    }

    /// Adds the history of a timeline. Returns the one that the catalog holds: another one where a different history of
    /// the same timeline came before, which means that two servers were promoted at once.
    pub async fn add_wal_history(
        &self,
        vault: VaultId,
        system: SystemIdentifier,
        history: &TimelineHistory,
    ) -> Result<TimelineHistory, CatalogError> {
        let ancestors =
            serde_json::to_value(&history.ancestors).map_err(|e| CatalogError::decode("wal_histories.ancestors", e))?;
        let row = sqlx::query(
            "INSERT INTO wal_histories AS h (vault_id, system_identifier, timeline, ancestors) VALUES ($1, $2, $3, $4)
             ON CONFLICT (vault_id, system_identifier, timeline) DO UPDATE SET ancestors = h.ancestors
             RETURNING timeline, ancestors",
        )
        .bind(vault.as_uuid())
        .bind(system.to_string())
        .bind(i64::from(history.timeline))
        .bind(ancestors)
        .fetch_one(&self.pool)
        .await
        .map_err(|e| CatalogError::new("add the history of a timeline", e))?;
        history_of(&row)
    }

    /// The histories of a cluster's timelines, by timeline.
    pub async fn wal_histories(
        &self,
        vault: VaultId,
        system: SystemIdentifier,
    ) -> Result<Vec<TimelineHistory>, CatalogError> {
        let rows = sqlx::query(
            "SELECT timeline, ancestors FROM wal_histories
             WHERE vault_id = $1 AND system_identifier = $2 ORDER BY timeline",
        )
        .bind(vault.as_uuid())
        .bind(system.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("list the histories of a cluster", e))?;
        rows.iter().map(history_of).collect()
    }
}

/// Two writers of one timeline wait for each other, so that what they add is joined.
async fn lock(
    tx: &mut Transaction<'_, Postgres>,
    vault: VaultId,
    system: SystemIdentifier,
    timeline: u32,
) -> Result<(), CatalogError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("wal {vault} {system} {timeline}"))
        .execute(&mut **tx)
        .await
        .map_err(|e| CatalogError::new("lock the WAL of a timeline", e))?;
    Ok(())
}

async fn join_range(
    tx: &mut Transaction<'_, Postgres>,
    vault: VaultId,
    system: SystemIdentifier,
    range: &WalRange,
) -> Result<(), CatalogError> {
    let failed = |e| CatalogError::new("add WAL to the catalog", e);
    let mut whole = *range;
    let touched = sqlx::query(
        "DELETE FROM wal_ranges
         WHERE vault_id = $1 AND system_identifier = $2 AND timeline = $3
           AND from_lsn <= $5::pg_lsn AND to_lsn >= $4::pg_lsn
         RETURNING from_lsn::text, to_lsn::text, first_time, last_time",
    )
    .bind(vault.as_uuid())
    .bind(system.to_string())
    .bind(i64::from(range.timeline))
    .bind(range.from.to_string())
    .bind(range.to.to_string())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    for row in &touched {
        whole.from = whole.from.min(parsed(row, "from_lsn")?);
        whole.to = whole.to.max(parsed(row, "to_lsn")?);
        whole.first_time = whole.first_time.min(column(row, "first_time")?);
        whole.last_time = whole.last_time.max(column(row, "last_time")?);
    }
    sqlx::query(
        "INSERT INTO wal_ranges (vault_id, system_identifier, timeline, from_lsn, to_lsn, first_time, last_time)
         VALUES ($1, $2, $3, $4::pg_lsn, $5::pg_lsn, $6, greatest($6, $7))",
    )
    .bind(vault.as_uuid())
    .bind(system.to_string())
    .bind(i64::from(whole.timeline))
    .bind(whole.from.to_string())
    .bind(whole.to.to_string())
    .bind(whole.first_time)
    .bind(whole.last_time)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// So many pieces may be on their way into a vault at once.
const UNDER_WAY: usize = 4;

/// Pieces that touch, as one range.
///
/// What lies in a piece was written before it was stored, but what was written by then may lie in those after it, or nowhere. When a
/// piece was cut, the one so many before it had been stored: until then, at least, the range lasts.
fn joined(pieces: &[StoredPiece]) -> Vec<WalRange> {
    let mut pieces: Vec<&StoredPiece> = pieces.iter().filter(|piece| piece.from < piece.to).collect();
    pieces.sort_by_key(|piece| (piece.timeline, piece.from));
    let mut ranges: Vec<WalRange> = Vec::new();
    let mut times: VecDeque<DateTime<Utc>> = VecDeque::new();
    for piece in pieces {
        match ranges.last_mut() {
            Some(last) if last.timeline == piece.timeline && piece.from <= last.to => {
                last.to = last.to.max(piece.to);
                last.first_time = last.first_time.min(piece.stored_at);
            }
            _ => {
                times.clear();
                ranges.push(WalRange {
                    timeline: piece.timeline,
                    from: piece.from,
                    to: piece.to,
                    first_time: piece.stored_at,
                    last_time: piece.stored_at,
                });
            }
        }
        times.push_back(piece.stored_at);
        if times.len() > UNDER_WAY + 1 {
            times.pop_front();
        }
        if let (Some(range), Some(sure)) = (ranges.last_mut(), times.iter().min()) {
            range.last_time = range.first_time.max(*sure);
        }
    }
    ranges
}

pub(crate) fn timeline_of(row: &PgRow) -> Result<u32, CatalogError> {
    let timeline: i64 = column(row, "timeline")?;
    u32::try_from(timeline).map_err(|e| CatalogError::decode("timeline", e))
}

fn history_of(row: &PgRow) -> Result<TimelineHistory, CatalogError> {
    let ancestors: serde_json::Value = column(row, "ancestors")?;
    Ok(TimelineHistory {
        timeline: timeline_of(row)?,
        ancestors: serde_json::from_value(ancestors).map_err(|e| CatalogError::decode("wal_histories.ancestors", e))?,
    })
}
