//! What a fleet says of WAL that does not come, is lost, or is of another history: within a minute, with what to do, and
//! that it is over when it is.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use serde_json::Value;
use strongroom_testkit::{Postgres, wait_for, wait_for_async};
use strongroom_tests::clusters::{
    Recovered, Standby, TARGET, back_up, failed_over, give_to_owner_of, point_to, protected, received, received_to,
    write_ledger,
};
use strongroom_tests::{DUMPER, Fleet, SOON};

/// Whatever is wrong is told within so long.
const MINUTE: Duration = Duration::from_secs(60);

/// Waits for an alert as a subscriber meets it, at most a minute; what it says.
async fn told(fleet: &Fleet, kind: &str) -> String {
    event(fleet, kind, false).await
}

/// Waits until an alert is said to be over, at most a minute.
async fn over(fleet: &Fleet, kind: &str) {
    let message = event(fleet, kind, true).await;
    assert!(message.starts_with("resolved: "), "{message}");
    assert!(!active(fleet).contains(&kind.to_owned()), "{kind} is shown still");
}

async fn event(fleet: &Fleet, kind: &str, is_over: bool) -> String {
    let alerts = fleet.events("backup.alert");
    let what = format!("{kind}, {}", if is_over { "over" } else { "raised" });
    let event = wait_for_async(&what, MINUTE, || async {
        let mut all = alerts.all().await.ok()?.into_iter().rev();
        let last = all.find(|event| event["data"]["subject"] == kind)?;
        (last["data"]["resolved"].as_bool().unwrap_or(false) == is_over).then_some(last)
    })
    .await
    .unwrap();
    assert_eq!(event["data"]["targets"][0], TARGET, "{event}");
    event["data"]["message"].as_str().unwrap().to_owned()
}

fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

fn timeline(fleet: &Fleet) -> Value {
    let told = fleet.strongroom(&["timeline", TARGET, "--json"]).unwrap();
    assert_eq!(told.code, 0, "{}", told.stderr);
    serde_json::from_str(&told.stdout).unwrap()
}

/// The kinds of what is wrong now.
fn active(fleet: &Fleet) -> Vec<String> {
    let timeline = timeline(fleet);
    let alerts = timeline["alerts"].as_array().unwrap();
    let kinds = alerts.iter().map(|alert| alert["kind"].as_str().unwrap().to_owned());
    kinds.collect()
}

/// The server keeps at most so much for a slot, and nothing else that is old.
fn limit_slots(source: &Postgres, megabytes: u32) {
    let settings = [
        ("max_slot_wal_keep_size", format!("{megabytes}MB")),
        ("max_wal_size", "32MB".to_owned()),
        ("min_wal_size", "32MB".to_owned()),
    ];
    for (name, value) in settings {
        source
            .psql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"))
            .unwrap();
    }
    source.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    wait_for("the settings", SOON, || {
        (source.psql("postgres", "SHOW min_wal_size").ok()?.trim() == "32MB").then_some(())
    })
    .unwrap();
}

