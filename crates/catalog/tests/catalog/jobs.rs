//! Jobs: what compare-and-set, coalescing and the outbox promise.

use std::time::Duration;

use chrono::Utc;
use strongroom_catalog::{
    Catalog, CreateOutcome, DispatchLimits, Dispatched, Finish, FinishedBackup, JobRequest, LeaseState,
};
use strongroom_proto::receipt::{
    BACKUP_RECEIPT_SCHEMA, BackupReceipt, InitiatedBy, Integrity, Method, Operator, ReceiptStatus, SourceFacts, Totals,
};
use strongroom_proto::{
    Attempt, BackupId, BackupType, JobId, JobKind, JobStatus, Progress, Sha256Digest, TargetKind, TriggerId, VaultId,
};
use strongroom_testkit::Postgres;

use crate::asked::{backup, catalog, create, origin};

const WIDE: DispatchLimits = DispatchLimits {
    per_target: 1,
    per_pool: 100,
};

fn finished(job: JobId, backup_id: &BackupId, attempt: Attempt) -> FinishedBackup {
    let digest = Sha256Digest::from_bytes([attempt.number() as u8; 32]);
    FinishedBackup {
        receipt: BackupReceipt {
            schema: BACKUP_RECEIPT_SCHEMA.into(),
            backup_id: backup_id.clone(),
            environment: "test".into(),
            surface: "postgres".into(),
            method: Method::LogicalDump,
            started_at: Utc::now(),
            completed_at: Utc::now(),
            status: ReceiptStatus::Success,
            artifacts: vec![],
            integrity: Integrity::UNPROVEN,
            git: None,
            operator: Operator {
                initiated_by: InitiatedBy::Human,
                principal: "tester".into(),
            },
            notes: String::new(),
            vault_id: VaultId::fresh(),
            job_id: job,
            attempt,
            target: "orders".parse().unwrap(),
            target_kind: TargetKind::Postgres,
            backup_type: BackupType::Full,
            retention_until: None,
            totals: Totals {
                content_bytes: 100,
                stored_bytes: 10,
                ..Totals::default()
            },
            missing: vec![],
            software: "test".into(),
            source: SourceFacts::default(),
        },
        sha256: digest,
        storage_path: "file:///v/backups/x/receipt.json".into(),
        vault_url: "file:///v".into(),
    }
}

async fn sent(catalog: &Catalog) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    catalog
        .relay_outbox(1000, async |messages| {
            seen.extend(messages.iter().map(|m| (m.subject.clone(), m.message_id.clone())));
            vec![true; messages.len()]
        })
        .await
        .unwrap();
    seen
}

#[tokio::test]
async fn services_that_start_together_migrate_once() {
    let server = Postgres::start().unwrap();
    server.create_database("catalog").unwrap();
    let url = server.url("catalog");
    let (a, b, c) = tokio::join!(
        Catalog::connect(&url, 2),
        Catalog::connect(&url, 2),
        Catalog::connect(&url, 2)
    );
    for catalog in [a, b, c] {
        catalog.unwrap().ping().await.unwrap();
    }
    assert_eq!(
        server
            .psql(
                "catalog",
                "SELECT count(*) = max(version) AND bool_and(success) FROM _sqlx_migrations"
            )
            .unwrap()
            .trim(),
        "t"
    );
}

#[tokio::test]
async fn a_target_that_waits_takes_further_requests_in() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let first = create(&catalog, Some("1"), &backup("orders")).await;
    let wider = JobRequest {
        backup_type: BackupType::Full,
        ..backup("orders")
    };
    assert_eq!(create(&catalog, Some("2"), &wider).await, first);
    assert_eq!(
        catalog.job(first).await.unwrap().unwrap().backup_type,
        BackupType::Full,
        "the wider type wins"
    );
    assert_ne!(create(&catalog, Some("3"), &backup("users")).await, first);

    // Once it has begun, a request may be about what changed since: it gets a job of its own, which waits for its turn.
    assert_eq!(catalog.dispatch(WIDE).await.unwrap(), Dispatched::Jobs(2));
    catalog.claim(first, Attempt::FIRST, "w", 30).await.unwrap().unwrap();
    let second = create(&catalog, Some("4"), &backup("orders")).await;
    assert_ne!(second, first);
    assert_eq!(
        catalog.dispatch(WIDE).await.unwrap(),
        Dispatched::Jobs(0),
        "one job a target at a time"
    );
}

