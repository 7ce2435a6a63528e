//! One tree as the source of a backup: the hooks around it, the walk through it, what the receipt says of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::Duration;

use strongroom_catalog::ClaimedJob;
use strongroom_connectors::Stop;
use strongroom_connectors::files::{self, FilesReport, SnapshotOptions};
use strongroom_connectors::hook::{self, Hook, HookError};
use strongroom_proto::BackupType;
use strongroom_proto::manifest::BackupSink;
use strongroom_proto::receipt::SourceFacts;
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
        let walked = catch_unwind(AssertUnwindSafe(|| self.walk(sink, context)));
        let ended = match &self.after {
            Some(after) => {
                tracing::info!(hook = after.name, "hook begins");
                hook::run(after)
            }
            None => Ok(()),
        };
        // An attempt that panicked or was told to stop does not report what its hook said.
        if let Err(error) = &ended
            && (walked.is_err() || context.stop().is_cancelled())
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

    fn walk(&self, sink: &mut dyn BackupSink, context: &AttemptContext) -> Result<Taken, TakeError> {
        let report =
            files::snapshot(&self.root, &self.options, sink, &mut || context.progress.add_file()).map_err(|error| {
                TakeError {
                    message: one_line(&error),
                    retryable: error.is_retryable(),
                }
            })?;
        Ok(Taken {
            facts: self.facts(&report),
            missing: report.missing,
            notes: Vec::new(),
        })
    }

    fn facts(&self, report: &FilesReport) -> SourceFacts {
        let some = |count: u64| Some(count).filter(|count| *count > 0);
        SourceFacts {
            path: Some(self.root.display().to_string()),
            directories: Some(report.directories),
            links: some(report.links),
            sockets: some(report.sockets),
            excluded: some(report.excluded),
            unchanged: some(report.unchanged),
            ..report.facts.clone()
        }
    }
}

fn hook_failed(error: HookError) -> TakeError {
    TakeError {
        message: one_line(&error),
        retryable: error.is_retryable(),
    }
}
