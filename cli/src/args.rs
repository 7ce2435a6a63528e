//! What can be said on the command line.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use strongroom_proto::wal::{Leave, RecoveryTarget};
use strongroom_proto::{BackupType, JobStatus, TargetKind, TargetName};

use crate::commands::annotate::AnnotateArgs;
use crate::commands::catalog::CatalogCommand;
use crate::commands::diff::DiffArgs;
use crate::commands::find::FindArgs;
use crate::commands::keys::KeysCommand;
use crate::commands::rescue::RescueArgs;
use crate::commands::timeline::TimelineArgs;
use crate::commands::vault::VaultCommand;
use crate::commands::wal::WalCommand;
use crate::vault_access::{IdentityArgs, StoreArgs};
use crate::{demo, standalone};

/// Backs up databases and files, and proves that the backups restore.
#[derive(Debug, Parser)]
#[command(
    name = "strongroom",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 done or answered with a warning (degraded status, partial backup).\n\
                  Settings: ~/.config/strongroom/config.yaml, then STRONGROOM_* variables, then flags; \
                  see `strongroom config show`."
)]
pub(crate) struct Cli {
    /// The configuration file; without it STRONGROOM_CONFIG, then ~/.config/strongroom/config.yaml
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// Where the coordinator's API is
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub(crate) api_url: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how the system is, and its recent jobs
    ///
    /// Exit code 0 when it is healthy, 2 when it is degraded, 1 when it is critical.
    Status(StatusArgs),
    /// Back up targets
    Backup(BackupArgs),
    /// Restore a backup to a destination
    Restore(RestoreArgs),
    /// List backups, newest first, or what one of them holds
    List(ListArgs),
    /// Find a file in backups
    Find(FindArgs),
    /// Show what changed between two backups
    Diff(DiffArgs),
    /// Show what can be recovered of a target, and what happened to it
    Timeline(TimelineArgs),
    /// Write something on a target's timeline
    Annotate(AnnotateArgs),
    /// Prove that a backup restores
    Verify(VerifyArgs),
    /// Manage schedules
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Look at jobs, wait for them, cancel them
    #[command(subcommand)]
    Job(JobCommand),
    /// Manage targets
    #[command(subcommand)]
    Target(TargetCommand),
    /// Show the signed evidence of a backup, or check it
    #[command(subcommand)]
    Receipt(ReceiptCommand),
    /// Make a vault and its keys, for services that run apart, or check a vault
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Show the keys of a vault, or rotate them
    #[command(subcommand)]
    Keys(KeysCommand),
    /// List, verify and restore with a vault and an identity alone
    Rescue(RescueArgs),
    /// Store one WAL file or get one back: for archive_command and restore_command
    #[command(subcommand)]
    Wal(WalCommand),
    /// Refill the catalog from a vault
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Show the settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run everything in one process, with its own NATS and Postgres
    Standalone(standalone::Args),
    /// Back up, verify and restore a sample database, to see how it works
    Demo(demo::Args),
    /// Print completions for a shell, e.g. `source <(strongroom completions bash)`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show the versions of this program and of the API
    Version(JsonArgs),
    /// Show help
    Help(HelpArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print the API's answer as JSON, unchanged and whole
    #[arg(long)]
    pub(crate) json: bool,
    /// Show ids, workers, errors and targets too
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Only jobs of these targets
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Targets by name, by kind (postgres, files, …) or by glob, joined by commas
    #[arg(required = true, value_name = "TARGETS", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// What to read: full, incremental or differential [default: incremental for files, full for anything else]
    ///
    /// Every backup restores on its own. Of files, full reads all of them again, the others what has changed.
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) backup_type: Option<BackupType>,
    /// How long to keep the backup
    #[arg(long, value_name = "DAYS")]
    pub(crate) retention_days: Option<u32>,
    /// A note for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Wait until the backup is complete, and show how far it is
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait until the backup has been restored and compared too
    #[arg(long)]
    pub(crate) wait_verified: bool,
    /// Print JSON: the API's answer, or with --wait the jobs at their end
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// A backup id, the id of the job that made it, a restore point's id, or a target's name for its newest verified
    /// backup
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: Option<String>,
    /// Which targets of a restore point; alone, the target whose newest verified backup is restored
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// Verify the backup first, and restore only when that passes
    #[arg(long)]
    pub(crate) verify: bool,
    /// Where to: postgres://… for a database, a path for files. @FILE reads it from a file, so that no password shows
    /// in the list of processes
    #[arg(long, value_name = "URL|PATH")]
    pub(crate) destination: Option<String>,
    /// Why a destination that is not empty may be written over; goes into the audit log
    #[arg(long, value_name = "REASON")]
    pub(crate) overwrite_reason: Option<String>,
    /// Files: only this path, as the backup lists it, with everything below it; may be given several times
    #[arg(long = "path", value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Files: only what matches this pattern, written as in .gitignore; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// Files: write only what differs from the backup, into a folder that may hold something; without --destination
    /// where the target lies. Files of the same length are read and compared; where the tree was backed up, only those
    /// whose mtime differs or whose ctime is not older than the backup (`touch` has a file read)
    #[arg(long, conflicts_with = "overwrite_reason")]
    pub(crate) in_place: bool,
    /// Files: remove what the backup does not have; what it was never to hold, or could not take, stays
    #[arg(long, requires = "in_place", conflicts_with = "include")]
    pub(crate) delete: bool,
    /// Change nothing, and show what would be changed, path by path or table by table; of a cluster what has changed since
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Clusters: the moment to recover to; BACKUP may then be a target's name, and the right base backup is chosen. A
    /// time with its zone (2026-11-21T14:03:05Z), a place in WAL (0/16B3740), xid:NUMBER, name:RESTORE_POINT, latest,
    /// or immediate
    #[arg(long, value_name = "MOMENT")]
    pub(crate) to: Option<RecoveryTarget>,
    /// Clusters: what is left behind: stopped, running (a server on a private port), or unstarted [default: stopped]
    #[arg(long, value_name = "STATE", value_parser = leave)]
    pub(crate) leave: Option<Leave>,
    /// Clusters: where the tablespace of this number goes; may be given several times
    #[arg(long = "tablespace", value_name = "OID=FOLDER", value_parser = tablespace)]
    pub(crate) tablespaces: Vec<(u32, String)>,
    /// Clusters: only this table, as database.schema.table, into a file at the destination; may be given several times
    #[arg(long = "table", value_name = "TABLE")]
    pub(crate) tables: Vec<String>,
    /// Say what the restore would do, and do nothing: the plan; for files at a destination the sums and the largest
    /// changes; for a database every table's rows and bytes now (without --destination, in the target's own) and then; for
    /// a cluster the same of the one that runs, where a drill has counted what the base backup holds
    #[arg(long, conflicts_with_all = ["dry_run", "wait"])]
    pub(crate) preview: bool,
    /// Wait until the restore has ended, and show how far it is
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON: the API's answer, or with --wait the job at its end
    #[arg(long)]
    pub(crate) json: bool,
}

