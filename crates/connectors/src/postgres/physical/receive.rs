//! Following the WAL of a cluster through a physical replication slot.
//!
//! A piece goes to the sink when its segment is full, or when the interval has passed with anything new. What the slot is
//! told is what is durable without a hole, never more, so that the server keeps what the vault lacks, whatever ends here.
//! A server that writes nothing is only asked how it is, and its answers are what shows that it lives.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use strongroom_proto::wal::{Lsn, SystemIdentifier, WalSink};
use tokio::time::{Instant, sleep_until, timeout};

use super::commands::{self, Identity};
use super::commit_times::CommitTimes;
use super::error::WireError;
use super::receive_error::ReceiveError;
use super::resume::{self, Place, Span};
use super::storing::{Storing, WalDamage};
use super::streaming::{self, Report, Streamed};
use super::target::ClusterTarget;
use super::wire::Connection;
use crate::postgres::target::Endpoint;

/// How long a receiver that ends waits for what is on its way.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// How long an answer that nothing has to be done for may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How often the server is told and asked, at most and at least.
const REPORT_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// A server that says nothing for so long, though it is asked, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Two answers so far apart show that a server had the time to send what it has.
const IDLE_AFTER: Duration = Duration::from_millis(200);
/// How often a start is tried anew because of what is missing on the server.
const STARTS_MAX: u32 = 4;

/// How a receiver is to work.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// How long WAL waits for its segment to fill before it is stored as it is.
    pub interval: Duration,
    /// The cluster whose WAL the vault has; another is refused.
    pub expected_system: Option<SystemIdentifier>,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            expected_system: None,
        }
    }
}

/// What happens while WAL is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalEvent {
    /// It begins, or goes on.
    Started {
        /// The cluster.
        system: SystemIdentifier,
        /// The timeline.
        timeline: u32,
        /// Where.
        at: Lsn,
        /// The size of the cluster's segments, in bytes.
        segment_bytes: u32,
    },
    /// A range is durable, and so is everything before it since `Started`, `Switched` or `Gap`.
    Stored {
        /// The timeline.
        timeline: u32,
        /// Where it begins.
        from: Lsn,
        /// The place after its last byte.
        to: Lsn,
        /// What was committed before lies before `to`: the server's clock when it had no more than this, or of a standby,
        /// whose primary may have more, the last commit in it. `None` where that is not known, as while the receiver
        /// catches up.
        server_time: Option<DateTime<Utc>>,
    },
    /// The server had nothing after what is durable.
    Idle {
        /// The timeline.
        timeline: u32,
        /// The end of what is durable.
        to: Lsn,
        /// The server's clock when it had nothing more; `None` of a standby, which lags behind its primary.
        server_time: Option<DateTime<Utc>>,
    },
    /// The server is on a new timeline: the history is stored, and the segment of the switch comes anew on it.
    Switched {
        /// The old timeline.
        from: u32,
        /// The new one.
        to: u32,
        /// Where the old one was left.
        at: Lsn,
    },
    /// The server no longer has this WAL, and the vault never had it.
    Gap {
        /// The timeline on which it begins.
        timeline: u32,
        /// The end of what the vault has.
        from: Lsn,
        /// Where it goes on.
        to: Lsn,
    },
    /// The slot was gone, or given up by the server, and was made anew. Where WAL went with it, `Gap` follows; where
    /// none did, `Stored` or `Idle` does.
    SlotLost {
        /// The slot.
        slot: String,
        /// What is known about why.
        reason: String,
        /// The timeline that the server is on.
        timeline: u32,
    },
    /// How much the server has written that is not durable in the vault yet, as far as it was heard: a vault that takes
    /// nothing stops the hearing at 64 MiB. Told at every report.
    Behind {
        /// In bytes.
        bytes: u64,
    },
}

/// Where a receiver was when it was stopped: everything before is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The cluster.
    pub system: SystemIdentifier,
    /// The timeline.
    pub timeline: u32,
    /// The place.
    pub at: Lsn,
}

