//! A check of the whole vault finds every damage, says whom it hits, and does not call garbage damage.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use strongroom_proto::manifest::{Entry, EntryKind, EntrySource};
use strongroom_proto::receipt::{InitiatedBy, Operator, RESTORE_RECEIPT_SCHEMA, RestoreReceipt};
use strongroom_proto::restore::Selected;
use strongroom_proto::{Attempt, BackupId, JobId};
use strongroom_vault::*;

use crate::commits::verification;
use crate::support::*;

impl Fixture {
    fn check_all(&self, identity: Option<&Identity>) -> Result<VaultReport, String> {
        let vault = self.runtime.block_on(Vault::open(local(&self.path())));
        let vault = vault.map_err(|error| error.to_string())?;
        let scope = CheckScope {
            backups: Vec::new(),
            identity,
        };
        let checked = self
            .runtime
            .block_on(vault.check_vault(&scope, &CheckProgress::default()));
        checked.map_err(|error| error.to_string())
    }
}

pub(crate) fn restored(id: &BackupId, job_id: JobId) -> RestoreReceipt {
    RestoreReceipt {
        schema: RESTORE_RECEIPT_SCHEMA.to_owned(),
        job_id,
        attempt: Attempt::FIRST,
        backup_id: id.clone(),
        target: "orders-db".parse().unwrap(),
        destination: "/tmp".to_owned(),
        started_at: at(5),
        completed_at: at(6),
        success: true,
        restored_bytes: 1,
        selected: Selected::default(),
        changes: None,
        skipped: Vec::new(),
        checks: Vec::new(),
        operator: Operator {
            initiated_by: InitiatedBy::Human,
            principal: "p".to_owned(),
        },
        software: "test".to_owned(),
        notes: String::new(),
    }
}

/// A vault with everything that there can be in one: evidence, a rotation, a backup before and after it.
fn lived_in() -> (Fixture, BackupId, BackupId) {
    let mut fixture = Fixture::new();
    let (first, _) = fixture.back_up(1, &[stream("a", rows(1, 100_000)), file("b", "small")]);
    let evidence = verification(&first, JobId::fresh(), Attempt::FIRST, "");
    let restore = restored(&first, JobId::fresh());
    fixture.runtime.block_on(async {
        fixture
            .vault
            .put_verification(&evidence, &fixture.signer)
            .await
            .unwrap();
        fixture.vault.put_restore(&restore, &fixture.signer).await.unwrap();
    });
    let new_key = WriterKey::generate();
    let rotation = Rotation {
        writer_key: &fixture.writer_key,
        recipients: None,
        new_writer_key: Some(&new_key),
        signers: None,
        identity: None,
        reason: "a test".to_owned(),
    };
    fixture.vault = fixture
        .runtime
        .block_on(fixture.vault.rotate(rotation, at(10)))
        .unwrap();
    fixture.writer_key = new_key;
    fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
    let (second, _) = fixture.back_up(2, &[stream("a", rows(2, 100_000))]);
    (fixture, first, second)
}

