use chrono::{DateTime, Duration, Utc};
use proptest::prelude::*;
use strongroom_proto::timeline::WindowEnd;
use strongroom_proto::wal::{
    ClusterFacts, Lsn, RecoveryTarget, SystemIdentifier, TimelineHistory, TimelineSwitch, WalRange,
};

use super::*;

const SEGMENT: u32 = 16;

/// The clock of these clusters: a second a place.
fn at(place: u64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + Duration::seconds(i64::try_from(place).unwrap())
}

fn base(number: u32, timeline: u32, start: u64, stop: u64) -> Base {
    Base {
        backup_id: format!("bkp-20261121-090000Z-{number:012}").parse().unwrap(),
        facts: ClusterFacts {
            system_identifier: SystemIdentifier(7),
            timeline,
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            stopped_at: at(stop),
            segment_bytes: SEGMENT,
            incremental_from: None,
            tablespaces: vec![],
        },
        proof: Proof::Unproven,
    }
}

fn range(timeline: u32, from: u64, to: u64) -> WalRange {
    WalRange {
        timeline,
        from: Lsn(from),
        to: Lsn(to),
        first_time: at(from),
        last_time: at(to),
    }
}

fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
    TimelineHistory {
        timeline,
        ancestors: ancestors
            .iter()
            .map(|(timeline, at)| TimelineSwitch {
                timeline: *timeline,
                at: Lsn(*at),
            })
            .collect(),
    }
}

fn cluster(bases: Vec<Base>, ranges: Vec<WalRange>, histories: Vec<TimelineHistory>) -> Cluster {
    Cluster {
        system_identifier: SystemIdentifier(7),
        bases,
        ranges,
        histories,
    }
}

fn time(place: u64) -> RecoveryTarget {
    RecoveryTarget::Time(at(place))
}

fn lsn(place: u64) -> RecoveryTarget {
    RecoveryTarget::Lsn(Lsn(place))
}

/// Number of the base backup, timeline, and the WAL that is replayed.
fn planned(clusters: &[Cluster], target: &RecoveryTarget) -> (u32, u32, u64, u64) {
    let plan = plan(clusters, target, None).unwrap_or_else(|refused| panic!("{refused}"));
    let number = plan.backup_id.as_str()[21..].parse().unwrap();
    (number, plan.timeline, plan.wal_from.0, plan.wal_to.0)
}

fn refused(clusters: &[Cluster], target: &RecoveryTarget) -> String {
    plan(clusters, target, None).unwrap_err().to_string()
}

#[test]
fn the_last_base_backup_before_the_moment_is_taken() {
    let known = [cluster(
        vec![base(2, 1, 50, 60), base(1, 1, 10, 20)],
        vec![range(1, 0, 100)],
        vec![],
    )];
    assert_eq!(planned(&known, &time(59)), (1, 1, 10, 100));
    assert_eq!(planned(&known, &time(60)), (2, 1, 50, 100));
    assert_eq!(planned(&known, &time(100)), (2, 1, 50, 100));
    assert_eq!(planned(&known, &lsn(59)), (1, 1, 10, 59));
    assert_eq!(planned(&known, &lsn(99)), (2, 1, 50, 99));
    assert_eq!(planned(&known, &RecoveryTarget::Latest), (2, 1, 50, 100));
    assert_eq!(planned(&known, &RecoveryTarget::Immediate), (2, 1, 50, 60));
    let window = &survey(&known).windows[0];
    assert_eq!(
        (window.from.lsn, window.to.time, window.end),
        (Lsn(20), at(100), WindowEnd::Newest)
    );
}

