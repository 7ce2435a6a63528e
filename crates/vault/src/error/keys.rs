//! Keys that are not what they should be, and keys that could not be rotated.

use std::io;

use super::{Cause, ReadError, StoreError};

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
