//! Objects of a vault made by hand, from `docs/format.md` and stock crates alone: valid ones that owe nothing to the code
//! under test, and invalid ones that no writer of ours makes.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use strongroom_proto::manifest::{Entry, EntrySink, EntrySource};
use strongroom_proto::receipt::{Artifact, BackupReceipt, Totals};
use strongroom_proto::{Attempt, BackupId, JobId, Sha256Digest};
use strongroom_vault::*;
use tokio::runtime::Runtime;

use crate::support::*;

pub(crate) fn testdata() -> PathBuf {
    PathBuf::from(crate::TESTDATA)
}

/// Whether what is kept in `testdata` is to be made anew before it is tested.
pub(crate) fn is_updating() -> bool {
    std::env::var_os("UPDATE_TESTDATA").is_some()
}

/// The keys of everything in `testdata`; they protect nothing.
pub(crate) struct TestKeys {
    pub(crate) writer_key: WriterKey,
    pub(crate) identity: Identity,
    pub(crate) signer: Signer,
    raw: [u8; 32],
    recipient: age::x25519::Recipient,
}

impl TestKeys {
    pub(crate) fn read() -> Self {
        let text = |name: &str| std::fs::read_to_string(testdata().join("test-keys").join(name)).unwrap();
        let (writer_key, identity) = (text("writer-key"), text("identity"));
        let identity = Identity::from_file_text(&identity).unwrap();
        let mut raw = [0; 32];
        hex::decode_to_slice(writer_key.trim().rsplit(' ').next().unwrap(), &mut raw).unwrap();
        Self {
            writer_key: WriterKey::parse(&writer_key).unwrap(),
            recipient: identity.recipients()[0].parse().unwrap(),
            identity,
            signer: Signer::from_openssh(&text("signer"), "test@testdata").unwrap(),
            raw,
        }
    }

    pub(crate) fn recipient(&self) -> String {
        self.recipient.to_string()
    }

    fn keyed(&self, context: &str, bytes: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&blake3::derive_key(context, &self.raw), bytes).as_bytes()
    }

    pub(crate) fn chunk_id(&self, chunk: &[u8]) -> String {
        hex::encode(self.keyed("strongroom vault format 1: chunk id", chunk))
    }

    pub(crate) fn mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.keyed("strongroom vault format 1: mac", bytes)
    }

    pub(crate) fn key_id(&self) -> String {
        hex::encode(&blake3::derive_key("strongroom vault format 1: writer key id", &self.raw)[..8])
    }

    pub(crate) fn seal(&self, content: &[u8]) -> Vec<u8> {
        seal_to(&self.recipient, content)
    }

    /// An index object of these lines, with a MAC that holds.
    pub(crate) fn index_object(&self, lines: &str) -> Vec<u8> {
        self.with_mac(frame(lines.as_bytes()))
    }

    pub(crate) fn with_mac(&self, mut frame: Vec<u8>) -> Vec<u8> {
        let mac = self.mac(&frame);
        frame.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0]);
        frame.extend_from_slice(&mac);
        frame
    }

    /// The first line of an index object of these keys.
    pub(crate) fn index_header(&self) -> String {
        format!(
            "{{\"index\":{{\"writer_key\":\"{}\",\"generation\":1}}}}\n",
            self.key_id()
        )
    }
}

