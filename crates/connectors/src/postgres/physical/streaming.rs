//! The messages of a WAL stream, in both directions.

use bytes::{Buf as _, BufMut as _, Bytes};
use chrono::{DateTime, Utc};
use strongroom_proto::wal::Lsn;

use super::commands;
use super::error::{ServerError, WireError};
use super::wire::{Connection, Message, tag};

/// 2000-01-01, from where Postgres counts, in microseconds since 1970.
pub(super) const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// What a WAL sender says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Streamed {
    Wal {
        from: Lsn,
        bytes: Bytes,
        /// What the server had when it sent this.
        server_end: Lsn,
        server_time: DateTime<Utc>,
    },
    Keepalive {
        /// What the server has sent.
        sent: Lsn,
        server_time: DateTime<Utc>,
        wants_reply: bool,
    },
    /// The timeline ends here.
    End,
}

/// A position to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) received: Lsn,
    pub(super) durable: Lsn,
    pub(super) wants_reply: bool,
}

/// Begins to stream; the next messages are read by [`parse`].
pub(super) async fn start(connection: &mut Connection, command: &str) -> Result<(), WireError> {
    connection.query(command).await?;
    let mut error = None;
    loop {
        let message = connection.message().await?;
        match message.tag {
            tag::COPY_BOTH => return Ok(()),
            tag::ERROR => {
                let said = ServerError::parse(&message.body);
                if said.is_fatal() {
                    return Err(said.into());
                }
                error = Some(said);
            }
            tag::READY => {
                return Err(error.map_or(WireError::protocol("an answer to START_REPLICATION"), WireError::from));
            }
            _ => {}
        }
    }
}

/// What a message of the stream says.
pub(super) fn parse(message: Message) -> Result<Streamed, WireError> {
    let broken = || WireError::protocol("a message in a WAL stream");
    let mut body = message.body;
    match message.tag {
        tag::COPY_DATA => {}
        tag::COPY_DONE => return Ok(Streamed::End),
        tag::ERROR => return Err(ServerError::parse(&body).into()),
        _ => return Err(broken()),
    }
    match body.try_get_u8().map_err(|_| broken())? {
        b'w' if body.len() > 24 => Ok(Streamed::Wal {
            from: Lsn(body.get_u64()),
            server_end: Lsn(body.get_u64()),
            server_time: time(body.get_i64()).ok_or_else(broken)?,
            bytes: body,
        }),
        b'k' if body.len() == 17 => Ok(Streamed::Keepalive {
            sent: Lsn(body.get_u64()),
            server_time: time(body.get_i64()).ok_or_else(broken)?,
            wants_reply: body.get_u8() != 0,
        }),
        _ => Err(broken()),
    }
}

/// Queues a report of how far the receiver is, with the time of its clock.
pub(super) fn put_report(connection: &mut Connection, report: Report, now: DateTime<Utc>) {
    let mut body = Vec::with_capacity(34);
    body.put_u8(b'r');
    body.put_u64(report.received.0);
    body.put_u64(report.durable.0);
    // Nothing is ever applied here.
    body.put_u64(0);
    body.put_i64(now.timestamp_micros() - EPOCH_MICROSECONDS);
    body.put_u8(u8::from(report.wants_reply));
    connection.put_copy_data(&body);
}

/// What the server's clock says, by way of a stream that is given up at once, together with the connection.
pub(super) async fn server_clock(connection: &mut Connection) -> Result<DateTime<Utc>, WireError> {
    let at = commands::identify(connection).await?.at;
    start(connection, &format!("START_REPLICATION PHYSICAL {at}")).await?;
    let report = Report {
        received: at,
        durable: at,
        wants_reply: true,
    };
    put_report(connection, report, Utc::now());
    connection.flush().await?;
    match parse(connection.message().await?)? {
        Streamed::Wal { server_time, .. } | Streamed::Keepalive { server_time, .. } => Ok(server_time),
        Streamed::End => Err(WireError::protocol("the end of a timeline")),
    }
}

/// A time as servers send it, in microseconds since 2000.
pub(super) fn time(microseconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(microseconds.checked_add(EPOCH_MICROSECONDS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Message {
        Message {
            tag: tag::COPY_DATA,
            body: Bytes::copy_from_slice(body),
        }
    }

    #[test]
    fn messages_of_a_stream_are_read_and_broken_ones_refused() {
        let mut wal = vec![b'w'];
        wal.put_u64(0x100_0000);
        wal.put_u64(0x100_0008);
        wal.put_i64(0);
        assert!(parse(message(&wal)).is_err(), "a message without any WAL");
        wal.extend_from_slice(b"12345678");
        let expected = Streamed::Wal {
            from: Lsn(0x100_0000),
            bytes: Bytes::from_static(b"12345678"),
            server_end: Lsn(0x100_0008),
            server_time: "2000-01-01T00:00:00Z".parse().unwrap(),
        };
        assert_eq!(parse(message(&wal)).unwrap(), expected);
        for bad in [&b""[..], b"k", b"k123456781234567", b"x1234", &wal[..20]] {
            assert!(parse(message(bad)).is_err(), "{bad:?}");
        }
    }
}
