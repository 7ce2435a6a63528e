//! Pages of WAL: what a segment says of itself at its beginning, and where its records end.
//!
//! After `src/include/access/xlog_internal.h` of Postgres, versions 15 to 18, on machines that put the low byte first.

use strongroom_proto::wal::{Lsn, SystemIdentifier, WalSegment};

/// The high byte of the number that every page begins with, and the lowest such number that is taken: Postgres 15's.
const MAGIC_HIGH_BYTE: u16 = 0xD1;
const MAGIC_OF_15: u16 = 0xD110;
/// In a page's flags: its first record began on an earlier page.
pub(crate) const FIRST_IS_CONTINUED: u16 = 0x0001;
/// In a page's flags: it has the long header, as the first of a segment has.
pub(crate) const LONG_HEADER: u16 = 0x0002;
pub(crate) const SHORT_HEADER_BYTES: usize = 24;
pub(crate) const LONG_HEADER_BYTES: usize = 40;
/// No record is shorter than its header.
pub(crate) const RECORD_HEADER_BYTES: u32 = 24;
/// Where a record may begin.
const RECORD_ALIGNMENT: usize = 8;

/// The beginning of a segment is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadProblem {
    /// Too little to tell.
    #[error("it is too short to begin as WAL does")]
    Short,
    /// Something else, or of an older Postgres.
    #[error("it does not begin as WAL of Postgres 15 or newer does (first bytes {found:04X})")]
    Magic {
        /// The number it begins with.
        found: u16,
    },
    /// A page from the middle of a segment.
    #[error("it does not begin with the first page of a segment")]
    NotFirst,
    /// The name and the content differ.
    #[error("its first page is of {found}, and its name means {expected}")]
    Address {
        /// What the page says.
        found: Lsn,
        /// What the name says.
        expected: Lsn,
    },
    /// A page of a later timeline than the name's.
    #[error("its first page is of timeline {found}, and its name means timeline {expected}")]
    Timeline {
        /// What the page says.
        found: u32,
        /// What the name says.
        expected: u32,
    },
    /// Another cluster's.
    #[error("it is WAL of the cluster with system identifier {found}, not of {expected}")]
    System {
        /// What the page says.
        found: SystemIdentifier,
        /// What was asked for.
        expected: SystemIdentifier,
    },
    /// Segments of another size.
    #[error("it is of a cluster with segments of {found} bytes, not of {expected}")]
    SegmentBytes {
        /// What the page says.
        found: u32,
        /// What was assumed.
        expected: u32,
    },
    /// A page size that Postgres cannot be built with.
    #[error("it says that its pages have {found} bytes")]
    PageBytes {
        /// What the page says.
        found: u32,
    },
}

/// What the first page of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) timeline: u32,
    pub(super) address: Lsn,
    pub(super) system_identifier: SystemIdentifier,
    pub(super) segment_bytes: u32,
    pub(super) page_bytes: u32,
}

struct Page {
    flags: u16,
    timeline: u32,
    address: Lsn,
    continued_bytes: u32,
}

impl Page {
    fn parse(bytes: &[u8]) -> Result<Self, HeadProblem> {
        let magic = u16_at(bytes, 0).ok_or(HeadProblem::Short)?;
        if magic >> 8 != MAGIC_HIGH_BYTE || magic < MAGIC_OF_15 {
            return Err(HeadProblem::Magic { found: magic });
        }
        let page = (|| {
            Some(Self {
                flags: u16_at(bytes, 2)?,
                timeline: u32_at(bytes, 4)?,
                address: Lsn(u64_at(bytes, 8)?),
                continued_bytes: u32_at(bytes, 16)?,
            })
        })();
        page.ok_or(HeadProblem::Short)
    }

    const fn header_bytes(&self) -> usize {
        match self.flags & LONG_HEADER {
            0 => SHORT_HEADER_BYTES,
            _ => LONG_HEADER_BYTES,
        }
    }
}

impl Head {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HeadProblem> {
        let page = Page::parse(bytes)?;
        if page.flags & LONG_HEADER == 0 {
            return Err(HeadProblem::NotFirst);
        }
        let rest = (|| Some((u64_at(bytes, 24)?, u32_at(bytes, 32)?, u32_at(bytes, 36)?)))();
        let (system, segment_bytes, page_bytes) = rest.ok_or(HeadProblem::Short)?;
        if !page_bytes.is_power_of_two() || !(1024..=65536).contains(&page_bytes) {
            return Err(HeadProblem::PageBytes { found: page_bytes });
        }
        Ok(Self {
            timeline: page.timeline,
            address: page.address,
            system_identifier: SystemIdentifier(system),
            segment_bytes,
            page_bytes,
        })
    }

