//! Every flipped, missing, cut or exchanged byte is found, and nothing wrong is ever handed out as right.

use std::path::Path;

use strongroom_proto::{Attempt, BackupId, JobId};
use strongroom_vault::*;

use crate::commits::verification;
use crate::support::*;

struct Damaged {
    fixture: Fixture,
    id: BackupId,
    other: BackupId,
    items: Vec<Item>,
}

impl Damaged {
    fn new() -> Self {
        let fixture = Fixture::new();
        let items = vec![stream("a", rows(1, 1_500_000)), file("b", "small")];
        let (id, _) = fixture.back_up(1, &items);
        let (other, _) = fixture.back_up(2, &[stream("a", rows(2, 1_500_000)), file("b", "other")]);
        for backup in [&id, &other] {
            let receipt = verification(backup, JobId::fresh(), Attempt::FIRST, "");
            fixture
                .runtime
                .block_on(fixture.vault.put_verification(&receipt, &fixture.signer))
                .unwrap();
        }
        Self {
            fixture,
            id,
            other,
            items,
        }
    }

    /// The objects that belong to one of the backups, by kind.
    fn objects_of(&self, id: &BackupId) -> Vec<String> {
        let list = std::fs::read_to_string(self.fixture.path().join(format!("backups/{id}/a1/packs"))).unwrap();
        let mut paths: Vec<String> = list
            .lines()
            .map(|line| line.split_once("  ").unwrap().1.to_owned())
            .collect();
        let own = format!("backups/{id}/");
        paths.extend(self.fixture.objects().into_iter().filter(|path| path.starts_with(&own)));
        paths.sort();
        paths.dedup();
        paths
    }

    /// Whether anything tells that the vault at `path` is damaged. Panics where wrong content comes out as right.
    fn is_found(&self, path: &Path) -> bool {
        let runtime = &self.fixture.runtime;
        let Ok(vault) = runtime.block_on(Vault::open(local(path))) else {
            return true;
        };
        let checked = runtime.block_on(vault.check(&self.id));
        let verified = runtime.block_on(vault.verifications(&self.id));
        let read = read(runtime, &vault, &self.fixture.identity, &self.id);
        if let Ok(items) = &read {
            assert!(*items == self.items, "wrong content came out as right");
        }
        !checked.is_ok_and(|report| report.is_sound()) || read.is_err() || !verified.is_ok_and(|found| found.len() == 1)
    }
}

/// Copies a vault, with fresh files: a damage must not reach the original.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for object in objects(from) {
        let target = to.join(&object);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(&object), target).unwrap();
    }
}

#[test]
fn every_flip_cut_loss_and_exchange_is_found() {
    let vault = Damaged::new();
    let source = vault.fixture.path();
    assert!(!vault.is_found(&source), "the undamaged vault is sound");
    let mut objects = vault.objects_of(&vault.id);
    let shared = vault.fixture.objects();
    objects.extend(
        shared
            .into_iter()
            .filter(|path| path.starts_with("keys/") || path == "vault.json"),
    );
    assert!(objects.len() >= 10, "{objects:?}");
    let scratch = tempfile::tempdir().unwrap();
    let damaged = scratch.path().join("damaged");
    copy(&source, &damaged);
    for object in &objects {
        let path = damaged.join(object);
        let original = std::fs::read(&path).unwrap();
        let mut cases: Vec<(String, Option<Vec<u8>>)> = vec![
            ("removed".to_owned(), None),
            ("emptied".to_owned(), Some(Vec::new())),
            ("cut by one".to_owned(), Some(original[..original.len() - 1].to_vec())),
            ("cut in half".to_owned(), Some(original[..original.len() / 2].to_vec())),
            ("longer".to_owned(), Some([original.as_slice(), b"\n"].concat())),
        ];
        for part in 0..=8 {
            let at = (original.len() - 1) * part / 8;
            let mut flipped = original.clone();
            flipped[at] ^= 1;
            cases.push((format!("flipped at {at}"), Some(flipped)));
        }
        for (case, bytes) in cases {
            match bytes {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            assert!(vault.is_found(&damaged), "{object} {case} was not found");
            std::fs::write(&path, &original).unwrap();
        }
    }
    assert!(!vault.is_found(&damaged), "the repaired vault is sound");
}

#[test]
fn objects_exchanged_between_backups_are_found() {
    let vault = Damaged::new();
    let scratch = tempfile::tempdir().unwrap();
    let damaged = scratch.path().join("damaged");
    copy(&vault.fixture.path(), &damaged);
    let kind = |path: &str| match path.split('/').next().unwrap() {
        "backups" if path.contains("verifications") => path.rsplit('.').next().unwrap().to_owned() + " verification",
        "backups" => path.rsplit('/').next().unwrap().to_owned(),
        folder => format!("{folder}/"),
    };
    let (ours, theirs) = (vault.objects_of(&vault.id), vault.objects_of(&vault.other));
    let mut exchanged = 0;
    for object in &ours {
        for other in theirs.iter().filter(|other| kind(other) == kind(object)) {
            let (original, replacement) = (
                std::fs::read(damaged.join(object)).unwrap(),
                std::fs::read(damaged.join(other)).unwrap(),
            );
            if original == replacement {
                continue;
            }
            std::fs::write(damaged.join(object), replacement).unwrap();
            assert!(vault.is_found(&damaged), "{object} replaced by {other} was not found");
            std::fs::write(damaged.join(object), original).unwrap();
            exchanged += 1;
        }
    }
    assert!(exchanged >= 8, "{ours:?} {theirs:?}");
    // The whole of another backup, signature and all, under this one's name.
    for object in &ours {
        let twin = object.replace(vault.id.as_str(), vault.other.as_str());
        if object.starts_with("backups/") && !object.contains("verifications") {
            std::fs::copy(vault.fixture.path().join(twin), damaged.join(object)).unwrap();
        }
    }
    assert!(
        vault.is_found(&damaged),
        "another backup under this one's name was not found"
    );
}

#[test]
fn a_check_without_keys_names_each_damaged_object() {
    let vault = Damaged::new();
    let fixture = &vault.fixture;
    let objects = vault.objects_of(&vault.id);
    let pack = objects.iter().find(|path| path.starts_with("packs/")).unwrap();
    let index = objects.iter().find(|path| path.starts_with("index/")).unwrap();
    let mut bytes = std::fs::read(fixture.path().join(pack)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x80;
    std::fs::write(fixture.path().join(pack), bytes).unwrap();
    std::fs::remove_file(fixture.path().join(index)).unwrap();
    let report = fixture.runtime.block_on(fixture.vault.check(&vault.id)).unwrap();
    let damage: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
    assert_eq!(
        damage,
        [
            format!("{index} is missing"),
            format!("{pack} does not match its digest")
        ]
    );
    assert!(
        fixture
            .runtime
            .block_on(fixture.vault.check(&vault.other))
            .unwrap()
            .is_sound()
    );
}
