//! Content-defined cutting of one stream of bytes (FastCDC, the 2020 variant with normalisation level 1).
//!
//! Owns a bounded window of bytes not yet cut. A cut depends on nothing but the bytes since the last one, so that
//! equal content is cut alike wherever it lies.

use fastcdc::v2020::FastCDC;
use serde::{Deserialize, Serialize};

/// The parameters' name in `vault.json`.
pub(crate) const CHUNKER_KIND: &str = "fastcdc-v2020";
/// No chunk of any vault is longer.
pub(crate) const CHUNK_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Several times what is looked at before a cut, so that what is left over is seldom moved to the front.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;

/// How the content of a vault is cut; `vault.json` says it, and it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkerParameters {
    pub(crate) kind: String,
    /// No chunk is shorter, except the last before a forced cut.
    pub(crate) min_bytes: usize,
    /// What the cutting aims at.
    pub(crate) avg_bytes: usize,
    /// No chunk is longer.
    pub(crate) max_bytes: usize,
}

impl ChunkerParameters {
    /// Those of new vaults. Beside an average of 1 MiB, one of 2 MiB makes the vault of a tree of small files 2 to 3 per
    /// cent smaller.
    pub(crate) fn of_new_vaults() -> Self {
        Self {
            kind: CHUNKER_KIND.to_owned(),
            min_bytes: 1024 * 1024,
            avg_bytes: 2 * 1024 * 1024,
            max_bytes: CHUNK_MAX_BYTES,
        }
    }

    /// Whether this version can cut so.
    pub(crate) fn are_supported(&self) -> bool {
        self.kind == CHUNKER_KIND
            && (64 * 1024..=self.avg_bytes).contains(&self.min_bytes)
            && self.avg_bytes.is_power_of_two()
            && (self.avg_bytes..=CHUNK_MAX_BYTES).contains(&self.max_bytes)
    }
}

#[derive(Debug)]
pub(crate) struct Chunker {
    parameters: ChunkerParameters,
    window: Vec<u8>,
    start: usize,
    cut_bytes: u64,
}

impl Chunker {
    /// Cuts as these say; they have to be supported.
    pub(crate) const fn new(parameters: ChunkerParameters) -> Self {
        Self {
            parameters,
            window: Vec::new(),
            start: 0,
            cut_bytes: 0,
        }
    }

    /// A stream longer than this is told apart from its neighbours in time to be cut off from them.
    pub(crate) const fn ahead(&self) -> usize {
        self.parameters.avg_bytes
    }

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
    ///
    /// It is more than a chunk by [`ahead`](Self::ahead), so that a cut can still be forced where a stream began when the
    /// stream turns out to be longer than that.
    pub(crate) fn ready(&self) -> Option<usize> {
        let enough = self.parameters.max_bytes + self.ahead();
        (self.pending() >= enough).then(|| self.next(self.pending()))
    }

    /// The length of the next chunk where the stream is to be cut after `bytes` more.
    pub(crate) fn next(&self, bytes: usize) -> usize {
        let source = self.front(bytes);
        let ChunkerParameters {
            min_bytes,
            avg_bytes,
            max_bytes,
            ..
        } = self.parameters;
        FastCDC::new(source, min_bytes, avg_bytes, max_bytes)
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

    /// The parameters of the first vaults.
    fn first() -> ChunkerParameters {
        ChunkerParameters {
            min_bytes: 512 * 1024,
            avg_bytes: 1024 * 1024,
            ..ChunkerParameters::of_new_vaults()
        }
    }

    fn cut_all(parameters: ChunkerParameters, data: &[u8], step: usize) -> Vec<usize> {
        let mut chunker = Chunker::new(parameters);
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
        for parameters in [first(), ChunkerParameters::of_new_vaults()] {
            let expected = cut_all(parameters.clone(), &data, 65_536);
            assert_eq!(expected.iter().sum::<usize>(), data.len());
            for step in [1_000, 1_000_003, 20_000_000] {
                assert_eq!(cut_all(parameters.clone(), &data, step), expected, "step {step}");
            }
        }
    }

    /// The cuts decide what deduplicates against vaults that exist; they must never change unnoticed.
    #[test]
    fn the_cuts_are_pinned() {
        let new = ChunkerParameters::of_new_vaults;
        assert_eq!(cut_all(first(), &pseudo_random(10_000_000), 65_536), PINNED_FIRST_CUTS);
        assert_eq!(cut_all(new(), &pseudo_random(10_000_000), 65_536), PINNED_CUTS);
        let zeros = vec![0; 9_000_000];
        for parameters in [first(), new()] {
            assert_eq!(cut_all(parameters, &zeros, 65_536), [4_194_304, 4_194_304, 611_392]);
        }
    }
    const PINNED_CUTS: &[usize] = &[2_219_347, 1_292_773, 2_508_269, 3_247_585, 732_026];

    #[test]
    fn parameters_that_would_harm_are_not_supported() {
        assert!(first().are_supported() && ChunkerParameters::of_new_vaults().are_supported());
        let edits: [fn(&mut ChunkerParameters); 5] = [
            |p| p.kind = "other".to_owned(),
            |p| p.min_bytes = 1,
            |p| p.avg_bytes = p.min_bytes / 2,
            |p| p.avg_bytes += 1,
            |p| p.max_bytes = CHUNK_MAX_BYTES + 1,
        ];
        for edit in edits {
            let mut parameters = ChunkerParameters::of_new_vaults();
            edit(&mut parameters);
            assert!(!parameters.are_supported(), "{parameters:?}");
        }
    }
    const PINNED_FIRST_CUTS: &[usize] = &[
        1_119_758, 1_099_589, 1_113_781, 1_873_833, 813_428, 2_017_453, 1_134_733, 827_425,
    ];
}
