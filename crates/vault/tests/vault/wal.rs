//! WAL in a vault: what a writer puts comes out for its place only, and any damage is found.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, WalPiece, WalSegment, WalSink, WalSource};
use strongroom_vault::*;

use crate::order::Barriers;
use crate::stock_tools::run;
use crate::support::*;

pub(crate) const SYSTEM: SystemIdentifier = SystemIdentifier(7_412_345_678_901_234_567);
pub(crate) const SEGMENT_BYTES: u32 = 1 << 20;

pub(crate) fn piece(timeline: u32, from: u64, to: u64) -> WalPiece {
    WalPiece {
        system_identifier: SYSTEM,
        timeline,
        from: Lsn(from),
        to: Lsn(to),
        segment_bytes: SEGMENT_BYTES,
        server_time: Some(at(7)),
    }
}

/// Bytes of WAL, which depend on nothing but their place.
pub(crate) fn wal(piece: &WalPiece) -> Vec<u8> {
    let all = rows(piece.segment().number, 2 * piece.segment_bytes as usize);
    let from = (piece.from.0 % u64::from(piece.segment_bytes)) as usize;
    all[from..from + piece.len() as usize].to_vec()
}

pub(crate) fn writer(fixture: &Fixture) -> WalWriter {
    fixture
        .vault
        .wal_writer(fixture.writer_key.clone(), fixture.signer.clone())
}

pub(crate) fn reader(fixture: &Fixture) -> WalReader {
    fixture.vault.wal_reader(Arc::new(fixture.identity.clone()))
}

pub(crate) fn put(fixture: &Fixture, pieces: &[WalPiece]) {
    let writer = writer(fixture);
    for piece in pieces {
        fixture.runtime.block_on(writer.put(piece, wal(piece).into())).unwrap();
    }
}

fn ranges(pieces: &[StoredPiece]) -> Vec<(u64, u64)> {
    pieces.iter().map(|piece| (piece.from.0, piece.to.0)).collect()
}

fn read_error(error: &io::Error) -> &ReadError {
    ReadError::in_io_error(error).unwrap()
}

/// What the suite of every kind of store asks for.
pub(crate) fn keeps_wal(fixture: &Fixture) {
    let mib = u64::from(SEGMENT_BYTES);
    let pieces = [
        piece(1, 3 * mib, 3 * mib + 10),
        piece(1, 3 * mib + 10, 4 * mib),
        piece(1, 4 * mib, 5 * mib),
        piece(2, 4 * mib, 4 * mib + 5_000),
    ];
    let (writer, reader) = (writer(fixture), reader(fixture));
    fixture.runtime.block_on(async {
        assert_eq!(reader.timelines(SYSTEM).await.unwrap(), Vec::<u32>::new());
        assert_eq!(reader.history(SYSTEM, 2).await.unwrap(), None);
        // All at once, as a receiver that has fallen behind does.
        let puts = pieces.iter().map(|piece| writer.put(piece, wal(piece).into()));
        futures::future::try_join_all(puts).await.unwrap();
        // A second receiver stores the history again, as an object of its own.
        for writer in [&writer, &self::writer(fixture)] {
            writer.put_history(SYSTEM, 2, "1\t0/400000\tno reason\n").await.unwrap();
        }
        assert_eq!(reader.timelines(SYSTEM).await.unwrap(), [1, 2]);
        assert_eq!(reader.timelines(SystemIdentifier(7)).await.unwrap(), Vec::<u32>::new());
        let stored = writer.pieces(SYSTEM, 1).await.unwrap();
        assert_eq!(
            ranges(&stored),
            [(3 * mib, 3 * mib + 10), (3 * mib + 10, 4 * mib), (4 * mib, 5 * mib)]
        );
        let numbers = |segments: Vec<WalSegment>| segments.iter().map(|s| s.number).collect::<Vec<_>>();
        assert_eq!(numbers(reader.segments(SYSTEM, 1).await.unwrap()), [3, 4]);
        assert_eq!(numbers(reader.segments(SYSTEM, 2).await.unwrap()), [4]);
        let third = WalSegment { timeline: 1, number: 3 };
        let found = reader.segment_pieces(SYSTEM, third).await.unwrap();
        assert_eq!(found, stored[..2]);
        let mut whole = Vec::new();
        for (stored, expected) in found.iter().zip(&pieces) {
            let (said, bytes) = reader.read(SYSTEM, stored).await.unwrap();
            assert_eq!(said, *expected);
            whole.extend(bytes);
        }
        assert!(whole == wal(&piece(1, 3 * mib, 4 * mib)));
        for (timeline, number) in [(1, 2), (1, 5), (2, 3), (3, 3)] {
            let absent = reader.segment_pieces(SYSTEM, WalSegment { timeline, number }).await;
            assert_eq!(absent.unwrap(), []);
        }
        let history = reader.history(SYSTEM, 2).await.unwrap();
        assert_eq!(history.as_deref(), Some("1\t0/400000\tno reason\n"));
    });
    for identity in [None, Some(&fixture.identity)] {
        let scope = CheckScope {
            backups: Vec::new(),
            identity,
        };
        let progress = CheckProgress::default();
        let report = fixture.runtime.block_on(fixture.vault.check_vault(&scope, &progress));
        let report = report.unwrap();
        assert!(report.is_sound() && report.is_whole(), "{report:?}");
        assert_eq!(report.wal_objects, 6);
        assert_eq!(report.unreferenced.unwrap().objects, 0);
    }
}