#[tokio::test]
async fn many_requests_at_once_for_one_target_come_to_one_job() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let catalog = catalog.clone();
        tasks.spawn(async move { create(&catalog, Some(&n.to_string()), &backup("orders")).await });
    }
    let ids: std::collections::BTreeSet<JobId> = tasks.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(catalog.jobs(None, 100).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_trigger_taken_before_makes_no_second_job() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let first = create(&catalog, Some("same"), &backup("orders")).await;
    catalog.dispatch(WIDE).await.unwrap();
    catalog.claim(first, Attempt::FIRST, "w", 30).await.unwrap().unwrap();
    let again = catalog
        .create_jobs(&origin(Some("same")), &[backup("orders")])
        .await
        .unwrap();
    assert_eq!(again, CreateOutcome::Repeated(vec![first]));
    assert_eq!(catalog.jobs(None, 100).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_stale_attempt_cannot_commit_and_the_current_one_can() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let request = backup("orders");
    let id = create(&catalog, None, &request).await;
    catalog.dispatch(WIDE).await.unwrap();
    assert!(
        catalog.claim(id, Attempt::new(2), "w", 30).await.unwrap().is_none(),
        "not dispatched"
    );
    catalog.claim(id, Attempt::FIRST, "paused", 0).await.unwrap().unwrap();
    assert!(
        catalog.claim(id, Attempt::FIRST, "other", 30).await.unwrap().is_none(),
        "claimed already"
    );

    let lost = catalog.expired_leases().await.unwrap();
    assert_eq!((lost[0].id, lost[0].attempt), (id, Attempt::FIRST));
    assert_eq!(
        catalog.expire(id, Attempt::FIRST, "lease").await.unwrap(),
        Finish::Accepted
    );
    catalog.dispatch(WIDE).await.unwrap();
    let second = Attempt::new(2);
    catalog.claim(id, second, "other", 30).await.unwrap().unwrap();

    let stale = finished(id, &request.backup_id, Attempt::FIRST);
    assert_eq!(
        catalog.finish_backup(id, Attempt::FIRST, &stale).await.unwrap(),
        Finish::Stale
    );
    assert_eq!(catalog.fail(id, Attempt::FIRST, "no").await.unwrap(), Finish::Stale);
    assert_eq!(catalog.interrupt(id, Attempt::FIRST).await.unwrap(), Finish::Stale);
    assert_eq!(
        catalog
            .renew(id, Attempt::FIRST, 30, &Progress::default())
            .await
            .unwrap(),
        LeaseState::Lost
    );
    assert_eq!(catalog.job(id).await.unwrap().unwrap().status, JobStatus::Running);

    let done = finished(id, &request.backup_id, second);
    assert_eq!(
        catalog.finish_backup(id, second, &done).await.unwrap(),
        Finish::Accepted
    );
    assert_eq!(
        catalog.finish_backup(id, second, &done).await.unwrap(),
        Finish::Stale,
        "once"
    );
    let subjects: Vec<String> = sent(&catalog).await.into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects.iter().filter(|s| *s == "backup.job.completed").count(), 1);
    assert_eq!(
        catalog
            .backups(&strongroom_catalog::BackupFilter {
                limit: 10,
                ..Default::default()
            })
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn limits_hold_and_the_oldest_goes_first() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(create(&catalog, None, &backup(&format!("t{n}"))).await);
    }
    let limits = DispatchLimits {
        per_target: 1,
        per_pool: 4,
    };
    assert_eq!(catalog.dispatch(limits).await.unwrap(), Dispatched::Jobs(4));
    assert_eq!(catalog.dispatch(limits).await.unwrap(), Dispatched::Jobs(0));
    let messages: Vec<String> = sent(&catalog).await.into_iter().map(|(_, id)| id).collect();
    let expected: Vec<String> = ids[..4].iter().map(|id| format!("{id}.1")).collect();
    assert_eq!(messages, expected);
    assert!(
        catalog.claim(ids[7], Attempt::new(0), "w", 30).await.unwrap().is_none(),
        "attempt 0 is none"
    );
}

