//! Write-ahead log: places in it, its segments, and the pieces in which a vault keeps it.
//!
//! A vault keeps WAL as pieces: a piece is a range of one segment of one timeline, stored as soon as it is due, so that
//! a slow server's last commit is not left waiting for a full segment and nothing is stored twice. The pieces of a segment,
//! one after the other, are the segment.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Sha256Digest;

/// A place in a cluster's WAL: bytes since its beginning, written as Postgres writes it, e.g. `0/16B3740`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// A text that is not a place in WAL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a place in WAL: write it as Postgres does, e.g. 0/16B3740")]
pub struct ParseLsnError(String);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff))
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;
    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let half = |digits: &str| match digits.len() {
            1..=8 if digits.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
            _ => None,
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Lsn {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Lsn".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A place in a cluster's WAL, as Postgres writes it.",
            "pattern": "^[0-9A-F]{1,8}/[0-9A-F]{1,8}$"
        })
    }
}

/// One segment of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegment {
    /// The timeline.
    pub timeline: u32,
    /// Its number: where it begins, over the size of segments.
    pub number: u64,
}

impl WalSegment {
    /// The segment that holds a place, in a cluster with segments of this size.
    pub const fn holding(timeline: u32, lsn: Lsn, segment_bytes: u32) -> Self {
        Self {
            timeline,
            number: lsn.0 / segment_bytes as u64,
        }
    }

    /// Where it begins.
    pub const fn begin(self, segment_bytes: u32) -> Lsn {
        Lsn(self.number * segment_bytes as u64)
    }

    /// Where the next one begins.
    pub const fn end(self, segment_bytes: u32) -> Lsn {
        Lsn((self.number + 1) * segment_bytes as u64)
    }

    /// The name of its file: 24 hexadecimal digits.
    pub fn file_name(self, segment_bytes: u32) -> String {
        let per_file = 0x1_0000_0000 / u64::from(segment_bytes);
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline,
            self.number / per_file,
            self.number % per_file
        )
    }

    /// The segment that a file of this name is; `None` where it is not the name of one.
    pub fn from_file_name(name: &str, segment_bytes: u32) -> Option<Self> {
        if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
            return None;
        }
        let part = |from: usize| u64::from_str_radix(name.get(from..from + 8)?, 16).ok();
        let per_file = 0x1_0000_0000 / u64::from(segment_bytes);
        let (high, low) = (part(8)?, part(16)?);
        (low < per_file).then_some(Self {
            timeline: u32::try_from(part(0)?).ok()?,
            number: high.checked_mul(per_file)?.checked_add(low)?,
        })
    }
}

/// What a cluster is called by itself: the number that its control file and every segment of its WAL carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemIdentifier {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl Serialize for SystemIdentifier {
    // As text: many readers of JSON round numbers of 64 bits.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemIdentifier {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for SystemIdentifier {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SystemIdentifier".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]{1,20}$" })
    }
}

/// What a piece of WAL is. Signed by who stored it, and sealed with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WalPiece {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline.
    pub timeline: u32,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends: the place after its last byte. Never beyond the segment it begins in.
    pub to: Lsn,
    /// The size of the cluster's segments, in bytes.
    pub segment_bytes: u32,
    /// The server's clock when it had nothing after a place in this piece: what was committed before lies before `to`.
    /// `None` where it always had more, as for WAL that comes late, or did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_time: Option<DateTime<Utc>>,
}

impl WalPiece {
    /// The segment it is of.
    pub const fn segment(&self) -> WalSegment {
        WalSegment::holding(self.timeline, self.from, self.segment_bytes)
    }

