//! Keys are rotated without a stored byte being rewritten, and nobody but a holder of the writer key can do it.

use std::sync::Arc;

use chrono::TimeDelta;
use strongroom_proto::{Attempt, BackupId};
use strongroom_vault::*;

use crate::support::*;

fn identity() -> (Identity, String) {
    let (text, recipient) = Identity::generate();
    (Identity::from_file_text(&text).unwrap(), recipient)
}

fn nothing<'a>(writer_key: &'a WriterKey) -> Rotation<'a> {
    Rotation {
        writer_key,
        recipients: None,
        new_writer_key: None,
        signers: None,
        identity: None,
        reason: "a test".to_owned(),
    }
}

impl Fixture {
    fn rotate(&self, rotation: Rotation<'_>, now: i64) -> Result<Vault, RotateError> {
        self.runtime.block_on(self.vault.rotate(rotation, at(now)))
    }

    fn reopen(&self) -> Vault {
        self.runtime.block_on(Vault::open(local(&self.path()))).unwrap()
    }

    /// Backs up through a vault that may have been opened before the rotation.
    fn back_up_with(
        &self,
        vault: &Vault,
        key: &WriterKey,
        number: i64,
        content: &[Item],
    ) -> Result<BackupId, WriteError> {
        let index = Arc::new(ChunkIndex::new(vault, key));
        self.runtime.block_on(index.refresh()).unwrap();
        let id = Self::id(number);
        let handle = self.runtime.handle().clone();
        let mut writer = BackupWriter::begin(vault, key, index, id.clone(), Attempt::FIRST, handle)?;
        put_all(&mut writer, content).unwrap();
        let sealed = writer.finish()?;
        let receipt = self.receipt(&id, Attempt::FIRST, &sealed);
        self.runtime.block_on(vault.commit(&receipt, &self.signer)).unwrap();
        Ok(id)
    }

    fn opens(&self, identity: &Identity, id: &BackupId, content: &[Item]) -> bool {
        match read(&self.runtime, &self.reopen(), identity, id) {
            Ok(items) => {
                assert!(items == content, "wrong content came out as right");
                true
            }
            Err(error) => {
                let found = ReadError::in_io_error(&error);
                assert!(matches!(found, Some(ReadError::WrongIdentity { .. })), "{error:?}");
                assert!(error.to_string().contains("identity"), "{error}");
                false
            }
        }
    }
}

