//! WAL as files: what `restore_command` asks for, put together from a vault's pieces, and what `archive_command` hands
//! over, checked and stored as a piece.
//!
//! Streaming WAL from a server is not done here. Nor are stores and keys known: pieces come from a [`WalSource`] and
//! go to a [`WalSink`].
//!
//! Invariants: an answer "absent" is given only where the vault was asked, has WAL of this cluster, and knows of nothing
//! that comes after; a segment is never put together over a hole or out of two versions; nothing is stored that is not
//! WAL of this cluster at this place.
//!
//! [`WalSource`]: strongroom_proto::wal::WalSource
//! [`WalSink`]: strongroom_proto::wal::WalSink

mod assemble;
mod name;
pub(crate) mod page;
mod push;
mod settings;
#[cfg(test)]
pub(super) mod tests;

pub use assemble::{Answer, AssembleError, Found, find, find_up_to};
pub use name::WalFileName;
pub use page::HeadProblem;
pub use push::{HistoryBefore, PushError, Pushed, push};
pub use settings::{DEFAULT_SEGMENT_BYTES, FetchBucket, FetchSettings, Hidden};
