//! How much content the changes of a dry run are about: as in the backup for what would be written, as it lies there for
//! what would be deleted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use strongroom_proto::manifest::{EntryKind, EntrySink, EntrySource, Listed};
use strongroom_proto::restore::{ChangeBytes, ChangeKind};

/// A backup that remembers how long the content of the entry is that is listed, and of all of them.
pub(crate) struct Sizes<'a> {
    source: &'a dyn EntrySource,
    destination: PathBuf,
    /// Of the entry that is listed.
    bytes: AtomicU64,
    /// Of all entries up to it.
    total_bytes: AtomicU64,
    /// Of those that would be skipped.
    skipped_bytes: AtomicU64,
}

impl<'a> Sizes<'a> {
    pub(crate) fn new(source: &'a dyn EntrySource, destination: &Path) -> Self {
        Self {
            source,
            destination: destination.to_owned(),
            bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
        }
    }

    /// The bytes that a change is about, which is told while its entry is listed; they are added to their sum.
    pub(crate) fn measure(&self, change: ChangeKind, path: &Path, sums: &mut ChangeBytes) -> Option<u64> {
        // Of several changes to one entry the first counts.
        let listed = self.bytes.swap(0, Ordering::Relaxed);
        let (sum, bytes) = match change {
            ChangeKind::Create => (&mut sums.created, listed),
            ChangeKind::Replace => (&mut sums.replaced, listed),
            ChangeKind::Metadata => (&mut sums.metadata, listed),
            ChangeKind::Delete => (&mut sums.deleted, bytes_below(&self.destination.join(path))),
            ChangeKind::Skip => {
                self.skipped_bytes.fetch_add(listed, Ordering::Relaxed);
                return None;
            }
        };
        *sum = sum.saturating_add(bytes);
        Some(bytes)
    }

    /// What no change was about, where the whole backup was looked at.
    pub(crate) fn unchanged(&self, sums: &ChangeBytes) -> u64 {
        let changed = [
            sums.created,
            sums.replaced,
            sums.metadata,
            self.skipped_bytes.load(Ordering::Relaxed),
        ];
        let total = self.total_bytes.load(Ordering::Relaxed);
        changed.into_iter().fold(total, u64::saturating_sub)
    }
}

impl EntrySource for Sizes<'_> {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        self.total_bytes.store(0, Ordering::Relaxed);
        self.skipped_bytes.store(0, Ordering::Relaxed);
        let listed = self.source.for_each_entry(&mut |listed| {
            // The content of a hard link is the one of the entry before it.
            let bytes = if listed.entry.kind == EntryKind::Hardlink {
                0
            } else {
                listed.bytes
            };
            self.bytes.store(bytes, Ordering::Relaxed);
            self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
            each(listed)
        });
        self.bytes.store(0, Ordering::Relaxed);
        listed
    }

    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
        self.source.copy_content(path, out)
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        self.source.replay_where(wanted, sink)
    }
}

/// The lengths of the files at and below a path, links not followed. What cannot be looked at counts for nothing: this
/// is shown, and decides nothing.
fn bytes_below(path: &Path) -> u64 {
    let Ok(facts) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    if !facts.is_dir() {
        return if facts.is_file() { facts.len() } else { 0 };
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries.flatten().map(|entry| bytes_below(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_deleted_is_measured_with_all_it_holds_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/five"), "12345").unwrap();
        std::fs::write(dir.path().join("a/two"), "12").unwrap();
        std::fs::write(dir.path().join("outside"), "1234567890").unwrap();
        std::os::unix::fs::symlink("../outside", dir.path().join("a/link")).unwrap();
        assert_eq!(bytes_below(&dir.path().join("a")), 7);
        assert_eq!(bytes_below(&dir.path().join("a/two")), 2);
        assert_eq!(bytes_below(&dir.path().join("a/link")), 0);
        assert_eq!(bytes_below(&dir.path().join("missing")), 0);
    }
}
