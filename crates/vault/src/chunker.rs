//! Content-defined cutting of one stream of bytes (FastCDC, the 2020 variant with normalisation level 1).
//!
//! Owns a bounded window of bytes not yet cut. A cut depends on nothing but the bytes since the last one, so that
//! equal content is cut alike wherever it lies.

use fastcdc::v2020::FastCDC;

/// The parameters' name in `vault.json`.
pub(crate) const CHUNKER_KIND: &str = "fastcdc-v2020";
/// No chunk is shorter, except the last before a forced cut.
pub(crate) const CHUNK_MIN_BYTES: usize = 512 * 1024;
/// What the cutting aims at.
pub(crate) const CHUNK_AVG_BYTES: usize = 1024 * 1024;
/// No chunk is longer.
pub(crate) const CHUNK_MAX_BYTES: usize = 4 * 1024 * 1024;

/// With this much waiting, the first chunk is cut. It is more than a chunk by [`CHUNK_AVG_BYTES`], so that a cut can
/// still be forced where a stream began when the stream turns out to be larger than that.
const READY_BYTES: usize = CHUNK_MAX_BYTES + CHUNK_AVG_BYTES;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Chunker {
    window: Vec<u8>,
    start: usize,
    cut_bytes: u64,
}

impl Chunker {
    /// How many bytes have been cut off so far: the place in the stream where the window begins.
    pub(crate) const fn position(&self) -> u64 {
        self.cut_bytes
    }

    /// The place in the stream where the next appended byte will lie.
    pub(crate) const fn end_position(&self) -> u64 {
        self.cut_bytes + self.pending() as u64
    }

    pub(crate) const fn pending(&self) -> usize {
        self.window.len() - self.start
    }

    /// Takes as many of the bytes as there is room for, at least one, and says how many.
    ///
    /// There is room whenever [`ready`](Self::ready) says `None`.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        if self.start > 0 && self.window.len() + bytes.len() > WINDOW_BYTES {
            self.window.copy_within(self.start.., 0);
            self.window.truncate(self.pending());
            self.start = 0;
        }
        let taken = bytes.len().min(WINDOW_BYTES - self.window.len());
        self.window.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        taken
    }

    /// The length of the next chunk, once enough is waiting to cut it whatever comes after.
    pub(crate) fn ready(&self) -> Option<usize> {
        (self.pending() >= READY_BYTES).then(|| self.next(self.pending()))
    }

    /// The length of the next chunk where the stream is to be cut after `bytes` more.
    pub(crate) fn next(&self, bytes: usize) -> usize {
        let source = self.front(bytes);
        FastCDC::new(source, CHUNK_MIN_BYTES, CHUNK_AVG_BYTES, CHUNK_MAX_BYTES)
            .cut(0, source.len())
            .1
    }

    /// The first bytes waiting.
    pub(crate) fn front(&self, bytes: usize) -> &[u8] {
        self.window.get(self.start..self.start + bytes).unwrap_or_default()
    }

    /// Lets go of the first bytes waiting.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.cut_bytes += bytes as u64;
        if self.start == self.window.len() {
            self.window.clear();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pseudo_random(bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new_keyed(&[7; 32]).finalize_xof().fill(&mut out);
        out
    }

    fn cut_all(data: &[u8], step: usize) -> Vec<usize> {
        let mut chunker = Chunker::default();
        let mut lengths = Vec::new();
        for piece in data.chunks(step) {
            let mut piece = piece;
            while !piece.is_empty() {
                let taken = chunker.append(piece);
                assert!(taken > 0);
                piece = &piece[taken..];
                while let Some(length) = chunker.ready() {
                    lengths.push(length);
                    chunker.consume(length);
                }
            }
        }
        while chunker.pending() > 0 {
            let length = chunker.next(chunker.pending());
            lengths.push(length);
            chunker.consume(length);
        }
        lengths
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_bytes_arrive() {
        let data = pseudo_random(20_000_000);
        let expected = cut_all(&data, 65_536);
        assert_eq!(expected.iter().sum::<usize>(), data.len());
        for step in [1_000, 1_000_003, 20_000_000] {
            assert_eq!(cut_all(&data, step), expected, "step {step}");
        }
    }

    /// The cuts decide what deduplicates against vaults that exist; they must never change unnoticed.
    #[test]
    fn the_cuts_are_pinned() {
        assert_eq!(cut_all(&pseudo_random(10_000_000), 65_536), PINNED_CUTS);
        assert_eq!(cut_all(&vec![0; 9_000_000], 65_536), [4_194_304, 4_194_304, 611_392]);
    }
    const PINNED_CUTS: &[usize] = &[
        1_119_758, 1_099_589, 1_113_781, 1_873_833, 813_428, 2_017_453, 1_134_733, 827_425,
    ];
}