#[test]
fn what_lies_outside_is_refused_with_the_bounds() {
    let known = [cluster(vec![base(1, 1, 10, 20)], vec![range(1, 0, 100)], vec![])];
    let bounds = "1970-01-01T00:00:20Z (0/14) to 1970-01-01T00:01:40Z (0/64) on timeline 1";
    for (target, place) in [
        (time(19), "before the end of the first base backup"),
        (lsn(19), "before the end of the first base backup"),
        (time(101), "after the end of the WAL in the vault"),
        (lsn(100), "after the end of the WAL in the vault"),
    ] {
        let message = refused(&known, &target);
        assert!(message.contains(place) && message.contains(bounds), "{message}");
    }
    assert!(refused(&[], &RecoveryTarget::Latest).contains("strongroom backup"));
    let lacking = [cluster(vec![base(1, 1, 10, 20)], vec![range(1, 0, 19)], vec![])];
    assert!(refused(&lacking, &RecoveryTarget::Immediate).contains("of 1 base backup(s), none has all"));
    assert_eq!(survey(&lacking).unusable.len(), 1);
}

#[test]
fn a_hole_cuts_the_window_in_two_and_is_named_with_both_its_sides() {
    let bases = vec![base(1, 1, 10, 20), base(2, 1, 80, 85)];
    let known = [cluster(bases, vec![range(1, 0, 50), range(1, 60, 100)], vec![])];
    let found = survey(&known);
    let ends: Vec<_> = found
        .windows
        .iter()
        .map(|w| (w.from.lsn.0, w.to.lsn.0, w.end))
        .collect();
    assert_eq!(ends, [(20, 50, WindowEnd::Hole), (85, 100, WindowEnd::Newest)]);
    assert_eq!((found.gaps[0].from.lsn, found.gaps[0].to.lsn), (Lsn(50), Lsn(60)));
    for target in [time(55), lsn(55)] {
        let message = refused(&known, &target);
        assert!(
            message
                .contains("in a hole of the WAL, between 1970-01-01T00:00:50Z (0/32) and 1970-01-01T00:01:00Z (0/3C)"),
            "{message}"
        );
    }
    assert!(refused(&known, &time(70)).contains("before the next base backup"));
    let plan = plan(&known, &time(40), None).unwrap();
    assert_eq!(plan.first_gap.unwrap().from.lsn, Lsn(50));
}

#[test]
fn a_promotion_is_followed_and_what_the_old_server_wrote_after_it_is_another_window() {
    // Timeline 2 left 1 at 50; its first segment begins at 48 and repeats what was there.
    let bases = vec![base(1, 1, 10, 20)];
    let histories = vec![history(2, &[(1, 50)])];
    let known = [cluster(
        bases.clone(),
        vec![range(1, 0, 57), range(2, 48, 90)],
        histories.clone(),
    )];
    let found = survey(&known);
    let ends: Vec<_> = found
        .windows
        .iter()
        .map(|w| (w.timelines.clone(), w.to.lsn.0, w.end))
        .collect();
    assert_eq!(
        ends,
        [
            (vec![1], 57, WindowEnd::LeftTimeline),
            (vec![1, 2], 90, WindowEnd::Newest)
        ]
    );
    assert_eq!(planned(&known, &RecoveryTarget::Latest), (1, 2, 10, 90));
    assert_eq!(found.unreached(SystemIdentifier(7)), None);
    let plan = plan(&known, &time(55), None).unwrap();
    assert_eq!(plan.timeline, 2);
    assert!(
        plan.notes[0].contains("lies on timelines 1 and 2: 2 is followed"),
        "{:?}",
        plan.notes
    );

    // The old server's last bytes never came, but the new timeline repeats them.
    let known = [cluster(
        bases.clone(),
        vec![range(1, 0, 48), range(2, 48, 90)],
        histories.clone(),
    )];
    assert_eq!(survey(&known).windows.len(), 1);
    assert_eq!(planned(&known, &RecoveryTarget::Latest), (1, 2, 10, 90));

    // Without them there is a hole, and no way to the new timeline.
    let known = [cluster(bases, vec![range(1, 0, 47), range(2, 48, 90)], histories)];
    let latest = super::plan(&known, &RecoveryTarget::Latest, None).unwrap();
    assert_eq!((latest.timeline, latest.wal_to), (1, Lsn(47)));
    assert!(latest.notes[0].contains("make a base backup"), "{:?}", latest.notes);
    let unreached = survey(&known).unreached(SystemIdentifier(7)).unwrap();
    assert_eq!((unreached.timeline, unreached.to), (2, Lsn(90)));
    assert_eq!(survey(&known).windows[0].end, WindowEnd::Hole);
}

