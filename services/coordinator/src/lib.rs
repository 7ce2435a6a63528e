//! The coordinator: triggers come in by three doors (NATS, HTTP, schedules), are admitted, and become jobs.
//!
//! It holds no key and touches no vault. Any number of coordinators may run: what must happen once is claimed in
//! Postgres. Every reaction to an event has a timed full scan beside it (`reconcile`) that repairs what was missed.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod admission;
mod alerts;
mod dispatcher;
mod gaps;
mod http;
mod reconcile;
mod recovery;
mod restores;
mod schedules;
mod streams;
mod triggers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use strongroom_bus::{Bus, BusConfig};
use strongroom_catalog::Catalog;
use strongroom_outbox::Relay;
use strongroom_runtime::TargetBook;
use strongroom_runtime::config::Loaded;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What every part of the coordinator holds.
struct Coordinator {
    catalog: Catalog,
    bus: Bus,
    relay: Relay,
    targets: TargetBook,
    loaded: Loaded,
    token: String,
    /// Jobs may be ready to be dispatched.
    dispatch: Notify,
    /// Something in the catalog changed.
    changed: Notify,
}

/// Runs the coordinator until `shutdown`. `listener` is an already bound socket for the API; without it the configured
/// address is bound.
pub async fn run(
    loaded: Loaded,
    listener: Option<tokio::net::TcpListener>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let config = &loaded.config;
    let token = config.api_token()?.filter(|token| !token.is_empty()).context(
        "no API token is configured: set api.token or api.token_file (for example to the output of `openssl rand -hex 32`)",
    )?;
    let catalog = Catalog::connect(config.catalog_url()?.expose(), config.catalog.max_connections).await?;
    let nats = BusConfig {
        url: config.nats.url.expose().to_owned(),
        credentials_file: config.nats.credentials_file.clone(),
        replicas: config.nats.replicas,
    };
    let bus = Bus::connect(&nats, "strongroom-coordinator").await?;
    bus.ensure_streams().await?;
    let listener = match listener {
        Some(listener) => listener,
        None => tokio::net::TcpListener::bind(&config.api.listen)
            .await
            .with_context(|| format!("listen on {} for the API", config.api.listen))?,
    };
    let relay = Relay::new(catalog.clone(), bus.clone(), &config.environment);
    let coordinator = Arc::new(Coordinator {
        catalog,
        bus,
        relay,
        targets: TargetBook::new(&loaded)?,
        token,
        dispatch: Notify::new(),
        changed: Notify::new(),
        loaded,
    });
    tracing::info!(api = %listener.local_addr()?, "coordinator ready");

    let tasks = TaskTracker::new();
    let broken = Arc::new(AtomicBool::new(false));
    let spawn = |name: &'static str, task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let (shutdown, broken) = (shutdown.clone(), broken.clone());
        tasks.spawn(async move {
            // A loop that ends early, by a bug or a panic, must not leave half a coordinator behind.
            let ended = tokio::spawn(task).await;
            if ended.is_err() || !shutdown.is_cancelled() {
                tracing::error!(part = name, "a part of the coordinator ended; stopping");
                broken.store(true, Ordering::Relaxed);
                shutdown.cancel();
            }
        });
    };
    let (c, s) = (coordinator.clone(), shutdown.clone());
    spawn("relay", Box::pin(async move { c.relay.run(&s).await }));
    let (c, s) = (coordinator.clone(), shutdown.clone());
    spawn("dispatcher", Box::pin(async move { dispatcher::run(&c, &s).await }));
    let (c, s) = (coordinator.clone(), shutdown.clone());
    spawn("reconciler", Box::pin(async move { reconcile::run(&c, &s).await }));
    let (c, s) = (coordinator.clone(), shutdown.clone());
    spawn("scheduler", Box::pin(async move { schedules::run(&c, &s).await }));
    let (c, s) = (coordinator.clone(), shutdown.clone());
    spawn("triggers", Box::pin(async move { triggers::consume(c, &s).await }));
    let (c, s) = (coordinator.clone(), shutdown.clone());
    spawn(
        "endpoint",
        Box::pin(async move { triggers::serve_endpoint(c, &s).await }),
    );
    let (c, s) = (coordinator.clone(), shutdown.clone());
    spawn("api", Box::pin(async move { http::serve(c, listener, &s).await }));

    shutdown.cancelled().await;
    tasks.close();
    tasks.wait().await;
    anyhow::ensure!(
        !broken.load(Ordering::Relaxed),
        "a part of the coordinator ended by itself"
    );
    Ok(())
}
