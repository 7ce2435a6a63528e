//! A whole cluster, to any moment: base backup and WAL by the fleet, recovery by the command line, and the moment
//! compared with a ledger of what was committed when. On the oldest and the newest server there is.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;
use std::time::{Duration, Instant};

use strongroom_testkit::{Postgres, wait_for};
use strongroom_tests::SOON;
use strongroom_tests::clusters::{
    INTERVAL, Moment, Recovered, TARGET, back_up, failed_over, protected, received, restore, write_ledger,
};

/// Numbers that look random and are the same in every run.
fn pseudo_random(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}

async fn any_of_twenty_moments_comes_back(major: u32) {
    let (source, fleet) = protected(major).await;
    let moments = write_ledger(&source, 1, 60);
    // Later moments are of another backup, which took over what had not changed.
    let second = back_up(&fleet, "incremental").await;
    println!("PostgreSQL {major}: second backup {second}");
    let moments = [moments, write_ledger(&source, 61, 100)].concat();
    received(&fleet, &source);
    let picks: Vec<u64> = pseudo_random(u64::from(major)).take(20).collect();
    let chosen: Vec<(Moment, String)> = picks
        .iter()
        .enumerate()
        .map(|(number, pick)| {
            // Not the last one: something has to come after it that must not come back.
            let moment = moments[(*pick % (moments.len() as u64 - 1)) as usize].clone();
            let to = match number % 3 {
                0 => moment.lsn.clone(),
                1 => format!("xid:{}", moment.xid),
                _ => moment.time.clone(),
            };
            (moment, to)
        })
        .collect();
    for (moment, to) in &chosen {
        let recovered = Recovered::restore(&fleet, to);
        assert_eq!(recovered.entries(), moment.entries, "to {to}");
        let folder = recovered.folder.clone();
        drop(recovered);
        let _ = std::fs::remove_dir_all(folder);
    }
    let recovered = Recovered::restore(&fleet, "latest");
    assert_eq!(recovered.entries(), 100);
    // It is a server of its own now.
    recovered.ask("INSERT INTO ledger VALUES (101, 'after')");

    // One table, by way of a scratch server.
    let tables = fleet.dir().join("tables");
    let told = restore(&fleet, &moments[9].lsn, &tables, &["--table", "postgres.public.ledger"]);
    assert_eq!(told.code, 0, "{}{}", told.stdout, told.stderr);
    let dump = tables.join("postgres.public.ledger.dump");
    let script = Command::new(source.bin_dir().join("pg_restore"))
        .args(["-f", "-"])
        .arg(&dump)
        .output()
        .unwrap();
    let script = String::from_utf8(script.stdout).unwrap();
    assert_eq!(script.lines().filter(|line| line.contains("\txxxx")).count(), 10);

    // What would be done is said before anything is touched.
    let told = fleet
        .strongroom(&["restore", TARGET, "--to", "latest", "--preview"])
        .unwrap();
    assert_eq!(told.code, 0, "{}", told.stderr);
    println!("{}", told.stdout);
    assert!(told.stdout.contains("bkp-"), "{}", told.stdout);

    // What lies outside is refused with what can be had, and nothing is made.
    let beyond = fleet.dir().join("beyond");
    for to in ["2001-01-01T00:00:00Z", "FFFF/0", "2999-01-01T00:00:00Z"] {
        let told = restore(&fleet, to, &beyond, &[]);
        assert_ne!(told.code, 0, "{to}");
        assert!(told.stderr.contains("cannot be recovered"), "{to}: {}", told.stderr);
        assert!(!beyond.exists());
    }
    let told = fleet.strongroom(&["timeline", TARGET]).unwrap();
    assert_eq!(told.code, 0, "{}", told.stderr);
    println!("{}", told.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_moment_comes_back_on_the_oldest_server() {
    any_of_twenty_moments_comes_back(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_moment_comes_back_on_the_newest_server() {
    any_of_twenty_moments_comes_back(18).await;
}

/// Entries with the moment they were committed at, by this machine's clock.
fn write_until_killed(source: &Postgres, kill_after: Duration) -> Vec<Instant> {
    let begun = Instant::now();
    let mut committed = Vec::new();
    while begun.elapsed() < kill_after {
        let n = committed.len() + 1;
        source
            .psql("postgres", &format!("INSERT INTO ledger VALUES ({n}, 'x')"))
            .unwrap();
        committed.push(Instant::now());
    }
    committed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_lost_with_its_disk_loses_no_more_than_the_interval() {
    let (source, fleet) = protected(15).await;
    let committed = write_until_killed(&source, Duration::from_secs(5));
    let lost_at = Instant::now();
    source.kill().unwrap();
    std::fs::remove_dir_all(source.data_dir()).unwrap();
    // What the receiver has, it stores when the connection breaks.
    wait_for("the receiver to notice", SOON, || {
        (fleet
            .sql("SELECT count(*) FROM wal_streams WHERE last_error IS NOT NULL")
            .ok()?
            != "0")
            .then_some(())
    })
    .unwrap();
    let recovered = Recovered::restore(&fleet, "latest");
    let entries = recovered.entries() as usize;
    let lost = committed.len() - entries;
    let window = committed
        .get(entries)
        .map_or(Duration::ZERO, |first_lost| lost_at - *first_lost);
    println!(
        "{} commits in 5 s, {lost} lost: those of the last {} ms (the interval is {} ms)",
        committed.len(),
        window.as_millis(),
        INTERVAL.as_millis()
    );
    // Storing takes its time too.
    assert!(window <= INTERVAL + Duration::from_secs(1), "{window:?}");
    assert!(entries > 0);
    // That nobody receives any more is told within a minute.
    wait_for("an alert", Duration::from_secs(60), || {
        (fleet
            .sql("SELECT count(*) FROM alerts WHERE kind = 'wal_not_received'")
            .ok()?
            != "0")
            .then_some(())
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_new_timeline_is_followed_and_latest_ends_on_it() {
    let (primary, mut fleet) = protected(15).await;
    let before = write_ledger(&primary, 1, 10);
    let _standby = failed_over(&primary, &mut fleet);
    let recovered = Recovered::restore(&fleet, "latest");
    assert_eq!(recovered.entries(), 20);
    let timeline: u32 = recovered
        .ask("SELECT timeline_id FROM pg_control_checkpoint()")
        .parse()
        .unwrap();
    assert!(
        timeline > 2,
        "it was promoted from timeline 2 to one of its own: {timeline}"
    );
    // A moment before the failover, by the way of the history.
    let recovered = Recovered::restore(&fleet, &before[4].lsn);
    assert_eq!(recovered.entries(), 5);
}
