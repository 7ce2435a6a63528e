//! `strongroom backup`

use std::time::{Duration, Instant};

use strongroom_proto::api::{BackupCreated, CreateBackup, CreateVerify, JobView, ListBackups};
use strongroom_proto::{JobId, JobKind, JobStatus};

use super::{Outcome, end_of_job, job, left_out, outcome_of, print_jobs_json, print_json};
use crate::args::BackupArgs;
use crate::client::{Answer, Client, ClientError};
use crate::render;
use crate::wait::{Waited, wait_for};

/// How long the verification that follows a backup may take to appear before it is asked for.
const VERIFICATION_APPEARS_WITHIN: Duration = Duration::from_secs(15);
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

pub(crate) async fn run(client: &Client, args: BackupArgs) -> anyhow::Result<Outcome> {
    let request = CreateBackup {
        backup_type: args.backup_type,
        targets: args.targets,
        description: args.description,
        retention_days: args.retention_days,
        git: None,
    };
    let created = client.create_backup(&request).await?;
    if !args.wait && !args.wait_verified {
        if args.json {
            print_json(&created)?;
        } else {
            render::print(&created_text(&created.value))?;
        }
        return Ok(Outcome::Done);
    }
    let ids: Vec<JobId> = created.value.jobs.iter().map(|job| job.job_id).collect();
    let Waited::Ended(mut jobs) = wait_for(client, &ids).await? else {
        return Ok(Outcome::Interrupted);
    };
    let mut outcome = jobs
        .iter()
        .map(|job| outcome_of(&job.value))
        .max()
        .unwrap_or(Outcome::Done);
    if !args.json {
        print_ends(client, &jobs).await?;
    }
    let complete = jobs.iter().any(|job| job.value.status == JobStatus::Completed);
    if args.wait_verified && complete {
        let mut verifications = Vec::new();
        for job in jobs.iter().filter(|job| job.value.status == JobStatus::Completed) {
            verifications.extend(verification_of(client, &job.value).await?);
        }
        let Waited::Ended(ended) = wait_for(client, &verifications).await? else {
            return Ok(Outcome::Interrupted);
        };
        outcome = ended
            .iter()
            .map(|job| outcome_of(&job.value))
            .fold(outcome, Outcome::max);
        if !args.json {
            print_ends(client, &ended).await?;
        }
        jobs.extend(ended);
    } else if complete && !args.json {
        render::print(
            "A verification follows: `strongroom list` shows when the backup has been restored and compared.",
        )?;
    }
    if args.json {
        print_jobs_json(&jobs)?;
    }
    Ok(outcome)
}

async fn print_ends(client: &Client, jobs: &[Answer<JobView>]) -> anyhow::Result<()> {
    for job in jobs {
        render::print(&end_of_job(&job.value))?;
        render::print(&left_out::text(client, &job.value).await)?;
    }
    Ok(())
}

fn created_text(created: &BackupCreated) -> String {
    let rows = created.jobs.iter().map(|job| {
        let note = if job.coalesced {
            "joined a backup that was already waiting"
        } else {
            "created"
        };
        vec![job.target.to_string(), job.job_id.to_string(), note.to_owned()]
    });
    let mut text = render::table(&["TARGET", "JOB", "NOTE"], &[], rows);
    text.push_str(&format!(
        "\nExpected to take: {}\n",
        render::safe(&created.estimated_duration)
    ));
    if let [job] = created.jobs.as_slice() {
        text.push_str(&format!("Wait for it with: strongroom job wait {}\n", job.job_id));
    }
    text
}

/// The job that verifies a backup: the one that the coordinator made, or else one asked for here. Nothing where the
/// backup has been verified already.
pub(crate) async fn verification_of(client: &Client, backup: &JobView) -> Result<Option<JobId>, ClientError> {
    let asked_at = Instant::now();
    while asked_at.elapsed() < VERIFICATION_APPEARS_WITHIN {
        let jobs = job::jobs(client, None, Some(200)).await?.value.jobs;
        let found = jobs
            .iter()
            .find(|job| job.kind == JobKind::Verify && job.backup_id == backup.backup_id);
        if let Some(job) = found {
            return Ok(Some(job.id));
        }
        let filter = ListBackups {
            target: Some(backup.target_identifier.to_string()),
            limit: Some(20),
            ..ListBackups::default()
        };
        let backups = client.backups(&filter).await?.value.backups;
        if backups
            .iter()
            .any(|known| known.backup_id == backup.backup_id && known.verified)
        {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let request = CreateVerify {
        backup_id: backup.backup_id.to_string(),
    };
    let created = client.create_verify(&request).await?;
    Ok(Some(created.value.job_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_backup_says_how_to_wait_for_it() {
        let created: BackupCreated = serde_json::from_value(serde_json::json!({
            "job_id": "01890000-0000-7000-8000-000000000001",
            "estimated_duration": "15m",
            "status": "pending",
            "targets": ["orders-db"],
            "jobs": [{"job_id": "01890000-0000-7000-8000-000000000001", "target": "orders-db", "coalesced": true}]
        }))
        .unwrap();
        let text = created_text(&created);
        assert!(
            text.contains("orders-db  01890000-0000-7000-8000-000000000001  joined a backup"),
            "{text}"
        );
        assert!(
            text.ends_with("strongroom job wait 01890000-0000-7000-8000-000000000001\n"),
            "{text}"
        );
    }
}
