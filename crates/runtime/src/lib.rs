//! What every Strongroom process needs before it can do its work: configuration, tracing, shutdown, an entry point.
//!
//! This crate decides nothing about backups. It owns where a setting comes from, that a secret is never shown, and
//! that a trace survives the way through queues and tables.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod config;
pub mod entry;
pub mod shutdown;
pub mod targets;
pub mod telemetry;

pub use config::{
    Config, ConfigError, HookConfig, HooksConfig, LoadOptions, Loaded, Origin, PostgresMethod, Secret, SecretUrl,
    TargetConfig, WalTransport,
};
pub use entry::service_main;
pub use shutdown::Shutdown;
pub use targets::TargetBook;
