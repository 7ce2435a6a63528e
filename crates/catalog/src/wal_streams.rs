//! Who receives a target's WAL: one worker at a time, by a lease that it renews.
//!
//! A claim is a fence as an attempt is: it has a number, and only the newest one may renew, report or release. Two
//! processes of the same name do not pass for one.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use strongroom_proto::timeline::WalStreamView;
use strongroom_proto::wal::{Lsn, SystemIdentifier};
use strongroom_proto::{TargetName, VaultId};

use crate::jobs::{LeaseState, bytes_column, bytes_of, column, parsed};
use crate::triggers::storable;
use crate::{Catalog, CatalogError};

/// The right to receive the WAL of a target, as long as it is renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalClaim {
    /// The target.
    pub target: TargetName,
    /// The worker.
    pub worker: String,
    number: i64,
}

/// How far receiving is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalProgress {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline that is received.
    pub timeline: u32,
    /// The end of what is durable in the vault.
    pub received_to: Lsn,
    /// Until when the vault has everything by the server's clock, where that is known.
    pub server_time: Option<DateTime<Utc>>,
    /// How much the server has written that is not in the vault, where that is known.
    pub behind_bytes: Option<u64>,
    /// What there is to tell.
    pub news: WalNews,
}

/// Whether anything came of receiving since that was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalNews {
    /// WAL became durable, or the server had none. What failed before is over.
    Progressed,
    /// Nothing did, though the server may have been reached.
    None,
}

/// The stream of WAL of one target, and the vault it goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalStream {
    /// The target.
    pub target: TargetName,
    /// The vault.
    pub vault: VaultId,
    /// How it stands.
    pub view: WalStreamView,
    /// When WAL became durable, or the server had none; whoever claims the stream meanwhile.
    pub progressed_at: Option<DateTime<Utc>>,
    /// Whether that was under the claim that is held now, so that what was received is what this server has.
    pub progressed_in_claim: bool,
}

impl Catalog {
    /// Claims the stream of a target for a worker. `None` where another claim's lease has not run out, whoever holds it.
    pub async fn claim_wal_stream(
        &self,
        target: &TargetName,
        vault: VaultId,
        slot: Option<&str>,
        worker: &str,
        lease_seconds: u32,
    ) -> Result<Option<WalClaim>, CatalogError> {
        let number: Option<i64> = sqlx::query_scalar(
            "INSERT INTO wal_streams AS s (target_identifier, vault_id, slot, holder, lease_until)
             VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
             ON CONFLICT (target_identifier) DO UPDATE SET
                 -- What was received into another vault says nothing of this one.
                 system_identifier = CASE WHEN s.vault_id = $2 THEN s.system_identifier END,
                 timeline = CASE WHEN s.vault_id = $2 THEN s.timeline END,
                 received_to = CASE WHEN s.vault_id = $2 THEN s.received_to END,
                 server_time = CASE WHEN s.vault_id = $2 THEN s.server_time END,
                 progressed_at = CASE WHEN s.vault_id = $2 THEN s.progressed_at END,
                 vault_id = $2, slot = $3, holder = $4, lease_until = now() + make_interval(secs => $5),
                 claim = s.claim + 1, updated_at = now()
             WHERE s.lease_until IS NULL OR s.lease_until < now()
             RETURNING s.claim",
        )
        .bind(target.as_str())
        .bind(vault.as_uuid())
        .bind(slot)
        .bind(worker)
        .bind(f64::from(lease_seconds))
        .fetch_optional(&self.pool)
        .await
        .map_err(|e| CatalogError::new("claim a stream of WAL", e))?;
        Ok(number.map(|number| WalClaim {
            target: target.clone(),
            worker: worker.to_owned(),
            number,
        }))
    }

    /// Renews the lease of a claim, and says how far receiving is where `progress` is known. A claim that another one
    /// followed is lost for good; one that only ran out is renewed.
    pub async fn renew_wal_stream(
        &self,
        claim: &WalClaim,
        lease_seconds: u32,
        progress: Option<&WalProgress>,
    ) -> Result<LeaseState, CatalogError> {
        let done = sqlx::query(
            "UPDATE wal_streams SET lease_until = now() + make_interval(secs => $4), updated_at = now(),
                 system_identifier = coalesce($5, system_identifier), timeline = coalesce($6, timeline),
                 received_to = coalesce($7::pg_lsn, received_to), server_time = coalesce($8, server_time),
                 behind_bytes = CASE WHEN $6 IS NULL THEN behind_bytes ELSE $9 END,
                 last_error = CASE WHEN NOT $10 THEN last_error END,
                 progressed_at = CASE WHEN $10 THEN now() ELSE progressed_at END,
                 progressed_claim = CASE WHEN $10 THEN claim ELSE progressed_claim END
             WHERE target_identifier = $1 AND holder = $2 AND claim = $3",
        )
        .bind(claim.target.as_str())
        .bind(&claim.worker)
        .bind(claim.number)
        .bind(f64::from(lease_seconds))
        .bind(progress.map(|p| p.system_identifier.to_string()))
        .bind(progress.map(|p| i64::from(p.timeline)))
        .bind(progress.map(|p| p.received_to.to_string()))
        .bind(progress.and_then(|p| p.server_time))
        .bind(progress.and_then(|p| p.behind_bytes).map(bytes_column))
        .bind(progress.is_some_and(|p| p.news == WalNews::Progressed))
        .execute(&self.pool)
        .await
        .map_err(|e| CatalogError::new("renew the lease of a stream of WAL", e))?;
        Ok(if done.rows_affected() == 1 {
            LeaseState::Held
        } else {
            LeaseState::Lost
        })
    }

