//! Every flipped, missing, cut or exchanged byte is found, and nothing wrong is ever handed out as right.
//!
//! [`TABLE`] says for every kind of object and every damage what finds it at the latest.

use std::path::Path;

use strongroom_proto::receipt::RestoreReceipt;
use strongroom_proto::wal::WalSink;
use strongroom_proto::{Attempt, BackupId, JobId};
use strongroom_vault::*;

use crate::commits::verification;
use crate::support::*;
use crate::vault_check::restored;

/// What finds a damage, the cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Finder {
    /// The vault does not open.
    Opening,
    /// A check without any key.
    Check,
    /// A check with an identity.
    Identity,
    /// The backup is not there any more: its receipt is the backup, and what it needed is garbage now.
    NoBackup,
    /// Nothing refers to it, and nothing depends on it.
    Nobody,
}

use Finder::{Check, Identity as Opened, NoBackup, Nobody, Opening};

#[derive(Debug, Clone, Copy)]
enum Damage {
    FlippedFirst,
    FlippedMiddle,
    FlippedLast,
    CutByOne,
    Emptied,
    Grown,
    Removed,
    /// The same kind of object of another backup, or another vault.
    Exchanged,
}

const DAMAGES: [Damage; 8] = [
    Damage::FlippedFirst,
    Damage::FlippedMiddle,
    Damage::FlippedLast,
    Damage::CutByOne,
    Damage::Emptied,
    Damage::Grown,
    Damage::Removed,
    Damage::Exchanged,
];

/// A kind of object, by a pattern of its path in which `*` is anything but `/`, and what finds each of [`DAMAGES`].
///
/// What is sealed, or authenticated by the writer key alone, takes an identity; a copy of somebody else's vault is
/// whole in itself. All that a backup consists of is found without any key.
const TABLE: [(&str, [Finder; 8]); 17] = [
    (
        "vault.json",
        [Opening, Opening, Opening, Opened, Opening, Opened, Opening, Opening],
    ),
    (
        "keys/*.vault-mac",
        [Opened, Opened, Check, Check, Check, Check, Check, Opened],
    ),
    (
        "keys/????????????????.age",
        [Check, Opened, Opened, Opened, Check, Opened, Check, Opened],
    ),
    (
        "keys/????????????????.????????*.age",
        [Check, Check, Check, Check, Check, Check, Check, Check],
    ),
    (
        "keys/generations/2.jsonl",
        [Opening, Opened, Opening, Opening, Opening, Opening, Check, Opening],
    ),
    ("packs/*/*", [Check; 8]),
    ("index/*", [Check; 8]),
    ("backups/*/a1/manifest", [Check; 8]),
    ("backups/*/a1/packs", [Check; 8]),
    ("backups/*/a1/receipt.json.sig", [Check; 8]),
    (
        "backups/*/receipt.json",
        [Check, Check, Check, Check, Check, Check, NoBackup, Check],
    ),
    (
        "backups/*/verifications/*.json",
        [Check, Check, Check, Check, Check, Check, Nobody, Check],
    ),
    ("backups/*/verifications/*.json.sig", [Check; 8]),
    (
        "backups/*/restores/*.json",
        [Check, Check, Check, Check, Check, Check, Nobody, Check],
    ),
    ("backups/*/restores/*.json.sig", [Check; 8]),
    // What is not there is told where windows are told.
    (
        "wal/*/*/????????????????????????/*",
        [Check, Check, Check, Check, Check, Check, Nobody, Check],
    ),
    (
        "wal/*/*/history/*",
        [Check, Check, Check, Check, Check, Check, Nobody, Check],
    ),
];

fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern_rest, mut path_rest) = (pattern.chars(), path.chars());
    match (pattern_rest.next(), path_rest.next()) {
        (None, None) => true,
        (Some('*'), first) => {
            matches(pattern_rest.as_str(), path)
                || first.is_some_and(|first| first != '/' && matches(pattern, path_rest.as_str()))
        }
        (Some('?'), Some(first)) => first != '.' && first != '/' && matches(pattern_rest.as_str(), path_rest.as_str()),
        (Some(wanted), Some(found)) => wanted == found && matches(pattern_rest.as_str(), path_rest.as_str()),
        _ => false,
    }
}

