//! Tells the catalog of WAL that was pushed: for windows, and for alerts. The vault is the truth; this is best effort.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use strongroom_catalog::Catalog;
use strongroom_connectors::postgres::wal::{HistoryBefore, Pushed};
use strongroom_proto::wal::{WalPiece, WalRange};
use strongroom_proto::{TargetName, VaultId};
use strongroom_vault::Secret;

/// How long Postgres may be kept waiting for its next file because of this.
const PATIENCE: Duration = Duration::from_secs(2);
/// The subject of alerts about WAL that contradicts what the vault has.
const TWO_VERSIONS: &str = "wal_two_versions";
/// The subject of alerts about histories that contradict one another.
const TWO_HISTORIES: &str = "wal_two_histories";

/// What to say of a timeline that has two histories.
pub(super) fn two_histories(timeline: u32) -> String {
    format!(
        "two servers of this cluster went on upon timeline {timeline}, from different places: what was stored now differs from the \
         history that was known. Both are kept, and nothing can be recovered over that timeline until one is moved away: stop \
         the server that should not run"
    )
}

/// Tells the catalog, and raises an alert where there is a `warning`, or where the catalog shows that there should be one; that
/// is returned.
pub(super) async fn tell(
    catalog: &Secret,
    target: Option<&TargetName>,
    vault: VaultId,
    pushed: &Pushed,
    warning: Option<&str>,
) -> anyhow::Result<Option<String>> {
    if matches!(pushed, Pushed::Ignored) {
        return Ok(None);
    }
    let told = tokio::time::timeout(PATIENCE, async {
        let catalog = Catalog::connect(catalog.expose(), 1).await?;
        match pushed {
            Pushed::Stored(piece) | Pushed::AlreadyThere(piece) | Pushed::StoredBeside { piece, .. } => {
                let range = range(piece, Utc::now());
                catalog.add_wal(vault, piece.system_identifier, &range).await?;
            }
            Pushed::StoredHistory {
                system,
                history,
                before,
            } => {
                let known = catalog.wal_histories(vault, *system).await?;
                let known = known.into_iter().find(|known| known.timeline == history.timeline);
                let is_known = known.as_ref() == Some(history);
                let is_another = match before {
                    // Nothing can be recovered over it until somebody has looked.
                    HistoryBefore::Another => false,
                    HistoryBefore::None | HistoryBefore::Same | HistoryBefore::Unknown => {
                        catalog.add_wal_history(vault, *system, history).await? != *history
                    }
                };
                let found = is_another.then(|| two_histories(history.timeline));
                let warning = match before {
                    // It was handed over before.
                    HistoryBefore::Unknown if is_known => None,
                    _ => found.as_deref().or(warning),
                };
                if let (Some(target), Some(warning)) = (target, warning) {
                    catalog.raise_alert(target, TWO_HISTORIES, warning).await?;
                }
                return Ok(found);
            }
            // Nothing can be recovered over it until somebody has looked.
            Pushed::StoredApart { .. } | Pushed::Ignored => {}
        }
        if let (Some(target), Some(warning)) = (target, warning) {
            catalog.raise_alert(target, TWO_VERSIONS, warning).await?;
        }
        Ok(None)
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
