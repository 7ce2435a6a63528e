//! The vectors of what lies in a vault unsealed, and of the numbers that follow from a writer key.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde_json::json;
use ssh_key::{HashAlg, LineEnding, PrivateKey};
use strongroom_proto::BackupId;
use strongroom_vault::*;

use crate::forge::*;
use crate::support::*;
use crate::vectors::{check, flipped, folder, forge, invalid, valid};

pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The vault of the test keys, with these objects instead of or beside its own.
pub(crate) fn base_with(forge: &Forge, objects: &[(&str, &[u8])]) -> Arc<InMemory> {
    let memory = Arc::new(InMemory::new());
    let base = testdata().join("vectors/base");
    forge.runtime.block_on(async {
        for name in crate::support::objects(&base) {
            let bytes = std::fs::read(base.join(&name)).unwrap();
            memory.put(&Path::from(name), bytes.into()).await.unwrap();
        }
        for (name, bytes) in objects {
            memory.put(&Path::from(*name), bytes.to_vec().into()).await.unwrap();
        }
    });
    memory
}

fn describe(vault: &Vault) -> Vec<String> {
    let mut lines = vec![
        format!("vault {}", vault.id()),
        format!(
            "writer key {}, generation {}",
            vault.writer_key_id(),
            vault.key_generation()
        ),
    ];
    lines.extend(
        vault
            .recipients()
            .iter()
            .map(|recipient| format!("recipient {recipient}")),
    );
    lines.extend(vault.allowed_signers().lines().map(|signer| format!("signer {signer}")));
    lines
}

pub(crate) fn vault_json() -> String {
    std::fs::read_to_string(testdata().join("vectors/base/vault.json")).unwrap()
}

#[test]
fn vault_descriptions() {
    let forge = forge();
    let good = vault_json();
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} in {good}");
        good.replacen(from, to, 1)
    };
    let recipient = forge.keys.recipient();
    let other = recipient.replace("age1", "age1q");
    let vectors = vec![
        valid("made", good.clone()),
        valid(
            "unknown-field",
            changed("\"format\": 1,", "\"format\": 1,\n  \"later\": [],"),
        ),
        invalid("empty", b"", "EOF"),
        invalid("cut", &good.as_bytes()[..good.len() / 2], "EOF"),
        invalid("more-after-it", format!("{good}{{}}"), "trailing"),
        invalid("no-text", [b"\xff", good.as_bytes()].concat(), "expected value"),
        invalid("no-format", changed("\"format\": 1,", ""), "names no format"),
        invalid("format-2", changed("\"format\": 1", "\"format\": 2"), "format 2"),
        invalid(
            "format-as-text",
            changed("\"format\": 1", "\"format\": \"1\""),
            "names no format",
        ),
        invalid(
            "another-chunker",
            changed("fastcdc-v2020", "fastcdc-v2016"),
            "the chunker",
        ),
        invalid("larger-chunks", changed("4194304", "4194306"), "the chunker"),
        invalid("no-recipients", changed(&format!("\"{recipient}\""), ""), "recipient"),
        invalid("recipient-mistyped", changed(&recipient, &other), "recipient"),
        invalid(
            "no-vault-id",
            changed("vault_id", "vault_name"),
            "missing field `vault_id`",
        ),
        invalid(
            "vault-id-no-uuid",
            changed("\"vault_id\": \"", "\"vault_id\": \"x"),
            "invalid",
        ),
        invalid(
            "no-writer-key-id",
            changed("writer_key_id", "writer_key_name"),
            "missing field `writer_key_id`",
        ),
    ];
    check("vault.json", vectors, |bytes| {
        let memory = base_with(&forge, &[("vault.json", bytes)]);
        let opened = forge.runtime.block_on(Vault::open(in_memory(&memory)));
        opened.map(|vault| describe(&vault)).map_err(|error| told(&error))
    });
}

