//! The restore side of file trees: what is selected of a backup, into a destination that may hold something already.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, Mode};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};

use super::compare::{Comparer, Difference};
use super::delete::Deleting;
use super::descend::DIRECTORY;
use super::lacks::{Lacks, Untold};
use super::missing::MORE;
use super::names::Lister;
use super::paths::path_of;
use super::plan::Plan;
use super::preview::Preview;
use super::select::Selection;
use super::writer::{Changed, Writer};

/// What a restore does with what is at its destination already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The destination must be missing or empty.
    Refuse,
    /// What has the name of an entry is replaced by it; what has not stays.
    Replace,
    /// Only what differs from the backup is written. A file of the same length is read and compared; see
    /// [`RestoreOptions::backup_began`].
    InPlace,
}

/// What a restore does and how.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// What of the backup is restored.
    pub select: Selection,
    /// What happens to what is there.
    pub existing: Existing,
    /// With [`Existing::InPlace`]: removes what the backup does not have, within the paths that are selected. It cannot
    /// be combined with patterns.
    pub delete: bool,
    /// Changes nothing, and reports what would be changed.
    pub dry_run: bool,
    /// With [`Existing::InPlace`] into the tree that was backed up: when that began. A file of the entry's length and
    /// modification time that was not touched since is not read. Elsewhere it says nothing; without it every file is read.
    pub backup_began: Option<SystemTime>,
    /// What the backup does not hold although it was there.
    pub lacks: Lacks,
}

/// What a restore did to one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// It was not there.
    Create,
    /// Something else was there.
    Replace,
    /// It was there; its owner, mode, time or attributes were set.
    Metadata,
    /// It is not in the backup, and was removed with all it held.
    Delete,
    /// It, or what the reason says of it, could not be restored: a socket, or a device, an owner or an attribute
    /// without the right to make one.
    Skip,
}

/// What was put in place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilesRestored {
    /// Regular files that were written.
    pub files: u64,
    /// Further names of files that were made.
    pub hardlinks: u64,
    /// Directories, whether they were there or not.
    pub directories: u64,
    /// Symbolic links that were made.
    pub symlinks: u64,
    /// Named pipes and device nodes that were made.
    pub others: u64,
    /// Bytes of content that were written, holes included.
    pub bytes: u64,
    /// What was there and is as it was in the backup, directories not counted.
    pub unchanged: u64,
    /// What was there and got another owner, mode, time or attributes.
    pub metadata: u64,
    /// What was removed because the backup lacks it; of a directory only itself is counted.
    pub deleted: u64,
    /// Sockets and devices that were not made.
    pub skipped: u64,
    /// Owners, modes and attributes that were not set.
    pub problems: u64,
}

/// Why a restore ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesRestoreError {
    /// The destination cannot be used.
    #[error("restore into {}", destination.display())]
    Destination {
        /// Where to.
        destination: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination holds something.
    #[error("{} is not empty: restore into another directory, or allow what it holds to be replaced", destination.display())]
    NotEmpty {
        /// Where to.
        destination: PathBuf,
    },
    /// The backup could not be read.
    #[error("read the backup")]
    Read {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The backup holds what is not restored anywhere.
    #[error("restore {path:?}")]
    Entry {
        /// The entry.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path that the backup does not have.
    #[error("the backup holds nothing at {path:?}: list it to see what it holds")]
    NotInBackup {
        /// The path.
        path: String,
    },
    /// No entry is selected.
    #[error("nothing in the backup matches the patterns: list it to see what it holds")]
    NothingSelected,
    /// Deleting was asked for where it is not known what to delete.
    #[error("delete only where everything is restored in place: leave out the patterns, name directories instead")]
    CannotDelete,
    /// Something is to be deleted or replaced, and the receipt does not tell what was not taken.
    #[error("restore into an empty directory: what this backup does not hold may still be wanted")]
    Untold {
        /// Why.
        #[source]
        source: Untold,
    },
}

impl FilesRestoreError {
    /// Whether another attempt can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read { source } => !matches!(
                source.kind(),
                io::ErrorKind::InvalidData
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
            ),
            _ => false,
        }
    }
}

