//! What the catalog knows of WAL comes back from the vault: all of it, or the last piece that nobody could tell it of.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use chrono::{DateTime, Utc};
use serde_json::Value;
use strongroom_proto::wal::Lsn;
use strongroom_testkit::{wait_for, wait_for_async};
use strongroom_tests::clusters::{Recovered, TARGET, failed_over, protected, received, received_to, write_ledger};
use strongroom_tests::{COORDINATOR, DUMPER, Fleet, RESTORER, SOON};

fn timeline(fleet: &Fleet) -> Value {
    let told = fleet.strongroom(&["timeline", TARGET, "--json"]).unwrap();
    assert_eq!(told.code, 0, "{}", told.stderr);
    serde_json::from_str(&told.stdout).unwrap()
}

/// The windows, and apart from them when each seems to end.
fn windows(fleet: &Fleet) -> (Value, Vec<DateTime<Utc>>) {
    let mut windows = timeline(fleet)["windows"].take();
    let ends = windows.as_array_mut().unwrap().iter_mut();
    let ends = ends
        .map(|window| window["to"]["time"].take().as_str().unwrap().parse().unwrap())
        .collect();
    (windows, ends)
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_across_a_promotion_come_back_with_the_identity_when_the_catalog_is_lost() {
    let (primary, mut fleet) = protected(15).await;
    let before = write_ledger(&primary, 1, 10);
    let _standby = failed_over(&primary, &mut fleet);
    fleet.kill(DUMPER).unwrap();
    let killed_at = Utc::now();
    let (known, known_ends) = windows(&fleet);
    assert!(
        known_ends.iter().all(|end| *end <= killed_at),
        "{known_ends:?} {killed_at}"
    );
    assert_eq!(known[0]["timelines"], serde_json::json!([1, 2]), "{known}");
    fleet.lose_catalog().unwrap();

    // Where timelines part is sealed.
    let (code, rebuilt) = fleet.rebuild_catalog(&[]).unwrap();
    assert_eq!((code, &rebuilt["timelines"]), (0, &Value::from(0)), "{rebuilt}");
    assert!(rebuilt["wal_pieces"].as_u64().unwrap() > 0, "{rebuilt}");
    let identity = fleet.identity_file().display().to_string();
    let (code, rebuilt) = fleet.rebuild_catalog(&["--identity", &identity]).unwrap();
    assert_eq!((code, &rebuilt["timelines"]), (0, &Value::from(1)), "{rebuilt}");

    // Without a dumper: nothing comes from the server.
    for service in [COORDINATOR, RESTORER] {
        fleet.run(service).unwrap();
    }
    fleet.process(RESTORER).wait_for_line("worker ready", SOON).unwrap();
    wait_for_async("the API", SOON, || async { fleet.api.get("/health").await.ok() })
        .await
        .unwrap();
    let (shown, ends) = windows(&fleet);
    assert_eq!(shown, known);
    // By when the pieces were stored, until the stream goes on.
    assert!(ends.iter().all(|end| *end <= killed_at), "{ends:?} {killed_at}");
    for to in [&*before[4].lsn, "latest"] {
        let told = fleet.strongroom(&["restore", TARGET, "--to", to, "--preview"]).unwrap();
        assert_eq!(told.code, 0, "to {to}: {}", told.stderr);
        assert!(told.stdout.contains("bkp-"), "{}", told.stdout);
    }
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 20);
    assert_eq!(Recovered::restore(&fleet, &before[4].lsn).entries(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_the_catalog_was_not_told_of_is_found_when_a_dumper_starts() {
    let (source, mut fleet) = protected(15).await;
    write_ledger(&source, 1, 5);
    received(&fleet, &source);
    // The dumper goes on without the catalog, dies, and the server is lost as well: only the vault has these.
    fleet.catalog.kill().unwrap();
    write_ledger(&source, 6, 10);
    let end = source.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
    let end: Lsn = end.trim().parse().unwrap();
    wait_for_async("the piece in the vault", SOON, || async {
        let stored = fleet.vault().await.ok()?.stored_wal().await.ok()?;
        let mut pieces = stored.values().flatten();
        pieces.any(|piece| piece.to >= end).then_some(())
    })
    .await
    .unwrap();
    fleet.kill(DUMPER).unwrap();
    source.kill().unwrap();
    fleet.catalog.restart().unwrap();
    let untold = format!("SELECT count(*) FROM wal_ranges WHERE to_lsn >= '{end}'::pg_lsn");
    assert_eq!(fleet.sql(&untold).unwrap(), "0");

    fleet.run(DUMPER).unwrap();
    received_to(&fleet, &end.to_string());
    assert_eq!(
        fleet.sql("SELECT count(*) FROM wal_ranges").unwrap(),
        "1",
        "one range, no hole"
    );
    wait_for("the API to see it", SOON, || {
        (timeline(&fleet)["windows"][0]["to"]["lsn"] == end.to_string()).then_some(())
    })
    .unwrap();
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 10);
}
