//! Tells the catalog of WAL that was pushed: for windows, and for alerts. The vault is the truth; this is best effort.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use strongroom_catalog::Catalog;
use strongroom_connectors::postgres::wal::Pushed;
use strongroom_proto::wal::{WalPiece, WalRange};
use strongroom_proto::{TargetName, VaultId};
use strongroom_vault::Secret;

/// How long Postgres may be kept waiting for its next file because of this.
const PATIENCE: Duration = Duration::from_secs(2);
/// The subject of alerts about WAL that contradicts what the vault has.
const ALERT: &str = "wal_two_versions";

pub(super) async fn tell(
    catalog: &Secret,
    target: Option<&TargetName>,
    vault: VaultId,
    pushed: &Pushed,
    warning: Option<&str>,
) -> anyhow::Result<()> {
    if matches!(pushed, Pushed::Ignored) {
        return Ok(());
    }
    let told = tokio::time::timeout(PATIENCE, async {
        let catalog = Catalog::connect(catalog.expose(), 1).await?;
        match pushed {
            Pushed::Stored(piece) | Pushed::AlreadyThere(piece) | Pushed::StoredBeside { piece, .. } => {
                let range = range(piece, Utc::now());
                catalog.add_wal(vault, piece.system_identifier, &range).await?;
            }
            Pushed::StoredHistory { system, history } => {
                catalog.add_wal_history(vault, *system, history).await?;
            }
            // Nothing can be recovered over it until somebody has looked.
            Pushed::StoredApart { .. } | Pushed::Ignored => {}
        }
        if let (Some(target), Some(warning)) = (target, warning) {
            catalog.raise_alert(target, ALERT, warning).await?;
        }
        anyhow::Ok(())
    });
    told.await.context("the catalog did not answer in time")?
}

/// What a piece is in the catalog.
fn range(piece: &WalPiece, now: DateTime<Utc>) -> WalRange {
    let time = piece.server_time.unwrap_or(now);
    WalRange {
        timeline: piece.timeline,
        from: piece.from,
        to: piece.to,
        first_time: time,
        last_time: time,
    }
}
