//! `strongroom job`

use serde::Deserialize;
use strongroom_proto::api::JobView;

use super::{Outcome, end_of_job, left_out, outcome_of, print_json};
use crate::args::{JobArgs, JobCommand, JobListArgs};
use crate::client::Client;
use crate::render::{self, NONE};
use crate::wait::{Waited, wait_for_one};

/// `GET /api/v1/jobs`
#[derive(Debug, Deserialize)]
pub(crate) struct JobList {
    pub(crate) jobs: Vec<JobView>,
}

pub(crate) async fn run(client: &Client, command: JobCommand) -> anyhow::Result<Outcome> {
    match command {
        JobCommand::List(args) => list(client, &args).await,
        JobCommand::Show(args) => {
            let answer = client.job(args.id).await?;
            if args.json {
                print_json(&answer)?;
            } else {
                render::print(&details(&answer.value))?;
            }
            Ok(Outcome::Done)
        }
        JobCommand::Wait(args) => wait(client, &args).await,
        JobCommand::Cancel(args) => {
            let path = ["api", "v1", "jobs", &args.id.to_string(), "cancel"];
            let answer = client.post::<JobView>(&path, None::<&()>).await?;
            if args.json {
                print_json(&answer)?;
            } else if answer.value.status.is_final() {
                render::print(&end_of_job(&answer.value))?;
            } else {
                render::print("cancelling; the worker stops at its next step")?;
            }
            Ok(Outcome::Done)
        }
    }
}

async fn list(client: &Client, args: &JobListArgs) -> anyhow::Result<Outcome> {
    let answer = jobs(client, args.status.map(|status| status.to_string()), args.limit).await?;
    if args.json {
        print_json(&answer)?;
    } else if answer.value.jobs.is_empty() {
        render::print("no jobs")?;
    } else {
        render::print(&table_with_details(answer.value.jobs.iter().collect()))?;
    }
    Ok(Outcome::Done)
}

/// The newest jobs.
pub(crate) async fn jobs(
    client: &Client,
    status: Option<String>,
    limit: Option<u32>,
) -> Result<crate::client::Answer<JobList>, crate::client::ClientError> {
    let mut query = Vec::new();
    query.extend(status.map(|status| ("status", status)));
    query.extend(limit.map(|limit| ("limit", limit.to_string())));
    client.get_with(&["api", "v1", "jobs"], &query).await
}

async fn wait(client: &Client, args: &JobArgs) -> anyhow::Result<Outcome> {
    // A mistyped id is an error at once, not after a minute of patience.
    client.job(args.id).await?;
    let Waited::Ended(job) = wait_for_one(client, args.id).await? else {
        return Ok(Outcome::Interrupted);
    };
    if args.json {
        print_json(&job)?;
    } else {
        render::print(&end_of_job(&job.value))?;
        render::print(&left_out::text(client, &job.value).await)?;
    }
    Ok(outcome_of(&job.value))
}

/// Jobs without ids, for a first look.
pub(crate) fn table(jobs: Vec<&JobView>) -> String {
    let rows = jobs.into_iter().map(|job| {
        vec![
            job.target_identifier.to_string(),
            job.kind.to_string(),
            status(job),
            size(job),
            took(job),
            render::time(job.created_at),
        ]
    });
    render::table(
        &["TARGET", "JOB", "STATUS", "SIZE", "TOOK", "CREATED"],
        &["SIZE", "TOOK"],
        rows,
    )
}

/// Jobs with ids, workers and errors.
pub(crate) fn table_with_details(jobs: Vec<&JobView>) -> String {
    let rows = jobs.into_iter().map(|job| {
        vec![
            job.id.to_string(),
            job.target_identifier.to_string(),
            job.kind.to_string(),
            status(job),
            job.attempt.to_string(),
            size(job),
            took(job),
            render::time(job.created_at),
            job.worker.clone().unwrap_or_else(|| NONE.to_owned()),
            job.error.clone().unwrap_or_else(|| NONE.to_owned()),
        ]
    });
    let header = [
        "ID", "TARGET", "JOB", "STATUS", "ATTEMPT", "SIZE", "TOOK", "CREATED", "WORKER", "ERROR",
    ];
    render::table(&header, &["ATTEMPT", "SIZE", "TOOK"], rows)
}

fn status(job: &JobView) -> String {
    if job.partial {
        format!("{}, incomplete", job.status)
    } else {
        job.status.to_string()
    }
}

fn size(job: &JobView) -> String {
    match (job.size_bytes, job.progress.bytes) {
        (Some(size), _) => render::bytes(size),
        (None, 0) => NONE.to_owned(),
        (None, done) => render::bytes(done),
    }
}

fn took(job: &JobView) -> String {
    let Some(from) = job.started_at else {
        return NONE.to_owned();
    };
    render::between(from, job.completed_at.unwrap_or_else(chrono::Utc::now))
}

fn details(job: &JobView) -> String {
    let mut facts = vec![
        ("job", job.id.to_string()),
        ("kind", job.kind.to_string()),
        ("target", format!("{} ({})", job.target_identifier, job.target)),
        ("type", job.backup_type.to_string()),
        ("status", status(job)),
        ("attempt", job.attempt.to_string()),
        ("backup", job.backup_id.to_string()),
        ("created", render::time_ago(job.created_at)),
    ];
    let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    add("started", job.started_at.map(render::time));
    add("ended", job.completed_at.map(render::time));
    add("took", job.started_at.map(|_| took(job)));
    add("size", Some(size(job)).filter(|size| size != NONE));
    let progress = &job.progress;
    add(
        "files",
        Some(progress.files)
            .filter(|files| *files > 0)
            .map(|files| files.to_string()),
    );
    add(
        "rate",
        progress
            .rate_bytes_per_second
            .map(|rate| format!("{}/s", render::bytes(rate))),
    );
    let left = progress.seconds_left.map(std::time::Duration::from_secs);
    add("time left", left.map(render::duration));
    add("ratio", job.compression_ratio.map(|ratio| format!("{ratio:.1}")));
    add("worker", job.worker.clone());
    add("error", job.error.clone());
    add("receipt", job.storage_path.clone());
    add("receipt sha256", job.checksum.clone());
    add("kept until", job.retention_until.map(render::time));
    for (name, value) in job.metadata.as_object().into_iter().flatten() {
        // Names of metadata come from outside; only the known ones are shown by their own name.
        let known = ["description", "trigger", "principal", "initiated_by"]
            .into_iter()
            .find(|known| known == name);
        if let (Some(known), Some(value)) = (known, value.as_str()) {
            add(known, Some(value.to_owned()));
        }
    }
    facts.push(("verified", render::yes_no(job.verified).to_owned()));
    render::facts(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::tests::job;

    #[test]
    fn a_job_shows_what_a_person_asks_for() {
        let mut job = job();
        job.metadata = serde_json::json!({"description": "before the\nmigration", "odd": 1});
        let text = details(&job);
        assert!(text.contains("target       orders-db (postgres)\n"), "{text}");
        assert!(text.contains("description  before the\\nmigration\n"), "{text}");
        assert!(text.contains("size         1.2 GB\n"), "{text}");
        let table = table_with_details(vec![&job]);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(
            table.contains("01890000-0000-7000-8000-000000000001  orders-db  backup  running"),
            "{table}"
        );
    }
}