/// Restores what is selected of `source` into `destination`, which is made where it is missing. Each change is told to
/// `changed` with its path, relative to the destination, and for [`Change::Skip`] with the reason.
///
/// Nothing outside the destination is touched, whatever the backup says. What was put in place before an error stays.
pub fn restore(
    source: &dyn EntrySource,
    destination: &Path,
    options: RestoreOptions,
    changed: &mut dyn FnMut(Change, &Path, Option<&str>),
) -> Result<FilesRestored, FilesRestoreError> {
    if options.delete && (options.existing != Existing::InPlace || options.select.has_patterns()) {
        return Err(FilesRestoreError::CannotDelete);
    }
    let untold = |source| FilesRestoreError::Untold { source };
    if options.existing != Existing::Refuse {
        options.lacks.are_told().map_err(untold)?;
    }
    let untaken = match options.delete {
        true => Some(options.lacks.untaken().map_err(untold)?),
        false => None,
    };
    let root = open_destination(destination, options.existing, options.dry_run)?;
    let plan = Plan::make(source, options.select, options.delete)?;
    let failed = |source| FilesRestoreError::Destination {
        destination: destination.to_owned(),
        source,
    };
    for missing in options.lacks.missing().filter(|missing| !missing.torn) {
        // Among what is not named may be anything.
        if missing.name == MORE || plan.takes_path(missing.name.as_bytes()) {
            let reason = format!("missing from the backup: {}", missing.reason);
            changed(Change::Skip, Path::new(&missing.name), Some(&reason));
        }
    }
    let Some(root) = root else {
        let preview = Preview::new(None, &plan, &options.lacks, options.existing, options.delete, changed);
        return run_preview(source, preview, destination);
    };
    let again = root.try_clone().map_err(failed)?;
    let mut restored = if options.dry_run {
        let preview = Preview::new(
            Some(root),
            &plan,
            &options.lacks,
            options.existing,
            options.delete,
            &mut *changed,
        );
        run_preview(source, preview.trusting(options.backup_began), destination)?
    } else {
        let changed: Changed<'_> = Box::new(&mut *changed);
        let comparer = Comparer::new(Some(root.try_clone().map_err(failed)?)).trusting(options.backup_began);
        let state = RefCell::new(Restoring {
            writer: Writer::new(root, options.existing, options.delete, changed).map_err(failed)?,
            comparer,
            plan: &plan,
            lacks: &options.lacks,
            existing: options.existing,
            is_dropped: false,
            failed: None,
        });
        let replayed = source.replay_where(&mut |listed| state.borrow_mut().wants(listed), &mut Sink(&state));
        let mut state = state.into_inner();
        replayed.map_err(|source| state.error(source, destination))?;
        state.writer.finish().map_err(failed)?;
        state.writer.restored
    };
    if let Some(untaken) = untaken {
        let mut deleted = 0;
        let mut removed = |path: &[u8]| {
            use std::os::unix::ffi::OsStrExt as _;
            deleted += 1;
            changed(Change::Delete, Path::new(std::ffi::OsStr::from_bytes(path)), None);
        };
        let mut deleting = Deleting::new(again, &plan, untaken, options.dry_run, &mut removed).map_err(failed)?;
        let mut problem = None;
        source
            .for_each_entry(&mut |listed| deleting.entry(listed.entry).map_err(|error| keep(&mut problem, error)))
            .map_err(|source| match problem.take() {
                Some(error) => failed(error),
                None => FilesRestoreError::Read { source },
            })?;
        deleting.finish().map_err(failed)?;
        restored.deleted = deleted;
    }
    Ok(restored)
}

fn run_preview(
    source: &dyn EntrySource,
    mut preview: Preview<'_>,
    destination: &Path,
) -> Result<FilesRestored, FilesRestoreError> {
    let mut problem = None;
    source
        .for_each_entry(&mut |listed| preview.entry(listed).map_err(|error| keep(&mut problem, error)))
        .map_err(|source| match problem.take() {
            Some(source) => entry_error(source, destination),
            None => FilesRestoreError::Read { source },
        })?;
    Ok(preview.restored)
}

/// What is said of a file of which the backup has only a part. It never takes the place of one that is there.
pub(super) fn torn_reason(reason: &str, is_there: bool) -> String {
    match is_there {
        true => format!("what is there stays, because the backup has only a part of it: {reason}"),
        false => format!("restored as far as the backup has it: {reason}"),
    }
}

/// Keeps our own error apart from those of the source.
fn keep(kept: &mut Option<io::Error>, error: io::Error) -> io::Error {
    let stopped = io::Error::new(error.kind(), "the restore ended");
    *kept = Some(error);
    stopped
}

fn entry_error(source: io::Error, destination: &Path) -> FilesRestoreError {
    FilesRestoreError::Destination {
        destination: destination.to_owned(),
        source,
    }
}

/// Opens the destination, and makes it where it is missing; in a dry run it may stay missing.
fn open_destination(
    destination: &Path,
    existing: Existing,
    dry_run: bool,
) -> Result<Option<OwnedFd>, FilesRestoreError> {
    let failed = |source| FilesRestoreError::Destination {
        destination: destination.to_owned(),
        source,
    };
    let is_new = match std::fs::symlink_metadata(destination) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound && dry_run => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir(destination).map_err(failed)?;
            true
        }
        Err(error) => return Err(failed(error)),
    };
    let root = rustix::fs::openat(CWD, destination, DIRECTORY, Mode::empty()).map_err(|error| failed(error.into()))?;
    if !is_new && existing == Existing::Refuse {
        // Through a description of its own, for the other one is read from its beginning.
        let again = rustix::fs::openat(&root, c".", DIRECTORY, Mode::empty()).map_err(|error| failed(error.into()))?;
        match Lister::new().list(again.as_fd()) {
            (_, Some(error)) => return Err(failed(error)),
            (names, None) if names.len() > 0 => {
                return Err(FilesRestoreError::NotEmpty {
                    destination: destination.to_owned(),
                });
            }
            _ => {}
        }
    }
    Ok(Some(root))
}

