//! `strongroom demo`: the main job on real data, from an empty folder to a restored database.
//!
//! Invariant: whatever happens, what the demo started is stopped when it ends; what it found running goes on.

mod fleet;
mod sample;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use strongroom_proto::api::{BackupCreated, CreateBackup, CreateRestore, JobView, ReceiptView};
use strongroom_proto::{BackupType, JobId, JobStatus, TargetName};
use strongroom_runtime::{LoadOptions, Loaded};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Answer, Client};
use crate::commands::{backup, receipt, target};
use crate::render::{self, Tone};
use crate::wait::{Waited, wait_for_one};
use fleet::Fleet;
use sample::{SAMPLE_DATABASE, Sample};

const TARGET: &str = "sample-db";
const RESTORED_DATABASE: &str = "sample_restored";
/// How long a new target may take to be seen by the coordinator.
const TARGET_APPEARS_WITHIN: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// As a shell reports a process that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

/// What `strongroom demo` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that holds all state; without it $STRONGROOM_STATE/demo, /var/lib/strongroom/demo for root, or
    /// ~/.local/state/strongroom/demo
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The size of the sample database
    #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) megabytes: u32,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dir = state_folder(args.dir)?;
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("create {}: choose another folder with --dir", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
    let _lock = lock(&dir)?;
    let mut demo = Demo {
        dir,
        megabytes: args.megabytes,
        fleet: None,
        sample: None,
        stages: Vec::new(),
    };
    let (mut interrupt, mut terminate, mut hang_up) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    );
    let result = tokio::select! {
        // First, because waiting for a job listens to Ctrl-C too.
        biased;
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        _ = hang_up.recv() => None,
        result = Box::pin(demo.play()) => Some(result),
    };
    if result.is_none() {
        eprintln!("\nstopping what the demo started");
    }
    demo.stop().await;
    match result {
        Some(result) => result.map(|()| ExitCode::SUCCESS),
        None => Ok(ExitCode::from(EXIT_INTERRUPTED)),
    }
}

struct Demo {
    dir: PathBuf,
    megabytes: u32,
    fleet: Option<Fleet>,
    sample: Option<Sample>,
    stages: Vec<Stage>,
}

/// A part of the demo that has ended.
struct Stage {
    name: &'static str,
    took: Duration,
    bytes: Option<u64>,
}

impl Demo {
    async fn play(&mut self) -> anyhow::Result<()> {
        heading("1. Start the fleet")?;
        let began = Instant::now();
        let fleet = self.fleet.insert(Fleet::start(&self.dir)?);
        fleet.wait_until_ready().await?;
        let client = client(&self.dir)?;
        self.ended("start of the fleet", began, None)?;

        heading(&format!("2. Create a sample database of {} MB", self.megabytes))?;
        let began = Instant::now();
        let sample = self.sample.insert(Sample::create(&self.dir.join("sample")).await?);
        sample.fill(self.megabytes).await?;
        let bytes = sample.database_bytes(SAMPLE_DATABASE).await?;
        let url = sample.url(SAMPLE_DATABASE)?;
        self.ended("sample database", began, Some(bytes))?;
        let target: TargetName = TARGET.parse()?;
        target::declare_postgres(&self.dir.join("targets"), &target, url.as_str())?;

        heading("3. Back it up")?;
        let began = Instant::now();
        let created = self.create_backup(&client).await?;
        let job = end_of(&client, created.job_id).await?;
        self.ended("backup", began, job.size_bytes)?;

        heading("4. Prove it: restore it into a scratch cluster and compare every table")?;
        let began = Instant::now();
        if let Some(verification) = backup::verification_of(&client, &job).await? {
            end_of(&client, verification).await?;
        }
        self.ended("verification", began, job.size_bytes)?;

        heading(&format!(
            "5. Restore it for real, into the database {RESTORED_DATABASE}"
        ))?;
        let began = Instant::now();
        self.restore(&client, &job).await?;
        self.ended("restore", began, job.size_bytes)?;
        self.compare().await?;

        heading("The receipt")?;
        let path = ["api", "v1", "backups", job.backup_id.as_str(), "receipt"];
        let view: Answer<ReceiptView> = client.get(&path).await?;
        render::print(&receipt::summary(&view.value)?)?;
        self.farewell(&job)
    }

