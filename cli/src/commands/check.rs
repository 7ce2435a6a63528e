//! Checking a vault, and telling what was found: `vault check`, `rescue verify`.
//!
//! Exit codes: 0 sound, 1 something could not be checked, 2 damage found.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::ProgressBar;
use strongroom_vault::{CheckProgress, CheckScope, HitFiles, Vault, VaultReport};

use super::Outcome;
use crate::render::{self, Tone};

/// How often a terminal is told how far the check is.
const TICK: Duration = Duration::from_millis(250);
/// How often a log is.
const LOG_TICK: Duration = Duration::from_secs(30);
/// So many files are named on a terminal for each backup; JSON names more.
const SHOWN_FILES: usize = 20;

/// Checks, and tells on standard error how far it is.
pub(crate) async fn check(vault: &Vault, scope: &CheckScope<'_>) -> anyhow::Result<VaultReport> {
    let progress = CheckProgress::default();
    let on_terminal = std::io::stderr().is_terminal();
    let bar = if on_terminal {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    let checking = vault.check_vault(scope, &progress);
    tokio::pin!(checking);
    let mut ticks = tokio::time::interval(if on_terminal { TICK } else { LOG_TICK });
    ticks.tick().await;
    let report = loop {
        tokio::select! {
            report = &mut checking => break report,
            _ = ticks.tick() => {
                let (objects, of, bytes) = progress.now();
                let text = format!("{objects} of {of} objects checked, {}", render::bytes(bytes));
                match on_terminal {
                    true => {
                        bar.set_message(text);
                        bar.tick();
                    }
                    false => eprintln!("{text}"),
                }
            }
        }
    };
    bar.finish_and_clear();
    Ok(report?)
}

/// How a report is to be taken.
pub(crate) fn outcome(report: &VaultReport) -> Outcome {
    if !report.is_sound() {
        Outcome::Warning
    } else if !report.is_whole() {
        Outcome::Failed
    } else {
        Outcome::Done
    }
}

/// The report for a person.
pub(crate) fn text(report: &VaultReport) -> String {
    let mut lines = Vec::new();
    for damaged in &report.damage {
        lines.push(format!(
            "{}  {} {}",
            render::tone(Tone::Bad, "DAMAGED"),
            render::safe(&damaged.object),
            render::safe(&damaged.problem)
        ));
        if !damaged.chunks.is_empty() {
            lines.push(format!("  {} of its chunks are lost", damaged.chunks.len()));
        }
        for hit in &damaged.backups {
            lines.push(format!(
                "  hits {}: {}",
                hit.backup_id,
                render::safe(&hit.files.to_string())
            ));
            if let HitFiles::Named { count, paths } = &hit.files {
                lines.extend(
                    paths
                        .iter()
                        .take(SHOWN_FILES)
                        .map(|path| format!("    {}", render::safe(path))),
                );
                let shown = paths.len().min(SHOWN_FILES) as u64;
                if *count > shown {
                    lines.push(format!("    … and {} more; --json names more of them", count - shown));
                }
            }
        }
    }
    for unchecked in &report.unchecked {
        lines.push(format!(
            "{}  {}: {}",
            render::tone(Tone::Warning, "NOT CHECKED"),
            render::safe(&unchecked.object),
            render::safe(&unchecked.reason)
        ));
    }
    let mut counts = format!(
        "{} backups, {} objects, {}",
        report.backups,
        report.objects,
        render::bytes(report.bytes)
    );
    if report.chunks > 0 {
        counts.push_str(&format!("; {} chunks opened and compared", report.chunks));
    }
    if let Some(unreferenced) = report.unreferenced.filter(|unreferenced| unreferenced.objects > 0) {
        lines.push(format!(
            "{} objects ({}) belong to no backup: left by attempts that died, or of one that is running",
            unreferenced.objects,
            render::bytes(unreferenced.bytes)
        ));
    }
    let verdict = match outcome(report) {
        Outcome::Done => render::tone(Tone::Good, "sound"),
        Outcome::Failed => render::tone(Tone::Warning, "sound as far as it could be checked"),
        _ => render::tone(
            Tone::Bad,
            "damaged: put the objects named above back from another copy of the vault",
        ),
    };
    lines.extend(advice(report).map(str::to_owned));
    lines.push(format!("{verdict}: {counts}"));
    lines.join("\n")
}

/// What to do about packs of which there is no other copy.
fn advice(report: &VaultReport) -> Option<&'static str> {
    let is_pack = |object: &str| object.starts_with("packs/");
    let mut packs = report.damage.iter().filter(|damaged| is_pack(&damaged.object));
    let first = packs.next()?;
    let are_gone = std::iter::once(first)
        .chain(packs)
        .all(|damaged| damaged.problem == "is missing");
    Some(if are_gone {
        "There is no other copy of a pack? The next backup stores what it needs of a missing pack anew; the backups named \
         above stay damaged."
    } else {
        "There is no other copy of a pack? Move the damaged pack away, out of the vault; the next backup then stores what it \
         needs of it anew. Left where it is, it is reused. The backups named above stay damaged."
    })
}

/// Prints the report.
pub(crate) fn print(report: &VaultReport, is_json: bool) -> anyhow::Result<Outcome> {
    if is_json {
        render::print(&serde_json::to_string_pretty(report)?)?;
    } else {
        render::print(&text(report))?;
    }
    Ok(outcome(report))
}
