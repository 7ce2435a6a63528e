//! One tree as the source of a backup: the hooks around it, the walk through it, what the receipt says of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use strongroom_catalog::ClaimedJob;
use strongroom_connectors::Stop;
use strongroom_connectors::files::{self, FilesReport, SnapshotOptions};
use strongroom_connectors::hook::{self, Hook, HookError};
use strongroom_proto::BackupType;
use strongroom_proto::manifest::BackupSink;
use strongroom_proto::receipt::{LeftOut, SourceFacts};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{HookConfig, TargetConfig};
use strongroom_worker::{AttemptContext, TakeError, Taken};

/// A tree to be taken.
pub(crate) struct Tree {
    root: PathBuf,
    options: SnapshotOptions,
    before: Option<Hook>,
    after: Option<Hook>,
}

impl Tree {
    /// The tree of a target; `None` where it names no path.
    pub(crate) fn of(job: &ClaimedJob, target: TargetConfig) -> Option<Self> {
        let env = [
            ("STRONGROOM_TARGET", job.target.to_string()),
            ("STRONGROOM_BACKUP_ID", job.backup_id.to_string()),
            ("STRONGROOM_JOB_ID", job.id.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let hook = |name, hook: Option<HookConfig>| {
            hook.map(|hook| Hook {
                name,
                command: hook.command,
                timeout: Duration::from_secs(hook.timeout_seconds),
                env: env.to_vec(),
            })
        };
        Some(Self {
            root: target.path?,
            options: SnapshotOptions {
                exclude: target.exclude,
                one_file_system: target.one_file_system,
                exclude_caches: target.exclude_caches,
                max_file_bytes: target.max_file_bytes,
                // Incremental and differential are the same here: every backup names all of its content, so what
                // changed since the last one is all that is left to be read.
                read_everything: job.backup_type == BackupType::Full,
            },
            before: hook("before", target.hooks.before),
            after: hook("after", target.hooks.after),
        })
    }

    /// Takes the tree. What `before` has begun `after` ends, whatever became of the walk: also when the attempt was
    /// told to stop.
    pub(crate) fn take(&self, sink: &mut dyn BackupSink, context: &AttemptContext) -> Result<Taken, TakeError> {
        if let Some(before) = &self.before {
            let stop = Stop::default();
            let _watch = context.on_stop({
                let stop = stop.clone();
                move || stop.stop()
            });
            tracing::info!(hook = before.name, "hook begins");
            stop.run(|| hook::run(before)).map_err(hook_failed)?;
        }
        ended_by(
            || self.walk(sink, context),
            || self.end(),
            || context.stop().is_cancelled(),
        )
    }

    fn end(&self) -> Result<(), HookError> {
        let Some(after) = &self.after else { return Ok(()) };
        tracing::info!(hook = after.name, "hook begins");
        hook::run(after)
    }

    fn walk(&self, sink: &mut dyn BackupSink, context: &AttemptContext) -> Result<Taken, TakeError> {
        let read_from = Utc::now();
        let report =
            files::snapshot(&self.root, &self.options, sink, &mut || context.progress.add_file()).map_err(|error| {
                TakeError {
                    message: one_line(&error),
                    retryable: error.is_retryable(),
                }
            })?;
        Ok(Taken {
            facts: SourceFacts {
                read_from: Some(read_from),
                ..self.facts(&report)
            },
            missing: report.missing,
            notes: Vec::new(),
        })
    }

    fn left_out(&self) -> LeftOut {
        LeftOut {
            patterns: self.options.exclude.clone(),
            caches: self.options.exclude_caches,
            files_over_bytes: self.options.max_file_bytes,
        }
    }

    fn facts(&self, report: &FilesReport) -> SourceFacts {
        let some = |count: u64| Some(count).filter(|count| *count > 0);
        SourceFacts {
            path: Some(self.root.display().to_string()),
            directories: Some(report.directories),
            links: some(report.links),
            sockets: some(report.sockets),
            excluded: some(report.excluded),
            left_out: Some(self.left_out()),
            unchanged: some(report.unchanged),
            ..report.facts.clone()
        }
    }
}

/// Walks, and has `end` called whatever became of that.
fn ended_by(
    walk: impl FnOnce() -> Result<Taken, TakeError>,
    end: impl FnOnce() -> Result<(), HookError>,
    is_stopped: impl FnOnce() -> bool,
) -> Result<Taken, TakeError> {
    let walked = catch_unwind(AssertUnwindSafe(walk));
    let ended = end();
    // An attempt that panicked or was told to stop does not report what its hook said.
    if let Err(error) = &ended
        && (walked.is_err() || is_stopped())
    {
        tracing::error!(error = %one_line(error), "a hook failed: look at what it was to end");
    }
    let walked = walked.unwrap_or_else(|panic| resume_unwind(panic));
    match (walked, ended) {
        (walked, Ok(())) => walked,
        (Ok(_), Err(error)) => Err(hook_failed(error)),
        (Err(mut failed), Err(error)) => {
            failed.message = format!("{}; and then: {}", failed.message, one_line(&error));
            Err(failed)
        }
    }
}

fn hook_failed(error: HookError) -> TakeError {
    TakeError {
        message: one_line(&error),
        retryable: error.is_retryable(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn unreadable() -> Result<Taken, TakeError> {
        Err(TakeError {
            message: "the tree cannot be read".to_owned(),
            retryable: false,
        })
    }

    fn still_frozen() -> Result<(), HookError> {
        hook::run(&Hook {
            name: "after",
            command: ["sh", "-c", "echo still frozen; exit 9"].map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(60),
            env: Vec::new(),
        })
    }

    /// Counts how often it is called.
    fn counting(calls: &Cell<u32>) -> impl FnOnce() -> Result<(), HookError> {
        || {
            calls.set(calls.get() + 1);
            Ok(())
        }
    }

    #[test]
    fn after_runs_when_the_walk_fails_or_is_stopped_and_the_walk_is_what_is_reported() {
        for is_stopped in [false, true] {
            let calls = Cell::new(0);
            let failed = ended_by(unreadable, counting(&calls), || is_stopped).unwrap_err();
            assert_eq!(calls.get(), 1);
            assert_eq!(failed.message, "the tree cannot be read");
            assert!(!failed.retryable);
        }
    }

    #[test]
    fn a_hook_that_fails_too_is_named_after_the_walk() {
        let failed = ended_by(unreadable, still_frozen, || false).unwrap_err();
        let message = &failed.message;
        assert!(message.starts_with("the tree cannot be read; and then: "), "{message}");
        assert!(
            message.contains("exit code 9") && message.contains("still frozen"),
            "{message}"
        );
        assert!(!failed.retryable, "another attempt does not make the tree readable");
    }

    #[test]
    fn a_hook_that_fails_after_a_whole_walk_fails_the_attempt() {
        let failed = ended_by(|| Ok(Taken::default()), still_frozen, || false).unwrap_err();
        assert!(failed.message.contains("exit code 9"), "{}", failed.message);
    }

    #[test]
    fn after_runs_when_the_walk_panics_and_the_panic_goes_on() {
        let calls = Cell::new(0);
        let walk = || ended_by(|| panic!("a bug in the walk"), counting(&calls), || false);
        let panic = catch_unwind(AssertUnwindSafe(walk)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"a bug in the walk"));
        assert_eq!(calls.get(), 1);
    }
}
