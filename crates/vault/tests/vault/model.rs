//! Writers that run at the same time, are killed anywhere, and try again, against a store that fails: whatever the
//! interleaving, what has a receipt restores exactly, and what has none harms nobody.
//!
//! Each seed is one history, the same whenever it is run again; a failure names its seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use strongroom_proto::manifest::EntrySink;
use strongroom_proto::{Attempt, BackupId, Sha256Digest};
use strongroom_vault::*;

use crate::support::*;

/// Numbers that follow from a seed.
struct Choices(Vec<u8>, usize);

impl Choices {
    fn of(seed: u64) -> Self {
        Self(noise(seed, 64 * 1024), 0)
    }

    fn below(&mut self, limit: usize) -> usize {
        let place = self.1;
        self.1 += 4;
        let bytes: [u8; 4] = self.0[place..place + 4].try_into().unwrap();
        u32::from_le_bytes(bytes) as usize % limit
    }
}

/// A job, and the attempt of it that is under way.
struct Job {
    id: BackupId,
    content: Vec<Item>,
    attempt: u32,
    stage: Stage,
    is_done: bool,
}

enum Stage {
    Waiting,
    Writing { writer: Box<BackupWriter>, next: usize },
    Stored { sealed: Sealed },
}

/// Where a history's vault lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Folder,
    Bucket,
}

struct World {
    fixture: Fixture,
    control: Arc<Control>,
    /// The store as somebody else sees it, without its faults.
    objects: Arc<dyn ObjectStore>,
    beside: Store,
    jobs: Vec<Job>,
    /// What each attempt that came to its end would have committed.
    offered: BTreeMap<(BackupId, u32), Vec<Item>>,
}

impl World {
    /// Jobs of which some have content in common.
    fn new(choices: &mut Choices, place: Place) -> Self {
        let control = Arc::new(Control::default());
        let folder = tempfile::tempdir().unwrap();
        let (objects, beside): (Arc<dyn ObjectStore>, Store) = match place {
            Place::Folder => {
                let path = folder.path().join("vault");
                std::fs::create_dir(&path).unwrap();
                (Arc::new(LocalFileSystem::new_with_prefix(&path).unwrap()), local(&path))
            }
            Place::Bucket => {
                let objects = Arc::new(InMemory::new());
                let beside = in_memory(&objects);
                (objects, beside)
            }
        };
        let fixture = Fixture::in_store(folder, control.wrap(beside.clone()));
        control.take_all();
        let shared = noise(choices.below(1_000) as u64, 700_000);
        let count = 2 + choices.below(2);
        let jobs = (0..count).map(|number| {
            let own = rows(choices.below(1_000) as u64, 1_000 + choices.below(300_000));
            let mut content = vec![stream("own", own), file("tiny", format!("{number}"))];
            if choices.below(3) > 0 {
                content.insert(choices.below(3), stream("shared", shared.clone()));
            }
            Job {
                id: Fixture::id(number as i64),
                content,
                attempt: 0,
                stage: Stage::Waiting,
                is_done: false,
            }
        });
        Self {
            jobs: jobs.collect(),
            fixture,
            control,
            objects,
            beside,
            offered: BTreeMap::new(),
        }
    }

    fn begin(&mut self, number: usize, choices: &mut Choices) -> Result<(), WriteError> {
        let job = &mut self.jobs[number];
        job.attempt += 1;
        // Another process knows nothing; the same one knows what it did.
        if choices.below(2) == 0 {
            self.fixture.index = Arc::new(ChunkIndex::new(&self.fixture.vault, &self.fixture.writer_key));
        }
        if choices.below(3) > 0 {
            self.fixture.runtime.block_on(self.fixture.index.refresh()).unwrap();
        }
        let writer = self.fixture.writer(&job.id, Attempt::new(job.attempt))?;
        job.stage = Stage::Writing {
            writer: Box::new(writer),
            next: 0,
        };
        Ok(())
    }

    /// Takes a job one step further; after an error its attempt is over.
    fn step(&mut self, number: usize, choices: &mut Choices) {
        let stepped = self.try_step(number, choices);
        if stepped.is_err() {
            self.jobs[number].stage = Stage::Waiting;
        }
    }

