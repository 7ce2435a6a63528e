//! A backup in memory: a sink that keeps what was ended, and a source of it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use strongroom_proto::Sha256Digest;
use strongroom_proto::manifest::{BackupSink, Entry, EntrySink, EntrySource, FileVersion, Listed, PAGE_BYTES};

/// A file as an earlier backup holds it.
#[derive(Debug, Clone)]
struct Known {
    version: FileVersion,
    content: Vec<u8>,
    holes: Vec<(usize, u64)>,
}

/// A disk that somebody else fills.
#[derive(Debug)]
pub(crate) struct FullOnce {
    pub(crate) written_bytes: AtomicUsize,
    /// The next write fails, when whoever says so has come to the barrier.
    pub(crate) is_full: AtomicBool,
    pub(crate) may_fail: Barrier,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// Entries with the bytes between their holes.
    pub(crate) entries: Vec<(Entry, Vec<u8>)>,
    /// The holes of each entry that has any: how many bytes lie before each, and its length.
    holes: HashMap<usize, Vec<(usize, u64)>>,
    /// The version of files that a later backup may find unchanged.
    versions: HashMap<usize, FileVersion>,
    /// What an earlier backup holds, by path.
    known: HashMap<String, Known>,
    /// Paths of entries that were put unchanged.
    pub(crate) unchanged: Vec<String>,
    /// The lengths of files that were begun as paged or as an overlay: the next backup may be laid over them.
    paged: HashMap<String, u64>,
    /// Paths of entries that were laid over an earlier backup's.
    pub(crate) overlaid: Vec<String>,
    /// What the last backup holds of paged files, by path.
    pub(crate) last_pages: HashMap<String, Vec<u8>>,
    /// Where the next page of an open overlay may begin.
    next_page: Option<u64>,
    /// What the last backup left for this one.
    pub(crate) last_note: Option<Vec<u8>>,
    /// What this one leaves.
    pub(crate) left_note: Option<Vec<u8>>,
    open: Option<(Entry, Vec<u8>)>,
    /// Fails every write after so many bytes, as a full disk does.
    pub(crate) full_after_bytes: Option<usize>,
    /// Fails when it is told from outside.
    pub(crate) full_once: Option<Arc<FullOnce>>,
    written_bytes: usize,
}

impl Memory {
    pub(crate) fn full_after(bytes: usize) -> Self {
        Self {
            full_after_bytes: Some(bytes),
            ..Self::default()
        }
    }

    pub(crate) fn paths(&self) -> Vec<&str> {
        self.entries.iter().map(|(entry, _)| entry.path.as_str()).collect()
    }

    pub(crate) fn content(&self, path: &str) -> &[u8] {
        &self
            .entries
            .iter()
            .find(|(entry, _)| entry.path == path)
            .expect("the entry")
            .1
    }

    pub(crate) fn text(&self, path: &str) -> String {
        String::from_utf8(self.content(path).to_vec()).unwrap()
    }

    pub(crate) fn content_mut(&mut self, path: &str) -> &mut Vec<u8> {
        &mut self
            .entries
            .iter_mut()
            .find(|(entry, _)| entry.path == path)
            .expect("the entry")
            .1
    }

    /// This backup with one entry of another.
    pub(crate) fn with_entry_of(mut self, other: &Self, path: &str) -> Self {
        *self.content_mut(path) = other.content(path).to_vec();
        self
    }

    /// A backup that knows what this one holds.
    pub(crate) fn next(&self) -> Self {
        let known = |(index, (entry, content)): (usize, &(Entry, Vec<u8>))| {
            let version = *self.versions.get(&index)?;
            let known = Known {
                version,
                content: content.clone(),
                holes: self.holes_of(index).to_vec(),
            };
            Some((entry.path.clone(), known))
        };
        let pages = |path: &String| (path.clone(), self.content(path).to_vec());
        Self {
            known: self.entries.iter().enumerate().filter_map(known).collect(),
            last_pages: self.paged.keys().map(pages).collect(),
            last_note: self.left_note.clone(),
            ..Self::default()
        }
    }

    /// Whether a later backup may find the file unchanged.
    pub(crate) fn has_version(&self, path: &str) -> bool {
        let index = self.entries.iter().position(|(entry, _)| entry.path == path);
        let version = self.versions.get(&index.expect("the entry"));
        // One that no later version equals is none.
        version.is_some_and(|version| *version != version.unsettled())
    }

    pub(crate) fn entry(&self, path: &str) -> &Entry {
        let found = self.entries.iter().find(|(entry, _)| entry.path == path);
        &found.expect("the entry").0
    }

    fn holes_of(&self, index: usize) -> &[(usize, u64)] {
        self.holes.get(&index).map_or(&[], Vec::as_slice)
    }

