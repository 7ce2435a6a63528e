//! A drill of a file tree: it is restored into a scratch folder and every file is read back and compared.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, SeekFrom};
use rustix::io::Errno;
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};
use strongroom_proto::receipt::{Check, CheckOutcome};

use super::compare::enter;
use super::descend::{DIRECTORY, Descent};
use super::paths::{path_of, split};
use super::read::open_file;
use super::remove::remove_tree;
use super::restore::{FilesRestore, FilesRestored};
use crate::scratch::ScratchDir;

const TREE: &str = "tree";
const SCRATCH_PREFIX: &str = "files-drill-";

/// Why a drill could not be held. It says nothing about the backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesDrillError {
    /// The scratch folder.
    #[error("use the scratch folder {}", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The backup could not be reached; it may be good.
    #[error("read the backup")]
    Read {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Restores a tree under `scratch_dir` and compares: the checks `restore` and `file contents`.
pub fn drill_files(source: &dyn EntrySource, scratch_dir: &Path) -> Result<Vec<Check>, FilesDrillError> {
    let scratch_error = |source| FilesDrillError::Scratch {
        path: scratch_dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(scratch_dir).map_err(scratch_error)?;
    let scratch = ScratchDir::create(scratch_dir, SCRATCH_PREFIX, 0o700, |_| {}).map_err(scratch_error)?;
    let opened = rustix::fs::openat(CWD, scratch.path(), DIRECTORY, Mode::empty());
    let folder = opened.map_err(|error| scratch_error(error.into()))?;
    let checks = drill_in(source, folder.as_fd(), scratch.path(), scratch_dir);
    // The tree may be deeper, and its directories more closed, than what removes the folder can deal with.
    match remove_tree(folder.as_fd(), TREE.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %scratch.path().display(), %error, "a restored tree could not be removed");
        }
        _ => {}
    }
    checks
}

fn drill_in(
    source: &dyn EntrySource,
    folder: BorrowedFd<'_>,
    path: &Path,
    scratch_dir: &Path,
) -> Result<Vec<Check>, FilesDrillError> {
    let expected = match expected(source) {
        Ok(expected) => expected,
        Err(error) => return failed(error, scratch_dir),
    };
    let mut restore = match FilesRestore::create(&path.join(TREE), false) {
        Ok(restore) => restore,
        Err(source) => {
            return Err(FilesDrillError::Scratch {
                path: scratch_dir.to_owned(),
                source,
            });
        }
    };
    let found = match source.replay(&mut restore).and_then(|()| restore.finish()) {
        Ok(restored) => Totals::of(&restored),
        Err(error) => return failed(error, scratch_dir),
    };
    let restored_check = Check {
        name: "restore".to_owned(),
        outcome: outcome(found == expected),
        detail: format!("expected {expected}, found {found}"),
    };
    let tree =
        rustix::fs::openat(folder, TREE, DIRECTORY, Mode::empty()).map_err(|error| FilesDrillError::Scratch {
            path: scratch_dir.to_owned(),
            source: error.into(),
        })?;
    let contents = match Contents::compare(source, tree) {
        Ok(contents) => contents,
        Err(error) => return failed(error, scratch_dir),
    };
    let mut detail = format!(
        "expected {} files with equal content, found {}",
        expected.files, contents.equal
    );
    if let Some(first) = &contents.first_difference {
        detail.push_str(&format!("; first {first}"));
    }
    let contents_check = Check {
        name: "file contents".to_owned(),
        outcome: outcome(contents.equal == expected.files),
        detail,
    };
    Ok(vec![restored_check, contents_check])
}

/// What is damaged fails the check; what could not be tried is an error, and proves nothing.
fn failed(error: io::Error, scratch_dir: &Path) -> Result<Vec<Check>, FilesDrillError> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::PermissionDenied => Err(FilesDrillError::Scratch {
            path: scratch_dir.to_owned(),
            source: error,
        }),
        io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::NotFound => Ok(vec![
            Check {
                name: "restore".to_owned(),
                outcome: CheckOutcome::Failed,
                detail: error.to_string(),
            },
            Check {
                name: "file contents".to_owned(),
                outcome: CheckOutcome::Skipped,
                detail: "skipped: the restore failed".to_owned(),
            },
        ]),
        _ => Err(FilesDrillError::Read { source: error }),
    }
}

/// What a restore should put in place.
fn expected(source: &dyn EntrySource) -> io::Result<Totals> {
    let mut totals = Totals::default();
    source.for_each_entry(&mut |Listed { entry, bytes, .. }| {
        match entry.kind {
            EntryKind::File => {
                totals.files += 1;
                totals.bytes += bytes;
            }
            EntryKind::Directory => totals.directories += 1,
            EntryKind::Symlink | EntryKind::Hardlink => totals.links += 1,
            EntryKind::Fifo | EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Socket => totals.others += 1,
            EntryKind::Stream => {}
        }
        Ok(())
    })?;
    Ok(totals)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    files: u64,
    directories: u64,
    links: u64,
    /// Pipes, devices and sockets, made or skipped.
    others: u64,
    bytes: u64,
}

