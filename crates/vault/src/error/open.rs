//! Vaults that could not be made or opened.

use std::io;

use super::{Cause, KeyError, ReadError, StoreError};

/// A vault could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateVaultError {
    /// Nobody could ever read it.
    #[error("a vault needs at least one recipient, or nobody could ever restore from it; give an age1… recipient")]
    NoRecipients,
    /// Nobody could ever sign a receipt in it.
    #[error("a vault needs at least one signer; give the public key that receipts will be signed with")]
    NoSigners,
    /// A recipient or signer is not valid.
    #[error("the new vault's keys are not valid")]
    Key {
        /// Which and why.
        #[source]
        source: KeyError,
    },
    /// There is a vault already.
    #[error("there is a vault at {url} already; open it, or choose another place")]
    Exists {
        /// Where.
        url: String,
    },
    /// The store overwrites where it was told not to, so that two attempts could both commit.
    #[error(
        "the store {url} does not honour create-if-absent ({found}): two writers could overwrite each other's receipt; \
         use a store with conditional writes (If-None-Match)"
    )]
    NoCreateIfAbsent {
        /// Where.
        url: String,
        /// What it did.
        found: &'static str,
    },
    /// Sealing the writer key failed.
    #[error("seal the writer key to the recipients")]
    Seal {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error("create the vault")]
    Store {
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl CreateVaultError {
    /// Whether the same call may well succeed later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Store { source } if source.is_retryable())
    }
}

/// A vault could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenVaultError {
    /// There is none.
    #[error("there is no vault at {url}; create it, or check the URL")]
    NoVault {
        /// Where.
        url: String,
    },
    /// It was written by a newer version, or with other parameters.
    #[error(
        "the vault at {url} has {what}, which this version cannot work with; use the version that made it, or a newer one"
    )]
    Unsupported {
        /// Where.
        url: String,
        /// What.
        what: String,
    },
    /// `vault.json` is damaged.
    #[error("vault.json at {url} is damaged; restore it from a copy of the vault")]
    Malformed {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The generations of keys cannot be read or trusted.
    #[error("read the vault's keys")]
    Keys {
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The store failed.
    #[error("open the vault")]
    Store {
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl OpenVaultError {
    /// Whether the same call may well succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source } => source.is_retryable(),
            Self::Keys { source } => source.is_retryable(),
            _ => false,
        }
    }
}
