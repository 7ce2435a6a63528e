//! Stores what `archive_command` hands over.
//!
//! A file is checked before it is stored: its length, its first page, its name and its cluster. One segment becomes one
//! piece, a very large one several.
//!
//! Where the vault has pieces of the same segment or a history of the same timeline already, and they cannot be read
//! here or differ, the file is stored beside them and the caller told so. It is not refused: Postgres would try the
//! same file again for ever and keep all WAL after it, until the database's disk is full; and which of two versions is
//! the right one is for a person to say. Nothing is lost either way, for who reads compares all of them and refuses to
//! choose.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use strongroom_proto::wal::{
    Lsn, StoredPiece, SystemIdentifier, TimelineHistory, WalPiece, WalSegment, WalSink, WalSource,
};

use super::assemble::piece_name;
use super::name::WalFileName;
use super::page::{Head, HeadProblem, content_bytes};

/// The largest segments that Postgres can be built with.
const SEGMENT_MAX_BYTES: u32 = 1 << 30;
/// The most of a segment that becomes one piece: who reads holds whole pieces in memory, several at a time.
const PIECE_MAX_BYTES: u32 = 16 << 20;
/// The smallest.
const SEGMENT_MIN_BYTES: u32 = 1 << 20;
/// A history has a line of some fifty bytes for every time the cluster was promoted.
const HISTORY_MAX_BYTES: u64 = 1 << 20;

/// Why a failure of archive_command cannot wait.
const UNTIL_STORED: &str = "and until it is, the server keeps it and all WAL after it on its disk";
/// What to do about a file that is not what it should be.
const DAMAGED: &str = "give archive_command's %p; where the file in pg_wal is like this itself it is damaged: rename its .ready in \
                       pg_wal/archive_status to .done, so that the server goes on without it, and take a base backup";

/// What was done with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the vault now.
    Stored(WalPiece),
    /// The vault had all of it already.
    AlreadyThere(WalPiece),
    /// It is in the vault now, and so are pieces of the same segment whose content could not be compared.
    StoredBeside {
        /// What was stored.
        piece: WalPiece,
        /// The pieces that were there before.
        others: Vec<String>,
    },
    /// It is in the vault now, and so is a piece with other content for the same place. Somebody must look.
    StoredApart {
        /// What was stored.
        piece: WalPiece,
        /// The first place that differs.
        at: Lsn,
        /// The piece that differs.
        other: String,
    },
    /// The history of a timeline is in the vault.
    StoredHistory {
        /// The cluster.
        system: SystemIdentifier,
        /// What it says.
        history: TimelineHistory,
        /// What the vault had of it before.
        before: HistoryBefore,
    },
    /// A backup's label, which is not needed.
    Ignored,
}

/// What a vault had of a timeline's history before one was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryBefore {
    /// Nothing.
    None,
    /// The same.
    Same,
    /// Something that could not be compared.
    Unknown,
    /// Another one: two servers went on upon a timeline of the same number. Both are kept, and somebody must look.
    Another,
}

