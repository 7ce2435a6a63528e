//! What comes before the data: the header and the table of contents.

use super::super::tokens::{Fault, Keep};
use super::{ArchiveError, ArchiveReader, DataEntry, State};

/// The most TOC entries that an archive may have.
const TOC_ENTRIES_MAX: i64 = 20_000_000;
/// The most TOC entries with data, of which the names are kept in memory.
const DATA_ENTRIES_MAX: usize = 1_000_000;

pub(super) const FIXED_HEAD_BYTES: usize = 11;
const FORMAT_CUSTOM: u8 = 1;

#[derive(Debug, Clone, Copy)]
pub(super) enum HeadField {
    Compression,
    Time { left: u8 },
    Database,
    ServerVersion,
    ToolVersion,
    TocCount,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TocField {
    Id,
    HasData,
    TableOid,
    Oid,
    Tag,
    Kind,
    Section,
    Definition,
    DropStatement,
    CopyStatement,
    Schema,
    Tablespace,
    AccessMethod,
    RelationKind,
    Owner,
    WithOids,
    Dependencies,
    OffsetFlag,
    Offset,
}

#[derive(Debug, Default)]
pub(super) struct TocEntry {
    id: i64,
    has_data: bool,
    oid: String,
    tag: String,
    kind: String,
    schema: String,
}

pub(super) enum TocStep {
    NeedsMore,
    Next(TocField),
    EntryEnded,
}

impl ArchiveReader {
    pub(super) fn read_fixed_head(&mut self, head: [u8; FIXED_HEAD_BYTES]) -> Result<(), Fault> {
        let [
            m0,
            m1,
            m2,
            m3,
            m4,
            major,
            minor,
            _revision,
            int_bytes,
            offset_bytes,
            format,
        ] = head;
        if &[m0, m1, m2, m3, m4] != b"PGDMP" || format != FORMAT_CUSTOM {
            return Err(Fault::Other(ArchiveError::NotAnArchive));
        }
        if major != 1 || !(12..=16).contains(&minor) {
            return Err(Fault::Other(ArchiveError::UnknownVersion { major, minor }));
        }
        if !matches!(int_bytes, 4 | 8) || !(4..=8).contains(&offset_bytes) {
            return Err(Fault::Garbage("an unknown size of integers"));
        }
        self.minor = minor;
        self.tokens.int_bytes = usize::from(int_bytes);
        self.offset_bytes = usize::from(offset_bytes);
        self.state = State::Head(HeadField::Compression);
        Ok(())
    }

    /// Reads one field of the header; false where the input ended in the middle of it.
    pub(super) fn read_head(&mut self, field: HeadField, input: &mut &[u8]) -> Result<bool, Fault> {
        let next = match field {
            HeadField::Compression => {
                let value = match self.minor {
                    15.. => self.tokens.byte(input).map(i64::from),
                    _ => self.tokens.int(input),
                };
                match value {
                    None => return Ok(false),
                    Some(0) => HeadField::Time { left: 7 },
                    Some(_) => return Err(Fault::Other(ArchiveError::Compressed)),
                }
            }
            HeadField::Time { left } => match self.tokens.int(input) {
                None => return Ok(false),
                Some(_) if left > 1 => HeadField::Time { left: left - 1 },
                Some(_) => HeadField::Database,
            },
            HeadField::Database => match self.tokens.text(input, Keep::No)? {
                None => return Ok(false),
                Some(_) => HeadField::ServerVersion,
            },
            HeadField::ServerVersion => match self.tokens.text(input, Keep::Yes)? {
                None => return Ok(false),
                Some(text) => {
                    self.summary.server_version = text.unwrap_or_default();
                    HeadField::ToolVersion
                }
            },
            HeadField::ToolVersion => match self.tokens.text(input, Keep::Yes)? {
                None => return Ok(false),
                Some(text) => {
                    self.summary.tool_version = text.unwrap_or_default();
                    HeadField::TocCount
                }
            },
            HeadField::TocCount => match self.tokens.int(input) {
                None => return Ok(false),
                Some(count @ 0..=TOC_ENTRIES_MAX) => {
                    self.state = toc_or_data(count);
                    return Ok(true);
                }
                Some(_) => {
                    return Err(Fault::Other(ArchiveError::TooLarge {
                        what: "objects",
                        limit: TOC_ENTRIES_MAX.unsigned_abs(),
                    }));
                }
            },
        };
        self.state = State::Head(next);
        Ok(true)
    }

