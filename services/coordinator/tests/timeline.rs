//! Windows, annotations and recoveries by the API, of a catalog that says what WAL there is; no worker runs.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use strongroom_bus::{Bus, BusConfig, Outgoing};
use strongroom_catalog::{Catalog, FinishedBackup, Taken, WalNews, WalProgress};
use strongroom_proto::receipt::{
    BACKUP_RECEIPT_SCHEMA, BackupReceipt, InitiatedBy, Integrity, Method, Operator, ReceiptStatus, SourceFacts, Totals,
};
use strongroom_proto::timeline::{Annotation, AnnotationKind};
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
        Self::start_with(None).await
    }

    /// With this folder of more targets.
    async fn start_with(targets_dir: Option<PathBuf>) -> Self {
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
        config.targets_dir = targets_dir;
        let target = |database: &str, method| TargetConfig {
            url: Some(SecretUrl::new(format!("postgres://u@127.0.0.1:1/{database}"))),
            method,
            ..TargetConfig::of_kind(TargetKind::Postgres)
        };
        let physical = Some(PostgresMethod::PhysicalBasebackup);
        config.targets = [
            ("shop".parse().unwrap(), target("shop", physical)),
            ("dumped".parse().unwrap(), target("dumped", None)),
            (
                "scenario/web".parse().unwrap(),
                TargetConfig {
                    path: Some("/srv/web".into()),
                    ..TargetConfig::of_kind(TargetKind::Files)
                },
            ),
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
    assert!(
        notes.contains("no drill of it has ended: what its tables held is not known"),
        "{notes}"
    );
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

impl Running {
    async fn bus(&self) -> Bus {
        let config = BusConfig {
            url: self.nats.url(),
            credentials_file: None,
            replicas: 1,
        };
        let bus = Bus::connect(&config, "test").await.unwrap();
        bus.ensure_streams().await.unwrap();
        bus
    }

    async fn annotations(&self, target: &str) -> Vec<Annotation> {
        let target = target.parse().unwrap();
        self.catalog.annotations(&target, 10).await.unwrap()
    }
}

async fn publish(bus: &Bus, subject: &str, delivery: &str, id: &str, data: Value) {
    let event = json!({ "specversion": "1.0", "id": id, "source": "/ci", "type": subject, "data": data });
    let message = Outgoing {
        subject: subject.to_owned(),
        message_id: delivery.to_owned(),
        content_type: "application/cloudevents+json",
        traceparent: None,
        body: event.to_string().into_bytes(),
    };
    bus.publish(vec![message]).await.pop().unwrap().unwrap();
}

#[tokio::test]
async fn a_schema_change_stands_once_on_the_timelines_of_the_database_and_its_cluster() {
    let running = Running::start().await;
    let bus = running.bus().await;
    // The second is a repetition that the stream does not know for one.
    for (delivery, id, written) in [("a", "change-1", 1), ("b", "change-1", 1), ("c", "change-2", 2)] {
        let data = json!({ "database": "dumped" });
        publish(&bus, "postgres.schema_updated", delivery, id, data).await;
        until(|| async { (running.annotations("shop").await.len() >= written).then_some(()) }).await;
    }
    for target in ["dumped", "shop"] {
        let written = running.annotations(target).await;
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
async fn a_deployment_stands_once_on_the_timelines_of_the_clusters() {
    let running = Running::start().await;
    let bus = running.bus().await;
    for (delivery, id, written) in [("a", "deploy-1", 1), ("b", "deploy-1", 1), ("c", "deploy-2", 2)] {
        let data = json!({ "scenario": "web", "path": "/srv/web", "version": "2.1" });
        publish(&bus, "scenario.deployed", delivery, id, data).await;
        until(|| async { (running.annotations("shop").await.len() >= written).then_some(()) }).await;
    }
    for target in ["scenario/web", "shop"] {
        let written = running.annotations(target).await;
        let told: Vec<_> = written.iter().map(|note| (note.kind, note.text.as_str())).collect();
        let deployed = (AnnotationKind::Deploy, "deployed web, version 2.1");
        assert_eq!(told, [deployed, deployed], "{target}");
    }
    assert_eq!(
        running.annotations("dumped").await,
        [],
        "a database's dump is no cluster"
    );
    let (_, timeline) = running.get("/targets/shop/timeline").await;
    assert_eq!(timeline["annotations"][0]["text"], "deployed web, version 2.1");
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

#[tokio::test]
async fn the_alerts_of_a_target_go_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let declared = folder.path().join("gone.yaml");
    let target = "name: gone\nkind: postgres\nmethod: physical_basebackup\nurl: postgres://u@127.0.0.1:1/gone\n";
    std::fs::write(&declared, target).unwrap();
    let running = Running::start_with(Some(folder.path().to_owned())).await;
    let raise = async |target: &str, kind| {
        let message = format!("{kind} of {target}");
        running
            .catalog
            .raise_alert(&target.parse().unwrap(), kind, &message)
            .await
            .unwrap();
    };
    let standing = async || {
        let alerts = running.catalog.active_alerts(None).await.unwrap();
        let names = alerts.iter().map(|(target, alert)| format!("{target}: {}", alert.kind));
        names.collect::<Vec<_>>()
    };
    let expected = ["gone: wal_slot_lost", "gone: wal_not_received", "shop: wal_slot_lost"];
    raise("gone", "wal_slot_lost").await;
    raise("gone", "wal_not_received").await;
    raise("shop", "wal_slot_lost").await;
    // That those of targets that are no cluster go shows that it was looked at the others as well.
    raise("dumped", "wal_slot_lost").await;
    raise("never-declared", "wal_gap").await;
    until(|| async { (standing().await == expected).then_some(()) }).await;

    std::fs::remove_file(&declared).unwrap();
    until(|| async { (standing().await == ["shop: wal_slot_lost"]).then_some(()) }).await;
    // So also what is raised by whoever has not heard that it is gone.
    raise("gone", "wal_behind").await;
    until(|| async { (standing().await == ["shop: wal_slot_lost"]).then_some(()) }).await;
    let (_, status) = running.get("/backup/status").await;
    assert!(!status["reasons"].to_string().contains("gone"), "{status}");
    let (_, timeline) = running.get("/targets/gone/timeline").await;
    assert_eq!(timeline["alerts"], json!([]));
    let told = timeline["annotations"].as_array().unwrap().iter();
    let told = told.filter(|note| note["text"].as_str().unwrap().starts_with("resolved: "));
    assert_eq!(told.count(), 3, "{timeline}");
    running.stop().await;
}

/// Waits until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(ask: impl FnMut() -> F) -> T {
    wait_for_async("what the test waits for", Duration::from_secs(30), ask)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_receiver_that_begins_again_and_again_is_told_until_something_comes() {
    let running = Running::start().await;
    let (catalog, shop) = (&running.catalog, "shop".parse().unwrap());
    let reached = WalProgress {
        system_identifier: SYSTEM,
        timeline: 1,
        received_to: Lsn(100),
        server_time: None,
        behind_bytes: None,
        news: WalNews::None,
    };
    let alert = async || {
        let active = catalog.active_alerts(Some(&shop)).await.unwrap();
        active.into_iter().find(|(_, alert)| alert.kind == "wal_receiver_gone")
    };
    let claim = async || {
        let claim = catalog.claim_wal_stream(&shop, running.vault, Some("s"), "w", 60).await;
        claim.unwrap().unwrap()
    };
    // It reaches the server, and ends.
    let begin = async || {
        let claim = claim().await;
        catalog.renew_wal_stream(&claim, 60, Some(&reached)).await.unwrap();
        catalog.fail_wal_stream(&claim, "the vault is full").await.unwrap();
        catalog.release_wal_stream(&claim).await.unwrap();
    };
    let (_, told) = wait_for_async("the alert", Duration::from_secs(60), async || {
        begin().await;
        alert().await
    })
    .await
    .unwrap();
    let message = told.message;
    assert!(message.contains("(it said last: the vault is full)"), "{message}");
    // The coordinator looks again, and a beginning clears nothing.
    let looked = "SELECT seen_at FROM alerts WHERE kind = 'wal_receiver_gone' AND cleared_at IS NULL";
    let first = running.postgres.psql("catalog", looked).unwrap();
    wait_for_async("another look", Duration::from_secs(30), async || {
        begin().await;
        let at = running.postgres.psql("catalog", looked).unwrap();
        assert_ne!(at.trim(), "", "it was cleared");
        (at != first).then_some(())
    })
    .await
    .unwrap();

    let claim = claim().await;
    let progressed = WalProgress {
        news: WalNews::Progressed,
        ..reached
    };
    catalog.renew_wal_stream(&claim, 60, Some(&progressed)).await.unwrap();
    wait_for_async("the end of the alert", Duration::from_secs(30), async || {
        alert().await.is_none().then_some(())
    })
    .await
    .unwrap();
    running.stop().await;
}
