//! What each fuzz target does with its input: puts it where the vault will decode it, and decodes.
//!
//! Whatever the input, nothing panics, nothing takes memory or time without bound, and what is handed out has been checked.
//! The first byte of an input says how it is dressed: raw, or with the frame, the MAC or the seal that let it come as far as
//! the decoder behind them.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/vault/forge.rs"]
mod forge;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/vault/support.rs"]
mod support;

use std::sync::{Arc, LazyLock};

use forge::{BACKUP_ID, Forge, Objects, frame};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use ssh_key::{HashAlg, LineEnding, PrivateKey};
use strongroom_proto::manifest::{BackupSink, Entry, EntryKind, EntrySink, FileVersion};
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, WalSource};
use strongroom_proto::{Attempt, BackupId, JobId};
use strongroom_vault::{BackupWriter, ChunkIndex, Vault, WriterKey};
use support::in_memory;

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata");

struct World {
    forge: Forge,
    /// A valid backup.
    objects: Objects,
    signing_key: PrivateKey,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let forge = Forge::new(forge::testdata().join("vectors/base"));
    let entries = std::fs::read(forge::testdata().join("vectors/entries/valid-one-file")).unwrap();
    let signing_key = std::fs::read_to_string(forge::testdata().join("test-keys/signer")).unwrap();
    World {
        objects: forge.objects(&entries),
        forge,
        signing_key: PrivateKey::from_openssh(signing_key).unwrap(),
    }
});

/// How the input is dressed, and the rest of it.
fn dressed(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

fn read(objects: &Objects) {
    // Refused or right: what is read is compared with its digests on the way.
    let _ = WORLD.forge.read(objects);
}

/// An index object.
pub fn index(data: &[u8]) {
    let keys = &WORLD.forge.keys;
    let (dress, data) = dressed(data);
    let mut objects = WORLD.objects.clone();
    objects.index = match dress % 4 {
        0 => data.to_vec(),
        1 => keys.with_mac(data.to_vec()),
        2 => keys.with_mac(frame(data)),
        _ => keys.with_mac(frame(&[keys.index_header().as_bytes(), data].concat())),
    };
    read(&objects);
}

/// The root of a backup.
pub fn manifest(data: &[u8]) {
    let keys = &WORLD.forge.keys;
    let (dress, data) = dressed(data);
    let mut objects = WORLD.objects.clone();
    objects.manifest = match dress % 3 {
        0 => data.to_vec(),
        1 => keys.seal(data),
        _ => keys.seal(&frame(data)),
    };
    read(&objects);
}

/// An entry list.
pub fn entries(data: &[u8]) {
    read(&WORLD.forge.objects(data));
}

/// A list of packs.
pub fn packs(data: &[u8]) {
    let mut objects = WORLD.objects.clone();
    objects.list = Some(data.to_vec());
    read(&objects);
}

/// A pack: its header, its segments, or the frames in it.
pub fn pack(data: &[u8]) {
    let keys = &WORLD.forge.keys;
    let (dress, data) = dressed(data);
    let mut objects = WORLD.objects.clone();
    let sealed = &WORLD.objects.pack;
    objects.pack = match dress % 3 {
        0 => data.to_vec(),
        // A good header, and any payload.
        1 => [&sealed[..sealed.len() / 2], data].concat(),
        _ => keys.seal(data),
    };
    let digest = forge::sha256(&objects.pack);
    let chunks = forge::chunks();
    let entries = std::fs::read(forge::testdata().join("vectors/entries/valid-one-file")).unwrap();
    let mut lines = keys.index_header();
    for (number, chunk) in [&chunks[0], &entries].into_iter().enumerate() {
        let (id, raw) = (keys.chunk_id(chunk), chunk.len());
        let (offset, stored) = (number * data.len() / 2, data.len() / 2);
        lines += &format!(
            "{{\"chunk\":\"{id}\",\"pack\":\"{digest}\",\"offset\":{offset},\"stored\":{stored},\"raw\":{raw}}}\n"
        );
    }
    objects.index = keys.index_object(&lines);
    read(&objects);
}

/// The cache of what the last backup of a target stored, with MACs that hold or without.
pub fn cache(data: &[u8]) {
    let world = &*WORLD;
    let (forge, keys) = (&world.forge, &world.forge.keys);
    let (dress, data) = dressed(data);
    let (_, vault, _) = forge.vault_with(&world.objects);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let header = [
        b"strongroom file cache 3\n".as_slice(),
        vault.id().to_string().as_bytes(),
        keys.key_id().as_bytes(),
        // What tells one file from another.
        &[7; 16],
    ]
    .concat();
    let bytes = match dress % 4 {
        0 => data.to_vec(),
        1 => [&header, data].concat(),
        2 => with_macs(&header, data.chunks(200)),
        // What a backup left, with a few bytes of it replaced.
        _ => {
            back_up(&vault, &keys.writer_key, &path);
            let mut records = records(&std::fs::read(&path).unwrap()[header.len()..]);
            let (place, data) = data
                .split_first_chunk()
                .map_or((0, data), |(place, rest)| (u16::from_le_bytes(*place), rest));
            // The small file's record comes first; that of the large one, with a digest a block, is some kilobytes long.
            let place = usize::from(place) % records.len().min(600);
            for (byte, replaced) in data.iter().zip(records.iter_mut().skip(place)) {
                *replaced ^= *byte;
            }
            with_macs(&header, std::iter::once(records.as_slice()))
        }
    };
    std::fs::write(&path, bytes).unwrap();
    back_up(&vault, &keys.writer_key, &path);
}

fn with_macs<'a>(header: &[u8], blocks: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let key = WORLD.forge.keys.mac(b"file cache");
    let mut bytes = header.to_vec();
    for (number, block) in (0_u64..).zip(blocks) {
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher.update(header);
        hasher.update(&number.to_le_bytes());
        hasher.update(block);
        bytes.extend_from_slice(&(block.len() as u32).to_le_bytes());
        bytes.extend_from_slice(hasher.finalize().as_bytes());
        bytes.extend_from_slice(block);
    }
    bytes
}

