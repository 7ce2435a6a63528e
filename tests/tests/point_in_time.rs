//! A whole cluster, to any moment: base backup and WAL by the fleet, recovery by the command line, and what came back
//! compared with a ledger of what was committed when. On the oldest and the newest server there is.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use strongroom_proto::wal::Lsn;
use strongroom_testkit::{Postgres, wait_for};
use strongroom_tests::clusters::{
    INTERVAL, Recovered, TARGET, back_up, failed_over, protect, protected, received, restore, target_of, write_ledger,
};
use strongroom_tests::pgbench::{self, Commit};
use strongroom_tests::{Fleet, SOON};

/// Transactions that `pgbench` commits before the second backup begins, and again after it is verified.
const AROUND: usize = 300;
/// The last transactions of the ledger, none of which is recovered to: something has to come after that must not come
/// back.
const AFTER: usize = 100;
/// What a base backup may read in a second: little enough for transactions to be committed meanwhile.
const RATE_BYTES: u64 = 10 << 20;
/// The first major version that can tell a backup what has changed.
const SUMMARIES: u32 = 17;

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

/// A moment to recover to.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Lsn(Lsn),
    Xid(u32),
    Time(DateTime<Utc>),
}

impl Moment {
    /// Every third is of the same kind. Of places and times, some are those of a commit and some lie beside it; of
    /// transactions, some overtook one that must not come back with them.
    fn choose(number: usize, ledger: &[Commit], pick: u64) -> Self {
        let at = pick as usize % (ledger.len() - AFTER);
        let (commit, next) = (&ledger[at], &ledger[at + 1]);
        match (number % 3, number / 3 % 3) {
            (0, 0) => Self::Lsn(commit.lsn),
            (0, 1) => Self::Lsn(Lsn(commit.lsn.0 - 1)),
            (0, _) => Self::Lsn(Lsn(commit.lsn.0.midpoint(next.lsn.0))),
            (1, 2) => {
                let overtakers = overtakers(ledger);
                Self::Xid(ledger[overtakers[pick as usize % overtakers.len()]].xid)
            }
            (1, _) => Self::Xid(commit.xid),
            (_, 0) => Self::Time(commit.time),
            (_, 1) => Self::Time(commit.time - TimeDelta::microseconds(1)),
            (_, _) => Self::Time(
                commit.time + TimeDelta::microseconds((next.time - commit.time).num_microseconds().unwrap() / 2),
            ),
        }
    }

    /// As the command line takes it.
    fn told(self) -> String {
        match self {
            Self::Lsn(lsn) => lsn.to_string(),
            Self::Xid(xid) => format!("xid:{xid}"),
            Self::Time(time) => time.to_rfc3339_opts(SecondsFormat::Micros, true),
        }
    }

    /// The transactions of a ledger, which is in the order of WAL, that are committed at this moment.
    fn expected(self, ledger: &[Commit]) -> BTreeSet<u32> {
        let upto = match self {
            Self::Lsn(lsn) => ledger.iter().position(|commit| commit.lsn > lsn),
            Self::Xid(xid) => ledger.iter().position(|commit| commit.xid == xid).map(|at| at + 1),
            Self::Time(time) => ledger.iter().position(|commit| commit.time > time),
        };
        xids(&ledger[..upto.expect("a later transaction")])
    }

    /// What is promised of a time whatever the order of WAL: nothing after it, and all up to a second before it.
    fn assert_within_a_second(self, ledger: &[Commit], found: &BTreeSet<u32>) {
        let Self::Time(time) = self else { return };
        for commit in ledger {
            let is_there = found.contains(&commit.xid);
            assert!(!is_there || commit.time <= time, "to {time}: {commit:?} is there");
            assert!(
                is_there || commit.time > time - TimeDelta::seconds(1),
                "to {time}: {commit:?} is not there"
            );
        }
    }
}

fn xids(ledger: &[Commit]) -> BTreeSet<u32> {
    ledger.iter().map(|commit| commit.xid).collect()
}

/// Where in a ledger a transaction was committed right before one that had begun to write earlier.
fn overtakers(ledger: &[Commit]) -> Vec<usize> {
    let overtook = |at: &usize| ledger[at + 1].xid < ledger[*at].xid;
    (0..ledger.len() - AFTER).filter(overtook).collect()
}

