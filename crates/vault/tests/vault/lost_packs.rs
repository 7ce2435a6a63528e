//! A vault that lost a pack, or holds it cut short: the next backup sees it and stores anew what it needs of it.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use object_store::memory::InMemory;
use strongroom_proto::manifest::{BackupSink as _, Entry, EntryKind, EntrySink as _};
use strongroom_proto::{Attempt, BackupId, ChunkId, Sha256Digest, VaultId};
use strongroom_vault::*;

use crate::stock_tools::{restore_by_hand, run};
use crate::support::*;
use crate::trees::{Content, Tree};

/// Outlives every process, as the catalog does, and says where a chunk was stored first.
#[derive(Default)]
struct Lasting(Mutex<Vec<IndexedChunks>>);

#[async_trait::async_trait]
impl ChunkTable for Lasting {
    async fn index_objects(&self, _: VaultId) -> Result<Vec<Sha256Digest>, TableError> {
        Ok(self.0.lock().unwrap().iter().map(|held| held.index_object).collect())
    }
    async fn add(&self, _: VaultId, chunks: IndexedChunks) -> Result<(), TableError> {
        self.0.lock().unwrap().push(chunks);
        Ok(())
    }
    async fn forget(&self, _: VaultId, gone: &[Sha256Digest]) -> Result<(), TableError> {
        self.0.lock().unwrap().retain(|held| !gone.contains(&held.index_object));
        Ok(())
    }
    async fn look_up(
        &self,
        _: VaultId,
        chunks: &[ChunkId],
        without: &[Sha256Digest],
    ) -> Result<Vec<Option<ChunkPlace>>, TableError> {
        let held = self.0.lock().unwrap();
        let place = |chunk: &ChunkId| {
            let packs = held
                .iter()
                .flat_map(|held| held.packs.iter().map(move |pack| (held, pack)));
            let mut packs = packs.filter(|(_, pack)| !without.contains(&pack.pack) && pack.chunks.contains(chunk));
            packs.next().map(|(held, pack)| ChunkPlace {
                pack: pack.pack,
                index_object: held.index_object,
                pack_bytes: pack.pack_bytes,
            })
        };
        Ok(chunks.iter().map(place).collect())
    }
}

/// What becomes of a pack.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Deleted,
    Emptied,
    CutByOne,
}

impl Loss {
    const ALL: [Self; 3] = [Self::Deleted, Self::Emptied, Self::CutByOne];

    fn befall(self, path: &Path) {
        let bytes = std::fs::read(path).unwrap();
        match self {
            Self::Deleted => std::fs::remove_file(path).unwrap(),
            Self::Emptied => std::fs::write(path, "").unwrap(),
            Self::CutByOne => std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap(),
        }
    }
}

fn packs(fixture: &Fixture) -> Vec<String> {
    let objects = fixture.objects().into_iter();
    objects.filter(|object| object.starts_with("packs/")).collect()
}

fn commit(fixture: &Fixture, id: &BackupId, sealed: &Sealed) {
    let receipt = fixture.receipt(id, Attempt::FIRST, sealed);
    let committed = fixture.vault.commit(&receipt, &fixture.signer);
    fixture.runtime.block_on(committed).unwrap();
}

/// A backup by a process that knows nothing but what the table and the cache tell; how many files it read.
fn back_up(
    fixture: &mut Fixture,
    tree: &Tree,
    number: i64,
    table: Option<&Arc<Lasting>>,
    has_cache: bool,
) -> (BackupId, Sealed, usize) {
    fixture.index = Arc::new(match table {
        Some(table) => ChunkIndex::in_table(
            &fixture.vault,
            &fixture.writer_key,
            Arc::<Lasting>::clone(table) as Arc<dyn ChunkTable>,
        ),
        None => ChunkIndex::new(&fixture.vault, &fixture.writer_key),
    });
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let id = Fixture::id(number);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    if has_cache {
        writer = writer.with_cache(&fixture.folder.path().join("cache"), &fixture.writer_key);
    }
    let read = tree.put_into(&mut writer).unwrap();
    let sealed = writer.finish().unwrap();
    commit(fixture, &id, &sealed);
    (id, sealed, read)
}

