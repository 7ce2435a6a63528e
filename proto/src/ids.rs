//! Typed identifiers. Each parses at the edge and cannot be confused with another inside.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A text that is not a valid identifier of the named kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {rule}")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id, ordered by the time it was made (UUID version 7).
            pub fn fresh() -> Self {
                Self(Uuid::now_v7())
            }
            /// The same id as a UUID, for columns of that type.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
            /// An id that was stored as a UUID.
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| ParseIdError { kind: $kind, text: text.to_owned(), rule: "a UUID is expected" })
            }
        }
    };
}

uuid_id!(
    /// One unit of work.
    JobId,
    "job id"
);
uuid_id!(
    /// One backup schedule.
    ScheduleId,
    "schedule id"
);
uuid_id!(
    /// One named set of backups.
    RestorePointId,
    "restore point id"
);
uuid_id!(
    /// One vault.
    VaultId,
    "vault id"
);

/// One try of a job by one worker; the fence: only the current attempt may finish the job. Counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Attempt(u32);

impl Attempt {
    /// The first attempt of every job.
    pub const FIRST: Self = Self(1);
    /// The attempt with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
    /// Its number, from 1.
    pub const fn number(self) -> u32 {
        self.0
    }
    /// The attempt after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `bkp-YYYYMMDD-HHMMSSZ-<shortid>`: one backup, in the vault and everywhere else. It is fixed when the job is made,
/// so that every attempt of a job works on the same backup and the vault admits one receipt for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^bkp-[0-9]{8}-[0-9]{6}Z-[0-9a-z]{8,16}$"))]
pub struct BackupId(String);

impl BackupId {
    /// The id of the backup that `job` makes, requested at `at`. The short id is the tail of the job's id, which is
    /// random.
    pub fn for_job(job: JobId, at: DateTime<Utc>) -> Self {
        let hex = job.as_uuid().simple().to_string();
        let short = &hex[hex.len() - 12..];
        Self(format!("bkp-{}-{short}", at.format("%Y%m%d-%H%M%SZ")))
    }
    /// The id as text; safe as one path component.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let err = || ParseIdError {
            kind: "backup id",
            text: text.to_owned(),
            rule: "expected bkp-YYYYMMDD-HHMMSSZ-<shortid>",
        };
        let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
        let mut parts = text.split('-');
        let (prefix, date, time, short, rest) = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        let (Some("bkp"), Some(date), Some(time), Some(short), None) = (prefix, date, time, short, rest) else {
            return Err(err());
        };
        let time_ok = time.strip_suffix('Z').is_some_and(|t| digits(t, 6));
        let short_ok =
            (8..=16).contains(&short.len()) && short.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if digits(date, 8) && time_ok && short_ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(err())
        }
    }
}

impl TryFrom<String> for BackupId {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

/// The name of a target: 1 to 128 characters of `a-z A-Z 0-9 . _ - /`, not beginning or ending with `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

impl TargetName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the files of a scenario, `scenario/<name>`.
    pub fn is_scenario(&self) -> bool {
        self.0.starts_with("scenario/")
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TargetName {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let rule = "1 to 128 characters of a-z A-Z 0-9 . _ - / are allowed, without '/' at either end, '//' or '..'";
        let chars = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
        let shape = !text.starts_with('/') && !text.ends_with('/') && !text.contains("//") && !text.contains("..");
        if !text.is_empty() && text.len() <= 128 && chars && shape {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseIdError {
                kind: "target name",
                text: text.to_owned(),
                rule,
            })
        }
    }
}

impl TryFrom<String> for TargetName {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0
    }
}

/// The longest trigger id that is kept as it came.
const TRIGGER_ID_BYTES: usize = 256;

/// What makes a trigger the same trigger: the CloudEvents source and id, or what stands for them. A second trigger
/// with the same id makes no second job, however late it comes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TriggerId(String);

impl TriggerId {
    /// The identity of an event: its source and id together, as CloudEvents defines it.
    ///
    /// It becomes a key of the catalog and part of message ids; what is too long for those, or holds characters that do
    /// not belong there, is replaced by its digest.
    pub fn of_event(source: &str, id: &str) -> Self {
        let text = format!("{source}#{id}");
        if text.len() <= TRIGGER_ID_BYTES && !text.contains(|c: char| c.is_control()) {
            return Self(text);
        }
        Self(format!("sha256:{}", hex::encode(Sha256::digest(text))))
    }
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String", extend("pattern" = "^[0-9a-f]{64}$"))]
        pub struct $name([u8; 32]);

        impl $name {
            /// From its 32 bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            /// Its 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let err = || ParseIdError { kind: $kind, text: text.to_owned(), rule: "64 lower-case hex digits are expected" };
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(err());
                }
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| err())?;
                Ok(Self(bytes))
            }
        }
        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

hex_id!(
    /// A chunk's id: BLAKE3 of its content, keyed with the writer key.
    ChunkId,
    "chunk id"
);
hex_id!(
    /// The SHA-256 of an object's bytes; packs and indexes are named by it.
    Sha256Digest,
    "SHA-256 digest"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_id_round_trips_and_rejects_other_texts() {
        let job = JobId::fresh();
        let at = DateTime::from_timestamp(1_771_225_200, 0).unwrap_or_default();
        let id = BackupId::for_job(job, at);
        assert!(id.as_str().starts_with("bkp-20260216-070000Z-"), "{id}");
        assert_eq!(id.as_str().parse::<BackupId>(), Ok(id));
        for bad in [
            "",
            "bkp",
            "bkp-20260216-070000Z-",
            "bkp-20260216-070000Z-../../x",
            "bkp-2026-070000Z-abcdefgh",
            "bkp-20260216-070000Z-abcdefgh-x",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_target_name_cannot_climb_out_or_hold_control_characters() {
        for good in ["orders-db", "scenario/checkout", "a.b_c"] {
            assert!(good.parse::<TargetName>().is_ok(), "{good}");
        }
        for bad in ["", "/x", "x/", "a//b", "../x", "a\nb", "a b", "é"] {
            assert!(bad.parse::<TargetName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_identity_of_an_event_fits_wherever_it_goes() {
        assert_eq!(TriggerId::of_event("/ci", "7").as_str(), "/ci#7");
        for (source, id) in [("/ci", "a\nb"), ("/ci", "\0"), ("/ci", "x".repeat(5000).as_str())] {
            let trigger = TriggerId::of_event(source, id);
            assert!(trigger.as_str().starts_with("sha256:") && trigger.as_str().len() == 71);
            assert_eq!(trigger, TriggerId::of_event(source, id));
        }
    }

    #[test]
    fn a_digest_is_lower_case_hex_only() {
        assert!("A".repeat(64).parse::<Sha256Digest>().is_err());
        assert!("a".repeat(63).parse::<Sha256Digest>().is_err());
        assert!("a".repeat(64).parse::<Sha256Digest>().is_ok());
    }
}
