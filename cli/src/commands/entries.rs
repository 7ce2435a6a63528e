//! The entries of backups, told line by line: `list BACKUP`, `find`, `rescue ls BACKUP`.
//!
//! What is told is written as it is read, so that a backup of any size takes no memory to speak of.

use std::io::{self, BufWriter, StdoutLock, Write as _};
use std::sync::Arc;

use anyhow::Context as _;
use chrono::DateTime;
use serde::Serialize;
use strongroom_proto::BackupId;
use strongroom_proto::manifest::{Entry, EntryKind, EntrySource, Listed};
use strongroom_vault::{BackupReader, Identity, Vault};

use crate::render;

/// How entries are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Size and path.
    Short,
    /// What `ls -l` tells.
    Long,
    /// JSON.
    Json,
}

impl Shape {
    pub(crate) const fn of(is_json: bool, is_long: bool) -> Self {
        match (is_json, is_long) {
            (true, _) => Self::Json,
            (false, true) => Self::Long,
            (false, false) => Self::Short,
        }
    }
}

/// Standard output for many lines. A reader that goes away ends the work and is no error.
pub(crate) struct Lines {
    out: BufWriter<StdoutLock<'static>>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self {
            out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        }
    }

    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        Ok(())
    }

    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Takes the end of standard output for the end of the work.
pub(crate) fn unless_broken_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Opens a backup and works with it on a thread that may block.
pub(crate) async fn with_backup<T: Send + 'static>(
    vault: &Vault,
    id: &BackupId,
    identity: &Identity,
    work: impl FnOnce(&BackupReader) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let reader = vault.open_backup(id, identity).await?;
    blocking(move || work(&reader)).await
}

/// Works on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("the work ended unexpectedly")?
}

/// Lists the entries of a backup at or below a path; how many there were.
pub(crate) async fn list(
    vault: &Vault,
    id: &BackupId,
    identity: &Identity,
    path: Option<&str>,
    shape: Shape,
) -> anyhow::Result<u64> {
    let path = path
        .map(|path| path.trim_matches('/').to_owned())
        .filter(|path| !path.is_empty() && path != ".");
    let name = id.clone();
    let found = with_backup(vault, id, identity, move |reader| {
        let mut lines = Lines::new();
        let mut found = 0_u64;
        let mut show = || {
            if shape == Shape::Json {
                lines.text(&format!("{{\"backup_id\":\"{name}\",\"entries\":["))?;
            }
            reader.for_each_entry(&mut |listed| {
                if path
                    .as_deref()
                    .is_none_or(|path| is_at_or_below(&listed.entry.path, path))
                {
                    if shape == Shape::Json {
                        lines.text(if found == 0 { "\n" } else { ",\n" })?;
                    }
                    show_entry(&mut lines, &listed, shape)?;
                    found += 1;
                }
                Ok(())
            })?;
            if shape == Shape::Json {
                lines.line("\n]}")?;
            }
            Ok(())
        };
        unless_broken_pipe(show())?;
        unless_broken_pipe(lines.finish())?;
        Ok(found)
    })
    .await?;
    Ok(found)
}

fn is_at_or_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// One entry with what its content comes to, as JSON.
#[derive(Serialize)]
pub(crate) struct EntryJson<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    hole_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl<'a> EntryJson<'a> {
    pub(crate) fn of(listed: &Listed<'a>) -> Self {
        Self {
            entry: listed.entry,
            bytes: listed.bytes,
            hole_bytes: listed.hole_bytes,
            blake3: listed.entry.kind.has_content().then(|| listed.blake3.to_string()),
        }
    }
}

/// Writes one entry; as JSON without a line's end.
pub(crate) fn show_entry(lines: &mut Lines, listed: &Listed<'_>, shape: Shape) -> io::Result<()> {
    let size = || match listed.entry.kind.has_content() {
        true => render::bytes(listed.bytes),
        false => render::NONE.to_owned(),
    };
    let name = shown_path(listed.entry);
    match shape {
        Shape::Json => lines.json(&EntryJson::of(listed)),
        Shape::Short => lines.line(&format!("{:>10}  {name}", size())),
        Shape::Long => {
            let entry = listed.entry;
            let id = |id: Option<u32>| render::or_none(id, |id| id.to_string());
            let time = entry
                .mtime_seconds
                .and_then(|seconds| DateTime::from_timestamp(seconds, entry.mtime_nanoseconds.unwrap_or(0)));
            lines.line(&format!(
                "{}  {:>6} {:>6}  {:>10}  {:25}  {name}{}",
                mode_text(entry),
                id(entry.uid),
                id(entry.gid),
                size(),
                render::or_none(time, render::time),
                link_text(entry)
            ))
        }
    }
}

