//! The subjects and streams on NATS. Every name in one place.

use crate::JobKind;

/// Inbound: a scenario was deployed; its files are backed up.
pub const SCENARIO_DEPLOYED: &str = "scenario.deployed";
/// Inbound: a database's schema changed; it is backed up incrementally.
pub const SCHEMA_UPDATED: &str = "postgres.schema_updated";
/// Inbound: the named targets are backed up.
pub const BACKUP_REQUEST: &str = "backup.request";

/// Outbound facts.
pub const JOB_STARTED: &str = "backup.job.started";
/// How far a running job is, every few seconds. For who listens now: no stream keeps it.
pub const JOB_PROGRESS: &str = "backup.job.progress";
/// A job finished with a receipt.
pub const JOB_COMPLETED: &str = "backup.job.completed";
/// A job was given up.
pub const JOB_FAILED: &str = "backup.job.failed";
/// A backup was proven.
pub const VERIFY_COMPLETED: &str = "backup.verify.completed";
/// A backup was disproven, or could not be tried.
pub const VERIFY_FAILED: &str = "backup.verify.failed";
/// Something needs a person.
pub const ALERT: &str = "backup.alert";
/// A restore is in place.
pub const RESTORE_COMPLETED: &str = "restore.completed";
/// A restore was given up.
pub const RESTORE_FAILED: &str = "restore.failed";

/// The request-reply endpoint that creates backups.
pub const CREATE_ENDPOINT: &str = "backup.create";

/// Stream of inbound triggers.
pub const TRIGGERS_STREAM: &str = "TRIGGERS";
/// Its subjects.
pub const TRIGGERS_SUBJECTS: &[&str] = &[SCENARIO_DEPLOYED, SCHEMA_UPDATED, BACKUP_REQUEST];
/// Stream of outbound facts.
pub const BACKUP_STREAM: &str = "BACKUP";
/// Its subjects. `backup.create` and `backup.request` stay out: a stream over an endpoint would answer in its place.
pub const BACKUP_SUBJECTS: &[&str] = &[
    JOB_STARTED,
    JOB_COMPLETED,
    JOB_FAILED,
    "backup.verify.*",
    "backup.retention.*",
    ALERT,
    RESTORE_COMPLETED,
    RESTORE_FAILED,
];
/// Stream of work, a private work queue.
pub const WORK_STREAM: &str = "WORK";
/// Its subjects.
pub const WORK_SUBJECTS: &[&str] = &["work.>"];

/// Which service does a job: the second token of a work subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkService {
    /// Databases and commands.
    Dump,
    /// Files.
    Snapshot,
    /// Verifications.
    Verify,
    /// Restores.
    Restore,
}

impl WorkService {
    /// Its token in a subject.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Snapshot => "snapshot",
            Self::Verify => "verify",
            Self::Restore => "restore",
        }
    }

    /// The service that does a job of this kind on a target of that kind.
    pub const fn of(kind: JobKind, target: crate::TargetKind) -> Self {
        use crate::TargetKind as T;
        match (kind, target) {
            (JobKind::Backup, T::Postgres | T::Command) => Self::Dump,
            (JobKind::Backup, T::Files | T::Bucket | T::Config) => Self::Snapshot,
            (JobKind::Verify, _) => Self::Verify,
            (JobKind::Restore, _) => Self::Restore,
        }
    }

    /// The subject of its work for a pool.
    pub fn subject(self, pool: &str) -> String {
        format!("work.{}.{pool}", self.as_str())
    }
}
