//! What a receiver has seen and the catalog has not been told: a few facts, however long the catalog is away.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use strongroom_catalog::WalProgress;
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

/// Silence of so long is trouble, whether or not an error says why.
const SILENCE_MAX: Duration = Duration::from_secs(45);

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
    progress: Option<WalProgress>,
    behind_bytes: Option<u64>,
    alerts: Vec<(&'static str, String)>,
    /// The server's clock when the vault last had everything.
    level_at: Option<DateTime<Utc>>,
    /// Why receiving did not work the last time.
    error: Option<String>,
    /// When something was stored, or the server had nothing.
    well_at: Instant,
}

impl Default for Received {
    fn default() -> Self {
        let state = State {
            system: None,
            timeline: None,
            ranges: Vec::new(),
            idle: None,
            progress: None,
            behind_bytes: None,
            alerts: Vec::new(),
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

    fn is_well_at(&mut self, at: IdleAt) {
        self.error = None;
        self.well_at = Instant::now();
        self.is_at(at);
    }

    fn is_at(&mut self, (timeline, to, time): IdleAt) {
        if let Some(system_identifier) = self.system {
            self.progress = Some(WalProgress {
                system_identifier,
                timeline,
                received_to: to,
                server_time: time,
                behind_bytes: self.behind_bytes,
            });
        }
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
            WalEvent::Started { system, timeline, at, .. } => {
                tracing::info!(%system, timeline, %at, "receiving WAL");
                state.system = Some(system);
                // It was left while nobody followed it, and all of it was here.
                let before = state.timeline.replace(timeline);
                if let Some(before) = before.filter(|before| *before < timeline) {
                    state.alert_timeline(before, timeline, at);
                }
                // It was reached, no more.
                let time = state.level_at.unwrap_or_else(Utc::now);
                state.is_at((timeline, at, time));
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
                state.is_well_at((timeline, to, server_time));
                self.stored.notify_one();
            }
            WalEvent::Idle {
                timeline,
                to,
                server_time,
            } => {
                state.level_at = Some(server_time);
                state.idle = Some((timeline, to, server_time));
                state.is_well_at((timeline, to, server_time));
            }
            WalEvent::Switched { from, to, at } => {
                tracing::info!(from, to, %at, "the cluster is on a new timeline");
                state.timeline = Some(to);
                state.alert_timeline(from, to, at);
            }
            WalEvent::Gap { timeline, from, to } => state.alerts.push((
                MISSING,
                format!(
                    "the server no longer had its WAL from {from} to {to} (timeline {timeline}), and the vault never got it: nothing \
                     between can be recovered; a new base backup is asked for by itself"
                ),
            )),
            WalEvent::SlotLost { slot, reason } => state.alerts.push((
                SLOT_LOST,
                format!(
                    "replication slot {slot} was lost and has been made anew: {reason}; see who dropped it, or raise \
                     max_slot_wal_keep_size where the server gave it up"
                ),
            )),
            WalEvent::Behind { bytes } => state.behind_bytes = Some(bytes),
            _ => {}
        }
    }

    /// Ready when something has been stored since this was ready last.
    pub(crate) async fn news(&self) {
        self.stored.notified().await;
    }

    /// An earlier receiver had everything at this time of the server's.
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

    /// For how long nothing has come of it, where that is too long.
    pub(crate) fn silent_for(&self) -> Option<Duration> {
        Some(self.state().well_at.elapsed()).filter(|silence| *silence >= SILENCE_MAX)
    }

    pub(crate) fn system(&self) -> Option<SystemIdentifier> {
        self.state().system
    }

    pub(crate) fn progress(&self) -> Option<WalProgress> {
        self.state().progress
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
        assert_eq!(received.progress().map(|progress| progress.received_to), Some(Lsn(5)));
        received.take(stored(5, 9, Some(3)));
        assert_eq!(received.error(), None);
        assert!(received.silent_for().is_none());
        received.take(WalEvent::SlotLost {
            slot: "s".to_owned(),
            reason: "dropped".to_owned(),
        });
        assert_eq!(received.take_alerts().len(), 1);
        assert_eq!(received.take_alerts().len(), 0);
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
