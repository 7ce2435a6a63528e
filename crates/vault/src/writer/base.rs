//! A file as an earlier backup stored it, to lay another over it.

use crate::cache::{Blocks, CachedFile};
use crate::manifest::{Extent, Part};

/// Extents of a file that is kept block by block are this long on average; one in smaller pieces is stored anew.
const KEPT_EXTENT_MIN_BYTES: u64 = 32 * 1024;

/// Whether a file lies in so many pieces that to read it takes more than to store it anew is worth.
pub(super) fn is_fragmented(file: &CachedFile) -> bool {
    file.blocks.is_some() && file.parts.len() as u64 > file.bytes / KEPT_EXTENT_MIN_BYTES + 16
}

/// A file as an earlier backup stored it.
pub(super) struct Base {
    pub(super) blocks: Blocks,
    pub(super) bytes: u64,
    parts: Vec<Part>,
    /// The part that holds the place `start`, and the place.
    next: usize,
    start: u64,
}

impl Base {
    /// None where its blocks are not known, as of one with holes, or what is known of it does not fit together.
    pub(super) fn new(file: CachedFile) -> Option<Self> {
        let blocks = file.blocks?;
        let count = file.bytes.div_ceil(u64::from(blocks.block_bytes.max(1)));
        let mut end = 0_u64;
        for part in &file.parts {
            let Part::Extent(extent) = part else { return None };
            extent.offset.checked_add(extent.bytes)?;
            end = end.checked_add(u64::from(extent.bytes))?;
        }
        if end != file.bytes || count != blocks.digests.len() as u64 {
            return None;
        }
        Some(Self {
            blocks,
            bytes: file.bytes,
            parts: file.parts,
            next: 0,
            start: 0,
        })
    }

    /// The extents of a range that begins no earlier than the last one asked for.
    pub(super) fn range(&mut self, from: u64, to: u64, mut each: impl FnMut(Extent)) {
        while let Some(Part::Extent(extent)) = self.parts.get(self.next) {
            let end = self.start + u64::from(extent.bytes);
            let (first, last) = (from.max(self.start), to.min(end));
            if first < last {
                // Both fit: they lie within the extent.
                each(Extent {
                    chunk: extent.chunk,
                    offset: extent.offset + (first - self.start) as u32,
                    bytes: (last - first) as u32,
                });
            }
            if end > to {
                return;
            }
            self.start = end;
            self.next += 1;
        }
    }
}