#[test]
fn old_and_new_backups_restore_after_each_rotation() {
    let fixture = Fixture::new();
    // Held open by a service throughout.
    let held = fixture.vault.clone();
    let content = |number: u64| vec![stream("a", rows(number, 300_000)), file("b", format!("{number}"))];
    let key = &fixture.writer_key;
    let first = fixture.back_up_with(&held, key, 1, &content(1)).unwrap();

    // A recipient joins: it reads what is written from now on, those before it read everything.
    let old = fixture.identity.clone();
    let (joined, joined_recipient) = identity();
    let mut both = fixture.vault.recipients().to_vec();
    both.push(joined_recipient.clone());
    let rotation = Rotation {
        recipients: Some(both),
        ..nothing(key)
    };
    assert_eq!(fixture.rotate(rotation, 10).unwrap().key_generation(), 2);
    let second = fixture.back_up_with(&held, key, 2, &content(2)).unwrap();
    assert!(fixture.opens(&old, &first, &content(1)) && fixture.opens(&old, &second, &content(2)));
    assert!(!fixture.opens(&joined, &first, &content(1)) && fixture.opens(&joined, &second, &content(2)));

    // The old ones leave, but nothing was rotated that they could not have: packs that are reused are theirs too.
    let rotation = Rotation {
        recipients: Some(vec![joined_recipient.clone()]),
        ..nothing(key)
    };
    fixture.rotate(rotation, 20).unwrap();
    let reusing = fixture.back_up_with(&held, key, 3, &content(1)).unwrap();
    let third = fixture.back_up_with(&held, key, 4, &content(3)).unwrap();
    assert!(!fixture.opens(&old, &third, &content(3)) && fixture.opens(&joined, &third, &content(3)));
    assert!(
        !fixture.opens(&joined, &reusing, &content(1)),
        "it depends on packs of generation 1"
    );

    // The writer key changes along with the recipients: nothing old is reused.
    let (newest, newest_recipient) = identity();
    let new_key = WriterKey::generate();
    let rotation = Rotation {
        recipients: Some(vec![newest_recipient]),
        new_writer_key: Some(&new_key),
        identity: Some(&joined),
        ..nothing(key)
    };
    assert_eq!(fixture.rotate(rotation, 30).unwrap().writer_key_id(), new_key.key_id());
    let fourth = fixture.back_up_with(&held, &new_key, 5, &content(1)).unwrap();
    assert!(fixture.opens(&newest, &fourth, &content(1)));
    for identity in [&old, &joined] {
        assert!(!fixture.opens(identity, &fourth, &content(1)));
    }
    assert!(fixture.opens(&old, &first, &content(1)) && fixture.opens(&joined, &third, &content(3)));
    assert!(!fixture.opens(&newest, &third, &content(3)));

    // Once more, with the identity of the recipients who can open both writer keys.
    let (last, last_recipient) = identity();
    let last_key = WriterKey::generate();
    let rotation = Rotation {
        recipients: Some(vec![last_recipient]),
        new_writer_key: Some(&last_key),
        identity: Some(&newest),
        ..nothing(&new_key)
    };
    assert_eq!(fixture.rotate(rotation, 40).unwrap().key_generation(), 5);
    let fifth = fixture.back_up_with(&held, &last_key, 6, &content(5)).unwrap();
    assert!(fixture.opens(&last, &fifth, &content(5)) && fixture.opens(&newest, &fourth, &content(1)));
    assert!(fixture.opens(&joined, &second, &content(2)) && fixture.opens(&old, &first, &content(1)));

    let uses = fixture.runtime.block_on(held.key_use()).unwrap();
    let of = |id: &BackupId| {
        let backup = uses.backups.iter().find(|backup| backup.backup_id == *id).unwrap();
        backup.generations.iter().copied().collect::<Vec<_>>()
    };
    assert_eq!([of(&first), of(&second), of(&third)], [vec![1], vec![2], vec![3]]);
    assert_eq!(of(&reusing).first(), Some(&1));
    assert_eq!([of(&fourth), of(&fifth)], [vec![4], vec![5]]);
    let retired = uses.retired_dependencies(at(100), TimeDelta::seconds(30));
    assert_eq!(
        retired.iter().map(|found| found.generation).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert!(retired[0].backups.contains(&first) && retired[0].backups.contains(&reusing));
}

#[test]
fn an_ssh_key_can_be_a_recipient_and_restore() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let mut keygen = std::process::Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
    assert!(keygen.status().unwrap().success());
    let read = |path| std::fs::read_to_string(path).unwrap();
    let identity = Identity::from_file_text(&read(&path)).unwrap();
    let new_key = WriterKey::generate();
    let rotation = Rotation {
        recipients: Some(vec![read(&path.with_extension("pub"))]),
        new_writer_key: Some(&new_key),
        ..nothing(&fixture.writer_key)
    };
    let vault = fixture.rotate(rotation, 10).unwrap();
    let content = [stream("a", rows(1, 3_000_000))];
    let id = fixture.back_up_with(&vault, &new_key, 1, &content).unwrap();
    assert!(fixture.opens(&identity, &id, &content));
    assert!(!fixture.opens(&fixture.identity, &id, &content));
}

#[test]
fn a_writer_with_a_rotated_key_is_refused_and_told_which_to_install() {
    let fixture = Fixture::new();
    let (second, third) = (WriterKey::generate(), WriterKey::generate());
    for (old, new) in [(&fixture.writer_key, &second), (&second, &third)] {
        let rotation = Rotation {
            new_writer_key: Some(new),
            ..nothing(old)
        };
        fixture.rotate(rotation, 10).unwrap();
    }
    for key in [&fixture.writer_key, &second] {
        for vault in [&fixture.vault, &fixture.reopen()] {
            let refused = fixture.back_up_with(vault, key, 1, &[stream("a", "b")]).unwrap_err();
            let WriteError::Vault { source } = refused else {
                panic!("{refused:?}");
            };
            assert!(matches!(source, ReadError::WriterKeyRotated { .. }), "{source:?}");
            assert!(source.to_string().contains(&third.key_id()), "{source}");
            let again = fixture.rotate(nothing(key), 20).unwrap_err();
            assert!(matches!(again, RotateError::Read { .. }), "{again:?}");
        }
    }
    let stranger = fixture.rotate(nothing(&WriterKey::generate()), 20).unwrap_err();
    assert!(
        matches!(
            stranger,
            RotateError::Read {
                source: ReadError::WrongWriterKey { .. }
            }
        ),
        "{stranger:?}"
    );
    let back = Rotation {
        new_writer_key: Some(&fixture.writer_key),
        ..nothing(&third)
    };
    assert!(matches!(
        fixture.rotate(back, 20),
        Err(RotateError::OldWriterKey { .. })
    ));
}

