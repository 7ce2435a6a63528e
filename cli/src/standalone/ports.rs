//! The ports on 127.0.0.1: those that were asked for, those of the last start, or free ones.

use anyhow::Context as _;
use tokio::net::TcpListener;

use super::folder::Folder;

/// The ports of one run. The API's is held already; the others are free at this moment.
pub(crate) struct Ports {
    pub(crate) listener: TcpListener,
    pub(crate) api: u16,
    pub(crate) nats: u16,
    pub(crate) postgres: u16,
}

impl Ports {
    pub(crate) async fn choose(
        folder: &Folder,
        api: Option<u16>,
        nats: Option<u16>,
        postgres: Option<u16>,
    ) -> anyhow::Result<Self> {
        let kept = folder.kept_ports();
        let listener = bind("API", api, kept[0]).await?;
        let nats = bind("nats-server", nats, kept[1]).await?;
        let postgres = bind("Postgres", postgres, kept[2]).await?;
        let number = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        let ports = [number(&listener)?, number(&nats)?, number(&postgres)?];
        folder.keep_ports(ports)?;
        Ok(Self {
            listener,
            api: ports[0],
            nats: ports[1],
            postgres: ports[2],
        })
    }
}

async fn bind(what: &str, asked: Option<u16>, kept: Option<u16>) -> anyhow::Result<TcpListener> {
    if let Some(port) = asked {
        return TcpListener::bind(("127.0.0.1", port))
            .await
            .with_context(|| format!("port {port} for {what} is not free: choose another, or leave the choice to us"));
    }
    if let Some(port) = kept
        && let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await
    {
        return Ok(listener);
    }
    TcpListener::bind(("127.0.0.1", 0))
        .await
        .with_context(|| format!("find a free port for {what}"))
}
