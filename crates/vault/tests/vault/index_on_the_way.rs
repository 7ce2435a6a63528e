//! A large backup stores parts of its index on the way, so that what it stored is not lost with it.

use std::sync::{Arc, Mutex};

use strongroom_proto::manifest::{BackupSink as _, Entry, EntryKind, EntrySink as _};
use strongroom_proto::{Attempt, BackupId, ChunkId, Sha256Digest, VaultId};
use strongroom_vault::*;

use crate::order::Barriers;
use crate::support::*;

/// Each is one chunk.
const FILE_BYTES: usize = 1024 * 1024;
/// A part of the index comes long before so many; more are never written.
const FILES: u64 = 400;

/// Keeps what index objects list, and knows nothing.
#[derive(Default)]
struct Listings(Mutex<Vec<IndexedChunks>>);

#[async_trait::async_trait]
impl ChunkTable for Listings {
    async fn index_objects(&self, _: VaultId) -> Result<Vec<Sha256Digest>, TableError> {
        Ok(Vec::new())
    }
    async fn add(&self, _: VaultId, chunks: IndexedChunks) -> Result<(), TableError> {
        self.0.lock().unwrap().push(chunks);
        Ok(())
    }
    async fn forget(&self, _: VaultId, _: &[Sha256Digest]) -> Result<(), TableError> {
        Ok(())
    }
    async fn look_up(
        &self,
        _: VaultId,
        chunks: &[ChunkId],
        _: &[Sha256Digest],
    ) -> Result<Vec<Option<ChunkPlace>>, TableError> {
        Ok(vec![None; chunks.len()])
    }
}

/// What each index object of the vault lists.
fn listings(fixture: &Fixture) -> Vec<IndexedChunks> {
    let table = Arc::new(Listings::default());
    let index = ChunkIndex::in_table(
        &fixture.vault,
        &fixture.writer_key,
        Arc::<Listings>::clone(&table) as Arc<dyn ChunkTable>,
    );
    fixture.runtime.block_on(index.refresh()).unwrap();
    std::mem::take(&mut table.0.lock().unwrap())
}

fn put_file(writer: &mut BackupWriter, number: u64) {
    let path = format!("base/{number:04}");
    let content = noise(number, FILE_BYTES);
    writer
        .begin_paged(&Entry::bare(&path, EntryKind::File), FILE_BYTES as u64)
        .unwrap();
    writer.write(&content).unwrap();
    writer.end().unwrap();
}

fn has_put_index(calls: &[String]) -> bool {
    calls.iter().any(|call| call.starts_with("put index/"))
}

/// Puts files until a part of the index is stored; how many.
fn put_until_listed(writer: &mut BackupWriter, control: &Control) -> u64 {
    for number in 0..FILES {
        put_file(writer, number);
        if has_put_index(&control.calls.lock().unwrap()) {
            return number + 1;
        }
    }
    panic!("{FILES} MiB and no index");
}

/// Every index object is put after its packs with a barrier between, and with another barrier behind it.
fn assert_order(calls: &[String], listings: &[IndexedChunks]) {
    let place = |call: &str| {
        let found = calls.iter().position(|other| other == call);
        found.unwrap_or_else(|| panic!("{call} is missing: {calls:#?}"))
    };
    for listed in listings {
        let index = place(&format!("put index/{}", listed.index_object));
        let barrier = calls[..index].iter().rposition(|call| call == "barrier");
        let barrier = barrier.expect("a barrier before the index object");
        assert!(!listed.packs.is_empty());
        for listed in &listed.packs {
            let digest = listed.pack.to_string();
            let put = place(&format!("put packs/{}/{digest}", &digest[..2]));
            assert!(put < barrier, "{calls:#?}");
        }
        let next = calls[index + 1..]
            .iter()
            .find(|call| *call == "barrier" || call.starts_with("put index/") || call.ends_with("/manifest"));
        assert_eq!(next.map(String::as_str), Some("barrier"), "{calls:#?}");
    }
}

fn fixture() -> (Fixture, Arc<Control>) {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    control.take_all();
    (fixture, control)
}