#[test]
fn every_flip_cut_and_loss_is_found_and_most_without_a_key() {
    let (fixture, ..) = lived_in();
    let sound = fixture.check_all(Some(&fixture.identity)).unwrap();
    assert!(sound.is_sound() && sound.is_whole(), "{sound:?}");
    assert_eq!((sound.backups, sound.unreferenced), (2, Some(Unreferenced::default())));
    assert!(sound.chunks >= 4 && sound.entries == 3, "{sound:?}");
    let first_key = fixture
        .objects()
        .into_iter()
        .find(|o| o.ends_with(".vault-mac"))
        .unwrap();
    let first_key = first_key.replace(".vault-mac", "");
    for object in fixture.objects() {
        let path = fixture.path().join(&object);
        let original = std::fs::read(&path).unwrap();
        let mut cases: Vec<(String, Option<Vec<u8>>)> = vec![
            ("emptied".to_owned(), Some(Vec::new())),
            ("cut by one".to_owned(), Some(original[..original.len() - 1].to_vec())),
        ];
        // Nothing refers to what was said about a backup later.
        if !(object.ends_with(".json") && object.matches('/').count() == 3) {
            cases.push(("removed".to_owned(), None));
        }
        for part in 0..=3 {
            let at = (original.len() - 1) * part / 3;
            let mut flipped = original.clone();
            flipped[at] ^= 1;
            cases.push((format!("flipped at {at}"), Some(flipped)));
        }
        // These are authenticated by the writer key, or sealed, and by nothing else.
        let takes_a_key = object.starts_with("keys/generations/") || object.starts_with(&first_key);
        for (case, bytes) in cases {
            match bytes {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let is_lost_backup = case == "removed" && object.ends_with("/receipt.json");
            let identity = takes_a_key.then_some(&fixture.identity);
            match fixture.check_all(identity) {
                Err(_) => {}
                Ok(report) if is_lost_backup => {
                    // A backup without a receipt is no backup; what it consisted of is in nobody's way.
                    assert!(report.is_sound() && report.backups == 1, "{report:?}");
                    assert!(report.unreferenced.unwrap().objects >= 4, "{report:?}");
                }
                Ok(report) => assert!(!report.is_sound(), "{object} {case} was not found"),
            }
            std::fs::write(&path, &original).unwrap();
        }
    }
    assert!(fixture.check_all(Some(&fixture.identity)).unwrap().is_sound());
}

#[test]
fn a_damaged_pack_names_the_backups_and_the_files_that_need_it() {
    let fixture = Fixture::new();
    let small = |seed| file(&format!("etc/{seed}"), noise(seed, 900_000));
    let mut shared: Vec<Item> = (0..12).map(small).collect();
    // Larger than a chunk, it is cut off from what follows: both backups have every chunk before it and of it.
    shared.push(file("etc/last", noise(50, 3_000_000)));
    let (first, _) = fixture.back_up(1, &shared);
    let mut more = shared.clone();
    more.push(file("etc/new", noise(100, 900_000)));
    let (second, _) = fixture.back_up(2, &more);
    let (third, _) = fixture.back_up(3, &[stream("other", rows(9, 100_000))]);

    let list = std::fs::read_to_string(fixture.path().join(format!("backups/{first}/a1/packs"))).unwrap();
    let packs: Vec<&str> = list.lines().filter_map(|line| line.split("  ").nth(1)).collect();
    let sizes = |object: &&&str| std::fs::metadata(fixture.path().join(object)).unwrap().len();
    let pack = *packs
        .iter()
        .filter(|o| o.starts_with("packs/"))
        .max_by_key(sizes)
        .unwrap();
    let path = fixture.path().join(pack);
    let original = std::fs::read(&path).unwrap();
    let mut flipped = original.clone();
    flipped[2_300_000] ^= 1;
    std::fs::write(&path, &flipped).unwrap();

    let report = fixture.check_all(None).unwrap();
    let [damaged] = &report.damage[..] else {
        panic!("{report:?}")
    };
    assert_eq!(
        (damaged.object.as_str(), damaged.problem.as_str()),
        (pack, "does not match its digest")
    );
    let mut hit: Vec<&BackupId> = damaged.backups.iter().map(|hit| &hit.backup_id).collect();
    hit.sort();
    let mut expected = vec![&first, &second];
    expected.sort();
    assert_eq!(hit, expected);
    assert!(damaged.backups.iter().all(|hit| hit.files == HitFiles::NotLookedFor));

    let report = fixture.check_all(Some(&fixture.identity)).unwrap();
    let [damaged] = &report.damage[..] else {
        panic!("{report:?}")
    };
    assert!(!damaged.chunks.is_empty() && damaged.chunks.len() <= 3, "{damaged:?}");
    assert_eq!(damaged.backups.len(), 2, "{damaged:?}");
    for hit in &damaged.backups {
        assert_ne!(hit.backup_id, third);
        let HitFiles::Named { count, paths } = &hit.files else {
            panic!("{damaged:?}")
        };
        // A chunk has up to 4 MiB, which lie in six files at most.
        assert!((1..=6).contains(count) && paths.len() as u64 == *count, "{paths:?}");
        // What it names is lost, and the rest can be had.
        let reader = fixture
            .runtime
            .block_on(fixture.vault.open_backup(&hit.backup_id, &fixture.identity))
            .unwrap();
        for item in &more {
            let path = &item.entry.path;
            let mut content = Vec::new();
            match reader.copy_content(path, &mut content) {
                Ok(()) => assert!(content == item.content && !paths.contains(path), "{path} {paths:?}"),
                Err(_) => assert!(
                    paths.contains(path) || (hit.backup_id == first && path == "etc/new"),
                    "{path} {paths:?}"
                ),
            }
        }
    }

    // Gone as a whole, with the list of entries in it.
    std::fs::remove_file(&path).unwrap();
    let report = fixture.check_all(Some(&fixture.identity)).unwrap();
    let [damaged] = &report.damage[..] else {
        panic!("{report:?}")
    };
    assert_eq!(damaged.problem, "is missing");
    let files_of = |id: &BackupId| &damaged.backups.iter().find(|hit| hit.backup_id == *id).unwrap().files;
    assert!(matches!(files_of(&first), HitFiles::All { .. }), "{damaged:?}");
    let HitFiles::Named { count: 13, paths } = files_of(&second) else {
        panic!("{damaged:?}")
    };
    assert!(!paths.contains(&"etc/new".to_owned()));

    // One backup alone can be checked.
    std::fs::write(&path, &flipped).unwrap();
    let check = |id: &BackupId| {
        let scope = CheckScope {
            backups: vec![id.clone()],
            identity: Some(&fixture.identity),
        };
        let progress = CheckProgress::default();
        let report = fixture.runtime.block_on(fixture.vault.check_vault(&scope, &progress));
        report.map(|report| {
            (
                report.is_sound(),
                report.unreferenced,
                progress.now().0 == report.objects,
            )
        })
    };
    assert_eq!(check(&third).unwrap(), (true, None, true));
    assert!(!check(&second).unwrap().0);
    assert!(matches!(check(&Fixture::id(77)), Err(ReadError::NoBackup { .. })));
}

#[test]
fn what_nothing_refers_to_is_counted_and_is_no_damage() {
    let fixture = Fixture::new();
    let (id, _) = fixture.back_up(1, &[stream("a", rows(1, 300_000))]);
    let sound = fixture.check_all(None).unwrap();
    // An attempt that died before its receipt, one that lost, and a staged copy.
    let dead = Fixture::id(2);
    fixture.write(&dead, Attempt::FIRST, &[stream("a", rows(2, 300_000))]);
    fixture.write(&id, Attempt::new(2), &[stream("a", rows(3, 300_000))]);
    std::fs::create_dir_all(fixture.path().join("staging")).unwrap();
    std::fs::write(fixture.path().join("staging/left"), "0123456789").unwrap();
    // A small object that was not finished, which no listing has.
    std::fs::write(fixture.path().join(format!("backups/{id}/a1/manifest#1")), "0123456789").unwrap();
    let report = fixture.check_all(Some(&fixture.identity)).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.backups, report.objects >= sound.objects), (1, true));
    let garbage = report.unreferenced.unwrap();
    // A pack, an index object, a manifest and a list each, the staged copy, and what was not finished.
    assert_eq!(garbage.objects, 10, "{garbage:?}");
    assert!(garbage.bytes > 20_000, "{garbage:?}");
}

