//! Files that appear whole, durable, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Who may read WAL.
const PRIVATE: u32 = 0o600;

/// Writes a file under a passing name beside its own, makes it durable and renames it.
pub(super) fn durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let passing = beside(path, ".tmp");
    let written = write(&passing, bytes)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&passing, path));
    if written.is_err() {
        // Half a file is of no use to anybody; the error that matters is told.
        let _ = fs::remove_file(&passing);
    }
    written
}

/// Writes a file that only its owner can read, over what is there.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(PRIVATE)
        .open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
