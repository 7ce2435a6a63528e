//! `strongroom status`

use strongroom_proto::api::{JobView, Status, SystemStatus, TargetList};

use super::{Outcome, job, print_json, target};
use crate::args::StatusArgs;
use crate::client::Client;
use crate::render::{self, Tone};

/// Jobs that are shown of those that have ended.
const RECENT_JOBS: usize = 5;

pub(crate) async fn run(client: &Client, args: &StatusArgs) -> anyhow::Result<Outcome> {
    let answer = client.get::<Status>(&["api", "v1", "backup", "status"]).await?;
    let outcome = match answer.value.system_status {
        SystemStatus::Healthy => Outcome::Done,
        SystemStatus::Degraded => Outcome::Warning,
        SystemStatus::Critical => Outcome::Failed,
    };
    if args.json {
        print_json(&answer)?;
        return Ok(outcome);
    }
    let mut text = text(&answer.value, args);
    if args.verbose {
        let mut targets = client.get::<TargetList>(&["api", "v1", "targets"]).await?.value;
        targets.targets.retain(|target| wanted(args, target.name.as_str()));
        text.push_str(&format!(
            "\n{}\n{}",
            render::tone(Tone::Heading, "TARGETS"),
            target::table(&targets)
        ));
    }
    render::print(&text)?;
    Ok(outcome)
}

fn wanted(args: &StatusArgs, target: &str) -> bool {
    args.targets.is_empty() || args.targets.iter().any(|name| name == target)
}

fn text(status: &Status, args: &StatusArgs) -> String {
    let (tone, word) = match status.system_status {
        SystemStatus::Healthy => (Tone::Good, "healthy"),
        SystemStatus::Degraded => (Tone::Warning, "degraded"),
        SystemStatus::Critical => (Tone::Bad, "critical"),
    };
    let mut text = format!("{}\n", render::tone(tone, word));
    for reason in &status.reasons {
        text.push_str(&format!("  {}\n", render::safe(reason)));
    }
    let usage = &status.storage_usage;
    let mut vault = format!("{:.1} GB used", usage.used_gb);
    if let Some(free) = usage.available_gb {
        vault.push_str(&format!(", {free:.1} GB free"));
    }
    if let Some(ratio) = usage.compression_ratio {
        vault.push_str(&format!(", content is {ratio:.1} times that"));
    }
    let never = |at: Option<_>| at.map_or_else(|| "never".to_owned(), render::time_ago);
    text.push_str(&render::facts([
        ("last backup", never(status.last_successful_backup)),
        ("last verified backup", never(status.last_verified_backup)),
        ("vault", vault),
    ]));
    section(&mut text, "ACTIVE JOBS", &status.active_jobs, usize::MAX, args);
    let recent = if args.verbose { usize::MAX } else { RECENT_JOBS };
    section(&mut text, "RECENT JOBS", &status.recent_jobs, recent, args);
    text
}

fn section(text: &mut String, heading: &str, jobs: &[JobView], limit: usize, args: &StatusArgs) {
    let jobs: Vec<&JobView> = jobs
        .iter()
        .filter(|job| wanted(args, job.target_identifier.as_str()))
        .take(limit)
        .collect();
    text.push_str(&format!("\n{}\n", render::tone(Tone::Heading, heading)));
    if jobs.is_empty() {
        text.push_str("none\n");
    } else if args.verbose {
        text.push_str(&job::table_with_details(jobs));
    } else {
        text.push_str(&job::table(jobs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::tests::job;

    #[test]
    fn reasons_and_only_the_wanted_jobs_are_shown() {
        let mut other = job();
        other.target_identifier = "users-db".parse().unwrap();
        let status = Status {
            system_status: SystemStatus::Degraded,
            reasons: vec!["orders-db has no verified backup".to_owned()],
            active_jobs: vec![job(), other],
            recent_jobs: vec![],
            last_successful_backup: None,
            last_verified_backup: None,
            storage_usage: strongroom_proto::api::StorageUsage {
                used_gb: 1.25,
                available_gb: Some(30.0),
                compression_ratio: Some(3.12),
            },
        };
        let args = StatusArgs {
            json: false,
            verbose: false,
            targets: vec!["orders-db".to_owned()],
        };
        let text = text(&status, &args);
        assert!(
            text.starts_with("degraded\n  orders-db has no verified backup\n"),
            "{text}"
        );
        assert!(text.contains("last backup           never\n"), "{text}");
        assert!(
            text.contains("1.2 GB used, 30.0 GB free, content is 3.1 times that"),
            "{text}"
        );
        assert!(text.contains("orders-db") && !text.contains("users-db"), "{text}");
        assert!(text.ends_with("RECENT JOBS\nnone\n"), "{text}");
    }
}
