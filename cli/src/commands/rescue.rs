//! `strongroom rescue`: lists, checks and restores with the vault and an identity alone. No catalog, no NATS, no
//! configuration.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use strongroom_connectors::StreamsAsFiles;
use strongroom_connectors::files::{self, Change, Existing, FilesRestored, Lacks, RestoreOptions, Selection};
use strongroom_proto::manifest::{Entry, EntrySink, EntrySource as _};
use strongroom_proto::receipt::{BackupReceipt, ReceiptStatus};
use strongroom_proto::{BackupId, TargetKind};
use strongroom_vault::{CheckScope, Identity, ReadError, Vault};

use super::entries::{self, Shape};
use super::{Outcome, check};
use crate::render::{self, Tone};
use crate::vault_access::{StoreArgs, find_backup, read_identity};

#[derive(Debug, Args)]
pub(crate) struct RescueArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The identity file: age's, or an SSH private key without a passphrase
    #[arg(long, value_name = "FILE", global = true)]
    identity: Option<PathBuf>,
    /// Believe receipts that these keys signed, instead of those that the vault itself names
    #[arg(long, value_name = "FILE", global = true)]
    allowed_signers: Option<PathBuf>,
    #[command(subcommand)]
    command: RescueCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RescueCommand {
    /// List the backups, or what one of them holds
    Ls(LsArgs),
    /// Read all of a backup, and compare every byte with what was written
    Verify(VerifyArgs),
    /// Restore a backup into a folder: files as they were, streams as plain files
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// The backup's id, or a target's name for its newest one
    #[arg(value_name = "BACKUP")]
    backup: Option<String>,
    /// Only what lies at or below this path
    #[arg(value_name = "PATH", requires = "backup")]
    path: Option<String>,
    /// Show modes, owners and times too
    #[arg(long)]
    long: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The backup's id, or a target's name for its newest one
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The backup's id, or a target's name for its newest one
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// The folder to restore into; it must be empty or missing
    #[arg(long, value_name = "DIR")]
    destination: PathBuf,
    /// Only what lies at or below this path; may be repeated
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
    /// Only what this pattern matches, written as in .gitignore; may be repeated
    #[arg(long = "include", value_name = "PATTERN")]
    include: Vec<String>,
    /// Write only what differs from the backup into a folder that is not empty: to go on after an interruption. Files of the
    /// same length are read and compared
    #[arg(long)]
    in_place: bool,
}

pub(crate) async fn run(args: RescueArgs) -> anyhow::Result<Outcome> {
    let mut vault = args.store.open_named().await?;
    if let Some(path) = &args.allowed_signers {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        vault = vault.trusting(&text)?;
        note(&format!("signatures are checked against {}", path.display()));
    } else {
        note("signatures are checked against the signers that the vault itself names (--allowed-signers names others)");
    }
    let identity = || -> anyhow::Result<Identity> {
        let path = args
            .identity
            .as_ref()
            .context("no identity is named: give --identity FILE")?;
        read_identity(path)
    };
    match args.command {
        RescueCommand::Ls(ls) => match &ls.backup {
            None => list_backups(&vault, ls.json).await,
            Some(backup) => {
                let (id, outcome) = find_backup(&vault, backup).await?;
                let shape = Shape::of(ls.json, ls.long);
                let found = entries::list(&vault, &id, &identity()?, ls.path.as_deref(), shape).await?;
                anyhow::ensure!(
                    found > 0 || ls.path.is_none(),
                    "the backup holds nothing at {}",
                    render::safe(ls.path.as_deref().unwrap_or_default())
                );
                Ok(outcome)
            }
        },
        RescueCommand::Verify(verify) => {
            let (id, outcome) = find_backup(&vault, &verify.backup).await?;
            let verified = verify_backup(&vault, &id, &identity()?, verify.json).await?;
            Ok(verified.max(outcome))
        }
        RescueCommand::Restore(restore) => {
            let (id, outcome) = find_backup(&vault, &restore.backup).await?;
            let restored = restore_backup(&vault, &id, &identity()?, restore).await?;
            Ok(restored.max(outcome))
        }
    }
}

/// Beside the answer, so that the answer stays what it is.
fn note(text: &str) {
    eprintln!("note: {}", render::safe(text));
}

#[derive(serde::Serialize)]
struct BackupJson<'a> {
    backup_id: &'a BackupId,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<&'a BackupReceipt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

async fn list_backups(vault: &Vault, is_json: bool) -> anyhow::Result<Outcome> {
    let mut rows = Vec::new();
    let mut json = Vec::new();
    let mut outcome = Outcome::Done;
    for id in vault.backups().await?.into_iter().rev() {
        let row = match vault.receipt(&id).await {
            Ok(None) => continue,
            Err(error) if !error.is_damage() => return Err(error.into()),
            Ok(Some(committed)) => {
                let receipt = committed.receipt;
                json.push(serde_json::to_value(BackupJson {
                    backup_id: &id,
                    receipt: Some(&receipt),
                    problem: None,
                })?);
                vec![
                    id.to_string(),
                    receipt.target.to_string(),
                    receipt.target_kind.to_string(),
                    render::time(receipt.completed_at),
                    render::bytes(receipt.totals.content_bytes),
                    match receipt.status {
                        ReceiptStatus::Success => "complete",
                        ReceiptStatus::Partial => "incomplete",
                        ReceiptStatus::Failure => "failed",
                    }
                    .to_owned(),
                ]
            }
            Err(error) => {
                outcome = Outcome::Warning;
                json.push(serde_json::to_value(BackupJson {
                    backup_id: &id,
                    receipt: None,
                    problem: Some(error.to_string()),
                })?);
                let none = || render::NONE.to_owned();
                vec![
                    id.to_string(),
                    none(),
                    none(),
                    none(),
                    none(),
                    format!("NOT TRUSTED: {error}"),
                ]
            }
        };
        rows.push(row);
    }
    if is_json {
        render::print(&serde_json::to_string_pretty(&serde_json::json!({ "backups": json }))?)?;
    } else if rows.is_empty() {
        render::print("the vault holds no backup")?;
    } else {
        let header = ["BACKUP", "TARGET", "KIND", "COMPLETED", "SIZE", "STATE"];
        render::print(&render::table(&header, &["SIZE"], rows))?;
    }
    Ok(outcome)
}

