//! The vault: bytes in, receipt out.
//!
//! This crate owns the format of `docs/format.md` and the only code that touches `object_store`, `age` and `zstd`. It
//! needs neither NATS nor Postgres.
//!
//! Invariants:
//! - A backup exists when, and only when, `backups/<id>/receipt.json` does. It is written last, if absent, after
//!   everything it depends on is durable.
//! - Stored bytes are never rewritten; a second attempt has a folder of its own.
//! - An index object is stored only after its packs are durable, so whoever sees a chunk in an index may rely on it.
//! - Content leaves the process only sealed to the vault's recipients; who writes cannot read back.
//! - Nothing is handed out before it has been checked against its chunk's id; nothing is trusted for its size.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod age_file;
mod blocks;
mod bucket;
mod cache;
mod check;
mod chunk_index;
mod chunker;
mod codec;
mod commit;
mod create;
mod describe;
mod error;
mod fetch;
mod generation;
mod index;
mod key_use;
mod keys;
mod layout;
mod manifest;
mod pack;
mod pipeline;
mod reader;
mod rotate;
mod signing;
mod store;
mod vault;
mod vault_check;
mod wal;
mod writer;

pub use check::{CheckReport, Damage, Problem};
pub use chunk_index::{ChunkIndex, ChunkPlace, ChunkTable, IndexedChunks, IndexedPack, TableError};
pub use commit::{Committed, CommittedReceipt};
pub use create::NewVault;
pub use error::{
    CommitError, CreateVaultError, KeyError, OpenVaultError, ReadError, RotateError, StoreError, WriteError,
};

pub use key_use::{BackupKeys, KeyGeneration, KeyUse, RetiredDependency, UnknownKeys};
pub use keys::{Identity, Recipient, WriterKey, parse_recipient};
pub use pack::PACK_BYTES;
pub use reader::BackupReader;
pub use rotate::Rotation;
pub use signing::Signer;
pub use store::{S3Settings, Secret, Store, StoreConfig};
pub use vault::Vault;
pub use vault_check::{
    CheckProgress, CheckScope, DamagedObject, HitBackup, HitFiles, NAMED_FILES, Unchecked, Unreferenced, VaultReport,
};
pub use wal::{WalError, WalReader, WalWriter};
pub use writer::{BackupWriter, Sealed};
