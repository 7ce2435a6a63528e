//! Where a receiver goes on: decided from what the vault has and what the server holds back, without asking anybody.

use std::collections::VecDeque;

use strongroom_proto::wal::{Lsn, TimelineHistory, WalSegment};

/// Where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) timeline: u32,
    pub(super) at: Lsn,
    /// What the vault has beyond, in order: pieces that were stored before one in front of them was.
    pub(super) ahead: VecDeque<(Lsn, Lsn)>,
}

/// A timeline of the server's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) timeline: u32,
    /// Where it was left; `None` for the current one.
    pub(super) end: Option<Lsn>,
    /// The segment in which it begins; zero for the first.
    pub(super) begin: Lsn,
}

/// The timelines of a server, the oldest first.
pub(super) fn spans(timeline: u32, history: Option<&TimelineHistory>, segment_bytes: u32) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut begin = Lsn(0);
    for switch in history.map(|history| &*history.ancestors).unwrap_or_default() {
        spans.push(Span {
            timeline: switch.timeline,
            end: Some(switch.at),
            begin,
        });
        begin = segment_begin(switch.at, segment_bytes);
    }
    spans.push(Span {
        timeline,
        end: None,
        begin,
    });
    spans
}

/// Where a receiver begins that has nothing to go on from: with the segment that holds `from`, on the timeline that does.
pub(super) fn fresh(spans: &[Span], from: Lsn, segment_bytes: u32) -> Option<Place> {
    let span = spans.iter().find(|span| span.end.is_none_or(|end| end > from))?;
    Some(Place {
        timeline: span.timeline,
        at: segment_begin(from, segment_bytes).max(span.begin),
        ahead: VecDeque::new(),
    })
}

/// Where a receiver goes on on a timeline of which the vault has these pieces, in order; `None` where it has none.
///
/// What was durable without a hole was reported to the slot, so that the slot's place is in what has no hole; a piece
/// beyond a hole was stored before its turn.
pub(super) fn resume(span: Span, pieces: &[(Lsn, Lsn)], restart: Option<Lsn>, segment_bytes: u32) -> Option<Place> {
    let last = pieces.iter().map(|(_, to)| *to).max()?;
    let at = match restart.map(|restart| restart.max(span.begin)) {
        None => last,
        Some(restart) => {
            let whole = pieces
                .iter()
                .filter(|(from, to)| *from <= restart && restart <= *to)
                .map(|(_, to)| *to)
                .max()
                .map(|start| chain(pieces, start));
            let before = pieces.iter().map(|(_, to)| *to).filter(|to| *to < restart).max();
            whole
                .or(before)
                .unwrap_or_else(|| segment_begin(restart, segment_bytes).max(span.begin))
        }
    };
    Some(Place {
        timeline: span.timeline,
        at,
        ahead: pieces.iter().filter(|(_, to)| *to > at).copied().collect(),
    })
}

/// The end of what has no hole from `start` on.
fn chain(pieces: &[(Lsn, Lsn)], start: Lsn) -> Lsn {
    pieces
        .iter()
        .fold(start, |end, (from, to)| if *from <= end { end.max(*to) } else { end })
}

pub(super) fn segment_begin(at: Lsn, segment_bytes: u32) -> Lsn {
    WalSegment::holding(1, at, segment_bytes).begin(segment_bytes)
}

#[cfg(test)]
mod tests {
    use strongroom_proto::wal::TimelineSwitch;

    use super::*;

    const MIB: u32 = 1 << 20;

    fn lsn(mib_tenths: u64) -> Lsn {
        Lsn(mib_tenths * u64::from(MIB) / 10)
    }

    fn current() -> Span {
        spans(1, None, MIB)[0]
    }

    #[test]
    fn a_receiver_goes_on_where_the_vault_has_no_hole() {
        let pieces = [(lsn(10), lsn(20)), (lsn(20), lsn(25)), (lsn(30), lsn(40))];
        let place = resume(current(), &pieces, Some(lsn(15)), MIB).unwrap();
        assert_eq!((place.at, place.ahead), (lsn(25), [(lsn(30), lsn(40))].into()));
        let place = resume(current(), &pieces, Some(lsn(40)), MIB).unwrap();
        assert_eq!((place.at, place.ahead.len()), (lsn(40), 0));
        // A slot made anew says nothing of what was stored.
        assert_eq!(resume(current(), &pieces, None, MIB).unwrap().at, lsn(40));
        // A slot in front of which something is missing: that is asked for first.
        assert_eq!(resume(current(), &pieces, Some(lsn(55)), MIB).unwrap().at, lsn(40));
        assert_eq!(resume(current(), &pieces, Some(lsn(5)), MIB).unwrap().at, lsn(0));
        assert_eq!(resume(current(), &[], Some(lsn(5)), MIB), None);
    }

    #[test]
    fn timelines_begin_with_the_segment_of_their_switch() {
        let history = TimelineHistory {
            timeline: 3,
            ancestors: vec![
                TimelineSwitch {
                    timeline: 1,
                    at: lsn(25),
                },
                TimelineSwitch {
                    timeline: 2,
                    at: lsn(47),
                },
            ],
        };
        let spans = spans(3, Some(&history), MIB);
        let places: Vec<(u32, Lsn)> = spans.iter().map(|span| (span.timeline, span.begin)).collect();
        assert_eq!(places, [(1, lsn(0)), (2, lsn(20)), (3, lsn(40))]);
        for (from, timeline, at) in [(13, 1, 10), (25, 2, 20), (31, 2, 30), (47, 3, 40), (80, 3, 80)] {
            let place = fresh(&spans, lsn(from), MIB).unwrap();
            assert_eq!((place.timeline, place.at), (timeline, lsn(at)), "from {from}");
        }
        // A slot that stands before the timeline: its pieces still have no hole.
        let pieces = [(lsn(40), lsn(44))];
        assert_eq!(resume(spans[2], &pieces, Some(lsn(30)), MIB).unwrap().at, lsn(44));
    }
}
