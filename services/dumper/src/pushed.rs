//! WAL that servers push. The vault is the truth: the catalog is told of what it holds, whether or not who pushed it could.
//!
//! This is a timed scan, and who waits for pushed WAL asks for the same at once. What a scan costs is a listing of one
//! segment's folder for each place where the catalog's WAL ends; the whole timeline is listed now and then only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use strongroom_catalog::{Catalog, CatalogError};
use strongroom_connectors::Stop;
use strongroom_connectors::postgres::physical::{self, Standing};
use strongroom_proto::wal::{ClusterFacts, Lsn, StoredPiece, SystemIdentifier, WalRange, WalSegment, WalSink as _};
use strongroom_proto::{TargetName, VaultId};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{TargetBook, TargetConfig, WalTransport};
use strongroom_worker::{WalWriter, Writing};
use tokio_util::sync::CancellationToken;

use crate::cluster::cluster;
use crate::received::TWO_HISTORIES;

/// How often the vault is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often all of a timeline is listed: WAL that came in an order which its server does not keep lies in no known place.
const LIST_EVERY: Duration = Duration::from_secs(3600);
/// How long a server may take to say how far it is.
const STANDING_WITHIN: Duration = Duration::from_secs(10);
/// Moments of a server that are kept until the vault has what was written by then.
const MOMENTS_MAX: usize = 1440;

/// The catalog or the vault did not answer.
#[derive(Debug)]
pub(crate) enum LookError {
    Catalog(CatalogError),
    Vault(std::io::Error),
}

impl std::fmt::Display for LookError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Catalog(_) => "compare the catalog's WAL with the vault's",
            Self::Vault(_) => "list the vault's WAL",
        })
    }
}

impl std::error::Error for LookError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Catalog(error) => Some(error),
            Self::Vault(error) => Some(error),
        }
    }
}

impl From<CatalogError> for LookError {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(error)
    }
}

/// One timeline of a cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeline {
    pub(crate) system: SystemIdentifier,
    pub(crate) timeline: u32,
    /// The size of the cluster's segments.
    pub(crate) segment_bytes: u32,
}

/// A moment at which a server had written so much and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerMoment {
    pub(crate) timeline: u32,
    pub(crate) at: Lsn,
    pub(crate) time: DateTime<Utc>,
}

/// What of a timeline is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// All of it.
    Whole,
    /// What goes on from the ends of the WAL that the catalog knows, and from here.
    From(Option<Lsn>),
}

/// Tells the catalog of the WAL that the vault holds.
#[derive(Clone)]
pub(crate) struct PushedWal {
    catalog: Catalog,
    vault: VaultId,
    stored: Arc<WalWriter>,
}

impl PushedWal {
    pub(crate) fn new(catalog: Catalog, writing: &Writing) -> Self {
        Self {
            catalog,
            vault: writing.vault_id(),
            stored: Arc::new(writing.wal_writer()),
        }
    }

    /// Adds the WAL of a base backup, and says whether the catalog has it now.
    pub(crate) async fn add_of(&self, facts: &ClusterFacts) -> Result<bool, LookError> {
        let timeline = Timeline {
            system: facts.system_identifier,
            timeline: facts.timeline,
            segment_bytes: facts.segment_bytes,
        };
        let ranges = self.add(timeline, Listing::From(Some(facts.start_lsn))).await?;
        let moment = ServerMoment {
            timeline: facts.timeline,
            at: facts.stop_lsn,
            time: facts.stopped_at,
        };
        self.add_moment(facts.system_identifier, &ranges, moment).await?;
        Ok(ranges
            .iter()
            .any(|range| range.from <= facts.start_lsn && range.to >= facts.stop_lsn))
    }

    /// Tells the catalog of the pieces of a timeline that it lacks. What the catalog has of the timeline then.
    pub(crate) async fn add(&self, timeline: Timeline, listing: Listing) -> Result<Vec<WalRange>, LookError> {
        let known = self.ranges(timeline).await?;
        let pieces = match listing {
            Listing::Whole => {
                let pieces = self.stored.pieces(timeline.system, timeline.timeline).await;
                pieces.map_err(LookError::Vault)?
            }
            Listing::From(from) => self.follow(timeline, &known, from).await?,
        };
        let untold = stretches(&known, pieces);
        if untold.is_empty() {
            return Ok(known);
        }
        for stretch in untold {
            match stretch.after {
                // No time is known at which the server had written no more than this, but for what lies before it.
                Some(time) => {
                    let range = WalRange {
                        timeline: timeline.timeline,
                        from: stretch.from,
                        to: stretch.to,
                        first_time: time,
                        last_time: time,
                    };
                    self.catalog.add_wal(self.vault, timeline.system, &range).await?;
                }
                None => {
                    let added = self
                        .catalog
                        .add_stored_wal(self.vault, timeline.system, &stretch.pieces);
                    added.await?;
                }
            }
            tracing::debug!(system = %timeline.system, timeline = timeline.timeline, from = %stretch.from, to = %stretch.to, "the catalog is told of pushed WAL");
        }
        self.ranges(timeline).await
    }