/// A run of `pgbench` before, during and after a second backup; its ledger.
async fn run_around_a_backup(major: u32, source: &Postgres, fleet: &Fleet) -> Vec<Commit> {
    let run = pgbench::Run::start(source);
    run.goes_on_for(AROUND);
    // Later moments are of another backup, which took over what had not changed.
    let second = back_up(fleet, "incremental").await;
    run.goes_on_for(AROUND);
    let ledger = run.stop();
    let fact = |name: &str| {
        let id = second["backup_id"].as_str().unwrap();
        let body = format!("body #>> '{{source,cluster,{name}}}'");
        let query = format!("SELECT coalesce({body}, '') FROM receipts WHERE backup_id = '{id}' AND kind = 'backup'");
        fleet.sql(&query).unwrap()
    };
    let (start, stop): (Lsn, Lsn) = (fact("start_lsn").parse().unwrap(), fact("stop_lsn").parse().unwrap());
    let before = ledger.partition_point(|commit| commit.lsn < start);
    let after = ledger.len() - ledger.partition_point(|commit| commit.lsn < stop);
    let during = ledger.len() - before - after;
    let overtook = overtakers(&ledger).len();
    println!(
        "PostgreSQL {major}: {} commits, {before} before the second backup, {during} during it and {after} after it; \
         {overtook} overtook another transaction; {second}",
        ledger.len()
    );
    assert!(before >= AROUND && during > 0 && after >= AROUND);
    assert_eq!(
        fact("incremental_from").is_empty(),
        major < SUMMARIES,
        "whether only changes were read"
    );
    // Were they committed one after the other, any order would do.
    assert!(overtook > 0, "no transaction overtook another");
    ledger
}

/// Waits until what the vault has is known to last until a time.
fn received_until(fleet: &Fleet, time: DateTime<Utc>) {
    let query = format!(
        "SELECT count(*) FROM wal_ranges WHERE last_time >= '{}'",
        time.to_rfc3339()
    );
    wait_for(&format!("WAL until {time}"), SOON, || {
        (fleet.sql(&query).ok()? != "0").then_some(())
    })
    .unwrap();
}

async fn any_of_twenty_moments_comes_back(major: u32) {
    let source = Postgres::start_major(major).unwrap();
    pgbench::prepare(&source);
    if major >= SUMMARIES {
        source.psql("postgres", "ALTER SYSTEM SET summarize_wal = on").unwrap();
        source.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    }
    let target = target_of(&source.url("postgres"));
    let fleet = protect(&source, format!("{target}\n    max_rate_bytes: {RATE_BYTES}")).await;
    let ledger = run_around_a_backup(major, &source, &fleet).await;
    received(&fleet, &source);
    received_until(&fleet, ledger[ledger.len() - AFTER].time);
    for (number, pick) in pseudo_random(u64::from(major)).take(20).enumerate() {
        let moment = Moment::choose(number, &ledger, pick);
        let (to, expected) = (moment.told(), moment.expected(&ledger));
        let recovered = Recovered::restore(&fleet, &to);
        let found = pgbench::held(|sql| recovered.ask(sql));
        println!(
            "PostgreSQL {major}: {to}: {} of {} transactions",
            found.len(),
            ledger.len()
        );
        pgbench::assert_same(&found, &expected, &to);
        moment.assert_within_a_second(&ledger, &found);
        let folder = recovered.folder.clone();
        drop(recovered);
        let _ = std::fs::remove_dir_all(folder);
    }
    let recovered = Recovered::restore(&fleet, "latest");
    pgbench::assert_same(&pgbench::held(|sql| recovered.ask(sql)), &xids(&ledger), "latest");
    // It is a server of its own now.
    recovered.ask(&format!("INSERT INTO {} VALUES (pg_current_xact_id())", pgbench::TABLE));

    // One table, by way of a scratch server.
    let tables = fleet.dir().join("tables");
    let table = format!("postgres.public.{}", pgbench::TABLE);
    let told = restore(&fleet, &ledger[9].lsn.to_string(), &tables, &["--table", &table]);
    assert_eq!(told.code, 0, "{}{}", told.stdout, told.stderr);
    let dump = tables.join(format!("{table}.dump"));
    let script = Command::new(source.bin_dir().join("pg_restore"))
        .args(["--data-only", "-f", "-"])
        .arg(&dump)
        .output()
        .unwrap();
    let script = String::from_utf8(script.stdout).unwrap();
    let (_, rows) = script.split_once("FROM stdin;\n").unwrap();
    let (rows, _) = rows.split_once("\\.").unwrap();
    pgbench::assert_same(&pgbench::xids_in(rows), &xids(&ledger[..10]), "one table");

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
