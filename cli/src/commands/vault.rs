//! `strongroom vault`: making one. Standalone makes its own.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use strongroom_runtime::{LoadOptions, Loaded};

use super::Outcome;
use crate::keys::{self, Readers};
use crate::render;

#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Make a vault, and the keys of a fleet where they are missing
    Create(CreateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Where: file:///path or s3://bucket/prefix; without it vault.url of the settings
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The folder of keys; those that are there are used, those that are missing are made
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Seal to this recipient (age1…) instead of an identity made here; may be repeated
    #[arg(long = "recipient", value_name = "AGE1")]
    recipients: Vec<String>,
}

pub(crate) async fn run(mut options: LoadOptions, command: VaultCommand) -> anyhow::Result<Outcome> {
    let VaultCommand::Create(args) = command;
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
