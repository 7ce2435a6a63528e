//! A cluster as configuration names it.

use std::fmt;
use std::path::PathBuf;

use url::Url;

use crate::postgres::target::{Endpoint, PostgresTarget, TargetError};

/// The slot that a receiver keeps where the configuration names no other.
pub const DEFAULT_SLOT: &str = "strongroom";
/// What a server takes as a rate limit, in KiB/s.
const RATE_KIB: std::ops::RangeInclusive<u64> = 32..=1_048_576;

/// A whole cluster, reached by its replication protocol.
#[derive(Clone)]
pub struct ClusterTarget {
    /// `postgres://user[:password]@host[:port][/database]`, or a socket's folder as `?host=/folder`; the role needs the
    /// attribute REPLICATION. The database, `postgres` unless named, is only asked for sizes. Never printed.
    pub url: Url,
    /// A file that holds the password on its first line; it takes precedence over the URL.
    pub password_file: Option<PathBuf>,
    /// The physical replication slot of the receiver: lower-case letters, digits and underscores.
    pub slot: String,
    /// The most bytes a second that a base backup reads; what lies outside what servers know (32 KiB/s to 1 GiB/s) is
    /// taken as the nearest that they do.
    pub rate_bytes_per_second: Option<u64>,
}

impl ClusterTarget {
    /// The cluster at `url`, with the usual slot and no rate limit.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            password_file: None,
            slot: DEFAULT_SLOT.to_owned(),
            rate_bytes_per_second: None,
        }
    }

    pub(crate) fn endpoint(&self) -> Result<Endpoint, TargetError> {
        let mut url = self.url.clone();
        let names_one = url.query_pairs().any(|(name, _)| name == "dbname");
        if !names_one && url.path().trim_start_matches('/').is_empty() {
            url.set_path("postgres");
        }
        let mut server = PostgresTarget::new(url);
        server.password_file.clone_from(&self.password_file);
        server.endpoint()
    }

    /// The slot's name, where servers would take it.
    pub(super) fn slot(&self) -> Result<&str, TargetError> {
        let is_name = (1..=63).contains(&self.slot.len())
            && self
                .slot
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        is_name.then_some(&*self.slot).ok_or(TargetError::Slot)
    }

    /// The rate limit in the server's unit.
    pub(super) fn rate_kib(&self) -> Option<u64> {
        self.rate_bytes_per_second
            .map(|bytes| (bytes / 1024).clamp(*RATE_KIB.start(), *RATE_KIB.end()))
    }
}

impl fmt::Debug for ClusterTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self
            .endpoint()
            .map_or_else(|_| "<not valid>".to_owned(), |endpoint| endpoint.to_string());
        f.debug_struct("ClusterTarget")
            .field("url", &url)
            .field("password_file", &self.password_file)
            .field("slot", &self.slot)
            .field("rate_bytes_per_second", &self.rate_bytes_per_second)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown_and_slots_are_names() {
        let mut target = ClusterTarget::new("postgres://ann:hunter2@db".parse().unwrap());
        assert!(!format!("{target:?}").contains("hunter2"));
        assert_eq!(target.endpoint().unwrap().to_string(), "ann@db:5432/postgres");
        for bad in ["", "Slot", "a b", "a;drop", "a\n", &"x".repeat(64)] {
            target.slot = bad.to_owned();
            assert!(target.slot().is_err(), "{bad:?}");
        }
        target.slot = "strongroom_2".to_owned();
        assert!(target.slot().is_ok());
    }

    #[test]
    fn rates_are_what_servers_take() {
        let mut target = ClusterTarget::new("postgres://ann@db".parse().unwrap());
        assert_eq!(target.rate_kib(), None);
        for (bytes, kib) in [(0, 32), (10 << 20, 10 << 10), (u64::MAX, 1 << 20)] {
            target.rate_bytes_per_second = Some(bytes);
            assert_eq!(target.rate_kib(), Some(kib));
        }
    }
}
