//! The private server that recovers a data folder.
//!
//! Invariant: it dies with this value, and with this process even when that is killed.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use url::Url;

use super::error::RecoveryError;
use crate::child::describe;
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::run_as::{RunAs, clean_environment};
use crate::postgres::sql::{Sql, SqlError};
use crate::postgres::target::{Endpoint, PostgresTarget};

/// How long a server may take to stop before it is told in stronger terms.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
/// Lines of a log that are repeated.
const LOG_TAIL_LINES: usize = 12;
const LOG_TAIL_BYTES: u64 = 64 << 10;
/// The most of a log that is read at once, in bytes.
const LOG_READ_BYTES: u64 = 1 << 20;

/// A server that runs.
pub(super) struct PrivateProcess {
    pid: Pid,
    ended: Receiver<io::Result<ExitStatus>>,
    ending: Option<String>,
    log: LogReader,
}

/// What a log has grown by.
struct LogReader {
    path: PathBuf,
    position: u64,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl PrivateProcess {
    /// Starts a server with these settings; what it says goes to the end of `log`.
    pub(super) fn start(
        binaries: &ServerBinaries,
        run_as: RunAs,
        data_dir: &Path,
        settings: &[(String, String)],
        log: &Path,
    ) -> Result<Self, RecoveryError> {
        let program = binaries.program("postgres");
        let output = File::options().create(true).append(true).open(log);
        let output = output.map_err(RecoveryError::file("open", log))?;
        let position = output.metadata().map_or(0, |facts| facts.len());
        let errors = output.try_clone().map_err(RecoveryError::file("open", log))?;
        let mut command = run_as.command(&program, Some("QUIT"));
        clean_environment(&mut command).arg("-D").arg(data_dir);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(output).stderr(errors);

        let (started, starting) = channel();
        let (ending, ended) = channel();
        // This thread lives as long as the server: its end is what makes the kernel signal the server.
        let spawned = std::thread::Builder::new()
            .name("postgres-recovery".to_owned())
            .spawn(move || match command.spawn() {
                Ok(mut child) => {
                    let _ = started.send(Ok(child.id()));
                    let _ = ending.send(child.wait());
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            });
        let run = || RecoveryError::file("run", &program);
        spawned.map_err(run())?;
        let id = starting
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
            .map_err(run())?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        Ok(Self {
            pid: pid.ok_or_else(|| run()(io::Error::other("the server has no process id")))?,
            ended,
            ending: None,
            log: LogReader {
                path: log.to_owned(),
                position,
                rest: Vec::new(),
            },
        })
    }

    /// Waits so long for its end; how it ended, where it did.
    pub(super) fn ended_within(&mut self, time: Duration) -> Option<String> {
        if self.ending.is_none() {
            self.ending = match self.ended.recv_timeout(time) {
                Ok(Ok(status)) => Some(describe(status)),
                Ok(Err(error)) => Some(error.to_string()),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some("it is gone".to_owned()),
            };
        }
        self.ending.clone()
    }

    /// What it has logged since this was asked last, in whole lines.
    pub(super) fn new_lines(&mut self) -> Vec<String> {
        self.log.new_lines()
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        log_tail(&self.log.path)
    }

    /// Stops it, in order where it is told in time, and waits for its end.
    pub(super) fn stop(&mut self, signal: Signal) {
        for signal in [signal, Signal::QUIT, Signal::KILL] {
            if self.ended_within(Duration::ZERO).is_some() {
                return;
            }
            let _ = kill_process(self.pid, signal);
            if self.ended_within(STOP_TIMEOUT).is_some() {
                return;
            }
        }
    }
}

impl Drop for PrivateProcess {
    fn drop(&mut self) {
        self.stop(Signal::QUIT);
    }
}

impl LogReader {
    fn new_lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.position))?;
            file.take(LOG_READ_BYTES).read_to_end(&mut bytes)
        });
        if !matches!(read, Ok(1..)) {
            return Vec::new();
        }
        self.position += bytes.len() as u64;
        self.rest.append(&mut bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

/// The last lines of a log, in one line.
pub(super) fn log_tail(path: &Path) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_TAIL_BYTES)))?;
        file.take(LOG_TAIL_BYTES).read_to_end(&mut text)
    });
    if read.is_err() {
        return "it left no log".to_owned();
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut lines: Vec<&str> = text.lines().rev().take(LOG_TAIL_LINES).collect();
    lines.reverse();
    lines.join("; ")
}

/// How to connect to a private server by its socket.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) socket_dir: PathBuf,
    pub(super) port: u16,
    /// Who may be a superuser, the likeliest first.
    pub(super) superusers: Vec<String>,
}

impl Door {
    /// A session with a database, as the first superuser that is let in.
    pub(super) fn connect(&mut self, database: &str) -> Result<Sql, SqlError> {
        let mut last = SqlError::other("there is nobody to connect as");
        for (at, user) in self.superusers.iter().enumerate() {
            let endpoint = self
                .target(user, database)
                .and_then(|target| target.endpoint().map_err(|error| SqlError::other(error.to_string())))?;
            match Sql::connect(&endpoint) {
                Ok(sql) => {
                    self.superusers.swap(0, at);
                    return Ok(sql);
                }
                // No such role, or one that may not log in.
                Err(error) if error.code().is_some_and(|code| code.starts_with("28")) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The way in as who was let in last.
    pub(super) fn endpoint(&self, database: &str) -> Result<Endpoint, SqlError> {
        let user = self.superusers.first().map_or("postgres", String::as_str);
        let target = self.target(user, database)?;
        target.endpoint().map_err(|error| SqlError::other(error.to_string()))
    }

    fn target(&self, user: &str, database: &str) -> Result<PostgresTarget, SqlError> {
        let invalid = || SqlError::other("our own address of the server is not understood");
        let mut url = Url::parse("postgres://localhost/").map_err(|_| invalid())?;
        url.set_username(user).map_err(|()| invalid())?;
        url.path_segments_mut().map_err(|()| invalid())?.clear().push(database);
        let folder = self.socket_dir.to_str().ok_or_else(invalid)?;
        url.query_pairs_mut()
            .append_pair("host", folder)
            .append_pair("port", &self.port.to_string());
        Ok(PostgresTarget::new(url))
    }
}