impl Totals {
    fn of(restored: &FilesRestored) -> Self {
        Self {
            files: restored.files,
            directories: restored.directories,
            links: restored.symlinks + restored.hardlinks,
            others: restored.others + restored.skipped,
            bytes: restored.bytes,
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} files, {} directories, {} links, {} others, {} bytes",
            self.files, self.directories, self.links, self.others, self.bytes
        )
    }
}

fn outcome(passed: bool) -> CheckOutcome {
    if passed {
        CheckOutcome::Passed
    } else {
        CheckOutcome::Failed
    }
}

/// Restored files, read back and compared: with the digests in the list of entries, or where a file has holes, whose
/// places the list does not tell, with the content itself.
#[derive(Default)]
struct Contents {
    equal: u64,
    first_difference: Option<String>,
}

impl Contents {
    fn compare(source: &dyn EntrySource, tree: OwnedFd) -> io::Result<Self> {
        let mut contents = Self::default();
        let mut with_holes = 0_u64;
        let mut descent = Some(Descent::new(tree.try_clone()?, ()));
        source.for_each_entry(&mut |listed| {
            if listed.entry.kind != EntryKind::File {
                return Ok(());
            }
            if listed.hole_bytes > 0 {
                with_holes += 1;
                return Ok(());
            }
            let difference = match open_restored(&mut descent, listed.entry) {
                Ok(file) => {
                    let mut hasher = blake3::Hasher::new();
                    hasher.update_reader(file)?;
                    (hasher.finalize().as_bytes() != listed.blake3.as_bytes())
                        .then(|| "it has other content".to_owned())
                }
                Err(error) => Some(error.to_string()),
            };
            contents.count(listed.entry, difference);
            Ok(())
        })?;
        if with_holes > 0 {
            let mut sink = ReadBack {
                descent: Some(Descent::new(tree, ())),
                contents: &mut contents,
                open: None,
            };
            source.replay_where(&mut |listed| Ok(listed.hole_bytes > 0), &mut sink)?;
        }
        Ok(contents)
    }

    fn count(&mut self, entry: &Entry, difference: Option<String>) {
        match difference {
            None => self.equal += 1,
            Some(difference) => {
                self.first_difference
                    .get_or_insert_with(|| format!("{}: {difference}", entry.path));
            }
        }
    }
}

fn open_restored(descent: &mut Option<Descent<()>>, entry: &Entry) -> io::Result<File> {
    let path = path_of(entry)?;
    let (parent, name) = split(&path);
    let directory = enter(descent, parent)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(File::from(open_file(directory, name)?.0))
}

/// Compares files with what is replayed.
struct ReadBack<'a> {
    descent: Option<Descent<()>>,
    contents: &'a mut Contents,
    open: Option<OpenFile>,
}

struct OpenFile {
    entry: Entry,
    file: Option<File>,
    position: u64,
    difference: Option<String>,
}

impl OpenFile {
    /// Compares the next bytes of the file, and goes on behind them.
    fn compare(&mut self, expected: &[u8]) -> io::Result<()> {
        let mut found = vec![0; expected.len()];
        if let Some(file) = &self.file
            && self.difference.is_none()
        {
            match file.read_exact_at(&mut found, self.position) {
                Ok(()) if found == expected => {}
                Ok(()) => self.difference = Some("it has other content".to_owned()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.difference = Some("it is too short".to_owned());
                }
                Err(error) => return Err(error),
            }
        }
        self.position += expected.len() as u64;
        Ok(())
    }
}

impl EntrySink for ReadBack<'_> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        let opened = open_restored(&mut self.descent, entry);
        let (file, difference) = match opened {
            Ok(file) => (Some(file), None),
            Err(error) => (None, Some(error.to_string())),
        };
        self.open = Some(OpenFile {
            entry: entry.clone(),
            file,
            position: 0,
            difference,
        });
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open.as_mut().map_or(Ok(()), |open| open.compare(bytes))
    }

    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let end = open.position.saturating_add(bytes);
        // What is a hole there too is not read, or a file that is nothing else would take for ever.
        let data = open
            .file
            .as_ref()
            .map(|file| rustix::fs::seek(file, SeekFrom::Data(open.position)));
        if !matches!(data, Some(Ok(data)) if data < end) && !matches!(data, Some(Err(Errno::INVAL))) {
            open.position = end;
            return Ok(());
        }
        while open.position < end {
            let zeros = [0; 64 << 10];
            let length = usize::try_from(end - open.position).map_or(zeros.len(), |left| left.min(zeros.len()));
            open.compare(&zeros[..length])?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            let length = open
                .file
                .map_or(Ok(open.position), |file| file.metadata().map(|facts| facts.len()))?;
            let difference = open
                .difference
                .or_else(|| (length != open.position).then(|| "it has another length".to_owned()));
            self.contents.count(&open.entry, difference);
        }
        Ok(())
    }
}