#[test]
fn generations_of_keys() {
    let forge = forge();
    let good_vault: serde_json::Value = serde_json::from_str(&vault_json()).unwrap();
    let line = json!({
        "format": 1,
        "vault_id": good_vault["vault_id"],
        "generation": 2,
        "previous": sha256(vault_json().as_bytes()),
        "created_at": "2027-11-21T10:00:00Z",
        "recipients": [forge.keys.recipient()],
        "writer_key_id": forge.keys.key_id(),
        "signers": good_vault["signers"],
        "writer_keys": [],
        "reason": "a test",
    });
    let mac_of = |line: &str, key: &str, mac: &str| {
        format!("{line}{{\"mac\":{{\"writer_key\":\"{key}\",\"blake3\":\"{mac}\"}}}}\n")
    };
    let with_mac = |line: &serde_json::Value| {
        let text = format!("{line}\n");
        mac_of(
            &text,
            &forge.keys.key_id(),
            &hex::encode(forge.keys.mac(text.as_bytes())),
        )
    };
    let good = with_mac(&line);
    let changed = |field: &str, value: serde_json::Value| {
        let mut line = line.clone();
        line[field] = value;
        with_mac(&line)
    };
    let without_mac = format!("{line}\n");
    let spaced = good.replace("{\"mac\":", "{ \"mac\":");
    let twice = format!("{good}{}", &good[without_mac.len()..]);
    let vectors = vec![
        valid("the-same-keys", good.clone()),
        invalid("empty", b"", "cut short"),
        invalid("line-cut", &good.as_bytes()[..100], "cut short"),
        invalid("no-mac", without_mac.clone(), "lacks a MAC"),
        invalid(
            "mac-of-another-key",
            mac_of(&without_mac, "0123456789abcdef", &"00".repeat(32)),
            "lacks a MAC",
        ),
        invalid("mac-not-as-written", spaced, "MACs cannot be read"),
        invalid("mac-cut", good.trim_end(), "MACs cannot be read"),
        invalid("mac-twice", twice, "lacks a MAC"),
        invalid("more-after-it", format!("{good}\n"), "MACs cannot be read"),
        invalid("format-2", changed("format", json!(2)), "format 2"),
        invalid(
            "of-another-vault",
            changed("vault_id", json!("01993f6e-0000-7000-8000-000000000000")),
            "01993f6e",
        ),
        invalid("of-another-number", changed("generation", json!(3)), "generation 3"),
        invalid(
            "after-another",
            changed("previous", json!("00".repeat(32))),
            "does not follow",
        ),
        invalid("no-recipients", changed("recipients", json!([])), "recipient"),
        invalid("no-signers", changed("signers", json!([])), "names no signer"),
    ];
    check("generation", vectors, |bytes| {
        let memory = base_with(&forge, &[("keys/generations/2.jsonl", bytes)]);
        let opened = forge.runtime.block_on(Vault::open(in_memory(&memory)));
        opened.map(|vault| describe(&vault)).map_err(|error| told(&error))
    });
    // One whose MAC is wrong opens, for that takes no key, and stops whoever holds the key.
    let (kept, _) = good.split_at(good.len() - 5);
    let forged = format!("{kept}0{}", &good[good.len() - 4..]);
    let forged = if forged == good {
        format!("{kept}1{}", &good[good.len() - 4..])
    } else {
        forged
    };
    let memory = base_with(&forge, &[("keys/generations/2.jsonl", forged.as_bytes())]);
    let vault = forge.runtime.block_on(Vault::open(in_memory(&memory))).unwrap();
    let index = Arc::new(ChunkIndex::new(&vault, &forge.keys.writer_key));
    let begun = BackupWriter::begin(
        &vault,
        &forge.keys.writer_key,
        index,
        BACKUP_ID.parse().unwrap(),
        strongroom_proto::Attempt::FIRST,
        forge.runtime.handle().clone(),
    );
    assert!(matches!(begun, Err(WriteError::Vault { .. })), "{begun:?}");
}

pub(crate) fn signed(forge: &Forge, namespace: &str, hash: HashAlg, bytes: &[u8]) -> String {
    let text = std::fs::read_to_string(testdata().join("test-keys/signer")).unwrap();
    let key = PrivateKey::from_openssh(text).unwrap();
    assert_eq!(
        key.public_key().key_data(),
        ssh_key::PublicKey::from_openssh(&forge.keys.signer.public_line().unwrap())
            .unwrap()
            .key_data()
    );
    key.sign(namespace, hash, bytes)
        .unwrap()
        .to_pem(LineEnding::LF)
        .unwrap()
}

fn read_receipt(forge: &Forge, receipt: &[u8], signature: &[u8]) -> Result<Vec<String>, String> {
    let (object, signed) = (
        format!("backups/{BACKUP_ID}/receipt.json"),
        format!("backups/{BACKUP_ID}/a1/receipt.json.sig"),
    );
    let memory = base_with(forge, &[(&object, receipt), (&signed, signature)]);
    let id: BackupId = BACKUP_ID.parse().unwrap();
    forge.runtime.block_on(async {
        let vault = Vault::open(in_memory(&memory)).await.unwrap();
        let found = vault.receipt(&id).await.map_err(|error| told(&error))?.unwrap();
        let receipt = found.receipt;
        Ok(vec![
            format!(
                "{} of {}, attempt {}",
                receipt.backup_id, receipt.target, receipt.attempt
            ),
            format!(
                "{:?}, {} artifacts, sha256 {}",
                receipt.status,
                receipt.artifacts.len(),
                found.sha256
            ),
        ])
    })
}

