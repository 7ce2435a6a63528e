//! What an error of an [`EntrySink`](strongroom_proto::manifest::EntrySink) says of another try.

use std::io;

/// Whether what could not be stored may be stored by another attempt without anybody doing anything. Where entries go says
/// by the kind of its error that it will fail again: it is full, it refuses, or a part of it does not work as it should.
pub(crate) fn may_be_stored_later(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidData
    )
}
