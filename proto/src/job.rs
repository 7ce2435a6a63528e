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
