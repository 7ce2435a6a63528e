//! What a job is: its kind, its states, and the kinds of target it can be about.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant),+
        }
        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The text that stands for it on the wire and in the catalog.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(UnknownWord { what: $what, text: other.to_owned(), known: &[$($text),+] }),
                }
            }
        }
    };
}

/// A word that is not one of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {text:?}; known are {}", known.join(", "))]
pub struct UnknownWord {
    what: &'static str,
    text: String,
    known: &'static [&'static str],
}

text_enum!(
    /// What a job does.
    JobKind, "job kind" {
        /// Copies a target into the vault.
        Backup => "backup",
        /// Proves that a backup restores.
        Verify => "verify",
        /// Puts a backup into a real destination.
        Restore => "restore",
    }
);

text_enum!(
    /// Where a job stands. `pending` waits for a worker, `running` has one; the others are final.
    JobStatus, "job status" {
        /// Waits to be dispatched or claimed.
        Pending => "pending",
        /// An attempt holds the lease.
        Running => "running",
        /// Finished with a receipt.
        Completed => "completed",
        /// Given up; the error says why.
        Failed => "failed",
        /// Stopped on request before it finished.
        Cancelled => "cancelled",
    }
);

impl JobStatus {
    /// Whether nothing will change this job any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// How far an attempt of a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Bytes of content it has done.
    pub bytes: u64,
    /// Files, directories and other entries of a tree it has done.
    pub files: u64,
    /// Bytes it expects; absent where it cannot tell, or has passed what it expected.
    pub total_bytes: Option<u64>,
    /// Bytes a second over the last seconds.
    pub rate_bytes_per_second: Option<u64>,
    /// How long it will take at that rate.
    pub seconds_left: Option<u64>,
}

impl Progress {
    /// Of these counts at this rate.
    pub fn new(bytes: u64, files: u64, total_bytes: Option<u64>, rate_bytes_per_second: Option<u64>) -> Self {
        let total_bytes = total_bytes.filter(|total| *total >= bytes);
        let rate = rate_bytes_per_second.filter(|rate| *rate > 0);
        Self {
            bytes,
            files,
            total_bytes,
            rate_bytes_per_second,
            seconds_left: total_bytes
                .zip(rate)
                .map(|(total, rate)| (total - bytes).div_ceil(rate)),
        }
    }
}

text_enum!(
    /// What a backup was asked to read. Every backup restores on its own, whatever its type.
    BackupType, "backup type" {
        /// Everything is read.
        Full => "full",
        /// What changed since the last backup, where the source can tell; everything otherwise.
        Incremental => "incremental",
        /// What changed since the last full backup, where the source can tell; everything otherwise.
        Differential => "differential",
    }
);

text_enum!(
    /// What kind of thing a target is.
    TargetKind, "target kind" {
        /// A Postgres database.
        Postgres => "postgres",
        /// A file tree.
        Files => "files",
        /// A bucket of an object store.
        Bucket => "bucket",
        /// Configuration of a platform.
        Config => "config",
        /// Whatever a command prints.
        Command => "command",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_needs_a_rate_and_a_total_that_is_not_passed() {
        let left = |bytes, total, rate| Progress::new(bytes, 0, total, rate).seconds_left;
        assert_eq!(left(100, Some(1000), Some(100)), Some(9));
        assert_eq!(left(100, Some(1001), Some(100)), Some(10));
        assert_eq!(left(1000, Some(1000), Some(100)), Some(0));
        assert_eq!(left(100, Some(1000), Some(0)), None);
        assert_eq!(left(100, None, Some(100)), None);
        let passed = Progress::new(2000, 3, Some(1000), Some(100));
        assert_eq!((passed.total_bytes, passed.seconds_left), (None, None));
    }
}
