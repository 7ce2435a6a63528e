//! A file tree that changes between backups, written with the cache of what the last one stored.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use strongroom_proto::manifest::{BackupSink, Entry, EntryKind, EntrySink, EntrySource, FileVersion};
use strongroom_proto::{Attempt, BackupId};
use strongroom_vault::*;

use crate::support::*;

/// A file's content, and which of it are holes; between the holes anything may lie.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    holes: Vec<Range<usize>>,
}

impl Content {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            holes: Vec::new(),
        }
    }

    /// Makes a hole of what lies here.
    pub(crate) fn punch(&mut self, hole: Range<usize>) {
        let hole = hole.start.min(self.bytes.len())..hole.end.min(self.bytes.len());
        if hole.is_empty() {
            return;
        }
        self.bytes[hole.clone()].fill(0);
        let mut holes = std::mem::take(&mut self.holes);
        holes.push(hole);
        holes.sort_by_key(|hole| hole.start);
        for hole in holes {
            match self.holes.last_mut() {
                Some(last) if hole.start <= last.end => last.end = last.end.max(hole.end),
                _ => self.holes.push(hole),
            }
        }
    }

    pub(crate) fn fill_holes(&mut self) {
        self.holes.clear();
    }

    fn put(&self, sink: &mut dyn EntrySink) -> io::Result<()> {
        let mut at = 0;
        for hole in &self.holes {
            for piece in self.bytes[at..hole.start].chunks(100_000) {
                sink.write(piece)?;
            }
            sink.hole(hole.len() as u64)?;
            at = hole.end;
        }
        self.bytes[at..].chunks(100_000).try_for_each(|piece| sink.write(piece))
    }
}

#[derive(Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) kind: EntryKind,
    pub(crate) content: Content,
    version: FileVersion,
}

/// Files by path; directories are made of the paths.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    pub(crate) nodes: BTreeMap<Vec<String>, Node>,
    clock: i64,
}

impl Tree {
    pub(crate) fn put(&mut self, path: &str, content: Content) {
        let path = path.split('/').map(str::to_owned).collect();
        self.clock += 1;
        let version = FileVersion {
            device: 1,
            inode: self.clock as u64,
            bytes: 0,
            mtime: (0, 0),
            ctime: (0, 0),
        };
        let node = Node {
            kind: EntryKind::File,
            content,
            version,
        };
        self.nodes.insert(path, node);
        self.touch_all_changed();
    }

    /// Changes one file, and with it its version.
    pub(crate) fn change(&mut self, at: usize, change: impl FnOnce(&mut Node)) {
        let at = at % self.nodes.len();
        self.clock += 1;
        let clock = self.clock;
        if let Some(node) = self.nodes.values_mut().nth(at) {
            change(node);
            if node.kind != EntryKind::File {
                node.content = Content::default();
            }
            node.version.bytes = node.content.bytes.len() as u64;
            node.version.mtime = (clock, 1);
            node.version.ctime = (clock, 1);
        }
    }

    fn touch_all_changed(&mut self) {
        for node in self.nodes.values_mut() {
            node.version.bytes = node.content.bytes.len() as u64;
        }
    }

    fn entry(path: &[String], node: &Node) -> Entry {
        let mut entry = Entry::bare(path.join("/"), node.kind);
        if node.kind == EntryKind::Symlink {
            entry.link_target = Some("elsewhere".to_owned());
        }
        entry.mode = Some(0o100_644);
        entry.mtime_seconds = Some(node.version.mtime.0);
        entry
    }

    /// The entries in the order of a walk: depth first, the names of a directory sorted.
    fn walk(&self) -> impl Iterator<Item = (Entry, &Node)> {
        self.nodes.iter().map(|(path, node)| (Self::entry(path, node), node))
    }