    fn try_step(&mut self, number: usize, choices: &mut Choices) -> Result<(), String> {
        let job = &mut self.jobs[number];
        match std::mem::replace(&mut job.stage, Stage::Waiting) {
            Stage::Waiting => self.begin(number, choices).map_err(|error| format!("{error:?}")),
            Stage::Writing { mut writer, next } => {
                match job.content.get(next) {
                    Some(item) => {
                        put_all(&mut *writer, std::slice::from_ref(item)).map_err(|error| format!("{error:?}"))?;
                        job.stage = Stage::Writing { writer, next: next + 1 };
                    }
                    None => {
                        let sealed = writer.finish().map_err(|error| format!("{error:?}"))?;
                        job.stage = Stage::Stored { sealed };
                    }
                }
                Ok(())
            }
            Stage::Stored { sealed } => {
                let attempt = Attempt::new(job.attempt);
                self.offered.insert((job.id.clone(), job.attempt), job.content.clone());
                let receipt = self.fixture.receipt(&job.id, attempt, &sealed);
                let commit = self.fixture.vault.commit(&receipt, &self.fixture.signer);
                let committed = self
                    .fixture
                    .runtime
                    .block_on(commit)
                    .map_err(|error| format!("{error:?}"))?;
                job.is_done = true;
                if let Committed::Theirs(theirs) = committed {
                    assert!(
                        theirs.receipt.attempt.number() < job.attempt,
                        "an attempt that is over came first"
                    );
                }
                Ok(())
            }
        }
    }

    /// The attempt's process dies; the next attempt may want other content, as a source that went on changing does.
    fn kill(&mut self, number: usize, choices: &mut Choices) {
        let job = &mut self.jobs[number];
        job.stage = Stage::Waiting;
        if choices.below(4) == 0 {
            job.content.push(file("later", rows(choices.below(50) as u64, 30_000)));
        }
    }

    fn object(&self, object: &str) -> Option<Vec<u8>> {
        self.fixture.runtime.block_on(async {
            let found = self.objects.get(&Path::from(object)).await.ok()?;
            Some(found.bytes().await.unwrap().to_vec())
        })
    }

    /// What must hold whenever anybody looks.
    fn assert_promises(&self, history: &str) {
        let fixture = &self.fixture;
        let vault = fixture.runtime.block_on(Vault::open(self.beside.clone())).unwrap();
        for id in fixture.runtime.block_on(vault.backups()).unwrap() {
            let receipt = fixture.runtime.block_on(vault.receipt(&id)).unwrap().unwrap().receipt;
            let list = self.object(&format!("backups/{id}/a{}/packs", receipt.attempt));
            for line in String::from_utf8(list.unwrap()).unwrap().lines() {
                let (digest, object) = line.split_once("  ").unwrap();
                let bytes = self.object(object);
                let bytes = bytes.unwrap_or_else(|| panic!("{history}: {id} needs {object}, which is not there"));
                let found = ring::digest::digest(&ring::digest::SHA256, &bytes);
                let expected: Sha256Digest = digest.parse().unwrap();
                assert_eq!(
                    found.as_ref(),
                    expected.as_bytes(),
                    "{history}: {id} needs another {object}"
                );
            }
            let report = fixture.runtime.block_on(vault.check(&id)).unwrap();
            assert!(report.is_sound(), "{history}: {:?}", report.damage);
            // Its reader fails where the manifest needs a chunk that no pack of the list holds.
            let found = read(&fixture.runtime, &vault, &fixture.identity, &id).unwrap();
            let expected = &self.offered[&(id.clone(), receipt.attempt.number())];
            assert!(found == *expected, "{history}: {id} restores to something else");
        }
        for job in self.jobs.iter().filter(|job| job.is_done) {
            let found = fixture.runtime.block_on(vault.receipt(&job.id)).unwrap();
            assert!(
                found.is_some(),
                "{history}: {} was committed and has no receipt",
                job.id
            );
        }
    }

    /// Whatever an index lists is where it says: nobody may rely on what is not there.
    fn assert_index_holds(&self, history: &str) {
        use futures::TryStreamExt;
        let listed = self.objects.list(Some(&Path::from("index"))).try_collect::<Vec<_>>();
        for object in self.fixture.runtime.block_on(listed).unwrap() {
            let bytes = self.object(object.location.as_ref()).unwrap();
            let text = zstd::stream::decode_all(&bytes[..bytes.len() - 40]).unwrap();
            for line in String::from_utf8(text).unwrap().lines().skip(1) {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let pack = line["pack"].as_str().unwrap();
                let is_there = self.object(&format!("packs/{}/{pack}", &pack[..2])).is_some();
                assert!(
                    is_there,
                    "{history}: {object:?} lists chunks of a pack that is not there"
                );
            }
        }
    }
}

/// A bucket's server refuses what was altered on its way itself; there the last one is left out.
const FAULTS: [Fault; 5] = [
    Fault::Refused,
    Fault::Full,
    Fault::Lost,
    Fault::AnswerLost,
    Fault::Altered,
];

