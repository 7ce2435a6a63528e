//! Whole-system tests: a fleet of real processes against real servers, each in a temporary folder of its own.
//!
//! [`Fleet`] starts what a test asks for and lets it kill, pause and restart every part. When it is dropped, everything
//! is gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
pub mod clusters;
mod events;
pub mod pgbench;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use strongroom_testkit::{Nats, Postgres, Process, bin, free_port};
use strongroom_vault::{Identity, NewVault, Signer, Store, StoreConfig, Vault, WriterKey};

pub use api::Api;
pub use events::Events;

/// The token of every test fleet.
pub const TOKEN: &str = "test-token-that-is-not-a-secret";
/// How long a test waits for what should come within seconds.
pub const SOON: Duration = Duration::from_secs(90);

/// The services of a fleet.
pub const COORDINATOR: &str = "coordinator";
/// Databases and commands.
pub const DUMPER: &str = "dumper";
/// Files.
pub const SNAPSHOTTER: &str = "snapshotter";
/// Verifications.
pub const VERIFIER: &str = "verifier";
/// Restores.
pub const RESTORER: &str = "restorer";
const SERVICES: [&str; 5] = [COORDINATOR, DUMPER, SNAPSHOTTER, VERIFIER, RESTORER];

/// How a run of the command line ended.
#[derive(Debug)]
pub struct Told {
    /// Its exit code.
    pub code: i32,
    /// What it printed to standard output.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

/// A fleet of our processes with their NATS and catalog.
pub struct Fleet {
    /// The catalog's server; durable, so that it may be killed.
    pub catalog: Postgres,
    /// The NATS server.
    pub nats: Nats,
    /// The API.
    pub api: Api,
    dir: tempfile::TempDir,
    port: u16,
    settings: BTreeMap<String, String>,
    targets: Vec<String>,
    running: Vec<(String, Process)>,
}

impl Fleet {
    /// Servers, keys and a vault in a temporary folder; no service runs yet.
    pub async fn prepare() -> Result<Self> {
        strongroom_runtime::entry::install_tls_provider();
        let dir = tempfile::Builder::new().prefix("sr-fleet-").tempdir_in("/tmp")?;
        // The scratch servers of a test run by root belong to another user, who must be able to pass.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(dir.path(), mode)?;
        let catalog = Postgres::start_durable()?;
        catalog.create_database("strongroom")?;
        let nats = Nats::start()?;
        let port = free_port()?;
        make_vault(dir.path()).await?;
        let mut settings = BTreeMap::new();
        for (key, value) in [
            ("api.url", format!("http://127.0.0.1:{port}")),
            ("api.listen", format!("127.0.0.1:{port}")),
            ("api.token", TOKEN.to_owned()),
            ("nats.url", nats.url()),
            ("catalog.url", catalog.url("strongroom")),
            ("vault.url", format!("file://{}", dir.path().join("vault").display())),
            ("worker.scratch_dir", dir.path().join("scratch").display().to_string()),
            ("cache_dir", dir.path().join("cache").display().to_string()),
            ("worker.lease_seconds", "4".to_owned()),
            ("coordinator.reconcile_seconds", "1".to_owned()),
            ("coordinator.backoff_seconds", "1,1,1".to_owned()),
        ] {
            settings.insert(key.to_owned(), value);
        }
        Ok(Self {
            catalog,
            nats,
            api: Api::new(port),
            dir,
            port,
            settings,
            targets: Vec::new(),
            running: Vec::new(),
        })
    }

    /// A fleet with every service running.
    pub async fn start(targets: &[String]) -> Result<Self> {
        let mut fleet = Self::prepare().await?;
        fleet.targets = targets.to_vec();
        fleet.run_all().await?;
        Ok(fleet)
    }

    /// Declares a target, as a block of YAML with its name first; before the services start, or while they run.
    pub fn target(&mut self, yaml: String) -> &mut Self {
        self.targets.push(yaml);
        self
    }

    /// Takes all targets out, for services that are started from now on.
    pub fn clear_targets(&mut self) -> &mut Self {
        self.targets.clear();
        self
    }

