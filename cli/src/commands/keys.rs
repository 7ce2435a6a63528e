//! `strongroom keys`: who reads and who writes, from when on, and what still depends on keys of before.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chrono::{TimeDelta, Utc};
use clap::{Args, Subcommand};
use strongroom_runtime::Loaded;
use strongroom_runtime::entry::one_line;
use strongroom_vault::{KeyUse, RetiredDependency, Rotation, WriterKey};

use super::Outcome;
use crate::keys::write_private;
use crate::render::{self, Tone};
use crate::vault_access::{StoreArgs, beside, read_identity, tell_passed_over};

/// So long a backup may depend on recipients that are no longer in force before that is worth a warning.
const RETIRED_GRACE: TimeDelta = TimeDelta::days(90);

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Put other recipients, another writer key or other signers in force, from now on
    ///
    /// What is stored stays sealed to whom it was sealed to. Where a recipient is removed for cause, rotate the writer key
    /// too: then nothing that the removed one can open is reused.
    Rotate(RotateArgs),
    /// Show the keys, and which backups depend on which
    ///
    /// Exit code 2 when a backup that is kept needs an identity whose recipients went out of force over 90 days ago, or when
    /// it is not known of a backup what it needs, because its receipt or lists are damaged.
    Status(StatusArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// Who will read: age1… or an SSH public key; may be repeated, and replaces all that are in force
    #[arg(long = "recipient", value_name = "RECIPIENT")]
    recipients: Vec<String>,
    /// Make a new writer key, in this file; a key that is there from an earlier try is used
    #[arg(long, value_name = "FILE")]
    writer_key: Option<PathBuf>,
    /// Who will sign receipts: "PRINCIPAL ssh-ed25519 AAAA…"; may be repeated, and replaces all that are in force
    #[arg(long = "signer", value_name = "LINE")]
    signers: Vec<String>,
    /// The file of the writer key in force; without it keys.writer_key_file of the settings
    #[arg(long, value_name = "FILE")]
    current_writer_key: Option<PathBuf>,
    /// An identity that opens the writer keys of before, so that the new recipients can check what they wrote
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub(crate) async fn run(loaded: &Loaded, command: KeysCommand) -> anyhow::Result<Outcome> {
    match command {
        KeysCommand::Rotate(args) => rotate(loaded, args).await,
        KeysCommand::Status(args) => status(loaded, args).await,
    }
}

async fn rotate(loaded: &Loaded, args: RotateArgs) -> anyhow::Result<Outcome> {
    let vault = args.store.open(loaded).await?;
    let current = args
        .current_writer_key
        .clone()
        .or_else(|| loaded.config.keys.writer_key_file.clone())
        .or_else(|| beside(loaded, "keys/writer.key").filter(|path| path.is_file()))
        .context("the writer key in force is needed: give --current-writer-key FILE, or set keys.writer_key_file")?;
    let current = read_writer_key(&current)?;
    let identity = args.identity.as_deref().map(read_identity).transpose()?;
    let mut signers = Vec::new();
    for line in &args.signers {
        let (principal, key) = line
            .trim()
            .split_once(char::is_whitespace)
            .with_context(|| format!("{:?} is not a principal and a public key", render::safe(line)))?;
        signers.push((principal.to_owned(), key.trim().to_owned()));
    }
    let before = vault.key_generation();
    // Before it is in force, so that it is never lost.
    let new_key = match &args.writer_key {
        Some(path) if path.exists() => Some(read_writer_key(path)?),
        Some(path) => {
            let key = WriterKey::generate();
            write_private(path, &key.serialize())?;
            Some(key)
        }
        None => None,
    };
    let rotation = Rotation {
        writer_key: &current,
        recipients: (!args.recipients.is_empty()).then(|| args.recipients.clone()),
        new_writer_key: new_key.as_ref(),
        signers: (!signers.is_empty()).then_some(signers),
        identity: identity.as_ref(),
        reason: args.reason,
    };
    let rotated = vault.rotate(rotation, Utc::now()).await?;
    render::print(&format!(
        "generation {} of the keys is in force, in place of {before}: {} recipients, writer key {}",
        rotated.key_generation(),
        rotated.recipients().len(),
        rotated.writer_key_id()
    ))?;
    if let Some(path) = &args.writer_key {
        render::print(&format!(
            "install {} for every writer (keys.writer_key_file) and restart it: the old key is refused from now on",
            path.display()
        ))?;
    } else if !args.recipients.is_empty() {
        render::print(
            "backups reuse packs that are sealed to the recipients of before, so keep their identities; with --writer-key \
             nothing of before is reused",
        )?;
    }
    let is_older_left = rotated.key_generation() > 2 && identity.is_none();
    if is_older_left && !args.recipients.is_empty() {
        render::print(
            "writer keys of earlier generations were not sealed to the new recipients; that takes --identity, and matters \
             only for checking what they wrote",
        )?;
    }
    Ok(Outcome::Done)
}

fn read_writer_key(path: &Path) -> anyhow::Result<WriterKey> {
    let failed = || format!("read the writer key from {}", path.display());
    let text = std::fs::read_to_string(path).with_context(failed)?;
    WriterKey::parse(&text).with_context(failed)
}

async fn status(loaded: &Loaded, args: StatusArgs) -> anyhow::Result<Outcome> {
    let vault = args.store.open(loaded).await?;
    let uses = vault.key_use().await?;
    let retired = uses.retired_dependencies(Utc::now(), RETIRED_GRACE);
    for backup in &uses.unknown {
        tell_passed_over(&backup.backup_id, &backup.problem);
    }
    if args.json {
        render::print(&serde_json::to_string_pretty(&json(&uses, &retired))?)?;
    } else {
        render::print(&text(&uses, &retired))?;
    }
    Ok(if retired.is_empty() && uses.unknown.is_empty() {
        Outcome::Done
    } else {
        Outcome::Warning
    })
}

fn json(uses: &KeyUse, retired: &[RetiredDependency]) -> serde_json::Value {
    let generations: Vec<_> = uses
        .generations
        .iter()
        .map(|found| {
            serde_json::json!({
                "generation": found.number,
                "created_at": found.created_at,
                "recipients": found.recipients,
                "writer_key_id": found.writer_key_id,
                "signers": found.signers,
                "reason": found.reason,
            })
        })
        .collect();
    let backups: Vec<_> = uses
        .backups
        .iter()
        .map(|backup| {
            serde_json::json!({
                "backup_id": backup.backup_id,
                "target": backup.target,
                "generations": backup.generations,
            })
        })
        .collect();
    let warnings: Vec<_> = retired
        .iter()
        .map(|found| {
            serde_json::json!({
                "generation": found.generation,
                "recipients": found.recipients,
                "retired_at": found.retired_at,
                "backups": found.backups,
            })
        })
        .collect();
    let unknown: Vec<_> = uses
        .unknown
        .iter()
        .map(|backup| serde_json::json!({ "backup_id": backup.backup_id, "problem": one_line(&backup.problem) }))
        .collect();
    serde_json::json!({
        "in_force": uses.generations.last().map(|found| found.number),
        "generations": generations,
        "backups_by_recipient": uses.backups_by_recipient(),
        "backups": backups,
        "unknown": unknown,
        "retired_but_needed": warnings,
    })
}

fn text(uses: &KeyUse, retired: &[RetiredDependency]) -> String {
    let newest = uses.generations.last();
    let rows = uses.generations.iter().rev().map(|found| {
        let needing = uses
            .backups
            .iter()
            .filter(|backup| backup.generations.contains(&found.number))
            .count();
        let is_in_force = newest.is_some_and(|newest| newest.number == found.number);
        vec![
            found.number.to_string(),
            if is_in_force { "in force" } else { "retired" }.to_owned(),
            render::time_ago(found.created_at),
            found.writer_key_id.clone(),
            found.recipients.len().to_string(),
            needing.to_string(),
            found.reason.clone(),
        ]
    });
    let header = [
        "GENERATION",
        "STATE",
        "SINCE",
        "WRITER KEY",
        "RECIPIENTS",
        "BACKUPS",
        "REASON",
    ];
    let mut text = render::table(&header, &["GENERATION", "RECIPIENTS", "BACKUPS"], rows);
    text.push('\n');
    let by_recipient = uses.backups_by_recipient();
    let rows = by_recipient.iter().map(|(recipient, backups)| {
        let is_in_force = newest.is_some_and(|newest| newest.recipients.iter().any(|r| r == recipient));
        vec![
            (*recipient).to_owned(),
            if is_in_force { "in force" } else { "retired" }.to_owned(),
            backups.to_string(),
        ]
    });
    text.push_str(&render::table(&["RECIPIENT", "STATE", "BACKUPS"], &["BACKUPS"], rows));
    for found in retired {
        text.push_str(&format!(
            "\n{}: {} backups are sealed to recipients that went out of force {}: keep one of their identities until these \
             backups expire, or back up anew with a new writer key\n",
            render::tone(Tone::Warning, "warning"),
            found.backups.len(),
            render::time_ago(found.retired_at)
        ));
        for id in &found.backups {
            text.push_str(&format!("  {id}\n"));
        }
    }
    if !uses.unknown.is_empty() {
        text.push_str(&format!(
            "\n{}: it is not known which keys {} backups need, because their receipts or lists are damaged: keep every \
             identity until `strongroom vault check` finds them sound\n",
            render::tone(Tone::Warning, "warning"),
            uses.unknown.len(),
        ));
        for backup in &uses.unknown {
            text.push_str(&format!("  {}\n", backup.backup_id));
        }
    }
    text
}
