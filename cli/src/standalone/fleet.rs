//! The services as tasks of this process, each with the keys of its own work and no others.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use strongroom_proto::api::Health;
use strongroom_runtime::{Config, Loaded, Shutdown};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::database::Database;
use super::folder::{Folder, flag};
use super::nats::Nats;
use super::ports::Ports;

type Flags = Vec<(String, String, String)>;

/// Connections to the catalog of each worker.
const WORKER_CONNECTIONS: u32 = 4;

/// The running services.
pub(crate) struct Fleet {
    tasks: JoinSet<anyhow::Result<()>>,
}

/// The settings that follow from this run, for every service.
pub(crate) fn settings(
    folder: &Folder,
    ports: &Ports,
    database: &Database,
    nats: &Nats,
    vault_url: &str,
) -> anyhow::Result<Flags> {
    Ok(vec![
        flag("api.url", format!("http://127.0.0.1:{}", ports.api)),
        flag("api.listen", format!("127.0.0.1:{}", ports.api)),
        flag("api.token", folder.secret("api.token")?),
        flag("nats.url", nats.url()),
        flag("catalog.url", database.url()),
        flag("vault.url", vault_url),
    ])
}

impl Fleet {
    /// Starts the services.
    pub(crate) fn start(
        folder: &Folder,
        loaded: &Loaded,
        flags: &Flags,
        listener: TcpListener,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let keys = |service: &str, keys: &[&str]| -> anyhow::Result<Loaded> {
            let mut flags = flags.clone();
            flags.push(flag("catalog.max_connections", WORKER_CONNECTIONS));
            let key = |name: &str| folder.path("keys").join(name).display().to_string();
            flags.push(flag("keys.signing_key_file", key(&format!("signing-{service}.key"))));
            for setting in keys {
                let name = if *setting == "keys.identity_file" {
                    "identity.txt"
                } else {
                    "writer.key"
                };
                flags.push(flag(setting, key(name)));
            }
            folder.config(&flags)
        };
        let dumper = keys("dumper", &["keys.writer_key_file"])?;
        let snapshotter = keys("snapshotter", &["keys.writer_key_file"])?;
        let verifier = keys("verifier", &["keys.identity_file"])?;
        let restorer = keys("restorer", &["keys.identity_file"])?;

        let mut tasks = JoinSet::new();
        let token = || shutdown.token();
        let coordinator = loaded.clone();
        let stop = token();
        spawn(&mut tasks, "coordinator", shutdown, async move {
            strongroom_coordinator::run(coordinator, Some(listener), stop).await
        });
        spawn(&mut tasks, "dumper", shutdown, strongroom_dumper::run(dumper, token()));
        spawn(
            &mut tasks,
            "snapshotter",
            shutdown,
            strongroom_snapshotter::run(snapshotter, token()),
        );
        spawn(
            &mut tasks,
            "verifier",
            shutdown,
            strongroom_verifier::run(verifier, token()),
        );
        spawn(
            &mut tasks,
            "restorer",
            shutdown,
            strongroom_restorer::run(restorer, token()),
        );
        Ok(Self { tasks })
    }

    /// Waits until the coordinator calls itself healthy.
    pub(crate) async fn wait_ready(&self, config: &Config, within: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let last = match health(&config.api.url).await {
                Ok(health) if health.status == "healthy" => return Ok(()),
                Ok(health) => format!("{:?}", health.checks),
                Err(error) => format!("{error:#}"),
            };
            anyhow::ensure!(
                began.elapsed() < within,
                "the fleet is not up after {} s: {last}",
                within.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until every service has ended; the first error is what is told.
    pub(crate) async fn join(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.context("a service panicked").and_then(|ended| ended);
            result = result.and(ended);
        }
        result
    }
}

/// A service that ends by itself takes the others with it: half a fleet is none.
fn spawn<F>(tasks: &mut JoinSet<anyhow::Result<()>>, name: &'static str, shutdown: &Shutdown, service: F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let shutdown = shutdown.clone();
    tasks.spawn(async move {
        let ended = tokio::spawn(service)
            .await
            .context("it panicked")
            .and_then(|ended| ended);
        if !shutdown.token().is_cancelled() {
            tracing::error!(service = name, "a service ended; stopping the fleet");
            shutdown.trigger();
        }
        ended.with_context(|| format!("run the {name}"))
    });
}

/// What the coordinator says of itself.
pub(crate) async fn health(api: &str) -> anyhow::Result<Health> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    Ok(client.get(format!("{api}/health")).send().await?.json().await?)
}