    /// Makes sure that this is the beginning of this segment.
    pub(super) fn check(
        &self,
        system: SystemIdentifier,
        segment: WalSegment,
        segment_bytes: u32,
    ) -> Result<(), HeadProblem> {
        if self.system_identifier != system {
            return Err(HeadProblem::System {
                found: self.system_identifier,
                expected: system,
            });
        }
        if self.segment_bytes != segment_bytes {
            return Err(HeadProblem::SegmentBytes {
                found: self.segment_bytes,
                expected: segment_bytes,
            });
        }
        let expected = segment.begin(segment_bytes);
        if self.address != expected {
            return Err(HeadProblem::Address {
                found: self.address,
                expected,
            });
        }
        // The first segment of a timeline begins with pages of the one before.
        if self.timeline == 0 || self.timeline > segment.timeline {
            return Err(HeadProblem::Timeline {
                found: self.timeline,
                expected: segment.timeline,
            });
        }
        Ok(())
    }
}

/// How many bytes of a segment hold whole records, with the pages' headers: where Postgres would write the next one. A
/// record that goes on in the next segment counts as whole.
pub(super) fn content_bytes(segment: &[u8], head: &Head) -> usize {
    let mut cursor = Cursor { segment, head, at: 0 };
    let Some(first) = cursor.enter() else { return 0 };
    let mut end = cursor.at;
    let mut record_bytes = match first.flags & FIRST_IS_CONTINUED {
        0 => 0,
        _ => first.continued_bytes,
    };
    loop {
        match cursor.skip(record_bytes) {
            Skipped::Within => {}
            Skipped::PastEnd => return segment.len(),
            Skipped::Broken => return end,
        }
        end = cursor.at;
        if cursor.at == segment.len() {
            return end;
        }
        if cursor.at.is_multiple_of(cursor.page_bytes()) && cursor.enter().is_none() {
            return end;
        }
        record_bytes = match u32_at(segment, cursor.at) {
            Some(bytes) if bytes >= RECORD_HEADER_BYTES => bytes,
            _ => return end,
        };
    }
}

struct Cursor<'a> {
    segment: &'a [u8],
    head: &'a Head,
    at: usize,
}

enum Skipped {
    Within,
    PastEnd,
    Broken,
}

