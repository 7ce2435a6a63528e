//! What a vault promises wherever it lies: one suite for a folder, a bucket in memory, and a bucket of a real server.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use strongroom_proto::{Attempt, BackupId, JobId};
use strongroom_vault::*;

use crate::commits::verification;
use crate::support::*;

type Objects = Arc<dyn ObjectStore>;

/// A place for vaults.
pub(crate) struct Place {
    /// Opens the store of the vault with this name.
    pub(crate) open: Box<dyn Fn(&str) -> Store>,
    /// The objects of the vault with this name, as somebody else sees them.
    pub(crate) objects: Box<dyn Fn(&str) -> Objects>,
    /// Enough backups that a listing of them takes several answers.
    pub(crate) many: usize,
}

impl Place {
    fn fixture(&self, name: &str) -> Fixture {
        Fixture::in_store(tempfile::tempdir().unwrap(), (self.open)(name))
    }

    fn reopened(&self, fixture: &Fixture, name: &str) -> Vault {
        fixture.runtime.block_on(Vault::open((self.open)(name))).unwrap()
    }
}

/// Every promise, one after the other.
pub(crate) fn keeps_the_promises(place: &Place) {
    a_vault_is_made_once_and_opens_again(place);
    what_goes_in_comes_out_and_is_stored_once(place);
    one_receipt_a_backup_whoever_comes_first(place);
    a_lost_answer_is_no_failure(place);
    evidence_is_kept_once_a_job(place);
    damage_by_somebody_else_is_found(place);
    listings_are_whole_however_long(place);
    crate::wal::keeps_wal(&place.fixture("wal"));
}

fn a_vault_is_made_once_and_opens_again(place: &Place) {
    let fixture = place.fixture("made");
    let key = WriterKey::generate();
    let new = || NewVault {
        recipients: vec![Identity::generate().1],
        writer_key: &key,
        signers: vec![("w".to_owned(), fixture.signer.public_line().unwrap())],
    };
    let over = fixture
        .runtime
        .block_on(Vault::create((place.open)("made"), new(), at(5)));
    assert!(matches!(over, Err(CreateVaultError::Exists { .. })), "{over:?}");
    let again = place.reopened(&fixture, "made");
    assert_eq!(
        (again.id(), again.recipients()),
        (fixture.vault.id(), fixture.vault.recipients())
    );
    let beside = fixture
        .runtime
        .block_on(Vault::create((place.open)("made-beside"), new(), at(5)));
    assert_eq!(fixture.runtime.block_on(beside.unwrap().backups()).unwrap(), []);
    let nothing = fixture.runtime.block_on(Vault::open((place.open)("nothing")));
    assert!(matches!(nothing, Err(OpenVaultError::NoVault { .. })), "{nothing:?}");
}

fn what_goes_in_comes_out_and_is_stored_once(place: &Place) {
    let mut fixture = place.fixture("content");
    // More than one pack.
    let items = vec![
        stream("small", "x"),
        stream("large", noise(1, 70_000_000)),
        file("empty", ""),
    ];
    let (first, sealed) = fixture.back_up(1, &items);
    let url = format!("{}/", fixture.vault.url());
    assert!(sealed.artifacts.iter().all(|artifact| artifact.uri.starts_with(&url)));
    assert!(fixture.read(&first).unwrap() == items);
    let report = fixture.runtime.block_on(fixture.vault.check(&first)).unwrap();
    assert!(report.is_sound() && report.bytes > 70_000_000, "{report:?}");
    // Another process learns from the vault what is there.
    fixture.vault = place.reopened(&fixture, "content");
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let (second, sealed) = fixture.back_up(2, &items);
    assert_eq!(sealed.totals.new_chunks, 0);
    let mut expected = vec![first, second];
    expected.sort();
    assert_eq!(fixture.runtime.block_on(fixture.vault.backups()).unwrap(), expected);
    let scope = CheckScope {
        backups: Vec::new(),
        identity: Some(&fixture.identity),
    };
    let progress = CheckProgress::default();
    let checked = fixture.vault.check_vault(&scope, &progress);
    let report = fixture.runtime.block_on(checked).unwrap();
    assert!(
        report.is_sound() && report.is_whole() && report.backups == 2,
        "{report:?}"
    );
}

fn one_receipt_a_backup_whoever_comes_first(place: &Place) {
    let fixture = place.fixture("contested");
    let id = Fixture::id(3);
    let receipts = [1, 2].map(|number| {
        let attempt = Attempt::new(number);
        let sealed = fixture.write(&id, attempt, &[stream("a", format!("{number}"))]);
        fixture.receipt(&id, attempt, &sealed)
    });
    let outcomes = fixture.runtime.block_on(async {
        let [a, b] = [0, 1].map(|number| fixture.vault.commit(&receipts[number], &fixture.signer));
        let (a, b) = tokio::join!(a, b);
        [a.unwrap(), b.unwrap()]
    });
    let is_ours = |outcome: &Committed| matches!(outcome, Committed::Ours(_));
    assert_eq!(
        outcomes.iter().filter(|outcome| is_ours(outcome)).count(),
        1,
        "{outcomes:?}"
    );
    let winner = outcomes.iter().position(is_ours).unwrap();
    let found = fixture.runtime.block_on(fixture.vault.receipt(&id)).unwrap().unwrap();
    assert_eq!(found.receipt, receipts[winner]);
    // Asked again, both are told the same.
    for (receipt, outcome) in receipts.iter().zip(&outcomes) {
        let again = fixture.vault.commit(receipt, &fixture.signer);
        assert_eq!(fixture.runtime.block_on(again).unwrap(), *outcome);
    }
    assert!(fixture.read(&id).unwrap() == [stream("a", format!("{}", winner + 1))]);
}

