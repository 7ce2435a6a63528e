//! What a recovery refuses, and what it leaves where it fails: never a promoted server.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use strongroom_connectors::postgres::recovery::{
    RecoveryError, RecoveryProgress, RecoveryRequest, drill_cluster, recover,
};
use strongroom_connectors::postgres::{DrillConfig, FileError, ServerBinaries};
use strongroom_proto::receipt::CheckOutcome;
use strongroom_proto::wal::{Leave, Lsn, Recovery, RecoveryTarget, SystemIdentifier, WalSegment};

use crate::recovery_moments::{both_ends, open, run, to};
use crate::recovery_source::{FolderWal, Source};
use crate::server::{extra_dirs, majors, oldest, passable_dir};

/// Whether the cluster in a folder was never promoted.
fn is_unpromoted(binaries: &ServerBinaries, data: &Path) -> bool {
    let output = Command::new(binaries.program("pg_controldata"))
        .arg("-D")
        .arg(data)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let state = text
        .lines()
        .find_map(|line| line.strip_prefix("Database cluster state:"))
        .unwrap();
    assert!(
        !data.join("pg_wal/00000002.history").exists(),
        "a new timeline was begun"
    );
    data.join("standby.signal").exists() && !matches!(state.trim(), "in production" | "shut down")
}

#[test]
fn an_outage_of_the_store_never_ends_in_a_promoted_server_and_the_next_try_goes_on() {
    let ends: Vec<u32> = both_ends().iter().map(|binaries| binaries.major).collect();
    for binaries in majors().into_iter().filter(|binaries| binaries.major >= ends[0]) {
        let source = Source::start(binaries.clone());
        let (backup, facts) = source.base_backup();
        let mut known = Vec::new();
        for _ in 0..4 {
            known.extend(source.commit(5));
            source.archive_all();
        }
        let last = known.last().unwrap();
        let mut targets = vec![RecoveryTarget::Latest];
        // In between, the end of the archive alone: what would be promoted too early.
        if ends.contains(&binaries.major) {
            targets.push(RecoveryTarget::Xid(last.xid));
        }
        for target in targets {
            let dir = passable_dir();
            let data = dir.path().join("data");
            let wal = FolderWal::of(&source);
            // Some are brought ahead: whichever fails, the replay comes to it.
            wal.until_outage.store(2, Ordering::SeqCst);
            let error = run(&backup, &facts, &to(target.clone(), None), &data, wal.clone()).unwrap_err();
            assert!(matches!(error, RecoveryError::Wal { .. }), "{target}: {error}");
            assert!(error.is_retryable() && !error.is_about_backup());
            assert!(
                error
                    .to_string()
                    .contains("the vault could not be read during recovery"),
                "{error}"
            );
            assert!(is_unpromoted(&binaries, &data), "{target}");
            assert!(data.join("strongroom-recovery.log").exists());

            wal.until_outage.store(u64::MAX, Ordering::SeqCst);
            run(&backup, &facts, &to(target.clone(), None), &data, wal).unwrap();
            let server = open(&binaries, &data);
            assert_eq!(server.sql("postgres", "SELECT count(*) FROM ledger"), "20", "{target}");
        }
    }
}

#[test]
fn another_try_never_makes_a_standby_of_a_folder_that_is_promoted() {
    let source = Source::start(oldest());
    let (backup, facts) = source.base_backup();
    let end = source.archive_all();
    let recovery = to(RecoveryTarget::Latest, Some(end));
    let (dir, scratch) = (passable_dir(), passable_dir());
    let data = dir.path().join("data");
    let bin_dirs = extra_dirs();
    let request = RecoveryRequest {
        facts: &facts,
        recovery: &recovery,
        destination: &data,
        wal: FolderWal::of(&source),
        restore_command: None,
        bin_dirs: &bin_dirs,
        scratch_dir: scratch.path(),
        mark: "one",
    };
    let mark = data.join("strongroom-recovery");
    let mut seen = Vec::new();
    recover(&backup, &request, &mut |progress| match progress {
        RecoveryProgress::Replaying { .. } => assert!(mark.exists(), "until then it may be gone on with"),
        RecoveryProgress::Promoting => seen.push(mark.exists()),
        _ => {}
    })
    .unwrap();
    assert_eq!(seen, [false], "taken away before the server is promoted");
    let again = recover(&backup, &request, &mut |_| {}).unwrap_err();
    assert!(
        matches!(again, RecoveryError::File(FileError::NotEmpty { .. })),
        "{again}"
    );
}

