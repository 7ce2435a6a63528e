//! What can go wrong, one enum an operation.
//!
//! Callers branch on a variant or on `is_retryable`, never on text. A cause is a `source`, never part of the message.

mod keys;
mod open;
mod read;
mod store;
mod write;

use std::io;

pub use keys::{KeyError, RotateError};
pub use open::{CreateVaultError, OpenVaultError};
pub use read::ReadError;
pub use store::StoreError;
pub use write::{CommitError, WriteError};

type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

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
