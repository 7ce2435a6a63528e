//! What the object store, or the folder in its place, did not do.

use std::io;
use std::path::PathBuf;

use super::Cause;

/// The object store, or the folder in its place, did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URL names no store.
    #[error("the vault URL is not valid: {rule}")]
    BadUrl {
        /// What is expected.
        rule: &'static str,
    },
    /// The settings do not make a client.
    #[error("the settings for the store {url} do not work; check endpoint, region and access key")]
    Configure {
        /// The store.
        url: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The folder of a local vault cannot be used.
    #[error("cannot use the folder {path}; check that it exists, is mounted and belongs to this user", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store is full.
    #[error("{operation} {object}: no space is left in the store; free space or enlarge it, then try again")]
    Full {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        object: String,
        /// The store's own words.
        #[source]
        source: Cause,
    },
    /// The store cannot be reached, timed out, or answered with an error of its own.
    #[error("{operation} {object}: the store did not answer as it should; check that it is up and reachable")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        object: String,
        /// The store's own words.
        #[source]
        source: Cause,
    },
    /// The store refuses, and will refuse again.
    #[error("{operation} {object}: the store refused; check permissions and settings")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        object: String,
        /// The store's own words.
        #[source]
        source: Cause,
    },
    /// What was read back is not what was sent.
    #[error(
        "put {object}: the store holds other bytes than were sent; check its disks and memory before using it again"
    )]
    Differs {
        /// The object.
        object: String,
    },
    /// An object with this name and other content is there already.
    #[error("put {object}: it exists already with other content, and stored bytes are never rewritten")]
    Exists {
        /// The object.
        object: String,
    },
    /// An object is larger than any we write.
    #[error("get {object}: it has {bytes} bytes, more than the {limit_bytes} such an object may have")]
    TooLarge {
        /// The object.
        object: String,
        /// Its size.
        bytes: u64,
        /// What is allowed.
        limit_bytes: u64,
    },
    /// The file system could not be made to write its buffers out.
    #[error("sync the file system of {path}", path = path.display())]
    Sync {
        /// The vault's folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the same call may well succeed later without anybody doing anything.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether somebody has to free space first.
    pub const fn is_storage_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}
