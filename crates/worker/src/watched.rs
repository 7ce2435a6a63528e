//! The data path under watch: bytes are counted as they pass, and the path breaks off when the attempt must stop.

use std::io;

use strongroom_proto::manifest::{BackupSink, Entry, EntrySink, EntrySource, FileVersion, Listed};

use crate::AttemptContext;

/// A sink that counts what goes in.
pub struct WatchedSink<'a, S: ?Sized> {
    inner: &'a mut S,
    context: &'a AttemptContext,
}

impl<'a, S: ?Sized> WatchedSink<'a, S> {
    /// Watches `inner` for an attempt.
    pub fn new(inner: &'a mut S, context: &'a AttemptContext) -> Self {
        Self { inner, context }
    }
}

impl<S: EntrySink + ?Sized> EntrySink for WatchedSink<'_, S> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        go_on(self.context)?;
        self.inner.begin(entry)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        go_on(self.context)?;
        self.inner.write(bytes)?;
        self.context.progress.add(bytes.len() as u64);
        Ok(())
    }

    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        go_on(self.context)?;
        self.inner.hole(bytes)?;
        self.context.progress.add(bytes);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.inner.end()
    }
}

impl<S: BackupSink + ?Sized> BackupSink for WatchedSink<'_, S> {
    fn put_unchanged(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<bool> {
        go_on(self.context)?;
        let known = self.inner.put_unchanged(entry, version)?;
        if known {
            self.context.progress.add(version.bytes);
        }
        Ok(known)
    }

    fn begin_file(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<()> {
        go_on(self.context)?;
        self.inner.begin_file(entry, version)
    }

    fn begin_paged(&mut self, entry: &Entry, bytes: u64) -> io::Result<()> {
        go_on(self.context)?;
        self.inner.begin_paged(entry, bytes)
    }

    fn begin_overlay(&mut self, entry: &Entry, bytes: u64) -> io::Result<bool> {
        go_on(self.context)?;
        self.inner.begin_overlay(entry, bytes)
    }

    fn page(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        go_on(self.context)?;
        self.inner.page(offset, bytes)?;
        self.context.progress.add(bytes.len() as u64);
        Ok(())
    }

    fn note(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.inner.note()
    }

    fn leave_note(&mut self, note: Vec<u8>) {
        self.inner.leave_note(note);
    }
}

/// A source that counts what comes out.
pub struct WatchedSource<'a> {
    inner: &'a dyn EntrySource,
    context: &'a AttemptContext,
}

impl<'a> WatchedSource<'a> {
    /// Watches `inner` for an attempt.
    pub fn new(inner: &'a dyn EntrySource, context: &'a AttemptContext) -> Self {
        Self { inner, context }
    }
}

impl EntrySource for WatchedSource<'_> {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        go_on(self.context)?;
        self.inner.for_each_entry(each)
    }

    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
        self.inner.copy_content(
            path,
            &mut WatchedWriter {
                inner: out,
                context: self.context,
            },
        )
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        self.inner
            .replay_where(wanted, &mut WatchedSink::new(sink, self.context))
    }
}

struct WatchedWriter<'a> {
    inner: &'a mut dyn io::Write,
    context: &'a AttemptContext,
}

impl io::Write for WatchedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        go_on(self.context)?;
        let written = self.inner.write(bytes)?;
        self.context.progress.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn go_on(context: &AttemptContext) -> io::Result<()> {
    if context.stop().is_cancelled() {
        return Err(io::Error::other("the attempt was told to stop"));
    }
    Ok(())
}