/// The records of a cache without its header.
fn records(mut blocks: &[u8]) -> Vec<u8> {
    let mut records = Vec::new();
    while let Some((length, rest)) = blocks.split_first_chunk() {
        let (block, rest) = rest[32..].split_at(u32::from_le_bytes(*length) as usize);
        records.extend_from_slice(block);
        blocks = rest;
    }
    records
}

fn back_up(vault: &Vault, key: &WriterKey, cache: &std::path::Path) {
    let forge = &WORLD.forge;
    let index = Arc::new(ChunkIndex::new(vault, key));
    forge.runtime.block_on(index.refresh()).unwrap();
    let id = BackupId::for_job(JobId::fresh(), support::at(1));
    let handle = forge.runtime.handle().clone();
    let writer = BackupWriter::begin(vault, key, index, id, Attempt::FIRST, handle).unwrap();
    let mut writer = writer.with_cache(cache, key);
    for (path, content) in [("a", b"small".to_vec()), ("b", vec![7; 4_200_000])] {
        let entry = Entry::bare(path, EntryKind::File);
        let version = FileVersion {
            device: 1,
            inode: 1,
            bytes: content.len() as u64,
            mtime: (1, 1),
            ctime: (1, 1),
        };
        if !writer.put_unchanged(&entry, &version).unwrap() {
            writer.begin_file(&entry, &version).unwrap();
            writer.write(&content).unwrap();
            writer.end().unwrap();
        }
    }
    // And laid over what it says, in another order.
    for (path, bytes) in [("b", 4_200_000), ("a", 5), ("b", 81_920)] {
        let entry = Entry::bare(path, EntryKind::File);
        if writer.begin_overlay(&entry, bytes).unwrap() {
            writer.page(0, &[9; 8_192]).unwrap();
            writer.end().unwrap();
        }
    }
    if let Some(note) = writer.note().unwrap() {
        writer.leave_note(note);
    }
    writer.finish().unwrap();
}

fn open_with(objects: &[(&str, Vec<u8>)]) -> Option<Vault> {
    let forge = &WORLD.forge;
    let base = forge::testdata().join("vectors/base");
    let memory = Arc::new(InMemory::new());
    forge.runtime.block_on(async {
        for name in support::objects(&base) {
            let bytes = std::fs::read(base.join(&name)).unwrap();
            memory.put(&Path::from(name), bytes.into()).await.unwrap();
        }
        for (name, bytes) in objects {
            memory.put(&Path::from(*name), bytes.clone().into()).await.unwrap();
        }
        Vault::open(in_memory(&memory)).await.ok()
    })
}