/// A vault with everything there can be in one: two backups before a rotation of keys and one after it, evidence for
/// each.
struct LivedIn {
    fixture: Fixture,
    backups: Vec<(BackupId, Vec<Item>)>,
}

impl LivedIn {
    fn new() -> Self {
        let mut fixture = Fixture::new();
        let mut backups = Vec::new();
        for number in 1..=3 {
            if number == 3 {
                let new_key = WriterKey::generate();
                let rotation = Rotation {
                    writer_key: &fixture.writer_key,
                    recipients: None,
                    new_writer_key: Some(&new_key),
                    signers: None,
                    identity: None,
                    reason: "a test".to_owned(),
                };
                let rotated = fixture.runtime.block_on(fixture.vault.rotate(rotation, at(10)));
                fixture.vault = rotated.unwrap();
                fixture.writer_key = new_key;
                fixture.index = std::sync::Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
            }
            let items = vec![stream("a", rows(number, 200_000)), file("b", format!("small {number}"))];
            let (id, _) = fixture.back_up(number as i64, &items);
            let evidence = verification(&id, JobId::fresh(), Attempt::FIRST, "");
            let receipt: RestoreReceipt = restored(&id, JobId::fresh());
            fixture.runtime.block_on(async {
                let (vault, signer) = (&fixture.vault, &fixture.signer);
                vault.put_verification(&evidence, signer).await.unwrap();
                vault.put_restore(&receipt, signer).await.unwrap();
            });
            backups.push((id, items));
        }
        crate::wal::put(
            &fixture,
            &[crate::wal::piece(1, 0, 9_000), crate::wal::piece(1, 9_000, 9_500)],
        );
        let writer = crate::wal::writer(&fixture);
        for timeline in [2, 3] {
            let put = writer.put_history(crate::wal::SYSTEM, timeline, "1\t0/9000\tno reason\n");
            fixture.runtime.block_on(put).unwrap();
        }
        Self { fixture, backups }
    }

    /// What finds that the vault at `path` is damaged. Panics where wrong content comes out as right.
    fn finder(&self, path: &Path) -> Finder {
        let (runtime, identity) = (&self.fixture.runtime, &self.fixture.identity);
        let Ok(vault) = runtime.block_on(Vault::open(local(path))) else {
            return Opening;
        };
        let mut lost = false;
        for (id, items) in &self.backups {
            match read(runtime, &vault, identity, id) {
                Ok(found) => assert!(found == *items, "wrong content came out as right"),
                Err(error) => {
                    let error = ReadError::in_io_error(&error).unwrap();
                    lost |= matches!(error, ReadError::NoBackup { .. });
                    assert!(!error.is_retryable(), "{error:?}");
                }
            }
        }
        let finds = |identity| {
            let scope = CheckScope {
                backups: Vec::new(),
                identity,
            };
            let checked = runtime.block_on(vault.check_vault(&scope, &CheckProgress::default()));
            !checked.is_ok_and(|report| report.is_sound())
        };
        // The check of a single backup finds what is its own, too.
        let single = |(id, _): &(BackupId, Vec<Item>)| {
            let checked = runtime.block_on(vault.check(id));
            !checked.is_ok_and(|report| report.is_sound())
        };
        if finds(None) {
            Check
        } else if finds(Some(identity)) {
            Opened
        } else if lost && self.backups.iter().any(single) {
            NoBackup
        } else {
            assert!(
                !self.backups.iter().any(single),
                "only the check of a single backup found it"
            );
            Nobody
        }
    }
}

