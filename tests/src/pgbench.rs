//! A run of `pgbench` against a cluster, and the ledger of what it committed when.
//!
//! The ledger is what `pg_waldump` reads in the source's WAL. It is proven by a table that every transaction leaves its
//! number in: one knows the moments, the other what was committed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use strongroom_proto::wal::Lsn;
use strongroom_testkit::{Postgres, Process, wait_for};

use crate::SOON;

/// The table of the transactions' numbers.
pub const TABLE: &str = "pgbench_ledger";
/// What its sessions are called.
const APPLICATION: &str = "pgbench";
const CLIENTS: u32 = 4;
/// Slow enough to be replayed quickly, and quick enough for the clients to meet.
const TRANSACTIONS_PER_SECOND: u32 = 150;
/// A run ends by itself after this, should whoever started it not end it.
const LONGEST: Duration = Duration::from_secs(600);
/// TPC-B as `pgbench` has it, after a row for the transaction itself.
const SCRIPT: &str = r"\set aid random(1, 100000 * :scale)
\set bid random(1, 1 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
INSERT INTO pgbench_ledger VALUES (pg_current_xact_id());
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
";
/// What TPC-B keeps equal, and how many transactions there were by its own account.
const BALANCES: &str =
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
    (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
    (SELECT count(*) FROM pgbench_history)";

/// A committed transaction.
#[derive(Debug, Clone, Copy)]
pub struct Commit {
    /// Its number.
    pub xid: u32,
    /// Where its commit record begins.
    pub lsn: Lsn,
    /// The time in that record.
    pub time: DateTime<Utc>,
}

/// Fills the tables, and has the server keep its WAL and commit nothing of its own accord.
pub fn prepare(source: &Postgres) {
    for sql in [
        "ALTER SYSTEM SET wal_keep_size = '4GB'",
        "ALTER SYSTEM SET autovacuum = off",
        "SELECT pg_reload_conf()",
        &format!("CREATE TABLE {TABLE} (xid xid8 PRIMARY KEY)"),
    ] {
        source.psql("postgres", sql).unwrap();
    }
    let filling = pgbench(source, &["--initialize", "--quiet"]);
    filling.wait_success(SOON).unwrap();
}

fn pgbench(source: &Postgres, args: &[&str]) -> Process {
    let (program, url) = (source.bin_dir().join("pgbench"), source.url("postgres"));
    Process::start(&program, [args, &[&url]].concat(), [("PGAPPNAME", APPLICATION)]).unwrap()
}

/// A run that goes on.
pub struct Run<'a> {
    source: &'a Postgres,
    process: Process,
    /// Where WAL ended before it.
    from: String,
}

impl<'a> Run<'a> {
    /// Several clients begin.
    pub fn start(source: &'a Postgres) -> Self {
        let from = source.psql("postgres", "SELECT pg_current_wal_insert_lsn()").unwrap();
        let script = source.data_dir().with_file_name("ledger.pgbench");
        std::fs::write(&script, SCRIPT).unwrap();
        let args = [
            "--no-vacuum",
            "--jobs=2",
            &format!("--client={CLIENTS}"),
            &format!("--rate={TRANSACTIONS_PER_SECOND}"),
            &format!("--time={}", LONGEST.as_secs()),
            &format!("--file={}", script.display()),
        ];
        Self {
            source,
            process: pgbench(source, &args),
            from,
        }
    }

    /// Waits until it has committed so many transactions more.
    pub fn goes_on_for(&self, transactions: usize) {
        let before = self.committed();
        wait_for("transactions of pgbench", SOON, || {
            assert!(self.process.is_running(), "pgbench ended: {}", self.process.output());
            (self.committed() >= before + transactions).then_some(())
        })
        .unwrap();
    }

    /// Ends it in the middle of what it does; the ledger, in the order of WAL.
    pub fn stop(self) -> Vec<Commit> {
        assert!(self.process.is_running(), "pgbench ended: {}", self.process.output());
        self.process.kill().unwrap();
        // What a client had asked for may be committed yet.
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'");
        wait_for("the end of pgbench's sessions", SOON, || {
            (self.source.psql("postgres", &sessions).unwrap() == "0").then_some(())
        })
        .unwrap();
        let ledger = commits(self.source, &self.from);
        let xids: BTreeSet<u32> = ledger.iter().map(|commit| commit.xid).collect();
        let sql = format!("SELECT xid FROM {TABLE}");
        let rows = xids_in(&self.source.psql("postgres", &sql).unwrap());
        assert_same(&rows, &xids, "the source's table beside its WAL");
        assert_eq!(xids.len(), ledger.len(), "a transaction was committed twice");
        ledger
    }

    fn committed(&self) -> usize {
        let sql = format!("SELECT count(*) FROM {TABLE}");
        self.source.psql("postgres", &sql).unwrap().parse().unwrap()
    }
}

/// The commits in a server's WAL from a place on, by the stock tool.
fn commits(source: &Postgres, from: &str) -> Vec<Commit> {
    let end = source.psql("postgres", "SELECT pg_current_wal_flush_lsn()").unwrap();
    let output = Command::new(source.bin_dir().join("pg_waldump"))
        .arg("--path")
        .arg(source.data_dir().join("pg_wal"))
        .args(["--rmgr=Transaction", "--timeline=1", "--start", from, "--end", &end])
        .env("TZ", "UTC")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let commits = printed.lines().filter(|line| line.contains("desc: COMMIT"));
    commits
        .map(|line| commit_in(line).unwrap_or_else(|| panic!("pg_waldump says {line:?}")))
        .collect()
}

/// `... tx: 736, lsn: 0/0218DAA8, prev 0/0218DA58, desc: COMMIT 2026-11-22 03:05:35.111470 UTC`, maybe with more after.
fn commit_in(line: &str) -> Option<Commit> {
    let after = |name: &str| Some(line.split_once(name)?.1.trim_start());
    let time = after("desc: COMMIT")?.split_once(" UTC")?.0;
    let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.6f").ok()?;
    Some(Commit {
        xid: after("tx:")?.split_once(',')?.0.parse().ok()?,
        lsn: after("lsn:")?.split_once(',')?.0.parse().ok()?,
        time: time.and_utc(),
    })
}

/// The numbers in rows of [`TABLE`].
pub fn xids_in(rows: &str) -> BTreeSet<u32> {
    rows.lines().map(|row| row.parse().unwrap()).collect()
}

/// Demands the same transactions, and names those that are not.
pub fn assert_same(found: &BTreeSet<u32>, expected: &BTreeSet<u32>, what: &str) {
    let lacks: Vec<&u32> = expected.difference(found).collect();
    let excess: Vec<&u32> = found.difference(expected).collect();
    assert!(
        lacks.is_empty() && excess.is_empty(),
        "{what}: of {} transactions lacks {lacks:?}, and has too many {excess:?}",
        expected.len()
    );
}

/// The transactions that a server holds, which must have left all of its tables in the same state. `ask` is how it
/// answers a query.
pub fn held(ask: impl Fn(&str) -> String) -> BTreeSet<u32> {
    let balances = ask(BALANCES);
    let numbers: Vec<i64> = balances.split('|').map(|number| number.parse().unwrap()).collect();
    assert!(
        numbers[..4].iter().all(|sum| *sum == numbers[0]),
        "sums differ: {balances}"
    );
    let xids = xids_in(&ask(&format!("SELECT xid FROM {TABLE}")));
    assert_eq!(xids.len() as i64, numbers[4], "rows of history beside {TABLE}");
    xids
}
