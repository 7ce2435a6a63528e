//! What the catalog keeps for point-in-time recovery: WAL without holes, who receives it, alerts and annotations.

use chrono::{DateTime, Duration, Utc};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use strongroom_catalog::{Catalog, LeaseState, WalNews, WalProgress};
use strongroom_proto::timeline::{Annotation, AnnotationKind};
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, TimelineHistory, WalRange};
use strongroom_proto::{Sha256Digest, TargetName, VaultId};
use strongroom_testkit::Postgres;

use crate::asked::catalog;

const SYSTEM: SystemIdentifier = SystemIdentifier(u64::MAX);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + Duration::seconds(seconds)
}

fn range(timeline: u32, from: u64, to: u64, seconds: i64) -> WalRange {
    WalRange {
        timeline,
        from: Lsn(from),
        to: Lsn(to),
        first_time: at(seconds),
        last_time: at(seconds),
    }
}

fn target(name: &str) -> TargetName {
    name.parse().unwrap()
}

/// What a bitmap of places says the ranges are.
fn of_bitmap(held: &[bool]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (place, _) in held.iter().enumerate().filter(|(_, held)| **held) {
        let place = place as u64;
        match ranges.last_mut() {
            Some(last) if last.1 == place => last.1 = place + 1,
            _ => ranges.push((place, place + 1)),
        }
    }
    ranges
}

