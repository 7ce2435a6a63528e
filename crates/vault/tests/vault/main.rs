//! The vault from outside: what goes in comes out, and nothing else does.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod commits;
mod conformance;
mod creation;
mod damage;
mod document_vectors;
mod edits;
mod faults;
mod forge;
mod golden;
mod index_on_the_way;
mod lost_packs;
mod model;
mod order;
mod pages;
mod read_faults;
mod rotation;
mod round_trip;
mod s3;
mod sealed_vectors;
mod stock_tools;
mod support;
mod trees;
mod vault_check;
mod vectors;
mod wal;
mod wal_vectors;

/// What the tests of the format keep.
const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
