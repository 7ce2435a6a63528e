//! What `wal push` stores, and what it refuses.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::json;
use strongroom_testkit::Postgres;

use crate::place::{MIB, Place, name, segment, stderr};

/// Makes sure that Postgres would keep the file and try again; what was told.
fn refused(output: &Output) -> String {
    let code = output.status.code();
    assert!(matches!(code, Some(1..126)), "{output:?}");
    stderr(output)
}

#[test]
fn what_is_not_wal_of_this_place_is_refused_and_nothing_is_stored() {
    let place = Place::with_vault();
    let (good, wanted) = (segment(1, 3), name(1, 3));
    let mut foreign = good.clone();
    foreign[24] ^= 1;
    let mut old = good.clone();
    old[0] = 0;
    let damaged = "pg_wal/archive_status to .done";
    for (name, bytes, expected, advice) in [
        (wanted.as_str(), &[][..], "empty", damaged),
        (&wanted, &good[..MIB / 2], "524288 bytes", damaged),
        (&wanted, &[&good[..], &[0]].concat(), "1048577 bytes", damaged),
        (&wanted, &vec![0; MIB], "does not begin as WAL", damaged),
        (&wanted, &old, "does not begin as WAL", damaged),
        (&wanted, &foreign, "system identifier", "pg_controldata"),
        (&name(1, 4), &good, "its name means", damaged),
        ("00000002.history", b"", "not a timeline's history", damaged),
        ("nonsense\nname", &good, "is not the name", "give archive_command's %p"),
    ] {
        let told = refused(&place.push(name, bytes, &[]));
        for part in [expected, advice] {
            assert!(told.contains(part), "{name}: {told}");
        }
    }
    assert_eq!(place.objects().len(), 0);
    let gone = place.run(&["wal", "push", &place.text(&wanted), "--from", &place.text("push.json")]);
    assert!(refused(&gone).contains("read"));
    place.pushed(&wanted, &good);
    assert_eq!(place.objects().len(), 1);
}

#[test]
fn without_the_right_keys_nothing_is_stored() {
    let place = Place::with_vault();
    let other = Place::with_vault();
    let (store, path) = (place.text("vault"), place.text(&name(1, 3)));
    std::fs::write(&path, segment(1, 3)).unwrap();
    let push = |writer: &str, signer: &str, store: &str| {
        let system = crate::place::SYSTEM.to_string();
        place.run(&[
            "wal",
            "push",
            &path,
            "--store",
            store,
            "--writer-key",
            writer,
            "--signing-key",
            signer,
            "--system",
            &system,
        ])
    };
    let ours = ["keys/writer.key", "keys/signing-dumper.key"].map(|name| place.text(name));
    let theirs = ["keys/writer.key", "keys/signing-dumper.key"].map(|name| other.text(name));
    refused(&push(&theirs[0], &ours[1], &store));
    refused(&push(&ours[0], &theirs[1], &store));
    refused(&push(&ours[1], &ours[0], &store));
    refused(&push(&ours[0], &ours[1], &place.text("nowhere")));
    refused(&place.run(&["wal", "push", &path]));
    refused(&place.run(&["wal", "push"]));
    assert_eq!(place.objects().len(), 0);
    let pushed = push(&ours[0], &ours[1], &store);
    assert_eq!(pushed.status.code(), Some(0), "{}", stderr(&pushed));
    std::fs::set_permissions(place.path("push.json"), PermissionsExt::from_mode(0o644)).unwrap();
    assert!(refused(&place.push(&name(1, 4), &segment(1, 4), &[])).contains("chmod 600"));
}

#[test]
fn two_servers_that_push_one_name_do_not_fill_their_disks_and_are_told() {
    let place = Place::with_vault();
    let wanted = name(1, 3);
    place.pushed(&wanted, &segment(1, 3));
    let identity = place.text("keys/identity.txt");
    // The same once more, e.g. because the server died before it noted the first time.
    let again = place.push(&wanted, &segment(1, 3), &["--identity", &identity]);
    assert_eq!((again.status.code(), stderr(&again).as_str()), (Some(0), ""));
    assert_eq!(place.objects().len(), 1);
    let blind = place.push(&wanted, &segment(1, 3), &[]);
    assert_eq!(blind.status.code(), Some(0));
    assert!(
        stderr(&blind).contains("had WAL of 000000010000000000000003 already"),
        "{}",
        stderr(&blind)
    );
    assert_eq!(place.fetched(&wanted), segment(1, 3));
    let mut other = segment(1, 3);
    other[70_000] ^= 1;
    let before = place.objects().len();
    let apart = place.push(&wanted, &other, &["--identity", &identity]);
    assert_eq!(apart.status.code(), Some(0), "Postgres may forget it");
    let told = stderr(&apart);
    assert!(
        told.contains("WARNING") && told.contains("differs at 0/311170"),
        "{told}"
    );
    assert_eq!(place.objects().len(), before + 1, "it is kept beside the first");
    let told = place.ended(&place.fetch(&wanted, &[]));
    assert!(told.contains("two versions") && told.contains("0/311170"), "{told}");
}

/// Two servers that left timeline 1 at different places.
const HISTORIES: [&[u8]; 2] = [b"1\t0/300000\tx\n", b"1\t0/400000\tx\n"];

