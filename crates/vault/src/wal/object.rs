//! One object: a statement, its signature, and bytes, compressed and sealed together.

use serde::{Deserialize, Serialize};
use strongroom_proto::wal::{SystemIdentifier, WalPiece};
use strongroom_proto::{Sha256Digest, VaultId};
use zstd::bulk::Decompressor;

use super::WalError;
use crate::age_file;
use crate::codec::{self, EncodeError, Encoder};
use crate::describe::FORMAT;
use crate::error::ReadError;
use crate::keys::{Identity, Recipient};
use crate::layout::WalObject;
use crate::signing::{self, Signer};

/// The first bytes of a zstd skippable frame.
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// A statement and its signature are far smaller.
const STATEMENT_BYTES: usize = 64 * 1024;
/// A history has a line of some fifty bytes for each promotion there ever was.
pub(super) const HISTORY_BYTES: usize = 1024 * 1024;

/// What its writer says of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Statement {
    format: u32,
    vault_id: VaultId,
    #[serde(flatten)]
    pub(super) of: StatementOf,
    /// BLAKE3 of the bytes, without a key: it lies sealed.
    blake3: Sha256Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StatementOf {
    WalPiece(WalPiece),
    WalHistory {
        system_identifier: SystemIdentifier,
        timeline: u32,
        bytes: u64,
    },
}

impl StatementOf {
    /// What its name has to tell.
    pub(super) fn object(&self) -> WalObject {
        match self {
            Self::WalPiece(piece) => WalObject::Piece(WalPiece {
                server_time: None,
                ..piece.clone()
            }),
            Self::WalHistory {
                system_identifier,
                timeline,
                ..
            } => WalObject::History {
                system: *system_identifier,
                timeline: *timeline,
            },
        }
    }

    const fn bytes(&self) -> u64 {
        match self {
            Self::WalPiece(piece) => piece.len(),
            Self::WalHistory { bytes, .. } => *bytes,
        }
    }
}