    /// Writes down why receiving failed; it stands until something comes of it, whoever claims the stream.
    pub async fn fail_wal_stream(&self, claim: &WalClaim, error: &str) -> Result<LeaseState, CatalogError> {
        let done = sqlx::query(
            "UPDATE wal_streams SET last_error = $4, updated_at = now()
             WHERE target_identifier = $1 AND holder = $2 AND claim = $3",
        )
        .bind(claim.target.as_str())
        .bind(&claim.worker)
        .bind(claim.number)
        .bind(storable(error))
        .execute(&self.pool)
        .await
        .map_err(|e| CatalogError::new("note why receiving WAL failed", e))?;
        Ok(if done.rows_affected() == 1 {
            LeaseState::Held
        } else {
            LeaseState::Lost
        })
    }

    /// Gives a claim back, so that another worker need not wait for its lease to run out.
    pub async fn release_wal_stream(&self, claim: &WalClaim) -> Result<(), CatalogError> {
        sqlx::query(
            "UPDATE wal_streams SET holder = NULL, lease_until = NULL, updated_at = now()
             WHERE target_identifier = $1 AND holder = $2 AND claim = $3",
        )
        .bind(claim.target.as_str())
        .bind(&claim.worker)
        .bind(claim.number)
        .execute(&self.pool)
        .await
        .map_err(|e| CatalogError::new("release a stream of WAL", e))?;
        Ok(())
    }

    /// The stream of one target. A holder whose lease has run out is none.
    pub async fn wal_stream(&self, target: &TargetName) -> Result<Option<WalStream>, CatalogError> {
        let streams = self.streams(Some(target)).await?;
        Ok(streams.into_iter().next())
    }

    /// Every stream, by target.
    pub async fn wal_streams(&self) -> Result<Vec<WalStream>, CatalogError> {
        self.streams(None).await
    }

    async fn streams(&self, target: Option<&TargetName>) -> Result<Vec<WalStream>, CatalogError> {
        let rows = sqlx::query(
            "SELECT target_identifier, vault_id, system_identifier, slot,
                 CASE WHEN lease_until >= now() THEN holder END AS holder, timeline, received_to::text, server_time,
                 behind_bytes, last_error, updated_at, progressed_at,
                 (lease_until >= now() AND progressed_claim = claim) IS TRUE AS progressed_in_claim
             FROM wal_streams WHERE $1::text IS NULL OR target_identifier = $1 ORDER BY target_identifier",
        )
        .bind(target.map(TargetName::as_str))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("read a stream of WAL", e))?;
        rows.iter().map(stream_of).collect()
    }
}

fn stream_of(row: &PgRow) -> Result<WalStream, CatalogError> {
    let system: Option<String> = column(row, "system_identifier")?;
    let timeline: Option<i64> = column(row, "timeline")?;
    let received_to: Option<String> = column(row, "received_to")?;
    Ok(WalStream {
        target: parsed(row, "target_identifier")?,
        vault: VaultId::from_uuid(column(row, "vault_id")?),
        view: WalStreamView {
            system_identifier: system
                .map(|text| text.parse().map_err(|e| CatalogError::decode("system_identifier", e)))
                .transpose()?,
            slot: column(row, "slot")?,
            holder: column(row, "holder")?,
            timeline: timeline
                .map(|number| u32::try_from(number).map_err(|e| CatalogError::decode("timeline", e)))
                .transpose()?,
            received_to: received_to
                .map(|text| text.parse().map_err(|e| CatalogError::decode("received_to", e)))
                .transpose()?,
            server_time: column(row, "server_time")?,
            behind_bytes: bytes_of(row, "behind_bytes")?,
            last_error: column(row, "last_error")?,
            updated_at: column(row, "updated_at")?,
        },
        progressed_at: column(row, "progressed_at")?,
        progressed_in_claim: column(row, "progressed_in_claim")?,
    })
}
