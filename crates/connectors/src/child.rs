//! Child processes that die with the operation that started them.
//!
//! Invariants: dropping a [`ToolChild`] kills it with its whole process group and reaps it; of what it says on stderr
//! the last lines are kept, never all; a secret that the tool repeats is masked before anything is kept; what a tool
//! leaves running behind it holds nobody up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Lines of stderr that are kept.
const STDERR_LINES_MAX: usize = 20;
/// The longest line of stderr that is kept whole, in bytes.
const STDERR_LINE_BYTES_MAX: usize = 4096;
/// How long a tool's last words may take after its end: whoever it left running may hold the pipe open for ever.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);
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

/// Where a child's standard output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Piped,
    Discarded,
    /// To its standard error: what it prints is only for people.
    WithErrors,
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

    /// Whether it was stopped, for operations that wait for something other than a tool.
    pub(crate) fn is_stopped(&self) -> bool {
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
    said: Arc<Mutex<VecDeque<String>>>,
    /// Closed when standard error is.
    silent: Receiver<()>,
}

/// How a tool ended that had a time limit.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) status: ExitStatus,
    pub(crate) output: ToolOutput,
    /// Whether it was killed because its time was up.
    pub(crate) timed_out: bool,
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
        let (pipe, errors) = io::pipe()?;
        let printed = match output {
            Output::Piped => Stdio::piped(),
            Output::Discarded => Stdio::null(),
            Output::WithErrors => errors.try_clone()?.into(),
        };
        let child = command
            .process_group(0)
            .stdin(match input {
                Input::Piped => Stdio::piped(),
                Input::Closed => Stdio::null(),
            })
            .stdout(printed)
            .stderr(errors)
            .spawn()?;
        // A smaller pipe is only slower: the limit for ordinary users may be lower than what is asked for.
        if let Some(stdout) = &child.stdout {
            let _ = rustix::pipe::fcntl_setpipe_size(stdout, PIPE_BYTES);
        }
        if let Some(stdin) = &child.stdin {
            let _ = rustix::pipe::fcntl_setpipe_size(stdin, PIPE_BYTES);
        }
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (speaking, silent) = channel();
        std::thread::spawn({
            let said = said.clone();
            move || {
                last_lines(pipe, secret.as_deref(), &said);
                drop(speaking);
            }
        });
        let tool = Self {
            stop,
            child,
            exited: false,
            said,
            silent,
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
        let _ = self.silent.recv_timeout(LAST_WORDS_WITHIN);
        let lines = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let output = ToolOutput {
            lines: lines.iter().cloned().collect(),
        };
        Ok((status, output))
    }

    /// Waits for its end, and kills it with its whole process group when that takes too long.
    pub(crate) fn wait_within(&mut self, limit: Duration) -> io::Result<Ending> {
        let group = self.group();
        let (done, watch) = channel::<()>();
        let watcher = std::thread::spawn(move || {
            let timed_out = matches!(watch.recv_timeout(limit), Err(RecvTimeoutError::Timeout));
            if timed_out && let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            timed_out
        });
        // It stays unreaped until the watcher has ended: its number cannot be another's when it is killed.
        if let Some(child) = group {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(child), options), Err(Errno::INTR)) {}
        }
        drop(done);
        let timed_out = watcher.join().unwrap_or(false);
        let (status, output) = self.wait()?;
        Ok(Ending {
            status,
            output,
            timed_out,
        })
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

fn last_lines(pipe: impl io::Read, secret: Option<&str>, said: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(STDERR_LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) {
            return;
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
        let mut lines = said.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn a_tool_that_takes_too_long_is_killed_and_its_words_are_kept() {
        // A machine under load may need the longer limit to get to the words.
        let ending = [1, 20].map(Duration::from_secs).into_iter().find_map(|limit| {
            let script = "echo waiting for the lock; sleep 600 & wait";
            let mut child = ToolChild::spawn(shell(script), Input::Closed, Output::WithErrors, None).unwrap();
            let ending = child.wait_within(limit).unwrap();
            assert!(ending.timed_out);
            (!ending.output.lines.is_empty()).then_some(ending)
        });
        let ending = ending.unwrap();
        assert_eq!(ending.output.lines, ["waiting for the lock"]);
        assert_eq!(describe(ending.status), "killed by signal 9");
    }

    #[test]
    fn what_a_tool_leaves_running_holds_nobody_up() {
        let script = "setsid sleep 600 & echo $!; exit 0";
        let mut child = ToolChild::spawn(shell(script), Input::Closed, Output::WithErrors, None).unwrap();
        let ending = child.wait_within(Duration::from_secs(300)).unwrap();
        assert!(ending.status.success() && !ending.timed_out);
        let left = Pid::from_raw(ending.output.lines[0].parse().unwrap()).unwrap();
        // It is still there, and so is its end of the pipe.
        rustix::process::kill_process(left, Signal::KILL).unwrap();
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
