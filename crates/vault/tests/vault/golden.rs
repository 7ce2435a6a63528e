//! The vault in `testdata/format-1`, as the first release wrote it: whatever changes, its backups restore and its chunks are
//! reused. `UPDATE_TESTDATA=1` makes it where there is none; once released it is never made again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom_proto::manifest::{BackupSink, Entry, EntryKind, EntrySink, FileVersion};
use strongroom_proto::{Attempt, BackupId, JobId};
use strongroom_vault::*;
use tokio::runtime::Runtime;

use crate::commits::verification;
use crate::forge::*;
use crate::support::*;
use crate::vault_check::restored;
use crate::vectors::forge;

fn golden() -> PathBuf {
    testdata().join("format-1")
}

/// A part of a file's content.
enum Part {
    Data(Vec<u8>),
    Hole(u64),
}

/// Pages that compress well and are all different.
fn pages(generation: u64) -> Vec<u8> {
    let page = |number: u64| {
        let changed = if number.is_multiple_of(97) { generation } else { 0 };
        format!("page {number:06} of generation {changed:02}.\n")
            .repeat(300)
            .into_bytes()
    };
    (0..640).flat_map(|number| page(number)[..8_192].to_vec()).collect()
}

/// What the backup of this number consists of: every kind of entry there is.
fn tree(number: u64) -> Vec<(Entry, Vec<Part>)> {
    use EntryKind::{BlockDevice, CharDevice, Directory, Fifo, File, Hardlink, Socket, Symlink};
    let data = |text: String| vec![Part::Data(text.into_bytes())];
    let bare = |path: &str, kind| {
        let mut entry = Entry::bare(path, kind);
        (entry.mode, entry.uid, entry.gid) = (Some(0o644), Some(1_000), Some(100));
        (entry.mtime_seconds, entry.mtime_nanoseconds) = (Some(-1), Some(999_999_999));
        entry
    };
    let to = |path, kind, target: &str| {
        let mut entry = bare(path, kind);
        entry.link_target = Some(target.to_owned());
        entry
    };
    let node = |path, kind| {
        let mut entry = bare(path, kind);
        (entry.device_major, entry.device_minor) = (Some(1), Some(3));
        entry
    };
    let mut attributes = bare("tree/attributes", File);
    attributes.xattrs.insert("user.test".to_owned(), "00ff".to_owned());
    let mut name = bare("tree/not \u{fffd}", File);
    name.path_hex = Some(hex::encode(b"tree/not \xff"));
    let mut symlink = to("tree/symlink", Symlink, "\u{fffd}");
    symlink.link_target_hex = Some("fe".to_owned());
    vec![
        (
            Entry::stream("dump.sql", "command-output"),
            data(format!("rows of backup {number}\n").repeat(50)),
        ),
        (bare("tree", Directory), vec![]),
        (attributes, data("attributes\n".to_owned())),
        (node("tree/block", BlockDevice), vec![]),
        (node("tree/char", CharDevice), vec![]),
        (bare("tree/empty", File), vec![]),
        (bare("tree/fifo", Fifo), vec![]),
        (bare("tree/large", File), vec![Part::Data(pages(number))]),
        (
            bare("tree/line\nbreak", File),
            data(format!("file of backup {number}\n")),
        ),
        (name, data("a name that is no text\n".to_owned())),
        (to("tree/same", Hardlink, "tree/attributes"), vec![]),
        (bare("tree/socket", Socket), vec![]),
        (
            bare("tree/sparse", File),
            vec![
                Part::Hole(1 << 40),
                Part::Data(b"between\n".to_vec()),
                Part::Hole(4_096),
            ],
        ),
        (symlink, vec![]),
    ]
}

fn write(vault: &Vault, key: &WriterKey, runtime: &Runtime, number: u64, cache: &Path) -> (BackupId, Sealed) {
    let index = Arc::new(ChunkIndex::new(vault, key));
    runtime.block_on(index.refresh()).unwrap();
    let id = Fixture::id(number as i64);
    let handle = runtime.handle().clone();
    let writer = BackupWriter::begin(vault, key, index, id.clone(), Attempt::FIRST, handle).unwrap();
    let mut writer = writer.with_cache(cache, key);
    for (entry, parts) in tree(number) {
        let lengths = parts.iter().map(|part| match part {
            Part::Data(bytes) => bytes.len() as u64,
            Part::Hole(bytes) => *bytes,
        });
        let version = FileVersion {
            device: 1,
            inode: number,
            bytes: lengths.sum(),
            mtime: (number as i64, 0),
            ctime: (number as i64, 0),
        };
        match entry.kind {
            EntryKind::File => writer.begin_file(&entry, &version).unwrap(),
            _ => writer.begin(&entry).unwrap(),
        }
        for part in parts {
            match part {
                Part::Data(bytes) => writer.write(&bytes).unwrap(),
                Part::Hole(bytes) => writer.hole(bytes).unwrap(),
            }
        }
        writer.end().unwrap();
    }
    (id, writer.finish().unwrap())
}

fn second_key() -> WriterKey {
    WriterKey::parse(&std::fs::read_to_string(testdata().join("test-keys/writer-key-2")).unwrap()).unwrap()
}