/// A file is not in the vault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// Not a file of an archive.
    #[error("{name:?} is not the name of a WAL segment, a history file or a backup label: give archive_command's %p")]
    Name {
        /// What was given.
        name: String,
    },
    /// It cannot be read.
    #[error("read {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not what its name says.
    #[error("{name} was not stored, {UNTIL_STORED}; {}", advice(.source))]
    Head {
        /// The file.
        name: String,
        /// Why not.
        #[source]
        source: HeadProblem,
    },
    /// It is cut off, or something was appended.
    #[error(
        "{name} was not stored: it has {found} bytes, and a segment of this cluster has {expected}; {UNTIL_STORED}; {DAMAGED}"
    )]
    Length {
        /// The file.
        name: String,
        /// What it has.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// It holds nothing at all.
    #[error("{name} was not stored: it is empty; {UNTIL_STORED}; {DAMAGED}")]
    Empty {
        /// The file.
        name: String,
    },
    /// A history that does not parse.
    #[error("{name} was not stored: it is not a timeline's history; {UNTIL_STORED}; {DAMAGED}")]
    History {
        /// The file.
        name: String,
    },
    /// The vault did not take it, or did not answer.
    #[error("{doing}")]
    Vault {
        /// What for.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Checks a file and stores it; when this returns it is durable. With a `source`, for who may read the vault, what is there
/// already is compared.
///
/// # Errors
///
/// Nothing was stored, or it is not known whether it was; it may be tried again.
pub async fn push(
    sink: &dyn WalSink,
    source: Option<&dyn WalSource>,
    system: SystemIdentifier,
    path: &Path,
) -> Result<Pushed, PushError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // The size of segments is in the file; until it is known every name that some cluster may use is taken.
    let refused = || PushError::Name { name: name.clone() };
    match WalFileName::parse(&name, SEGMENT_MIN_BYTES).ok_or_else(refused)? {
        WalFileName::BackupLabel => Ok(Pushed::Ignored),
        WalFileName::History(timeline) => push_history(sink, source, system, timeline, path, name).await,
        WalFileName::Segment(_) | WalFileName::Partial(_) => {
            let (piece, bytes) = read_segment(system, path, name)?;
            store(sink, source, piece, bytes).await
        }
    }
}

async fn push_history(
    sink: &dyn WalSink,
    source: Option<&dyn WalSource>,
    system: SystemIdentifier,
    timeline: u32,
    path: &Path,
    name: String,
) -> Result<Pushed, PushError> {
    let (bytes, _) = read(path, HISTORY_MAX_BYTES)?;
    let text = String::from_utf8(bytes).ok();
    let parsed = text.as_ref().and_then(|text| TimelineHistory::parse(timeline, text));
    // A timeline with a history comes from at least one other.
    let parsed = parsed.filter(|history| !history.ancestors.is_empty());
    let (Some(text), Some(history)) = (text, parsed) else {
        return Err(PushError::History { name });
    };
    let failed = |doing: &str| {
        let doing = format!("{doing} the history of timeline {timeline}");
        move |source| PushError::Vault { doing, source }
    };
    let before = match source {
        Some(source) => match source.history(system, timeline).await {
            Ok(None) => HistoryBefore::None,
            // Who reads compares them byte for byte.
            Ok(Some(other)) if other == text => HistoryBefore::Same,
            Ok(Some(_)) => HistoryBefore::Another,
            // A bad one does not keep a good one out.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => HistoryBefore::Unknown,
            Err(error) => return Err(failed("compare")(error)),
        },
        None => match sink.has_history(system, timeline).await.map_err(failed("look for"))? {
            true => HistoryBefore::Unknown,
            false => HistoryBefore::None,
        },
    };
    if before != HistoryBefore::Same {
        let stored = sink.put_history(system, timeline, &text).await;
        stored.map_err(failed("store"))?;
    }
    Ok(Pushed::StoredHistory {
        system,
        history,
        before,
    })
}

/// What to do about a file that does not begin as it should.
const fn advice(problem: &HeadProblem) -> &'static str {
    match problem {
        HeadProblem::System { .. } => {
            "the settings name a cluster by its system_identifier, which pg_controldata shows: run this with those of the file's cluster"
        }
        _ => DAMAGED,
    }
}

/// Reads a segment's file, whole or partial, and says what it is.
fn read_segment(system: SystemIdentifier, path: &Path, name: String) -> Result<(WalPiece, Vec<u8>), PushError> {
    let (mut bytes, written_at) = read(path, u64::from(SEGMENT_MAX_BYTES))?;
    if bytes.is_empty() {
        return Err(PushError::Empty { name });
    }
    let head_error = |source| PushError::Head {
        name: name.clone(),
        source,
    };
    let head = Head::parse(&bytes).map_err(head_error)?;
    let segment_bytes = head.segment_bytes;
    if !segment_bytes.is_power_of_two() || !(SEGMENT_MIN_BYTES..=SEGMENT_MAX_BYTES).contains(&segment_bytes) {
        return Err(head_error(HeadProblem::SegmentBytes {
            found: segment_bytes,
            expected: 16 << 20,
        }));
    }
    // Another cluster's file first: that is what is wrong then, whatever its name.
    if head.system_identifier != system {
        return Err(head_error(HeadProblem::System {
            found: head.system_identifier,
            expected: system,
        }));
    }
    let (segment, is_partial) = match WalFileName::parse(&name, segment_bytes) {
        Some(WalFileName::Segment(segment)) => (segment, false),
        Some(WalFileName::Partial(segment)) => (segment, true),
        _ => return Err(PushError::Name { name }),
    };
    head.check(system, segment, segment_bytes).map_err(head_error)?;
    if bytes.len() as u64 != u64::from(segment_bytes) {
        return Err(PushError::Length {
            found: bytes.len() as u64,
            expected: segment_bytes.into(),
            name,
        });
    }
    if is_partial {
        let content = content_bytes(&bytes, &head);
        bytes.truncate(content);
    }
    let from = segment.begin(segment_bytes);
    let piece = WalPiece {
        system_identifier: system,
        timeline: segment.timeline,
        from,
        to: Lsn(from.0 + bytes.len() as u64),
        segment_bytes,
        // When the server last wrote to the file, by its own clock.
        server_time: written_at,
    };
    Ok((piece, bytes))
}