#[test]
fn the_next_attempt_does_not_store_again_what_a_killed_one_had_listed() {
    let (mut fixture, control) = fixture();
    let id = Fixture::id(1);
    let noting = Barriers::noted_by(&control);
    let writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    let mut writer = writer.with_unlisted_limits(1, usize::MAX);
    let files = put_until_listed(&mut writer, &control);
    drop(writer);
    drop(noting);

    let listings = listings(&fixture);
    assert_order(&control.take_all(), &listings);
    let objects = fixture.objects();
    assert!(
        !objects.iter().any(|object| object.starts_with("backups/")),
        "{objects:?}"
    );
    let packs: Vec<&Sha256Digest> = listings
        .iter()
        .flat_map(|listed| &listed.packs)
        .map(|listed| &listed.pack)
        .collect();
    let chunks: usize = listings
        .iter()
        .flat_map(|listed| &listed.packs)
        .map(|listed| listed.chunks.len())
        .sum();
    assert!(chunks > 0 && (chunks as u64) < files);

    // As another process, which knows only what the vault says.
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let second = Attempt::new(2);
    let mut writer = fixture.writer(&id, second).unwrap();
    for number in 0..files {
        put_file(&mut writer, number);
    }
    let sealed = writer.finish().unwrap();
    assert_eq!(sealed.totals.chunks, files);
    assert_eq!(sealed.totals.new_chunks, files - chunks as u64);
    assert_eq!(
        sealed.totals.new_content_bytes,
        sealed.totals.new_chunks * FILE_BYTES as u64
    );
    let receipt = fixture.receipt(&id, second, &sealed);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();

    let needed = std::fs::read_to_string(fixture.path().join(format!("backups/{id}/a2/packs"))).unwrap();
    for pack in packs {
        assert!(needed.contains(&pack.to_string()), "{pack} is reused and not named");
    }
    let numbers: Vec<u64> = (0..files).collect();
    assert_restores(&fixture, &id, &numbers);
}

fn assert_restores(fixture: &Fixture, id: &BackupId, numbers: &[u64]) {
    let restored = fixture.read(id).unwrap();
    assert_eq!(restored.len(), numbers.len());
    for (number, item) in numbers.iter().zip(restored) {
        assert!(item.content == noise(*number, FILE_BYTES), "{item:?} is another");
    }
}

#[test]
fn each_part_of_the_index_comes_after_its_packs_and_before_the_manifest() {
    let (fixture, control) = fixture();
    let id = Fixture::id(1);
    let noting = Barriers::noted_by(&control);
    let writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    let mut writer = writer.with_unlisted_limits(u64::MAX, 1);
    let listed_with = put_until_listed(&mut writer, &control);
    let files = listed_with + 40;
    // The first of them comes again: what is listed already is not stored another time.
    let numbers: Vec<u64> = (0..listed_with).chain([0]).chain(listed_with..files).collect();
    for number in &numbers[listed_with as usize..] {
        put_file(&mut writer, *number);
    }
    let sealed = writer.finish().unwrap();
    drop(noting);
    let calls = control.take_all();
    let listings = listings(&fixture);
    assert!(listings.len() > 1, "one index object only");
    assert_order(&calls, &listings);
    let last_index = calls.iter().rposition(|call| call.starts_with("put index/"));
    let manifest = calls.iter().position(|call| call.ends_with("/a1/manifest"));
    assert!(last_index.unwrap() < manifest.unwrap(), "{calls:#?}");

    assert_eq!((sealed.totals.chunks, sealed.totals.new_chunks), (files + 1, files));
    let mut listed: Vec<&ChunkId> = listings
        .iter()
        .flat_map(|one| &one.packs)
        .flat_map(|listed| &listed.chunks)
        .collect();
    let all = listed.len();
    listed.sort_unstable_by_key(|chunk| chunk.to_string());
    listed.dedup();
    assert_eq!(listed.len(), all, "a chunk is listed twice");
    let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();
    let needed = std::fs::read_to_string(fixture.path().join(format!("backups/{id}/a1/packs"))).unwrap();
    for one in &listings {
        assert!(needed.contains(&one.index_object.to_string()));
    }
    assert_restores(&fixture, &id, &numbers);
}