/// Interleaves the jobs by chance until each has its receipt.
fn run(seed: u64, place: Place) {
    let mut choices = Choices::of(seed);
    let mut world = World::new(&mut choices, place);
    let mut steps = 0;
    while world.jobs.iter().any(|job| !job.is_done) {
        steps += 1;
        assert!(steps < 400, "seed {seed} does not come to an end");
        let number = choices.below(world.jobs.len());
        if world.jobs[number].is_done {
            // A paused attempt that wakes up after its job was done elsewhere begins or goes on, now and then.
            if choices.below(6) > 0 {
                continue;
            }
        }
        match choices.below(24) {
            0..3 if steps < 60 => world.kill(number, &mut choices),
            3 if steps < 60 => {
                let fault = FAULTS[choices.below(FAULTS.len())];
                if place == Place::Folder || fault != Fault::Altered {
                    world.control.arm(choices.below(6), fault);
                }
            }
            _ => world.step(number, &mut choices),
        }
        if steps % 10 == 0 {
            world.assert_promises(&format!("seed {seed}, step {steps}"));
        }
    }
    world.control.disarm();
    world.assert_promises(&format!("seed {seed}"));
    world.assert_index_holds(&format!("seed {seed}"));
}

#[test]
fn whatever_the_interleaving_what_has_a_receipt_restores_exactly() {
    (0..8).for_each(|seed| run(seed, Place::Folder));
    // Some of them wait for the pause after a lost answer.
    std::thread::scope(|scope| {
        for first in 0..4 {
            scope.spawn(move || (100 + first..200).step_by(4).for_each(|seed| run(seed, Place::Bucket)));
        }
    });
}

/// Two writers take a step each in turn, against a store that fails one call; the number of calls.
fn in_turn(place: Place, fault: Option<(usize, Fault)>) -> usize {
    let mut choices = Choices::of(7);
    let mut world = World::new(&mut choices, place);
    world.jobs.truncate(2);
    if let Some((call, fault)) = fault {
        world.control.arm(call, fault);
    }
    let mut steps = 0;
    while world.jobs.iter().any(|job| !job.is_done) {
        for number in 0..2 {
            if !world.jobs[number].is_done {
                world.step(number, &mut choices);
            }
        }
        steps += 1;
        assert!(steps < 30, "{fault:?}");
    }
    let is_spent = !world.control.disarm();
    let history = format!("{fault:?}");
    world.assert_promises(&history);
    world.assert_index_holds(&history);
    assert!(fault.is_none() || is_spent, "{history} is past the last call");
    world.control.take_calls().len()
}

#[test]
fn a_fault_at_any_call_of_two_interleaved_writers_harms_neither() {
    for (place, faults) in [(Place::Folder, &FAULTS[4..]), (Place::Bucket, &FAULTS[..4])] {
        let calls = in_turn(place, None);
        assert!(calls >= 12, "{calls}");
        std::thread::scope(|scope| {
            for fault in faults {
                scope.spawn(move || {
                    for call in 0..calls {
                        in_turn(place, Some((call, *fault)));
                    }
                });
            }
        });
    }
}

#[test]
fn the_next_attempt_reuses_what_a_killed_one_had_listed() {
    let mut fixture = Fixture::new();
    let content = vec![stream("large", noise(1, 40_000_000)), file("small", "x")];
    let id = Fixture::id(1);
    let first = fixture.write(&id, Attempt::FIRST, &content);
    assert!(first.totals.new_chunks > 0);
    drop(first);
    // The next one runs elsewhere.
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let second = fixture.write(&id, Attempt::new(2), &content);
    assert_eq!((second.totals.new_chunks, second.totals.new_content_bytes), (0, 0));
    let receipt = fixture.receipt(&id, Attempt::new(2), &second);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();
    assert!(fixture.read(&id).unwrap() == content);
}

#[test]
fn what_a_killed_attempt_had_not_listed_is_stored_again_and_never_referred_to() {
    let mut fixture = Fixture::new();
    let content = vec![stream("large", noise(2, 40_000_000))];
    let id = Fixture::id(1);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    writer.begin(&content[0].entry).unwrap();
    for piece in content[0].content.chunks(100_000) {
        writer.write(piece).unwrap();
    }
    drop(writer);
    let left: Vec<String> = fixture
        .objects()
        .into_iter()
        .filter(|o| o.starts_with("packs/"))
        .collect();
    assert!(fixture.objects().iter().all(|object| !object.starts_with("index/")));
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let (id, sealed) = fixture.back_up(2, &content);
    assert_eq!(sealed.totals.new_chunks, sealed.totals.chunks);
    for pack in left {
        std::fs::remove_file(fixture.path().join(pack)).unwrap();
    }
    assert!(fixture.runtime.block_on(fixture.vault.check(&id)).unwrap().is_sound());
    assert!(fixture.read(&id).unwrap() == content);
}
