//! What the program does with a vault and an identity alone: list, find, compare, check, rescue, rotate keys. The vault is
//! a real one in a folder, with backups of a real tree.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use strongroom_connectors::files::{SnapshotOptions, snapshot};
use strongroom_proto::manifest::{Entry, EntrySink as _};
use strongroom_proto::receipt::{
    BACKUP_RECEIPT_SCHEMA, BackupReceipt, InitiatedBy, Integrity, Method, Operator, ReceiptStatus, SourceFacts,
};
use strongroom_proto::{Attempt, BackupId, BackupType, JobId, TargetKind};
use strongroom_vault::{BackupWriter, ChunkIndex, Signer, Store, StoreConfig, Vault, WriterKey};
use tokio::runtime::Runtime;

/// A vault made by the program, its keys, and a tree to back up.
struct Place {
    folder: tempfile::TempDir,
    runtime: Runtime,
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

impl Place {
    fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            runtime: Runtime::new().unwrap(),
        };
        let made = place.run(&["vault", "create", "--url", &place.url(), "--keys", &place.text("keys")]);
        assert_eq!(code(&made), 0, "{}", stderr(&made));
        std::fs::create_dir_all(place.path("tree/etc/deep")).unwrap();
        std::fs::write(place.path("tree/etc/a.conf"), "a = 1\n").unwrap();
        std::fs::write(place.path("tree/etc/deep/b.conf"), "b = 2\n".repeat(5000)).unwrap();
        std::fs::write(place.path("tree/evil\u{1b}[2J\nname"), "x").unwrap();
        std::os::unix::fs::symlink("a.conf", place.path("tree/etc/link")).unwrap();
        std::fs::set_permissions(place.path("tree/etc/a.conf"), PermissionsExt::from_mode(0o640)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn url(&self) -> String {
        format!("file://{}", self.text("vault"))
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command.env_clear().env("HOME", self.folder.path()).stdin(Stdio::null());
        command.args(args).output().unwrap()
    }

    /// With the vault and the identity named.
    fn see(&self, args: &[&str]) -> Output {
        let (store, identity) = (self.url(), self.text("keys/identity.txt"));
        let named = ["--store", &store, "--identity", &identity];
        self.run(&[args, &named].concat())
    }

    fn rescue(&self, args: &[&str]) -> Output {
        let (store, identity) = (self.url(), self.text("keys/identity.txt"));
        self.run(&[&["rescue", "--store", &store, "--identity", &identity], args].concat())
    }

    fn back_up(&self, number: i64, kind: TargetKind, target: &str, take: impl FnOnce(&mut BackupWriter)) -> BackupId {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap();
        let store = Store::open(&StoreConfig {
            url: self.url(),
            s3: None,
        });
        let vault = self.runtime.block_on(Vault::open(store.unwrap())).unwrap();
        let key = WriterKey::parse(&read("keys/writer.key")).unwrap();
        let signer = Signer::from_openssh(&read("keys/signing-snapshotter.key"), "snapshotter").unwrap();
        let index = Arc::new(ChunkIndex::new(&vault, &key));
        self.runtime.block_on(index.refresh()).unwrap();
        let job_id = JobId::fresh();
        let backup_id = BackupId::for_job(job_id, at(number));
        let handle = self.runtime.handle().clone();
        let mut writer = BackupWriter::begin(&vault, &key, index, backup_id.clone(), Attempt::FIRST, handle).unwrap();
        take(&mut writer);
        let sealed = writer.finish().unwrap();
        let receipt = BackupReceipt {
            schema: BACKUP_RECEIPT_SCHEMA.to_owned(),
            backup_id: backup_id.clone(),
            environment: "test".to_owned(),
            surface: "files".to_owned(),
            method: Method::Snapshot,
            started_at: at(number),
            completed_at: at(number + 1),
            status: ReceiptStatus::Success,
            artifacts: sealed.artifacts,
            integrity: Integrity::UNPROVEN,
            git: None,
            operator: Operator {
                initiated_by: InitiatedBy::Automation,
                principal: "snapshotter".to_owned(),
            },
            notes: String::new(),
            vault_id: vault.id(),
            job_id,
            attempt: Attempt::FIRST,
            target: target.parse().unwrap(),
            target_kind: kind,
            backup_type: BackupType::Full,
            retention_until: None,
            totals: sealed.totals,
            missing: Vec::new(),
            software: "test".to_owned(),
            source: SourceFacts::default(),
        };
        self.runtime.block_on(vault.commit(&receipt, &signer)).unwrap();
        backup_id
    }

    fn back_up_tree(&self, number: i64) -> BackupId {
        self.back_up(number, TargetKind::Files, "documents", |writer| {
            let report = snapshot(&self.path("tree"), &SnapshotOptions::default(), writer, &mut || {});
            assert!(report.unwrap().missing.is_empty());
        })
    }

    fn back_up_dump(&self, number: i64) -> BackupId {
        self.back_up(number, TargetKind::Postgres, "orders-db", |writer| {
            for (path, content) in [
                ("globals.sql", "-- roles\n"),
                ("tables/1-orders.dump", "rows"),
                ("database.dump", "d"),
            ] {
                writer.begin(&Entry::stream(path, "postgres-dump")).unwrap();
                writer.write(content.as_bytes()).unwrap();
                writer.end().unwrap();
            }
        })
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}{}", stdout(output), stderr(output)))
}

/// The one object of a vault under this folder, or the largest of them.
fn largest(folder: &Path) -> PathBuf {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push((path.metadata().unwrap().len(), path)),
            }
        }
    }
    found.into_iter().max().unwrap().1
}