#[test]
fn two_histories_of_a_timeline_are_kept_apart_and_told_by_who_may_read() {
    let place = Place::with_vault();
    let identity = place.text("keys/identity.txt");
    let name = "0000000A.history";
    place.pushed(name, HISTORIES[0]);
    // The same once more, e.g. because the server died before it noted the first time.
    let again = place.push(name, HISTORIES[0], &["--identity", &identity]);
    assert_eq!((again.status.code(), stderr(&again).as_str()), (Some(0), ""));
    assert_eq!(place.objects().len(), 1);
    let apart = place.push(name, HISTORIES[1], &["--identity", &identity]);
    assert_eq!(apart.status.code(), Some(0), "Postgres may forget it");
    let told = stderr(&apart);
    for part in [
        "WARNING",
        "went on upon timeline 10, from different places",
        "stop the server",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(place.objects().len(), 2, "it is kept beside the first");
    assert!(place.ended(&place.fetch(name, &[])).contains("contradict"));
    // Of another timeline, nothing is said.
    place.pushed("0000000B.history", HISTORIES[0]);
}

#[test]
fn two_histories_of_a_timeline_are_told_also_by_who_may_not_read() {
    let place = Place::with_vault();
    let name = "0000000A.history";
    let first = place.push(name, HISTORIES[0], &[]);
    assert_eq!((first.status.code(), stderr(&first).as_str()), (Some(0), ""));
    let second = place.push(name, HISTORIES[1], &[]);
    assert_eq!(second.status.code(), Some(0));
    let told = stderr(&second);
    assert!(
        told.contains("WARNING") && told.contains("had a history of timeline 10 already"),
        "{told}"
    );
    assert_eq!(place.objects().len(), 2);
}

#[test]
fn two_histories_of_a_timeline_are_an_alert_and_one_twice_is_none() {
    let place = Place::with_vault();
    let catalog = Postgres::start().unwrap();
    catalog.create_database("catalog").unwrap();
    place.set_in("push.json", "catalog_url", json!(catalog.url("catalog")));
    place.set_in("push.json", "target", json!("orders-db"));
    let ask = |sql: &str| catalog.psql("catalog", sql).unwrap();
    let name = "0000000A.history";
    for _ in 0..2 {
        place.pushed(name, HISTORIES[0]);
    }
    assert_eq!(ask("select count(*) from alerts"), "0");
    let apart = place.push(name, HISTORIES[1], &[]);
    assert_eq!(apart.status.code(), Some(0));
    let told = stderr(&apart);
    assert!(
        told.contains("went on upon timeline 10, from different places"),
        "{told}"
    );
    let alert = "select target_identifier, kind, message like '%stop the server%' from alerts where cleared_at is null";
    assert_eq!(ask(alert), "orders-db|wal_two_histories|t");
    assert_eq!(
        ask("select ancestors -> 0 ->> 'at' from wal_histories"),
        "0/300000",
        "the first one stays"
    );
    // The vault shows it as well, to who may read.
    ask("delete from alerts");
    let identity = place.text("keys/identity.txt");
    place.pushed("0000000B.history", HISTORIES[0]);
    ask("delete from wal_histories");
    let apart = place.push("0000000B.history", HISTORIES[1], &["--identity", &identity]);
    assert_eq!(apart.status.code(), Some(0));
    assert_eq!(ask(alert), "orders-db|wal_two_histories|t");
    assert_eq!(ask("select count(*) from wal_histories"), "0");
}

#[test]
fn the_catalog_is_told_and_its_absence_loses_nothing() {
    let place = Place::with_vault();
    let catalog = Postgres::start().unwrap();
    catalog.create_database("catalog").unwrap();
    place.set_in("push.json", "catalog_url", json!(catalog.url("catalog")));
    place.set_in("push.json", "target", json!("orders-db"));
    for number in 3..5 {
        let pushed = place.push(&name(1, number), &segment(1, number), &[]);
        assert_eq!((pushed.status.code(), stderr(&pushed).as_str()), (Some(0), ""));
    }
    place.pushed("00000002.history", b"1\t0/500000\tx\n");
    let ask = |sql: &str| catalog.psql("catalog", sql).unwrap();
    assert_eq!(
        ask("select timeline, from_lsn, to_lsn from wal_ranges"),
        "1|0/300000|0/500000"
    );
    assert_eq!(ask("select timeline from wal_histories"), "2");
    assert_eq!(ask("select count(*) from alerts"), "0");
    let mut other = segment(1, 4);
    other[99] ^= 1;
    let identity = place.text("keys/identity.txt");
    assert_eq!(
        place
            .push(&name(1, 4), &other, &["--identity", &identity])
            .status
            .code(),
        Some(0)
    );
    let alert = ask("select target_identifier, kind, message like '%stop the server%' from alerts");
    assert_eq!(alert, "orders-db|wal_two_versions|t");
    catalog.kill().unwrap();
    let untold = place.push(&name(1, 5), &segment(1, 5), &[]);
    assert_eq!(untold.status.code(), Some(0));
    for part in [
        "the catalog was not told",
        "a dumper tells it within a minute",
        "catalog_url",
    ] {
        assert!(stderr(&untold).contains(part), "{}", stderr(&untold));
    }
    assert_eq!(place.fetched(&name(1, 5)), segment(1, 5));
}

#[test]
fn a_backup_label_is_taken_and_a_history_is_kept() {
    let place = Place::with_vault();
    place.pushed(&format!("{}.00000028.backup", name(1, 3)), b"START WAL LOCATION");
    assert_eq!(place.objects().len(), 0);
    place.pushed("0000000A.history", b"1\t0/300000\tx\n\n");
    assert_eq!(place.fetched("0000000A.history"), b"1\t0/300000\tx\n\n");
}