fn leave(text: &str) -> Result<Leave, String> {
    match text {
        "stopped" => Ok(Leave::Stopped),
        "running" => Ok(Leave::Running),
        "unstarted" => Ok(Leave::Unstarted),
        _ => Err("known are stopped, running and unstarted".to_owned()),
    }
}

fn tablespace(text: &str) -> Result<(u32, String), String> {
    text.split_once('=')
        .and_then(|(oid, folder)| Some((oid.parse().ok()?, folder.to_owned())))
        .filter(|(_, folder)| !folder.is_empty())
        .ok_or_else(|| "write it as OID=FOLDER, e.g. 16400=/srv/fast".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// List what this backup holds: its id, or a target's name for its newest one
    #[arg(value_name = "BACKUP", conflicts_with_all = ["backup_type", "target", "since", "limit"])]
    pub(crate) backup: Option<String>,
    /// Only what lies at or below this path
    #[arg(value_name = "PATH", requires = "backup")]
    pub(crate) path: Option<String>,
    /// Show modes, owners and times of what a backup holds too
    #[arg(long, requires = "backup")]
    pub(crate) long: bool,
    /// Only backups of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) backup_type: Option<BackupType>,
    /// Only backups of this target
    #[arg(long, value_name = "NAME")]
    pub(crate) target: Option<String>,
    /// Only backups since this day (YYYY-MM-DD) or instant (RFC 3339)
    #[arg(long, value_name = "DATE")]
    pub(crate) since: Option<String>,
    /// At most so many
    #[arg(long, value_name = "NUMBER")]
    pub(crate) limit: Option<u32>,
    /// Print the API's answer, or what a backup holds, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A backup id, the id of the job that made it, or a target's name for its newest backup
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
    /// Wait until the verification has ended, and show how far it is
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON: the API's answer, or with --wait the job at its end
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleCommand {
    /// List schedules
    List(JsonArgs),
    /// Create a schedule
    Create(ScheduleCreateArgs),
    /// Change a schedule; what is not named stays
    Update(ScheduleUpdateArgs),
    /// Delete a schedule
    Delete(ScheduleNameArgs),
    /// Let a schedule fire
    Enable(ScheduleNameArgs),
    /// Stop a schedule from firing
    Disable(ScheduleNameArgs),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["schedule", "name"])))]