fn lose_and_back_up_again(loss: Loss, has_table: bool, has_cache: bool) {
    let case = format!("{loss:?}, table {has_table}, cache {has_cache}");
    let table = has_table.then(Arc::<Lasting>::default);
    let mut fixture = Fixture::new();
    let mut tree = Tree::default();
    tree.put("a", Content::of(rows(1, 50_000)));
    tree.put("b", Content::of(noise(2, 5_000_000)));
    let (first, ..) = back_up(&mut fixture, &tree, 1, table.as_ref(), has_cache);
    let lost = packs(&fixture).remove(0);
    loss.befall(&fixture.path().join(&lost));

    let (second, sealed, read) = back_up(&mut fixture, &tree, 2, table.as_ref(), has_cache);
    assert_eq!(sealed.totals.new_chunks, sealed.totals.chunks, "{case}");
    assert_eq!(read, 2, "{case}");
    let check = |id: &BackupId| fixture.runtime.block_on(fixture.vault.check(id)).unwrap();
    assert!(check(&second).is_sound(), "{case}: {:?}", check(&second).damage);
    assert!(!check(&first).is_sound(), "{case}");
    tree.assert_restores(&fixture, &second);
    let list = std::fs::read_to_string(fixture.path().join(format!("backups/{second}/a1/packs"))).unwrap();
    assert!(!list.contains(&lost), "{case}: {list}");

    // From then on what was stored anew is reused, wherever the lost pack stands in the index.
    for number in 3..5 {
        let (id, sealed, read) = back_up(&mut fixture, &tree, number, table.as_ref(), has_cache);
        assert_eq!(
            (sealed.totals.new_chunks, sealed.totals.chunks > 0),
            (0, true),
            "{case}"
        );
        assert_eq!(read, if has_cache { 0 } else { 2 }, "{case}");
        tree.assert_restores(&fixture, &id);
    }
}

#[test]
fn what_lay_in_a_pack_that_is_gone_or_cut_short_is_stored_again() {
    for loss in Loss::ALL {
        for has_table in [false, true] {
            for has_cache in [false, true] {
                lose_and_back_up_again(loss, has_table, has_cache);
            }
        }
    }
}

/// The old index object still lists the lost pack, and the new backup needs it for the other.
#[test]
fn where_one_of_two_packs_is_lost_every_reader_of_the_next_backup_takes_the_new_place() {
    let mut fixture = Fixture::new();
    let content = vec![stream("large", noise(1, 45_000_000))];
    fixture.back_up(1, &content);
    let before = packs(&fixture);
    assert!(before.len() >= 2, "{before:?}");
    let size = |object: &&String| std::fs::metadata(fixture.path().join(object)).unwrap().len();
    let lost = before.iter().max_by_key(size).unwrap();
    std::fs::remove_file(fixture.path().join(lost)).unwrap();

    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let (second, sealed) = fixture.back_up(2, &content);
    let totals = sealed.totals;
    assert!(0 < totals.new_chunks && totals.new_chunks < totals.chunks, "{totals:?}");
    let list = std::fs::read_to_string(fixture.path().join(format!("backups/{second}/a1/packs"))).unwrap();
    assert_eq!(list.matches("  index/").count(), 2, "{list}");
    assert!(fixture.read(&second).unwrap() == content);

    let scope = CheckScope {
        backups: vec![second.clone()],
        identity: Some(&fixture.identity),
    };
    let progress = CheckProgress::default();
    let checked = fixture.runtime.block_on(fixture.vault.check_vault(&scope, &progress));
    let report = checked.unwrap();
    assert!(report.is_sound() && report.is_whole(), "{report:?}");

    let folder = fixture.folder.path();
    std::fs::write(folder.join("identity"), &fixture.identity_text).unwrap();
    let backup = format!("BACKUP={second}");
    let script = restore_by_hand();
    // Which of the index objects comes first is chance: both orders count.
    let turn = "\ntac \"$tmp/all\" > \"$tmp/turned\"\nmv \"$tmp/turned\" \"$tmp/all\"\n# Only places";
    let turned = script.replace("\n# Only places", turn);
    assert_ne!(script, turned);
    for (out, script) in [("OUT=out", script), ("OUT=turned", turned)] {
        std::fs::write(folder.join("restore.sh"), script).unwrap();
        let by_hand = ["VAULT=vault", "IDENTITY=identity", out, &backup, "sh", "restore.sh"];
        run("env", &by_hand, folder, None);
        let restored = folder.join(&out["OUT=".len()..]).join("large");
        assert!(std::fs::read(restored).unwrap() == content[0].content);
    }
}

