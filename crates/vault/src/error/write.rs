//! Backups that could not be written, and receipts that could not be put into the vault.

use std::io;

use strongroom_proto::{ChunkId, VaultId};

use super::{Cause, ReadError, StoreError, wrapped};

/// A backup could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The store failed.
    #[error("{doing}")]
    Store {
        /// What for.
        doing: &'static str,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The vault must not be written to with what is at hand.
    #[error("begin a backup")]
    Vault {
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The compressor's output does not decode to its input.
    #[error(
        "chunk {chunk} does not decode to what was compressed; this machine's memory or zstd library is faulty, nothing of it was stored"
    )]
    CodecCorrupt {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The compressor failed.
    #[error("compress chunk {chunk}")]
    Compress {
        /// The chunk.
        chunk: ChunkId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Sealing failed.
    #[error("seal {object}")]
    Seal {
        /// What.
        object: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry or the manifest could not be put into JSON.
    #[error("encode {object}")]
    Encode {
        /// What.
        object: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The calls came in an order that makes no entry.
    #[error("entries are written as begin, write, end; {found}")]
    Order {
        /// What came instead.
        found: &'static str,
    },
    /// An entry's path, link target and the like are longer than any file system allows.
    #[error("the entry {path:?}… is described by {bytes} bytes, more than the {limit_bytes} allowed")]
    EntryTooLarge {
        /// The beginning of its path.
        path: String,
        /// How long its description is.
        bytes: usize,
        /// What is allowed.
        limit_bytes: usize,
    },
    /// The index was made for another vault.
    #[error("the chunk index belongs to another vault than the backup; make one for this vault")]
    ForeignIndex,
    /// An index object that the backup relies on is no longer as it was stored. The next attempt does without it.
    #[error("{object} is gone or damaged, and what it lists cannot be relied on; check the vault")]
    IndexGone {
        /// The object.
        object: String,
    },
    /// No reader would take it.
    #[error("the {object} would have {bytes} bytes, more than the {limit_bytes} any reader takes: split the target")]
    TooLarge {
        /// What.
        object: &'static str,
        /// How large it would be.
        bytes: u64,
        /// How large it may be.
        limit_bytes: u64,
    },
    /// A thread could not be started.
    #[error("start a thread for the backup; the limit on processes or memory may be reached")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A stage ended without saying why.
    #[error("a stage of the backup ended unexpectedly; run the job again")]
    StageEnded,
    /// An earlier call has reported why.
    #[error("the backup was given up after an earlier error")]
    GivenUp,
}

impl WriteError {
    /// Whether the same backup may well succeed later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_retryable(),
            Self::Vault { source } => source.is_retryable(),
            Self::StageEnded | Self::IndexGone { .. } => true,
            _ => false,
        }
    }

    /// Whether somebody has to free space in the vault's store first.
    pub const fn is_storage_full(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_storage_full())
    }

    /// The write error that an error of [`std::io`] wraps, where it does: entries are written through `io::Result`.
    pub fn in_io_error(error: &io::Error) -> Option<&Self> {
        wrapped(error)
    }
}

/// The kind tells who knows nothing of vaults whether to try again: not with `StorageFull`, `PermissionDenied` and
/// `InvalidData`.
impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        let kind = match &error {
            _ if error.is_storage_full() => io::ErrorKind::StorageFull,
            WriteError::Store {
                source: StoreError::Refused { .. },
                ..
            } => io::ErrorKind::PermissionDenied,
            // What was given up may have failed for a reason that passes.
            WriteError::GivenUp => io::ErrorKind::Other,
            _ if error.is_retryable() => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// A receipt could not be put into the vault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The store failed.
    #[error("{doing}")]
    Store {
        /// What for.
        doing: &'static str,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The vault does not know the signer.
    #[error(
        "the key of {principal} is not among the vault's signers, so nobody could check the receipt; use a key that vault.json lists"
    )]
    UnknownSigner {
        /// Who.
        principal: String,
    },
    /// The receipt names another vault.
    #[error("the receipt is for vault {found}, not for {expected}")]
    WrongVault {
        /// What the receipt says.
        found: VaultId,
        /// This vault.
        expected: VaultId,
    },
    /// The receipt is too large.
    #[error(
        "the receipt has {bytes} bytes, more than the {limit_bytes} allowed: exclude from the target what it names as missing, \
         or split the target"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit_bytes: usize,
    },
    /// The receipt could not be put into JSON.
    #[error("encode the receipt")]
    Encode {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Signing failed.
    #[error("sign the receipt")]
    Sign {
        /// Why.
        #[source]
        source: Cause,
    },
    /// There is one already, with other content.
    #[error("{object} exists already with other content; a receipt is never rewritten")]
    AlreadyExists {
        /// The object.
        object: String,
    },
    /// What is there already cannot be read, or must not be trusted.
    #[error("a receipt is there already, but it cannot be used")]
    Existing {
        /// Why.
        #[source]
        source: ReadError,
    },
}

impl CommitError {
    /// Whether the same call may well succeed later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_retryable(),
            Self::Existing { source } => source.is_retryable(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(error: WriteError) -> io::ErrorKind {
        io::Error::from(error).kind()
    }

    #[test]
    fn the_kind_of_an_io_error_tells_what_another_try_does_not_mend() {
        let store = |source| WriteError::Store { doing: "store", source };
        let (operation, object) = ("put", "x".to_owned());
        let refused = StoreError::Refused {
            operation,
            object: object.clone(),
            source: "no".into(),
        };
        let full = StoreError::Full {
            operation,
            object: object.clone(),
            source: "no".into(),
        };
        let unavailable = StoreError::Unavailable {
            operation,
            object: object.clone(),
            source: "no".into(),
        };
        assert_eq!(kind(store(refused)), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(store(full)), io::ErrorKind::StorageFull);
        assert_eq!(kind(store(StoreError::Differs { object })), io::ErrorKind::InvalidData);
        let chunk = ChunkId::from_bytes([0; 32]);
        assert_eq!(kind(WriteError::CodecCorrupt { chunk }), io::ErrorKind::InvalidData);
        for error in [store(unavailable), WriteError::StageEnded, WriteError::GivenUp] {
            assert_eq!(kind(error), io::ErrorKind::Other);
        }
    }
}
