//! What a receiver has seen and the catalog has not been told: a few facts, however long the catalog is away.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use strongroom_catalog::WalProgress;
use strongroom_connectors::postgres::physical::WalEvent;
use strongroom_proto::wal::{SystemIdentifier, WalRange};

use crate::receiver::IdleAt;

/// What happened once, and is right again when a base backup is complete.
pub(crate) const UNTIL_NEXT_BASE: [&str; 3] = [TIMELINE, MISSING, SLOT_LOST];
const TIMELINE: &str = "wal_timeline";
const MISSING: &str = "wal_missing";
const SLOT_LOST: &str = "wal_slot_lost";

/// Filled by the receiver, emptied by who tells the catalog.
#[derive(Default)]
pub(crate) struct Received(Mutex<State>);

#[derive(Default)]
struct State {
    system: Option<SystemIdentifier>,
    /// Durable ranges; those that touch are one.
    ranges: Vec<WalRange>,
    idle: Option<IdleAt>,
    progress: Option<WalProgress>,
    behind_bytes: Option<u64>,
    alerts: Vec<(&'static str, String)>,
    /// Why receiving does not work, and since when.
    trouble: Option<(String, Instant)>,
}

impl State {
    fn is_at(&mut self, (timeline, to, time): IdleAt) {
        self.trouble = None;
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self, event: WalEvent) {
        let mut state = self.state();
        match event {
            WalEvent::Started { system, timeline, at, .. } => {
                tracing::info!(%system, timeline, %at, "receiving WAL");
                state.system = Some(system);
                // It was reached: what is behind `at` is durable, or not there any more.
                state.is_at((timeline, at, chrono::Utc::now()));
            }
            WalEvent::Stored {
                timeline,
                from,
                to,
                server_time,
            } => {
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
                state.is_at((timeline, to, server_time));
            }
            WalEvent::Idle {
                timeline,
                to,
                server_time,
            } => {
                state.idle = Some((timeline, to, server_time));
                state.is_at((timeline, to, server_time));
            }
            WalEvent::Switched { from, to, at } => {
                tracing::info!(from, to, %at, "the cluster is on a new timeline");
                state.alerts.push((
                    TIMELINE,
                    format!("the cluster left timeline {from} at {at} and goes on upon {to}: a standby was promoted, or a recovery ended"),
                ));
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

    pub(crate) fn failed(&self, message: String) {
        let mut state = self.state();
        let since = state.trouble.take().map_or_else(Instant::now, |(_, since)| since);
        state.trouble = Some((message, since));
    }

    pub(crate) fn trouble(&self) -> Option<(String, Instant)> {
        self.state().trouble.clone()
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

    pub(crate) fn take_alerts(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.state().alerts)
    }
}
