//! Following the WAL of real servers: through crashes, promotions and lost slots.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::DateTime;
use strongroom_connectors::postgres::Cluster;
use strongroom_connectors::postgres::physical::{ClusterTarget, ReceiveError, WalEvent, check_slot, probe};
use strongroom_proto::wal::{Lsn, RecoveryTarget, SystemIdentifier, TimelineHistory};
use strongroom_testkit::{Postgres, wait_for};

use crate::physical::{MemoryWal, Receiving, WITHIN, binaries, give, lsn, run, start, target};
use crate::recovery_moments;
use crate::recovery_source::{FolderWal, Source};
use crate::server::{self, Server, passable_dir};

const MAJORS: [u32; 2] = [15, 18];
const WRITE: &str = "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
const END: &str = "SELECT pg_current_wal_flush_lsn()";

fn start_writing(major: u32, settings: &[(&str, &str)]) -> Postgres {
    let server = start(major, settings);
    server.psql("postgres", "CREATE TABLE t (t text)").unwrap();
    server
}

fn write(server: &Postgres) -> Lsn {
    server.psql("postgres", WRITE).unwrap();
    lsn(server, END)
}

#[test]
fn a_killed_server_leaves_neither_a_hole_nor_two_versions() {
    for major in MAJORS {
        let server = start_writing(major, &[("fsync", "on"), ("wal_keep_size", "1GB")]);
        let wal = MemoryWal::new();
        for round in 0..3 {
            let receiving = Receiving::start(target(&server), &wal);
            // Once more than a segment.
            for _ in 0..if round == 1 { 30 } else { 1 } {
                write(&server);
            }
            let end = write(&server);
            receiving.wait_stored(1, end);
            server.kill().unwrap();
            let error = receiving.ended().unwrap_err();
            assert!(error.is_retryable(), "{error}");
            server.restart().unwrap();
        }
        let receiving = Receiving::start(target(&server), &wal);
        let end = write(&server);
        receiving.wait_stored(1, end);
        let ended = receiving.stop().unwrap();
        assert!(ended.at >= end && ended.at == wal.end(1));
        wal.compare_with(1, &server.data_dir());
    }
}

#[test]
fn the_slot_is_never_ahead_of_what_is_durable() {
    for major in MAJORS {
        let server = start_writing(major, &[("fsync", "off")]);
        let wal = MemoryWal::new();
        let receiving = Receiving::start(target(&server), &wal);
        receiving.wait_stored(1, write(&server));
        wal.gate.send_replace(false);
        for _ in 0..30 {
            write(&server);
        }
        let end = write(&server);
        let facts = wait_for("a slot that holds back WAL", WITHIN, || {
            let facts = check_slot(&target(&server)).unwrap().unwrap();
            facts
                .behind_bytes
                .is_some_and(|bytes| bytes > 20 << 20)
                .then_some(facts)
        })
        .unwrap();
        assert!(!facts.is_lost(), "{facts:?}");
        assert!(facts.restart_lsn.unwrap() <= wal.end(1), "{facts:?}");
        wal.gate.send_replace(true);
        receiving.wait_stored(1, end);
        wait_for("the slot to move on", WITHIN, || {
            let facts = check_slot(&target(&server)).unwrap().unwrap();
            assert!(facts.restart_lsn.unwrap() <= wal.end(1), "{facts:?}");
            (facts.restart_lsn.unwrap() >= end).then_some(())
        })
        .unwrap();
        receiving.stop().unwrap();
        wal.compare_with(1, &server.data_dir());
    }
}

