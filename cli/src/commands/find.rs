//! `strongroom find`: in which backups a file is.

use clap::Args;
use strongroom_connectors::files::Selection;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::BackupReceipt;
use strongroom_runtime::Loaded;

use super::Outcome;
use super::entries::{EntryJson, Lines, Shape, show_entry, unless_broken_pipe, with_backup};
use crate::render;
use crate::vault_access::{IdentityArgs, StoreArgs, find_backup};

#[derive(Debug, Args)]
pub(crate) struct FindArgs {
    /// What to find, written as in .gitignore: *.conf, etc/**/x
    #[arg(value_name = "PATTERN")]
    pattern: String,
    /// In which backup: its id, or a target's name for its newest one; without it in all of them, newest first
    #[arg(value_name = "BACKUP", conflicts_with = "target")]
    backup: Option<String>,
    /// In all backups of this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Show modes, owners and times too
    #[arg(long)]
    long: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    identity: IdentityArgs,
}

pub(crate) async fn run(loaded: &Loaded, args: FindArgs) -> anyhow::Result<Outcome> {
    let select = Selection::new(&[], std::slice::from_ref(&args.pattern))?;
    let vault = args.store.open(loaded).await?;
    let identity = args.identity.read(loaded)?;
    let shape = Shape::of(args.json, args.long);
    let backups = match &args.backup {
        Some(text) => vec![find_backup(&vault, text).await?],
        None => vault.backups().await?.into_iter().rev().collect(),
    };
    let (mut found, mut failed) = (0_u64, 0_u64);
    if args.json {
        render::print("{\"found\":[")?;
    }
    for id in backups {
        let Some(committed) = vault.receipt(&id).await? else {
            continue;
        };
        let receipt = committed.receipt;
        if args
            .target
            .as_ref()
            .is_some_and(|target| receipt.target.as_str() != target)
            || receipt.artifacts.is_empty()
        {
            continue;
        }
        let (select, before) = (select.clone(), found);
        let in_backup = with_backup(&vault, &id, &identity, move |reader| {
            let mut lines = Lines::new();
            let mut count = 0_u64;
            let walked = reader.for_each_entry(&mut |listed| {
                if !select.takes(listed.entry) {
                    return Ok(());
                }
                if shape == Shape::Json {
                    lines.text(if before + count == 0 { "" } else { ",\n" })?;
                    lines.json(&FoundJson {
                        backup_id: receipt.backup_id.as_str(),
                        target: receipt.target.as_str(),
                        completed_at: receipt.completed_at,
                        entry: EntryJson::of(&listed),
                    })?;
                } else {
                    if count == 0 {
                        lines.line(&heading(&receipt))?;
                    }
                    show_entry(&mut lines, &listed, shape)?;
                }
                count += 1;
                Ok(())
            });
            unless_broken_pipe(walked)?;
            unless_broken_pipe(lines.finish())?;
            Ok(count)
        });
        match in_backup.await {
            Ok(count) => found += count,
            // One that cannot be read hides nothing in the others.
            Err(error) if args.backup.is_none() => {
                failed += 1;
                eprintln!(
                    "strongroom: {id} cannot be searched: {}",
                    render::safe_lines(&format!("{error:#}"))
                );
            }
            Err(error) => return Err(error),
        }
    }
    if args.json {
        render::print("\n]}")?;
    } else if found == 0 {
        render::print("nothing found")?;
    }
    Ok(if found == 0 || failed > 0 {
        Outcome::Warning
    } else {
        Outcome::Done
    })
}

#[derive(serde::Serialize)]
struct FoundJson<'a> {
    backup_id: &'a str,
    target: &'a str,
    completed_at: chrono::DateTime<chrono::Utc>,
    entry: EntryJson<'a>,
}

fn heading(receipt: &BackupReceipt) -> String {
    format!(
        "{}  {}  {}",
        receipt.backup_id,
        render::safe(receipt.target.as_str()),
        render::time(receipt.completed_at)
    )
}