#[tokio::test]
async fn a_message_that_no_stream_took_stays_in_the_outbox() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    create(&catalog, None, &backup("a")).await;
    create(&catalog, None, &backup("b")).await;
    catalog.dispatch(WIDE).await.unwrap();
    let published = catalog
        .relay_outbox(10, async |m| m.iter().enumerate().map(|(n, _)| n == 0).collect())
        .await;
    assert_eq!(published.unwrap(), 1);
    assert_eq!(sent(&catalog).await.len(), 1, "the other one, and only that");
    assert_eq!(sent(&catalog).await.len(), 0);
}

#[tokio::test]
async fn a_job_given_up_leaves_a_dead_letter_an_event_and_an_alert() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let id = create(&catalog, None, &backup("orders")).await;
    catalog.dispatch(WIDE).await.unwrap();
    catalog.claim(id, Attempt::FIRST, "w", 30).await.unwrap().unwrap();
    sent(&catalog).await;
    catalog.fail(id, Attempt::FIRST, "disk full").await.unwrap();
    let subjects: Vec<String> = sent(&catalog).await.into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, ["backup.job.failed", "backup.alert"]);
    let letter = server
        .psql("catalog", "SELECT subject, reference, reason FROM dead_letters")
        .unwrap();
    assert_eq!(letter.trim(), format!("backup|{id}|disk full"));
}

#[tokio::test]
async fn the_secret_of_a_restore_is_gone_when_its_job_ends() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let request = JobRequest {
        kind: JobKind::Restore,
        secret: Some("postgres://u:hunter2@h/db".into()),
        params: serde_json::json!({ "destination": "postgres://u@h/db", "overwrite_reason": "rebuilding" }),
        ..backup("orders")
    };
    let id = create(&catalog, None, &request).await;
    catalog.dispatch(WIDE).await.unwrap();
    let job = catalog.claim(id, Attempt::FIRST, "w", 30).await.unwrap().unwrap();
    assert_eq!(
        catalog.expire(id, Attempt::FIRST, "x").await.unwrap(),
        Finish::Stale,
        "its lease holds"
    );
    assert!(job.secret.as_deref().unwrap().contains("hunter2"));
    assert!(!format!("{job:?}").contains("hunter2"));
    catalog.fail(id, Attempt::FIRST, "destination not empty").await.unwrap();
    let everything = server
        .psql("catalog", "SELECT (SELECT json_agg(j) FROM backup_jobs j)::text || (SELECT json_agg(o) FROM outbox o)::text || (SELECT json_agg(a) FROM audit_log a)::text")
        .unwrap();
    assert!(!everything.contains("hunter2"), "{everything}");
    assert!(everything.contains("rebuilding"), "the audit log holds the reason");
}

#[tokio::test]
async fn work_messages_the_queue_lost_are_sent_as_another_attempt() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let id = create(&catalog, None, &backup("orders")).await;
    catalog.dispatch(WIDE).await.unwrap();
    sent(&catalog).await;
    assert_eq!(catalog.unclaimed(0).await.unwrap(), 1);
    assert_eq!(catalog.unclaimed(60).await.unwrap(), 0);
    assert_eq!(catalog.take_back_unclaimed(0).await.unwrap(), 1);
    assert_eq!(catalog.dispatch(WIDE).await.unwrap(), Dispatched::Jobs(1));
    assert!(catalog.claim(id, Attempt::FIRST, "late", 30).await.unwrap().is_none());
    assert!(catalog.claim(id, Attempt::new(2), "w", 30).await.unwrap().is_some());
}

