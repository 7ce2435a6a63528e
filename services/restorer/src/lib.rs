//! The restorer: backups into real destinations. It holds the identity.
//!
//! A destination that is not empty is refused unless the request says in writing why it may be written over; the
//! audit log keeps the reason.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cluster;
mod database;
mod params;
mod sizes;
mod tree;

use std::sync::Arc;

use chrono::Utc;
use strongroom_catalog::{Catalog, ClaimedJob, FinishedRestore};
use strongroom_connectors::files::{self, Lacks};
use strongroom_connectors::postgres::{self, DrillConfig};
use strongroom_connectors::{Stop, StreamsAsFiles};
use strongroom_proto::TargetKind;
use strongroom_proto::api::without_password;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::{Check, CheckOutcome, Missing, RESTORE_RECEIPT_SCHEMA, RestoreReceipt};
use strongroom_proto::restore::RestoreChanges;
use strongroom_proto::subjects::WorkService;
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{Loaded, TargetBook};
use strongroom_vault::{BackupReader, CommitError, Identity};
use strongroom_worker::{
    AttemptContext, JobHandler, Outcome, Service, Vaulted, WatchedSource, failed, identity, software,
};
use tokio_util::sync::CancellationToken;

use params::Params;

/// Runs the restorer until `shutdown`.
pub async fn run(loaded: Loaded, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = &loaded.config;
    let service = Service::connect(&loaded, WorkService::Restore).await?;
    let restorer = Restorer {
        targets: service.targets.clone(),
        catalog: service.catalog.clone(),
        fetching: cluster::Fetching::of(config)?,
        vaulted: Vaulted::open(config, "restorer").await?,
        identity: Arc::new(identity(config)?),
        drill: DrillConfig {
            scratch_dir: config.worker.scratch_dir.clone().unwrap_or_else(std::env::temp_dir),
            bin_dirs: config.worker.pg_bin_dirs.clone(),
        },
    };
    service.work(restorer, shutdown).await;
    Ok(())
}

struct Restorer {
    targets: TargetBook,
    catalog: Catalog,
    vaulted: Vaulted,
    identity: Arc<Identity>,
    drill: DrillConfig,
    /// How a server that is started later gets its WAL.
    fetching: cluster::Fetching,
}

struct Restored {
    bytes: u64,
    checks: Vec<Check>,
    notes: String,
    /// For a tree of files, and for a database or a cluster on trial.
    changes: Option<RestoreChanges>,
    /// What could not be restored, whole or in part.
    skipped: Vec<Missing>,
}

impl Restored {
    /// Nothing: only what would change was looked for.
    fn on_trial(changes: RestoreChanges) -> Self {
        Self {
            bytes: 0,
            checks: Vec::new(),
            notes: String::new(),
            changes: Some(RestoreChanges {
                dry_run: true,
                ..changes
            }),
            skipped: Vec::new(),
        }
    }
}

/// What a backup holds.
enum What {
    /// What its kind of target is restored from.
    Entries(TargetKind),
    /// The files of a whole cluster.
    Cluster(Box<cluster::Physical>),
}

struct RestoreFailed {
    message: String,
    retryable: bool,
}