#[test]
fn what_is_no_piece_of_wal_is_refused_and_nothing_is_stored() {
    let fixture = Fixture::new();
    let writer = writer(&fixture);
    let mib = u64::from(SEGMENT_BYTES);
    let before = fixture.objects();
    let of_size = |segment_bytes| WalPiece {
        segment_bytes,
        ..piece(1, 3 * mib, 3 * mib + 10)
    };
    for (piece, bytes, words) in [
        (piece(1, 5, 5), 0, "empty"),
        (piece(1, 6, 5), 0, "empty"),
        (piece(1, mib, 2 * mib), 0, "not as many"),
        (piece(1, mib, 2 * mib), mib - 1, "not as many"),
        (piece(1, mib, mib + 10), 11, "not as many"),
        (piece(1, 2 * mib - 5, 2 * mib + 5), 10, "beyond the segment"),
        (piece(1, mib, 3 * mib), 2 * mib, "beyond the segment"),
        (piece(0, mib, mib + 1), 1, "timeline 0"),
        (of_size(0), 10, "power of two"),
        (of_size(3 << 20), 10, "power of two"),
        (of_size(1 << 19), 10, "power of two"),
        (of_size(1 << 31), 10, "power of two"),
    ] {
        let put = writer.put(&piece, vec![0; bytes as usize].into());
        let error = fixture.runtime.block_on(put).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(words), "{error}");
    }
    let too_long = "x".repeat(2 << 20);
    let put = fixture.runtime.block_on(writer.put_history(SYSTEM, 2, &too_long));
    assert_eq!(put.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(fixture.objects(), before);
}

#[test]
fn segments_of_every_size_come_back() {
    let fixture = Fixture::new();
    let (writer, reader) = (writer(&fixture), reader(&fixture));
    for (number, power) in (1..).zip([20, 24, 26, 30]) {
        let piece = WalPiece {
            system_identifier: SystemIdentifier(number),
            segment_bytes: 1 << power,
            ..piece(1, 3 << 30, (3 << 30) + 70_000)
        };
        let bytes = noise(number, 70_000);
        fixture.runtime.block_on(async {
            writer.put(&piece, bytes.clone().into()).await.unwrap();
            let found = reader
                .segment_pieces(piece.system_identifier, piece.segment())
                .await
                .unwrap();
            let read = reader.read(piece.system_identifier, &found[0]).await.unwrap();
            assert!(read == (piece.clone(), bytes));
            // A reader that has seen no listing finds it by its range alone.
            let fresh = fixture.vault.wal_reader(Arc::new(fixture.identity.clone()));
            assert_eq!(fresh.read(piece.system_identifier, &found[0]).await.unwrap().0, piece);
        });
    }
}

