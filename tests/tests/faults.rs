//! Faults in the middle of a dump: whatever is killed, there is one completed job, one receipt, one completed event,
//! and a restore that passes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use strongroom_testkit::{Postgres, wait_for_async};
use strongroom_tests::{COORDINATOR, DUMPER, Fleet, SOON, command_target, postgres_target, sample_server};

/// Large enough that a dump is still going on when it is seen to have begun.
const DUMP_MEGABYTES: u32 = 150;

async fn fleet_with_database() -> (Postgres, Fleet) {
    let source = sample_server(DUMP_MEGABYTES).unwrap();
    let fleet = Fleet::start(&[postgres_target("orders-db", &source.url("orders"))])
        .await
        .unwrap();
    (source, fleet)
}

/// Asks for a backup and waits until its dump is under way.
async fn begun(fleet: &Fleet) -> String {
    let id = fleet.api.backup(&["orders-db"]).await.unwrap().remove(0);
    wait_for_async("bytes of the dump", SOON, || async {
        let job = fleet.api.job(&id).await.ok()?;
        (job["status"] == "running" && job["progress"]["bytes"].as_u64()? > 0).then_some(())
    })
    .await
    .unwrap();
    id
}

/// One completed job, one receipt, one completed event, a restore that passes.
async fn one_of_everything(fleet: &Fleet, id: &str) -> Value {
    let job = fleet.api.completed(id).await.unwrap();
    let backup = fleet.api.verified(id).await.unwrap();
    assert_eq!(backup["verified"], true, "{backup}");
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM backup_jobs WHERE kind = 'backup' AND status = 'completed'")
            .unwrap(),
        "1"
    );
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM backup_jobs WHERE kind = 'backup'")
            .unwrap(),
        "1"
    );
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM receipts WHERE kind = 'backup'")
            .unwrap(),
        "1"
    );
    let receipts = fleet.vault().await.unwrap().backups().await.unwrap();
    assert_eq!(receipts.len(), 1);
    let events = fleet.events("backup.job.completed");
    events.wait("job_id", id).await.unwrap();
    let completed: Vec<Value> = events.all().await.unwrap();
    assert_eq!(completed.len(), 1, "{completed:?}");
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_dumper_is_replaced_and_the_backup_is_made_once() {
    let (_source, mut fleet) = fleet_with_database().await;
    let id = begun(&fleet).await;
    fleet.kill(DUMPER).unwrap();
    fleet.run(DUMPER).unwrap();
    let job = one_of_everything(&fleet, &id).await;
    assert_eq!(job["attempt"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_loses_nothing() {
    let (_source, mut fleet) = fleet_with_database().await;
    let id = begun(&fleet).await;
    fleet.kill(COORDINATOR).unwrap();
    fleet.run(COORDINATOR).unwrap();
    one_of_everything(&fleet, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_nats_server_loses_nothing() {
    let (_source, fleet) = fleet_with_database().await;
    let id = begun(&fleet).await;
    fleet.nats.kill().unwrap();
    fleet.nats.restart().unwrap();
    one_of_everything(&fleet, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_catalog_loses_nothing() {
    let (_source, fleet) = fleet_with_database().await;
    let id = begun(&fleet).await;
    fleet.catalog.kill().unwrap();
    fleet.catalog.restart().unwrap();
    one_of_everything(&fleet, &id).await;
}

/// A target whose command prints, then waits until the file `go` exists.
fn gated_target(dir: &Path) -> String {
    let go = dir.join("go");
    format!(
        "  gated:\n    kind: command\n    program: sh\n    args: ['-c', 'printf begin; while [ ! -e {} ]; do sleep 0.02; done; printf end']",
        go.display()
    )
}

async fn gated_fleet() -> Fleet {
    let mut fleet = Fleet::prepare().await.unwrap();
    let target = gated_target(fleet.dir());
    fleet.target(target);
    fleet.run_all().await.unwrap();
    fleet
}

fn open_gate(fleet: &Fleet) {
    std::fs::write(fleet.dir().join("go"), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_paused_past_its_lease_cannot_finish_what_another_attempt_has() {
    let mut fleet = gated_fleet().await;
    let id = fleet.api.backup(&["gated"]).await.unwrap().remove(0);
    fleet.api.running(&id).await.unwrap();
    fleet.process(DUMPER).pause().unwrap();
    fleet.run_with(DUMPER, &[("worker.id", "second")]).unwrap();
    wait_for_async("the second attempt", SOON, || async {
        let job = fleet.api.job(&id).await.ok()?;
        (job["attempt"] == 2 && job["status"] == "running" && job["worker"] == "dump/second").then_some(())
    })
    .await
    .unwrap();
    // The paused worker wakes while the second attempt is at work, and finds everything ready to be finished.
    open_gate(&fleet);
    let job = fleet.api.completed(&id).await.unwrap();
    assert_eq!((&job["attempt"], &job["worker"]), (&2.into(), &"dump/second".into()));
    let first = fleet.first(DUMPER);
    first.resume().unwrap();
    first.wait_for_line("changed nothing", SOON).unwrap();
    assert_eq!(fleet.api.job(&id).await.unwrap(), {
        let mut same = job.clone();
        same["verified"] = fleet.api.job(&id).await.unwrap()["verified"].clone();
        same
    });
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM receipts WHERE kind = 'backup'")
            .unwrap(),
        "1"
    );
    let vault = fleet.vault().await.unwrap();
    let backups = vault.backups().await.unwrap();
    assert_eq!(backups.len(), 1);
    assert_eq!(
        vault
            .receipt(&backups[0])
            .await
            .unwrap()
            .unwrap()
            .receipt
            .attempt
            .number(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_gives_its_job_back_and_spends_no_attempt() {
    let mut fleet = gated_fleet().await;
    let id = fleet.api.backup(&["gated"]).await.unwrap().remove(0);
    fleet.api.running(&id).await.unwrap();
    fleet.process(DUMPER).terminate().unwrap();
    fleet.process(DUMPER).wait_success(Duration::from_secs(40)).unwrap();
    assert_eq!(
        fleet
            .sql(&format!("SELECT retry_count FROM backup_jobs WHERE id = '{id}'"))
            .unwrap(),
        "0"
    );
    open_gate(&fleet);
    fleet.run(DUMPER).unwrap();
    fleet.api.completed(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_cancelled_on_request() {
    let fleet = gated_fleet().await;
    let id = fleet.api.backup(&["gated"]).await.unwrap().remove(0);
    fleet.api.running(&id).await.unwrap();
    fleet
        .api
        .post(&format!("/api/v1/jobs/{id}/cancel"), serde_json::json!({}))
        .await
        .unwrap();
    let job = fleet.api.ended(&id).await.unwrap();
    assert_eq!(job["status"], "cancelled");
    assert_eq!(fleet.vault().await.unwrap().backups().await.unwrap().len(), 0);
    assert_eq!(
        fleet
            .api
            .post(&format!("/api/v1/jobs/{id}/cancel"), serde_json::json!({}))
            .await
            .unwrap()
            .0,
        409
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_deleted_under_the_running_fleet_are_refilled() {
    let mut fleet = Fleet::start(&[command_target("hello", "hello")]).await.unwrap();
    fleet.kill(DUMPER).unwrap();
    let id = fleet.api.backup(&["hello"]).await.unwrap().remove(0);
    wait_for_async("the message in the queue", SOON, || async {
        (fleet
            .sql("SELECT count(*) FROM outbox WHERE subject LIKE 'work.%' AND sent_at IS NOT NULL")
            .ok()?
            == "1")
            .then_some(())
    })
    .await
    .unwrap();
    let client = async_nats::connect(fleet.nats.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    for stream in ["WORK", "BACKUP", "TRIGGERS"] {
        jetstream.delete_stream(stream).await.unwrap();
    }
    fleet.run(DUMPER).unwrap();
    fleet.api.completed(&id).await.unwrap();
    fleet.events("backup.job.completed").wait("job_id", &id).await.unwrap();
    // The doors are open again too.
    wait_for_async("the trigger stream", SOON, || async {
        jetstream.get_stream("TRIGGERS").await.ok().map(drop)
    })
    .await
    .unwrap();
    jetstream
        .publish("backup.request", r#"{"targets":["hello"]}"#.into())
        .await
        .unwrap()
        .await
        .unwrap();
    wait_for_async("the second backup", SOON, || async {
        (fleet.sql("SELECT count(*) FROM backups").ok()? == "2").then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_always_fails_is_tried_as_often_and_as_slowly_as_the_rules_say_and_then_given_up() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let log = fleet.dir().join("attempts");
    fleet.target(format!(
        "  broken:\n    kind: command\n    program: sh\n    args: ['-c', 'date +%s.%N >> {}; echo no luck >&2; exit 3']",
        log.display()
    ));
    fleet
        .set("coordinator.max_attempts", "3")
        .set("coordinator.backoff_seconds", "1,2");
    fleet.run_all().await.unwrap();
    let id = fleet.api.backup(&["broken"]).await.unwrap().remove(0);
    let job = fleet.api.ended(&id).await.unwrap();
    assert_eq!(job["status"], "failed");
    assert!(job["error"].as_str().unwrap().contains("no luck"), "{}", job["error"]);

    let times: Vec<f64> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    let spaces: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(spaces.len(), 2, "three attempts");
    assert!(spaces[0] >= 1.0 && spaces[1] >= 2.0, "{spaces:?}");

    fleet.events("backup.job.failed").wait("job_id", &id).await.unwrap();
    fleet.events("backup.alert").wait("job_id", &id).await.unwrap();
    assert_eq!(
        fleet
            .sql(&format!("SELECT count(*) FROM dead_letters WHERE reference = '{id}'"))
            .unwrap(),
        "1"
    );
    let (_, status) = fleet.api.get("/api/v1/backup/status").await.unwrap();
    assert_eq!(status["system_status"], "degraded");
}
