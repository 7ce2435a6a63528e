//! Streams of WAL of which nothing comes: a dumper that receives tells so every few seconds; one that died tells nothing, and
//! one that dies again and again only that it began.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use strongroom_proto::TargetName;
use strongroom_runtime::WalTransport;

use crate::Coordinator;
use crate::admission::Refusal;

/// The alert about WAL that no dumper receives.
pub(crate) const ALERT: &str = "wal_receiver_gone";
/// The alert by which a dumper that lives says that it receives nothing, and why.
const TOLD: &str = "wal_not_received";
/// A stream of which nothing came for so long has nobody; and at least so long after WAL had to be stored.
const SILENCE_MAX: Duration = Duration::from_secs(45);
const SILENCE_AFTER_INTERVAL: Duration = Duration::from_secs(30);
/// In which a dumper that has a stream says by itself what is wrong, and more of it.
const HOLDER_GRACE: Duration = Duration::from_secs(5);

/// When something came last of each stream, and when that changed. No two machines' clocks are compared.
#[derive(Debug, Default)]
pub(crate) struct Heard(HashMap<TargetName, (Option<DateTime<Utc>>, Instant)>);

/// What a look at a stream meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Something has come since the last look.
    Progress,
    /// Nothing has for so long, or since the first look.
    Silence(Duration),
}

impl Heard {
    fn look(&mut self, target: &TargetName, progressed_at: Option<DateTime<Utc>>, now: Instant) -> Look {
        let last = self.0.entry(target.clone()).or_insert((progressed_at, now));
        if last.0 != progressed_at {
            *last = (progressed_at, now);
            if progressed_at.is_some() {
                return Look::Progress;
            }
        }
        Look::Silence(now.saturating_duration_since(last.1))
    }
}

/// Looks for streams of which nothing comes.
pub(crate) async fn watch(coordinator: &Coordinator, heard: &mut Heard) -> Result<(), Refusal> {
    for (name, target) in coordinator.targets.all() {
        if !target.is_physical() || target.wal_transport() != WalTransport::Stream {
            continue;
        }
        let stream = coordinator.catalog.wal_stream(&name).await?;
        // A claim, and a lease that is renewed or runs out, are no news.
        let progressed_at = stream.as_ref().and_then(|stream| stream.progressed_at);
        let silence = match heard.look(&name, progressed_at, Instant::now()) {
            Look::Progress => {
                coordinator.catalog.clear_alert(&name, ALERT).await?;
                continue;
            }
            Look::Silence(silence) => silence,
        };
        let view = stream.map(|stream| stream.view);
        let is_held = view.as_ref().is_some_and(|view| view.holder.is_some());
        let grace = if is_held { HOLDER_GRACE } else { Duration::ZERO };
        if silence < SILENCE_MAX.max(target.wal_interval() + SILENCE_AFTER_INTERVAL) + grace {
            continue;
        }
        if is_held {
            let active = coordinator.catalog.active_alerts(Some(&name)).await?;
            if active.iter().any(|(_, alert)| alert.kind == TOLD) {
                continue;
            }
        }
        let said = view.and_then(|view| view.last_error);
        let message = format!(
            "no dumper of pool {} has received the WAL of {name} for {} s: what is committed there can be lost with the server, whose \
             disk fills up with WAL that it keeps for slot {}; start a dumper, or see in its log why it does not receive{}",
            target.pool,
            silence.as_secs(),
            target.slot_name(&name),
            said.map(|error| format!(" (it said last: {error})"))
                .unwrap_or_default()
        );
        if coordinator.catalog.raise_alert(&name, ALERT, &message).await? {
            tracing::warn!(target = %name, "nobody receives its WAL");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_begins_when_nothing_new_has_come() {
        let (mut heard, target) = (Heard::default(), "shop".parse().unwrap());
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let said = |seconds| DateTime::from_timestamp(seconds, 0);
        let silence = |seconds| Look::Silence(Duration::from_secs(seconds));
        assert_eq!(heard.look(&target, None, at(0)), silence(0));
        assert_eq!(heard.look(&target, None, at(50)), silence(50));
        assert_eq!(heard.look(&target, said(7), at(51)), Look::Progress);
        assert_eq!(heard.look(&target, said(7), at(61)), silence(10));
        // A clock that was set back is news as well.
        assert_eq!(heard.look(&target, said(3), at(62)), Look::Progress);
        assert_eq!(heard.look(&target, None, at(63)), silence(0));
        // What came before a coordinator began says nothing of now, and clears nothing.
        assert_eq!(Heard::default().look(&target, said(3), at(64)), silence(0));
    }
}
