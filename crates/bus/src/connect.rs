//! The connection to NATS, and what a server must be for us to trust it.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream;
use strongroom_proto::events::percent_decoded;
use tokio::sync::watch;

/// The oldest server that is accepted: older ones lose acknowledged messages when they crash, or cannot be told to
/// sync every write.
const OLDEST_SERVER: (u32, u32, u32) = (2, 10, 23);
/// How long the first connection is tried for.
const FIRST_CONNECT: Duration = Duration::from_secs(15);
/// How long a request of the JetStream API may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Where NATS is.
#[derive(Debug, Clone, Default)]
pub struct BusConfig {
    /// `nats://host:port`, or several separated by commas; user and password may stand in it.
    pub url: String,
    /// A NATS credentials file.
    pub credentials_file: Option<PathBuf>,
    /// Copies of each stream: 1 on a single server, 3 in a cluster.
    pub replicas: usize,
}

/// A connection to NATS; cheap to clone. It reconnects by itself.
#[derive(Clone, Debug)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) replicas: usize,
    /// Counts connections; changes when one was made anew.
    pub(crate) connections: watch::Receiver<u64>,
}

/// A NATS that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL is none.
    #[error("read the NATS URL: write it as nats://host:port")]
    Url {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The credentials file cannot be read.
    #[error("read NATS credentials from {path}")]
    Credentials {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing answers, or it refuses us.
    #[error("connect to NATS: is nats-server running, and is nats.url right?")]
    Connect {
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
    /// It is too old.
    #[error(
        "nats-server is version {found}; 2.10.23 or newer is needed, because older ones lose acknowledged messages when \
         they crash: upgrade it"
    )]
    TooOld {
        /// What it said.
        found: String,
    },
    /// It runs without JetStream.
    #[error("nats-server runs without JetStream: start it with `-js` or a jetstream block in its configuration")]
    NoJetStream {
        /// Why.
        #[source]
        source: jetstream::context::AccountError,
    },
}

impl Bus {
    /// Connects, and refuses a server that is too old or has no JetStream.
    pub async fn connect(config: &BusConfig, name: &str) -> Result<Self, ConnectError> {
        let servers: Vec<async_nats::ServerAddr> = config
            .url
            .split(',')
            .map(|url| url.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|source| ConnectError::Url { source })?;
        let (counter, connections) = watch::channel(0);
        let mut options = async_nats::ConnectOptions::new()
            .name(name)
            .connection_timeout(Duration::from_secs(5))
            .ping_interval(Duration::from_secs(10))
            .event_callback(move |event| {
                if matches!(event, async_nats::Event::Connected) {
                    counter.send_modify(|count| *count += 1);
                }
                async {}
            })
            .reconnect_delay_callback(|attempts| Duration::from_millis((attempts as u64 * 100).min(1000)));
        // The client reads addresses from URLs, and nothing else.
        match servers
            .iter()
            .find_map(|server| Some((server.username()?, server.password())))
        {
            Some((user, Some(password))) => {
                options = options.user_and_password(percent_decoded(user), percent_decoded(password));
            }
            Some((token, None)) => options = options.token(percent_decoded(token)),
            None => {}
        }
        if let Some(path) = &config.credentials_file {
            options = options
                .credentials_file(path)
                .await
                .map_err(|source| ConnectError::Credentials {
                    path: path.clone(),
                    source,
                })?;
        }
        let deadline = tokio::time::Instant::now() + FIRST_CONNECT;
        let client = loop {
            match options.clone().connect(&servers[..]).await {
                Ok(client) => break client,
                Err(source) if tokio::time::Instant::now() >= deadline => return Err(ConnectError::Connect { source }),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        let found = client.server_info().version.clone();
        if version(&found).is_none_or(|version| version < OLDEST_SERVER) {
            return Err(ConnectError::TooOld { found });
        }
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(REQUEST_TIMEOUT);
        jetstream
            .query_account()
            .await
            .map_err(|source| ConnectError::NoJetStream { source })?;
        Ok(Self {
            client,
            jetstream,
            replicas: config.replicas.max(1),
            connections,
        })
    }

    /// Whether the connection stands at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }
}

/// `2.10.23`, `2.11.0-beta.1`: the three numbers.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let core = text.split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(|n| n.parse::<u32>().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_2_10_23_are_too_old() {
        for (text, accepted) in [
            ("2.9.10", false),
            ("2.10.22", false),
            ("2.10.23", true),
            ("2.10.25-binary.1", true),
            ("2.15.1", true),
            ("", false),
        ] {
            assert_eq!(version(text).is_some_and(|v| v >= OLDEST_SERVER), accepted, "{text}");
        }
    }
}