fn good_receipt(forge: &Forge) -> String {
    let memory = base_with(forge, &[]);
    let vault = forge.runtime.block_on(Vault::open(in_memory(&memory))).unwrap();
    let receipt = receipt(&vault, &BACKUP_ID.parse().unwrap(), Vec::new());
    serde_json::to_string_pretty(&receipt).unwrap() + "\n"
}

pub(crate) const NAMESPACE: &str = "receipt@strongroom";

#[test]
fn receipts() {
    let forge = forge();
    let good = good_receipt(&forge);
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} in {good}");
        good.replacen(from, to, 1)
    };
    let vault: serde_json::Value = serde_json::from_str(&vault_json()).unwrap();
    let vectors = vec![
        valid("a-backup", good.clone()),
        valid(
            "in-one-line",
            serde_json::from_str::<serde_json::Value>(&good).unwrap().to_string(),
        ),
        valid("unknown-field", changed("\"notes\"", "\"later\": 1,\n  \"notes\"")),
        invalid("empty", b"", "EOF"),
        invalid("cut", &good.as_bytes()[..good.len() / 2], "EOF"),
        invalid(
            "of-another-backup",
            changed(BACKUP_ID, &BACKUP_ID.replace("0000Z-0", "0000Z-1")),
            "bkp-20270115",
        ),
        invalid("backup-id-with-a-path", changed(BACKUP_ID, "../../x"), "expected bkp-"),
        invalid(
            "of-another-vault",
            changed(
                vault["vault_id"].as_str().unwrap(),
                "01993f6e-0000-7000-8000-000000000000",
            ),
            "01993f6e",
        ),
        invalid(
            "status-unknown",
            changed("\"status\": \"success\"", "\"status\": \"fine\""),
            "unknown variant",
        ),
        invalid(
            "no-attempt",
            changed("\"attempt\"", "\"attempts\""),
            "missing field `attempt`",
        ),
        invalid(
            "another-attempt",
            changed("\"attempt\": 1", "\"attempt\": 2"),
            "a2/receipt.json.sig is missing",
        ),
    ];
    check("receipt", vectors, |bytes| {
        let signature = signed(&forge, NAMESPACE, HashAlg::Sha512, bytes);
        read_receipt(&forge, bytes, signature.as_bytes())
    });
}

#[test]
fn signatures() {
    let forge = forge();
    // Signatures are over bytes: those that are kept with the receipts.
    let kept = folder("receipt").join("valid-a-backup");
    if !kept.exists() && is_updating() {
        std::fs::create_dir_all(folder("receipt")).unwrap();
        std::fs::write(&kept, good_receipt(&forge)).unwrap();
    }
    let receipt = std::fs::read(kept).unwrap();
    let good = signed(&forge, NAMESPACE, HashAlg::Sha512, &receipt);
    let stranger = Signer::generate("test@testdata").unwrap();
    let stranger = PrivateKey::from_openssh(stranger.to_openssh().unwrap().as_str()).unwrap();
    let by_stranger = stranger.sign(NAMESPACE, HashAlg::Sha512, &receipt).unwrap();
    let by_stranger = by_stranger.to_pem(LineEnding::LF).unwrap();
    let middle = good.len() / 2;
    let words = "signature";
    let vectors = vec![
        valid("ssh-keygen", good.clone()),
        invalid("empty", b"", words),
        invalid("no-armor", b"signed, me\n", words),
        invalid("cut", &good.as_bytes()[..good.len() - 1], words),
        invalid("longer", format!("{good}\n"), words),
        invalid("twice", format!("{good}{good}"), words),
        invalid("flipped", flipped(good.as_bytes(), middle), words),
        invalid("other-line-ends", good.replace('\n', "\r\n"), words),
        invalid("by-a-stranger", by_stranger, words),
        invalid(
            "of-other-bytes",
            signed(&forge, NAMESPACE, HashAlg::Sha512, b"other"),
            words,
        ),
        invalid(
            "of-another-namespace",
            signed(&forge, "file", HashAlg::Sha512, &receipt),
            words,
        ),
    ];
    check("signature", vectors, |bytes| read_receipt(&forge, &receipt, bytes));
}