#[test]
fn wal_added_in_any_order_is_held_as_a_bitmap_would_hold_it() {
    const PLACES: usize = 40;
    let server = Postgres::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let catalog = runtime.block_on(catalog(&server));
    let vault = VaultId::fresh();
    let mut runner = TestRunner::new(Config {
        cases: 30,
        failure_persistence: None,
        ..Config::default()
    });
    let system = std::cell::Cell::new(0_u64);
    let ops = prop::collection::vec((1..3_u32, 0..PLACES, 0..8_usize, 0..1000_i64), 1..25);
    runner
        .run(&ops, |ops| {
            // Each case has a cluster of its own, so that they do not meet.
            system.set(system.get() + 1);
            let system = SystemIdentifier(system.get());
            let mut held = [[false; PLACES]; 2];
            let mut times = [[None::<(i64, i64)>; PLACES]; 2];
            runtime.block_on(async {
                for (timeline, from, length, seconds) in ops {
                    let to = (from + length).min(PLACES);
                    let added = range(timeline, from as u64, to as u64, seconds);
                    catalog.add_wal(vault, system, &added).await.unwrap();
                    for place in from..to {
                        held[timeline as usize - 1][place] = true;
                        let seen = &mut times[timeline as usize - 1][place];
                        let (first, last) = seen.unwrap_or((seconds, seconds));
                        *seen = Some((first.min(seconds), last.max(seconds)));
                    }
                }
                let ranges = catalog.wal_ranges(vault, system).await.unwrap();
                for timeline in [1, 2] {
                    let index = timeline as usize - 1;
                    let found: Vec<_> = ranges.iter().filter(|range| range.timeline == timeline).collect();
                    let places: Vec<_> = found.iter().map(|range| (range.from.0, range.to.0)).collect();
                    assert_eq!(places, of_bitmap(&held[index]));
                    for range in found {
                        let within = times[index][range.from.0 as usize..range.to.0 as usize]
                            .iter()
                            .flatten();
                        let first = within.clone().map(|(first, _)| *first).min().unwrap();
                        let last = within.map(|(_, last)| *last).max().unwrap();
                        assert_eq!((range.first_time, range.last_time), (at(first), at(last)));
                    }
                }
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn writers_of_one_timeline_at_once_leave_one_range() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let vault = VaultId::fresh();
    let mut tasks = tokio::task::JoinSet::new();
    for piece in 0..40_u64 {
        let catalog = catalog.clone();
        let added = range(1, piece * 10, piece * 10 + 10, i64::try_from(piece).unwrap());
        tasks.spawn(async move { catalog.add_wal(vault, SYSTEM, &added).await.unwrap() });
    }
    tasks.join_all().await;
    let ranges = catalog.wal_ranges(vault, SYSTEM).await.unwrap();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert_eq!((ranges[0].from, ranges[0].to), (Lsn(0), Lsn(400)));
    assert_eq!((ranges[0].first_time, ranges[0].last_time), (at(0), at(39)));
}

#[tokio::test]
async fn an_idle_range_lasts_and_nothing_else_does() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let vault = VaultId::fresh();
    catalog.add_wal(vault, SYSTEM, &range(1, 0, 100, 10)).await.unwrap();
    catalog.add_wal(vault, SYSTEM, &range(1, 200, 300, 20)).await.unwrap();
    assert!(catalog.touch_wal(vault, SYSTEM, 1, Lsn(300), at(99)).await.unwrap());
    // A clock that went back takes nothing away.
    assert!(catalog.touch_wal(vault, SYSTEM, 1, Lsn(300), at(5)).await.unwrap());
    assert!(!catalog.touch_wal(vault, SYSTEM, 1, Lsn(301), at(99)).await.unwrap());
    assert!(
        !catalog
            .touch_wal(VaultId::fresh(), SYSTEM, 1, Lsn(300), at(99))
            .await
            .unwrap()
    );
    let lasts: Vec<_> = catalog.wal_ranges(vault, SYSTEM).await.unwrap();
    let lasts: Vec<_> = lasts.iter().map(|range| range.last_time).collect();
    assert_eq!(lasts, [at(10), at(99)]);
}

#[tokio::test]
async fn a_lost_catalog_is_refilled_from_the_names_of_pieces() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let vault = VaultId::fresh();
    let piece = |timeline, from, to, seconds| StoredPiece {
        timeline,
        from: Lsn(from),
        to: Lsn(to),
        sha256: Sha256Digest::from_bytes([7; 32]),
        stored_at: at(seconds),
    };
    let pieces = [
        piece(1, 50, 90, 3),
        piece(1, 0, 50, 1),
        piece(1, 95, 99, 4),
        piece(2, 90, 95, 5),
    ];
    for _ in 0..2 {
        catalog.add_stored_wal(vault, SYSTEM, &pieces).await.unwrap();
        let ranges = catalog.wal_ranges(vault, SYSTEM).await.unwrap();
        let found: Vec<_> = ranges
            .iter()
            .map(|r| (r.timeline, r.from.0, r.to.0, r.last_time))
            .collect();
        // What was written when the second piece was stored may not be in either.
        assert_eq!(found, [(1, 0, 90, at(1)), (1, 95, 99, at(4)), (2, 90, 95, at(5))]);
    }
}

#[tokio::test]
async fn the_first_history_of_a_timeline_stays_and_another_is_seen() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let vault = VaultId::fresh();
    let one = TimelineHistory::parse(2, "1\t0/5000\tno reason\n").unwrap();
    let other = TimelineHistory::parse(2, "1\t0/6000\tno reason\n").unwrap();
    assert_eq!(catalog.add_wal_history(vault, SYSTEM, &one).await.unwrap(), one);
    assert_eq!(catalog.add_wal_history(vault, SYSTEM, &one).await.unwrap(), one);
    assert_eq!(catalog.add_wal_history(vault, SYSTEM, &other).await.unwrap(), one);
    assert_eq!(catalog.wal_histories(vault, SYSTEM).await.unwrap(), [one]);
    assert_eq!(catalog.wal_histories(vault, SystemIdentifier(1)).await.unwrap(), []);
}

#[tokio::test]
async fn of_two_receivers_one_holds_the_stream_and_the_fenced_one_learns_it() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let (vault, db) = (VaultId::fresh(), target("db"));
    let first = catalog
        .claim_wal_stream(&db, vault, Some("s"), "w1", 60)
        .await
        .unwrap()
        .unwrap();
    // Nor does another process of the same name get it.
    for worker in ["w2", "w1"] {
        let refused = catalog
            .claim_wal_stream(&db, vault, Some("s"), worker, 60)
            .await
            .unwrap();
        assert_eq!(refused, None);
    }
    let progress = WalProgress {
        system_identifier: SYSTEM,
        timeline: 3,
        received_to: Lsn(0xA_0000_0001),
        server_time: Some(at(7)),
        behind_bytes: Some(5),
        news: WalNews::Progressed,
    };
    let held = catalog.renew_wal_stream(&first, 60, Some(&progress)).await.unwrap();
    assert_eq!(held, LeaseState::Held);
    catalog.fail_wal_stream(&first, "no route\0 to host").await.unwrap();
    let seen = catalog.wal_stream(&db).await.unwrap().unwrap();
    assert_eq!((seen.vault, seen.view.system_identifier), (vault, Some(SYSTEM)));
    assert_eq!(
        (seen.view.timeline, seen.view.received_to),
        (Some(3), Some(progress.received_to))
    );
    assert_eq!(seen.view.last_error.as_deref(), Some("no route to host"));
    assert_eq!(seen.view.holder.as_deref(), Some("w1"));
    catalog.renew_wal_stream(&first, 60, Some(&progress)).await.unwrap();
    assert_eq!(catalog.wal_stream(&db).await.unwrap().unwrap().view.last_error, None);

    server
        .psql(
            "catalog",
            "UPDATE wal_streams SET lease_until = now() - interval '1 second'",
        )
        .unwrap();
    assert_eq!(catalog.wal_stream(&db).await.unwrap().unwrap().view.holder, None);
    let second = catalog
        .claim_wal_stream(&db, vault, Some("s"), "w1", 60)
        .await
        .unwrap()
        .unwrap();
    let lost = catalog.renew_wal_stream(&first, 60, Some(&progress)).await.unwrap();
    assert_eq!(lost, LeaseState::Lost);
    assert_eq!(catalog.fail_wal_stream(&first, "late").await.unwrap(), LeaseState::Lost);
    // A late release gives nothing away that is another's.
    catalog.release_wal_stream(&first).await.unwrap();
    assert_eq!(
        catalog.claim_wal_stream(&db, vault, None, "w3", 60).await.unwrap(),
        None
    );
    assert_eq!(
        catalog.renew_wal_stream(&second, 60, None).await.unwrap(),
        LeaseState::Held
    );
    catalog.release_wal_stream(&second).await.unwrap();
    let moved = VaultId::fresh();
    assert!(
        catalog
            .claim_wal_stream(&db, moved, None, "w3", 60)
            .await
            .unwrap()
            .is_some()
    );
    let seen = &catalog.wal_streams().await.unwrap()[0];
    assert_eq!(
        (seen.vault, seen.view.received_to),
        (moved, None),
        "what another vault holds says nothing"
    );
}

