//! A reader of pg_dump's custom archive format, for streams: it checks and counts while the bytes pass by.
//!
//! The format is that of `pg_backup_archiver.c` and `pg_backup_custom.c` of PostgreSQL, archive versions 1.12 to 1.16
//! (pg_dump 10 to 18), without compression: a header, a table of contents (TOC), then a block of data for each TOC
//! entry that has data, in pieces of a length and that many bytes, ended by a length of zero. Nothing marks the end of
//! an archive, so it is whole when every TOC entry that has data has had its block.
//!
//! Invariants: nothing of the data is copied or kept, whatever its size; what is kept of the TOC is bounded by
//! `contents::DATA_ENTRIES_MAX`; a byte that the format does not allow at its place is an error.

mod contents;

use std::collections::{BTreeMap, HashMap};

use self::contents::{FIXED_HEAD_BYTES, HeadField, TocEntry, TocField, TocStep, toc_or_data};
use super::digest::{LargeObjectDigest, RowDigest};
use super::tokens::{Fault, Tokens};

const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;

/// Why a stream is not a whole archive.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It does not begin like one.
    #[error("the stream is not a pg_dump archive in custom format")]
    NotAnArchive,
    /// A version this reader does not know.
    #[error("the archive has version {major}.{minor}; 1.12 to 1.16 can be read: upgrade Strongroom")]
    UnknownVersion {
        /// Major version of the format.
        major: u8,
        /// Minor version of the format.
        minor: u8,
    },
    /// Compressed data cannot be checked.
    #[error("the archive is compressed; it must be made with -Z0")]
    Compressed,
    /// Something at a place where the format does not allow it.
    #[error("the archive is damaged at byte {offset}: {what}")]
    Garbage {
        /// What is wrong.
        what: &'static str,
        /// Offset in the stream of the end of the piece in question, in bytes.
        offset: u64,
    },
    /// More than the named limit.
    #[error("the archive has more than {limit} {what}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The stream stopped in the middle.
    #[error("the archive ends early, at byte {offset}")]
    EndsEarly {
        /// Where, in bytes.
        offset: u64,
    },
    /// The stream stopped before the data of some entries.
    #[error("the archive ends early: the data of {missing} of {expected} entries is not in it")]
    DataMissing {
        /// Entries without their data.
        missing: usize,
        /// Entries that should have data.
        expected: usize,
    },
}

/// The data of one table as it passed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableData {
    /// Schema of the table.
    pub schema: String,
    /// Name of the table.
    pub name: String,
    /// Its object id on the server.
    pub oid: u32,
    /// Rows.
    pub rows: u64,
    /// Wrapping sum of XXH3-128 over the rows as COPY text.
    pub digest: u128,
}

/// What an archive held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// Version of the server, as the archive tells it.
    pub server_version: String,
    /// Version of the pg_dump that made it.
    pub tool_version: String,
    /// The data of every table, in the order of the stream.
    pub tables: Vec<TableData>,
    /// Number of large objects.
    pub large_objects: u64,
    /// Wrapping sum of XXH3-128 over each large object's id and content.
    pub large_object_digest: u128,
    /// Number of TOC entries of every kind that can be compared between two databases.
    pub objects: BTreeMap<String, u64>,
}

/// Reads one archive, fed in arbitrary slices.
#[derive(Debug)]
pub struct ArchiveReader {
    state: State,
    tokens: Tokens,
    minor: u8,
    offset_bytes: usize,
    /// Offset in the stream of the slice that is fed next.
    fed_bytes: u64,
    entry: TocEntry,
    pending: HashMap<i64, DataEntry>,
    data_entries: usize,
    current_table: Option<DataEntry>,
    rows: RowDigest,
    objects: LargeObjectDigest,
    /// Ids of large objects that passed since they were last taken, where somebody wants them.
    object_ids: Option<Vec<u32>>,
    summary: ArchiveSummary,
}

#[derive(Debug)]
enum State {
    FixedHead,
    Head(HeadField),
    Toc { left: i64, field: TocField },
    BlockKind,
    BlockId { large_objects: bool },
    DataLength,
    Data { left: u64 },
    LargeObjectId,
    LargeObjectLength,
    LargeObjectData { left: u64 },
}

#[derive(Debug)]
struct DataEntry {
    oid: u32,
    schema: String,
    name: String,
    is_table: bool,
}

impl Default for ArchiveReader {
    fn default() -> Self {
        Self {
            state: State::FixedHead,
            tokens: Tokens::default(),
            minor: 0,
            offset_bytes: 0,
            fed_bytes: 0,
            entry: TocEntry::default(),
            pending: HashMap::new(),
            data_entries: 0,
            current_table: None,
            rows: RowDigest::default(),
            objects: LargeObjectDigest::default(),
            object_ids: None,
            summary: ArchiveSummary::default(),
        }
    }
}

