//! Real servers and real processes for tests: Postgres, NATS and S3, each in a temporary folder on free loopback
//! ports, and our own binaries with their output at hand. Development only; nothing that ships depends on it.
//!
//! - A missing tool is an error that names the command to run, never a skipped test.
//! - Nothing outlives the test: a server is killed when its handle is dropped, and by the kernel when the test process
//!   dies (children are started through `setpriv --pdeathsig KILL`).
//! - `kill` is SIGKILL, so that what survives it was made durable by the server and not by its shutdown.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod nats;
mod ports;
mod postgres;
mod process;
mod s3;
mod spawn;
mod tools;
mod wait;

pub use nats::Nats;
pub use ports::free_port;
pub use postgres::Postgres;
pub use process::{Process, bin};
pub use s3::S3;
pub use tools::{tool, tools_dir};
pub use wait::{wait_for, wait_for_async};
