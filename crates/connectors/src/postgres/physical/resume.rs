//! Where a receiver goes on: decided from what the vault has and what the server holds back, without asking anybody.

use strongroom_proto::wal::{Lsn, TimelineHistory, WalSegment};

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) timeline: u32,
    pub(super) at: Lsn,
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
    })
}

/// The timelines up to the one on which a slot holds WAL back, the oldest first.
pub(super) fn up_to(spans: &[Span], held: Lsn) -> &[Span] {
    let of_slot = spans.iter().position(|span| span.end.is_none_or(|end| end > held));
    of_slot.and_then(|index| spans.get(..=index)).unwrap_or(spans)
}

/// Where a receiver goes on on a timeline of which the vault has these pieces, in order; `None` where none ends before
/// what the slot holds back.
///
/// The slot was told of what is durable and of nothing else, so that all of what it holds back is asked for again. That
/// a piece beyond has a name does not show that it is sound: anybody who may make objects could have it passed over.
pub(super) fn resume(span: Span, pieces: &[(Lsn, Lsn)], held: Lsn) -> Option<Place> {
    let ends = pieces.iter().filter(|(from, _)| *from >= span.begin).map(|(_, to)| *to);
    ends.filter(|to| *to <= held).max().map(|at| Place {
        timeline: span.timeline,
        at,
    })
}

/// The end of what the vault's names say it has without a hole from `start` on.
pub(super) fn named_end(pieces: &[(Lsn, Lsn)], start: Lsn) -> Lsn {
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
    fn a_receiver_goes_on_with_what_the_slot_holds_back() {
        let pieces = [(lsn(10), lsn(20)), (lsn(20), lsn(25)), (lsn(30), lsn(40))];
        let at = |pieces, held| resume(current(), pieces, lsn(held)).map(|place| place.at);
        assert_eq!(at(&pieces, 25), Some(lsn(25)), "not beyond, whatever the names say");
        assert_eq!(at(&pieces, 40), Some(lsn(40)));
        // Never told to the slot as durable.
        assert_eq!(at(&pieces, 22), Some(lsn(20)));
        // A slot in front of which something is missing: that is asked for first.
        assert_eq!(at(&pieces, 55), Some(lsn(40)));
        assert_eq!(at(&pieces, 15), None);
        assert_eq!(at(&[], 5), None);
        assert_eq!(named_end(&pieces, lsn(15)), lsn(25));
        assert_eq!(named_end(&pieces, lsn(5)), lsn(5));
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
        // What was not durable on a timeline before comes first.
        for (held, timelines) in [(13, 1), (24, 1), (25, 2), (46, 2), (47, 3), (80, 3)] {
            assert_eq!(up_to(&spans, lsn(held)).len(), timelines, "up to {held}");
        }
        // What claims to be of a timeline before its beginning is not.
        assert_eq!(resume(spans[2], &[(lsn(30), lsn(44))], lsn(50)), None);
        assert_eq!(resume(spans[2], &[(lsn(40), lsn(44))], lsn(50)).unwrap().at, lsn(44));
    }
}
