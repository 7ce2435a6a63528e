//! Generations of keys: who can read and who may write from when on, without a stored byte being rewritten.
//!
//! The first generation is `vault.json`. Each later one is an object of its own, `keys/generations/<n>.jsonl`, created
//! if absent, so that of two rotations at once one wins. Its first line says what is in force and names the digest of
//! the generation before, so that the newest one vouches for all; the lines after it are MACs over the first, made with
//! the writer key of the generation before and, where that changes, with the new one too.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use strongroom_proto::{Sha256Digest, VaultId};

use crate::describe::{Description, FORMAT, KnownSigner};
use crate::error::{KeyError, ReadError};
use crate::keys::{MacKey, Recipient, WriterKey, parse_recipient};
use crate::layout;
use crate::store::{Store, sha256};

/// Generations read at the same time.
const GENERATION_READS: usize = 4;

/// The first line of a generation after the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GenerationLine {
    pub(crate) format: u32,
    pub(crate) vault_id: VaultId,
    pub(crate) generation: u32,
    /// SHA-256 of the generation before, of `vault.json` for the second.
    pub(crate) previous: Sha256Digest,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) recipients: Vec<String>,
    pub(crate) writer_key_id: String,
    pub(crate) signers: Vec<KnownSigner>,
    /// Writer keys that are sealed to these recipients.
    pub(crate) writer_keys: Vec<SealedWriterKey>,
    pub(crate) reason: String,
}

/// A writer key sealed to the recipients of a generation, as an object of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedWriterKey {
    pub(crate) writer_key: String,
    /// SHA-256 of the sealed object.
    pub(crate) sealed: Sha256Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MacLine {
    mac: Mac,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mac {
    writer_key: String,
    blake3: Sha256Digest,
}

/// The text of a generation, with a MAC of each of these keys.
pub(crate) fn encode(line: &GenerationLine, keys: &[&WriterKey]) -> serde_json::Result<Bytes> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    let macs: Vec<MacLine> = keys.iter().map(|key| mac_line(key, &bytes)).collect();
    for mac in macs {
        serde_json::to_writer(&mut bytes, &mac)?;
        bytes.push(b'\n');
    }
    Ok(bytes.into())
}

fn mac_line(key: &WriterKey, line: &[u8]) -> MacLine {
    MacLine {
        mac: Mac {
            writer_key: key.key_id(),
            blake3: Sha256Digest::from_bytes(*key.macs().mac(line).as_bytes()),
        },
    }
}

/// One generation, as it lies in the vault.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    pub(crate) number: u32,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) recipients: Vec<String>,
    pub(crate) sealed_to: Arc<[Recipient]>,
    pub(crate) writer_key_id: String,
    pub(crate) signers: Vec<KnownSigner>,
    pub(crate) writer_keys: Vec<SealedWriterKey>,
    pub(crate) reason: String,
    /// Of its object.
    pub(crate) sha256: Sha256Digest,
    /// What its MACs are over, and the MACs; the first generation has its MAC in an object of its own.
    line: Bytes,
    macs: Vec<Mac>,
}

impl Generation {
    /// The object it lies in.
    pub(crate) fn object(&self) -> String {
        match self.number {
            1 => layout::VAULT.to_owned(),
            number => layout::generation(number),
        }
    }

    /// Whether this key made one of its MACs; `None` where no MAC says that it did.
    pub(crate) fn is_vouched_for_by(&self, key: &WriterKey) -> Option<bool> {
        let id = key.key_id();
        let mac = self.macs.iter().find(|mac| mac.writer_key == id)?;
        Some(holds(&key.macs(), &self.line, &mac.blake3))
    }
}

fn holds(key: &MacKey, line: &[u8], mac: &Sha256Digest) -> bool {
    // The comparison of `blake3::Hash` takes the same time wherever the bytes differ.
    key.mac(line) == blake3::Hash::from_bytes(*mac.as_bytes())
}

/// All generations of a vault, the newest last; never empty.
#[derive(Debug, Clone)]
pub(crate) struct History {
    first: Generation,
    later: Vec<Generation>,
}

