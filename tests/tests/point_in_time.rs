//! A whole cluster, to any moment: base backup and WAL by the fleet, recovery by the command line, and the moment
//! compared with a ledger of what was committed when. On the oldest and the newest server there is.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_connectors::postgres::{Cluster, ClusterOptions, ServerBinaries};
use strongroom_testkit::{Postgres, wait_for};
use strongroom_tests::{DUMPER, Fleet, SOON};

const TARGET: &str = "cluster";
/// How long WAL waits for its segment to be full, in these tests.
const INTERVAL: Duration = Duration::from_secs(1);

fn target_of(url: &str) -> String {
    format!(
        "  {TARGET}:\n    kind: postgres\n    method: physical_basebackup\n    url: '{url}'\n    wal_interval_seconds: {}",
        INTERVAL.as_secs()
    )
}

/// A cluster with a ledger, and a fleet that has a verified base backup of it.
async fn protected(major: u32) -> (Postgres, Fleet) {
    let source = Postgres::start_major(major).unwrap();
    source
        .psql("postgres", "CREATE TABLE ledger (n int PRIMARY KEY, filler text)")
        .unwrap();
    let mut fleet = Fleet::prepare().await.unwrap();
    fleet.set("worker.pg_bin_dirs", source.bin_dir().display().to_string());
    fleet.target(target_of(&source.url("postgres")));
    fleet.run_all().await.unwrap();
    back_up(&fleet, "full").await;
    (source, fleet)
}

async fn back_up(fleet: &Fleet, kind: &str) -> Value {
    let ask = json!({ "type": kind, "targets": [TARGET] });
    let (status, body) = fleet.api.post("/api/v1/backup/create", ask).await.unwrap();
    assert_eq!(status, 201, "{body}");
    let id = body["jobs"][0]["job_id"].as_str().unwrap().to_owned();
    fleet.api.completed(&id).await.unwrap();
    let backup = fleet.api.verified(&id).await.unwrap();
    assert_eq!(backup["verified"], true, "{backup}");
    backup
}

/// What was true when the ledger had so many entries.
#[derive(Debug, Clone)]
struct Moment {
    entries: u32,
    xid: String,
    lsn: String,
    time: String,
}

/// Commits one entry after the other.
fn write_ledger(source: &Postgres, from: u32, to: u32) -> Vec<Moment> {
    let ask = |sql: String| source.psql("postgres", &sql).unwrap().trim().to_owned();
    (from..=to)
        .map(|n| {
            let xid = ask(format!(
                "INSERT INTO ledger VALUES ({n}, repeat('x', 500)) RETURNING pg_current_xact_id()::text"
            ));
            let seen = ask("SELECT pg_current_wal_insert_lsn(), to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')".to_owned());
            let (lsn, time) = seen.split_once('|').unwrap();
            Moment {
                entries: n,
                xid: xid.lines().next().unwrap().to_owned(),
                lsn: lsn.to_owned(),
                time: time.to_owned(),
            }
        })
        .collect()
}

/// Waits until the vault has everything that the source has written.
fn received(fleet: &Fleet, source: &Postgres) {
    let end = source.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
    received_to(fleet, end.trim());
}

fn received_to(fleet: &Fleet, end: &str) {
    wait_for(&format!("WAL up to {end}"), SOON, || {
        let query = format!(
            "SELECT count(*) FROM wal_ranges WHERE to_lsn >= '{end}'::pg_lsn AND last_time >= now() - interval '1 hour'"
        );
        (fleet.sql(&query).ok()? != "0").then_some(())
    })
    .unwrap();
}

/// A recovered server that was left running; stopped when dropped.
struct Recovered {
    folder: PathBuf,
}

impl Recovered {
    fn restore(fleet: &Fleet, to: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = fleet.dir().join(format!("recovered-{number}"));
        let path = folder.display().to_string();
        let told = fleet
            .strongroom(&[
                "restore",
                TARGET,
                "--to",
                to,
                "--destination",
                &path,
                "--leave",
                "running",
                "--wait",
            ])
            .unwrap();
        assert_eq!(told.code, 0, "to {to}: {}{}", told.stdout, told.stderr);
        Self { folder }
    }

