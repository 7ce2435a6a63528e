//! A file of an incremental backup (`INCREMENTAL.<name>`), laid over the last backup's file as it comes.
//!
//! What `pg_combinebackup` makes of the two: as long as the file was at its shortest since, or as the last block sent
//! wants it; blocks that were not sent are the last backup's where the file was never cut off before them, else zeros.

use strongroom_proto::manifest::{BackupSink, Entry, PAGE_BYTES};

use super::base_error::{BaseBackupError, DamageError};

const MAGIC: u32 = 0xd3ae_1f0d;
/// Magic, number of blocks, length below which the last backup's blocks count.
const FIXED_BYTES: usize = 12;
/// A segment of a relation has so many blocks at most, however the server was built.
const BLOCKS_MAX: u32 = 1 << 22;
static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// Takes one such file apart.
pub(super) struct IncrementalReader {
    entry: Entry,
    /// The header so far, then the block so far.
    buffer: Vec<u8>,
    /// Known once the header has come.
    body: Option<Body>,
}

struct Body {
    /// The blocks to come, the next one last.
    blocks: Vec<u32>,
    /// The file's length, in blocks.
    length: u32,
    /// From here on blocks that do not come are zeros; moves on with the blocks.
    zeros_from: u32,
    /// Bytes between the header and the first block that still have to come.
    padding: usize,
}

impl IncrementalReader {
    pub(super) fn new(entry: Entry) -> Self {
        Self {
            entry,
            buffer: Vec::new(),
            body: None,
        }
    }

    /// Takes the next bytes of the file.
    pub(super) fn push(&mut self, mut bytes: &[u8], sink: &mut dyn BackupSink) -> Result<(), BaseBackupError> {
        if self.body.is_none() {
            self.header(&mut bytes)?;
            let Some(header) = self.parse()? else { return Ok(()) };
            let file_bytes = u64::from(header.length) * PAGE_BYTES;
            let is_known = sink
                .begin_overlay(&self.entry, file_bytes)
                .map_err(|source| BaseBackupError::sink(&self.entry, source))?;
            if !is_known {
                return Err(BaseBackupError::NeedsFull {
                    reason: format!(
                        "what the last backup stored of {} is not known here any more",
                        self.entry.path
                    ),
                });
            }
            self.buffer = Vec::with_capacity(PAGE_BYTES as usize);
            self.body = Some(header);
        }
        let Some(body) = &mut self.body else { return Ok(()) };
        let padding = body.padding.min(bytes.len());
        body.padding -= padding;
        bytes = bytes.get(padding..).unwrap_or_default();
        while !bytes.is_empty() {
            let missing = (PAGE_BYTES as usize - self.buffer.len()).min(bytes.len());
            let (taken, rest) = bytes.split_at(missing);
            bytes = rest;
            // A block that lies whole in what came needs no copy.
            if self.buffer.is_empty() && taken.len() == PAGE_BYTES as usize {
                body.block(&self.entry, taken, sink)?;
                continue;
            }
            self.buffer.extend_from_slice(taken);
            if self.buffer.len() == PAGE_BYTES as usize {
                body.block(&self.entry, &self.buffer, sink)?;
                self.buffer.clear();
            }
        }
        Ok(())
    }

    /// Ends the file, which is whole; gives back its length in bytes.
    pub(super) fn finish(self, sink: &mut dyn BackupSink) -> Result<u64, BaseBackupError> {
        let damaged = || {
            BaseBackupError::damaged(DamageError::Incremental {
                path: self.entry.path.clone(),
            })
        };
        let mut body = self.body.ok_or_else(damaged)?;
        if !body.blocks.is_empty() || !self.buffer.is_empty() || body.padding > 0 {
            return Err(damaged());
        }
        body.zeros_to(&self.entry, body.length, sink)?;
        sink.end()
            .map_err(|source| BaseBackupError::sink(&self.entry, source))?;
        Ok(u64::from(body.length) * PAGE_BYTES)
    }

    /// Moves what belongs to the header from `bytes` to the buffer.
    fn header(&mut self, bytes: &mut &[u8]) -> Result<(), BaseBackupError> {
        loop {
            let wanted = match self.word(1) {
                Some(blocks) if blocks <= BLOCKS_MAX => FIXED_BYTES + blocks as usize * 4,
                Some(_) => return Err(self.damaged()),
                None => FIXED_BYTES,
            };
            let missing = wanted.saturating_sub(self.buffer.len()).min(bytes.len());
            if missing == 0 {
                return Ok(());
            }
            let (taken, rest) = bytes.split_at(missing);
            self.buffer.extend_from_slice(taken);
            *bytes = rest;
        }
    }

    /// The header, once all of it has come.
    fn parse(&self) -> Result<Option<Body>, BaseBackupError> {
        let (Some(magic), Some(count), Some(kept)) = (self.word(0), self.word(1), self.word(2)) else {
            return Ok(None);
        };
        if magic != MAGIC || kept > BLOCKS_MAX {
            return Err(self.damaged());
        }
        if self.buffer.len() < FIXED_BYTES + count as usize * 4 {
            return Ok(None);
        }
        let mut blocks: Vec<u32> = (0..count as usize).filter_map(|at| self.word(3 + at)).collect();
        if !blocks.is_sorted_by(|a, b| a < b) || blocks.last().is_some_and(|last| *last >= BLOCKS_MAX) {
            return Err(self.damaged());
        }
        let length = blocks.last().map_or(0, |last| last + 1).max(kept);
        blocks.reverse();
        let header = self.buffer.len();
        let padding = if blocks.is_empty() {
            0
        } else {
            header.next_multiple_of(PAGE_BYTES as usize) - header
        };
        Ok(Some(Body {
            blocks,
            length,
            zeros_from: kept,
            padding,
        }))
    }

    /// A number of the header, in the byte order of every machine that Postgres 17 is built for in practice.
    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.buffer.get(at * 4..at * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn damaged(&self) -> BaseBackupError {
        BaseBackupError::damaged(DamageError::Incremental {
            path: self.entry.path.clone(),
        })
    }
}

impl Body {
    fn block(&mut self, entry: &Entry, bytes: &[u8], sink: &mut dyn BackupSink) -> Result<(), BaseBackupError> {
        let Some(block) = self.blocks.pop() else {
            return Err(BaseBackupError::damaged(DamageError::Incremental {
                path: entry.path.clone(),
            }));
        };
        self.zeros_to(entry, block, sink)?;
        self.zeros_from = self.zeros_from.max(block + 1);
        put(entry, block, bytes, sink)
    }

    /// Puts zeros where the last backup may have something that no longer counts.
    fn zeros_to(&mut self, entry: &Entry, end: u32, sink: &mut dyn BackupSink) -> Result<(), BaseBackupError> {
        while self.zeros_from < end {
            put(entry, self.zeros_from, &ZEROS, sink)?;
            self.zeros_from += 1;
        }
        Ok(())
    }
}

fn put(entry: &Entry, block: u32, bytes: &[u8], sink: &mut dyn BackupSink) -> Result<(), BaseBackupError> {
    sink.page(u64::from(block) * PAGE_BYTES, bytes)
        .map_err(|source| BaseBackupError::sink(entry, source))
}