#[test]
fn damage_of_what_no_backup_uses_yet_is_named() {
    let fixture = Fixture::new();
    fixture.back_up(1, &[stream("a", rows(1, 300_000))]);
    let before = fixture.objects();
    // An attempt that died before its receipt: what it listed is reused by the next one.
    fixture.write(&Fixture::id(2), Attempt::FIRST, &[stream("a", rows(2, 300_000))]);
    let new: Vec<String> = fixture.objects().into_iter().filter(|o| !before.contains(o)).collect();
    assert!(fixture.check_all(None).unwrap().is_sound());
    for (folder, use_of_it) in [("packs/", "the next one may reuse it"), ("index/", "used by no backup")] {
        let object = new.iter().find(|object| object.starts_with(folder)).unwrap();
        let path = fixture.path().join(object);
        let original = std::fs::read(&path).unwrap();
        let mut flipped = original.clone();
        flipped[original.len() / 2] ^= 1;
        for bytes in [&flipped, &original[..original.len() - 1].to_vec(), &Vec::new()] {
            std::fs::write(&path, bytes).unwrap();
            for identity in [None, Some(&fixture.identity)] {
                let report = fixture.check_all(identity).unwrap();
                let [damaged] = &report.damage[..] else {
                    panic!("{report:?}")
                };
                assert_eq!((&damaged.object, damaged.backups.len()), (object, 0));
                assert!(damaged.problem.contains(use_of_it), "{damaged:?}");
                assert_eq!(report.unreferenced.unwrap().objects, 4, "{report:?}");
            }
        }
        std::fs::write(&path, &original).unwrap();
    }
    let last = fixture.check_all(None).unwrap();
    assert!(last.is_sound(), "{last:?}");
}

