//! An S3 server: SeaweedFS, with conditional writes, checksums and object lock.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::wait::wait_for;
use crate::{free_port, spawn, tool};

const START_TIMEOUT: Duration = Duration::from_secs(120);
const ACCESS_KEY: &str = "strongroom-test";
const SECRET_KEY: &str = "strongroom-test-secret";
const BUCKET: &str = "vault";
/// A bucket that needs no signature. The server says that it is well long before its volumes can be read, so it is
/// ready when an object here can be written and read.
const PROBE_BUCKET: &str = "readiness";

/// An S3 server with one empty bucket. Dropping it kills it and removes its data.
pub struct S3 {
    dir: TempDir,
    ports: Ports,
    child: Mutex<Option<Child>>,
}

/// Every port is given: those left out would be derived from others, and collide.
struct Ports {
    master: u16,
    master_grpc: u16,
    volume: u16,
    volume_grpc: u16,
    filer: u16,
    filer_grpc: u16,
    s3: u16,
    s3_grpc: u16,
}

impl Ports {
    /// The sockets that the server makes for itself, whose place cannot be chosen; a server that is killed leaves them.
    fn grpc_sockets(&self) -> [PathBuf; 4] {
        [
            ("master", self.master_grpc),
            ("volume", self.volume_grpc),
            ("filer", self.filer_grpc),
            ("s3", self.s3_grpc),
        ]
        .map(|(part, port)| format!("/tmp/seaweedfs-{part}-grpc-{port}.sock").into())
    }
}

impl S3 {
    /// Starts a server and creates the bucket.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("strongroom-s3-").tempdir_in("/tmp")?;
        let identities = serde_json::json!({"identities": [
            {
                "name": "test",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            },
            {"name": "anonymous", "actions": [format!("Read:{PROBE_BUCKET}"), format!("Write:{PROBE_BUCKET}")]},
        ]});
        std::fs::write(dir.path().join("s3.json"), identities.to_string())?;
        std::fs::create_dir(dir.path().join("data"))?;
        let ports = Ports {
            master: free_port()?,
            master_grpc: free_port()?,
            volume: free_port()?,
            volume_grpc: free_port()?,
            filer: free_port()?,
            filer_grpc: free_port()?,
            s3: free_port()?,
            s3_grpc: free_port()?,
        };
        let server = Self {
            dir,
            ports,
            child: Mutex::new(None),
        };
        server.restart()?;
        server.create_bucket(BUCKET)?;
        Ok(server)
    }

    /// Its address, with path-style buckets: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.s3)
    }

    /// The access key; it may do everything.
    pub fn access_key(&self) -> &str {
        ACCESS_KEY
    }

    /// The secret key.
    pub fn secret_key(&self) -> &str {
        SECRET_KEY
    }

    /// The name of the bucket that exists from the start.
    pub fn bucket(&self) -> &str {
        BUCKET
    }

    /// Creates another bucket.
    pub fn create_bucket(&self, name: &str) -> Result<()> {
        self.create_bucket_folder(name)?;
        // The S3 side learns of it by an event: 403 (a signature is missing) is its answer for a bucket it knows.
        let seen = || matches!(http(self.ports.s3, "GET", &format!("/{name}")), Ok(403)).then_some(());
        wait_for("the S3 server to see the bucket", START_TIMEOUT, seen)
    }

    /// A bucket is a folder of the filer, which takes requests without a signature; 409 says that it exists.
    fn create_bucket_folder(&self, name: &str) -> Result<()> {
        let made = || {
            matches!(
                http(self.ports.filer, "POST", &format!("/buckets/{name}/")),
                Ok(200..=299 | 409)
            )
            .then_some(())
        };
        wait_for("the bucket", START_TIMEOUT, made)
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            spawn::kill_group(&mut child);
            for socket in self.ports.grpc_sockets() {
                match std::fs::remove_file(&socket) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("remove {}", socket.display()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Starts it again on the same ports with the same data; kills it first if it runs.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        let ports = &self.ports;
        let log = self.dir.path().join("weed.log");
        let mut command = spawn::guarded(&tool("weed")?, None);
        command.current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.args([
            "-logtostderr=true",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
        ]);
        command.args([
            "-dir=data",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=500",
            "-s3.config=s3.json",
        ]);
        command.args([
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            "-debug=false",
        ]);
        for (name, port) in [
            ("master.port", ports.master),
            ("master.port.grpc", ports.master_grpc),
            ("volume.port", ports.volume),
            ("volume.port.grpc", ports.volume_grpc),
            ("filer.port", ports.filer),
            ("filer.port.grpc", ports.filer_grpc),
            ("s3.port", ports.s3),
            ("s3.port.grpc", ports.s3_grpc),
        ] {
            command.arg(format!("-{name}={port}"));
        }
        command.arg(format!("-s3.localSocket={}", self.dir.path().join("s3.sock").display()));
        command.arg(format!(
            "-filer.localSocket={}",
            self.dir.path().join("filer.sock").display()
        ));
        command
            .stdout(Stdio::null())
            .stderr(std::fs::File::options().create(true).append(true).open(&log)?);
        let mut child = spawn::spawn(command)?;
        let ready = wait_for("the S3 server to answer", START_TIMEOUT, || match child.try_wait() {
            Ok(None) => matches!(http(ports.s3, "GET", "/healthz"), Ok(200)).then_some(Ok(())),
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("weed ended with {status}"))),
            Err(error) => Some(Err(error.into())),
        });
        let ready = ready.flatten();
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let usable = ready
            .and_then(|()| self.create_bucket_folder(PROBE_BUCKET))
            .and_then(|()| {
                let object = format!("/{PROBE_BUCKET}/probe");
                let answers = |method| matches!(http(ports.s3, method, &object), Ok(200));
                wait_for("the S3 server to keep an object", START_TIMEOUT, || {
                    (answers("PUT") && answers("GET")).then_some(())
                })
            });
        usable.with_context(|| tail(&std::fs::read_to_string(log).unwrap_or_default()))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// One HTTP request with a body of one byte; the status code of the answer.
fn http(port: u16, method: &str, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1\r\nConnection: close\r\n\r\n."
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    match answer.split(' ').nth(1).and_then(|code| code.parse().ok()) {
        Some(code) => Ok(code),
        None => bail!("{method} {path} was not answered with HTTP"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_dropped_leaves_no_socket() {
        let server = S3::start().unwrap();
        let sockets = server.ports.grpc_sockets();
        assert!(sockets.iter().all(|socket| socket.exists()), "{sockets:?}");
        drop(server);
        assert!(!sockets.iter().any(|socket| socket.exists()), "{sockets:?}");
    }
}
