//! A cluster's files: read and compared with the last backup's page by page, or laid over it without being read.

use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;
use strongroom_proto::Attempt;
use strongroom_proto::BackupId;
use strongroom_proto::manifest::{BackupSink, Entry, EntryKind, EntrySink, PAGE_BYTES};
use strongroom_vault::*;

use crate::support::*;
use crate::trees::{cache_of, learn_anew, remove};

const PAGE: usize = PAGE_BYTES as usize;

fn entry(path: &str) -> Entry {
    Entry::bare(path, EntryKind::File)
}

/// How a file of one backup came to be from that of the last.
#[derive(Debug, Clone)]
enum Step {
    /// Read, with this content in place of the pages.
    Read,
    /// Laid over; where that cannot be done, read.
    Laid,
}

/// A file, and which of its pages were put in the last step.
#[derive(Debug, Clone, Default)]
struct Paged {
    content: Vec<u8>,
    pages: Vec<usize>,
}

impl Paged {
    /// Changes length and pages; `seed` makes the new ones.
    fn change(&mut self, bytes: usize, pages: &[usize], seed: u64) {
        self.content.resize(bytes, 0);
        self.pages = pages.iter().map(|page| page % bytes.div_ceil(PAGE).max(1)).collect();
        self.pages.sort_unstable();
        self.pages.dedup();
        for page in &self.pages {
            let range = self.range(*page);
            let fresh = noise(seed * 1_000_003 + *page as u64, range.len());
            self.content[range].copy_from_slice(&fresh);
        }
    }

    fn range(&self, page: usize) -> std::ops::Range<usize> {
        (page * PAGE).min(self.content.len())..((page + 1) * PAGE).min(self.content.len())
    }

    fn read_into(&self, sink: &mut dyn BackupSink, path: &str) -> io::Result<()> {
        sink.begin_paged(&entry(path), self.content.len() as u64)?;
        self.content.chunks(50_000).try_for_each(|piece| sink.write(piece))?;
        sink.end()
    }

    /// Whether it was laid over the last one.
    fn lay_into(&self, sink: &mut dyn BackupSink, path: &str) -> io::Result<bool> {
        if !sink.begin_overlay(&entry(path), self.content.len() as u64)? {
            return Ok(false);
        }
        for page in &self.pages {
            let range = self.range(*page);
            if !range.is_empty() {
                sink.page(range.start as u64, &self.content[range])?;
            }
        }
        sink.end()?;
        Ok(true)
    }
}

struct Outcome {
    id: BackupId,
    sealed: Sealed,
}

fn back_up(fixture: &Fixture, number: i64, put: impl FnOnce(&mut BackupWriter) -> io::Result<()>) -> Outcome {
    let id = Fixture::id(number);
    let writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    let mut writer = writer.with_cache(&cache_of(fixture), &fixture.writer_key);
    put(&mut writer).unwrap();
    let sealed = writer.finish().unwrap();
    let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();
    Outcome { id, sealed }
}

/// Panics where the backup is not exactly these files; reading checks the digest of each.
fn assert_restores(fixture: &Fixture, id: &BackupId, files: &[(&str, &[u8])]) {
    let found = fixture.read(id).unwrap();
    assert_eq!(found.len(), files.len());
    for (found, (path, content)) in found.iter().zip(files) {
        assert_eq!(found.entry.path, *path);
        assert!(found.content == *content, "{path} has other content");
    }
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(PAGE - 1),
        Just(PAGE),
        Just(PAGE + 1),
        (1_usize..40).prop_map(|pages| pages * PAGE),
        1_usize..40 * PAGE,
    ]
}

fn changed_pages() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(Vec::new()),
        Just((0..40).collect()),
        proptest::collection::vec(0_usize..40, 1..12),
    ]
}

fn steps() -> impl Strategy<Value = Vec<(Step, usize, Vec<usize>)>> {
    let step = prop_oneof![1 => Just(Step::Read), 4 => Just(Step::Laid)];
    proptest::collection::vec((step, lengths(), changed_pages()), 2..11)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_laid_over_whatever_is_what_reading_it_would_have_been(steps in steps()) {
        let fixture = Fixture::new();
        let mut file = Paged::default();
        for (number, (step, bytes, pages)) in (1..).zip(steps) {
            let before = file.content.len();
            file.change(bytes, &pages, number);
            let mut laid = false;
            let outcome = back_up(&fixture, number as i64, |writer| {
                laid = matches!(step, Step::Laid) && file.lay_into(writer, "base/1/1")?;
                match laid {
                    true => Ok(()),
                    false => file.read_into(writer, "base/1/1"),
                }
            });
            let can_be_laid = number > 1 && (bytes == before || before.min(bytes) % PAGE == 0);
            prop_assert_eq!(laid, matches!(step, Step::Laid) && can_be_laid, "{} after {}", bytes, before);
            assert_restores(&fixture, &outcome.id, &[("base/1/1", &file.content)]);
        }
    }
}