#[test]
fn hard_links_of_a_damaged_file_are_named_with_it() {
    let fixture = Fixture::new();
    let link = |path: &str, target: &str| {
        let mut entry = Entry::bare(path, EntryKind::Hardlink);
        entry.link_target = Some(target.to_owned());
        Item {
            entry,
            content: Vec::new(),
        }
    };
    // Each in a pack of its own: a stream larger than a chunk is cut off from its neighbours.
    let (first, second) = (stream("etc/a", noise(1, 5_000_000)), stream("etc/b", noise(2, 300_000)));
    fixture.back_up(1, std::slice::from_ref(&first));
    let pack = fixture.objects().into_iter().find(|o| o.starts_with("packs/")).unwrap();
    let mut not_text = link("etc/e\u{fffd}", "etc/f\u{fffd}");
    not_text.entry.path_hex = Some(hex::encode(b"etc/e\xff"));
    not_text.entry.link_target_hex = Some(hex::encode(b"etc/f\xff"));
    let all = [
        link("etc/0", "etc/a"),
        first,
        second,
        link("etc/c", "etc/a"),
        link("etc/d", "etc/b"),
        not_text,
        link("etc/g", "etc/c"),
    ];
    let id = Fixture::id(2);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    put_all(&mut writer, &all).unwrap();
    let sealed = writer.finish().unwrap();
    let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
    let committed = fixture.vault.commit(&receipt, &fixture.signer);
    fixture.runtime.block_on(committed).unwrap();
    std::fs::remove_file(fixture.path().join(&pack)).unwrap();
    let report = fixture.check_all(Some(&fixture.identity)).unwrap();
    let damaged = report.damage.iter().find(|damaged| damaged.object == pack).unwrap();
    let hit = damaged.backups.iter().find(|hit| hit.backup_id == id).unwrap();
    let expected = ["etc/a", "etc/c", "etc/g"].map(str::to_owned).to_vec();
    assert_eq!(
        hit.files,
        HitFiles::Named {
            count: 3,
            paths: expected
        }
    );
}

#[test]
fn another_identity_checks_what_it_can_and_says_what_it_could_not() {
    let (fixture, ..) = lived_in();
    let (text, _) = Identity::generate();
    let stranger = Identity::from_file_text(&text).unwrap();
    let report = fixture.check_all(Some(&stranger)).unwrap();
    assert!(report.is_sound() && !report.is_whole(), "{report:?}");
    assert!(
        report.unchecked.iter().all(|u| u.reason.contains("identity")),
        "{report:?}"
    );
    assert_eq!(report.chunks, 0);
}

#[test]
fn the_newest_generation_of_keys_cannot_be_taken_away_unnoticed_once_it_was_used() {
    let (fixture, ..) = lived_in();
    std::fs::remove_file(fixture.path().join("keys/generations/2.jsonl")).unwrap();
    let report = fixture.check_all(None).unwrap();
    assert!(
        report
            .damage
            .iter()
            .any(|damage| damage.problem.contains("generation 2 of the keys")),
        "{report:?}"
    );
}

#[test]
fn a_list_that_fails_is_an_error_and_never_an_empty_vault() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    fixture.back_up(1, &[stream("a", "b")]);
    control.fails_lists.store(true, Ordering::SeqCst);
    let (vault, progress) = (&fixture.vault, CheckProgress::default());
    let checked = fixture
        .runtime
        .block_on(vault.check_vault(&CheckScope::default(), &progress));
    assert!(matches!(checked, Err(ReadError::Store { .. })), "{checked:?}");
    assert!(fixture.runtime.block_on(vault.key_use()).is_err());
    assert!(fixture.runtime.block_on(vault.backups()).is_err());
    let store = control.wrap(local(&fixture.path()));
    assert!(
        fixture.runtime.block_on(Vault::open(store)).is_err(),
        "a vault whose generations cannot be listed is not one without any"
    );
}

#[test]
fn lists_of_more_than_ten_thousand_objects_are_whole() {
    const MANY: u64 = 10_050;
    let fixture = Fixture::new();
    let (id, _) = fixture.back_up(1, &[stream("a", "b")]);
    for number in 0..MANY {
        let left = format!("{number}");
        let name = hex::encode(ring::digest::digest(&ring::digest::SHA256, left.as_bytes()));
        for folder in [format!("packs/{}", &name[..2]), "index".to_owned()] {
            let folder = fixture.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(&name), &left).unwrap();
        }
    }
    let report = fixture.check_all(None).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.unreferenced.unwrap().objects, 2 * MANY);
    let folder = fixture.path().join(format!("backups/{id}/verifications"));
    std::fs::create_dir(&folder).unwrap();
    let mut jobs: Vec<JobId> = (0..MANY).map(|_| JobId::fresh()).collect();
    for job in &jobs {
        std::fs::write(folder.join(format!("{job}.json")), "{}").unwrap();
    }
    let mut listed = fixture.runtime.block_on(fixture.vault.verification_jobs(&id)).unwrap();
    listed.sort();
    jobs.sort();
    assert!(listed == jobs);
    let report = fixture.check_all(None).unwrap();
    assert_eq!(report.damage.len() as u64, MANY, "each of them is no receipt");
}
