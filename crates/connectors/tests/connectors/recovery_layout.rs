//! What a recovered cluster looks like on disk: tablespaces, configuration that was elsewhere, a server left running.

use std::process::Command;

use strongroom_connectors::postgres::recovery::{RecoveryError, RecoveryRequest, recover};
use strongroom_proto::wal::{Leave, Recovery, RecoveryTarget};

use crate::recovery_moments::{both_ends, open, run, to};
use crate::recovery_source::{FolderWal, Source};
use crate::server::{extra_dirs, oldest, passable_dir};

#[test]
fn tablespaces_lie_in_the_data_folder_or_where_the_user_says() {
    for binaries in both_ends() {
        let source = Source::start(binaries.clone());
        for name in ["near", "far"] {
            let folder = source.own_folder(name);
            source.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", folder.display()));
            source.sql(&format!(
                "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 5000) AS id"
            ));
        }
        let (backup, facts) = source.base_backup();
        source.sql("INSERT INTO in_far VALUES (0)");
        source.archive_all();
        let dir = passable_dir();
        let data = dir.path().join("data");
        let place = dir.path().join("elsewhere");
        let far = facts
            .tablespaces
            .iter()
            .find(|tablespace| tablespace.location.ends_with("far"))
            .unwrap();
        let recovery = Recovery {
            tablespaces: [(far.oid, place.display().to_string())].into(),
            ..to(RecoveryTarget::Latest, None)
        };
        run(&backup, &facts, &recovery, &data, FolderWal::of(&source)).unwrap();
        let links: Vec<bool> = facts
            .tablespaces
            .iter()
            .map(|tablespace| data.join("pg_tblspc").join(tablespace.oid.to_string()).is_symlink())
            .collect();
        assert_eq!(links, [false, true]);
        assert!(place.read_dir().unwrap().count() > 0);
        let server = open(&binaries, &data);
        assert_eq!(server.sql("postgres", "SELECT count(*) FROM in_near"), "5000");
        assert_eq!(server.sql("postgres", "SELECT count(*) FROM in_far"), "5001");
        // The original's own folders are as they were.
        assert_eq!(source.sql("SELECT count(*) FROM in_far"), "5001");
    }
}

#[test]
fn a_cluster_whose_configuration_lay_elsewhere_is_left_running_with_a_safe_one() {
    let binaries = oldest();
    // There is no role called postgres.
    let source = Source::start_as(binaries.clone(), "chief officer");
    let (mut backup, facts) = source.base_backup();
    source.commit(3);
    source.archive_all();
    // As Debian has them; the manifest does not name what was never in the folder.
    let names = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
    backup
        .entries
        .retain(|(entry, _)| !names.contains(&entry.path.as_str()) && entry.path != "backup_manifest");
    let dir = passable_dir();
    let data = dir.path().join("data");
    let recovery = Recovery {
        leave: Leave::Running,
        ..to(RecoveryTarget::Latest, None)
    };
    let recovered = run(&backup, &facts, &recovery, &data, FolderWal::of(&source)).unwrap();
    let running = recovered.running.clone().unwrap();
    let port = running.port.to_string();
    let ready = Command::new(binaries.program("pg_isready"))
        .args(["-q", "-h", "127.0.0.1", "-p", &port])
        .status();
    let stopped = source.as_server_user(
        &running.pg_ctl,
        &["-D", data.to_str().unwrap(), "-m", "fast", "-s", "stop"],
    );
    assert!(ready.unwrap().success());
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    for name in names {
        assert!(
            recovered.notes.iter().any(|note| note.contains(name)),
            "{:?}",
            recovered.notes
        );
    }
    let hba = std::fs::read_to_string(data.join("pg_hba.conf")).unwrap();
    assert!(!hba.contains("trust"), "{hba}");
}

#[test]
fn a_base_backup_that_is_not_as_its_server_listed_it_is_refused() {
    let binaries = oldest();
    let source = Source::start(binaries);
    let (backup, facts) = source.base_backup();
    source.commit(1);
    source.archive_all();
    let recovery = to(RecoveryTarget::Latest, None);
    let at = backup.entries.iter().position(|(entry, _)| entry.path == "base/1/1259");
    let at = at.unwrap();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Option<Damage>, &str); 4] = [
        (Some(|content| content[4000] ^= 1), "base/1/1259"),
        // A page of zeros is a page for a server.
        (Some(|content| content[8192..16384].fill(0)), "base/1/1259"),
        (Some(|content| content.truncate(8192)), "base/1/1259"),
        (None, "pg_verifybackup"),
    ];
    for (damage, expected) in damages {
        let mut damaged = backup.clone();
        match damage {
            Some(damage) => damage(&mut damaged.entries[at].1),
            None => drop(damaged.entries.remove(at)),
        }
        let dir = passable_dir();
        let data = dir.path().join("data");
        let error = run(&damaged, &facts, &recovery, &data, FolderWal::of(&source)).unwrap_err();
        assert!(
            matches!(&error, RecoveryError::BadBackup { what } if what.contains(expected)),
            "{error}"
        );
    }
    let dir = passable_dir();
    run(
        &backup,
        &facts,
        &recovery,
        &dir.path().join("data"),
        FolderWal::of(&source),
    )
    .unwrap();
}

#[test]
fn a_folder_that_is_left_unstarted_is_recovered_by_the_first_server_that_is_started() {
    for binaries in both_ends() {
        let source = Source::start(binaries.clone());
        let (backup, facts) = source.base_backup();
        let known = source.commit(9);
        source.archive_all();
        let dir = passable_dir();
        let data = dir.path().join("data");
        let recovery = Recovery {
            leave: Leave::Unstarted,
            ..to(RecoveryTarget::Xid(known[4].xid), None)
        };
        let command = format!("cp '{}/%f' '%p'", source.archive().display());
        let request = RecoveryRequest {
            facts: &facts,
            recovery: &recovery,
            destination: &data,
            wal: FolderWal::of(&source),
            restore_command: Some(&command),
            bin_dirs: &extra_dirs(),
            scratch_dir: dir.path(),
            mark: "one",
        };
        recover(&backup, &request, &mut |_| {}).unwrap();
        let server = open(&binaries, &data);
        crate::cluster::wait_for("the end of the recovery", || {
            server.sql("postgres", "SELECT pg_is_in_recovery()") == "f"
        });
        assert_eq!(server.sql("postgres", "SELECT count(*) FROM ledger"), "5");
    }
}