impl JobHandler for Restorer {
    async fn handle(&self, job: ClaimedJob, context: AttemptContext) -> Outcome {
        let mut params: Params = match serde_json::from_value(job.params.clone()) {
            Ok(params) => params,
            Err(error) => return Outcome::Failed(format!("the restore's parameters are not understood: {error}")),
        };
        // An earlier attempt may have done everything and died before the catalog knew.
        match self.vaulted.vault.restore(&job.backup_id, job.id).await {
            Ok(None) => {}
            Ok(Some((receipt, sha256))) => return Outcome::Restore(Box::new(FinishedRestore { receipt, sha256 })),
            Err(error) => return failed(error.is_retryable(), one_line(&error)),
        }
        let vault = &self.vaulted.vault;
        let backup = match vault.receipt(&job.backup_id).await {
            Ok(Some(found)) => found.receipt,
            Ok(None) => {
                return Outcome::Failed(format!(
                    "backup {} has no receipt in the vault {}",
                    job.backup_id,
                    vault.url()
                ));
            }
            Err(error) => return failed(error.is_retryable(), one_line(&error)),
        };
        if params.writes_everything() {
            context.progress.expect(backup.totals.content_bytes);
        }
        let destination = match params.destination(&job, &backup, self.targets.get(&job.target)) {
            Ok(destination) => destination,
            Err(reason) => return Outcome::Failed(reason),
        };
        params.backup_began = Params::began_at(&backup.source, &destination);
        params.destination = without_password(&destination);
        // What is there is written over only for a backup whose every object is as it was stored. In place, each file
        // takes the place of another only when it has been found to be whole.
        if params.overwrite_reason.is_some() && !params.dry_run {
            match vault.check(&job.backup_id).await {
                Ok(report) if report.is_sound() => {}
                Ok(report) => {
                    let damage: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
                    return Outcome::Failed(format!(
                        "the backup is damaged, nothing was restored: {}",
                        damage.join("; ")
                    ));
                }
                Err(error) => return failed(error.is_retryable(), one_line(&error)),
            }
        }
        let reader = match vault.open_backup(&job.backup_id, &self.identity).await {
            Ok(reader) => reader,
            Err(error) => return failed(error.is_retryable(), one_line(&error)),
        };
        let mut physical = backup.source.cluster.clone().map(|facts| {
            let source = Arc::new(vault.wal_reader(self.identity.clone()));
            Box::new(cluster::Physical::new(facts, source, self.fetching.clone(), job.id))
        });
        if let Some(physical) = physical.as_mut().filter(|_| params.dry_run) {
            physical.drilled = match self.catalog.newest_drill(&job.backup_id).await {
                Ok(drill) => drill.filter(|drill| drill.passed).and_then(|drill| drill.tables),
                Err(error) => return failed(true, one_line(&error)),
            };
        }
        let restored = tokio::task::spawn_blocking({
            let (drill, context, params, kind) = (self.drill.clone(), context.clone(), params.clone(), job.target_kind);
            let second_attempt = job.retry_count > 0;
            let span = tracing::Span::current();
            let what = physical.map_or(What::Entries(kind), What::Cluster);
            move || span.in_scope(|| restore(&reader, &what, &destination, &params, second_attempt, &drill, &context))
        });
        let restored = match restored.await {
            Ok(Ok(restored)) => restored,
            // What a stopped restore has put in place stays; the next attempt finds the destination not empty and says so.
            Ok(Err(_)) if context.stop().is_cancelled() => return Outcome::Stopped,
            Ok(Err(error)) => return failed(error.retryable, error.message),
            Err(panic) => return Outcome::Failed(format!("the restore panicked: {panic}")),
        };
        if let Some(bad) = restored
            .checks
            .iter()
            .find(|check| check.outcome == CheckOutcome::Failed)
        {
            return Outcome::Failed(format!(
                "what was restored is not what was backed up: {}: {}",
                bad.name, bad.detail
            ));
        }
        if params.dry_run {
            return Outcome::DryRun(Box::new(restored.changes.unwrap_or_default()));
        }
        if !context.holds_lease(&job).await {
            return Outcome::Stopped;
        }
        self.commit(&job, params, restored).await
    }
}

impl Restorer {
    async fn commit(&self, job: &ClaimedJob, params: Params, restored: Restored) -> Outcome {
        let receipt = RestoreReceipt {
            schema: RESTORE_RECEIPT_SCHEMA.to_owned(),
            job_id: job.id,
            attempt: job.attempt,
            backup_id: job.backup_id.clone(),
            target: job.target.clone(),
            destination: params.destination,
            started_at: job.started_at,
            completed_at: Utc::now(),
            success: true,
            restored_bytes: restored.bytes,
            selected: params.selected,
            changes: restored.changes.map(|changes| changes.counts),
            skipped: restored.skipped,
            checks: restored.checks,
            operator: job.operator.clone(),
            software: software(),
            notes: restored.notes,
        };
        match self.vaulted.vault.put_restore(&receipt, &self.vaulted.signer).await {
            Ok(sha256) => Outcome::Restore(Box::new(FinishedRestore { receipt, sha256 })),
            Err(error @ CommitError::AlreadyExists { .. }) => Outcome::Failed(one_line(&error)),
            Err(error) => failed(error.is_retryable(), one_line(&error)),
        }
    }
}

