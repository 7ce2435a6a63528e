//! `vault.json`: what a vault is, in the open. Written once, when the vault is made.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strongroom_proto::VaultId;

use crate::chunker::ChunkerParameters;

/// The version of everything in a vault.
pub(crate) const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) format: u32,
    pub(crate) vault_id: VaultId,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) chunker: ChunkerParameters,
    pub(crate) recipients: Vec<String>,
    pub(crate) writer_key_id: String,
    pub(crate) signers: Vec<KnownSigner>,
    pub(crate) capabilities: Capabilities,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownSigner {
    pub(crate) principal: String,
    pub(crate) public_key: String,
}

/// What the store was found to do when the vault was made; none where it could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    /// An object created twice keeps its first content, and the second creation is refused.
    pub(crate) create_if_absent: bool,
    /// A put with the checksum of other bytes is refused.
    #[serde(default)]
    pub(crate) checksums: Option<bool>,
    /// What is deleted or replaced is kept as an earlier version.
    #[serde(default)]
    pub(crate) versioning: Option<bool>,
    /// Objects can be locked against deletion for a time.
    #[serde(default)]
    pub(crate) lock: Option<bool>,
}

impl Capabilities {
    /// Those of a file system, which checks nothing and keeps nothing: what is put there is read back.
    pub(crate) const FILE_SYSTEM: Self = Self {
        create_if_absent: true,
        checksums: Some(false),
        versioning: Some(false),
        lock: Some(false),
    };
}
