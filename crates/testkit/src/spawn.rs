//! Starting children that cannot outlive the test process.
//!
//! The parent-death signal belongs to the thread that forked, and the threads of a test harness end before the process
//! does; so every child is forked by one thread that lives as long as the process.

use std::io;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

type Request = (Command, Sender<io::Result<Child>>);

static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();

/// A user and group that a server runs as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A command that runs `program` in a process group of its own, killed by the kernel when this process ends.
pub(crate) fn guarded(program: &Path, user: Option<User>) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command
            .arg(format!("--reuid={}", user.uid))
            .arg(format!("--regid={}", user.gid))
            .arg("--clear-groups");
    }
    command
        .arg("--")
        .arg(program)
        .process_group(0)
        .stdin(std::process::Stdio::null());
    command
}

/// Starts a command made by [`guarded`].
pub(crate) fn spawn(command: Command) -> Result<Child> {
    let program = format!(
        "{:?}",
        command.get_args().find(|arg| arg.as_encoded_bytes().contains(&b'/'))
    );
    let (answer, started) = channel();
    spawner()
        .send((command, answer))
        .ok()
        .context("the spawning thread ended")?;
    started
        .recv()
        .context("the spawning thread ended")?
        .with_context(|| format!("start {program} through setpriv (package util-linux)"))
}

fn spawner() -> &'static Sender<Request> {
    SPAWNER.get_or_init(|| {
        let (requests, queue) = channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                // A caller that gave up drops the child, which runs on until this process ends.
                let _ = answer.send(command.spawn());
            }
        });
        requests
    })
}

/// Kills a child with everything in its process group, and waits for the child.
pub(crate) fn kill_group(child: &mut Child) {
    if let Some(group) = pid_of(child) {
        // The group may be gone already.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// Sends a signal to one child, unless it was waited for already.
pub(crate) fn signal(child: &mut Child, signal: Signal) -> Result<()> {
    if let Some(status) = child.try_wait()? {
        anyhow::bail!("process {} has already ended: {status}", child.id());
    }
    let pid = pid_of(child).context("a process id is positive")?;
    kill_process(pid, signal).with_context(|| format!("send {signal:?} to process {}", child.id()))
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}
