//! What a receiver has seen and the catalog has not been told: a few facts, however long the catalog is away.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use strongroom_catalog::{WalNews, WalProgress};
use strongroom_connectors::postgres::physical::WalEvent;
use strongroom_proto::wal::{Lsn, SystemIdentifier, WalRange};
use tokio::sync::Notify;

use crate::receiver::IdleAt;

/// What happened once, and is right again when a base backup is complete.
pub(crate) const UNTIL_NEXT_BASE: [&str; 5] = [TIMELINE, MISSING, SLOT_LOST, TWO_HISTORIES, "wal_two_versions"];
/// Two servers went on upon a timeline of the same number.
pub(crate) const TWO_HISTORIES: &str = "wal_two_histories";
const TIMELINE: &str = "wal_timeline";
const MISSING: &str = "wal_missing";
const SLOT_LOST: &str = "wal_slot_lost";

/// Silence of so long is trouble, whether or not an error says why; and at least so long after WAL had to be stored.
const SILENCE_MAX: Duration = Duration::from_secs(45);
const SILENCE_AFTER_INTERVAL: Duration = Duration::from_secs(30);

/// Filled by the receiver, emptied by who tells the catalog.
pub(crate) struct Received {
    state: Mutex<State>,
    stored: Notify,
}

struct State {
    system: Option<SystemIdentifier>,
    /// The timeline it is on, or was when an earlier receiver followed it.
    timeline: Option<u32>,
    /// Durable ranges; those that touch are one.
    ranges: Vec<WalRange>,
    idle: Option<IdleAt>,
    reached: Option<Reached>,
    /// How often something was stored, or the server had nothing.
    well_count: u64,
    behind_bytes: Option<u64>,
    alerts: Vec<(&'static str, String)>,
    /// A slot that a server on a newer timeline never had, until it shows whether WAL is missing.
    lost_slot: Option<LostSlot>,
    /// Until when the vault has everything by the server's clock.
    level_at: Option<DateTime<Utc>>,
    /// Why receiving did not work the last time.
    error: Option<String>,
    /// When something was stored, or the server had nothing; the claim's beginning before that.
    well_at: Instant,
}

/// A place, and until when the vault has everything before it.
#[derive(Debug, Clone, Copy)]
struct Reached {
    timeline: u32,
    to: Lsn,
    time: Option<DateTime<Utc>>,
}

struct LostSlot {
    slot: String,
    reason: String,
}

impl LostSlot {
    fn alert(self) -> (&'static str, String) {
        let Self { slot, reason } = self;
        let message = format!(
            "replication slot {slot} was lost and has been made anew: {reason}; see who dropped it, or raise \
             max_slot_wal_keep_size where the server gave it up"
        );
        (SLOT_LOST, message)
    }
}

/// Whether receiving works, as far as one claim knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Something came of it, not long ago.
    Well,
    /// Nothing has, and it has not tried for long.
    Unknown,
    /// Nothing has for so long, which is too long.
    Silent(Duration),
}

impl Default for Received {
    fn default() -> Self {
        let state = State {
            system: None,
            timeline: None,
            ranges: Vec::new(),
            idle: None,
            reached: None,
            well_count: 0,
            behind_bytes: None,
            alerts: Vec::new(),
            lost_slot: None,
            level_at: None,
            error: None,
            well_at: Instant::now(),
        };
        Self {
            state: Mutex::new(state),
            stored: Notify::new(),
        }
    }
}

impl State {
    fn alert_timeline(&mut self, from: u32, to: u32, at: Lsn) {
        let message = format!(
            "the cluster left timeline {from} and goes on upon {to} (followed from {at}): a standby was promoted, or a recovery ended"
        );
        self.alerts.push((TIMELINE, message));
    }

    /// What the old slot held back is gone.
    fn alert_lost_slot(&mut self) {
        self.alerts.extend(self.lost_slot.take().map(LostSlot::alert));
    }

