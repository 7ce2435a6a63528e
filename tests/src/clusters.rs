//! A whole cluster under the protection of a fleet: a ledger of what was committed when, standbys, and recovered servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use strongroom_connectors::postgres::{Cluster, ClusterOptions, ServerBinaries};
use strongroom_testkit::{Postgres, wait_for};

use crate::{DUMPER, Fleet, SOON, Told};

/// The name of the target that the cluster is.
pub const TARGET: &str = "cluster";
/// How long WAL waits for its segment to be full, in these tests.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The target, as a fleet is told of it.
pub fn target_of(url: &str) -> String {
    format!(
        "  {TARGET}:\n    kind: postgres\n    method: physical_basebackup\n    url: '{url}'\n    wal_interval_seconds: {}",
        INTERVAL.as_secs()
    )
}

/// A cluster with a ledger, and a fleet that has a verified base backup of it.
pub async fn protected(major: u32) -> (Postgres, Fleet) {
    let source = Postgres::start_major(major).unwrap();
    source
        .psql("postgres", "CREATE TABLE ledger (n int PRIMARY KEY, filler text)")
        .unwrap();
    let fleet = protect(&source, target_of(&source.url("postgres"))).await;
    (source, fleet)
}

/// A fleet that has a verified base backup of a cluster, which is told to it as this target.
pub async fn protect(source: &Postgres, target: String) -> Fleet {
    let mut fleet = Fleet::prepare().await.unwrap();
    fleet.set("worker.pg_bin_dirs", source.bin_dir().display().to_string());
    fleet.target(target);
    fleet.run_all().await.unwrap();
    back_up(&fleet, "full").await;
    fleet
}

/// Takes a base backup and waits until it is verified; what the API says of it.
pub async fn back_up(fleet: &Fleet, kind: &str) -> Value {
    let ask = json!({ "type": kind, "targets": [TARGET] });
    let (status, body) = fleet.api.post("/api/v1/backup/create", ask).await.unwrap();
    assert_eq!(status, 201, "{body}");
    let id = body["jobs"][0]["job_id"].as_str().unwrap().to_owned();
    fleet.api.completed(&id).await.unwrap();
    let backup = fleet.api.verified(&id).await.unwrap();
    assert_eq!(backup["verified"], true, "{backup}");
    backup
}

/// A moment right after an entry of the ledger was committed.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The end of WAL.
    pub lsn: String,
    /// The server's clock.
    pub time: String,
}

