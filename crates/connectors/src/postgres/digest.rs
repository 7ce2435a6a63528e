//! Digests of table rows and large objects that do not depend on their order.
//!
//! A row is a line of COPY's text format. Each is hashed alone (XXH3, 128 bits) and the hashes are summed, so that a
//! restored table, whose rows lie in another order, has the same digest. This finds accidents, not forgers: against
//! those the vault's keyed chunk ids stand.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Rows and their digest, from pieces cut anywhere.
#[derive(Default)]
pub(crate) struct RowDigest {
    rows: u64,
    sum: u128,
    /// The row that began in an earlier piece and has not ended.
    open: Option<Box<OpenRow>>,
    ended: bool,
}

struct OpenRow {
    hash: Xxh3,
    bytes: u64,
    head: [u8; 2],
}

const END_MARKER: &[u8; 2] = b"\\.";

impl std::fmt::Debug for RowDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowDigest")
            .field("rows", &self.rows)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl RowDigest {
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> Result<(), &'static str> {
        if let Some(open) = &mut self.open {
            let Some(end) = memchr::memchr(b'\n', piece) else {
                open.feed(piece);
                return Ok(());
            };
            open.feed(&piece[..end]);
            piece = &piece[end + 1..];
            if open.bytes == 2 && open.head == *END_MARKER {
                self.ended = true;
            } else {
                self.rows += 1;
                self.sum = self.sum.wrapping_add(open.hash.digest128());
            }
            self.open = None;
        }
        while !piece.is_empty() {
            if self.ended {
                // The tool writes two empty lines after the end marker.
                return if piece.iter().all(|&byte| byte == b'\n') {
                    Ok(())
                } else {
                    Err("rows after the end of a table")
                };
            }
            let Some(end) = memchr::memchr(b'\n', piece) else {
                let mut open = OpenRow::new();
                open.feed(piece);
                self.open = Some(Box::new(open));
                return Ok(());
            };
            let row = &piece[..end];
            piece = &piece[end + 1..];
            if row == END_MARKER {
                self.ended = true;
            } else {
                self.rows += 1;
                self.sum = self.sum.wrapping_add(xxh3_128(row));
            }
        }
        Ok(())
    }

    /// Ends a table and begins the next: the rows and the digest of the one that ended.
    pub(crate) fn finish(&mut self) -> Result<(u64, u128), &'static str> {
        let done = std::mem::take(self);
        if done.ended && done.open.is_none() {
            Ok((done.rows, done.sum))
        } else {
            Err("a table without its end marker")
        }
    }
}

impl OpenRow {
    fn new() -> Self {
        Self {
            hash: Xxh3::new(),
            bytes: 0,
            head: [0; 2],
        }
    }

    fn feed(&mut self, piece: &[u8]) {
        for (at, &byte) in (self.bytes..2).zip(piece) {
            self.head[usize::from(at == 1)] = byte;
        }
        self.bytes += piece.len() as u64;
        self.hash.update(piece);
    }
}

/// Large objects and their digest.
#[derive(Default)]
pub(crate) struct LargeObjectDigest {
    count: u64,
    sum: u128,
    open: Option<Box<Xxh3>>,
}

impl std::fmt::Debug for LargeObjectDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LargeObjectDigest")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl LargeObjectDigest {
    pub(crate) fn begin(&mut self, id: u32) {
        let hash = self.open.get_or_insert_with(|| Box::new(Xxh3::new()));
        hash.reset();
        hash.update(&id.to_le_bytes());
    }

    pub(crate) fn feed(&mut self, piece: &[u8]) {
        if let Some(hash) = &mut self.open {
            hash.update(piece);
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(hash) = &self.open {
            self.count += 1;
            self.sum = self.sum.wrapping_add(hash.digest128());
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn sum(&self) -> u128 {
        self.sum
    }
}
