use std::path::Path;

use strongroom_connectors::postgres::{Checks, DrillConfig, DrillError, ServerBinaries, drill, dump, sample_sql};
use strongroom_proto::receipt::{Check, CheckOutcome};

use crate::memory::Memory;
use crate::server::{Server, extra_dirs, majors, oldest, passable_dir};

const NAMES: [&str; 6] = [
    "server started",
    "restore",
    "row counts",
    "content digests",
    "large objects",
    "object counts",
];

fn config(scratch: &Path) -> DrillConfig {
    DrillConfig {
        scratch_dir: scratch.to_owned(),
        bin_dirs: extra_dirs(),
    }
}

fn run(backup: &Memory) -> Vec<Check> {
    let scratch = passable_dir();
    let checks = drill(backup, &config(scratch.path())).unwrap();
    assert_eq!(
        checks.iter().map(|check| check.name.as_str()).collect::<Vec<_>>(),
        NAMES
    );
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert!(left.is_empty(), "the drill left {left:?}");
    checks
}

fn assert_only(failed: &str, checks: &[Check]) -> String {
    for check in checks {
        let expected = if check.name == failed {
            CheckOutcome::Failed
        } else {
            CheckOutcome::Passed
        };
        assert_eq!(check.outcome, expected, "{check:?}");
    }
    checks.iter().find(|check| check.name == failed).unwrap().detail.clone()
}

fn assert_restore_fails(checks: &[Check]) -> &str {
    assert_eq!(checks[0].outcome, CheckOutcome::Passed, "{:?}", checks[0]);
    assert_eq!(checks[1].outcome, CheckOutcome::Failed, "{:?}", checks[1]);
    for check in &checks[2..] {
        assert_eq!(check.outcome, CheckOutcome::Skipped, "{check:?}");
    }
    &checks[1].detail
}

/// The backup of a database that was changed, under the promises of the one before the change.
fn tampered(server: &Server, good: &Memory, change: &str) -> Memory {
    server.sql("postgres", "CREATE DATABASE changed TEMPLATE shop");
    server.sql("changed", change);
    let changed = server.dump("changed").with_entry_of(good, "checks.json");
    server.sql("postgres", "DROP DATABASE changed");
    changed
}

#[test]
fn a_good_backup_passes_and_every_bad_one_fails_at_its_own_check_on_every_version() {
    std::thread::scope(|scope| {
        for binaries in majors() {
            scope.spawn(|| try_every_fixture(binaries));
        }
    });
}

fn try_every_fixture(binaries: ServerBinaries) {
    let major = binaries.major;
    println!("drills on version {major}");
    let server = Server::start(binaries);
    server.create_database("shop", &sample_sql(2));
    let mut good = Memory::default();
    let mut target = server.target("shop");
    target.large_table_bytes = 200_000;
    dump(&target, &mut good).unwrap();
    assert!(good.entries.len() > 3, "no table had a stream of its own");

    let checks = run(&good);
    for check in &checks {
        assert_eq!(check.outcome, CheckOutcome::Passed, "{check:?}");
    }
    assert!(
        checks[0].detail.starts_with(&format!("PostgreSQL {major}")),
        "{:?}",
        checks[0]
    );

    let fewer = tampered(&server, &good, "DELETE FROM shop.documents WHERE id = 17");
    let detail = assert_only("row counts", &run(&fewer));
    assert!(detail.contains("shop.documents"), "{detail}");

    let altered = tampered(
        &server,
        &good,
        "UPDATE shop.customers SET name = name || '!' WHERE id = 3",
    );
    let detail = assert_only("content digests", &run(&altered));
    assert!(detail.contains("shop.customers"), "{detail}");

    let unlinked = "SELECT lo_unlink((SELECT min(oid) FROM pg_largeobject_metadata))";
    assert_only("large objects", &run(&tampered(&server, &good, unlinked)));
    let overwritten = "SELECT lo_put((SELECT min(oid) FROM pg_largeobject_metadata), 1, 'XX')";
    assert_only("large objects", &run(&tampered(&server, &good, overwritten)));

    let unindexed = tampered(&server, &good, "DROP INDEX shop.orders_open");
    let detail = assert_only("object counts", &run(&unindexed));
    assert!(detail.contains("INDEX"), "{detail}");

    let mut promised = good.clone();
    let mut text: Checks = serde_json::from_slice(promised.content("checks.json")).unwrap();
    *text.objects.get_mut("FUNCTION").unwrap() += 1;
    *promised.content_mut("checks.json") = serde_json::to_vec(&text).unwrap();
    assert_only("object counts", &run(&promised));

    // One bad statement: a tool that goes on after errors would call this restored.
    let mut bad = good.clone();
    let dump = bad.content_mut("database.dump");
    let at = dump.windows(13).rposition(|bytes| bytes == b"CREATE INDEX ").unwrap();
    dump[at + 11] = b'Y';
    let checks = run(&bad);
    let detail = assert_restore_fails(&checks);
    assert!(detail.contains("syntax error"), "{detail}");

    let mut short = good.clone();
    let dump = short.content_mut("database.dump");
    dump.truncate(dump.len() * 2 / 3);
    assert_restore_fails(&run(&short));

    let mut headless = good.clone();
    headless.content_mut("globals.sql").clear();
    let checks = run(&headless);
    assert!(
        assert_restore_fails(&checks).contains("does not exist"),
        "{:?}",
        checks[1]
    );
}

