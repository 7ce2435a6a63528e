//! The verifier: tries to restore every backup, and says with evidence whether it does.
//!
//! It holds the identity and scratch space, and no way into the real targets. What it cannot try is not passed.

mod cluster;

use std::path::PathBuf;
use std::sync::Arc;

use chrono::Utc;
use strongroom_catalog::{ClaimedJob, FinishedVerification};
use strongroom_connectors::postgres::recovery::Drilled;
use strongroom_connectors::postgres::{self, DrillConfig};
use strongroom_connectors::{Stop, StreamsAsFiles, files};
use strongroom_proto::TargetKind;
use strongroom_proto::cluster_tables::ClusterTables;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::{
    Check, CheckOutcome, Integrity, VERIFICATION_RECEIPT_SCHEMA, ValidationMethod, VerificationReceipt,
};
use strongroom_proto::subjects::WorkService;
use strongroom_runtime::Loaded;
use strongroom_runtime::entry::one_line;
use strongroom_vault::{BackupReader, CommitError, CommittedReceipt, Identity};
use strongroom_worker::{
    AttemptContext, JobHandler, Outcome, Service, Vaulted, WatchedSource, failed, identity, software,
};
use tokio_util::sync::CancellationToken;

/// Runs the verifier until `shutdown`.
pub async fn run(loaded: Loaded, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = &loaded.config;
    let vaulted = Vaulted::open(config, "verifier").await?;
    let verifier = Verifier {
        vaulted,
        identity: Arc::new(identity(config)?),
        drill: DrillConfig {
            scratch_dir: config.worker.scratch_dir.clone().unwrap_or_else(std::env::temp_dir),
            bin_dirs: config.worker.pg_bin_dirs.clone(),
        },
    };
    let service = Service::connect(&loaded, WorkService::Verify).await?;
    service.work(verifier, shutdown).await;
    Ok(())
}

struct Verifier {
    vaulted: Vaulted,
    identity: Arc<Identity>,
    drill: DrillConfig,
}

/// What a backup holds.
enum What {
    /// What its kind of target is restored from.
    Entries(TargetKind),
    /// The files of a whole cluster.
    Cluster(Box<cluster::Physical>),
}

/// What stands in the way of a verification; the backup is then neither proven nor disproven.
struct CannotTry {
    message: String,
    retryable: bool,
}

impl JobHandler for Verifier {
    async fn handle(&self, job: ClaimedJob, context: AttemptContext) -> Outcome {
        let vault = &self.vaulted.vault;
        let committed = match vault.receipt(&job.backup_id).await {
            Ok(Some(committed)) => committed,
            Ok(None) => {
                return Outcome::Failed(format!(
                    "backup {} has no receipt in the vault {}: it was removed, or this is another vault",
                    job.backup_id,
                    vault.url()
                ));
            }
            Err(error) => return failed(error.is_retryable(), one_line(&error)),
        };
        context.progress.expect(committed.receipt.totals.content_bytes);
        let mut checks = match self.stored_objects(&job).await {
            Ok(check) => vec![check],
            Err(error) => return failed(error.retryable, error.message),
        };
        let mut tables = None;
        // A vault that is damaged is not restored from: what is damaged is named instead.
        if checks.iter().all(|check| check.outcome == CheckOutcome::Passed) {
            match self.try_restore(&job, &committed, &context).await {
                Ok(drilled) => {
                    checks.extend(drilled.checks);
                    tables = drilled.tables;
                }
                Err(_) if context.stop().is_cancelled() => return Outcome::Stopped,
                Err(error) => return failed(error.retryable, error.message),
            }
        }
        if context.stop().is_cancelled() || !context.holds_lease(&job).await {
            return Outcome::Stopped;
        }
        self.commit(&job, &committed, checks, tables).await
    }
}

impl Verifier {
    /// Every object the backup needs, against its digest.
    async fn stored_objects(&self, job: &ClaimedJob) -> Result<Check, CannotTry> {
        let report = self
            .vaulted
            .vault
            .check(&job.backup_id)
            .await
            .map_err(|error| CannotTry {
                message: one_line(&error),
                retryable: error.is_retryable(),
            })?;
        let damaged: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
        Ok(Check {
            name: "stored objects".to_owned(),
            outcome: if damaged.is_empty() {
                CheckOutcome::Passed
            } else {
                CheckOutcome::Failed
            },
            detail: if damaged.is_empty() {
                format!(
                    "{} objects, {} bytes, each as its digest says",
                    report.objects, report.bytes
                )
            } else {
                damaged.join("; ")
            },
        })
    }

