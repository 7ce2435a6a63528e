//! A store that fails at any call leaves no backup behind, and what failed for a moment only does not fail the backup.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use strongroom_proto::Attempt;
use strongroom_proto::manifest::{Entry, EntrySink};
use strongroom_vault::*;

use crate::support::*;

fn fixture() -> (Fixture, Arc<Control>) {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    control.take_calls();
    (fixture, control)
}

fn content(seed: u64) -> Vec<Item> {
    vec![stream("small", "x"), stream("large", noise(seed, 35_000_000))]
}

/// Writes and commits; the first error.
fn attempt(fixture: &Fixture, id: &strongroom_proto::BackupId, content: &[Item]) -> Result<Committed, String> {
    let mut writer = fixture.writer(id, Attempt::FIRST).map_err(|e| format!("{e:?}"))?;
    put_all(&mut writer, content).map_err(|e| format!("{e:?}"))?;
    let sealed = writer.finish().map_err(|e| format!("{e:?}"))?;
    let receipt = fixture.receipt(id, Attempt::FIRST, &sealed);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .map_err(|e| format!("{e:?}"))
}

fn kind_of(call: &str) -> &str {
    let path = call.split(' ').nth(1).unwrap();
    let folder = path.split('/').next().unwrap();
    match folder {
        "backups" => path.rsplit('/').next().unwrap(),
        other => other,
    }
}

#[test]
fn the_receipt_is_stored_last_and_the_index_after_its_packs() {
    let (fixture, control) = fixture();
    attempt(&fixture, &Fixture::id(1), &content(1)).unwrap();
    let calls = control.take_calls();
    let kinds: Vec<&str> = calls.iter().map(|call| kind_of(call)).collect();
    let expected = [
        "packs",
        "packs",
        "index",
        "manifest",
        "packs",
        "receipt.json.sig",
        "staging",
        "receipt.json",
    ];
    assert_eq!(kinds, expected, "{calls:#?}");
    assert!(calls[4].ends_with("/a1/packs"));
    assert!(calls[7].starts_with("link backups/"));
}

#[test]
fn a_refused_call_at_any_place_fails_the_backup_and_leaves_no_receipt() {
    let (fixture, control) = fixture();
    let mut seeds = 100..;
    for (fault, word) in [
        (Fault::Refused, "Refused"),
        (Fault::Full, "Full"),
        (Fault::Altered, "Differs"),
    ] {
        for call in 0..8 {
            if fault == Fault::Altered && call == 7 {
                continue; // A link alters nothing.
            }
            let id = Fixture::id(call as i64);
            let content = content(seeds.next().unwrap());
            control.arm(call, fault);
            let error = attempt(&fixture, &id, &content).expect_err(&format!("{fault:?} at call {call}"));
            assert!(!control.disarm());
            assert!(error.contains(word), "{fault:?} at call {call}: {error}");
            let receipt = fixture.runtime.block_on(fixture.vault.receipt(&id)).unwrap();
            assert!(receipt.is_none(), "{fault:?} at call {call} left a receipt");
        }
    }
    assert_eq!(fixture.runtime.block_on(fixture.vault.backups()).unwrap(), []);
}

#[test]
fn a_put_that_fails_for_a_moment_is_tried_again() {
    let (fixture, control) = fixture();
    let mut seeds = 200..;
    for fault in [Fault::Lost, Fault::AnswerLost] {
        for call in 0..7 {
            let id = Fixture::id(call as i64);
            let content = content(seeds.next().unwrap());
            control.arm(call, fault);
            let committed = attempt(&fixture, &id, &content);
            assert!(!control.disarm());
            assert!(
                matches!(committed, Ok(Committed::Ours(_))),
                "{fault:?} at call {call}: {committed:?}"
            );
            assert_eq!(fixture.read(&id).unwrap(), content);
        }
    }
}

#[test]
fn a_full_disk_is_told_apart_from_other_failures() {
    let (fixture, control) = fixture();
    control.arm(0, Fault::Full);
    let mut writer = fixture.writer(&Fixture::id(1), Attempt::FIRST).unwrap();
    // More than the stages hold while the first pack is on its way.
    let error = put_all(&mut writer, &[stream("large", noise(1, 150_000_000))]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let cause = WriteError::in_io_error(&error).unwrap();
    assert!(cause.is_storage_full() && !cause.is_retryable());
    let shown = std::error::Error::source(cause).unwrap().to_string();
    assert!(shown.contains("free space"), "{shown}");
    // What comes after the first error says so and does not hang.
    let after = put_all(&mut writer, &[stream("more", noise(2, 20_000_000))]);
    assert!(after.is_err());
    assert!(writer.finish().is_err());
}

#[test]
fn a_writer_that_is_dropped_stops_and_leaves_no_backup() {
    let (fixture, control) = fixture();
    let id = Fixture::id(1);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    writer.begin(&Entry::stream("large", "x")).unwrap();
    for piece in noise(1, 50_000_000).chunks(100_000) {
        writer.write(piece).unwrap();
    }
    drop(writer);
    let before = control.take_calls();
    assert!(before.iter().all(|call| kind_of(call) == "packs"), "{before:?}");
    attempt(&fixture, &Fixture::id(2), &[stream("a", "b")]).unwrap();
    let calls = control.take_calls();
    assert_eq!(calls.len(), 7, "only the second backup stores anything: {calls:?}");
    assert!(fixture.runtime.block_on(fixture.vault.receipt(&id)).unwrap().is_none());
    assert_eq!(fixture.runtime.block_on(fixture.vault.backups()).unwrap().len(), 1);
}

#[test]
fn a_list_that_fails_is_an_error_and_not_an_empty_list() {
    let (fixture, control) = fixture();
    attempt(&fixture, &Fixture::id(1), &[stream("a", "b")]).unwrap();
    control.fails_lists.store(true, Ordering::SeqCst);
    let error = fixture.runtime.block_on(fixture.vault.backups()).unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(
        fixture
            .runtime
            .block_on(ChunkIndex::new(&fixture.vault, &fixture.writer_key).refresh())
            .is_err()
    );
    control.fails_lists.store(false, Ordering::SeqCst);
    std::fs::rename(fixture.path(), fixture.folder.path().join("unmounted")).unwrap();
    std::fs::create_dir(fixture.path()).unwrap();
    assert!(
        fixture.runtime.block_on(fixture.vault.backups()).is_err(),
        "the vault is gone, not empty"
    );
}
