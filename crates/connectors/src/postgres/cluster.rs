//! Postgres clusters of our own: scratch servers of drills, the catalog of a standalone fleet, servers of tests.
//!
//! Invariants: a server dies with the [`Cluster`] that started it, and with this process even when that is killed
//! (the kernel signals the server when the thread that started it ends, so that thread lives as long as the server);
//! it listens on a Unix socket only, unless a port and a password are given.

mod error;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use url::Url;

use super::own_folder::{FileError, own_folder, refuse_contents};
use super::run_as::{RunAs, clean_environment};
use super::sql::Sql;
use super::target::{PostgresTarget, TargetError};
use super::tools::{self, ToolSet};
use crate::child::describe;

pub use self::error::ClusterError;

/// How long a server may take to answer after it was started.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it is told in stronger terms.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the path of a Unix socket may be.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const POLL_EVERY: Duration = Duration::from_millis(20);
const LOG_TAIL_LINES: usize = 20;
const LOG_FILE: &str = "server.log";
const SOCKET_PORT: u16 = 5432;

/// A folder with a server and all the tools of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinaries {
    /// The folder that holds `postgres`, `initdb` and the rest.
    pub dir: PathBuf,
    /// Major version.
    pub major: u32,
    /// Version, e.g. `15.18`.
    pub version: String,
}

impl ServerBinaries {
    /// Looks in `extra_dirs`, the distribution's folders and `PATH` for the oldest server of at least `min_major`; for
    /// 0, the newest.
    pub fn find(min_major: u32, extra_dirs: &[PathBuf]) -> Result<Self, ClusterError> {
        let mut sets = tools::installed("postgres", extra_dirs);
        sets.retain(|set| {
            ["initdb", "psql", "pg_dump", "pg_restore"]
                .iter()
                .all(|name| set.program(name).is_file())
        });
        let newest = tools::newest(&sets);
        let found = match min_major {
            0 => tools::oldest_of_at_least(&sets, newest.unwrap_or(0)),
            _ => tools::oldest_of_at_least(&sets, min_major),
        };
        let ToolSet { dir, major, version } = found.cloned().ok_or(ClusterError::NoServer { min_major, newest })?;
        Ok(Self { dir, major, version })
    }

    /// The path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// How a cluster is set up.
#[derive(Clone)]
pub struct ClusterOptions {
    /// The role that owns everything.
    pub superuser: String,
    /// Its password; without one everybody who reaches the socket folder is let in.
    pub password: Option<String>,
    /// Port on the loopback address; none: Unix socket only. It needs a password.
    pub port: Option<u16>,
    /// Where the socket is made; made itself where it is missing, closed to others.
    pub socket_dir: PathBuf,
    /// Whether commits survive a crash of the machine. Without, the data is worth nothing after one.
    pub fsync: bool,
    /// Further server settings.
    pub settings: Vec<(String, String)>,
}

impl fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterOptions")
            .field("superuser", &self.superuser)
            .field("port", &self.port)
            .field("socket_dir", &self.socket_dir)
            .field("fsync", &self.fsync)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, everything is written.
    Fast,
    /// At once; the next start recovers.
    Immediate,
}

/// A cluster, running or not.
#[derive(Debug)]
pub struct Cluster {
    binaries: ServerBinaries,
    data_dir: PathBuf,
    options: ClusterOptions,
    run_as: RunAs,
    server: Option<Server>,
}

#[derive(Debug)]
struct Server {
    pid: Pid,
    ended: Receiver<io::Result<ExitStatus>>,
}

impl Cluster {
    /// Makes a new cluster in `data_dir`, which must be empty or missing. It is not started.
    pub fn create(binaries: ServerBinaries, data_dir: &Path, options: ClusterOptions) -> Result<Self, ClusterError> {
        let cluster = Self::open(binaries, data_dir, options)?;
        cluster.initdb()?;
        Ok(cluster)
    }

    /// The cluster that is in `data_dir`. It is not started.
    pub fn open(binaries: ServerBinaries, data_dir: &Path, options: ClusterOptions) -> Result<Self, ClusterError> {
        if options.port.is_some() && options.password.is_none() {
            return Err(ClusterError::Options {
                what: "a server on a port needs a password",
            });
        }
        let absolute = |path: &Path| std::path::absolute(path).map_err(FileError::step("find", path));
        let options = ClusterOptions {
            socket_dir: absolute(&options.socket_dir)?,
            ..options
        };
        if options.socket_dir.as_os_str().len() + "/.s.PGSQL.65535".len() > SOCKET_PATH_BYTES_MAX {
            return Err(ClusterError::SocketPath {
                path: options.socket_dir,
            });
        }
        let data_dir = absolute(data_dir)?;
        let run_as = RunAs::unprivileged().map_err(FileError::step("read", Path::new("/etc/passwd")))?;
        Ok(Self {
            binaries,
            data_dir,
            options,
            run_as,
            server: None,
        })
    }