async fn alerts_sent(catalog: &Catalog) -> Vec<(String, bool)> {
    let mut seen = Vec::new();
    catalog
        .relay_outbox(1000, async |messages| {
            for message in messages.iter().filter(|m| m.subject == "backup.alert") {
                let resolved = message.body.get("resolved").and_then(serde_json::Value::as_bool);
                seen.push((
                    message.body["message"].as_str().unwrap().to_owned(),
                    resolved.unwrap_or(false),
                ));
            }
            vec![true; messages.len()]
        })
        .await
        .unwrap();
    seen
}

#[tokio::test]
async fn an_alert_is_announced_once_until_it_is_resolved_and_then_again() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let (db, other) = (target("db"), target("other"));
    assert!(
        catalog
            .raise_alert(&db, "wal_slot_lost", "make a slot\0")
            .await
            .unwrap()
    );
    assert!(
        !catalog
            .raise_alert(&db, "wal_slot_lost", "make a slot now")
            .await
            .unwrap()
    );
    assert!(catalog.raise_alert(&db, "wal_behind", "behind").await.unwrap());
    assert!(catalog.raise_alert(&other, "wal_slot_lost", "another's").await.unwrap());
    let sent = alerts_sent(&catalog).await;
    assert_eq!(
        sent,
        [
            ("make a slot".to_owned(), false),
            ("behind".to_owned(), false),
            ("another's".to_owned(), false)
        ]
    );
    let active = catalog.active_alerts(Some(&db)).await.unwrap();
    let active: Vec<_> = active
        .iter()
        .map(|(_, alert)| (alert.kind.as_str(), alert.message.as_str()))
        .collect();
    assert_eq!(active, [("wal_slot_lost", "make a slot now"), ("wal_behind", "behind")]);

    assert!(catalog.clear_alert(&db, "wal_slot_lost").await.unwrap());
    assert!(!catalog.clear_alert(&db, "wal_slot_lost").await.unwrap());
    assert_eq!(
        alerts_sent(&catalog).await,
        [("resolved: make a slot now".to_owned(), true)]
    );
    assert!(catalog.raise_alert(&db, "wal_slot_lost", "again").await.unwrap());
    assert_eq!(alerts_sent(&catalog).await, [("again".to_owned(), false)]);
    assert_eq!(catalog.active_alerts(None).await.unwrap().len(), 3);
    let texts: Vec<_> = catalog.annotations(&db, 10).await.unwrap();
    let texts: Vec<_> = texts.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(texts, ["make a slot", "behind", "resolved: make a slot now", "again"]);
}

