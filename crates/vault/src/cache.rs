//! What the last backup of a target stored for each file: a local file beside the writer, never in the vault.
//!
//! It lets a writer keep the extents of a file that has not changed without reading it, and of one that has changed
//! the blocks that are as they were. Losing it costs the reading of everything once; a damaged one is noticed, block by
//! block, by MACs under the writer key, and what it says is used only where the vault still holds the chunks.
//!
//! A header, then blocks: length, MAC, records. The header ends in random bytes and every MAC is over it, so that no
//! block of another file of the same key is believed. Records are in the order of the walk, depth first and sorted by
//! name, so that reading the old file and writing the new one go along with the walk and take no memory. Where entries
//! come in another order, [`directory`] says where the record of each lies. A note may follow the records.

mod directory;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_proto::manifest::FileVersion;
use strongroom_proto::{ChunkId, Sha256Digest, VaultId};

use self::directory::Directory;
use crate::blocks::BlockDigest;
use crate::keys::{MacKey, WriterKey};
use crate::manifest::{Extent, Part};

const MAGIC: &[u8; 24] = b"strongroom file cache 3\n";
/// A block is closed at this size; a single record may be longer.
const BLOCK_BYTES: usize = 256 * 1024;
/// Nothing longer is believed.
const BLOCK_MAX_BYTES: usize = 512 * 1024 * 1024;
const MAC_BYTES: usize = 32;
/// The random bytes that tell one cache file from another.
const FILE_ID_BYTES: usize = 16;
/// What a writer that was killed left beside the cache is removed after so long.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// A note is no longer than this.
const NOTE_BYTES: usize = 64 * 1024 * 1024;
/// What the extension of a cache that is being written begins with.
const TEMPORARY: &str = "new-";
/// What a block that is a note begins with: no path is so long.
const NOTE: [u8; 4] = u32::MAX.to_le_bytes();

/// A file as the last backup stored it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CachedFile {
    pub(crate) version: FileVersion,
    /// The length of what was stored, holes included.
    pub(crate) bytes: u64,
    pub(crate) blake3: Sha256Digest,
    pub(crate) parts: Vec<Part>,
    /// Of a large file without holes.
    pub(crate) blocks: Option<Blocks>,
}

/// The digests of a file's blocks, the last of which may be short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) block_bytes: u32,
    pub(crate) digests: Vec<BlockDigest>,
    /// BLAKE3 of the first block alone, as the digest of a file that is cut off after it.
    pub(crate) first: Sha256Digest,
}

/// Keys and names the blocks of one cache file.
#[derive(Clone)]
struct Seal {
    key: [u8; 32],
    header: Vec<u8>,
    next_block: u64,
}

impl Seal {
    fn new(vault: VaultId, writer_key: &WriterKey) -> Self {
        let macs: MacKey = writer_key.macs();
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(vault.to_string().as_bytes());
        header.extend_from_slice(writer_key.key_id().as_bytes());
        Self {
            key: *macs.mac(b"file cache").as_bytes(),
            header,
            next_block: 0,
        }
    }

    /// Of this file alone.
    fn of_file(mut self, file_id: [u8; FILE_ID_BYTES]) -> Self {
        self.header.extend_from_slice(&file_id);
        self
    }

    fn next_mac(&mut self, records: &[u8]) -> blake3::Hash {
        let mac = self.mac(self.next_block, records);
        self.next_block += 1;
        mac
    }

    fn mac(&self, block: u64, records: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.header);
        hasher.update(&block.to_le_bytes());
        hasher.update(records);
        hasher.finalize()
    }
}

/// Reads a cache file, along with a walk or in any order.
pub(crate) struct CacheReader {
    file: BufReader<File>,
    seal: Seal,
    /// The records of the block read last that the walk has not come to.
    waiting: VecDeque<(Vec<u8>, CachedFile)>,
    /// The chunks of the blocks read since they were last taken.
    chunks_ahead: Vec<ChunkId>,
    /// Made when it is first needed.
    directory: Option<Directory>,
}

