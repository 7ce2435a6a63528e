//! Whether a recovery came to the moment it was told, and to no other.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use chrono::{DateTime, Utc};
use strongroom_proto::receipt::{Check, CheckOutcome};
use strongroom_proto::wal::{ClusterFacts, Lsn, Recovery, RecoveryTarget, WalSegment};

use super::error::RecoveryError;
use super::log::StoppedAt;

pub(super) const CHECK: &str = "recovery target";
const ANSWERS: &str = "server answers";
/// A page of WAL and the longest header of one, in bytes.
const WAL_PAGE_BYTES: u64 = 8192;
const WAL_PAGE_HEADER_BYTES: u64 = 40;

/// How a server came to stop replaying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// It came to what it was told.
    ToAStop,
    /// It has replayed all there is.
    ToTheEndOfWal,
}

/// How far a server came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) came: Came,
    pub(super) stopped_at: Option<StoppedAt>,
    /// The place after the last record it replayed.
    pub(super) replayed_to: Option<Lsn>,
    /// When the last transaction that it replayed ended.
    pub(super) last_commit: Option<DateTime<Utc>>,
}

/// The check that a recovery came to its moment; an error where it did not.
pub(super) fn assert(
    recovery: &Recovery,
    data_dir: &Path,
    facts: &ClusterFacts,
    reached: &Reached,
    missing: Option<String>,
) -> Result<Check, RecoveryError> {
    let covers_all = |end: Lsn| {
        let begun = |at| record_bytes(data_dir, recovery.timeline, at, facts.segment_bytes);
        reached
            .replayed_to
            .is_some_and(|at| at >= end || reaches(at, begun(at), end))
    };
    match judge(recovery, reached, covers_all) {
        Ok(detail) => Ok(Check {
            name: CHECK.to_owned(),
            outcome: CheckOutcome::Passed,
            detail,
        }),
        Err(Wrong::Other(what)) => Err(RecoveryError::OtherMoment {
            target: recovery.to.to_string(),
            what,
        }),
        Err(Wrong::Early(what)) => {
            let mut what = format!("{what}, WAL ended {}", RecoveryError::at(reached.replayed_to));
            if let Some(time) = reached.last_commit {
                what.push_str(&format!(" with a transaction of {time}"));
            }
            if let Some(name) = missing {
                what.push_str(&format!("; the next segment, {name}, is not in the vault"));
            }
            Err(RecoveryError::NotReached {
                target: recovery.to.to_string(),
                what,
            })
        }
    }
}

/// What is wrong with where a recovery came to.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// It stopped somewhere else.
    Other(String),
    /// WAL ended too early.
    Early(String),
}

