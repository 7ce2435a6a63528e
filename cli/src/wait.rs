//! Waiting for jobs: progress on standard error, the answer to the caller.
//!
//! Waiting changes nothing: Ctrl-C ends the wait and leaves the jobs running.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use strongroom_proto::api::JobView;
use strongroom_proto::{Attempt, JobId, JobStatus};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Answer, Client, ClientError};
use crate::render;

/// Between two looks at the jobs: short at first, because most small jobs end within the second.
const POLL_MIN: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(250);
/// The part of the time waited so far that the next pause takes.
const POLL_SHARE: u32 = 20;
/// Between two lines where standard error is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a coordinator may be away, as in a restart, before the wait is given up.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60);

/// How a wait ended.
pub(crate) enum Waited<T> {
    /// What was waited for.
    Ended(T),
    /// Ctrl-C; the jobs go on.
    Interrupted,
}

/// Waits until a job has ended.
pub(crate) async fn wait_for_one(client: &Client, job: JobId) -> anyhow::Result<Waited<Answer<JobView>>> {
    Ok(match wait_for(client, &[job]).await? {
        Waited::Ended(jobs) => Waited::Ended(jobs.into_iter().next().context("the job has no end")?),
        Waited::Interrupted => Waited::Interrupted,
    })
}

/// Waits until all of `jobs` have ended; they come in the order asked for.
pub(crate) async fn wait_for(client: &Client, jobs: &[JobId]) -> anyhow::Result<Waited<Vec<Answer<JobView>>>> {
    // Listened to from before anything is shown: a future of its own would be first listened to when it is first polled.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut display = Display::new();
    let result = tokio::select! {
        ended = poll_until_ended(client, jobs, &mut display) => ended.map(Waited::Ended),
        _ = interrupt.recv() => Ok(Waited::Interrupted),
    };
    display.clear();
    if matches!(result, Ok(Waited::Interrupted)) {
        eprintln!("Stopped waiting; what was asked for goes on. Wait for it again with:");
        for job in jobs {
            eprintln!("  strongroom job wait {job}");
        }
    }
    result
}

async fn poll_until_ended(
    client: &Client,
    jobs: &[JobId],
    display: &mut Display,
) -> anyhow::Result<Vec<Answer<JobView>>> {
    let mut ended: HashMap<JobId, Answer<JobView>> = HashMap::new();
    let mut away_since: Option<Instant> = None;
    let began = Instant::now();
    loop {
        for id in jobs {
            if ended.contains_key(id) {
                continue;
            }
            match client.job(*id).await {
                Ok(answer) => {
                    away_since = None;
                    display.show(&answer.value);
                    if answer.value.status.is_final() {
                        ended.insert(*id, answer);
                    }
                }
                Err(error) => tolerate(error, &mut away_since, display)?,
            }
        }
        if ended.len() == jobs.len() {
            return Ok(jobs.iter().filter_map(|id| ended.remove(id)).collect());
        }
        tokio::time::sleep((began.elapsed() / POLL_SHARE).clamp(POLL_MIN, POLL_MAX)).await;
    }
}

fn tolerate(error: ClientError, away_since: &mut Option<Instant>, display: &Display) -> anyhow::Result<()> {
    let first = away_since.is_none();
    let since = away_since.get_or_insert_with(Instant::now);
    if !error.is_transient() || since.elapsed() > OUTAGE_LIMIT {
        return Err(error.into());
    }
    if first {
        display.note("the coordinator does not answer; still trying");
    }
    Ok(())
}

/// What is shown while waiting.
struct Display {
    /// Absent where standard error is no terminal.
    bars: Option<MultiProgress>,
    jobs: HashMap<JobId, Shown>,
}

struct Shown {
    bar: Option<ProgressBar>,
    line_at: Option<Instant>,
    line: String,
}

impl Display {
    fn new() -> Self {
        Self {
            bars: io::stderr().is_terminal().then(MultiProgress::new),
            jobs: HashMap::new(),
        }
    }