#[test]
fn a_backup_without_its_promises_fails_and_is_not_an_error() {
    let server = Server::start(oldest());
    server.create_database("shop", "CREATE TABLE t (n int)");
    let mut backup = server.dump("shop");
    backup.content_mut("checks.json").truncate(40);
    let checks = run(&backup);
    assert_eq!(checks[1].outcome, CheckOutcome::Failed);
    assert!(
        checks.iter().all(|check| check.outcome != CheckOutcome::Passed),
        "{checks:?}"
    );
}

#[test]
fn an_extension_that_is_not_installed_is_named_with_what_to_do() {
    let server = Server::start(oldest());
    server.create_database("shop", "CREATE EXTENSION citext; CREATE TABLE t (name citext)");
    let mut backup = server.dump("shop");
    let dump = backup.content_mut("database.dump");
    let statement = b"CREATE EXTENSION IF NOT EXISTS citext";
    let at = dump
        .windows(statement.len())
        .position(|bytes| bytes == statement)
        .unwrap();
    dump[at + statement.len() - 1] = b'x';
    let checks = run(&backup);
    let detail = assert_restore_fails(&checks);
    assert!(
        detail.contains("citexx") && detail.contains("install that extension's package"),
        "{detail}"
    );
}

#[test]
fn without_a_server_new_enough_nothing_is_said_about_the_backup() {
    let server = Server::start(oldest());
    server.create_database("shop", "CREATE TABLE t (n int)");
    let mut backup = server.dump("shop");
    let text = backup.text("checks.json");
    let major = server.cluster.binaries().major;
    let raised = text.replace(&format!("\"server_major\": {major}"), "\"server_major\": 99");
    *backup.content_mut("checks.json") = raised.into_bytes();
    let scratch = passable_dir();
    let error = drill(&backup, &config(scratch.path())).unwrap_err();
    assert!(matches!(error, DrillError::Server { .. }), "{error}");
}

#[test]
fn what_a_killed_drill_left_is_removed_and_a_running_one_is_left_alone() {
    let server = Server::start(oldest());
    server.create_database("shop", "CREATE TABLE t AS SELECT 1 AS n");
    let backup = server.dump("shop");
    let scratch = passable_dir();
    let dead = scratch.path().join("drill-dead");
    std::fs::create_dir_all(dead.join("data/base")).unwrap();
    let alive = scratch.path().join("drill-alive");
    std::fs::create_dir(&alive).unwrap();
    let lock = std::fs::File::open(&alive).unwrap();
    lock.lock().unwrap();
    let other = scratch.path().join("not-ours");
    std::fs::create_dir(&other).unwrap();
    let checks = drill(&backup, &config(scratch.path())).unwrap();
    assert!(
        checks.iter().all(|check| check.outcome == CheckOutcome::Passed),
        "{checks:?}"
    );
    assert!(!dead.exists());
    assert!(alive.exists() && other.exists());
}

#[test]
fn settings_of_the_database_do_not_change_the_digests() {
    let server = Server::start(oldest());
    server.create_database(
        "shop",
        "CREATE TABLE t AS SELECT '\\xdeadbeef'::bytea AS b, timestamptz '2024-05-06 07:08:09+00' AS at,
                                  interval '1 day 2 hours' AS i, 0.1::float8 AS f;
         ALTER DATABASE shop SET bytea_output = 'escape'; ALTER DATABASE shop SET timezone = 'Asia/Tokyo';
         ALTER DATABASE shop SET datestyle = 'German'; ALTER DATABASE shop SET intervalstyle = 'iso_8601'",
    );
    let checks = run(&server.dump("shop"));
    assert!(
        checks.iter().all(|check| check.outcome == CheckOutcome::Passed),
        "{checks:?}"
    );
}
