//! A store whose reads fail or come up short at any place: a backup and a restore over it succeed with the right bytes or
//! end in an error. Nothing is restored wrong, and nothing is committed that does not restore.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use object_store::memory::InMemory;
use strongroom_proto::{Attempt, BackupId};
use strongroom_vault::*;

use crate::support::*;

struct World {
    fixture: Fixture,
    control: Arc<Control>,
    /// The store without its faults.
    beside: Store,
    before: Vec<Item>,
}

impl World {
    /// A vault with a backup in it.
    fn new(is_folder: bool) -> Self {
        let control = Arc::new(Control::default());
        let folder = tempfile::tempdir().unwrap();
        let beside = match is_folder {
            true => {
                let path = folder.path().join("vault");
                std::fs::create_dir(&path).unwrap();
                local(&path)
            }
            false => in_memory(&Arc::new(InMemory::new())),
        };
        // What makes the folder of a vault is known once it is there.
        let fixture = Fixture::in_store(folder, control.wrap(beside.clone()));
        let before = vec![stream("a", noise(1, 1_500_000)), file("b", rows(2, 50_000))];
        fixture.back_up(1, &before);
        control.take_all();
        Self {
            fixture,
            control,
            beside,
            before,
        }
    }

    /// What another process does: it opens the vault, reads the index, writes and commits.
    fn back_up(&self, id: &BackupId, content: &[Item]) -> Result<(), String> {
        let fixture = &self.fixture;
        let runtime = &fixture.runtime;
        let vault = runtime.block_on(Vault::open(self.control.wrap(self.beside.clone())));
        let vault = vault.map_err(|error| format!("{error:?}"))?;
        let index = Arc::new(ChunkIndex::new(&vault, &fixture.writer_key));
        let refreshed = runtime.block_on(index.refresh());
        refreshed.map_err(|error| format!("{error:?}"))?;
        let handle = runtime.handle().clone();
        let writer = BackupWriter::begin(&vault, &fixture.writer_key, index, id.clone(), Attempt::FIRST, handle);
        let mut writer = writer.map_err(|error| format!("{error:?}"))?;
        put_all(&mut writer, content).map_err(|error| format!("{error:?}"))?;
        let sealed = writer.finish().map_err(|error| format!("{error:?}"))?;
        let receipt = a_receipt(&vault, id, Attempt::FIRST, &sealed);
        let committed = runtime.block_on(vault.commit(&receipt, &fixture.signer));
        committed.map(drop).map_err(|error| format!("{error:?}"))
    }

    fn restore(&self, store: Store, id: &BackupId) -> Result<Vec<Item>, String> {
        let fixture = &self.fixture;
        let vault = fixture.runtime.block_on(Vault::open(store));
        let vault = vault.map_err(|error| format!("{error:?}"))?;
        read(&fixture.runtime, &vault, &fixture.identity, id).map_err(|error| format!("{error:?}"))
    }

    /// Runs with a fault at this call, reads counted; whether it came to pass.
    fn with_fault<T>(&self, fault: Option<(usize, Fault)>, run: impl FnOnce() -> T) -> (T, bool, usize) {
        self.control.take_all();
        if let Some((call, fault)) = fault {
            self.control.arm(call, fault);
        }
        self.control.counts_reads.store(true, Ordering::SeqCst);
        let done = run();
        self.control.counts_reads.store(false, Ordering::SeqCst);
        let is_spent = !self.control.disarm();
        let calls = self.control.calls.lock().unwrap().len();
        (done, is_spent, calls)
    }
}

const FAULTS: [Fault; 3] = [Fault::Refused, Fault::Lost, Fault::Short];

fn content(number: i64, before: &[Item]) -> Vec<Item> {
    let mut content = before.to_vec();
    content.push(file("c", rows(100 + number as u64, 40_000)));
    content
}

/// A backup with the fault at every call of it in turn; how many committed.
fn backups_with(is_folder: bool, fault: Fault) -> (usize, usize) {
    let world = World::new(is_folder);
    let (whole, _, calls) = world.with_fault(None, || world.back_up(&Fixture::id(2), &content(2, &world.before)));
    whole.unwrap();
    assert!(calls >= 12, "{calls}");
    let (mut committed, mut refused) = (0, 0);
    for call in 0..calls {
        let id = Fixture::id(10 + call as i64);
        let content = content(10 + call as i64, &world.before);
        let (ended, is_spent, _) = world.with_fault(Some((call, fault)), || world.back_up(&id, &content));
        let case = format!("{fault:?} at call {call}: {ended:?}");
        let restored = world.restore(world.beside.clone(), &id);
        match ended {
            Ok(()) => {
                assert!(
                    restored.is_ok_and(|restored| restored == content),
                    "{case} does not restore"
                );
                let vault = world
                    .fixture
                    .runtime
                    .block_on(Vault::open(world.beside.clone()))
                    .unwrap();
                let report = world.fixture.runtime.block_on(vault.check(&id)).unwrap();
                assert!(report.is_sound(), "{case}: {:?}", report.damage);
                committed += 1;
            }
            // Whatever failed, a receipt that is there all the same is that of a whole backup.
            Err(_) => {
                let is_there = world
                    .fixture
                    .runtime
                    .block_on(world.fixture.vault.receipt(&id))
                    .unwrap();
                if is_there.is_some() {
                    assert!(
                        restored.is_ok_and(|restored| restored == content),
                        "{case} does not restore"
                    );
                }
                assert!(is_spent, "{case}");
                refused += 1;
            }
        }
    }
    // Nobody was harmed.
    let first = world.fixture.runtime.block_on(world.fixture.vault.backups()).unwrap();
    for id in first {
        assert!(world.restore(world.beside.clone(), &id).is_ok(), "{fault:?}: {id}");
    }
    (committed, refused)
}

#[test]
fn a_backup_whose_reads_fail_or_come_up_short_is_whole_or_an_error() {
    std::thread::scope(|scope| {
        for is_folder in [true, false] {
            for fault in FAULTS {
                scope.spawn(move || {
                    let (committed, refused) = backups_with(is_folder, fault);
                    assert!(committed + refused >= 12, "{fault:?}: {committed} {refused}");
                    // Nobody tries again what was refused.
                    assert!(
                        refused > 0 && (committed > 0 || fault == Fault::Refused),
                        "{fault:?}: {committed} {refused}"
                    );
                });
            }
        }
    });
}

#[test]
fn a_restore_whose_reads_fail_or_come_up_short_is_right_or_an_error() {
    for is_folder in [true, false] {
        let world = World::new(is_folder);
        let id = Fixture::id(2);
        let content = content(2, &world.before);
        world.back_up(&id, &content).unwrap();
        let restore = || world.restore(world.control.wrap(world.beside.clone()), &id);
        let (whole, _, calls) = world.with_fault(None, restore);
        assert!(whole.unwrap() == content && calls >= 8, "{calls}");
        for fault in FAULTS {
            let mut refused = 0;
            for call in 0..calls {
                let (ended, is_spent, _) = world.with_fault(Some((call, fault)), restore);
                match ended {
                    Ok(restored) => assert!(restored == content, "{fault:?} at call {call} restores something else"),
                    Err(error) => {
                        assert!(is_spent, "{fault:?} at call {call}: {error}");
                        refused += 1;
                    }
                }
            }
            assert!(refused > 0, "{fault:?} was never seen");
        }
    }
}
