//! Extended attributes, ACLs among them, of what is open or named in an open directory.
//!
//! There is no call for attributes of a name in an open directory, so such a name is reached by way of
//! `/proc/self/fd`, which resolves no other component.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::{Access, XattrFlags};
use rustix::io::Errno;

/// So many bytes of names and values are kept of one file.
const MAX_BYTES: usize = 256 << 10;
/// The kernel allows no longer list and no longer value.
const KERNEL_MAX_BYTES: usize = 64 << 10;
/// Most are no longer than this, and the kernel takes its time for room that is not used.
const USUAL_BYTES: usize = 1 << 10;

/// What attributes belong to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Object<'a> {
    /// Something open for reading or writing.
    Open(BorrowedFd<'a>),
    /// A name in an open directory, not followed where it is a link.
    Named(BorrowedFd<'a>, &'a [u8]),
}

/// An attribute that could not be taken, and why.
pub(super) type Untaken = (String, String);

/// Reads and writes attributes.
#[derive(Debug)]
pub(super) struct Attributes {
    list: Vec<u8>,
    value: Vec<u8>,
    path: Vec<u8>,
    /// File systems that have none.
    without: Vec<u64>,
    is_proc_missing: bool,
}

impl Attributes {
    pub(super) fn new() -> Self {
        Self {
            list: vec![0; KERNEL_MAX_BYTES],
            value: vec![0; KERNEL_MAX_BYTES],
            path: Vec::new(),
            without: Vec::new(),
            is_proc_missing: false,
        }
    }

    /// Puts every attribute into `found`, each value in hex, and answers those that could not be taken. With `device`,
    /// the file system the object lies on, it is asked once whether that has attributes at all.
    pub(super) fn read(
        &mut self,
        object: Object<'_>,
        device: Option<u64>,
        found: &mut BTreeMap<String, String>,
    ) -> io::Result<Vec<Untaken>> {
        if device.is_some_and(|device| self.without.contains(&device)) {
            return Ok(Vec::new());
        }
        let length = match self.list(object) {
            Ok(0) => return Ok(Vec::new()),
            Ok(length) => length,
            Err(Errno::NOTSUP) => {
                self.without.extend(device);
                return Ok(Vec::new());
            }
            Err(Errno::NOENT) => return self.not_found(),
            Err(error) => return Err(error.into()),
        };
        let list = std::mem::take(&mut self.list);
        let mut untaken = Vec::new();
        let mut bytes = 0;
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let Ok(text) = std::str::from_utf8(name) else {
                let shown = String::from_utf8_lossy(name).into_owned();
                untaken.push((shown, "its name is not UTF-8".to_owned()));
                continue;
            };
            match self.value(object, name) {
                Ok(value) if bytes + name.len() + value > MAX_BYTES => {
                    let reason = format!("the file has more than {} KiB of attributes", MAX_BYTES >> 10);
                    untaken.push((text.to_owned(), reason));
                }
                Ok(value) => {
                    bytes += name.len() + value;
                    found.insert(text.to_owned(), hex::encode(&self.value[..value]));
                }
                // Gone since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => untaken.push((text.to_owned(), error.to_string())),
            }
        }
        self.list = list;
        Ok(untaken)
    }

    /// What has vanished has no attributes; without `/proc` nothing is found, which is told once.
    fn not_found(&mut self) -> io::Result<Vec<Untaken>> {
        if self.is_proc_missing || rustix::fs::access(c"/proc/self/fd", Access::EXISTS).is_ok() {
            return Ok(Vec::new());
        }
        self.is_proc_missing = true;
        Err(io::Error::other(
            "mount /proc, without which attributes of names are not reached, from here on",
        ))
    }

    fn list(&mut self, object: Object<'_>) -> rustix::io::Result<usize> {
        if let Object::Named(directory, name) = object {
            write_path(&mut self.path, directory, name);
        }
        let path = self.path.as_slice();
        with_room(&mut self.list, |list| match object {
            Object::Open(file) => rustix::fs::flistxattr(file, list),
            Object::Named(..) => rustix::fs::llistxattr(path, list),
        })
    }

    /// Reads a value and answers its length.
    fn value(&mut self, object: Object<'_>, attribute: &[u8]) -> rustix::io::Result<usize> {
        if let Object::Named(directory, name) = object {
            write_path(&mut self.path, directory, name);
        }
        let path = self.path.as_slice();
        with_room(&mut self.value, |value| match object {
            Object::Open(file) => rustix::fs::fgetxattr(file, attribute, value),
            Object::Named(..) => rustix::fs::lgetxattr(path, attribute, value),
        })
    }

    /// Sets an attribute.
    pub(super) fn set(&mut self, object: Object<'_>, attribute: &str, value: &[u8]) -> rustix::io::Result<()> {
        match object {
            Object::Open(file) => rustix::fs::fsetxattr(file, attribute, value, XattrFlags::empty()),
            Object::Named(directory, name) => {
                write_path(&mut self.path, directory, name);
                rustix::fs::lsetxattr(self.path.as_slice(), attribute, value, XattrFlags::empty())
            }
        }
    }

    /// Removes an attribute.
    pub(super) fn remove(&mut self, object: Object<'_>, attribute: &str) -> rustix::io::Result<()> {
        match object {
            Object::Open(file) => rustix::fs::fremovexattr(file, attribute),
            Object::Named(directory, name) => {
                write_path(&mut self.path, directory, name);
                rustix::fs::lremovexattr(self.path.as_slice(), attribute)
            }
        }
    }
}