#[test]
fn the_latest_moment_is_not_guessed_where_a_newer_timeline_has_no_known_history() {
    let bases = vec![base(1, 1, 10, 20)];
    let ranges = vec![range(1, 0, 50), range(2, 48, 90)];
    let known = [cluster(bases.clone(), ranges.clone(), vec![])];
    let message = refused(&known, &RecoveryTarget::Latest);
    assert!(
        message.contains("WAL of timeline 2, whose history is not known"),
        "{message}"
    );
    assert!(message.contains("would end on timeline 1, at 0/32"), "{message}");
    // Who names the base backup, or a moment on the timeline that is known, is served.
    let named = plan(&known, &RecoveryTarget::Latest, Some(&bases[0].backup_id)).unwrap();
    assert_eq!((named.timeline, named.wal_to), (1, Lsn(50)));
    assert_eq!(planned(&known, &time(40)), (1, 1, 10, 50));
    let known = [cluster(bases.clone(), ranges.clone(), vec![history(2, &[(1, 50)])])];
    assert_eq!(planned(&known, &RecoveryTarget::Latest), (1, 2, 10, 90));
    // A base backup of the newer timeline needs none.
    let bases = vec![base(1, 1, 10, 20), base(2, 2, 60, 70)];
    let known = [cluster(bases, ranges, vec![])];
    assert_eq!(planned(&known, &RecoveryTarget::Latest), (2, 2, 60, 90));
}

#[test]
fn a_base_backup_of_a_branch_that_was_left_does_not_serve_the_new_timeline() {
    let bases = vec![base(1, 1, 10, 20), base(2, 1, 51, 55)];
    let histories = vec![history(2, &[(1, 50)])];
    let known = [cluster(bases, vec![range(1, 0, 57), range(2, 48, 90)], histories)];
    assert_eq!(planned(&known, &RecoveryTarget::Latest), (1, 2, 10, 90));
    assert_eq!(planned(&known, &time(80)), (1, 2, 10, 90));
}

#[test]
fn a_target_of_unknown_place_is_looked_for_in_all_of_the_newest_window() {
    let known = [cluster(
        vec![base(1, 1, 10, 20), base(2, 1, 50, 60)],
        vec![range(1, 0, 100)],
        vec![],
    )];
    for target in [RecoveryTarget::Xid(700), RecoveryTarget::Name("x".to_owned())] {
        assert_eq!(planned(&known, &target), (1, 1, 10, 100));
        let plan = plan(&known, &target, None).unwrap();
        assert!(plan.notes[0].contains("is not known"), "{:?}", plan.notes);
    }
}

#[test]
fn a_named_base_backup_is_taken_or_refused_for_what_it_lacks() {
    let bases = vec![base(1, 1, 10, 20), base(2, 1, 50, 60), base(3, 1, 95, 105)];
    let known = [cluster(bases.clone(), vec![range(1, 0, 100)], vec![])];
    let with = |number: usize, target: &RecoveryTarget| plan(&known, target, Some(&bases[number - 1].backup_id));
    assert_eq!(with(1, &time(90)).unwrap().wal_from, Lsn(10));
    assert_eq!(with(1, &RecoveryTarget::Immediate).unwrap().wal_to, Lsn(20));
    assert!(
        with(2, &time(30))
            .unwrap_err()
            .to_string()
            .contains("complete at 1970-01-01T00:01:00Z (0/3C)")
    );
    assert!(
        with(2, &time(300))
            .unwrap_err()
            .to_string()
            .contains("after the end of the WAL")
    );
    assert!(
        with(3, &RecoveryTarget::Latest)
            .unwrap_err()
            .to_string()
            .contains("from 0/5F to 0/69")
    );
    let unknown = base(9, 1, 0, 0).backup_id;
    assert!(matches!(
        plan(&known, &time(30), Some(&unknown)),
        Err(Refused::UnknownBase { .. })
    ));
}