#[test]
fn wal_that_comes_faster_than_it_is_stored_is_compressed_fast_and_the_rest_as_told() {
    let fixture = Fixture::new();
    let writer = writer(&fixture).with_zstd_level(19);
    let segment = u64::from(SEGMENT_BYTES);
    // The same bytes in three segments; one put alone, then two at once, of which the first is alone when it begins.
    let pieces: Vec<WalPiece> = (1..4).map(|n| piece(1, n * segment, (n + 1) * segment)).collect();
    let bytes = Arc::new(wal(&pieces[0]));
    let put = |piece| writer.put(piece, Arc::clone(&bytes));
    fixture.runtime.block_on(put(&pieces[0])).unwrap();
    let both = futures::future::try_join(put(&pieces[1]), put(&pieces[2]));
    fixture.runtime.block_on(both).unwrap();
    let folder = fixture.folder.path();
    let wal_objects = objects(folder).into_iter().filter(|object| object.contains("wal/"));
    // By name, and so in the order of the pieces.
    let stored: Vec<u64> = wal_objects
        .map(|object| folder.join(object).metadata().unwrap().len())
        .collect();
    assert_eq!(stored.len(), 3);
    // The statements differ by a few bytes.
    assert!(stored[0].abs_diff(stored[1]) < 1_000, "{stored:?}");
    assert!(stored[2] > stored[0] + 1_000, "{stored:?}");
    let reader = reader(&fixture);
    for piece in &pieces {
        let read = async {
            let found = reader.segment_pieces(SYSTEM, piece.segment()).await?;
            reader.read(SYSTEM, &found[0]).await
        };
        assert!(fixture.runtime.block_on(read).unwrap().1 == *bytes);
    }
}

#[test]
fn two_contents_of_one_range_are_both_kept() {
    let fixture = Fixture::new();
    let (writer, reader) = (writer(&fixture), reader(&fixture));
    let piece = piece(1, 0, 100);
    fixture.runtime.block_on(async {
        for content in [1, 2] {
            writer.put(&piece, vec![content; 100].into()).await.unwrap();
        }
        let found = reader.segment_pieces(SYSTEM, piece.segment()).await.unwrap();
        assert_eq!(ranges(&found), [(0, 100), (0, 100)]);
        let mut contents = Vec::new();
        for stored in &found {
            contents.push(reader.read(SYSTEM, stored).await.unwrap().1[0]);
        }
        contents.sort_unstable();
        assert_eq!(contents, [1, 2]);
        writer.put_history(SYSTEM, 2, "1\t0/1\ta\n").await.unwrap();
        writer.put_history(SYSTEM, 2, "1\t0/2\ta\n").await.unwrap();
        let error = reader.history(SYSTEM, 2).await.unwrap_err();
        assert!(matches!(read_error(&error), ReadError::Contradiction { .. }), "{error}");
    });
}

#[test]
fn a_piece_is_durable_before_it_is_said_to_be_and_a_failure_is_told() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    let writer = writer(&fixture);
    let mib = u64::from(SEGMENT_BYTES);
    let put = |from| {
        let piece = piece(1, from, from + 100);
        fixture.runtime.block_on(writer.put(&piece, wal(&piece).into()))
    };
    put(mib).unwrap();
    control.arm(0, Fault::Full);
    let error = put(2 * mib).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(WalError::in_io_error(&error).is_some_and(WalError::is_storage_full));
    control.arm(0, Fault::Refused);
    let error = put(2 * mib).unwrap_err();
    assert!(!WalError::in_io_error(&error).unwrap().is_retryable());
    // Bytes that rot on their way are noticed by reading them back.
    control.arm(0, Fault::Altered);
    assert!(put(3 * mib).is_err());
    control.arm(0, Fault::AnswerLost);
    put(4 * mib).unwrap();
    let stored = fixture.runtime.block_on(writer.pieces(SYSTEM, 1)).unwrap();
    assert!(ranges(&stored).contains(&(4 * mib, 4 * mib + 100)));
}

#[test]
fn a_store_that_cannot_be_listed_is_never_an_empty_answer() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    let piece = piece(1, 0, 100);
    put(&fixture, std::slice::from_ref(&piece));
    control.fails_lists.store(true, std::sync::atomic::Ordering::SeqCst);
    let reader = reader(&fixture);
    fixture.runtime.block_on(async {
        assert!(reader.segment_pieces(SYSTEM, piece.segment()).await.is_err());
        assert!(reader.segments(SYSTEM, 1).await.is_err());
        assert!(reader.timelines(SYSTEM).await.is_err());
        assert!(reader.history(SYSTEM, 1).await.is_err());
    });
    control.fails_lists.store(false, std::sync::atomic::Ordering::SeqCst);
    std::fs::rename(fixture.path(), fixture.folder.path().join("elsewhere")).unwrap();
    let unmounted = fixture.runtime.block_on(reader.segment_pieces(SYSTEM, piece.segment()));
    assert!(unmounted.is_err());
}