/// Two backups, the second laid over the first; new keys; and a third. Evidence for the first.
fn make(forge: &Forge) {
    let (keys, runtime, cache) = (&forge.keys, &forge.runtime, tempfile::tempdir().unwrap());
    let cache = cache.path().join("cache");
    std::fs::create_dir_all(golden()).unwrap();
    let new = NewVault {
        recipients: vec![keys.recipient()],
        writer_key: &keys.writer_key,
        signers: vec![("test@testdata".to_owned(), keys.signer.public_line().unwrap())],
    };
    let mut vault = runtime.block_on(Vault::create(local(&golden()), new, at(0))).unwrap();
    let second_key = WriterKey::generate();
    std::fs::write(
        testdata().join("test-keys/writer-key-2"),
        second_key.serialize().as_bytes(),
    )
    .unwrap();
    for number in 1..=3 {
        let key = if number == 3 { &second_key } else { &keys.writer_key };
        if number == 3 {
            let rotation = Rotation {
                writer_key: &keys.writer_key,
                recipients: None,
                new_writer_key: Some(key),
                signers: None,
                identity: Some(&keys.identity),
                reason: "a test".to_owned(),
            };
            vault = runtime.block_on(vault.rotate(rotation, at(10))).unwrap();
        }
        let (id, sealed) = write(&vault, key, runtime, number, &cache);
        let is_overlay = number == 2;
        assert_eq!(
            sealed.totals.new_content_bytes < 200_000,
            is_overlay,
            "{:?}",
            sealed.totals
        );
        let mut receipt = a_receipt(&vault, &id, Attempt::FIRST, &sealed);
        // The place where it was made is nobody's business.
        for artifact in &mut receipt.artifacts {
            let at = artifact.uri.find("/backups/").unwrap();
            artifact.uri.replace_range(..at, "file:///vault");
        }
        runtime.block_on(vault.commit(&receipt, &keys.signer)).unwrap();
        if number == 1 {
            let evidence = verification(&id, JobId::fresh(), Attempt::FIRST, "");
            let restore = restored(&id, JobId::fresh());
            runtime
                .block_on(vault.put_verification(&evidence, &keys.signer))
                .unwrap();
            runtime.block_on(vault.put_restore(&restore, &keys.signer)).unwrap();
        }
    }
    for folder in ["probe", "staging"] {
        let _ = std::fs::remove_dir(golden().join(folder));
    }
}

#[test]
fn the_vault_of_format_1_restores_checks_and_is_written_on() {
    let forge = forge();
    let (runtime, identity) = (&forge.runtime, &forge.keys.identity);
    if is_updating() && !golden().exists() {
        make(&forge);
    }
    // A copy: nothing that is tested may change what is kept.
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("vault");
    for object in objects(&golden()) {
        let to = root.join(&object);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(golden().join(object), to).unwrap();
    }
    let vault = runtime.block_on(Vault::open(local(&root))).unwrap();
    let scope = CheckScope {
        backups: Vec::new(),
        identity: Some(identity),
    };
    let report = runtime
        .block_on(vault.check_vault(&scope, &CheckProgress::default()))
        .unwrap();
    assert!(report.is_sound() && report.is_whole(), "{report:?}");
    assert_eq!(
        (report.backups, report.unreferenced),
        (3, Some(Unreferenced::default()))
    );

    let ids = runtime.block_on(vault.backups()).unwrap();
    let mut text = String::new();
    for id in &ids {
        assert!(runtime.block_on(vault.check(id)).unwrap().is_sound());
        text += &format!("{id}\n");
        for line in contents(runtime, &vault, id, identity).unwrap() {
            text += &format!("  {line}\n");
        }
    }
    let expected = testdata().join("format-1.txt");
    if is_updating() && !expected.exists() {
        std::fs::write(&expected, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(expected).unwrap());
    for (id, count) in ids.iter().zip([1, 0, 0]) {
        assert_eq!(runtime.block_on(vault.verifications(id)).unwrap().len(), count);
    }

    // Cut and named as today, the content of the last backup is all there.
    let (id, sealed) = write(&vault, &second_key(), runtime, 3, &folder.path().join("cache"));
    assert_eq!((sealed.totals.new_chunks, sealed.totals.new_content_bytes), (0, 0));
    let receipt = a_receipt(&vault, &id, Attempt::FIRST, &sealed);
    runtime.block_on(vault.commit(&receipt, &forge.keys.signer)).unwrap();
    let lines = |id| contents(runtime, &vault, id, identity).unwrap();
    assert_eq!(lines(&id), lines(&ids[2]));
    // Who held the key of before is told of the new one.
    let index = Arc::new(ChunkIndex::new(&vault, &forge.keys.writer_key));
    let handle = runtime.handle().clone();
    let begun = BackupWriter::begin(&vault, &forge.keys.writer_key, index, id, Attempt::new(2), handle);
    assert!(begun.is_err());
}

#[test]
fn the_vault_of_format_1_is_small_and_names_no_place() {
    let mut bytes = 0;
    for object in objects(&golden()) {
        let content = std::fs::read(golden().join(&object)).unwrap();
        bytes += content.len();
        let text = String::from_utf8_lossy(&content);
        assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{object}");
    }
    assert!((10_000..400_000).contains(&bytes), "{bytes}");
}
