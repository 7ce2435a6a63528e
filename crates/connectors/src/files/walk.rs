//! The walk over a tree into a sink: what it takes, what it leaves out, and what it could not take.
//!
//! Invariants: entries come depth first, the names of each directory sorted by their bytes, a directory before its
//! content. What could not be read whole is named as missing, never passed off as the file.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, Mode, Statx};
use strongroom_proto::manifest::{BackupSink, Entry, EntryKind};
use strongroom_proto::receipt::SourceFacts;

use super::attributes::{Attributes, Object};
use super::descend::{DIRECTORY, Descent};
use super::exclude::{CACHE_TAG, Excluded, is_cache};
use super::facts::{
    describe, describe_target, device_of, inode_of, is_directory, is_settled, kind_of, look, look_at, version_of,
};
use super::missing::MissingList;
use super::names::{Lister, Names};
use super::read::{BUFFER_BYTES, Pieces, Stretch, is_same_version, is_small, open_file, read_whole};
use super::{FilesError, FilesReport, SnapshotOptions};

/// How often a small file that changes while it is read is read again.
const READ_ATTEMPTS: u32 = 3;
/// The path of the entry that stands for the root.
pub(super) const ROOT_PATH: &str = ".";

/// Sends everything under `root` to `sink`, with paths relative to it; the root itself is the entry `.`. Calls `seen`
/// once for each name found.
///
/// Files whose version an earlier backup holds are not read.
pub fn snapshot(
    root: &Path,
    options: &SnapshotOptions,
    sink: &mut dyn BackupSink,
    seen: &mut dyn FnMut(),
) -> Result<FilesReport, FilesError> {
    let excluded =
        Excluded::new(&options.exclude).map_err(|(pattern, source)| FilesError::Exclude { pattern, source })?;
    let (directory, facts) = open_root(root)?;
    let mut lister = Lister::new();
    // One that cannot be listed would make an empty snapshot.
    let names = match lister.list(directory.as_fd()) {
        (names, None) => names,
        (_, Some(source)) => return Err(root_error(root)(source)),
    };
    let mut walk = Walk {
        sink,
        options,
        seen,
        excluded,
        device: device_of(&facts),
        lister,
        attributes: Attributes::new(),
        buffer: vec![0; BUFFER_BYTES],
        entry: Entry::bare("", EntryKind::File),
        files_with_names: HashMap::new(),
        missing: MissingList::default(),
        report: FilesReport::default(),
    };
    walk.root(directory.as_fd(), &facts)?;
    walk.tree(directory, names)?;
    // A root that was removed meanwhile has left a part of itself at best.
    if open_root(root).is_ok_and(|(_, after)| inode_of(&after) == inode_of(&facts)) {
        Ok(walk.finish())
    } else {
        Err(FilesError::Vanished { root: root.to_owned() })
    }
}

fn open_root(root: &Path) -> Result<(OwnedFd, Statx), FilesError> {
    // Without a slash at the end, which would follow a link.
    let path: PathBuf = root.components().collect();
    let directory = rustix::fs::openat(CWD, &path, DIRECTORY, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => FilesError::NotADirectory { root: root.to_owned() },
        error => root_error(root)(error.into()),
    })?;
    let facts = look(directory.as_fd()).map_err(root_error(root))?;
    Ok((directory, facts))
}

fn root_error(root: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let root = root.to_owned();
    move |source| FilesError::Root { root, source }
}

struct Walk<'a> {
    sink: &'a mut dyn BackupSink,
    options: &'a SnapshotOptions,
    seen: &'a mut dyn FnMut(),
    excluded: Excluded,
    /// The root's file system.
    device: u64,
    lister: Lister,
    attributes: Attributes,
    buffer: Vec<u8>,
    /// The entry at hand; its memory serves for all.
    entry: Entry,
    /// The path under which each file that has other names was taken, until all of them were seen.
    files_with_names: HashMap<(u64, u64), FirstName>,
    missing: MissingList,
    report: FilesReport,
}