/// Follows the WAL of a cluster until `stop` is ready, or something ends it. What had come by then is stored in either
/// case. Called again, it goes on with what the slot was not told to be durable, so that a little may be stored twice; nobody else may store WAL of this cluster in the same vault
/// at the same time.
pub async fn receive(
    target: &ClusterTarget,
    sink: Arc<dyn WalSink>,
    options: ReceiveOptions,
    events: &(dyn Fn(WalEvent) + Send + Sync),
    stop: impl Future<Output = ()> + Send,
) -> Result<Ended, ReceiveError> {
    let endpoint = target.endpoint().map_err(|source| ReceiveError::Target { source })?;
    let slot = target.slot().map_err(|source| ReceiveError::Target { source })?;
    let mut stop = std::pin::pin!(stop);
    let mut gap_from: Option<Place> = None;
    let mut histories = BTreeSet::new();
    let mut starts = 0;
    loop {
        starts += 1;
        let opened = Receiver::open(&endpoint, slot, Arc::clone(&sink), &options, &mut histories, events);
        let mut receiver = tokio::select! {
            opened = opened => opened?,
            () = &mut stop => return Err(ReceiveError::Stopped),
        };
        let mut place = receiver.place(gap_from.take()).await?;
        let ended = loop {
            events(WalEvent::Started {
                system: receiver.identity.system,
                timeline: place.timeline,
                at: place.at,
                segment_bytes: receiver.segment_bytes,
            });
            let mut has_begun = false;
            match receiver.follow(place, &mut has_begun, stop.as_mut()).await {
                Ok(Next::Stopped(at)) => {
                    return Ok(Ended {
                        system: receiver.identity.system,
                        timeline: place.timeline,
                        at,
                    });
                }
                Ok(Next::Timeline(timeline, at)) => place = receiver.switch(place.timeline, timeline, at).await?,
                Err(error) => break (error, has_begun),
            }
        };
        match ended {
            (error, false) if starts < STARTS_MAX && error.is_wal_removed() => gap_from = Some(place),
            (error, false) if starts < STARTS_MAX && error.is_slot_invalidated() => {
                receiver.renew_slot(error.to_string()).await?;
            }
            (error, _) => return Err(error),
        }
    }
}

/// Why following a timeline ended.
enum Next {
    Stopped(Lsn),
    /// It goes on on this one, which begins here.
    Timeline(u32, Lsn),
}

struct Receiver<'a> {
    endpoint: &'a Endpoint,
    connection: Connection,
    slot: &'a str,
    /// The oldest WAL that the slot holds back, where it was there before.
    restart: Option<Lsn>,
    /// The slot was made now: where it begins.
    made: Option<Lsn>,
    /// Why, where there was one before.
    lost: &'static str,
    identity: Identity,
    /// Its clock does not tell what was committed.
    is_standby: bool,
    segment_bytes: u32,
    /// The server's timelines, the oldest first.
    spans: Vec<Span>,
    /// The histories that were put.
    histories: &'a mut BTreeSet<(u32, String)>,
    sink: Arc<dyn WalSink>,
    interval: Duration,
    events: &'a (dyn Fn(WalEvent) + Send + Sync),
}

impl<'a> Receiver<'a> {
    async fn open(
        endpoint: &'a Endpoint,
        slot: &'a str,
        sink: Arc<dyn WalSink>,
        options: &ReceiveOptions,
        histories: &'a mut BTreeSet<(u32, String)>,
        events: &'a (dyn Fn(WalEvent) + Send + Sync),
    ) -> Result<Self, ReceiveError> {
        let fail = |source| ReceiveError::server("connect for WAL", endpoint, source);
        let mut connection = Connection::open(endpoint).await.map_err(fail)?;
        let fail = |source| ReceiveError::server("ask for the state", endpoint, source);
        commands::version(&connection).map_err(fail)?;
        let identity = answer(commands::identify(&mut connection)).await.map_err(fail)?;
        if let Some(expected) = options.expected_system.filter(|expected| *expected != identity.system) {
            return Err(ReceiveError::OtherSystem {
                server: endpoint.to_string(),
                expected,
                found: identity.system,
            });
        }
        let is_standby = answer(commands::is_standby(&mut connection)).await.map_err(fail)?;
        let segment_bytes = answer(commands::segment_bytes(&mut connection)).await.map_err(fail)?;
        let mut receiver = Self {
            endpoint,
            connection,
            slot,
            restart: None,
            made: None,
            lost: "the server has no such slot any more, though WAL was received before",
            identity,
            is_standby,
            segment_bytes,
            spans: resume::spans(identity.timeline, None, segment_bytes),
            histories,
            sink,
            interval: options.interval,
            events,
        };
        if identity.timeline > 1 {
            receiver.put_histories().await?;
        }
        match answer(commands::slot(&mut receiver.connection, slot)).await {
            Ok(Some(found)) if found.restart.is_some() => receiver.restart = found.restart,
            // One that holds back nothing was given up by the server, or never did.
            Ok(Some(_)) => {
                answer(commands::drop_slot(&mut receiver.connection, slot))
                    .await
                    .map_err(|source| receiver.failed(source))?;
                receiver.make_slot().await?;
                receiver.lost = "the server had given the slot up: it held back more than max_slot_wal_keep_size";
            }
            Ok(None) => receiver.make_slot().await?,
            Err(source) => return Err(receiver.failed(source)),
        }
        Ok(receiver)
    }

