//! `strongroom catalog`: the catalog is an index of the vault, and can be made again from it.

use std::sync::Arc;

use clap::{Args, Subcommand};
use strongroom_catalog::{Catalog, FinishedBackup, FinishedRestore, FinishedVerification, Taken};
use strongroom_proto::BackupId;
use strongroom_proto::wal::{SystemIdentifier, TimelineHistory, WalSource as _};
use strongroom_runtime::Loaded;
use strongroom_vault::{ReadError, Vault, WalReader};

use super::Outcome;
use crate::render::{self, Tone};
use crate::vault_access::{IdentityArgs, StoreArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand {
    /// Refill the catalog from the receipts in a vault
    ///
    /// It takes the catalog's database, which may be new and empty, and the vault, and needs no key. What the catalog knows
    /// already stays as it is, so it may be run again, and while everything runs. Schedules, restore points, the audit log,
    /// annotations and how long backups are kept are not in the vault. Where the timelines of a cluster part is read with an identity, or
    /// comes back when its WAL is received again. Exit code 2 when a receipt could not be trusted and was left out.
    Rebuild(RebuildArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    identity: IdentityArgs,
}

/// What a rebuild did, by receipts.
#[derive(Debug, Default, serde::Serialize)]
struct Rebuilt {
    backups: Counts,
    verifications: Counts,
    restores: Counts,
    /// Pieces of WAL that the vault holds.
    wal_pieces: u64,
    /// Timelines of clusters whose history was read.
    timelines: u64,
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Default, serde::Serialize)]
struct Counts {
    added: u64,
    known: u64,
}

#[derive(Debug, serde::Serialize)]
struct LeftOut {
    backup_id: BackupId,
    reason: String,
}

pub(crate) async fn run(loaded: &Loaded, command: CatalogCommand) -> anyhow::Result<Outcome> {
    let CatalogCommand::Rebuild(args) = command;
    let vault = args.store.open(loaded).await?;
    let config = &loaded.config;
    let url = config.catalog_url()?;
    Catalog::ensure_database(url.expose()).await?;
    let catalog = Catalog::connect(url.expose(), config.catalog.max_connections).await?;
    let mut rebuilt = Rebuilt::default();
    // The oldest first, as they came.
    for id in vault.backups().await? {
        rebuilt.take_backup(&catalog, &vault, &id).await?;
    }
    // Where timelines part is sealed; all else is found without.
    let reader = match args.identity.is_named(loaded) {
        true => Some(vault.wal_reader(Arc::new(args.identity.read(loaded)?))),
        false => None,
    };
    for (system, pieces) in vault.stored_wal().await? {
        catalog.add_stored_wal(vault.id(), system, &pieces).await?;
        rebuilt.wal_pieces += pieces.len() as u64;
        if let Some(reader) = &reader {
            rebuilt.timelines += take_histories(&catalog, &vault, reader, system).await?;
        }
    }
    if args.json {
        render::print(&serde_json::to_string_pretty(&rebuilt)?)?;
    } else {
        render::print(&text(&rebuilt))?;
    }
    Ok(if rebuilt.left_out.is_empty() {
        Outcome::Done
    } else {
        Outcome::Warning
    })
}

async fn take_histories(
    catalog: &Catalog,
    vault: &Vault,
    reader: &WalReader,
    system: SystemIdentifier,
) -> anyhow::Result<u64> {
    let mut taken = 0;
    for timeline in reader.timelines(system).await? {
        let text = reader.history(system, timeline).await?;
        if let Some(history) = text.and_then(|text| TimelineHistory::parse(timeline, &text)) {
            catalog.add_wal_history(vault.id(), system, &history).await?;
            taken += 1;
        }
    }
    Ok(taken)
}

impl Rebuilt {
    async fn take_backup(&mut self, catalog: &Catalog, vault: &Vault, id: &BackupId) -> anyhow::Result<()> {
        let committed = match vault.receipt(id).await {
            Ok(Some(committed)) => committed,
            Ok(None) => return Ok(()),
            Err(error) => return self.leave_out(id, error),
        };
        let done = FinishedBackup {
            storage_path: format!("{}/backups/{id}/receipt.json", vault.url().trim_end_matches('/')),
            vault_url: vault.url().to_owned(),
            receipt: committed.receipt,
            sha256: committed.sha256,
        };
        let taken = catalog.adopt_backup(&done).await?;
        self.backups.add(taken);
        if taken == Taken::NotYet {
            // Its job goes on, and will bring the rest itself.
            return Ok(());
        }
        let mut verifications = Vec::new();
        match vault.verification_jobs(id).await {
            Ok(jobs) => {
                for job in jobs {
                    match vault.verification(id, job).await {
                        Ok(found) => verifications.extend(found),
                        Err(error) => self.leave_out(id, error)?,
                    }
                }
            }
            Err(error) => self.leave_out(id, error)?,
        }
        verifications.sort_by_key(|(receipt, _)| receipt.completed_at);
        for (receipt, sha256) in verifications {
            let taken = catalog
                .adopt_verification(&FinishedVerification {
                    receipt,
                    sha256,
                    tables: None,
                })
                .await?;
            self.verifications.add(taken);
        }
        match vault.restore_jobs(id).await {
            Ok(jobs) => {
                for job in jobs {
                    match vault.restore(id, job).await {
                        Ok(Some((receipt, sha256))) => {
                            let taken = catalog.adopt_restore(&FinishedRestore { receipt, sha256 }).await?;
                            self.restores.add(taken);
                        }
                        Ok(None) => {}
                        Err(error) => self.leave_out(id, error)?,
                    }
                }
            }
            Err(error) => self.leave_out(id, error)?,
        }
        Ok(())
    }

    /// A receipt that cannot be trusted is told and left out; a store that does not answer ends the rebuild.
    fn leave_out(&mut self, id: &BackupId, error: ReadError) -> anyhow::Result<()> {
        if matches!(error, ReadError::Store { .. }) || error.is_retryable() {
            return Err(error.into());
        }
        self.left_out.push(LeftOut {
            backup_id: id.clone(),
            reason: error.to_string(),
        });
        Ok(())
    }
}

impl Counts {
    const fn add(&mut self, taken: Taken) {
        match taken {
            Taken::New => self.added += 1,
            Taken::Known | Taken::NotYet => self.known += 1,
        }
    }
}

fn text(rebuilt: &Rebuilt) -> String {
    let mut lines = Vec::new();
    for (name, counts) in [
        ("backups", &rebuilt.backups),
        ("verifications", &rebuilt.verifications),
        ("restores", &rebuilt.restores),
    ] {
        lines.push(format!("{name}: {} added, {} known before", counts.added, counts.known));
    }
    if rebuilt.wal_pieces > 0 {
        lines.push(format!(
            "WAL: {} pieces in the vault, {} histories of timelines",
            rebuilt.wal_pieces, rebuilt.timelines
        ));
    }
    for left_out in &rebuilt.left_out {
        lines.push(format!(
            "{}: {}: {}",
            render::tone(Tone::Warning, "left out"),
            left_out.backup_id,
            render::safe(&left_out.reason)
        ));
    }
    lines.join("\n")
}
