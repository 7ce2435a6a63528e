//! The rows of every table of a cluster, counted by a drill of its base backup and where it runs.

use std::io::{Seek as _, SeekFrom, Write as _};

use strongroom_connectors::postgres::physical::ClusterTarget;
use strongroom_connectors::postgres::recovery::{Drilled, drill_cluster};
use strongroom_connectors::postgres::{DrillConfig, StopMode, count_cluster};
use strongroom_proto::cluster_tables::{ClusterTable, ClusterTables};
use strongroom_proto::receipt::CheckOutcome;

use crate::recovery_moments::both_ends;
use crate::recovery_source::{FolderWal, Source};
use crate::server::{extra_dirs, oldest, passable_dir};

/// Of tables that hold no rows of their own, or lose them in a recovery, nothing is said.
const TABLES: &str = r#"
CREATE TABLE grown AS SELECT n, repeat('x', 200) FROM generate_series(1, 5000) n;
CREATE TABLE gone AS SELECT n FROM generate_series(1, 7) n;
CREATE TABLE empty (n int PRIMARY KEY);
CREATE TABLE parts (n int) PARTITION BY RANGE (n);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
INSERT INTO parts SELECT generate_series(1, 30);
CREATE TABLE parent AS SELECT 1 AS n;
CREATE TABLE child () INHERITS (parent);
INSERT INTO child VALUES (2), (3);
CREATE SCHEMA "odd.schema";
CREATE TABLE "odd.schema"."a""b.c" AS SELECT 1 AS n;
CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n;
CREATE MATERIALIZED VIEW summed AS SELECT sum(n) FROM grown;
CREATE FOREIGN DATA WRAPPER nobody;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nobody;
CREATE FOREIGN TABLE elsewhere (n int) SERVER nowhere;
ALTER DATABASE shop SET role = 'nobody';
"#;

const SINCE: &str = "
DELETE FROM grown WHERE n > 500;
DROP TABLE gone;
CREATE TABLE fresh AS SELECT n FROM generate_series(1, 9) n;
";

/// Changes with the next transaction that writes anything anywhere on the server.
const NEXT_TRANSACTION: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())";

fn drill(source: &Source) -> Drilled {
    let (backup, facts) = source.base_backup();
    source.archive_all();
    let scratch = passable_dir();
    let config = DrillConfig {
        scratch_dir: scratch.path().to_owned(),
        bin_dirs: extra_dirs(),
    };
    drill_cluster(&backup, &facts, FolderWal::of(source), &config, &mut |_| {}).unwrap()
}

fn named<'a>(tables: &'a ClusterTables, name: &str) -> &'a ClusterTable {
    let found = tables.tables.iter().find(|table| table.name.to_string() == name);
    found.unwrap_or_else(|| panic!("no {name} in {tables:#?}"))
}

/// How many rows then, and how many now.
fn rows(tables: &ClusterTables, name: &str) -> (Option<u64>, Option<u64>) {
    let table = named(tables, name);
    (
        table.then.and_then(|size| size.rows),
        table.now.and_then(|size| size.rows),
    )
}

