//! The vectors of WAL: a piece, and the history file of a timeline.

use std::io;
use std::sync::Arc;

use serde_json::{Value, json};
use ssh_key::{HashAlg, PrivateKey};
use strongroom_proto::wal::{Lsn, SystemIdentifier, WalSegment, WalSource};
use strongroom_vault::*;

use crate::document_vectors::{NAMESPACE, base_with, signed, told, vault_json};
use crate::forge::*;
use crate::support::*;
use crate::vectors::{check, flipped, forge, invalid, valid};

const SYSTEM: SystemIdentifier = SystemIdentifier(7_412_345_678_901_234_567);

fn failed(error: &io::Error) -> String {
    match ReadError::in_io_error(error) {
        Some(error) => told(error),
        None => told(error),
    }
}

/// The plaintext of an object: a statement, its signature, and frames.
fn stated(statement: &str, signature: &str, frames: &[u8]) -> Vec<u8> {
    let length = (statement.len() + signature.len()) as u32;
    let front = [&[0x50, 0x2a, 0x4d, 0x18], &length.to_le_bytes()[..]].concat();
    [&front, statement.as_bytes(), signature.as_bytes(), frames].concat()
}

/// A signed and sealed object.
fn object(forge: &Forge, statement: &Value, frames: &[u8]) -> Vec<u8> {
    let line = format!("{statement}\n");
    let signature = signed(forge, NAMESPACE, HashAlg::Sha512, line.as_bytes());
    forge.keys.seal(&stated(&line, &signature, frames))
}

fn with(statement: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = statement.clone();
    *changed.pointer_mut(pointer).unwrap() = value;
    changed
}

fn statement(of: &str, what: Value, bytes: &[u8]) -> Value {
    let vault: Value = serde_json::from_str(&vault_json()).unwrap();
    let digest = blake3::hash(bytes).to_hex().to_string();
    json!({"format": 1, "vault_id": vault["vault_id"], of: what, "blake3": digest})
}

#[test]
fn pieces() {
    let forge = forge();
    let text = rows(1, 1_000);
    let wal = text[..600].to_vec();
    let said = statement(
        "wal_piece",
        json!({
            "system_identifier": SYSTEM, "timeline": 1, "from": "0/3002000", "to": "0/3002258",
            "segment_bytes": 16_777_216, "server_time": "2026-11-21T10:00:00Z",
        }),
        &wal,
    );
    let of = |said: &Value| object(&forge, said, &frame(&wal));
    let changed = |pointer, value| of(&with(&said, pointer, value));
    let mut without_time = said.clone();
    without_time["wal_piece"].as_object_mut().unwrap().remove("server_time");
    let mut later = said.clone();
    later["later"] = json!(1);
    let line = format!("{said}\n");
    let signature = signed(&forge, NAMESPACE, HashAlg::Sha512, line.as_bytes());
    let stranger = Signer::generate("test@testdata").unwrap();
    let stranger = PrivateKey::from_openssh(stranger.to_openssh().unwrap().as_str()).unwrap();
    let by_stranger = stranger.sign(NAMESPACE, HashAlg::Sha512, line.as_bytes()).unwrap();
    let by_stranger = by_stranger.to_pem(ssh_key::LineEnding::LF).unwrap();
    let of_namespace = signed(&forge, "file", HashAlg::Sha512, line.as_bytes());
    let plain = |plain: Vec<u8>| forge.keys.seal(&plain);
    let good = of(&said);
    let long_line = format!("{line}{}\n", " ".repeat(70_000));
    let vectors = vec![
        valid("some-wal", good.clone()),
        valid("without-a-time", of(&without_time)),
        valid("unknown-field", of(&later)),
        invalid("empty", b"", "cannot be decoded"),
        invalid("cut", &good[..good.len() - 1], "cannot be decoded"),
        invalid("flipped", flipped(&good, good.len() - 100), "cannot be decoded"),
        invalid(
            "not-sealed",
            stated(&line, &signature, &frame(&wal)),
            "cannot be decoded",
        ),
        invalid(
            "empty-inside",
            plain(Vec::new()),
            "does not begin with a signed statement",
        ),
        invalid(
            "no-statement",
            plain(frame(&wal)),
            "does not begin with a signed statement",
        ),
        invalid(
            "statement-cut",
            plain(stated(&line, &signature, b"")[..200].to_vec()),
            "does not begin with a signed statement",
        ),
        invalid(
            "statement-too-long",
            plain(stated(&long_line, &signature, &frame(&wal))),
            "does not begin with a signed statement",
        ),
        invalid(
            "statement-without-a-line",
            plain(stated(line.trim(), "", &frame(&wal))),
            "does not begin with a signed statement",
        ),
        invalid("no-signature", plain(stated(&line, "", &frame(&wal))), "signature"),
        invalid(
            "by-a-stranger",
            plain(stated(&line, &by_stranger, &frame(&wal))),
            "signature",
        ),
        invalid(
            "of-another-namespace",
            plain(stated(&line, &of_namespace, &frame(&wal))),
            "signature",
        ),
        invalid(
            "signature-of-another-statement",
            plain(stated(
                &line.replace("0/3002258", "0/3002259"),
                &signature,
                &frame(&wal),
            )),
            "signature",
        ),
        invalid("of-a-newer-format", changed("/format", json!(2)), "has format 2"),
        invalid("of-no-format", changed("/format", json!("one")), "names no format"),
        invalid(
            "of-another-vault",
            changed("/vault_id", json!("01993f6e-0000-7000-8000-000000000000")),
            "was written for vault 01993f6e-0000",
        ),
        invalid(
            "of-another-cluster",
            changed("/wal_piece/system_identifier", json!("7")),
            "of cluster 7 ",
        ),
        invalid(
            "of-another-timeline",
            changed("/wal_piece/timeline", json!(2)),
            "segment 00000002",
        ),
        invalid(
            "of-an-earlier-place",
            changed("/wal_piece/from", json!("0/3000000")),
            "from 0/3000000",
        ),
        invalid(
            "of-a-later-end",
            changed("/wal_piece/to", json!("0/3002259")),
            "to 0/3002259",
        ),
        invalid(
            "of-other-segments",
            changed("/wal_piece/segment_bytes", json!(1 << 20)),
            "was written for",
        ),
        invalid(
            "place-no-lsn",
            changed("/wal_piece/from", json!("x")),
            "is not a place in WAL",
        ),
        invalid(
            "other-bytes",
            object(&forge, &said, &frame(&rows(2, 1_000)[..600])),
            "not those that were signed",
        ),
        invalid(
            "bytes-missing",
            object(&forge, &said, &frame(&wal[..599])),
            "another length",
        ),
        invalid(
            "bytes-more",
            object(&forge, &said, &frame(&text[..601])),
            "cannot be decoded",
        ),
        invalid(
            "a-bomb",
            object(&forge, &said, &frame(&vec![0; 64 << 20])),
            "cannot be decoded",
        ),
        invalid("no-frame", object(&forge, &said, b""), "another length"),
        invalid(
            "frame-cut",
            object(&forge, &said, &frame(&wal)[..30]),
            "cannot be decoded",
        ),
    ];
    check("wal-piece", vectors, |bytes| {
        let digest = sha256(bytes);
        let name = format!("wal/{SYSTEM}/00000001/000000010000000000000003/00002000-00002258-01000000.{digest}");
        let memory = base_with(&forge, &[(&name, bytes)]);
        forge.runtime.block_on(async {
            let vault = Vault::open(in_memory(&memory)).await.unwrap();
            let reader = vault.wal_reader(Arc::new(forge.keys.identity.clone()));
            let segment = WalSegment::holding(1, Lsn(0x300_2000), 16 << 20);
            let found = reader.segment_pieces(SYSTEM, segment).await.unwrap();
            let read = reader.read(SYSTEM, &found[0]).await;
            let (piece, bytes) = read.map_err(|error| failed(&error))?;
            Ok(vec![
                serde_json::to_string(&piece).unwrap(),
                format!("{} bytes, blake3 {}", bytes.len(), blake3::hash(&bytes)),
            ])
        })
    });
}

