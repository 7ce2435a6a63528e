//! Why a moment cannot be recovered, in words that say which ones can.

use chrono::{DateTime, SecondsFormat, Utc};
use strongroom_proto::BackupId;
use strongroom_proto::timeline::{Moment, RecoveryWindow, WalGap};
use strongroom_proto::wal::{Lsn, RecoveryTarget};

use super::windows::Survey;

/// So many windows are listed.
const WINDOWS_SHOWN: usize = 20;

/// A moment that cannot be recovered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// There is no window.
    #[error("nothing can be recovered yet: {}", nothing_sentence(*bases))]
    NothingYet {
        /// Base backups that there are, none of them with the WAL that it needs.
        bases: usize,
    },
    /// The moment lies in no window.
    #[error(
        "{target} cannot be recovered: it lies {where_it_lies}; what can be is {}",
        windows_sentence(windows)
    )]
    Outside {
        /// The moment.
        target: RecoveryTarget,
        /// Before, after or between the windows.
        where_it_lies: String,
        /// What can be recovered.
        windows: Vec<RecoveryWindow>,
    },
    /// The newest WAL is of a timeline that nothing is known to lead to.
    #[error(
        "the latest moment cannot be recovered: the vault holds WAL of timeline {timeline}, whose history is not known \
         here, so this would end on timeline {reached}, at {end}; the history comes with the WAL that the receiver \
         brings, or with `strongroom catalog rebuild` and an identity; name the base backup to end there all the same"
    )]
    UnknownHistory {
        /// The newest timeline.
        timeline: u32,
        /// The one that the recovery would end on.
        reached: u32,
        /// Where it would end.
        end: Lsn,
    },
    /// The backup that was named is no base backup.
    #[error("{backup_id} is no base backup of a cluster, so that it is restored as it is: leave the moment out")]
    UnknownBase {
        /// The backup.
        backup_id: BackupId,
    },
    /// The backup that was named cannot become consistent.
    #[error(
        "base backup {backup_id} cannot be recovered: the vault does not hold all of the WAL from {from} to {to}, which \
         it needs; choose another one"
    )]
    BaseWithoutWal {
        /// The backup.
        backup_id: BackupId,
        /// Where the WAL that it needs begins.
        from: Lsn,
        /// Where it ends.
        to: Lsn,
    },
    /// The moment lies before the end of the backup that was named.
    #[error(
        "{target} cannot be recovered from {backup_id}, which was complete at {} ({lsn}): name the target instead of the \
         backup, and the right one is chosen",
        shown(*time)
    )]
    BeforeBase {
        /// The backup.
        backup_id: BackupId,
        /// The moment.
        target: RecoveryTarget,
        /// The first place that can be recovered from it.
        lsn: Lsn,
        /// The server's clock there.
        time: DateTime<Utc>,
    },
}

impl Refused {
    pub(super) fn outside(target: &RecoveryTarget, survey: Survey) -> Self {
        Self::Outside {
            target: target.clone(),
            where_it_lies: where_it_lies(target, &survey),
            windows: survey.windows,
        }
    }
}

fn where_it_lies(target: &RecoveryTarget, survey: &Survey) -> String {
    let is_before = |moment: &Moment| match target {
        RecoveryTarget::Time(time) => *time < moment.time,
        RecoveryTarget::Lsn(lsn) => *lsn < moment.lsn,
        _ => false,
    };
    let is_hole = |gap: &&WalGap| !is_before(&gap.from) && is_before(&gap.to);
    if let Some(gap) = survey.gaps.iter().find(is_hole) {
        return format!(
            "in a hole of the WAL, between {} and {}",
            moment(&gap.from),
            moment(&gap.to)
        );
    }
    if survey.windows.iter().all(|window| is_before(&window.from)) {
        return "before the end of the first base backup".to_owned();
    }
    if survey.windows.iter().all(|window| !is_before(&window.to)) {
        return "after the end of the WAL in the vault".to_owned();
    }
    "between two windows, after a hole and before the next base backup".to_owned()
}

fn nothing_sentence(bases: usize) -> String {
    if bases == 0 {
        "there is no base backup; make one with `strongroom backup`".to_owned()
    } else {
        format!("of {bases} base backup(s), none has all of the WAL that it needs to be consistent in the vault")
    }
}

fn windows_sentence(windows: &[RecoveryWindow]) -> String {
    let mut shown: Vec<String> = windows
        .iter()
        .rev()
        .take(WINDOWS_SHOWN)
        .map(|window| {
            let timeline = window.timelines.last().copied().unwrap_or(1);
            let (from, to) = (moment(&window.from), moment(&window.to));
            format!("{from} to {to} on timeline {timeline}")
        })
        .collect();
    shown.reverse();
    let more = windows.len() - shown.len();
    if more > 0 {
        shown.insert(0, format!("{more} older window(s)"));
    }
    shown.join(", and ")
}

fn moment(moment: &Moment) -> String {
    format!("{} ({})", shown(moment.time), moment.lsn)
}

fn shown(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}
