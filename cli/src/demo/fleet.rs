//! The fleet of the demo: `strongroom standalone` as a child that ends with its parent.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

const START_TIMEOUT: Duration = Duration::from_secs(180);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// Lines of the log that an error shows.
const SHOWN_LINES: usize = 15;

pub(super) struct Fleet {
    dir: PathBuf,
    program: PathBuf,
    log: PathBuf,
    /// Absent where a fleet was running in the folder before.
    child: Option<Child>,
}

impl Fleet {
    /// Starts a fleet in `dir`, unless one runs there.
    pub(super) fn start(dir: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program's file")?;
        let mut fleet = Self {
            dir: dir.to_owned(),
            program,
            log: dir.join("demo-fleet.log"),
            child: None,
        };
        if fleet.is_ready()? {
            return Ok(fleet);
        }
        let log = File::create(&fleet.log).with_context(|| format!("create {}", fleet.log.display()))?;
        // With setpriv the kernel stops the fleet when the demo is killed. A process group of its own keeps the
        // terminal's Ctrl-C from it: a fleet takes a second signal as an order to stop at once.
        let mut command = if Command::new("setpriv").arg("--version").output().is_ok() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "TERM", "--"]).arg(&fleet.program);
            command
        } else {
            Command::new(&fleet.program)
        };
        command
            .args(["standalone", "--dir"])
            .arg(&fleet.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0);
        let child = tokio::process::Command::from(command)
            .spawn()
            .context("start strongroom standalone")?;
        fleet.child = Some(child);
        Ok(fleet)
    }

    pub(super) async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.is_ready()? {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().context("look after strongroom standalone")?
            {
                bail!("strongroom standalone ended with {status}; {}", self.last_lines());
            }
            if began.elapsed() > START_TIMEOUT {
                bail!(
                    "the fleet was not ready within {} s; {}",
                    START_TIMEOUT.as_secs(),
                    self.last_lines()
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Stops the fleet, if it was started here.
    pub(super) async fn stop(self) {
        let Some(mut child) = self.child else { return };
        if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            // It fails when the process has ended, which is what was wanted.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
            eprintln!(
                "the fleet did not stop within {} s and is killed; see {}",
                STOP_TIMEOUT.as_secs(),
                self.log.display()
            );
            let _ = child.kill().await;
        }
    }

    fn is_ready(&self) -> anyhow::Result<bool> {
        let status = Command::new(&self.program)
            .args(["standalone", "--check", "--dir"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("run strongroom standalone --check")?;
        Ok(status.success())
    }

    fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        format!("the end of {}:\n{last}", self.log.display())
    }
}
