//! One attempt of a backup, whatever its source: writer, receipt, commit.
//!
//! The receipt is create-if-absent and written last. An attempt that finds another's receipt adopts it: the backup
//! exists, and there is one of it.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::Utc;
use strongroom_catalog::{Catalog, ClaimedJob, FinishedBackup};
use strongroom_proto::manifest::BackupSink;
use strongroom_proto::receipt::{
    BACKUP_RECEIPT_SCHEMA, BackupReceipt, Git, Integrity, Method, Missing, ReceiptStatus, SourceFacts,
};
use strongroom_proto::{TargetKind, VaultId};
use strongroom_runtime::Config;
use strongroom_runtime::entry::one_line;
use strongroom_vault::{BackupWriter, ChunkIndex, Committed, CommittedReceipt, Sealed, WalWriter, WriterKey};

use crate::chunks::CatalogChunks;
use crate::{AttemptContext, Outcome, Vaulted, WatchedSink, writer_key};

/// What a service that writes backups holds: the vault, the writer key, its signature. No identity.
#[derive(Clone)]
pub struct Writing {
    vaulted: Vaulted,
    writer_key: Arc<WriterKey>,
    index: Arc<ChunkIndex>,
    cache_dir: PathBuf,
    environment: String,
    git: Option<Git>,
}

/// How the receipt describes a backup.
#[derive(Debug, Clone)]
pub struct Description {
    /// The surface label of the target.
    pub surface: String,
    /// How its data is taken.
    pub method: Method,
    /// How hard zstd tries, where the target says.
    pub zstd_level: Option<i32>,
}

/// What a source has given.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// Versions and counts.
    pub facts: SourceFacts,
    /// What is not in the backup, and why.
    pub missing: Vec<Missing>,
    /// What a person should know of it, for the receipt.
    pub notes: Vec<String>,
}

/// A source that could not give everything.
#[derive(Debug, Clone)]
pub struct TakeError {
    /// Why, in plain words, with what to do.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

impl Writing {
    /// Opens the vault for writing; chunks are looked up in the catalog.
    pub async fn open(config: &Config, principal: &str, catalog: &Catalog) -> anyhow::Result<Self> {
        let vaulted = Vaulted::open(config, principal).await?;
        let writer_key = Arc::new(writer_key(config)?);
        let chunks = Arc::new(CatalogChunks(catalog.clone()));
        let index = Arc::new(ChunkIndex::in_table(&vaulted.vault, &writer_key, chunks));
        let git = config.git.as_ref().map(|git| Git {
            repo: git.repo.clone(),
            sha: git.sha.clone(),
            change_ticket: git.change_ticket.clone(),
        });
        Ok(Self {
            vaulted,
            writer_key,
            index,
            cache_dir: config.cache_dir.clone(),
            environment: config.environment.clone(),
            git,
        })
    }

    /// The vault that is written to.
    pub fn vault_id(&self) -> VaultId {
        self.vaulted.vault.id()
    }

    /// A writer of WAL into the same vault.
    pub fn wal_writer(&self) -> WalWriter {
        let (key, signer) = (self.writer_key.as_ref().clone(), self.vaulted.signer.as_ref().clone());
        self.vaulted.vault.wal_writer(key, signer)
    }