async fn verify_backup(vault: &Vault, id: &BackupId, identity: &Identity, is_json: bool) -> anyhow::Result<Outcome> {
    let scope = CheckScope {
        backups: vec![id.clone()],
        identity: Some(identity),
    };
    let report = check::check(vault, &scope).await?;
    let outcome = check::print(&report, is_json)?;
    if outcome != Outcome::Done {
        return Ok(outcome);
    }
    let read = entries::with_backup(vault, id, identity, |reader| {
        let mut counted = Counted::default();
        reader.replay(&mut counted)?;
        Ok(counted)
    })
    .await;
    match read {
        Ok(counted) => {
            if !is_json {
                render::print(&format!(
                    "{}: {} entries read to their end, {}, each as its digest says",
                    render::tone(Tone::Good, "whole"),
                    counted.entries,
                    render::bytes(counted.bytes)
                ))?;
            }
            Ok(Outcome::Done)
        }
        Err(error) => {
            let found = error.downcast_ref::<io::Error>().and_then(ReadError::in_io_error);
            if found.is_none_or(ReadError::is_retryable) {
                return Err(error);
            }
            render::print(&format!(
                "{}: {}",
                render::tone(Tone::Bad, "damaged"),
                render::safe_lines(&format!("{error:#}"))
            ))?;
            Ok(Outcome::Warning)
        }
    }
}

/// Counts what it is given.
#[derive(Debug, Default)]
struct Counted {
    entries: u64,
    bytes: u64,
}

impl EntrySink for Counted {
    fn begin(&mut self, _: &Entry) -> io::Result<()> {
        self.entries += 1;
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        Ok(())
    }
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes += bytes;
        Ok(())
    }
    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn restore_backup(
    vault: &Vault,
    id: &BackupId,
    identity: &Identity,
    args: RestoreArgs,
) -> anyhow::Result<Outcome> {
    let options = RestoreOptions {
        select: Selection::new(&args.paths, &args.include)?,
        existing: if args.in_place {
            Existing::InPlace
        } else {
            Existing::Refuse
        },
        delete: false,
        dry_run: false,
        // What lies there is not what was backed up, but what was restored of it so far.
        backup_began: None,
        lacks: Lacks::nothing(),
    };
    let destination = args.destination.clone();
    let (restored, skipped, receipt) = entries::with_backup(vault, id, identity, move |reader| {
        let receipt = reader.receipt().receipt.clone();
        let options = RestoreOptions {
            lacks: Lacks::of(&receipt.missing, &receipt.source),
            ..options
        };
        let mut skipped = 0_u64;
        let mut changed = |change: Change, path: &Path, reason: Option<&str>| {
            if change == Change::Skip {
                skipped += 1;
                note(&format!("{}: {}", path.display(), reason.unwrap_or("skipped")));
            }
        };
        let restored = match receipt.target_kind {
            TargetKind::Files => files::restore(reader, &destination, options, &mut changed),
            _ => files::restore(&StreamsAsFiles(reader), &destination, options, &mut changed),
        }?;
        Ok((restored, skipped, receipt))
    })
    .await?;
    render::print(&summary(&restored, &args.destination))?;
    if receipt.status == ReceiptStatus::Partial {
        note(&format!(
            "the backup itself is incomplete: {} things were missing when it was made",
            receipt.missing.len()
        ));
    }
    if receipt.target_kind == TargetKind::Postgres {
        render::print(POSTGRES_NOTE)?;
    }
    Ok(if skipped > 0 || receipt.status == ReceiptStatus::Partial {
        Outcome::Warning
    } else {
        Outcome::Done
    })
}

fn summary(restored: &FilesRestored, destination: &Path) -> String {
    format!(
        "restored {} files, {} hard links, {} directories, {} links and {} other things, {}, into {}",
        restored.files,
        restored.hardlinks,
        restored.directories,
        restored.symlinks,
        restored.others,
        render::bytes(restored.bytes),
        render::safe(&destination.to_string_lossy())
    )
}

const POSTGRES_NOTE: &str = "\
To load it into an empty database, with DATABASE_URL naming it and the password in ~/.pgpass, in that folder:
  psql -X -d \"$DATABASE_URL\" -f globals.sql        # roles; errors about roles that exist are harmless
  pg_restore --exit-on-error --section=pre-data -d \"$DATABASE_URL\" database.dump
  pg_restore --exit-on-error --section=data -d \"$DATABASE_URL\" database.dump
  for table in tables/*.dump; do pg_restore --exit-on-error --data-only -d \"$DATABASE_URL\" \"$table\"; done  # if any
  pg_restore --exit-on-error --section=post-data -d \"$DATABASE_URL\" database.dump";