/// What an object of this kind may have in bytes, sealed.
pub(crate) fn limit_bytes(object: &WalObject) -> u64 {
    let raw = match object {
        WalObject::Piece(piece) => piece.len(),
        WalObject::History { .. } => HISTORY_BYTES as u64,
    };
    // Not compressed at all it is longer by the tags of its segments.
    raw + raw / 128 + (STATEMENT_BYTES + age_file::HEADER_MAX_BYTES) as u64
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(doing: &'static str) -> impl FnOnce(E) -> WalError {
    move |source| WalError::Encode {
        doing,
        source: source.into(),
    }
}

/// What objects are compressed with, one after the other, so that its memory is made once.
pub(super) struct Press {
    encoder: Encoder,
    frame: Vec<u8>,
}

impl Press {
    pub(super) fn new(level: i32) -> Result<Self, WalError> {
        Ok(Self {
            encoder: Encoder::new(level).map_err(failed("compress WAL"))?,
            frame: Vec::new(),
        })
    }

    pub(super) fn set_level(&mut self, level: i32) -> Result<(), WalError> {
        self.encoder.set_level(level).map_err(failed("compress WAL"))
    }
}

/// Signs, compresses and seals.
pub(super) fn seal(
    vault_id: VaultId,
    of: StatementOf,
    bytes: &[u8],
    signer: &Signer,
    recipients: &[Recipient],
    Press { encoder, frame }: &mut Press,
) -> Result<Vec<u8>, WalError> {
    let statement = Statement {
        format: FORMAT,
        vault_id,
        of,
        blake3: Sha256Digest::from_bytes(*blake3::hash(bytes).as_bytes()),
    };
    let mut stated = serde_json::to_vec(&statement).map_err(failed("say what WAL this is"))?;
    stated.push(b'\n');
    let signature = signer.sign(&stated).map_err(failed("sign WAL"))?;
    stated.extend_from_slice(signature.as_bytes());
    encoder.encode(bytes, frame).map_err(|error| match error {
        EncodeError::Failed(source) => failed("compress WAL")(source),
        EncodeError::DoesNotDecode => WalError::CodecCorrupt,
    })?;
    let room = frame.len() + frame.len() / 2048 + stated.len() + 4096;
    let mut file = age_file::begin(recipients, Vec::with_capacity(room)).map_err(failed("seal WAL"))?;
    file.append(&SKIPPABLE);
    // It fits: the statement is a few hundred bytes.
    file.append(&(stated.len() as u32).to_le_bytes());
    file.append(&stated);
    file.append(frame);
    file.seal().map_err(failed("seal WAL"))
}

/// An object that was opened, and whose signature is not yet checked.
pub(super) struct Opened {
    /// The line that is signed.
    line: Vec<u8>,
    signature: Vec<u8>,
    frame: Vec<u8>,
}

impl Opened {
    pub(super) fn open(path: &str, sealed: &[u8], identity: &Identity) -> Result<Self, ReadError> {
        let plain = age_file::open_whole(sealed, identity).map_err(|source| match source {
            age::DecryptError::NoMatchingKeys => ReadError::WrongIdentity {
                object: path.to_owned(),
                source: Box::new(source),
            },
            source => ReadError::malformed(path, source),
        })?;
        Self::split(&plain).ok_or_else(|| ReadError::malformed(path, "it does not begin with a signed statement"))
    }

    fn split(plain: &[u8]) -> Option<Self> {
        let (length, rest) = plain.strip_prefix(&SKIPPABLE)?.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let (stated, frame) = rest.split_at_checked(length).filter(|_| length <= STATEMENT_BYTES)?;
        let line_end = stated.iter().position(|byte| *byte == b'\n')? + 1;
        let (line, signature) = stated.split_at_checked(line_end)?;
        Some(Self {
            line: line.to_vec(),
            signature: signature.to_vec(),
            frame: frame.to_vec(),
        })
    }

    /// An error where none of these public keys signed it.
    pub(super) fn check_signature<'a>(
        &self,
        path: &str,
        public_lines: impl Iterator<Item = &'a str>,
    ) -> Result<(), ReadError> {
        signing::verify(path, &self.line, &self.signature, public_lines)
    }

    /// The statement and the bytes, once the signature has been checked, of an object that was asked for by its name.
    pub(super) fn read(
        &self,
        path: &str,
        vault_id: VaultId,
        expected: &WalObject,
    ) -> Result<(StatementOf, Vec<u8>), ReadError> {
        let malformed = |source: Box<dyn std::error::Error + Send + Sync>| ReadError::malformed(path, source);
        let anything: serde_json::Value = serde_json::from_slice(&self.line).map_err(|e| malformed(e.into()))?;
        let format = anything.get("format").and_then(serde_json::Value::as_u64);
        let format = format.ok_or_else(|| malformed("it names no format".into()))?;
        if format != u64::from(FORMAT) {
            return Err(ReadError::NewerFormat {
                object: path.to_owned(),
                format: u32::try_from(format).unwrap_or(u32::MAX),
            });
        }
        let statement: Statement = serde_json::from_value(anything).map_err(|e| malformed(e.into()))?;
        let misplaced = |found: String, expected: String| ReadError::Misplaced {
            object: path.to_owned(),
            found,
            expected,
        };
        if statement.vault_id != vault_id {
            return Err(misplaced(
                format!("vault {}", statement.vault_id),
                format!("vault {vault_id}"),
            ));
        }
        let found = statement.of.object();
        if found != *expected {
            return Err(misplaced(found.to_string(), expected.to_string()));
        }
        let too_long = statement.of.bytes() > limit_bytes(expected);
        let raw_bytes = usize::try_from(statement.of.bytes()).ok().filter(|_| !too_long);
        let raw_bytes = raw_bytes.ok_or_else(|| malformed("it is longer than any such object".into()))?;
        let mut raw = Vec::new();
        Decompressor::new()
            .and_then(|mut decoder| codec::decode(&mut decoder, &self.frame, raw_bytes, &mut raw))
            .map_err(|e| malformed(e.into()))?;
        if blake3::hash(&raw) != *statement.blake3.as_bytes() {
            return Err(ReadError::Damaged {
                object: path.to_owned(),
                problem: "its bytes are not those that were signed",
            });
        }
        Ok((statement.of, raw))
    }
}