    /// Stores the history of the server's timeline, and those of the ones before it that the server still has.
    async fn put_histories(&mut self) -> Result<(), ReceiveError> {
        let current = self.identity.timeline;
        let (text, history) = answer(commands::history(&mut self.connection, current))
            .await
            .map_err(|source| self.failed(source))?;
        self.put_history(current, &text).await?;
        self.spans = resume::spans(current, Some(&history), self.segment_bytes);
        for ancestor in history.ancestors.iter().filter(|ancestor| ancestor.timeline > 1) {
            match answer(commands::history(&mut self.connection, ancestor.timeline)).await {
                Ok((text, _)) => self.put_history(ancestor.timeline, &text).await?,
                // The newest one tells all that is needed.
                Err(WireError::Server { .. }) => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(())
    }

    /// Stores a history that was not stored before: every time it would be another object.
    async fn put_history(&mut self, timeline: u32, text: &str) -> Result<(), ReceiveError> {
        let history = (timeline, text.to_owned());
        if self.histories.contains(&history) {
            return Ok(());
        }
        let put = self.sink.put_history(self.identity.system, timeline, text).await;
        put.map_err(|source| ReceiveError::Store { source })?;
        self.histories.insert(history);
        Ok(())
    }

    async fn make_slot(&mut self) -> Result<(), ReceiveError> {
        let made = answer(commands::create_slot(&mut self.connection, self.slot))
            .await
            .map_err(|source| self.failed(source))?;
        let begin = made.restart.unwrap_or(self.identity.at);
        self.made = Some(begin);
        // It may have written on since it was asked where it is: it is not behind what it says itself.
        self.identity.at = self.identity.at.max(begin);
        Ok(())
    }

    /// Makes a slot anew that the server has given up.
    async fn renew_slot(&mut self, reason: String) -> Result<(), ReceiveError> {
        self.connection = Connection::open(self.endpoint)
            .await
            .map_err(|source| self.failed(source))?;
        answer(commands::drop_slot(&mut self.connection, self.slot))
            .await
            .map_err(|source| self.failed(source))?;
        self.make_slot().await?;
        (self.events)(WalEvent::SlotLost {
            slot: self.slot.to_owned(),
            reason,
            timeline: self.identity.timeline,
        });
        Ok(())
    }

    /// Where to go on; `unavailable` is where that was tried in vain.
    async fn place(&mut self, unavailable: Option<Place>) -> Result<Place, ReceiveError> {
        let strange = || ReceiveError::server("read the timelines", self.endpoint, WireError::protocol("a history"));
        let held = self.restart.or(self.made).unwrap_or(self.identity.at);
        if let Some(before) = unavailable {
            // What the slot holds back is there; if that is what was tried, only what is written now is.
            let from = if resume::segment_begin(held, self.segment_bytes) > before.at {
                held
            } else {
                self.identity.at
            };
            let place = resume::fresh(&self.spans, from, self.segment_bytes).ok_or_else(strange)?;
            if place.at <= before.at {
                return Err(ReceiveError::Unavailable { at: before.at });
            }
            (self.events)(WalEvent::Gap {
                timeline: before.timeline,
                from: before.at,
                to: place.at,
            });
            return Ok(place);
        }
        let mut newer: Option<Span> = None;
        let mut found = None;
        let mut has_stored = false;
        for span in resume::up_to(&self.spans, held).iter().rev() {
            let pieces = self.pieces(span.timeline).await?;
            has_stored |= !pieces.is_empty();
            found = resume::resume(*span, &pieces, held);
            if span.end.is_none() {
                // Names are not believed, but what was stored twice with different bytes could not be used.
                let named = resume::named_end(&pieces, found.map_or(held, |place| place.at));
                if named > self.identity.at {
                    return Err(ReceiveError::OtherHistory {
                        server: self.endpoint.to_string(),
                        timeline: span.timeline,
                        at: named,
                        source: None,
                    });
                }
            }
            if let (Some(place), Some(end), Some(newer)) = (found, span.end, newer)
                && place.at >= end
            {
                // All of it is in the vault, and nothing of the next one.
                found = Some(Place {
                    timeline: newer.timeline,
                    at: newer.begin,
                });
            }
            if found.is_some() {
                break;
            }
            newer = Some(*span);
        }
        if has_stored && self.made.is_some() {
            (self.events)(WalEvent::SlotLost {
                slot: self.slot.to_owned(),
                reason: self.lost.to_owned(),
                timeline: self.identity.timeline,
            });
        }
        found
            .or_else(|| resume::fresh(&self.spans, held, self.segment_bytes))
            .ok_or_else(strange)
    }

    async fn pieces(&self, timeline: u32) -> Result<Vec<(Lsn, Lsn)>, ReceiveError> {
        let pieces = self.sink.pieces(self.identity.system, timeline).await;
        let pieces = pieces.map_err(|source| ReceiveError::Store { source })?;
        Ok(pieces.iter().map(|piece| (piece.from, piece.to)).collect())
    }

    /// Goes over to the next timeline.
    async fn switch(&mut self, old: u32, timeline: u32, at: Lsn) -> Result<Place, ReceiveError> {
        self.identity = answer(commands::identify(&mut self.connection))
            .await
            .map_err(|source| self.failed(source))?;
        // It may have been promoted.
        self.is_standby = answer(commands::is_standby(&mut self.connection))
            .await
            .map_err(|source| self.failed(source))?;
        self.put_histories().await?;
        (self.events)(WalEvent::Switched {
            from: old,
            to: timeline,
            at,
        });
        Ok(Place {
            timeline,
            at: resume::segment_begin(at, self.segment_bytes),
        })
    }

    /// Follows one timeline. What had come is stored however it ends.
    async fn follow(
        &mut self,
        place: Place,
        has_begun: &mut bool,
        stop: std::pin::Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<Next, ReceiveError> {
        let timeline = place.timeline;
        let command = format!(
            "START_REPLICATION SLOT {} PHYSICAL {} TIMELINE {timeline}",
            self.slot, place.at
        );
        answer(streaming::start(&mut self.connection, &command))
            .await
            .map_err(|source| self.refused(timeline, place.at, source))?;
        let sink = Arc::clone(&self.sink);
        let at = place.at;
        let mut storing = Storing::create(sink, self.identity.system, self.segment_bytes, place);
        let ended = self.stream(timeline, &mut storing, stop).await;
        *has_begun = storing.received() > at;
        let drained = self.drain(timeline, &mut storing).await;
        match ended {
            Ok(next) => {
                drained?;
                match next {
                    Streaming::Stopped => {
                        // The server may be gone as well; what counts is durable.
                        let _ = timeout(DRAIN_WITHIN, self.report(&storing, false)).await;
                        Ok(Next::Stopped(storing.durable()))
                    }
                    Streaming::TimelineEnded => self.next_timeline(&storing).await,
                }
            }
            Err(error) => {
                if let Err(more) = drained {
                    tracing::warn!(error = %more, "what had come of the WAL is not stored; it comes again");
                }
                Err(match error {
                    ReceiveError::Server { source, .. } if !*has_begun => self.refused(timeline, at, source),
                    error => error,
                })
            }
        }
    }

    async fn stream(
        &mut self,
        timeline: u32,
        storing: &mut Storing,
        mut stop: std::pin::Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<Streaming, ReceiveError> {
        let report_every = self.interval.clamp(REPORT_EVERY.0, REPORT_EVERY.1);
        let mut due: Option<Instant> = None;
        let mut next_report = Instant::now();
        let mut heard = Instant::now();
        let mut server_end = storing.received();
        let mut quiet: Option<(Instant, DateTime<Utc>)> = None;
        // A standby that lags or is cut off has nothing more to send, and another clock than that of what it sends.
        let mut commits = self.is_standby.then(CommitTimes::default);
        loop {
            let wake = due.map_or(next_report, |due| due.min(next_report));
            tokio::select! {
                biased;
                () = &mut stop => return Ok(Streaming::Stopped),
                settled = storing.settled(), if storing.is_busy() => {
                    self.tell(timeline, settled.map_err(|source| ReceiveError::Store { source })?);
                    self.report(storing, false).await?;
                }
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if due.is_some_and(|due| due <= now) {
                        if storing.may_cut() {
                            storing.cut().map_err(|source| self.damaged(source))?;
                            due = None;
                        } else {
                            due = Some(now + self.interval);
                        }
                    }
                    if next_report <= now {
                        if !storing.is_full() && now.duration_since(heard) > SILENCE_MAX {
                            let silent = WireError::io(std::io::ErrorKind::TimedOut, "the server does not answer (timeout expired)");
                            return Err(self.failed(silent));
                        }
                        next_report = now + report_every;
                        let bytes = server_end.0.saturating_sub(storing.durable().0);
                        (self.events)(WalEvent::Behind { bytes });
                        self.report(storing, true).await?;
                    }
                }
                message = self.connection.message(), if !storing.is_full() => {
                    heard = Instant::now();
                    let streamed = message.and_then(streaming::parse).map_err(|source| self.failed(source))?;
                    match streamed {
                        Streamed::Wal { from, bytes, server_end: end, server_time } => {
                            quiet = None;
                            let to = Lsn(from.0 + bytes.len() as u64);
                            server_end = end.max(to);
                            // A timeline that was left says nothing of what is committed now.
                            let level_at = match &mut commits {
                                Some(commits) => {
                                    commits.read(from, &bytes);
                                    commits.last()
                                }
                                None => (to >= end && timeline == self.identity.timeline).then_some(server_time),
                            };
                            storing.push(from, &bytes, level_at).map_err(|source| self.damaged(source))?;
                            due = storing.has_unsent().then(|| due.unwrap_or(heard + self.interval));
                        }
                        Streamed::Keepalive { sent, server_time, wants_reply } => {
                            server_end = server_end.max(sent);
                            let is_all = sent == storing.durable() && sent == storing.received();
                            match quiet {
                                Some((since, time)) if is_all && heard.duration_since(since) >= IDLE_AFTER => {
                                    (self.events)(WalEvent::Idle {
                                        timeline,
                                        to: sent,
                                        server_time: commits.is_none().then_some(time),
                                    });
                                    quiet = Some((heard, server_time));
                                }
                                None if is_all => quiet = Some((heard, server_time)),
                                _ => {}
                            }
                            if wants_reply {
                                self.report(storing, false).await?;
                            }
                        }
                        Streamed::End => return Ok(Streaming::TimelineEnded),
                    }
                }
            }
        }
    }

    /// Stores what had come, all of it.
    async fn drain(&mut self, timeline: u32, storing: &mut Storing) -> Result<(), ReceiveError> {
        storing.cut().map_err(|source| self.damaged(source))?;
        let until = Instant::now() + DRAIN_WITHIN;
        while storing.is_busy() {
            let settled = tokio::time::timeout_at(until, storing.settled()).await;
            let settled = settled.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            self.tell(timeline, settled.map_err(|source| ReceiveError::Store { source })?);
        }
        Ok(())
    }

    /// Ends the stream of a timeline that has ended; the server says which one comes next.
    async fn next_timeline(&mut self, storing: &Storing) -> Result<Next, ReceiveError> {
        self.report(storing, false).await?;
        self.connection.put_copy_done();
        let rows = async {
            self.connection.flush().await?;
            self.connection.rest().await
        };
        let rows = answer(rows).await.map_err(|source| self.failed(source))?;
        let next = || {
            let row = rows.first()?;
            Some((
                commands::text(row, 0)?.parse().ok()?,
                commands::text(row, 1)?.parse().ok()?,
            ))
        };
        match next() {
            Some((timeline, at)) => Ok(Next::Timeline(timeline, at)),
            // The server is stopping.
            None => Err(self.failed(WireError::io(
                std::io::ErrorKind::UnexpectedEof,
                "server closed the connection unexpectedly",
            ))),
        }
    }

    fn tell(&self, timeline: u32, settled: Vec<super::storing::Stored>) {
        for stored in settled {
            (self.events)(WalEvent::Stored {
                timeline,
                from: stored.from,
                to: stored.to,
                server_time: stored.server_time,
            });
        }
    }

    async fn report(&mut self, storing: &Storing, wants_reply: bool) -> Result<(), ReceiveError> {
        let report = Report {
            received: storing.received(),
            durable: storing.durable(),
            wants_reply,
        };
        streaming::put_report(&mut self.connection, report, Utc::now());
        self.connection.flush().await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: WireError) -> ReceiveError {
        ReceiveError::server("receive WAL", self.endpoint, source)
    }

    fn refused(&self, timeline: u32, at: Lsn, source: WireError) -> ReceiveError {
        if source.server().is_some_and(|error| error.is_other_history()) {
            return ReceiveError::OtherHistory {
                server: self.endpoint.to_string(),
                timeline,
                at,
                source: Some(source),
            };
        }
        self.failed(source)
    }

    fn damaged(&self, source: WalDamage) -> ReceiveError {
        ReceiveError::Damaged {
            server: self.endpoint.to_string(),
            source,
        }
    }
}

/// What the server answers, unless it says nothing for too long.
async fn answer<T>(question: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    let silent = || {
        let message = "the server does not answer within 30 s (timeout expired)";
        WireError::io(std::io::ErrorKind::TimedOut, message)
    };
    timeout(ANSWER_WITHIN, question).await.unwrap_or_else(|_| Err(silent()))
}

/// Why a stream ended.
enum Streaming {
    Stopped,
    TimelineEnded,
}
