//! Answers what `restore_command` asks for, from a vault's pieces.
//!
//! Postgres takes "absent" for the end of the archive and goes on without what comes after, so that answer is given only
//! where the vault has WAL of this cluster and knows of nothing later on the timeline, or where nothing later is wanted;
//! whatever else cannot be answered is an error. A piece that is bad is an error only where no sound one covers its place.

use std::io;

use futures::StreamExt as _;
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, TimelineHistory, WalPiece, WalSegment, WalSource};

use super::name::WalFileName;
use super::page::{Head, HeadProblem};

/// How many pieces are read at a time.
const READS_AT_ONCE: usize = 8;
/// How often a segment is put together anew where the vault grew in between.
const TRIES: u32 = 4;

/// What the vault has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This.
    Found(Found),
    /// Nothing, and nothing that comes after it.
    Absent,
}

/// A file as Postgres expects it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its bytes: of a segment always all of them, with zeros where the vault has nothing yet.
    pub bytes: Vec<u8>,
    /// Whether the vault had all of it: asked again, it cannot say more.
    pub is_whole: bool,
}

/// A file cannot be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssembleError {
    /// No file of this name is in any archive.
    #[error("{name:?} is not the name of a WAL segment, a history file or a backup label of this cluster")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The vault did not answer, or must not be trusted.
    #[error("{doing}")]
    Source {
        /// What for.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Probably the wrong vault or the wrong cluster.
    #[error(
        "the vault holds no WAL of the cluster with system identifier {system}: check the store's URL and the identifier"
    )]
    NoWal {
        /// The cluster.
        system: SystemIdentifier,
    },
    /// WAL that existed is not in the vault.
    #[error(
        "the vault has a hole in {segment} of timeline {timeline}: {from} up to {to} is missing, although {evidence}; \
         recover to a moment before it, or begin with a base backup taken after it"
    )]
    Hole {
        /// The segment's file.
        segment: String,
        /// Its timeline.
        timeline: u32,
        /// Where the hole begins.
        from: Lsn,
        /// Where it ends, or the segment does.
        to: Lsn,
        /// How it is known that there was more.
        evidence: String,
    },
    /// Two servers wrote the same place, or one was set back.
    #[error("there are two versions of this WAL, which differ at {at}: {one} and {other}; move one of them away")]
    TwoVersions {
        /// The first place that differs.
        at: Lsn,
        /// A piece.
        one: String,
        /// Another.
        other: String,
    },
    /// A piece is not what it says.
    #[error("the piece {piece} cannot be used: {problem}")]
    Piece {
        /// Which.
        piece: String,
        /// Why not.
        problem: String,
    },
    /// The segment's content is not what its name says.
    #[error("the vault's content for {segment} cannot be used")]
    Head {
        /// The segment's file.
        segment: String,
        /// Why not.
        #[source]
        source: HeadProblem,
    },
    /// A history file that does not parse.
    #[error("the history of timeline {timeline} in the vault is damaged")]
    HistoryDamaged {
        /// The timeline.
        timeline: u32,
    },
    /// A recovery would stay on an older timeline.
    #[error(
        "the vault has no history of timeline {timeline}, although it knows timeline {known}; name the timeline to recover \
         to (recovery_target_timeline), or push {timeline:08X}.history into the vault"
    )]
    HistoryMissing {
        /// The timeline.
        timeline: u32,
        /// One that is there and comes from it, or itself.
        known: u32,
    },
}

impl AssembleError {
    /// Whether the next try may succeed although nobody did anything: a hole may be a piece that is on its way. Of an
    /// error of the source the source itself has to be asked.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Hole { .. })
    }
}

/// Answers the file of this name.
///
/// # Errors
///
/// Everything but "found" and "definitely absent".
pub async fn find(
    source: &dyn WalSource,
    system: SystemIdentifier,
    segment_bytes: u32,
    name: &str,
) -> Result<Answer, AssembleError> {
    find_up_to(source, system, segment_bytes, name, None).await
}

/// The same where WAL is wanted up to `wal_end` only: a hole that begins there or later is the end of WAL.
///
/// # Errors
///
/// Everything but "found" and "definitely absent".
pub async fn find_up_to(
    source: &dyn WalSource,
    system: SystemIdentifier,
    segment_bytes: u32,
    name: &str,
    wal_end: Option<Lsn>,
) -> Result<Answer, AssembleError> {
    let archive = Archive {
        source,
        system,
        segment_bytes,
        wal_end,
    };
    let refused = || AssembleError::Name { name: name.to_owned() };
    match WalFileName::parse(name, segment_bytes).ok_or_else(refused)? {
        WalFileName::Segment(segment) => archive.segment(segment).await,
        WalFileName::History(timeline) => archive.history(timeline).await,
        // What there is of a partial segment is answered under the segment's own name.
        WalFileName::Partial(_) | WalFileName::BackupLabel => {
            archive.timelines().await?;
            Ok(Answer::Absent)
        }
    }
}

