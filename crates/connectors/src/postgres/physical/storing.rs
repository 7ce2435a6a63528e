//! WAL on its way into a sink: cut into pieces, several stored at a time, durable in order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use strongroom_proto::wal::{Lsn, SystemIdentifier, WalPiece, WalSegment, WalSink};
use tokio::task::JoinSet;

use super::resume::Place;

/// The longest piece, in bytes: larger segments are stored in parts.
const PIECE_BYTES_MAX: u64 = 16 << 20;
/// Pieces that are stored at a time before their turn; one more where a segment is full. Each of the four takes its WAL,
/// the frame of it, what that decodes to for the comparison, and the sealed object: at most 256 MiB, reached by WAL that
/// does not shrink, and 16 MiB for the next piece.
const PUTS_MAX: usize = 3;
/// What the header of a segment's first page has: magic, flags, timeline, address, and more up to the page's size.
const HEADER_BYTES: usize = 40;
const LONG_HEADER: u16 = 0x0002;

/// A range that was stored, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) from: Lsn,
    pub(super) to: Lsn,
    /// The server's clock when it had nothing more; `None` where it always had.
    pub(super) server_time: Option<DateTime<Utc>>,
}

/// Bytes that are not the WAL they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WalDamage {
    /// Not a segment's beginning.
    #[error("the segment that begins at {at} does not begin as WAL of this place does")]
    Header {
        /// Where.
        at: Lsn,
    },
    /// Another cluster's.
    #[error("the segment that begins at {at} is of the cluster {system}")]
    System {
        /// Where.
        at: Lsn,
        /// The cluster that it names.
        system: SystemIdentifier,
    },
    /// Bytes are missing, or came again.
    #[error("WAL from {came} came where {expected} was to come")]
    Place {
        /// Where it should have begun.
        expected: Lsn,
        /// Where it began.
        came: Lsn,
    },
}

/// The WAL of one timeline, from when it came to when it is durable.
pub(super) struct Storing {
    sink: Arc<dyn WalSink>,
    system: SystemIdentifier,
    segment_bytes: u32,
    timeline: u32,
    /// The next piece so far.
    buffer: Vec<u8>,
    /// Memory of pieces that have arrived, while others are on their way.
    spare: Vec<Vec<u8>>,
    received: Lsn,
    /// The server's clock when it last had nothing after a place in the next piece.
    server_time: Option<DateTime<Utc>>,
    puts: JoinSet<(Lsn, Arc<Vec<u8>>, io::Result<()>)>,
    /// What is on its way, in order, and whether it has arrived.
    queue: VecDeque<(Stored, bool)>,
    durable: Lsn,
}

impl Storing {
    pub(super) fn create(sink: Arc<dyn WalSink>, system: SystemIdentifier, segment_bytes: u32, place: Place) -> Self {
        Self {
            sink,
            system,
            segment_bytes,
            timeline: place.timeline,
            buffer: Vec::new(),
            spare: Vec::new(),
            received: place.at,
            server_time: None,
            puts: JoinSet::new(),
            queue: VecDeque::new(),
            durable: place.at,
        }
    }

    /// The end of what came.
    pub(super) fn received(&self) -> Lsn {
        self.received
    }