    async fn create_backup(&self, client: &Client) -> anyhow::Result<BackupCreated> {
        let request = CreateBackup {
            backup_type: Some(BackupType::Full),
            targets: vec![TARGET.to_owned()],
            description: Some("strongroom demo".to_owned()),
            retention_days: None,
            git: None,
        };
        let began = Instant::now();
        loop {
            match client.create_backup(&request).await {
                Ok(created) => return Ok(created.value),
                // The coordinator reads the targets folder about once a second.
                Err(error) if error.is_refused() && began.elapsed() < TARGET_APPEARS_WITHIN => {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                Err(error) => return Err(error).context("ask for the backup"),
            }
        }
    }

    async fn restore(&self, client: &Client, job: &JobView) -> anyhow::Result<()> {
        let sample = self.sample()?;
        sample.drop_database(RESTORED_DATABASE).await?;
        let request = CreateRestore {
            backup_id: Some(job.backup_id.clone()),
            destination: Some(sample.url(RESTORED_DATABASE)?.into()),
            ..CreateRestore::default()
        };
        let created = client.create_restore(&request).await.context("ask for the restore")?;
        end_of(client, created.value.restore_id).await.map(drop)
    }

    /// Counts with plain SQL, so that nothing of the program vouches for itself.
    async fn compare(&self) -> anyhow::Result<()> {
        let sample = self.sample()?;
        let (before, after) = (
            sample.row_counts(SAMPLE_DATABASE).await?,
            sample.row_counts(RESTORED_DATABASE).await?,
        );
        let differing: Vec<&str> = before
            .keys()
            .chain(after.keys())
            .filter(|name| before.get(*name) != after.get(*name))
            .map(String::as_str)
            .collect();
        if !differing.is_empty() {
            bail!(
                "the restored database differs from the original in {}",
                differing.join(", ")
            );
        }
        let rows: u64 = before.values().sum();
        let word = render::tone(Tone::Good, "the same");
        render::print(&format!(
            "   row counts of {} tables, {rows} rows in all: {word} in both databases",
            before.len()
        ))
    }

    fn sample(&self) -> anyhow::Result<&Sample> {
        self.sample.as_ref().context("the sample database is not running")
    }

    fn ended(&mut self, name: &'static str, began: Instant, bytes: Option<u64>) -> anyhow::Result<()> {
        let took = began.elapsed();
        self.stages.push(Stage { name, took, bytes });
        let size = bytes
            .map(|bytes| format!(", {}", render::bytes(bytes)))
            .unwrap_or_default();
        render::print(&format!(
            "   {} in {}{size}",
            render::tone(Tone::Good, "done"),
            render::duration(took)
        ))
    }

    fn farewell(&self, job: &JobView) -> anyhow::Result<()> {
        heading("Times")?;
        render::print(&times(&self.stages))?;
        heading("What to try next")?;
        let (dir, program) = (quoted(&self.dir), program());
        render::print(&format!(
            "  {program} standalone --dir {dir} &   # the demo stops its fleet when it ends; this starts it again\n  \
             source {dir}/env   # tells strongroom where it is\n  \
             {program} status\n  \
             {program} list\n  \
             {program} receipt verify {backup}\n  \
             {program} target add my-files --kind files --path \"$HOME/Documents\"\n  \
             {program} backup my-files --wait-verified\n  \
             {program} help",
            backup = job.backup_id,
        ))
    }

    async fn stop(&mut self) {
        if let Some(fleet) = self.fleet.take() {
            fleet.stop().await;
        }
        if let Some(sample) = self.sample.take() {
            sample.stop().await;
        }
    }
}

/// Waits for a job, and takes anything but its completion for an error.
async fn end_of(client: &Client, job: JobId) -> anyhow::Result<JobView> {
    let Waited::Ended(Answer { value: job, .. }) = wait_for_one(client, job).await? else {
        bail!("stopped");
    };
    if job.status != JobStatus::Completed {
        let reason = job.error.as_deref().unwrap_or("no reason was given");
        bail!("the {} ended as {}: {reason}", job.kind, job.status);
    }
    Ok(job)
}

/// A client of the fleet in `dir`, whatever the user's own settings say.
fn client(dir: &Path) -> anyhow::Result<Client> {
    let path = dir.join("env");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let env = parse_env(&text)
        .into_iter()
        .filter(|(name, _)| name == "STRONGROOM_API" || name == "STRONGROOM_TOKEN");
    Client::new(&Loaded::load(LoadOptions {
        env: env.collect(),
        ..LoadOptions::default()
    })?)
}

/// The variables of a file that a shell can `source`: `export NAME='value'`, one a line.
fn parse_env(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("export ")
                .unwrap_or(line.trim())
                .split_once('=')
        })
        .filter(|(name, _)| !name.starts_with('#'))
        .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
        .collect()
}

