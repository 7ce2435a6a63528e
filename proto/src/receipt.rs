//! Receipts: the signed JSON evidence of one backup, verification or restore.
//!
//! The fields up to `notes` are those of the receipt that operators already keep in run ledgers; what follows is ours.
//! A receipt never holds a secret or a row of anybody's data: references, digests and counts only.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::restore::{ChangeCounts, ChangeKind, PathChange, RestoreChanges, Selected};
use crate::wal::ClusterFacts;
use crate::{Attempt, BackupId, BackupType, JobId, Sha256Digest, TargetKind, TargetName, VaultId};

/// The `schema` of a backup receipt.
pub const BACKUP_RECEIPT_SCHEMA: &str = "io.strongroom.backup-receipt.v1";
/// The `schema` of a verification receipt.
pub const VERIFICATION_RECEIPT_SCHEMA: &str = "io.strongroom.verification-receipt.v1";
/// The `schema` of a restore receipt.
pub const RESTORE_RECEIPT_SCHEMA: &str = "io.strongroom.restore-receipt.v1";
/// The SSHSIG namespace that receipts are signed under.
pub const RECEIPT_NAMESPACE: &str = "receipt@strongroom";

/// The evidence of one backup. In the vault it is `backups/<backup_id>/receipt.json`, written last: a backup exists
/// when, and only when, its receipt does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackupReceipt {
    /// Always [`BACKUP_RECEIPT_SCHEMA`].
    pub schema: String,
    /// The backup.
    pub backup_id: BackupId,
    /// The environment the configuration names, e.g. `prod`.
    pub environment: String,
    /// The surface label of the target, e.g. `postgis`.
    pub surface: String,
    /// How the data was taken.
    pub method: Method,
    /// When the attempt that made it began.
    pub started_at: DateTime<Utc>,
    /// When everything but the receipt was durable.
    pub completed_at: DateTime<Utc>,
    /// Whether everything is in it.
    pub status: ReceiptStatus,
    /// The objects that a restore begins with: the manifest and the list of packs.
    pub artifacts: Vec<Artifact>,
    /// What has been proven about it. As signed it says nothing has; verification receipts update the view of it.
    pub integrity: Integrity,
    /// The commit that was deployed, where the trigger or the configuration told.
    pub git: Option<Git>,
    /// Who asked for it.
    pub operator: Operator,
    /// Free text; no secrets.
    pub notes: String,
    /// The vault it lies in.
    pub vault_id: VaultId,
    /// The job that made it.
    pub job_id: JobId,
    /// The attempt that made it; its objects lie under `backups/<backup_id>/a<attempt>/`.
    pub attempt: Attempt,
    /// The target.
    pub target: TargetName,
    /// The target's kind.
    pub target_kind: TargetKind,
    /// What was asked to be read.
    pub backup_type: BackupType,
    /// Until when it is to be kept, where the request said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_until: Option<DateTime<Utc>>,
    /// Sizes.
    pub totals: Totals,
    /// What a partial backup lacks, and why.
    pub missing: Vec<Missing>,
    /// Version of the software that wrote it.
    pub software: String,
    /// Server and tool versions and the counts of what was taken; for a person to read and compare.
    pub source: SourceFacts,
}

/// How data was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A copy of files as they are.
    Snapshot,
    /// SQL-level dump.
    LogicalDump,
    /// Copy of a database cluster's files.
    PhysicalBasebackup,
    /// Nothing taken; the surface is rebuilt from others.
    RebuildOnly,
}

/// Whether everything is in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptStatus {
    /// Everything.
    Success,
    /// All but what `missing` lists.
    Partial,
    /// The run failed; the receipt is evidence of that.
    Failure,
}

/// One object a receipt vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Artifact {
    /// Where it is: the vault's URL and the object's path; never with credentials.
    pub uri: String,
    /// Digest of its bytes as stored.
    pub sha256: Sha256Digest,
    /// Its size as stored.
    pub bytes: u64,
}

/// What has been proven about a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Integrity {
    /// Whether a verification has passed.
    pub validated: bool,
    /// How.
    pub validation_method: Option<ValidationMethod>,
    /// When.
    pub validated_at: Option<DateTime<Utc>>,
}

impl Integrity {
    /// Of a backup that nobody has verified yet.
    pub const UNPROVEN: Self = Self {
        validated: false,
        validation_method: None,
        validated_at: None,
    };
}

/// How a backup was verified, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationMethod {
    /// Every stored byte against its digest.
    Checksum,
    /// A part restored and compared.
    SpotRestore,
    /// Everything restored and compared.
    FullRestoreTest,
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Git {
    /// The repository.
    pub repo: String,
    /// The commit.
    pub sha: String,
    /// The change it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_ticket: Option<String>,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operator {
    /// Machine or person.
    pub initiated_by: InitiatedBy,
    /// The service account or user.
    pub principal: String,
}

/// Machine or person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitiatedBy {
    /// An event or a schedule.
    Automation,
    /// Somebody at a keyboard.
    Human,
}