impl Cursor<'_> {
    const fn page_bytes(&self) -> usize {
        self.head.page_bytes as usize
    }

    /// Steps over the header of the page that begins here; `None` where it is not one, or a leftover.
    fn enter(&mut self) -> Option<Page> {
        let page = Page::parse(self.segment.get(self.at..)?).ok()?;
        (page.address.0 == self.head.address.0 + self.at as u64).then(|| {
            self.at += page.header_bytes();
            page
        })
    }

    /// Steps over so many bytes of records, and to where the next one may begin.
    fn skip(&mut self, bytes: u32) -> Skipped {
        let mut left = bytes as usize;
        loop {
            let room = self.page_bytes() - self.at % self.page_bytes();
            // At a page's beginning nothing was entered yet: all of a page that ended exactly is behind.
            let room = if room == self.page_bytes() { 0 } else { room };
            if left <= room {
                self.at = (self.at + left).next_multiple_of(RECORD_ALIGNMENT);
                return Skipped::Within;
            }
            left -= room;
            self.at += room;
            if self.at >= self.segment.len() {
                return Skipped::PastEnd;
            }
            if self.enter().is_none() {
                return Skipped::Broken;
            }
        }
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const MIB: u32 = 1 << 20;
    pub(crate) const SYSTEM: SystemIdentifier = SystemIdentifier(7_566_123_456_789_012_345);
    const PAGE: usize = 8192;

    /// A segment of 1 MiB with records of these lengths, one after the other, whose bytes are the number of the record.
    pub(crate) fn segment_of(segment: WalSegment, records: &[u32]) -> Vec<u8> {
        let mut made = Made {
            bytes: Vec::new(),
            segment,
        };
        made.page(0, 0);
        for (number, &length) in (1..).zip(records) {
            let mut content = vec![number; length as usize];
            if let Some(place) = content.get_mut(..4) {
                place.copy_from_slice(&length.to_le_bytes());
            }
            made.append(&content);
        }
        made.bytes.resize(MIB as usize, 0);
        made.bytes
    }

    struct Made {
        bytes: Vec<u8>,
        segment: WalSegment,
    }

    impl Made {
        fn page(&mut self, flags: u16, continued: u32) {
            let is_first = self.bytes.is_empty();
            let address = self.segment.begin(MIB).0 + self.bytes.len() as u64;
            self.bytes.extend_from_slice(&0xD118_u16.to_le_bytes());
            let flags = flags | if is_first { LONG_HEADER } else { 0 };
            self.bytes.extend_from_slice(&flags.to_le_bytes());
            self.bytes.extend_from_slice(&self.segment.timeline.to_le_bytes());
            self.bytes.extend_from_slice(&address.to_le_bytes());
            self.bytes.extend_from_slice(&continued.to_le_bytes());
            self.bytes.extend_from_slice(&[0; 4]);
            if is_first {
                self.bytes.extend_from_slice(&SYSTEM.0.to_le_bytes());
                self.bytes.extend_from_slice(&MIB.to_le_bytes());
                self.bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
            }
        }

        fn append(&mut self, mut record: &[u8]) {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page(0, 0);
            }
            loop {
                let room = PAGE - self.bytes.len() % PAGE;
                let (now, rest) = record.split_at(record.len().min(room));
                self.bytes.extend_from_slice(now);
                record = rest;
                if record.is_empty() {
                    break;
                }
                self.page(FIRST_IS_CONTINUED, u32::try_from(record.len()).unwrap());
            }
            self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        }
    }

    fn content(bytes: &[u8]) -> usize {
        content_bytes(bytes, &Head::parse(bytes).unwrap())
    }

    const FIFTH: WalSegment = WalSegment { timeline: 1, number: 5 };

    #[test]
    fn content_ends_after_the_last_whole_record() {
        assert_eq!(content(&segment_of(FIFTH, &[])), 40);
        assert_eq!(content(&segment_of(FIFTH, &[24])), 64);
        assert_eq!(content(&segment_of(FIFTH, &[25, 30])), 40 + 32 + 32);
        // Up to the page's last byte: the next record would follow a header, but nothing does.
        assert_eq!(content(&segment_of(FIFTH, &[8192 - 40])), 8192);
        assert_eq!(content(&segment_of(FIFTH, &[8192 - 40, 24])), 8192 + 24 + 24);
        // Over three pages.
        assert_eq!(content(&segment_of(FIFTH, &[20_000])), 40 + 20_000 + 2 * 24);
        // A record that ends in zeros is whole all the same.
        let mut zeros = segment_of(FIFTH, &[200]);
        zeros[44..240].fill(0);
        assert_eq!(content(&zeros), 240);
    }

    #[test]
    fn leftovers_of_an_older_use_of_the_file_are_no_content() {
        let mut bytes = segment_of(FIFTH, &[8192 - 40]);
        let old = segment_of(WalSegment { timeline: 1, number: 2 }, &[100_000]);
        bytes[8192..].copy_from_slice(&old[8192..]);
        assert_eq!(content(&bytes), 8192);
        // A record that was being written when the server died: its second page never came.
        let mut torn = segment_of(FIFTH, &[64, 10_000]);
        torn[8192..].fill(0);
        assert_eq!(content(&torn), 40 + 64);
    }

    #[test]
    fn a_record_that_goes_on_in_the_next_segment_fills_this_one() {
        let mut bytes = segment_of(FIFTH, &[100]);
        bytes[144..148].copy_from_slice(&(3 * MIB).to_le_bytes());
        for page in 1..128_usize {
            let address = FIFTH.begin(MIB).0 + (page * PAGE) as u64;
            let from = page * PAGE;
            bytes.copy_within(0..24, from);
            bytes[from + 2..from + 4].copy_from_slice(&FIRST_IS_CONTINUED.to_le_bytes());
            bytes[from + 8..from + 16].copy_from_slice(&address.to_le_bytes());
        }
        assert_eq!(content(&bytes), MIB as usize);
    }

    #[test]
    fn a_head_is_checked_against_the_name() {
        let bytes = segment_of(FIFTH, &[24]);
        let head = Head::parse(&bytes).unwrap();
        assert_eq!(head.check(SYSTEM, FIFTH, MIB), Ok(()));
        // Pages of the timeline before begin the first segment of a new one.
        let promoted = WalSegment { timeline: 2, number: 5 };
        assert_eq!(head.check(SYSTEM, promoted, MIB), Ok(()));
        let second = Head::parse(&segment_of(promoted, &[])).unwrap();
        assert!(matches!(
            second.check(SYSTEM, FIFTH, MIB),
            Err(HeadProblem::Timeline { .. })
        ));
        let other = SystemIdentifier(1);
        assert!(matches!(head.check(other, FIFTH, MIB), Err(HeadProblem::System { .. })));
        assert!(matches!(
            head.check(SYSTEM, WalSegment { timeline: 1, number: 6 }, MIB),
            Err(HeadProblem::Address { .. })
        ));
        assert!(matches!(
            head.check(SYSTEM, FIFTH, 16 * MIB),
            Err(HeadProblem::SegmentBytes { .. })
        ));
        assert_eq!(Head::parse(&[]), Err(HeadProblem::Short));
        assert_eq!(Head::parse(&bytes[..30]), Err(HeadProblem::Short));
        assert_eq!(Head::parse(&[0; 64]), Err(HeadProblem::Magic { found: 0 }));
        assert_eq!(Head::parse(&bytes[8192..]), Err(HeadProblem::Magic { found: 0 }));
        let mut old = bytes.clone();
        old[0] = 0x0d;
        assert_eq!(Head::parse(&old), Err(HeadProblem::Magic { found: 0xd10d }));
        let mut short = bytes.clone();
        short[2] = 0;
        assert_eq!(Head::parse(&short), Err(HeadProblem::NotFirst));
    }
}
