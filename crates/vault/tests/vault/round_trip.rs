//! What goes in comes out, bounded, deduplicated and sealed.

use std::sync::Arc;

use proptest::prelude::*;
use strongroom_proto::Attempt;
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource};
use strongroom_vault::*;

use crate::support::*;

fn mixed() -> Vec<Item> {
    let mut items = vec![stream("globals.sql", "CREATE ROLE x;\n"), stream("empty", "")];
    for number in 0..3_000 {
        items.push(file(
            &format!("tree/{number}"),
            format!("file {number}\n").repeat(number % 40),
        ));
    }
    let mut folder = Item {
        entry: Entry::bare("tree/folder", EntryKind::Directory),
        content: Vec::new(),
    };
    folder.entry.mode = Some(0o40_755);
    items.push(folder);
    items.push(file("tree/spanning", noise(1, 9_000_000)));
    items.push(stream("database.dump", rows(2, 50_000_000)));
    items.push(stream("checks.json", "{}"));
    items
}

#[test]
fn entries_of_every_size_come_back_as_they_went_in() {
    let fixture = Fixture::new();
    let items = mixed();
    let (id, sealed) = fixture.back_up(1, &items);
    let back = fixture.read(&id).unwrap();
    assert_eq!(back.len(), items.len());
    for (found, expected) in back.iter().zip(&items) {
        assert!(found == expected, "{found:?} is not {expected:?}");
    }
    let content: usize = items.iter().map(|item| item.content.len()).sum();
    assert_eq!(sealed.totals.entries, items.len() as u64);
    assert_eq!(sealed.totals.content_bytes, content as u64);
    assert_eq!(sealed.totals.new_content_bytes, content as u64);
    assert_eq!(sealed.totals.new_chunks, sealed.totals.chunks);
    // Rows shrink, noise does not.
    assert!(
        sealed.totals.stored_bytes < 9_000_000 + 25_000_000,
        "{:?}",
        sealed.totals
    );
    let added: u64 = fixture
        .objects()
        .iter()
        .filter(|path| {
            ["packs/", "index/", "backups/"]
                .iter()
                .any(|folder| path.starts_with(folder))
        })
        .filter(|path| !path.contains("receipt"))
        .map(|path| fixture.path().join(path).metadata().unwrap().len())
        .sum();
    assert_eq!(sealed.totals.stored_bytes, added);
    assert!(fixture.runtime.block_on(fixture.vault.check(&id)).unwrap().is_sound());
}

