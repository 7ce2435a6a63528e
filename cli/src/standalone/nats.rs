//! The nats-server of standalone: found, configured so that it loses nothing, and started again when it dies.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::folder::Folder;

/// The oldest nats-server that is started.
const OLDEST: [u32; 3] = [2, 10, 23];
/// The pause before a server that died is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// A running nats-server.
pub(crate) struct Nats {
    url: String,
    watch: JoinHandle<()>,
    stop: CancellationToken,
}

impl Nats {
    /// Starts the server and keeps it running until `shutdown`, or rather until [`Nats::stop`].
    pub(crate) async fn start(folder: &Folder, port: u16, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let binary = find().await?;
        let password = folder.secret("nats.password")?;
        let url = format!("nats://strongroom:{password}@127.0.0.1:{port}");
        let conf = folder.path("nats/nats.conf");
        write_conf(&conf, &folder.path("nats/store"), port, &password)?;
        let log = folder.path("logs/nats-server.log");
        let child = spawn(&binary, &conf, &log)?;
        let stop = CancellationToken::new();
        let watch = tokio::spawn(keep_running(child, binary, conf, log, stop.clone(), shutdown));
        Ok(Self { url, watch, stop })
    }

    /// Where it is, with user and password.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Stops the server.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if self.watch.await.is_err() {
            tracing::error!("the watch over nats-server panicked");
        }
    }
}

async fn keep_running(
    mut child: Child,
    binary: PathBuf,
    conf: PathBuf,
    log: PathBuf,
    stop: CancellationToken,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                terminate(&mut child).await;
                return;
            }
            ended = child.wait() => {
                if shutdown.is_cancelled() {
                    return;
                }
                tracing::warn!(status = ?ended.ok(), log = %log.display(), "nats-server ended; starting it again");
            }
        }
        loop {
            tokio::time::sleep(RESTART_PAUSE).await;
            if stop.is_cancelled() {
                return;
            }
            match spawn(&binary, &conf, &log) {
                Ok(new) => {
                    child = new;
                    break;
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "nats-server not started, trying again"),
            }
        }
    }
}

async fn terminate(child: &mut Child) {
    if let Some(pid) = child
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(Duration::from_secs(10), child.wait())
        .await
        .is_err()
    {
        let _ = child.kill().await;
    }
}

/// `setpriv` has the kernel end the server when this process ends, however it does.
fn spawn(binary: &Path, conf: &Path, log: &Path) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--"])
        .arg(binary)
        .arg("-c")
        .arg(conf)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", binary.display()))
}

fn write_conf(conf: &Path, store: &Path, port: u16, password: &str) -> anyhow::Result<()> {
    let text = format!(
        "server_name: strongroom\n\
         listen: \"127.0.0.1:{port}\"\n\
         max_payload: 1MB\n\
         jetstream {{\n  store_dir: \"{}\"\n  # Every acknowledged message is on disk: the default loses up to two minutes in a crash.\n  sync_interval: always\n}}\n\
         authorization {{ users: [ {{ user: strongroom, password: \"{password}\" }} ] }}\n",
        store.display()
    );
    crate::keys::write_private(conf, &text)
}

/// The first nats-server that is new enough: of the tools folder, of the state folder, of PATH.
async fn find() -> anyhow::Result<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    let env = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    places.extend(env("STRONGROOM_TOOLS"));
    places.extend(env("STRONGROOM_STATE").map(|state| state.join("tools")));
    places.extend(env("XDG_STATE_HOME").map(|home| home.join("strongroom/tools")));
    places.extend(env("HOME").map(|home| home.join(".local/state/strongroom/tools")));
    places.push(PathBuf::from("/var/lib/strongroom/tools"));
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut too_old = Vec::new();
    for place in places {
        let binary = place.join("nats-server");
        if !binary.is_file() {
            continue;
        }
        match version(&binary).await {
            Some(found) if found >= OLDEST => return Ok(binary),
            Some([a, b, c]) => too_old.push(format!("{} is {a}.{b}.{c}", binary.display())),
            None => too_old.push(format!("{} does not tell its version", binary.display())),
        }
    }
    let found = if too_old.is_empty() {
        "none was found".to_owned()
    } else {
        too_old.join(", ")
    };
    anyhow::bail!(
        "no nats-server of version 2.10.23 or newer ({found}): run deploy/bootstrap, which fetches one, or name its \
         folder in STRONGROOM_TOOLS"
    )
}

async fn version(binary: &Path) -> Option<[u32; 3]> {
    let output = Command::new(binary)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = text.rsplit('v').next()?.trim();
    let mut numbers = numbers.split(['.', '-']).map(|n| n.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}
