//! A connection that speaks the replication protocol: log-in, messages, and results of simple queries.
//!
//! Reading is safe to cancel: a message that has come in part stays where it is. What a server says is bounded by
//! [`MESSAGE_BYTES_MAX`]. Formats are those of the chapter "Frontend/Backend Protocol" of the Postgres manual.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::error::{ServerError, WireError};
use super::tls::{self, TlsMode};
use crate::postgres::target::Endpoint;

/// How long connecting may take, the log-in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest message that is taken.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How much is read at once.
const READ_BYTES: usize = 256 << 10;
/// Warnings that are kept.
const NOTICES_MAX: usize = 50;
/// A peer that vanished without a word is noticed after about two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

const PROTOCOL_VERSION: u32 = 196_608;
const SSL_REQUEST: u32 = 80_877_103;

/// Tags of messages from a server.
pub(super) mod tag {
    pub(crate) const AUTHENTICATION: u8 = b'R';
    pub(crate) const COMMAND_COMPLETE: u8 = b'C';
    pub(crate) const COPY_BOTH: u8 = b'W';
    pub(crate) const COPY_DATA: u8 = b'd';
    pub(crate) const COPY_DONE: u8 = b'c';
    pub(crate) const COPY_IN: u8 = b'G';
    pub(crate) const COPY_OUT: u8 = b'H';
    pub(crate) const DATA_ROW: u8 = b'D';
    pub(crate) const ERROR: u8 = b'E';
    pub(crate) const NOTICE: u8 = b'N';
    pub(crate) const PARAMETER: u8 = b'S';
    pub(crate) const READY: u8 = b'Z';
}

/// A message from the server.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

/// The values of a row, `None` for NULL.
pub(super) type Row = Vec<Option<Bytes>>;

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A logged-in connection to a WAL sender.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    read: BytesMut,
    write: BytesMut,
    /// The version that the server told, e.g. `15.18 (Debian 15.18-0+deb12u1)`.
    pub(super) server_version: String,
    notices: VecDeque<String>,
}

impl Connection {
    /// Connects and logs in for replication.
    pub(super) async fn open(endpoint: &Endpoint) -> Result<Self, WireError> {
        tokio::time::timeout(CONNECT_TIMEOUT, async {
            let stream = connect(endpoint).await?;
            let mut connection = Self {
                stream,
                read: BytesMut::new(),
                write: BytesMut::new(),
                server_version: String::new(),
                notices: VecDeque::new(),
            };
            connection.log_in(endpoint).await?;
            Ok(connection)
        })
        .await
        .unwrap_or_else(|_| {
            Err(WireError::io(
                io::ErrorKind::TimedOut,
                "could not connect within 15 s (timeout expired)",
            ))
        })
    }

    async fn log_in(&mut self, endpoint: &Endpoint) -> Result<(), WireError> {
        let mut body = BytesMut::new();
        body.put_u32(PROTOCOL_VERSION);
        for (name, value) in [
            ("user", &*endpoint.user),
            ("replication", "true"),
            ("application_name", "strongroom"),
            ("client_encoding", "UTF8"),
        ] {
            put_text(&mut body, name);
            put_text(&mut body, value);
        }
        body.put_u8(0);
        self.write.put_u32(body.len() as u32 + 4);
        self.write.extend_from_slice(&body);
        self.flush().await?;
        let mut scram = None;
        loop {
            let message = self.message().await?;
            match message.tag {
                tag::AUTHENTICATION => self.authenticate(endpoint, &mut scram, message.body).await?,
                tag::ERROR => return Err(ServerError::parse(&message.body).into()),
                tag::READY => return Ok(()),
                // The key for cancelling.
                _ => {}
            }
        }
    }

    async fn authenticate(
        &mut self,
        endpoint: &Endpoint,
        scram: &mut Option<ScramSha256>,
        mut body: Bytes,
    ) -> Result<(), WireError> {
        let password = || {
            endpoint
                .password
                .as_deref()
                .ok_or_else(|| WireError::log_in("no password supplied: the server asks for one"))
        };
        let refused = |error: io::Error| WireError::log_in(format!("password authentication failed: {error}"));
        match body
            .try_get_u32()
            .map_err(|_| WireError::protocol("a log-in request"))?
        {
            0 => {}
            3 => {
                let password = password()?;
                self.put_message(b'p', |out| put_text(out, password));
            }
            5 => {
                let salt = body
                    .get(..4)
                    .and_then(|salt| salt.try_into().ok())
                    .ok_or_else(|| WireError::protocol("a log-in request"))?;
                let hash = md5_hash(endpoint.user.as_bytes(), password()?.as_bytes(), salt);
                self.put_message(b'p', |out| put_text(out, &hash));
            }
            10 => {
                let offers = body.split(|byte| *byte == 0).any(|name| name == b"SCRAM-SHA-256");
                if !offers {
                    return Err(WireError::log_in(
                        "the server offers no way to log in that is known here",
                    ));
                }
                let begun = ScramSha256::new(password()?.as_bytes(), ChannelBinding::unsupported());
                self.put_message(b'p', |out| {
                    put_text(out, "SCRAM-SHA-256");
                    out.put_u32(begun.message().len() as u32);
                    out.extend_from_slice(begun.message());
                });
                *scram = Some(begun);
            }
            11 => {
                let scram = scram.as_mut().ok_or_else(|| WireError::protocol("a log-in request"))?;
                scram.update(&body).map_err(refused)?;
                self.put_message(b'p', |out| out.extend_from_slice(scram.message()));
            }
            12 => {
                let scram = scram.as_mut().ok_or_else(|| WireError::protocol("a log-in request"))?;
                scram.finish(&body).map_err(refused)?;
            }
            _ => {
                return Err(WireError::log_in(
                    "the server asks for a way to log in that is not known here",
                ));
            }
        }
        self.flush().await
    }

