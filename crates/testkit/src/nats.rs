//! A NATS server with JetStream.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::wait::wait_for;
use crate::{free_port, spawn, tool};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A `nats-server` with JetStream, which fsyncs every write. Dropping it kills it and removes its store.
pub struct Nats {
    dir: TempDir,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Nats {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// Starts a server with `extra_conf` appended to its configuration file.
    pub fn start_with(extra_conf: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("strongroom-nats-").tempdir_in("/tmp")?;
        let port = free_port()?;
        let conf = format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: \"test-{port}\"\n\
             jetstream {{\n  store_dir: \"{}\"\n  sync_interval: always\n}}\n{extra_conf}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("nats.conf"), conf)?;
        let server = Self {
            dir,
            port,
            child: Mutex::new(None),
        };
        server.restart()?;
        Ok(server)
    }

    /// Its address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port for clients.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its store.
    pub fn store_dir(&self) -> &Path {
        self.dir.path()
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.take() {
            spawn::kill_group(&mut child);
        }
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&self) -> Result<()> {
        if let Some(mut child) = self.take() {
            let stopped = spawn::signal(&mut child, Signal::TERM)
                .and_then(|()| wait_for("the end of nats-server", STOP_TIMEOUT, || child.try_wait().transpose()));
            spawn::kill_group(&mut child);
            stopped?.context("wait for nats-server")?;
        }
        Ok(())
    }

    /// SIGSTOP: connections stay open and nothing is answered.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Starts it again on the same port with the same store; kills it first if it runs.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        let log = self.dir.path().join("nats.log");
        let mut command = spawn::guarded(&tool("nats-server")?, None);
        command
            .arg("-c")
            .arg(self.dir.path().join("nats.conf"))
            .stdout(Stdio::null());
        command.stderr(std::fs::File::options().create(true).append(true).open(&log)?);
        let mut child = spawn::spawn(command)?;
        let ready = wait_for("nats-server to answer", START_TIMEOUT, || match child.try_wait() {
            Ok(None) => greets(self.port).then_some(Ok(())),
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("nats-server ended with {status}"))),
            Err(error) => Some(Err(error.into())),
        });
        let ready = ready.flatten();
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        ready.with_context(|| std::fs::read_to_string(log).unwrap_or_default())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        spawn::signal(child.as_mut().context("nats-server does not run")?, signal)
    }

    fn take(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Whether the server sends its greeting, which it does once JetStream has recovered its store.
fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut greeting = [0; 5];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && &greeting == b"INFO "
}