#[test]
fn a_large_file_is_laid_over_the_last_and_stores_its_changed_pages_only() {
    let mut fixture = Fixture::new();
    let mut file = Paged::default();
    file.change(2_000 * PAGE, &(0..2_000).collect::<Vec<_>>(), 1);
    let first = back_up(&fixture, 1, |writer| file.read_into(writer, "base/1/1"));
    assert!(first.sealed.totals.stored_bytes > 16_000_000);
    for number in 2..6 {
        learn_anew(&mut fixture);
        let pages: Vec<usize> = (0..20).map(|n| n * 97 + number).collect();
        file.change((2_000 + number * 3) * PAGE, &pages, number as u64);
        let outcome = back_up(&fixture, number as i64, |writer| {
            assert!(file.lay_into(writer, "base/1/1")?);
            Ok(())
        });
        let totals = outcome.sealed.totals;
        assert_eq!(totals.content_bytes, file.content.len() as u64);
        assert!(totals.new_content_bytes <= 26 * PAGE as u64, "{totals:?}");
        assert!(totals.stored_bytes < 300_000, "{totals:?}");
        assert_restores(&fixture, &outcome.id, &[("base/1/1", &file.content)]);
    }
    // What was laid over is read again: nothing but what changed is stored.
    let pages = [5, 6, 1_000];
    file.change(2_000 * PAGE, &pages, 9);
    let outcome = back_up(&fixture, 9, |writer| file.read_into(writer, "base/1/1"));
    assert_eq!(outcome.sealed.totals.new_content_bytes, 3 * PAGE_BYTES);
    assert_restores(&fixture, &outcome.id, &[("base/1/1", &file.content)]);
}

fn cluster() -> BTreeMap<String, Paged> {
    let mut files = BTreeMap::new();
    for number in 0..200_usize {
        let mut file = Paged::default();
        let bytes = match number % 10 {
            0 => 0,
            1 => 100 + number,
            2 => 150 * PAGE,
            _ => (number % 7 + 1) * PAGE,
        };
        file.change(bytes, &(0..150).collect::<Vec<_>>(), number as u64 + 100);
        files.insert(format!("base/{}/{number}", number % 3), file);
    }
    files
}

#[test]
fn files_that_have_not_changed_store_nothing_in_whatever_order_they_come() {
    let mut fixture = Fixture::new();
    let files = cluster();
    let first = back_up(&fixture, 1, |writer| {
        files.iter().try_for_each(|(path, file)| file.read_into(writer, path))
    });
    assert!(first.sealed.totals.new_content_bytes > 20_000_000);
    let mut paths: Vec<&String> = files.keys().collect();
    for (number, is_laid) in [(2, false), (3, true), (4, false)] {
        learn_anew(&mut fixture);
        // As a directory's names come from the disk.
        paths.sort_by_key(|path| noise(number + path.len() as u64, 4 + path.as_bytes()[path.len() - 1] as usize));
        paths.rotate_left(number as usize * 31);
        let outcome = back_up(&fixture, number as i64, |writer| {
            for path in &paths {
                let file = Paged {
                    pages: Vec::new(),
                    ..files[*path].clone()
                };
                match is_laid {
                    true => assert!(file.lay_into(writer, path)?, "{path}"),
                    false => file.read_into(writer, path)?,
                }
            }
            Ok(())
        });
        let totals = outcome.sealed.totals;
        assert_eq!((totals.new_chunks, totals.new_content_bytes), (0, 0), "{totals:?}");
        let expected: Vec<(&str, &[u8])> = paths
            .iter()
            .map(|path| (path.as_str(), &files[*path].content[..]))
            .collect();
        assert_restores(&fixture, &outcome.id, &expected);
    }
}

#[test]
fn nothing_is_laid_over_what_is_not_known_or_no_longer_held() {
    let mut fixture = Fixture::new();
    let mut file = Paged::default();
    file.change(300 * PAGE, &(0..300).collect::<Vec<_>>(), 1);
    let lay = |fixture: &Fixture, number| {
        let mut laid = None;
        back_up(fixture, number, |writer| {
            laid = Some(file.lay_into(writer, "base/1/1")?);
            match laid {
                Some(false) => file.read_into(writer, "base/1/1"),
                _ => Ok(()),
            }
        });
        laid.unwrap()
    };
    assert!(!lay(&fixture, 1), "there is no cache");
    assert!(lay(&fixture, 2));
    // The cache belongs to somebody else.
    let whole = std::fs::read(cache_of(&fixture)).unwrap();
    let mut foreign = whole.clone();
    let last = foreign.len() - 20;
    foreign[last] ^= 1;
    std::fs::write(cache_of(&fixture), foreign).unwrap();
    assert!(!lay(&fixture, 3), "the cache is damaged");
    assert!(lay(&fixture, 4));
    std::fs::remove_file(cache_of(&fixture)).unwrap();
    assert!(!lay(&fixture, 5), "the cache is lost");
    // A sweep took the content.
    remove(&fixture, |object| {
        object.starts_with("index/") || object.starts_with("packs/")
    });
    learn_anew(&mut fixture);
    assert!(!lay(&fixture, 6), "the vault does not hold it any more");
    assert!(lay(&fixture, 7));
}

