//! The HTTP API: requests, answers, problems. The CLI speaks the same types.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::receipt::{Git, Integrity, ValidationMethod};
use crate::wal::Leave;
use crate::{
    Attempt, BackupId, BackupType, JobId, JobKind, JobStatus, Progress, RestorePointId, ScheduleId, TargetKind,
    TargetName,
};

/// `POST /api/v1/backup/create`, the message on `backup.request`, and the request on `backup.create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBackup {
    /// What to read. Where it is left out: of files what changed, of anything else everything.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub backup_type: Option<BackupType>,
    /// Targets by name, by kind (`postgres`, `files`, `scenarios`, `minio`, …) or by glob.
    pub targets: Vec<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// How long to keep the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// The commit it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<Git>,
}

/// The answer to a backup request, status 201.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackupCreated {
    /// The job; the first, where the request named several targets.
    pub job_id: JobId,
    /// From earlier runs, e.g. `15m`; `unknown` before the first.
    pub estimated_duration: String,
    /// Always `pending`.
    pub status: JobStatus,
    /// The targets the request came to.
    pub targets: Vec<TargetName>,
    /// One job a target.
    pub jobs: Vec<CreatedJob>,
}

/// One job that a request came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CreatedJob {
    /// The job.
    pub job_id: JobId,
    /// Its target.
    pub target: TargetName,
    /// Whether the job was already waiting and this request joined it.
    pub coalesced: bool,
}

/// `POST /api/v1/backup/verify`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVerify {
    /// A backup id, or the id of the job that made it.
    pub backup_id: String,
}

/// The answer to a verify request, status 201.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyCreated {
    /// The verify job.
    pub job_id: JobId,
    /// The backup it is about.
    pub backup_id: BackupId,
    /// Always `pending`.
    pub status: JobStatus,
    /// From earlier runs.
    pub estimated_duration: String,
}

/// `POST /api/v1/restore/create`. One of `backup_id`, `backup_job_id` and `restore_point_id` is required, or `to` with
/// one name in `targets`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRestore {
    /// A restore point; `targets` chooses among its backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_point_id: Option<RestorePointId>,
    /// The job that made the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_job_id: Option<JobId>,
    /// The backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<BackupId>,
    /// Which targets of the restore point; may be empty otherwise.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Where to: `postgres://…` for a database, a path for files. Required, because a restore never guesses, but for
    /// a restore in place: that goes where the restorer's configuration says the target is, or where the backup of a
    /// scenario says it was. A dry run of a database without it looks into the target's own; one of a cluster always does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Whether to run a verification first and restore only when it passes.
    #[serde(default)]
    pub verify_before_restore: bool,
    /// Why a destination that is not empty may be written over. Without it such a destination is refused; with it
    /// the reason goes into the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overwrite_reason: Option<String>,
    /// Files: only these paths, as the backup lists them, each with everything below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Files: only what matches these patterns, which are written as in a `.gitignore` file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Files: whether the destination may hold something, of which only what differs from the backup is written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
    /// Files: whether a restore in place removes what the backup does not have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete: bool,
    /// Whether nothing is changed and `GET /api/v1/jobs/{id}/changes` says what would be; of a cluster, what its tables
    /// held then and hold now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Clusters: the moment to recover to, as a time with its zone, a place in WAL (`0/16B3740`), `xid:NUMBER`,
    /// `name:RESTORE_POINT`, `latest` or `immediate`. With it, `targets` may name the one target instead of a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Clusters: what is left behind; `stopped` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<Leave>,
    /// Clusters: where tablespaces go, by number (OID).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tablespaces: BTreeMap<u32, String>,
    /// Clusters: only these tables, as `database.schema.table`, each into a file of its own at the destination.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

impl std::fmt::Debug for CreateRestore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateRestore")
            .field("backup_id", &self.backup_id)
            .field("backup_job_id", &self.backup_job_id)
            .field("restore_point_id", &self.restore_point_id)
            .field("targets", &self.targets)
            .field("destination", &self.destination.as_deref().map(without_password))
            .field("in_place", &self.in_place)
            .field("dry_run", &self.dry_run)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

