//! The archives of a base backup become one tree of entries, with the paths of the data folder.
//!
//! Relations go into the sink by pages, the files of an incremental backup are laid over the last one's, and every
//! file's CRC-32C is taken on the way for the comparison with the server's manifest, which comes last.

use std::collections::HashMap;

use crc_fast::CrcAlgorithm;
use strongroom_proto::manifest::{BackupSink, Entry, EntryKind};
use strongroom_proto::wal::{Lsn, Tablespace};

use super::base_error::{BaseBackupError, DamageError};
use super::incremental::IncrementalReader;
use super::laid_down::Coming;
use super::server_manifest::{Came, Made, ServerManifest};
use super::tar::{Member, MemberKind, Part, TarReader};

const LABEL: &str = "backup_label";
const MANIFEST: &str = "backup_manifest";
const INCREMENTAL: &[u8] = b"INCREMENTAL.";
/// The longest `backup_label` that is taken.
const LABEL_BYTES_MAX: usize = 64 << 10;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// Writes the archives of a base backup, as a server sends them, into a sink.
pub struct TreeWriter<'a> {
    sink: &'a mut dyn BackupSink,
    tablespaces: Vec<u32>,
    archive: Option<Archive>,
    open: Option<OpenFile>,
    came: HashMap<Vec<u8>, Came>,
    made: HashMap<Vec<u8>, Made>,
    summary: TreeSummary,
}

/// What a tree came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeSummary {
    /// Files, `backup_manifest` included.
    pub files: u64,
    /// Folders, the data folder included.
    pub directories: u64,
    /// Files that were laid over the last backup's.
    pub overlaid: u64,
    /// Where the backup began that an incremental one refers to.
    pub incremental_from: Option<Lsn>,
}

struct Archive {
    reader: TarReader,
    /// What its paths begin with in the tree.
    prefix: Vec<u8>,
}

struct OpenFile {
    entry: Entry,
    /// As the server's manifest calls it.
    path: Vec<u8>,
    coming: Coming,
    content: Content,
}

enum Content {
    /// Goes into the sink as it comes.
    Sent,
    Incremental(Box<IncrementalReader>),
    /// Is kept until all of it is here.
    Label(Vec<u8>),
}

impl<'a> TreeWriter<'a> {
    /// Begins the tree with the data folder, which has these permission bits, and the folders of tablespaces.
    pub fn create(
        sink: &'a mut dyn BackupSink,
        tablespaces: &[Tablespace],
        mode: u32,
    ) -> Result<Self, BaseBackupError> {
        let mut tree = Self {
            sink,
            tablespaces: tablespaces.iter().map(|tablespace| tablespace.oid).collect(),
            archive: None,
            open: None,
            came: HashMap::new(),
            made: HashMap::new(),
            summary: TreeSummary::default(),
        };
        // The server sends tablespaces first: their files must not come before the folder they lie in.
        let links = tree.tablespaces.iter().map(|oid| format!("pg_tblspc/{oid}"));
        let mut folders = vec![".".to_owned(), "pg_tblspc".to_owned()];
        folders.extend(links);
        for path in folders {
            tree.put_directory(Entry {
                mode: Some(DIRECTORY | mode),
                ..Entry::bare(path, EntryKind::Directory)
            })?;
        }
        Ok(tree)
    }

    /// The next bytes belong to this archive: `base.tar`, or the number of a tablespace and `.tar`.
    pub fn begin_archive(&mut self, name: &str) -> Result<(), BaseBackupError> {
        self.end_archive()?;
        let unknown = || BaseBackupError::damaged(DamageError::Archive { name: name.to_owned() });
        let stem = name.strip_suffix(".tar").ok_or_else(unknown)?;
        let prefix = match stem.parse::<u32>() {
            _ if stem == "base" => Vec::new(),
            Ok(oid) if self.tablespaces.contains(&oid) => format!("pg_tblspc/{oid}/").into_bytes(),
            _ => return Err(unknown()),
        };
        self.archive = Some(Archive {
            reader: TarReader::default(),
            prefix,
        });
        Ok(())
    }