#[test]
fn an_idle_server_keeps_its_receiver_and_its_last_commit_survives_a_crash() {
    let source = Source::start(server::oldest());
    for (name, value) in [("wal_sender_timeout", "1s"), ("autovacuum", "off")] {
        source.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    source.sql("SELECT pg_reload_conf()");
    let wal = MemoryWal::new();
    let receiving = Receiving::start(ClusterTarget::new(source.server.cluster.url("postgres").unwrap()), &wal);
    let (backup, facts) = source.base_backup();
    let last = source.commit(7).pop().unwrap();
    let at = source.sql("SELECT clock_timestamp() + interval '3 s'");
    let at = chrono::DateTime::parse_from_str(&at, "%Y-%m-%d %H:%M:%S%.f%#z").unwrap();
    // Three times as long as the server waits for an answer.
    receiving.wait("an idle server", |event| match event {
        WalEvent::Idle { to, server_time, .. } if *to >= last.lsn && server_time.is_some_and(|time| time > at) => {
            Some(())
        }
        _ => None,
    });
    // Nothing fills the segment or switches it, and the server has no time to send more.
    let pid = i32::try_from(source.server.cluster.pid().unwrap()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let error = receiving.ended().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    wal.compare_with(1, &source.dir.path().join("data"));

    let dir = passable_dir();
    let (segments, data) = (dir.path().join("wal"), dir.path().join("data"));
    std::fs::create_dir(&segments).unwrap();
    wal.write_segments(1, &segments);
    let latest = recovery_moments::to(RecoveryTarget::Latest, Some(wal.end(1)));
    recovery_moments::run(&backup, &facts, &latest, &data, FolderWal::at(&segments)).unwrap();
    let recovered = recovery_moments::open(source.server.cluster.binaries(), &data);
    let rows = recovered.sql("postgres", "SELECT count(*), max(xid) FROM ledger");
    assert_eq!(rows, format!("7|{}", last.xid));
}

#[test]
fn what_a_failing_store_refused_comes_again() {
    let server = start_writing(15, &[("fsync", "off")]);
    let wal = MemoryWal::new();
    let receiving = Receiving::start(target(&server), &wal);
    receiving.wait_stored(1, write(&server));
    wal.fails.store(true, Ordering::SeqCst);
    let end = write(&server);
    let error = receiving.ended().unwrap_err();
    assert!(
        matches!(error, ReceiveError::Store { .. }) && error.is_retryable(),
        "{error}"
    );
    wal.fails.store(false, Ordering::SeqCst);
    let receiving = Receiving::start(target(&server), &wal);
    receiving.wait_stored(1, end);
    receiving.stop().unwrap();
    wal.compare_with(1, &server.data_dir());
}

/// What the server writes while nobody receives; gives back where that begins and ends.
fn write_unseen(server: &Postgres, wal: &Arc<MemoryWal>) -> (Lsn, Lsn) {
    let receiving = Receiving::start(target(server), wal);
    receiving.wait_stored(1, write(server));
    let from = receiving.stop().unwrap().at;
    for _ in 0..40 {
        write(server);
    }
    server.psql("postgres", "CHECKPOINT").unwrap();
    (from, lsn(server, END))
}

#[test]
fn names_of_objects_alone_make_no_receiver_skip_wal() {
    let server = start_writing(15, &[("fsync", "off"), ("autovacuum", "off")]);
    let wal = MemoryWal::new();
    let (from, to) = write_unseen(&server, &wal);
    let segment = |number: u64| Lsn(((to.0 >> 24) + number) << 24);
    // What a power loss tore, and what somebody made who may do no more than make objects.
    *wal.hollow.lock().unwrap() = vec![(from, to), (segment(2), segment(3)), (segment(9999), segment(10000))];
    let receiving = Receiving::start(target(&server), &wal);
    for _ in 0..60 {
        write(&server);
    }
    receiving.wait_stored(1, write(&server));
    receiving.stop().unwrap();
    assert!(wal.end(1) > segment(3));
    wal.compare_with(1, &server.data_dir());
}

#[test]
fn a_vault_that_is_ahead_of_its_server_is_told() {
    let server = start_writing(15, &[("fsync", "off")]);
    let wal = MemoryWal::new();
    let (from, to) = write_unseen(&server, &wal);
    let ahead = Lsn(to.0 + (64 << 20));
    *wal.hollow.lock().unwrap() = vec![(from, to), (to, ahead)];
    let error = Receiving::start(target(&server), &wal).ended().unwrap_err();
    assert!(
        matches!(error, ReceiveError::OtherHistory { at, timeline: 1, .. } if at == ahead),
        "{error}"
    );
}

#[test]
fn wal_that_comes_late_does_not_claim_to_reach_the_present() {
    let server = start_writing(15, &[("fsync", "off"), ("autovacuum", "off")]);
    let wal = MemoryWal::new();
    let (_, end) = write_unseen(&server, &wal);
    let written = server.psql("postgres", "SELECT clock_timestamp()").unwrap();
    let written = chrono::DateTime::parse_from_str(&written, "%Y-%m-%d %H:%M:%S%.f%#z").unwrap();
    let receiving = Receiving::start(target(&server), &wal);
    receiving.wait_stored(1, end);
    // A fresh one shows that it is known again.
    let end_now = write(&server);
    receiving.wait("a time of the server's", |event| match event {
        WalEvent::Stored { to, server_time, .. } if *to >= end_now => server_time.filter(|time| *time > written),
        _ => None,
    });
    let events = receiving.events.lock().unwrap().clone();
    receiving.stop().unwrap();
    let late: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            WalEvent::Stored { to, server_time, .. } if *to < end => Some(*server_time),
            _ => None,
        })
        .collect();
    assert!(late.len() > 1, "{events:?}");
    assert_eq!(late, vec![None; late.len()]);
    let pieces = wal.pieces.lock().unwrap();
    assert!(
        pieces
            .iter()
            .all(|(piece, _)| piece.to >= end || piece.server_time.is_none_or(|time| time < written))
    );
}

