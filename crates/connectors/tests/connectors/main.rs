//! The connectors against real servers, real trees and real commands.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cluster;
mod command;
mod drill;
mod dump;
mod files;
mod memory;
mod restore;
mod server;