    /// The next bytes of the archive.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), BaseBackupError> {
        let Some(mut archive) = self.archive.take() else {
            return Err(BaseBackupError::damaged(DamageError::Header));
        };
        while let Some(part) = archive.reader.next(&mut bytes).map_err(BaseBackupError::damaged)? {
            match part {
                Part::Member(member) => self.begin(&archive.prefix, member)?,
                Part::Content(content) => self.content(content)?,
                Part::End => self.end()?,
            }
        }
        self.archive = Some(archive);
        Ok(())
    }

    /// Compares the tree with the server's manifest, which is stored with it, and left for the next backup.
    pub fn finish(mut self, manifest: &[u8]) -> Result<TreeSummary, BaseBackupError> {
        self.end_archive()?;
        let server = ServerManifest::parse(manifest).map_err(BaseBackupError::damaged)?;
        server
            .check(std::mem::take(&mut self.came))
            .map_err(BaseBackupError::damaged)?;
        let text = if self.made.is_empty() {
            manifest.to_owned()
        } else {
            server.with(&self.made).map_err(BaseBackupError::damaged)?.into_bytes()
        };
        let entry = Entry {
            mode: Some(REGULAR | 0o600),
            ..Entry::bare(MANIFEST, EntryKind::File)
        };
        let mut store = || {
            self.sink.begin(&entry)?;
            self.sink.write(&text)?;
            self.sink.end()
        };
        store().map_err(|source| BaseBackupError::sink(&entry, source))?;
        self.summary.files += 1;
        self.sink.leave_note(text);
        Ok(self.summary)
    }

    fn end_archive(&mut self) -> Result<(), BaseBackupError> {
        match self.archive.take() {
            Some(archive) if self.open.is_some() || !archive.reader.is_ended() => {
                Err(BaseBackupError::damaged(DamageError::Short))
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, prefix: &[u8], member: Member) -> Result<(), BaseBackupError> {
        let path = [prefix, &member.path].concat();
        match member.kind {
            MemberKind::File => {
                let is_page_by_page = is_relation(&path);
                let (whole, is_incremental) = match whole_path(&path) {
                    Some(whole) => (whole, true),
                    None => (path.clone(), false),
                };
                let entry = entry_of(&whole, &member, EntryKind::File, REGULAR);
                let content = if is_incremental {
                    Content::Incremental(Box::new(IncrementalReader::new(entry.clone())))
                } else if path == LABEL.as_bytes() {
                    Content::Label(Vec::new())
                } else {
                    let begun = if is_page_by_page {
                        self.sink.begin_paged(&entry, member.bytes)
                    } else {
                        self.sink.begin(&entry)
                    };
                    begun.map_err(|source| BaseBackupError::sink(&entry, source))?;
                    Content::Sent
                };
                self.open = Some(OpenFile {
                    entry,
                    path,
                    coming: Coming::new(),
                    content,
                });
                Ok(())
            }
            MemberKind::Directory | MemberKind::Symlink => {
                let is_put = path == b"pg_tblspc" || self.is_tablespace(&path);
                match member.kind {
                    _ if is_put => Ok(()),
                    MemberKind::Symlink => Err(BaseBackupError::damaged(DamageError::Link {
                        path: String::from_utf8_lossy(&path).into_owned(),
                    })),
                    _ => self.put_directory(entry_of(&path, &member, EntryKind::Directory, DIRECTORY)),
                }
            }
        }
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), BaseBackupError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.coming.update(bytes);
        match &mut open.content {
            Content::Sent => self
                .sink
                .write(bytes)
                .map_err(|source| BaseBackupError::sink(&open.entry, source)),
            Content::Incremental(reader) => reader.push(bytes, self.sink),
            Content::Label(text) if text.len() + bytes.len() > LABEL_BYTES_MAX => {
                Err(BaseBackupError::damaged(DamageError::Label))
            }
            Content::Label(text) => {
                text.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn end(&mut self) -> Result<(), BaseBackupError> {
        // Folders have no content to end.
        let Some(open) = self.open.take() else { return Ok(()) };
        let came = open.coming.finish();
        let fail = |source| BaseBackupError::sink(&open.entry, source);
        match open.content {
            Content::Sent => self.sink.end().map_err(fail)?,
            Content::Incremental(reader) => {
                let bytes = reader.finish(self.sink)?;
                self.summary.overlaid += 1;
                let path = whole_path(&open.path).unwrap_or_default();
                self.made.insert(
                    open.path.clone(),
                    Made {
                        path,
                        bytes,
                        crc32c: None,
                    },
                );
            }
            Content::Label(text) => {
                let (whole, from) = whole_label(&text).ok_or(BaseBackupError::damaged(DamageError::Label))?;
                let mut store = || {
                    self.sink.begin(&open.entry)?;
                    self.sink.write(&whole)?;
                    self.sink.end()
                };
                store().map_err(fail)?;
                self.summary.incremental_from = from;
                if whole != text {
                    let made = Made {
                        path: open.path.clone(),
                        bytes: whole.len() as u64,
                        crc32c: Some(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &whole) as u32),
                    };
                    self.made.insert(open.path.clone(), made);
                }
            }
        }
        self.summary.files += 1;
        if self.came.insert(open.path, came).is_some() {
            return Err(BaseBackupError::damaged(DamageError::Twice { path: open.entry.path }));
        }
        Ok(())
    }

    fn put_directory(&mut self, entry: Entry) -> Result<(), BaseBackupError> {
        self.sink
            .begin(&entry)
            .and_then(|()| self.sink.end())
            .map_err(|source| BaseBackupError::sink(&entry, source))?;
        self.summary.directories += 1;
        Ok(())
    }

    fn is_tablespace(&self, path: &[u8]) -> bool {
        path.strip_prefix(b"pg_tblspc/")
            .and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok())
            .is_some_and(|oid| self.tablespaces.contains(&oid))
    }
}

fn entry_of(path: &[u8], member: &Member, kind: EntryKind, file_type: u32) -> Entry {
    Entry {
        path_hex: std::str::from_utf8(path).is_err().then(|| hex::encode(path)),
        mode: Some(file_type | member.mode),
        mtime_seconds: Some(member.mtime_seconds),
        mtime_nanoseconds: Some(0),
        ..Entry::bare(String::from_utf8_lossy(path), kind)
    }
}

/// Whether a path is that of a relation's segment: numbers in the places where Postgres keeps them.
fn is_relation(path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let name = match *parts.as_slice() {
        [b"global", name] => name,
        [b"base", database, name] if is_number(database) => name,
        [b"pg_tblspc", oid, version, database, name]
            if is_number(oid) && is_number(database) && version.starts_with(b"PG_") =>
        {
            name
        }
        _ => return false,
    };
    let mut segments = name.splitn(2, |byte| *byte == b'.');
    let (relation, segment) = (segments.next().unwrap_or_default(), segments.next());
    let mut forks = relation.splitn(2, |byte| *byte == b'_');
    let (number, fork) = (forks.next().unwrap_or_default(), forks.next());
    is_number(number)
        && fork.is_none_or(|fork| matches!(fork, b"fsm" | b"vm" | b"init"))
        && segment.is_none_or(is_number)
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// The path of the file that an incremental file makes whole; `None` for any other.
fn whole_path(path: &[u8]) -> Option<Vec<u8>> {
    let at = path.iter().rposition(|byte| *byte == b'/')? + 1;
    let (folder, name) = path.split_at_checked(at)?;
    let whole = [folder, name.strip_prefix(INCREMENTAL)?].concat();
    is_relation(&whole).then_some(whole)
}

/// A `backup_label` without the lines that make its backup an incremental one, and what they said.
fn whole_label(text: &[u8]) -> Option<(Vec<u8>, Option<Lsn>)> {
    let mut from = None;
    let mut whole = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if let Some(lsn) = line.strip_prefix(b"INCREMENTAL FROM LSN: ") {
            from = Some(std::str::from_utf8(lsn).ok()?.trim().parse().ok()?);
        } else if !line.starts_with(b"INCREMENTAL FROM TLI: ") {
            whole.extend_from_slice(line);
        }
    }
    Some((whole, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_told_by_their_paths() {
        for relation in [
            "global/1262",
            "base/1/1259",
            "base/16384/16385_fsm",
            "base/5/16385_vm.1",
            "base/5/16385_init",
            "base/5/16385.12",
            "pg_tblspc/16386/PG_15_202209061/5/16387",
        ] {
            assert!(is_relation(relation.as_bytes()), "{relation}");
        }
        for other in [
            "global/pg_control",
            "base/1/PG_VERSION",
            "base/1/pg_filenode.map",
            "base/1259",
            "base/x/1",
            "base/5/1_map",
            "base/5/1.",
            "pg_xact/0000",
            "pg_tblspc/16386/1/5/16387",
        ] {
            assert!(!is_relation(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn only_relations_are_made_whole() {
        assert_eq!(
            whole_path(b"base/5/INCREMENTAL.16384.1").as_deref(),
            Some(&b"base/5/16384.1"[..])
        );
        for other in [
            "base/5/16384",
            "INCREMENTAL.1",
            "pg_xact/INCREMENTAL.0000",
            "base/5/INCREMENTAL.",
        ] {
            assert_eq!(whole_path(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn labels_lose_what_makes_them_incremental() {
        let text = b"START WAL LOCATION: 0/4000028 (file x)\nINCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\nLABEL: x\n";
        let (whole, from) = whole_label(text).unwrap();
        assert_eq!(whole, b"START WAL LOCATION: 0/4000028 (file x)\nLABEL: x\n");
        assert_eq!(from, Some(Lsn(0x200_0028)));
    }
}
