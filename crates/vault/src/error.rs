//! What can go wrong, one enum an operation.
//!
//! Callers branch on a variant or on `is_retryable`, never on text. A cause is a `source`, never part of the message.

use std::io;
use std::path::PathBuf;

use strongroom_proto::{BackupId, ChunkId, VaultId};

type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

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

/// A key or recipient is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a writer key file.
    #[error("this is not a writer key: expected one line STRONGROOM-WRITER-KEY-1 and 64 hex digits")]
    WriterKey,
    /// Not an age recipient.
    #[error(
        "{text:?} is not a recipient: expected age1…, as `age-keygen -y` prints it, or a line of an SSH public key file"
    )]
    Recipient {
        /// What was given.
        text: String,
    },
    /// A recipient of a kind that nothing here can seal to.
    #[error(
        "{what} is not supported by the age library yet; use an age1… recipient of `age-keygen`, or an ssh-ed25519 or \
         ssh-rsa key"
    )]
    UnsupportedRecipient {
        /// What was given.
        what: String,
    },
    /// Nobody could read anything.
    #[error("there is no recipient; name at least one, or nobody could ever restore")]
    NoRecipients,
    /// Not an age identity file.
    #[error(
        "this is not an identity file: expected lines AGE-SECRET-KEY-1…, as `age-keygen` writes them, or an OpenSSH \
         private key"
    )]
    Identity,
    /// An identity behind a passphrase, which nobody is there to type.
    #[error(
        "the identity is protected by a passphrase, which cannot be asked for here; give a copy without one (age -d, or \
         ssh-keygen -p -N '' on a copy)"
    )]
    IdentityPassphrase,
    /// An identity of a kind that nothing here can open with.
    #[error(
        "{what} is not supported by the age library yet; give an AGE-SECRET-KEY-1… of another recipient, or an SSH key"
    )]
    UnsupportedIdentity {
        /// What was given.
        what: &'static str,
    },
    /// Not a signing key.
    #[error(
        "this is not an OpenSSH Ed25519 private key without a passphrase; make one with `ssh-keygen -t ed25519 -N ''`"
    )]
    SigningKey,
    /// Not a public key.
    #[error("this is not an OpenSSH Ed25519 public key line")]
    PublicKey,
    /// Nobody in it may sign receipts.
    #[error(
        "the allowed_signers file names no ssh-ed25519 key for the namespace receipt@strongroom; `strongroom vault signers` \
         prints one"
    )]
    AllowedSigners,
    /// Not a principal.
    #[error("{text:?} is not a principal: use letters, digits and . _ @ - only")]
    Principal {
        /// What was given.
        text: String,
    },
    /// No randomness to be had, or the like.
    #[error("make a signing key")]
    Generate {
        /// Why.
        #[source]
        source: Cause,
    },
}

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

/// The keys of a vault could not be rotated. Unless it says otherwise, those that were in force still are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// The new keys are not valid.
    #[error("the new keys are not valid")]
    Key {
        /// Which and why.
        #[source]
        source: KeyError,
    },
    /// Nobody could ever sign a receipt.
    #[error("there is no signer; name at least one, or no receipt could ever be signed")]
    NoSigners,
    /// What is asked for is in force.
    #[error("these keys are in force already; name other recipients, another writer key or other signers")]
    NothingNew,
    /// The new writer key is an old one.
    #[error("the writer key {key_id} was in force before; make a new one")]
    OldWriterKey {
        /// The key.
        key_id: String,
    },
    /// Somebody else rotated at the same time.
    #[error(
        "another rotation made generation {generation} first; look at the keys, and rotate again if that is needed"
    )]
    Overtaken {
        /// The generation that both wanted to make.
        generation: u32,
    },
    /// What is in the vault cannot be read or trusted, or the writer key is not in force.
    #[error("read the keys in force")]
    Read {
        /// Why.
        #[source]
        source: ReadError,
    },
    /// Sealing a writer key failed.
    #[error("seal the writer key to the recipients")]
    Seal {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error("store the new generation of keys; try again, which is safe")]
    Store {
        /// Why.
        #[source]
        source: StoreError,
    },
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

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        let kind = if error.is_storage_full() {
            io::ErrorKind::StorageFull
        } else {
            io::ErrorKind::Other
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
    #[error("the receipt has {bytes} bytes, more than the {limit_bytes} allowed")]
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

pub(crate) fn wrapped<E: std::error::Error + 'static>(error: &io::Error) -> Option<&E> {
    let mut inner: &(dyn std::error::Error + 'static) = error.get_ref()?;
    loop {
        if let Some(found) = inner.downcast_ref::<E>() {
            return Some(found);
        }
        inner = match inner.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref()?,
            None => inner.source()?,
        };
    }
}
