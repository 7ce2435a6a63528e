//! Jobs, asked for.

use chrono::Utc;
use strongroom_catalog::{Catalog, CreateOutcome, JobRequest, Origin};
use strongroom_proto::receipt::{InitiatedBy, Operator};
use strongroom_proto::{BackupId, BackupType, JobId, JobKind, TargetKind, TriggerId};
use strongroom_testkit::Postgres;

/// The catalog of a server that has none yet.
pub(crate) async fn catalog(server: &Postgres) -> Catalog {
    server.create_database("catalog").unwrap();
    Catalog::connect(&server.url("catalog"), 8).await.unwrap()
}

pub(crate) fn origin(trigger: Option<&str>) -> Origin {
    Origin {
        trigger: trigger.map(|id| TriggerId::of_event("test", id)),
        door: "test".into(),
        schedule: None,
        operator: Operator {
            initiated_by: InitiatedBy::Human,
            principal: "tester".into(),
        },
        traceparent: None,
    }
}

pub(crate) fn backup(target: &str) -> JobRequest {
    let id = JobId::fresh();
    JobRequest {
        id,
        kind: JobKind::Backup,
        backup_type: BackupType::Incremental,
        target: target.parse().unwrap(),
        target_kind: TargetKind::Postgres,
        pool: "default".into(),
        backup_id: BackupId::for_job(id, Utc::now()),
        retention_until: None,
        metadata: serde_json::json!({}),
        params: serde_json::json!({}),
        secret: None,
        scenario_path: None,
    }
}

/// The job that a request made, or had made before.
pub(crate) async fn create(catalog: &Catalog, trigger: Option<&str>, request: &JobRequest) -> JobId {
    match catalog
        .create_jobs(&origin(trigger), std::slice::from_ref(request))
        .await
        .unwrap()
    {
        CreateOutcome::Created(jobs) => jobs[0].job_id,
        CreateOutcome::Repeated(jobs) => jobs[0],
    }
}
