//! Waiting for jobs: progress on standard error, the answer to the caller.
//!
//! Waiting changes nothing: Ctrl-C ends the wait and leaves the jobs running.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use strongroom_proto::api::JobView;
use strongroom_proto::{Attempt, JobId, JobStatus};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Answer, Client, ClientError};
use crate::render;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Between two lines where standard error is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How much of the past the rate is taken over.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// How long a coordinator may be away, as in a restart, before the wait is given up.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60);

/// How a wait ended.
pub(crate) enum Waited {
    /// Every job has ended; in the order asked for.
    Ended(Vec<Answer<JobView>>),
    /// Ctrl-C; the jobs go on.
    Interrupted,
}

/// Waits until all of `jobs` have ended.
pub(crate) async fn wait_for(client: &Client, jobs: &[JobId]) -> anyhow::Result<Waited> {
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
        tokio::time::sleep(POLL_INTERVAL).await;
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
    rate: Rate,
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
            rate: Rate::default(),
            line_at: None,
            line: String::new(),
        });
        let rate = shown.rate.add(now, job.attempt, job.progress_bytes);
        let text = progress_text(job, rate);
        if let Some(bar) = &shown.bar {
            if let Some(total) = job.progress_total_bytes {
                bar.set_length(total.max(1));
            }
            bar.set_position(job.progress_bytes);
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
    let bar = ProgressBar::new(job.progress_total_bytes.unwrap_or(1).max(1))
        .with_style(style)
        .with_prefix(label(job));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn label(job: &JobView) -> String {
    format!("{} {}", job.kind, render::safe(job.target_identifier.as_str()))
}

/// How far a job is, in words.
fn progress_text(job: &JobView, bytes_per_second: Option<f64>) -> String {
    match job.status {
        JobStatus::Pending => match &job.error {
            Some(error) => format!("waiting to try again: {}", render::safe(error)),
            None => "waiting for a worker".to_owned(),
        },
        JobStatus::Running => {
            let mut text = render::bytes(job.progress_bytes);
            let total = job.progress_total_bytes.filter(|total| *total >= job.progress_bytes);
            if let Some(total) = total {
                text = format!("{text} of {}", render::bytes(total));
            }
            if let Some(rate) = bytes_per_second.filter(|rate| *rate >= 1.0) {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let shown_rate = render::bytes(rate as u64);
                text = format!("{text}, {shown_rate}/s");
                if let Some(total) = total {
                    #[allow(clippy::cast_precision_loss)]
                    let left = (total - job.progress_bytes) as f64 / rate;
                    // A rate near nothing gives a time beyond what a duration can hold.
                    if let Ok(left) = Duration::try_from_secs_f64(left) {
                        text = format!("{text}, {} left", render::duration(left));
                    }
                }
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

/// Bytes a second over the last seconds of one attempt.
#[derive(Default)]
struct Rate {
    attempt: Option<Attempt>,
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn add(&mut self, now: Instant, attempt: Attempt, bytes: u64) -> Option<f64> {
        if self.attempt != Some(attempt) {
            self.attempt = Some(attempt);
            self.samples.clear();
        }
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2
            && self
                .samples
                .front()
                .is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW)
        {
            self.samples.pop_front();
        }
        let (first_at, first_bytes) = *self.samples.front()?;
        let seconds = now.duration_since(first_at).as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        let gained = bytes.saturating_sub(first_bytes) as f64;
        (seconds > 0.0).then(|| gained / seconds)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
            "progress_bytes": 1_200_000_000,
            "progress_total_bytes": 4_000_000_000_u64,
            "partial": false,
            "verified": false
        }))
        .unwrap()
    }

    #[test]
    fn progress_tells_bytes_rate_and_time_left() {
        let mut job = job();
        assert_eq!(
            progress_text(&job, Some(200e6)),
            "1.2 GB of 4.0 GB, 200.0 MB/s, 14 s left"
        );
        assert_eq!(progress_text(&job, None), "1.2 GB of 4.0 GB");
        job.progress_total_bytes = None;
        job.attempt = Attempt::new(2);
        assert_eq!(progress_text(&job, Some(1e6)), "1.2 GB, 1.0 MB/s (attempt 2)");
        job.progress_total_bytes = Some(5);
        assert_eq!(progress_text(&job, Some(f64::MIN_POSITIVE)), "1.2 GB (attempt 2)");
        job.status = JobStatus::Pending;
        assert_eq!(progress_text(&job, None), "waiting for a worker");
        job.error = Some("connection\x1b lost".to_owned());
        assert_eq!(
            progress_text(&job, None),
            "waiting to try again: connection\\u{1b} lost"
        );
    }

    #[test]
    fn the_rate_begins_anew_with_each_attempt() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.add(start, Attempt::FIRST, 0), None);
        assert_eq!(rate.add(at(2), Attempt::FIRST, 2000), Some(1000.0));
        assert_eq!(rate.add(at(3), Attempt::new(2), 0), None);
        assert_eq!(rate.add(at(4), Attempt::new(2), 50), Some(50.0));
        for second in 5..30 {
            rate.add(at(second), Attempt::new(2), 50);
        }
        assert_eq!(rate.add(at(30), Attempt::new(2), 50), Some(0.0));
    }
}