#[test]
fn histories() {
    let forge = forge();
    let text = b"1\t0/3004000\tno recovery target specified\n";
    let what = json!({"system_identifier": SYSTEM, "timeline": 2, "bytes": text.len()});
    let said = statement("wal_history", what, text);
    let of = |said: &Value, text: &[u8]| object(&forge, said, &frame(text));
    let said_of = |text: &[u8]| {
        let what = json!({"system_identifier": SYSTEM, "timeline": 2, "bytes": text.len()});
        statement("wal_history", what, text)
    };
    let piece = json!({
        "system_identifier": SYSTEM, "timeline": 2, "from": "0/3000000", "to": "0/300002B",
        "segment_bytes": 16_777_216,
    });
    let vectors = vec![
        valid("one-ancestor", of(&said, text)),
        valid("empty-text", of(&said_of(b""), b"")),
        invalid(
            "of-another-timeline",
            of(&with(&said, "/wal_history/timeline", json!(3)), text),
            "the history of timeline 3",
        ),
        invalid(
            "a-piece",
            of(&statement("wal_piece", piece, text), text),
            "WAL segment 00000002",
        ),
        invalid("not-utf-8", of(&said_of(b"\xff"), b"\xff"), "cannot be decoded"),
        invalid(
            "longer-than-any",
            of(&with(&said, "/wal_history/bytes", json!(8 << 20)), text),
            "longer than any such object",
        ),
        invalid(
            "longer-than-said",
            of(&with(&said, "/wal_history/bytes", json!(10)), text),
            "cannot be decoded",
        ),
    ];
    check("wal-history", vectors, |bytes| {
        let name = format!("wal/{SYSTEM}/00000002/history/{}", sha256(bytes));
        let memory = base_with(&forge, &[(&name, bytes)]);
        forge.runtime.block_on(async {
            let vault = Vault::open(in_memory(&memory)).await.unwrap();
            let reader = vault.wal_reader(Arc::new(forge.keys.identity.clone()));
            let history = reader.history(SYSTEM, 2).await.map_err(|error| failed(&error))?;
            Ok(vec![format!("{:?}", history.unwrap())])
        })
    });
}
