//! Which base backup and which WAL bring a cluster back to a moment, or why nothing does.
//!
//! What can be recovered are windows ([`survey`]): stretches of WAL without a hole that begin at a base backup. A
//! moment is planned for ([`plan`]) only where it lies in one of them: a recovery that would meet a hole, or end before
//! its target, is refused before anything is touched.

mod refusal;
#[cfg(test)]
mod tests;
mod windows;

use chrono::{DateTime, Utc};
use strongroom_proto::BackupId;
use strongroom_proto::timeline::{RecoveryWindow, WalGap};
use strongroom_proto::wal::{ClusterFacts, Lsn, RecoveryTarget, SystemIdentifier, TimelineHistory, WalRange};

pub use refusal::Refused;
pub use windows::{Survey, survey};

/// What is known of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Its base backups, in any order.
    pub bases: Vec<Base>,
    /// The WAL that the vault holds, in any order.
    pub ranges: Vec<WalRange>,
    /// The histories of its timelines, as far as they are known.
    pub histories: Vec<TimelineHistory>,
}

/// A base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The backup.
    pub backup_id: BackupId,
    /// Where it lies in the WAL.
    pub facts: ClusterFacts,
    /// What its verification found.
    pub proof: Proof,
}

/// What is known of whether a backup restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The last verification passed.
    Passed,
    /// The last verification did not pass.
    Failed,
    /// There was none yet.
    Unproven,
}

/// How a moment is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The base backup.
    pub backup_id: BackupId,
    /// The timeline to follow.
    pub timeline: u32,
    /// Where replay begins.
    pub wal_from: Lsn,
    /// Where replay ends at the latest: the place of the target where that is known, else the end of the window.
    pub wal_to: Lsn,
    /// The time of the target, where that is known.
    pub time: Option<DateTime<Utc>>,
    /// The window that the target lies in, or may lie in.
    pub window: RecoveryWindow,
    /// The first hole after the base backup.
    pub first_gap: Option<WalGap>,
    /// What was decided that the request did not say, one sentence each.
    pub notes: Vec<String>,
}

/// Plans a recovery: from `base` where one is named, else from the base backup that replays least.
///
/// # Errors
/// The target lies in no window, or nothing can be recovered.
pub fn plan(clusters: &[Cluster], target: &RecoveryTarget, base: Option<&BackupId>) -> Result<Plan, Refused> {
    let survey = survey(clusters);
    let mut windows: Vec<Window<'_>> = survey
        .windows
        .iter()
        .map(|window| Window::new(window, clusters))
        .collect();
    if let Some(id) = base {
        let named = clusters
            .iter()
            .flat_map(|c| &c.bases)
            .find(|base| base.backup_id == *id);
        let Some(named) = named else {
            return Err(Refused::UnknownBase { backup_id: id.clone() });
        };
        windows.retain_mut(|window| {
            window.bases.retain(|base| base.backup_id == *id);
            !window.bases.is_empty()
        });
        if windows.is_empty() {
            return Err(Refused::BaseWithoutWal {
                backup_id: id.clone(),
                from: named.facts.start_lsn,
                to: named.facts.stop_lsn,
            });
        }
        if windows.iter().all(|window| window.pick(target).is_none()) && precedes(target, &named.facts) {
            return Err(Refused::BeforeBase {
                backup_id: id.clone(),
                target: target.clone(),
                lsn: named.facts.stop_lsn,
                time: named.facts.stopped_at,
            });
        }
    }
    if windows.is_empty() {
        return Err(Refused::NothingYet {
            bases: clusters.iter().map(|cluster| cluster.bases.len()).sum(),
        });
    }
    // The newest window comes last.
    let found: Vec<(&Window<'_>, &Base)> = windows
        .iter()
        .filter_map(|window| Some((window, window.pick(target)?)))
        .collect();
    let Some((window, chosen)) = found.last() else {
        return Err(Refused::outside(target, survey));
    };
    if let (RecoveryTarget::Latest, None, Some(timeline)) = (target, base, unknown_timeline(clusters, window)) {
        return Err(Refused::UnknownHistory {
            timeline,
            reached: window.timeline(),
            end: window.window.to.lsn,
        });
    }
    let mut notes = Vec::new();
    explain(target, window, chosen, &found, &survey, &mut notes);
    let facts = &chosen.facts;
    let (wal_to, time) = match target {
        RecoveryTarget::Time(time) => (window.window.to.lsn, Some(*time)),
        RecoveryTarget::Lsn(lsn) => (*lsn, None),
        RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) => (window.window.to.lsn, None),
        RecoveryTarget::Latest => (window.window.to.lsn, Some(window.window.to.time)),
        RecoveryTarget::Immediate => (facts.stop_lsn, Some(facts.stopped_at)),
    };
    let first_gap = survey
        .gaps
        .iter()
        .filter(|gap| gap.system_identifier == window.window.system_identifier && gap.from.lsn >= facts.stop_lsn)
        .min_by_key(|gap| gap.from.lsn);
    Ok(Plan {
        backup_id: chosen.backup_id.clone(),
        timeline: window.timeline(),
        wal_from: facts.start_lsn,
        wal_to,
        time,
        window: window.window.clone(),
        first_gap: first_gap.copied(),
        notes,
    })
}