#[test]
fn a_rotation_to_nobody_or_to_nothing_new_is_refused() {
    let fixture = Fixture::new();
    let key = &fixture.writer_key;
    let before = fixture.objects();
    let nobody = Rotation {
        recipients: Some(Vec::new()),
        ..nothing(key)
    };
    let error = fixture.rotate(nobody, 10).unwrap_err();
    assert!(
        matches!(
            error,
            RotateError::Key {
                source: KeyError::NoRecipients
            }
        ),
        "{error:?}"
    );
    let unsigned = Rotation {
        signers: Some(Vec::new()),
        ..nothing(key)
    };
    assert!(matches!(fixture.rotate(unsigned, 10), Err(RotateError::NoSigners)));
    let nonsense = Rotation {
        recipients: Some(vec!["age1nonsense".to_owned()]),
        ..nothing(key)
    };
    assert!(matches!(fixture.rotate(nonsense, 10), Err(RotateError::Key { .. })));
    let same = Rotation {
        recipients: Some(fixture.vault.recipients().iter().rev().cloned().collect()),
        ..nothing(key)
    };
    assert!(matches!(fixture.rotate(same, 10), Err(RotateError::NothingNew)));
    assert_eq!(fixture.objects(), before, "a refused rotation leaves nothing");
}

#[test]
fn of_two_rotations_at_once_one_wins_and_the_other_is_told() {
    for _ in 0..10 {
        let fixture = Fixture::new();
        let keys = [WriterKey::generate(), WriterKey::generate()];
        let outcomes = fixture.runtime.block_on(async {
            let [a, b] = [0, 1].map(|number: usize| {
                let rotation = Rotation {
                    new_writer_key: Some(&keys[number]),
                    ..nothing(&fixture.writer_key)
                };
                fixture.vault.rotate(rotation, at(10))
            });
            let (a, b) = tokio::join!(a, b);
            [a, b]
        });
        let winner = outcomes.iter().position(Result::is_ok).unwrap();
        let lost = outcomes[1 - winner].as_ref().unwrap_err();
        let overtaken = matches!(lost, RotateError::Overtaken { generation: 2 });
        let rotated = matches!(
            lost,
            RotateError::Read {
                source: ReadError::WriterKeyRotated { .. }
            }
        );
        assert!(overtaken || rotated, "{lost:?}");
        let vault = fixture.reopen();
        assert_eq!(
            (vault.key_generation(), vault.writer_key_id()),
            (2, keys[winner].key_id().as_str())
        );
        let content = [stream("a", "b")];
        let id = fixture.back_up_with(&vault, &keys[winner], 1, &content).unwrap();
        assert!(fixture.opens(&fixture.identity, &id, &content));
    }
}