#[tokio::test]
async fn interruption_spends_no_attempt_and_a_failure_does() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let id = create(&catalog, None, &backup("orders")).await;
    for (number, spent) in [(1, 0), (2, 0), (3, 1)] {
        catalog.dispatch(WIDE).await.unwrap();
        let job = catalog.claim(id, Attempt::new(number), "w", 30).await.unwrap().unwrap();
        assert_eq!(job.retry_count, spent);
        if number == 1 {
            catalog.interrupt(id, Attempt::new(number)).await.unwrap();
        } else {
            catalog
                .retry(id, Attempt::new(number), "connection lost", Duration::ZERO)
                .await
                .unwrap();
        }
    }
    catalog.dispatch(WIDE).await.unwrap();
    assert_eq!(
        catalog
            .claim(id, Attempt::new(4), "w", 30)
            .await
            .unwrap()
            .unwrap()
            .retry_count,
        2
    );
}

#[tokio::test]
async fn one_of_two_coordinators_moves_a_schedule_on() {
    use strongroom_proto::ScheduleId;
    use strongroom_proto::api::ScheduleSpec;
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let spec: ScheduleSpec = serde_json::from_value(
        serde_json::json!({ "name": "nightly", "cron_expression": "0 3 * * *", "targets": ["orders"] }),
    )
    .unwrap();
    // Postgres keeps microseconds.
    let due = chrono::DateTime::from_timestamp_micros(Utc::now().timestamp_micros() - 1_000_000).unwrap();
    let next = due + chrono::Duration::days(1);
    let id = ScheduleId::fresh();
    catalog.create_schedule(id, &spec, Some(due), "tester").await.unwrap();
    assert!(
        catalog
            .create_schedule(ScheduleId::fresh(), &spec, Some(due), "tester")
            .await
            .is_err(),
        "the name is taken"
    );
    assert_eq!(catalog.due_schedules(Utc::now()).await.unwrap().len(), 1);
    let (a, b) = tokio::join!(
        catalog.advance_schedule(id, due, Some(next), Some(due)),
        catalog.advance_schedule(id, due, Some(next), Some(due)),
    );
    assert_eq!([a.unwrap(), b.unwrap()].iter().filter(|won| **won).count(), 1);
    assert_eq!(catalog.due_schedules(Utc::now()).await.unwrap().len(), 0);
}