    /// Notes until when the WAL that the vault has lasts, by a moment whose WAL it has all.
    async fn add_moment(
        &self,
        system: SystemIdentifier,
        ranges: &[WalRange],
        moment: ServerMoment,
    ) -> Result<(), LookError> {
        if let Some(range) = holding(ranges, moment)
            && moment.time > range.last_time
        {
            let range = WalRange {
                last_time: moment.time,
                ..*range
            };
            self.catalog.add_wal(self.vault, system, &range).await?;
        }
        Ok(())
    }

    async fn ranges(&self, timeline: Timeline) -> Result<Vec<WalRange>, LookError> {
        let mut ranges = self.catalog.wal_ranges(self.vault, timeline.system).await?;
        ranges.retain(|range| range.timeline == timeline.timeline);
        Ok(ranges)
    }

    /// The pieces that lie one after the other, from each end of what is known on.
    async fn follow(
        &self,
        timeline: Timeline,
        known: &[WalRange],
        from: Option<Lsn>,
    ) -> Result<Vec<StoredPiece>, LookError> {
        let begin = |at: Lsn| WalSegment::holding(timeline.timeline, at, timeline.segment_bytes);
        let begins = from.filter(|from| !known.iter().any(|range| range.from <= *from && *from < range.to));
        let begins = begins.map(|from| begin(from).begin(timeline.segment_bytes));
        let mut found: Vec<StoredPiece> = Vec::new();
        for end in known.iter().map(|range| range.to).chain(begins) {
            let mut end = end;
            loop {
                let pieces = self
                    .stored
                    .segment_pieces(timeline.system, begin(end), timeline.segment_bytes)
                    .await
                    .map_err(LookError::Vault)?;
                let before = end;
                for piece in &pieces {
                    if piece.from <= end {
                        end = end.max(piece.to);
                    }
                }
                found.extend(pieces);
                // What lies behind the beginning of the next range is known.
                if end == before || known.iter().any(|range| range.from <= end && end < range.to) {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// The range that has all WAL of a moment.
fn holding(ranges: &[WalRange], moment: ServerMoment) -> Option<&WalRange> {
    ranges
        .iter()
        .find(|range| range.timeline == moment.timeline && range.from < moment.at && moment.at <= range.to)
}

/// Of the moments that ranges have all WAL of, the newest of each range.
fn newest_held(ranges: &[WalRange], moments: impl Iterator<Item = ServerMoment> + Clone) -> Vec<ServerMoment> {
    let held = |range: &WalRange| {
        let within = moments
            .clone()
            .filter(|moment| holding(std::slice::from_ref(range), *moment).is_some());
        within.max_by_key(|moment| moment.time)
    };
    ranges.iter().filter_map(held).collect()
}

/// Pieces that touch, of which the catalog does not know.
#[derive(Debug, PartialEq, Eq)]
struct Stretch {
    from: Lsn,
    to: Lsn,
    /// Until when the known WAL lasts that this goes on from.
    after: Option<DateTime<Utc>>,
    pieces: Vec<StoredPiece>,
}

/// What of the pieces is not known, in order.
fn stretches(known: &[WalRange], mut pieces: Vec<StoredPiece>) -> Vec<Stretch> {
    pieces.retain(|piece| {
        piece.from < piece.to
            && !known
                .iter()
                .any(|range| range.from <= piece.from && piece.to <= range.to)
    });
    pieces.sort_by_key(|piece| (piece.from, piece.to));
    let mut stretches: Vec<Stretch> = Vec::new();
    for piece in pieces {
        match stretches.last_mut() {
            Some(last) if piece.from <= last.to => {
                last.to = last.to.max(piece.to);
                last.pieces.push(piece);
            }
            _ => stretches.push(Stretch {
                from: piece.from,
                to: piece.to,
                after: known
                    .iter()
                    .find(|range| range.from <= piece.from && piece.from <= range.to)
                    .map(|range| range.last_time),
                pieces: vec![piece],
            }),
        }
    }
    stretches
}

/// The timed scan.
pub(crate) struct Pushes {
    pub(crate) pushed: PushedWal,
    pub(crate) targets: TargetBook,
    pub(crate) pool: String,
}

/// What is remembered of a target between two scans.
#[derive(Default)]
struct Seen {
    listed: HashMap<(SystemIdentifier, u32), Instant>,
    /// Moments whose WAL the vault did not have all, the oldest first.
    moments: Vec<(SystemIdentifier, ServerMoment)>,
}

impl Seen {
    fn is_listing_due(&self, timeline: Timeline) -> bool {
        let listed = self.listed.get(&(timeline.system, timeline.timeline));
        listed.is_none_or(|at| at.elapsed() >= LIST_EVERY)
    }

    /// Keeps a moment; where there are too many, every other one is let go of.
    fn keep(&mut self, system: SystemIdentifier, moment: ServerMoment) {
        self.moments.push((system, moment));
        if self.moments.len() > MOMENTS_MAX {
            let mut is_kept = false;
            self.moments.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
        }
    }
}

impl Pushes {
    /// Looks at the vault for each target whose WAL is pushed, until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut seen: HashMap<TargetName, Seen> = HashMap::new();
        while !shutdown.is_cancelled() {
            let mut targets = self.targets.all();
            targets.retain(|(_, target)| {
                target.is_physical() && target.wal_transport() == WalTransport::Push && target.pool == self.pool
            });
            seen.retain(|name, _| targets.iter().any(|(known, _)| known == name));
            for (name, target) in targets {
                let looking = self.look(&name, &target, seen.entry(name.clone()).or_default());
                let looked = tokio::select! {
                    looked = looking => looked,
                    () = shutdown.cancelled() => return,
                };
                if let Err(error) = looked {
                    tracing::info!(target = %name, error = %one_line(&error), "the catalog may be behind on its pushed WAL");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    async fn look(&self, name: &TargetName, target: &TargetConfig, seen: &mut Seen) -> Result<(), LookError> {
        let pushed = &self.pushed;
        let now = match standing(name, target).await {
            Some(standing) => {
                self.note_history(name, &standing).await?;
                if let Some(time) = standing.time {
                    let moment = ServerMoment {
                        timeline: standing.timeline,
                        at: standing.at,
                        time,
                    };
                    seen.keep(standing.system_identifier, moment);
                }
                Timeline {
                    system: standing.system_identifier,
                    timeline: standing.timeline,
                    segment_bytes: standing.segment_bytes,
                }
            }
            // What it pushed may have come although it is gone.
            None => match pushed.catalog.cluster_backups(name).await?.last() {
                Some(backup) => Timeline {
                    system: backup.facts.system_identifier,
                    timeline: backup.facts.timeline,
                    segment_bytes: backup.facts.segment_bytes,
                },
                None => return Ok(()),
            },
        };
        let known = pushed.catalog.wal_ranges(pushed.vault, now.system).await?;
        let mut timelines: Vec<u32> = known.iter().map(|range| range.timeline).chain([now.timeline]).collect();
        timelines.sort_unstable();
        timelines.dedup();
        for number in timelines {
            let timeline = Timeline {
                timeline: number,
                ..now
            };
            let is_whole = seen.is_listing_due(timeline) || !known.iter().any(|range| range.timeline == number);
            let listing = if is_whole { Listing::Whole } else { Listing::From(None) };
            let ranges = pushed.add(timeline, listing).await?;
            if is_whole {
                seen.listed.insert((timeline.system, number), Instant::now());
            }
            let moments = seen.moments.iter().filter(|(system, _)| *system == timeline.system);
            for moment in newest_held(&ranges, moments.map(|(_, moment)| *moment)) {
                pushed.add_moment(timeline.system, &ranges, moment).await?;
            }
            seen.moments
                .retain(|(system, moment)| *system != timeline.system || holding(&ranges, *moment).is_none());
        }
        Ok(())
    }

    /// Tells the catalog by which way the server came to its timeline. The vault's copy of that is sealed.
    async fn note_history(&self, name: &TargetName, standing: &Standing) -> Result<(), LookError> {
        let Some(history) = &standing.history else {
            return Ok(());
        };
        let (catalog, system) = (&self.pushed.catalog, standing.system_identifier);
        let known = catalog.add_wal_history(self.pushed.vault, system, history).await?;
        if known != *history {
            let message = format!(
                "two servers of cluster {system} went on upon timeline {}, from different places; what is known of it is of the \
                 other one: see which is the right one, and stop the other. Where it is this one, declare it as a target of its own \
                 with another vault",
                history.timeline
            );
            if catalog.raise_alert(name, TWO_HISTORIES, &message).await? {
                tracing::warn!(target = %name, message, "alert");
            }
        }
        Ok(())
    }
}

/// How far a server is, where it says so in time.
async fn standing(name: &TargetName, target: &TargetConfig) -> Option<Standing> {
    let cluster = match cluster(name, target) {
        Ok(cluster) => cluster,
        Err(error) => {
            tracing::error!(target = %name, error = format!("{error:#}"), "its server cannot be asked how far it is");
            return None;
        }
    };
    let asking = Asking(Stop::default());
    let asked = tokio::task::spawn_blocking({
        let stop = asking.0.clone();
        move || stop.run(|| physical::standing(&cluster))
    });
    match tokio::time::timeout(STANDING_WITHIN, asked).await {
        Ok(Ok(Ok(standing))) => return Some(standing),
        Ok(Ok(Err(error))) => {
            tracing::info!(target = %name, error = %one_line(&error), "its server did not say how far it is: its windows move on when it does");
        }
        Ok(Err(error)) => tracing::error!(target = %name, %error, "asking its server panicked"),
        Err(_) => tracing::info!(target = %name, "its server did not say in time how far it is"),
    }
    None
}

/// A question that nobody waits for any more ends, so that it holds up no shutdown.
struct Asking(Stop);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests {
    use strongroom_proto::Sha256Digest;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn range(from: u64, to: u64, last: i64) -> WalRange {
        WalRange {
            timeline: 1,
            from: Lsn(from),
            to: Lsn(to),
            first_time: at(0),
            last_time: at(last),
        }
    }

    fn piece(from: u64, to: u64) -> StoredPiece {
        StoredPiece {
            timeline: 1,
            from: Lsn(from),
            to: Lsn(to),
            sha256: Sha256Digest::from_bytes([7; 32]),
            stored_at: at(900),
        }
    }

    #[test]
    fn what_is_not_known_is_told_and_lasts_no_longer_than_what_it_goes_on_from() {
        let known = [range(10, 20, 100), range(30, 40, 200)];
        let listed = vec![
            piece(50, 60),
            piece(10, 20),
            piece(20, 25),
            piece(25, 30),
            piece(60, 70),
            piece(32, 40),
        ];
        let untold = stretches(&known, listed);
        let told: Vec<_> = untold
            .iter()
            .map(|stretch| (stretch.from.0, stretch.to.0, stretch.after, stretch.pieces.len()))
            .collect();
        assert_eq!(told, [(20, 30, Some(at(100)), 2), (50, 70, None, 2)]);
    }

    #[test]
    fn a_moment_is_held_where_all_that_was_written_by_then_is() {
        let ranges = [range(10, 20, 0), range(30, 40, 0)];
        let held = |timeline, place| {
            let moment = ServerMoment {
                timeline,
                at: Lsn(place),
                time: at(5),
            };
            holding(&ranges, moment).map(|range| range.to.0)
        };
        assert_eq!((held(1, 20), held(1, 35)), (Some(20), Some(40)));
        let moments = [(15, 1), (18, 2), (25, 3), (40, 4), (41, 5)].map(|(place, time)| ServerMoment {
            timeline: 1,
            at: Lsn(place),
            time: at(time),
        });
        let newest = newest_held(&ranges, moments.iter().copied());
        assert_eq!(newest, [moments[1], moments[3]]);
        for (timeline, place) in [(1, 21), (1, 41), (1, 30), (2, 15)] {
            assert_eq!(held(timeline, place), None, "{timeline} {place}");
        }
    }

    #[test]
    fn of_too_many_moments_the_oldest_stays() {
        let mut seen = Seen::default();
        for number in 0..=MOMENTS_MAX as u64 {
            let moment = ServerMoment {
                timeline: 1,
                at: Lsn(number),
                time: at(0),
            };
            seen.keep(SystemIdentifier(7), moment);
        }
        assert_eq!(seen.moments.len(), MOMENTS_MAX / 2 + 1);
        assert_eq!(seen.moments.first().map(|(_, moment)| moment.at), Some(Lsn(0)));
    }
}