pub(crate) struct ScheduleName {
    /// The schedule's name
    #[arg(value_name = "NAME")]
    schedule: Option<String>,
    /// The schedule's name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl ScheduleName {
    pub(crate) fn get(&self) -> &str {
        self.schedule.as_deref().or(self.name.as_deref()).unwrap_or_default()
    }
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleNameArgs {
    #[command(flatten)]
    pub(crate) name: ScheduleName,
    /// Print the API's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleCreateArgs {
    #[command(flatten)]
    pub(crate) name: ScheduleName,
    /// Minute, hour, day of month, month, day of week, e.g. '30 2 * * *'
    #[arg(long, value_name = "CRON")]
    pub(crate) cron: String,
    /// Targets by name, kind or glob, joined by commas; resolved each time it fires
    #[arg(long, required = true, value_name = "LIST", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// Time zone of the cron expression
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub(crate) timezone: String,
    /// What its backups read: full, incremental or differential [default: incremental for files, full for anything
    /// else]
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) backup_type: Option<BackupType>,
    /// How many days its backups are kept
    #[arg(long, alias = "retention-days", value_name = "DAYS")]
    pub(crate) retention: Option<u32>,
    /// Spread its start over so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) jitter: u32,
    /// Do not make up for a time that was missed while nothing ran
    #[arg(long)]
    pub(crate) no_catch_up: bool,
    /// Print the API's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleUpdateArgs {
    #[command(flatten)]
    pub(crate) name: ScheduleName,
    /// Minute, hour, day of month, month, day of week, e.g. '30 2 * * *'
    #[arg(long, value_name = "CRON")]
    pub(crate) cron: Option<String>,
    /// Targets by name, kind or glob, joined by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// Time zone of the cron expression
    #[arg(long, value_name = "ZONE")]
    pub(crate) timezone: Option<String>,
    /// What its backups read: full, incremental or differential
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) backup_type: Option<BackupType>,
    /// How many days its backups are kept
    #[arg(long, alias = "retention-days", value_name = "DAYS")]
    pub(crate) retention: Option<u32>,
    /// Spread its start over so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) jitter: Option<u32>,
    /// Make up, once, for times that were missed while nothing ran
    #[arg(long, conflicts_with = "no_catch_up")]
    pub(crate) catch_up: bool,
    /// Do not make up for a time that was missed while nothing ran
    #[arg(long)]
    pub(crate) no_catch_up: bool,
    /// Print the API's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List jobs, newest first
    List(JobListArgs),
    /// Show one job
    Show(JobArgs),
    /// Wait for a job, and show how far it is
    Wait(JobArgs),
    /// Cancel a job
    Cancel(JobArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JobListArgs {
    /// Only jobs with this status: pending, running, completed, failed or cancelled
    #[arg(long, value_name = "STATUS")]
    pub(crate) status: Option<JobStatus>,
    /// At most so many
    #[arg(long, value_name = "NUMBER")]
    pub(crate) limit: Option<u32>,
    /// Print the API's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    pub(crate) id: strongroom_proto::JobId,
    /// Print the API's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TargetCommand {
    /// List targets with their last backups
    List(JsonArgs),
    /// Try to reach a target from here, as a worker would
    Check(TargetNameArgs),
    /// Declare a target, as a file in the folder that targets_dir names
    Add(Box<TargetAddArgs>),
    /// Remove a target that was added, or forget a scenario that was deployed; the backups stay
    Remove(TargetNameArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TargetNameArgs {
    /// The target's name
    #[arg(value_name = "NAME")]
    pub(crate) name: TargetName,
}

#[derive(Debug, Args)]
pub(crate) struct TargetAddArgs {
    /// The target's name
    #[arg(value_name = "NAME")]
    pub(crate) name: TargetName,
    /// postgres, files or command
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: TargetKind,
    /// postgres: the database, e.g. postgres://user@host:5432/db. @FILE reads it from a file, so that no password
    /// shows in the list of processes
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// postgres: a file that holds the password
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// postgres: from which size a table becomes a stream of its own
    #[arg(long, value_name = "BYTES")]
    pub(crate) large_table_bytes: Option<u64>,
    /// postgres: logical_dump for one database, physical_basebackup for the whole cluster with its WAL, so that any
    /// moment can be recovered [default: logical_dump]
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// Clusters: the replication slot [default: strongroom_ and the target's name]
    #[arg(long, value_name = "SLOT")]
    pub(crate) slot: Option<String>,
    /// Clusters: how long WAL waits for its segment to be full before it is stored [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wal_interval_seconds: Option<u64>,
    /// Clusters: how much of the files is read in a second at most
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_rate_bytes: Option<u64>,
    /// Clusters: how WAL comes: stream through the slot, or push by the server's archive_command [default: stream]
    #[arg(long, value_name = "HOW")]
    pub(crate) wal: Option<String>,
    /// files: the tree
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<PathBuf>,
    /// files: what to leave out, as a line of .gitignore; may be given several times
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub(crate) exclude: Vec<String>,
    /// files: leave out what is mounted below the tree's root
    #[arg(long)]
    pub(crate) one_file_system: bool,
    /// files: leave out the content of folders with a CACHEDIR.TAG
    #[arg(long)]
    pub(crate) exclude_caches: bool,
    /// files: leave out larger files
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_file_bytes: Option<u64>,
    /// How hard zstd tries, 1 to 19 [default: 3]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) zstd_level: Option<i32>,
    /// files: what is run before each backup: the program, and then each of its arguments as one more --before
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) before: Vec<String>,
    /// files: what is run after each backup, given like --before
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) after: Vec<String>,
    /// files: how long each of the two may take
    #[arg(long, value_name = "SECONDS")]
    pub(crate) hook_timeout_seconds: Option<u64>,
    /// command: the program
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) program: Option<String>,
    /// command: an argument; may be given several times
    #[arg(long = "arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
    /// Which workers reach it
    #[arg(long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// Its label in receipts
    #[arg(long, value_name = "LABEL")]
    pub(crate) surface: Option<String>,
    /// A note for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// How long one backup of it may take
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout_seconds: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptCommand {
    /// Show the receipt of a backup
    Show(ReceiptArgs),
    /// Check the receipt of a backup: its signature, the stored objects, and what has been proven since
    ///
    /// Looks into the vault itself where it can be reached from here; no key is needed. Exit code 0 when the backup is
    /// complete, undamaged and has been restored and compared; 2 when something is open; 1 when something is wrong.
    Verify(ReceiptArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReceiptArgs {
    /// A backup id, the id of the job that made it, or a target's name for its newest backup
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting, its value and where it came from; secrets are not shown
    Show(JsonArgs),
}

#[derive(Debug, Args)]
pub(crate) struct HelpArgs {
    /// Show the help of every command
    #[arg(long)]
    pub(crate) all: bool,
    /// Show the help of this command
    #[arg(long, value_name = "NAME", conflicts_with_all = ["all", "words"])]
    pub(crate) command: Option<String>,
    /// Show the help of this command
    #[arg(value_name = "COMMAND", conflicts_with = "all")]
    pub(crate) words: Vec<String>,
}
