//! A thing removed from a directory with everything in it, without following links and without leaving its file system.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::descend::{DIRECTORY, Descent};
use super::facts::{device_of, is_directory, look, look_at};
use super::names::{Lister, Names};

/// Removes a name from a directory, and what lies below it.
pub(super) fn remove_tree(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let facts = look_at(directory, name)?;
    if !is_directory(&facts) {
        return Ok(rustix::fs::unlinkat(directory, name, AtFlags::empty())?);
    }
    if device_of(&facts) != device_of(&look(directory)?) {
        return Err(mounted(name));
    }
    let mut lister = Lister::new();
    let mut descent = Descent::new(directory.try_clone_to_owned()?, Names::default());
    go_into(&mut descent, &mut lister, name)?;
    while descent.depth() > 0 {
        let Some(names) = descent.value_mut() else {
            return Ok(());
        };
        let Some(name) = names.peek().map(<[u8]>::to_vec) else {
            let emptied = last_component(descent.path()).to_vec();
            descent.pop();
            rustix::fs::unlinkat(descent.directory()?, emptied.as_slice(), AtFlags::REMOVEDIR)?;
            continue;
        };
        names.skip();
        let here = descent.directory()?;
        match rustix::fs::unlinkat(here, name.as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // POSIX has PERM, Linux ISDIR.
            Err(Errno::ISDIR | Errno::PERM) if is_directory(&look_at(here, &name)?) => {
                if device_of(&look_at(here, &name)?) != device_of(&facts) {
                    return Err(mounted(&name));
                }
                go_into(&mut descent, &mut lister, &name)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn go_into(descent: &mut Descent<Names>, lister: &mut Lister, name: &[u8]) -> io::Result<()> {
    let directory = rustix::fs::openat(descent.directory()?, name, DIRECTORY, Mode::empty())?;
    let mode = u32::from(look(directory.as_fd())?.stx_mode);
    if mode & 0o700 != 0o700 && !rustix::process::geteuid().is_root() {
        // It forbids its owner to empty it.
        let _ = rustix::fs::fchmod(&directory, Mode::from_raw_mode((mode | 0o700) & 0o7777));
    }
    let (names, problem) = lister.list(directory.as_fd());
    match problem {
        Some(error) => Err(error),
        None => {
            descent.push(name, directory, names);
            Ok(())
        }
    }
}

fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn mounted(name: &[u8]) -> io::Error {
    let name = String::from_utf8_lossy(name);
    io::Error::other(format!(
        "{name} is another file system, which is not emptied: unmount it or move it away"
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn everything_below_goes_and_nothing_a_link_points_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("tree/a/b")).unwrap();
        std::fs::create_dir(path("kept")).unwrap();
        std::fs::write(path("kept/file"), "x").unwrap();
        std::fs::write(path("tree/a/b/file"), "x").unwrap();
        symlink(path("kept"), path("tree/a/link")).unwrap();
        std::fs::set_permissions(path("tree/a"), std::fs::Permissions::from_mode(0o500)).unwrap();
        let directory = std::fs::File::open(dir.path()).unwrap();
        // Deeper than directories are kept open.
        let mut descent = Descent::new(directory.try_clone().unwrap().into(), ());
        for name in std::iter::once("tree").chain(std::iter::repeat_n("d", 200)) {
            let here = descent.directory().unwrap();
            let _ = rustix::fs::mkdirat(here, name, Mode::RWXU);
            let below = rustix::fs::openat(here, name, DIRECTORY, Mode::empty()).unwrap();
            descent.push(name.as_bytes(), below, ());
        }
        remove_tree(directory.as_fd(), b"tree").unwrap();
        assert!(!path("tree").exists());
        assert_eq!(std::fs::read_to_string(path("kept/file")).unwrap(), "x");
        symlink(path("kept"), path("link")).unwrap();
        remove_tree(directory.as_fd(), b"link").unwrap();
        assert!(path("kept/file").exists() && !path("link").exists());
    }
}
