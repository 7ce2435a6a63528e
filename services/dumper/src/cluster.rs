//! Base backups of whole clusters. One is complete only when the vault holds the WAL from its start to its stop.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use strongroom_catalog::{Catalog, CatalogError, ClaimedJob};
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

use crate::received::UNTIL_NEXT_BASE;

/// How long a backup waits for the WAL that it needs, and before it begins for somebody to receive it.
const WAL_WITHIN: Duration = Duration::from_secs(300);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Takes base backups.
#[derive(Clone)]
pub(crate) struct Clusters {
    catalog: Catalog,
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
    pub(crate) fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
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
            want: match job.backup_type {
                BackupType::Incremental | BackupType::Differential if !needs_full => Want::IncrementalIfPossible,
                _ => Want::Full,
            },
            runtime: Handle::current(),
        };
        writing
            .back_up(job, context, description, move |sink, context| {
                taking.take(&cluster, sink, context)
            })
            .await
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
                || self.is_received(),
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
            "its WAL from {} to {} is not in the vault",
            facts.start_lsn, facts.stop_lsn
        );
        self.wait_for(&missing, advice, context, || self.has_wal(facts))?;
        for kind in UNTIL_NEXT_BASE {
            let cleared = self.clusters.catalog.clear_alert(&self.target, kind);
            if let Err(error) = self.runtime.block_on(cleared) {
                tracing::info!(target = %self.target, kind, error = %one_line(&error), "an alert could not be cleared");
            }
        }
        Ok(Taken {
            facts: backup.facts,
            missing: Vec::new(),
            notes: backup.notes,
        })
    }

    /// Whether the WAL of the target is being received.
    fn is_received(&self) -> Result<bool, CatalogError> {
        let stream = self.runtime.block_on(self.clusters.catalog.wal_stream(&self.target))?;
        Ok(stream.is_some_and(|stream| stream.view.holder.is_some() && stream.view.received_to.is_some()))
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

    fn wait_for(
        &self,
        missing: &str,
        advice: &str,
        context: &AttemptContext,
        mut is_there: impl FnMut() -> Result<bool, CatalogError>,
    ) -> Result<(), TakeError> {
        let until = Instant::now() + WAL_WITHIN;
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
                    "the base backup of {} is not complete: {missing} after {} s; {advice}",
                    self.target,
                    WAL_WITHIN.as_secs()
                )));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