/// Asks with little room first.
fn with_room(
    buffer: &mut [u8],
    mut ask: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<usize> {
    let usual = buffer.len().min(USUAL_BYTES);
    match ask(&mut buffer[..usual]) {
        Err(Errno::RANGE) => ask(buffer),
        asked => asked,
    }
}

fn write_path(path: &mut Vec<u8>, directory: BorrowedFd<'_>, name: &[u8]) {
    path.clear();
    // Writing to memory does not fail.
    let _ = write!(path, "/proc/self/fd/{}/", directory.as_raw_fd());
    path.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    /// Whether attributes of users can be set where tests put their files.
    fn is_possible(file: &File) -> bool {
        let possible = rustix::fs::fsetxattr(file, c"user.probe", b"", XattrFlags::empty()).is_ok();
        if possible {
            rustix::fs::fremovexattr(file, c"user.probe").unwrap();
        } else {
            eprintln!("SKIPPED: this file system has no user attributes");
        }
        possible
    }

    #[test]
    fn attributes_are_read_alike_of_what_is_open_and_what_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        if !is_possible(&file) {
            return;
        }
        let directory = File::open(dir.path()).unwrap();
        let mut attributes = Attributes::new();
        let named = Object::Named(directory.as_fd(), b"f");
        let open = Object::Open(file.as_fd());
        attributes.set(named, "user.one", b"\x00\xff").unwrap();
        attributes.set(open, "user.two", b"").unwrap();
        attributes.set(open, "user.long", &[7; 2_000]).unwrap();
        for object in [named, open] {
            let mut found = BTreeMap::new();
            assert!(attributes.read(object, Some(1), &mut found).unwrap().is_empty());
            assert_eq!(found.remove("user.long"), Some("07".repeat(2_000)));
            found.retain(|name, _| name.starts_with("user."));
            assert_eq!(
                found.into_iter().collect::<Vec<_>>(),
                [
                    ("user.one".to_owned(), "00ff".to_owned()),
                    ("user.two".to_owned(), String::new())
                ]
            );
        }
        attributes.remove(named, "user.one").unwrap();
        assert!(attributes.remove(open, "user.one").is_err());
    }

    #[test]
    fn an_attribute_whose_name_is_not_text_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        if !is_possible(&file) {
            return;
        }
        rustix::fs::fsetxattr(&file, b"user.\xff".as_slice(), b"x", XattrFlags::empty()).unwrap();
        let mut found = BTreeMap::new();
        let untaken = Attributes::new()
            .read(Object::Open(file.as_fd()), None, &mut found)
            .unwrap();
        assert_eq!(untaken.len(), 1, "{untaken:?}");
        assert!(
            untaken[0].0.starts_with("user.") && untaken[0].1.contains("UTF-8"),
            "{untaken:?}"
        );
    }
}
