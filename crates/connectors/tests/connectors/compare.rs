use strongroom_connectors::postgres::{RestoreOptions, compare};
use strongroom_proto::database_changes::{DatabaseChanges, TableChange, TableChangeKind};

use crate::memory::Memory;
use crate::server::{Server, majors, oldest};

const REFUSE: RestoreOptions = RestoreOptions {
    allow_non_empty: false,
    globals: true,
};

const TABLES: &str = r#"
CREATE TABLE grown AS SELECT n FROM generate_series(1, 10) n;
CREATE TABLE shrunk AS SELECT n, repeat('x', 200) FROM generate_series(1, 5000) n;
CREATE TABLE gone AS SELECT n FROM generate_series(1, 7) n;
CREATE TABLE same (n int PRIMARY KEY);
CREATE TABLE parts (n int) PARTITION BY RANGE (n);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
INSERT INTO parts SELECT generate_series(1, 30);
CREATE SCHEMA "odd.schema ""*""";
CREATE TABLE "odd.schema ""*"""."a;b" AS SELECT 1 AS n;
CREATE MATERIALIZED VIEW summed AS SELECT sum(n) FROM grown;
SELECT lo_create(0), lo_create(0);
"#;

/// What happened since: some grew, some shrank, one is new and one is gone.
const SINCE: &str = "
INSERT INTO grown SELECT generate_series(1, 90);
DELETE FROM shrunk WHERE n > 1000;
DROP TABLE gone;
CREATE UNLOGGED TABLE fresh AS SELECT n FROM generate_series(1, 3) n;
SELECT lo_unlink(min(oid)) FROM pg_largeobject_metadata;
";

/// Changes with the next transaction that writes anything anywhere on the server. Nothing of the server's own writes.
const NEXT_TRANSACTION: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())";

fn quiet(server: &Server) {
    server.sql("postgres", "ALTER SYSTEM SET autovacuum = off");
    server.sql("postgres", "SELECT pg_reload_conf()");
}

fn named<'a>(changes: &'a DatabaseChanges, table: &str) -> &'a TableChange {
    let found = changes.tables.iter().find(|change| change.table == table);
    found.unwrap_or_else(|| panic!("no {table} in {changes:#?}"))
}

fn rows(changes: &DatabaseChanges, table: &str) -> (TableChangeKind, Option<u64>, Option<u64>) {
    let table = named(changes, table);
    let rows = |size: Option<strongroom_proto::database_changes::TableSize>| size.and_then(|size| size.rows);
    (table.change, rows(table.then), rows(table.now))
}

#[test]
fn each_table_is_shown_then_and_now_and_nothing_is_written() {
    for binaries in majors() {
        let server = Server::start(binaries);
        quiet(&server);
        server.create_database("shop", TABLES);
        let memory = server.dump("shop");
        let before = server.sql("shop", "SELECT pg_total_relation_size('shrunk')");
        server.sql("shop", SINCE);
        let next = server.sql("shop", NEXT_TRANSACTION);
        let changes = compare(&memory, &server.target("shop"), &REFUSE).unwrap();
        assert_eq!(server.sql("shop", NEXT_TRANSACTION), next, "something was written");

        use TableChangeKind::{Create, Keep, Replace};
        assert_eq!(rows(&changes, "grown"), (Replace, Some(10), Some(100)));
        assert_eq!(rows(&changes, "shrunk"), (Replace, Some(5000), Some(1000)));
        assert_eq!(rows(&changes, "gone"), (Create, Some(7), None));
        assert_eq!(rows(&changes, "fresh"), (Keep, None, Some(3)));
        assert_eq!(rows(&changes, "same"), (Replace, Some(0), Some(0)));
        assert_eq!(rows(&changes, "parts_low"), (Replace, Some(30), Some(30)));
        assert_eq!(rows(&changes, "a;b"), (Replace, Some(1), Some(1)));
        assert_eq!((changes.tables.len(), changes.more), (7, 0), "{changes:#?}");
        assert_eq!(changes.tables[0].table, "shrunk", "the largest change comes first");
        assert_eq!((changes.then.rows, changes.now.rows), (Some(5048), Some(1134)));
        assert_eq!((changes.large_objects_then, changes.large_objects_now), (2, 1));

        let then = named(&changes, "shrunk").then.unwrap().bytes.unwrap();
        assert_eq!(then.to_string(), before);
        let now = server.sql("shop", "SELECT pg_total_relation_size('fresh')");
        assert_eq!(named(&changes, "fresh").now.unwrap().bytes.unwrap().to_string(), now);

        assert!(changes.exists);
        let refused = changes.refused.unwrap();
        assert!(
            refused.contains("not empty") && refused.contains("relation public."),
            "{refused}"
        );
        let allowed = RestoreOptions {
            allow_non_empty: true,
            ..REFUSE
        };
        let changes = compare(&memory, &server.target("shop"), &allowed).unwrap();
        assert_eq!(changes.refused, None);
    }
}

