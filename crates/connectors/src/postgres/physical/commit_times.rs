//! The times of commits, read from WAL as it comes: until when WAL holds everything that was committed, where the server's
//! clock does not tell, because the server is a standby and its primary may have written more.
//!
//! Format: `access/xlogrecord.h`, `access/xlog_internal.h` and `access/xact.h` of PostgreSQL 15 to 18, little-endian, with pages
//! of 8 KiB. What is built otherwise is not understood, and tells no time.

use chrono::{DateTime, Utc};
use strongroom_proto::wal::Lsn;

use super::streaming;
use crate::postgres::wal::page::{
    FIRST_IS_CONTINUED, LONG_HEADER, LONG_HEADER_BYTES, RECORD_HEADER_BYTES, SHORT_HEADER_BYTES,
};

const PAGE_BYTES: u64 = 8192;
/// What is kept of a record: its header, an origin, a transaction above it, and the time.
const KEPT_BYTES: usize = 64;
/// The resource manager of transactions, and what of its records tells a time: commits and aborts, of prepared ones too.
const XACT: u8 = 1;
const XACT_KIND: u8 = 0x70;
const XACT_KINDS: [u8; 4] = [0x00, 0x20, 0x30, 0x40];

/// Reads WAL of one timeline, in order.
#[derive(Debug, Default)]
pub(super) struct CommitTimes {
    /// The page's header, while it comes.
    header: Option<Vec<u8>>,
    /// `None` until the beginning of a record is found.
    record: Option<Record>,
    /// Of the page, before the next record begins; `None` where none does.
    skipped_bytes: Option<u64>,
    last: Option<DateTime<Utc>>,
}

#[derive(Debug, Default)]
struct Record {
    kept: Vec<u8>,
    read_bytes: u32,
    /// Zero until it is read.
    total_bytes: u32,
}

impl CommitTimes {
    /// The newest one of a record that has come whole.
    pub(super) fn last(&self) -> Option<DateTime<Utc>> {
        self.last
    }

    /// Reads what lies at a place. It goes on from what was read before.
    pub(super) fn read(&mut self, from: Lsn, mut bytes: &[u8]) {
        let mut at = from.0;
        while !bytes.is_empty() {
            if at.is_multiple_of(PAGE_BYTES) {
                self.header = Some(Vec::with_capacity(LONG_HEADER_BYTES));
            }
            let in_page = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).unwrap_or(usize::MAX);
            let page = bytes.get(..in_page).unwrap_or(bytes);
            let taken = match self.header.take() {
                Some(header) => self.take_header(at, header, page),
                None => self.take_records(at, page),
            };
            at += taken as u64;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    fn take_header(&mut self, at: u64, mut header: Vec<u8>, page: &[u8]) -> usize {
        let is_long = header.len() >= 4 && number(&header, 2, 2) as u16 & LONG_HEADER != 0;
        let wanted = if is_long { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES };
        let taken = (wanted - header.len()).min(page.len());
        header.extend(page.iter().take(taken));
        if header.len() < wanted {
            self.header = Some(header);
            return taken;
        }
        let flags = number(&header, 2, 2) as u16;
        if flags & LONG_HEADER != 0 && !is_long {
            self.header = Some(header);
            return taken;
        }
        let begin = at + taken as u64 - wanted as u64;
        let rest = if flags & FIRST_IS_CONTINUED == 0 {
            0
        } else {
            number(&header, 16, 4)
        };
        let is_page = number(&header, 0, 2) != 0 && number(&header, 8, 8) == begin;
        let left = self.record.as_ref().map_or(0, Record::left_bytes);
        if !is_page {
            (self.record, self.skipped_bytes) = (None, None);
        } else if self.record.is_none() || left != rest {
            (self.record, self.skipped_bytes) = (None, Some(rest.next_multiple_of(8)));
        }
        taken
    }

    fn take_records(&mut self, at: u64, page: &[u8]) -> usize {
        let Some(record) = &mut self.record else {
            let Some(skipped) = &mut self.skipped_bytes else {
                return page.len();
            };
            let taken = usize::try_from(*skipped).unwrap_or(usize::MAX).min(page.len());
            *skipped -= taken as u64;
            if *skipped == 0 {
                self.record = Some(Record::default());
                self.skipped_bytes = None;
            }
            return taken;
        };
        if record.read_bytes == 0 && !at.is_multiple_of(8) {
            let padding = usize::try_from(8 - at % 8).unwrap_or_default();
            return padding.min(page.len());
        }
        let taken = record.take(page);
        if record.is_none() {
            // The rest of a segment that was left early.
            self.record = None;
        } else if record.is_whole() {
            self.last = self.last.max(record.time());
            *record = Record::default();
        }
        taken
    }
}

impl Record {
    /// Takes what belongs to it; at least one byte.
    fn take(&mut self, page: &[u8]) -> usize {
        let wanted = match self.total_bytes {
            0 => 4 - self.read_bytes,
            total => total - self.read_bytes,
        };
        let taken = page.len().min(wanted as usize);
        let room = KEPT_BYTES.saturating_sub(self.kept.len());
        self.kept.extend(page.iter().take(taken.min(room)));
        self.read_bytes += taken as u32;
        if self.read_bytes == 4 {
            self.total_bytes = number(&self.kept, 0, 4) as u32;
        }
        taken
    }

    fn left_bytes(&self) -> u64 {
        u64::from(self.total_bytes.saturating_sub(self.read_bytes))
    }