/// A window with its base backups.
struct Window<'a> {
    window: &'a RecoveryWindow,
    bases: Vec<&'a Base>,
}

impl<'a> Window<'a> {
    fn new(window: &'a RecoveryWindow, clusters: &'a [Cluster]) -> Self {
        let bases = clusters
            .iter()
            .filter(|cluster| cluster.system_identifier == window.system_identifier)
            .flat_map(|cluster| &cluster.bases)
            .filter(|base| window.bases.contains(&base.backup_id))
            .collect();
        Self { window, bases }
    }

    fn timeline(&self) -> u32 {
        self.window.timelines.last().copied().unwrap_or(1)
    }

    /// The base backup to reach a target from; `None` where the target does not lie in this window.
    fn pick(&self, target: &RecoveryTarget) -> Option<&'a Base> {
        let window = self.window;
        let latest = |bases: &mut dyn Iterator<Item = &&'a Base>| {
            bases
                .max_by_key(|base| (base.proof != Proof::Failed, base.facts.stop_lsn))
                .copied()
        };
        let mut bases = self.bases.iter();
        match target {
            RecoveryTarget::Time(time) if *time <= window.to.time => {
                latest(&mut bases.filter(|base| base.facts.stopped_at <= *time))
            }
            RecoveryTarget::Lsn(lsn) if *lsn < window.to.lsn => {
                latest(&mut bases.filter(|base| base.facts.stop_lsn <= *lsn))
            }
            RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_) => None,
            // Their place is not known: the first base backup meets them wherever in the window they are.
            RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) => bases
                .min_by_key(|base| (base.proof == Proof::Failed, base.facts.stop_lsn))
                .copied(),
            RecoveryTarget::Latest | RecoveryTarget::Immediate => latest(&mut bases),
        }
    }
}

/// The newest timeline after a window's that there is WAL of and whose history is not known.
fn unknown_timeline(clusters: &[Cluster], window: &Window<'_>) -> Option<u32> {
    let is_its = |cluster: &&Cluster| cluster.system_identifier == window.window.system_identifier;
    let cluster = clusters.iter().find(is_its)?;
    let is_known = |timeline| cluster.histories.iter().any(|history| history.timeline == timeline);
    let timelines = cluster.ranges.iter().map(|range| range.timeline);
    timelines
        .filter(|timeline| *timeline > window.timeline() && !is_known(*timeline))
        .max()
}

fn precedes(target: &RecoveryTarget, base: &ClusterFacts) -> bool {
    match target {
        RecoveryTarget::Time(time) => *time < base.stopped_at,
        RecoveryTarget::Lsn(lsn) => *lsn < base.stop_lsn,
        RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) | RecoveryTarget::Latest | RecoveryTarget::Immediate => false,
    }
}

/// Says what was decided that the request left open.
fn explain(
    target: &RecoveryTarget,
    window: &Window<'_>,
    base: &Base,
    found: &[(&Window<'_>, &Base)],
    survey: &Survey,
    notes: &mut Vec<String>,
) {
    let place_is_unknown = matches!(target, RecoveryTarget::Xid(_) | RecoveryTarget::Name(_));
    let is_ambiguous = matches!(target, RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_)) && found.len() > 1;
    if place_is_unknown {
        notes.push(format!(
            "where {target} lies is not known: it is looked for from {} on, in the newest window; name a later base \
             backup to replay less, or one of an older window to look there",
            base.backup_id
        ));
    }
    if is_ambiguous {
        let timelines: Vec<String> = found.iter().map(|(window, _)| window.timeline().to_string()).collect();
        notes.push(format!(
            "{target} lies on timelines {}: {} is followed",
            timelines.join(" and "),
            window.timeline()
        ));
    }
    if base.proof == Proof::Failed {
        notes.push(format!(
            "the last verification of {} did not pass, and no other base backup reaches {target}",
            base.backup_id
        ));
    }
    let unreached = survey.unreached(window.window.system_identifier);
    if let (RecoveryTarget::Latest, Some(unreached)) = (target, unreached) {
        notes.push(format!(
            "the vault holds WAL up to {} on timeline {} that no base backup reaches, because of a hole: this ends at {}; \
             make a base backup",
            unreached.to, unreached.timeline, window.window.to.lsn
        ));
    }
}
