//! The entries of a manifest: what a backup contains, one by one. `docs/format.md` specifies how they are stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing a backup contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// Relative path, components separated by `/`; never absolute, never with `..`. Where the name is not UTF-8 this
    /// is its lossy rendering and `path_hex` holds the bytes.
    pub path: String,
    /// The path's bytes in hex, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits and file type of a file-tree entry, as in `st_mode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Owner of a file-tree entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group of a file-tree entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Modification time: seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_seconds: Option<i64>,
    /// Modification time: nanoseconds within the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_nanoseconds: Option<u32>,
    /// Where a symlink points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
    /// What the content of a stream is, for the restore side of its connector: `postgres-globals`, `postgres-dump`,
    /// `postgres-table`, `postgres-checks`, `command-output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<String>,
}

impl Entry {
    /// An entry whose content is a stream named by its connector.
    pub fn stream(path: impl Into<String>, media: impl Into<String>) -> Self {
        Self {
            media: Some(media.into()),
            ..Self::bare(path, EntryKind::Stream)
        }
    }

    /// An entry of this kind without any metadata.
    pub fn bare(path: impl Into<String>, kind: EntryKind) -> Self {
        Self {
            path: path.into(),
            path_hex: None,
            kind,
            mode: None,
            uid: None,
            gid: None,
            mtime_seconds: None,
            mtime_nanoseconds: None,
            link_target: None,
            media: None,
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Bytes that a connector produced: a dump, a command's output.
    Stream,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// Where entries go: a backup being written, or a destination being restored. Calls come in the order
/// `begin, write*, end` for each entry.
pub trait EntrySink {
    /// Begins an entry. Entries without content (directories, symlinks) are begun and ended at once.
    fn begin(&mut self, entry: &Entry) -> std::io::Result<()>;
    /// The next bytes of its content.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()>;
    /// Ends the entry: its content is whole.
    fn end(&mut self) -> std::io::Result<()>;
}

/// Where entries come from: a backup being read. Every byte handed out has been checked against its chunk's id.
pub trait EntrySource: Sync {
    /// Calls `each` for every entry, in the order they were written, with the length of its content in bytes.
    fn for_each_entry(&self, each: &mut dyn FnMut(&Entry, u64) -> std::io::Result<()>) -> std::io::Result<()>;
    /// Writes the content of the entry with this path; an error of kind `NotFound` where there is none.
    fn copy_content(&self, path: &str, out: &mut dyn std::io::Write) -> std::io::Result<()>;
    /// Sends every entry with its content to `sink`, in the order they were written.
    fn replay(&self, sink: &mut dyn EntrySink) -> std::io::Result<()>;
}
