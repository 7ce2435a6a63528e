//! The contract between every part of Strongroom: ids, subjects, events, commands, receipts and API types.
//!
//! This crate owns what crosses a process boundary or is stored, and nothing that acts: no IO, no clock, no
//! randomness beyond fresh ids. JSON Schemas, the AsyncAPI and the OpenAPI document under `proto/schemas/` are
//! generated from these types ([`documents`]), and a test fails when they drift.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod api;
pub mod cluster_tables;
pub mod database_changes;
pub mod documents;
pub mod events;
pub mod ids;
pub mod job;
pub mod manifest;
pub mod receipt;
pub mod restore;
pub mod subjects;
pub mod timeline;
pub mod wal;
pub mod work;

pub use ids::{
    Attempt, BackupId, ChunkId, JobId, RestorePointId, ScheduleId, Sha256Digest, TargetName, TriggerId, VaultId,
};
pub use job::{BackupType, JobKind, JobStatus, Progress, TargetKind};
