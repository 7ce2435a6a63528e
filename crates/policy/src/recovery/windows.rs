//! What can be recovered: windows, and the holes between them.
//!
//! A timeline has a path: its ancestors up to where each was left, then itself. Along a path the vault's WAL makes
//! stretches without a hole; one with a base backup in it is a window. The first segment of a timeline repeats what its
//! ancestor wrote into it, and a server reads that copy.

use chrono::{DateTime, Utc};
use strongroom_proto::BackupId;
use strongroom_proto::timeline::{Moment, RecoveryWindow, WalGap, WindowEnd};
use strongroom_proto::wal::{Lsn, SystemIdentifier, WalRange};

use super::{Base, Cluster};

/// The size of segments where no base backup tells it.
const SEGMENT_BYTES: u32 = 16 << 20;

/// What can be recovered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The windows; the newest is the last.
    pub windows: Vec<RecoveryWindow>,
    /// The holes, by cluster and place.
    pub gaps: Vec<WalGap>,
    /// Base backups that lack WAL to be consistent.
    pub unusable: Vec<BackupId>,
    /// The newest WAL of each cluster, whether a base backup reaches it or not.
    newest: Vec<(SystemIdentifier, WalRange)>,
}

impl Survey {
    /// The newest WAL of a cluster, where no base backup reaches it: what is written now cannot be recovered.
    pub fn unreached(&self, system: SystemIdentifier) -> Option<WalRange> {
        let (_, newest) = self.newest.iter().find(|(known, _)| *known == system)?;
        let is_reached = self.windows.iter().any(|window| {
            window.system_identifier == system
                && window.timelines.last() == Some(&newest.timeline)
                && window.to.lsn >= newest.to
        });
        (!is_reached).then_some(*newest)
    }
}

/// A part of a path that lies on one timeline.
#[derive(Debug, Clone, Copy)]
struct Leg {
    timeline: u32,
    from: Lsn,
    to: Lsn,
}

/// WAL along a path without a hole.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    from: Lsn,
    to: Lsn,
    first_timeline: u32,
    last_timeline: u32,
    first_time: DateTime<Utc>,
    last_time: DateTime<Utc>,
}

/// A path with the WAL along it.
struct Path {
    legs: Vec<Leg>,
    stretches: Vec<Stretch>,
}

/// Finds the windows of clusters, and the holes between them.
pub fn survey(clusters: &[Cluster]) -> Survey {
    let mut survey = Survey::default();
    let mut found = Vec::new();
    for cluster in clusters {
        let paths = paths(cluster);
        let windows = windows(cluster, &paths);
        let used = |base: &&Base| windows.iter().any(|window| window.bases.contains(&base.backup_id));
        let unused = cluster.bases.iter().filter(|base| !used(base));
        survey.unusable.extend(unused.map(|base| base.backup_id.clone()));
        survey.gaps.extend(gaps(cluster, &paths));
        let newest = cluster.ranges.iter().max_by_key(|range| (range.timeline, range.to));
        survey
            .newest
            .extend(newest.map(|range| (cluster.system_identifier, *range)));
        found.push(windows);
    }
    // Of one cluster the newest timeline is the newest; clusters have only their clocks to be compared by.
    found.sort_by_key(|windows| windows.iter().map(|window| window.to.time).max());
    for mut windows in found {
        windows.sort_by_key(|window| (window.timelines.last().copied(), window.to.lsn));
        survey.windows.extend(windows);
    }
    survey
}

fn paths(cluster: &Cluster) -> Vec<Path> {
    let segment_bytes = cluster
        .bases
        .iter()
        .map(|base| base.facts.segment_bytes)
        .find(|bytes| *bytes > 0)
        .unwrap_or(SEGMENT_BYTES);
    let mut timelines: Vec<u32> = cluster.ranges.iter().map(|range| range.timeline).collect();
    timelines.sort_unstable();
    timelines.dedup();
    timelines
        .into_iter()
        .map(|timeline| {
            let legs = legs(cluster, timeline);
            let stretches = stretches(&legs, &cluster.ranges, segment_bytes);
            Path { legs, stretches }
        })
        .collect()
}

fn legs(cluster: &Cluster, timeline: u32) -> Vec<Leg> {
    let history = cluster.histories.iter().find(|history| history.timeline == timeline);
    let mut from = Lsn(0);
    let mut legs = Vec::new();
    for ancestor in history.map(|history| history.ancestors.as_slice()).unwrap_or_default() {
        legs.push(Leg {
            timeline: ancestor.timeline,
            from,
            to: ancestor.at,
        });
        from = ancestor.at;
    }
    legs.push(Leg {
        timeline,
        from,
        to: Lsn(u64::MAX),
    });
    legs
}

