//! What every service that does jobs shares: one attempt from message to outcome.
//!
//! It joins `catalog`, `bus` and `vault`, which know nothing of each other. A service brings a [`JobHandler`]; this crate brings
//! the claim, the lease with its heartbeat, the fence against panics, the drain at shutdown, and exactly one outcome.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod attempt;
mod backup;
mod chunks;
mod service;
mod watched;

pub use attempt::{AttemptContext, JobHandler, OnStop, Outcome, Progress, StopReason, WorkerOptions, run};
pub use backup::{Description, TakeError, Taken, Writing, failed, software};
pub use service::{Service, Vaulted, identity, store_config, writer_key};
pub use strongroom_vault::WalWriter;
pub use watched::{WatchedSink, WatchedSource};
