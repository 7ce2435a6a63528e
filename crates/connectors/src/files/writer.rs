//! Entries written into a destination directory, and never outside it.
//!
//! Every path is walked from the destination's open directory, one component at a time and without following links,
//! so neither a crafted entry nor a link put in place meanwhile leads out of it. What replaces something is written
//! under another name and renamed when it is whole; what is new and ends badly is removed.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Statx};
use rustix::io::Errno;
use strongroom_disk::{Buffers, NewFile};
use strongroom_proto::manifest::{Entry, EntryKind};

use super::attributes::Object;
use super::compare::look_if_there;
use super::descend::{DIRECTORY, Descent};
use super::facts::{MODE_BITS, is_directory, look};
use super::metadata::{Before, Setter, change_mode};
use super::paths::{invalid, path_of, split};
use super::remove::remove_tree;
use super::restore::{Change, Existing, FilesRestored};

/// Told of each change with its path and, for what is skipped, the reason.
pub(super) type Changed<'a> = Box<dyn FnMut(Change, &Path, Option<&str>) + 'a>;

const TEMPORARY_PREFIX: &str = ".strongroom-restore-";

/// Writes entries into a destination. [`finish`](Self::finish) ends it.
pub(super) struct Writer<'a> {
    pub(super) descent: Descent<Directory>,
    pub(super) existing: Existing,
    /// Whether what is made may have inherited something: from what was there, or from the destination.
    pub(super) inherits: bool,
    /// Whether a directory that is in the way of something else goes with all it holds.
    removes_directories: bool,
    pub(super) setter: Setter,
    open: Option<OpenEntry>,
    buffers: Buffers,
    next_temporary: u64,
    /// Directories that were made because something lies in them, and whose own entries did not come yet.
    made_on_the_way: HashSet<Vec<u8>>,
    pub(super) restored: FilesRestored,
    pub(super) changed: Changed<'a>,
}

/// A directory that gets its metadata when it is left, when nothing is written into it any more.
#[derive(Debug, Default)]
pub(super) struct Directory {
    entry: Option<Box<Entry>>,
    /// Whether it was made now, and inherited nothing.
    is_clean: bool,
    /// The mode it had, where that had to be changed to write into it.
    mode: Option<u32>,
}

#[derive(Debug)]
enum OpenEntry {
    File(Box<OpenFile>),
    WithoutContent,
}

#[derive(Debug)]
struct OpenFile {
    file: NewFile,
    entry: Entry,
    path: Vec<u8>,
    /// The name it has until it is whole, where something else has its own.
    temporary: Option<String>,
    /// The mode it was made with.
    made: u32,
}