fn stretches(legs: &[Leg], ranges: &[WalRange], segment_bytes: u32) -> Vec<Stretch> {
    let mut pieces: Vec<Stretch> = Vec::new();
    for leg in legs {
        // A server reads the whole segment of a switch from the newer timeline.
        let copied_from = Lsn(leg.from.0 - leg.from.0 % u64::from(segment_bytes));
        for range in ranges.iter().filter(|range| range.timeline == leg.timeline) {
            let (from, to) = (range.from.max(copied_from), range.to.min(leg.to));
            if from < to {
                pieces.push(Stretch {
                    from,
                    to,
                    first_timeline: leg.timeline,
                    last_timeline: leg.timeline,
                    first_time: range.first_time,
                    last_time: range.last_time,
                });
            }
        }
    }
    pieces.sort_by_key(|piece| (piece.from, piece.first_timeline));
    let mut stretches: Vec<Stretch> = Vec::new();
    for piece in pieces {
        match stretches.last_mut() {
            Some(last) if piece.from <= last.to => {
                if piece.to >= last.to {
                    last.to = piece.to;
                    last.last_timeline = piece.last_timeline;
                    last.last_time = piece.last_time;
                }
            }
            _ => stretches.push(piece),
        }
    }
    stretches
}

fn windows(cluster: &Cluster, paths: &[Path]) -> Vec<RecoveryWindow> {
    let mut found: Vec<RecoveryWindow> = Vec::new();
    // From the newest timeline on, so that an older one's windows that are part of a newer one's are seen to be.
    for (index, path) in paths.iter().enumerate().rev() {
        let Some(own) = path.legs.last() else { continue };
        for stretch in &path.stretches {
            // What ends on an ancestor is a window of the ancestor.
            if stretch.last_timeline != own.timeline || stretch.to <= own.from {
                continue;
            }
            let mut bases: Vec<&Base> = cluster
                .bases
                .iter()
                .filter(|base| is_usable(base, &path.legs, stretch))
                .collect();
            bases.sort_by_key(|base| base.facts.stop_lsn);
            let Some(first) = bases.first() else { continue };
            let from = Moment {
                lsn: first.facts.stop_lsn,
                time: first.facts.stopped_at,
            };
            let window = RecoveryWindow {
                system_identifier: cluster.system_identifier,
                timelines: path
                    .legs
                    .iter()
                    .map(|leg| leg.timeline)
                    .filter(|timeline| *timeline >= first.facts.timeline)
                    .collect(),
                from,
                to: Moment {
                    lsn: stretch.to,
                    // A clock that went back leaves no window of negative length.
                    time: stretch.last_time.max(from.time),
                },
                bases: bases.iter().map(|base| base.backup_id.clone()).collect(),
                end: end(own.timeline, stretch, path, paths.get(index + 1..).unwrap_or_default()),
            };
            if !found
                .iter()
                .any(|newer| is_part_of(&window, own.timeline, newer, paths))
            {
                found.push(window);
            }
        }
    }
    found
}

/// Whether a base backup lies on a path and has the WAL that makes it consistent.
fn is_usable(base: &Base, legs: &[Leg], stretch: &Stretch) -> bool {
    let facts = &base.facts;
    let is_on_path = legs
        .iter()
        .any(|leg| leg.timeline == facts.timeline && facts.stop_lsn <= leg.to);
    is_on_path && stretch.from <= facts.start_lsn && facts.stop_lsn <= stretch.to
}

/// Whether all of a window lies before the place where a newer one's path left its timeline, and is held by it too.
fn is_part_of(window: &RecoveryWindow, timeline: u32, newer: &RecoveryWindow, paths: &[Path]) -> bool {
    let newest = newer.timelines.last().copied();
    let path = paths
        .iter()
        .find(|path| path.legs.last().map(|leg| leg.timeline) == newest);
    let left_at = path
        .and_then(|path| path.legs.iter().find(|leg| leg.timeline == timeline))
        .map(|leg| leg.to);
    left_at.is_some_and(|left_at| window.to.lsn <= left_at)
        && window.bases.iter().all(|base| newer.bases.contains(base))
}

/// Why a window of a timeline ends where a stretch does. `newer` are the paths of the timelines after it.
fn end(timeline: u32, stretch: &Stretch, path: &Path, newer: &[Path]) -> WindowEnd {
    let goes_on = |path: &Path| path.stretches.iter().any(|next| next.from > stretch.to);
    let leaving = newer
        .iter()
        .filter_map(|path| Some((path, path.legs.iter().find(|leg| leg.timeline == timeline)?)));
    let is_cut = goes_on(path) || leaving.clone().any(|(path, leg)| leg.to > stretch.to && goes_on(path));
    if is_cut {
        WindowEnd::Hole
    } else if leaving.count() > 0 {
        WindowEnd::LeftTimeline
    } else {
        WindowEnd::Newest
    }
}

fn gaps(cluster: &Cluster, paths: &[Path]) -> Vec<WalGap> {
    let mut gaps: Vec<WalGap> = Vec::new();
    for path in paths {
        for (before, after) in path.stretches.iter().zip(path.stretches.iter().skip(1)) {
            let gap = WalGap {
                system_identifier: cluster.system_identifier,
                timeline: after.first_timeline,
                from: Moment {
                    lsn: before.to,
                    time: before.last_time,
                },
                to: Moment {
                    lsn: after.from,
                    time: after.first_time,
                },
            };
            // Paths share their beginnings.
            let is_known = gaps
                .iter()
                .any(|known| (known.from.lsn, known.to.lsn) == (gap.from.lsn, gap.to.lsn));
            if !is_known {
                gaps.push(gap);
            }
        }
    }
    gaps.sort_by_key(|gap| (gap.from.lsn, gap.timeline));
    gaps
}
