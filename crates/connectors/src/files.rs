//! File trees: a walk into a sink, and the restore side.
//!
//! Invariants: what could not be read whole is named in `missing`, never passed off as the file; a link is stored, not
//! followed, not even one that appears while the walk goes on.

mod drill;
mod restore;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink};
use strongroom_proto::receipt::{Missing, SourceFacts};
use walkdir::WalkDir;

pub use drill::{FilesDrillError, drill_files};
pub use restore::{FilesRestore, FilesRestored};

/// Files up to this size are read whole before they are stored, so that a bad one leaves nothing behind.
const BUFFERED_FILE_BYTES: usize = 1 << 20;
/// How much of a larger file is read at once.
const READ_BYTES: usize = 512 << 10;
/// How often a file that changes while it is read is read again.
const READ_ATTEMPTS: u32 = 3;

/// What a walk took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesReport {
    /// Counts, for the receipt.
    pub facts: SourceFacts,
    /// What could not be taken, for the receipt.
    pub missing: Vec<Missing>,
}

/// Why there is no snapshot of a tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
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
            Self::Sink { source, .. } => {
                !matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Root { .. } | Self::NotADirectory { .. } => false,
        }
    }
}

/// Sends every file, directory and link under `root` to `sink`, sorted by name, with paths relative to `root`.
pub fn snapshot(root: &Path, sink: &mut dyn EntrySink) -> Result<FilesReport, FilesError> {
    let facts = std::fs::symlink_metadata(root).map_err(|source| FilesError::Root {
        root: root.to_owned(),
        source,
    })?;
    if !facts.is_dir() {
        return Err(FilesError::NotADirectory { root: root.to_owned() });
    }
    // One that cannot be listed would make an empty snapshot.
    std::fs::read_dir(root).map_err(|source| FilesError::Root {
        root: root.to_owned(),
        source,
    })?;
    let mut walk = Walk {
        root,
        sink,
        missing: Vec::new(),
        files: 0,
        buffer: vec![0; READ_BYTES],
    };
    for item in WalkDir::new(root).min_depth(1).follow_links(false).sort_by_file_name() {
        match item {
            Ok(item) => walk.visit(item.path())?,
            Err(error) => {
                let name = error.path().map_or_else(String::new, |path| walk.name(path));
                walk.miss(name, format!("cannot be listed: {}", cause(error.io_error())));
            }
        }
    }
    Ok(FilesReport {
        facts: SourceFacts {
            files: Some(walk.files),
            ..SourceFacts::default()
        },
        missing: walk.missing,
    })
}