    /// Everything before this is durable.
    pub(super) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Whether something came that is not on its way yet.
    pub(super) fn has_unsent(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether something is on its way.
    pub(super) fn is_busy(&self) -> bool {
        !self.puts.is_empty()
    }

    /// Whether nothing more is to be taken for now.
    pub(super) fn is_full(&self) -> bool {
        self.puts.len() > PUTS_MAX
    }

    /// Whether what came may be sent on its way before its segment is full.
    pub(super) fn may_cut(&self) -> bool {
        self.puts.len() < PUTS_MAX
    }

    /// Takes what came. `level_at` is the server's clock where it had nothing after these bytes when it sent them.
    pub(super) fn push(
        &mut self,
        from: Lsn,
        mut bytes: &[u8],
        level_at: Option<DateTime<Utc>>,
    ) -> Result<(), WalDamage> {
        if from != self.received {
            return Err(WalDamage::Place {
                expected: self.received,
                came: from,
            });
        }
        while !bytes.is_empty() {
            let at = self.received;
            let limit = self.limit();
            let length = usize::try_from(limit.0 - at.0).unwrap_or(usize::MAX).min(bytes.len());
            let (taken, rest) = bytes.split_at(length);
            bytes = rest;
            self.received.0 += length as u64;
            self.buffer.extend_from_slice(taken);
            if rest.is_empty() {
                self.server_time = level_at.or(self.server_time);
            }
            if self.received == limit {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// How far the next piece goes at most.
    fn limit(&self) -> Lsn {
        let segment = WalSegment::holding(self.timeline, self.received, self.segment_bytes);
        let piece_begin = self.received.0 - self.buffer.len() as u64;
        segment.end(self.segment_bytes).min(Lsn(piece_begin + PIECE_BYTES_MAX))
    }

    /// Sends what came on its way.
    pub(super) fn cut(&mut self) -> Result<(), WalDamage> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::replace(&mut self.buffer, self.spare.pop().unwrap_or_default());
        let from = Lsn(self.received.0 - bytes.len() as u64);
        self.check(from, &bytes)?;
        let stored = Stored {
            from,
            to: self.received,
            server_time: self.server_time.take(),
        };
        let piece = WalPiece {
            system_identifier: self.system,
            timeline: self.timeline,
            from,
            to: stored.to,
            segment_bytes: self.segment_bytes,
            server_time: stored.server_time,
        };
        self.queue.push_back((stored, false));
        let sink = Arc::clone(&self.sink);
        let bytes = Arc::new(bytes);
        self.puts.spawn(async move {
            let put = sink.put(&piece, Arc::clone(&bytes)).await;
            (from, bytes, put)
        });
        Ok(())
    }

    /// Looks whether what begins a segment is the beginning of this one.
    fn check(&self, from: Lsn, bytes: &[u8]) -> Result<(), WalDamage> {
        let begins = WalSegment::holding(self.timeline, from, self.segment_bytes).begin(self.segment_bytes) == from;
        let Some(header) = bytes.get(..HEADER_BYTES).filter(|_| begins) else {
            return Ok(());
        };
        let number = |at: usize, length: usize| {
            let bytes = header.get(at..at + length).unwrap_or_default();
            bytes
                .iter()
                .rev()
                .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        if number(2, 2) as u16 & LONG_HEADER == 0
            || number(8, 8) != from.0
            || number(32, 4) != u64::from(self.segment_bytes)
        {
            return Err(WalDamage::Header { at: from });
        }
        let system = SystemIdentifier(number(24, 8));
        if system != self.system {
            return Err(WalDamage::System { at: from, system });
        }
        Ok(())
    }

    /// Waits for the next piece to arrive; gives back what is durable without a hole since. Safe to cancel.
    pub(super) async fn settled(&mut self) -> io::Result<Vec<Stored>> {
        if let Some(put) = self.puts.join_next().await {
            let (from, bytes, result) = put.map_err(io::Error::other)?;
            result?;
            match Arc::try_unwrap(bytes) {
                Ok(mut bytes) if !self.puts.is_empty() => {
                    bytes.clear();
                    self.spare.push(bytes);
                }
                _ => self.spare.clear(),
            }
            if let Some((_, arrived)) = self.queue.iter_mut().find(|(stored, _)| stored.from == from) {
                *arrived = true;
            }
        }
        let mut settled = Vec::new();
        while let Some((stored, true)) = self.queue.front() {
            self.durable = stored.to;
            settled.push(*stored);
            self.queue.pop_front();
        }
        Ok(settled)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use strongroom_proto::wal::StoredPiece;

    use super::*;

    const MIB: u32 = 1 << 20;

    #[derive(Default)]
    struct Sink(Mutex<Vec<WalPiece>>);

    #[async_trait]
    impl WalSink for Sink {
        async fn put(&self, piece: &WalPiece, bytes: Arc<Vec<u8>>) -> io::Result<()> {
            assert_eq!(bytes.len() as u64, piece.len());
            self.0.lock().unwrap().push(piece.clone());
            Ok(())
        }
        async fn put_history(&self, _: SystemIdentifier, _: u32, _: &str) -> io::Result<()> {
            Ok(())
        }
        async fn pieces(&self, _: SystemIdentifier, _: u32) -> io::Result<Vec<StoredPiece>> {
            Ok(Vec::new())
        }
    }

    fn storing(sink: &Arc<Sink>, at: u64) -> Storing {
        let place = Place {
            timeline: 1,
            at: Lsn(at),
        };
        let sink = Arc::clone(sink);
        Storing::create(sink, SystemIdentifier(7), MIB, place)
    }

    /// The beginning of a segment, and so many bytes after it.
    fn segment(at: u64, system: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[2] = LONG_HEADER as u8;
        bytes[8..16].copy_from_slice(&at.to_le_bytes());
        bytes[24..32].copy_from_slice(&system.to_le_bytes());
        bytes[32..36].copy_from_slice(&MIB.to_le_bytes());
        bytes
    }

    #[tokio::test]
    async fn a_piece_has_the_last_time_when_the_server_had_no_more_of_it() {
        let time = |seconds| DateTime::from_timestamp(seconds, 0);
        let end = u64::from(MIB);
        let sink = Arc::new(Sink::default());
        let mut storing = storing(&sink, end - 100);
        storing.push(Lsn(end - 100), &[1; 20], time(1)).unwrap();
        storing.push(Lsn(end - 80), &[1; 20], time(2)).unwrap();
        storing.push(Lsn(end - 60), &[1; 20], None).unwrap();
        assert_eq!(
            storing.durable(),
            Lsn(end - 100),
            "what came is not durable before it has arrived"
        );
        storing.cut().unwrap();
        storing.push(Lsn(end - 40), &[1; 20], None).unwrap();
        storing.cut().unwrap();
        // The server had the rest of it, which is of the next segment.
        let mut bytes = vec![1; 20];
        bytes.extend(segment(end, 7, 100));
        storing.push(Lsn(end - 20), &bytes, time(3)).unwrap();
        storing.cut().unwrap();
        let mut told = Vec::new();
        while storing.is_busy() {
            told.extend(storing.settled().await.unwrap());
        }
        assert_eq!(storing.durable(), Lsn(end + 100));
        let expected = [
            (end - 100, end - 40, time(2)),
            (end - 40, end - 20, None),
            (end - 20, end, None),
            (end, end + 100, time(3)),
        ]
        .map(|(from, to, server_time)| Stored {
            from: Lsn(from),
            to: Lsn(to),
            server_time,
        });
        assert_eq!(told, expected);
        let mut put = sink.0.lock().unwrap().clone();
        put.sort_by_key(|piece| piece.from);
        let put: Vec<_> = put.iter().map(|piece| (piece.from, piece.server_time)).collect();
        assert_eq!(put, expected.map(|stored| (stored.from, stored.server_time)));
    }

    #[tokio::test]
    async fn wal_of_another_cluster_or_place_is_refused() {
        let begin = u64::from(MIB);
        let sink = Arc::new(Sink::default());
        for (bytes, damage) in [
            (segment(begin, 7, 100), None),
            (vec![0; 100], Some(WalDamage::Header { at: Lsn(begin) })),
            (
                segment(begin + begin, 7, 100),
                Some(WalDamage::Header { at: Lsn(begin) }),
            ),
            (
                segment(begin, 8, 100),
                Some(WalDamage::System {
                    at: Lsn(begin),
                    system: SystemIdentifier(8),
                }),
            ),
        ] {
            let mut storing = storing(&sink, begin);
            storing.push(Lsn(begin), &bytes, None).unwrap();
            assert_eq!(storing.cut().err(), damage);
        }
        let came = storing(&sink, begin).push(Lsn(begin + 1), &[0], None);
        assert!(matches!(came, Err(WalDamage::Place { .. })));
    }
}