/// A copy of a server that follows it, and its data folder.
fn standby_of(primary: &Postgres, major: u32) -> (Server, PathBuf) {
    let dir = passable_dir();
    let data = dir.path().join("data");
    let mut copy = Command::new(primary.bin_dir().join("pg_basebackup"));
    run(copy
        .args(["-R", "-c", "fast", "-d", &primary.url("postgres")])
        .arg("-D")
        .arg(&data));
    give(dir.path(), &primary.data_dir());
    let mut options = server::options(dir.path().join("socket"));
    // What the tool wrote may be more than the server's own libpq understands.
    let primary_conninfo = format!("host=127.0.0.1 port={} user=postgres", primary.port());
    options.settings = vec![("primary_conninfo".to_owned(), primary_conninfo)];
    let mut cluster = Cluster::open(binaries(major), &data, options).unwrap();
    cluster.start().unwrap();
    (Server::of(cluster, dir), data)
}

#[test]
fn a_standby_tells_the_time_of_the_last_commit_and_not_its_own() {
    for major in MAJORS {
        let settings = [("fsync", "off"), ("wal_keep_size", "1GB"), ("autovacuum", "off")];
        let primary = start_writing(major, &settings);
        let clock = || {
            let now = primary.psql("postgres", "SELECT clock_timestamp()").unwrap();
            DateTime::parse_from_str(&now, "%Y-%m-%d %H:%M:%S%.f%#z").unwrap()
        };
        let (standby, _) = standby_of(&primary, major);
        let wal = MemoryWal::new();
        let receiving = Receiving::start(ClusterTarget::new(standby.cluster.url("postgres").unwrap()), &wal);
        let before = clock();
        receiving.wait_stored(1, write(&primary));
        let after = clock();
        receiving.wait("the time of the commit", |event| match event {
            WalEvent::Stored { server_time, .. } => server_time.filter(|time| *time >= before),
            _ => None,
        });
        // Cut off, it has nothing more, and nobody there knows what is committed since.
        primary.kill().unwrap();
        let seen = receiving.events.lock().unwrap().len();
        wait_for("a standby that has nothing more", WITHIN, || {
            let events = receiving.events.lock().unwrap();
            let idle = events.iter().skip(seen);
            (idle.filter(|event| matches!(event, WalEvent::Idle { .. })).count() > 3).then_some(())
        })
        .unwrap();
        for event in receiving.events.lock().unwrap().iter() {
            match event {
                WalEvent::Stored { server_time, .. } => {
                    assert!(server_time.is_none_or(|time| time <= after), "{event:?}")
                }
                WalEvent::Idle { server_time, .. } => assert_eq!(*server_time, None),
                _ => {}
            }
        }
        // Promoted, it says itself until when it has everything.
        standby.sql("postgres", "SELECT pg_promote()");
        receiving.wait("a time of its own", |event| match event {
            WalEvent::Idle {
                timeline: 2,
                server_time,
                ..
            } => server_time.filter(|time| *time > after),
            _ => None,
        });
        receiving.stop().unwrap();
    }
}