async fn store(
    sink: &dyn WalSink,
    source: Option<&dyn WalSource>,
    piece: WalPiece,
    bytes: Vec<u8>,
) -> Result<Pushed, PushError> {
    let segment = piece.segment();
    let file = segment.file_name(piece.segment_bytes);
    let failed = |doing: String| move |source| PushError::Vault { doing, source };
    let there = sink
        .segment_pieces(piece.system_identifier, segment, piece.segment_bytes)
        .await
        .map_err(failed(format!("list what the vault has of {file}")))?;
    let compared = match source {
        Some(source) => compare(source, &piece, &bytes, &there).await?,
        None => Compared::Unknown,
    };
    if matches!(compared, Compared::Same { has_all: true }) {
        return Ok(Pushed::AlreadyThere(piece));
    }
    put(sink, &piece, bytes)
        .await
        .map_err(failed(format!("store {file}")))?;
    let named = |other: &StoredPiece| piece_name(piece.system_identifier, segment, piece.segment_bytes, other);
    Ok(match compared {
        Compared::Differs { at, other } => Pushed::StoredApart {
            at,
            other: named(&other),
            piece,
        },
        Compared::Unknown if !there.is_empty() => Pushed::StoredBeside {
            others: there.iter().map(named).collect(),
            piece,
        },
        Compared::Same { .. } | Compared::Unknown => Pushed::Stored(piece),
    })
}

/// Stores a file, in pieces that are not too large.
async fn put(sink: &dyn WalSink, whole: &WalPiece, bytes: Vec<u8>) -> io::Result<()> {
    let most = PIECE_MAX_BYTES as usize;
    if bytes.len() <= most {
        return sink.put(whole, bytes.into()).await;
    }
    let mut from = whole.from;
    for part in bytes.chunks(most) {
        let piece = WalPiece {
            from,
            to: Lsn(from.0 + part.len() as u64),
            ..whole.clone()
        };
        from = piece.to;
        sink.put(&piece, part.to_vec().into()).await?;
    }
    Ok(())
}

enum Compared {
    Unknown,
    Same { has_all: bool },
    Differs { at: Lsn, other: StoredPiece },
}

/// Compares a file with what the vault has of its segment.
async fn compare(
    source: &dyn WalSource,
    piece: &WalPiece,
    bytes: &[u8],
    there: &[StoredPiece],
) -> Result<Compared, PushError> {
    let segment: WalSegment = piece.segment();
    let mut covered_to = piece.from;
    let mut is_all_known = true;
    let mut ordered: Vec<&StoredPiece> = there.iter().collect();
    ordered.sort_by_key(|other| other.from);
    for other in ordered {
        let (_, content) = match source.read(piece.system_identifier, other).await {
            Ok(read) => read,
            // A bad piece does not keep a good one out.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                is_all_known = false;
                continue;
            }
            Err(source) => {
                let name = piece_name(piece.system_identifier, segment, piece.segment_bytes, other);
                return Err(PushError::Vault {
                    doing: format!("read the piece {name}"),
                    source,
                });
            }
        };
        let offset = usize::try_from(other.from.0.saturating_sub(piece.from.0)).unwrap_or(usize::MAX);
        let ours = bytes.get(offset..).unwrap_or_default();
        if let Some(differs) = ours.iter().zip(&content).position(|(a, b)| a != b) {
            return Ok(Compared::Differs {
                at: Lsn(other.from.0 + differs as u64),
                other: other.clone(),
            });
        }
        if other.from <= covered_to {
            covered_to = covered_to.max(other.to);
        }
    }
    let has_all = covered_to >= piece.to;
    Ok(match is_all_known || has_all {
        true => Compared::Same { has_all },
        false => Compared::Unknown,
    })
}

/// A file's bytes, at most so many and one more, and when it was last written.
fn read(path: &Path, max_bytes: u64) -> Result<(Vec<u8>, Option<DateTime<Utc>>), PushError> {
    let failed = |source| PushError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(failed(io::Error::other("it is not a plain file")));
    }
    let mut bytes = Vec::new();
    let wanted = facts.len().min(max_bytes) + 1;
    bytes.reserve_exact(usize::try_from(wanted).unwrap_or_default());
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok((bytes, facts.modified().ok().map(DateTime::from)))
}
