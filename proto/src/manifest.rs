//! The entries of a manifest: what a backup contains, one by one. `docs/format.md` specifies how they are stored.

use std::collections::BTreeMap;
use std::io;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Sha256Digest;

/// One thing a backup contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// Relative path, components separated by `/`; never absolute, never with `..`. The root of a tree is `.`. Where
    /// the name is not UTF-8 this is its lossy rendering and `path_hex` holds the bytes.
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
    /// Where a symlink points, or the path of the entry whose content a hard link shares. Where it is not UTF-8 this
    /// is its lossy rendering and `link_target_hex` holds the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
    /// The link target's bytes in hex, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target_hex: Option<String>,
    /// The major number of a device node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_major: Option<u32>,
    /// The minor number of a device node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_minor: Option<u32>,
    /// Extended attributes, ACLs among them: each value in hex under its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
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
            link_target_hex: None,
            device_major: None,
            device_minor: None,
            xattrs: BTreeMap::new(),
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
    /// Another name of a file that is an entry before it.
    Hardlink,
    /// A named pipe.
    Fifo,
    /// A device node that is read by the character.
    CharDevice,
    /// A device node that is read by the block.
    BlockDevice,
    /// A socket: recorded, never made again.
    Socket,
}

impl EntryKind {
    /// Whether entries of this kind have content.
    pub const fn has_content(self) -> bool {
        matches!(self, Self::Stream | Self::File)
    }
}

/// What a file was when it was looked at. While none of this has changed, its content has not either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileVersion {
    /// The file system it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length, holes included.
    pub bytes: u64,
    /// When its content changed: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// When anything of it changed.
    pub ctime: (i64, u32),
}

impl FileVersion {
    /// The version of a file that may change once more without its times showing it: no later version equals it, though
    /// what of its content stays the same is still found.
    pub const fn unsettled(self) -> Self {
        Self {
            ctime: (i64::MIN, 0),
            ..self
        }
    }
}

/// An entry of a backup, and what its content comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// The length of its content, holes included.
    pub bytes: u64,
    /// How many of them are holes.
    pub hole_bytes: u64,
    /// BLAKE3 of what lies between the holes, in order.
    pub blake3: Sha256Digest,
}

/// Where entries go: a backup being written, or a destination being restored. Calls come in the order
/// `begin, (write | hole)*, end` for each entry.
pub trait EntrySink {
    /// Begins an entry. Entries without content (directories, links, nodes) are begun and ended at once.
    fn begin(&mut self, entry: &Entry) -> io::Result<()>;
    /// The next bytes of its content.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// The next bytes of its content are this many zeros, which take no room where they come from. Unless a sink does
    /// better, they are written like any others.
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut left = bytes;
        while left > 0 {
            let piece = ZEROS.get(..left.min(ZEROS.len() as u64) as usize).unwrap_or(&ZEROS);
            self.write(piece)?;
            left -= piece.len() as u64;
        }
        Ok(())
    }
    /// Ends the entry: its content is whole.
    fn end(&mut self) -> io::Result<()>;
}

/// A backup being written: a sink that knows what earlier backups of the same target hold.
pub trait BackupSink: EntrySink {
    /// Puts an entry with the content that an earlier backup stored for its path in this version, in place of
    /// `begin, write*, end`. Answers `false`, and puts nothing, where no such content is known: then it has to be read.
    fn put_unchanged(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<bool>;
    /// Begins a file, like [`begin`](EntrySink::begin), whose content the next backup may find by this version.
    fn begin_file(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<()>;
    /// Begins a file of a database cluster, like [`begin`](EntrySink::begin): so many bytes, of which the pages that are
    /// as the last backup stored them at this path are not stored again, and over which the next backup may be laid.
    fn begin_paged(&mut self, entry: &Entry, bytes: u64) -> io::Result<()>;
    /// Begins a file of so many bytes that is what the last backup stored at this path, cut off or filled up with zeros,
    /// but for the pages that [`page`](Self::page) then puts; ended by [`end`](EntrySink::end). Answers `false`, and begins
    /// nothing, where that is not known or the vault no longer holds it.
    fn begin_overlay(&mut self, entry: &Entry, bytes: u64) -> io::Result<bool>;
    /// Pages of an overlay, at a place that is a multiple of [`PAGE_BYTES`]; in ascending order.
    fn page(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// What the backup that the overlays are laid over left for this one by [`leave_note`](Self::leave_note).
    fn note(&mut self) -> io::Result<Option<Vec<u8>>>;
    /// Leaves a note to the backup that will be laid over this one.
    fn leave_note(&mut self, note: Vec<u8>);
}

/// The page of a database cluster's files, in bytes.
pub const PAGE_BYTES: u64 = 8192;

/// Where entries come from: a backup being read. Every byte handed out has been checked against its chunk's id.
pub trait EntrySource: Sync {
    /// Calls `each` for every entry, in the order they were written.
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()>;
    /// Writes the content of the entry with this path; an error of kind `NotFound` where there is none.
    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()>;
    /// Sends every entry that `wanted` says yes to, with its content, to `sink`, in the order they were written.
    ///
    /// `wanted` is asked for each entry in that order, possibly many entries before the sink gets the answer's entry.
    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()>;
    /// Sends every entry with its content to `sink`, in the order they were written.
    fn replay(&self, sink: &mut dyn EntrySink) -> io::Result<()> {
        self.replay_where(&mut |_| Ok(true), sink)
    }
}