#[test]
fn an_index_object_that_vanishes_during_the_backup_fails_it() {
    let fixture = Fixture::new();
    let mut file = Paged::default();
    file.change(300 * PAGE, &(0..300).collect::<Vec<_>>(), 1);
    back_up(&fixture, 1, |writer| file.read_into(writer, "base/1/1"));
    let id = Fixture::id(2);
    let mut writer = fixture
        .writer(&id, Attempt::FIRST)
        .unwrap()
        .with_cache(&cache_of(&fixture), &fixture.writer_key);
    assert!(file.lay_into(&mut writer, "base/1/1").unwrap());
    remove(&fixture, |object| object.starts_with("index/"));
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, WriteError::IndexGone { .. }), "{error}");
}

#[test]
fn calls_that_make_no_overlay_are_refused_and_do_no_harm() {
    let fixture = Fixture::new();
    let mut file = Paged::default();
    file.change(4 * PAGE + 10, &(0..5).collect::<Vec<_>>(), 1);
    back_up(&fixture, 1, |writer| file.read_into(writer, "f"));
    let outcome = back_up(&fixture, 2, |writer| {
        assert!(writer.page(0, &[0; PAGE]).is_err());
        assert!(writer.begin_overlay(&entry("f"), 4 * PAGE_BYTES + 10)?);
        assert!(writer.begin_overlay(&entry("f"), 4 * PAGE_BYTES + 10).is_err());
        assert!(writer.write(b"x").is_err());
        assert!(writer.hole(1).is_err());
        assert!(writer.page(1, &[0; PAGE]).is_err());
        assert!(writer.page(0, &[0; 10]).is_err());
        assert!(writer.page(4 * PAGE_BYTES, &[0; PAGE]).is_err());
        writer.page(PAGE_BYTES, &[1; 2 * PAGE])?;
        assert!(writer.page(2 * PAGE_BYTES, &[1; PAGE]).is_err());
        assert!(writer.page(0, &[1; PAGE]).is_err());
        writer.page(4 * PAGE_BYTES, &[2; 10])?;
        writer.end()
    });
    file.content[PAGE..3 * PAGE].fill(1);
    file.content[4 * PAGE..].fill(2);
    assert_restores(&fixture, &outcome.id, &[("f", &file.content)]);
}

#[test]
fn a_note_reaches_the_next_backup_once_this_one_is_whole() {
    let fixture = Fixture::new();
    let manifest = |number: u8| vec![number; 3_000_000];
    let noted = |number, leave: Option<Vec<u8>>| {
        let mut found = None;
        back_up(&fixture, number, |writer| {
            put_all(writer, &[file("a", "content")])?;
            found = writer.note()?;
            if let Some(note) = leave {
                writer.leave_note(note);
            }
            Ok(())
        });
        found
    };
    assert_eq!(noted(1, Some(manifest(1))), None);
    assert_eq!(noted(2, Some(manifest(2))), Some(manifest(1)));
    // One that is given up leaves what was before.
    let writer = fixture.writer(&Fixture::id(3), Attempt::FIRST).unwrap();
    let mut writer = writer.with_cache(&cache_of(&fixture), &fixture.writer_key);
    writer.leave_note(manifest(3));
    drop(writer);
    assert_eq!(noted(4, None), Some(manifest(2)));
    assert_eq!(noted(5, Some(vec![0; (64 << 20) + 1])), None);
    assert_eq!(noted(6, Some(Vec::new())), None);
    assert_eq!(noted(7, None), Some(Vec::new()));
}

#[test]
fn a_file_in_many_pieces_is_told_of_and_stored_anew_when_it_is_read() {
    let fixture = Fixture::new();
    let mut file = Paged::default();
    file.change(1_000 * PAGE, &(0..1_000).collect::<Vec<_>>(), 1);
    let first = back_up(&fixture, 1, |writer| file.read_into(writer, "f"));
    assert_eq!(first.sealed.fragmented_entries, 0);
    file.change(1_000 * PAGE, &(0..500).map(|n| 2 * n).collect::<Vec<_>>(), 2);
    for number in 2..4 {
        let laid = back_up(&fixture, number, |writer| {
            assert!(file.lay_into(writer, "f")?);
            Ok(())
        });
        assert_eq!(laid.sealed.fragmented_entries, 1);
        assert_restores(&fixture, &laid.id, &[("f", &file.content)]);
    }
    let read = back_up(&fixture, 4, |writer| file.read_into(writer, "f"));
    assert_eq!(read.sealed.fragmented_entries, 0);
    assert_eq!(read.sealed.totals.new_content_bytes, file.content.len() as u64);
    assert_restores(&fixture, &read.id, &[("f", &file.content)]);
}