struct FirstName {
    path: Box<[u8]>,
    names_left: u32,
}

/// A name in a directory.
#[derive(Clone, Copy)]
struct At<'a> {
    directory: BorrowedFd<'a>,
    name: &'a [u8],
    /// Relative to the root.
    path: &'a [u8],
}

impl Walk<'_> {
    fn root(&mut self, directory: BorrowedFd<'_>, facts: &Statx) -> Result<(), FilesError> {
        describe(&mut self.entry, ROOT_PATH.as_bytes(), EntryKind::Directory, facts);
        self.attributes_of(Object::Open(directory), device_of(facts), ROOT_PATH.as_bytes());
        self.put()?;
        self.report.directories += 1;
        Ok(())
    }

    fn tree(&mut self, root: OwnedFd, names: Names) -> Result<(), FilesError> {
        let mut descent = Descent::new(root, names);
        let mut path = Vec::new();
        loop {
            path.clear();
            path.extend_from_slice(descent.path());
            if !path.is_empty() {
                path.push(b'/');
            }
            let Some(names) = descent.value_mut() else {
                return Ok(());
            };
            let Some(name) = names.peek() else {
                descent.pop();
                continue;
            };
            let name_start = path.len();
            path.extend_from_slice(name);
            names.skip();
            let name = &path[name_start..];
            let entered = match descent.directory() {
                Ok(directory) => self.visit(At {
                    directory,
                    name,
                    path: &path,
                })?,
                Err(error) => {
                    self.missing.add(
                        &path,
                        format!("its directory was moved or removed while it was read: {error}"),
                    );
                    None
                }
            };
            if let Some((directory, names)) = entered {
                descent.push(name, directory, names);
            }
        }
    }

    /// Takes one thing. Answers a directory to go into.
    fn visit(&mut self, at: At<'_>) -> Result<Option<(OwnedFd, Names)>, FilesError> {
        (self.seen)();
        let looked_at = SystemTime::now();
        let facts = match look_at(at.directory, at.name) {
            Ok(facts) => facts,
            Err(error) => {
                self.missing
                    .add(at.path, format!("vanished or cannot be looked at: {error}"));
                return Ok(None);
            }
        };
        let is_mount = self.options.one_file_system && device_of(&facts) != self.device;
        if self.excluded.contains(at.path, is_directory(&facts)) || (is_mount && !is_directory(&facts)) {
            self.report.excluded += 1;
            return Ok(None);
        }
        match kind_of(&facts) {
            Some(EntryKind::File) => self.file(at, facts, looked_at)?,
            Some(EntryKind::Directory) => return self.directory(at),
            Some(kind) => self.without_content(at, kind, &facts)?,
            None => self
                .missing
                .add(at.path, "neither a file nor anything else that is known, skipped"),
        }
        Ok(None)
    }

    fn directory(&mut self, at: At<'_>) -> Result<Option<(OwnedFd, Names)>, FilesError> {
        let opened = rustix::fs::openat(at.directory, at.name, DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|directory| look(directory.as_fd()).map(|facts| (directory, facts)));
        let (directory, facts) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.missing.add(at.path, format!("cannot be listed: {error}"));
                // It is still there, with an owner and a mode.
                if let Ok(facts) = look_at(at.directory, at.name)
                    && is_directory(&facts)
                {
                    self.put_directory(at.path, Object::Named(at.directory, at.name), &facts)?;
                }
                return Ok(None);
            }
        };
        self.put_directory(at.path, Object::Open(directory.as_fd()), &facts)?;
        if self.options.one_file_system && device_of(&facts) != self.device {
            self.report.excluded += 1;
            return Ok(None);
        }
        let (mut names, problem) = self.lister.list(directory.as_fd());
        if let Some(error) = problem {
            self.missing.add(at.path, format!("cannot be listed: {error}"));
        }
        if self.options.exclude_caches
            && names.contain(CACHE_TAG)
            && is_cache(directory.as_fd()).unwrap_or(false)
            && names.len() > 1
        {
            names.keep_only(CACHE_TAG);
            self.report.excluded += 1;
        }
        Ok(Some((directory, names)))
    }

    fn put_directory(&mut self, path: &[u8], object: Object<'_>, facts: &Statx) -> Result<(), FilesError> {
        describe(&mut self.entry, path, EntryKind::Directory, facts);
        self.attributes_of(object, device_of(facts), path);
        self.put()?;
        self.report.directories += 1;
        Ok(())
    }

    /// Takes a link, a named pipe, a device node or a socket.
    fn without_content(&mut self, at: At<'_>, kind: EntryKind, facts: &Statx) -> Result<(), FilesError> {
        describe(&mut self.entry, at.path, kind, facts);
        if kind == EntryKind::Symlink {
            match rustix::fs::readlinkat(at.directory, at.name, Vec::new()) {
                Ok(target) => describe_target(&mut self.entry, target.as_bytes()),
                Err(error) => {
                    self.missing
                        .add(at.path, format!("the link vanished or cannot be read: {error}"));
                    return Ok(());
                }
            }
        }
        self.attributes_of(Object::Named(at.directory, at.name), device_of(facts), at.path);
        self.put()?;
        match kind {
            EntryKind::Symlink => self.report.links += 1,
            EntryKind::Socket => self.report.sockets += 1,
            _ => self.report.others += 1,
        }
        Ok(())
    }

    fn file(&mut self, at: At<'_>, facts: Statx, looked_at: SystemTime) -> Result<(), FilesError> {
        if self.options.max_file_bytes.is_some_and(|limit| facts.stx_size > limit) {
            self.report.excluded += 1;
            self.report.too_large += 1;
            return Ok(());
        }
        if self.put_further_name(at.path, &facts)? {
            return Ok(());
        }
        describe(&mut self.entry, at.path, EntryKind::File, &facts);
        self.attributes_of(Object::Named(at.directory, at.name), device_of(&facts), at.path);
        let is_unchanged = !self.options.read_everything
            && self
                .sink
                .put_unchanged(&self.entry, &version_of(&facts))
                .map_err(sink_error(&self.entry.path))?;
        if is_unchanged {
            self.report.unchanged += 1;
            self.took(at.path, &facts);
            return Ok(());
        }
        self.read(at, facts, looked_at)
    }

    /// Takes a file by another name of it that was taken before, if there is one.
    fn put_further_name(&mut self, path: &[u8], facts: &Statx) -> Result<bool, FilesError> {
        if facts.stx_nlink < 2 {
            return Ok(false);
        }
        let inode = inode_of(facts);
        let Some(first) = self.files_with_names.get_mut(&inode) else {
            return Ok(false);
        };
        describe(&mut self.entry, path, EntryKind::Hardlink, facts);
        describe_target(&mut self.entry, &first.path);
        first.names_left = first.names_left.saturating_sub(1);
        if first.names_left == 0 {
            self.files_with_names.remove(&inode);
        }
        self.put()?;
        self.report.hardlinks += 1;
        Ok(true)
    }

    /// Reads a file that `facts` were seen of, and whose entry is described already.
    fn read(&mut self, at: At<'_>, facts: Statx, mut looked_at: SystemTime) -> Result<(), FilesError> {
        let mut described = facts;
        for _ in 0..READ_ATTEMPTS {
            let (file, before) = match open_file(at.directory, at.name) {
                Ok(opened) => opened,
                Err(error) => {
                    self.missing
                        .add(at.path, format!("vanished or cannot be read: {error}"));
                    return Ok(());
                }
            };
            if !is_same_version(&described, &before) {
                describe(&mut self.entry, at.path, EntryKind::File, &before);
                self.attributes_of(Object::Open(file.as_fd()), device_of(&before), at.path);
                described = before;
            }
            if !is_small(&before) {
                return self.large(at.path, file.as_fd(), &before, looked_at);
            }
            let wanted = usize::try_from(before.stx_size)
                .unwrap_or(BUFFER_BYTES)
                .min(BUFFER_BYTES);
            let read = read_whole(file.as_fd(), &mut self.buffer[..wanted])
                .and_then(|length| look(file.as_fd()).map(|after| (length, after)));
            match read {
                Ok((length, after)) if length == wanted && is_same_version(&before, &after) => {
                    return self.small(at.path, length, &before, looked_at);
                }
                Ok(_) => looked_at = SystemTime::now(),
                Err(error) => {
                    self.missing.add(at.path, format!("cannot be read: {error}"));
                    return Ok(());
                }
            }
        }
        self.missing.add(at.path, "it changed whenever it was read");
        Ok(())
    }

    fn small(&mut self, path: &[u8], length: usize, facts: &Statx, looked_at: SystemTime) -> Result<(), FilesError> {
        self.begin_file(facts, looked_at)?;
        if length > 0 {
            self.sink
                .write(&self.buffer[..length])
                .map_err(sink_error(&self.entry.path))?;
        }
        self.sink.end().map_err(sink_error(&self.entry.path))?;
        self.took(path, facts);
        Ok(())
    }

    fn large(
        &mut self,
        path: &[u8],
        file: BorrowedFd<'_>,
        before: &Statx,
        looked_at: SystemTime,
    ) -> Result<(), FilesError> {
        self.begin_file(before, looked_at)?;
        let mut pieces = Pieces::new(file, before);
        let problem = loop {
            let stored = match pieces.next(&mut self.buffer) {
                Ok(Some(Stretch::Bytes(bytes))) => self.sink.write(bytes),
                Ok(Some(Stretch::Hole(bytes))) => self.sink.hole(bytes),
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            };
            stored.map_err(sink_error(&self.entry.path))?;
        };
        let problem = problem.or_else(|| match look(file) {
            Ok(after) if is_same_version(before, &after) => None,
            Ok(_) => Some("it was written to".to_owned()),
            Err(error) => Some(error.to_string()),
        });
        self.sink.end().map_err(sink_error(&self.entry.path))?;
        match problem {
            None => self.took(path, before),
            Some(problem) => self
                .missing
                .add_torn(path, format!("changed or unreadable while read: {problem}")),
        }
        Ok(())
    }

    fn begin_file(&mut self, facts: &Statx, looked_at: SystemTime) -> Result<(), FilesError> {
        let version = version_of(facts);
        let version = match is_settled(&version, looked_at) {
            true => version,
            false => version.unsettled(),
        };
        self.sink
            .begin_file(&self.entry, &version)
            .map_err(sink_error(&self.entry.path))
    }

    /// A file is in the backup whole: its other names may refer to it.
    fn took(&mut self, path: &[u8], facts: &Statx) {
        self.report.files += 1;
        if facts.stx_nlink > 1 {
            let first = FirstName {
                path: path.into(),
                names_left: facts.stx_nlink - 1,
            };
            self.files_with_names.insert(inode_of(facts), first);
        }
    }

    fn attributes_of(&mut self, object: Object<'_>, device: u64, path: &[u8]) {
        match self.attributes.read(object, Some(device), &mut self.entry.xattrs) {
            Ok(untaken) => {
                for (attribute, reason) in untaken {
                    self.missing
                        .add(path, format!("its attribute {attribute} was not taken: {reason}"));
                }
            }
            Err(error) => self
                .missing
                .add(path, format!("its attributes were not taken: {error}")),
        }
    }

    fn put(&mut self) -> Result<(), FilesError> {
        self.sink
            .begin(&self.entry)
            .and_then(|()| self.sink.end())
            .map_err(sink_error(&self.entry.path))
    }

    fn finish(self) -> FilesReport {
        FilesReport {
            facts: SourceFacts {
                files: Some(self.report.files + self.report.hardlinks),
                ..SourceFacts::default()
            },
            missing: self.missing.into_named(),
            ..self.report
        }
    }
}

fn sink_error(path: &str) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Sink {
        path: path.to_owned(),
        source,
    }
}