/// What was asked for and found, in one line. `covers` tells whether replay came to the end of the WAL that ends there.
fn judge(recovery: &Recovery, reached: &Reached, covers: impl Fn(Lsn) -> bool) -> Result<String, Wrong> {
    let at = RecoveryError::at(reached.replayed_to);
    let last = reached.last_commit.map_or_else(
        || "no transaction replayed".to_owned(),
        |time| format!("last transaction of {time}"),
    );
    let other = |what: String| Err(Wrong::Other(what));
    let early = |what: &str| Err(Wrong::Early(what.to_owned()));
    let wal_end = recovery.wal_end;
    match (&recovery.to, &reached.stopped_at, reached.came) {
        (RecoveryTarget::Time(wanted), Some(StoppedAt::BeforeTransaction { xid, time }), Came::ToAStop) => {
            // Postgres counts microseconds.
            if time <= wanted || reached.last_commit.is_some_and(|last| last > *wanted) {
                return other(format!("stopped before transaction {xid} of {time}, {last}"));
            }
            Ok(format!("{last}, stopped {at} before transaction {xid} of {time}"))
        }
        (RecoveryTarget::Time(wanted), None, Came::ToTheEndOfWal) => match wal_end {
            _ if reached.last_commit.is_some_and(|last| last > *wanted) => other(last),
            Some(end) if covers(end) => Ok(format!("{last}, and no other up to the end of WAL {at}")),
            Some(end) => early(&format!("there is WAL up to {end}")),
            None => early("no later transaction shows that it was passed"),
        },
        (RecoveryTarget::Lsn(wanted), Some(StoppedAt::BeforeLsn(next)), Came::ToAStop) => {
            if next <= wanted || reached.replayed_to.is_some_and(|end| end > *next) {
                return other(format!("stopped before {next}, {at}"));
            }
            Ok(format!(
                "every record that begins at {wanted} or before is replayed, the next begins at {next}"
            ))
        }
        (RecoveryTarget::Lsn(wanted), None, Came::ToTheEndOfWal) => match reached.replayed_to {
            Some(end) if end >= *wanted => Ok(format!("every record up to the end of WAL {at} is replayed")),
            _ => early("no record there was found"),
        },
        (RecoveryTarget::Xid(wanted), Some(StoppedAt::AfterTransaction { xid, was_committed }), Came::ToAStop) => {
            match (xid == wanted, was_committed) {
                (true, true) => Ok(format!("transaction {xid} is replayed, {last}, stopped {at}")),
                (true, false) => other(format!(
                    "transaction {xid} was rolled back, there is nothing of it to recover"
                )),
                (false, _) => other(format!("stopped after transaction {xid}")),
            }
        }
        (RecoveryTarget::Name(wanted), Some(StoppedAt::RestorePoint(name)), Came::ToAStop) => {
            if name != wanted {
                return other(format!("stopped at the restore point {name:?}"));
            }
            Ok(format!("stopped {at}, at the restore point, {last}"))
        }
        (RecoveryTarget::Latest, None, Came::ToTheEndOfWal) => match wal_end {
            Some(end) if !covers(end) => early(&format!("there is WAL up to {end}")),
            _ if reached.replayed_to.is_none() => early("it was not consistent yet"),
            _ => Ok(format!("all WAL is replayed, up to its end {at}, {last}")),
        },
        (RecoveryTarget::Immediate, Some(StoppedAt::Consistent), Came::ToAStop) => Ok(format!("consistent {at}")),
        (_, Some(stopped_at), _) => other(format!("the server stopped for another reason: {stopped_at:?}")),
        (_, None, Came::ToAStop) => other("the server did not say why it stopped".to_owned()),
        (_, None, Came::ToTheEndOfWal) => early("nothing of it was found"),
    }
}

/// The check that a promoted server answers, from whether it recovers, its version and its place in WAL.
pub(super) fn answers(row: &[Option<String>]) -> Result<Check, RecoveryError> {
    let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
    if text(0) != "false" {
        return Err(RecoveryError::Ended {
            doing: "promote the recovered server",
            log: "it says that it still recovers: look at its log, and try again".to_owned(),
        });
    }
    Ok(Check {
        name: ANSWERS.to_owned(),
        outcome: CheckOutcome::Passed,
        detail: format!("PostgreSQL {} takes writes, at {}", text(1), text(2)),
    })
}

/// Whether a record that begins at `at` and was not replayed is unfinished at the `end` of WAL: a server that died, or
/// sent what it had, may leave the beginning of one.
fn reaches(at: Lsn, record_bytes: Option<u64>, end: Lsn) -> bool {
    let rest = end.0.saturating_sub(at.0);
    match record_bytes {
        // The header of a page that nothing is on yet.
        None | Some(0) => rest <= WAL_PAGE_HEADER_BYTES,
        Some(bytes) => rest < bytes + (bytes / WAL_PAGE_BYTES + 2) * WAL_PAGE_HEADER_BYTES,
    }
}