#[test]
fn a_moment_that_wal_does_not_reach_is_an_error_that_names_what_is_missing() {
    let binaries = oldest();
    let source = Source::start(binaries.clone());
    let (backup, facts) = source.base_backup();
    let known = source.commit(5);
    let end = source.archive_all();
    let later = Lsn(end.0 + (64 << 20));
    for (target, wal_end) in [
        (RecoveryTarget::Xid(known[4].xid + 1000), None),
        (RecoveryTarget::Name("nowhere".to_owned()), None),
        (RecoveryTarget::Lsn(later), None),
        (
            RecoveryTarget::Time(chrono::Utc::now() + chrono::TimeDelta::hours(1)),
            None,
        ),
        (RecoveryTarget::Latest, Some(later)),
    ] {
        let dir = passable_dir();
        let data = dir.path().join("data");
        let error = run(
            &backup,
            &facts,
            &to(target.clone(), wal_end),
            &data,
            FolderWal::of(&source),
        )
        .unwrap_err();
        assert!(matches!(error, RecoveryError::NotReached { .. }), "{target}: {error}");
        let missing = WalSegment::holding(1, end, 16 << 20).file_name(16 << 20);
        let said = error.to_string();
        assert!(said.contains(&missing) && said.contains("WAL ended at"), "{said}");
        assert!(!error.is_retryable() && is_unpromoted(&binaries, &data));
    }
}

