//! What a worker opens at its start: the catalog, the bus, the vault, and the keys its work needs and no others.

use anyhow::Context;
use std::path::Path;
use strongroom_bus::{Bus, BusConfig};
use strongroom_catalog::Catalog;
use strongroom_outbox::Relay;
use strongroom_policy::retry::RetryRules;
use strongroom_proto::subjects::WorkService;
use strongroom_runtime::{Config, Loaded, TargetBook};
use strongroom_vault::{Identity, S3Settings, Secret, Signer, Store, StoreConfig, Vault, WriterKey};
use tokio_util::sync::CancellationToken;

use crate::{JobHandler, WorkerOptions};

/// The connections of a worker.
pub struct Service {
    /// The catalog.
    pub catalog: Catalog,
    /// The targets it may be asked about.
    pub targets: TargetBook,
    /// How it works.
    pub options: WorkerOptions,
    bus: Bus,
    relay: Relay,
}

/// The vault, and the key this worker signs its receipts with.
#[derive(Clone)]
pub struct Vaulted {
    /// The vault.
    pub vault: Vault,
    /// The worker's own signature.
    pub signer: std::sync::Arc<Signer>,
}

impl Service {
    /// Connects to catalog and NATS.
    pub async fn connect(loaded: &Loaded, service: WorkService) -> anyhow::Result<Self> {
        let config = &loaded.config;
        let catalog = Catalog::connect(config.catalog_url()?.expose(), config.catalog.max_connections).await?;
        let nats = BusConfig {
            url: config.nats.url.expose().to_owned(),
            credentials_file: config.nats.credentials_file.clone(),
            replicas: config.nats.replicas,
        };
        let bus = Bus::connect(&nats, &format!("strongroom-{}", service.as_str())).await?;
        bus.ensure_streams().await?;
        let relay = Relay::new(catalog.clone(), bus.clone(), &config.environment);
        let options = WorkerOptions {
            service,
            pool: config.worker.pool.clone(),
            worker_id: format!("{}/{}", service.as_str(), config.worker_id()),
            concurrency: config.worker.concurrency.max(1) as usize,
            lease_seconds: config.worker.lease_seconds.max(1),
            retry: RetryRules {
                max_attempts: config.coordinator.max_attempts,
                backoff_seconds: config.coordinator.backoff_seconds.clone(),
            },
        };
        Ok(Self {
            catalog,
            targets: TargetBook::new(loaded)?,
            options,
            bus,
            relay,
        })
    }

    /// Works until `shutdown`, then drains.
    pub async fn work<H: JobHandler>(self, handler: H, shutdown: CancellationToken) {
        let relay_stop = CancellationToken::new();
        let relaying = tokio::spawn({
            let (relay, stop) = (self.relay.clone(), relay_stop.clone());
            async move { relay.run(&stop).await }
        });
        tracing::info!(
            worker = self.options.worker_id,
            pool = self.options.pool,
            "worker ready"
        );
        crate::run(self.catalog, self.bus, self.relay, self.options, handler, shutdown).await;
        // The last outcomes are published before the process ends; another relay would, if this one cannot.
        relay_stop.cancel();
        if relaying.await.is_err() {
            tracing::error!("the outbox relay of this worker panicked");
        }
    }
}

impl Vaulted {
    /// Opens the configured vault and the signing key, whose receipts name `principal`.
    pub async fn open(config: &Config, principal: &str) -> anyhow::Result<Self> {
        let store = Store::open(&store_config(config)?)?;
        let vault = Vault::open(store).await?;
        let text = key_text(config.keys.signing_key_file.as_deref(), "keys.signing_key_file")?;
        let signer = Signer::from_openssh(&text, principal)?;
        Ok(Self {
            vault,
            signer: signer.into(),
        })
    }
}

/// Where the configured vault is.
pub fn store_config(config: &Config) -> anyhow::Result<StoreConfig> {
    anyhow::ensure!(
        !config.vault.url.is_empty(),
        "no vault is configured: set vault.url (file:///… or s3://bucket/prefix)"
    );
    let s3 = S3Settings {
        endpoint: config.vault.s3.endpoint.clone(),
        region: config.vault.s3.region.clone(),
        access_key_id: config.vault.s3.access_key_id.clone(),
        secret_access_key: config
            .vault
            .s3
            .secret_access_key()?
            .map(|secret| Secret::new(secret.expose())),
        allow_http: config.vault.s3.allow_http,
    };
    Ok(StoreConfig {
        url: config.vault.url.clone(),
        s3: Some(s3),
    })
}

/// The secret that writing needs.
pub fn writer_key(config: &Config) -> anyhow::Result<WriterKey> {
    let text = key_text(config.keys.writer_key_file.as_deref(), "keys.writer_key_file")?;
    Ok(WriterKey::parse(&text)?)
}

/// The secret that reading needs.
pub fn identity(config: &Config) -> anyhow::Result<Identity> {
    let text = key_text(config.keys.identity_file.as_deref(), "keys.identity_file")?;
    Ok(Identity::from_file_text(&text)?)
}

fn key_text(path: Option<&Path>, setting: &str) -> anyhow::Result<String> {
    let path = path.with_context(|| format!("no key is configured: set {setting}"))?;
    std::fs::read_to_string(path).with_context(|| format!("read the key of {setting} from {}", path.display()))
}