struct Archive<'a> {
    source: &'a dyn WalSource,
    system: SystemIdentifier,
    segment_bytes: u32,
    /// What is written from here on is not needed.
    wal_end: Option<Lsn>,
}

/// A piece that cannot be used.
struct Bad {
    /// Where its place ends.
    to: Lsn,
    /// Why it cannot be used.
    error: AssembleError,
}

/// The pieces of a segment.
struct Listed {
    /// Those that lie in it, in the order of where they begin, the longest of those that begin together first.
    pieces: Vec<StoredPiece>,
    /// One that does not.
    stray: Option<Bad>,
}

/// The beginning of a segment, as far as there are pieces.
struct Joined {
    bytes: Vec<u8>,
    /// Which piece each part came from: where it ends, and the piece's name.
    parts: Vec<(usize, String)>,
}

impl Archive<'_> {
    async fn segment(&self, segment: WalSegment) -> Result<Answer, AssembleError> {
        let mut before = None;
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            let Listed { pieces, stray } = self.pieces(segment).await?;
            let mut joined = self.join(segment, &pieces, stray).await?;
            let is_whole = joined.bytes.len() == self.segment_bytes as usize;
            if !is_whole && let Some(evidence) = self.later(segment, joined.bytes.len()).await? {
                let from = Lsn(segment.begin(self.segment_bytes).0 + joined.bytes.len() as u64);
                let is_wanted = !self.is_beyond(from);
                // It may have come after the pieces were listed; then there are more of them now.
                if is_wanted && tries_left > 0 && before.as_ref() != Some(&pieces) {
                    before = Some(pieces);
                    continue;
                }
                if is_wanted {
                    return Err(self.hole(segment, from, segment.end(self.segment_bytes), evidence));
                }
            }
            if joined.bytes.is_empty() {
                return Ok(Answer::Absent);
            }
            Head::parse(&joined.bytes)
                .and_then(|head| head.check(self.system, segment, self.segment_bytes))
                .map_err(|source| AssembleError::Head {
                    segment: segment.file_name(self.segment_bytes),
                    source,
                })?;
            joined.bytes.resize(self.segment_bytes as usize, 0);
            return Ok(Answer::Found(Found {
                bytes: joined.bytes,
                is_whole,
            }));
        }
    }

    /// Whether nothing from this place on is wanted.
    fn is_beyond(&self, from: Lsn) -> bool {
        self.wal_end.is_some_and(|end| from >= end)
    }

    async fn pieces(&self, segment: WalSegment) -> Result<Listed, AssembleError> {
        let listed = self.source.segment_pieces(self.system, segment).await;
        let mut pieces = listed.map_err(|e| self.failed(format!("list the pieces of {}", self.file(segment)), e))?;
        let (begin, end) = (segment.begin(self.segment_bytes), segment.end(self.segment_bytes));
        let is_stray =
            |p: &StoredPiece| p.timeline != segment.timeline || p.from < begin || p.to > end || p.from >= p.to;
        let stray = pieces.iter().find(|p| is_stray(p)).map(|stray| Bad {
            to: end,
            error: AssembleError::Piece {
                piece: format!("from {} to {} of timeline {}", stray.from, stray.to, stray.timeline),
                problem: format!(
                    "it does not lie within {} with segments of {} bytes; if this cluster's are of another size, say so \
                     with --segment-bytes",
                    self.file(segment),
                    self.segment_bytes
                ),
            },
        });
        pieces.retain(|p| !is_stray(p));
        pieces.sort_by(|a, b| (a.from, b.to, a.sha256).cmp(&(b.from, a.to, b.sha256)));
        Ok(Listed { pieces, stray })
    }

    async fn join(
        &self,
        segment: WalSegment,
        pieces: &[StoredPiece],
        stray: Option<Bad>,
    ) -> Result<Joined, AssembleError> {
        let begin = segment.begin(self.segment_bytes);
        let mut bad: Vec<Bad> = stray.into_iter().collect();
        let mut joined = Joined {
            bytes: Vec::with_capacity(match pieces.is_empty() {
                true => 0,
                false => self.segment_bytes as usize,
            }),
            parts: Vec::new(),
        };
        // Not mapped as a stream, whose futures could not go from thread to thread.
        let reads: Vec<_> = pieces.iter().map(|piece| self.read(segment, piece)).collect();
        let mut read = futures::stream::iter(reads).buffered(READS_AT_ONCE);
        while let Some((piece, answer)) = read.next().await {
            let bytes = match answer {
                Ok(bytes) => bytes,
                // Who may create objects could make any segment unreadable, were it an error where sound ones are too.
                Err(error) if is_bad(&error) => {
                    tracing::warn!(piece = self.name(segment, piece), %error, "a piece of WAL is set aside");
                    bad.push(Bad { to: piece.to, error });
                    continue;
                }
                Err(error) => return Err(error),
            };
            let reached = Lsn(begin.0 + joined.bytes.len() as u64);
            if piece.from > reached {
                if self.is_beyond(reached) {
                    return Ok(joined);
                }
                refuse_uncovered(bad, reached)?;
                let evidence = format!("the piece {} comes after it", self.name(segment, piece));
                return Err(self.hole(segment, reached, piece.from, evidence));
            }
            let from = usize::try_from(piece.from.0 - begin.0).unwrap_or(usize::MAX);
            let known = joined.bytes.get(from..).unwrap_or_default();
            let both = known.len().min(bytes.len());
            // Compared as a whole first: that is quick, and nearly always all there is to do.
            if known.get(..both) != bytes.get(..both)
                && let Some(differs) = (0..both).find(|&i| known.get(i) != bytes.get(i))
            {
                let place = from + differs;
                let one = joined.parts.iter().find(|(end, _)| place < *end);
                return Err(AssembleError::TwoVersions {
                    at: Lsn(begin.0 + place as u64),
                    one: one.map(|(_, name)| name.clone()).unwrap_or_default(),
                    other: self.name(segment, piece),
                });
            }
            if let Some(new @ [_, ..]) = bytes.get(both..) {
                joined.bytes.extend_from_slice(new);
                joined.parts.push((joined.bytes.len(), self.name(segment, piece)));
            }
        }
        let reached = Lsn(begin.0 + joined.bytes.len() as u64);
        if !self.is_beyond(reached) {
            refuse_uncovered(bad, reached)?;
        }
        Ok(joined)
    }

    async fn read<'p>(
        &self,
        segment: WalSegment,
        piece: &'p StoredPiece,
    ) -> (&'p StoredPiece, Result<Vec<u8>, AssembleError>) {
        (piece, self.content(segment, piece).await)
    }

    async fn content(&self, segment: WalSegment, piece: &StoredPiece) -> Result<Vec<u8>, AssembleError> {
        let name = || self.name(segment, piece);
        let read = self.source.read(self.system, piece).await;
        let (says, bytes) = read.map_err(|e| self.failed(format!("read the piece {}", name()), e))?;
        let refused = |problem: String| AssembleError::Piece { piece: name(), problem };
        if says.segment_bytes != self.segment_bytes {
            return Err(refused(format!(
                "it is of a cluster with segments of {} bytes, not of {}; say so with --segment-bytes",
                says.segment_bytes, self.segment_bytes
            )));
        }
        let expected = WalPiece {
            system_identifier: self.system,
            timeline: piece.timeline,
            from: piece.from,
            to: piece.to,
            segment_bytes: self.segment_bytes,
            server_time: says.server_time,
        };
        if says != expected || bytes.len() as u64 != says.len() {
            return Err(refused("it is not what its name says".to_owned()));
        }
        Ok(bytes)
    }

    /// How it is known that the cluster wrote more than this much of a segment, where it is.
    async fn later(&self, segment: WalSegment, content_bytes: usize) -> Result<Option<String>, AssembleError> {
        // Before anything else: without WAL of this cluster nothing is known at all.
        let timelines = self.timelines().await?;
        if content_bytes == 0
            && let Some(own) = self.parsed_history(segment.timeline).await?
            && let Some(begun) = own.ancestors.last()
            && begun.at >= segment.end(self.segment_bytes)
        {
            // The timeline begins after this segment.
            return Ok(None);
        }
        let listed = self.source.segments(self.system, segment.timeline).await;
        let segments =
            listed.map_err(|e| self.failed(format!("list the segments of timeline {}", segment.timeline), e))?;
        if let Some(later) = segments.iter().filter(|s| s.number > segment.number).min() {
            return Ok(Some(format!("{} is there", self.file(*later))));
        }
        if content_bytes == 0 && segments.contains(&segment) {
            return Ok(Some(format!("{} has come in the meantime", self.file(segment))));
        }
        let end = Lsn(segment.begin(self.segment_bytes).0 + content_bytes as u64);
        for descendant in timelines.into_iter().filter(|t| *t > segment.timeline) {
            let Some(history) = self.parsed_history(descendant).await? else {
                continue;
            };
            let left = history.ancestors.iter().find(|a| a.timeline == segment.timeline);
            if let Some(left) = left.filter(|left| left.at > end) {
                let (timeline, at) = (segment.timeline, left.at);
                return Ok(Some(format!(
                    "timeline {descendant} says that timeline {timeline} was left at {at}"
                )));
            }
        }
        Ok(None)
    }

    async fn history(&self, timeline: u32) -> Result<Answer, AssembleError> {
        if let Some(text) = self.history_text(timeline).await? {
            TimelineHistory::parse(timeline, &text).ok_or(AssembleError::HistoryDamaged { timeline })?;
            return Ok(Answer::Found(Found {
                bytes: text.into_bytes(),
                is_whole: true,
            }));
        }
        let timelines = self.timelines().await?;
        // The first timeline has none. Postgres looks for the newest one by asking for one after the other, and ends at
        // the first that is absent.
        match timelines.into_iter().find(|known| *known >= timeline) {
            Some(known) if timeline > 1 => Err(AssembleError::HistoryMissing { timeline, known }),
            _ => Ok(Answer::Absent),
        }
    }

    async fn timelines(&self) -> Result<Vec<u32>, AssembleError> {
        let listed = self.source.timelines(self.system).await;
        let timelines = listed.map_err(|e| self.failed("list the timelines".to_owned(), e))?;
        match timelines.is_empty() {
            true => Err(AssembleError::NoWal { system: self.system }),
            false => Ok(timelines),
        }
    }

    async fn history_text(&self, timeline: u32) -> Result<Option<String>, AssembleError> {
        let read = self.source.history(self.system, timeline).await;
        read.map_err(|e| self.failed(format!("read the history of timeline {timeline}"), e))
    }

    async fn parsed_history(&self, timeline: u32) -> Result<Option<TimelineHistory>, AssembleError> {
        let Some(text) = self.history_text(timeline).await? else {
            return Ok(None);
        };
        let parsed = TimelineHistory::parse(timeline, &text);
        parsed.map(Some).ok_or(AssembleError::HistoryDamaged { timeline })
    }

    fn hole(&self, segment: WalSegment, from: Lsn, to: Lsn, evidence: String) -> AssembleError {
        AssembleError::Hole {
            segment: self.file(segment),
            timeline: segment.timeline,
            from,
            to,
            evidence,
        }
    }

    fn failed(&self, doing: String, source: io::Error) -> AssembleError {
        AssembleError::Source {
            doing: format!("{doing} of the cluster {}", self.system),
            source,
        }
    }

    fn file(&self, segment: WalSegment) -> String {
        segment.file_name(self.segment_bytes)
    }

    fn name(&self, segment: WalSegment, piece: &StoredPiece) -> String {
        piece_name(self.system, segment, self.segment_bytes, piece)
    }
}

/// Whether it is the piece that is bad: not the store that does not answer, nor what it is opened with.
fn is_bad(error: &AssembleError) -> bool {
    match error {
        AssembleError::Piece { .. } => true,
        AssembleError::Source { source, .. } => source.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// The error of a bad piece whose place the sound ones, which reach this far, do not cover.
fn refuse_uncovered(bad: Vec<Bad>, reached: Lsn) -> Result<(), AssembleError> {
    match bad.into_iter().find(|bad| bad.to > reached) {
        Some(bad) => Err(bad.error),
        None => Ok(()),
    }
}

/// A piece as it is named in the vault.
pub(super) fn piece_name(
    system: SystemIdentifier,
    segment: WalSegment,
    segment_bytes: u32,
    piece: &StoredPiece,
) -> String {
    let begin = segment.begin(segment_bytes).0;
    format!(
        "wal/{system}/{:08X}/{}/{:08X}-{:08X}-{segment_bytes:08X}.{}",
        segment.timeline,
        segment.file_name(segment_bytes),
        piece.from.0.saturating_sub(begin),
        piece.to.0.saturating_sub(begin),
        piece.sha256
    )
}