    fn ask(&self, sql: &str) -> String {
        let pid_file = std::fs::read_to_string(self.folder.join("postmaster.pid")).unwrap();
        let port = pid_file.lines().nth(3).unwrap();
        let output = Command::new("psql")
            .args([
                "-XAtq",
                "-h",
                "127.0.0.1",
                "-p",
                port,
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-c",
                sql,
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// How many entries it has, which must be the first ones without a hole.
    fn entries(&self) -> u32 {
        let (count, last) = (
            self.ask("SELECT count(*) FROM ledger"),
            self.ask("SELECT coalesce(max(n), 0) FROM ledger"),
        );
        assert_eq!(count, last, "entries are missing in between");
        count.parse().unwrap()
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        let Ok(pid_file) = std::fs::read_to_string(self.folder.join("postmaster.pid")) else {
            return;
        };
        let pid = pid_file.lines().next().unwrap_or_default();
        let _ = Command::new("kill").args(["-QUIT", pid]).status();
    }
}

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
    let told = fleet
        .strongroom(&[
            "restore",
            TARGET,
            "--to",
            &moments[9].lsn,
            "--table",
            "postgres.public.ledger",
            "--destination",
            &tables.display().to_string(),
            "--wait",
        ])
        .unwrap();
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
        let told = fleet
            .strongroom(&[
                "restore",
                TARGET,
                "--to",
                to,
                "--destination",
                &beyond.display().to_string(),
                "--wait",
            ])
            .unwrap();
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

/// A standby of a server, by Unix socket.
fn standby_of(primary: &Postgres, major: u32, dir: &Path) -> Cluster {
    let data = dir.join("data");
    let output = Command::new(primary.bin_dir().join("pg_basebackup"))
        .args(["-R", "-c", "fast", "-d", &primary.url("postgres"), "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    give_to_owner_of(&primary.data_dir(), dir);
    let binaries = ServerBinaries::find(major, &[primary.bin_dir().to_owned()]).unwrap();
    let options = ClusterOptions {
        superuser: "postgres".to_owned(),
        password: None,
        port: None,
        socket_dir: dir.join("socket"),
        fsync: false,
        settings: vec![("hot_standby".to_owned(), "on".to_owned())],
    };
    let mut cluster = Cluster::open(binaries, &data, options).unwrap();
    // It waits, and asks by a runtime of its own.
    tokio::task::block_in_place(|| cluster.start()).unwrap();
    cluster
}

fn give_to_owner_of(example: &Path, folder: &Path) {
    let status = Command::new("chown")
        .arg("-R")
        .arg(format!("--reference={}", example.display()))
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success());
}

fn sql(cluster: &Cluster, sql: &str) -> String {
    let output = Command::new("psql")
        .args(["-XAtq", "-d", cluster.url("postgres").unwrap().as_str(), "-c", sql])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_new_timeline_is_followed_and_latest_ends_on_it() {
    let (primary, mut fleet) = protected(15).await;
    let before = write_ledger(&primary, 1, 10);
    let dir = tempfile::Builder::new()
        .prefix("sr-standby-")
        .tempdir_in("/tmp")
        .unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let standby = standby_of(&primary, 15, dir.path());
    let end = primary.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
    wait_for("the standby to have it all", SOON, || {
        let have = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", end.trim());
        (sql(&standby, &have) == "t").then_some(())
    })
    .unwrap();
    received_to(&fleet, end.trim());
    primary.kill().unwrap();
    sql(&standby, "SELECT pg_promote()");
    wait_for("the promotion", SOON, || {
        (sql(&standby, "SELECT pg_is_in_recovery()") == "f").then_some(())
    })
    .unwrap();
    sql(
        &standby,
        "INSERT INTO ledger SELECT n, 'after' FROM generate_series(11, 20) n",
    );
    // The target's address leads to the new primary now.
    fleet.kill(DUMPER).unwrap();
    fleet
        .clear_targets()
        .target(target_of(standby.url("postgres").unwrap().as_str()));
    fleet.run(DUMPER).unwrap();
    let end = sql(&standby, "SELECT pg_current_wal_flush_lsn()");
    wait_for("WAL of timeline 2", SOON, || {
        let query = format!("SELECT count(*) FROM wal_ranges WHERE timeline = 2 AND to_lsn >= '{end}'::pg_lsn");
        (fleet.sql(&query).ok()? != "0").then_some(())
    })
    .unwrap();
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
