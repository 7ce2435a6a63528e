//! Pure decisions: what a job may do next, whether it is tried again, which targets a request means, when a schedule
//! is due.
//!
//! Nothing here reads a clock, a network or a catalog: the present, the past and the rules are arguments, and the answer
//! is a value that somebody else carries out. The one thing taken from outside is the time zone database, which
//! [`schedule::Schedule::parse`] reads.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod backup_type;
pub mod estimate;
pub mod lifecycle;
pub mod rate;
pub mod recovery;
pub mod retry;
pub mod schedule;
pub mod selector;