    /// Its length in bytes.
    pub const fn len(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Whether it holds nothing, which no piece may.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A piece of WAL that a vault holds, as its name tells without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPiece {
    /// The timeline.
    pub timeline: u32,
    /// Where it begins.
    pub from: Lsn,
    /// The place after its last byte.
    pub to: Lsn,
    /// Digest of the object's bytes.
    pub sha256: Sha256Digest,
    /// When the object was stored, by the store's clock.
    pub stored_at: DateTime<Utc>,
}

/// WAL of one timeline without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WalRange {
    /// The timeline.
    pub timeline: u32,
    /// Where it begins.
    pub from: Lsn,
    /// The place after its last byte.
    pub to: Lsn,
    /// The first such moment as `last_time` that is known.
    pub first_time: DateTime<Utc>,
    /// The server's clock when it last had nothing after what is in the range: what was committed before is in it. Not the
    /// moment when WAL was sent, which for WAL that comes late is far from when it was written.
    pub last_time: DateTime<Utc>,
}

/// Where WAL goes: a vault, as who writes sees it.
#[async_trait]
pub trait WalSink: Send + Sync {
    /// Stores a piece; it is durable when this returns. A piece that is there already is fine. The bytes are let go of by
    /// then, so that whoever keeps a hold of them can use their memory again.
    async fn put(&self, piece: &WalPiece, bytes: Arc<Vec<u8>>) -> io::Result<()>;
    /// Stores the history file of a timeline, likewise.
    async fn put_history(&self, system: SystemIdentifier, timeline: u32, text: &str) -> io::Result<()>;
    /// Whether there is a history of the timeline, whatever it says. Who cannot tell says that there is none.
    async fn has_history(&self, _system: SystemIdentifier, _timeline: u32) -> io::Result<bool> {
        Ok(false)
    }
    /// The pieces of a timeline, in the order of where they begin.
    async fn pieces(&self, system: SystemIdentifier, timeline: u32) -> io::Result<Vec<StoredPiece>>;
    /// The pieces of one segment, likewise. A vault need not list the whole timeline for it.
    async fn segment_pieces(
        &self,
        system: SystemIdentifier,
        segment: WalSegment,
        segment_bytes: u32,
    ) -> io::Result<Vec<StoredPiece>> {
        let mut pieces = self.pieces(system, segment.timeline).await?;
        pieces.retain(|piece| WalSegment::holding(piece.timeline, piece.from, segment_bytes) == segment);
        Ok(pieces)
    }
}

/// Where WAL comes from: a vault, as who reads sees it. Every byte handed out was signed by a writer.
#[async_trait]
pub trait WalSource: Send + Sync {
    /// The timelines that have pieces or a history, in ascending order.
    async fn timelines(&self, system: SystemIdentifier) -> io::Result<Vec<u32>>;
    /// The pieces of one segment, in the order of where they begin; an error is never an empty answer.
    async fn segment_pieces(&self, system: SystemIdentifier, segment: WalSegment) -> io::Result<Vec<StoredPiece>>;
    /// The segments of a timeline that have pieces, in ascending order.
    async fn segments(&self, system: SystemIdentifier, timeline: u32) -> io::Result<Vec<WalSegment>>;
    /// What a piece says of itself, and its bytes.
    async fn read(&self, system: SystemIdentifier, piece: &StoredPiece) -> io::Result<(WalPiece, Vec<u8>)>;
    /// The history file of a timeline; `None` where there is none.
    async fn history(&self, system: SystemIdentifier, timeline: u32) -> io::Result<Option<String>>;
}

/// The history of a timeline: the timelines it came from, the oldest first, and where each was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineHistory {
    /// The timeline.
    pub timeline: u32,
    /// The ones before it, the oldest first.
    pub ancestors: Vec<TimelineSwitch>,
}

/// Where one timeline was left for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: u32,
    /// Where: what comes after this place is on the next one.
    pub at: Lsn,
}

impl TimelineHistory {
    /// Reads a history file; `None` where it is not one.
    pub fn parse(timeline: u32, text: &str) -> Option<Self> {
        let mut ancestors = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let ancestor = TimelineSwitch {
                timeline: words.next()?.parse().ok()?,
                at: words.next()?.parse().ok()?,
            };
            let is_in_order = ancestors
                .last()
                .is_none_or(|before: &TimelineSwitch| before.timeline < ancestor.timeline && before.at <= ancestor.at);
            if !is_in_order || ancestor.timeline >= timeline {
                return None;
            }
            ancestors.push(ancestor);
        }
        Some(Self { timeline, ancestors })
    }
}

/// What a request to recover may name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryTarget {
    /// The last transaction committed no later than this.
    Time(DateTime<Utc>),
    /// All records that begin before this place, and the one that begins at it.
    Lsn(Lsn),
    /// This transaction, and what was committed before it.
    Xid(u32),
    /// A restore point made by `pg_create_restore_point`.
    Name(String),
    /// Everything there is.
    Latest,
    /// No more than the base backup needs to be consistent.
    Immediate,
}

/// A text that names no moment to recover to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no moment to recover to: give a time with its zone (2026-11-21T14:03:05Z), a place in WAL (0/16B3740), \
     xid:NUMBER, name:RESTORE_POINT, latest or immediate"
)]
pub struct ParseRecoveryTargetError(String);

impl FromStr for RecoveryTarget {
    type Err = ParseRecoveryTargetError;
    fn from_str(text: &str) -> Result<Self, ParseRecoveryTargetError> {
        let refused = || ParseRecoveryTargetError(text.to_owned());
        let trimmed = text.trim();
        match trimmed {
            "latest" => return Ok(Self::Latest),
            "immediate" => return Ok(Self::Immediate),
            _ => {}
        }
        if let Some(xid) = trimmed.strip_prefix("xid:") {
            return xid.trim().parse().map(Self::Xid).map_err(|_| refused());
        }
        if let Some(name) = trimmed.strip_prefix("name:") {
            let is_name = !name.is_empty() && name.len() < 64 && !name.chars().any(char::is_control);
            return is_name.then(|| Self::Name(name.to_owned())).ok_or_else(refused);
        }
        if let Ok(lsn) = trimmed.parse() {
            return Ok(Self::Lsn(lsn));
        }
        // `2026-11-21 14:03:05+00`, as Postgres prints it, is taken as well.
        let with_t = trimmed.replacen(' ', "T", 1);
        DateTime::parse_from_rfc3339(&with_t)
            .or_else(|_| DateTime::parse_from_str(&with_t, "%Y-%m-%dT%H:%M:%S%.f%#z"))
            .map(|time| Self::Time(time.with_timezone(&Utc)))
            .map_err(|_| refused())
    }
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).fmt(f),
            Self::Lsn(lsn) => lsn.fmt(f),
            Self::Xid(xid) => write!(f, "xid:{xid}"),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Latest => "latest".fmt(f),
            Self::Immediate => "immediate".fmt(f),
        }
    }
}

