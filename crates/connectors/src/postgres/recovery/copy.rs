//! A recovered cluster as a copy beside the original: what keeps it to itself, and how it is started.
//!
//! Invariant: from before its first start until somebody takes our block out of `postgresql.auto.conf`, a copy uses no
//! place of the original, runs no command of its, archives nothing, runs no subscription, and is reached from its own
//! machine alone.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::error::RecoveryError;
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::run_as::{RunAs, clean_environment};

pub(super) const AUTO_CONF: &str = "postgresql.auto.conf";
/// Written before it takes the other's place, under the name that the server itself uses and no base backup holds.
const AUTO_CONF_NEW: &str = "postgresql.auto.conf.tmp";
/// The longest path of a socket, in bytes, and what its file's name adds to a folder's.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const SOCKET_NAME_BYTES: usize = "/.s.PGSQL.65535".len();

pub(super) type Settings = Vec<(String, String)>;

/// Lines of ours in `postgresql.auto.conf`. What stands there later is stronger.
pub(super) struct Block {
    /// Comments; by the first one the block is known.
    begin: &'static [&'static str],
    end: &'static str,
    settings: Settings,
}

impl Block {
    /// What keeps a copy to itself.
    fn of_copy(settings: Settings) -> Self {
        Self {
            begin: &[
                "# Strongroom, begin of the copy: what follows keeps this copy of a cluster to itself (loopback only, no archive,",
                "# no subscription). To have it take the original's place, remove the lines from this \"begin of the copy\" to",
                "# \"end of the copy\" and start the server anew.",
            ],
            end: "# Strongroom, end of the copy",
            settings,
        }
    }

    /// What has a server recover that somebody else starts.
    pub(super) fn of_recovery(settings: Settings) -> Self {
        Self {
            begin: &[
                "# Strongroom, begin of the recovery: when the server is up, remove the lines from here to \"end of the recovery\".",
            ],
            end: "# Strongroom, end of the recovery",
            settings,
        }
    }

    fn write_to(&self, text: &mut Vec<u8>) {
        let mut line = |line: &str| text.extend_from_slice(format!("{line}\n").as_bytes());
        self.begin.iter().copied().for_each(&mut line);
        for (name, value) in &self.settings {
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            line(&format!("{name} = '{value}'"));
        }
        line(self.end);
    }

    /// Takes earlier ones of its kind out. One that lost its end or its beginning stays: where it ended is not known, and
    /// what lies around it is somebody's.
    fn remove_from(&self, text: &mut Vec<u8>) {
        let Some(first) = self.begin.first() else { return };
        let mut kept = Vec::with_capacity(text.len());
        // Where the block that has not ended yet begins in what is kept.
        let mut begun = None;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let said = line.trim_ascii_end();
            if said == first.as_bytes() {
                begun = Some(kept.len());
            }
            match begun {
                Some(begin) if said == self.end.as_bytes() => {
                    kept.truncate(begin);
                    begun = None;
                }
                _ => kept.extend_from_slice(line),
            }
        }
        *text = kept;
    }
}

/// Keeps whatever server is started in a data folder to itself, on a loopback port that is free now; gives that back. The
/// `before` comes first in the file. No server may run there.
pub(super) fn keep_to_itself(data_dir: &Path, before: Option<Block>, run_as: RunAs) -> Result<u16, RecoveryError> {
    // Who takes it in between makes a start fail, and nothing worse.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| Ok(listener.local_addr()?.port()));
    let port = port.map_err(RecoveryError::file("find a free port for", data_dir))?;
    let mut settings = told_to_any(port);
    let more = [
        ("listen_addresses", Ipv4Addr::LOCALHOST.to_string()),
        ("unix_socket_directories", socket_folder(data_dir)),
        ("archive_command", String::new()),
        ("archive_library", String::new()),
        // Within the data folder.
        ("log_directory", "log".to_owned()),
    ];
    settings.extend(more.map(|(name, value)| (name.to_owned(), value)));
    let copy = Block::of_copy(settings);

    let path = data_dir.join(AUTO_CONF);
    let mut text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(RecoveryError::file("read", &path)(error)),
    };
    for block in before.iter().chain([&copy]) {
        block.remove_from(&mut text);
    }
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    for block in before.iter().chain([&copy]) {
        block.write_to(&mut text);
    }
    replace(&path, &data_dir.join(AUTO_CONF_NEW), &text, run_as).map_err(RecoveryError::file("write", &path))?;
    Ok(port)
}