/// The length that the record at a place says it has, in bytes: the first number in it.
fn record_bytes(data_dir: &Path, timeline: u32, at: Lsn, segment_bytes: u32) -> Option<u64> {
    let segment = WalSegment::holding(timeline, at, segment_bytes);
    let file = File::open(data_dir.join("pg_wal").join(segment.file_name(segment_bytes))).ok()?;
    let mut offset = at.0 - segment.begin(segment_bytes).0;
    if offset.is_multiple_of(WAL_PAGE_BYTES) {
        offset += if offset == 0 { WAL_PAGE_HEADER_BYTES } else { 24 };
    }
    let mut number = [0; 4];
    file.read_exact_at(&mut number, offset).ok()?;
    Some(u64::from(u32::from_le_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use strongroom_proto::wal::Leave;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn recovery(to: RecoveryTarget, wal_end: Option<u64>) -> Recovery {
        Recovery {
            to,
            timeline: 1,
            wal_end: wal_end.map(Lsn),
            leave: Leave::Stopped,
            tablespaces: BTreeMap::new(),
            tables: Vec::new(),
        }
    }

    fn stop(stopped_at: StoppedAt) -> Reached {
        Reached {
            came: Came::ToAStop,
            stopped_at: Some(stopped_at),
            replayed_to: Some(Lsn(0x100)),
            last_commit: Some(time("2026-11-21T17:00:00Z")),
        }
    }

    fn end() -> Reached {
        Reached {
            came: Came::ToTheEndOfWal,
            stopped_at: None,
            replayed_to: Some(Lsn(0x100)),
            last_commit: Some(time("2026-11-21T17:00:00Z")),
        }
    }

    #[test]
    fn a_time_is_reached_by_a_later_transaction_or_by_known_wal() {
        let to = |text: &str, wal_end| recovery(RecoveryTarget::Time(time(text)), wal_end);
        let later = StoppedAt::BeforeTransaction {
            xid: 9,
            time: time("2026-11-21T17:00:02Z"),
        };
        let covers = |end: Lsn| end <= Lsn(0x100);
        assert!(judge(&to("2026-11-21T17:00:01Z", None), &stop(later.clone()), covers).is_ok());
        for wrong in ["2026-11-21T17:00:02Z", "2026-11-21T16:59:59Z"] {
            let judged = judge(&to(wrong, None), &stop(later.clone()), covers);
            assert!(matches!(judged, Err(Wrong::Other(_))), "{wrong}: {judged:?}");
        }
        assert!(judge(&to("2026-11-21T17:00:01Z", Some(0x100)), &end(), covers).is_ok());
        for unknown in [None, Some(0x200)] {
            let judged = judge(&to("2026-11-21T17:00:01Z", unknown), &end(), covers);
            assert!(matches!(judged, Err(Wrong::Early(_))), "{judged:?}");
        }
    }

    #[test]
    fn a_place_a_transaction_and_a_name_are_reached_exactly() {
        let covers = |_| true;
        let lsn = |at| recovery(RecoveryTarget::Lsn(Lsn(at)), None);
        assert!(judge(&lsn(0xff), &stop(StoppedAt::BeforeLsn(Lsn(0x100))), covers).is_ok());
        assert!(judge(&lsn(0x100), &stop(StoppedAt::BeforeLsn(Lsn(0x100))), covers).is_err());
        assert!(judge(&lsn(0x100), &end(), covers).is_ok());
        assert!(matches!(judge(&lsn(0x101), &end(), covers), Err(Wrong::Early(_))));

        let after = |xid, was_committed| stop(StoppedAt::AfterTransaction { xid, was_committed });
        let xid = recovery(RecoveryTarget::Xid(7), None);
        assert!(judge(&xid, &after(7, true), covers).is_ok());
        assert!(matches!(judge(&xid, &after(8, true), covers), Err(Wrong::Other(_))));
        assert!(matches!(judge(&xid, &after(7, false), covers), Err(Wrong::Other(_))));
        assert!(matches!(judge(&xid, &end(), covers), Err(Wrong::Early(_))));

        let name = recovery(RecoveryTarget::Name("a".to_owned()), None);
        let at = |name: &str| stop(StoppedAt::RestorePoint(name.to_owned()));
        assert!(judge(&name, &at("a"), covers).is_ok());
        assert!(judge(&name, &at("b"), covers).is_err());
        assert!(judge(&name, &stop(StoppedAt::Consistent), covers).is_err());
    }

    #[test]
    fn the_latest_is_the_end_of_the_wal_that_was_known() {
        let covers = |end: Lsn| end <= Lsn(0x100);
        assert!(judge(&recovery(RecoveryTarget::Latest, Some(0x100)), &end(), covers).is_ok());
        assert!(judge(&recovery(RecoveryTarget::Latest, None), &end(), covers).is_ok());
        let short = judge(&recovery(RecoveryTarget::Latest, Some(0x101)), &end(), covers);
        assert!(matches!(short, Err(Wrong::Early(_))));
        let inconsistent = Reached {
            replayed_to: None,
            ..end()
        };
        assert!(judge(&recovery(RecoveryTarget::Latest, None), &inconsistent, covers).is_err());
    }

    #[test]
    fn only_the_beginning_of_a_record_may_be_left() {
        // 1,000 bytes, of which 900 are there, or all.
        assert!(reaches(Lsn(0x1000), Some(1000), Lsn(0x1000 + 900)));
        assert!(!reaches(Lsn(0x1000), Some(1000), Lsn(0x1000 + 1100)));
        assert!(reaches(Lsn(0x2000), Some(0), Lsn(0x2000 + 24)));
        assert!(!reaches(Lsn(0x2000), Some(0), Lsn(0x3000)));
        assert!(!reaches(Lsn(0x2000), None, Lsn(0x3000)));
    }
}
