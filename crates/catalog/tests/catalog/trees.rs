//! What the catalog keeps for backups and restores of file trees: progress, what a restore would change, scenarios.

use chrono::Utc;
use serde_json::json;
use strongroom_catalog::{Catalog, DispatchLimits, Finish, JobRequest, LeaseState, Scenario};
use strongroom_proto::restore::{ChangeKind, PathChange, RestoreChanges};
use strongroom_proto::{Attempt, BackupType, JobId, JobKind, JobStatus, Progress, ScheduleId, TargetKind};
use strongroom_testkit::Postgres;

use crate::asked::{backup, catalog, create};

fn request(target: &str) -> JobRequest {
    JobRequest {
        target_kind: TargetKind::Files,
        ..backup(target)
    }
}

async fn claimed(catalog: &Catalog, request: &JobRequest) -> JobId {
    let id = create(catalog, None, request).await;
    let limits = DispatchLimits {
        per_target: 9,
        per_pool: 9,
    };
    catalog.dispatch(limits).await.unwrap();
    catalog.claim(id, Attempt::FIRST, "w", 30).await.unwrap().unwrap();
    id
}

#[tokio::test]
async fn a_job_shows_how_far_its_attempt_is_and_the_next_attempt_begins_anew() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let id = claimed(&catalog, &request("docs")).await;
    let progress = Progress::new(1000, 7, Some(5000), Some(500));
    assert_eq!(progress.seconds_left, Some(8));
    let renewed = catalog.renew(id, Attempt::FIRST, 30, &progress).await.unwrap();
    assert_eq!(renewed, LeaseState::Held);
    assert_eq!(catalog.job(id).await.unwrap().unwrap().progress, progress);

    catalog.interrupt(id, Attempt::FIRST).await.unwrap();
    let limits = DispatchLimits {
        per_target: 9,
        per_pool: 9,
    };
    catalog.dispatch(limits).await.unwrap();
    catalog.claim(id, Attempt::new(2), "w", 30).await.unwrap().unwrap();
    assert_eq!(catalog.job(id).await.unwrap().unwrap().progress, Progress::default());
}

#[tokio::test]
async fn a_dry_run_ends_with_what_it_would_change_and_without_evidence_of_a_restore() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let restore = JobRequest {
        kind: JobKind::Restore,
        params: json!({ "destination": "(where the target lies)", "dry_run": true, "in_place": true }),
        ..request("docs")
    };
    let id = claimed(&catalog, &restore).await;
    assert_eq!(catalog.changes(id).await.unwrap(), None);
    let mut changes = RestoreChanges {
        dry_run: true,
        destination: "/srv/docs".to_owned(),
        ..RestoreChanges::default()
    };
    changes.add(PathChange {
        change: ChangeKind::Replace,
        path: "a\n\u{fffd}".to_owned(),
        path_hex: Some("610aff".to_owned()),
        reason: None,
        bytes: Some(7),
    });
    let stale = catalog.finish_dry_run(id, Attempt::new(2), &changes).await.unwrap();
    assert_eq!(stale, Finish::Stale);
    let done = catalog.finish_dry_run(id, Attempt::FIRST, &changes).await.unwrap();
    assert_eq!(done, Finish::Accepted);
    assert_eq!(catalog.changes(id).await.unwrap(), Some(changes));
    let job = catalog.job(id).await.unwrap().unwrap();
    assert_eq!((job.status, job.checksum), (JobStatus::Completed, None));
    let counted = "SELECT count(*) FROM outbox WHERE subject LIKE 'restore.%'";
    assert_eq!(server.psql("catalog", counted).unwrap().trim(), "0");
    let noted = "SELECT action || ' ' || (detail->>'destination') || ' ' || (detail->>'in_place') FROM audit_log";
    assert_eq!(
        server.psql("catalog", noted).unwrap().trim(),
        "try restore /srv/docs true"
    );
}

#[tokio::test]
async fn a_dry_run_that_fails_is_no_failed_restore_and_none_says_how_long_restores_take() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let trial = JobRequest {
        kind: JobKind::Restore,
        params: json!({ "destination": "postgres://h/d", "dry_run": true }),
        ..request("shop")
    };
    let id = claimed(&catalog, &trial).await;
    let ended = catalog.fail(id, Attempt::FIRST, "no such host").await.unwrap();
    assert_eq!(ended, Finish::Accepted);
    let job = catalog.job(id).await.unwrap().unwrap();
    assert_eq!(
        (job.status, job.error.as_deref()),
        (JobStatus::Failed, Some("no such host"))
    );
    let count = |query: &str| server.psql("catalog", query).unwrap().trim().to_owned();
    assert_eq!(count("SELECT count(*) FROM dead_letters"), "0");
    assert_eq!(count("SELECT count(*) FROM outbox WHERE subject LIKE 'restore.%'"), "0");
    assert_eq!(count("SELECT success FROM restores"), "f");

    let id = claimed(
        &catalog,
        &JobRequest {
            id: JobId::fresh(),
            ..trial
        },
    )
    .await;
    catalog
        .finish_dry_run(id, Attempt::FIRST, &RestoreChanges::default())
        .await
        .unwrap();
    let target = "shop".parse().unwrap();
    let past = catalog.past_durations_seconds(JobKind::Restore, &target).await.unwrap();
    assert_eq!(past, Vec::<f64>::new());
}

#[tokio::test]
async fn a_scenario_is_known_from_its_deployment_on_until_it_is_forgotten() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let deployed = |path: &str| JobRequest {
        scenario_path: Some(path.to_owned()),
        params: json!({ "path": path }),
        ..request("scenario/checkout")
    };
    create(&catalog, None, &request("docs")).await;
    assert_eq!(catalog.scenarios().await.unwrap(), []);
    for path in ["/srv/v1", "/srv/v2"] {
        create(&catalog, None, &deployed(path)).await;
        let known = Scenario {
            target: "scenario/checkout".parse().unwrap(),
            path: path.to_owned(),
        };
        assert_eq!(catalog.scenarios().await.unwrap(), [known]);
    }
    let name = "scenario/checkout".parse().unwrap();
    assert!(catalog.forget_scenario(&name, "tester").await.unwrap());
    assert!(!catalog.forget_scenario(&name, "tester").await.unwrap());
    assert_eq!(catalog.scenarios().await.unwrap(), []);
}

#[tokio::test]
async fn a_schedule_may_leave_the_type_to_its_targets() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let spec = |backup_type: Option<&str>| {
        let mut spec = json!({ "name": "nightly", "cron_expression": "0 2 * * *", "targets": ["files"] });
        if let Some(backup_type) = backup_type {
            spec["backup_type"] = json!(backup_type);
        }
        serde_json::from_value(spec).unwrap()
    };
    let made = catalog
        .create_schedule(ScheduleId::fresh(), &spec(None), Some(Utc::now()), "tester")
        .await
        .unwrap();
    assert_eq!(made.spec.backup_type, None);
    let changed = catalog
        .update_schedule("nightly", &spec(Some("differential")), Some(Utc::now()), "tester")
        .await
        .unwrap();
    assert_eq!(changed.unwrap().spec.backup_type, Some(BackupType::Differential));
}
