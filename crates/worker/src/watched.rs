//! The data path under watch: bytes are counted as they pass, and the path breaks off when the attempt must stop.

use std::io;

use strongroom_proto::manifest::{Entry, EntrySink, EntrySource};

use crate::AttemptContext;

/// A sink that counts what goes in.
pub struct WatchedSink<'a> {
    inner: &'a mut dyn EntrySink,
    context: &'a AttemptContext,
}

impl<'a> WatchedSink<'a> {
    /// Watches `inner` for an attempt.
    pub fn new(inner: &'a mut dyn EntrySink, context: &'a AttemptContext) -> Self {
        Self { inner, context }
    }
}

impl EntrySink for WatchedSink<'_> {
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

    fn end(&mut self) -> io::Result<()> {
        self.inner.end()
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
    fn for_each_entry(&self, each: &mut dyn FnMut(&Entry, u64) -> io::Result<()>) -> io::Result<()> {
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

    fn replay(&self, sink: &mut dyn EntrySink) -> io::Result<()> {
        self.inner.replay(&mut WatchedSink::new(sink, self.context))
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