    pub(super) fn read_toc(&mut self, field: TocField, input: &mut &[u8]) -> Result<TocStep, Fault> {
        use TocField as F;
        let tokens = &mut self.tokens;
        // Numbers and texts that only need to be passed over, or kept, and what follows them.
        let next = match field {
            F::Id => tokens.int(input).map(|id| {
                self.entry.id = id;
                F::HasData
            }),
            F::HasData => tokens.int(input).map(|flag| {
                self.entry.has_data = flag != 0;
                F::TableOid
            }),
            F::Section => tokens.int(input).map(|_| F::Definition),
            F::RelationKind => tokens.int(input).map(|_| F::Owner),
            F::TableOid => tokens.text(input, Keep::No)?.map(|_| F::Oid),
            F::Oid => tokens.text(input, Keep::Yes)?.map(|text| {
                self.entry.oid = text.unwrap_or_default();
                F::Tag
            }),
            F::Tag => tokens.text(input, Keep::Yes)?.map(|text| {
                self.entry.tag = text.unwrap_or_default();
                F::Kind
            }),
            F::Kind => tokens.text(input, Keep::Yes)?.map(|text| {
                self.entry.kind = text.unwrap_or_default();
                F::Section
            }),
            F::Definition => tokens.text(input, Keep::No)?.map(|_| F::DropStatement),
            F::DropStatement => tokens.text(input, Keep::No)?.map(|_| F::CopyStatement),
            F::CopyStatement => tokens.text(input, Keep::No)?.map(|_| F::Schema),
            F::Schema => tokens.text(input, Keep::Yes)?.map(|text| {
                self.entry.schema = text.unwrap_or_default();
                F::Tablespace
            }),
            F::Tablespace => tokens.text(input, Keep::No)?.map(|_| match self.minor {
                14.. => F::AccessMethod,
                _ => F::Owner,
            }),
            F::AccessMethod => tokens.text(input, Keep::No)?.map(|_| match self.minor {
                16.. => F::RelationKind,
                _ => F::Owner,
            }),
            F::Owner => tokens.text(input, Keep::No)?.map(|_| F::WithOids),
            F::WithOids => tokens.text(input, Keep::No)?.map(|_| F::Dependencies),
            F::Dependencies => tokens.text(input, Keep::Yes)?.map(|text| match text {
                Some(_) => F::Dependencies,
                None => F::OffsetFlag,
            }),
            F::OffsetFlag => tokens.byte(input).map(|_| F::Offset),
            F::Offset => match tokens.gather(input, self.offset_bytes) {
                None => None,
                Some(_) => {
                    self.end_toc_entry()?;
                    return Ok(TocStep::EntryEnded);
                }
            },
        };
        Ok(next.map_or(TocStep::NeedsMore, TocStep::Next))
    }

    fn end_toc_entry(&mut self) -> Result<(), Fault> {
        let entry = std::mem::take(&mut self.entry);
        if is_comparable(&entry.kind, &entry.tag) {
            *self.summary.objects.entry(entry.kind.clone()).or_default() += 1;
        }
        if !entry.has_data {
            return Ok(());
        }
        if self.pending.len() >= DATA_ENTRIES_MAX {
            return Err(Fault::Other(ArchiveError::TooLarge {
                what: "objects with data",
                limit: DATA_ENTRIES_MAX as u64,
            }));
        }
        let data = DataEntry {
            oid: entry.oid.parse().map_err(|_| Fault::Garbage("an object id"))?,
            schema: entry.schema,
            name: entry.tag,
            is_table: entry.kind == "TABLE DATA",
        };
        self.data_entries += 1;
        match self.pending.insert(entry.id, data) {
            None => Ok(()),
            Some(_) => Err(Fault::Garbage("two entries with one id")),
        }
    }
}

pub(super) fn toc_or_data(left: i64) -> State {
    match left {
        0 => State::BlockKind,
        left => State::Toc {
            left,
            field: TocField::Id,
        },
    }
}

/// Whether the number of entries of this kind is a property of the database alone: data and large objects are counted
/// elsewhere, and what belongs to the database itself (its name, its settings) is no part of its contents.
fn is_comparable(kind: &str, tag: &str) -> bool {
    let session = [
        "ENCODING",
        "STDSTRINGS",
        "SEARCHPATH",
        "DATABASE",
        "DATABASE PROPERTIES",
    ];
    let data = [
        "TABLE DATA",
        "BLOB",
        "BLOBS",
        "BLOB COMMENTS",
        "BLOB METADATA",
        "STATISTICS DATA",
    ];
    !session.contains(&kind)
        && !data.contains(&kind)
        && !tag.starts_with("DATABASE ")
        && !tag.starts_with("LARGE OBJECT")
}