impl History {
    /// The first generation alone.
    pub(crate) fn begin(description: &Description, stored: &Bytes) -> Result<Self, KeyError> {
        Ok(Self {
            first: Generation {
                number: 1,
                created_at: description.created_at,
                recipients: description.recipients.clone(),
                sealed_to: parse_recipients(&description.recipients)?,
                writer_key_id: description.writer_key_id.clone(),
                signers: description.signers.clone(),
                writer_keys: Vec::new(),
                reason: "the vault was made".to_owned(),
                sha256: sha256(stored),
                line: stored.clone(),
                macs: Vec::new(),
            },
            later: Vec::new(),
        })
    }

    /// Reads the generations that came since; an error where one is missing or does not follow the one before.
    pub(crate) async fn read_later(&mut self, store: &Store, vault: VaultId) -> Result<(), ReadError> {
        let known = self.newest().number;
        let paths = store
            .list(layout::GENERATIONS_FOLDER)
            .await
            .map_err(|source| ReadError::store("list the vault's generations of keys", source))?;
        let newest = paths.iter().filter_map(|path| layout::generation_number(path)).max();
        let mut found = futures::stream::iter(known + 1..=newest.unwrap_or(known))
            .map(|number| async move {
                let object = layout::generation(number);
                let bytes = store
                    .get(&object, layout::DOCUMENT_BYTES)
                    .await
                    .map_err(|source| ReadError::store("read the vault's generations of keys", source))?;
                Ok::<_, ReadError>((number, bytes.ok_or(ReadError::Missing { object })?))
            })
            .buffered(GENERATION_READS);
        while let Some((number, bytes)) = found.try_next().await? {
            let generation = self.follow(number, &bytes, vault)?;
            self.later.push(generation);
        }
        Ok(())
    }

    /// Takes the generation after the newest apart. What its MACs are worth, only holders of their keys can tell.
    fn follow(&self, number: u32, bytes: &Bytes, vault: VaultId) -> Result<Generation, ReadError> {
        let object = layout::generation(number);
        let damaged = |problem| ReadError::Damaged {
            object: object.clone(),
            problem,
        };
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (line, rest) = end
            .and_then(|end| bytes.split_at_checked(end + 1))
            .ok_or_else(|| damaged("it is cut short"))?;
        let said: GenerationLine =
            serde_json::from_slice(line).map_err(|source| ReadError::malformed(&object, source))?;
        if said.format != FORMAT {
            return Err(ReadError::NewerFormat {
                object,
                format: said.format,
            });
        }
        if said.vault_id != vault || said.generation != number {
            return Err(ReadError::Misplaced {
                object,
                found: format!("generation {} of vault {}", said.generation, said.vault_id),
                expected: format!("generation {number} of vault {vault}"),
            });
        }
        let before = self.newest();
        if said.previous != before.sha256 {
            return Err(damaged(
                "it does not follow the generation before, or that one was changed",
            ));
        }
        let mut authors = vec![&before.writer_key_id];
        if said.writer_key_id != before.writer_key_id {
            authors.push(&said.writer_key_id);
        }
        let macs = parse_macs(rest).ok_or_else(|| damaged("its MACs cannot be read"))?;
        if !macs.iter().map(|mac| &mac.writer_key).eq(authors) {
            return Err(damaged("it lacks a MAC of the writer key before it or of its own"));
        }
        if said.signers.is_empty() {
            return Err(damaged("it names no signer"));
        }
        Ok(Generation {
            number,
            created_at: said.created_at,
            sealed_to: parse_recipients(&said.recipients).map_err(|source| ReadError::malformed(&object, source))?,
            recipients: said.recipients,
            writer_key_id: said.writer_key_id,
            signers: said.signers,
            writer_keys: said.writer_keys,
            reason: said.reason,
            sha256: sha256(bytes),
            line: bytes.slice(..line.len()),
            macs,
        })
    }

    /// The generation in force.
    pub(crate) fn newest(&self) -> &Generation {
        self.later.last().unwrap_or(&self.first)
    }