#[test]
fn where_there_is_nothing_yet_everything_would_be_made_and_nothing_is() {
    let server = Server::start(oldest());
    quiet(&server);
    server.create_database("shop", TABLES);
    let memory = server.dump("shop");
    server.create_database("empty", "");
    let next = server.sql("postgres", NEXT_TRANSACTION);
    for (database, exists) in [("absent", false), ("empty", true)] {
        let changes = compare(&memory, &server.target(database), &REFUSE).unwrap();
        assert_eq!(
            (changes.exists, changes.refused.as_deref()),
            (exists, None),
            "{database}"
        );
        assert_eq!((changes.counts.created, changes.tables.len()), (6, 6));
        assert_eq!((changes.now.rows, changes.now.bytes), (Some(0), Some(0)));
    }
    let databases = server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'absent'");
    assert_eq!(
        (databases.as_str(), server.sql("postgres", NEXT_TRANSACTION)),
        ("0", next)
    );
}

#[test]
fn rows_that_the_role_may_not_read_are_not_known_and_the_rest_is() {
    let server = Server::start(oldest());
    server.create_database("shop", TABLES);
    let memory = server.dump("shop");
    server.sql(
        "shop",
        r#"CREATE ROLE reader LOGIN; GRANT SELECT ON grown, same TO reader; ALTER TABLE same ENABLE ROW LEVEL SECURITY"#,
    );
    let mut target = server.target("shop");
    let query = target
        .url
        .query()
        .unwrap_or_default()
        .replace("user=postgres", "user=reader");
    target
        .url
        .set_query(Some(&query).filter(|query| !query.is_empty()).map(String::as_str));
    if !target.url.username().is_empty() {
        target.url.set_username("reader").unwrap();
    }
    let changes = compare(&memory, &target, &REFUSE).unwrap();
    assert_eq!(rows(&changes, "grown").2, Some(10));
    for table in ["same", "shrunk", "a;b"] {
        let now = named(&changes, table).now.unwrap();
        assert!(now.rows.is_none() && now.bytes.is_some(), "{table}: {now:?}");
    }
    assert_eq!(changes.now.rows, None);
}

#[test]
fn a_server_that_is_older_would_refuse_and_a_backup_that_does_not_say_sizes_still_shows_rows() {
    let majors = majors();
    let newest = Server::start(majors.last().unwrap().clone());
    newest.create_database("shop", TABLES);
    let mut memory: Memory = newest.dump("shop");
    let mut checks: serde_json::Value = serde_json::from_slice(memory.content("checks.json")).unwrap();
    for table in checks["tables"].as_array_mut().unwrap() {
        assert!(table.as_object_mut().unwrap().remove("bytes").is_some());
    }
    *memory.content_mut("checks.json") = serde_json::to_vec(&checks).unwrap();
    let destination = Server::start(majors[0].clone());
    let changes = compare(&memory, &destination.target("shop"), &REFUSE).unwrap();
    assert_eq!((changes.then.rows, changes.then.bytes), (Some(5048), None));
    let is_older = majors.len() > 1;
    assert_eq!(changes.refused.is_some_and(|why| why.contains("or newer")), is_older);
}

#[test]
fn a_destination_that_lets_nobody_in_is_an_error_with_the_reason() {
    let server = Server::start(oldest());
    server.create_database("shop", TABLES);
    let memory = server.dump("shop");
    let mut target = server.target("shop");
    target.url = "postgres://nobody@127.0.0.1:1/shop".parse().unwrap();
    let error = compare(&memory, &target, &REFUSE).unwrap_err();
    assert!(
        error.to_string().contains("connect to nobody@127.0.0.1:1/shop"),
        "{error}"
    );
    assert!(error.to_string().contains("can be reached from here"), "{error}");
}