#[test]
fn a_base_backup_that_did_not_verify_is_the_last_resort() {
    let mut bases = vec![base(1, 1, 10, 20), base(2, 1, 50, 60)];
    bases[1].proof = Proof::Failed;
    let known = [cluster(bases.clone(), vec![range(1, 0, 100)], vec![])];
    assert_eq!(planned(&known, &time(90)).0, 1);
    bases.remove(0);
    let known = [cluster(bases, vec![range(1, 0, 100)], vec![])];
    let plan = plan(&known, &time(90), None).unwrap();
    assert!(plan.notes[0].contains("did not pass"), "{:?}", plan.notes);
}

#[test]
fn a_clock_that_went_back_leaves_windows_of_no_negative_length() {
    let mut ranges = vec![range(1, 0, 100)];
    (ranges[0].first_time, ranges[0].last_time) = (at(0), at(5));
    let known = [cluster(vec![base(1, 1, 10, 20)], ranges, vec![])];
    let window = &survey(&known).windows[0];
    assert!(window.from.time <= window.to.time);
}

#[test]
fn a_cluster_made_anew_is_the_newest_and_the_old_ones_moments_can_still_be_had() {
    let old = cluster(vec![base(1, 3, 10, 20)], vec![range(3, 0, 100)], vec![]);
    let mut new = cluster(vec![base(2, 1, 210, 220)], vec![range(1, 200, 300)], vec![]);
    new.system_identifier = SystemIdentifier(8);
    let known = [new, old];
    assert_eq!(planned(&known, &RecoveryTarget::Latest).0, 2);
    assert_eq!(planned(&known, &time(50)).0, 1);
}

/// A cluster of up to three timelines, each of which left an earlier one, of whose WAL anything may be missing.
fn any_cluster() -> impl Strategy<Value = Cluster> {
    let switches = (20..60_u64, 30..90_u64, 1..3_u32);
    let ranges = prop::collection::vec((1..4_u32, 0..120_u64, 1..60_u64), 1..8);
    let bases = prop::collection::vec((1..4_u32, 0..100_u64, 0..20_u64), 0..5);
    (switches, ranges, bases).prop_map(|((second, third, parent), ranges, bases)| {
        let of_third = if parent == 1 {
            vec![(1, third)]
        } else {
            vec![(1, second), (2, third.max(second))]
        };
        let bases = bases.into_iter().zip(1..);
        cluster(
            bases
                .map(|((timeline, start, length), number)| base(number, timeline, start, start + length))
                .collect(),
            ranges
                .into_iter()
                .map(|(timeline, from, length)| range(timeline, from, from + length))
                .collect(),
            vec![history(2, &[(1, second)]), history(3, &of_third)],
        )
    })
}

/// Whether a server that follows `timeline` finds each byte from one place to another: it looks on the newest timeline
/// first that has the byte's segment.
fn is_found(cluster: &Cluster, timeline: u32, from: u64, to: u64) -> bool {
    let ancestors = cluster.histories.iter().find(|history| history.timeline == timeline);
    let ancestors = ancestors.map(|history| history.ancestors.clone()).unwrap_or_default();
    let begin_of = |index: usize| if index == 0 { 0 } else { ancestors[index - 1].at.0 };
    let mut legs: Vec<(u32, u64, u64)> = Vec::new();
    for (index, ancestor) in ancestors.iter().enumerate() {
        legs.push((ancestor.timeline, begin_of(index), ancestor.at.0));
    }
    legs.push((timeline, begin_of(ancestors.len()), u64::MAX));
    (from..to).all(|place| {
        legs.iter().any(|(timeline, begin, end)| {
            let first_segment = begin - begin % u64::from(SEGMENT);
            let is_held = |range: &WalRange| range.timeline == *timeline && range.from.0 <= place && place < range.to.0;
            first_segment <= place && place < *end && cluster.ranges.iter().any(is_held)
        })
    })
}