#[test]
fn single_entries_and_lengths_can_be_read() {
    let fixture = Fixture::new();
    let items = mixed();
    let (id, _) = fixture.back_up(1, &items);
    let reader = fixture
        .runtime
        .block_on(fixture.vault.open_backup(&id, &fixture.identity))
        .unwrap();
    let mut lengths = Vec::new();
    reader
        .for_each_entry(&mut |listed| {
            lengths.push((listed.entry.path.clone(), listed.bytes));
            Ok(())
        })
        .unwrap();
    let expected: Vec<_> = items
        .iter()
        .map(|i| (i.entry.path.clone(), i.content.len() as u64))
        .collect();
    assert_eq!(lengths, expected);
    for item in [&items[0], &items[1], &items[40], &items[3_003], &items[3_005]] {
        let mut out = Vec::new();
        reader.copy_content(&item.entry.path, &mut out).unwrap();
        assert!(out == item.content, "{item:?}");
    }
    let missing = reader.copy_content("nothing", &mut Vec::new()).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_higher_level_takes_less_room_and_reads_the_same() {
    let stored = |level: Option<i32>| {
        let fixture = Fixture::new();
        let (id, items) = (Fixture::id(1), [stream("rows", rows(1, 2_000_000))]);
        let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
        if let Some(level) = level {
            writer = writer.with_zstd_level(level);
        }
        put_all(&mut writer, &items).unwrap();
        let sealed = writer.finish().unwrap();
        let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
        let committed = fixture.vault.commit(&receipt, &fixture.signer);
        fixture.runtime.block_on(committed).unwrap();
        assert!(fixture.read(&id).unwrap() == items);
        sealed.totals.stored_bytes
    };
    let (fast, usual, slow) = (stored(Some(1)), stored(None), stored(Some(15)));
    assert!(slow < usual && usual != fast, "{fast} {usual} {slow}");
}

#[test]
fn an_empty_backup_is_a_backup() {
    let fixture = Fixture::new();
    let (id, sealed) = fixture.back_up(1, &[]);
    assert_eq!(fixture.read(&id).unwrap(), []);
    assert_eq!(sealed.totals.entries, 0);
    assert!(fixture.runtime.block_on(fixture.vault.check(&id)).unwrap().is_sound());
}

#[test]
fn a_second_backup_of_the_same_content_adds_no_pack() {
    let fixture = Fixture::new();
    let items = [stream("a.dump", rows(1, 12_000_000)), stream("b", "x")];
    let (_, first) = fixture.back_up(1, &items);
    let before = fixture.objects();
    let (id, second) = fixture.back_up(2, &items);
    let added: Vec<String> = fixture.objects().into_iter().filter(|o| !before.contains(o)).collect();
    assert!(added.iter().all(|path| path.starts_with("backups/")), "{added:?}");
    assert_eq!(added.len(), 4);
    assert_eq!((second.totals.new_chunks, second.totals.new_content_bytes), (0, 0));
    assert_eq!(second.totals.chunks, first.totals.chunks);
    assert_eq!(fixture.read(&id).unwrap(), items);
}

#[test]
fn another_process_learns_of_chunks_from_the_vault() {
    let mut fixture = Fixture::new();
    let items = [stream("a.dump", rows(1, 12_000_000))];
    fixture.back_up(1, &items);
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let (id, sealed) = fixture.back_up(2, &items);
    assert_eq!(sealed.totals.new_chunks, 0);
    assert_eq!(fixture.read(&id).unwrap(), items);
}

#[test]
fn an_index_object_that_is_damaged_forged_or_of_another_key_is_not_used_and_stops_nobody() {
    let mut fixture = Fixture::new();
    let items = [stream("a", "content")];
    fixture.back_up(1, &items);
    let name = fixture.objects().into_iter().find(|o| o.starts_with("index/")).unwrap();
    let original = std::fs::read(fixture.path().join(&name)).unwrap();
    // One that says it was made with our key, and was not.
    let mut forged = original.clone();
    *forged.last_mut().unwrap() ^= 1;
    let digest = hex::encode(ring::digest::digest(&ring::digest::SHA256, &forged));
    let forged_name = format!("index/{digest}");
    std::fs::write(fixture.path().join(&forged_name), forged).unwrap();
    // One whose bytes were lost.
    std::fs::write(fixture.path().join(&name), b"").unwrap();
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let (id, sealed) = fixture.back_up(2, &items);
    assert_eq!((sealed.totals.new_chunks, sealed.totals.chunks), (1, 1));
    let list = std::fs::read_to_string(fixture.path().join(format!("backups/{id}/a1/packs"))).unwrap();
    assert!(!list.contains(&name) && !list.contains(&forged_name), "{list}");
    assert_eq!(fixture.read(&id).unwrap(), items);
    // Put back, it counts again; to a writer of another time it never did.
    std::fs::write(fixture.path().join(&name), original).unwrap();
    std::fs::remove_file(fixture.path().join(list_index(&list))).unwrap();
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let (id, sealed) = fixture.back_up(3, &items);
    assert_eq!(sealed.totals.new_chunks, 0);
    assert_eq!(fixture.read(&id).unwrap(), items);
    let foreign = ChunkIndex::new(&fixture.vault, &WriterKey::generate());
    fixture.runtime.block_on(foreign.refresh()).unwrap();
}

/// The index object in a list of packs that names one.
fn list_index(list: &str) -> &str {
    let mut objects = list.lines().filter_map(|line| line.split("  ").nth(1));
    objects.find(|object| object.starts_with("index/")).unwrap()
}

#[test]
fn a_chunk_that_appears_twice_in_a_backup_is_stored_once() {
    let fixture = Fixture::new();
    let content = noise(3, 6_000_000);
    let items = [stream("one", content.clone()), stream("two", content)];
    let (id, sealed) = fixture.back_up(1, &items);
    assert_eq!(sealed.totals.new_content_bytes, 6_000_000);
    assert_eq!(sealed.totals.chunks, 2 * sealed.totals.new_chunks);
    assert_eq!(fixture.read(&id).unwrap(), items);
}

/// A table that grew at its end must not move the chunks of the tables after it.
#[test]
fn a_large_stream_deduplicates_whatever_its_neighbours_do() {
    let fixture = Fixture::new();
    let (large, other) = (noise(4, 5_000_000), noise(5, 3_000_000));
    fixture.back_up(
        1,
        &[
            stream("small", "1"),
            stream("large", large.clone()),
            stream("other", other.clone()),
        ],
    );
    let mut grown = large;
    grown.extend_from_slice(&noise(6, 100_000));
    let items = [
        stream("small", "changed"),
        stream("large", grown),
        stream("other", other),
    ];
    let (_, sealed) = fixture.back_up(2, &items);
    // The small stream's chunk, and the one or two at the end of the one that grew.
    assert!(sealed.totals.new_chunks <= 3, "{:?}", sealed.totals);
}

#[test]
fn two_writers_at_once_do_not_disturb_each_other() {
    let fixture = Fixture::new();
    let contents = [
        vec![stream("a", rows(1, 8_000_000)), stream("shared", noise(9, 3_000_000))],
        vec![stream("b", rows(2, 8_000_000)), stream("shared", noise(9, 3_000_000))],
    ];
    let ids = std::thread::scope(|scope| {
        let threads = [0, 1].map(|number| {
            let (fixture, content) = (&fixture, &contents[number]);
            scope.spawn(move || fixture.back_up(number as i64, content).0)
        });
        threads.map(|thread| thread.join().unwrap())
    });
    for (id, content) in ids.iter().zip(&contents) {
        assert_eq!(&fixture.read(id).unwrap(), content);
        assert!(fixture.runtime.block_on(fixture.vault.check(id)).unwrap().is_sound());
    }
    let mut expected = ids.to_vec();
    expected.sort();
    assert_eq!(fixture.runtime.block_on(fixture.vault.backups()).unwrap(), expected);
}

#[test]
fn no_object_shows_the_content_or_the_names_in_it() {
    let fixture = Fixture::new();
    let canary = "CANARY-7f3a-do-not-leak";
    let items = [
        stream(&format!("{canary}.dump"), canary.repeat(1_000)),
        file("tree/x", format!("{canary}\n")),
    ];
    fixture.back_up(1, &items);
    let key = fixture.writer_key.serialize();
    let key_digits = key.trim().rsplit(' ').next().unwrap();
    for object in fixture.objects() {
        let bytes = std::fs::read(fixture.path().join(&object)).unwrap();
        for secret in [canary, key_digits] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{object} shows {secret}");
        }
        let frame = bytes.windows(4).any(|window| window == [0x28, 0xb5, 0x2f, 0xfd]);
        assert!(
            !frame || object.starts_with("index/"),
            "{object} holds an unsealed zstd frame"
        );
    }
}

