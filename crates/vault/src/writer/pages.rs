//! A cluster's files, page by page: read whole and compared with the last backup's, or laid over it without being read.
//!
//! A file that is laid over another is whole in the entry list like any other: extents of what was kept and of what was
//! put, and the digest of all of it, which follows from the digests of the blocks.

use strongroom_proto::manifest::{Entry, FileVersion, PAGE_BYTES};

use super::base::Base;
use super::{BackupWriter, Current, Cutting, Hashing, path_bytes};
use crate::blocks::{self, BlockHasher};
use crate::cache::CachedFile;
use crate::error::WriteError;

/// Zeros that fill up a file come in pieces of this size.
const ZEROS: &[u8] = &[0; 128 * 1024];

/// The version of a file that is never found by it: a cluster's files are found by their path alone.
pub(super) const fn version_of_none(bytes: u64) -> FileVersion {
    FileVersion {
        device: 0,
        inode: 0,
        bytes,
        mtime: (0, 0),
        ctime: (0, 0),
    }
    .unsettled()
}

fn out_of_order(found: &'static str) -> WriteError {
    WriteError::Order { found }
}

impl BackupWriter {
    /// The file as an earlier backup stored it, where this one, which is read, may be compared with it.
    pub(super) fn base_of_paged(&mut self, entry: &Entry, file_bytes: u64) -> Result<Option<Base>, WriteError> {
        let found = self.find_paged(entry)?;
        Ok(found.and_then(|found| self.base_in(found, file_bytes)))
    }

    fn find_paged(&mut self, entry: &Entry) -> Result<Option<CachedFile>, WriteError> {
        let Some(before) = &mut self.known.before else {
            return Ok(None);
        };
        let found = before.find_anywhere(&path_bytes(entry));
        let chunks = before.take_chunks_ahead();
        self.keeper.learn(&chunks)?;
        Ok(found)
    }

    /// Begins an entry that is laid over what an earlier backup stored for its path, where that can be done.
    pub(super) fn begin_laid_over(&mut self, entry: &Entry, bytes: u64) -> Result<bool, WriteError> {
        if self.current.is_some() {
            return Err(out_of_order("an entry was begun within another"));
        }
        let Some(found) = self.find_paged(entry)? else {
            return Ok(false);
        };
        let (before, is_held) = (found.bytes, self.keeper.has_all(&found.parts));
        let Some(base) = Base::new(found).filter(|_| is_held) else {
            return Ok(false);
        };
        // A block that is cut or filled up is another, whose digest nobody knows; larger ones than a page are not
        // replaced by one.
        let is_by_pages = u64::from(base.blocks.block_bytes) == PAGE_BYTES && is_page_sized(bytes);
        let is_at_a_page = bytes == before || before.min(bytes).is_multiple_of(PAGE_BYTES);
        if !is_by_pages || !is_at_a_page {
            return Ok(false);
        }
        self.make_room()?;
        let current = Current {
            bytes: 0,
            has_holes: false,
            cutting: Cutting::Content,
            hashing: Hashing::Blocks(BlockHasher::new(bytes)),
            base: Some(base),
            overlay_bytes: Some(bytes),
        };
        self.open_entry(entry, Some(version_of_none(bytes)), current);
        Ok(true)
    }

    /// Puts pages of an overlay.
    pub(super) fn put_pages(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let Some((total, position)) = self.overlay() else {
            return Err(out_of_order("pages came outside an entry that is laid over another"));
        };
        let end = offset.saturating_add(bytes.len() as u64);
        let is_whole = (bytes.len() as u64).is_multiple_of(PAGE_BYTES) || end == total;
        if !offset.is_multiple_of(PAGE_BYTES) || !is_whole {
            return Err(out_of_order("a part of a page came"));
        }
        if offset < position || end > total {
            return Err(out_of_order("a page came after a later one, or beyond the entry's end"));
        }
        let Some(mut current) = self.current.take() else {
            return Ok(());
        };
        self.keep_up_to(&mut current, offset)?;
        self.put_blocks(&mut current, bytes)?;
        self.current = Some(current);
        Ok(())
    }

    /// Keeps what no page was put for; nothing where the entry is no overlay.
    pub(super) fn keep_to_the_end(&mut self, current: &mut Current) -> Result<(), WriteError> {
        match current.overlay_bytes {
            Some(total) => self.keep_up_to(current, total),
            None => Ok(()),
        }
    }

    pub(super) fn refuse_within_overlay(&self) -> Result<(), WriteError> {
        match self.overlay() {
            Some(_) => Err(out_of_order(
                "content came within an entry that is laid over another by pages",
            )),
            None => Ok(()),
        }
    }

    /// The length of the overlay that is being put, and how far it is.
    fn overlay(&self) -> Option<(u64, u64)> {
        let current = self.current.as_ref()?;
        Some((current.overlay_bytes?, current.bytes))
    }

    /// Keeps the base from where the entry is up to a page's beginning or the entry's end, and zeros after the base.
    fn keep_up_to(&mut self, current: &mut Current, to: u64) -> Result<(), WriteError> {
        let from = current.bytes;
        if let (Some(base), Hashing::Blocks(hasher)) = (&mut current.base, &mut current.hashing)
            && from < to.min(base.bytes)
        {
            let kept_to = to.min(base.bytes);
            hasher.add_known(&base.blocks, from / PAGE_BYTES..kept_to.div_ceil(PAGE_BYTES));
            self.keep_range(base, from, kept_to)?;
            current.bytes = kept_to;
            self.content_bytes += kept_to - from;
        }
        while current.bytes < to {
            let piece = (to - current.bytes).min(ZEROS.len() as u64) as usize;
            self.put_blocks(current, ZEROS.get(..piece).unwrap_or(ZEROS))?;
        }
        Ok(())
    }

    fn put_blocks(&mut self, current: &mut Current, bytes: &[u8]) -> Result<(), WriteError> {
        current.bytes += bytes.len() as u64;
        self.content_bytes += bytes.len() as u64;
        if let (Some(base), Hashing::Blocks(hasher)) = (&mut current.base, &mut current.hashing) {
            hasher.update(bytes, |number, digest, block| {
                self.put_block(base, number, digest, block, &mut current.cutting)
            })?;
        }
        Ok(())
    }
}

/// Whether a file of this length is kept in blocks of a page.
fn is_page_sized(bytes: u64) -> bool {
    u64::from(blocks::block_bytes(bytes)) == PAGE_BYTES
}