#[test]
fn writer_keys() {
    // It makes the folder of test keys.
    let forge = forge();
    let digits = "07".repeat(32);
    let tag = "STRONGROOM-WRITER-KEY-1";
    let vectors = vec![
        valid("one-line", format!("{tag} {digits}\n")),
        valid("without-a-line-end", format!("{tag} {digits}")),
        valid("line-end-of-windows", format!("{tag} {digits}\r\n")),
        invalid("empty", b"", "writer key"),
        invalid("only-digits", digits.clone(), "writer key"),
        invalid("too-short", format!("{tag} {}\n", &digits[2..]), "writer key"),
        invalid("too-long", format!("{tag} {digits}07\n"), "writer key"),
        invalid("no-hex", format!("{tag} {}zz\n", &digits[2..]), "writer key"),
        invalid(
            "of-another-version",
            format!("STRONGROOM-WRITER-KEY-2 {digits}\n"),
            "writer key",
        ),
        invalid(
            "an-identity",
            "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQS3N8GAD\n",
            "writer key",
        ),
        invalid("two-keys", format!("{tag} {digits}\n{tag} {digits}\n"), "writer key"),
    ];
    check("writer-key", vectors, |bytes| {
        let parsed = WriterKey::parse(std::str::from_utf8(bytes).unwrap());
        let key = parsed.map_err(|error| told(&error))?;
        Ok(vec![format!("key id {}", key.key_id())])
    });
    assert_eq!(forge.keys.writer_key.key_id(), forge.keys.key_id());
}

/// Ten megabytes that anybody can make again: the BLAKE3 of nothing, keyed with 32 bytes of 7, as long as it takes.
fn reproducible(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new_keyed(&[7; 32]).finalize_xof().fill(&mut out);
    out
}

#[test]
fn ids_macs_and_cuts() {
    let forge = forge();
    let contents: [(&str, Vec<u8>); 4] = [
        ("nothing", Vec::new()),
        ("abc", b"abc".to_vec()),
        ("a MiB of zeros", vec![0; 1 << 20]),
        ("4 MiB of the stream of cuts", reproducible(4 << 20)),
    ];
    let named = |each: &dyn Fn(&[u8]) -> String| {
        let pairs = contents
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), json!(each(bytes))));
        pairs.collect::<serde_json::Map<_, _>>()
    };
    let stream = reproducible(10_000_000);
    let cutter = fastcdc::v2020::FastCDC::new(&stream, 524_288, 1_048_576, 4_194_304);
    let cuts: Vec<usize> = cutter.map(|chunk| chunk.length).collect();
    let found = json!({
        "writer_key": "test-keys/writer-key",
        "key_id": forge.keys.key_id(),
        "chunk_ids": named(&|bytes| forge.keys.chunk_id(bytes)),
        "macs": named(&|bytes| hex::encode(forge.keys.mac(bytes))),
        "cuts": { "stream": "BLAKE3 keyed with 32 bytes of 7, of nothing, extended to 10,000,000 bytes", "lengths": cuts },
    });
    let kept = testdata().join("vectors/values.json");
    if is_updating() && !kept.exists() {
        std::fs::write(&kept, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let expected: serde_json::Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert_eq!(found, expected);

    // The vault comes to the same: it stores these chunks under these ids, in pieces of these lengths.
    let memory = base_with(&forge, &[]);
    let vault = forge.runtime.block_on(Vault::open(in_memory(&memory))).unwrap();
    let index = Arc::new(ChunkIndex::new(&vault, &forge.keys.writer_key));
    let id: BackupId = BACKUP_ID.parse().unwrap();
    let handle = forge.runtime.handle().clone();
    let attempt = strongroom_proto::Attempt::FIRST;
    let mut writer = BackupWriter::begin(&vault, &forge.keys.writer_key, index, id, attempt, handle).unwrap();
    put_all(&mut writer, &[file("stream", stream.clone())]).unwrap();
    writer.finish().unwrap();
    let lines = index_lines(&forge, &memory);
    let mut at = 0;
    for length in cuts {
        let id = forge.keys.chunk_id(&stream[at..at + length]);
        let line = lines.iter().find(|line| line["chunk"] == id.as_str());
        assert_eq!(line.map(|line| line["raw"].as_u64()), Some(Some(length as u64)));
        at += length;
    }
    assert_eq!(at, stream.len());
}

fn index_lines(forge: &Forge, memory: &Arc<InMemory>) -> Vec<serde_json::Value> {
    use futures::TryStreamExt;
    use object_store::ObjectStore;
    let bytes = forge.runtime.block_on(async {
        let listed: Vec<_> = memory.list(Some(&Path::from("index"))).try_collect().await.unwrap();
        assert_eq!(listed.len(), 1);
        memory.get(&listed[0].location).await.unwrap().bytes().await.unwrap()
    });
    let (frame, mac_frame) = bytes.split_at(bytes.len() - 40);
    assert_eq!(mac_frame[8..], forge.keys.mac(frame));
    let text = zstd::stream::decode_all(frame).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with(&forge.keys.index_header()));
    text.lines()
        .skip(1)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