#[tokio::test]
async fn an_annotation_with_a_key_is_written_once_and_the_last_ones_are_listed_in_order() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let db = target("db");
    let note = |text: &str, seconds| Annotation {
        at: at(seconds),
        kind: AnnotationKind::Deploy,
        text: text.to_owned(),
        source: "scenario.deployed".to_owned(),
    };
    for _ in 0..2 {
        catalog
            .annotate(&db, &note("v2", 20), Some("trigger/db"))
            .await
            .unwrap();
    }
    catalog
        .annotate(&db, &note("name\nwith a line", 10), None)
        .await
        .unwrap();
    catalog.annotate(&target("other"), &note("x", 10), None).await.unwrap();
    let listed = catalog.annotations(&db, 10).await.unwrap();
    assert_eq!(listed, [note("name\nwith a line", 10), note("v2", 20)]);
    assert_eq!(catalog.annotations(&db, 1).await.unwrap(), [note("v2", 20)]);
}

#[tokio::test]
async fn neither_a_claim_nor_a_server_that_was_reached_is_progress() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let (vault, db) = (VaultId::fresh(), target("db"));
    let claim = async |vault| {
        let claim = catalog.claim_wal_stream(&db, vault, Some("s"), "w1", 60).await;
        claim.unwrap().unwrap()
    };
    let seen = async || catalog.wal_stream(&db).await.unwrap().unwrap();
    let first = claim(vault).await;
    let reached = WalProgress {
        system_identifier: SYSTEM,
        timeline: 1,
        received_to: Lsn(7),
        server_time: None,
        behind_bytes: None,
        news: WalNews::None,
    };
    catalog.fail_wal_stream(&first, "no answer").await.unwrap();
    catalog.renew_wal_stream(&first, 60, Some(&reached)).await.unwrap();
    let stream = seen().await;
    assert_eq!((stream.progressed_at, stream.progressed_in_claim), (None, false));
    assert_eq!(stream.view.received_to, Some(Lsn(7)));
    assert_eq!(stream.view.server_time, None);
    assert_eq!(stream.view.last_error.as_deref(), Some("no answer"));

    let progressed = WalProgress {
        server_time: Some(at(7)),
        news: WalNews::Progressed,
        ..reached
    };
    catalog.renew_wal_stream(&first, 60, Some(&progressed)).await.unwrap();
    let stream = seen().await;
    assert!(stream.progressed_in_claim);
    assert_eq!(stream.view.last_error, None);
    let progressed_at = stream.progressed_at.unwrap();
    catalog.renew_wal_stream(&first, 60, Some(&reached)).await.unwrap();
    catalog.fail_wal_stream(&first, "gone").await.unwrap();
    catalog.release_wal_stream(&first).await.unwrap();
    assert!(!seen().await.progressed_in_claim, "nobody has a claim");

    let second = claim(vault).await;
    catalog.renew_wal_stream(&second, 60, Some(&reached)).await.unwrap();
    let stream = seen().await;
    assert_eq!(
        (stream.progressed_at, stream.progressed_in_claim),
        (Some(progressed_at), false)
    );
    assert_eq!(stream.view.last_error.as_deref(), Some("gone"));
    assert_eq!(
        stream.view.server_time,
        Some(at(7)),
        "what is not known takes nothing back"
    );
    catalog.renew_wal_stream(&second, 60, Some(&progressed)).await.unwrap();
    let stream = seen().await;
    assert!(stream.progressed_in_claim && stream.progressed_at > Some(progressed_at));
    catalog.release_wal_stream(&second).await.unwrap();
    claim(VaultId::fresh()).await;
    assert_eq!(seen().await.progressed_at, None, "another vault has nothing");
}