#[test]
fn a_drill_counts_every_table_of_every_database_and_says_what_has_changed_since() {
    for binaries in both_ends() {
        let source = Source::start(binaries);
        source.sql("ALTER SYSTEM SET autovacuum = off; CREATE ROLE nobody");
        source.sql("SELECT pg_reload_conf()");
        source.server.create_database("shop", TABLES);
        source
            .server
            .create_database("my.other", "CREATE TABLE grown AS SELECT generate_series(1, 3) AS n");
        // A database whose removal was interrupted lets nobody in.
        source.server.create_database("half", "");
        source.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'");
        let grown_bytes = source.server.sql("shop", "SELECT pg_total_relation_size('grown')");
        let drilled = drill(&source);
        for check in &drilled.checks {
            assert_eq!(check.outcome, CheckOutcome::Passed, "{check:?}");
        }
        let databases = &drilled.checks[3].detail;
        assert!(databases.starts_with("4 databases answer"), "{databases}");
        assert!(databases.ends_with("and 5044 rows in 8 tables"), "{databases}");

        let then = drilled.tables.unwrap();
        assert_eq!((then.tables.len(), then.more, then.now), (8, 0, None), "{then:#?}");
        assert_eq!(then.tables[0].name.to_string(), "shop.public.grown");
        let grown = then.tables[0].then.unwrap();
        assert_eq!(
            (grown.rows, grown.bytes.unwrap().to_string()),
            (Some(5_000), grown_bytes)
        );
        for (table, expected) in [
            ("shop.public.gone", 7),
            ("shop.public.empty", 0),
            ("shop.public.parts_low", 30),
            ("shop.public.parent", 1),
            ("shop.public.child", 2),
            (r#"shop."odd.schema"."a""b.c""#, 1),
            (r#""my.other".public.grown"#, 3),
        ] {
            assert_eq!(rows(&then, table), (Some(expected), None), "{table}");
        }
        assert_eq!(then.then.rows, Some(5_044));

        source.sql("ALTER DATABASE shop RESET ALL");
        source.server.sql("shop", SINCE);
        let next = source.sql(NEXT_TRANSACTION);
        let cluster = ClusterTarget::new(source.server.cluster.url("postgres").unwrap());
        let changed = then.clone().beside(count_cluster(&cluster).unwrap());
        assert_eq!(source.sql(NEXT_TRANSACTION), next, "something was written");
        assert_eq!(rows(&changed, "shop.public.grown"), (Some(5_000), Some(500)));
        assert_eq!(rows(&changed, "shop.public.gone"), (Some(7), None));
        assert_eq!(rows(&changed, "shop.public.fresh"), (None, Some(9)));
        assert_eq!(rows(&changed, r#""my.other".public.grown"#), (Some(3), Some(3)));
        assert_eq!(changed.tables[0].name.to_string(), "shop.public.grown");
        assert_eq!((changed.tables.len(), changed.now.unwrap().rows), (9, Some(546)));

        // Whoever may not read is told how large they are.
        source.sql("CREATE ROLE reader LOGIN REPLICATION");
        let mut url = cluster.url.clone();
        let query = url.query().unwrap_or_default().replace("user=postgres", "user=reader");
        url.set_query(Some(&query).filter(|query| !query.is_empty()).map(String::as_str));
        if !url.username().is_empty() {
            url.set_username("reader").unwrap();
        }
        let unread = then.beside(count_cluster(&ClusterTarget::new(url)).unwrap());
        let grown = named(&unread, "shop.public.grown").now.unwrap();
        assert!(grown.rows.is_none() && grown.bytes.is_some(), "{grown:?}");
    }
}

#[test]
fn a_table_that_a_prepared_transaction_locks_is_not_counted_and_no_fault_of_the_backup() {
    let mut source = Source::start(oldest());
    source.restart_with(&[("max_prepared_transactions", "1")]);
    // The database's own limit, which waiting for the lock exceeds, is not what ends a count.
    source.server.create_database(
        "shop",
        "CREATE TABLE free AS SELECT 1 AS n; CREATE TABLE locked AS SELECT 1 AS n;
         ALTER DATABASE shop SET statement_timeout = '1500ms'",
    );
    let lock = "BEGIN; LOCK TABLE locked; PREPARE TRANSACTION 'forgotten'";
    source.server.sql("shop", lock);
    let drilled = drill(&source);
    let databases = &drilled.checks[3];
    assert_eq!(databases.outcome, CheckOutcome::Passed, "{databases:?}");
    assert!(
        databases.detail.contains("1 rows in 1 tables; 1 tables were not"),
        "{databases:?}"
    );
    let tables = drilled.tables.unwrap();
    assert_eq!(rows(&tables, "shop.public.free").0, Some(1));
    assert_eq!(rows(&tables, "shop.public.locked").0, None);
    assert_eq!(tables.then.rows, None);
}

#[test]
fn a_page_in_the_midst_of_a_table_that_cannot_be_read_fails_the_drill_and_the_table_is_named() {
    let mut source = Source::start(oldest());
    source.sql("ALTER SYSTEM SET autovacuum = off");
    source.server.create_database(
        "shop",
        "CREATE TABLE orders AS SELECT n, repeat('x', 200) FROM generate_series(1, 1000) n",
    );
    let file = source.server.sql("shop", "SELECT pg_relation_filepath('orders')");
    source.server.cluster.stop(StopMode::Fast);
    // The cluster has no checksums, and its own list of files takes the page as it is: only reading it finds this.
    let mut page = std::fs::File::options()
        .write(true)
        .open(source.dir.path().join("data").join(file))
        .unwrap();
    page.seek(SeekFrom::Start(3 * 8192)).unwrap();
    page.write_all(&[0xff; 24]).unwrap();
    drop(page);
    source.server.cluster.start().unwrap();

    let drilled = drill(&source);
    let databases = &drilled.checks[3];
    assert_eq!(
        (databases.name.as_str(), databases.outcome),
        ("databases", CheckOutcome::Failed),
        "{:?}",
        drilled.checks
    );
    assert!(
        databases.detail.contains("shop.public.orders") && databases.detail.contains("invalid page in block 3"),
        "{databases:?}"
    );
    assert_eq!(drilled.tables, None);
}
