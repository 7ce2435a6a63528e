//! From a real database into the vault and back: into another database, into a folder, by hand without us, and never
//! over what is there.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::json;
use strongroom_testkit::Postgres;
use strongroom_tests::{Fleet, command_target, files_target, postgres_target, sample_server};

/// The content of every table of a database, as text to compare.
fn contents(server: &Postgres, database: &str) -> String {
    server
        .psql(
            database,
            "SELECT string_agg(t, E'\\n' ORDER BY t) FROM (
                 SELECT format('%s.%s ', n.nspname, c.relname)
                     || (xpath('/row/d/text()', query_to_xml(format(
                         'SELECT count(*) || coalesce(md5(string_agg(t::text, chr(10) ORDER BY t::text)), '''') AS d FROM %I.%I t',
                         n.nspname, c.relname), false, true, '')))[1]::text AS t
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'm') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema') s",
        )
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_comes_back_whole_and_a_destination_that_is_not_empty_is_refused_unless_told_why() {
    let source = sample_server(5).unwrap();
    let fleet = Fleet::start(&[postgres_target("orders-db", &source.url("orders"))])
        .await
        .unwrap();
    let backup_id = fleet.api.backed_up("orders-db").await.unwrap();

    let other = Postgres::start().unwrap();
    let destination = other.url("brought_back");
    let ask = json!({ "backup_id": backup_id, "targets": ["orders-db"], "destination": destination, "verify_before_restore": true });
    let created = fleet.api.restore(ask.clone()).await.unwrap();
    assert_eq!(created["validation_results"][0]["validated"], true);
    let restore_id = created["restore_id"].as_str().unwrap();
    assert_eq!(contents(&other, "brought_back"), contents(&source, "orders"));
    fleet
        .events("restore.completed")
        .wait("restore_id", restore_id)
        .await
        .unwrap();

    // Again, onto what is there now: refused, and nothing is lost.
    let (_, created) = fleet.api.post("/api/v1/restore/create", ask.clone()).await.unwrap();
    let refused = fleet.api.ended(created["restore_id"].as_str().unwrap()).await.unwrap();
    assert_eq!(refused["status"], "failed");
    assert!(
        refused["error"].as_str().unwrap().contains("empty"),
        "{}",
        refused["error"]
    );
    assert_eq!(contents(&other, "brought_back"), contents(&source, "orders"));
    fleet
        .events("restore.failed")
        .wait("restore_id", created["restore_id"].as_str().unwrap())
        .await
        .unwrap();

    let mut told = ask;
    told["overwrite_reason"] = json!("the copy is stale");
    fleet.api.restore(told).await.unwrap();
    assert_eq!(contents(&other, "brought_back"), contents(&source, "orders"));
    let audit = fleet
        .sql("SELECT detail::text FROM audit_log WHERE action = 'restore' ORDER BY id DESC LIMIT 1")
        .unwrap();
    assert!(audit.contains("the copy is stale"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_not_restore_is_refused_before_anything_is_touched() {
    let fleet = Fleet::start(&[command_target("hello", "hello")]).await.unwrap();
    let backup_id = fleet.api.backed_up("hello").await.unwrap();
    for (ask, reason) in [
        (json!({ "destination": "/tmp/x" }), "name one of"),
        (json!({ "backup_id": backup_id }), "no destination"),
        (
            json!({ "backup_id": backup_id, "destination": "relative/path" }),
            "absolute",
        ),
        (
            json!({ "backup_id": backup_id, "destination": "postgres://h/db" }),
            "not of a database",
        ),
        (
            json!({ "backup_id": backup_id, "destination": "/tmp/x", "overwrite_reason": " " }),
            "overwrite_reason",
        ),
        (
            json!({ "backup_id": backup_id, "destination": "/tmp/x", "targets": ["other"] }),
            "not in targets",
        ),
    ] {
        let (status, problem) = fleet.api.post("/api/v1/restore/create", ask).await.unwrap();
        assert_eq!(status, 422, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{problem}");
    }
    let unknown = json!({ "backup_id": "bkp-20200101-000000Z-aaaaaaaaaaaa", "destination": "/tmp/x" });
    assert_eq!(fleet.api.post("/api/v1/restore/create", unknown).await.unwrap().0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_tree_comes_back_as_it_was() {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path().join("site");
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(root.join("a/b/large"), vec![7u8; 3_000_000]).unwrap();
    std::fs::write(root.join("a/new\nline"), "odd").unwrap();
    std::fs::write(root.join("empty"), "").unwrap();
    std::fs::set_permissions(root.join("empty"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("a/b/large", root.join("link")).unwrap();
    let fleet = Fleet::start(&[files_target("site", &root)]).await.unwrap();
    let backup_id = fleet.api.backed_up("site").await.unwrap();

    let destination = tree.path().join("back");
    let ask =
        json!({ "backup_id": backup_id, "targets": [], "destination": destination, "verify_before_restore": false });
    fleet.api.restore(ask).await.unwrap();
    let difference = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(&root)
        .arg(&destination)
        .output()
        .unwrap();
    assert!(
        difference.status.success(),
        "{}",
        String::from_utf8_lossy(&difference.stdout)
    );
    let mode = std::fs::metadata(destination.join("empty"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
}

/// The fenced block after the heading "Restore by hand" of the format's document.
fn lines_of_the_document() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/format.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text
        .split("## Restore by hand")
        .nth(1)
        .expect("the section of the document");
    let block = section.split("```sh\n").nth(1).expect("a fenced block of sh");
    block.split("```").next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_document_restore_a_database_with_stock_tools_only() {
    let source = sample_server(60).unwrap();
    let fleet = Fleet::start(&[postgres_target("orders-db", &source.url("orders"))])
        .await
        .unwrap();
    let backup_id = fleet.api.backed_up("orders-db").await.unwrap();

    // An empty server, as after a disaster: neither our programs nor the catalog nor NATS have a part in this.
    let other = Postgres::start().unwrap();
    other.create_database("by_hand").unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &lines_of_the_document()])
        .env("VAULT", fleet.vault_dir())
        .env("IDENTITY", fleet.identity_file())
        .env("BACKUP", &backup_id)
        .env("OUT", out.path().join("entries"))
        .env("DATABASE_URL", other.url("by_hand"))
        .env(
            "PATH",
            format!("{}:{}", other.bin_dir().display(), std::env::var("PATH").unwrap()),
        )
        .output()
        .unwrap();
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    assert_eq!(contents(&other, "by_hand"), contents(&source, "orders"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_vault_fails_the_verification_and_raises_an_alert() {
    let fleet = Fleet::start(&[command_target("hello", "hello")]).await.unwrap();
    let backup_id = fleet.api.backed_up("hello").await.unwrap();
    let packs = fleet.vault_dir().join("packs");
    let folder = std::fs::read_dir(&packs).unwrap().next().unwrap().unwrap().path();
    let pack = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();

    let (_, created) = fleet
        .api
        .post("/api/v1/backup/verify", json!({ "backup_id": backup_id }))
        .await
        .unwrap();
    let id = created["job_id"].as_str().unwrap();
    let job = fleet.api.ended(id).await.unwrap();
    assert_eq!(job["status"], "failed");
    assert!(
        job["error"].as_str().unwrap().contains("stored objects"),
        "{}",
        job["error"]
    );
    fleet.events("backup.verify.failed").wait("job_id", id).await.unwrap();
    fleet.events("backup.alert").wait("job_id", id).await.unwrap();
    let (_, list) = fleet.api.get("/api/v1/backup/list").await.unwrap();
    assert_eq!(list["backups"][0]["verified"], false);
    let (_, status) = fleet.api.get("/api/v1/backup/status").await.unwrap();
    assert_eq!(status["system_status"], "critical");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_of_a_command_comes_back_as_a_file() {
    let fleet = Fleet::start(&[command_target("hello", "hello world")]).await.unwrap();
    let backup_id = fleet.api.backed_up("hello").await.unwrap();
    let destination = fleet.dir().join("back");
    let ask = json!({ "backup_id": backup_id, "destination": destination, "verify_before_restore": true });
    fleet.api.restore(ask).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(destination.join("output")).unwrap(),
        "hello world"
    );
}