#[test]
fn the_right_to_replicate_is_enough_to_ask_about_a_slot() {
    for major in MAJORS {
        let server = start_writing(major, &[("fsync", "off"), ("max_slot_wal_keep_size", "100MB")]);
        server.psql("postgres", "CREATE ROLE carl LOGIN REPLICATION").unwrap();
        let hba = server.data_dir().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).unwrap();
        let of_role = "host replication carl 127.0.0.1/32 trust\nhost all carl 127.0.0.1/32 reject\n";
        std::fs::write(&hba, format!("{of_role}{rules}")).unwrap();
        server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
        let mut url: url::Url = server.url("postgres").parse().unwrap();
        url.set_username("carl").unwrap();
        let carl = ClusterTarget::new(url);
        let wal = MemoryWal::new();
        let receiving = Receiving::start(carl.clone(), &wal);
        receiving.wait_stored(1, write(&server));
        receiving.stop().unwrap();
        for _ in 0..30 {
            write(&server);
        }
        // What the server writes by itself comes between two questions now and then.
        wait_for("what the server says itself", WITHIN, || {
            let asked = "SELECT restart_lsn, pg_current_wal_flush_lsn(), pg_current_wal_flush_lsn() - restart_lsn, \
                                safe_wal_size FROM pg_replication_slots";
            let facts = check_slot(&carl).unwrap().unwrap();
            let said = server.psql("postgres", asked).unwrap();
            assert!(facts.behind_bytes.unwrap() > 20 << 20 && !facts.is_lost(), "{facts:?}");
            let told = format!(
                "{}|{}|{}|{}",
                facts.restart_lsn?, facts.server_end, facts.behind_bytes?, facts.safe_bytes?
            );
            (said.trim() == told).then_some(())
        })
        .unwrap();
    }
}

#[test]
fn a_promoted_standby_is_followed_to_its_timeline() {
    for major in MAJORS {
        let primary = start_writing(major, &[("fsync", "off"), ("wal_keep_size", "1GB")]);
        let (standby, data) = standby_of(&primary, major);
        let wal = MemoryWal::new();
        // By its Unix socket.
        let target = ClusterTarget::new(standby.cluster.url("postgres").unwrap());
        let receiving = Receiving::start(target.clone(), &wal);
        receiving.wait_stored(1, write(&primary));
        primary.kill().unwrap();
        standby.sql("postgres", "SELECT pg_promote()");
        let at = receiving.wait("the new timeline", |event| match event {
            WalEvent::Switched { from: 1, to: 2, at } => Some(*at),
            _ => None,
        });
        standby.sql("postgres", WRITE);
        let end: Lsn = standby.sql("postgres", END).parse().unwrap();
        receiving.wait_stored(2, end);
        receiving.stop().unwrap();
        assert_eq!(wal.end(1), at, "the old timeline is whole");
        let history = TimelineHistory::parse(2, &wal.histories.lock().unwrap()[&2]).unwrap();
        assert_eq!((history.ancestors[0].timeline, history.ancestors[0].at), (1, at));
        wal.compare_with(2, &data);
        // A receiver that comes later goes on where that one was.
        standby.sql("postgres", WRITE);
        let end: Lsn = standby.sql("postgres", END).parse().unwrap();
        let receiving = Receiving::start(target, &wal);
        receiving.wait_stored(2, end);
        receiving.stop().unwrap();
        wal.compare_with(2, &data);
    }
}

#[test]
fn the_wal_of_another_cluster_is_refused() {
    let server = start_writing(15, &[("fsync", "off")]);
    let own = probe(&target(&server)).unwrap().system_identifier;
    let wal = MemoryWal::new();
    let other = SystemIdentifier(own.0 ^ 1);
    let error = Receiving::start_expecting(target(&server), &wal, Some(other))
        .ended()
        .unwrap_err();
    assert!(
        matches!(error, ReceiveError::OtherSystem { expected, found, .. } if (expected, found) == (other, own)),
        "{error}"
    );
    assert!(!error.is_retryable());
    assert!(wal.pieces.lock().unwrap().is_empty());
    assert_eq!(
        check_slot(&target(&server)).unwrap(),
        None,
        "nothing was made on the other cluster"
    );
}