#[test]
fn a_store_that_does_not_answer_is_an_error_and_no_pack_is_taken_for_lost() {
    let control = Arc::new(Control::default());
    let mut fixture = Fixture::over(|store| control.wrap(store));
    let content = [stream("a", rows(1, 100_000))];
    fixture.back_up(1, &content);
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    for (fault, is_retryable) in [(Fault::Lost, true), (Fault::Refused, false)] {
        let mut writer = fixture.writer(&Fixture::id(2), Attempt::FIRST).unwrap();
        put_all(&mut writer, &content).unwrap();
        control.counts_reads.store(true, Ordering::SeqCst);
        control.arm(0, fault);
        let error = writer.finish().unwrap_err();
        control.counts_reads.store(false, Ordering::SeqCst);
        assert_eq!(error.to_string(), "look at the packs of earlier backups");
        assert_eq!(error.is_retryable(), is_retryable, "{error:?}");
    }
    let (_, sealed) = fixture.back_up(3, &content);
    assert_eq!(sealed.totals.new_chunks, 0);
    // Nor is one of a vault that is not there for the moment, or lies beyond a link to what is not there.
    let mut writer = fixture.writer(&Fixture::id(4), Attempt::FIRST).unwrap();
    put_all(&mut writer, &content).unwrap();
    let (packs, aside) = (fixture.path().join("packs"), fixture.folder.path().join("aside"));
    std::fs::rename(&packs, &aside).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", &packs).unwrap();
    assert_eq!(
        writer.finish().unwrap_err().to_string(),
        "look at the packs of earlier backups"
    );
    std::fs::remove_file(&packs).unwrap();
    std::fs::rename(&aside, &packs).unwrap();
    let mut writer = fixture.writer(&Fixture::id(5), Attempt::FIRST).unwrap();
    put_all(&mut writer, &content).unwrap();
    std::fs::rename(fixture.path(), &aside).unwrap();
    std::fs::create_dir(fixture.path()).unwrap();
    assert!(writer.finish().is_err());
}

/// Each file is one chunk, in a pack of its own.
fn put_files(writer: &mut BackupWriter, numbers: impl Iterator<Item = u64>) {
    const BYTES: usize = 1024 * 1024;
    for number in numbers {
        let entry = Entry::bare(format!("base/{number:04}"), EntryKind::File);
        writer.begin_paged(&entry, BYTES as u64).unwrap();
        writer.write(&noise(number, BYTES)).unwrap();
        writer.end().unwrap();
    }
}

#[test]
fn a_backup_that_needs_many_packs_lists_them_once() {
    const FILES: u64 = 80;
    let control = Arc::new(Control::default());
    let objects = Arc::new(InMemory::new());
    let store = control.wrap(in_memory(&objects));
    let fixture = Fixture::in_store(tempfile::tempdir().unwrap(), store);
    for number in 0..FILES {
        let id = Fixture::id(number as i64);
        let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
        put_files(&mut writer, number..=number);
        commit(&fixture, &id, &writer.finish().unwrap());
    }
    control.take_all();
    let id = Fixture::id(FILES as i64);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    put_files(&mut writer, 0..FILES);
    let sealed = writer.finish().unwrap();
    assert_eq!((sealed.totals.chunks, sealed.totals.new_chunks), (FILES, 0));
    let calls = control.take_all();
    let asked = |call: &str| calls.iter().filter(|other| other.starts_with(call)).count();
    assert_eq!(asked("list packs"), 1, "{calls:#?}");
    assert!(asked("head packs/") <= 64, "{calls:#?}");
    commit(&fixture, &id, &sealed);
    assert_eq!(fixture.read(&id).unwrap().len() as u64, FILES);
}
