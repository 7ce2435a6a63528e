//! Windows, annotations and recoveries by the API, of a catalog that says what WAL there is; no worker runs.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use strongroom_bus::{Bus, BusConfig, Outgoing};
use strongroom_catalog::{Catalog, FinishedBackup, Taken};
use strongroom_proto::receipt::{
    BACKUP_RECEIPT_SCHEMA, BackupReceipt, InitiatedBy, Integrity, Method, Operator, ReceiptStatus, SourceFacts, Totals,
};
use strongroom_proto::timeline::AnnotationKind;
use strongroom_proto::wal::{ClusterFacts, Lsn, SystemIdentifier, WalRange};
use strongroom_proto::{Attempt, BackupId, BackupType, JobId, Sha256Digest, TargetKind, VaultId};
use strongroom_runtime::config::{PostgresMethod, SecretUrl, TargetConfig};
use strongroom_runtime::{LoadOptions, Loaded, Secret};
use strongroom_testkit::{Nats, Postgres, wait_for_async};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "t";
const SYSTEM: SystemIdentifier = SystemIdentifier(7_400_000_000_000_000_001);
const SEGMENT: u32 = 16 << 20;

/// A coordinator with a catalog and a NATS server of its own.
struct Running {
    base: String,
    http: reqwest::Client,
    catalog: Catalog,
    vault: VaultId,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    postgres: Postgres,
    nats: Nats,
}

impl Running {
    async fn start() -> Self {
        strongroom_runtime::entry::install_tls_provider();
        let (postgres, nats) = (Postgres::start().unwrap(), Nats::start().unwrap());
        postgres.create_database("catalog").unwrap();
        let mut loaded = Loaded::load(LoadOptions::default()).unwrap();
        let config = &mut loaded.config;
        config.api.token = Some(Secret::new(TOKEN.to_owned()));
        config.catalog.url = SecretUrl::new(postgres.url("catalog"));
        config.nats.url = SecretUrl::new(nats.url());
        config.coordinator.reconcile_seconds = 1;
        config.coordinator.verify_after_backup = false;
        let target = |database: &str, method| TargetConfig {
            url: Some(SecretUrl::new(format!("postgres://u@127.0.0.1:1/{database}"))),
            method,
            ..TargetConfig::of_kind(TargetKind::Postgres)
        };
        let physical = Some(PostgresMethod::PhysicalBasebackup);
        config.targets = [
            ("shop".parse().unwrap(), target("shop", physical)),
            ("dumped".parse().unwrap(), target("dumped", None)),
        ]
        .into();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/api/v1", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let task = tokio::spawn(strongroom_coordinator::run(loaded, Some(listener), stop.clone()));
        Self {
            base,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            catalog: Catalog::connect(&postgres.url("catalog"), 4).await.unwrap(),
            vault: VaultId::fresh(),
            stop,
            task,
            postgres,
            nats,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(format!("{}{path}", self.base))).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(self.http.post(format!("{}{path}", self.base)).body(body.to_string())).await
    }

    /// What is wrong with a request for a restore.
    async fn refusal(&self, body: Value) -> String {
        let (status, answer) = self.post("/restore/create", body).await;
        assert_eq!(status, 422, "{answer}");
        answer["detail"].as_str().unwrap().to_owned()
    }