    /// Puts every entry, reading only what the sink does not know; says how many files were read.
    pub(crate) fn put_into(&self, sink: &mut dyn BackupSink) -> io::Result<usize> {
        let mut read = 0;
        for (entry, node) in self.walk() {
            if node.kind != EntryKind::File {
                sink.begin(&entry)?;
                sink.end()?;
            } else if !sink.put_unchanged(&entry, &node.version)? {
                sink.begin_file(&entry, &node.version)?;
                node.content.put(sink)?;
                sink.end()?;
                read += 1;
            }
        }
        Ok(read)
    }

    /// Panics where the backup is not exactly this tree.
    pub(crate) fn assert_restores(&self, fixture: &Fixture, id: &BackupId) {
        let reader = fixture
            .runtime
            .block_on(fixture.vault.open_backup(id, &fixture.identity))
            .unwrap();
        let mut restored = Restored::default();
        reader.replay(&mut restored).unwrap();
        let found: Vec<&Entry> = restored.entries.iter().map(|(entry, _)| entry).collect();
        let expected: Vec<Entry> = self.walk().map(|(entry, _)| entry).collect();
        assert_eq!(found, expected.iter().collect::<Vec<_>>());
        for ((entry, content), node) in restored.entries.iter().zip(self.nodes.values()) {
            assert!(content.bytes == node.content.bytes, "{} has other content", entry.path);
            assert_eq!(content.holes, node.content.holes, "holes of {}", entry.path);
        }
        let report = fixture.runtime.block_on(fixture.vault.check(id)).unwrap();
        assert!(report.is_sound(), "{:?}", report.damage);
    }
}

/// Entries as they come back, with their holes.
#[derive(Default)]
struct Restored {
    entries: Vec<(Entry, Content)>,
}

impl EntrySink for Restored {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.entries.push((entry.clone(), Content::default()));
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.entries.last_mut().unwrap().1.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        let content = &mut self.entries.last_mut().unwrap().1;
        let start = content.bytes.len();
        let end = start + bytes as usize;
        content.bytes.resize(end, 0);
        content.punch(start..end);
        Ok(())
    }
    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a backup of a tree came to.
pub(crate) struct Outcome {
    pub(crate) id: BackupId,
    pub(crate) sealed: Sealed,
    pub(crate) files_read: usize,
}

pub(crate) fn write(fixture: &Fixture, cache: &Path, tree: &Tree, number: i64) -> Outcome {
    let id = Fixture::id(number);
    let writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    let mut writer = writer.with_cache(cache, &fixture.writer_key);
    let files_read = tree.put_into(&mut writer).unwrap();
    let sealed = writer.finish().unwrap();
    Outcome { id, sealed, files_read }
}

pub(crate) fn back_up(fixture: &Fixture, cache: &Path, tree: &Tree, number: i64) -> Outcome {
    let outcome = write(fixture, cache, tree, number);
    let receipt = fixture.receipt(&outcome.id, Attempt::FIRST, &outcome.sealed);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();
    outcome
}

pub(crate) fn a_tree() -> Tree {
    let mut tree = Tree::default();
    tree.put("a/empty", Content::default());
    tree.put("a/small", Content::of(rows(1, 700)));
    tree.put("a-b", Content::of(rows(2, 3_000)));
    tree.put("a.b", Content::of(noise(3, 600_000)));
    tree.put("b/large", Content::of(noise(4, 4_500_000)));
    let mut sparse = Content::of(noise(5, 5_000_000));
    sparse.punch(1_000_000..2_000_000);
    tree.put("b/sparse", sparse);
    let mut pages = rows(6, 640 * 8_192);
    pages[18..20].copy_from_slice(&[0x04, 0x20]);
    tree.put("c/database", Content::of(pages));
    tree
}

pub(crate) fn cache_of(fixture: &Fixture) -> std::path::PathBuf {
    fixture.folder.path().join("cache/orders")
}

pub(crate) fn learn_anew(fixture: &mut Fixture) {
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
}

pub(crate) fn remove(fixture: &Fixture, wanted: impl Fn(&String) -> bool) {
    for object in fixture.objects().iter().filter(|object| wanted(object)) {
        std::fs::remove_file(fixture.path().join(object)).unwrap();
    }
}