#[test]
fn who_is_no_signer_or_holds_another_writer_key_stores_nothing() {
    let fixture = Fixture::new();
    let before = fixture.objects();
    let piece = piece(1, 0, 100);
    let stranger = Signer::generate("worker@test").unwrap();
    for (key, signer) in [
        (fixture.writer_key.clone(), stranger),
        (WriterKey::generate(), fixture.signer.clone()),
    ] {
        let writer = fixture.vault.wal_writer(key, signer);
        let error = fixture
            .runtime
            .block_on(writer.put(&piece, wal(&piece).into()))
            .unwrap_err();
        assert!(!WalError::in_io_error(&error).unwrap().is_retryable(), "{error}");
    }
    assert_eq!(fixture.objects(), before);
}

#[test]
fn a_recipient_added_behind_the_writers_back_is_sent_no_wal() {
    let fixture = Fixture::new();
    let path = fixture.path().join("vault.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, intruder) = Identity::generate();
    let changed = text.replace(&fixture.vault.recipients()[1], &intruder);
    assert_ne!(changed, text);
    std::fs::write(&path, changed).unwrap();
    let vault = fixture.runtime.block_on(Vault::open(local(&fixture.path()))).unwrap();
    let writer = vault.wal_writer(fixture.writer_key.clone(), fixture.signer.clone());
    let piece = piece(1, 0, 100);
    let error = fixture
        .runtime
        .block_on(writer.put(&piece, wal(&piece).into()))
        .unwrap_err();
    assert!(
        matches!(WalError::in_io_error(&error), Some(WalError::Keys { .. })),
        "{error}"
    );
    assert!(fixture.objects().iter().all(|object| !object.starts_with("wal/")));
}

/// What becomes of one piece when something happens to its object.
fn read_after(damage: impl FnOnce(&Fixture, &str, &str)) -> (ReadError, [Vec<DamagedObject>; 2]) {
    let fixture = Fixture::new();
    let pieces = [piece(1, 0, 5_000), piece(1, 5_000, 10_000)];
    put(&fixture, &pieces);
    let reader = reader(&fixture);
    let stored = fixture
        .runtime
        .block_on(reader.segment_pieces(SYSTEM, pieces[0].segment()));
    let stored = stored.unwrap();
    let objects: Vec<String> = fixture
        .objects()
        .into_iter()
        .filter(|o| o.starts_with("wal/"))
        .collect();
    damage(&fixture, &objects[0], &objects[1]);
    let error = match fixture.runtime.block_on(reader.read(SYSTEM, &stored[0])) {
        Ok(_) => {
            // Another object took its place; it is found by listing.
            let again = fixture
                .runtime
                .block_on(reader.segment_pieces(SYSTEM, pieces[0].segment()));
            let other = again
                .unwrap()
                .into_iter()
                .find(|piece| !stored.contains(piece))
                .unwrap();
            fixture.runtime.block_on(reader.read(SYSTEM, &other)).unwrap_err()
        }
        Err(error) => error,
    };
    let error = error.downcast::<ReadError>().unwrap();
    let reports = [None, Some(&fixture.identity)].map(|identity| {
        let scope = CheckScope {
            backups: Vec::new(),
            identity,
        };
        let progress = CheckProgress::default();
        let report = fixture.runtime.block_on(fixture.vault.check_vault(&scope, &progress));
        report.unwrap().damage
    });
    (error, reports)
}

fn change(fixture: &Fixture, object: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = fixture.path().join(object);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_piece_is_refused_and_named_by_its_segment() {
    type Change = fn(&mut Vec<u8>);
    let changes: [Change; 5] = [
        |bytes| bytes[0] ^= 1,
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.clear(),
        |bytes| bytes.push(0),
    ];
    for how in changes {
        let (error, reports) = read_after(|fixture, object, _| change(fixture, object, how));
        assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
        for damage in reports {
            assert_eq!(damage.len(), 1, "{damage:?}");
            let words = "recovery ends before WAL segment 000000010000000000000000 of cluster 7412345678901234567";
            assert!(damage[0].problem.contains(words), "{damage:?}");
        }
    }
    let (error, reports) = read_after(|fixture, object, _| std::fs::remove_file(fixture.path().join(object)).unwrap());
    assert!(matches!(error, ReadError::Missing { .. }), "{error}");
    // A hole is for the window to tell; retention makes them too.
    assert_eq!(reports, [Vec::new(), Vec::new()]);
    let (error, reports) = read_after(|fixture, object, other| {
        let bytes = std::fs::read(fixture.path().join(other)).unwrap();
        change(fixture, object, |content| *content = bytes);
    });
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    assert_eq!(reports.map(|damage| damage.len()), [1, 1]);
}

#[test]
fn a_piece_that_was_moved_to_another_place_is_found_with_an_identity() {
    // Its name keeps its digest, and says another place.
    let moves: [fn(&str) -> String; 3] = [
        |object| object.replace("00000000-00001388", "00001388-00002710"),
        |object| object.replace("/000000010000000000000000/", "/000000010000000000000001/"),
        |object| object.replace("/00000001/00000001", "/00000002/00000002"),
    ];
    for to in moves {
        let fixture = Fixture::new();
        put(&fixture, &[piece(1, 0, 5_000)]);
        let object = fixture.objects().into_iter().find(|o| o.starts_with("wal/")).unwrap();
        let (from, to) = (fixture.path().join(&object), to(&object));
        let path = fixture.path().join(&to);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::rename(from, path).unwrap();
        let reader = reader(&fixture);
        let error = fixture.runtime.block_on(async {
            let timeline = reader.timelines(SYSTEM).await.unwrap()[0];
            let segment = reader.segments(SYSTEM, timeline).await.unwrap()[0];
            let found = reader.segment_pieces(SYSTEM, segment).await.unwrap();
            reader.read(SYSTEM, &found[0]).await.unwrap_err()
        });
        assert!(matches!(read_error(&error), ReadError::Misplaced { .. }), "{error}");
        let scope = CheckScope {
            backups: Vec::new(),
            identity: Some(&fixture.identity),
        };
        let progress = CheckProgress::default();
        let report = fixture.runtime.block_on(fixture.vault.check_vault(&scope, &progress));
        let damage = report.unwrap().damage;
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert_eq!(damage[0].object, to);
    }
}

/// Who can write to the bucket knows the recipients, the format and the names; only a signer can make a piece.
#[test]
fn a_forged_piece_is_refused() {
    let (error, reports) = read_after(|fixture, object, _| {
        let recipient: age::x25519::Recipient = fixture.identity.recipients()[0].parse().unwrap();
        let opened = age_identity(fixture);
        let sealed = std::fs::read(fixture.path().join(object)).unwrap();
        let plain = age::decrypt(&opened, &sealed).unwrap();
        // The statement and its signature as they were, other WAL after them.
        let statement_bytes = u32::from_le_bytes(plain[4..8].try_into().unwrap()) as usize;
        let mut forged = plain[..8 + statement_bytes].to_vec();
        forged.extend(zstd::bulk::compress(&[7; 5_000], 3).unwrap());
        store_forged(fixture, object, crate::forge::seal_to(&recipient, &forged));
    });
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    assert_eq!(reports.map(|damage| damage.len()), [0, 1]);
    let (error, reports) = read_after(|fixture, object, _| {
        let recipient: age::x25519::Recipient = fixture.identity.recipients()[0].parse().unwrap();
        // Somebody else's vault with the same cluster, sealed again to ours.
        let stranger = Fixture::new();
        put(&stranger, &[piece(1, 0, 5_000)]);
        let theirs = stranger.objects().into_iter().find(|o| o.starts_with("wal/")).unwrap();
        let sealed = std::fs::read(stranger.path().join(theirs)).unwrap();
        let plain = age::decrypt(&age_identity(&stranger), &sealed).unwrap();
        store_forged(fixture, object, crate::forge::seal_to(&recipient, &plain));
    });
    assert!(matches!(error, ReadError::BadSignature { .. }), "{error}");
    assert_eq!(reports.map(|damage| damage.len()), [0, 1]);
}

fn age_identity(fixture: &Fixture) -> age::x25519::Identity {
    let line = fixture.identity_text.lines().last().unwrap();
    line.parse().unwrap()
}

fn store_forged(fixture: &Fixture, object: &str, bytes: Vec<u8>) {
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let (place, _) = object.rsplit_once('.').unwrap();
    let path = fixture.path().join(format!("{place}.{}", hex::encode(digest)));
    std::fs::write(path, Bytes::from(bytes)).unwrap();
}

/// A vault of another cluster's, with the very signers: a piece of it is not taken for one of ours.
#[test]
fn a_piece_of_another_vault_of_the_same_signer_is_refused() {
    let (ours, theirs) = (Fixture::new(), Fixture::new());
    let other = theirs.runtime.block_on(Vault::create(
        local(&{
            let path = theirs.folder.path().join("second");
            std::fs::create_dir(&path).unwrap();
            path
        }),
        NewVault {
            recipients: ours.identity.recipients(),
            writer_key: &ours.writer_key,
            signers: vec![("worker@test".to_owned(), ours.signer.public_line().unwrap())],
        },
        at(0),
    ));
    let other = other.unwrap();
    let piece = piece(1, 0, 5_000);
    let writer = other.wal_writer(ours.writer_key.clone(), ours.signer.clone());
    theirs.runtime.block_on(writer.put(&piece, wal(&piece).into())).unwrap();
    let root = theirs.folder.path().join("second");
    let object = objects(&root).into_iter().find(|o| o.starts_with("wal/")).unwrap();
    let path = ours.path().join(&object);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::copy(root.join(&object), path).unwrap();
    let reader = reader(&ours);
    let error = ours.runtime.block_on(async {
        let found = reader.segment_pieces(SYSTEM, piece.segment()).await.unwrap();
        reader.read(SYSTEM, &found[0]).await.unwrap_err()
    });
    assert!(matches!(read_error(&error), ReadError::Misplaced { .. }), "{error}");
}

#[test]
fn wal_is_sealed_to_the_keys_in_force_and_older_wal_still_opens() {
    let fixture = Fixture::new();
    let (first, second) = (piece(1, 0, 5_000), piece(1, 5_000, 10_000));
    put(&fixture, std::slice::from_ref(&first));
    let (text, recipient) = Identity::generate();
    let signer = Signer::generate("new@test").unwrap();
    let rotation = Rotation {
        writer_key: &fixture.writer_key,
        recipients: Some(vec![recipient]),
        new_writer_key: None,
        signers: Some(vec![("new@test".to_owned(), signer.public_line().unwrap())]),
        identity: None,
        reason: "a test".to_owned(),
    };
    fixture
        .runtime
        .block_on(fixture.vault.rotate(rotation, at(10)))
        .unwrap();
    // A writer and a reader that were opened before it.
    let writer = fixture.vault.wal_writer(fixture.writer_key.clone(), signer);
    fixture
        .runtime
        .block_on(writer.put(&second, wal(&second).into()))
        .unwrap();
    let both = Identity::from_file_text(&format!("{}\n{}", fixture.identity_text, text.as_str())).unwrap();
    let new = Identity::from_file_text(&text).unwrap();
    let read = |identity: &Identity, number: usize| {
        let reader = fixture.vault.wal_reader(Arc::new(identity.clone()));
        fixture.runtime.block_on(async {
            let found = reader.segment_pieces(SYSTEM, first.segment()).await.unwrap();
            reader.read(SYSTEM, &found[number]).await
        })
    };
    assert_eq!(read(&both, 0).unwrap().1, wal(&first));
    assert_eq!(read(&both, 1).unwrap().1, wal(&second));
    let error = read(&new, 0).unwrap_err();
    assert!(matches!(read_error(&error), ReadError::WrongIdentity { .. }), "{error}");
    let error = read(&fixture.identity, 1).unwrap_err();
    assert!(matches!(read_error(&error), ReadError::WrongIdentity { .. }), "{error}");
}

#[test]
fn a_put_returns_after_a_barrier_that_followed_it() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    let writer = writer(&fixture);
    let _noting = Barriers::noted_by(&control);
    control.take_all();
    let kinds = |calls: Vec<String>| -> Vec<String> {
        let kind = |call: &String| call.split('/').next().unwrap().to_owned();
        calls.iter().map(kind).collect()
    };
    let first = piece(1, 0, 100);
    fixture
        .runtime
        .block_on(writer.put(&first, wal(&first).into()))
        .unwrap();
    // The keys are looked at, the bytes are read back, and then comes the barrier.
    let expected = ["get keys", "get keys", "put wal", "get wal", "barrier"];
    assert_eq!(kinds(control.take_all()), expected);
    fixture
        .runtime
        .block_on(writer.put_history(SYSTEM, 2, "1\t0/0\tx\n"))
        .unwrap();
    assert_eq!(kinds(control.take_all()), expected[2..]);
    let pieces: Vec<WalPiece> = (1..9).map(|n| piece(1, n * 100, n * 100 + 100)).collect();
    fixture.runtime.block_on(async {
        let puts = pieces.iter().map(|piece| async {
            writer.put(piece, wal(piece).into()).await.unwrap();
            control.note("told".to_owned());
        });
        futures::future::join_all(puts).await;
    });
    let calls = kinds(control.take_all());
    let (mut waiting, mut durable) = (0, 0);
    for call in &calls {
        match call.as_str() {
            "get wal" => waiting += 1,
            "barrier" => durable = waiting,
            "told" => durable -= 1,
            _ => {}
        }
        assert!(durable >= 0, "{calls:?}");
        waiting = waiting.max(durable);
    }
}

/// What a process that was killed put may be there without being durable.
#[test]
fn pieces_are_listed_to_a_receiver_only_after_a_barrier() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    let first = piece(1, 0, 100);
    put(&fixture, std::slice::from_ref(&first));
    // As another process.
    let writer = writer(&fixture);
    let _noting = Barriers::noted_by(&control);
    let calls = |found: Vec<StoredPiece>| {
        assert_eq!(ranges(&found), [(0, 100)]);
        let calls = control.take_all();
        calls
            .iter()
            .map(|call| call.split(['/', ' ']).next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    control.take_all();
    let found = fixture.runtime.block_on(writer.pieces(SYSTEM, 1)).unwrap();
    assert_eq!(calls(found), ["list", "barrier"]);
    let found = writer.segment_pieces(SYSTEM, first.segment(), SEGMENT_BYTES);
    let found = fixture.runtime.block_on(found).unwrap();
    assert_eq!(calls(found), ["list", "barrier"]);
}

#[test]
fn a_segment_that_cannot_be_looked_at_is_no_absent_one() {
    let fixture = Fixture::new();
    let piece = piece(1, 0, 100);
    put(&fixture, std::slice::from_ref(&piece));
    let object = fixture.objects().into_iter().find(|o| o.starts_with("wal/")).unwrap();
    let (reader, writer) = (reader(&fixture), writer(&fixture));
    // The object, its segment, its timeline, its cluster: each a link to what is not there, as to a disk that is away.
    let places = object.match_indices('/').map(|(at, _)| &object[..at]);
    for place in places.chain([object.as_str()]).skip(1) {
        let (path, away) = (fixture.path().join(place), fixture.folder.path().join("away"));
        std::fs::rename(&path, &away).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        fixture.runtime.block_on(async {
            assert!(reader.segment_pieces(SYSTEM, piece.segment()).await.is_err(), "{place}");
            assert!(reader.segments(SYSTEM, 1).await.is_err(), "{place}");
            assert!(reader.timelines(SYSTEM).await.is_err(), "{place}");
            assert!(writer.pieces(SYSTEM, 1).await.is_err(), "{place}");
        });
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&away, &path).unwrap();
        let found = fixture.runtime.block_on(reader.segment_pieces(SYSTEM, piece.segment()));
        assert_eq!(ranges(&found.unwrap()), [(0, 100)]);
    }
}

#[test]
fn a_history_is_stored_once_by_a_process_and_again_where_it_failed() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    let writer = writer(&fixture);
    let count = || fixture.objects().iter().filter(|o| o.contains("/history/")).count();
    let put = |timeline, text: &str| fixture.runtime.block_on(writer.put_history(SYSTEM, timeline, text));
    control.arm(0, Fault::Refused);
    put(2, "1\t0/1\ta\n").unwrap_err();
    assert_eq!(count(), 0);
    for _ in 0..3 {
        put(2, "1\t0/1\ta\n").unwrap();
    }
    assert_eq!(count(), 1);
    put(2, "1\t0/2\ta\n").unwrap();
    put(3, "1\t0/1\ta\n").unwrap();
    assert_eq!(count(), 3);
}

