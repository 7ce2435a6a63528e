//! A large file taken block by block: which blocks are as they were, and the digest of all of it, in one pass.
//!
//! BLAKE3 is a tree, and an aligned block of a power of two is one of its subtrees: a block's chaining value both tells
//! the block from another and is a step towards the digest of the file. A database that changed one page in a
//! hundred, all over its files, is stored as these pages.

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use strongroom_proto::Sha256Digest;

use crate::cache::Blocks;

/// What tells a block from another: its BLAKE3 chaining value, at its place in the file.
pub(crate) type BlockDigest = ChainingValue;

/// Smaller files are not worth it.
pub(crate) const BLOCKS_FROM_BYTES: u64 = 4 * 1024 * 1024;
/// The page of Postgres; other databases have the same or a power of two near it.
const BLOCK_MIN_BYTES: u64 = 8 * 1024;
/// What the block of the longest file may be.
const BLOCK_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Of larger files the blocks are larger, so that their digests take no more than 32 MiB.
const BLOCKS_MAX: u64 = 1024 * 1024;

/// The size of the blocks of a file of this length.
pub(crate) fn block_bytes(file_bytes: u64) -> u32 {
    let needed = file_bytes.div_ceil(BLOCKS_MAX).next_power_of_two();
    // A file may say that it is of any length, and be nearly all hole: a block is held in memory. It fits.
    needed.clamp(BLOCK_MIN_BYTES, BLOCK_MAX_BYTES) as u32
}

/// Cuts content into blocks and digests them.
pub(crate) struct BlockHasher {
    block_bytes: usize,
    /// The block that is not yet whole.
    partial: Vec<u8>,
    /// BLAKE3 of the first block alone: the digest of a file that has no other is not made of chaining values.
    first: blake3::Hash,
    digests: Vec<BlockDigest>,
    count: u64,
    /// Chaining values of subtrees, the largest first, each twice as large as the next.
    stack: Vec<ChainingValue>,
}

impl BlockHasher {
    pub(crate) fn new(file_bytes: u64) -> Self {
        Self {
            block_bytes: block_bytes(file_bytes) as usize,
            partial: Vec::new(),
            first: blake3::hash(&[]),
            digests: Vec::new(),
            count: 0,
            stack: Vec::new(),
        }
    }

    /// Content of the block that is not yet whole.
    pub(crate) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Takes more content and calls `each` with the number, digest and bytes of every block that is whole.
    pub(crate) fn update<E>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(u64, BlockDigest, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= self.block_bytes {
                let (block, rest) = bytes.split_at(self.block_bytes);
                let (number, digest) = self.add(block);
                each(number, digest, block)?;
                bytes = rest;
                continue;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(self.block_bytes - self.partial.len()));
            self.partial.extend_from_slice(taken);
            bytes = rest;
            if self.partial.len() == self.block_bytes {
                let mut block = std::mem::take(&mut self.partial);
                let (number, digest) = self.add(&block);
                each(number, digest, &block)?;
                block.clear();
                self.partial = block;
            }
        }
        Ok(())
    }

    /// Takes what is left as a block of its own, after which nothing can be added.
    pub(crate) fn finish<E>(&mut self, each: impl FnOnce(u64, BlockDigest, &[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.partial.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.partial);
        let (number, digest) = self.add(&block);
        each(number, digest, &block)
    }

    fn add(&mut self, block: &[u8]) -> (u64, BlockDigest) {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.count * self.block_bytes as u64);
        hasher.update(block);
        let digest = hasher.finalize_non_root();
        if self.count == 0 {
            self.first = blake3::hash(block);
        }
        let number = self.count;
        self.push(digest);
        (number, digest)
    }

    /// Takes the next blocks as they are in a file that is known, without their content; where the last of them is short,
    /// nothing can be added after it.
    pub(crate) fn add_known(&mut self, from: &Blocks, numbers: std::ops::Range<u64>) {
        debug_assert!(self.partial.is_empty() && numbers.start == self.count);
        if numbers.start == 0 && !numbers.is_empty() {
            self.first = blake3::Hash::from_bytes(*from.first.as_bytes());
        }
        let range = numbers.start as usize..numbers.end as usize;
        for digest in from.digests.get(range).unwrap_or_default() {
            self.push(*digest);
        }
    }

    fn push(&mut self, digest: BlockDigest) {
        while self.stack.len() > self.count.count_ones() as usize {
            self.merge(merge_subtrees_non_root);
        }
        self.stack.push(digest);
        self.count += 1;
        self.digests.push(digest);
    }

    fn merge(&mut self, merge: fn(&ChainingValue, &ChainingValue, Mode<'_>) -> ChainingValue) {
        if let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) {
            self.stack.push(merge(&left, &right, Mode::Hash));
        }
    }

    /// BLAKE3 of all content, and the digests of its blocks.
    pub(crate) fn finalize(mut self) -> (Sha256Digest, Blocks) {
        debug_assert!(self.partial.is_empty(), "finish comes first");
        while self.stack.len() > 2 {
            self.merge(merge_subtrees_non_root);
        }
        let digest = match self.stack.as_slice() {
            [left, right] => merge_subtrees_root(left, right, Mode::Hash),
            _ => self.first,
        };
        let blocks = Blocks {
            block_bytes: self.block_bytes as u32,
            digests: self.digests,
            first: Sha256Digest::from_bytes(*self.first.as_bytes()),
        };
        (Sha256Digest::from_bytes(*digest.as_bytes()), blocks)
    }
}

