//! A backup in memory: a sink that keeps what was ended, and a source of it.

use std::io::{self, Write};

use strongroom_proto::Sha256Digest;
use strongroom_proto::manifest::{BackupSink, Entry, EntrySink, EntrySource, FileVersion, Listed};

#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    pub(crate) entries: Vec<(Entry, Vec<u8>)>,
    open: Option<(Entry, Vec<u8>)>,
    /// Fails every write after so many bytes, as a full disk does.
    pub(crate) full_after_bytes: Option<usize>,
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
        self.open.as_mut().expect("an open entry").1.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.entries.push(self.open.take().expect("an open entry"));
        Ok(())
    }
}

impl BackupSink for Memory {
    fn put_unchanged(&mut self, _: &Entry, _: &FileVersion) -> io::Result<bool> {
        Ok(false)
    }

    fn begin_file(&mut self, entry: &Entry, _: &FileVersion) -> io::Result<()> {
        self.begin(entry)
    }
}

impl EntrySource for Memory {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        self.entries
            .iter()
            .try_for_each(|(entry, content)| each(listed(entry, content)))
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
        for (entry, content) in &self.entries {
            if !wanted(listed(entry, content))? {
                continue;
            }
            sink.begin(entry)?;
            content.chunks(300_001).try_for_each(|piece| sink.write(piece))?;
            sink.end()?;
        }
        Ok(())
    }
}

fn listed<'a>(entry: &'a Entry, content: &[u8]) -> Listed<'a> {
    Listed {
        entry,
        bytes: content.len() as u64,
        hole_bytes: 0,
        blake3: Sha256Digest::from_bytes(*blake3::hash(content).as_bytes()),
    }
}
