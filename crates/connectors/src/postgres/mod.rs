//! Postgres: logical dumps with the stock tools, their restore side, and clusters of our own.
//!
//! A dump is `pg_dump` in custom format, uncompressed, streamed through a reader that counts and digests every row
//! ([`archive`]); all of a backup's dumps share one exported snapshot, in which the rows are counted a second time by
//! SQL. A restore feeds the archives to `pg_restore`; a [`drill`](fn@drill) does that on a scratch cluster, dumps the
//! result again, and compares.
//!
//! Invariants: a dump that is not whole is an error, never a short backup; passwords reach the tools by a pass file
//! only; nothing that existed at a restore's destination is changed unless asked for.

pub mod archive;
mod checks;
mod cluster;
mod cluster_tables;
mod compare;
mod counting;
mod create;
mod digest;
mod drill;
mod dump;
mod facts;
mod globals;
mod login;
mod own_folder;
pub mod physical;
mod problem;
mod quote;
pub mod recovery;
mod restore;
mod run_as;
mod sample;
mod sql;
mod target;
mod tokens;
mod tools;
pub mod wal;

pub use checks::{
    CHECKS_SCHEMA, Checks, DatabaseChecks, ExtensionChecks, GrantChecks, LargeObjectChecks, SettingChecks, TableChecks,
};
pub use cluster::{Cluster, ClusterError, ClusterOptions, ServerBinaries, StopMode};
pub use cluster_tables::count_cluster;
pub use compare::compare;
pub use drill::{DrillConfig, DrillError, drill};
pub use dump::{DumpError, DumpReport, dump};
pub use facts::{ServerFacts, probe};
pub use own_folder::FileError;
pub use problem::Problem;
pub use restore::{RestoreError, RestoreOptions, RestoreReport, restore};
pub use sample::sample_sql;
pub use sql::SqlError;
pub use target::{LARGE_TABLE_BYTES, PostgresTarget, TargetError};

pub use crate::child::ToolOutput;
