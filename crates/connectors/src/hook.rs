//! Hooks: commands that are run around the reading of a target, as to freeze what writes into it.
//!
//! Invariant: a hook sees nothing of this process's environment but what every program needs; secrets are not handed on.

use std::io;
use std::process::Command;
use std::time::Duration;

use crate::child::{Input, Output, ToolChild, ToolOutput, describe};

/// What of the environment a hook gets.
const HANDED_ON: &[&str] = &[
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR",
];

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// What it is called in errors: `before`, `after`.
    pub name: &'static str,
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// How long it may take; then it is killed with everything it started.
    pub timeout: Duration,
    /// Variables it gets; no secrets.
    pub env: Vec<(String, String)>,
}

/// Why a hook did not do what it is for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// It could not be started.
    #[error("run the hook {name:?}: {program}")]
    Run {
        /// What it is called.
        name: &'static str,
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error(
        "the hook {name:?} ({program}) did not end within {timeout_seconds} s and was killed: raise hooks.{name}.timeout_seconds or make it faster"
    )]
    TimedOut {
        /// What it is called.
        name: &'static str,
        /// The program.
        program: String,
        /// How long it had.
        timeout_seconds: u64,
        /// The last lines it printed.
        #[source]
        output: ToolOutput,
    },
    /// It failed.
    #[error("the hook {name:?} ({program}) ended with {ending}")]
    Failed {
        /// What it is called.
        name: &'static str,
        /// The program.
        program: String,
        /// Exit code or signal.
        ending: String,
        /// The last lines it printed.
        #[source]
        output: ToolOutput,
    },
}

impl HookError {
    /// Whether another attempt can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Run { source, .. } => {
                !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            }
            Self::TimedOut { .. } | Self::Failed { .. } => true,
        }
    }
}

/// Runs a hook to its end.
///
/// # Errors
/// It cannot be started, takes too long, or ends with another exit code than 0.
pub fn run(hook: &Hook) -> Result<(), HookError> {
    let Some((program, args)) = hook.command.split_first() else {
        return Ok(());
    };
    let run = |source| HookError::Run {
        name: hook.name,
        program: program.clone(),
        source,
    };
    let mut command = Command::new(program);
    command.args(args).env_clear();
    command.envs(
        HANDED_ON
            .iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?))),
    );
    command.envs(hook.env.iter().map(|(name, value)| (name, value)));
    let mut child = ToolChild::spawn(command, Input::Closed, Output::WithErrors, None).map_err(run)?;
    let ending = child.wait_within(hook.timeout).map_err(run)?;
    if ending.timed_out {
        return Err(HookError::TimedOut {
            name: hook.name,
            program: program.clone(),
            timeout_seconds: hook.timeout.as_secs(),
            output: ending.output,
        });
    }
    if !ending.status.success() {
        return Err(HookError::Failed {
            name: hook.name,
            program: program.clone(),
            ending: describe(ending.status),
            output: ending.output,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Hook {
        Hook {
            name: "before",
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(60),
            env: vec![("STRONGROOM_TARGET".to_owned(), "docs".to_owned())],
        }
    }

    #[test]
    fn a_hook_gets_its_own_variables_and_none_of_the_process() {
        // CARGO_MANIFEST_DIR is set for every test and stands for what a service has in its environment.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        run(&shell(
            r#"test "$STRONGROOM_TARGET" = docs && test -n "$PATH" && test -z "$CARGO_MANIFEST_DIR""#,
        ))
        .unwrap();
    }

    #[test]
    fn a_hook_that_fails_says_how_and_what_it_printed_last() {
        let error = run(&shell("echo to stdout; echo to stderr >&2; exit 3")).unwrap_err();
        assert!(error.is_retryable());
        assert_eq!(error.to_string(), r#"the hook "before" (sh) ended with exit code 3"#);
        let HookError::Failed { output, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(output.lines, ["to stdout", "to stderr"]);
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed_with_its_children() {
        let mut hook = shell("sleep 600 & echo $!; wait");
        // A machine under load may need the longer limit to get to the second process.
        let child = [1, 20].map(Duration::from_secs).into_iter().find_map(|timeout| {
            hook.timeout = timeout;
            match run(&hook).unwrap_err() {
                HookError::TimedOut { output, .. } => output.lines.first().cloned(),
                other => panic!("{other:?}"),
            }
        });
        let stat = format!("/proc/{}/stat", child.unwrap());
        // Killed is not yet gone, on a machine under load.
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(std::time::Instant::now() < deadline, "the child outlived its hook");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_no_reason_to_try_again() {
        let mut hook = shell("");
        hook.command = vec!["/no/such/program".to_owned()];
        let error = run(&hook).unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains("/no/such/program"));
    }
}
