//! `strongroom diff`: what changed between two backups.
//!
//! Both lists are read side by side in the order they were written, depth first and sorted by the bytes of each name, so
//! that two backups of a million files take no memory to speak of. Backups of other targets have few entries, in an
//! order of their own, and are sorted first.

use std::cmp::Ordering;
use std::io;
use std::iter::Peekable;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use strongroom_proto::manifest::{Entry, EntryKind};
use strongroom_proto::{BackupId, TargetKind};
use strongroom_runtime::Loaded;
use strongroom_vault::{Identity, Vault};

use super::Outcome;
use super::entries::{Lines, OwnedEntry, Pulled, blocking, shown_path, unless_broken_pipe};
use crate::render;
use crate::vault_access::{IdentityArgs, StoreArgs, find_backup};

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The older backup: its id, or a target's name for its newest one
    #[arg(value_name = "A")]
    a: String,
    /// The newer backup
    #[arg(value_name = "B")]
    b: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    identity: IdentityArgs,
}

type Entries = Box<dyn Iterator<Item = io::Result<OwnedEntry>> + Send>;

pub(crate) async fn run(loaded: &Loaded, args: DiffArgs) -> anyhow::Result<Outcome> {
    let vault = args.store.open(loaded).await?;
    let identity = args.identity.read(loaded)?;
    let (a, outcome) = find_backup(&vault, &args.a).await?;
    let (b, outcome_b) = find_backup(&vault, &args.b).await?;
    let (from, to) = (
        entries(&vault, &a, &identity).await?,
        entries(&vault, &b, &identity).await?,
    );
    let is_json = args.json;
    blocking(move || {
        let mut lines = Lines::new();
        let mut totals = Totals::default();
        let show = || {
            if is_json {
                lines.text(&format!("{{\"a\":\"{a}\",\"b\":\"{b}\",\"changes\":["))?;
            }
            let mut is_first = true;
            merge(from, to, &mut |change| {
                totals.add(&change);
                if !is_json {
                    return lines.line(&change.line());
                }
                lines.text(if is_first { "\n" } else { ",\n" })?;
                is_first = false;
                lines.json(&change.json())
            })?;
            if is_json {
                lines.text("\n],\"totals\":")?;
                lines.json(&totals)?;
                return lines.line("}");
            }
            lines.line(&totals.line())
        };
        unless_broken_pipe(show())?;
        unless_broken_pipe(lines.finish())?;
        Ok(outcome.max(outcome_b))
    })
    .await
}

/// The entries of a backup, in the order of [`compare`].
async fn entries(vault: &Vault, id: &BackupId, identity: &Identity) -> anyhow::Result<Entries> {
    let reader = Arc::new(vault.open_backup(id, identity).await?);
    let kind = reader.receipt().receipt.target_kind;
    let pulled = Pulled::new(reader)?;
    if kind == TargetKind::Files {
        return Ok(Box::new(pulled));
    }
    let sorted = blocking(move || {
        let mut all = pulled.collect::<io::Result<Vec<_>>>().context("read the entries")?;
        all.sort_by(|a, b| compare(&a.entry, &b.entry));
        Ok(all)
    });
    Ok(Box::new(sorted.await?.into_iter().map(Ok)))
}

/// What an entry is called, byte by byte.
fn path_bytes(entry: &Entry) -> Vec<u8> {
    let bytes = entry.path_hex.as_deref().and_then(decode_hex);
    bytes.unwrap_or_else(|| entry.path.clone().into_bytes())
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// The order of a walk: component by component, a directory before what it holds, the root before all.
fn compare(a: &Entry, b: &Entry) -> Ordering {
    let (a, b) = (path_bytes(a), path_bytes(b));
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        match path {
            b"." => Vec::new(),
            path => path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect(),
        }
    };
    components(&a).cmp(&components(&b))
}

/// What happened to one path.
#[derive(Debug, Clone, PartialEq)]
enum Change {
    Added(OwnedEntry),
    Removed(OwnedEntry),
    /// Its content, or what kind of thing it is.
    Changed(Box<OwnedEntry>, OwnedEntry),
    /// Its mode, owner, time or attributes only.
    Metadata(OwnedEntry),
}