fn damaged(original: &[u8], other: &[u8], damage: Damage) -> Option<Vec<u8>> {
    let flipped = |at: usize| {
        let mut bytes = original.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let last = original.len() - 1;
    Some(match damage {
        Damage::FlippedFirst => flipped(0),
        Damage::FlippedMiddle => flipped(last / 2),
        Damage::FlippedLast => flipped(last),
        Damage::CutByOne => original[..last].to_vec(),
        Damage::Emptied => Vec::new(),
        Damage::Grown => [original, b"\n"].concat(),
        Damage::Removed => return None,
        Damage::Exchanged => other.to_vec(),
    })
}

/// The objects of a kind, in the order they were made.
fn of_kind(vault: &Path, kind: &str) -> Vec<String> {
    let mut found: Vec<String> = objects(vault).into_iter().filter(|path| matches(kind, path)).collect();
    found.sort_by_key(|path| vault.join(path).metadata().unwrap().modified().unwrap());
    found
}

#[test]
fn every_damage_to_every_kind_of_object_is_found_where_the_table_says() {
    let (vault, foreign) = (LivedIn::new(), LivedIn::new());
    let root = vault.fixture.path();
    assert_eq!(vault.finder(&root), Nobody, "the undamaged vault is sound");
    for object in vault.fixture.objects() {
        let kinds = TABLE.iter().filter(|(kind, _)| matches(kind, &object)).count();
        assert_eq!(kinds, 1, "{object} is of one kind in the table");
    }
    let mut wrong = Vec::new();
    for (kind, finders) in TABLE {
        let ours = of_kind(&root, kind);
        let (object, of_vault) = (&ours[0], kind.starts_with("keys/") || kind == "vault.json");
        let other = match of_vault {
            true => foreign.fixture.path().join(&of_kind(&foreign.fixture.path(), kind)[0]),
            false => root.join(&ours[1]),
        };
        let (path, other) = (root.join(object), std::fs::read(other).unwrap());
        let original = std::fs::read(&path).unwrap();
        for (damage, expected) in DAMAGES.into_iter().zip(finders) {
            match damaged(&original, &other, damage) {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let found = vault.finder(&root);
            std::fs::write(&path, &original).unwrap();
            if found > expected {
                wrong.push(format!("{object} {damage:?}: {found:?} instead of {expected:?}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(vault.finder(&root), Nobody, "the repaired vault is sound");
}

#[test]
fn another_backup_under_ones_name_is_found() {
    let vault = LivedIn::new();
    let root = vault.fixture.path();
    let (ours, theirs) = (vault.backups[0].0.as_str(), vault.backups[1].0.as_str());
    for kind in ["receipt.json", "a1/receipt.json.sig", "a1/manifest", "a1/packs"] {
        let (from, to) = (
            root.join(format!("backups/{theirs}/{kind}")),
            root.join(format!("backups/{ours}/{kind}")),
        );
        std::fs::copy(from, to).unwrap();
    }
    assert_eq!(vault.finder(&root), Check);
}

/// Who can write to the bucket but holds no key puts back what was there before a rotation.
#[test]
fn a_vault_rolled_back_to_before_a_rotation_is_found() {
    let vault = LivedIn::new();
    let root = vault.fixture.path();
    for object in vault.fixture.objects() {
        let is_of_later_keys = object.starts_with("keys/generations/") || object.matches('.').count() == 2;
        if object.starts_with("keys/") && is_of_later_keys {
            std::fs::remove_file(root.join(object)).unwrap();
        }
    }
    assert_eq!(vault.finder(&root), Check);
}

#[test]
fn a_check_without_keys_names_each_damaged_object() {
    let vault = LivedIn::new();
    let (fixture, (id, _)) = (&vault.fixture, &vault.backups[0]);
    let list = std::fs::read_to_string(fixture.path().join(format!("backups/{id}/a1/packs"))).unwrap();
    let named = |folder| {
        let mut paths = list.lines().filter_map(|line| line.split("  ").nth(1));
        paths.find(|path: &&str| path.starts_with(folder)).unwrap().to_owned()
    };
    let (pack, index) = (named("packs/"), named("index/"));
    let mut bytes = std::fs::read(fixture.path().join(&pack)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x80;
    std::fs::write(fixture.path().join(&pack), bytes).unwrap();
    std::fs::remove_file(fixture.path().join(&index)).unwrap();
    let check = |id| fixture.runtime.block_on(fixture.vault.check(id)).unwrap();
    let damage: Vec<String> = check(id).damage.iter().map(ToString::to_string).collect();
    let expected = [
        format!("{index} is missing"),
        format!("{pack} does not match its digest"),
    ];
    assert_eq!(damage, expected);
    assert!(check(&vault.backups[1].0).is_sound());
}