    fn listed(&self, index: usize) -> Listed<'_> {
        let (entry, content) = &self.entries[index];
        let hole_bytes = self.holes_of(index).iter().map(|(_, bytes)| bytes).sum();
        Listed {
            entry,
            bytes: content.len() as u64 + hole_bytes,
            hole_bytes,
            blake3: Sha256Digest::from_bytes(*blake3::hash(content).as_bytes()),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }
}

impl EntrySink for Memory {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        assert!(self.open.is_none(), "an entry began inside another");
        self.open = Some((entry.clone(), Vec::new()));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written_bytes += bytes.len();
        if self.full_after_bytes.is_some_and(|limit| self.written_bytes > limit) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(full) = &self.full_once {
            full.written_bytes.store(self.written_bytes, Ordering::SeqCst);
            if full.is_full.load(Ordering::SeqCst) {
                full.may_fail.wait();
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        self.open.as_mut().expect("an open entry").1.extend_from_slice(bytes);
        Ok(())
    }

    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        let before = self.open.as_ref().expect("an open entry").1.len();
        self.holes.entry(self.entries.len()).or_default().push((before, bytes));
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.entries.push(self.open.take().expect("an open entry"));
        self.next_page = None;
        let (entry, content) = self.entries.last().expect("an entry");
        if let Some(bytes) = self.paged.get(&entry.path) {
            assert_eq!(
                *bytes,
                content.len() as u64,
                "{} has another length than said",
                entry.path
            );
        }
        // Content of another length is not that of the version: it was cut short.
        let index = self.entries.len() - 1;
        let bytes = self.listed(index).bytes;
        if self.versions.get(&index).is_some_and(|version| version.bytes != bytes) {
            self.versions.remove(&index);
        }
        Ok(())
    }
}

impl BackupSink for Memory {
    fn put_unchanged(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<bool> {
        let Some(known) = self.known.get(&entry.path) else {
            return Ok(false);
        };
        if known.version != *version {
            return Ok(false);
        }
        let index = self.entries.len();
        self.versions.insert(index, *version);
        self.holes.insert(index, known.holes.clone());
        self.unchanged.push(entry.path.clone());
        self.entries.push((entry.clone(), known.content.clone()));
        Ok(true)
    }

    fn begin_file(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<()> {
        self.versions.insert(self.entries.len(), *version);
        self.begin(entry)
    }

    fn begin_paged(&mut self, entry: &Entry, bytes: u64) -> io::Result<()> {
        self.paged.insert(entry.path.clone(), bytes);
        self.begin(entry)
    }

    fn begin_overlay(&mut self, entry: &Entry, bytes: u64) -> io::Result<bool> {
        let Some(last) = self.last_pages.get(&entry.path) else {
            return Ok(false);
        };
        let mut content = last.clone();
        content.resize(usize::try_from(bytes).expect("a file that fits memory"), 0);
        self.begin(entry)?;
        self.paged.insert(entry.path.clone(), bytes);
        self.overlaid.push(entry.path.clone());
        self.open = Some((entry.clone(), content));
        self.next_page = Some(0);
        Ok(true)
    }

    fn page(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let next = self.next_page.expect("an open overlay");
        assert!(offset >= next, "pages come in ascending order");
        assert_eq!(
            (offset % PAGE_BYTES, bytes.len() as u64 % PAGE_BYTES),
            (0, 0),
            "whole pages"
        );
        self.next_page = Some(offset + bytes.len() as u64);
        let from = usize::try_from(offset).expect("an offset");
        self.open.as_mut().expect("an open entry").1[from..from + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn note(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.last_note.clone())
    }

    fn leave_note(&mut self, note: Vec<u8>) {
        self.left_note = Some(note);
    }
}

impl EntrySource for Memory {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        (0..self.entries.len()).try_for_each(|index| each(self.listed(index)))
    }

    fn copy_content(&self, path: &str, out: &mut dyn Write) -> io::Result<()> {
        let found = self.entries.iter().find(|(entry, _)| entry.path == path);
        let (_, content) = found.ok_or(io::ErrorKind::NotFound)?;
        // In pieces, as a vault does.
        content.chunks(300_001).try_for_each(|piece| out.write_all(piece))
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        // As a vault does, it asks well ahead.
        let mut wanted_ones = Vec::new();
        for index in 0..self.entries.len() {
            wanted_ones.push(wanted(self.listed(index))?);
        }
        for (index, (entry, content)) in self.entries.iter().enumerate() {
            if !wanted_ones[index] {
                continue;
            }
            sink.begin(entry)?;
            let mut position = 0;
            for (before, bytes) in self.holes_of(index) {
                content[position..*before]
                    .chunks(300_001)
                    .try_for_each(|piece| sink.write(piece))?;
                sink.hole(*bytes)?;
                position = *before;
            }
            content[position..]
                .chunks(300_001)
                .try_for_each(|piece| sink.write(piece))?;
            sink.end()?;
        }
        Ok(())
    }
}
