//! Base backups of whole clusters. One is complete only when the vault holds the WAL from its start to its stop.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use strongroom_catalog::{Catalog, CatalogError, ClaimedJob, WalStream};
use strongroom_connectors::Stop;
use strongroom_connectors::postgres::physical::{self, BaseBackupError, ClusterTarget, Want};
use strongroom_proto::manifest::BackupSink;
use strongroom_proto::receipt::Method;
use strongroom_proto::wal::ClusterFacts;
use strongroom_proto::{BackupType, TargetName, VaultId};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{TargetConfig, WalTransport};
use strongroom_worker::{AttemptContext, Description, Outcome, TakeError, Taken, Writing};
use tokio::runtime::Handle;

use crate::pushed::{LookError, PushedWal};
use crate::received::UNTIL_NEXT_BASE;

/// How long a backup waits for the WAL that it needs, and before it begins for somebody to receive it; and at least so long
/// after WAL has to be stored, for what failed before is over only then.
const WAL_WITHIN: Duration = Duration::from_secs(300);
const WAL_AFTER_INTERVAL: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it looks into the vault, for WAL that nobody may tell the catalog of.
const LOOK_INTO_VAULT_EVERY: Duration = Duration::from_secs(2);

/// Takes base backups.
#[derive(Clone)]
pub(crate) struct Clusters {
    catalog: Catalog,
    pushed: PushedWal,
    /// Targets whose next backup reads everything, because an incremental one turned out not to be possible.
    need_full: Arc<Mutex<HashSet<TargetName>>>,
}

/// The cluster that a target is.
pub(crate) fn cluster(name: &TargetName, target: &TargetConfig) -> anyhow::Result<ClusterTarget> {
    let url = target
        .connection_url()?
        .ok_or_else(|| anyhow::anyhow!("the target has no url"))?;
    let mut cluster = ClusterTarget::new(url.expose().parse()?);
    if target.wal_transport() == WalTransport::Stream {
        cluster.slot = target.slot_name(name);
    }
    cluster.rate_bytes_per_second = target.max_rate_bytes;
    Ok(cluster)
}

impl Clusters {
    pub(crate) fn new(catalog: Catalog, pushed: PushedWal) -> Self {
        Self {
            catalog,
            pushed,
            need_full: Arc::default(),
        }
    }

    pub(crate) async fn back_up(
        &self,
        writing: &Writing,
        job: &ClaimedJob,
        context: &AttemptContext,
        target: &TargetConfig,
    ) -> Outcome {
        let cluster = match cluster(&job.target, target) {
            Ok(cluster) => cluster,
            Err(error) => return Outcome::Failed(format!("{error:#}")),
        };
        let description = Description {
            surface: target.surface().to_owned(),
            method: Method::PhysicalBasebackup,
            zstd_level: target.zstd_level,
        };
        let needs_full = self.locked().remove(&job.target);
        let taking = Taking {
            clusters: self.clone(),
            target: job.target.clone(),
            vault: writing.vault_id(),
            transport: target.wal_transport(),
            wal_within: WAL_WITHIN.max(target.wal_interval() + WAL_AFTER_INTERVAL),
            want: match job.backup_type {
                BackupType::Incremental | BackupType::Differential if !needs_full => Want::IncrementalIfPossible,
                _ => Want::Full,
            },
            runtime: Handle::current(),
        };
        let outcome = writing
            .back_up(job, context, description, move |sink, context| {
                taking.take(&cluster, sink, context)
            })
            .await;
        if matches!(outcome, Outcome::Backup(_)) {
            self.clear_until_next_base(&job.target).await;
        }
        outcome
    }

    /// A base backup has its receipt: what was bad until then is over.
    async fn clear_until_next_base(&self, target: &TargetName) {
        for kind in UNTIL_NEXT_BASE {
            if let Err(error) = self.catalog.clear_alert(target, kind).await {
                tracing::info!(%target, kind, error = %one_line(&error), "an alert could not be cleared");
            }
        }
    }

