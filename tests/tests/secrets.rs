//! No secret appears in a log, an event, a receipt, an error, a process's arguments or an object of the vault.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use strongroom_testkit::Postgres;
use strongroom_tests::{Fleet, postgres_target};

const CANARY: &str = "hunter2-canary";
const DATA_CANARY: &str = "a row that nobody may see in the vault";

/// Every argument of every process, looked at again and again until the flag is set.
fn watch_arguments(stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut found = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            for process in std::fs::read_dir("/proc").unwrap().flatten() {
                let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                let text = String::from_utf8_lossy(&line).replace('\0', " ");
                if text.contains(CANARY) {
                    found.push(text);
                }
            }
            std::thread::yield_now();
        }
        found
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_found_nowhere_it_does_not_belong() {
    let source = Postgres::start().unwrap();
    source.create_database("orders").unwrap();
    source
        .psql("orders", &format!("CREATE ROLE backup LOGIN SUPERUSER PASSWORD '{CANARY}'; CREATE TABLE t AS SELECT '{DATA_CANARY}'::text AS x;"))
        .unwrap();
    // From now on only a password opens this server.
    let hba = source.data_dir().join("pg_hba.conf");
    std::fs::write(
        &hba,
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all backup 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    source.psql("postgres", "SELECT pg_reload_conf()").unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let watch = watch_arguments(stop.clone());
    let url = format!("postgres://backup:{CANARY}@127.0.0.1:{}/orders", source.port());
    let wrong = format!("postgres://backup:{CANARY}-wrong@127.0.0.1:{}/orders", source.port());
    let mut fleet = Fleet::prepare().await.unwrap();
    fleet
        .target(postgres_target("orders-db", &url))
        .target(postgres_target("wrong-db", &wrong));
    fleet.set("coordinator.max_attempts", "1");
    fleet.run_all().await.unwrap();

    let backup_id = fleet.api.backed_up("orders-db").await.unwrap();
    let failing = fleet.api.backup(&["wrong-db"]).await.unwrap().remove(0);
    let failed = fleet.api.ended(&failing).await.unwrap();
    assert_eq!(failed["status"], "failed");
    assert!(
        failed["error"].as_str().unwrap().contains("password"),
        "{}",
        failed["error"]
    );
    let destination = format!("postgres://backup:{CANARY}@127.0.0.1:{}/copy", source.port());
    let ask =
        json!({ "backup_id": backup_id, "targets": [], "destination": destination, "verify_before_restore": false });
    fleet.api.restore(ask).await.unwrap();
    let (_, targets) = fleet.api.get("/api/v1/targets").await.unwrap();
    let (_, jobs) = fleet.api.get("/api/v1/jobs").await.unwrap();
    stop.store(true, Ordering::Relaxed);

    assert_eq!(watch.join().unwrap(), Vec::<String>::new(), "arguments of processes");
    assert!(!fleet.logs().contains(CANARY), "logs");
    assert!(
        !targets.to_string().contains(CANARY) && !jobs.to_string().contains(CANARY),
        "the API"
    );
    let events = fleet.events(">").all().await.unwrap();
    assert!(events.len() >= 6);
    assert!(!serde_json::to_string(&events).unwrap().contains(CANARY), "events");
    for table in [
        "backup_jobs",
        "receipts",
        "restores",
        "outbox",
        "audit_log",
        "dead_letters",
        "verifications",
    ] {
        let rows = fleet
            .sql(&format!("SELECT coalesce(string_agg(t::text, ''), '') FROM {table} t"))
            .unwrap();
        assert!(!rows.contains(CANARY), "{table}");
    }
    let mut objects = 0;
    let mut folders = vec![fleet.vault_dir()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            objects += 1;
            let bytes = std::fs::read(entry.path()).unwrap();
            for canary in [CANARY, DATA_CANARY] {
                let found = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
                assert!(!found, "{} holds {canary:?}", entry.path().display());
            }
        }
    }
    assert!(objects >= 6, "{objects} objects of the vault were looked at");
}
