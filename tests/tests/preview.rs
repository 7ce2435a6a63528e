//! `strongroom restore … --preview`: what is said before anything is touched, and that nothing is.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use strongroom_testkit::{Postgres, free_port};
use strongroom_tests::clusters::{TARGET, back_up, protected, received};
use strongroom_tests::{Fleet, Told, files_target, postgres_target};

/// Changes with the next transaction that writes anything anywhere on the server.
const NEXT_TRANSACTION: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())";

const TABLES: &str = "
CREATE TABLE orders AS SELECT n, md5(n::text) FROM generate_series(1, 4000) n;
CREATE TABLE customers AS SELECT n FROM generate_series(1, 50) n;
CREATE TABLE invoices AS SELECT n FROM generate_series(1, 300) n;
";

/// What happened since: one table grew, one shrank, one is new and one is gone.
const SINCE: &str = "
DELETE FROM orders WHERE n > 500;
INSERT INTO customers SELECT generate_series(51, 60);
DROP TABLE invoices;
CREATE TABLE mistakes AS SELECT n FROM generate_series(1, 9) n;
";

fn quiet_server() -> Postgres {
    let server = Postgres::start().unwrap();
    server.psql("postgres", "ALTER SYSTEM SET autovacuum = off").unwrap();
    server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    server
}

fn backed_up(fleet: &Fleet, target: &str) -> Value {
    let told = fleet.strongroom(&["backup", target, "--wait", "--json"]).unwrap();
    let jobs: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
    assert_eq!(jobs["jobs"][0]["status"], "completed", "{jobs}");
    jobs["jobs"][0].clone()
}

fn preview(fleet: &Fleet, args: &[&str]) -> Told {
    fleet
        .strongroom(&[&["restore"], args, &["--preview"]].concat())
        .unwrap()
}

fn document(fleet: &Fleet, args: &[&str]) -> Value {
    let told = preview(fleet, &[args, &["--json"]].concat());
    serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"))
}

/// Whether a line of a text has these words, in this order and with nothing between them but spaces.
fn has_row(text: &str, words: &str) -> bool {
    let wanted: Vec<&str> = words.split_whitespace().collect();
    text.lines().any(|line| {
        line.split_whitespace()
            .collect::<Vec<_>>()
            .windows(wanted.len())
            .any(|row| row == wanted)
    })
}