    fn is_well_at(&mut self, reached: Reached) {
        if let Some(LostSlot { slot, reason }) = self.lost_slot.take() {
            tracing::info!(
                slot,
                reason,
                "the replication slot was made anew after a failover; the server still had all WAL that the vault lacked"
            );
        }
        self.error = None;
        self.well_at = Instant::now();
        self.well_count += 1;
        self.reached = Some(reached);
    }
}

impl Received {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves a half-made state behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self, event: WalEvent) {
        let mut state = self.state();
        match event {
            WalEvent::Started {
                system, timeline, at, ..
            } => {
                tracing::info!(%system, timeline, %at, "receiving WAL");
                state.system = Some(system);
                // It was left while nobody followed it, and all of it was here.
                let before = state.timeline.replace(timeline);
                if let Some(before) = before.filter(|before| *before < timeline) {
                    state.alert_timeline(before, timeline, at);
                }
                // It was reached, no more.
                let time = state.level_at;
                state.reached = Some(Reached { timeline, to: at, time });
            }
            WalEvent::Stored {
                timeline,
                from,
                to,
                server_time,
            } => {
                // While the stream catches up, nobody knows until when the range holds everything.
                state.level_at = server_time.or(state.level_at);
                let server_time = state.level_at.unwrap_or(DateTime::UNIX_EPOCH);
                match state.ranges.last_mut() {
                    Some(last) if last.timeline == timeline && last.to == from => {
                        last.to = to;
                        last.last_time = last.last_time.max(server_time);
                    }
                    _ => state.ranges.push(WalRange {
                        timeline,
                        from,
                        to,
                        first_time: server_time,
                        last_time: server_time,
                    }),
                }
                let time = state.level_at;
                state.is_well_at(Reached { timeline, to, time });
                self.stored.notify_one();
            }
            WalEvent::Idle {
                timeline,
                to,
                server_time,
            } => {
                // A standby has nothing more to send, and does not know what was committed since.
                if let Some(time) = server_time {
                    state.level_at = server_time;
                    state.idle = Some((timeline, to, time));
                }
                let time = state.level_at;
                state.is_well_at(Reached { timeline, to, time });
            }
            WalEvent::Switched { from, to, at } => {
                tracing::info!(from, to, %at, "the cluster is on a new timeline");
                state.timeline = Some(to);
                state.alert_timeline(from, to, at);
            }
            WalEvent::Gap { timeline, from, to } => {
                state.alert_lost_slot();
                state.alerts.push((
                    MISSING,
                    format!(
                        "the server no longer had its WAL from {from} to {to} (timeline {timeline}), and the vault never got it: nothing \
                         between can be recovered; a new base backup is asked for by itself"
                    ),
                ));
            }
            WalEvent::SlotLost { slot, reason, timeline } => {
                let lost = LostSlot { slot, reason };
                // A server that was promoted never had the slot. Whether WAL is missing shows when it is asked for.
                if state.timeline.is_some_and(|known| known < timeline) {
                    state.lost_slot = Some(lost);
                } else {
                    state.alerts.push(lost.alert());
                }
            }
            WalEvent::Behind { bytes } => state.behind_bytes = Some(bytes),
            _ => {}
        }
    }

    /// Ready when something has been stored since this was ready last.
    pub(crate) async fn news(&self) {
        self.stored.notified().await;
    }

    /// An earlier receiver had everything until this time of the server's.
    pub(crate) fn was_level(&self, at: Option<DateTime<Utc>>) {
        let mut state = self.state();
        state.level_at = state.level_at.max(at);
    }

    /// An earlier receiver followed this timeline.
    pub(crate) fn was_on(&self, timeline: Option<u32>) {
        let mut state = self.state();
        state.timeline = state.timeline.or(timeline);
    }

    pub(crate) fn failed(&self, message: String) {
        self.state().error = Some(message);
    }

    /// Why receiving did not work the last time, while it has not worked since.
    pub(crate) fn error(&self) -> Option<String> {
        self.state().error.clone()
    }

    /// Whether anything comes of it, where WAL is stored after this interval.
    pub(crate) fn health(&self, interval: Duration) -> Health {
        let state = self.state();
        let silence = state.well_at.elapsed();
        match state.well_count {
            _ if silence >= SILENCE_MAX.max(interval + SILENCE_AFTER_INTERVAL) => Health::Silent(silence),
            0 => Health::Unknown,
            _ => Health::Well,
        }
    }

    pub(crate) fn system(&self) -> Option<SystemIdentifier> {
        self.state().system
    }

    /// How far it is, where that is known; with how often it was well, as `told` is of what the catalog was told last.
    pub(crate) fn progress(&self, told: u64) -> (Option<WalProgress>, u64) {
        let state = self.state();
        let progress = state
            .system
            .zip(state.reached)
            .map(|(system_identifier, reached)| WalProgress {
                system_identifier,
                timeline: reached.timeline,
                received_to: reached.to,
                server_time: reached.time,
                behind_bytes: state.behind_bytes,
                news: if state.well_count == told {
                    WalNews::None
                } else {
                    WalNews::Progressed
                },
            });
        (progress, state.well_count)
    }

    pub(crate) fn take_ranges(&self) -> Vec<WalRange> {
        std::mem::take(&mut self.state().ranges)
    }

    /// Gives ranges back that could not be told.
    pub(crate) fn put_back(&self, ranges: impl Iterator<Item = WalRange>) {
        self.state().ranges.splice(0..0, ranges);
    }

    pub(crate) fn take_idle(&self) -> Option<IdleAt> {
        self.state().idle.take()
    }

    pub(crate) fn alert(&self, kind: &'static str, message: String) {
        self.state().alerts.push((kind, message));
    }

    pub(crate) fn take_alerts(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.state().alerts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap_or_default()
    }

    fn stored(from: u64, to: u64, server_time: Option<i64>) -> WalEvent {
        WalEvent::Stored {
            timeline: 1,
            from: Lsn(from),
            to: Lsn(to),
            server_time: server_time.map(at),
        }
    }

    #[test]
    fn a_stream_that_catches_up_moves_no_window_by_the_clock() {
        let received = Received::default();
        received.was_level(Some(at(100)));
        received.take(stored(0, 10, None));
        received.take(stored(10, 20, None));
        let ranges = received.take_ranges();
        assert_eq!(ranges.len(), 1);
        assert_eq!(
            (ranges[0].from, ranges[0].to, ranges[0].last_time),
            (Lsn(0), Lsn(20), at(100))
        );
        received.take(stored(20, 30, Some(500)));
        received.put_back(ranges.into_iter());
        let lasts: Vec<_> = received.take_ranges().iter().map(|range| range.last_time).collect();
        assert_eq!(lasts, [at(100), at(500)]);
        // What comes after it is as old at least, and a hole is no part of a range.
        received.take(stored(40, 50, None));
        assert_eq!(received.take_ranges()[0].last_time, at(500));
    }

    #[test]
    fn trouble_ends_when_something_comes_and_not_when_it_begins_again() {
        let received = Received::default();
        received.failed("no answer".to_owned());
        received.take(WalEvent::Started {
            system: SystemIdentifier(7),
            timeline: 1,
            at: Lsn(5),
            segment_bytes: 1 << 24,
        });
        assert_eq!(received.error().as_deref(), Some("no answer"));
        assert_eq!(
            received.health(Duration::ZERO),
            Health::Unknown,
            "a beginning clears no alert"
        );
        let told = |told| {
            let (progress, count) = received.progress(told);
            let progress = progress.unwrap();
            (progress.received_to, progress.server_time, progress.news, count)
        };
        assert_eq!(
            told(0),
            (Lsn(5), None, WalNews::None, 0),
            "nobody knows until when it is held"
        );
        received.take(stored(5, 9, None));
        assert_eq!(received.error(), None);
        assert_eq!(received.health(Duration::ZERO), Health::Well);
        assert_eq!(told(0), (Lsn(9), None, WalNews::Progressed, 1));
        assert_eq!(told(1).2, WalNews::None);
        received.take(stored(9, 12, Some(3)));
        assert_eq!(told(1), (Lsn(12), Some(at(3)), WalNews::Progressed, 2));
    }

    #[test]
    fn a_standby_that_has_nothing_more_moves_no_time() {
        let idle = |server_time| WalEvent::Idle {
            timeline: 1,
            to: Lsn(9),
            server_time,
        };
        let received = Received::default();
        received.take(WalEvent::Started {
            system: SystemIdentifier(7),
            timeline: 1,
            at: Lsn(9),
            segment_bytes: 1 << 24,
        });
        received.was_level(Some(at(3)));
        received.take(idle(None));
        assert_eq!(
            (received.health(Duration::ZERO), received.take_idle()),
            (Health::Well, None)
        );
        assert_eq!(received.progress(0).0.unwrap().server_time, Some(at(3)));
        received.take(idle(Some(at(5))));
        assert_eq!(received.take_idle(), Some((1, Lsn(9), at(5))));
    }

    #[test]
    fn a_slot_that_was_lost_is_an_alert_but_where_a_failover_lost_no_wal() {
        let lost_on = |timeline| WalEvent::SlotLost {
            slot: "s".to_owned(),
            reason: "dropped".to_owned(),
            timeline,
        };
        let lost = || lost_on(2);
        let gap = || WalEvent::Gap {
            timeline: 1,
            from: Lsn(9),
            to: Lsn(20),
        };
        let kinds = |received: &Received| -> Vec<&str> {
            let alerts = received.take_alerts();
            alerts.into_iter().map(|(kind, _)| kind).collect()
        };
        let unknown = Received::default();
        unknown.take(lost());
        assert_eq!(kinds(&unknown), [SLOT_LOST], "nobody knows of a failover");

        let received = Received::default();
        received.was_on(Some(1));
        received.take(lost_on(1));
        assert_eq!(kinds(&received), [SLOT_LOST], "there was no failover");
        received.take(lost());
        assert_eq!(kinds(&received), [""; 0], "nothing is known to be missing");
        // The connection fails in between: still nothing is known.
        received.failed("no answer".to_owned());
        received.take(gap());
        assert_eq!(kinds(&received), [SLOT_LOST, MISSING]);
        received.take(stored(20, 30, Some(3)));
        assert_eq!(kinds(&received), [""; 0]);

        received.take(lost());
        received.take(stored(30, 40, Some(4)));
        received.take(gap());
        assert_eq!(
            kinds(&received),
            [MISSING],
            "the slot was lost before, and nothing with it"
        );
        received.take(lost());
        received.take(WalEvent::Idle {
            timeline: 1,
            to: Lsn(40),
            server_time: Some(at(5)),
        });
        received.take(gap());
        assert_eq!(kinds(&received), [MISSING]);
    }

    #[test]
    fn a_new_timeline_is_told_once_also_where_nobody_saw_the_old_one_end() {
        let started = |timeline| WalEvent::Started {
            system: SystemIdentifier(7),
            timeline,
            at: Lsn(5),
            segment_bytes: 1 << 24,
        };
        let received = Received::default();
        received.was_on(Some(1));
        received.take(started(1));
        assert_eq!(received.take_alerts(), []);
        received.take(started(2));
        received.was_on(Some(1));
        received.take(started(2));
        let alerts = received.take_alerts();
        assert_eq!(alerts.len(), 1);
        assert!(alerts[0].1.contains("left timeline 1 and goes on upon 2"), "{alerts:?}");
        received.take(WalEvent::Switched {
            from: 2,
            to: 3,
            at: Lsn(9),
        });
        received.take(started(3));
        assert_eq!(received.take_alerts().len(), 1);
    }
}