impl CacheReader {
    /// Opens a cache of this vault and key; `None` where there is none that can be used.
    pub(crate) fn open(path: &Path, vault: VaultId, writer_key: &WriterKey) -> Option<Self> {
        let mut file = match File::open(path) {
            Ok(file) => BufReader::with_capacity(BLOCK_BYTES, file),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the file cache cannot be read; every file is read again");
                }
                return None;
            }
        };
        let seal = Seal::new(vault, writer_key);
        let mut header = vec![0; seal.header.len()];
        let mut file_id = [0; FILE_ID_BYTES];
        let read = file
            .read_exact(&mut header)
            .and_then(|()| file.read_exact(&mut file_id));
        if read.is_err() || header != seal.header {
            tracing::info!(path = %path.display(), "the file cache is of another vault, key or version; every file is read again");
            return None;
        }
        Some(Self {
            file,
            seal: seal.of_file(file_id),
            waiting: VecDeque::new(),
            chunks_ahead: Vec::new(),
            directory: None,
        })
    }

    /// What is known of this path, in whatever order paths are asked for.
    pub(crate) fn find_anywhere(&mut self, path: &[u8]) -> Option<CachedFile> {
        let found = self.directory()?.find(path);
        let chunks = self.directory()?.take_chunks();
        self.chunks_ahead.extend(chunks);
        found
    }

    /// The note that was left.
    pub(crate) fn note(&mut self) -> Option<Vec<u8>> {
        self.directory()?.note()
    }

    fn directory(&mut self) -> Option<&mut Directory> {
        if self.directory.is_none() {
            let made = Directory::read(self.file.get_ref(), &self.seal);
            let noted = made.inspect_err(|error| {
                tracing::warn!(%error, "the file cache cannot be read; every file is read again");
            });
            self.directory = noted.ok();
        }
        self.directory.as_mut()
    }

    /// What is known of this path. Paths have to be asked for in the order of the walk.
    pub(crate) fn find(&mut self, path: &[u8]) -> Option<CachedFile> {
        loop {
            if self.waiting.is_empty() {
                self.read_block();
            }
            let (found, _) = self.waiting.front()?;
            match walk_order(found, path) {
                std::cmp::Ordering::Less => self.waiting.pop_front(),
                std::cmp::Ordering::Equal => return self.waiting.pop_front().map(|(_, file)| file),
                std::cmp::Ordering::Greater => return None,
            };
        }
    }

    /// The chunks of files that the walk has not come to yet, each block's once, when its first file was looked at: so
    /// they can be looked up together.
    pub(crate) fn take_chunks_ahead(&mut self) -> Vec<ChunkId> {
        std::mem::take(&mut self.chunks_ahead)
    }

    fn read_block(&mut self) {
        let block = self.next_block().unwrap_or_else(|error| {
            tracing::warn!(%error, "the file cache is damaged from here on; the files after it are read again");
            Vec::new()
        });
        let records = || {
            std::iter::from_fn({
                let mut fields = Fields(&block);
                move || fields.record()
            })
        };
        self.waiting.extend(records());
        self.chunks_ahead
            .extend(chunks_of(self.waiting.iter().map(|(_, file)| file)));
    }

    /// Reads the next block, an empty one at the end.
    fn next_block(&mut self) -> io::Result<Vec<u8>> {
        let mut block = Vec::new();
        let mut length = [0; 4];
        if let Err(error) = self.file.read_exact(&mut length) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Ok(block),
                _ => Err(error),
            };
        }
        let length = u32::from_le_bytes(length) as usize;
        let mut mac = [0; MAC_BYTES];
        self.file.read_exact(&mut mac)?;
        if length <= BLOCK_MAX_BYTES {
            (&mut self.file).take(length as u64).read_to_end(&mut block)?;
        }
        if block.len() != length || self.seal.next_mac(&block) != blake3::Hash::from_bytes(mac) {
            // Nothing after it is in its place either.
            self.file = BufReader::with_capacity(1, File::open("/dev/null")?);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a block does not match its MAC",
            ));
        }
        Ok(block)
    }
}

/// The chunks of these files, each once.
fn chunks_of<'a>(files: impl Iterator<Item = &'a CachedFile>) -> Vec<ChunkId> {
    let mut chunks = Vec::new();
    let mut chunk_before = None;
    for part in files.flat_map(|file| &file.parts) {
        if let Part::Extent(extent) = part
            && chunk_before.replace(extent.chunk) != Some(extent.chunk)
        {
            chunks.push(extent.chunk);
        }
    }
    chunks.sort_unstable();
    chunks.dedup();
    chunks
}

/// The order in which a walk comes to paths: depth first, the names of a directory sorted by their bytes.
fn walk_order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/'))
}

