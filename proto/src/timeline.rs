//! What can be recovered of a target, and what happened to it: the answers of `GET /api/v1/targets/{name}/timeline` and
//! `POST /api/v1/restore/preview`.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster_tables::ClusterTables;
use crate::receipt::{Method, SourceFacts};
use crate::wal::{Lsn, SystemIdentifier};
use crate::{BackupId, BackupType, TargetKind, TargetName};

/// A moment of a cluster, by both of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Moment {
    /// The place in its WAL.
    pub lsn: Lsn,
    /// The server's clock.
    pub time: DateTime<Utc>,
}

/// A stretch of time without a hole: every moment in it can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryWindow {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timelines it runs through, the oldest first; it ends on the last.
    pub timelines: Vec<u32>,
    /// The first moment that can be recovered: the end of its first base backup.
    pub from: Moment,
    /// The last one.
    pub to: Moment,
    /// Its base backups, the oldest first.
    pub bases: Vec<BackupId>,
    /// Why it ends.
    pub end: WindowEnd,
}

/// Why a window ends where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowEnd {
    /// Nothing came after it yet.
    Newest,
    /// WAL is missing after it.
    Hole,
    /// The cluster went on upon another timeline, whose window is another.
    LeftTimeline,
}

/// WAL that a vault does not hold, between WAL that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WalGap {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline of what comes after it.
    pub timeline: u32,
    /// The end of what lies before it.
    pub from: Moment,
    /// The beginning of what lies after it.
    pub to: Moment,
}

/// One base backup of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineBase {
    /// The backup.
    pub backup_id: BackupId,
    /// What was asked to be read.
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline it was taken on.
    pub timeline: u32,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// The first moment that it can be recovered to.
    pub stop: Moment,
    /// Bytes of content.
    pub size_bytes: u64,
    /// Bytes it added to the vault.
    pub stored_bytes: u64,
    /// Whether a verification has passed.
    pub verified: bool,
    /// What the last verification that did not pass found.
    pub verification_error: Option<String>,
    /// Whether the WAL that it needs to be consistent is in the vault.
    pub usable: bool,
}

/// How the stream of WAL of a target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WalStreamView {
    /// The cluster, once it was reached.
    pub system_identifier: Option<SystemIdentifier>,
    /// The replication slot, where there is one.
    pub slot: Option<String>,
    /// The worker that receives; absent where none does.
    pub holder: Option<String>,
    /// The timeline that is received.
    pub timeline: Option<u32>,
    /// The end of what is in the vault.
    pub received_to: Option<Lsn>,
    /// The server's clock at that time.
    pub server_time: Option<DateTime<Utc>>,
    /// How much the server has written that is not in the vault.
    pub behind_bytes: Option<u64>,
    /// Why receiving failed the last time; absent while it works.
    pub last_error: Option<String>,
    /// When the worker was heard of last.
    pub updated_at: DateTime<Utc>,
}

/// What a note on a timeline is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnnotationKind {
    /// Somebody wrote it.
    Note,
    /// Something about a backup.
    Backup,
    /// A version was deployed.
    Deploy,
    /// A schema changed.
    Schema,
    /// An alert was raised or resolved.
    Alert,
}

impl AnnotationKind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Backup => "backup",
            Self::Deploy => "deploy",
            Self::Schema => "schema",
            Self::Alert => "alert",
        }
    }
}

/// A text that is no kind of annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of annotation: note, backup, deploy, schema and alert are")]
pub struct ParseAnnotationKindError(String);

impl std::str::FromStr for AnnotationKind {
    type Err = ParseAnnotationKindError;
    fn from_str(text: &str) -> Result<Self, ParseAnnotationKindError> {
        [Self::Note, Self::Backup, Self::Deploy, Self::Schema, Self::Alert]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| ParseAnnotationKindError(text.to_owned()))
    }
}

/// Something that happened to a target, for who looks for a moment to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Annotation {
    /// When it happened.
    pub at: DateTime<Utc>,
    /// What sort of thing.
    pub kind: AnnotationKind,
    /// What, in plain words.
    pub text: String,
    /// Who says so.
    pub source: String,
}

/// `POST /api/v1/targets/{name}/annotations`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAnnotation {
    /// What happened.
    pub text: String,
    /// When; now where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
}

/// Something that is wrong with a target, from when it was found until it is right again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActiveAlert {
    /// What about, in one word.
    pub kind: String,
    /// What happened and what to do.
    pub message: String,
    /// When it was found.
    pub raised_at: DateTime<Utc>,
    /// When it was found the last time.
    pub seen_at: DateTime<Utc>,
}

/// `GET /api/v1/targets/{name}/timeline`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetTimeline {
    /// The target.
    pub target: TargetName,
    /// What can be recovered, in the order of time.
    pub windows: Vec<RecoveryWindow>,
    /// The base backups, the oldest first.
    pub bases: Vec<TimelineBase>,
    /// WAL that is missing, in the order of place.
    pub gaps: Vec<WalGap>,
    /// The stream of WAL, where there is one.
    pub stream: Option<WalStreamView>,
    /// What is wrong now.
    pub alerts: Vec<ActiveAlert>,
    /// What happened, the oldest first; the last thousand.
    pub annotations: Vec<Annotation>,
}

/// `POST /api/v1/restore/preview`: what a restore would do, before anything is touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestorePreview {
    /// The backup that would be restored.
    pub backup_id: BackupId,
    /// The target it is of.
    pub target: TargetName,
    /// The target's kind.
    pub target_kind: TargetKind,
    /// How the backup was taken.
    pub method: Option<Method>,
    /// When it was complete.
    pub completed_at: DateTime<Utc>,
    /// Whether a verification of it has passed.
    pub verified: bool,
    /// Bytes of content that would be fetched, WAL not counted.
    pub content_bytes: u64,
    /// The WAL that would be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalPreview>,
    /// How long restores of this target took, e.g. `15m`; `unknown` before the first.
    pub estimated_duration: String,
    /// The counts that the receipt has: tables, rows, files.
    pub source: SourceFacts,
    /// Of a whole cluster: what its tables held at the end of the base backup, where a drill of it has counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<ClusterTables>,
    /// What else is worth knowing, one sentence each.
    pub notes: Vec<String>,
}

/// The WAL that a recovery would replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WalPreview {
    /// The timeline that would be followed.
    pub timeline: u32,
    /// Where replay begins.
    pub from: Lsn,
    /// Where it ends at the latest: the place of the target where that is known, the end of the WAL otherwise.
    pub to: Lsn,
    /// Bytes from one to the other; what is fetched is compressed, and less.
    pub bytes: u64,
    /// The window that the moment lies in.
    pub window: RecoveryWindow,
    /// The first hole after the base backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_gap: Option<WalGap>,
    /// WAL between the target and the window's end, in bytes, where the target's place is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_before_end: Option<u64>,
    /// Seconds between the target and the window's end, where the target's time is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_before_end: Option<u64>,
}