#[test]
fn another_identity_opens_nothing() {
    let fixture = Fixture::new();
    let (id, _) = fixture.back_up(1, &[stream("a", "content")]);
    let (other, _) = Identity::generate();
    let other = Identity::from_file_text(&other).unwrap();
    let error = fixture
        .runtime
        .block_on(fixture.vault.open_backup(&id, &other))
        .unwrap_err();
    assert!(matches!(error, ReadError::WrongIdentity { .. }), "{error:?}");
}

#[test]
fn calls_out_of_order_are_refused() {
    let fixture = Fixture::new();
    let mut writer = fixture.writer(&Fixture::id(1), Attempt::FIRST).unwrap();
    assert!(writer.write(b"x").is_err());
    assert!(writer.end().is_err());
    writer.begin(&Entry::stream("a", "x")).unwrap();
    assert!(writer.begin(&Entry::stream("b", "x")).is_err());
    assert!(matches!(writer.finish(), Err(WriteError::Order { .. })));
}

#[test]
fn an_index_of_another_vault_is_refused() {
    let (one, mut other) = (Fixture::new(), Fixture::new());
    other.index = Arc::clone(&one.index);
    assert!(matches!(
        other.writer(&Fixture::id(1), Attempt::FIRST),
        Err(WriteError::ForeignIndex)
    ));
}

#[test]
fn an_entry_that_no_reader_would_take_is_refused() {
    let fixture = Fixture::new();
    let mut writer = fixture.writer(&Fixture::id(1), Attempt::FIRST).unwrap();
    let refused = put_all(&mut writer, &[file(&"x".repeat(1_100_000), "content")]).and_then(|()| Ok(writer.finish()?));
    let error = refused.unwrap_err();
    assert!(
        matches!(WriteError::in_io_error(&error), Some(WriteError::EntryTooLarge { .. })),
        "{error:?}"
    );
}

#[test]
fn a_writer_moves_to_a_thread_and_a_reader_is_shared() {
    const fn moves<T: Send>() {}
    const fn is_shared<T: Send + Sync>() {}
    moves::<BackupWriter>();
    is_shared::<BackupReader>();
    is_shared::<ChunkIndex>();
    is_shared::<Vault>();
}

#[test]
fn many_entries_without_content_are_written_in_bounded_batches() {
    let fixture = Fixture::new();
    let mut items = vec![stream("first", "pending content")];
    items.extend((0..40_000).map(|number| file(&format!("empty/{number}"), "")));
    items.push(stream("last", "x"));
    let (id, _) = fixture.back_up(1, &items);
    assert_eq!(fixture.read(&id).unwrap(), items);
}

fn an_item() -> impl Strategy<Value = (bool, u8, usize)> {
    let size = prop_oneof![
        4 => 0..200_usize,
        3 => 500_000..600_000_usize,
        2 => 1_000_000..1_100_000_usize,
        1 => 4_000_000..6_000_000_usize,
    ];
    (any::<bool>(), 0..4_u8, size)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_entries_round_trips(shapes in prop::collection::vec(an_item(), 0..12)) {
        let fixture = Fixture::new();
        let items: Vec<Item> = shapes.iter().enumerate().map(|(number, (is_stream, seed, size))| {
            let path = format!("entry/{number}");
            // Few seeds: content repeats within a backup.
            let content = noise(u64::from(*seed), *size);
            if *is_stream { stream(&path, content) } else { file(&path, content) }
        }).collect();
        let (id, sealed) = fixture.back_up(1, &items);
        prop_assert_eq!(sealed.totals.content_bytes, items.iter().map(|i| i.content.len() as u64).sum::<u64>());
        let back = fixture.read(&id).unwrap();
        prop_assert!(back == items, "{:?} is not {:?}", back, items);
    }
}
