//! A drill of a file tree: it is restored into a scratch folder and every file is read back and compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};
use strongroom_proto::receipt::{Check, CheckOutcome};

use super::restore::{FilesRestore, FilesRestored, path_bytes};
use crate::scratch::ScratchDir;

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
    let tree = scratch.path().join("tree");
    let (expected, listed) = match expected_totals(source) {
        Ok(totals) => totals,
        Err(error) => return failed(error, scratch_dir),
    };
    let mut restore = FilesRestore::create(&tree, false).map_err(scratch_error)?;
    let restored = match source.replay(&mut restore).and_then(|()| restore.finish()) {
        Ok(restored) => restored,
        Err(error) => return failed(error, scratch_dir),
    };
    let is_whole = expected == restored;
    let restored_check = Check {
        name: "restore".to_owned(),
        outcome: outcome(is_whole),
        detail: format!("expected {}, found {}", totals(&expected), totals(&restored)),
    };
    let mut digests = Digests::default();
    if let Err(error) = source.replay(&mut digests) {
        return failed(error, scratch_dir);
    }
    let mut differences = Vec::new();
    for (path, digest) in &digests.files {
        let on_disk = tree.join(OsStr::from_bytes(path));
        match hash_file(&on_disk) {
            Ok(found) if found == *digest => {}
            Ok(_) => differences.push(format!("{} has other content", String::from_utf8_lossy(path))),
            Err(error) => differences.push(format!("{}: {error}", String::from_utf8_lossy(path))),
        }
    }
    let equal = digests.files.len() - differences.len();
    let mut detail = format!("expected {listed} files with equal content, found {equal}");
    if let Some(first) = differences.first() {
        detail.push_str(&format!("; first {first}"));
    }
    let contents_check = Check {
        name: "file contents".to_owned(),
        outcome: outcome(differences.is_empty() && digests.files.len() as u64 == listed),
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

/// What a restore should put in place, and how many regular files the list names.
fn expected_totals(source: &dyn EntrySource) -> io::Result<(FilesRestored, u64)> {
    let mut totals = FilesRestored::default();
    source.for_each_entry(&mut |Listed { entry, bytes, .. }| {
        match entry.kind {
            EntryKind::File => {
                totals.files += 1;
                totals.bytes += bytes;
            }
            EntryKind::Directory => totals.directories += 1,
            EntryKind::Symlink => totals.symlinks += 1,
            _ => {}
        }
        Ok(())
    })?;
    Ok((totals, totals.files))
}

fn totals(restored: &FilesRestored) -> String {
    format!(
        "{} files, {} directories, {} links, {} bytes",
        restored.files, restored.directories, restored.symlinks, restored.bytes
    )
}

fn outcome(passed: bool) -> CheckOutcome {
    if passed {
        CheckOutcome::Passed
    } else {
        CheckOutcome::Failed
    }
}

fn hash_file(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize())
}

/// The digest of every file of a source, by the bytes of its path.
#[derive(Default)]
struct Digests {
    files: BTreeMap<Vec<u8>, blake3::Hash>,
    open: Option<(Vec<u8>, blake3::Hasher)>,
}

impl EntrySink for Digests {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.open = match entry.kind {
            EntryKind::File => Some((path_bytes(entry)?, blake3::Hasher::new())),
            _ => None,
        };
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some((_, hasher)) = &mut self.open {
            hasher.update(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some((path, hasher)) = self.open.take() {
            self.files.insert(path, hasher.finalize());
        }
        Ok(())
    }
}
