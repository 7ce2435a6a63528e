//! One module a command, each: ask the API, print the answer, tell the exit code.

pub(crate) mod annotate;
pub(crate) mod backup;
pub(crate) mod catalog;
mod changes;
mod check;
mod config;
pub(crate) mod diff;
mod entries;
pub(crate) mod find;
mod help;
mod job;
pub(crate) mod keys;
mod left_out;
mod list;
mod named;
mod preview;
pub(crate) mod receipt;
pub(crate) mod rescue;
mod restore;
mod schedule;
mod status;
pub(crate) mod target;
pub(crate) mod timeline;
pub(crate) mod vault;
mod verify;
mod version;
pub(crate) mod wal;

use std::process::ExitCode;

use strongroom_proto::api::JobView;
use strongroom_proto::{JobKind, JobStatus};
use strongroom_runtime::{LoadOptions, Loaded};

use crate::args::{Cli, Command};
use crate::client::{Answer, Client};
use crate::render::{self, Tone};
use crate::{EXIT_WARNING, demo, standalone};

/// How a command ended; of several, the greatest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Done,
    Warning,
    Failed,
    /// Ctrl-C while waiting.
    Interrupted,
}

/// As a shell reports a process that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Warning => Self::from(EXIT_WARNING),
            Outcome::Failed => Self::FAILURE,
            Outcome::Interrupted => Self::from(EXIT_INTERRUPTED),
        }
    }
}

pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut options = LoadOptions::from_process().with_file(cli.config);
    options.flags.extend(
        cli.api_url
            .map(|url| ("api.url".to_owned(), url, "--api-url".to_owned())),
    );
    let load = || -> anyhow::Result<Loaded> { Ok(Loaded::load(options.clone())?) };
    let client = |loaded: &Loaded| Client::new(loaded);
    let outcome = match cli.command {
        Command::Standalone(args) => return Box::pin(standalone::run(args)).await,
        Command::Demo(args) => return Box::pin(demo::run(args)).await,
        Command::Completions { shell } => help::completions(shell)?,
        Command::Help(args) => help::run(&args)?,
        Command::Config(command) => config::run(&command, &load()?)?,
        Command::Status(args) => status::run(&client(&load()?)?, &args).await?,
        Command::Backup(args) => Box::pin(backup::run(&client(&load()?)?, args)).await?,
        Command::Restore(args) => Box::pin(restore::run(&client(&load()?)?, args)).await?,
        Command::List(args) => Box::pin(list::run(&load()?, args)).await?,
        Command::Find(args) => Box::pin(find::run(&load()?, args)).await?,
        Command::Diff(args) => Box::pin(diff::run(&load()?, args)).await?,
        Command::Wal(command) => return Box::pin(wal::run(command)).await,
        Command::Rescue(args) => Box::pin(rescue::run(args)).await?,
        Command::Keys(command) => Box::pin(keys::run(&load()?, command)).await?,
        Command::Catalog(command) => Box::pin(catalog::run(&load()?, command)).await?,
        Command::Timeline(args) => Box::pin(timeline::run(&client(&load()?)?, args)).await?,
        Command::Annotate(args) => Box::pin(annotate::run(&client(&load()?)?, args)).await?,
        Command::Verify(args) => Box::pin(verify::run(&client(&load()?)?, args)).await?,
        Command::Schedule(command) => Box::pin(schedule::run(&client(&load()?)?, command)).await?,
        Command::Job(command) => Box::pin(job::run(&client(&load()?)?, command)).await?,
        Command::Target(command) => Box::pin(target::run(&load()?, command)).await?,
        Command::Receipt(command) => Box::pin(receipt::run(&load()?, command)).await?,
        Command::Vault(command) => Box::pin(vault::run(options, command)).await?,
        Command::Version(args) => version::run(&client(&load()?)?, &args).await?,
    };
    Ok(outcome.into())
}

/// Prints an API answer as it came.
fn print_json<T>(answer: &Answer<T>) -> anyhow::Result<()> {
    render::print(&answer.json)
}

/// Prints jobs at their end as one document, each as the API sent it.
fn print_jobs_json(jobs: &[Answer<JobView>]) -> anyhow::Result<()> {
    let jobs: Vec<&str> = jobs.iter().map(|job| job.json.trim()).collect();
    render::print(&format!("{{\"jobs\":[{}]}}", jobs.join(",")))
}

/// How the end of a job is to be taken.
fn outcome_of(job: &JobView) -> Outcome {
    match job.status {
        JobStatus::Completed if job.partial => Outcome::Warning,
        JobStatus::Completed => Outcome::Done,
        JobStatus::Pending | JobStatus::Running | JobStatus::Failed | JobStatus::Cancelled => Outcome::Failed,
    }
}

/// Whether a restore was to change nothing.
fn is_dry_run(job: &JobView) -> bool {
    job.metadata.get("dry_run").and_then(serde_json::Value::as_bool) == Some(true)
}

/// The end of a job in one line.
fn end_of_job(job: &JobView) -> String {
    let target = render::safe(job.target_identifier.as_str());
    let (done, noun) = match job.kind {
        JobKind::Backup => ("backed up", "backup"),
        JobKind::Verify => ("verified", "verification"),
        JobKind::Restore if is_dry_run(job) => ("tried to restore", "dry run of a restore"),
        JobKind::Restore => ("restored", "restore"),
    };
    let took = match (job.started_at, job.completed_at) {
        (Some(from), Some(to)) => format!(" in {}", render::between(from, to)),
        _ => String::new(),
    };
    match job.status {
        JobStatus::Completed => {
            let mut text = format!("{} {target}: {}{took}", render::tone(Tone::Good, done), job.backup_id);
            if let Some(size) = job.size_bytes {
                text.push_str(&format!(", {}", render::bytes(size)));
            }
            if let Some(ratio) = job.compression_ratio.filter(|ratio| *ratio >= 0.1) {
                text.push_str(&format!(", {ratio:.1} times what it added to the vault"));
            }
            if job.partial {
                let advice = match job.kind {
                    JobKind::Restore => "incomplete: not everything could be restored".to_owned(),
                    JobKind::Backup | JobKind::Verify => format!(
                        "incomplete: `strongroom receipt show {}` says what is missing",
                        job.backup_id
                    ),
                };
                text.push_str(&format!("\n{}", render::tone(Tone::Warning, &advice)));
            }
            text
        }
        JobStatus::Failed => {
            let reason = job
                .error
                .as_deref()
                .map_or_else(|| "no reason was given".to_owned(), render::safe_lines);
            format!(
                "{noun} of {target} {}{took}: {reason}",
                render::tone(Tone::Bad, "failed")
            )
        }
        JobStatus::Cancelled => format!("{noun} of {target} {}", render::tone(Tone::Warning, "cancelled")),
        JobStatus::Pending | JobStatus::Running => format!("{noun} of {target} is {}", job.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::tests::job;

    #[test]
    fn a_partial_backup_is_a_warning_and_a_failure_outweighs_it() {
        let mut partial = job();
        partial.status = JobStatus::Completed;
        partial.partial = true;
        assert_eq!(outcome_of(&partial), Outcome::Warning);
        assert!(end_of_job(&partial).contains("incomplete"));
        let mut failed = job();
        failed.status = JobStatus::Failed;
        failed.error = Some("disk full\x1b[2J".to_owned());
        assert_eq!(
            [outcome_of(&partial), outcome_of(&failed)].into_iter().max(),
            Some(Outcome::Failed)
        );
        assert!(
            end_of_job(&failed).ends_with("disk full\\u{1b}[2J"),
            "{}",
            end_of_job(&failed)
        );
    }
}
