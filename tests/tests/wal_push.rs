//! A server that archives by itself, without knowing of the catalog: base backups, windows and recoveries by what the vault
//! holds.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use strongroom_proto::wal::Lsn;
use strongroom_testkit::{Postgres, bin, wait_for, wait_for_async};
use strongroom_tests::clusters::{Recovered, TARGET, back_up, give_to_owner_of, restore, write_ledger};
use strongroom_tests::{DUMPER, Fleet, SOON};

/// The dumper looks into the vault every half minute; a moment that it asks the server for counts at the next look.
const AFTER_A_LOOK: Duration = Duration::from_secs(120);

/// A server that pushes its WAL a second after it was written, and a fleet that is told of it by nobody.
async fn pushing() -> (Postgres, Fleet) {
    let bin_dir = Postgres::start().unwrap().bin_dir().to_owned();
    let settings = [("fsync", "off"), ("archive_mode", "on"), ("archive_timeout", "1s")];
    let source = Postgres::start_with(&bin_dir, &settings).unwrap();
    source
        .psql(
            "postgres",
            "CREATE TABLE ledger (n int PRIMARY KEY, filler text); CREATE TABLE beat (n int)",
        )
        .unwrap();
    let mut fleet = Fleet::prepare().await.unwrap();
    fleet.set("worker.pg_bin_dirs", bin_dir.display().to_string());
    let url = source.url("postgres");
    fleet.target(format!(
        "  {TARGET}:\n    kind: postgres\n    method: physical_basebackup\n    wal: push\n    url: '{url}'"
    ));
    archive(&source, &fleet);
    fleet.run_all().await.unwrap();
    (source, fleet)
}

/// Has the server run `wal push`, with what its user may read and write.
fn archive(source: &Postgres, fleet: &Fleet) {
    let folder = fleet.dir().join("push");
    std::fs::create_dir(&folder).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (from, to) in [("writer.key", "writer.key"), ("signing-dumper.key", "signing.key")] {
        std::fs::copy(fleet.dir().join("keys").join(from), folder.join(to)).unwrap();
    }
    std::fs::copy(bin("strongroom").unwrap(), folder.join("strongroom")).unwrap();
    let system = source
        .psql("postgres", "SELECT system_identifier FROM pg_control_system()")
        .unwrap();
    let settings = json!({
        "store": text(&fleet.vault_dir()), "writer_key_file": text(&folder.join("writer.key")),
        "signing_key_file": text(&folder.join("signing.key")), "system_identifier": system.trim(),
    });
    let from = folder.join("push.json");
    std::fs::write(&from, settings.to_string()).unwrap();
    std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o600)).unwrap();
    for folder in [&folder, &fleet.vault_dir()] {
        give_to_owner_of(&source.data_dir(), folder);
    }
    let command = format!(
        "{} wal push --from {} \"%p\"",
        folder.join("strongroom").display(),
        from.display()
    );
    source
        .psql("postgres", &format!("ALTER SYSTEM SET archive_command = '{command}'"))
        .unwrap();
    source.psql("postgres", "SELECT pg_reload_conf()").unwrap();
}

fn timeline(fleet: &Fleet) -> Value {
    let told = fleet.strongroom(&["timeline", TARGET, "--json"]).unwrap();
    assert_eq!(told.code, 0, "{}", told.stderr);
    serde_json::from_str(&told.stdout).unwrap()
}

/// Where the only window ends.
fn end(shown: &Value) -> (Lsn, DateTime<Utc>) {
    let windows = shown["windows"].as_array().unwrap();
    assert_eq!(windows.len(), 1, "{shown}");
    let part = |name: &str| windows[0]["to"][name].as_str().unwrap().to_owned();
    (part("lsn").parse().unwrap(), part("time").parse().unwrap())
}