fn a_lost_answer_is_no_failure(place: &Place) {
    let control = Arc::new(Control::default());
    let store = control.wrap((place.open)("answers"));
    let fixture = Fixture::in_store(tempfile::tempdir().unwrap(), store);
    let back_up = |number| {
        let items = vec![stream("a", rows(number, 10_000))];
        let id = Fixture::id(number as i64);
        let sealed = fixture.write(&id, Attempt::FIRST, &items);
        let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
        let committed = fixture
            .runtime
            .block_on(fixture.vault.commit(&receipt, &fixture.signer));
        assert!(fixture.read(&id).is_ok_and(|found| found == items) || committed.is_err());
        committed
    };
    control.take_calls();
    back_up(0).unwrap();
    let calls = control.take_calls().len();
    for call in 0..calls {
        control.arm(call, Fault::AnswerLost);
        let committed = back_up(call as u64 + 1);
        assert!(!control.disarm());
        // A link that appears in a folder has no second try of its own; the receipt is there all the same.
        match committed {
            Ok(committed) => assert!(matches!(committed, Committed::Ours(_)), "call {call}"),
            Err(error) => assert!(call + 1 == calls && error.is_retryable(), "call {call}: {error:?}"),
        }
    }
    assert_eq!(
        fixture.runtime.block_on(fixture.vault.backups()).unwrap().len(),
        calls + 1
    );
}

fn evidence_is_kept_once_a_job(place: &Place) {
    let fixture = place.fixture("evidence");
    let (id, _) = fixture.back_up(1, &[stream("a", "b")]);
    let job = JobId::fresh();
    let first = verification(&id, job, Attempt::FIRST, "first");
    let put = |receipt| {
        let put = fixture.vault.put_verification(receipt, &fixture.signer);
        fixture.runtime.block_on(put)
    };
    assert_eq!(put(&first).unwrap(), put(&first).unwrap());
    let other = put(&verification(&id, job, Attempt::new(2), "second"));
    assert!(matches!(other, Err(CommitError::AlreadyExists { .. })), "{other:?}");
    assert_eq!(
        fixture.runtime.block_on(fixture.vault.verifications(&id)).unwrap(),
        [first]
    );
}

fn damage_by_somebody_else_is_found(place: &Place) {
    let fixture = place.fixture("damage");
    let objects = (place.objects)("damage");
    let (id, _) = fixture.back_up(1, &[stream("a", noise(1, 3_000_000))]);
    let listed = objects.list(Some(&Path::from("packs"))).try_collect::<Vec<_>>();
    let pack = fixture.runtime.block_on(listed).unwrap().remove(0).location;
    let original = fixture
        .runtime
        .block_on(async { objects.get(&pack).await?.bytes().await })
        .unwrap();
    let mut altered = original.to_vec();
    altered[original.len() / 2] ^= 1;
    for (bytes, problem) in [(Some(altered), "does not match its digest"), (None, "is missing")] {
        fixture.runtime.block_on(async {
            match bytes {
                Some(bytes) => drop(objects.put(&pack, bytes.into()).await.unwrap()),
                None => objects.delete(&pack).await.unwrap(),
            }
        });
        let report = fixture.runtime.block_on(fixture.vault.check(&id)).unwrap();
        let found: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
        assert_eq!(found, [format!("{pack} {problem}")]);
        let error = fixture.read(&id).unwrap_err();
        let error = ReadError::in_io_error(&error).unwrap();
        assert!(!error.is_retryable(), "{error:?}");
    }
}

fn listings_are_whole_however_long(place: &Place) {
    let fixture = place.fixture("long");
    let objects = (place.objects)("long");
    let mut expected: Vec<BackupId> = (0..place.many).map(|number| Fixture::id(number as i64)).collect();
    let puts = futures::stream::iter(expected.clone())
        .map(|id| {
            let objects = Arc::clone(&objects);
            async move {
                let path = Path::from(format!("backups/{id}/receipt.json"));
                objects.put(&path, "{}".into()).await.map(drop)
            }
        })
        .buffer_unordered(8)
        .try_collect::<()>();
    fixture.runtime.block_on(puts).unwrap();
    // An attempt without a receipt is no backup.
    let unfinished = Path::from(format!("backups/{}/a1/manifest", Fixture::id(1)));
    fixture.runtime.block_on(objects.put(&unfinished, "x".into())).unwrap();
    expected.sort();
    assert!(fixture.runtime.block_on(fixture.vault.backups()).unwrap() == expected);
}

#[test]
fn a_vault_in_a_folder_keeps_its_promises() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    let beside = path.clone();
    keeps_the_promises(&Place {
        open: Box::new(move |name| {
            let folder = path.join(name);
            if name != "nothing" {
                std::fs::create_dir_all(&folder).unwrap();
            }
            local(&folder)
        }),
        objects: Box::new(move |name| Arc::new(LocalFileSystem::new_with_prefix(beside.join(name)).unwrap())),
        many: 10_001,
    });
}

#[test]
fn a_vault_in_a_bucket_in_memory_keeps_its_promises() {
    let buckets: [(&str, Arc<InMemory>); 9] = [
        "made",
        "made-beside",
        "nothing",
        "content",
        "contested",
        "answers",
        "evidence",
        "damage",
        "wal",
    ]
    .map(|name| (name, Arc::new(InMemory::new())));
    let long = Arc::new(InMemory::new());
    let find = move |wanted: &str| {
        let found = buckets.iter().find(|(name, _)| *name == wanted);
        Arc::clone(found.map_or(&long, |(_, bucket)| bucket))
    };
    let beside = find.clone();
    keeps_the_promises(&Place {
        open: Box::new(move |name| in_memory(&find(name))),
        objects: Box::new(move |name| beside(name)),
        many: 10_001,
    });
}
