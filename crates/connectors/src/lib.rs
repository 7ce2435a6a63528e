//! Where bytes come from and go back to: every kind of target as a source and its restore side, in pairs.
//!
//! This crate knows only `strongroom-proto`: a source writes entries into an [`EntrySink`], a restore side reads them
//! from an [`EntrySource`]; what lies between (chunks, packs, keys) is the vault's. Everything here blocks: callers
//! run it on blocking threads. Child processes die with the operation that started them.
//!
//! [`EntrySink`]: strongroom_proto::manifest::EntrySink
//! [`EntrySource`]: strongroom_proto::manifest::EntrySource

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod child;
pub mod command;
pub mod files;
pub mod hook;
pub mod postgres;
mod scratch;
mod sink;
mod streams;

pub use child::Stop;
pub use streams::StreamsAsFiles;
