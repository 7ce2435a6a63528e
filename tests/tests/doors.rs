//! The doors: messages of clients that are not ours start the right jobs, and what comes out is read by the CloudEvents
//! SDK of another language.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use futures::StreamExt as _;
use serde_json::{Value, json};
use strongroom_testkit::wait_for_async;
use strongroom_tests::{Fleet, SOON, command_target, postgres_target, python, sample_server};

/// The jobs of a target, oldest first.
async fn backups_of(fleet: &Fleet, target: &str) -> Vec<Value> {
    let (_, list) = fleet.api.get("/api/v1/jobs?limit=1000").await.unwrap();
    let mut jobs: Vec<Value> = list["jobs"].as_array().unwrap().clone();
    jobs.retain(|job| job["target_identifier"] == target && job["kind"] == "backup");
    jobs.reverse();
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_message_on_every_subject_starts_the_right_job() {
    let source = sample_server(1).unwrap();
    let mut fleet = Fleet::prepare().await.unwrap();
    let scenario = fleet.dir().join("checkout");
    std::fs::create_dir(&scenario).unwrap();
    std::fs::write(scenario.join("flow.json"), "{}").unwrap();
    fleet
        .target(command_target("hello", "hello"))
        .target(postgres_target("orders-db", &source.url("orders")));
    fleet.run_all().await.unwrap();

    let folder = scenario.display().to_string();
    let cases = [
        (
            "backup.request",
            json!({ "type": "full", "targets": ["hello"] }),
            "hello",
            "full",
        ),
        (
            "scenario.deployed",
            json!({ "scenario": "checkout", "path": folder }),
            "scenario/checkout",
            "incremental",
        ),
        (
            "postgres.schema_updated",
            json!({ "database": "orders" }),
            "orders-db",
            "incremental",
        ),
    ];
    for (subject, body, target, backup_type) in &cases {
        for (n, mode) in ["bare", "structured", "binary"].into_iter().enumerate() {
            let id = format!("{subject}-{mode}");
            python(
                "publish.py",
                &[&fleet.nats.url(), subject, mode, &body.to_string(), &id],
            )
            .unwrap();
            let job = wait_for_async(&format!("{mode} {subject}"), SOON, || async {
                backups_of(&fleet, target).await.get(n).cloned()
            })
            .await
            .unwrap();
            assert_eq!(job["type"], *backup_type);
            let job = fleet.api.completed(job["id"].as_str().unwrap()).await.unwrap();
            assert_eq!(backups_of(&fleet, target).await.len(), n + 1, "one message, one job");
            fleet.api.verified(job["id"].as_str().unwrap()).await.unwrap();
        }
    }

    // The same event again, long after: nothing happens.
    let (subject, body, target, _) = &cases[0];
    python(
        "publish.py",
        &[
            &fleet.nats.url(),
            subject,
            "structured",
            &body.to_string(),
            "backup.request-structured",
        ],
    )
    .unwrap();
    fleet
        .process("coordinator")
        .wait_for_line("trigger repeated", SOON)
        .unwrap();
    assert_eq!(backups_of(&fleet, target).await.len(), 3);

    let printed = python("read_events.py", &[&fleet.nats.url()]).unwrap();
    let events: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!(count("backup.job.completed"), 9);
    assert_eq!(count("backup.verify.completed"), 9);
    assert_eq!(count("backup.job.started"), 18, "a backup and a verification each");
    assert_eq!(count("backup.job.failed") + count("backup.alert"), 0);
    for event in events.iter().filter(|event| event["type"] == "backup.job.completed") {
        assert_eq!(event["data"]["status"], "completed");
        assert!(event["data"]["duration"].as_str().unwrap().ends_with('s'));
        assert!(event["data"]["size_bytes"].is_u64());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_request_is_answered_with_job_ids_and_a_wrong_one_with_the_reason() {
    let fleet = Fleet::start(&[command_target("hello", "hello")]).await.unwrap();
    let client = async_nats::connect(fleet.nats.url()).await.unwrap();
    let ask = |body: &'static str| client.request("backup.create", body.into());
    let answer = ask(r#"{"targets":["hello"]}"#).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["status"], "pending");
    assert_eq!(answer["targets"], json!(["hello"]));
    fleet.api.completed(answer["job_id"].as_str().unwrap()).await.unwrap();

    let refused = ask(r#"{"targets":["helo"]}"#).await.unwrap();
    let reason = refused.headers.unwrap().get("Nats-Service-Error").unwrap().to_string();
    assert!(reason.contains("helo") && reason.contains("hello"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_nobody_understands_becomes_a_dead_letter_and_an_alert_once() {
    let fleet = Fleet::start(&[command_target("hello", "hello")]).await.unwrap();
    let client = async_nats::connect(fleet.nats.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client);
    for body in ["not json \u{0}", r#"{"targets":["nobody"]}"#] {
        stream
            .publish("backup.request", body.into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let alerts = fleet.events("backup.alert");
    let found = wait_for_async("two alerts", SOON, || async {
        let all = alerts.all().await.ok()?;
        (all.len() == 2).then_some(all)
    })
    .await
    .unwrap();
    let text = serde_json::to_string(&found).unwrap();
    assert!(
        text.contains("not JSON") && text.contains("nobody") && text.contains("hello"),
        "{text}"
    );
    assert_eq!(fleet.sql("SELECT count(*) FROM dead_letters").unwrap(), "2");
    assert_eq!(fleet.sql("SELECT count(*) FROM backup_jobs").unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_as_its_contract_says() {
    let fleet = Fleet::start(&[command_target("hello", "hello"), command_target("hullo", "x")])
        .await
        .unwrap();
    let api = &fleet.api;

    let (status, health) = api.get_without_token("/health").await.unwrap();
    assert_eq!((status, &health["status"]), (200, &json!("healthy")));
    let (status, problem) = api.get_without_token("/api/v1/backup/status").await.unwrap();
    assert_eq!((status, &problem["status"]), (401, &json!(401)));

    let (status, problem) = api
        .post("/api/v1/backup/create", json!({ "targets": ["helo"] }))
        .await
        .unwrap();
    assert_eq!(status, 422);
    assert!(
        problem["detail"].as_str().unwrap().contains("hello, hullo"),
        "{problem}"
    );
    let (status, problem) = api
        .post("/api/v1/backup/create", json!({ "targets": ["hello"], "tpye": "full" }))
        .await
        .unwrap();
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("tpye"), "{problem}");

    let (status, created) = api
        .post(
            "/api/v1/backup/create",
            json!({ "type": "full", "targets": ["command"], "retention_days": 3 }),
        )
        .await
        .unwrap();
    assert_eq!(status, 201);
    assert_eq!(created["status"], "pending");
    assert_eq!(created["estimated_duration"], "unknown");
    assert_eq!(created["targets"], json!(["hello", "hullo"]));
    for job in created["jobs"].as_array().unwrap() {
        let job = api.completed(job["job_id"].as_str().unwrap()).await.unwrap();
        assert!(job["retention_until"].is_string());
        api.verified(job["id"].as_str().unwrap()).await.unwrap();
    }

    let (_, status) = api.get("/api/v1/backup/status").await.unwrap();
    assert_eq!(status["system_status"], "healthy", "{status}");
    assert!(status["last_successful_backup"].is_string());
    assert!(status["storage_usage"]["available_gb"].as_f64().unwrap() > 0.0);
    let (_, list) = api
        .get("/api/v1/backup/list?target=hello&type=full&since=2020-01-01")
        .await
        .unwrap();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
    let id = list["backups"][0]["backup_id"].as_str().unwrap().to_owned();
    let (_, receipt) = api.get(&format!("/api/v1/backups/{id}/receipt")).await.unwrap();
    assert_eq!(receipt["receipt"]["schema"], "io.strongroom.backup-receipt.v1");
    assert_eq!(receipt["receipt"]["integrity"]["validated"], true);
    assert_eq!(
        receipt["receipt"]["integrity"]["validation_method"],
        "full_restore_test"
    );

    let (status, again) = api
        .post("/api/v1/backup/verify", json!({ "backup_id": id }))
        .await
        .unwrap();
    assert_eq!((status, &again["status"]), (201, &json!("pending")));
    api.completed(again["job_id"].as_str().unwrap()).await.unwrap();
    for (path, wanted) in [
        ("/api/v1/jobs/nonsense", 400),
        ("/api/v1/nothing", 404),
        ("/api/v1/backup/list?sinse=1", 400),
    ] {
        assert_eq!(api.get(path).await.unwrap().0, wanted, "{path}");
    }
    let (status, openapi) = api.get_without_token("/api/v1/openapi.json").await.unwrap();
    assert_eq!((status, &openapi["openapi"]), (200, &json!("3.1.0")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_fires_once_whatever_number_of_coordinators_look_at_the_clock() {
    let mut fleet = Fleet::start(&[command_target("hello", "hello")]).await.unwrap();
    let port = strongroom_testkit::free_port().unwrap();
    fleet
        .run_with("coordinator", &[("api.listen", &format!("127.0.0.1:{port}"))])
        .unwrap();
    fleet
        .process("coordinator")
        .wait_for_line("coordinator ready", SOON)
        .unwrap();

    let api = &fleet.api;
    let wrong = json!({ "name": "nightly", "cron_expression": "0 25 * * *", "targets": ["hello"] });
    assert_eq!(api.post("/api/v1/schedules", wrong).await.unwrap().0, 422);
    let spec = json!({ "name": "nightly", "cron_expression": "30 2 * * *", "timezone": "Europe/Berlin", "targets": ["hello"] });
    let (status, view) = api.post("/api/v1/schedules", spec.clone()).await.unwrap();
    assert_eq!(status, 201, "{view}");
    assert!(view["next_run"].is_string());
    assert_eq!(api.post("/api/v1/schedules", spec).await.unwrap().0, 409);

    // The clock cannot be turned; the due instant can. Three missed nights are made up for once.
    fleet
        .sql("UPDATE backup_schedules SET next_run = date_trunc('day', now()) - interval '3 days'")
        .unwrap();
    wait_for_async("the scheduled backup", SOON, || async {
        (fleet.sql("SELECT count(*) FROM backups").ok()? == "1").then_some(())
    })
    .await
    .unwrap();
    wait_for_async("the schedule to move on", SOON, || async {
        (fleet
            .sql("SELECT next_run > now() AND last_run IS NOT NULL FROM backup_schedules")
            .ok()?
            == "t")
            .then_some(())
    })
    .await
    .unwrap();
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM backup_jobs WHERE kind = 'backup'")
            .unwrap(),
        "1"
    );
    assert_eq!(
        fleet
            .sql("SELECT count(*) FROM backup_jobs WHERE schedule_id IS NOT NULL AND kind = 'backup'")
            .unwrap(),
        "1"
    );

    let traced = "SELECT count(*) FROM backup_jobs WHERE traceparent IS NOT NULL";
    assert_ne!(fleet.sql(traced).unwrap(), "0", "a schedule begins a trace");
    let spec =
        json!({ "name": "nightly", "cron_expression": "0 4 * * *", "targets": ["command"], "retention_days": 9 });
    let (status, view) = api
        .send(reqwest::Method::PUT, "/api/v1/schedules/nightly", spec)
        .await
        .unwrap();
    assert_eq!(
        (status, &view["cron_expression"], &view["retention_days"]),
        (200, &json!("0 4 * * *"), &json!(9))
    );
    let (status, view) = api.post("/api/v1/schedules/nightly/disable", json!({})).await.unwrap();
    assert_eq!(
        (status, &view["enabled"], &view["next_run"]),
        (200, &json!(false), &Value::Null)
    );
    let (status, view) = api.post("/api/v1/schedules/nightly/enable", json!({})).await.unwrap();
    assert_eq!((status, &view["enabled"]), (200, &json!(true)));
    assert!(view["next_run"].is_string());
    assert_eq!(
        api.send(reqwest::Method::DELETE, "/api/v1/schedules/nightly", json!({}))
            .await
            .unwrap()
            .0,
        204
    );
    assert_eq!(api.get("/api/v1/schedules/nightly").await.unwrap().0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_is_told_how_far_a_running_job_is_and_no_stream_keeps_it() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let enough = fleet.dir().join("enough");
    // Ends when it is told to: what is heard does not hang on how fast this machine is.
    let script = format!(
        "for n in $(seq 600); do [ -e {} ] && exit 0; head -c 10000 /dev/zero; sleep 0.1; done; exit 1",
        enough.display()
    );
    fleet.target(format!(
        "  slow:\n    kind: command\n    program: sh\n    args: ['-c', '{script}']"
    ));
    fleet.run_all().await.unwrap();
    let mut heard = fleet.events("backup.job.progress").listen().await.unwrap();
    let id = fleet.api.backup(&["slow"]).await.unwrap().remove(0);
    let mut next = async || tokio::time::timeout(SOON, heard.next()).await.unwrap().unwrap();
    let (first, second) = (next().await, next().await);
    std::fs::write(&enough, "").unwrap();

    for event in [&first, &second] {
        assert_eq!(event["type"], "backup.job.progress", "{event}");
        let data = &event["data"];
        assert_eq!(
            (&data["job_id"], &data["targets"], &data["kind"], &data["attempt"]),
            (&json!(id), &json!(["slow"]), &json!("backup"), &json!(1)),
            "{event}"
        );
        assert!(data["files"].is_u64(), "{event}");
    }
    assert_ne!(first["id"], second["id"]);
    let bytes = |event: &Value| event["data"]["bytes"].as_u64().unwrap();
    assert!(bytes(&second) > bytes(&first), "{first} {second}");
    assert!(
        second["data"]["rate_bytes_per_second"].as_u64().unwrap() > 0,
        "{second}"
    );

    fleet.api.completed(&id).await.unwrap();
    fleet.events("backup.job.completed").wait("job_id", &id).await.unwrap();
    assert_eq!(
        fleet.events("backup.job.progress").all().await.unwrap(),
        Vec::<Value>::new()
    );
}