    fn is_none(&self) -> bool {
        self.read_bytes >= 4 && self.total_bytes < RECORD_HEADER_BYTES
    }

    fn is_whole(&self) -> bool {
        self.total_bytes != 0 && self.read_bytes == self.total_bytes
    }

    /// When its transaction ended, where it tells that one did.
    fn time(&self) -> Option<DateTime<Utc>> {
        let (info, manager) = (*self.kept.get(16)?, *self.kept.get(17)?);
        if manager != XACT || !XACT_KINDS.contains(&(info & XACT_KIND)) {
            return None;
        }
        let mut at = RECORD_HEADER_BYTES as usize;
        loop {
            match *self.kept.get(at)? {
                // The transaction above it, and the origin.
                252 => at += 5,
                253 => at += 3,
                // Its own data: short and long.
                255 => break at += 2,
                254 => break at += 5,
                _ => return None,
            }
        }
        self.kept.get(at..at + 8)?;
        streaming::time(number(&self.kept, at, 8) as i64)
    }
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = bytes.get(at..at + length).unwrap_or_default();
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WAL from the beginning of a page on.
    struct Pages {
        begin: u64,
        bytes: Vec<u8>,
    }

    impl Pages {
        fn at(begin: u64) -> Self {
            let bytes = Vec::new();
            Self { begin, bytes }
        }

        fn header(&mut self, left: u32) {
            let is_first = self.bytes.is_empty();
            let flags = u16::from(left > 0) | if is_first { LONG_HEADER } else { 0 };
            let address = self.begin + self.bytes.len() as u64;
            self.bytes.extend(0xD110_u16.to_le_bytes());
            self.bytes.extend(flags.to_le_bytes());
            self.bytes.extend(1_u32.to_le_bytes());
            self.bytes.extend(address.to_le_bytes());
            self.bytes.extend(left.to_le_bytes());
            self.bytes.extend([0; 4]);
            if is_first {
                self.bytes.extend([7; 16]);
            }
        }

        fn record(&mut self, manager: u8, info: u8, rest: &[u8]) {
            while !self.bytes.len().is_multiple_of(8) {
                self.bytes.push(0);
            }
            let mut record = (24 + rest.len() as u32).to_le_bytes().to_vec();
            record.extend([0; 12]);
            record.extend([info, manager]);
            record.extend([0; 6]);
            record.extend(rest);
            for (index, byte) in record.iter().enumerate() {
                if (self.bytes.len() as u64).is_multiple_of(PAGE_BYTES) {
                    self.header((record.len() - index) as u32 * u32::from(index > 0));
                }
                self.bytes.push(*byte);
            }
        }

        fn commit(&mut self, microseconds: i64) {
            let mut rest = vec![253, 1, 0, 255, 8];
            rest.extend(microseconds.to_le_bytes());
            self.record(XACT, 0x80, &rest);
        }
    }

    /// Two commits with a long record between, the first at 1 µs and the last at 3 µs.
    fn pages(begin: u64) -> Pages {
        let mut pages = Pages::at(begin);
        pages.commit(1);
        // Looks like a commit, and is another's.
        let mut other = vec![255, 8];
        other.extend(i64::to_le_bytes(9_000_000));
        pages.record(10, 0, &other);
        pages.record(XACT, 0x10, &other);
        pages.record(0, 0xB0, &vec![255; 20_001]);
        pages.commit(3);
        pages
    }

    fn micros(times: &CommitTimes) -> Option<i64> {
        times
            .last()
            .map(|time| time.timestamp_micros() - streaming::EPOCH_MICROSECONDS)
    }

    #[test]
    fn commits_are_read_however_the_bytes_come() {
        let begin = 5 * PAGE_BYTES;
        let pages = pages(begin);
        for step in [1, 7, 24, 8192, 100_000] {
            let mut times = CommitTimes::default();
            let mut at = begin;
            for part in pages.bytes.chunks(step) {
                times.read(Lsn(at), part);
                at += part.len() as u64;
            }
            assert_eq!(micros(&times), Some(3), "by {step}");
            let mut cut = CommitTimes::default();
            cut.read(Lsn(begin), &pages.bytes[..pages.bytes.len() - 1]);
            assert_eq!(micros(&cut), Some(1), "a record that has not come whole");
        }
    }

    #[test]
    fn a_reader_that_begins_anywhere_finds_the_next_record() {
        let begin = 5 * PAGE_BYTES;
        let pages = pages(begin);
        for from in [1, 41, 100, 8000, 8192, 8200, 16_384] {
            let mut times = CommitTimes::default();
            times.read(Lsn(begin + from as u64), &pages.bytes[from..]);
            assert_eq!(micros(&times), Some(3), "from {from}");
        }
    }

    #[test]
    fn a_segment_that_was_left_early_is_passed_over() {
        let mut pages = pages(0);
        let length = (pages.bytes.len() as u64).next_multiple_of(4 * PAGE_BYTES);
        pages.bytes.resize(length as usize, 0);
        let mut next = Pages::at(length);
        next.commit(5);
        pages.bytes.extend(next.bytes);
        let mut times = CommitTimes::default();
        times.read(Lsn(0), &pages.bytes);
        assert_eq!(micros(&times), Some(5));
        // What is no WAL at all tells nothing.
        let mut times = CommitTimes::default();
        times.read(Lsn(0), &[0xFF; 40_000]);
        assert_eq!(micros(&times), None);
    }
}
