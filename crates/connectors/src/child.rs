//! Child processes that die with the operation that started them.
//!
//! Invariants: dropping a [`ToolChild`] kills it with its whole process group and reaps it; of what it says on stderr
//! the last lines are kept, never all; a secret that the tool repeats is masked before anything is kept.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process_group};

/// Lines of stderr that are kept.
const STDERR_LINES_MAX: usize = 20;
/// The longest line of stderr that is kept whole, in bytes.
const STDERR_LINE_BYTES_MAX: usize = 4096;
/// How much a pipe holds, so that the two sides need not wait for each other at every read.
const PIPE_BYTES: usize = 1 << 20;

/// The last lines that a tool wrote to stderr, without secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolOutput {
    /// The lines, the oldest first.
    pub lines: Vec<String>,
}

impl fmt::Display for ToolOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            return f.write_str("the tool said nothing");
        }
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for ToolOutput {}

/// Whether a child's standard input is piped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Piped,
    Closed,
}

/// Whether a child's standard output is piped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Piped,
    Discarded,
}

/// Ends the tools of an operation from outside: an operation that waits for a tool that prints nothing looks at nothing
/// else. Cheap to clone; the clones are one.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Mutex<Stopping>>);

#[derive(Debug, Default)]
struct Stopping {
    stopped: bool,
    groups: Vec<Pid>,
}

thread_local! {
    static CURRENT: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

impl Stop {
    /// Runs an operation whose tools [`stop`](Self::stop) ends.
    pub fn run<T>(&self, operation: impl FnOnce() -> T) -> T {
        let before = CURRENT.with_borrow_mut(|current| current.replace(self.clone()));
        let result = operation();
        CURRENT.with_borrow_mut(|current| *current = before);
        result
    }

    /// Kills the tools that run, and lets no further one start.
    pub fn stop(&self) {
        let mut stopping = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stopping.stopped = true;
        for group in stopping.groups.drain(..) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// The one of the operation that runs on this thread, for threads it starts.
    pub(crate) fn current() -> Self {
        CURRENT.with_borrow(|current| current.clone().unwrap_or_default())
    }

    fn is_stopped(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stopped
    }

    /// From now on `group` is ended too, at once where the stop came before.
    fn add(&self, group: Pid) {
        let mut stopping = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stopping.stopped {
            let _ = kill_process_group(group, Signal::KILL);
        } else {
            stopping.groups.push(group);
        }
    }

    /// The tool has ended: its number may soon be another's.
    fn remove(&self, group: Pid) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .groups
            .retain(|known| *known != group);
    }
}

/// A running tool.
pub(crate) struct ToolChild {
    stop: Stop,
    child: Child,
    exited: bool,
    stderr: Option<JoinHandle<ToolOutput>>,
}

impl ToolChild {
    /// Starts it in a process group of its own; `secret` is masked in what it says.
    pub(crate) fn spawn(
        mut command: Command,
        input: Input,
        output: Output,
        secret: Option<String>,
    ) -> io::Result<Self> {
        let stop = Stop::current();
        if stop.is_stopped() {
            return Err(io::Error::other("the operation was told to stop"));
        }
        let mut child = command
            .process_group(0)
            .stdin(match input {
                Input::Piped => Stdio::piped(),
                Input::Closed => Stdio::null(),
            })
            .stdout(match output {
                Output::Piped => Stdio::piped(),
                Output::Discarded => Stdio::null(),
            })
            .stderr(Stdio::piped())
            .spawn()?;
        // A smaller pipe is only slower: the limit for ordinary users may be lower than what is asked for.
        if let Some(stdout) = &child.stdout {
            let _ = rustix::pipe::fcntl_setpipe_size(stdout, PIPE_BYTES);
        }
        if let Some(stdin) = &child.stdin {
            let _ = rustix::pipe::fcntl_setpipe_size(stdin, PIPE_BYTES);
        }
        let stderr = child
            .stderr
            .take()
            .map(|pipe| std::thread::spawn(move || last_lines(pipe, secret.as_deref())));
        let tool = Self {
            stop,
            child,
            exited: false,
            stderr,
        };
        if let Some(group) = tool.group() {
            tool.stop.add(group);
        }
        Ok(tool)
    }

    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The process group, for who must end it from another thread.
    pub(crate) fn group(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Waits for its end: the exit status and what it said last.
    pub(crate) fn wait(&mut self) -> io::Result<(ExitStatus, ToolOutput)> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        self.exited = true;
        if let Some(group) = self.group() {
            self.stop.remove(group);
        }
        let output = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        Ok((status, output))
    }

    /// Kills it with its whole process group.
    pub(crate) fn kill(&mut self) {
        if !self.exited {
            if let Some(group) = self.group() {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.kill();
        }
    }
}

impl Drop for ToolChild {
    fn drop(&mut self) {
        self.kill();
        if !self.exited {
            let _ = self.child.wait();
        }
        if let Some(group) = self.group() {
            self.stop.remove(group);
        }
    }
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown exit status".to_owned(),
    }
}

fn last_lines(pipe: impl io::Read, secret: Option<&str>) -> ToolOutput {
    let mut reader = BufReader::new(pipe);
    let mut lines = VecDeque::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(STDERR_LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) {
            return ToolOutput { lines: lines.into() };
        }
        let text = String::from_utf8_lossy(&line);
        let text = match secret {
            Some(secret) if !secret.is_empty() => text.replace(secret, "***"),
            _ => text.into_owned(),
        };
        let text = text.trim_end();
        if text.is_empty() {
            continue;
        }
        if lines.len() == STDERR_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_stopped_operation_ends_its_silent_tool_and_starts_no_other() {
        let stop = Stop::default();
        let other = stop.clone();
        let (started, waiting) = std::sync::mpsc::channel();
        let operation = std::thread::spawn(move || {
            other.run(|| {
                let mut child = ToolChild::spawn(shell("sleep 600"), Input::Closed, Output::Piped, None).unwrap();
                started.send(()).unwrap();
                let (status, _) = child.wait().unwrap();
                (
                    describe(status),
                    ToolChild::spawn(shell("true"), Input::Closed, Output::Piped, None).is_err(),
                )
            })
        });
        waiting.recv().unwrap();
        stop.stop();
        assert_eq!(operation.join().unwrap(), ("killed by signal 9".to_owned(), true));
    }

    #[test]
    fn a_dropped_tool_is_dead_with_its_children() {
        let mut child =
            ToolChild::spawn(shell("sleep 600 & echo $!; wait"), Input::Closed, Output::Piped, None).unwrap();
        let mut line = String::new();
        BufReader::new(child.take_stdout().unwrap())
            .read_line(&mut line)
            .unwrap();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        drop(child);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        // A killed orphan stays visible as a zombie until init reaps it.
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", grandchild.as_raw_nonzero()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        while !gone() {
            assert!(
                std::time::Instant::now() < deadline,
                "the grandchild outlived its group"
            );
            std::thread::yield_now();
        }
    }

    #[test]
    fn only_the_last_lines_are_kept_and_the_secret_is_masked() {
        let script = "for i in $(seq 100); do echo line $i hunter2 >&2; done; exit 3";
        let mut child = ToolChild::spawn(
            shell(script),
            Input::Closed,
            Output::Discarded,
            Some("hunter2".to_owned()),
        )
        .unwrap();
        let (status, output) = child.wait().unwrap();
        assert_eq!(describe(status), "exit code 3");
        assert_eq!(output.lines.len(), STDERR_LINES_MAX);
        assert_eq!(output.lines.last().unwrap(), "line 100 ***");
    }
}
