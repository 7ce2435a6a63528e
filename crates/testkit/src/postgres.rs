//! A Postgres cluster of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Gid, Uid, chown};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::spawn::{self, User};
use crate::wait::wait_for;
use crate::{free_port, tools_dir};

const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A Postgres cluster with the superuser `postgres`, who needs no password on loopback. Dropping it kills it and
/// removes its data. Run by root, the server runs as the user `postgres`, or `nobody` where there is none.
pub struct Postgres {
    dir: TempDir,
    bin_dir: PathBuf,
    user: Option<User>,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Postgres {
    /// Starts the newest Postgres installed on this system, without fsync.
    pub fn start() -> Result<Self> {
        Self::start_with(&system_bin_dir()?, &[("fsync", "off")])
    }

    /// [`start`](Self::start), with fsync on, for tests about crashes.
    pub fn start_durable() -> Result<Self> {
        Self::start_with(&system_bin_dir()?, &[("fsync", "on")])
    }

    /// Starts major version `major`: from the folder of tools, or installed on this system.
    pub fn start_major(major: u32) -> Result<Self> {
        let candidates = [
            tools_dir()?.join(format!("pg{major}/bin")),
            format!("/usr/lib/postgresql/{major}/bin").into(),
        ];
        match candidates.iter().find(|dir| dir.join("initdb").is_file()) {
            Some(dir) => Self::start_with(dir, &[("fsync", "off")]),
            None => bail!("PostgreSQL {major} is missing: run deploy/bootstrap --tests"),
        }
    }

    /// Starts the server of `bin_dir` with these settings.
    pub fn start_with(bin_dir: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("strongroom-postgres-")
            .tempdir_in("/tmp")?;
        let user = if rustix::process::geteuid().is_root() {
            Some(unprivileged_user()?)
        } else {
            None
        };
        if let Some(user) = user {
            chown(dir.path(), Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
        }
        let server = Self {
            dir,
            bin_dir: bin_dir.to_owned(),
            user,
            port: free_port()?,
            child: Mutex::new(None),
        };
        server.init(settings)?;
        server.restart()?;
        Ok(server)
    }

    /// The address of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its programs: `psql`, `pg_dump` and the others.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The folder of its data.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Creates an empty database.
    pub fn create_database(&self, name: &str) -> Result<()> {
        self.psql(
            "postgres",
            &format!("create database \"{}\"", name.replace('"', "\"\"")),
        )
        .map(|_| ())
    }

    /// Runs SQL and returns what `psql -XAt` prints: rows as lines, columns divided by `|`. The first error ends it.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        use std::io::Write as _;
        let mut command = Command::new(self.bin_dir.join("psql"));
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(key);
        }
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database)]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start psql")?;
        let mut stdin = child.stdin.take().context("psql has an input")?;
        let sql = sql.to_owned();
        // psql may print much before it has read everything.
        let writer = std::thread::spawn(move || stdin.write_all(sql.as_bytes()));
        let done = child.wait_with_output().context("wait for psql")?;
        // A psql that stops at an error leaves its input unread; its own message says why.
        let _ = writer.join();
        if !done.status.success() {
            bail!(
                "psql on database {database}: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(String::from_utf8(done.stdout)
            .context("what psql prints is UTF-8")?
            .trim_end_matches('\n')
            .to_owned())
    }

    /// SIGKILL to the server and all of its processes, so that nothing is flushed.
    pub fn kill(&self) -> Result<()> {
        let Some(mut child) = self.take() else { return Ok(()) };
        let family = children_of(child.id());
        // The parent first: it must not see its children die and begin a recovery.
        spawn::kill_group(&mut child);
        for pid in family.iter().filter_map(|&pid| rustix::process::Pid::from_raw(pid)) {
            // They end by themselves as well when the parent is gone.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        // Postgres refuses to start while an old process still holds the shared memory.
        let gone = || {
            family
                .iter()
                .all(|pid| !Path::new("/proc").join(pid.to_string()).exists())
                .then_some(())
        };
        wait_for("the end of the Postgres processes", STOP_TIMEOUT, gone)
    }

    /// An orderly end (fast shutdown).
    pub fn stop(&self) -> Result<()> {
        if let Some(mut child) = self.take() {
            let stopped = spawn::signal(&mut child, Signal::INT)
                .and_then(|()| wait_for("the end of postgres", STOP_TIMEOUT, || child.try_wait().transpose()));
            spawn::kill_group(&mut child);
            stopped?.context("wait for postgres")?;
        }
        Ok(())
    }

    /// Starts it again on the same port with the same data; kills it first if it runs.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        let log = self.dir.path().join("postgres.log");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data_dir()).stdout(Stdio::null());
        command.stderr(std::fs::File::options().create(true).append(true).open(&log)?);
        let mut child = spawn::spawn(command)?;
        let ready = wait_for("postgres to answer", START_TIMEOUT, || match child.try_wait() {
            Ok(None) => self.psql("postgres", "select 1").is_ok().then_some(Ok(())),
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("postgres ended with {status}"))),
            Err(error) => Some(Err(error.into())),
        });
        let ready = ready.flatten();
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        ready.with_context(|| format!("the server's log:\n{}", self.log()))
    }

    /// What the server logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("postgres.log")).unwrap_or_default()
    }

    fn init(&self, settings: &[(&str, &str)]) -> Result<()> {
        let mut command = self.command("initdb");
        command.arg("-D").arg(self.data_dir());
        command.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let done = spawn::spawn(command)?.wait_with_output().context("wait for initdb")?;
        if !done.status.success() {
            bail!(
                "initdb of {}: {}",
                self.bin_dir.display(),
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\n\
             shared_buffers = '32MB'\nmax_connections = 200\nlog_min_messages = warning\n",
            self.port
        );
        for (name, value) in settings {
            conf.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        let path = self.data_dir().join("postgresql.conf");
        let text = std::fs::read_to_string(&path)? + &conf;
        // Written in place: the file stays its owner's.
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = spawn::guarded(&self.bin_dir.join(program), self.user);
        command
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("LC_ALL", "C.UTF-8");
        command.env_remove("PGDATA").env_remove("PGPORT");
        command
    }

    fn take(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The programs of the newest Postgres installed where Debian puts them, or those on PATH.
fn system_bin_dir() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        let dir = entry.path().join("bin");
        if let Ok(major) = entry.file_name().to_string_lossy().parse()
            && dir.join("initdb").is_file()
        {
            found.push((major, dir));
        }
    }
    if let Some((_, dir)) = found.into_iter().max() {
        return Ok(dir);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|dir| {
            ["initdb", "postgres", "psql"]
                .iter()
                .all(|program| dir.join(program).is_file())
        })
        .context("PostgreSQL is not installed: run deploy/bootstrap --tests")
}

fn unprivileged_user() -> Result<User> {
    let users = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let lookup = |name: &str| {
        let fields: Vec<&str> = users
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|f| f[0] == name)?;
        Some(User {
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
        })
    };
    lookup("postgres")
        .or_else(|| lookup("nobody"))
        .context("no user postgres or nobody to run the server as")
}

/// The direct children of a process: field 4 of /proc/PID/stat is the parent.
fn children_of(parent: u32) -> Vec<i32> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if after_name.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    children
}