#[test]
fn a_generation_that_no_holder_of_the_writer_key_made_stops_writers_and_readers() {
    let fixture = Fixture::new();
    let content = [stream("a", "b")];
    let (id, _) = fixture.back_up(1, &content);
    let path = fixture.path().join("keys/generations/2.jsonl");

    // A real rotation in a copy by somebody whose key is not the vault's: the MACs carry the vault's key's name.
    let (_, intruder) = identity();
    let rotation = Rotation {
        recipients: Some(vec![intruder.clone()]),
        ..nothing(&fixture.writer_key)
    };
    fixture.rotate(rotation, 10).unwrap();
    let real = std::fs::read_to_string(&path).unwrap();
    let (_, other) = identity();
    let renamed = real.replace(&intruder, &other);
    let mac = real.split("blake3\":\"").nth(1).unwrap().get(..64).unwrap();
    let wrong_mac = real.replace(mac, &"0".repeat(64));
    for forged in [renamed, wrong_mac] {
        assert_ne!(forged, real);
        std::fs::write(&path, &forged).unwrap();
        let vault = fixture.reopen();
        for vault in [&fixture.vault, &vault] {
            let refused = fixture
                .back_up_with(vault, &fixture.writer_key, 2, &content)
                .unwrap_err();
            let WriteError::Vault { source } = refused else {
                panic!("{refused:?}");
            };
            assert!(matches!(source, ReadError::ForgedGeneration { .. }), "{source:?}");
            assert!(source.to_string().contains("keys/generations/2.jsonl"), "{source}");
        }
        let error = read(&fixture.runtime, &vault, &fixture.identity, &id).unwrap_err();
        assert!(
            matches!(ReadError::in_io_error(&error), Some(ReadError::ForgedGeneration { .. })),
            "{error:?}"
        );
    }
    // Without the MAC lines, or naming another key's MAC, it does not even open.
    let first_line = format!("{}\n", real.lines().next().unwrap());
    let foreign = real.replace(&fixture.writer_key.key_id(), "0011223344556677");
    for forged in [first_line, foreign, String::new(), real[..real.len() - 1].to_owned()] {
        std::fs::write(&path, &forged).unwrap();
        let opened = fixture.runtime.block_on(Vault::open(local(&fixture.path())));
        let error = opened.expect_err(&forged);
        assert!(matches!(error, OpenVaultError::Keys { .. }), "{error:?}");
        let refused = fixture.back_up_with(&fixture.vault, &fixture.writer_key, 2, &content);
        assert!(refused.is_err(), "a vault that is held open does not miss it either");
    }
    std::fs::write(&path, &real).unwrap();
    assert!(fixture.opens(&fixture.identity, &id, &content));
}

#[test]
fn a_generation_that_is_gone_or_was_exchanged_is_an_error_that_names_it() {
    let fixture = Fixture::new();
    let keys: Vec<WriterKey> = (0..3).map(|_| WriterKey::generate()).collect();
    let mut current = &fixture.writer_key;
    for (number, key) in keys.iter().enumerate() {
        let rotation = Rotation {
            new_writer_key: Some(key),
            ..nothing(current)
        };
        fixture.rotate(rotation, 10 + number as i64).unwrap();
        current = key;
    }
    let object = |number: u32| fixture.path().join(format!("keys/generations/{number}.jsonl"));
    let original = std::fs::read(object(3)).unwrap();
    std::fs::remove_file(object(3)).unwrap();
    let open = || fixture.runtime.block_on(Vault::open(local(&fixture.path())));
    let Err(OpenVaultError::Keys { source }) = open() else {
        panic!("a generation is missing");
    };
    assert!(
        matches!(&source, ReadError::Missing { object } if object == "keys/generations/3.jsonl"),
        "{source:?}"
    );
    std::fs::copy(object(2), object(3)).unwrap();
    assert!(matches!(
        open(),
        Err(OpenVaultError::Keys {
            source: ReadError::Misplaced { .. }
        })
    ));
    // Whoever holds an old writer key cannot go on from there as if it were still in force.
    std::fs::write(object(3), &original).unwrap();
    let vault_json = fixture.path().join("vault.json");
    let text = std::fs::read_to_string(&vault_json).unwrap();
    std::fs::write(&vault_json, text.replace("worker@test", "intruder@test")).unwrap();
    assert!(
        matches!(
            open(),
            Err(OpenVaultError::Keys {
                source: ReadError::Damaged { .. }
            })
        ),
        "the newest generation vouches for all before it"
    );
}