/// Ends what the server keeps of its WAL.
fn recycle(server: &Postgres) {
    for _ in 0..4 {
        write(server);
        server.psql("postgres", "SELECT pg_switch_wal()").unwrap();
        server.psql("postgres", "CHECKPOINT").unwrap();
    }
}

fn gap(receiving: &Receiving) -> (Lsn, Lsn) {
    receiving.wait("a gap", |event| match event {
        WalEvent::Gap { from, to, .. } => Some((*from, *to)),
        _ => None,
    })
}

fn reason(receiving: &Receiving) -> String {
    receiving.wait("a lost slot", |event| match event {
        WalEvent::SlotLost { reason, .. } => Some(reason.clone()),
        _ => None,
    })
}

#[test]
fn a_dropped_slot_and_the_gap_behind_it_are_told() {
    for major in MAJORS {
        let server = start_writing(
            major,
            &[("fsync", "off"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")],
        );
        let wal = MemoryWal::new();
        let receiving = Receiving::start(target(&server), &wal);
        receiving.wait_stored(1, write(&server));
        let ended = receiving.stop().unwrap();
        wait_for("the receiver's end on the server", WITHIN, || {
            let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
            (server.psql("postgres", active).ok()?.trim() == "0").then_some(())
        })
        .unwrap();
        server
            .psql("postgres", "SELECT pg_drop_replication_slot('strongroom')")
            .unwrap();
        assert_eq!(check_slot(&target(&server)).unwrap(), None);
        recycle(&server);
        let receiving = Receiving::start(target(&server), &wal);
        assert!(reason(&receiving).contains("no such slot"));
        let (from, to) = gap(&receiving);
        assert_eq!(from, ended.at);
        assert!(to > from && to.0 % (16 << 20) == 0);
        receiving.wait_stored(1, write(&server));
        receiving.stop().unwrap();
        let pieces = wal.pieces.lock().unwrap();
        assert!(pieces.iter().all(|(piece, _)| piece.to <= from || piece.from >= to));
    }
}

#[test]
fn a_receiver_that_begins_anew_stores_a_history_once() {
    let server = start_writing(
        15,
        &[("fsync", "off"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")],
    );
    server.kill().unwrap();
    let signal = server.data_dir().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    give(&signal, &server.data_dir());
    server.restart().unwrap();
    server.psql("postgres", "SELECT pg_promote()").unwrap();
    let wal = MemoryWal::new();
    let receiving = Receiving::start(target(&server), &wal);
    receiving.wait_stored(2, write(&server));
    receiving.stop().unwrap();
    assert_eq!(wal.histories_put.load(Ordering::SeqCst), 1);
    let drop_slot = "SELECT pg_drop_replication_slot('strongroom')";
    wait_for("the receiver's end on the server", WITHIN, || {
        server.psql("postgres", drop_slot).ok()
    })
    .unwrap();
    recycle(&server);
    let receiving = Receiving::start(target(&server), &wal);
    // It is asked for in vain, so that the connection is made twice.
    gap(&receiving);
    receiving.wait_stored(2, write(&server));
    receiving.stop().unwrap();
    assert_eq!(wal.histories_put.load(Ordering::SeqCst), 2, "once for each receiver");
}

#[test]
fn a_slot_that_the_server_gave_up_is_made_anew() {
    for major in MAJORS {
        let settings = [
            ("fsync", "off"),
            ("max_wal_size", "32MB"),
            ("min_wal_size", "32MB"),
            ("max_slot_wal_keep_size", "1MB"),
        ];
        let server = start_writing(major, &settings);
        let wal = MemoryWal::new();
        let receiving = Receiving::start(target(&server), &wal);
        receiving.wait_stored(1, write(&server));
        let ended = receiving.stop().unwrap();
        recycle(&server);
        assert!(check_slot(&target(&server)).unwrap().unwrap().is_lost());
        let receiving = Receiving::start(target(&server), &wal);
        let reason = reason(&receiving);
        assert!(reason.contains("slot"), "{reason}");
        assert_eq!(gap(&receiving).0, ended.at);
        receiving.wait_stored(1, write(&server));
        receiving.stop().unwrap();
    }
}