fn restore(
    reader: &BackupReader,
    what: &What,
    destination: &str,
    params: &Params,
    second_attempt: bool,
    drill: &DrillConfig,
    context: &AttemptContext,
) -> Result<Restored, RestoreFailed> {
    let source = WatchedSource::new(reader, context);
    let stop = Stop::default();
    let _watch = context.on_stop({
        let stop = stop.clone();
        move || stop.stop()
    });
    stop.run(|| {
        if params.verify_before_restore {
            match what {
                What::Cluster(physical) => passed(physical.drill(&source, drill)?)?,
                What::Entries(kind) => verify_first(&source, *kind, drill)?,
            }
        }
        match what {
            What::Cluster(physical) => physical.restore(&source, destination, params, drill),
            What::Entries(kind) => {
                let receipt = &reader.receipt().receipt;
                let lacks = Lacks::of(&receipt.missing, &receipt.source);
                restore_into(&source, *kind, &lacks, destination, params, drill, context)
            }
        }
    })
    .map_err(|mut error| {
        if second_attempt && !error.retryable && params.needs_empty_destination() {
            error
                .message
                .push_str("; an earlier attempt of this restore may have begun: look at the destination");
        }
        error
    })
}

fn restore_into(
    source: &dyn EntrySource,
    kind: TargetKind,
    lacks: &Lacks,
    destination: &str,
    params: &Params,
    drill: &DrillConfig,
    context: &AttemptContext,
) -> Result<Restored, RestoreFailed> {
    match kind {
        TargetKind::Postgres => database::restore(source, destination, params, drill),
        TargetKind::Files => tree::restore(source, lacks, destination, params, context),
        TargetKind::Command => tree::restore(&StreamsAsFiles(source), lacks, destination, params, context),
        TargetKind::Bucket | TargetKind::Config => Err(RestoreFailed {
            message: format!("backups of kind {kind} cannot be restored by this version: upgrade the restorer"),
            retryable: false,
        }),
    }
}

/// Restores into scratch space first, and goes on only when everything passes.
fn verify_first(source: &dyn EntrySource, kind: TargetKind, drill: &DrillConfig) -> Result<(), RestoreFailed> {
    let checks = match kind {
        TargetKind::Postgres => postgres::drill(source, drill).map_err(|error| RestoreFailed {
            message: one_line(&error),
            retryable: error.is_retryable(),
        })?,
        TargetKind::Files | TargetKind::Command => {
            let output = StreamsAsFiles(source);
            let source: &dyn EntrySource = if kind == TargetKind::Command { &output } else { source };
            let scratch = std::fs::create_dir_all(&drill.scratch_dir)
                .and_then(|()| tempfile::Builder::new().prefix("drill-").tempdir_in(&drill.scratch_dir))
                .map_err(|error| RestoreFailed {
                    message: format!("make a scratch folder: {error}"),
                    retryable: true,
                })?;
            files::drill_files(source, scratch.path()).map_err(|error| RestoreFailed {
                message: one_line(&error),
                retryable: true,
            })?
        }
        // The restore itself says that this version cannot.
        TargetKind::Bucket | TargetKind::Config => return Ok(()),
    };
    passed(checks)
}

fn passed(checks: Vec<Check>) -> Result<(), RestoreFailed> {
    match checks.iter().find(|check| check.outcome != CheckOutcome::Passed) {
        None => Ok(()),
        Some(check) => Err(RestoreFailed {
            message: format!(
                "the backup did not pass its verification, nothing was restored: {}: {}",
                check.name, check.detail
            ),
            retryable: false,
        }),
    }
}