/// Where a name is free, or what has it.
pub(super) enum Place {
    Free,
    Taken(Box<Statx>),
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        root: OwnedFd,
        existing: Existing,
        removes_directories: bool,
        changed: Changed<'a>,
    ) -> io::Result<Self> {
        let mode = u32::from(look(root.as_fd())?.stx_mode);
        let is_group_inherited = mode & 0o2000 != 0;
        let has_default_acl = rustix::fs::fgetxattr_query(&root, c"system.posix_acl_default").is_ok();
        Ok(Self {
            descent: Descent::new(root, Directory::default()),
            existing,
            inherits: existing != Existing::Refuse || is_group_inherited || has_default_acl,
            removes_directories,
            setter: Setter::new(),
            open: None,
            buffers: Buffers::default(),
            next_temporary: 0,
            made_on_the_way: HashSet::new(),
            restored: FilesRestored::default(),
            changed,
        })
    }

    pub(super) fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        if self.open.is_some() {
            return Err(io::Error::other("an entry began before the last one ended"));
        }
        let path = path_of(entry)?;
        self.begin_at(path, entry).map_err(named(&entry.path))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(OpenEntry::File(open)) = &mut self.open else {
            return Err(invalid("content of something that is not a file"));
        };
        open.file.write(bytes).map_err(named(&open.entry.path))?;
        self.restored.bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn hole(&mut self, bytes: u64) -> io::Result<()> {
        let Some(OpenEntry::File(open)) = &mut self.open else {
            return Err(invalid("content of something that is not a file"));
        };
        open.file.skip(bytes).map_err(named(&open.entry.path))?;
        self.restored.bytes = self.restored.bytes.saturating_add(bytes);
        Ok(())
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        match &self.open {
            None => Err(io::Error::other("an entry ended that had not begun")),
            Some(OpenEntry::WithoutContent) => {
                self.open = None;
                Ok(())
            }
            Some(OpenEntry::File(open)) => {
                let path = open.entry.path.clone();
                self.end_file().map_err(named(&path))
            }
        }
    }

    /// Gives directories that were not left yet their metadata. Without this the restore is not whole.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.open.is_some() {
            return Err(io::Error::other("the restore ended in the middle of an entry"));
        }
        while self.descent.depth() > 0 {
            self.leave()?;
        }
        let root = self.descent.root()?;
        let settled = self.descent.value_mut().map(std::mem::take).unwrap_or_default();
        self.settle(root.as_fd(), b".", settled)?;
        // A full disk or quota may show only when everything is written out.
        rustix::fs::syncfs(root)?;
        Ok(())
    }

    fn begin_at(&mut self, path: Vec<u8>, entry: &Entry) -> io::Result<()> {
        if path.is_empty() {
            return self.begin_root(entry);
        }
        let (parent, name) = split(&path);
        self.enter(parent)?;
        let opened = match entry.kind {
            EntryKind::Directory => {
                self.make_directory(&path, name, entry)?;
                OpenEntry::WithoutContent
            }
            EntryKind::File => OpenEntry::File(Box::new(self.make_file(&path, name, entry)?)),
            EntryKind::Hardlink => {
                self.make_hardlink(&path, name, entry)?;
                OpenEntry::WithoutContent
            }
            EntryKind::Symlink | EntryKind::Fifo | EntryKind::CharDevice | EntryKind::BlockDevice => {
                self.make_node(&path, name, entry)?;
                OpenEntry::WithoutContent
            }
            EntryKind::Socket => {
                self.skip(&path, SOCKET_NOT_MADE);
                OpenEntry::WithoutContent
            }
            EntryKind::Stream => return Err(invalid("a stream of another kind of target in a tree of files")),
        };
        self.open = Some(opened);
        Ok(())
    }

    fn begin_root(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(invalid("the root of a tree that is not a directory"));
        }
        self.restored.directories += 1;
        self.open = Some(OpenEntry::WithoutContent);
        // A directory that holds other things as well keeps its own metadata.
        if self.existing != Existing::Replace {
            while self.descent.depth() > 0 {
                self.leave()?;
            }
            if self.existing == Existing::InPlace {
                let root = self.descent.root()?;
                let facts = look(root.as_fd())?;
                if !self.setter.is_set(entry, &facts, Object::Open(root.as_fd()))? {
                    self.restored.metadata += 1;
                    self.report(Change::Metadata, b".");
                }
            }
            if let Some(root) = self.descent.value_mut() {
                root.entry = Some(Box::new(entry.clone()));
            }
        }
        Ok(())
    }

    /// Goes to a directory, and makes what is missing on the way there.
    fn enter(&mut self, path: &[u8]) -> io::Result<()> {
        while self.descent.rest_of(path).is_none() {
            self.leave()?;
        }
        let rest = self.descent.rest_of(path).unwrap_or_default().to_vec();
        for name in rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let here = self.descent.directory()?;
            let (directory, is_made) = match rustix::fs::openat(here, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    self.open_up()?;
                    self.mkdir(name)?;
                    let made = rustix::fs::openat(self.descent.directory()?, name, DIRECTORY, Mode::empty())?;
                    (made, true)
                }
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(not_a_directory(name)),
                opened => (opened?, false),
            };
            self.descent.push(name, directory, Directory::default());
            if is_made {
                self.made_on_the_way.insert(self.descent.path().to_vec());
            }
        }
        Ok(())
    }

    /// Goes back to the directory above, and gives the one that is left its metadata.
    fn leave(&mut self) -> io::Result<()> {
        let path = self.descent.path().to_vec();
        // It may have been closed.
        self.descent.directory()?;
        let Some((Some(directory), left)) = self.descent.pop() else {
            return Ok(());
        };
        self.settle(directory.as_fd(), &path, left)
    }

    /// Gives a directory that nothing is written into any more what it should have.
    fn settle(&mut self, directory: BorrowedFd<'_>, path: &[u8], left: Directory) -> io::Result<()> {
        if let Some(mode) = left.mode {
            rustix::fs::fchmod(directory, Mode::from_raw_mode(mode))?;
        }
        if let Some(entry) = left.entry {
            let before = if left.is_clean {
                Before::Made(0o700)
            } else {
                Before::Unknown
            };
            self.set_directory(directory, &entry, before)
                .map_err(named(&entry.path))?;
            self.report_problems(path);
        }
        Ok(())
    }

    fn set_directory(&mut self, directory: BorrowedFd<'_>, entry: &Entry, before: Before) -> io::Result<()> {
        let is_set = self.existing == Existing::InPlace
            && self.setter.is_set(entry, &look(directory)?, Object::Open(directory))?;
        if is_set {
            Ok(())
        } else {
            self.setter.set(directory, entry, before)
        }
    }

    fn make_directory(&mut self, path: &[u8], name: &[u8], entry: &Entry) -> io::Result<()> {
        let made = self.mkdir(name).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                self.open_up()?;
                self.mkdir(name)
            }
            _ => Err(error),
        });
        let mut change = match made {
            Ok(()) => Some(Change::Create),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(error),
        };
        let directory = match rustix::fs::openat(self.descent.directory()?, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) if self.existing == Existing::InPlace => {
                self.open_up()?;
                rustix::fs::unlinkat(self.descent.directory()?, name, AtFlags::empty())?;
                self.mkdir(name)?;
                change = Some(Change::Replace);
                rustix::fs::openat(self.descent.directory()?, name, DIRECTORY, Mode::empty())?
            }
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(not_a_directory(name)),
            opened => opened?,
        };
        let is_made = change.is_some();
        if self.made_on_the_way.remove(path) {
            change = Some(Change::Create);
        } else if !is_made {
            let facts = look(directory.as_fd())?;
            let is_set = self.setter.is_set(entry, &facts, Object::Open(directory.as_fd()))?;
            if !is_set && self.existing != Existing::Refuse {
                self.restored.metadata += 1;
                change = Some(Change::Metadata);
            }
        }
        let pending = Directory {
            entry: Some(Box::new(entry.clone())),
            is_clean: is_made && !self.inherits,
            mode: None,
        };
        self.descent.push(name, directory, pending);
        self.restored.directories += 1;
        if let Some(change) = change {
            self.report(change, path);
        }
        Ok(())
    }

    /// Makes a directory that is closed to others until it is left.
    fn mkdir(&mut self, name: &[u8]) -> io::Result<()> {
        let here = self.descent.directory()?;
        rustix::fs::mkdirat(here, name, Mode::RWXU)?;
        if self.inherits && !self.setter.rights.is_root {
            // An ACL that it inherited may forbid even its owner to use it.
            change_mode(here, name, 0o700)?;
        }
        Ok(())
    }

    /// Allows this process to write into the directory it is in, where that is its own and forbids it. It gets its mode
    /// back when it is left.
    pub(super) fn open_up(&mut self) -> io::Result<()> {
        if self.setter.rights.is_root || self.existing == Existing::Refuse {
            return Ok(());
        }
        let here = self.descent.directory()?;
        let facts = look(here)?;
        let mode = u32::from(facts.stx_mode) & MODE_BITS;
        if facts.stx_uid == self.setter.rights.uid && mode & 0o700 != 0o700 {
            rustix::fs::fchmod(here, Mode::from_raw_mode(mode | 0o700))?;
            if let Some(directory) = self.descent.value_mut() {
                directory.mode = Some(mode);
            }
        }
        Ok(())
    }

    fn make_file(&mut self, path: &[u8], name: &[u8], entry: &Entry) -> io::Result<OpenFile> {
        let made = if self.inherits {
            0o600
        } else {
            self.setter.mode_to_make(entry)
        };
        let create = |here: BorrowedFd<'_>, name: &[u8]| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(here, name, flags, Mode::from_raw_mode(made))
        };
        self.open_up()?;
        let (file, temporary) = match create(self.descent.directory()?, name) {
            Err(Errno::EXIST) => {
                // What is there stays until there is something to take its place.
                self.check_place(name, entry)?;
                let temporary = self.temporary(|here, name| create(here, name))?;
                (temporary.1, Some(temporary.0))
            }
            created => (created?, None),
        };
        Ok(OpenFile {
            file: NewFile::begin(File::from(file), &self.buffers),
            entry: entry.clone(),
            path: path.to_vec(),
            temporary,
            made,
        })
    }

    fn end_file(&mut self) -> io::Result<()> {
        let Some(OpenEntry::File(open)) = &mut self.open else {
            return Ok(());
        };
        let file = open.file.finish()?;
        let before = if self.inherits {
            Before::Unknown
        } else {
            Before::Made(open.made)
        };
        self.setter.set(file.as_fd(), &open.entry, before)?;
        let change = match open.temporary.clone() {
            Some(temporary) => {
                let (path, entry) = (open.path.clone(), open.entry.clone());
                let (_, name) = split(&path);
                self.clear_place(name, &entry)?;
                let here = self.descent.directory()?;
                rustix::fs::renameat(here, temporary.as_bytes(), here, name)?;
                Change::Replace
            }
            None => Change::Create,
        };
        let Some(OpenEntry::File(open)) = self.open.take() else {
            return Ok(());
        };
        self.restored.files += 1;
        self.report(change, &open.path);
        self.report_problems(&open.path);
        Ok(())
    }

    /// Makes something under a name that nothing has.
    pub(super) fn temporary<T>(
        &mut self,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> io::Result<(String, T)> {
        loop {
            let name = format!("{TEMPORARY_PREFIX}{}-{}", std::process::id(), self.next_temporary);
            self.next_temporary += 1;
            match make(self.descent.directory()?, name.as_bytes()) {
                // Left by a process that was killed.
                Err(Errno::EXIST) => {}
                made => return Ok((name, made?)),
            }
        }
    }

    pub(super) fn look_at_place(&mut self, name: &[u8]) -> io::Result<Place> {
        Ok(match look_if_there(self.descent.directory()?, name)? {
            Some(facts) => Place::Taken(Box::new(facts)),
            None => Place::Free,
        })
    }

    /// Makes sure that what has a name can be replaced by a rename.
    pub(super) fn clear_place(&mut self, name: &[u8], entry: &Entry) -> io::Result<()> {
        if self.check_place(name, entry)? {
            remove_tree(self.descent.directory()?, name)?;
        }
        Ok(())
    }

    /// Makes sure that what has a name may be replaced, and says whether it is a directory, which has to be removed first.
    fn check_place(&mut self, name: &[u8], entry: &Entry) -> io::Result<bool> {
        let Place::Taken(facts) = self.look_at_place(name)? else {
            return Ok(false);
        };
        check_place(
            self.descent.directory()?,
            name,
            &facts,
            self.existing,
            self.removes_directories,
            entry,
        )?;
        Ok(is_directory(&facts))
    }

    pub(super) fn report(&mut self, change: Change, path: &[u8]) {
        (self.changed)(change, Path::new(std::ffi::OsStr::from_bytes(path)), None);
    }

    pub(super) fn skip(&mut self, path: &[u8], reason: &str) {
        self.restored.skipped += 1;
        (self.changed)(Change::Skip, Path::new(std::ffi::OsStr::from_bytes(path)), Some(reason));
    }

    pub(super) fn report_problems(&mut self, path: &[u8]) {
        for problem in self.setter.take_problems() {
            self.restored.problems += 1;
            (self.changed)(
                Change::Skip,
                Path::new(std::ffi::OsStr::from_bytes(path)),
                Some(&problem),
            );
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if let Some(OpenEntry::File(open)) = self.open.take()
            && let Ok(here) = self.descent.directory()
        {
            let (_, name) = split(&open.path);
            let name = open.temporary.as_deref().map_or(name, str::as_bytes);
            let _ = rustix::fs::unlinkat(here, name, AtFlags::empty());
        }
    }
}

/// Why sockets are skipped.
pub const SOCKET_NOT_MADE: &str = "a socket, which its program makes again";
/// Whether what has a name may be replaced by an entry that is not a directory.
pub(super) fn check_place(
    directory: BorrowedFd<'_>,
    name: &[u8],
    facts: &Statx,
    existing: Existing,
    removes_directories: bool,
    entry: &Entry,
) -> io::Result<()> {
    let refused = |what: &str| Err(io::Error::new(io::ErrorKind::AlreadyExists, what.to_owned()));
    if existing == Existing::Refuse {
        return refused(
            "it is there already: the backup names it twice, or the destination does not tell upper and lower case apart",
        );
    }
    if !is_directory(facts) || entry.kind == EntryKind::Directory {
        return Ok(());
    }
    if existing == Existing::Replace {
        return refused("a directory is in its way: move it away, or restore in place");
    }
    if removes_directories {
        return Ok(());
    }
    let below = rustix::fs::openat(directory, name, DIRECTORY, Mode::empty())?;
    match super::names::Lister::new().list(below.as_fd()) {
        (names, None) if names.len() == 0 => Ok(()),
        (_, Some(error)) => Err(error),
        _ => refused(
            "a directory that is not empty is in its way: move it away, or let the restore delete what the backup lacks",
        ),
    }
}

pub(super) fn not_a_directory(name: &[u8]) -> io::Error {
    let name = String::from_utf8_lossy(name);
    io::Error::new(
        io::ErrorKind::NotADirectory,
        format!("{name} is not a directory, or a link: nothing is written through it"),
    )
}

/// Says of an error which entry it is about.
pub(super) fn named(path: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}
