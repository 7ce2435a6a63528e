//! Who a server runs as: Postgres refuses to run as root, so root starts it as somebody else.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Users to run a server as, the best first.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// The user a server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunAs {
    /// Whoever we are.
    Ourselves,
    /// Somebody else; we are root.
    Other { uid: u32, gid: u32 },
}

impl RunAs {
    /// Ourselves, or for root the first of the known unprivileged users.
    pub(crate) fn unprivileged() -> io::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        let users = std::fs::read_to_string("/etc/passwd")?;
        USERS
            .iter()
            .find_map(|name| ids_of(&users, name))
            .map(|(uid, gid)| Self::Other { uid, gid })
            .ok_or_else(|| {
                io::Error::other(
                    "root cannot run Postgres, and there is neither a user postgres nor nobody: create one",
                )
            })
    }

    /// A command that runs `program` as this user. With a signal, the program gets it when the thread that started it
    /// ends, however it ends.
    pub(crate) fn command(self, program: &Path, signal_at_death: Option<&str>) -> Command {
        let mut command = Command::new("setpriv");
        if let Self::Other { uid, gid } = self {
            command
                .arg(format!("--reuid={uid}"))
                .arg(format!("--regid={gid}"))
                .arg("--clear-groups");
            // Its own may be closed to that user.
            command.env("HOME", "/").current_dir("/");
        }
        if let Some(signal) = signal_at_death {
            command.arg(format!("--pdeathsig={signal}"));
        }
        if self == Self::Ourselves && signal_at_death.is_none() {
            return Command::new(program);
        }
        command.arg("--").arg(program);
        command
    }

    /// Gives a file or folder to this user.
    pub(crate) fn own(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(uid), Some(gid)),
        }
    }

    /// The folder on the way to `path` that this user may not pass, if there is one.
    pub(crate) fn obstacle(self, path: &Path) -> io::Result<Option<PathBuf>> {
        let Self::Other { uid, gid } = self else {
            return Ok(None);
        };
        let path = std::path::absolute(path)?;
        for folder in path.ancestors().skip(1) {
            let facts = std::fs::metadata(folder)?;
            let bit = match () {
                () if facts.uid() == uid => 0o100,
                () if facts.gid() == gid => 0o010,
                () => 0o001,
            };
            if facts.mode() & bit == 0 {
                return Ok(Some(folder.to_owned()));
            }
        }
        Ok(None)
    }
}

fn ids_of(users: &str, name: &str) -> Option<(u32, u32)> {
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Gives a server of ours an environment of its own. Ours may hold secrets, and a scratch server runs what a backup
/// says.
pub(crate) fn clean_environment(command: &mut Command) -> &mut Command {
    command.env_clear();
    for name in ["PATH", "LD_LIBRARY_PATH", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("LC_ALL", OsStr::new("C")).env("TZ", "UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_folder_on_the_way_is_named() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let other = RunAs::Other {
            uid: 65_534,
            gid: 65_534,
        };
        assert_eq!(
            other.obstacle(&dir.path().join("data")).unwrap().as_deref(),
            Some(dir.path())
        );
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(other.obstacle(&dir.path().join("data")).unwrap(), None);
    }

    #[test]
    fn users_are_found_by_their_whole_name() {
        let users = "postgres-old:x:7:8::/:/x\npostgres:x:101:104::/:/x\n";
        assert_eq!(ids_of(users, "postgres"), Some((101, 104)));
        assert_eq!(ids_of(users, "nobody"), None);
    }
}
