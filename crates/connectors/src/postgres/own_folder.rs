//! Folders that servers of our own take over: what may be in them already, and whose they are then.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::run_as::RunAs;

/// Why a file or folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A folder that a server would take over holds something else.
    #[error("{} is not empty: name an empty folder, or one that is not there", folder.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
    },
    /// The server's user could not get there.
    #[error(
        "the server does not run as root, and its user may not pass {}: open that folder (chmod a+x) or choose another",
        folder.display()
    )]
    Obstacle {
        /// The folder.
        folder: PathBuf,
    },
    /// A step failed.
    #[error("{doing} {}", path.display())]
    Step {
        /// The step.
        doing: &'static str,
        /// The object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// A failed step on an object of the file system.
    pub(super) fn step(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Step { doing, path, source }
    }
}

/// Refuses a folder that holds anything but what is allowed.
pub(super) fn refuse_contents(folder: &Path, is_allowed: fn(&[u8]) -> bool) -> Result<(), FileError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(FileError::step("list", folder))?,
    };
    for entry in entries {
        let name = entry.map_err(FileError::step("list", folder))?.file_name();
        if !is_allowed(name.as_encoded_bytes()) {
            return Err(FileError::NotEmpty {
                folder: folder.to_owned(),
            });
        }
    }
    Ok(())
}

/// Makes a folder that belongs to the server's user alone, and which that user can reach.
pub(super) fn own_folder(folder: &Path, run_as: RunAs) -> Result<(), FileError> {
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(FileError::step("create", parent))?;
    }
    if let Some(folder) = run_as.obstacle(folder).map_err(FileError::step("look at", folder))? {
        return Err(FileError::Obstacle { folder });
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(FileError::step("create", folder)(error));
        }
        _ => {}
    }
    run_as.own(folder).map_err(FileError::step("give away", folder))?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(FileError::step("close", folder))
}
