//! Streams of WAL that nobody tends: a dumper that receives tells so every few seconds, and one that died tells nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use strongroom_proto::TargetName;
use strongroom_runtime::WalTransport;

use crate::Coordinator;
use crate::admission::Refusal;

/// The alert about WAL that no dumper receives.
const ALERT: &str = "wal_receiver_gone";
/// A stream that was not heard of for so long has nobody.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// What was heard last of each stream, and when it changed. No two machines' clocks are compared.
#[derive(Debug, Default)]
pub(crate) struct Heard(HashMap<TargetName, (Option<DateTime<Utc>>, Instant)>);

impl Heard {
    /// For how long nothing new was heard.
    fn silence(&mut self, target: &TargetName, heard: Option<DateTime<Utc>>, now: Instant) -> Duration {
        let last = self.0.entry(target.clone()).or_insert((heard, now));
        if last.0 != heard {
            *last = (heard, now);
        }
        now.saturating_duration_since(last.1)
    }
}

/// Looks for streams that nobody tends.
pub(crate) async fn watch(coordinator: &Coordinator, heard: &mut Heard) -> Result<(), Refusal> {
    for (name, target) in coordinator.targets.all() {
        if !target.is_physical() || target.wal_transport() != WalTransport::Stream {
            continue;
        }
        let stream = coordinator.catalog.wal_stream(&name).await?;
        let is_tended = stream.as_ref().is_some_and(|stream| stream.view.holder.is_some());
        // A lease that runs out is no news: whoever held it was heard of when it was renewed last.
        let silence = heard.silence(&name, stream.map(|stream| stream.view.updated_at), Instant::now());
        if silence < SILENCE_MAX {
            if silence.is_zero() && is_tended {
                coordinator.catalog.clear_alert(&name, ALERT).await?;
            }
            continue;
        }
        let message = format!(
            "no dumper of pool {} has received the WAL of {name} for {} s: what is committed there can be lost with the server, whose \
             disk fills up with WAL that it keeps for slot {}; start a dumper, or see in its log why it does not receive",
            target.pool,
            silence.as_secs(),
            target.slot_name(&name)
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
    fn silence_begins_when_nothing_new_is_heard() {
        let (mut heard, target) = (Heard::default(), "shop".parse().unwrap());
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let said = |seconds| DateTime::from_timestamp(seconds, 0);
        assert_eq!(heard.silence(&target, None, at(0)), Duration::ZERO);
        assert_eq!(heard.silence(&target, None, at(50)), Duration::from_secs(50));
        assert_eq!(heard.silence(&target, said(7), at(51)), Duration::ZERO);
        assert_eq!(heard.silence(&target, said(7), at(61)), Duration::from_secs(10));
        // A clock that was set back is news as well.
        assert_eq!(heard.silence(&target, said(3), at(62)), Duration::ZERO);
        assert_eq!(heard.silence(&target, None, at(63)), Duration::ZERO);
    }
}
