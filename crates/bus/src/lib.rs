//! NATS: streams and consumers as code, publishing, and consuming with bounded concurrency.
//!
//! JetStream delivers; it is not where truth lives. Everything published here was committed elsewhere first and can be
//! published again, so a stream that was lost is made anew and refilled. Only this crate speaks NATS.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod connect;
mod consume;
mod endpoint;
mod publish;
mod streams;

pub use connect::{Bus, BusConfig, ConnectError};
pub use consume::{ConsumerSpec, Delivery, consume};
pub use endpoint::{Answer, serve};
pub use publish::{Outgoing, PublishError};
pub use streams::StreamError;