#[test]
fn what_a_backup_holds_is_listed_found_and_compared() {
    let place = Place::new();
    let first = place.back_up_tree(1);
    let listed = place.see(&["list", first.as_str()]);
    let text = stdout(&listed);
    assert_eq!(code(&listed), 0, "{}", stderr(&listed));
    assert!(
        text.contains("       6 B  etc/a.conf\n") && text.contains("30.0 kB  etc/deep/b.conf\n"),
        "{text}"
    );
    assert!(
        text.contains("evil\\u{1b}[2J\\nname") && !text.contains('\u{1b}'),
        "{text}"
    );
    let below = stdout(&place.see(&["list", "documents", "etc/deep", "--long"]));
    assert_eq!(below.lines().count(), 2, "{below}");
    assert!(below.contains("drwx") && below.contains("etc/deep/b.conf"), "{below}");
    let long = stdout(&place.see(&["list", first.as_str(), "--long"]));
    assert!(
        long.contains("-rw-r-----") && long.contains("etc/link -> a.conf"),
        "{long}"
    );
    let entries = json(&place.see(&["list", first.as_str(), "--json"]));
    let paths: Vec<&str> = entries["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["path"].as_str().unwrap())
        .collect();
    assert!(
        paths.contains(&"evil\u{1b}[2J\nname") && paths.contains(&"etc/link"),
        "{paths:?}"
    );
    // As in a standalone folder, what lies beside the configuration is found by itself.
    std::fs::write(place.path("config.yaml"), "environment: test\n").unwrap();
    let beside = place.run(&["--config", &place.text("config.yaml"), "list", "documents"]);
    assert_eq!((code(&beside), stdout(&beside)), (0, text), "{}", stderr(&beside));
    let nothing = place.see(&["list", first.as_str(), "no/such"]);
    assert_eq!(code(&nothing), 1);
    assert!(stderr(&nothing).contains("holds nothing at no/such"));

    std::fs::write(place.path("tree/etc/a.conf"), "a = 22\n").unwrap();
    std::fs::remove_file(place.path("tree/etc/link")).unwrap();
    std::fs::write(place.path("tree/etc/new.conf"), "new").unwrap();
    std::fs::set_permissions(place.path("tree/etc/deep/b.conf"), PermissionsExt::from_mode(0o600)).unwrap();
    let second = place.back_up_tree(10);
    place.back_up_dump(20);
    let diff = place.see(&["diff", first.as_str(), second.as_str()]);
    let text = stdout(&diff);
    assert_eq!(code(&diff), 0, "{}", stderr(&diff));
    for line in [
        "changed   etc/a.conf  6 B ->  7 B\n",
        "removed   etc/link\n",
        "added     etc/new.conf  3 B\n",
        "metadata  etc/deep/b.conf\n",
        "1 added (3 B), 1 removed (0 B), 1 changed (6 B -> 7 B), ",
    ] {
        assert!(text.contains(line), "{line} {text}");
    }
    let differences = json(&place.see(&["diff", first.as_str(), "documents", "--json"]));
    assert_eq!(differences["totals"]["changed_bytes_after"], 7);
    assert_eq!(differences["b"], second.as_str());
    assert_eq!(
        stdout(&place.see(&["diff", first.as_str(), first.as_str()])),
        "no difference\n"
    );

    let found = stdout(&place.see(&["find", "*.conf"]));
    let order: Vec<usize> = [&second, &first].map(|id| found.find(id.as_str()).unwrap()).to_vec();
    assert!(order[0] < order[1], "newest first: {found}");
    assert_eq!(found.matches(".conf").count(), 5, "{found}");
    let found = json(&place.see(&["find", "new.*", "--target", "documents", "--json"]));
    assert_eq!(found["found"].as_array().unwrap().len(), 1);
    assert_eq!(found["found"][0]["backup_id"], second.as_str());
    assert_eq!(code(&place.see(&["find", "nothing-like-it"])), 2);
}

#[test]
fn rescue_restores_files_and_streams_with_nothing_but_vault_and_identity() {
    let place = Place::new();
    let tree = place.back_up_tree(1);
    let dump = place.back_up_dump(2);
    let listed = place.rescue(&["ls"]);
    assert_eq!(code(&listed), 0, "{}", stderr(&listed));
    assert!(
        stdout(&listed).contains(tree.as_str()) && stdout(&listed).contains("orders-db"),
        "{}",
        stdout(&listed)
    );
    assert!(
        stderr(&listed).contains("signers that the vault itself names"),
        "{}",
        stderr(&listed)
    );
    assert_eq!(
        json(&place.rescue(&["ls", "--json"]))["backups"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(stdout(&place.rescue(&["ls", "documents", "etc"])).contains("etc/a.conf"));

    let verified = place.rescue(&["verify", "documents"]);
    assert_eq!(code(&verified), 0, "{}{}", stdout(&verified), stderr(&verified));
    assert!(stdout(&verified).contains("sound") && stdout(&verified).contains("read to their end"));

    let out = place.text("out");
    let restored = place.rescue(&["restore", tree.as_str(), "--destination", &out]);
    assert_eq!(code(&restored), 0, "{}{}", stdout(&restored), stderr(&restored));
    assert_eq!(
        std::fs::read_to_string(place.path("out/etc/a.conf")).unwrap(),
        "a = 1\n"
    );
    assert_eq!(
        std::fs::read_to_string(place.path("out/evil\u{1b}[2J\nname")).unwrap(),
        "x"
    );
    assert_eq!(
        std::fs::read_link(place.path("out/etc/link")).unwrap(),
        Path::new("a.conf")
    );
    assert_eq!(
        place.path("out/etc/a.conf").metadata().unwrap().permissions().mode() & 0o777,
        0o640
    );
    let again = place.rescue(&["restore", tree.as_str(), "--destination", &out]);
    assert_eq!(code(&again), 1, "a folder that is not empty is left alone");
    std::fs::write(place.path("out/etc/a.conf"), "spoilt").unwrap();
    let again = place.rescue(&["restore", tree.as_str(), "--destination", &out, "--in-place"]);
    assert_eq!(code(&again), 0, "{}", stderr(&again));
    assert_eq!(
        std::fs::read_to_string(place.path("out/etc/a.conf")).unwrap(),
        "a = 1\n"
    );
    let part = place.text("part");
    let partly = place.rescue(&["restore", tree.as_str(), "--destination", &part, "--path", "etc/deep"]);
    assert_eq!(code(&partly), 0, "{}", stderr(&partly));
    assert!(place.path("part/etc/deep/b.conf").exists() && !place.path("part/etc/a.conf").exists());

    let out = place.text("dump");
    let restored = place.rescue(&["restore", dump.as_str(), "--destination", &out]);
    assert_eq!(code(&restored), 0, "{}{}", stdout(&restored), stderr(&restored));
    assert!(
        stdout(&restored).contains("pg_restore --exit-on-error"),
        "{}",
        stdout(&restored)
    );
    for (path, content) in [
        ("globals.sql", "-- roles\n"),
        ("tables/1-orders.dump", "rows"),
        ("database.dump", "d"),
    ] {
        let path = place.path("dump").join(path);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    // Signatures count as somebody else says, where that is asked for.
    let signers = stdout(&place.run(&["vault", "signers", "--store", &place.url()]));
    std::fs::write(place.path("allowed"), &signers).unwrap();
    let allowed = place.text("allowed");
    assert_eq!(
        code(&place.rescue(&["--allowed-signers", &allowed, "verify", "documents"])),
        0
    );
    let dumper = signers.lines().find(|line| line.starts_with("dumper ")).unwrap();
    std::fs::write(place.path("allowed"), dumper).unwrap();
    let listed = place.rescue(&["ls", "--allowed-signers", &allowed]);
    assert_eq!(code(&listed), 2, "{}", stdout(&listed));
    assert!(stdout(&listed).contains("NOT TRUSTED"), "{}", stdout(&listed));
    std::fs::write(place.path("allowed"), "nobody\n").unwrap();
    assert_eq!(code(&place.rescue(&["ls", "--allowed-signers", &allowed])), 1);
}

#[test]
fn damage_is_exit_code_2_and_names_what_it_hits() {
    let place = Place::new();
    let id = place.back_up_tree(1);
    let (url, identity) = (place.url(), place.text("keys/identity.txt"));
    let check = |more: &[&str]| place.run(&[&["vault", "check", "--store", &url], more].concat());
    let sound = check(&[]);
    assert_eq!(code(&sound), 0, "{}{}", stdout(&sound), stderr(&sound));
    assert!(stdout(&sound).contains("sound: 1 backups"), "{}", stdout(&sound));
    let deep = json(&check(&["--identity", &identity, "--json"]));
    assert!(
        deep["chunks"].as_u64().unwrap() > 0 && deep["damage"] == Value::Array(vec![]),
        "{deep}"
    );

    let pack = largest(&place.path("vault/packs"));
    let original = std::fs::read(&pack).unwrap();
    let mut flipped = original.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&pack, &flipped).unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    let damaged = check(&[]);
    assert_eq!(code(&damaged), 2);
    let text = stdout(&damaged);
    assert!(
        text.contains(name) && text.contains("does not match its digest") && text.contains(id.as_str()),
        "{text}"
    );
    assert!(text.contains("Move the damaged pack away"), "{text}");
    // What it says is so: while the pack is there the next backup reuses it, and once it is away stores its content anew.
    let again = place.back_up_tree(1);
    assert_eq!(code(&check(&["--backup", again.as_str()])), 2);
    std::fs::remove_file(&pack).unwrap();
    let text = stdout(&check(&[]));
    assert!(
        text.contains("is missing") && text.contains("stores what it needs of a missing pack anew"),
        "{text}"
    );
    let anew = place.back_up_tree(1);
    assert_eq!(code(&check(&["--backup", anew.as_str(), "--identity", &identity])), 0);
    assert_eq!(
        code(&check(&["--backup", id.as_str()])),
        2,
        "the older ones stay damaged"
    );
    std::fs::write(&pack, &flipped).unwrap();
    let damaged = check(&["--identity", &identity]);
    assert_eq!(code(&damaged), 2);
    assert_eq!(code(&place.rescue(&["verify", id.as_str()])), 2);
    let restored = place.rescue(&["restore", id.as_str(), "--destination", &place.text("out")]);
    assert_eq!(code(&restored), 1, "a restore fails closed");
    assert_eq!(code(&check(&["--backup", "bkp-20200101-000000Z-000000000000"])), 1);
    std::fs::write(&pack, &original).unwrap();
    assert_eq!(code(&check(&["--backup", id.as_str()])), 0);

    // Somebody else's identity: nothing is damaged, but not everything could be looked at.
    let other = Place::new();
    let other = other.text("keys/identity.txt");
    let checked = check(&["--identity", &other]);
    assert_eq!(code(&checked), 1, "{}", stdout(&checked));
    assert!(stdout(&checked).contains("NOT CHECKED"), "{}", stdout(&checked));
    assert_eq!(code(&check(&["--identity", &place.text("nothing")])), 1);
    let nowhere = place.run(&["vault", "check", "--store", &place.text("nowhere")]);
    assert_eq!(code(&nowhere), 1);
    assert!(stderr(&nowhere).contains("no vault"), "{}", stderr(&nowhere));
    let unnamed = place.run(&["vault", "check"]);
    assert!(stderr(&unnamed).contains("--store"), "{}", stderr(&unnamed));
}

#[test]
fn keys_are_rotated_and_told_of() {
    let place = Place::new();
    let old = place.back_up_tree(1);
    let (url, current) = (place.url(), place.text("keys/writer.key"));
    let (identity, recipient) = strongroom_vault::Identity::generate();
    std::fs::write(place.path("new.txt"), identity.as_bytes()).unwrap();
    let new_key = place.text("new-writer.key");
    let rotate = |more: &[&str]| {
        place.run(
            &[
                &["keys", "rotate", "--store", &url, "--current-writer-key", &current],
                more,
            ]
            .concat(),
        )
    };
    let nothing = rotate(&[]);
    assert_eq!(code(&nothing), 1, "{}", stdout(&nothing));
    assert!(stderr(&nothing).contains("in force already"), "{}", stderr(&nothing));
    let plugin = rotate(&["--recipient", "age1yubikey1qqqqqq"]);
    assert!(
        code(&plugin) == 1 && stderr(&plugin).contains("not supported"),
        "{}",
        stderr(&plugin)
    );
    let rotated = rotate(&[
        "--recipient",
        &recipient,
        "--writer-key",
        &new_key,
        "--reason",
        "ops left",
    ]);
    assert_eq!(code(&rotated), 0, "{}", stderr(&rotated));
    assert_eq!(
        place.path("new-writer.key").metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    let late = rotate(&["--recipient", &recipient, "--writer-key", &place.text("other.key")]);
    assert_eq!(code(&late), 1);
    assert!(stderr(&late).contains("was rotated: install key"), "{}", stderr(&late));

    std::fs::rename(place.path("new-writer.key"), place.path("keys/writer.key")).unwrap();
    let new = place.back_up_tree(10);
    let with_new = |id: &BackupId| {
        code(&place.run(&[
            "list",
            id.as_str(),
            "--store",
            &url,
            "--identity",
            &place.text("new.txt"),
        ]))
    };
    assert_eq!((with_new(&new), with_new(&old)), (0, 1));
    assert_eq!(code(&place.see(&["list", old.as_str()])), 0);
    let refused = place.see(&["list", new.as_str()]);
    assert!(
        code(&refused) == 1 && stderr(&refused).contains("identity does not open"),
        "{}",
        stderr(&refused)
    );

    let status = place.run(&["keys", "status", "--store", &url]);
    assert_eq!(
        code(&status),
        0,
        "a dependency of today is no warning yet: {}",
        stdout(&status)
    );
    let text = stdout(&status);
    assert!(
        text.contains("in force") && text.contains("retired") && text.contains("ops left"),
        "{text}"
    );
    let status = json(&place.run(&["keys", "status", "--store", &url, "--json"]));
    assert_eq!(status["in_force"], 2);
    assert_eq!(status["backups_by_recipient"][&recipient], 1);
    let generations: Vec<&Value> = status["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| &b["generations"][0])
        .collect();
    assert_eq!(generations, [&Value::from(1), &Value::from(2)]);
}

#[test]
fn a_bad_receipt_hides_nothing_of_other_backups() {
    let place = Place::new();
    let tree = place.back_up_tree(1);
    let bad = place.back_up_dump(20);
    let url = place.url();
    let receipt = place.path(&format!("vault/backups/{bad}/receipt.json"));
    let whole = std::fs::read(&receipt).unwrap();
    let is_told = |output: &Output| {
        let text = stderr(output);
        assert_eq!(code(output), 2, "{}{text}", stdout(output));
        assert!(
            text.contains(bad.as_str()) && text.contains("`strongroom vault check`"),
            "{text}"
        );
    };
    let mut changed = whole.clone();
    let at = whole.windows(9).position(|bytes| bytes == b"orders-db").unwrap();
    changed[at] = b'x';
    for bytes in [&b"{"[..], b"", &whole[..whole.len() / 2], &changed] {
        std::fs::write(&receipt, bytes).unwrap();
        let found = place.see(&["find", "*.conf"]);
        is_told(&found);
        assert!(stdout(&found).contains(tree.as_str()), "{}", stdout(&found));
        let found = place.see(&["find", "*.conf", "--json"]);
        is_told(&found);
        assert_eq!(json(&found)["found"].as_array().unwrap().len(), 2);
    }
    let listed = place.see(&["list", "documents", "etc"]);
    is_told(&listed);
    assert!(stdout(&listed).contains("etc/a.conf"), "{}", stdout(&listed));
    let compared = place.see(&["diff", "documents", "documents"]);
    is_told(&compared);
    assert_eq!(stdout(&compared), "no difference\n");
    is_told(&place.rescue(&["ls", "documents"]));
    let verified = place.rescue(&["verify", "documents"]);
    is_told(&verified);
    assert!(stdout(&verified).contains("whole"), "{}", stdout(&verified));
    is_told(&place.rescue(&["restore", "documents", "--destination", &place.text("out")]));
    assert_eq!(std::fs::read(place.path("out/etc/a.conf")).unwrap(), b"a = 1\n");
    // What is named by its id is that backup and no other.
    assert_eq!(code(&place.see(&["list", tree.as_str()])), 0);
    let found = place.see(&["find", "*.conf", bad.as_str(), "--json"]);
    assert_eq!(code(&found), 1);
    assert_eq!(json(&found)["found"], Value::Array(Vec::new()), "a whole document");
    let unknown = place.see(&["list", "orders-db"]);
    assert_eq!(code(&unknown), 1);
    assert!(
        stderr(&unknown).contains("whose receipt can be read"),
        "{}",
        stderr(&unknown)
    );

    let keys_unknown = || {
        let status = place.run(&["keys", "status", "--store", &url]);
        is_told(&status);
        assert!(
            stdout(&status).contains(bad.as_str()) && stdout(&status).contains("not known which keys 1 backup"),
            "{}",
            stdout(&status)
        );
        let status = place.run(&["keys", "status", "--store", &url, "--json"]);
        is_told(&status);
        let status = json(&status);
        assert_eq!(status["unknown"][0]["backup_id"], bad.as_str());
        assert_eq!(status["backups"][0]["backup_id"], tree.as_str());
        assert_eq!(status["backups"].as_array().unwrap().len(), 1);
    };
    keys_unknown();
    std::fs::write(&receipt, &whole).unwrap();
    assert_eq!(code(&place.run(&["keys", "status", "--store", &url])), 0);
    let lists = place.path(&format!("vault/backups/{bad}/a1/packs"));
    let list = std::fs::read(&lists).unwrap();
    std::fs::write(&lists, b"x").unwrap();
    keys_unknown();
    std::fs::remove_file(&lists).unwrap();
    keys_unknown();
    std::fs::write(&lists, list).unwrap();

    // A store that fails is no backup that is damaged.
    let signature = std::fs::read_dir(place.path(&format!("vault/backups/{bad}/a1")))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "sig"))
        .unwrap();
    std::fs::remove_file(&signature).unwrap();
    is_told(&place.see(&["find", "*.conf"]));
    std::os::unix::fs::symlink(&signature, &signature).unwrap();
    let found = place.see(&["find", "*.conf"]);
    let listed = place.see(&["list", "documents"]);
    let status = place.run(&["keys", "status", "--store", &url]);
    for failed in [found, listed, status] {
        let text = stderr(&failed);
        assert!(code(&failed) == 1 && text.contains("list backups"), "{text}");
    }
}