    async fn try_restore(
        &self,
        job: &ClaimedJob,
        committed: &CommittedReceipt,
        context: &AttemptContext,
    ) -> Result<Drilled, CannotTry> {
        let reader = match self.vaulted.vault.open_backup(&job.backup_id, &self.identity).await {
            Ok(reader) => reader,
            Err(error) if error.is_retryable() => {
                return Err(CannotTry {
                    message: one_line(&error),
                    retryable: true,
                });
            }
            Err(error) => return Ok(without_tables(vec![unreadable(&error)])),
        };
        let what = match &committed.receipt.source.cluster {
            None => What::Entries(job.target_kind),
            Some(facts) => {
                let source = Arc::new(self.vaulted.vault.wal_reader(self.identity.clone()));
                What::Cluster(Box::new(cluster::Physical::new(facts.clone(), source)))
            }
        };
        let (drill, context) = (self.drill.clone(), context.clone());
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(|| restore_and_compare(&reader, &what, &drill, &context)))
            .await
            .map_err(|panic| CannotTry {
                message: format!("the drill panicked: {panic}"),
                retryable: true,
            })?
    }

    async fn commit(
        &self,
        job: &ClaimedJob,
        committed: &CommittedReceipt,
        checks: Vec<Check>,
        tables: Option<ClusterTables>,
    ) -> Outcome {
        // Skipped is not passed, and no check proves nothing.
        let validated = !checks.is_empty() && checks.iter().all(|check| check.outcome == CheckOutcome::Passed);
        let now = Utc::now();
        let receipt = VerificationReceipt {
            schema: VERIFICATION_RECEIPT_SCHEMA.to_owned(),
            job_id: job.id,
            attempt: job.attempt,
            backup_id: job.backup_id.clone(),
            backup_receipt_sha256: committed.sha256,
            target: job.target.clone(),
            started_at: job.started_at,
            completed_at: now,
            integrity: Integrity {
                validated,
                validation_method: validated.then_some(ValidationMethod::FullRestoreTest),
                validated_at: validated.then_some(now),
            },
            checks,
            operator: job.operator.clone(),
            software: software(),
            notes: String::new(),
        };
        match self
            .vaulted
            .vault
            .put_verification(&receipt, &self.vaulted.signer)
            .await
        {
            Ok(sha256) => Outcome::Verification(Box::new(FinishedVerification {
                receipt,
                sha256,
                tables,
            })),
            Err(CommitError::AlreadyExists { .. }) => self.adopt(job, tables).await,
            Err(error) => failed(error.is_retryable(), one_line(&error)),
        }
    }

    /// An earlier attempt left its receipt and died before the catalog knew: its finding stands. What this one counted is the
    /// same.
    async fn adopt(&self, job: &ClaimedJob, tables: Option<ClusterTables>) -> Outcome {
        match self.vaulted.vault.verification(&job.backup_id, job.id).await {
            Ok(Some((receipt, sha256))) => Outcome::Verification(Box::new(FinishedVerification {
                receipt,
                sha256,
                tables,
            })),
            Ok(None) => Outcome::Retry("the verification receipt of an earlier attempt is gone again".to_owned()),
            Err(error) => failed(error.is_retryable(), one_line(&error)),
        }
    }
}

fn restore_and_compare(
    reader: &BackupReader,
    what: &What,
    drill: &DrillConfig,
    context: &AttemptContext,
) -> Result<Drilled, CannotTry> {
    let source = WatchedSource::new(reader, context);
    let stop = Stop::default();
    let _watch = context.on_stop({
        let stop = stop.clone();
        move || stop.stop()
    });
    let kind = match what {
        What::Cluster(physical) => return stop.run(|| physical.drill(&source, drill)),
        What::Entries(kind) => *kind,
    };
    let checks = match kind {
        TargetKind::Postgres => stop.run(|| postgres::drill(&source, drill)).map_err(|error| CannotTry {
            message: one_line(&error),
            retryable: error.is_retryable(),
        }),
        TargetKind::Files | TargetKind::Command => {
            let scratch = tempfile_in(&drill.scratch_dir)?;
            let output = StreamsAsFiles(&source);
            let source: &dyn EntrySource = if kind == TargetKind::Command { &output } else { &source };
            files::drill_files(source, scratch.path()).map_err(|error| CannotTry {
                message: one_line(&error),
                retryable: true,
            })
        }
        TargetKind::Bucket | TargetKind::Config => Err(CannotTry {
            message: format!("backups of kind {kind} cannot be verified by this version: upgrade the verifier"),
            retryable: false,
        }),
    };
    checks.map(without_tables)
}

/// Of what is no whole cluster.
fn without_tables(checks: Vec<Check>) -> Drilled {
    Drilled { checks, tables: None }
}

fn tempfile_in(dir: &PathBuf) -> Result<tempfile::TempDir, CannotTry> {
    let made = std::fs::create_dir_all(dir).and_then(|()| tempfile::Builder::new().prefix("drill-").tempdir_in(dir));
    made.map_err(|error| CannotTry {
        message: format!("make a scratch folder in {}: {error}", dir.display()),
        retryable: true,
    })
}

fn unreadable(error: &strongroom_vault::ReadError) -> Check {
    Check {
        name: "restore".to_owned(),
        outcome: CheckOutcome::Failed,
        detail: one_line(error),
    }
}