/// Whether a file that begins so is a database's own, written in place page by page.
pub(crate) fn is_paged(first: &[u8], file_bytes: u64) -> bool {
    // A Postgres page says its size and layout version in two bytes; ordinary ones are 8 KiB, version 4.
    let is_postgres = first.get(18..20) == Some(&[0x04, 0x20]) && file_bytes.is_multiple_of(8192);
    let is_sqlite = first.starts_with(b"SQLite format 3\0");
    // The first page of an InnoDB table space: its type is FSP_HDR, its number 0.
    let is_innodb =
        first.get(24..26) == Some(&[0, 8]) && first.get(4..8) == Some(&[0; 4]) && file_bytes.is_multiple_of(16_384);
    is_postgres || is_sqlite || is_innodb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_blake3_and_blocks_are_told_apart() {
        let mut content = vec![0; 300_000];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        for length in [0, 1, 8_191, 8_192, 8_193, 16_384, 24_576, 24_577, 131_072, 300_000] {
            for step in [1_000, 8_192, 70_001, 300_000] {
                let content = &content[..length];
                let mut hasher = BlockHasher::new(0);
                let mut seen = Vec::new();
                for piece in content.chunks(step) {
                    hasher
                        .update::<std::io::Error>(piece, |number, digest, block| {
                            assert_eq!(block.len(), 8_192);
                            seen.push((number, digest));
                            Ok(())
                        })
                        .unwrap();
                }
                hasher
                    .finish::<std::io::Error>(|number, digest, _| {
                        seen.push((number, digest));
                        Ok(())
                    })
                    .unwrap();
                let (digest, blocks) = hasher.finalize();
                assert_eq!(
                    digest.as_bytes(),
                    blake3::hash(content).as_bytes(),
                    "{length} in {step}"
                );
                assert_eq!(blocks.digests.len(), length.div_ceil(8_192));
                let expected: Vec<(u64, BlockDigest)> = (0..).zip(blocks.digests).collect();
                assert_eq!(seen, expected);
            }
        }
    }

    #[test]
    fn blocks_grow_with_the_file() {
        assert_eq!(block_bytes(0), 8_192);
        assert_eq!(block_bytes(8 << 30), 8_192);
        assert_eq!(block_bytes((8 << 30) + 1), 16_384);
        assert_eq!(block_bytes(1 << 40), 1 << 20);
        assert_eq!(block_bytes(u64::MAX >> 1), 1 << 24);
    }
}
