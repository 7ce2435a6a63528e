//! The catalog against a real Postgres.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod asked;
mod jobs;
mod trees;
mod wal;
