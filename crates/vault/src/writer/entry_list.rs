//! The list of a backup's entries, which is a stream of content of its own.

use strongroom_proto::ChunkId;

use super::keeper::{Counted, Keeper};
use crate::chunker::Chunker;
use crate::error::WriteError;
use crate::manifest::{ENTRY_LINE_BYTES, EntryLine};

/// The entry list on its way into chunks.
pub(super) struct EntryList {
    stream: Chunker,
    chunks: Vec<ChunkId>,
    line: Vec<u8>,
}

impl EntryList {
    pub(super) const fn new(stream: Chunker) -> Self {
        Self {
            stream,
            chunks: Vec::new(),
            line: Vec::new(),
        }
    }

    pub(super) fn write(&mut self, line: &EntryLine, keeper: &mut Keeper) -> Result<(), WriteError> {
        let mut text = std::mem::take(&mut self.line);
        text.clear();
        serde_json::to_writer(&mut text, line).map_err(|source| WriteError::Encode {
            object: "an entry",
            source,
        })?;
        if let EntryLine::Entry(entry) = line
            && text.len() > ENTRY_LINE_BYTES
        {
            return Err(WriteError::EntryTooLarge {
                path: entry.path.chars().take(100).collect(),
                bytes: text.len(),
                limit_bytes: ENTRY_LINE_BYTES,
            });
        }
        text.push(b'\n');
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            let taken = self.stream.append(rest);
            rest = rest.get(taken..).unwrap_or_default();
            while let Some(length) = self.stream.ready() {
                self.take_chunk(length, keeper)?;
            }
        }
        self.line = text;
        Ok(())
    }

    fn take_chunk(&mut self, length: usize, keeper: &mut Keeper) -> Result<(), WriteError> {
        let chunk = keeper.keep(self.stream.front(length), Counted::EntryList)?;
        self.stream.consume(length);
        self.chunks.push(chunk);
        Ok(())
    }

    /// The chunks of the whole list.
    pub(super) fn finish(mut self, keeper: &mut Keeper) -> Result<Vec<ChunkId>, WriteError> {
        while self.stream.pending() > 0 {
            let length = self.stream.next(self.stream.pending());
            self.take_chunk(length, keeper)?;
        }
        Ok(self.chunks)
    }
}
