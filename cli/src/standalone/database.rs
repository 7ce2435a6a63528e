//! The Postgres of standalone, which holds the catalog: made on the first run, started, and started again when it dies.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use strongroom_catalog::Catalog;
use strongroom_connectors::postgres::{Cluster, ClusterOptions, ServerBinaries, StopMode};
use strongroom_runtime::Config;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::folder::Folder;

/// The superuser of the catalog's server, and the database of the catalog.
const SUPERUSER: &str = "strongroom";
const DATABASE: &str = "strongroom";
/// How often the server is looked after.
const LOOK: Duration = Duration::from_secs(1);
/// A socket's path may have about a hundred bytes; a folder longer than this gets its socket elsewhere.
const SOCKET_FOLDER_BYTES: usize = 70;

/// A running Postgres.
pub(crate) struct Database {
    cluster: Arc<Mutex<Cluster>>,
    url: String,
}

impl Database {
    /// Makes the cluster where there is none, and starts it.
    pub(crate) async fn start(folder: &Folder, port: u16, config: &Config) -> anyhow::Result<Self> {
        let password = folder.secret("postgres.password")?;
        let url = format!("postgres://{SUPERUSER}:{password}@127.0.0.1:{port}/{DATABASE}");
        let options = ClusterOptions {
            superuser: SUPERUSER.to_owned(),
            password: Some(password),
            port: Some(port),
            socket_dir: socket_dir(folder),
            fsync: true,
            settings: settings(),
        };
        let data = folder.path("postgres");
        let bin_dirs = config.worker.pg_bin_dirs.clone();
        let cluster = tokio::task::spawn_blocking(move || -> anyhow::Result<Cluster> {
            let version = std::fs::read_to_string(data.join("PG_VERSION")).ok();
            let major = version.as_deref().and_then(|version| version.trim().parse().ok());
            let binaries = ServerBinaries::find(major.unwrap_or(0), &bin_dirs)?;
            let mut cluster = match major {
                Some(major) => {
                    anyhow::ensure!(
                        binaries.major == major,
                        "{} was made by Postgres {major}, which is not installed any more: install it again",
                        data.display()
                    );
                    Cluster::open(binaries, &data, options)?
                }
                None => Cluster::create(binaries, &data, options)?,
            };
            cluster.start()?;
            Ok(cluster)
        })
        .await
        .context("start Postgres")?
        .context("start the catalog's Postgres")?;
        Catalog::ensure_database(&url).await?;
        Ok(Self {
            cluster: Arc::new(Mutex::new(cluster)),
            url,
        })
    }

    /// Where the catalog is, with user and password.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Starts the server again whenever it dies, until `stop`.
    pub(crate) fn watch(&self, stop: CancellationToken) -> JoinHandle<()> {
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let again = cluster.clone();
                let looked = tokio::task::spawn_blocking(move || {
                    let mut cluster = again.lock().unwrap_or_else(PoisonError::into_inner);
                    if cluster.is_running() {
                        return Ok(());
                    }
                    tracing::warn!(log = %cluster.log_path().display(), "the catalog's Postgres ended; starting it again");
                    cluster.start()
                });
                match looked.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "the catalog's Postgres did not start, trying again"),
                    Err(error) => tracing::error!(%error, "starting the catalog's Postgres panicked"),
                }
            }
        })
    }

    /// Stops the server after its last commit.
    pub(crate) async fn stop(self) {
        let stopped = tokio::task::spawn_blocking(move || {
            self.cluster
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .stop(StopMode::Fast);
        });
        if stopped.await.is_err() {
            tracing::error!("stopping the catalog's Postgres panicked");
        }
    }
}

fn socket_dir(folder: &Folder) -> PathBuf {
    let inside = folder.path("socket");
    if inside.as_os_str().len() <= SOCKET_FOLDER_BYTES {
        return inside;
    }
    let mut hasher = DefaultHasher::new();
    inside.hash(&mut hasher);
    std::env::temp_dir().join(format!("strongroom-{:016x}", hasher.finish()))
}

/// Small: the catalog is. What would keep an idle server busy is slowed down.
fn settings() -> Vec<(String, String)> {
    [
        ("shared_buffers", "32MB"),
        ("max_connections", "80"),
        ("max_wal_size", "256MB"),
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
        ("autovacuum_naptime", "60s"),
        ("jit", "off"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}