    /// All of them, the oldest first.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &Generation> {
        std::iter::once(&self.first).chain(&self.later)
    }

    /// The generation with this number.
    pub(crate) fn get(&self, number: u32) -> Option<&Generation> {
        self.all().find(|generation| generation.number == number)
    }

    /// Whether this key was ever a writer key of the vault.
    pub(crate) fn knows(&self, writer_key_id: &str) -> bool {
        self.all().any(|generation| generation.writer_key_id == writer_key_id)
    }

    /// Checks every MAC that is said to be of this key.
    pub(crate) fn check_macs(&self, key: &WriterKey) -> Result<(), ReadError> {
        match self
            .later
            .iter()
            .find(|found| found.is_vouched_for_by(key) == Some(false))
        {
            Some(forged) => Err(ReadError::ForgedGeneration {
                object: forged.object(),
            }),
            None => Ok(()),
        }
    }
}

fn parse_recipients(texts: &[String]) -> Result<Arc<[Recipient]>, KeyError> {
    match texts {
        [] => Err(KeyError::NoRecipients),
        texts => texts.iter().map(|text| parse_recipient(text)).collect(),
    }
}

/// The MACs, where every byte is as it was written.
fn parse_macs(bytes: &[u8]) -> Option<Vec<Mac>> {
    let mut macs = Vec::new();
    let mut again = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let parsed: MacLine = serde_json::from_slice(line).ok()?;
        again.extend(serde_json::to_vec(&parsed).ok()?);
        again.push(b'\n');
        macs.push(parsed.mac);
    }
    (again == bytes).then_some(macs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in a vault that exists must never change.
    #[test]
    fn the_text_of_a_generation_is_pinned() {
        let key = WriterKey::parse(&format!("STRONGROOM-WRITER-KEY-1 {}", "07".repeat(32))).unwrap();
        let line = GenerationLine {
            format: FORMAT,
            vault_id: serde_json::from_str(r#""01993f6e-0000-7000-8000-000000000000""#).unwrap(),
            generation: 2,
            previous: Sha256Digest::from_bytes([1; 32]),
            created_at: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            recipients: vec!["age1x".to_owned()],
            writer_key_id: key.key_id(),
            signers: vec![KnownSigner {
                principal: "dumper".to_owned(),
                public_key: "ssh-ed25519 AAAA".to_owned(),
            }],
            writer_keys: vec![SealedWriterKey {
                writer_key: key.key_id(),
                sealed: Sha256Digest::from_bytes([2; 32]),
            }],
            reason: "a year has passed".to_owned(),
        };
        let text = String::from_utf8(encode(&line, &[&key]).unwrap().to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let [first, mac] = lines[..] else { panic!("{text}") };
        assert_eq!(
            first,
            format!(
                r#"{{"format":1,"vault_id":"01993f6e-0000-7000-8000-000000000000","generation":2,"previous":"{}","created_at":"2027-01-15T08:00:00Z","recipients":["age1x"],"writer_key_id":"c931a8996226394f","signers":[{{"principal":"dumper","public_key":"ssh-ed25519 AAAA"}}],"writer_keys":[{{"writer_key":"c931a8996226394f","sealed":"{}"}}],"reason":"a year has passed"}}"#,
                "01".repeat(32),
                "02".repeat(32)
            )
        );
        let expected = key.macs().mac(format!("{first}\n").as_bytes());
        assert_eq!(
            mac,
            format!(r#"{{"mac":{{"writer_key":"c931a8996226394f","blake3":"{expected}"}}}}"#)
        );
    }

    #[test]
    fn macs_that_are_not_byte_for_byte_as_written_are_refused() {
        let key = WriterKey::generate();
        let mut text = serde_json::to_vec(&mac_line(&key, b"x")).unwrap();
        text.push(b'\n');
        assert_eq!(parse_macs(&text).map(|macs| macs.len()), Some(1));
        assert!(parse_macs(&text[..text.len() - 1]).is_none());
        assert!(parse_macs(&[b" ".as_slice(), &text].concat()).is_none());
        assert!(parse_macs(b"{}\n").is_none());
    }
}
