//! The connectors against real servers, real trees and real commands.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cluster;
mod cluster_tables;
mod command;
mod compare;
mod drill;
mod dump;
mod files;
mod files_drill;
mod files_hostile;
mod files_in_place;
mod files_lacks;
mod files_properties;
mod files_restore;
mod files_snapshot;
mod memory;
mod physical;
mod physical_base;
mod physical_wal;
mod recovery_copy;
mod recovery_failures;
mod recovery_layout;
mod recovery_moments;
mod recovery_source;
mod restore;
mod server;