    /// The next backup of the target reads everything: what the last one stored is of another past.
    pub(crate) fn next_is_full(&self, target: &TargetName) {
        self.locked().insert(target.clone());
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashSet<TargetName>> {
        self.need_full.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt, on a thread that may block.
struct Taking {
    clusters: Clusters,
    target: TargetName,
    vault: VaultId,
    transport: WalTransport,
    wal_within: Duration,
    want: Want,
    runtime: Handle,
}

impl Taking {
    fn take(
        &self,
        cluster: &ClusterTarget,
        sink: &mut dyn BackupSink,
        context: &AttemptContext,
    ) -> Result<Taken, TakeError> {
        let stop = Stop::default();
        let _watch = context.on_stop({
            let stop = stop.clone();
            move || stop.stop()
        });
        if self.transport == WalTransport::Stream {
            self.wait_for(
                "nobody receives its WAL",
                "the dumper's log and `strongroom timeline` say why",
                context,
                || Ok(self.is_received()?),
            )?;
        }
        let mut is_expected = false;
        let mut progress = |progress: physical::Progress| {
            if let (Some(bytes), false) = (progress.total_bytes, is_expected) {
                context.progress.expect(bytes);
                is_expected = true;
            }
        };
        let backup = stop
            .run(|| physical::base_backup(cluster, sink, self.want, &mut progress))
            .map_err(|error| {
                if let BaseBackupError::NeedsFull { .. } = &error {
                    self.clusters.locked().insert(self.target.clone());
                }
                TakeError {
                    message: one_line(&error),
                    retryable: error.is_retryable(),
                }
            })?;
        for note in &backup.notes {
            tracing::info!(target = %self.target, note, "base backup");
        }
        let facts = &backup.cluster;
        let advice = match self.transport {
            WalTransport::Stream => "see whether the dumper receives it: `strongroom timeline` says how far it is",
            WalTransport::Push => "see whether the server's archive_command succeeds: its log says why not",
        };
        let missing = format!(
            "its WAL from {} to {} has not come into the vault",
            facts.start_lsn, facts.stop_lsn
        );
        let mut looked = None;
        self.wait_for(&missing, advice, context, || {
            Ok((self.is_followed_to_stop(facts)? && self.has_wal(facts)?) || self.has_pushed(facts, &mut looked)?)
        })?;
        Ok(Taken {
            facts: backup.facts,
            missing: Vec::new(),
            notes: backup.notes,
        })
    }

    /// Whether the WAL of the target is being received.
    fn is_received(&self) -> Result<bool, CatalogError> {
        let stream = self.runtime.block_on(self.clusters.catalog.wal_stream(&self.target))?;
        Ok(stream.is_some_and(|stream| {
            let view = stream.view;
            view.holder.is_some() && view.received_to.is_some() && view.last_error.is_none()
        }))
    }

    /// Whether what is received now is the WAL of this backup: the vault may have other WAL of the same places, of a server
    /// that was set back since. Servers that store their WAL themselves have no stream.
    fn is_followed_to_stop(&self, facts: &ClusterFacts) -> Result<bool, CatalogError> {
        if self.transport == WalTransport::Push {
            return Ok(true);
        }
        let stream = self.runtime.block_on(self.clusters.catalog.wal_stream(&self.target))?;
        Ok(stream.is_some_and(|stream| is_followed_to_stop(&stream, facts)))
    }

    /// Why receiving failed the last time, while nothing has come since.
    fn stream_error(&self) -> Option<String> {
        let stream = self.runtime.block_on(self.clusters.catalog.wal_stream(&self.target));
        stream.ok().flatten().and_then(|stream| stream.view.last_error)
    }

    fn has_wal(&self, facts: &ClusterFacts) -> Result<bool, CatalogError> {
        let catalog = &self.clusters.catalog;
        let ranges = self
            .runtime
            .block_on(catalog.wal_ranges(self.vault, facts.system_identifier))?;
        Ok(ranges.iter().any(|range| {
            range.timeline == facts.timeline && range.from <= facts.start_lsn && range.to >= facts.stop_lsn
        }))
    }

    /// Whether the vault has the WAL, of which the catalog is told then. It is asked every now and then, and only where servers
    /// store WAL themselves: a receiver tells the catalog.
    fn has_pushed(&self, facts: &ClusterFacts, looked: &mut Option<Instant>) -> Result<bool, LookError> {
        if self.transport != WalTransport::Push || looked.is_some_and(|at| at.elapsed() < LOOK_INTO_VAULT_EVERY) {
            return Ok(false);
        }
        let found = self.runtime.block_on(self.clusters.pushed.add_of(facts));
        *looked = Some(Instant::now());
        found
    }

    fn wait_for(
        &self,
        missing: &str,
        advice: &str,
        context: &AttemptContext,
        mut is_there: impl FnMut() -> Result<bool, LookError>,
    ) -> Result<(), TakeError> {
        let until = Instant::now() + self.wal_within;
        loop {
            let retryable = |message| TakeError {
                message,
                retryable: true,
            };
            // A catalog that is away for a moment is no reason to read everything again.
            let away = match is_there() {
                Ok(true) => return Ok(()),
                Ok(false) => None,
                Err(error) => Some(error),
            };
            if context.stop().is_cancelled() {
                return Err(retryable("the base backup was stopped".to_owned()));
            }
            if Instant::now() >= until {
                if let Some(error) = away {
                    return Err(retryable(one_line(&error)));
                }
                return Err(retryable(format!(
                    "the base backup of {} is not complete: {missing} after {} s{}; {advice}",
                    self.target,
                    self.wal_within.as_secs(),
                    self.stream_error()
                        .map(|error| format!(" ({error})"))
                        .unwrap_or_default()
                )));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn is_followed_to_stop(stream: &WalStream, facts: &ClusterFacts) -> bool {
    let view = &stream.view;
    stream.progressed_in_claim
        && view.last_error.is_none()
        && view.system_identifier == Some(facts.system_identifier)
        // Places grow from one timeline to the next.
        && view.timeline.is_some_and(|timeline| timeline >= facts.timeline)
        && view.received_to.is_some_and(|to| to >= facts.stop_lsn)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use strongroom_proto::timeline::WalStreamView;
    use strongroom_proto::wal::{Lsn, SystemIdentifier};

    use super::*;

    #[test]
    fn wal_of_a_backup_counts_where_it_came_from_the_server_that_is_followed_now() {
        let facts = ClusterFacts {
            system_identifier: SystemIdentifier(7),
            timeline: 2,
            start_lsn: Lsn(100),
            stop_lsn: Lsn(200),
            stopped_at: DateTime::UNIX_EPOCH,
            segment_bytes: 1 << 24,
            tablespaces: Vec::new(),
            incremental_from: None,
        };
        let stream = WalStream {
            target: "shop".parse().unwrap(),
            vault: VaultId::fresh(),
            view: WalStreamView {
                system_identifier: Some(SystemIdentifier(7)),
                slot: None,
                holder: Some("w".to_owned()),
                timeline: Some(2),
                received_to: Some(Lsn(200)),
                server_time: None,
                behind_bytes: None,
                last_error: None,
                updated_at: DateTime::UNIX_EPOCH,
            },
            progressed_at: None,
            progressed_in_claim: true,
        };
        assert!(is_followed_to_stop(&stream, &facts));
        let changed = |change: fn(&mut WalStream)| {
            let mut stream = stream.clone();
            change(&mut stream);
            is_followed_to_stop(&stream, &facts)
        };
        assert!(changed(|stream| stream.view.timeline = Some(3)), "promoted since");
        assert!(!changed(|stream| stream.view.timeline = Some(1)));
        // A server that was set back: the vault has WAL of these places, and takes none of its.
        assert!(!changed(
            |stream| stream.view.last_error = Some("the vault has WAL up to there".to_owned())
        ));
        assert!(!changed(|stream| stream.progressed_in_claim = false));
        assert!(!changed(|stream| stream.view.received_to = Some(Lsn(199))));
        assert!(!changed(
            |stream| stream.view.system_identifier = Some(SystemIdentifier(8))
        ));
    }
}