/// A piece of WAL: as it is stored, what is sealed in it, its statement, or the frame after that.
pub fn wal(data: &[u8]) {
    let keys = &WORLD.forge.keys;
    let (dress, data) = dressed(data);
    let wal = [7; 600];
    let stated = |line: &[u8], frames: &[u8]| {
        let signed = WORLD.signing_key.sign("receipt@strongroom", HashAlg::Sha512, line);
        let signature = signed.and_then(|signature| signature.to_pem(LineEnding::LF)).unwrap();
        let length = (line.len() + signature.len()) as u32;
        let front = [&[0x50, 0x2a, 0x4d, 0x18], &length.to_le_bytes()[..]].concat();
        keys.seal(&[&front, line, signature.as_bytes(), frames].concat())
    };
    let sealed = match dress % 4 {
        0 => data.to_vec(),
        1 => keys.seal(data),
        2 => {
            let mut line = data.to_vec();
            line.retain(|byte| *byte != b'\n');
            line.push(b'\n');
            stated(&line, &frame(&wal))
        }
        _ => {
            let Some(vault) = open_with(&[]) else { return };
            let line = format!(
                "{{\"format\":1,\"vault_id\":\"{}\",\"wal_piece\":{{\"system_identifier\":\"7\",\"timeline\":1,\
                 \"from\":\"0/3002000\",\"to\":\"0/3002258\",\"segment_bytes\":16777216}},\"blake3\":\"{}\"}}\n",
                vault.id(),
                blake3::hash(&wal)
            );
            stated(line.as_bytes(), data)
        }
    };
    let digest = forge::sha256(&sealed);
    let name = format!("wal/7/00000001/000000010000000000000003/00002000-00002258-01000000.{digest}");
    let Some(vault) = open_with(&[(&name, sealed)]) else { return };
    let reader = vault.wal_reader(Arc::new(keys.identity.clone()));
    let piece = StoredPiece {
        timeline: 1,
        from: Lsn(0x300_2000),
        to: Lsn(0x300_2258),
        sha256: digest,
        stored_at: support::at(0),
    };
    let read = reader.read(SystemIdentifier(7), &piece);
    if let Ok((said, bytes)) = WORLD.forge.runtime.block_on(read) {
        assert!(said.from == piece.from && said.to == piece.to && bytes.len() == 600);
    }
}

/// What a vault says of itself.
pub fn vault_json(data: &[u8]) {
    if let Some(vault) = open_with(&[("vault.json", data.to_vec())]) {
        assert!(!vault.recipients().is_empty() && !vault.allowed_signers().is_empty());
    }
}

/// A later generation of keys.
pub fn generation(data: &[u8]) {
    let keys = &WORLD.forge.keys;
    let (dress, data) = dressed(data);
    let mut bytes = data.to_vec();
    if dress % 2 == 1 {
        bytes.retain(|byte| *byte != b'\n');
        bytes.push(b'\n');
        let mac = hex::encode(keys.mac(&bytes));
        let line = format!(
            "{{\"mac\":{{\"writer_key\":\"{}\",\"blake3\":\"{mac}\"}}}}\n",
            keys.key_id()
        );
        bytes.extend_from_slice(line.as_bytes());
    }
    if let Some(vault) = open_with(&[("keys/generations/2.jsonl", bytes)]) {
        assert!(vault.key_generation() == 2 && !vault.recipients().is_empty());
    }
}

/// A receipt that is signed, or its signature.
pub fn receipt(data: &[u8]) {
    let (dress, data) = dressed(data);
    let good = std::fs::read(forge::testdata().join("vectors/receipt/valid-a-backup")).unwrap();
    let (receipt, signature) = match dress % 2 {
        0 => {
            let signed = WORLD.signing_key.sign("receipt@strongroom", HashAlg::Sha512, data);
            let signature = signed.and_then(|signature| signature.to_pem(LineEnding::LF));
            (data.to_vec(), signature.unwrap().into_bytes())
        }
        _ => (good.clone(), data.to_vec()),
    };
    let (object, signed) = (
        format!("backups/{BACKUP_ID}/receipt.json"),
        format!("backups/{BACKUP_ID}/a1/receipt.json.sig"),
    );
    let objects = [(object.as_str(), receipt), (signed.as_str(), signature)];
    if let Some(vault) = open_with(&objects) {
        let id: BackupId = BACKUP_ID.parse().unwrap();
        if let Ok(Some(found)) = WORLD.forge.runtime.block_on(vault.receipt(&id)) {
            assert_eq!(found.receipt.backup_id, id);
        }
    }
}
