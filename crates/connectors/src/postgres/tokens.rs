//! The pieces that an archive's header and table of contents consist of: bytes, integers and texts.
//!
//! Invariants: a piece may be spread over any number of slices; what is not wanted is passed over, never kept.

use super::archive::ArchiveError;

/// The longest text in a TOC that is kept: a name, or a function with its argument types.
const KEPT_TEXT_BYTES_MAX: usize = 64 << 10;
/// The longest text in a TOC at all: a definition.
const TEXT_BYTES_MAX: i64 = 1 << 30;

/// An error before its place is known.
pub(crate) enum Fault {
    Garbage(&'static str),
    Other(ArchiveError),
}

impl Fault {
    pub(crate) fn at(self, offset: u64) -> ArchiveError {
        match self {
            Self::Garbage(what) => ArchiveError::Garbage { what, offset },
            Self::Other(error) => error,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Yes,
    No,
}

/// The pieces that header and TOC consist of, each possibly spread over several slices.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Size of the archive's integers.
    pub(crate) int_bytes: usize,
    gathered: [u8; 16],
    gathered_bytes: usize,
    /// The bytes left of a text whose length has been read.
    text_left: Option<usize>,
    text: Vec<u8>,
}

impl Tokens {
    /// The next `wanted` bytes, at most 16; `None` where the input ends before.
    pub(crate) fn gather(&mut self, input: &mut &[u8], wanted: usize) -> Option<[u8; 16]> {
        let take = (wanted - self.gathered_bytes).min(input.len());
        let (piece, rest) = input.split_at(take);
        *input = rest;
        self.gathered[self.gathered_bytes..self.gathered_bytes + take].copy_from_slice(piece);
        self.gathered_bytes += take;
        if self.gathered_bytes < wanted {
            return None;
        }
        self.gathered_bytes = 0;
        Some(self.gathered)
    }

    pub(crate) fn fixed<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let bytes = self.gather(input, N)?;
        bytes.first_chunk::<N>().copied()
    }

    pub(crate) fn byte(&mut self, input: &mut &[u8]) -> Option<u8> {
        self.fixed::<1>(input).map(|[byte]| byte)
    }

    /// An integer: a byte for the sign, then the magnitude, least byte first.
    #[inline]
    pub(crate) fn int(&mut self, input: &mut &[u8]) -> Option<i64> {
        // Short rows make this the hottest place of all: each row is a block with its length.
        if self.int_bytes == 4
            && self.gathered_bytes == 0
            && let Some((&[sign, a, b, c, d], rest)) = input.split_first_chunk::<5>()
        {
            *input = rest;
            let magnitude = i64::from(u32::from_le_bytes([a, b, c, d]));
            return Some(if sign == 0 { magnitude } else { -magnitude });
        }
        let bytes = self.gather(input, 1 + self.int_bytes)?;
        let mut magnitude = [0; 8];
        magnitude[..self.int_bytes].copy_from_slice(&bytes[1..=self.int_bytes]);
        // A magnitude over 63 bits saturates; every caller refuses values of that size.
        let magnitude = i64::try_from(u64::from_le_bytes(magnitude)).unwrap_or(i64::MAX);
        Some(if bytes[0] == 0 { magnitude } else { -magnitude })
    }

    /// A text: its length, then its bytes; a negative length is SQL's NULL. `None` where the input ends before.
    pub(crate) fn text(&mut self, input: &mut &[u8], keep: Keep) -> Result<Option<Option<String>>, Fault> {
        let mut left = match self.text_left {
            Some(left) => left,
            None => match self.int(input) {
                None => return Ok(None),
                Some(..0) => return Ok(Some(None)),
                Some(length) if length > TEXT_BYTES_MAX => return Err(Fault::Garbage("the length of a text")),
                Some(length) => usize::try_from(length).map_err(|_| Fault::Garbage("the length of a text"))?,
            },
        };
        if keep == Keep::Yes && self.text.len() + left > KEPT_TEXT_BYTES_MAX {
            return Err(Fault::Other(ArchiveError::TooLarge {
                what: "bytes in one name",
                limit: KEPT_TEXT_BYTES_MAX as u64,
            }));
        }
        let (piece, rest) = input.split_at(left.min(input.len()));
        *input = rest;
        left -= piece.len();
        if keep == Keep::Yes {
            self.text.extend_from_slice(piece);
        }
        if left > 0 {
            self.text_left = Some(left);
            return Ok(None);
        }
        self.text_left = None;
        let text = String::from_utf8_lossy(&self.text).into_owned();
        self.text.clear();
        Ok(Some(Some(text)))
    }
}