pub(crate) fn seal_to(recipient: &age::x25519::Recipient, content: &[u8]) -> Vec<u8> {
    let recipient: &dyn age::Recipient = recipient;
    let file = age::Encryptor::with_recipients([recipient].into_iter()).unwrap();
    let mut writer = file.wrap_output(Vec::new()).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

/// A zstd frame with a checksum.
pub(crate) fn frame(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> Sha256Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    Sha256Digest::from_bytes(digest.as_ref().try_into().unwrap())
}

/// The objects of one backup.
#[derive(Clone)]
pub(crate) struct Objects {
    pub(crate) pack: Vec<u8>,
    pub(crate) index: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    /// Made of the digests of the others, where it is not given.
    pub(crate) list: Option<Vec<u8>>,
}

/// A vault in memory that has the test keys, for one backup at a time.
pub(crate) struct Forge {
    pub(crate) keys: TestKeys,
    pub(crate) runtime: Runtime,
    base: PathBuf,
}

/// The id of every backup that is forged: manifests name it.
pub(crate) const BACKUP_ID: &str = "bkp-20270115-080000Z-000000000000";

/// The content of the forged backups, in chunks.
pub(crate) fn chunks() -> [Vec<u8>; 2] {
    [b"hello, vault\n".to_vec(), b"0123456789abcdef".repeat(8_192)]
}

impl Forge {
    /// A forge of backups in a copy of the vault in this folder.
    pub(crate) fn new(base: PathBuf) -> Self {
        Self {
            keys: TestKeys::read(),
            runtime: runtime(),
            base,
        }
    }

    /// A pack of these chunks, and the lines of an index object for it.
    pub(crate) fn pack(&self, chunks: &[&[u8]]) -> (Vec<u8>, String) {
        let mut content = Vec::new();
        let mut places = Vec::new();
        for chunk in chunks {
            let frame = frame(chunk);
            places.push((content.len(), frame.len(), chunk));
            content.extend_from_slice(&frame);
        }
        let pack = self.keys.seal(&content);
        let digest = sha256(&pack);
        let mut lines = self.keys.index_header();
        for (offset, stored, chunk) in places {
            let (id, raw) = (self.keys.chunk_id(chunk), chunk.len());
            lines += &format!(
                "{{\"chunk\":\"{id}\",\"pack\":\"{digest}\",\"offset\":{offset},\"stored\":{stored},\"raw\":{raw}}}\n"
            );
        }
        (pack, lines)
    }

    /// The root of a backup with this entry list, in one chunk.
    pub(crate) fn root(&self, entries: &[u8]) -> String {
        let count = entries
            .split(|byte| *byte == b'\n')
            .filter(|line| line.starts_with(b"{\"entry\""))
            .count();
        let (key, id) = (self.keys.key_id(), self.keys.chunk_id(entries));
        format!(
            r#"{{"format":1,"backup_id":"{BACKUP_ID}","writer_key":"{key}","entries":{count},"content_bytes":0,"chunks":["{id}"]}}"#
        )
    }

    /// The objects of a backup with this entry list.
    pub(crate) fn objects(&self, entries: &[u8]) -> Objects {
        let chunks = chunks();
        let (pack, lines) = self.pack(&[&chunks[0], &chunks[1], entries]);
        Objects {
            pack,
            index: self.keys.index_object(&lines),
            manifest: self.keys.seal(&frame(self.root(entries).as_bytes())),
            list: None,
        }
    }

    /// A vault with this backup, its receipt and signature.
    pub(crate) fn vault_with(&self, objects: &Objects) -> (Arc<InMemory>, Vault, BackupId) {
        let id: BackupId = BACKUP_ID.parse().unwrap();
        let [pack, index, manifest] = [&objects.pack, &objects.index, &objects.manifest].map(|bytes| sha256(bytes));
        let names = [
            format!("backups/{id}/a1/manifest"),
            format!("index/{index}"),
            format!("packs/{}/{pack}", &pack.to_string()[..2]),
        ];
        let list = objects.list.clone().unwrap_or_else(|| {
            let lines = [manifest, index, pack].into_iter().zip(&names);
            lines
                .map(|(digest, name)| format!("{digest}  {name}\n"))
                .collect::<String>()
                .into()
        });
        let mut stored: Vec<(String, Vec<u8>)> = crate::support::objects(&self.base)
            .into_iter()
            .map(|name| (name.clone(), std::fs::read(self.base.join(name)).unwrap()))
            .collect();
        let contents = [&objects.manifest, &objects.index, &objects.pack];
        stored.extend(names.iter().cloned().zip(contents.map(Clone::clone)));
        let list_name = format!("backups/{id}/a1/packs");
        let artifact = |name: &str, bytes: &[u8]| Artifact {
            uri: format!("s3://memory/{name}"),
            sha256: sha256(bytes),
            bytes: bytes.len() as u64,
        };
        let artifacts = vec![artifact(&names[0], &objects.manifest), artifact(&list_name, &list)];
        stored.push((list_name, list));
        let memory = Arc::new(InMemory::new());
        let vault = self.runtime.block_on(async {
            for (name, bytes) in stored {
                memory.put(&ObjectPath::from(name), bytes.into()).await.unwrap();
            }
            let vault = Vault::open(in_memory(&memory)).await.unwrap();
            let receipt = receipt(&vault, &id, artifacts);
            vault.commit(&receipt, &self.keys.signer).await.unwrap();
            vault
        });
        (memory, vault, id)
    }

    /// Reads all of a backup: a line an entry, or why not.
    pub(crate) fn read(&self, objects: &Objects) -> Result<Vec<String>, String> {
        let (_, vault, id) = self.vault_with(objects);
        contents(&self.runtime, &vault, &id, &self.keys.identity)
    }
}

/// What is in a backup: each entry, its length, how much of it are holes, and the digest of what lies between them.
pub(crate) fn contents(
    runtime: &Runtime,
    vault: &Vault,
    id: &BackupId,
    identity: &Identity,
) -> Result<Vec<String>, String> {
    let told = |error: &dyn std::error::Error| {
        let causes = std::iter::successors(Some(error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    let reader = runtime.block_on(vault.open_backup(id, identity));
    let reader = reader.map_err(|error| told(&error))?;
    let mut lines = Vec::new();
    let listed = reader.for_each_entry(&mut |listed| {
        let entry = serde_json::to_string(listed.entry)?;
        lines.push(format!(
            "{entry} {} {} {}",
            listed.bytes, listed.hole_bytes, listed.blake3
        ));
        Ok(())
    });
    let refused = |error: std::io::Error| match ReadError::in_io_error(&error) {
        Some(error) => told(error),
        None => told(&error),
    };
    listed.map_err(refused)?;
    let mut digests = Digests::default();
    reader.replay(&mut digests).map_err(refused)?;
    for (line, digest) in lines.iter().zip(&digests.found) {
        assert!(line.ends_with(&digest.to_string()), "{line} came out as {digest}");
    }
    assert_eq!(lines.len(), digests.found.len());
    Ok(lines)
}

/// The digest of each entry's content without its holes.
#[derive(Default)]
struct Digests {
    hasher: blake3::Hasher,
    found: Vec<blake3::Hash>,
}

impl EntrySink for Digests {
    fn begin(&mut self, _: &Entry) -> std::io::Result<()> {
        self.hasher.reset();
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        Ok(())
    }
    fn hole(&mut self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn end(&mut self) -> std::io::Result<()> {
        self.found.push(self.hasher.finalize());
        Ok(())
    }
}

pub(crate) fn receipt(vault: &Vault, id: &BackupId, artifacts: Vec<Artifact>) -> BackupReceipt {
    BackupReceipt {
        job_id: serde_json::from_str::<JobId>("\"01993f6e-0000-7000-8000-000000000000\"").unwrap(),
        ..a_receipt(
            vault,
            id,
            Attempt::FIRST,
            &Sealed {
                artifacts,
                totals: Totals::default(),
                fragmented_entries: 0,
            },
        )
    }
}