/// How a recovery is to be done: what a restore job of a cluster is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recovery {
    /// The moment.
    pub to: RecoveryTarget,
    /// The timeline it lies on.
    pub timeline: u32,
    /// The end of the WAL that the vault was known to hold on that timeline when this was planned: replay of all WAL
    /// must come at least so far. `None` where it was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_end: Option<Lsn>,
    /// What is left behind.
    #[serde(default)]
    pub leave: Leave,
    /// Where tablespaces go, by number: folders that are absent or empty. One that is not named goes into the data folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tablespaces: BTreeMap<u32, String>,
    /// Only these tables, as `database.schema.table`: by way of a scratch server, into files of their own at the destination.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

/// What a recovery leaves behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Leave {
    /// A data folder whose server was started, reached the moment, was promoted, and was stopped.
    #[default]
    Stopped,
    /// The same with the server running, on a port of its own on loopback.
    Running,
    /// A data folder that no server was started in: the recovery is done by the first one that is.
    Unstarted,
}

/// What a backup of a whole cluster says of itself, in its receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterFacts {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline it was taken on.
    pub timeline: u32,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where it is consistent: WAL from `start_lsn` up to here is needed.
    pub stop_lsn: Lsn,
    /// The server's clock when it ended: no earlier moment can be recovered from it.
    pub stopped_at: DateTime<Utc>,
    /// The size of the cluster's WAL segments, in bytes.
    pub segment_bytes: u32,
    /// Where the backup began whose unchanged pages were taken over, where only changed ones were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental_from: Option<Lsn>,
    /// The number (OID) and place of every tablespace but the default ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<Tablespace>,
}

/// A tablespace of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tablespace {
    /// Its number. Its files are entries below `pg_tblspc/<oid>`.
    pub oid: u32,
    /// Where it lay on the server.
    pub location: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_and_print_as_postgres_does() {
        for (text, value) in [("0/0", 0), ("0/16B3740", 0x16B_3740), ("A/FFFFFFFF", 0xA_FFFF_FFFF)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(value));
            assert_eq!(Lsn(value).to_string(), text);
        }
        for text in ["", "/", "1", "0/", "0/123456789", "+1/0", "g/0", "0/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn segments_have_the_names_of_their_files() {
        for (segment_bytes, name, number) in [
            (16 << 20, "0000000100000000000000FF", 255),
            (16 << 20, "000000020000000100000000", 256),
            (1 << 20, "000000010000000000000FFF", 4095),
            (1 << 30, "000000010000000A00000003", 43),
        ] {
            let segment = WalSegment::from_file_name(name, segment_bytes).unwrap();
            assert_eq!(segment.number, number, "{name}");
            assert_eq!(segment.file_name(segment_bytes), name);
            assert_eq!(
                WalSegment::holding(segment.timeline, segment.begin(segment_bytes), segment_bytes),
                segment
            );
        }
        // Past the last of its kind, in lower case, a history file, a partial one.
        for name in [
            "000000010000000000000100",
            "0000000100000000000000ff",
            "00000002.history",
            "000000010000000000000001.partial",
        ] {
            assert_eq!(WalSegment::from_file_name(name, 16 << 20), None, "{name}");
        }
    }

    #[test]
    fn histories_are_read_and_disorder_is_not() {
        let history = TimelineHistory::parse(
            3,
            "1\t0/5000000\tno recovery target specified\n\n2\t0/6000100\tbefore x\n",
        )
        .unwrap();
        let left: Vec<(u32, Lsn)> = history.ancestors.iter().map(|a| (a.timeline, a.at)).collect();
        assert_eq!(left, [(1, Lsn(0x500_0000)), (2, Lsn(0x600_0100))]);
        for bad in ["2 0/1\n1 0/2\n", "1 0/2\n2 0/1\n", "1\n", "x 0/1\n", "3 0/1\n"] {
            assert_eq!(TimelineHistory::parse(3, bad), None, "{bad:?}");
        }
    }

    #[test]
    fn moments_read_as_they_print() {
        for text in [
            "2026-11-21T14:03:05Z",
            "0/16B3740",
            "xid:731",
            "name:before the upgrade",
            "latest",
            "immediate",
        ] {
            let target: RecoveryTarget = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        let printed: RecoveryTarget = "2026-11-21 16:03:05.25+02".parse().unwrap();
        assert_eq!(printed.to_string(), "2026-11-21T14:03:05.250Z");
        for bad in [
            "",
            "yesterday",
            "2026-11-21T14:03:05",
            "xid:",
            "xid:-1",
            "name:",
            "name:a\nb",
        ] {
            assert!(bad.parse::<RecoveryTarget>().is_err(), "{bad:?}");
        }
    }
}