struct Walk<'a> {
    root: &'a Path,
    sink: &'a mut dyn EntrySink,
    missing: Vec<Missing>,
    files: u64,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn visit(&mut self, path: &Path) -> Result<(), FilesError> {
        let name = self.name(path);
        let facts = match std::fs::symlink_metadata(path) {
            Ok(facts) => facts,
            Err(error) => {
                self.miss(name, format!("vanished or cannot be looked at: {error}"));
                return Ok(());
            }
        };
        let kind = facts.file_type();
        if kind.is_file() {
            self.file(path, name)
        } else if kind.is_dir() {
            let entry = self.entry(path, EntryKind::Directory, &facts);
            self.store_empty(&entry)
        } else if kind.is_symlink() {
            self.link(path, name, &facts)
        } else {
            let what = match () {
                () if kind.is_socket() => "a socket",
                () if kind.is_fifo() => "a named pipe",
                () => "a device",
            };
            self.miss(name, format!("{what}, skipped"));
            Ok(())
        }
    }

    fn link(&mut self, path: &Path, name: String, facts: &Metadata) -> Result<(), FilesError> {
        match std::fs::read_link(path) {
            Ok(target) => match target.into_os_string().into_string() {
                Ok(target) => {
                    let mut entry = self.entry(path, EntryKind::Symlink, facts);
                    entry.link_target = Some(target);
                    self.store_empty(&entry)
                }
                Err(_) => {
                    self.miss(name, "a link to a name that is not UTF-8, skipped".to_owned());
                    Ok(())
                }
            },
            Err(error) => {
                self.miss(name, format!("the link vanished or cannot be read: {error}"));
                Ok(())
            }
        }
    }

    fn file(&mut self, path: &Path, name: String) -> Result<(), FilesError> {
        let mut reason = String::new();
        for _ in 0..READ_ATTEMPTS {
            match self.begin_file(path) {
                Ok(Opened::Small(facts, content)) => {
                    let entry = self.entry(path, EntryKind::File, &facts);
                    self.begin(&entry)?;
                    if !content.is_empty() {
                        self.write(&name, &content)?;
                    }
                    self.files += 1;
                    return self.end(&name);
                }
                Ok(Opened::Large(file, facts)) => return self.large_file(path, &name, &file, &facts),
                Ok(Opened::Changed) => "it changed whenever it was read".clone_into(&mut reason),
                Err(error) => {
                    reason = format!("vanished or cannot be read: {error}");
                    break;
                }
            }
        }
        self.miss(name, reason);
        Ok(())
    }

    /// Opens a file, and reads it whole where it is small.
    fn begin_file(&mut self, path: &Path) -> io::Result<Opened> {
        // Not blocking, for what has become a named pipe since it was looked at.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let before = file.metadata()?;
        if !before.is_file() {
            return Err(io::Error::other("it is no longer a regular file"));
        }
        if before.len() > BUFFERED_FILE_BYTES as u64 {
            return Ok(Opened::Large(file, before));
        }
        let mut content = Vec::new();
        (&file).take(BUFFERED_FILE_BYTES as u64 + 1).read_to_end(&mut content)?;
        if content.len() as u64 != before.len() || !is_same_version(&before, &file.metadata()?) {
            return Ok(Opened::Changed);
        }
        Ok(Opened::Small(before, content))
    }

    fn large_file(&mut self, path: &Path, name: &str, mut file: &File, before: &Metadata) -> Result<(), FilesError> {
        let entry = self.entry(path, EntryKind::File, before);
        self.begin(&entry)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut left = before.len();
        // To the length it had, or a file that grows as fast as it is read would never end.
        let result = loop {
            if left == 0 {
                break Ok(());
            }
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match file.read(&mut buffer[..wanted]) {
                Ok(0) => break Err(io::Error::other("it was cut short")),
                Ok(length) => {
                    left -= length as u64;
                    self.write(name, &buffer[..length])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.buffer = buffer;
        let result = result
            .and_then(|()| file.metadata())
            .map(|after| is_same_version(before, &after));
        match result {
            Ok(true) => self.files += 1,
            Ok(false) => self.miss(
                name.to_owned(),
                "changed or unreadable while read: it was written to".to_owned(),
            ),
            Err(error) => self.miss(name.to_owned(), format!("changed or unreadable while read: {error}")),
        }
        self.end(name)
    }

    fn entry(&self, path: &Path, kind: EntryKind, facts: &Metadata) -> Entry {
        let bytes = self.relative(path).as_os_str().as_bytes();
        Entry {
            path_hex: std::str::from_utf8(bytes).is_err().then(|| hex::encode(bytes)),
            mode: Some(facts.mode()),
            uid: Some(facts.uid()),
            gid: Some(facts.gid()),
            mtime_seconds: Some(facts.mtime()),
            mtime_nanoseconds: u32::try_from(facts.mtime_nsec()).ok(),
            ..Entry::bare(String::from_utf8_lossy(bytes), kind)
        }
    }

    fn name(&self, path: &Path) -> String {
        self.relative(path).to_string_lossy().into_owned()
    }

    fn relative<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(self.root).unwrap_or(path)
    }

    fn miss(&mut self, name: String, reason: String) {
        self.missing.push(Missing { name, reason });
    }

    fn store_empty(&mut self, entry: &Entry) -> Result<(), FilesError> {
        self.begin(entry)?;
        self.end(&entry.path)
    }

    fn begin(&mut self, entry: &Entry) -> Result<(), FilesError> {
        self.sink.begin(entry).map_err(sink_error(&entry.path))
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), FilesError> {
        self.sink.write(bytes).map_err(sink_error(name))
    }

    fn end(&mut self, name: &str) -> Result<(), FilesError> {
        self.sink.end().map_err(sink_error(name))
    }
}

enum Opened {
    Small(Metadata, Vec<u8>),
    Large(File, Metadata),
    Changed,
}

fn is_same_version(before: &Metadata, after: &Metadata) -> bool {
    let version = |facts: &Metadata| (facts.len(), facts.mtime(), facts.mtime_nsec());
    version(before) == version(after)
}

fn cause(error: Option<&io::Error>) -> String {
    error.map_or_else(|| "unknown reason".to_owned(), io::Error::to_string)
}

fn sink_error(path: &str) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Sink { path, source }
}