/// Whether a base backup lies on the way to a timeline.
fn is_on_way(cluster: &Cluster, base: &Base, timeline: u32) -> bool {
    let history = cluster.histories.iter().find(|history| history.timeline == timeline);
    let left = |history: &TimelineHistory| {
        history
            .ancestors
            .iter()
            .find(|a| a.timeline == base.facts.timeline)
            .map(|a| a.at)
    };
    base.facts.timeline == timeline || history.and_then(left).is_some_and(|left| base.facts.stop_lsn <= left)
}

proptest! {
    #[test]
    fn no_plan_ever_crosses_a_hole(cluster in any_cluster(), place in 0..160_u64) {
        let known = [cluster];
        let cluster = &known[0];
        for target in [lsn(place), time(place), RecoveryTarget::Latest, RecoveryTarget::Immediate, RecoveryTarget::Xid(3)] {
            let Ok(plan) = plan(&known, &target, None) else { continue };
            let base = cluster.bases.iter().find(|base| base.backup_id == plan.backup_id).unwrap();
            prop_assert_eq!(plan.wal_from, base.facts.start_lsn);
            prop_assert!(plan.wal_to >= base.facts.stop_lsn);
            prop_assert!(is_on_way(cluster, base, plan.timeline), "{:?}", plan);
            prop_assert!(is_found(cluster, plan.timeline, plan.wal_from.0, plan.wal_to.0), "{:?}", plan);
            if let RecoveryTarget::Time(time) = target {
                prop_assert!(base.facts.stopped_at <= time && time <= plan.window.to.time);
            }
        }
    }

    #[test]
    fn what_can_be_reached_is_never_refused(cluster in any_cluster(), place in 0..160_u64) {
        let known = [cluster];
        let cluster = &known[0];
        // The byte at the place must be there, on a timeline's own part, for anything to stop at it.
        let reaches = |timeline: u32| {
            let begin = cluster.histories.iter().find(|history| history.timeline == timeline)
                .and_then(|history| history.ancestors.last()).map_or(0, |ancestor| ancestor.at.0);
            begin <= place && cluster.bases.iter().any(|base| {
                is_on_way(cluster, base, timeline)
                    && base.facts.stop_lsn.0 <= place
                    && is_found(cluster, timeline, base.facts.start_lsn.0, place + 1)
                    && cluster.ranges.iter().any(|r| r.timeline == timeline && r.from.0 <= place && place < r.to.0)
            })
        };
        if (1..4).any(reaches) {
            prop_assert!(plan(&known, &lsn(place), None).is_ok(), "{}", refused(&known, &lsn(place)));
        }
    }

    #[test]
    fn windows_hold_what_they_say_and_holes_hold_nothing(cluster in any_cluster()) {
        let known = [cluster];
        let cluster = &known[0];
        let found = survey(&known);
        for window in &found.windows {
            let timeline = *window.timelines.last().unwrap();
            prop_assert!(is_found(cluster, timeline, window.from.lsn.0, window.to.lsn.0), "{:?}", window);
            prop_assert!(!is_found(cluster, timeline, window.to.lsn.0, window.to.lsn.0 + 1), "{:?}", window);
            prop_assert!(!window.bases.is_empty() && window.from.time <= window.to.time);
        }
        for base in &cluster.bases {
            let is_in_window = found.windows.iter().any(|window| window.bases.contains(&base.backup_id));
            prop_assert_eq!(is_in_window, !found.unusable.contains(&base.backup_id));
        }
        for gap in &found.gaps {
            prop_assert!(gap.from.lsn < gap.to.lsn);
            prop_assert!(!is_found(cluster, gap.timeline, gap.from.lsn.0, gap.to.lsn.0));
        }
    }
}
