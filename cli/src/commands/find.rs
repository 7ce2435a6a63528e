//! `strongroom find`: in which backups a file is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use strongroom_connectors::files::Selection;
use strongroom_proto::BackupId;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::BackupReceipt;
use strongroom_runtime::Loaded;
use strongroom_vault::{BackupReader, Identity, Vault};

use super::Outcome;
use super::entries::{EntryJson, Lines, Shape, show_entry, unless_broken_pipe, with_backup};
use crate::render;
use crate::vault_access::{IdentityArgs, StoreArgs, find_backup, tell_passed_over};

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
    let (backups, mut outcome) = match &args.backup {
        Some(text) => {
            let (id, outcome) = find_backup(&vault, text).await?;
            (vec![id], outcome)
        }
        None => (vault.backups().await?.into_iter().rev().collect(), Outcome::Done),
    };
    let search = Search {
        select,
        shape: Shape::of(args.json, args.long),
        found: Arc::default(),
    };
    if args.json {
        render::print("{\"found\":[")?;
    }
    let searched = search_all(&vault, &identity, &backups, &args, &search).await;
    // Whatever ended it, what was printed is a whole document.
    if args.json {
        render::print("\n]}")?;
    }
    outcome = outcome.max(searched?);
    if search.found.load(Ordering::Relaxed) == 0 {
        outcome = outcome.max(Outcome::Warning);
        if !args.json {
            render::print("nothing found")?;
        }
    }
    Ok(outcome)
}

/// What is looked for.
#[derive(Clone)]
struct Search {
    select: Selection,
    shape: Shape,
    /// How many entries were printed, also of a backup that turned out to be damaged further on.
    found: Arc<AtomicU64>,
}

/// Searches one backup after another. One that is damaged hides nothing in the others; a warning tells of it.
async fn search_all(
    vault: &Vault,
    identity: &Identity,
    backups: &[BackupId],
    args: &FindArgs,
    search: &Search,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Done;
    for id in backups {
        let receipt = match vault.receipt(id).await {
            Ok(Some(committed)) => committed.receipt,
            Ok(None) => continue,
            Err(error) if args.backup.is_none() && error.is_damage() => {
                outcome = Outcome::Warning;
                tell_passed_over(id, &error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let is_other = |target: &String| receipt.target.as_str() != target;
        if args.target.as_ref().is_some_and(is_other) || receipt.artifacts.is_empty() {
            continue;
        }
        let search = search.clone();
        let searched = with_backup(vault, id, identity, move |reader| search.one(reader, &receipt)).await;
        match searched {
            Ok(()) => {}
            Err(error) if args.backup.is_none() => {
                outcome = Outcome::Warning;
                eprintln!(
                    "strongroom: {id} cannot be searched: {}",
                    render::safe_lines(&format!("{error:#}"))
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(outcome)
}

impl Search {
    fn one(&self, reader: &BackupReader, receipt: &BackupReceipt) -> anyhow::Result<()> {
        let mut lines = Lines::new();
        let mut is_first_here = true;
        let walked = reader.for_each_entry(&mut |listed| {
            if !self.select.takes(listed.entry) {
                return Ok(());
            }
            let is_first = self.found.fetch_add(1, Ordering::Relaxed) == 0;
            if self.shape == Shape::Json {
                lines.text(if is_first { "" } else { ",\n" })?;
                return lines.json(&FoundJson {
                    backup_id: receipt.backup_id.as_str(),
                    target: receipt.target.as_str(),
                    completed_at: receipt.completed_at,
                    entry: EntryJson::of(&listed),
                });
            }
            if std::mem::take(&mut is_first_here) {
                lines.line(&heading(receipt))?;
            }
            show_entry(&mut lines, &listed, self.shape)
        });
        unless_broken_pipe(walked)?;
        unless_broken_pipe(lines.finish())?;
        Ok(())
    }
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
