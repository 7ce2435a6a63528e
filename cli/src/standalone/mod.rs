//! `strongroom standalone`: the whole fleet on one machine with one command.
//!
//! The same services that run apart in a cluster run here as tasks of one process, against a nats-server and a Postgres
//! that it starts and watches over. Everything lies in one folder; nothing outside it is touched. The children die
//! with their parent, however that ends.

mod database;
mod fleet;
mod folder;
mod nats;
mod ports;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use strongroom_runtime::{Config, Shutdown, telemetry};

use crate::keys;
use folder::Folder;
use ports::Ports;

/// How long the fleet may take from its start to its first healthy answer.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What `strongroom standalone` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that holds all state; made where it does not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Only answer whether it is up: exit code 0 when it is
    #[arg(long)]
    pub(crate) check: bool,
    /// Port of the API on 127.0.0.1 [default: a free one, kept for the next start]
    #[arg(long, value_name = "PORT")]
    pub(crate) api_port: Option<u16>,
    /// Port of nats-server on 127.0.0.1 [default: a free one, kept for the next start]
    #[arg(long, value_name = "PORT")]
    pub(crate) nats_port: Option<u16>,
    /// Port of the catalog's Postgres on 127.0.0.1 [default: a free one, kept for the next start]
    #[arg(long, value_name = "PORT")]
    pub(crate) postgres_port: Option<u16>,
    /// Where backups go [default: file://DIR/vault]
    #[arg(long, value_name = "URL")]
    pub(crate) vault: Option<String>,
}

/// Runs until it is told to stop.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.check {
        return check(&args).await;
    }
    let folder = Folder::open(&args.dir)?;
    let _lock = folder.lock()?;
    folder.forget_ready()?;
    let shutdown = Shutdown::on_signals().context("listen for signals")?;

    let settings = folder.config(&[])?;
    let _telemetry = telemetry::init("strongroom", &settings.config)?;
    let ports = Ports::choose(&folder, args.api_port, args.nats_port, args.postgres_port).await?;
    let database = database::Database::start(&folder, ports.postgres, &settings.config).await?;
    let nats = nats::Nats::start(&folder, ports.nats, shutdown.token()).await?;
    let vault_url = vault_url(&args, &settings.config, &folder);
    let flags = fleet::settings(&folder, &ports, &database, &nats, &vault_url)?;
    let loaded = folder.config(&flags)?;
    keys::ensure_vault(&loaded.config, &folder.path("keys")).await?;

    let fleet = fleet::Fleet::start(&folder, &loaded, &flags, ports.listener, &shutdown)?;
    let watch = database.watch(shutdown.token());
    let ready = tokio::select! {
        ready = fleet.wait_ready(&loaded.config, READY_WITHIN) => ready,
        () = shutdown.wait() => Ok(()),
    };
    let stopped = match ready {
        Ok(()) if !shutdown.token().is_cancelled() => {
            folder.write_ready(&loaded.config, &database.url(), &nats.url())?;
            announce(&folder, &loaded.config);
            shutdown.wait().await;
            Ok(())
        }
        Ok(()) => Ok(()),
        Err(error) => Err(error),
    };
    shutdown.trigger();
    folder.forget_ready()?;
    let ended = fleet.join().await;
    let _ = watch.await;
    nats.stop().await;
    database.stop().await;
    stopped.and(ended).map(|()| ExitCode::SUCCESS)
}

fn vault_url(args: &Args, config: &Config, folder: &Folder) -> String {
    match &args.vault {
        Some(url) => url.clone(),
        None if !config.vault.url.is_empty() => config.vault.url.clone(),
        None => format!("file://{}", folder.path("vault").display()),
    }
}

fn announce(folder: &Folder, config: &Config) {
    println!("strongroom is up");
    println!("  API      {}", config.api.url);
    println!("  vault    {}", config.vault.url);
    println!("  settings {}", folder.path("config.yaml").display());
    println!(
        "  try      source {} && strongroom status",
        folder.path("env").display()
    );
    println!(
        "  keep     a copy of {} somewhere else: without it no backup can be read",
        folder.path("keys/identity.txt").display()
    );
}

/// Asks the fleet of this folder whether it is up.
async fn check(args: &Args) -> anyhow::Result<ExitCode> {
    let env = args.dir.join("env");
    let text = std::fs::read_to_string(&env).with_context(|| format!("not up: {} is not there yet", env.display()))?;
    let api = folder::env_value(&text, "STRONGROOM_API").context("not up: the env file names no API")?;
    let health = fleet::health(&api)
        .await
        .with_context(|| format!("not up: {api} does not answer"))?;
    anyhow::ensure!(health.status == "healthy", "not healthy: {:?}", health.checks);
    println!("up: {api}");
    Ok(ExitCode::SUCCESS)
}