#[test]
fn what_cannot_be_recovered_is_refused_before_anything_is_touched() {
    let source = Source::start(oldest());
    let (backup, facts) = source.base_backup();
    let dir = passable_dir();
    let data = dir.path().join("data");
    let wal = FolderWal::of(&source);
    let early_time = facts.stopped_at - chrono::TimeDelta::seconds(1);
    for target in [
        RecoveryTarget::Time(early_time),
        RecoveryTarget::Lsn(Lsn(facts.stop_lsn.0 - 1)),
    ] {
        let error = run(&backup, &facts, &to(target, None), &data, wal.clone()).unwrap_err();
        assert!(error.to_string().contains("recover from an earlier backup"), "{error}");
    }
    let unknown = Recovery {
        tablespaces: [(7, dir.path().join("t").display().to_string())].into(),
        ..to(RecoveryTarget::Latest, None)
    };
    let error = run(&backup, &facts, &unknown, &data, wal.clone()).unwrap_err();
    assert!(error.to_string().contains("no tablespace 7"), "{error}");
    let unstarted = Recovery {
        leave: Leave::Unstarted,
        ..to(RecoveryTarget::Latest, None)
    };
    let error = run(&backup, &facts, &unstarted, &data, wal.clone()).unwrap_err();
    assert!(error.to_string().contains("restore_command"), "{error}");
    assert!(!data.exists());

    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("precious"), "x").unwrap();
    let error = run(&backup, &facts, &to(RecoveryTarget::Latest, None), &data, wal.clone()).unwrap_err();
    assert!(
        matches!(error, RecoveryError::File(FileError::NotEmpty { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);

    let mut other = facts.clone();
    other.system_identifier = SystemIdentifier(1);
    let elsewhere = dir.path().join("other");
    let error = run(
        &backup,
        &other,
        &to(RecoveryTarget::Latest, None),
        &elsewhere,
        wal.clone(),
    )
    .unwrap_err();
    assert!(matches!(error, RecoveryError::OtherCluster { .. }), "{error}");

    let mut damaged = backup.clone();
    damaged.content_mut("base/1/1259")[100] ^= 1;
    let third = dir.path().join("third");
    let error = run(&damaged, &facts, &to(RecoveryTarget::Latest, None), &third, wal).unwrap_err();
    assert!(
        error.to_string().contains("base/1/1259") && error.is_about_backup(),
        "{error}"
    );
}

#[test]
fn a_short_segment_and_a_rolled_back_transaction_end_the_recovery() {
    let binaries = oldest();
    let source = Source::start(binaries.clone());
    let (backup, facts) = source.base_backup();
    source.commit(2);
    let xid: u32 = source
        .sql("BEGIN; INSERT INTO ledger DEFAULT VALUES; SELECT txid_current(); ROLLBACK")
        .parse()
        .unwrap();
    source.commit(1);
    let end = source.archive_all();
    let dir = passable_dir();
    let wal = FolderWal::of(&source);
    let data = dir.path().join("rolled-back");
    let error = run(&backup, &facts, &to(RecoveryTarget::Xid(xid), None), &data, wal.clone()).unwrap_err();
    assert!(error.to_string().contains("rolled back"), "{error}");
    assert!(is_unpromoted(&binaries, &data));

    let segment = WalSegment::holding(1, Lsn(end.0 - 1), 16 << 20).file_name(16 << 20);
    let file = std::fs::File::options()
        .write(true)
        .open(source.archive().join(segment))
        .unwrap();
    file.set_len(0).unwrap();
    let data = dir.path().join("short");
    let error = run(&backup, &facts, &to(RecoveryTarget::Latest, None), &data, wal).unwrap_err();
    assert!(
        matches!(error, RecoveryError::Wal { .. }) && !error.is_retryable(),
        "{error}"
    );
    assert!(is_unpromoted(&binaries, &data));
}

#[test]
fn a_drill_recovers_for_real_and_tells_a_bad_backup_from_a_vault_that_is_away() {
    for binaries in both_ends() {
        let source = Source::start(binaries.clone());
        source
            .server
            .create_database("shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id");
        let (backup, facts) = source.base_backup();
        source.archive_all();
        let scratch = passable_dir();
        let config = DrillConfig {
            scratch_dir: scratch.path().to_owned(),
            bin_dirs: extra_dirs(),
        };
        let wal = FolderWal::of(&source);
        let checks = drill_cluster(&backup, &facts, wal.clone(), &config, &mut |_| {})
            .unwrap()
            .checks;
        let outcomes: Vec<(&str, CheckOutcome)> = checks
            .iter()
            .map(|check| (check.name.as_str(), check.outcome))
            .collect();
        let passed = |name| (name, CheckOutcome::Passed);
        let expected = [
            "base backup files",
            "recovery target",
            "server answers",
            "databases",
            "page checksums",
        ];
        assert_eq!(outcomes, expected.map(passed), "{checks:?}");
        assert!(checks[3].detail.starts_with("3 databases"), "{checks:?}");

        let mut damaged = backup.clone();
        let page = damaged
            .entries
            .iter()
            .find(|(entry, _)| entry.path.ends_with("global/1262"))
            .unwrap();
        let path = page.0.path.clone();
        damaged.content_mut(&path)[4000] ^= 1;
        let checks = drill_cluster(&damaged, &facts, wal.clone(), &config, &mut |_| {})
            .unwrap()
            .checks;
        assert_eq!(checks[0].outcome, CheckOutcome::Failed, "{checks:?}");
        assert!(checks[0].detail.contains("global/1262"), "{checks:?}");

        wal.until_outage.store(0, Ordering::SeqCst);
        let error = drill_cluster(&backup, &facts, wal, &config, &mut |_| {}).unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert_eq!(
            std::fs::read_dir(scratch.path()).unwrap().count(),
            0,
            "scratch space was left behind"
        );
    }
}

#[test]
fn settings_that_the_source_raised_meanwhile_do_not_stop_the_recovery() {
    let binaries = oldest();
    let mut source = Source::start(binaries.clone());
    let (backup, facts) = source.base_backup();
    source.restart_with(&[("max_connections", "333"), ("max_prepared_transactions", "7")]);
    source.commit(3);
    source.archive_all();
    let dir = passable_dir();
    let data = dir.path().join("data");
    run(
        &backup,
        &facts,
        &to(RecoveryTarget::Latest, None),
        &data,
        FolderWal::of(&source),
    )
    .unwrap();
    assert_eq!(
        open(&binaries, &data).sql("postgres", "SELECT count(*) FROM ledger"),
        "3"
    );
}

#[test]
fn single_tables_come_out_as_dumps_and_nothing_else_stays() {
    let source = Source::start(oldest());
    source.server.create_database(
        "shop",
        "CREATE TABLE \"odd.name\" AS SELECT generate_series(1, 10) AS id",
    );
    let (backup, facts) = source.base_backup();
    source
        .server
        .sql("shop", "INSERT INTO \"odd.name\" SELECT generate_series(11, 30)");
    source.archive_all();
    let (dir, scratch) = (passable_dir(), passable_dir());
    let recovery = Recovery {
        tables: vec!["shop.public.\"odd.name\"".to_owned()],
        ..to(RecoveryTarget::Latest, None)
    };
    let destination = dir.path().join("out");
    let request = RecoveryRequest {
        facts: &facts,
        recovery: &recovery,
        destination: &destination,
        wal: FolderWal::of(&source),
        restore_command: None,
        bin_dirs: &extra_dirs(),
        scratch_dir: scratch.path(),
        mark: "one",
    };
    recover(&backup, &request, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    let file = destination.join("shop.public.odd.name.dump");
    let output = Command::new(oldest().program("pg_restore"))
        .args(["--data-only", "--file=-"])
        .arg(&file)
        .output()
        .unwrap();
    let rows = String::from_utf8(output.stdout).unwrap();
    let rows = rows.lines().filter(|line| line.parse::<u32>().is_ok()).count();
    assert_eq!(rows, 30);

    let error = recover(&backup, &request, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    let nothing = Recovery {
        tables: vec!["shop.public.nothing".to_owned()],
        ..recovery.clone()
    };
    let request = RecoveryRequest {
        recovery: &nothing,
        ..request
    };
    let error = recover(&backup, &request, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no matching"), "{error}");
    assert_eq!(std::fs::read_dir(&destination).unwrap().count(), 1);
}
