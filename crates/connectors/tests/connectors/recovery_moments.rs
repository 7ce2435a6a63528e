//! Clusters recovered to moments, exactly.

use std::path::Path;
use std::sync::Arc;

use strongroom_connectors::postgres::recovery::{Recovered, RecoveryError, RecoveryRequest, WalFetch, recover};
use strongroom_connectors::postgres::{Cluster, ServerBinaries};
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::CheckOutcome;
use strongroom_proto::wal::{ClusterFacts, Leave, Lsn, Recovery, RecoveryTarget};

use crate::recovery_source::{FolderWal, Source};
use crate::server::{Server, extra_dirs, majors, options, passable_dir};

/// The oldest version and the newest.
pub(crate) fn both_ends() -> Vec<ServerBinaries> {
    let mut all = majors();
    all.retain(|binaries| binaries.major >= 15);
    let newest = all.pop().unwrap();
    let mut ends: Vec<ServerBinaries> = all.into_iter().take(1).collect();
    ends.push(newest);
    ends
}

pub(crate) fn to(target: RecoveryTarget, wal_end: Option<Lsn>) -> Recovery {
    Recovery {
        to: target,
        timeline: 1,
        wal_end,
        leave: Leave::Stopped,
        tablespaces: Default::default(),
        tables: Vec::new(),
    }
}

pub(crate) fn run(
    source: &dyn EntrySource,
    facts: &ClusterFacts,
    recovery: &Recovery,
    destination: &Path,
    wal: Arc<dyn WalFetch>,
) -> Result<Recovered, RecoveryError> {
    let scratch = passable_dir();
    let request = RecoveryRequest {
        facts,
        recovery,
        destination,
        wal,
        restore_command: None,
        bin_dirs: &extra_dirs(),
        scratch_dir: scratch.path(),
        mark: "one",
    };
    recover(source, &request, &mut |_| {})
}

/// Starts what was recovered like any other cluster.
pub(crate) fn open(binaries: &ServerBinaries, data_dir: &Path) -> Server {
    let dir = passable_dir();
    let mut cluster = Cluster::open(binaries.clone(), data_dir, options(dir.path().join("socket"))).unwrap();
    cluster.start().unwrap();
    Server::of(cluster, dir)
}

fn detail(recovered: &Recovered, name: &str) -> String {
    let check = recovered.checks.iter().find(|check| check.name == name).unwrap();
    assert_eq!(check.outcome, CheckOutcome::Passed, "{check:?}");
    check.detail.clone()
}

#[test]
fn every_kind_of_moment_is_recovered_to_the_transaction() {
    for binaries in both_ends() {
        let source = Source::start(binaries.clone());
        source.commit(5);
        let (backup, facts) = source.base_backup();
        let mut ledger = source.commit(40);
        source.archive_all();
        ledger.extend(source.commit(40));
        source.sql("SELECT pg_create_restore_point('it''s \\ here')");
        ledger.extend(source.commit(3));
        let wal_end = source.archive_all();
        let wal = FolderWal::of(&source);

        let mut moments = Vec::new();
        for at in [0, 39, 61] {
            let known = &ledger[at];
            moments.push((RecoveryTarget::Lsn(known.lsn), known.rows));
            moments.push((RecoveryTarget::Xid(known.xid), known.rows));
            moments.push((RecoveryTarget::Time(known.time.parse().unwrap()), known.rows));
        }
        moments.push((RecoveryTarget::Name("it's \\ here".to_owned()), 85));
        moments.push((RecoveryTarget::Latest, 88));
        moments.push((RecoveryTarget::Immediate, 5));
        // Later than anything that was committed, and WAL is known to go on until then.
        moments.push((RecoveryTarget::Time(chrono::Utc::now()), 88));
        moments.push((RecoveryTarget::Lsn(wal_end), 88));
        for (target, rows) in moments {
            let dir = passable_dir();
            let data = dir.path().join("data");
            let recovered = run(&backup, &facts, &to(target.clone(), Some(wal_end)), &data, wal.clone());
            let recovered = recovered.unwrap_or_else(|error| panic!("{target}: {error} ({error:?})"));
            println!("{} {target}: {}", binaries.major, detail(&recovered, "recovery target"));
            detail(&recovered, "base backup files");
            assert!(detail(&recovered, "server answers").contains("takes writes"));
            for left in [
                "standby.signal",
                "recovery.signal",
                "strongroom-recovery",
                "strongroom-recovery.log",
                "postmaster.opts",
            ] {
                assert!(!data.join(left).exists(), "{left}");
            }
            let server = open(&binaries, &data);
            assert_eq!(
                server.sql("postgres", "SELECT count(*) FROM ledger"),
                rows.to_string(),
                "{target}"
            );
            assert_eq!(server.sql("postgres", "SELECT pg_is_in_recovery()"), "f");
            assert_eq!(server.sql("postgres", "SHOW restore_command"), "");
        }
    }
}

#[test]
fn after_a_failover_the_latest_lies_on_the_new_timeline() {
    for binaries in both_ends() {
        let mut source = Source::start(binaries.clone());
        let (backup, facts) = source.base_backup();
        source.commit(3);
        source.archive_all();
        source.commit(4);
        source.begin_new_timeline();
        source.commit(5);
        let wal_end = source.archive_all();
        let dir = passable_dir();
        let recovery = Recovery {
            timeline: 2,
            ..to(RecoveryTarget::Latest, Some(wal_end))
        };
        let data = dir.path().join("data");
        run(&backup, &facts, &recovery, &data, FolderWal::of(&source)).unwrap();
        let server = open(&binaries, &data);
        assert_eq!(server.sql("postgres", "SELECT count(*) FROM ledger"), "12");
        assert!(data.join("pg_wal/00000003.history").exists());
    }
}

#[test]
fn a_segment_that_is_not_full_yet_is_replayed_to_its_end() {
    for binaries in both_ends() {
        let source = Source::start(binaries.clone());
        let (backup, facts) = source.base_backup();
        source.commit(3);
        source.archive_all();
        let known = source.commit(6);
        let end = source.archive_partial();
        let dir = passable_dir();
        // The place after the last commit is the end of all there is.
        for target in [RecoveryTarget::Latest, RecoveryTarget::Lsn(known[5].lsn)] {
            let data = dir.path().join(target.to_string().replace('/', "-"));
            let wal = FolderWal::of(&source);
            let recovered = run(&backup, &facts, &to(target.clone(), Some(end)), &data, wal.clone()).unwrap();
            assert_eq!(recovered.replayed_to, Some(end), "{target}");
            let server = open(&binaries, &data);
            assert_eq!(server.sql("postgres", "SELECT count(*) FROM ledger"), "9", "{target}");
        }
    }
}