    /// Changes a setting of the services that are started from now on.
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> &mut Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Starts every service and waits until the API is healthy.
    pub async fn run_all(&mut self) -> Result<()> {
        for service in SERVICES {
            self.run(service)?;
        }
        self.api.wait_healthy().await?;
        for service in [DUMPER, SNAPSHOTTER, VERIFIER, RESTORER] {
            self.process(service).wait_for_line("worker ready", SOON)?;
        }
        Ok(())
    }

    /// Starts one service, or one more of its kind.
    pub fn run(&mut self, service: &str) -> Result<()> {
        self.run_with(service, &[])
    }

    /// Starts one service with settings of its own.
    pub fn run_with(&mut self, service: &str, settings: &[(&str, &str)]) -> Result<()> {
        let config = self.dir.path().join("config.yaml");
        let mut text = String::from("targets:\n");
        for target in &self.targets {
            text.push_str(target);
            text.push('\n');
        }
        if self.targets.is_empty() {
            text = "environment: test\n".to_owned();
        }
        std::fs::write(&config, text)?;
        let mut envs: BTreeMap<String, String> = BTreeMap::new();
        let mut put = |key: &str, value: &str| {
            envs.insert(
                format!("STRONGROOM_{}", key.to_uppercase().replace('.', "_")),
                value.to_owned(),
            );
        };
        for (key, value) in &self.settings {
            put(key, value);
        }
        let keys = self.dir.path().join("keys");
        let key = |name: &str| keys.join(name).display().to_string();
        match service {
            DUMPER | SNAPSHOTTER => put("keys.writer_key_file", &key("writer.key")),
            VERIFIER | RESTORER => put("keys.identity_file", &key("identity.txt")),
            _ => {}
        }
        if service != COORDINATOR {
            put("keys.signing_key_file", &key(&format!("signing-{service}.key")));
        }
        for (key, value) in settings {
            put(key, value);
        }
        let program = bin(&format!("strongroom-{service}"))?;
        let process = Process::start(&program, ["--config".as_ref(), config.as_os_str()], envs)?;
        self.running.push((service.to_owned(), process));
        Ok(())
    }

    /// The youngest process of a service.
    pub fn process(&self, service: &str) -> &Process {
        let found = self.running.iter().rev().find(|(name, _)| name == service);
        &found.unwrap_or_else(|| panic!("{service} was not started")).1
    }

    /// The oldest process of a service.
    pub fn first(&self, service: &str) -> &Process {
        let found = self.running.iter().find(|(name, _)| name == service);
        &found.unwrap_or_else(|| panic!("{service} was not started")).1
    }

    /// SIGKILL for every process of a service that has not ended.
    pub fn kill(&mut self, service: &str) -> Result<()> {
        for (_, process) in self.running.iter().filter(|(name, _)| name == service) {
            if process.is_running() {
                process.kill()?;
            }
        }
        Ok(())
    }

    /// What every process printed so far.
    pub fn logs(&self) -> String {
        self.running
            .iter()
            .map(|(name, process)| format!("== {name}\n{}", process.output()))
            .collect()
    }

    /// The folder of everything that this fleet writes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The vault's folder.
    pub fn vault_dir(&self) -> PathBuf {
        self.dir.path().join("vault")
    }

    /// The vault, opened anew.
    pub async fn vault(&self) -> Result<Vault> {
        let config = StoreConfig {
            url: format!("file://{}", self.vault_dir().display()),
            s3: None,
        };
        Ok(Vault::open(Store::open(&config)?).await?)
    }

    /// The identity file.
    pub fn identity_file(&self) -> PathBuf {
        self.dir.path().join("keys/identity.txt")
    }

    /// The environment a client of this fleet needs.
    pub fn client_env(&self) -> Vec<(String, String)> {
        vec![
            ("STRONGROOM_API".to_owned(), format!("http://127.0.0.1:{}", self.port)),
            ("STRONGROOM_TOKEN".to_owned(), TOKEN.to_owned()),
            ("NATS_URL".to_owned(), self.nats.url()),
        ]
    }