/// Calls `each` for every difference between two lists that are in order.
fn merge(from: Entries, to: Entries, each: &mut dyn FnMut(Change) -> io::Result<()>) -> io::Result<()> {
    let (mut from, mut to) = (InOrder::new(from).peekable(), InOrder::new(to).peekable());
    loop {
        let order = match (peek(&mut from)?, peek(&mut to)?) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => compare(&a.entry, &b.entry),
        };
        let (before, after) = match order {
            Ordering::Less => (from.next(), None),
            Ordering::Greater => (None, to.next()),
            Ordering::Equal => (from.next(), to.next()),
        };
        match (before.transpose()?, after.transpose()?) {
            (Some(before), None) => each(Change::Removed(before))?,
            (None, Some(after)) => each(Change::Added(after))?,
            (Some(before), Some(after)) if is_other_content(&before, &after) => {
                each(Change::Changed(Box::new(before), after))?
            }
            (Some(before), Some(after)) if before.entry != after.entry => each(Change::Metadata(after))?,
            _ => {}
        }
    }
}

/// The next entry without taking it. An error is taken: there is nothing after it.
fn peek(entries: &mut Peekable<InOrder>) -> io::Result<Option<&OwnedEntry>> {
    if matches!(entries.peek(), Some(Err(_))) {
        return entries.next().transpose().map(|_| None);
    }
    Ok(entries.peek().and_then(|entry| entry.as_ref().ok()))
}

/// Entries that are checked to come in order.
struct InOrder {
    entries: Entries,
    last: Option<Entry>,
}

impl InOrder {
    fn new(entries: Entries) -> Self {
        Self { entries, last: None }
    }
}

impl Iterator for InOrder {
    type Item = io::Result<OwnedEntry>;
    fn next(&mut self) -> Option<Self::Item> {
        let next = self.entries.next()?;
        if let Ok(next) = &next
            && let Some(last) = self.last.replace(next.entry.clone())
            && compare(&last, &next.entry) == Ordering::Greater
        {
            let text = format!(
                "the entries of the backup are not in order at {:?}: another version made it",
                next.entry.path
            );
            return Some(Err(io::Error::other(text)));
        }
        Some(next)
    }
}

fn is_other_content(a: &OwnedEntry, b: &OwnedEntry) -> bool {
    let what = |entry: &OwnedEntry| {
        let entry = &entry.entry;
        (
            entry.kind,
            entry.link_target.clone(),
            entry.link_target_hex.clone(),
            entry.device_major,
            entry.device_minor,
        )
    };
    (a.bytes, a.hole_bytes, a.blake3) != (b.bytes, b.hole_bytes, b.blake3) || what(a) != what(b)
}

#[derive(Serialize)]
struct ChangeJson<'a> {
    change: &'static str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<&'a str>,
    kind: EntryKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_after: Option<u64>,
}

impl Change {
    const fn entry(&self) -> &OwnedEntry {
        match self {
            Self::Added(entry) | Self::Removed(entry) | Self::Changed(_, entry) | Self::Metadata(entry) => entry,
        }
    }

    fn line(&self) -> String {
        let size = |entry: &OwnedEntry| match entry.entry.kind.has_content() {
            true => format!("  {}", render::bytes(entry.bytes)),
            false => String::new(),
        };
        let path = shown_path(&self.entry().entry);
        match self {
            Self::Added(entry) => format!("added     {path}{}", size(entry)),
            Self::Removed(entry) => format!("removed   {path}{}", size(entry)),
            Self::Changed(before, after) => format!("changed   {path}{} ->{}", size(before), size(after)),
            Self::Metadata(_) => format!("metadata  {path}"),
        }
    }

