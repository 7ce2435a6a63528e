//! What could not be read from a vault, or must not be trusted.

use std::io;

use strongroom_proto::{BackupId, ChunkId, VaultId};

use super::{Cause, StoreError, wrapped};

/// Something in a vault could not be read, or must not be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The store failed.
    #[error("{doing}")]
    Store {
        /// What for.
        doing: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The table in which chunks are looked up did not answer.
    #[error("look up which chunks the vault has")]
    Table {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no such backup.
    #[error("backup {id} is not in the vault: it has no receipt")]
    NoBackup {
        /// The backup.
        id: BackupId,
    },
    /// An object that the receipt or the list of packs names is gone.
    #[error(
        "{object} is missing from the vault; check the backup, and restore the object from another copy of the vault"
    )]
    Missing {
        /// The object.
        object: String,
    },
    /// An object's bytes are not those its digest, its MAC or its name promise.
    #[error("{object} is damaged: {problem}; check the backup, and restore the object from another copy of the vault")]
    Damaged {
        /// The object.
        object: String,
        /// What does not match.
        problem: &'static str,
    },
    /// An object's bytes cannot be taken apart.
    #[error(
        "{object} is damaged: it cannot be decoded; check the backup, and restore the object from another copy of the vault"
    )]
    Malformed {
        /// The object.
        object: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// No signer of the vault made this signature.
    #[error("the signature of {object} was not made over these bytes by a signer of this vault; do not trust it")]
    BadSignature {
        /// The object.
        object: String,
    },
    /// The receipt belongs to another vault or backup.
    #[error("{object} was written for {found}, not for {expected}; somebody moved it")]
    Misplaced {
        /// The object.
        object: String,
        /// What it says.
        found: String,
        /// What its place says.
        expected: String,
    },
    /// The identity does not open it.
    #[error("the identity does not open {object}; give the identity file of one of the vault's recipients")]
    WrongIdentity {
        /// The object.
        object: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The writer key is not the vault's.
    #[error("the writer key {found} is not the one of vault {vault}, which is {expected}; configure the right one")]
    WrongWriterKey {
        /// The vault.
        vault: VaultId,
        /// What was given.
        found: String,
        /// What is expected.
        expected: String,
    },
    /// The writer key was replaced.
    #[error(
        "the writer key of vault {vault} was rotated: install key {expected} in place of {found}; it takes the holder of \
         the new key file"
    )]
    WriterKeyRotated {
        /// The vault.
        vault: VaultId,
        /// What was given.
        found: String,
        /// What is in force.
        expected: String,
    },
    /// A generation of keys that no holder of the writer key made.
    #[error(
        "{object} was not made by a holder of the vault's writer key: somebody who can write to the store added or changed \
         it; find out who, then delete it or restore it from another copy of the vault"
    )]
    ForgedGeneration {
        /// The object.
        object: String,
    },
    /// Two signed objects under one name say different things.
    #[error(
        "the objects in {folder} contradict one another: two clusters with the same system identifier wrote there; keep \
         the one that is right, or give one of the clusters a vault of its own"
    )]
    Contradiction {
        /// Where they lie.
        folder: String,
    },
    /// The format is newer than this version.
    #[error("{object} has format {format}, which this version cannot read; use a newer version")]
    NewerFormat {
        /// The object.
        object: String,
        /// Its format.
        format: u32,
    },
    /// The receipt says that nothing was stored.
    #[error("backup {id} holds no content: its receipt names no manifest")]
    NothingStored {
        /// The backup.
        id: BackupId,
    },
    /// No index of this backup knows the chunk.
    #[error("chunk {chunk} is in no index of this backup; check the backup")]
    ChunkUnknown {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The chunk's content is not what its id promises.
    #[error(
        "chunk {chunk} in pack {pack} is damaged; check the backup, and restore the pack from another copy of the vault"
    )]
    ChunkCorrupt {
        /// The chunk.
        chunk: ChunkId,
        /// Where it lies.
        pack: String,
    },
    /// The content put together is not what was written.
    #[error("the content of {path:?} does not match its digest; do not use what was restored of it")]
    EntryCorrupt {
        /// The entry.
        path: String,
    },
    /// No such entry.
    #[error("the backup has no entry {path:?}")]
    NoEntry {
        /// The entry.
        path: String,
    },
    /// A part of the work was lost, e.g. because the process is shutting down.
    #[error("{doing}: the work was interrupted")]
    Interrupted {
        /// What for.
        doing: String,
    },
}

impl ReadError {
    /// Whether the same call may well succeed later without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_retryable(),
            Self::Interrupted { .. } | Self::Table { .. } => true,
            _ => false,
        }
    }

    /// Whether the object itself is not what it should be, so that another copy of what it holds may do.
    pub(crate) const fn is_bad_object(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::Malformed { .. }
            | Self::BadSignature { .. }
            | Self::Misplaced { .. }
            | Self::NewerFormat { .. } => true,
            Self::Store { source, .. } => matches!(source, StoreError::TooLarge { .. }),
            _ => false,
        }
    }

    /// Whether what lies in the vault is not what it should be, or not there, and the store itself does as it is asked. It says
    /// nothing of the backups that do not need what is damaged.
    pub const fn is_damage(&self) -> bool {
        self.is_bad_object()
            || matches!(
                self,
                Self::Missing { .. }
                    | Self::ForgedGeneration { .. }
                    | Self::Contradiction { .. }
                    | Self::ChunkUnknown { .. }
                    | Self::ChunkCorrupt { .. }
                    | Self::EntryCorrupt { .. }
            )
    }

    /// The read error that an error of [`std::io`] wraps, where it does: entries are read through `io::Result`.
    pub fn in_io_error(error: &io::Error) -> Option<&Self> {
        wrapped(error)
    }

    pub(crate) fn store(doing: impl Into<String>, source: StoreError) -> Self {
        Self::Store {
            doing: doing.into(),
            source,
        }
    }

    pub(crate) fn malformed(object: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Malformed {
            object: object.into(),
            source: source.into(),
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::NoEntry { .. } | ReadError::NoBackup { .. } | ReadError::Missing { .. } => {
                io::ErrorKind::NotFound
            }
            // Longer than any such object is damage, too.
            ReadError::Store { source, .. } if !matches!(source, StoreError::TooLarge { .. }) => io::ErrorKind::Other,
            ReadError::Interrupted { .. } => io::ErrorKind::Other,
            // It says nothing about the object.
            ReadError::WrongIdentity { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_does_not_do_is_no_damage() {
        let object = || "backups/b/receipt.json".to_owned();
        let store = |source| ReadError::store("read a receipt", source);
        let unavailable = StoreError::Unavailable {
            operation: "get",
            object: object(),
            source: "no answer".into(),
        };
        let refused = StoreError::Refused {
            operation: "get",
            object: object(),
            source: "no".into(),
        };
        assert!(!store(unavailable).is_damage() && !store(refused).is_damage());
        let too_large = StoreError::TooLarge {
            object: object(),
            bytes: 2,
            limit_bytes: 1,
        };
        for damage in [
            store(too_large),
            ReadError::Missing { object: object() },
            ReadError::BadSignature { object: object() },
            ReadError::malformed(object(), "not JSON"),
        ] {
            assert!(damage.is_damage() && !damage.is_retryable(), "{damage}");
        }
    }
}
