//! Child processes that die with the operation that started them.
//!
//! Invariants: dropping a [`ToolChild`] kills it with its whole process group and reaps it; of what it says on stderr
//! the last lines are kept, never all; a secret that the tool repeats is masked before anything is kept.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
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

/// A running tool.
pub(crate) struct ToolChild {
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
        Ok(Self {
            child,
            exited: false,
            stderr,
        })
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
