//! WAL in a vault: pieces of segments and the history files of timelines, each an object of its own.
//!
//! An object is an age file. In it lies a zstd skippable frame with a statement of what this is and its signature, and
//! an ordinary zstd frame of the bytes, so that `age -d | zstd -d` of a segment's pieces in order gives the segment. A
//! piece belongs to no backup: its signature vouches for it, and its name tells where it belongs without any key.
//!
//! Left to others: which pieces make a segment, holes, and what lies in the bytes.

mod object;
mod reader;
mod writer;

use std::io;

use strongroom_proto::wal::WalPiece;

use crate::error::{ReadError, StoreError, wrapped};

pub(crate) use self::object::limit_bytes;
pub use self::reader::WalReader;
pub(crate) use self::reader::open_object;
pub use self::writer::WalWriter;

/// WAL could not be put into the vault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// It is no WAL that a vault takes.
    #[error("{what} is refused: {rule}")]
    Refused {
        /// What was offered.
        what: String,
        /// What it fails.
        rule: &'static str,
    },
    /// The vault must not be written to with what is at hand.
    #[error("check the vault's keys before WAL is stored")]
    Keys {
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The vault does not know the signer.
    #[error(
        "the key of {principal} is not among the vault's signers, so nobody could check the WAL; use a key that the vault \
         lists"
    )]
    UnknownSigner {
        /// Who.
        principal: String,
    },
    /// Compressing, signing or sealing failed.
    #[error("{doing}")]
    Encode {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The compressor's output does not decode to its input.
    #[error(
        "WAL does not decode to what was compressed; this machine's memory or zstd library is faulty, nothing of it was \
         stored"
    )]
    CodecCorrupt,
    /// The store failed.
    #[error("store WAL")]
    Store {
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The work was lost, e.g. because the process is shutting down.
    #[error("the WAL was not stored: the work was interrupted")]
    Interrupted,
}

impl WalError {
    /// Whether the same call may well succeed later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source } => source.is_retryable(),
            Self::Keys { source } => source.is_retryable(),
            Self::Interrupted => true,
            _ => false,
        }
    }

    /// Whether somebody has to free space in the vault's store first.
    pub const fn is_storage_full(&self) -> bool {
        matches!(self, Self::Store { source } if source.is_storage_full())
    }

    /// The error that an error of [`std::io`] wraps, where it does: WAL is stored through `io::Result`.
    pub fn in_io_error(error: &io::Error) -> Option<&Self> {
        wrapped(error)
    }
}

impl From<WalError> for io::Error {
    fn from(error: WalError) -> Self {
        let kind = match &error {
            _ if error.is_storage_full() => io::ErrorKind::StorageFull,
            WalError::Refused { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Whether a piece that is not empty ends in the segment it begins in.
const fn is_in_one_segment(piece: &WalPiece) -> bool {
    let last = piece.to.0.saturating_sub(1);
    piece.segment().number == last / piece.segment_bytes as u64
}
