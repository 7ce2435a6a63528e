//! File trees: a walk into a sink, and the restore side.
//!
//! Invariants: what could not be read whole is named in `missing`, never passed off as the file; a link is stored, not
//! followed, not even one that appears while the walk goes on.

mod attributes;
mod compare;
mod delete;
mod descend;
mod drill;
mod exclude;
mod facts;
mod lacks;
mod metadata;
mod missing;
mod names;
mod nodes;
mod paths;
mod plan;
mod preview;
mod read;
mod remove;
mod restore;
mod rights;
mod select;
mod walk;
mod writer;

use std::io;
use std::path::PathBuf;

use strongroom_proto::receipt::{Missing, SourceFacts};

use crate::sink::may_be_stored_later;

pub use drill::{FilesDrillError, drill_files};
pub use lacks::{Lacks, Untold};
pub(crate) use paths::path_of;
pub use restore::{Change, Existing, FilesRestore, FilesRestoreError, FilesRestored, RestoreOptions, restore};
pub use select::{PatternError, Selection, SelectionError};
pub use walk::snapshot;
pub use writer::SOCKET_NOT_MADE;

/// What a walk takes and how. By default it takes everything, and reads what has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// What is left out: patterns as in a `.gitignore` file in the root.
    pub exclude: Vec<String>,
    /// Whether to stay on the root's file system: of another one, the directory it is mounted on is taken, its content
    /// is not.
    pub one_file_system: bool,
    /// Whether the content of directories with a valid `CACHEDIR.TAG` is left out, all but the tag. The root is taken
    /// in any case.
    pub exclude_caches: bool,
    /// Larger files are left out.
    pub max_file_bytes: Option<u64>,
    /// Whether files are read that have not changed since an earlier backup: a full backup.
    pub read_everything: bool,
}

/// What a walk took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilesReport {
    /// Counts, for the receipt: its files are the names of regular files, hard links among them.
    pub facts: SourceFacts,
    /// What could not be taken, for the receipt; where it is very much, the last one says how much more there is.
    pub missing: Vec<Missing>,
    /// Regular files that were taken whole.
    pub files: u64,
    /// Those of them that were not read, because an earlier backup holds their content.
    pub unchanged: u64,
    /// Further names of files that were taken.
    pub hardlinks: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Named pipes and device nodes.
    pub others: u64,
    /// Sockets: recorded, but never made again.
    pub sockets: u64,
    /// What the options left out. Of a directory only itself is counted, not what lies in it.
    pub excluded: u64,
    /// Those of them that were larger than `max_file_bytes`.
    pub too_large: u64,
}

/// Why there is no snapshot of a tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A pattern of what to leave out cannot be read.
    #[error("understand the exclude pattern {pattern:?}: it is written as in .gitignore")]
    Exclude {
        /// The pattern.
        pattern: String,
        /// Why.
        #[source]
        source: PatternError,
    },
    /// The root cannot be looked at.
    #[error("look at {}", root.display())]
    Root {
        /// The root.
        root: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The root is a link, a file or something else.
    #[error("{} is not a directory: name the directory itself, not a link to it", root.display())]
    NotADirectory {
        /// The root.
        root: PathBuf,
    },
    /// The root was removed, replaced or unmounted while the walk went on.
    #[error("{} was removed, replaced or unmounted while it was read: what was taken is not the tree", root.display())]
    Vanished {
        /// The root.
        root: PathBuf,
    },
    /// What was read could not be put away.
    #[error("store {path}")]
    Sink {
        /// The entry.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FilesError {
    /// Whether another attempt can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Sink { source, .. } => may_be_stored_later(source),
            Self::Vanished { .. } => true,
            Self::Exclude { .. } | Self::Root { .. } | Self::NotADirectory { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_vault_refuses_is_not_tried_again() {
        let is_retryable = |kind: io::ErrorKind| {
            let path = "a".to_owned();
            let source = io::Error::new(kind, "not stored");
            FilesError::Sink { path, source }.is_retryable()
        };
        for kind in [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::InvalidData,
            io::ErrorKind::StorageFull,
        ] {
            assert!(!is_retryable(kind), "{kind}");
        }
        for kind in [io::ErrorKind::Other, io::ErrorKind::TimedOut] {
            assert!(is_retryable(kind), "{kind}");
        }
    }
}