    /// Puts a backup into the catalog, as a rebuild does.
    async fn backup(&self, target: &str, cluster: Option<ClusterFacts>) -> BackupId {
        let job = JobId::fresh();
        let completed_at = cluster.as_ref().map_or_else(Utc::now, |facts| facts.stopped_at);
        let backup_id = BackupId::for_job(job, completed_at);
        let done = FinishedBackup {
            receipt: BackupReceipt {
                schema: BACKUP_RECEIPT_SCHEMA.into(),
                backup_id: backup_id.clone(),
                environment: "test".into(),
                surface: "postgres".into(),
                method: cluster
                    .as_ref()
                    .map_or(Method::LogicalDump, |_| Method::PhysicalBasebackup),
                started_at: completed_at,
                completed_at,
                status: ReceiptStatus::Success,
                artifacts: vec![],
                integrity: Integrity::UNPROVEN,
                git: None,
                operator: Operator {
                    initiated_by: InitiatedBy::Human,
                    principal: "tester".into(),
                },
                notes: String::new(),
                vault_id: self.vault,
                job_id: job,
                attempt: Attempt::FIRST,
                target: target.parse().unwrap(),
                target_kind: TargetKind::Postgres,
                backup_type: BackupType::Full,
                retention_until: None,
                totals: Totals {
                    content_bytes: 5_000_000,
                    stored_bytes: 1_000_000,
                    ..Totals::default()
                },
                missing: vec![],
                software: "test".into(),
                source: SourceFacts {
                    tables: Some(3),
                    cluster,
                    ..SourceFacts::default()
                },
            },
            sha256: Sha256Digest::from_bytes(*digest(job)),
            storage_path: "file:///v".into(),
            vault_url: "file:///v".into(),
        };
        assert_eq!(self.catalog.adopt_backup(&done).await.unwrap(), Taken::New);
        backup_id
    }