/// Sizes of a backup, in bytes and counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Entries in the manifest.
    pub entries: u64,
    /// Bytes of content, before deduplication and compression.
    pub content_bytes: u64,
    /// Bytes of content in chunks that the vault did not hold before.
    pub new_content_bytes: u64,
    /// Bytes this backup added to the vault.
    pub stored_bytes: u64,
    /// Chunks the content consists of.
    pub chunks: u64,
    /// Those of them the vault did not hold before.
    pub new_chunks: u64,
}

/// Something a partial backup lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Why it is not in the backup.
    pub reason: String,
    /// Whether the backup holds some of its content all the same: what could be read of it before it changed, or before
    /// the disk failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub torn: bool,
}

/// By what rules a tree was read, so that a restore does not take for gone what was never looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// Patterns as in `.gitignore`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
    /// Whether the content of directories with a valid `CACHEDIR.TAG` was left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub caches: bool,
    /// Larger files were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_over_bytes: Option<u64>,
}

/// Facts about what was backed up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceFacts {
    /// Version of the server, e.g. `15.18`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Version of the tool that read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_version: Option<String>,
    /// Tables with data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<u64>,
    /// Rows over all tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Large objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<u64>,
    /// Files in the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Where the tree lay when it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// When it began to be read, by the clock of the host that the times of its files are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_from: Option<DateTime<Utc>>,
    /// Directories of the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directories: Option<u64>,
    /// Symbolic links of the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<u64>,
    /// Sockets of the tree, which are recorded and never made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u64>,
    /// What was left out because the target says so; of a directory only itself is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<u64>,
    /// The rules by which it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
    /// Files that were not read, because an earlier backup holds their content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<u64>,
    /// Of a backup of a whole cluster's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterFacts>,
}

/// The evidence of one verification; in the vault beside the backup it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerificationReceipt {
    /// Always [`VERIFICATION_RECEIPT_SCHEMA`].
    pub schema: String,
    /// The verify job.
    pub job_id: JobId,
    /// The attempt that finished it.
    pub attempt: Attempt,
    /// The backup it is about.
    pub backup_id: BackupId,
    /// Digest of the backup receipt it is about.
    pub backup_receipt_sha256: Sha256Digest,
    /// The target the backup is of.
    pub target: TargetName,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it was decided.
    pub completed_at: DateTime<Utc>,
    /// The new integrity block of the backup's receipt.
    pub integrity: Integrity,
    /// Every check, with what was expected and found.
    pub checks: Vec<Check>,
    /// Who asked.
    pub operator: Operator,
    /// Version of the software.
    pub software: String,
    /// Free text; no secrets.
    pub notes: String,
}

/// One check of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What was checked, e.g. `row counts`.
    pub name: String,
    /// How it ended.
    pub outcome: CheckOutcome,
    /// What was expected and found, in one line.
    pub detail: String,
}

/// How a check ended. Skipped is not passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// As expected.
    Passed,
    /// Not as expected.
    Failed,
    /// Not done; the detail says why.
    Skipped,
}

/// The evidence of one restore; in the vault beside the backup it restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreReceipt {
    /// Always [`RESTORE_RECEIPT_SCHEMA`].
    pub schema: String,
    /// The restore job.
    pub job_id: JobId,
    /// The attempt that finished it.
    pub attempt: Attempt,
    /// The backup that was restored.
    pub backup_id: BackupId,
    /// The target the backup is of.
    pub target: TargetName,
    /// Where it went; never with a password.
    pub destination: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub completed_at: DateTime<Utc>,
    /// Whether everything that was selected is in place, but for what was skipped.
    pub success: bool,
    /// Bytes of content put in place.
    pub restored_bytes: u64,
    /// Which part of the backup was restored, where it was not everything.
    #[serde(default, skip_serializing_if = "Selected::is_everything")]
    pub selected: Selected,
    /// What was changed at the destination, for files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangeCounts>,
    /// What could not be restored, whole or in part, and why; where it is very much, the last one says how much more
    /// there is. Sockets, which are never made again, are only counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Missing>,
    /// What was checked after the restore.
    pub checks: Vec<Check>,
    /// Who asked.
    pub operator: Operator,
    /// Version of the software.
    pub software: String,
    /// Free text; no secrets.
    pub notes: String,
}

impl RestoreReceipt {
    /// What it changed at the destination; `None` where that was no tree of files.
    pub fn change_list(&self) -> Option<RestoreChanges> {
        let skipped = self.skipped.iter().map(|skipped| PathChange {
            change: ChangeKind::Skip,
            path: skipped.name.clone(),
            path_hex: None,
            reason: Some(skipped.reason.clone()),
            bytes: None,
        });
        self.changes.map(|counts| RestoreChanges {
            dry_run: false,
            destination: self.destination.clone(),
            counts,
            changes: skipped.collect(),
            ..RestoreChanges::default()
        })
    }
}