    /// Runs the command line against this fleet; its exit code, and what it printed.
    pub fn strongroom(&self, args: &[&str]) -> Result<Told> {
        let output = std::process::Command::new(bin("strongroom")?)
            .args(args)
            .env_clear()
            .envs(self.client_env())
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Told {
            code: output.status.code().context("the command line was killed")?,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// Kills every service and loses the catalog's database.
    pub fn lose_catalog(&mut self) -> Result<()> {
        for service in SERVICES {
            self.kill(service)?;
        }
        self.catalog.psql("postgres", "DROP DATABASE strongroom WITH (FORCE)")?;
        Ok(())
    }

    /// Refills the catalog from the vault by the command line; its exit code, and the JSON that it printed.
    pub fn rebuild_catalog(&self, args: &[&str]) -> Result<(i32, serde_json::Value)> {
        let output = std::process::Command::new(bin("strongroom")?)
            .args(["catalog", "rebuild", "--json"])
            .args(args)
            .env_clear()
            .env("CATALOG_URL", self.catalog.url("strongroom"))
            .env("STRONGROOM_VAULT_URL", format!("file://{}", self.vault_dir().display()))
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let printed = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}{}", text(&output.stdout), text(&output.stderr)))?;
        let code = output.status.code().context("the command line was killed")?;
        Ok((code, printed))
    }

    /// A subscriber to facts.
    pub fn events(&self, subject: &str) -> Events {
        Events::new(self.nats.url(), subject)
    }

    /// The answer of an SQL query against the catalog.
    pub fn sql(&self, query: &str) -> Result<String> {
        Ok(self.catalog.psql("strongroom", query)?.trim().to_owned())
    }
}

impl Drop for Fleet {
    /// A test that fails shows what the fleet said.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

async fn make_vault(dir: &Path) -> Result<()> {
    let keys = dir.join("keys");
    std::fs::create_dir(&keys)?;
    let (identity, recipient) = Identity::generate();
    std::fs::write(keys.join("identity.txt"), identity.as_bytes())?;
    let writer_key = WriterKey::generate();
    std::fs::write(keys.join("writer.key"), writer_key.serialize().as_bytes())?;
    let mut signers = Vec::new();
    for principal in [DUMPER, SNAPSHOTTER, VERIFIER, RESTORER] {
        let signer = Signer::generate(principal)?;
        std::fs::write(
            keys.join(format!("signing-{principal}.key")),
            signer.to_openssh()?.as_bytes(),
        )?;
        signers.push((principal.to_owned(), signer.public_line()?));
    }
    let url = format!("file://{}", dir.join("vault").display());
    let store = Store::open(&StoreConfig { url, s3: None })?;
    let new = NewVault {
        recipients: vec![recipient],
        writer_key: &writer_key,
        signers,
    };
    Vault::create(store, new, chrono::Utc::now())
        .await
        .context("make the vault")?;
    Ok(())
}

/// A command target whose program prints `text`.
pub fn command_target(name: &str, text: &str) -> String {
    format!("  {name}:\n    kind: command\n    program: printf\n    args: ['%s', '{text}']")
}

/// A postgres target.
pub fn postgres_target(name: &str, url: &str) -> String {
    format!("  {name}:\n    kind: postgres\n    url: '{url}'")
}

/// A files target.
pub fn files_target(name: &str, path: &Path) -> String {
    format!("  {name}:\n    kind: files\n    path: '{}'", path.display())
}

/// Runs one of the Python programs under `tests/python` in the tests' own environment; what it printed.
pub fn python(program: &str, args: &[&str]) -> Result<String> {
    let python = strongroom_testkit::tool("venv/bin/python")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(program);
    let output = std::process::Command::new(python).arg(script).args(args).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{program}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

/// A server with a database `orders` that holds the sample data, of about so many megabytes.
pub fn sample_server(megabytes: u32) -> Result<Postgres> {
    let server = Postgres::start()?;
    server.create_database("orders")?;
    server.psql("orders", &strongroom_connectors::postgres::sample_sql(megabytes))?;
    Ok(server)
}
