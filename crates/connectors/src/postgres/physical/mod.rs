//! Whole clusters, from outside: base backups and write-ahead log over the replication protocol.
//!
//! Nothing is installed on the database's host; a role with the attribute REPLICATION is enough. [`base_backup`] reads
//! the data folder into a sink, on Postgres 17 and newer only what has changed, which it lays over the last backup, so
//! that every backup is whole on its own. [`receive`] follows the WAL through a physical slot.
//!
//! Invariants: a backup that differs from the server's own manifest in one byte is an error; a position is reported to
//! the slot only when everything before it is durable; what a server sends is bounded before it is kept.

mod base;
mod base_error;
mod commands;
mod commit_times;
mod error;
mod incremental;
mod laid_down;
mod probe;
mod receive;
mod receive_error;
mod resume;
mod server_manifest;
mod session;
mod standing;
mod storing;
mod streaming;
mod tar;
mod target;
mod tls;
mod tree;
mod wire;

pub use base::{BaseBackup, Progress, Want, base_backup};
pub use base_error::{BaseBackupError, DamageError};
pub use error::{ServerError, WireError};
pub use laid_down::LaidDown;
pub use probe::{ClusterProbe, SlotFacts, check_slot, probe};
pub use receive::{Ended, ReceiveOptions, WalEvent, receive};
pub use receive_error::ReceiveError;
pub use server_manifest::ServerManifest;
pub use standing::{Standing, standing};
pub use storing::WalDamage;
pub use target::{ClusterTarget, DEFAULT_SLOT};
pub use tree::{TreeSummary, TreeWriter};