    fn show(&mut self, job: &JobView) {
        let now = Instant::now();
        let bars = self.bars.as_ref();
        let shown = self.jobs.entry(job.id).or_insert_with(|| Shown {
            bar: bars.map(|bars| bars.add(bar(job))),
            line_at: None,
            line: String::new(),
        });
        let text = progress_text(job);
        if let Some(bar) = &shown.bar {
            if let Some(total) = job.progress.total_bytes {
                bar.set_length(total.max(1));
            }
            bar.set_position(job.progress.bytes);
            bar.set_message(text);
            if job.status.is_final() {
                bar.finish();
            }
        } else {
            let due = shown.line_at.is_none_or(|at| now.duration_since(at) >= LINE_INTERVAL) && text != shown.line;
            if due || job.status.is_final() {
                eprintln!("{}: {text}", label(job));
                shown.line_at = Some(now);
                shown.line = text;
            }
        }
    }

    fn note(&self, text: &str) {
        match &self.bars {
            // It fails when the terminal has gone away, and then nobody reads it.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            for shown in self.jobs.values() {
                if let Some(bar) = &shown.bar {
                    bar.finish_and_clear();
                }
            }
            let _ = bars.clear();
        }
    }
}

fn bar(job: &JobView) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix}  [{bar:24}] {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = ProgressBar::new(job.progress.total_bytes.unwrap_or(1).max(1))
        .with_style(style)
        .with_prefix(label(job));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn label(job: &JobView) -> String {
    format!("{} {}", job.kind, render::safe(job.target_identifier.as_str()))
}

/// How far a job is, in words.
fn progress_text(job: &JobView) -> String {
    match job.status {
        JobStatus::Pending => match &job.error {
            Some(error) => format!("waiting to try again: {}", render::safe(error)),
            None => "waiting for a worker".to_owned(),
        },
        JobStatus::Running => {
            let progress = &job.progress;
            let mut text = render::bytes(progress.bytes);
            if let Some(total) = progress.total_bytes {
                text = format!("{text} of {}", render::bytes(total));
            }
            match progress.files {
                0 => {}
                1 => text.push_str(", 1 file"),
                files => text.push_str(&format!(", {files} files")),
            }
            if let Some(rate) = progress.rate_bytes_per_second.filter(|rate| *rate > 0) {
                text = format!("{text}, {}/s", render::bytes(rate));
            }
            if let Some(left) = progress.seconds_left {
                text = format!("{text}, {} left", render::duration(Duration::from_secs(left)));
            }
            if job.attempt > Attempt::FIRST {
                text = format!("{text} (attempt {})", job.attempt);
            }
            text
        }
        JobStatus::Completed => "done".to_owned(),
        JobStatus::Failed => "failed".to_owned(),
        JobStatus::Cancelled => "cancelled".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use strongroom_proto::Progress;

    pub(crate) fn job() -> JobView {
        serde_json::from_value(serde_json::json!({
            "id": "01890000-0000-7000-8000-000000000001",
            "kind": "backup",
            "type": "full",
            "target": "postgres",
            "target_identifier": "orders-db",
            "status": "running",
            "created_at": "2026-11-21T09:00:00Z",
            "started_at": "2026-11-21T09:00:01Z",
            "completed_at": null,
            "size_bytes": null,
            "compression_ratio": null,
            "storage_path": null,
            "checksum": null,
            "retention_until": null,
            "metadata": {},
            "backup_id": "bkp-20261121-090000Z-000000000001",
            "attempt": 1,
            "worker": "host-1",
            "error": null,
            "progress": {"bytes": 1_200_000_000, "files": 0, "total_bytes": 4_000_000_000_u64},
            "partial": false,
            "verified": false
        }))
        .unwrap()
    }

    #[test]
    fn progress_tells_bytes_files_rate_and_time_left() {
        let mut job = job();
        let mut show = |progress| {
            job.progress = progress;
            progress_text(&job)
        };
        let total = Some(4_000_000_000);
        assert_eq!(
            show(Progress::new(1_200_000_000, 0, total, Some(200_000_000))),
            "1.2 GB of 4.0 GB, 200.0 MB/s, 14 s left"
        );
        assert_eq!(show(Progress::new(5, 1, total, None)), "5 B of 4.0 GB, 1 file");
        assert_eq!(
            show(Progress::new(5, 7000, None, Some(1_000_000))),
            "5 B, 7000 files, 1.0 MB/s"
        );
        job.attempt = Attempt::new(2);
        job.progress = Progress::new(5, 0, Some(4), Some(0));
        assert_eq!(progress_text(&job), "5 B (attempt 2)");
        job.status = JobStatus::Pending;
        assert_eq!(progress_text(&job), "waiting for a worker");
        job.error = Some("connection\x1b lost".to_owned());
        assert_eq!(progress_text(&job), "waiting to try again: connection\\u{1b} lost");
    }
}
