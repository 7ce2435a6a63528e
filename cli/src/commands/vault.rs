//! `strongroom vault`: making one, and checking one. Standalone makes its own.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use strongroom_proto::BackupId;
use strongroom_runtime::{LoadOptions, Loaded};
use strongroom_vault::CheckScope;

use super::{Outcome, check};
use crate::keys::{self, Readers};
use crate::render;
use crate::vault_access::{StoreArgs, read_identity};

#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Make a vault, and the keys of a fleet where they are missing
    Create(CreateArgs),
    /// Check every object, without any key; with an identity every chunk too
    ///
    /// Exit code 0 when everything is as it was stored, 1 when something could not be checked, 2 when damage was found.
    Check(CheckArgs),
    /// Print the allowed_signers file of the vault's receipts; keep it where nobody who writes to the vault can change it
    Signers(SignersArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Only this backup; may be repeated
    #[arg(long = "backup", value_name = "ID")]
    backups: Vec<BackupId>,
    /// Open everything with this identity, and compare every chunk with its id
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SignersArgs {
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Where: file:///path or s3://bucket/prefix; without it vault.url of the settings
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The folder of keys; those that are there are used, those that are missing are made
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Seal to this recipient (age1… or an SSH public key) instead of an identity made here; may be repeated
    #[arg(long = "recipient", value_name = "RECIPIENT")]
    recipients: Vec<String>,
}

pub(crate) async fn run(options: LoadOptions, command: VaultCommand) -> anyhow::Result<Outcome> {
    match command {
        VaultCommand::Create(args) => create(options, args).await,
        VaultCommand::Check(args) => {
            let vault = args.store.open(&Loaded::load(options)?).await?;
            let identity = args.identity.as_deref().map(read_identity).transpose()?;
            let scope = CheckScope {
                backups: args.backups,
                identity: identity.as_ref(),
            };
            check::print(&check::check(&vault, &scope).await?, args.json)
        }
        VaultCommand::Signers(args) => {
            let vault = args.store.open(&Loaded::load(options)?).await?;
            render::print(&vault.allowed_signers())?;
            Ok(Outcome::Done)
        }
    }
}

async fn create(mut options: LoadOptions, args: CreateArgs) -> anyhow::Result<Outcome> {
    if let Some(url) = args.url {
        options.flags.push(("vault.url".to_owned(), url, "--url".to_owned()));
    }
    let loaded = Loaded::load(options)?;
    let readers = if args.recipients.is_empty() {
        Readers::Identity
    } else {
        Readers::Recipients(args.recipients)
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .create(&args.keys)
        .with_context(|| format!("make the folder {}", args.keys.display()))?;
    keys::ensure(&args.keys, &readers)?;
    let vault = keys::create_vault(&loaded.config, &args.keys, &readers).await?;
    render::print(&format!("vault {} made at {}", vault.id(), render::safe(vault.url())))?;
    render::print(&format!(
        "keys are in {}; writers need writer.key and a signing key",
        args.keys.display()
    ))?;
    if matches!(readers, Readers::Identity) {
        render::print("keep a copy of identity.txt somewhere else: without it no backup can be read")?;
    }
    Ok(Outcome::Done)
}
