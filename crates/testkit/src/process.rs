//! Our own binaries as children: their output, their signals, their end.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::spawn;
use crate::wait::wait_for;

/// Lines kept of what a process prints; older ones are forgotten.
const OUTPUT_LINES: usize = 20_000;

/// Variables that would let the developer's own set-up reach into a test.
const FOREIGN_PREFIXES: &[&str] = &["STRONGROOM_", "PG", "OTEL_"];
const FOREIGN_NAMES: &[&str] = &["NATS_URL", "CATALOG_URL", "DATABASE_URL", "RUST_LOG"];

/// A running program. Dropping it kills it with its process group.
pub struct Process {
    name: String,
    child: Mutex<Child>,
    output: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts `program`. Of the environment it gets what this process has, without any variable that configures
    /// Strongroom, Postgres or OpenTelemetry, and with `envs` on top.
    pub fn start<A, E, K, V>(program: &Path, args: A, envs: E) -> Result<Self>
    where
        A: IntoIterator<Item: AsRef<OsStr>>,
        E: IntoIterator<Item = (K, V)>,
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let mut command = spawn::guarded(program, None);
        for (key, _) in std::env::vars_os() {
            let text = key.to_string_lossy();
            if FOREIGN_NAMES.contains(&&*text) || FOREIGN_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&key);
            }
        }
        command
            .args(args)
            .envs(envs)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn::spawn(command)?;
        let output = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stdout) = child.stdout.take() {
            collect(stdout, Arc::clone(&output));
        }
        if let Some(stderr) = child.stderr.take() {
            collect(stderr, Arc::clone(&output));
        }
        let name = program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            name,
            child: Mutex::new(child),
            output,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// What it printed so far, both streams, in the order of arrival.
    pub fn output(&self) -> String {
        let lines = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().fold(String::new(), |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        })
    }

    /// Waits until a line that contains `text` was printed, and returns that line.
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Result<String> {
        let what = format!("a line with {text:?} from {}", self.name);
        wait_for(&what, timeout, || {
            let lines = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().find(|line| line.contains(text)).cloned()
        })
        .with_context(|| format!("{} printed:\n{}", self.name, self.output()))
    }

    /// SIGKILL, and waits for its end. Its own children are left as they are.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child();
        spawn::signal(&mut child, Signal::KILL)?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM; see [`wait_exit`](Self::wait_exit).
    pub fn terminate(&self) -> Result<()> {
        spawn::signal(&mut self.child(), Signal::TERM)
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&self) -> Result<()> {
        spawn::signal(&mut self.child(), Signal::INT)
    }

    /// SIGSTOP: it stands still until [`resume`](Self::resume).
    pub fn pause(&self) -> Result<()> {
        spawn::signal(&mut self.child(), Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        spawn::signal(&mut self.child(), Signal::CONT)
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait_exit(&self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let ended = wait_for(&what, timeout, || self.child().try_wait().transpose());
        ended
            .with_context(|| format!("{} printed:\n{}", self.name, self.output()))?
            .context("wait for a process")
    }

    /// Waits for its end and demands exit code 0; the error shows what it printed.
    pub fn wait_success(&self, timeout: Duration) -> Result<()> {
        let status = self.wait_exit(timeout)?;
        if !status.success() {
            bail!("{} ended with {status} and printed:\n{}", self.name, self.output());
        }
        Ok(())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        spawn::kill_group(self.child.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

fn collect(stream: impl Read + Send + 'static, output: Arc<Mutex<VecDeque<String>>>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            let mut lines = output.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == OUTPUT_LINES {
                lines.pop_front();
            }
            lines.push_back(text);
        }
    });
}

/// The built binary `name` of this workspace, from the build that the running test belongs to.
pub fn bin(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("find the running test")?;
    let found = test
        .ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no binary {name} beside {}: run cargo build --workspace --bins",
            test.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Process {
        Process::start(Path::new("/bin/sh"), ["-c", script], [("GREETING", "hello")]).unwrap()
    }

    #[test]
    fn what_a_process_prints_is_kept_until_its_end_and_after() {
        let process = shell("echo $GREETING; echo trouble >&2; exit 3");
        assert_eq!(process.wait_exit(BOUND).unwrap().code(), Some(3));
        process.wait_for_line("hello", BOUND).unwrap();
        process.wait_for_line("trouble", BOUND).unwrap();
    }

    #[test]
    fn a_paused_process_does_nothing_until_it_is_resumed() {
        let process = shell("while :; do echo tick; sleep 0.01; done");
        process.wait_for_line("tick", BOUND).unwrap();
        process.pause().unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
        wait_for("the stop", BOUND, || state().contains(") T ").then_some(())).unwrap();
        process.resume().unwrap();
        wait_for("the start", BOUND, || (!state().contains(") T ")).then_some(())).unwrap();
        process.kill().unwrap();
        assert!(process.terminate().is_err(), "a signal after the end is refused");
    }

    #[test]
    fn dropping_a_process_kills_its_children_too() {
        let process = shell("sleep 1000 & echo child $!; wait");
        let line = process.wait_for_line("child ", BOUND).unwrap();
        let path = PathBuf::from("/proc").join(line.trim_start_matches("child "));
        assert!(path.exists());
        drop(process);
        let gone = || {
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        };
        wait_for("the end of the child", BOUND, gone).unwrap();
    }

    #[test]
    fn a_missing_binary_names_the_command_that_builds_it() {
        let err = bin("no-such-binary").unwrap_err().to_string();
        assert!(err.contains("cargo build --workspace --bins"), "{err}");
    }
}