    /// Starts the server and waits until it answers.
    pub fn start(&mut self) -> Result<(), ClusterError> {
        if self.server.is_some() {
            return Ok(());
        }
        // Both folders are given to the server's user and closed to others, so neither may be anything else's.
        refuse_contents(&self.options.socket_dir, is_socket_name)?;
        self.own_dir(&self.options.socket_dir)?;
        let log_path = self.log_path();
        let log = OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(FileError::step("open", &log_path))?;
        let logged_before = log.metadata().map_or(0, |facts| facts.len());
        let errors = log.try_clone().map_err(FileError::step("open", &log_path))?;
        let signal = if self.options.fsync { "INT" } else { "QUIT" };
        let mut command = self.run_as.command(&self.binaries.program("postgres"), Some(signal));
        clean_environment(&mut command).arg("-D").arg(&self.data_dir);
        for (name, value) in self.settings() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);

        let (started, starting) = channel();
        let (ending, ended) = channel();
        // This thread lives as long as the server: its end is what makes the kernel signal the server.
        let spawned = std::thread::Builder::new()
            .name("postgres-server".to_owned())
            .spawn(move || {
                let mut child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let _ = started.send(Ok(child.id()));
                let _ = ending.send(child.wait());
            });
        let run = |source| FileError::step("run", &self.binaries.program("postgres"))(source);
        spawned.map_err(run)?;
        let id = starting
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
            .map_err(run)?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| run(io::Error::other("the server has no process id")))?;
        self.server = Some(Server { pid, ended });
        let ready = self.wait_until_ready(logged_before);
        if ready.is_err() {
            self.stop(StopMode::Immediate);
        }
        ready
    }

    /// Stops the server, if it runs, and waits for its end; what does not stop in time is killed.
    pub fn stop(&mut self, mode: StopMode) {
        let Some(server) = self.server.take() else { return };
        let signals = match mode {
            StopMode::Fast => &[Signal::INT, Signal::QUIT, Signal::KILL][..],
            StopMode::Immediate => &[Signal::QUIT, Signal::KILL][..],
        };
        for signal in signals {
            let _ = kill_process(server.pid, *signal);
            match server.ended.recv_timeout(STOP_TIMEOUT) {
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Whether the server runs. One that ended by itself can be started again.
    pub fn is_running(&mut self) -> bool {
        let running = self
            .server
            .as_ref()
            .is_some_and(|server| matches!(server.ended.try_recv(), Err(TryRecvError::Empty)));
        if !running {
            self.server = None;
        }
        running
    }

    /// The process id of the server, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server
            .as_ref()
            .map(|server| server.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// How to connect to a database of it as its superuser. Holds the password: not for logs.
    pub fn url(&self, database: &str) -> Result<Url, ClusterError> {
        let invalid = |what| ClusterError::Url {
            source: TargetError::Invalid { what },
        };
        let mut url = Url::parse("postgres://localhost/").map_err(|_| invalid("url"))?;
        url.set_username(&self.options.superuser)
            .map_err(|()| invalid("user"))?;
        url.set_password(self.options.password.as_deref())
            .map_err(|()| invalid("password"))?;
        url.path_segments_mut()
            .map_err(|()| invalid("database"))?
            .clear()
            .push(database);
        match self.options.port {
            Some(port) => {
                url.set_host(Some("127.0.0.1")).map_err(|_| invalid("host"))?;
                url.set_port(Some(port)).map_err(|()| invalid("port"))?;
            }
            None => {
                let folder = self
                    .options
                    .socket_dir
                    .to_str()
                    .ok_or_else(|| invalid("socket folder"))?;
                url.query_pairs_mut()
                    .append_pair("host", folder)
                    .append_pair("port", &SOCKET_PORT.to_string());
            }
        }
        Ok(url)
    }

    /// The server and tools it runs with.
    pub fn binaries(&self) -> &ServerBinaries {
        &self.binaries
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.data_dir.join(LOG_FILE)
    }

    fn settings(&self) -> Vec<(String, String)> {
        let switch = if self.options.fsync { "on" } else { "off" };
        let folder = self.options.socket_dir.to_string_lossy().replace('"', "\"\"");
        let mut settings = vec![
            ("unix_socket_directories".to_owned(), format!("\"{folder}\"")),
            ("unix_socket_permissions".to_owned(), "0700".to_owned()),
            ("port".to_owned(), self.options.port.unwrap_or(SOCKET_PORT).to_string()),
            (
                "listen_addresses".to_owned(),
                self.options.port.map_or("", |_| "127.0.0.1").to_owned(),
            ),
            ("fsync".to_owned(), switch.to_owned()),
            ("full_page_writes".to_owned(), switch.to_owned()),
            ("synchronous_commit".to_owned(), switch.to_owned()),
            ("logging_collector".to_owned(), "off".to_owned()),
            ("log_destination".to_owned(), "stderr".to_owned()),
        ];
        settings.extend(self.options.settings.iter().cloned());
        settings
    }

    fn initdb(&self) -> Result<(), ClusterError> {
        refuse_contents(&self.data_dir, |_| false)?;
        self.own_dir(&self.data_dir)?;
        let mut command = self.run_as.command(&self.binaries.program("initdb"), None);
        clean_environment(&mut command)
            .arg("--pgdata")
            .arg(&self.data_dir)
            .arg(format!("--username={}", self.options.superuser))
            .args(["--encoding=UTF8", "--locale=C"]);
        if !self.options.fsync {
            command.arg("--no-sync");
        }
        let auth = if self.options.password.is_some() {
            "scram-sha-256"
        } else {
            "trust"
        };
        command
            .arg(format!("--auth-local={auth}"))
            .arg("--auth-host=scram-sha-256");
        let mut pass_file = None;
        if let Some(password) = &self.options.password {
            let fail = FileError::step("write", Path::new("the password file"));
            let file = self.pass_file(password).map_err(fail)?;
            command.arg(format!("--pwfile={}", file.path().display()));
            pass_file = Some(file);
        }
        let output = command.stdin(Stdio::null()).output();
        drop(pass_file);
        let output = output.map_err(FileError::step("run", &self.binaries.program("initdb")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(ClusterError::Initdb {
            data_dir: self.data_dir.clone(),
            output: said
                .lines()
                .filter(|line| !line.is_empty())
                .collect::<Vec<_>>()
                .join("; "),
        })
    }

    fn pass_file(&self, password: &str) -> io::Result<tempfile::NamedTempFile> {
        // In a folder that the server's user can pass; the file itself is open to that user alone.
        let mut file = tempfile::Builder::new()
            .prefix("strongroom-init-")
            .tempfile_in("/tmp")?;
        writeln!(file, "{password}")?;
        self.run_as.own(file.path())?;
        Ok(file)
    }

    /// Makes a folder that belongs to the server's user alone, who must be able to reach the server's programs too.
    fn own_dir(&self, dir: &Path) -> Result<(), FileError> {
        if let Some(folder) = self.run_as.obstacle(&self.binaries.program("postgres")).ok().flatten() {
            return Err(FileError::Obstacle { folder });
        }
        own_folder(dir, self.run_as)
    }

    fn wait_until_ready(&self, logged_before: u64) -> Result<(), ClusterError> {
        let target = PostgresTarget::new(self.url("postgres")?);
        let endpoint = target.endpoint().map_err(|source| ClusterError::Url { source })?;
        let deadline = Instant::now() + START_TIMEOUT;
        let mut last = None;
        while Instant::now() < deadline {
            let ended = self.server.as_ref().map(|server| server.ended.recv_timeout(POLL_EVERY));
            match ended {
                Some(Ok(status)) => {
                    let ending = status.map_or_else(|error| error.to_string(), describe);
                    return Err(self.did_not_start(ending, logged_before));
                }
                Some(Err(RecvTimeoutError::Timeout)) => {}
                _ => return Err(self.did_not_start("it is gone".to_owned(), logged_before)),
            }
            // A connection alone might be to another server on that port.
            if !self.says_ready() {
                continue;
            }
            match Sql::connect(&endpoint).and_then(|mut sql| sql.run("SELECT 1")) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(ClusterError::NotReady {
            data_dir: self.data_dir.clone(),
            log: self.log_tail(logged_before),
            source: last,
        })
    }

    /// Whether our server has written that it is ready, in the file that `pg_ctl` looks at too.
    fn says_ready(&self) -> bool {
        let text = std::fs::read_to_string(self.data_dir.join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        let is_ours = lines.next().and_then(|line| line.trim().parse().ok()) == self.pid();
        is_ours && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }

    fn did_not_start(&self, ending: String, logged_before: u64) -> ClusterError {
        let log = self.log_tail(logged_before);
        match self.options.port {
            Some(port) if log.contains("Address already in use") => ClusterError::PortTaken { port },
            _ => ClusterError::Ended {
                data_dir: self.data_dir.clone(),
                ending,
                log,
            },
        }
    }

    /// The last lines that the server logged since it was started.
    fn log_tail(&self, logged_before: u64) -> String {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        let from = usize::try_from(logged_before).unwrap_or(0).min(text.len());
        let text = String::from_utf8_lossy(&text[from..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("; ")
    }
}

fn is_socket_name(name: &[u8]) -> bool {
    name.starts_with(b".s.PGSQL.")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mode = if self.options.fsync {
            StopMode::Fast
        } else {
            StopMode::Immediate
        };
        self.stop(mode);
    }
}
