//! The three documents of a backup besides its receipt: the root, the entry list, and the list of objects it needs.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use strongroom_proto::manifest::Entry;
use strongroom_proto::{BackupId, ChunkId, Sha256Digest};

use crate::codec;
use crate::describe::FORMAT;
use crate::error::ReadError;
use crate::keys::{Identity, Recipient, seal_whole};
use crate::layout;

/// A line of the entry list: an entry with the longest path and link target there is, each byte escaped, and attributes.
pub(crate) const ENTRY_LINE_BYTES: usize = 1024 * 1024;

/// The root of a backup: where its entry list lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Root {
    pub(crate) format: u32,
    pub(crate) backup_id: BackupId,
    /// The writer key that the chunk ids are made with.
    pub(crate) writer_key: String,
    pub(crate) entries: u64,
    pub(crate) content_bytes: u64,
    pub(crate) chunks: Vec<ChunkId>,
}

impl Root {
    pub(crate) fn seal(&self, recipients: &[Recipient]) -> io::Result<Bytes> {
        let frame = codec::encode_document(&serde_json::to_vec(self)?)?;
        Ok(seal_whole(recipients, &frame)?.into())
    }

    pub(crate) fn open(object: &str, sealed: &[u8], identity: &Identity) -> Result<Self, ReadError> {
        let frame = identity.open_whole(object, sealed, layout::MANIFEST_BYTES)?;
        let json =
            codec::decode_document(&frame, layout::MANIFEST_BYTES).map_err(|e| ReadError::malformed(object, e))?;
        let root: Self = serde_json::from_slice(&json).map_err(|e| ReadError::malformed(object, e))?;
        if root.format != FORMAT {
            return Err(ReadError::NewerFormat {
                object: object.to_owned(),
                format: root.format,
            });
        }
        Ok(root)
    }
}

/// A line of the entry list. An entry is followed by its extents and holes, in order, and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EntryLine {
    Entry(Box<Entry>),
    Extent(Extent),
    Hole(Hole),
    End(End),
}

/// A part of an entry's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Extent(Extent),
    /// So many zeros that are not stored.
    Hole(u64),
}

impl Part {
    pub(crate) const fn bytes(&self) -> u64 {
        match self {
            Self::Extent(extent) => extent.bytes as u64,
            Self::Hole(bytes) => *bytes,
        }
    }
}

/// Zeros that are not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hole {
    pub(crate) bytes: u64,
}

/// Bytes of an entry's content: a part of a chunk as it was before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) chunk: ChunkId,
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
}

/// What an entry's content must come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// With the holes.
    pub(crate) bytes: u64,
    /// BLAKE3 of the content without the holes, and without a key: it lies sealed.
    pub(crate) blake3: Sha256Digest,
}

/// The objects a backup needs, with their digests, as `sha256sum -c` reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needed {
    pub(crate) objects: BTreeMap<String, Sha256Digest>,
}

impl Needed {
    pub(crate) fn add(&mut self, object: String, digest: Sha256Digest) {
        self.objects.insert(object, digest);
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut text = String::new();
        for (object, digest) in &self.objects {
            text.push_str(&format!("{digest}  {object}\n"));
        }
        text.into()
    }

    pub(crate) fn decode(object: &str, bytes: &[u8]) -> Result<Self, ReadError> {
        let malformed = |problem: &str| ReadError::malformed(object, problem.to_owned());
        let text = std::str::from_utf8(bytes).map_err(|e| ReadError::malformed(object, e))?;
        let mut needed = Self::default();
        for line in text.lines() {
            let (digest, path) = line
                .split_once("  ")
                .ok_or_else(|| malformed("a line is not a digest and a path"))?;
            let digest: Sha256Digest = digest.parse().map_err(|e| ReadError::malformed(object, e))?;
            let named_by_digest = match path.split('/').next() {
                Some("packs") => path == layout::pack(&digest),
                Some("index") => path == layout::index(&digest),
                Some("backups") => path.ends_with("/manifest") && !path.split('/').any(|part| part == ".."),
                _ => false,
            };
            if !named_by_digest {
                return Err(malformed("a line names an object under a name that is not its own"));
            }
            needed.add(path.to_owned(), digest);
        }
        Ok(needed)
    }

    pub(crate) fn packs(&self) -> impl Iterator<Item = Sha256Digest> {
        self.under("packs/")
    }

    pub(crate) fn indexes(&self) -> impl Iterator<Item = Sha256Digest> {
        self.under("index/")
    }

    fn under(&self, folder: &'static str) -> impl Iterator<Item = Sha256Digest> {
        self.objects
            .iter()
            .filter(move |(path, _)| path.starts_with(folder))
            .map(|(_, digest)| *digest)
    }
}

#[cfg(test)]
mod tests {
    use strongroom_proto::manifest::EntryKind;

    use super::*;

    /// The names in a vault that exists must never change.
    #[test]
    fn the_lines_of_the_entry_list_are_pinned() {
        let lines = [
            EntryLine::Entry(Box::new(Entry::stream("database.dump", "postgres-dump"))),
            EntryLine::Entry(Box::new(Entry::bare("etc", EntryKind::Directory))),
            EntryLine::Extent(Extent {
                chunk: ChunkId::from_bytes([1; 32]),
                offset: 2,
                bytes: 3,
            }),
            EntryLine::Hole(Hole { bytes: 1 << 40 }),
            EntryLine::End(End {
                bytes: 3,
                blake3: Sha256Digest::from_bytes([4; 32]),
            }),
        ];
        let text: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        assert_eq!(
            text,
            [
                r#"{"entry":{"path":"database.dump","kind":"stream","media":"postgres-dump"}}"#.to_owned(),
                r#"{"entry":{"path":"etc","kind":"directory"}}"#.to_owned(),
                format!(r#"{{"extent":{{"chunk":"{}","offset":2,"bytes":3}}}}"#, "01".repeat(32)),
                r#"{"hole":{"bytes":1099511627776}}"#.to_owned(),
                format!(r#"{{"end":{{"bytes":3,"blake3":"{}"}}}}"#, "04".repeat(32)),
            ]
        );
        for (line, text) in lines.iter().zip(&text) {
            assert_eq!(&serde_json::from_str::<EntryLine>(text).unwrap(), line);
        }
    }

    #[test]
    fn a_list_of_needed_objects_round_trips_and_refuses_foreign_paths() {
        let (pack, index) = (Sha256Digest::from_bytes([1; 32]), Sha256Digest::from_bytes([2; 32]));
        let mut needed = Needed::default();
        needed.add(layout::pack(&pack), pack);
        needed.add(layout::index(&index), index);
        assert_eq!(Needed::decode("x", &needed.encode()).unwrap(), needed);
        assert_eq!(needed.packs().collect::<Vec<_>>(), [pack]);
        assert_eq!(needed.indexes().collect::<Vec<_>>(), [index]);
        for bad in [
            "packs/../../etc/passwd",
            "etc/passwd",
            "packs/01/x",
            "backups/../manifest",
            "/packs",
        ] {
            let text = format!("{pack}  {bad}\n");
            assert!(Needed::decode("x", text.as_bytes()).is_err(), "{bad}");
        }
        assert!(Needed::decode("x", b"no digest\n").is_err());
    }
}
