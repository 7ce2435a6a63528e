//! Anything a command can dump: its standard output is the backup.
//!
//! Invariant: the entry is ended only after the command ended with exit code 0 and within its time; a short output is
//! never called complete.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};
use strongroom_proto::manifest::{Entry, EntrySink};
use strongroom_proto::receipt::{Missing, SourceFacts};

use crate::child::{Input, Output, ToolChild, ToolOutput, describe};
use crate::sink::may_be_stored_later;

const READ_BYTES: usize = 512 << 10;
const MEDIA: &str = "command-output";

/// A command to run.
#[derive(Clone)]
pub struct CommandTarget {
    /// The program; no shell is involved.
    pub program: String,
    /// Its arguments, which others on the machine can see: no secrets.
    pub args: Vec<String>,
    /// Variables added to the environment.
    pub env: BTreeMap<String, String>,
    /// How long it may run.
    pub timeout: Duration,
}

impl fmt::Debug for CommandTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandTarget")
            .field("program", &self.program)
            .field("args", &self.args.len())
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// What a command gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandReport {
    /// Nothing is known of a command's output but its size.
    pub facts: SourceFacts,
    /// Always empty: a command gives all or fails.
    pub missing: Vec<Missing>,
    /// Bytes it wrote.
    pub bytes: u64,
}

/// Why there is no output to keep.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It could not be started, or its output not be read.
    #[error("run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{program} did not end within {timeout_seconds} s: raise the target's timeout or make the command faster")]
    TimedOut {
        /// The program.
        program: String,
        /// How long it had.
        timeout_seconds: u64,
    },
    /// It failed.
    #[error("{program} ended with {ending}; its output is not kept")]
    Failed {
        /// The program.
        program: String,
        /// Exit code or signal.
        ending: String,
        /// The last lines it wrote to stderr.
        #[source]
        output: ToolOutput,
    },
    /// What was read could not be put away.
    #[error("store the output of {program}")]
    Sink {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CommandError {
    /// Whether another attempt can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Run { source, .. } => {
                !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            }
            Self::TimedOut { .. } | Self::Failed { .. } => true,
            Self::Sink { source, .. } => may_be_stored_later(source),
        }
    }
}

/// Runs the command and sends its standard output to `sink` as the entry `output`.
pub fn dump(target: &CommandTarget, sink: &mut dyn EntrySink) -> Result<CommandReport, CommandError> {
    let run = |source| CommandError::Run {
        program: target.program.clone(),
        source,
    };
    let store = |source| CommandError::Sink {
        program: target.program.clone(),
        source,
    };
    let mut command = Command::new(&target.program);
    command.args(&target.args).envs(&target.env);
    let mut child = ToolChild::spawn(command, Input::Closed, Output::Piped, None).map_err(run)?;
    let mut stdout = child
        .take_stdout()
        .ok_or_else(|| run(io::ErrorKind::BrokenPipe.into()))?;
    let group = child.group();
    // While the output is read, another thread watches the clock; closing the channel ends it.
    let (done, watch) = channel::<()>();
    let timeout = target.timeout;
    let watcher = std::thread::spawn(move || {
        let timed_out = matches!(watch.recv_timeout(timeout), Err(RecvTimeoutError::Timeout));
        if timed_out && let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        timed_out
    });
    let mut bytes = 0;
    let mut copy = || -> Result<(), CommandError> {
        let mut buffer = vec![0; READ_BYTES];
        sink.begin(&Entry::stream("output", MEDIA)).map_err(store)?;
        loop {
            match stdout.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    sink.write(&buffer[..length]).map_err(store)?;
                    bytes += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(run(error)),
            }
        }
    };
    let copied = copy();
    if copied.is_err() {
        child.kill();
    }
    let waited = child.wait();
    drop(done);
    let timed_out = watcher.join().unwrap_or(false);
    if timed_out {
        return Err(CommandError::TimedOut {
            program: target.program.clone(),
            timeout_seconds: timeout.as_secs(),
        });
    }
    copied?;
    let (status, output) = waited.map_err(run)?;
    if !status.success() {
        return Err(CommandError::Failed {
            program: target.program.clone(),
            ending: describe(status),
            output,
        });
    }
    sink.end().map_err(store)?;
    Ok(CommandReport {
        facts: SourceFacts::default(),
        missing: Vec::new(),
        bytes,
    })
}