#[test]
fn a_signer_that_left_signs_no_more_but_its_receipts_stay_valid() {
    let fixture = Fixture::new();
    let (id, _) = fixture.back_up(1, &[stream("a", "b")]);
    let new_signer = Signer::generate("successor@test").unwrap();
    let rotation = Rotation {
        signers: Some(vec![("successor@test".to_owned(), new_signer.public_line().unwrap())]),
        ..nothing(&fixture.writer_key)
    };
    let vault = fixture.rotate(rotation, 10).unwrap();
    let signers = vault.allowed_signers();
    assert!(
        signers.contains("worker@test ") && signers.contains("successor@test "),
        "{signers}"
    );
    assert!(fixture.runtime.block_on(vault.receipt(&id)).unwrap().is_some());
    let next = Fixture::id(2);
    let sealed = fixture.write(&next, Attempt::FIRST, &[stream("a", "c")]);
    let receipt = fixture.receipt(&next, Attempt::FIRST, &sealed);
    let refused = fixture.runtime.block_on(vault.commit(&receipt, &fixture.signer));
    assert!(matches!(refused, Err(CommitError::UnknownSigner { .. })));
    // Vaults that were opened before know the new one as soon as they meet it.
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &new_signer))
        .unwrap();
    let fresh = fixture.runtime.block_on(fixture.vault.receipt(&next)).unwrap();
    assert!(fresh.is_some());
}

#[test]
fn a_rotation_whose_answer_was_lost_or_that_was_cut_off_can_be_made_again() {
    let control = Arc::new(Control::default());
    for (call, fault) in
        (0..5).flat_map(|call| [Fault::Lost, Fault::AnswerLost, Fault::Refused].map(|fault| (call, fault)))
    {
        let fixture = Fixture::over(|store| control.wrap(store));
        let new_key = WriterKey::generate();
        let rotation = || Rotation {
            new_writer_key: Some(&new_key),
            ..nothing(&fixture.writer_key)
        };
        control.take_calls();
        control.arm(call, fault);
        let outcome = fixture.rotate(rotation(), 10);
        let came_to_pass = !control.disarm();
        if outcome.is_err() {
            assert!(came_to_pass);
            match fixture.rotate(rotation(), 11) {
                Ok(_) => {}
                // The first try had landed after all.
                Err(RotateError::Read {
                    source: ReadError::WriterKeyRotated { .. },
                }) => {}
                Err(other) => panic!("{call} {fault:?}: {other:?}"),
            }
        }
        let vault = fixture.reopen();
        assert_eq!(vault.writer_key_id(), new_key.key_id(), "{call} {fault:?}");
        let content = [stream("a", "b")];
        let id = fixture.back_up_with(&vault, &new_key, 1, &content).unwrap();
        assert!(fixture.opens(&fixture.identity, &id, &content));
    }
}

#[test]
fn keys_rotate_in_a_bucket_too() {
    let server = strongroom_testkit::S3::start().unwrap();
    let open = || {
        Store::open(&StoreConfig {
            url: format!("s3://{}/vault", server.bucket()),
            s3: Some(S3Settings {
                endpoint: Some(server.endpoint()),
                region: None,
                access_key_id: Some(server.access_key().to_owned()),
                secret_access_key: Some(Secret::new(server.secret_key())),
                allow_http: true,
            }),
        })
        .unwrap()
    };
    let fixture = Fixture::in_store(tempfile::tempdir().unwrap(), open());
    let content = [stream("a", rows(1, 300_000))];
    let (first, _) = fixture.back_up(1, &content);
    let keys = [WriterKey::generate(), WriterKey::generate()];
    let outcomes = fixture.runtime.block_on(async {
        let [a, b] = [0, 1].map(|number: usize| {
            let rotation = Rotation {
                new_writer_key: Some(&keys[number]),
                ..nothing(&fixture.writer_key)
            };
            fixture.vault.rotate(rotation, at(10))
        });
        let (a, b) = tokio::join!(a, b);
        [a, b]
    });
    let winner = outcomes.iter().position(Result::is_ok).unwrap();
    assert!(outcomes[1 - winner].is_err());
    let second = fixture
        .back_up_with(&fixture.vault, &keys[winner], 2, &content)
        .unwrap();
    let vault = fixture.runtime.block_on(Vault::open(open())).unwrap();
    assert_eq!(vault.key_generation(), 2);
    for id in [&first, &second] {
        assert!(read(&fixture.runtime, &vault, &fixture.identity, id).unwrap() == content);
    }
    let scope = CheckScope {
        backups: Vec::new(),
        identity: Some(&fixture.identity),
    };
    let report = fixture
        .runtime
        .block_on(vault.check_vault(&scope, &CheckProgress::default()))
        .unwrap();
    assert!(
        report.is_sound() && report.is_whole() && report.backups == 2,
        "{report:?}"
    );
}