/// Begins so many segments.
fn switch_segments(source: &Postgres, count: u32) {
    for _ in 0..count {
        source
            .psql(
                "postgres",
                "SELECT pg_logical_emit_message(false, 'a', 'b'); SELECT pg_switch_wal()",
            )
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_dumper_is_told_and_the_hole_it_leaves_is_mended_by_a_base_backup_that_nobody_asked_for() {
    let (source, mut fleet) = protected(15).await;
    limit_slots(&source, 48);
    let before = write_ledger(&source, 1, 5);
    received(&fleet, &source);
    // A lease that has not run out delays nothing.
    fleet.kill(DUMPER).unwrap();
    fleet.set("worker.lease_seconds", "30");
    fleet.run(DUMPER).unwrap();
    write_ledger(&source, 6, 10);
    received(&fleet, &source);
    assert_eq!(active(&fleet), [""; 0]);
    fleet.kill(DUMPER).unwrap();
    let message = told(&fleet, "wal_receiver_gone").await;
    says(
        &message,
        &["no dumper of pool default", "slot strongroom_cluster", "start a dumper"],
    );
    assert_eq!(active(&fleet), ["wal_receiver_gone"]);

    // The server gives the slot up, and what was written meanwhile is gone.
    write_ledger(&source, 11, 15);
    switch_segments(&source, 8);
    wait_for("the loss of the slot", SOON, || {
        source.psql("postgres", "CHECKPOINT").ok()?;
        let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots";
        (source.psql("postgres", lost).ok()?.trim() == "t").then_some(())
    })
    .unwrap();
    let jobs = "SELECT count(*) FROM backup_jobs WHERE kind = 'backup'";
    assert_eq!(fleet.sql(jobs).unwrap(), "1");
    fleet.run(DUMPER).unwrap();
    says(
        &told(&fleet, "wal_slot_lost").await,
        &["strongroom_cluster was lost", "max_slot_wal_keep_size"],
    );
    says(
        &told(&fleet, "wal_missing").await,
        &["no longer had its WAL", "nothing between can be recovered"],
    );
    // What was written after the hole shows that there is one.
    write_ledger(&source, 16, 20);
    over(&fleet, "wal_receiver_gone").await;
    for kind in ["wal_slot_lost", "wal_missing", "wal_gap"] {
        over(&fleet, kind).await;
    }
    assert_eq!(fleet.sql(jobs).unwrap(), "2", "the base backup that nobody asked for");
    assert_eq!(active(&fleet), [""; 0]);
    received(&fleet, &source);
    let shown = timeline(&fleet);
    assert_eq!(shown["windows"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(shown["gaps"].as_array().unwrap().len(), 1, "{shown}");
    let gap_told = shown["annotations"].as_array().unwrap().iter();
    let gap_told = gap_told
        .filter(|note| note["source"] == "wal_gap")
        .map(|note| note["text"].as_str().unwrap());
    says(
        &gap_told.collect::<Vec<_>>().join("; "),
        &["a new base backup", "was asked for"],
    );
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 20);
    assert_eq!(Recovered::restore(&fleet, &before[2].lsn).entries(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_takes_no_wal_is_told_before_the_slot_is_lost() {
    let (source, fleet) = protected(15).await;
    limit_slots(&source, 160);
    write_ledger(&source, 1, 5);
    received(&fleet, &source);
    let (folder, away) = (fleet.vault_dir().join("wal"), fleet.dir().join("wal-away"));
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "not a folder").unwrap();
    switch_segments(&source, 6);
    write_ledger(&source, 6, 10);
    let message = told(&fleet, "wal_behind").await;
    says(
        &message,
        &[
            "MiB of WAL for slot strongroom_cluster",
            "MiB more the slot is lost",
            "pg_drop_replication_slot",
        ],
    );
    let message = told(&fleet, "wal_not_received").await;
    says(&message, &["WAL of cluster has not been received for", "until it is"]);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    for kind in ["wal_behind", "wal_not_received"] {
        over(&fleet, kind).await;
    }
    received(&fleet, &source);
    assert_eq!(active(&fleet), [""; 0]);
    assert_eq!(timeline(&fleet)["windows"].as_array().unwrap().len(), 1);
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_timeline_are_told_apart_and_the_first_ones_wal_stays() {
    let (primary, mut fleet) = protected(15).await;
    write_ledger(&primary, 1, 5);
    let (first, second) = (Standby::follow(&primary, 15), Standby::follow(&primary, 15));
    received_to(&fleet, &first.caught_up(&primary));
    first.promote();
    first.ask("INSERT INTO ledger SELECT n, 'first' FROM generate_series(6, 10) n");
    // The other one leaves timeline 1 later.
    primary
        .psql(
            "postgres",
            "INSERT INTO ledger SELECT n, 'old' FROM generate_series(6, 20) n",
        )
        .unwrap();
    second.caught_up(&primary);
    primary.kill().unwrap();
    second.promote();

    point_to(&mut fleet, &first.url());
    let end = first.ask("SELECT pg_current_wal_flush_lsn()");
    on_timeline_2(&fleet, &end);
    point_to(&mut fleet, &second.url());
    let message = told(&fleet, "wal_two_histories").await;
    says(
        &message,
        &["went on upon timeline 2, from different places", "stop the other"],
    );
    second.ask("INSERT INTO ledger VALUES (100, 'second')");

    // Back to the right one.
    point_to(&mut fleet, &first.url());
    first.ask("INSERT INTO ledger VALUES (11, 'first')");
    let end = first.ask("SELECT pg_current_wal_flush_lsn()");
    on_timeline_2(&fleet, &end);
    back_up(&fleet, "full").await;
    over(&fleet, "wal_two_histories").await;
    let recovered = Recovered::restore(&fleet, "latest");
    assert_eq!(recovered.entries(), 11);
    assert_eq!(recovered.ask("SELECT count(*) FROM ledger WHERE filler = 'first'"), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_under_a_stream_is_told_until_the_next_base_backup() {
    let (source, fleet) = protected(15).await;
    write_ledger(&source, 1, 5);
    received(&fleet, &source);
    // The server comes back as a standby of nobody, is followed, and promoted.
    source.kill().unwrap();
    let signal = source.data_dir().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    give_to_owner_of(&source.data_dir(), &signal);
    source.restart().unwrap();
    wait_for("the dumper's return", SOON, || {
        let followed = source.psql("postgres", "SELECT active FROM pg_replication_slots");
        (followed.ok()?.trim() == "t").then_some(())
    })
    .unwrap();
    source.psql("postgres", "SELECT pg_promote()").unwrap();
    let message = told(&fleet, "wal_timeline").await;
    says(
        &message,
        &["left timeline 1", "goes on upon 2", "a standby was promoted"],
    );
    assert_eq!(active(&fleet), ["wal_timeline"]);
    write_ledger(&source, 6, 10);
    let end = source.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
    on_timeline_2(&fleet, end.trim());
    back_up(&fleet, "full").await;
    over(&fleet, "wal_timeline").await;
    assert_eq!(active(&fleet), [""; 0]);
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_drops_is_an_alert_until_the_next_base_backup_though_no_wal_went_with_it() {
    let (source, fleet) = protected(15).await;
    write_ledger(&source, 1, 5);
    received(&fleet, &source);
    wait_for("the slot to be free", SOON, || {
        let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
        source.psql("postgres", end).ok()?;
        source
            .psql("postgres", "SELECT pg_drop_replication_slot('strongroom_cluster')")
            .ok()
    })
    .unwrap();
    says(
        &told(&fleet, "wal_slot_lost").await,
        &["strongroom_cluster was lost", "no such slot", "see who dropped it"],
    );
    write_ledger(&source, 6, 10);
    received(&fleet, &source);
    assert_eq!(active(&fleet), ["wal_slot_lost"], "WAL that comes does not end it");
    back_up(&fleet, "full").await;
    over(&fleet, "wal_slot_lost").await;
    assert_eq!(active(&fleet), [""; 0]);
    assert_eq!(timeline(&fleet)["windows"].as_array().unwrap().len(), 1);
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_no_wal_is_no_alert_of_a_lost_slot() {
    let (primary, mut fleet) = protected(15).await;
    write_ledger(&primary, 1, 10);
    let standby = failed_over(&primary, &mut fleet);
    // Told after whatever else there is to tell of a server that has no slot.
    told(&fleet, "wal_timeline").await;
    assert_eq!(active(&fleet), ["wal_timeline"]);
    let lost = "SELECT count(*) FROM alerts WHERE kind = 'wal_slot_lost'";
    assert_eq!(fleet.sql(lost).unwrap(), "0");
    let said = fleet.process(DUMPER).wait_for_line("slot was made anew", SOON).unwrap();
    says(&said, &["strongroom_cluster", "the server still had all WAL"]);
    assert_eq!(standby.ask("SELECT count(*) FROM pg_replication_slots"), "1");
    let shown = timeline(&fleet);
    assert_eq!(shown["windows"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_lost_wal_is_an_alert_until_a_base_backup_is_complete() {
    let (primary, mut fleet) = protected(15).await;
    limit_slots(&primary, 48);
    write_ledger(&primary, 1, 5);
    let standby = Standby::follow(&primary, 15);
    received(&fleet, &primary);
    fleet.kill(DUMPER).unwrap();
    write_ledger(&primary, 6, 10);
    let end = standby.caught_up(&primary);
    let segment = primary
        .psql("postgres", &format!("SELECT pg_walfile_name('{end}')"))
        .unwrap();
    primary.kill().unwrap();
    standby.promote();
    // Nothing keeps there what the vault lacks.
    wait_for("the end of the old WAL", SOON, || {
        standby.ask("SELECT pg_logical_emit_message(false, 'a', 'b'); SELECT pg_switch_wal()");
        standby.ask("CHECKPOINT");
        let is_gone = format!(
            "SELECT count(*) = 0 FROM pg_ls_waldir() WHERE name = '{}'",
            segment.trim()
        );
        (standby.ask(&is_gone) == "t").then_some(())
    })
    .unwrap();
    point_to(&mut fleet, &standby.url());
    let message = told(&fleet, "wal_slot_lost").await;
    says(&message, &["strongroom_cluster was lost", "no such slot"]);
    standby.ask("INSERT INTO ledger VALUES (11, 'after')");
    for kind in ["wal_slot_lost", "wal_missing", "wal_gap"] {
        over(&fleet, kind).await;
    }
    let stood = "SELECT count(*) FROM alerts a JOIN backup_jobs j ON j.kind = 'backup' AND j.started_at BETWEEN a.raised_at AND a.cleared_at
                 WHERE a.kind = 'wal_slot_lost'";
    assert_eq!(fleet.sql(stood).unwrap(), "1", "it stood until the new base backup");
    let committed = "SELECT count(*) FROM alerts a JOIN receipts r ON r.kind = 'backup'
                         AND (r.body->>'completed_at')::timestamptz BETWEEN a.raised_at AND a.cleared_at
                     WHERE a.kind = 'wal_slot_lost'";
    assert_eq!(fleet.sql(committed).unwrap(), "1", "which has its receipt");
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 11);
}

/// Waits until the vault has timeline 2 up to there.
fn on_timeline_2(fleet: &Fleet, end: &str) {
    wait_for("WAL of timeline 2", SOON, || {
        let query = format!("SELECT count(*) FROM wal_ranges WHERE timeline = 2 AND to_lsn >= '{end}'::pg_lsn");
        (fleet.sql(&query).ok()? != "0").then_some(())
    })
    .unwrap();
}