/// Writes the cache for the next backup, beside the one in use until it is whole.
pub(crate) struct CacheWriter {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` after an error: a cache that cannot be written costs time, not the backup.
    file: Option<File>,
    seal: Seal,
    block: Vec<u8>,
}

impl CacheWriter {
    pub(crate) fn create(path: &Path, vault: VaultId, writer_key: &WriterKey) -> Self {
        let mut file_id = [0; FILE_ID_BYTES];
        rand::fill(&mut file_id);
        let mut writer = Self {
            path: path.to_owned(),
            temporary: path.with_extension(format!("{TEMPORARY}{}", uuid::Uuid::new_v4())),
            file: None,
            seal: Seal::new(vault, writer_key).of_file(file_id),
            block: Vec::new(),
        };
        let created = writer.begin();
        writer.noting(created);
        writer
    }

    fn begin(&mut self) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        if let Some(folder) = self.path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            if let Err(error) = self.remove_left_behind(folder) {
                tracing::debug!(path = %folder.display(), %error, "what killed writers left behind could not be removed");
            }
        }
        let mut options = std::fs::OpenOptions::new();
        // It names files that only their owner may be able to list.
        let mut file = options.write(true).create_new(true).mode(0o600).open(&self.temporary)?;
        file.write_all(&self.seal.header)?;
        self.file = Some(file);
        Ok(())
    }

    /// Removes what writers of this cache that were killed left beside it.
    fn remove_left_behind(&self, folder: &Path) -> io::Result<()> {
        let ours = self.path.with_extension(TEMPORARY);
        let Some(prefix) = ours.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let suffix = name.to_str().and_then(|name| name.strip_prefix(prefix));
            if suffix.is_none_or(|suffix| uuid::Uuid::try_parse(suffix).is_err()) {
                continue;
            }
            // One that a backup at work writes to is younger; so is one from a future that a clock jumped back from.
            let age = entry.metadata()?.modified()?.elapsed();
            if age.is_ok_and(|age| age > LEFT_BEHIND_AFTER) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn noting(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(path = %self.path.display(), %error, "the file cache cannot be written; the next backup reads every file again");
            if self.file.take().is_some() {
                let _ = std::fs::remove_file(&self.temporary);
            }
        }
    }

    pub(crate) fn put(&mut self, path: &[u8], file: &CachedFile) {
        if self.file.is_none() {
            return;
        }
        write_record(&mut self.block, path, file);
        if self.block.len() >= BLOCK_BYTES {
            let flushed = self.flush();
            self.noting(flushed);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.block.len() > BLOCK_MAX_BYTES {
            self.block.clear();
            return Ok(());
        }
        let mac = self.seal.next_mac(&self.block);
        file.write_all(&(self.block.len() as u32).to_le_bytes())?;
        file.write_all(mac.as_bytes())?;
        file.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    /// Puts it in place of the one before, with this note.
    pub(crate) fn finish(mut self, note: Option<Vec<u8>>) {
        let mut flushed = match self.block.is_empty() {
            true => Ok(()),
            false => self.flush(),
        };
        match note {
            Some(note) if note.len() > NOTE_BYTES => {
                tracing::warn!(
                    bytes = note.len(),
                    "a note to the next backup is too long to be kept; it has to do without it"
                );
            }
            Some(note) if flushed.is_ok() => {
                self.block.extend_from_slice(&NOTE);
                self.block.extend_from_slice(&note);
                flushed = self.flush();
            }
            _ => {}
        }
        self.noting(flushed);
        if let Some(file) = self.file.take() {
            // Else a power loss may leave an empty one in the place of the last.
            let renamed = file
                .sync_data()
                .and_then(|()| std::fs::rename(&self.temporary, &self.path));
            if let Err(error) = renamed {
                let _ = std::fs::remove_file(&self.temporary);
                tracing::warn!(path = %self.path.display(), %error, "the file cache cannot be put in place");
            }
        }
    }
}

impl Drop for CacheWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn write_record(out: &mut Vec<u8>, path: &[u8], file: &CachedFile) {
    let CachedFile {
        version,
        bytes,
        blake3,
        parts,
        blocks,
    } = file;
    put_u32(out, path.len() as u32);
    out.extend_from_slice(path);
    for number in [version.device, version.inode, version.bytes] {
        put_u64(out, number);
    }
    for (seconds, nanoseconds) in [version.mtime, version.ctime] {
        put_u64(out, seconds as u64);
        put_u32(out, nanoseconds);
    }
    put_u64(out, *bytes);
    out.extend_from_slice(blake3.as_bytes());
    put_u32(out, parts.len() as u32);
    let mut chunk_before = None;
    for part in parts {
        match part {
            Part::Hole(hole) => {
                out.push(0);
                put_u64(out, *hole);
            }
            Part::Extent(extent) => {
                let again = chunk_before.replace(extent.chunk) == Some(extent.chunk);
                out.push(if again { 2 } else { 1 });
                if !again {
                    out.extend_from_slice(extent.chunk.as_bytes());
                }
                put_u32(out, extent.offset);
                put_u32(out, extent.bytes);
            }
        }
    }
    match blocks {
        None => put_u32(out, 0),
        Some(blocks) => {
            put_u32(out, blocks.block_bytes);
            put_u32(out, blocks.digests.len() as u32);
            out.extend(blocks.digests.iter().flatten());
            out.extend_from_slice(blocks.first.as_bytes());
        }
    }
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// The fields of a record that are not yet read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<(i64, u32)> {
        Some((self.u64()? as i64, self.u32()?))
    }

    fn record(&mut self) -> Option<(Vec<u8>, CachedFile)> {
        let path_bytes = self.u32()? as usize;
        let path = self.bytes(path_bytes)?.to_vec();
        let version = FileVersion {
            device: self.u64()?,
            inode: self.u64()?,
            bytes: self.u64()?,
            mtime: self.time()?,
            ctime: self.time()?,
        };
        let bytes = self.u64()?;
        let blake3 = Sha256Digest::from_bytes(self.array()?);
        let part_count = self.u32()? as usize;
        let mut parts = Vec::with_capacity(part_count.min(self.0.len() / 9));
        let mut chunk = None;
        for _ in 0..part_count {
            let kind = self.array::<1>()?;
            parts.push(match kind {
                [0] => Part::Hole(self.u64()?),
                [1] | [2] => {
                    if kind == [1] {
                        chunk = Some(ChunkId::from_bytes(self.array()?));
                    }
                    Part::Extent(Extent {
                        chunk: chunk?,
                        offset: self.u32()?,
                        bytes: self.u32()?,
                    })
                }
                _ => return None,
            });
        }
        let blocks = match self.u32()? {
            0 => None,
            block_bytes => {
                let count = self.u32()? as usize;
                let (digests, _) = self.bytes(count.checked_mul(size_of::<BlockDigest>())?)?.as_chunks();
                Some(Blocks {
                    block_bytes,
                    digests: digests.to_vec(),
                    first: Sha256Digest::from_bytes(self.array()?),
                })
            }
        };
        Some((
            path,
            CachedFile {
                version,
                bytes,
                blake3,
                parts,
                blocks,
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn file(number: u8) -> CachedFile {
        let extent = |chunk, offset| {
            Part::Extent(Extent {
                chunk: ChunkId::from_bytes([chunk; 32]),
                offset,
                bytes: 10,
            })
        };
        CachedFile {
            version: FileVersion {
                device: 1,
                inode: u64::from(number),
                bytes: 30,
                mtime: (-5, 999_999_999),
                ctime: (i64::MAX, 0),
            },
            bytes: 30,
            blake3: Sha256Digest::from_bytes([number; 32]),
            parts: vec![
                extent(1, 0),
                extent(1, 20),
                Part::Hole(1 << 40),
                extent(2, 0),
                extent(1, 0),
            ],
            blocks: number.is_multiple_of(2).then(|| Blocks {
                block_bytes: 8192,
                digests: vec![[number; 32], [7; 32]],
                first: Sha256Digest::from_bytes([number; 32]),
            }),
        }
    }

    pub(super) fn write(path: &Path, vault: VaultId, key: &WriterKey, count: u32) {
        let mut writer = CacheWriter::create(path, vault, key);
        for number in 0..count {
            writer.put(format!("d/{number:06}").as_bytes(), &file(number as u8));
        }
        writer.finish(Some(vec![1; 1_000]));
    }

    #[test]
    fn records_come_back_in_order_and_only_those_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        assert!(CacheReader::open(&path, vault, &key).is_none());
        write(&path, vault, &key, 10_000);
        let mut reader = CacheReader::open(&path, vault, &key).unwrap();
        assert_eq!(reader.find(b"c"), None);
        for number in [0_u32, 1, 5, 4_000, 9_999] {
            assert_eq!(reader.find(format!("d/{number:06}x").as_bytes()), None);
            let asked = reader.find(format!("d/{:06}", number + 1).as_bytes());
            assert_eq!(asked, (number < 9_999).then(|| file((number + 1) as u8)), "{number}");
        }
        assert_eq!(reader.find(b"z"), None);
        assert!(CacheReader::open(&path, VaultId::fresh(), &key).is_none());
        assert!(CacheReader::open(&path, vault, &WriterKey::generate()).is_none());
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn names_are_in_the_order_of_a_walk() {
        let walked = ["a", "a/b", "a/b/c", "a/b.c", "a-b", "a.b", "b"];
        // `a` and all below it come before `a-b`, although `-` and `.` sort before `/`.
        for (n, pair) in walked.windows(2).enumerate() {
            assert_eq!(
                walk_order(pair[0].as_bytes(), pair[1].as_bytes()),
                std::cmp::Ordering::Less,
                "{n}"
            );
        }
    }

    #[test]
    fn any_damage_ends_what_is_believed_and_says_nothing_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        write(&path, vault, &key, 3_000);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 97) {
            for cut in [false, true] {
                let mut bytes = whole.clone();
                match cut {
                    true => bytes.truncate(at),
                    false => bytes[at] ^= 0x10,
                }
                std::fs::write(&path, bytes).unwrap();
                let Some(mut reader) = CacheReader::open(&path, vault, &key) else {
                    continue;
                };
                for number in 0..3_000_u32 {
                    if let Some(found) = reader.find(format!("d/{number:06}").as_bytes()) {
                        assert_eq!(found, file(number as u8));
                    }
                }
            }
        }
    }

    /// Where each block begins.
    fn blocks(bytes: &[u8], header_bytes: usize) -> Vec<std::ops::Range<usize>> {
        let mut blocks = Vec::new();
        let mut at = header_bytes;
        while at < bytes.len() {
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            blocks.push(at..at + 4 + MAC_BYTES + length);
            at = blocks.last().unwrap().end;
        }
        blocks
    }

    #[test]
    fn a_block_of_an_older_cache_of_the_same_target_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        write(&path, vault, &key, 3_000);
        let older = std::fs::read(&path).unwrap();
        write(&path, vault, &key, 3_000);
        let newer = std::fs::read(&path).unwrap();
        let header_bytes = Seal::new(vault, &key).header.len() + FILE_ID_BYTES;
        let blocks = blocks(&newer, header_bytes);
        assert!(blocks.len() > 3, "{blocks:?}");
        // The records are the same, and their blocks are not.
        assert_eq!(older.len(), newer.len());
        let second = blocks[1].clone();
        let spliced = [&newer[..second.start], &older[second.clone()], &newer[second.end..]].concat();
        std::fs::write(&path, spliced).unwrap();
        let open = || CacheReader::open(&path, vault, &key).unwrap();
        assert_eq!(open().find(b"d/000000"), Some(file(0)));
        assert_eq!(open().find_anywhere(b"d/000000"), Some(file(0)));
        assert_eq!(open().find(b"d/002999"), None);
        assert_eq!(open().find_anywhere(b"d/002999"), None);
        assert_eq!(open().note(), None);
        std::fs::write(&path, &newer).unwrap();
        assert_eq!(open().find(b"d/002999"), Some(file(2_999_u32 as u8)));
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        let id = uuid::Uuid::new_v4();
        let hours = |hours: u64| std::time::SystemTime::now() - Duration::from_secs(hours * 3_600);
        let names = [
            (format!("cache.new-{id}"), 25),
            (format!("cache.new-{}", uuid::Uuid::new_v4()), 23),
            (format!("other.new-{id}"), 25),
            ("cache.new-notes".to_owned(), 25),
        ];
        for (name, age) in &names {
            let left = File::create(folder.path().join(name)).unwrap();
            left.set_modified(hours(*age)).unwrap();
        }
        write(&path, vault, &key, 10);
        let is_there = |name: &str| folder.path().join(name).exists();
        let left: Vec<bool> = names.iter().map(|(name, _)| is_there(name)).collect();
        assert_eq!(left, [false, true, true, true]);
        assert!(CacheReader::open(&path, vault, &key).is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        write(&blocked.join("cache"), VaultId::fresh(), &WriterKey::generate(), 10);
    }
}