/// A destination as it may be shown: a URL loses its password, anything else stays.
pub fn without_password(destination: &str) -> String {
    match url::Url::parse(destination) {
        Ok(mut url) => {
            if url.password().is_some() && url.set_password(None).is_err() {
                return format!("{}://…", url.scheme());
            }
            let kept: Vec<(String, String)> = url
                .query_pairs()
                .filter(|(k, _)| k != "password")
                .map(|(k, v)| (k.into_owned(), v.into_owned()))
                .collect();
            if url.query().is_some() {
                url.set_query(None);
                if !kept.is_empty() {
                    url.query_pairs_mut().extend_pairs(kept);
                }
            }
            url.to_string()
        }
        Err(_) if destination.contains("://") => "(not a valid URL)".to_owned(),
        Err(_) => destination.to_owned(),
    }
}

/// The answer to a restore request, status 201.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreCreated {
    /// The restore job.
    pub restore_id: JobId,
    /// From earlier runs.
    pub estimated_duration: String,
    /// Always `pending`.
    pub status: JobStatus,
    /// What is known of the backup before it is restored.
    pub validation_results: Vec<ValidationResult>,
    /// What was decided and is worth knowing, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What is known of a backup before it is restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValidationResult {
    /// The backup.
    pub backup_id: BackupId,
    /// Whether a verification has passed.
    pub validated: bool,
    /// How and when, or that it never was.
    pub detail: String,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// What it reads.
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    /// The kind of its target.
    pub target: TargetKind,
    /// Its target.
    pub target_identifier: TargetName,
    /// Where it stands.
    pub status: JobStatus,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When the current attempt was claimed.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Bytes of content.
    pub size_bytes: Option<u64>,
    /// Content bytes over the bytes it added to the vault.
    pub compression_ratio: Option<f64>,
    /// Where its receipt lies.
    pub storage_path: Option<String>,
    /// SHA-256 of its receipt.
    pub checksum: Option<String>,
    /// Until when the backup is kept, where that was said.
    pub retention_until: Option<DateTime<Utc>>,
    /// Description, git, trigger and the like.
    pub metadata: serde_json::Value,
    /// The backup it makes, verifies or restores.
    pub backup_id: BackupId,
    /// The current attempt.
    pub attempt: Attempt,
    /// Who holds the lease, or held it last.
    pub worker: Option<String>,
    /// Why it failed, or why the attempt before this one did.
    pub error: Option<String>,
    /// How far the current attempt is.
    pub progress: Progress,
    /// Whether the backup lacks something the receipt names, or a restore left something out.
    pub partial: bool,
    /// Whether the backup has passed a verification.
    pub verified: bool,
}

/// `GET /api/v1/backup/status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// `healthy`, `degraded` or `critical`.
    pub system_status: SystemStatus,
    /// What makes it other than healthy, in plain words.
    pub reasons: Vec<String>,
    /// Jobs that wait or run.
    pub active_jobs: Vec<JobView>,
    /// The last jobs that ended, newest first.
    pub recent_jobs: Vec<JobView>,
    /// When the last backup was completed.
    pub last_successful_backup: Option<DateTime<Utc>>,
    /// When the last backup passed a verification.
    pub last_verified_backup: Option<DateTime<Utc>>,
    /// Space.
    pub storage_usage: StorageUsage,
}

/// How the system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SystemStatus {
    /// Everything works.
    Healthy,
    /// Something needs attention; backups are made.
    Degraded,
    /// Backups are not made or do not restore.
    Critical,
}

/// Space used and gained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StorageUsage {
    /// What all backups together added to the vault, in GB (10^9 bytes).
    pub used_gb: f64,
    /// Free space of a local vault in GB; absent where the store does not tell.
    pub available_gb: Option<f64>,
    /// Content bytes of all backups over the bytes they added.
    pub compression_ratio: Option<f64>,
}