#[test]
fn a_bad_copy_of_a_history_is_set_aside_where_a_sound_one_is_there() {
    let fixture = Fixture::new();
    let text = "1\t0/400000\tno reason\n";
    // As receivers that were started again and again, each of which makes an object of its own.
    for _ in 0..12 {
        fixture
            .runtime
            .block_on(writer(&fixture).put_history(SYSTEM, 2, text))
            .unwrap();
    }
    let reader = reader(&fixture);
    let history = || fixture.runtime.block_on(reader.history(SYSTEM, 2));
    let objects: Vec<String> = fixture
        .objects()
        .into_iter()
        .filter(|o| o.contains("/history/"))
        .collect();
    assert_eq!(objects.len(), 12);
    change(&fixture, &objects[0], |bytes| bytes[30] ^= 1);
    change(&fixture, &objects[1], Vec::clear);
    change(&fixture, &objects[2], |bytes| bytes.resize(3 << 20, 0));
    let (folder, _) = objects[3].rsplit_once('/').unwrap();
    let junk = fixture.path().join(folder).join("ab".repeat(32));
    std::fs::write(junk, "junk").unwrap();
    assert_eq!(history().unwrap().as_deref(), Some(text));
    for object in &objects[3..] {
        std::fs::remove_file(fixture.path().join(object)).unwrap();
    }
    let error = history().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    // Another's identity says nothing about the object, and is told apart from damage.
    let put = writer(&fixture);
    fixture.runtime.block_on(put.put_history(SYSTEM, 3, text)).unwrap();
    let stranger = fixture
        .vault
        .wal_reader(Arc::new(Identity::from_file_text(&Identity::generate().0).unwrap()));
    let error = fixture.runtime.block_on(stranger.history(SYSTEM, 3)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
}

/// The lines a person would type, taken from the page where they would find them.
#[test]
fn a_segment_is_put_together_by_hand() {
    let page = include_str!("../../../../docs/format.md");
    let (_, section) = page.split_once("\n### A segment by hand\n").unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    let (script, _) = block.split_once("\n```").unwrap();
    let fixture = Fixture::new();
    let mib = u64::from(SEGMENT_BYTES);
    // Three pieces, one of them stored twice, and a later one of all there was until then.
    let pieces = [(0, 10), (10, 600_000), (10, 600_000), (0, 650_000), (650_000, 900_000)];
    let pieces = pieces.map(|(from, to)| piece(1, 5 * mib + from, 5 * mib + to));
    put(&fixture, &pieces);
    let folder = fixture.folder.path();
    std::fs::write(folder.join("identity"), &fixture.identity_text).unwrap();
    std::fs::write(folder.join("signers"), fixture.vault.allowed_signers()).unwrap();
    let script = format!(
        "VAULT=vault IDENTITY=identity SIGNERS=signers PRINCIPAL=worker@test OUT=out SYSTEM={SYSTEM} TIMELINE=00000001 \
         SEGMENT=000000010000000000000005\n{script}"
    );
    run("sh", &["-c", &script], folder, None);
    let mut expected = wal(&piece(1, 5 * mib, 5 * mib + 900_000));
    expected.resize(SEGMENT_BYTES as usize, 0);
    assert!(std::fs::read(folder.join("out/000000010000000000000005")).unwrap() == expected);
    // What is damaged or missing is noticed.
    let objects: Vec<String> = fixture
        .objects()
        .into_iter()
        .filter(|o| o.starts_with("wal/"))
        .collect();
    std::fs::remove_file(
        fixture
            .path()
            .join(objects.iter().find(|o| o.contains("/0009EB10-")).unwrap()),
    )
    .unwrap();
    for object in objects.iter().filter(|object| object.contains("/00000000-")) {
        std::fs::remove_file(fixture.path().join(object)).unwrap();
    }
    let again = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("hole"), "{said}");
}
