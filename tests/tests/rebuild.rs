//! Losing the catalog loses nothing that the vault holds.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use serde_json::{Value, json};
use strongroom_tests::{Fleet, command_target};

fn told(fleet: &Fleet, args: &[&str]) -> Value {
    let told = fleet.strongroom(args).unwrap();
    serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"))
}

/// What a client is shown of the past: backups with their verification status, receipts with the evidence.
fn shown(fleet: &Fleet) -> (Value, Vec<Value>) {
    let mut list = told(fleet, &["list", "--json"]);
    let backups = list["backups"].as_array_mut().unwrap();
    let receipts = backups
        .iter()
        .map(|backup| {
            told(
                fleet,
                &["receipt", "show", "--json", backup["backup_id"].as_str().unwrap()],
            )
        })
        .collect();
    (list, receipts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_was_dropped_is_refilled_from_the_vault_as_it_was() {
    let targets = [
        command_target("hello", "hello world"),
        command_target("other", "other words"),
    ];
    let mut fleet = Fleet::start(&targets).await.unwrap();
    let mut newest = Value::Null;
    for target in ["hello", "other", "hello"] {
        let ask = json!({ "type": "full", "targets": [target], "retention_days": 30 });
        let (status, created) = fleet.api.post("/api/v1/backup/create", ask).await.unwrap();
        assert_eq!(status, 201, "{created}");
        let id = created["jobs"][0]["job_id"].as_str().unwrap().to_owned();
        fleet.api.completed(&id).await.unwrap();
        newest = fleet.api.verified(&id).await.unwrap();
    }
    let ask = json!({ "backup_id": newest["backup_id"], "destination": fleet.dir().join("back") });
    fleet.api.restore(ask).await.unwrap();
    let before = shown(&fleet);
    assert_eq!(before.0["backups"].as_array().unwrap().len(), 3);
    assert!(before.0["backups"][0]["retention_until"].is_string(), "{}", before.0);
    let restored = "SELECT job_id, backup_id, destination, success FROM restores";
    let restores_before = fleet.sql(restored).unwrap();

    fleet.lose_catalog().unwrap();
    let (code, rebuilt) = fleet.rebuild_catalog(&[]).unwrap();
    assert_eq!(code, 0, "{rebuilt}");
    assert_eq!(rebuilt["backups"], json!({ "added": 3, "known": 0 }));
    assert_eq!(rebuilt["verifications"], json!({ "added": 3, "known": 0 }));
    assert_eq!(rebuilt["restores"], json!({ "added": 1, "known": 0 }));
    // Again, and with everything running.
    fleet.run_all().await.unwrap();
    let (code, again) = fleet.rebuild_catalog(&[]).unwrap();
    assert_eq!(
        (code, &again["backups"]),
        (0, &json!({ "added": 0, "known": 3 })),
        "{again}"
    );
    assert_eq!(again["verifications"], json!({ "added": 0, "known": 3 }));
    let after = shown(&fleet);
    assert_eq!(after, before);
    assert_eq!(fleet.sql(restored).unwrap(), restores_before);
    // Nothing is asked for that was done before, and what comes next goes on from there.
    let pending = "SELECT count(*) FROM backup_jobs WHERE status IN ('pending', 'running')";
    assert_eq!(fleet.sql(pending).unwrap(), "0");
    let id = fleet.api.backup(&["hello"]).await.unwrap().remove(0);
    fleet.api.verified(&id).await.unwrap();
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM backup_jobs WHERE kind = 'verify'")
            .unwrap(),
        "4"
    );

    // A receipt that nobody signed is left out and told.
    let victim = before.0["backups"][0]["backup_id"].as_str().unwrap();
    let path = fleet.vault_dir().join(format!("backups/{victim}/receipt.json"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("hello", "holla")).unwrap();
    fleet
        .catalog
        .psql(
            "strongroom",
            "TRUNCATE backups, receipts, verifications, restores, backup_jobs CASCADE",
        )
        .unwrap();
    let (code, rebuilt) = fleet.rebuild_catalog(&[]).unwrap();
    assert_eq!(code, 2, "{rebuilt}");
    assert_eq!(rebuilt["left_out"][0]["backup_id"], victim);
    assert_eq!(rebuilt["backups"]["added"], 3, "{rebuilt}");
    assert_eq!(fleet.sql("SELECT count(*) FROM backups").unwrap(), "3");
}
