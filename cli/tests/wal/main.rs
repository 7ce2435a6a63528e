//! `strongroom wal`: one file at a time into a vault and back, and whole recoveries with real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fetch;
mod place;
mod push;
mod recovery;