/// Ends the segment that is written to, and waits until the vault has all of it.
async fn switched(source: &Postgres, fleet: &Fleet) -> Lsn {
    let switch = "SELECT pg_logical_emit_message(false, 'a', 'b'); SELECT pg_switch_wal()";
    let end = source.psql("postgres", switch).unwrap();
    let end: Lsn = end.lines().last().unwrap().parse().unwrap();
    wait_for_async("the segment in the vault", SOON, || async {
        let stored = fleet.vault().await.ok()?.stored_wal().await.ok()?;
        stored.values().flatten().any(|piece| piece.to >= end).then_some(())
    })
    .await
    .unwrap();
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_pushes_without_telling_anybody_is_recovered_and_a_false_hole_is_closed() {
    let (source, mut fleet) = pushing().await;
    back_up(&fleet, "full").await;
    let (begin, _) = end(&timeline(&fleet));

    // The window grows, by place and by the clock.
    let moments = write_ledger(&source, 1, 5);
    let (chosen, last) = (&moments[2], &moments[4]);
    let wanted: (Lsn, DateTime<Utc>) = (last.lsn.parse().unwrap(), last.time.parse().unwrap());
    let mut beats = 0;
    let (to, until) = wait_for("the window to grow", AFTER_A_LOOK, || {
        // Something to archive, a second later.
        beats += 1;
        source
            .psql("postgres", &format!("INSERT INTO beat VALUES ({beats})"))
            .ok()?;
        let (to, until) = end(&timeline(&fleet));
        (to >= wanted.0 && until >= wanted.1).then_some((to, until))
    })
    .unwrap();
    assert!(to > begin);
    assert_eq!(Recovered::restore(&fleet, &chosen.time).entries(), 3);
    assert_eq!(Recovered::restore(&fleet, &chosen.lsn).entries(), 3);
    // So far, and no further: the bounds are those of what is there.
    assert_eq!(Recovered::restore(&fleet, &until.to_rfc3339()).entries(), 5);
    let beyond = until + chrono::TimeDelta::hours(1);
    let refused = restore(&fleet, &beyond.to_rfc3339(), &fleet.dir().join("beyond"), &[]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains(&to.to_string()), "{}", refused.stderr);

    // A push that could tell, after some that could not: as the catalog sees it, there is a hole.
    fleet.kill(DUMPER).unwrap();
    write_ledger(&source, 6, 10);
    let untold = switched(&source, &fleet).await;
    let told = switched(&source, &fleet).await;
    let found = fleet.vault().await.unwrap().stored_wal().await.unwrap();
    let piece = found.values().flatten().find(|piece| piece.to >= told).unwrap();
    assert!(piece.from >= untold, "{untold} {piece:?}");
    fleet
        .sql(&format!(
            "INSERT INTO wal_ranges (vault_id, system_identifier, timeline, from_lsn, to_lsn, first_time, last_time)
             SELECT vault_id, system_identifier, timeline, '{}', '{}', now(), now() FROM wal_ranges LIMIT 1",
            piece.from, piece.to
        ))
        .unwrap();
    let alerts = || timeline(&fleet)["alerts"].to_string();
    wait_for("the alert", SOON, || alerts().contains("wal_gap").then_some(())).unwrap();
    fleet.run(DUMPER).unwrap();
    wait_for("the end of the alert", AFTER_A_LOOK, || {
        (!timeline(&fleet)["alerts"].to_string().contains("wal_gap")).then_some(())
    })
    .unwrap();
    wait_for("one window", AFTER_A_LOOK, || {
        let shown = timeline(&fleet);
        (shown["windows"].as_array()?.len() == 1 && end(&shown).0 >= told).then_some(())
    })
    .unwrap();
    assert_eq!(timeline(&fleet)["gaps"], json!([]));
    assert_eq!(Recovered::restore(&fleet, &untold.to_string()).entries(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_goes_on_over_a_promotion_that_nobody_told_of_and_another_history_is_an_alert() {
    let (source, fleet) = pushing().await;
    back_up(&fleet, "full").await;
    write_ledger(&source, 1, 5);
    // The server comes back as a standby of nobody, and is promoted.
    source.kill().unwrap();
    let signal = source.data_dir().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    give_to_owner_of(&source.data_dir(), &signal);
    source.restart().unwrap();
    source.psql("postgres", "SELECT pg_promote()").unwrap();
    let last: Lsn = write_ledger(&source, 6, 10)[4].lsn.parse().unwrap();
    switched(&source, &fleet).await;
    wait_for("the window along both timelines", AFTER_A_LOOK, || {
        let shown = timeline(&fleet);
        let is_along_both = shown["windows"][0]["timelines"] == json!([1, 2]);
        (is_along_both && end(&shown).0 >= last).then_some(())
    })
    .unwrap();
    assert_eq!(timeline(&fleet)["alerts"], json!([]));
    assert_eq!(Recovered::restore(&fleet, "latest").entries(), 10);

    fleet
        .sql("UPDATE wal_histories SET ancestors = '[{\"timeline\": 1, \"at\": \"0/1\"}]'")
        .unwrap();
    let told = wait_for("the alert", AFTER_A_LOOK, || {
        let alerts = timeline(&fleet)["alerts"].take();
        let mut found = alerts
            .as_array()?
            .iter()
            .filter(|alert| alert["kind"] == "wal_two_histories");
        Some(found.next()?["message"].as_str()?.to_owned())
    })
    .unwrap();
    assert!(
        told.contains("went on upon timeline 2, from different places"),
        "{told}"
    );
}