/// `GET /api/v1/backup/list`, its query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListBackups {
    /// Only of this type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub backup_type: Option<BackupType>,
    /// Only of this target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Only those completed since this day (`YYYY-MM-DD`) or instant (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// At most so many; 100 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// `GET /api/v1/backup/list`, its answer: newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackupList {
    /// The backups.
    pub backups: Vec<BackupView>,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackupView {
    /// The backup.
    pub backup_id: BackupId,
    /// The job that made it.
    pub job_id: JobId,
    /// Its target.
    pub target: TargetName,
    /// The target's kind.
    pub target_kind: TargetKind,
    /// What was read.
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it was complete.
    pub completed_at: DateTime<Utc>,
    /// Bytes of content.
    pub size_bytes: u64,
    /// Bytes it added to the vault.
    pub stored_bytes: u64,
    /// Whether something is missing; the receipt says what.
    pub partial: bool,
    /// Whether a verification has passed.
    pub verified: bool,
    /// When.
    pub verified_at: Option<DateTime<Utc>>,
    /// How.
    pub validation_method: Option<ValidationMethod>,
    /// What the last verification that did not pass found.
    pub verification_error: Option<String>,
    /// Until when it is kept, where that was said.
    pub retention_until: Option<DateTime<Utc>>,
    /// Where its receipt lies.
    pub storage_path: String,
}

/// `GET /api/v1/backups/{backup_id}/receipt`: the receipt as signed, and what has been proven since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReceiptView {
    /// The receipt as it lies in the vault, with its integrity block as the last verification left it.
    pub receipt: serde_json::Value,
    /// SHA-256 of the receipt's bytes in the vault.
    pub sha256: String,
    /// The integrity block, updated.
    pub integrity: Integrity,
    /// The verification receipts, newest first.
    pub verifications: Vec<serde_json::Value>,
}

/// What a schedule is made of. `POST` and `PUT /api/v1/schedules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// Unique.
    pub name: String,
    /// Five fields: minute, hour, day of month, month, day of week.
    pub cron_expression: String,
    /// IANA name; `UTC` where it is left out.
    #[serde(default = "utc")]
    pub timezone: String,
    /// What its backups read. Where it is left out: of files what changed, of anything else everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_type: Option<BackupType>,
    /// Targets by name, kind or glob, resolved each time it fires.
    pub targets: Vec<String>,
    /// How long its backups are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// Whether it fires.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Whether times missed while nothing ran are made up for, once.
    #[serde(default = "yes")]
    pub catch_up: bool,
    /// Spread the start over so many seconds, the same for one schedule each time.
    #[serde(default)]
    pub jitter_seconds: u32,
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn yes() -> bool {
    true
}

/// One schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleView {
    /// Its id.
    pub id: ScheduleId,
    /// What it is made of.
    #[serde(flatten)]
    pub spec: ScheduleSpec,
    /// When it fired last.
    pub last_run: Option<DateTime<Utc>>,
    /// When it fires next.
    pub next_run: Option<DateTime<Utc>>,
    /// Who made it.
    pub created_by: String,
}

/// `GET /api/v1/schedules`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleList {
    /// By name.
    pub schedules: Vec<ScheduleView>,
}

/// `GET /api/v1/targets`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetList {
    /// By name.
    pub targets: Vec<TargetView>,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetView {
    /// Its name.
    pub name: TargetName,
    /// Its kind.
    pub kind: TargetKind,
    /// Its surface label.
    pub surface: String,
    /// Which workers reach it.
    pub pool: String,
    /// Where it is; never with a password.
    pub location: String,
    /// Its last backup.
    pub last_backup: Option<BackupId>,
    /// When that was complete.
    pub last_backup_at: Option<DateTime<Utc>>,
    /// Whether that has passed a verification.
    pub last_backup_verified: bool,
}

/// `GET /health`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `healthy`, or `unhealthy` with status 503.
    pub status: String,
    /// Version of the software.
    pub version: String,
    /// What it needs, and whether that answers: `catalog`, `nats`.
    pub checks: BTreeMap<String, String>,
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `about:blank`, or `urn:strongroom:<kind>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong and what to do.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_shown_without_its_password() {
        assert_eq!(
            without_password("postgres://u:s3cret@h:5/db?sslmode=require"),
            "postgres://u@h:5/db?sslmode=require"
        );
        assert_eq!(without_password("postgres://h/db?password=s3cret"), "postgres://h/db");
        assert_eq!(without_password("/srv/x"), "/srv/x");
        assert!(!without_password("postgres://u:s3 cret@[bad/db").contains("cret"));
    }
}