/// A restore under way: asked by the source what it wants, and given that.
struct Restoring<'a> {
    writer: Writer<'a>,
    comparer: Comparer,
    plan: &'a Plan,
    lacks: &'a Lacks,
    existing: Existing,
    /// Whether the entry at hand is not written, because its file has been under the same path.
    is_dropped: bool,
    failed: Option<io::Error>,
}

impl Restoring<'_> {
    fn wants(&mut self, listed: Listed<'_>) -> io::Result<bool> {
        self.decide(listed).map_err(|error| keep(&mut self.failed, error))
    }

    fn decide(&mut self, listed: Listed<'_>) -> io::Result<bool> {
        if !self.plan.wants(listed.entry)? {
            return Ok(false);
        }
        // Everything but files is compared when it is written, which costs nothing.
        if listed.entry.kind != EntryKind::File {
            return Ok(true);
        }
        let torn = self.lacks.torn(&path_of(listed.entry)?);
        if self.existing != Existing::InPlace && torn.is_none() {
            return Ok(true);
        }
        let Some(entry) = self.plan.restored_as(listed.entry)? else {
            return Ok(true);
        };
        let path = path_of(&entry)?;
        if let Some(reason) = torn {
            let is_there = self.existing != Existing::Refuse && self.comparer.look(&path)?.is_some();
            self.writer.skip(&path, &torn_reason(reason, is_there));
            return Ok(!is_there);
        }
        let renamed = Listed {
            entry: &entry,
            ..listed
        };
        match self.comparer.compare(&path, renamed, &mut self.writer.setter)? {
            Difference::Nothing => {
                self.writer.restored.unchanged += 1;
                Ok(false)
            }
            Difference::Metadata => {
                if !self.comparer.set_metadata(&path, &entry, &mut self.writer.setter)? {
                    return Ok(true);
                }
                self.writer.restored.metadata += 1;
                self.writer.report(Change::Metadata, &path);
                self.writer.report_problems(&path);
                Ok(false)
            }
            Difference::Other | Difference::Missing => Ok(true),
        }
    }

    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        match self.plan.restored_as(entry)? {
            Some(entry) => self.writer.begin(&entry),
            None => {
                self.is_dropped = true;
                Ok(())
            }
        }
    }

    fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_dropped) {
            return Ok(());
        }
        self.writer.end()
    }

    fn error(&mut self, source: io::Error, destination: &Path) -> FilesRestoreError {
        match self.failed.take() {
            Some(source) => entry_error(source, destination),
            None => FilesRestoreError::Read { source },
        }
    }
}

/// The side of a restore that is given entries.
struct Sink<'r, 'a>(&'r RefCell<Restoring<'a>>);

impl<'a> Sink<'_, 'a> {
    fn pass(&mut self, step: impl FnOnce(&mut Restoring<'a>) -> io::Result<()>) -> io::Result<()> {
        let mut restoring = self.0.borrow_mut();
        let result = step(&mut restoring);
        result.map_err(|error| keep(&mut restoring.failed, error))
    }
}

impl EntrySink for Sink<'_, '_> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.pass(|restoring| restoring.begin(entry))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pass(|restoring| restoring.writer.write(bytes))
    }

    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.pass(|restoring| restoring.writer.hole(bytes))
    }

    fn end(&mut self) -> io::Result<()> {
        self.pass(Restoring::end)
    }
}

/// A sink that writes every entry it is given into a destination directory. [`finish`](Self::finish) ends it.
pub struct FilesRestore(Writer<'static>);

impl FilesRestore {
    /// Restores into `destination`, which is created where it is missing and must be empty unless `allow_non_empty`;
    /// files that are there and in the backup are then replaced.
    pub fn create(destination: &Path, allow_non_empty: bool) -> io::Result<Self> {
        let existing = if allow_non_empty {
            Existing::Replace
        } else {
            Existing::Refuse
        };
        let root = match open_destination(destination, existing, false) {
            Ok(root) => root.ok_or(io::ErrorKind::NotFound)?,
            Err(FilesRestoreError::Destination { source, .. }) => return Err(source),
            Err(error) => return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, error)),
        };
        Writer::new(root, existing, false, Box::new(|_, _, _| {})).map(Self)
    }

    /// Gives directories their modes and times, the deepest first. Without this the restore is not whole.
    pub fn finish(mut self) -> io::Result<FilesRestored> {
        self.0.finish()?;
        Ok(self.0.restored)
    }
}

impl EntrySink for FilesRestore {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.0.begin(entry)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write(bytes)
    }

    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.0.hole(bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.end()
    }
}