fn state_folder(dir: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = dir {
        return Ok(dir);
    }
    if let Some(state) = set("STRONGROOM_STATE") {
        return Ok(state.join("demo"));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/strongroom/demo"));
    }
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    Ok(state
        .context("HOME is not set: name a folder with --dir")?
        .join("strongroom/demo"))
}

/// One demo at a time in one folder. The system drops the lock with the process.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("demo.lock");
    let file =
        File::create(&path).with_context(|| format!("create {}: choose another folder with --dir", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!(
                "another demo runs in {}: wait for it, or choose another folder with --dir",
                dir.display()
            )
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

fn times(stages: &[Stage]) -> String {
    let rows = stages.iter().map(|stage| {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let rate = |bytes: u64| (bytes as f64 / stage.took.as_secs_f64().max(0.001)) as u64;
        vec![
            stage.name.to_owned(),
            render::duration(stage.took),
            render::or_none(stage.bytes, render::bytes),
            render::or_none(stage.bytes, |bytes| format!("{}/s", render::bytes(rate(bytes)))),
        ]
    });
    render::table(&["STAGE", "TOOK", "SIZE", "RATE"], &["TOOK", "SIZE", "RATE"], rows)
}

fn heading(text: &str) -> anyhow::Result<()> {
    render::print(&format!("\n{}", render::tone(Tone::Heading, text)))
}

/// How a shell finds this program.
fn program() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .map(|folder| folder.join("strongroom"))
        .find(|file| file.is_file());
    match (
        std::env::current_exe(),
        on_path.and_then(|file| file.canonicalize().ok()),
    ) {
        (Ok(own), Some(found)) if own == found => "strongroom".to_owned(),
        (Ok(own), _) => quoted(&own),
        (Err(_), _) => "strongroom".to_owned(),
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_env_file_is_read_as_a_shell_would() {
        let env =
            parse_env("# made by strongroom\nexport STRONGROOM_API='http://127.0.0.1:1'\nSTRONGROOM_TOKEN=\"a=b\"\n");
        assert_eq!(env["STRONGROOM_API"], "http://127.0.0.1:1");
        assert_eq!(env["STRONGROOM_TOKEN"], "a=b");
        assert_eq!(env.len(), 2);
    }

    #[test]
    fn two_demos_do_not_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("another demo runs"));
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }

    #[test]
    fn a_folder_with_a_space_can_be_pasted_into_a_shell() {
        assert_eq!(quoted(Path::new("/var/lib/x")), "/var/lib/x");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn times_come_with_sizes_and_rates() {
        let stages = [Stage {
            name: "backup",
            took: Duration::from_secs(2),
            bytes: Some(400_000_000),
        }];
        assert!(
            times(&stages).ends_with("backup  2.0 s  400.0 MB  200.0 MB/s\n"),
            "{}",
            times(&stages)
        );
    }
}