    async fn wal(&self, from: u64, to: u64) {
        let range = WalRange {
            timeline: 1,
            from: Lsn(from),
            to: Lsn(to),
            first_time: at(from),
            last_time: at(to),
        };
        self.catalog.add_wal(self.vault, SYSTEM, &range).await.unwrap();
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.bearer_auth(TOKEN).send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

/// Thirty-two bytes that differ from job to job.
fn digest(job: JobId) -> Box<[u8; 32]> {
    let mut bytes = Box::new([0; 32]);
    bytes[..16].copy_from_slice(job.as_uuid().as_bytes());
    bytes
}

/// The clock of this cluster: a second a place.
fn at(place: u64) -> DateTime<Utc> {
    "2026-11-21T10:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(place.cast_signed())
}

fn facts(start: u64, stop: u64) -> ClusterFacts {
    ClusterFacts {
        system_identifier: SYSTEM,
        timeline: 1,
        start_lsn: Lsn(start),
        stop_lsn: Lsn(stop),
        stopped_at: at(stop),
        segment_bytes: SEGMENT,
        incremental_from: None,
        tablespaces: vec![],
    }
}

#[tokio::test]
async fn a_moment_is_recovered_from_the_right_base_backup_or_refused_with_the_bounds() {
    let running = Running::start().await;
    let first = running.backup("shop", Some(facts(100, 200))).await;
    let second = running.backup("shop", Some(facts(500, 600))).await;
    running.wal(0, 1000).await;
    let (status, timeline) = running.get("/targets/shop/timeline").await;
    assert_eq!(status, 200, "{timeline}");
    assert_eq!(
        timeline["windows"][0]["from"],
        json!({ "lsn": "0/C8", "time": at(200) })
    );
    assert_eq!(
        timeline["windows"][0]["to"],
        json!({ "lsn": "0/3E8", "time": at(1000) })
    );
    assert_eq!(timeline["windows"][0]["bases"], json!([first, second]));
    assert_eq!(timeline["bases"][1]["usable"], true);

    let ask = |to: &str| json!({ "targets": ["shop"], "to": to, "destination": "/srv/back", "leave": "running" });
    let (status, created) = running.post("/restore/create", ask("0/190")).await;
    assert_eq!(status, 201, "{created}");
    assert_eq!(created["validation_results"][0]["backup_id"], first.as_str());
    let sql = format!(
        "SELECT params->'recovery' FROM backup_jobs WHERE id = '{}'",
        created["restore_id"].as_str().unwrap()
    );
    let recovery: Value = serde_json::from_str(&running.postgres.psql("catalog", &sql).unwrap()).unwrap();
    assert_eq!(
        recovery,
        json!({ "to": { "lsn": "0/190" }, "timeline": 1, "wal_end": "0/3E8", "leave": "running" })
    );

    for (to, place) in [
        ("2026-11-21T10:00:00Z", "before the end of the first base backup"),
        ("2026-11-21T11:00:00Z", "after the end of the WAL in the vault"),
        ("0/3E8", "after the end"),
    ] {
        let detail = running.refusal(ask(to)).await;
        let bounds = "2026-11-21T10:03:20Z (0/C8) to 2026-11-21T10:16:40Z (0/3E8) on timeline 1";
        assert!(detail.contains(place) && detail.contains(bounds), "{detail}");
    }
    let early = json!({ "backup_id": second, "to": "0/190", "destination": "/srv/back" });
    assert!(
        running
            .refusal(early)
            .await
            .contains("name the target instead of the backup")
    );
    assert!(running.refusal(ask("yesterday")).await.contains("names no moment"));

    let (status, preview) = running.post("/restore/preview", ask("2026-11-21T10:15:00Z")).await;
    assert_eq!(status, 200, "{preview}");
    assert_eq!(preview["backup_id"], second.as_str());
    assert_eq!(
        (&preview["method"], &preview["content_bytes"]),
        (&json!("physical_basebackup"), &json!(5_000_000))
    );
    let wal = &preview["wal"];
    assert_eq!(
        (&wal["from"], &wal["to"], &wal["bytes"]),
        (&json!("0/1F4"), &json!("0/3E8"), &json!(500))
    );
    assert_eq!(wal["seconds_before_end"], 100);
    let notes = preview["notes"].to_string();
    assert!(notes.contains("how many rows its tables hold is not known"), "{notes}");
    let jobs = running
        .postgres
        .psql("catalog", "SELECT count(*) FROM backup_jobs WHERE kind = 'restore'")
        .unwrap();
    assert_eq!(jobs.trim(), "1", "a preview makes no job");
    running.stop().await;
}

#[tokio::test]
async fn a_backup_of_a_cluster_is_restored_to_its_own_end_and_a_dump_to_no_moment() {
    let running = Running::start().await;
    let cluster = running.backup("shop", Some(facts(100, 200))).await;
    let dump = running.backup("dumped", None).await;
    // The catalog may have lost what it knew of the WAL; the backup has it.
    let (status, created) = running
        .post(
            "/restore/create",
            json!({ "backup_id": cluster, "destination": "/srv/back" }),
        )
        .await;
    assert_eq!(status, 201, "{created}");
    assert!(
        created["notes"][0]
            .as_str()
            .unwrap()
            .contains("as far as the catalog knows"),
        "{created}"
    );
    let sql = "SELECT params->'recovery'->>'to' FROM backup_jobs WHERE kind = 'restore'";
    assert_eq!(running.postgres.psql("catalog", sql).unwrap().trim(), "immediate");

    let latest = |backup: &BackupId| json!({ "backup_id": backup, "to": "latest", "destination": "/srv/back" });
    assert!(
        running
            .refusal(latest(&cluster))
            .await
            .contains("does not hold all of the WAL")
    );
    assert!(
        running
            .refusal(latest(&dump))
            .await
            .contains("to is for base backups of clusters")
    );
    let by_name = json!({ "targets": ["dumped"], "to": "latest", "destination": "/srv/back" });
    assert!(running.refusal(by_name).await.contains("there is no base backup"));
    let (status, preview) = running.post("/restore/preview", json!({ "backup_id": dump })).await;
    assert_eq!((status, &preview["source"]["tables"]), (200, &json!(3)), "{preview}");
    assert_eq!(preview.get("wal"), None);
    let (status, unknown) = running
        .post(
            "/restore/create",
            json!({ "targets": ["nothing"], "to": "latest", "destination": "/x" }),
        )
        .await;
    assert_eq!(status, 404, "{unknown}");
    running.stop().await;
}

#[tokio::test]
async fn what_happened_to_a_target_stands_on_its_timeline() {
    let running = Running::start().await;
    let note = json!({ "text": " before the\nmigration ", "at": "2026-11-21T10:00:00Z" });
    let (status, written) = running.post("/targets/shop/annotations", note).await;
    assert_eq!(status, 201, "{written}");
    assert_eq!(
        (&written["text"], &written["kind"]),
        (&json!("before the\nmigration"), &json!("note"))
    );
    let (status, _) = running.post("/targets/shop/annotations", json!({ "text": " " })).await;
    assert_eq!(status, 422);
    let (status, _) = running
        .post("/targets/nothing/annotations", json!({ "text": "x" }))
        .await;
    assert_eq!(status, 404);
    assert_eq!(running.get("/targets/nothing/timeline").await.0, 404);
    let (_, timeline) = running.get("/targets/shop/timeline").await;
    assert_eq!(timeline["annotations"], json!([written]));
    assert_eq!(timeline["windows"], json!([]));
    running.stop().await;
}

#[tokio::test]
async fn a_schema_change_stands_once_on_the_timelines_of_the_database_and_its_cluster() {
    let running = Running::start().await;
    let config = BusConfig {
        url: running.nats.url(),
        credentials_file: None,
        replicas: 1,
    };
    let bus = Bus::connect(&config, "test").await.unwrap();
    bus.ensure_streams().await.unwrap();
    let annotations = async |target: &str| running.catalog.annotations(&target.parse().unwrap(), 10).await.unwrap();
    // The second is a repetition that the stream does not know for one.
    for (delivery, id, written) in [("a", "change-1", 1), ("b", "change-1", 1), ("c", "change-2", 2)] {
        let event = json!({
            "specversion": "1.0", "id": id, "source": "/ci", "type": "postgres.schema_updated",
            "data": { "database": "dumped" }
        });
        let message = Outgoing {
            subject: "postgres.schema_updated".to_owned(),
            message_id: delivery.to_owned(),
            content_type: "application/cloudevents+json",
            traceparent: None,
            body: event.to_string().into_bytes(),
        };
        bus.publish(vec![message]).await.pop().unwrap().unwrap();
        until(|| async { (annotations("shop").await.len() >= written).then_some(()) }).await;
    }
    for target in ["dumped", "shop"] {
        let written = annotations(target).await;
        assert_eq!(written.len(), 2, "{written:?}");
        assert_eq!(
            (written[0].kind, written[0].text.as_str()),
            (AnnotationKind::Schema, "schema of dumped changed")
        );
        assert_eq!(written[0].source, "postgres.schema_updated");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_hole_asks_for_one_base_backup_and_alerts_until_that_is_there() {
    let running = Running::start().await;
    running.backup("shop", Some(facts(100, 200))).await;
    running.wal(0, 1000).await;
    running.wal(2000, 3000).await;
    let waiting = "SELECT count(*) FROM backup_jobs WHERE kind = 'backup' AND status = 'pending'
                       AND target_identifier = 'shop' AND type = 'incremental'";
    let alert = async || running.catalog.active_alerts(None).await.unwrap().pop();
    let raised = until(|| async { alert().await }).await;
    assert!(
        raised.1.message.contains("missing before 0/7D0 on timeline 1"),
        "{}",
        raised.1.message
    );
    until(|| async { (running.postgres.psql("catalog", waiting).unwrap().trim() == "1").then_some(()) }).await;
    let (_, status) = running.get("/backup/status").await;
    assert_eq!(
        (&status["system_status"], &status["reasons"][0]),
        (&json!("degraded"), &json!(raised.1.message))
    );

    running.backup("shop", Some(facts(2100, 2200))).await;
    until(|| async { alert().await.is_none().then_some(()) }).await;
    assert_eq!(running.postgres.psql("catalog", waiting).unwrap().trim(), "1");
    let (_, timeline) = running.get("/targets/shop/timeline").await;
    assert_eq!(timeline["windows"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&timeline["gaps"][0]["from"]["lsn"], &timeline["gaps"][0]["to"]["lsn"]),
        (&json!("0/3E8"), &json!("0/7D0"))
    );
    let told: Vec<&str> = timeline["annotations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["text"].as_str().unwrap())
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[1].starts_with("resolved: "), "{told:?}");
    running.stop().await;
}

/// Waits until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(ask: impl FnMut() -> F) -> T {
    wait_for_async("what the test waits for", Duration::from_secs(30), ask)
        .await
        .unwrap()
}