/// What every copy of a cluster that runs beside the original is told: it must not write into the original's archive or
/// clear it, or take what is meant for the original from others.
pub(super) fn told_to_any(port: u16) -> Settings {
    [
        ("external_pid_file", String::new()),
        ("port", port.to_string()),
        // The original's may not exist here, and no server starts with it then.
        ("unix_socket_group", String::new()),
        ("unix_socket_permissions", "0700".to_owned()),
        ("archive_mode", "off".to_owned()),
        ("archive_cleanup_command", String::new()),
        ("recovery_end_command", String::new()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("synchronous_standby_names", String::new()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("huge_pages", "try".to_owned()),
        ("bonjour", "off".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// For a person: how such a copy stands beside the original, and how it takes its place.
pub(super) fn describe(port: u16) -> String {
    format!(
        "it listens on 127.0.0.1 port {port} only, archives nothing and runs no subscription; to have it take the original's \
         place, first remove the lines \"of the copy\" from its {AUTO_CONF}"
    )
}

/// A folder as a list of folders has it.
pub(super) fn in_list(folder: &Path) -> String {
    format!("\"{}\"", folder.to_string_lossy().replace('"', "\"\""))
}

/// Whether a socket in this folder has a path that can be bound.
pub(super) fn has_room_for_socket(folder: &Path) -> bool {
    folder.as_os_str().as_bytes().len() + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES_MAX
}

fn socket_folder(data_dir: &Path) -> String {
    match has_room_for_socket(data_dir) {
        true => in_list(data_dir),
        false => String::new(),
    }
}

/// Puts a file in another's place, so that a crash leaves the one or the other. Where it fails, the new one does not stay:
/// the server's own would have its name.
fn replace(path: &Path, new: &Path, text: &[u8], run_as: RunAs) -> io::Result<()> {
    // Whatever lies there is left from a crash. It is not opened: it may be a link, or somebody else's.
    match std::fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(new)?;
    let mut put = || {
        run_as.own(new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(new, path)
    };
    if let Err(error) = put() {
        // What failed first is what is told.
        let _ = std::fs::remove_file(new);
        return Err(error);
    }
    path.parent()
        .map_or(Ok(()), |folder| File::open(folder).and_then(|folder| folder.sync_all()))
}

/// The options of `pg_ctl` that name a data folder, as a shell reads them. A `data_directory` in the cluster's own files
/// would have a server that is started with `-D` alone open the original, and no block of ours is read before it.
pub(super) fn pg_ctl_options(binaries: &ServerBinaries, run_as: RunAs, data_dir: &Path) -> String {
    let folder = data_dir.to_string_lossy();
    let mut options = format!("-D {}", shell(&folder));
    if configured_folder(binaries, run_as, data_dir).is_some_and(|other| !is_same(&other, data_dir)) {
        options.push_str(&format!(" -o {}", shell(&data_directory_option(&folder))));
    }
    options
}

/// The server's option that overrules the `data_directory` of its files, for a shell that `pg_ctl` has read it.
pub(super) fn data_directory_option(folder: &str) -> String {
    format!("-c {}", shell(&format!("data_directory={folder}")))
}

/// The data folder that a server opens which is told no more than this one; `None` where it does not get so far.
fn configured_folder(binaries: &ServerBinaries, run_as: RunAs, data_dir: &Path) -> Option<PathBuf> {
    let mut command = run_as.command(&binaries.program("postgres"), None);
    clean_environment(&mut command)
        .args(["-C", "data_directory", "-D"])
        .arg(data_dir)
        .stdin(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

fn is_same(other: &Path, data_dir: &Path) -> bool {
    let canonical = |path: &Path| std::fs::canonicalize(path).ok();
    canonical(other).is_some_and(|other| Some(other) == canonical(data_dir))
}

/// A word of a shell command.
pub(super) fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(dir: &Path) -> String {
        std::fs::read_to_string(dir.join(AUTO_CONF)).unwrap()
    }

    #[test]
    fn the_block_comes_last_once_and_goes_as_its_comment_says() {
        let dir = tempfile::tempdir().unwrap();
        let before = "archive_mode = 'on'\nport = '5432'\n";
        std::fs::write(dir.path().join(AUTO_CONF), before).unwrap();
        keep_to_itself(dir.path(), None, RunAs::Ourselves).unwrap();
        let port = keep_to_itself(dir.path(), None, RunAs::Ourselves).unwrap();
        let text = conf(dir.path());
        assert!(text.starts_with(before), "{text}");
        assert_eq!(text.matches("archive_mode").count(), 2, "{text}");
        assert!(text.contains(&format!("port = '{port}'\n")), "{text}");
        assert!(!dir.path().join(AUTO_CONF_NEW).exists());
        let begin = text.find("# Strongroom, begin of the copy").unwrap();
        let end = text.find("# Strongroom, end of the copy\n").unwrap();
        assert_eq!((begin, end + 30), (before.len(), text.len()), "{text}");
    }

    #[test]
    fn a_copy_runs_no_command_of_the_original_and_needs_none_of_its_groups() {
        let dir = tempfile::tempdir().unwrap();
        let originals = "archive_cleanup_command = 'pg_archivecleanup /archive %r'\nrecovery_end_command = 'tell'\n\
                         unix_socket_group = 'dba'\nunix_socket_permissions = '0777'\n";
        std::fs::write(dir.path().join(AUTO_CONF), originals).unwrap();
        keep_to_itself(dir.path(), None, RunAs::Ourselves).unwrap();
        let text = conf(dir.path());
        for (name, value) in [
            ("archive_cleanup_command", "''"),
            ("recovery_end_command", "''"),
            ("unix_socket_group", "''"),
            ("unix_socket_permissions", "'0700'"),
        ] {
            let is_of = |line: &&str| line.starts_with(&format!("{name} = "));
            let last = text.lines().rfind(is_of).unwrap();
            assert_eq!(last, format!("{name} = {value}"), "{text}");
        }
    }

    #[test]
    fn a_block_that_cannot_be_put_in_place_leaves_no_file_in_the_servers_way() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join(AUTO_CONF), dir.path().join(AUTO_CONF_NEW));
        // No file takes the place of a folder.
        std::fs::create_dir(&path).unwrap();
        replace(&path, &new, b"port = '1'\n", RunAs::Ourselves).unwrap_err();
        assert!(new.symlink_metadata().is_err());
    }

    #[test]
    fn what_lies_under_the_new_files_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join(AUTO_CONF), dir.path().join(AUTO_CONF_NEW));
        let other = dir.path().join("other");
        std::fs::write(&other, "of somebody else").unwrap();
        std::os::unix::fs::symlink(&other, &new).unwrap();
        replace(&path, &new, b"port = '1'\n", RunAs::Ourselves).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"of somebody else");
        assert_eq!(std::fs::read(&path).unwrap(), b"port = '1'\n");
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn what_is_not_ours_stays_whatever_bytes_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let mut before = b"search_path = 'caf\xe9'\n".to_vec();
        Block::of_copy(Vec::new()).write_to(&mut before);
        // Somebody took its end away.
        before.truncate(before.len() - 30);
        before.extend_from_slice(b"work_mem = '7MB'");
        let path = dir.path().join(AUTO_CONF);
        std::fs::write(&path, &before).unwrap();
        // The second takes out what the first put in, and nothing between that and the older beginning.
        for _ in 0..2 {
            keep_to_itself(dir.path(), None, RunAs::Ourselves).unwrap();
            let text = std::fs::read(&path).unwrap();
            assert!(text.starts_with(&before) && text.ends_with(b"\n# Strongroom, end of the copy\n"));
            let text = String::from_utf8_lossy(&text);
            assert_eq!(text.matches("# Strongroom, end of the copy\n").count(), 1, "{text}");
        }
    }

    #[test]
    fn a_command_is_read_by_a_shell_as_it_is_meant() {
        assert_eq!(shell("/srv/copy-1"), "/srv/copy-1");
        assert_eq!(shell("/srv/it's here"), "'/srv/it'\\''s here'");
        assert_eq!(data_directory_option("/srv/a b"), "-c 'data_directory=/srv/a b'");
    }
}