#[test]
fn an_unchanged_tree_is_neither_read_nor_stored_again() {
    let fixture = Fixture::new();
    let (cache, tree) = (cache_of(&fixture), a_tree());
    let first = back_up(&fixture, &cache, &tree, 1);
    assert_eq!(first.files_read, 7);
    let before = fixture.objects();
    for number in 2..5 {
        let again = back_up(&fixture, &cache, &tree, number);
        assert_eq!(again.files_read, 0);
        let (found, expected) = (again.sealed.totals, first.sealed.totals);
        assert_eq!((found.new_chunks, found.new_content_bytes), (0, 0));
        assert_eq!(
            (found.entries, found.content_bytes),
            (expected.entries, expected.content_bytes)
        );
        tree.assert_restores(&fixture, &again.id);
    }
    let added: Vec<String> = fixture.objects().into_iter().filter(|o| !before.contains(o)).collect();
    assert!(added.iter().all(|object| object.starts_with("backups/")), "{added:?}");
}

#[test]
fn a_cache_says_nothing_for_a_file_of_another_version() {
    let fixture = Fixture::new();
    let cache = cache_of(&fixture);
    let mut tree = Tree::default();
    tree.put("file", Content::of(rows(1, 10_000)));
    back_up(&fixture, &cache, &tree, 1);
    let changes: [fn(&mut FileVersion); 6] = [
        |version| version.device += 1,
        |version| version.inode += 1,
        |version| version.mtime.0 -= 5,
        |version| version.mtime.1 += 1,
        |version| version.ctime.0 += 1,
        |version| version.ctime.1 += 1,
    ];
    for (number, change) in (2..).zip(changes) {
        // The content changes unseen by all but the one field.
        let node = tree.nodes.values_mut().next().unwrap();
        node.content.bytes[number as usize] ^= 1;
        change(&mut node.version);
        let outcome = back_up(&fixture, &cache, &tree, number);
        assert_eq!(outcome.files_read, 1, "change {number}");
        tree.assert_restores(&fixture, &outcome.id);
    }
}

/// A file that grew while it was read is remembered as what was stored, and read again.
#[test]
fn a_file_that_had_another_length_than_it_said_is_read_again() {
    let fixture = Fixture::new();
    let cache = cache_of(&fixture);
    for (number, bytes) in [(1, 4_200_000), (2, 5_000_000), (3, 100)] {
        let mut tree = Tree::default();
        tree.put("file", Content::of(noise(number, bytes)));
        let node = tree.nodes.values_mut().next().unwrap();
        node.version.bytes += 1_000;
        for _ in 0..2 {
            let outcome = back_up(&fixture, &cache, &tree, number as i64);
            assert_eq!(outcome.files_read, 1);
            tree.assert_restores(&fixture, &outcome.id);
        }
    }
}

#[test]
fn a_large_file_changed_in_a_hundredth_of_its_pages_stores_little_more_than_these() {
    const PAGE: usize = 8_192;
    const PAGES: usize = 8_192;
    let mut fixture = Fixture::new();
    let cache = cache_of(&fixture);
    let mut tree = Tree::default();
    tree.put("before", Content::of(rows(1, 5_000)));
    tree.put("large", Content::of(noise(2, PAGES * PAGE)));
    let first = back_up(&fixture, &cache, &tree, 1);
    assert!(first.sealed.totals.stored_bytes > 64 << 20);
    let mut random = noise(3, 30 * 82 * 8).into_iter();
    let mut rewritten = 0;
    for number in 2..=31 {
        tree.change(0, |before| before.content.bytes.extend_from_slice(b"grows\n"));
        tree.change(1, |large| {
            for _ in 0..82 {
                let place: Vec<u8> = random.by_ref().take(8).collect();
                let page = u64::from_le_bytes(place.try_into().unwrap()) as usize % PAGES;
                let fresh = noise(number as u64 * 1_000_000 + page as u64, PAGE);
                large.content.bytes[page * PAGE..(page + 1) * PAGE].copy_from_slice(&fresh);
            }
        });
        if number % 7 == 0 {
            learn_anew(&mut fixture);
        }
        let outcome = back_up(&fixture, &cache, &tree, number);
        let share = outcome.sealed.totals.stored_bytes as f64 / (PAGES * PAGE) as f64;
        // Once it lies in too many pieces it is stored anew, which costs what has changed since it was stored whole.
        match share < 0.03 {
            true => {}
            false => rewritten += 1,
        }
        assert!(number > 5 || share < 0.03, "backup {number} stored {share}");
        tree.assert_restores(&fixture, &outcome.id);
    }
    assert!(rewritten <= 3, "stored anew {rewritten} times in 30");
}