#[tokio::test]
async fn the_catalog_allows_the_transitions_of_the_lifecycle_and_no_others() {
    use strongroom_policy::lifecycle::{self, JobEvent};
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    for (n, &from) in JobStatus::ALL.iter().enumerate() {
        for (m, &event) in JobEvent::ALL.iter().enumerate() {
            let request = backup(&format!("t{n}-{m}"));
            let id = create(&catalog, None, &request).await;
            catalog
                .dispatch(DispatchLimits {
                    per_target: 1,
                    per_pool: 1000,
                })
                .await
                .unwrap();
            let attempt = Attempt::FIRST;
            let done = FinishedBackup {
                sha256: Sha256Digest::from_bytes([(n * 16 + m) as u8; 32]),
                ..finished(id, &request.backup_id, attempt)
            };
            if from != JobStatus::Pending {
                catalog.claim(id, attempt, "w", 30).await.unwrap().unwrap();
            }
            match from {
                JobStatus::Pending | JobStatus::Running => {}
                JobStatus::Completed => drop(catalog.finish_backup(id, attempt, &done).await.unwrap()),
                JobStatus::Failed => drop(catalog.fail(id, attempt, "x").await.unwrap()),
                JobStatus::Cancelled => drop(catalog.cancelled(id, attempt).await.unwrap()),
            }
            let accepted = match event {
                JobEvent::Claimed => catalog.claim(id, attempt, "w", 30).await.unwrap().is_some(),
                JobEvent::Finished => catalog.finish_backup(id, attempt, &done).await.unwrap() == Finish::Accepted,
                JobEvent::AttemptLost => {
                    catalog.retry(id, attempt, "x", Duration::ZERO).await.unwrap() == Finish::Accepted
                }
                JobEvent::Interrupted => catalog.interrupt(id, attempt).await.unwrap() == Finish::Accepted,
                JobEvent::GaveUp => catalog.fail(id, attempt, "x").await.unwrap() == Finish::Accepted,
                JobEvent::Cancelled if from == JobStatus::Pending => catalog.request_cancel(id, "t").await.unwrap(),
                JobEvent::Cancelled => catalog.cancelled(id, attempt).await.unwrap() == Finish::Accepted,
            };
            let stands = catalog.job(id).await.unwrap().unwrap().status;
            match lifecycle::next(from, event) {
                Ok(to) => assert!(accepted && stands == to, "{from} + {event} -> {to}, stands at {stands}"),
                Err(_) => assert!(
                    !accepted && stands == from,
                    "{from} + {event} is not allowed, stands at {stands}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn a_cancelled_job_whose_attempt_is_given_back_ends_and_lets_others_run() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let id = create(&catalog, None, &backup("orders")).await;
    catalog.dispatch(WIDE).await.unwrap();
    catalog.claim(id, Attempt::FIRST, "w", 30).await.unwrap().unwrap();
    assert!(catalog.request_cancel(id, "tester").await.unwrap());
    assert_eq!(
        catalog
            .renew(id, Attempt::FIRST, 30, &Progress::default())
            .await
            .unwrap(),
        LeaseState::CancelRequested
    );
    assert_eq!(catalog.interrupt(id, Attempt::FIRST).await.unwrap(), Finish::Accepted);
    assert_eq!(catalog.job(id).await.unwrap().unwrap().status, JobStatus::Cancelled);
    create(&catalog, None, &backup("orders")).await;
    assert_eq!(catalog.dispatch(WIDE).await.unwrap(), Dispatched::Jobs(1));
}

#[tokio::test]
async fn a_request_that_joins_brings_what_it_knows_better_and_keeps_the_longest_retention() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    let soon = Utc::now() + chrono::Duration::days(1);
    let kept = JobRequest {
        params: serde_json::json!({ "path": "/srv/rel-41" }),
        ..backup("scenario/checkout")
    };
    let short = JobRequest {
        params: serde_json::json!({ "path": "/srv/rel-42" }),
        retention_until: Some(soon),
        ..backup("scenario/checkout")
    };
    let id = create(&catalog, None, &kept).await;
    assert_eq!(create(&catalog, None, &short).await, id);
    assert_eq!(
        catalog.job(id).await.unwrap().unwrap().retention_until,
        None,
        "kept without end stays so"
    );
    catalog.dispatch(WIDE).await.unwrap();
    let job = catalog.claim(id, Attempt::FIRST, "w", 30).await.unwrap().unwrap();
    assert_eq!(job.params["path"], "/srv/rel-42");
}

#[tokio::test]
async fn a_trigger_with_an_odd_identity_is_refused_once_and_for_all() {
    let server = Postgres::start().unwrap();
    let catalog = catalog(&server).await;
    for id in ["a\nb", "nul \0", &"x".repeat(9000)] {
        let trigger = TriggerId::of_event("/odd", id);
        for _ in 0..2 {
            catalog
                .refuse_trigger(&trigger, "backup.request", "unknown \0 target", b"{\"a\":\"\\u0000\"}")
                .await
                .unwrap();
        }
    }
    assert_eq!(
        server
            .psql("catalog", "SELECT count(*) FROM dead_letters")
            .unwrap()
            .trim(),
        "3"
    );
    assert_eq!(sent(&catalog).await.len(), 3);
}