/// Commits one entry after the other.
pub fn write_ledger(source: &Postgres, from: u32, to: u32) -> Vec<Moment> {
    let ask = |sql: &str| source.psql("postgres", sql).unwrap().trim().to_owned();
    (from..=to)
        .map(|n| {
            ask(&format!("INSERT INTO ledger VALUES ({n}, repeat('x', 500))"));
            let seen = ask("SELECT pg_current_wal_insert_lsn(), to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
            let (lsn, time) = seen.split_once('|').unwrap();
            Moment {
                lsn: lsn.to_owned(),
                time: time.to_owned(),
            }
        })
        .collect()
}

/// Waits until the vault has everything that the source has written.
pub fn received(fleet: &Fleet, source: &Postgres) {
    let end = source.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
    received_to(fleet, end.trim());
}

/// Waits until the vault has everything up to a place.
pub fn received_to(fleet: &Fleet, end: &str) {
    wait_for(&format!("WAL up to {end}"), SOON, || {
        let query = format!(
            "SELECT count(*) FROM wal_ranges WHERE to_lsn >= '{end}'::pg_lsn AND last_time >= now() - interval '1 hour'"
        );
        (fleet.sql(&query).ok()? != "0").then_some(())
    })
    .unwrap();
}

/// Recovers the target into a folder, by the command line, and waits for the end of it.
pub fn restore(fleet: &Fleet, to: &str, destination: &Path, more: &[&str]) -> Told {
    let destination = destination.display().to_string();
    let args = ["restore", TARGET, "--to", to, "--destination", &destination, "--wait"];
    fleet.strongroom(&[&args, more].concat()).unwrap()
}

/// A recovered server that was left running; stopped when dropped.
pub struct Recovered {
    /// Its data folder.
    pub folder: PathBuf,
}

impl Recovered {
    /// Recovers the target, by the command line.
    pub fn restore(fleet: &Fleet, to: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = fleet.dir().join(format!("recovered-{number}"));
        let told = restore(fleet, to, &folder, &["--leave", "running"]);
        assert_eq!(told.code, 0, "to {to}: {}{}", told.stdout, told.stderr);
        Self { folder }
    }

    /// What a query answers.
    pub fn ask(&self, sql: &str) -> String {
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
    pub fn entries(&self) -> u32 {
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

/// A standby of a server, by Unix socket, in a folder of its own.
pub struct Standby {
    cluster: Cluster,
    _dir: tempfile::TempDir,
}

impl Standby {
    /// Copies a server of this major version and follows it.
    pub fn follow(primary: &Postgres, major: u32) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("sr-standby-")
            .tempdir_in("/tmp")
            .unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let data = dir.path().join("data");
        let output = Command::new(primary.bin_dir().join("pg_basebackup"))
            .args(["-R", "-c", "fast", "-d", &primary.url("postgres"), "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        give_to_owner_of(&primary.data_dir(), dir.path());
        let binaries = ServerBinaries::find(major, &[primary.bin_dir().to_owned()]).unwrap();
        let options = ClusterOptions {
            superuser: "postgres".to_owned(),
            password: None,
            port: None,
            socket_dir: dir.path().join("socket"),
            fsync: false,
            settings: vec![("hot_standby".to_owned(), "on".to_owned())],
        };
        let mut cluster = Cluster::open(binaries, &data, options).unwrap();
        // It waits, and asks by a runtime of its own.
        tokio::task::block_in_place(|| cluster.start()).unwrap();
        Self { cluster, _dir: dir }
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.cluster.url("postgres").unwrap().as_str().to_owned()
    }

    /// What a query answers.
    pub fn ask(&self, sql: &str) -> String {
        let output = Command::new("psql")
            .args(["-XAtq", "-d", &self.url(), "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until it has replayed what the primary has written, and says where that ends.
    pub fn caught_up(&self, primary: &Postgres) -> String {
        let end = primary.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
        let have = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", end.trim());
        wait_for("the standby to have it all", SOON, || {
            (self.ask(&have) == "t").then_some(())
        })
        .unwrap();
        end.trim().to_owned()
    }

    /// Makes a primary of it.
    pub fn promote(&self) {
        self.ask("SELECT pg_promote()");
        wait_for("the promotion", SOON, || {
            (self.ask("SELECT pg_is_in_recovery()") == "f").then_some(())
        })
        .unwrap();
    }
}

/// Gives a file or a folder to whoever owns another.
pub fn give_to_owner_of(example: &Path, folder: &Path) {
    let status = Command::new("chown")
        .arg("-R")
        .arg(format!("--reference={}", example.display()))
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Has the target's address lead elsewhere: a dumper is started anew with it.
pub fn point_to(fleet: &mut Fleet, url: &str) {
    fleet.kill(DUMPER).unwrap();
    fleet.clear_targets().target(target_of(url));
    fleet.run(DUMPER).unwrap();
}

/// Loses a primary of version 15 whose ledger has ten entries, promotes a standby, points the target to it and writes ten
/// entries more there, which the vault has on timeline 2 at the end.
pub fn failed_over(primary: &Postgres, fleet: &mut Fleet) -> Standby {
    let standby = Standby::follow(primary, 15);
    let end = standby.caught_up(primary);
    received_to(fleet, &end);
    primary.kill().unwrap();
    standby.promote();
    standby.ask("INSERT INTO ledger SELECT n, 'after' FROM generate_series(11, 20) n");
    point_to(fleet, &standby.url());
    let end = standby.ask("SELECT pg_current_wal_flush_lsn()");
    wait_for("WAL of timeline 2", SOON, || {
        let query = format!("SELECT count(*) FROM wal_ranges WHERE timeline = 2 AND to_lsn >= '{end}'::pg_lsn");
        (fleet.sql(&query).ok()? != "0").then_some(())
    })
    .unwrap();
    standby
}