/// The lengths of all chunks the vault's index lists.
fn chunk_lengths(fixture: &Fixture) -> Vec<u64> {
    let mut lengths = Vec::new();
    for object in fixture.objects().iter().filter(|object| object.starts_with("index/")) {
        let bytes = std::fs::read(fixture.path().join(object)).unwrap();
        let text = zstd::stream::decode_all(&bytes[..bytes.len() - 40]).unwrap();
        for line in String::from_utf8(text).unwrap().lines().skip(1) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            lengths.push(line["raw"].as_u64().unwrap());
        }
    }
    lengths
}

#[test]
fn a_databases_file_is_cut_at_fixed_places_whatever_lies_before_it() {
    const MIB: usize = 1024 * 1024;
    type Begins = fn(&mut [u8]);
    let postgres: Begins = |bytes| bytes[18..20].copy_from_slice(&[0x04, 0x20]);
    let sqlite: Begins = |bytes| bytes[..16].copy_from_slice(b"SQLite format 3\0");
    let innodb: Begins = |bytes| {
        bytes[4..8].fill(0);
        bytes[24..26].copy_from_slice(&[0, 8]);
    };
    for (seed, begins) in (1..).zip([postgres, sqlite, innodb]) {
        let mut fixture = Fixture::new();
        let mut tree = Tree::default();
        tree.put("a", Content::of(rows(seed, 10_000)));
        let mut pages = noise(seed, 6 * MIB + 16_384);
        begins(&mut pages);
        tree.put("database", Content::of(pages));
        tree.put("z", Content::of(rows(seed + 10, 20_000)));
        back_up(&fixture, &fixture.folder.path().join("one"), &tree, 1);
        let lengths = chunk_lengths(&fixture);
        assert_eq!(
            lengths.iter().filter(|bytes| **bytes == MIB as u64).count(),
            6,
            "{lengths:?}"
        );
        assert!(lengths.contains(&16_384), "{lengths:?}");
        // Without a cache, a changed page and a longer neighbour cost a chunk each.
        tree.change(0, |a| a.content.bytes.extend_from_slice(b"longer"));
        tree.change(1, |database| database.content.bytes[3 * MIB + 5] ^= 1);
        learn_anew(&mut fixture);
        let outcome = back_up(&fixture, &fixture.folder.path().join("two"), &tree, 2);
        assert_eq!(outcome.sealed.totals.new_chunks, 2, "{:?}", outcome.sealed.totals);
        tree.assert_restores(&fixture, &outcome.id);
    }
}

/// Small data between holes, all over a large file: many extents of one chunk in a row.
#[test]
fn a_file_of_many_small_pieces_between_holes_restores() {
    let fixture = Fixture::new();
    let cache = cache_of(&fixture);
    let mut tree = Tree::default();
    let mut sparse = Content::of(noise(1, 6_000_000));
    for start in (0..6_000_000).step_by(3_000) {
        sparse.punch(start + 500..start + 3_000);
    }
    tree.put("a", Content::of(noise(2, 30_000_000)));
    tree.put("sparse", sparse);
    tree.put("z", Content::of(noise(3, 40_000_000)));
    for number in 1..4 {
        let outcome = back_up(&fixture, &cache, &tree, number);
        tree.assert_restores(&fixture, &outcome.id);
        tree.change(1, |sparse| sparse.content.bytes[3_000] ^= 1);
    }
}
