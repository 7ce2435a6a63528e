//! The vault from outside: what goes in comes out, and nothing else does.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod commits;
mod creation;
mod damage;
mod faults;
mod order;
mod rotation;
mod round_trip;
mod s3;
mod stock_tools;
mod support;
mod vault_check;
mod trees;