/// A path as it may be printed; that of a directory ends with a slash.
pub(crate) fn shown_path(entry: &Entry) -> String {
    let slash = if entry.kind == EntryKind::Directory { "/" } else { "" };
    format!("{}{slash}", render::safe(&entry.path))
}

fn link_text(entry: &Entry) -> String {
    let target = entry.link_target.as_deref().map(render::safe).unwrap_or_default();
    match entry.kind {
        EntryKind::Symlink => format!(" -> {target}"),
        EntryKind::Hardlink => format!(" = {target}"),
        _ => entry
            .media
            .as_deref()
            .map(|media| format!("  ({})", render::safe(media)))
            .unwrap_or_default(),
    }
}

/// Kind and permissions, as `ls -l` shows them.
fn mode_text(entry: &Entry) -> String {
    let mut text = String::with_capacity(10);
    text.push(match entry.kind {
        EntryKind::File | EntryKind::Hardlink => '-',
        EntryKind::Stream => '=',
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::Fifo => 'p',
        EntryKind::CharDevice => 'c',
        EntryKind::BlockDevice => 'b',
        EntryKind::Socket => 's',
    });
    let Some(mode) = entry.mode else {
        text.push_str("?????????");
        return text;
    };
    for (class, special, letters) in [
        (6, 0o4000, ('s', 'S')),
        (3, 0o2000, ('s', 'S')),
        (0, 0o1000, ('t', 'T')),
    ] {
        let bit = |bit: u32| mode >> class & bit != 0;
        text.push(if bit(4) { 'r' } else { '-' });
        text.push(if bit(2) { 'w' } else { '-' });
        text.push(match (mode & special != 0, bit(1)) {
            (true, true) => letters.0,
            (true, false) => letters.1,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Every entry of a backup on its way to whoever asks, read by a thread of its own, a bounded number ahead.
pub(crate) struct Pulled {
    entries: std::sync::mpsc::Receiver<io::Result<OwnedEntry>>,
}

/// An entry of a backup, and what its content comes to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OwnedEntry {
    pub(crate) entry: Entry,
    pub(crate) bytes: u64,
    pub(crate) hole_bytes: u64,
    pub(crate) blake3: strongroom_proto::Sha256Digest,
}

/// Entries read ahead of whoever asks.
const PULLED_AHEAD: usize = 1024;

impl Pulled {
    pub(crate) fn new(reader: Arc<BackupReader>) -> anyhow::Result<Self> {
        let (sender, entries) = std::sync::mpsc::sync_channel(PULLED_AHEAD);
        std::thread::Builder::new()
            .name("entries".to_owned())
            .spawn(move || {
                let read = reader.for_each_entry(&mut |listed| {
                    let owned = OwnedEntry {
                        entry: listed.entry.clone(),
                        bytes: listed.bytes,
                        hole_bytes: listed.hole_bytes,
                        blake3: listed.blake3,
                    };
                    // Nobody asks any more.
                    sender.send(Ok(owned)).map_err(|_| io::ErrorKind::BrokenPipe.into())
                });
                if let Err(error) = read {
                    let _ = sender.send(Err(error));
                }
            })
            .context("start a thread; the limit on processes or memory may be reached")?;
        Ok(Self { entries })
    }
}

impl Iterator for Pulled {
    type Item = io::Result<OwnedEntry>;
    fn next(&mut self) -> Option<Self::Item> {
        self.entries.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_in_ls() {
        let text = |kind, mode| {
            let mut entry = Entry::bare("x", kind);
            entry.mode = mode;
            mode_text(&entry)
        };
        assert_eq!(text(EntryKind::File, Some(0o100_644)), "-rw-r--r--");
        assert_eq!(text(EntryKind::Directory, Some(0o041_777)), "drwxrwxrwt");
        assert_eq!(text(EntryKind::File, Some(0o106_751)), "-rwsr-s--x");
        assert_eq!(text(EntryKind::File, Some(0o104_644)), "-rwSr--r--");
        assert_eq!(text(EntryKind::Stream, None), "=?????????");
    }

    #[test]
    fn a_path_names_itself_and_what_is_below_it() {
        assert!(is_at_or_below("etc", "etc") && is_at_or_below("etc/a", "etc"));
        assert!(!is_at_or_below("etcetera", "etc") && !is_at_or_below("a/etc", "etc"));
    }
}