    fn json(&self) -> ChangeJson<'_> {
        let (change, before, after) = match self {
            Self::Added(entry) => ("added", None, Some(entry.bytes)),
            Self::Removed(entry) => ("removed", Some(entry.bytes), None),
            Self::Changed(before, after) => ("changed", Some(before.bytes), Some(after.bytes)),
            Self::Metadata(entry) => ("metadata", Some(entry.bytes), Some(entry.bytes)),
        };
        let entry = &self.entry().entry;
        ChangeJson {
            change,
            path: &entry.path,
            path_hex: entry.path_hex.as_deref(),
            kind: entry.kind,
            bytes_before: before,
            bytes_after: after,
        }
    }
}

/// How much changed: entries, and the bytes of their content.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Totals {
    added: u64,
    added_bytes: u64,
    removed: u64,
    removed_bytes: u64,
    changed: u64,
    changed_bytes_before: u64,
    changed_bytes_after: u64,
    metadata: u64,
}

impl Totals {
    fn add(&mut self, change: &Change) {
        match change {
            Change::Added(entry) => {
                self.added += 1;
                self.added_bytes += entry.bytes;
            }
            Change::Removed(entry) => {
                self.removed += 1;
                self.removed_bytes += entry.bytes;
            }
            Change::Changed(before, after) => {
                self.changed += 1;
                self.changed_bytes_before += before.bytes;
                self.changed_bytes_after += after.bytes;
            }
            Change::Metadata(_) => self.metadata += 1,
        }
    }

    fn line(&self) -> String {
        if *self == Self::default() {
            return "no difference".to_owned();
        }
        format!(
            "{} added ({}), {} removed ({}), {} changed ({} -> {}), {} with other metadata only",
            self.added,
            render::bytes(self.added_bytes),
            self.removed,
            render::bytes(self.removed_bytes),
            self.changed,
            render::bytes(self.changed_bytes_before),
            render::bytes(self.changed_bytes_after),
            self.metadata
        )
    }
}

#[cfg(test)]
mod tests {
    use strongroom_proto::Sha256Digest;

    use super::*;

    fn entry(path: &str, kind: EntryKind, content: u8) -> OwnedEntry {
        OwnedEntry {
            entry: Entry::bare(path, kind),
            bytes: u64::from(content),
            hole_bytes: 0,
            blake3: Sha256Digest::from_bytes([content; 32]),
        }
    }

    fn file(path: &str, content: u8) -> OwnedEntry {
        entry(path, EntryKind::File, content)
    }

    fn differences(from: Vec<OwnedEntry>, to: Vec<OwnedEntry>) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let entries = |list: Vec<OwnedEntry>| -> Entries { Box::new(list.into_iter().map(Ok)) };
        merge(entries(from), entries(to), &mut |change| {
            found.push(change.line());
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn each_kind_of_difference_is_told_once() {
        let dir = |path| entry(path, EntryKind::Directory, 0);
        let mut touched = file("d/same", 3);
        touched.entry.mode = Some(0o100_600);
        let from = vec![
            dir("."),
            file("!early", 1),
            dir("d"),
            file("d/gone", 1),
            file("d/same", 3),
            file("d!", 5),
        ];
        let to = vec![
            dir("."),
            file("!early", 1),
            dir("d"),
            file("d/new\n", 2),
            touched,
            file("d!", 6),
            dir("e"),
        ];
        assert_eq!(
            differences(from, to).unwrap(),
            [
                "removed   d/gone  1 B",
                "added     d/new\\n  2 B",
                "metadata  d/same",
                "changed   d!  5 B ->  6 B",
                "added     e/",
            ]
        );
    }

    #[test]
    fn the_order_is_that_of_a_walk() {
        // "d!" sorts before "d/x" as a string, and after it in a walk.
        let paths = [".", "!early", "a", "a/b", "d", "d/x", "d!", "é"];
        for pair in paths.windows(2) {
            let (a, b) = (file(pair[0], 0), file(pair[1], 0));
            assert_eq!(compare(&a.entry, &b.entry), Ordering::Less, "{pair:?}");
        }
        let mut odd = file("\u{fffd}", 0);
        odd.entry.path_hex = Some("ff".to_owned());
        assert_eq!(compare(&odd.entry, &file("\u{fffe}", 0).entry), Ordering::Greater);
        assert!(differences(vec![file("b", 0), file("a", 0)], Vec::new()).is_err());
    }
}