impl ArchiveReader {
    /// A reader that also tells which large objects pass.
    pub(crate) fn with_large_object_ids() -> Self {
        Self {
            object_ids: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// The ids of the large objects that passed since the last call.
    pub(crate) fn take_large_object_ids(&mut self) -> Vec<u32> {
        self.object_ids.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let mut input = bytes;
        let result = self.advance(&mut input);
        self.fed_bytes += (bytes.len() - input.len()) as u64;
        result.map_err(|fault| fault.at(self.fed_bytes))
    }

    /// The tables of which the archive holds data: schema, name and object id. `None` until the whole TOC has passed.
    pub fn data_tables(&self) -> Option<Vec<(String, String, u32)>> {
        match self.state {
            State::FixedHead | State::Head(_) | State::Toc { .. } => None,
            _ => {
                let waiting = self
                    .pending
                    .values()
                    .chain(&self.current_table)
                    .filter(|entry| entry.is_table);
                let passed = self
                    .summary
                    .tables
                    .iter()
                    .map(|t| (t.schema.clone(), t.name.clone(), t.oid));
                Some(
                    waiting
                        .map(|e| (e.schema.clone(), e.name.clone(), e.oid))
                        .chain(passed)
                        .collect(),
                )
            }
        }
    }

    /// The end of the stream: what the archive held, or an error where it is not whole.
    pub fn finish(self) -> Result<ArchiveSummary, ArchiveError> {
        if !matches!(self.state, State::BlockKind) {
            return Err(match self.state {
                State::FixedHead if self.fed_bytes == 0 => ArchiveError::NotAnArchive,
                _ => ArchiveError::EndsEarly { offset: self.fed_bytes },
            });
        }
        if !self.pending.is_empty() {
            return Err(ArchiveError::DataMissing {
                missing: self.pending.len(),
                expected: self.data_entries,
            });
        }
        Ok(ArchiveSummary {
            large_objects: self.objects.count(),
            large_object_digest: self.objects.sum(),
            ..self.summary
        })
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<(), Fault> {
        while !input.is_empty() {
            match &mut self.state {
                State::DataLength => {
                    let Some(length) = self.tokens.int(input) else { break };
                    match length {
                        0 => self.end_table()?,
                        1.. => {
                            self.state = State::Data {
                                left: length.unsigned_abs(),
                            }
                        }
                        _ => return Err(Fault::Garbage("a negative length")),
                    }
                }
                State::Data { left } => {
                    let piece = take(input, left);
                    let done = *left == 0;
                    self.rows.feed(piece).map_err(Fault::Garbage)?;
                    if done {
                        self.state = State::DataLength;
                    }
                }
                State::LargeObjectLength => {
                    let Some(length) = self.tokens.int(input) else { break };
                    self.state = match length {
                        0 => {
                            self.objects.end();
                            State::LargeObjectId
                        }
                        1.. => State::LargeObjectData {
                            left: length.unsigned_abs(),
                        },
                        _ => return Err(Fault::Garbage("a negative length")),
                    };
                }
                State::LargeObjectData { left } => {
                    let piece = take(input, left);
                    let done = *left == 0;
                    self.objects.feed(piece);
                    if done {
                        self.state = State::LargeObjectLength;
                    }
                }
                State::LargeObjectId => {
                    let Some(id) = self.tokens.int(input) else { break };
                    if id == 0 {
                        self.state = State::BlockKind;
                    } else {
                        // The tool writes an unsigned 32-bit id as a signed integer.
                        let id = i32::try_from(id).map_err(|_| Fault::Garbage("a large object's id"))?;
                        self.objects.begin(id.cast_unsigned());
                        if let Some(ids) = &mut self.object_ids {
                            ids.push(id.cast_unsigned());
                        }
                        self.state = State::LargeObjectLength;
                    }
                }
                State::BlockKind => {
                    let Some(kind) = self.tokens.byte(input) else { break };
                    let large_objects = match kind {
                        BLOCK_DATA => false,
                        BLOCK_LARGE_OBJECTS => true,
                        _ => return Err(Fault::Garbage("an unknown kind of block")),
                    };
                    self.state = State::BlockId { large_objects };
                }
                State::BlockId { large_objects } => {
                    let large_objects = *large_objects;
                    let Some(id) = self.tokens.int(input) else { break };
                    self.begin_block(id, large_objects)?;
                }
                State::FixedHead => {
                    let Some(head) = self.tokens.fixed::<FIXED_HEAD_BYTES>(input) else {
                        break;
                    };
                    self.read_fixed_head(head)?;
                }
                State::Head(field) => {
                    let field = *field;
                    if !self.read_head(field, input)? {
                        break;
                    }
                }
                State::Toc { left, field } => {
                    let (left, field) = (*left, *field);
                    match self.read_toc(field, input)? {
                        TocStep::NeedsMore => break,
                        TocStep::Next(field) => self.state = State::Toc { left, field },
                        TocStep::EntryEnded => self.state = toc_or_data(left - 1),
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_block(&mut self, id: i64, large_objects: bool) -> Result<(), Fault> {
        let entry = self
            .pending
            .remove(&id)
            .ok_or(Fault::Garbage("a block that the contents do not announce"))?;
        if entry.is_table == large_objects {
            return Err(Fault::Garbage("a block of another kind than announced"));
        }
        self.state = if large_objects {
            State::LargeObjectId
        } else {
            self.current_table = Some(entry);
            State::DataLength
        };
        Ok(())
    }

    fn end_table(&mut self) -> Result<(), Fault> {
        let (rows, digest) = self.rows.finish().map_err(Fault::Garbage)?;
        if let Some(table) = self.current_table.take() {
            self.summary.tables.push(TableData {
                schema: table.schema,
                name: table.name,
                oid: table.oid,
                rows,
                digest,
            });
        }
        self.state = State::BlockKind;
        Ok(())
    }
}

fn take<'a>(input: &mut &'a [u8], left: &mut u64) -> &'a [u8] {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    let (piece, rest) = input.split_at(length);
    *input = rest;
    *left -= length as u64;
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive as pg_dump 15 writes it, with one table and one large object.
    fn archive(rows: &str) -> Vec<u8> {
        let int = |out: &mut Vec<u8>, value: i32| {
            out.push(u8::from(value < 0));
            out.extend(value.unsigned_abs().to_le_bytes());
        };
        let text = |out: &mut Vec<u8>, value: &str| {
            out.push(0);
            out.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            out.extend(value.as_bytes());
        };
        let mut out = b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec();
        int(&mut out, 0);
        (0..7).for_each(|field| int(&mut out, field));
        ["shop", "15.18", "15.20"]
            .iter()
            .for_each(|value| text(&mut out, value));
        int(&mut out, 3);
        for (id, data, tag, kind) in [
            (7, 0, "orders", "TABLE"),
            (8, 1, "orders", "TABLE DATA"),
            (9, 1, "BLOBS", "BLOBS"),
        ] {
            int(&mut out, id);
            int(&mut out, data);
            ["1259", "16400", tag, kind]
                .iter()
                .for_each(|value| text(&mut out, value));
            int(&mut out, 2);
            ["CREATE …", "DROP …", "", "public", "", "heap", "shop", "false", "7"]
                .iter()
                .for_each(|value| text(&mut out, value));
            int(&mut out, -1);
            out.extend([0; 9]);
        }
        out.push(BLOCK_DATA);
        int(&mut out, 8);
        for piece in format!("{rows}\\.\n\n\n").split_inclusive('\n') {
            text(&mut out, piece);
        }
        int(&mut out, 0);
        out.push(BLOCK_LARGE_OBJECTS);
        int(&mut out, 9);
        int(&mut out, -5);
        text(&mut out, "picture");
        int(&mut out, 0);
        int(&mut out, 0);
        out
    }

    fn read(bytes: &[u8], piece_bytes: usize) -> Result<ArchiveSummary, ArchiveError> {
        let mut reader = ArchiveReader::default();
        for piece in bytes.chunks(piece_bytes) {
            reader.feed(piece)?;
        }
        reader.finish()
    }

    #[test]
    fn the_summary_does_not_depend_on_how_the_stream_is_cut() {
        let bytes = archive("1\tone\n2\ttwo\n");
        let whole = read(&bytes, bytes.len()).unwrap();
        assert_eq!(whole.tables.len(), 1);
        assert_eq!(
            (whole.tables[0].rows, whole.tables[0].oid, whole.large_objects),
            (2, 16400, 1)
        );
        assert_eq!(whole.tool_version, "15.20");
        assert_eq!(whole.objects, BTreeMap::from([("TABLE".to_owned(), 1)]));
        for piece_bytes in 1..40 {
            assert_eq!(
                read(&bytes, piece_bytes),
                Ok(whole.clone()),
                "cut every {piece_bytes} bytes"
            );
        }
    }

    #[test]
    fn the_digest_ignores_the_order_of_rows_and_nothing_else() {
        let digest = |rows: &str| read(&archive(rows), 64).unwrap().tables[0].digest;
        assert_eq!(digest("1\tone\n2\ttwo\n"), digest("2\ttwo\n1\tone\n"));
        assert_ne!(digest("1\tone\n2\ttwo\n"), digest("1\tone\n2\ttwO\n"));
        assert_ne!(digest("1\tone\n2\ttwo\n"), digest("1\ttwo\n2\tone\n"));
        assert_ne!(digest("1\n"), digest("1\n1\n"));
    }

    #[test]
    fn every_shortened_archive_is_refused() {
        let bytes = archive("1\tone\n2\ttwo\n");
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length], 16).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        assert_eq!(
            read(b"-- plain SQL, not an archive", 7),
            Err(ArchiveError::NotAnArchive)
        );
        let bytes = archive("1\tone\n");
        let mut more = bytes.clone();
        more.push(9);
        assert!(matches!(read(&more, 16), Err(ArchiveError::Garbage { .. })));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x80;
            // Many flips are in texts that are passed over; none may bring the reader down.
            let _ = read(&flipped, 16);
        }
    }

    #[test]
    fn a_table_whose_end_marker_is_missing_is_refused() {
        let bytes = archive("1\tone\n");
        let at = memchr::memmem::find(&bytes, b"\\.\n").unwrap();
        let mut changed = bytes;
        changed[at] = b'x';
        assert!(matches!(read(&changed, 16), Err(ArchiveError::Garbage { .. })));
    }
}