    /// Does one attempt of a backup. `take` reads the source into the sink, on a thread of its own.
    pub async fn back_up<T>(
        &self,
        job: &ClaimedJob,
        context: &AttemptContext,
        description: Description,
        take: T,
    ) -> Outcome
    where
        T: FnOnce(&mut dyn BackupSink, &AttemptContext) -> Result<Taken, TakeError> + Send + 'static,
    {
        match self.vaulted.vault.receipt(&job.backup_id).await {
            Ok(None) => {}
            Ok(Some(found)) => {
                tracing::info!(attempt = %found.receipt.attempt, "an earlier attempt left its receipt; adopting it");
                return self.finished(found);
            }
            Err(error) => return failed(error.is_retryable(), one_line(&error)),
        }
        if let Err(error) = self.index.refresh().await {
            return failed(error.is_retryable(), one_line(&error));
        }
        let written = tokio::task::spawn_blocking({
            let (writing, job, context, written) = (self.clone(), job.clone(), context.clone(), description.clone());
            let runtime = tokio::runtime::Handle::current();
            let span = tracing::Span::current();
            move || span.in_scope(|| writing.write(&job, &context, &written, runtime, take))
        });
        let (sealed, taken) = match written.await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) if context.stop().is_cancelled() => return Outcome::Stopped,
            Ok(Err(error)) => return failed(error.retryable, error.message),
            Err(panic) => return Outcome::Retry(format!("reading the source panicked: {panic}")),
        };
        if !context.holds_lease(job).await {
            return Outcome::Stopped;
        }
        let receipt = self.receipt(job, &description, sealed, taken);
        match self.vaulted.vault.commit(&receipt, &self.vaulted.signer).await {
            Ok(Committed::Ours(committed)) => self.finished(committed),
            Ok(Committed::Theirs(committed)) => {
                tracing::info!(attempt = %committed.receipt.attempt, "another attempt committed first; adopting its receipt");
                self.finished(committed)
            }
            Err(error) => failed(error.is_retryable(), one_line(&error)),
        }
    }

    fn write<T>(
        &self,
        job: &ClaimedJob,
        context: &AttemptContext,
        description: &Description,
        runtime: tokio::runtime::Handle,
        take: T,
    ) -> Result<(Sealed, Taken), TakeError>
    where
        T: FnOnce(&mut dyn BackupSink, &AttemptContext) -> Result<Taken, TakeError>,
    {
        let writer_failed = |error: strongroom_vault::WriteError| TakeError {
            message: one_line(&error),
            retryable: error.is_retryable(),
        };
        let mut writer = BackupWriter::begin(
            &self.vaulted.vault,
            &self.writer_key,
            self.index.clone(),
            job.backup_id.clone(),
            job.attempt,
            runtime,
        )
        .map_err(writer_failed)?;
        let is_tree = job.target_kind == TargetKind::Files;
        if let Some(level) = description.zstd_level {
            writer = writer.with_zstd_level(level);
        }
        if is_tree || description.method == Method::PhysicalBasebackup {
            let vault = self.vaulted.vault.id();
            // A target's name has no tilde.
            let name = job.target.as_str().replace('/', "~");
            let kind = if is_tree { "files" } else { "pages" };
            let path = self.cache_dir.join(vault.to_string()).join(format!("{name}.{kind}"));
            writer = writer.with_cache(&path, &self.writer_key);
        }
        let taken = take(&mut WatchedSink::new(&mut writer, context), context)?;
        let sealed = writer.finish().map_err(writer_failed)?;
        Ok((sealed, taken))
    }

    fn receipt(&self, job: &ClaimedJob, description: &Description, sealed: Sealed, taken: Taken) -> BackupReceipt {
        let text = |key: &str| {
            job.metadata
                .get(key)
                .and_then(|v| v.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let git = job
            .metadata
            .get("git")
            .and_then(|git| serde_json::from_value::<Git>(git.clone()).ok())
            .or_else(|| self.git.clone());
        BackupReceipt {
            schema: BACKUP_RECEIPT_SCHEMA.to_owned(),
            backup_id: job.backup_id.clone(),
            environment: self.environment.clone(),
            surface: description.surface.clone(),
            method: description.method,
            started_at: job.started_at,
            completed_at: Utc::now(),
            status: if taken.missing.is_empty() {
                ReceiptStatus::Success
            } else {
                ReceiptStatus::Partial
            },
            artifacts: sealed.artifacts,
            integrity: Integrity::UNPROVEN,
            git,
            operator: job.operator.clone(),
            notes: std::iter::once(text("description"))
                .chain(taken.notes)
                .filter(|note| !note.is_empty())
                .collect::<Vec<_>>()
                .join("; "),
            vault_id: self.vaulted.vault.id(),
            job_id: job.id,
            attempt: job.attempt,
            target: job.target.clone(),
            target_kind: job.target_kind,
            backup_type: job.backup_type,
            retention_until: job.retention_until,
            totals: sealed.totals,
            missing: taken.missing,
            software: software(),
            source: taken.facts,
        }
    }

    fn finished(&self, committed: CommittedReceipt) -> Outcome {
        let vault_url = self.vaulted.vault.url().to_owned();
        Outcome::Backup(Box::new(FinishedBackup {
            storage_path: format!(
                "{}/backups/{}/receipt.json",
                vault_url.trim_end_matches('/'),
                committed.receipt.backup_id
            ),
            receipt: committed.receipt,
            sha256: committed.sha256,
            vault_url,
        }))
    }
}

/// The outcome of an error.
pub fn failed(retryable: bool, message: String) -> Outcome {
    if retryable {
        Outcome::Retry(message)
    } else {
        Outcome::Failed(message)
    }
}

/// What receipts name as the software that wrote them.
pub fn software() -> String {
    format!("strongroom {}", env!("CARGO_PKG_VERSION"))
}