    /// The next message, once it is here. Notices and parameters are kept, not handed out.
    pub(super) async fn message(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message, where all of it has come.
    pub(super) fn buffered(&mut self) -> Result<Option<Message>, WireError> {
        loop {
            let Some(head) = self.read.get(..5) else {
                return Ok(None);
            };
            let mut head = head;
            let (tag, length) = (head.get_u8(), head.get_u32() as usize);
            if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
                return Err(WireError::protocol("the length of a message"));
            }
            if self.read.len() < length + 1 {
                self.read.reserve(length + 1 - self.read.len());
                return Ok(None);
            }
            self.read.advance(5);
            let body = self.read.split_to(length - 4).freeze();
            match tag {
                tag::NOTICE => {
                    if self.notices.len() == NOTICES_MAX {
                        self.notices.pop_front();
                    }
                    self.notices.push_back(ServerError::parse(&body).to_string());
                }
                tag::PARAMETER => {
                    let mut texts = body.split(|byte| *byte == 0);
                    if texts.next() == Some(b"server_version") {
                        let version = texts.next().unwrap_or_default();
                        self.server_version = String::from_utf8_lossy(version).into_owned();
                    }
                }
                tag => return Ok(Some(Message { tag, body })),
            }
        }
    }

    /// Reads what has come, and waits where nothing has.
    pub(super) async fn fill(&mut self) -> Result<(), WireError> {
        self.read.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) => Err(WireError::io(
                io::ErrorKind::UnexpectedEof,
                "server closed the connection unexpectedly",
            )),
            Ok(_) => Ok(()),
            Err(source) => Err(WireError::Io { source }),
        }
    }

    /// Sends a statement; what it answers is read by [`message`](Self::message).
    pub(super) async fn query(&mut self, sql: &str) -> Result<(), WireError> {
        self.put_message(b'Q', |out| put_text(out, sql));
        self.flush().await
    }

    /// Runs a statement and gives back the rows of all its results.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, WireError> {
        self.query(sql).await?;
        self.rest().await
    }

    /// The rows of the results that are still to come.
    pub(super) async fn rest(&mut self) -> Result<Vec<Row>, WireError> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let message = self.message().await?;
            match message.tag {
                tag::DATA_ROW => rows.push(row(message.body)?),
                tag::ERROR => {
                    let said = ServerError::parse(&message.body);
                    // After a fatal one nothing more comes.
                    if said.is_fatal() {
                        return Err(said.into());
                    }
                    error = Some(said);
                }
                tag::READY => return error.map_or(Ok(rows), |error| Err(error.into())),
                _ => {}
            }
        }
    }

    /// Queues bytes for the server, in a copy.
    pub(super) fn put_copy_data(&mut self, bytes: &[u8]) {
        self.put_message(b'd', |out| out.extend_from_slice(bytes));
    }

    /// Queues the end of a copy.
    pub(super) fn put_copy_done(&mut self) {
        self.put_message(b'c', |_| {});
    }

    /// Sends what is queued.
    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        let write = async {
            self.stream.write_all_buf(&mut self.write).await?;
            self.stream.flush().await
        };
        write.await.map_err(|source| WireError::Io { source })
    }

    /// The last warnings.
    pub(super) fn notices(&self) -> impl Iterator<Item = &str> {
        self.notices.iter().map(String::as_str)
    }

    fn put_message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        body(&mut bytes);
        self.write.put_u8(tag);
        self.write.put_u32(bytes.len() as u32 + 4);
        self.write.extend_from_slice(&bytes);
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Box<dyn Stream>, WireError> {
    let io = |source| WireError::Io { source };
    if endpoint.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", endpoint.host, endpoint.port);
        return Ok(Box::new(UnixStream::connect(path).await.map_err(io)?));
    }
    let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
        .await
        .map_err(io)?;
    let prepare = || -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(&stream, true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)
    };
    prepare().map_err(|error| io(error.into()))?;
    let mode = TlsMode::of(endpoint);
    if mode == TlsMode::Never {
        return Ok(Box::new(stream));
    }
    let mut request = BytesMut::new();
    request.put_u32(8);
    request.put_u32(SSL_REQUEST);
    stream.write_all(&request).await.map_err(io)?;
    match stream.read_u8().await.map_err(io)? {
        b'S' => Ok(Box::new(tls::handshake(endpoint, stream).await.map_err(io)?)),
        b'N' if mode == TlsMode::Preferred => Ok(Box::new(stream)),
        b'N' => Err(WireError::log_in(
            "the server does not speak TLS, which the target's sslmode asks for",
        )),
        _ => Err(WireError::protocol("the answer to a request for TLS")),
    }
}

/// The values of a row.
pub(super) fn row(mut body: Bytes) -> Result<Row, WireError> {
    let broken = || WireError::protocol("a row");
    let columns = body.try_get_u16().map_err(|_| broken())?;
    (0..columns)
        .map(|_| match body.try_get_i32().map_err(|_| broken())? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| broken())?;
                (length <= body.len())
                    .then(|| Some(body.split_to(length)))
                    .ok_or_else(broken)
            }
        })
        .collect()
}

/// A text as the protocol ends it. What comes from configuration was checked for NULs.
fn put_text(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.put_u8(0);
}
