//! The restore side of file trees: a sink that writes into one directory and never outside it.
//!
//! Every path is walked from the destination's open directory, one component at a time and without following links,
//! so neither a crafted entry nor a link put in place meanwhile leads out of it. A file is written under another name
//! and renamed when it is whole.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Permission bits without the file type.
const MODE_BITS: u32 = 0o7777;
const SET_ID_BITS: u32 = 0o6000;

/// What was put in place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FilesRestored {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Writes entries into a destination directory. [`finish`](Self::finish) ends it.
#[derive(Debug)]
pub struct FilesRestore {
    root: OwnedFd,
    is_root_user: bool,
    open: Option<OpenEntry>,
    /// Directories that get their mode and time at the end, when nothing is written into them any more.
    directories: Vec<(Vec<Vec<u8>>, Entry)>,
    next_temporary: u64,
    restored: FilesRestored,
}

#[derive(Debug)]
enum OpenEntry {
    File {
        parent: OwnedFd,
        name: Vec<u8>,
        temporary: String,
        file: File,
        entry: Box<Entry>,
    },
    WithoutContent,
}

impl FilesRestore {
    /// Restores into `destination`, which is created where it is missing and must be empty unless `allow_non_empty`;
    /// files that are there and in the backup are then replaced.
    pub fn create(destination: &Path, allow_non_empty: bool) -> io::Result<Self> {
        match std::fs::create_dir(destination) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_empty = std::fs::read_dir(destination)?.next().is_none();
                if !is_empty && !allow_non_empty {
                    return Err(io::Error::new(
                        io::ErrorKind::DirectoryNotEmpty,
                        format!(
                            "{} is not empty: restore into another directory, or allow what it holds to be replaced",
                            destination.display()
                        ),
                    ));
                }
            }
            Err(error) => return Err(error),
        }
        Ok(Self {
            root: rustix::fs::openat(CWD, destination, DIRECTORY, Mode::empty())?,
            is_root_user: rustix::process::geteuid().is_root(),
            open: None,
            directories: Vec::new(),
            next_temporary: 0,
            restored: FilesRestored::default(),
        })
    }

    /// Gives directories their modes and times, the deepest first. Without this the restore is not whole.
    pub fn finish(mut self) -> io::Result<FilesRestored> {
        if self.open.is_some() {
            return Err(io::Error::other("the restore ended in the middle of an entry"));
        }
        for (components, entry) in std::mem::take(&mut self.directories).into_iter().rev() {
            let directory = self.directory(&components)?;
            self.set_facts(&directory, &entry)?;
        }
        // A full disk or quota may show only when everything is written out.
        rustix::fs::syncfs(&self.root)?;
        Ok(self.restored)
    }

    /// Opens a directory under the root, creating what is missing.
    fn directory(&self, components: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let mut directory = self.root.try_clone()?;
        for component in components {
            directory = match rustix::fs::openat(&directory, component.as_slice(), DIRECTORY, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => {
                    // Closed until `finish` gives it the mode it had.
                    rustix::fs::mkdirat(&directory, component.as_slice(), Mode::RWXU)?;
                    rustix::fs::openat(&directory, component.as_slice(), DIRECTORY, Mode::empty())?
                }
                opened => opened.map_err(|error| {
                    let name = String::from_utf8_lossy(component).into_owned();
                    io::Error::new(
                        io::Error::from(error).kind(),
                        format!("{name} is not a directory, or a link: nothing is written through it"),
                    )
                })?,
            };
        }
        Ok(directory)
    }

    fn begin_file(&mut self, parent: OwnedFd, name: Vec<u8>, entry: Entry) -> io::Result<OpenEntry> {
        let temporary = format!(".strongroom-restore-{}-{}", std::process::id(), self.next_temporary);
        self.next_temporary += 1;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        Ok(OpenEntry::File {
            parent,
            name,
            temporary,
            file: File::from(file),
            entry: Box::new(entry),
        })
    }

    fn make_link(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
        let target = entry
            .link_target
            .as_deref()
            .ok_or_else(|| invalid("a link without its target"))?;
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        rustix::fs::symlinkat(target, parent, name)?;
        if self.is_root_user
            && let (Some(uid), Some(gid)) = (entry.uid, entry.gid)
        {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if let Some(times) = times(entry) {
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        self.restored.symlinks += 1;
        Ok(())
    }

    /// Owner, mode and time, in this order: changing the owner clears bits of the mode.
    fn set_facts(&self, object: impl AsFd, entry: &Entry) -> io::Result<()> {
        let mut mode = entry.mode.map(|mode| mode & MODE_BITS);
        if self.is_root_user {
            if let (Some(uid), Some(gid)) = (entry.uid, entry.gid) {
                rustix::fs::fchown(&object, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        } else if entry.uid != Some(rustix::process::geteuid().as_raw()) {
            // The bits would give our own rights to others.
            mode = mode.map(|mode| mode & !SET_ID_BITS);
        }
        if let Some(mode) = mode {
            rustix::fs::fchmod(&object, Mode::from_raw_mode(mode))?;
        }
        if let Some(times) = times(entry) {
            rustix::fs::futimens(&object, &times)?;
        }
        Ok(())
    }
}

impl EntrySink for FilesRestore {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        if self.open.is_some() {
            return Err(io::Error::other("an entry began before the last one ended"));
        }
        let mut components = components(entry)?;
        self.open = Some(match entry.kind {
            EntryKind::Directory => {
                self.directory(&components)?;
                self.directories.push((components, entry.clone()));
                self.restored.directories += 1;
                OpenEntry::WithoutContent
            }
            EntryKind::File | EntryKind::Symlink => {
                let name = components.pop().ok_or_else(|| invalid("an entry without a name"))?;
                let parent = self.directory(&components)?;
                if entry.kind == EntryKind::Symlink {
                    self.make_link(&parent, &name, entry)?;
                    OpenEntry::WithoutContent
                } else {
                    self.begin_file(parent, name, entry.clone())?
                }
            }
            EntryKind::Stream => return Err(invalid("a stream of another kind of target in a tree of files")),
            other => return Err(invalid(&format!("entries of kind {other:?} are not restored yet"))),
        });
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.open {
            Some(OpenEntry::File { file, .. }) => {
                file.write_all(bytes)?;
                self.restored.bytes += bytes.len() as u64;
                Ok(())
            }
            _ => Err(invalid("content of something that is not a file")),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self.open.take() {
            None => Err(io::Error::other("an entry ended that had not begun")),
            Some(OpenEntry::WithoutContent) => Ok(()),
            Some(OpenEntry::File {
                parent,
                name,
                temporary,
                file,
                entry,
            }) => {
                self.set_facts(&file, &entry)?;
                rustix::fs::renameat(&parent, temporary.as_str(), &parent, name.as_slice())?;
                self.restored.files += 1;
                Ok(())
            }
        }
    }
}

impl Drop for FilesRestore {
    fn drop(&mut self) {
        if let Some(OpenEntry::File { parent, temporary, .. }) = &self.open {
            let _ = rustix::fs::unlinkat(parent, temporary.as_str(), AtFlags::empty());
        }
    }
}

/// The bytes of an entry's path.
pub(crate) fn path_bytes(entry: &Entry) -> io::Result<Vec<u8>> {
    match &entry.path_hex {
        Some(text) => hex::decode(text).map_err(|_| invalid("a path in hex that is not hex")),
        None => Ok(entry.path.as_bytes().to_vec()),
    }
}

/// The components of an entry's path, refused where they could lead out of the destination.
fn components(entry: &Entry) -> io::Result<Vec<Vec<u8>>> {
    let path = path_bytes(entry)?;
    let components: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    let is_safe = |component: &Vec<u8>| {
        !component.is_empty() && component != b"." && component != b".." && !component.contains(&0)
    };
    if path.is_empty() || !components.iter().all(is_safe) {
        let shown = std::ffi::OsStr::from_bytes(&path).to_string_lossy().into_owned();
        return Err(invalid(&format!("the path {shown:?} leads out of the destination")));
    }
    Ok(components)
}

fn times(entry: &Entry) -> Option<Timestamps> {
    let time = Timespec {
        tv_sec: entry.mtime_seconds?,
        tv_nsec: i64::from(entry.mtime_nanoseconds.unwrap_or(0)),
    };
    Some(Timestamps {
        last_access: time,
        last_modification: time,
    })
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
