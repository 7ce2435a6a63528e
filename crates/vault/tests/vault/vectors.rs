//! The objects in `testdata/vectors`: every valid one decodes to what it should, every invalid one is refused for its
//! own reason. `UPDATE_TESTDATA=1` makes those that are missing; one that was released is never made again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strongroom_vault::*;

use crate::forge::*;
use crate::support::*;

/// A vector, and the words its refusal says; none where it is valid.
pub(crate) struct Vector {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) refused: Option<&'static str>,
}

pub(crate) fn valid(name: &'static str, bytes: impl Into<Vec<u8>>) -> Vector {
    Vector {
        name,
        bytes: bytes.into(),
        refused: None,
    }
}

pub(crate) fn invalid(name: &'static str, bytes: impl Into<Vec<u8>>, words: &'static str) -> Vector {
    Vector {
        refused: Some(words),
        ..valid(name, bytes)
    }
}

pub(crate) fn folder(kind: &str) -> PathBuf {
    testdata().join("vectors").join(kind)
}

/// Decodes every vector of a kind; what the valid ones decode to is kept beside them in `expected.txt`.
pub(crate) fn check(kind: &str, vectors: Vec<Vector>, decode: impl Fn(&[u8]) -> Result<Vec<String>, String>) {
    let folder = folder(kind);
    if is_updating() {
        std::fs::create_dir_all(&folder).unwrap();
        for vector in &vectors {
            let path = folder.join(file_name(vector));
            if !path.exists() {
                std::fs::write(path, &vector.bytes).unwrap();
            }
        }
    }
    let mut expected_names: Vec<String> = vectors.iter().map(file_name).collect();
    expected_names.push("expected.txt".to_owned());
    expected_names.sort();
    let (mut decoded, mut wrong) = (BTreeMap::new(), Vec::new());
    for vector in &vectors {
        let name = file_name(vector);
        let bytes = std::fs::read(folder.join(&name)).unwrap_or_else(|error| panic!("{kind}/{name}: {error}"));
        match (decode(&bytes), vector.refused) {
            (Ok(lines), None) => drop(decoded.insert(name, lines)),
            (Err(error), Some(words)) if error.contains(words) => {}
            (outcome, _) => wrong.push(format!("{kind}/{name}: {outcome:.300?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut text = String::new();
    for (name, lines) in decoded {
        text += &format!("{name}\n");
        lines.iter().for_each(|line| text += &format!("  {line}\n"));
    }
    let expected = folder.join("expected.txt");
    if is_updating() && !expected.exists() {
        std::fs::write(&expected, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(expected).unwrap(), "{kind}");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|found| found.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, expected_names, "every file in {kind} is tested");
}

fn file_name(vector: &Vector) -> String {
    let kind = if vector.refused.is_some() { "invalid" } else { "valid" };
    format!("{kind}-{}", vector.name)
}

/// The forge of the vectors: a vault of the test keys without any backup.
pub(crate) fn forge() -> Forge {
    // Several tests need it, and only one may make it.
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _making = MAKING.lock().unwrap();
    let base = testdata().join("vectors/base");
    if is_updating() && !base.exists() {
        let runtime = runtime();
        let keys = testdata().join("test-keys");
        std::fs::create_dir_all(&keys).unwrap();
        let (writer_key, (identity, recipient)) = (WriterKey::generate(), Identity::generate());
        let signer = Signer::generate("test@testdata").unwrap();
        std::fs::write(keys.join("writer-key"), writer_key.serialize().as_bytes()).unwrap();
        std::fs::write(keys.join("identity"), identity.as_bytes()).unwrap();
        std::fs::write(keys.join("signer"), signer.to_openssh().unwrap().as_bytes()).unwrap();
        let new = NewVault {
            recipients: vec![recipient],
            writer_key: &writer_key,
            signers: vec![("test@testdata".to_owned(), signer.public_line().unwrap())],
        };
        std::fs::create_dir_all(&base).unwrap();
        runtime.block_on(Vault::create(local(&base), new, at(0))).unwrap();
        for empty in ["probe", "staging"] {
            let _ = std::fs::remove_dir(base.join(empty));
        }
    }
    Forge::new(base)
}

pub(crate) fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

#[test]
fn every_kind_of_vector_is_tested_and_every_file_belongs_to_one() {
    let mut found: Vec<String> = std::fs::read_dir(testdata().join("vectors"))
        .unwrap()
        .map(|found| found.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let expected = [
        "base",
        "entries",
        "generation",
        "index",
        "manifest",
        "pack-of-the-index-vectors",
        "packs",
        "receipt",
        "signature",
        "values.json",
        "vault.json",
        "wal-history",
        "wal-piece",
        "writer-key",
    ];
    assert_eq!(found, expected);
    let is_key = |path: &Path| path.is_file();
    assert!(
        ["identity", "signer", "writer-key"]
            .iter()
            .all(|key| is_key(&testdata().join("test-keys").join(key)))
    );
}