fn restore_receipts(fleet: &Fleet, backup: &str) -> usize {
    let folder = fleet.vault_dir().join("backups").join(backup).join("restores");
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_shown_then_and_now_and_nothing_is_written() {
    let server = quiet_server();
    server.create_database("shop").unwrap();
    server.psql("shop", TABLES).unwrap();
    let fleet = Fleet::start(&[postgres_target("shop-db", &server.url("shop"))])
        .await
        .unwrap();
    let job = backed_up(&fleet, "shop-db");
    let backup = job["backup_id"].as_str().unwrap();
    server.psql("shop", SINCE).unwrap();
    let next = server.psql("shop", NEXT_TRANSACTION).unwrap();

    // Without a destination, it is the target's own database, as the restorer's configuration has it.
    let told = preview(&fleet, &[backup]);
    assert_eq!(told.code, 0, "{told:?}");
    println!("{}", told.stdout);
    for row in [
        "public.orders replace 500 4000 +3500",
        "public.invoices create - 300 +300",
        "public.customers replace 60 50 -10",
        "public.mistakes keep 9 - 0",
        "all tables 569 4350",
        "tables: 1 would be created, 2 replaced, 1 kept that the backup does not have",
        "nothing was touched",
    ] {
        assert!(has_row(&told.stdout, row), "{row:?} in:\n{}", told.stdout);
    }
    let place = |row: &str| told.stdout.lines().position(|line| line.starts_with(row)).unwrap();
    assert!(place("backup") < place("TABLE") && place("public.orders") < place("public.customers"));
    assert!(
        told.stdout.contains("would be refused: the database"),
        "{}",
        told.stdout
    );

    // The same for a machine, of a destination that is named, with a reason to write over it.
    let url = server.url("shop");
    let found = document(&fleet, &[backup, "--destination", &url, "--overwrite-reason", "a test"]);
    assert_eq!(found["backup_id"], backup);
    let changes = &found["changes"];
    assert_eq!(
        (&changes["dry_run"], &changes["database"]["exists"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(changes["database"].get("refused"), None, "{changes}");
    let orders = &changes["database"]["tables"][0];
    assert_eq!(
        (&orders["table"], &orders["then"]["rows"]),
        (&json!("orders"), &json!(4000))
    );
    assert!(orders["then"]["bytes"].as_u64().unwrap() > 100_000, "{orders}");
    assert!(orders["now"]["bytes"].as_u64().unwrap() > 100_000, "{orders}");

    // A database that is not there would be made, and is not.
    let told = preview(&fleet, &[backup, "--destination", &server.url("absent")]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.stdout.contains("there is no such database now"), "{}", told.stdout);
    assert!(
        has_row(&told.stdout, "tables: 3 would be created, 0 replaced,"),
        "{}",
        told.stdout
    );
    let told = fleet
        .strongroom(&["restore", backup, "--destination", &url, "--dry-run"])
        .unwrap();
    assert_eq!(told.code, 0, "{told:?}");
    assert!(
        has_row(&told.stdout, "public.orders replace 500 4000 +3500"),
        "{}",
        told.stdout
    );

    assert_eq!(
        server.psql("shop", NEXT_TRANSACTION).unwrap(),
        next,
        "something was written"
    );
    let absent = "SELECT count(*) FROM pg_database WHERE datname = 'absent'";
    assert_eq!(server.psql("postgres", absent).unwrap().trim(), "0");
    assert_eq!(restore_receipts(&fleet, backup), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_looked_at_says_why_and_is_no_failed_restore() {
    let server = quiet_server();
    server.create_database("shop").unwrap();
    server.psql("shop", TABLES).unwrap();
    let mut fleet = Fleet::prepare().await.unwrap();
    fleet.target(postgres_target("shop-db", &server.url("shop")));
    fleet.run_all().await.unwrap();
    let job = backed_up(&fleet, "shop-db");
    let backup = job["backup_id"].as_str().unwrap();

    // Of the one role the server wants a password.
    server
        .psql("postgres", "CREATE ROLE clerk LOGIN PASSWORD 'right'")
        .unwrap();
    let rules = server.data_dir().join("pg_hba.conf");
    let others = fs::read_to_string(&rules).unwrap();
    fs::write(&rules, format!("host all clerk 127.0.0.1/32 scram-sha-256\n{others}")).unwrap();
    server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    let nowhere = format!("postgres://clerk:s3cret@127.0.0.1:{}/shop", free_port().unwrap());
    let locked = server.url("shop").replacen("postgres@", "clerk:s3cret@", 1);
    for (destination, says) in [
        (nowhere.as_str(), "can be reached from here"),
        (locked.as_str(), "password authentication failed"),
        ("/srv/folder", "the backup is of a database"),
    ] {
        let told = preview(&fleet, &[backup, "--destination", destination]);
        assert_eq!(told.code, 1, "{told:?}");
        let text = format!("{}{}", told.stdout, told.stderr);
        assert!(text.contains(says), "{says:?} in {text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    let found = document(&fleet, &[backup, "--destination", &nowhere]);
    assert!(
        found["changes_error"].as_str().unwrap().contains("can be reached"),
        "{found}"
    );
    assert_eq!((&found["target"], found.get("changes")), (&json!("shop-db"), None));

    // A restorer that does not know the target asks for the option that it lacks.
    fleet.kill("restorer").unwrap();
    fleet.clear_targets();
    fleet.run("restorer").unwrap();
    let told = preview(&fleet, &[backup]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(
        told.stdout.contains("--destination postgres://user@host/database"),
        "{told:?}"
    );
    for nothing in [
        "SELECT count(*) FROM dead_letters",
        "SELECT count(*) FROM outbox WHERE subject LIKE 'restore.%'",
    ] {
        assert_eq!(fleet.sql(nothing).unwrap(), "0", "{nothing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_shown_as_its_drill_counted_it_and_as_it_is_now_and_nothing_is_written() {
    let (source, mut fleet) = protected(15).await;
    source.psql("postgres", "ALTER SYSTEM SET autovacuum = off").unwrap();
    source.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    source.create_database("shop").unwrap();
    source.psql("shop", TABLES).unwrap();
    let backup = back_up(&fleet, "incremental").await["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    source.psql("shop", SINCE).unwrap();
    received(&fleet, &source);
    let next = source.psql("postgres", NEXT_TRANSACTION).unwrap();

    let folder = fleet.dir().join("copy").display().to_string();
    let to_latest = [TARGET, "--to", "latest", "--destination", &folder];
    for args in [&to_latest[..], &[&backup]] {
        let told = preview(&fleet, args);
        assert_eq!(told.code, 0, "{told:?}");
        println!("{}", told.stdout);
        for row in [
            "shop.public.orders 500 4000 +3500",
            "shop.public.invoices gone - 300 +300",
            "shop.public.customers 60 50 -10",
            "shop.public.mistakes new 9 - -9",
            "postgres.public.ledger 0 0 0",
            "all tables 569 4350",
            "nothing of what is there now is touched",
            "WAL to replay",
            "nothing was touched",
        ] {
            assert!(has_row(&told.stdout, row), "{row:?} in:\n{}", told.stdout);
        }
        assert!(
            told.stdout.contains("what later WAL changes is not in these figures"),
            "{}",
            told.stdout
        );
        assert!(!told.stdout.contains("replace"), "{}", told.stdout);
    }
    let found = document(&fleet, &to_latest);
    assert_eq!(
        (&found["backup_id"], &found["tables"]["then"]["rows"]),
        (&json!(backup), &json!(4350))
    );
    let cluster = &found["changes"]["cluster"];
    assert_eq!(
        (&cluster["then"]["rows"], &cluster["now"]["rows"]),
        (&json!(4350), &json!(569))
    );
    let orders = &cluster["tables"][0];
    let named = (&orders["database"], &orders["schema"], &orders["table"]);
    assert_eq!(named, (&json!("shop"), &json!("public"), &json!("orders")));
    assert_eq!(
        (&orders["then"]["rows"], &orders["now"]["rows"]),
        (&json!(4000), &json!(500))
    );
    assert!(orders["then"]["bytes"].as_u64().unwrap() > 100_000, "{orders}");
    assert_eq!(found["changes"].get("database"), None);

    assert_eq!(
        source.psql("postgres", NEXT_TRANSACTION).unwrap(),
        next,
        "something was written"
    );
    let told = fleet
        .strongroom(&["restore", &backup, "--destination", &folder, "--dry-run"])
        .unwrap();
    println!("{}", told.stdout);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(has_row(&told.stdout, "shop.public.orders 500 4000 +3500"), "{told:?}");
    assert_eq!(
        (Path::new(&folder).exists(), restore_receipts(&fleet, &backup)),
        (false, 0)
    );

    // The counts are in no receipt, and so they are lost with the catalog, until the next drill.
    let verifications = fleet.vault_dir().join("backups").join(&backup).join("verifications");
    for entry in fs::read_dir(verifications).unwrap() {
        let receipt = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!receipt.contains("customers"), "{receipt}");
    }
    fleet.lose_catalog().unwrap();
    let (code, rebuilt) = fleet.rebuild_catalog(&[]).unwrap();
    assert_eq!(code, 0, "{rebuilt}");
    fleet.run_all().await.unwrap();
    let told = preview(&fleet, &[&backup]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.stdout.contains("no counts are kept"), "{}", told.stdout);
    assert!(!told.stdout.contains("ROWS THEN"), "{}", told.stdout);
    let told = fleet.strongroom(&["verify", &backup, "--wait"]).unwrap();
    assert_eq!(told.code, 0, "{told:?}");
    // A catalog that is refilled while it is there keeps what it has.
    assert_eq!(fleet.rebuild_catalog(&[]).unwrap().0, 0);
    let told = preview(&fleet, &[&backup]);
    assert!(has_row(&told.stdout, "shop.public.orders 500 4000 +3500"), "{told:?}");

    // What was then is still told where what is now is not.
    source.stop().unwrap();
    let told = preview(&fleet, &[&backup]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(has_row(&told.stdout, "shop.public.orders - 4000 -"), "{}", told.stdout);
    assert!(
        told.stdout.contains("what they hold now is not known") && told.stdout.contains("can be reached from here"),
        "{}",
        told.stdout
    );
    let found = document(&fleet, &[&backup]);
    assert_eq!(
        (&found["tables"]["then"]["rows"], found.get("changes")),
        (&json!(4350), None)
    );
    assert!(
        found["changes_error"].as_str().unwrap().contains("can be reached"),
        "{found}"
    );
    fleet.kill("restorer").unwrap();
    fleet.clear_targets();
    fleet.run("restorer").unwrap();
    let told = preview(&fleet, &[&backup]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(
        told.stdout.contains("configure cluster on the restorer too"),
        "{}",
        told.stdout
    );
    assert!(has_row(&told.stdout, "shop.public.invoices - 300 -"), "{}", told.stdout);
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM outbox WHERE subject LIKE 'restore.%'")
            .unwrap(),
        "0"
    );
}

fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("etc")).unwrap();
    for (name, bytes) in [
        ("readme", 10),
        ("etc/large", 3_000_000),
        ("etc/small", 20),
        ("etc/same", 1_000),
    ] {
        fs::write(root.join(name), vec![b'x'; bytes]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_summed_up_with_its_largest_changes_and_left_alone() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let tree = fleet.dir().join("tree");
    make_tree(&tree);
    fleet.target(files_target("docs", &tree));
    fleet.run_all().await.unwrap();
    let job = backed_up(&fleet, "docs");
    let backup = job["backup_id"].as_str().unwrap();

    fs::write(tree.join("etc/large"), "cut short by mistake").unwrap();
    fs::remove_file(tree.join("readme")).unwrap();
    fs::create_dir(tree.join("new")).unwrap();
    fs::write(tree.join("new/file"), vec![b'y'; 700]).unwrap();
    let modified = || fs::metadata(tree.join("etc/large")).unwrap().modified().unwrap();
    let before = modified();

    // Without a place nothing can be compared, and the plan says what to name.
    let told = preview(&fleet, &[backup]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(
        told.stdout.contains("--in-place") && !told.stdout.contains("CHANGE"),
        "{}",
        told.stdout
    );

    let told = preview(&fleet, &[backup, "--in-place", "--delete"]);
    assert_eq!(told.code, 0, "{told:?}");
    println!("{}", told.stdout);
    for row in [
        "created 1 10 B",
        "replaced 1 3.0 MB",
        "deleted 1 700 B",
        "unchanged 2 1.0 kB",
        "replace etc/large",
        "delete new",
        "create readme",
        "nothing was touched",
    ] {
        assert!(has_row(&told.stdout, row), "{row:?} in:\n{}", told.stdout);
    }
    let place = |row: &str| told.stdout.lines().position(|line| line.starts_with(row)).unwrap();
    assert!(place("replace ") < place("delete ") && place("delete ") < place("create "));

    let found = document(&fleet, &[backup, "--in-place", "--delete"]);
    let bytes = json!({ "created": 10, "replaced": 3_000_000, "metadata": 0, "deleted": 700, "unchanged": 1_020 });
    assert_eq!(found["changes"]["bytes"], bytes, "{found}");
    assert_eq!(
        (&found["changes"]["unchanged"], &found["backup_id"]),
        (&json!(2), &json!(backup))
    );
    let part = document(&fleet, &[backup, "--in-place", "--path", "readme"]);
    assert_eq!(part["changes"]["bytes"].get("unchanged"), None, "{part}");
    assert_eq!(part["changes"]["bytes"]["created"], 10);

    // A folder that is not there is not made; one that is not empty would be refused.
    let back = fleet.dir().join("back");
    let told = preview(&fleet, &[backup, "--destination", &back.display().to_string()]);
    assert_eq!((told.code, back.exists()), (0, false), "{told:?}");
    assert!(has_row(&told.stdout, "created 5 3.0 MB"), "{}", told.stdout);
    let told = preview(&fleet, &[backup, "--destination", &tree.display().to_string()]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.stdout.contains("is not empty"), "{}", told.stdout);

    assert_eq!(modified(), before);
    assert!(!tree.join("readme").exists() && tree.join("new/file").exists());
    assert_eq!(restore_receipts(&fleet, backup), 0);
}
