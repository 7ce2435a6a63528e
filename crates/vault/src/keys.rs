//! The writer key. Who writes holds it; who reads holds an identity, see [`readers`].
//! From the writer key come, each with its own context, the
//! key of chunk ids, the key of MACs and the key's public name; none of them tells anything about another.

mod readers;

use std::fmt;
use std::io::{self, Write};

use strongroom_proto::ChunkId;
use zeroize::Zeroizing;

use crate::error::KeyError;
pub use readers::{Identity, Recipient, parse_recipient};

const WRITER_KEY_TAG: &str = "STRONGROOM-WRITER-KEY-1";
const CHUNK_ID_CONTEXT: &str = "strongroom vault format 1: chunk id";
const MAC_CONTEXT: &str = "strongroom vault format 1: mac";
const KEY_ID_CONTEXT: &str = "strongroom vault format 1: writer key id";
/// Bytes of a key id; it names a key, it does not protect anything.
const KEY_ID_BYTES: usize = 8;

/// The secret a worker needs to write to a vault. It opens nothing.
#[derive(Clone)]
pub struct WriterKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for WriterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriterKey({})", self.key_id())
    }
}

impl WriterKey {
    /// A new key.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(&mut bytes[..]);
        Self(bytes)
    }

    /// Reads the text of a key file.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let hex_digits = text
            .trim()
            .strip_prefix(WRITER_KEY_TAG)
            .map(str::trim)
            .ok_or(KeyError::WriterKey)?;
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(hex_digits, &mut bytes[..]).map_err(|_| KeyError::WriterKey)?;
        Ok(Self(bytes))
    }

    /// The text of a key file: one line.
    pub fn serialize(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(&self.0[..]));
        Zeroizing::new(format!("{WRITER_KEY_TAG} {}\n", digits.as_str()))
    }

    /// The key's public name.
    pub fn key_id(&self) -> String {
        let derived = blake3::derive_key(KEY_ID_CONTEXT, &self.0[..]);
        hex::encode(derived.get(..KEY_ID_BYTES).unwrap_or_default())
    }

    pub(crate) fn chunk_ids(&self) -> ChunkIdKey {
        ChunkIdKey(Zeroizing::new(blake3::derive_key(CHUNK_ID_CONTEXT, &self.0[..])))
    }

    pub(crate) fn macs(&self) -> MacKey {
        MacKey(Zeroizing::new(blake3::derive_key(MAC_CONTEXT, &self.0[..])))
    }
}

/// Names chunks.
#[derive(Clone)]
pub(crate) struct ChunkIdKey(Zeroizing<[u8; 32]>);

impl ChunkIdKey {
    pub(crate) fn id(&self, raw: &[u8]) -> ChunkId {
        ChunkId::from_bytes(*blake3::keyed_hash(&self.0, raw).as_bytes())
    }
}

/// Authenticates what a vault keeps unsealed.
#[derive(Clone)]
pub(crate) struct MacKey(Zeroizing<[u8; 32]>);

impl MacKey {
    pub(crate) fn mac(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }
}

/// Begins an age file to all recipients.
pub(crate) fn seal<W: Write>(recipients: &[Recipient], output: W) -> io::Result<age::stream::StreamWriter<W>> {
    age::Encryptor::with_recipients(recipients.iter().map(Recipient::as_age))
        .map_err(io::Error::other)?
        .wrap_output(output)
}

/// Seals a small object whole.
pub(crate) fn seal_whole(recipients: &[Recipient], plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = seal(recipients, Vec::with_capacity(plain.len() + 1024))?;
    writer.write_all(plain)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_key_survives_its_file_and_never_shows_itself() {
        let key = WriterKey::generate();
        let text = key.serialize();
        let again = WriterKey::parse(&text).unwrap();
        assert_eq!(again.key_id(), key.key_id());
        assert_eq!(again.chunk_ids().id(b"x"), key.chunk_ids().id(b"x"));
        let digits = text.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(!format!("{key:?}").contains(&digits));
        for bad in ["", "x", "STRONGROOM-WRITER-KEY-1 abc", &digits] {
            assert!(WriterKey::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_keys_derived_from_a_writer_key_are_pinned() {
        let key = WriterKey::parse(&format!("{WRITER_KEY_TAG} {}", "07".repeat(32))).unwrap();
        assert_eq!(
            (
                key.key_id(),
                key.chunk_ids().id(b"").to_string(),
                key.macs().mac(b"").to_string()
            ),
            PINNED.map(str::to_owned).into()
        );
    }
    const PINNED: [&str; 3] = [
        "c931a8996226394f",
        "56bda14d8281acb0c2afe5e0a965d6f5cb28b010e59395919ede953d5e971714",
        "fbf854df0d1a9de00458d2af32e78684d793b66c868bd555afa8ba81e502fe25",
    ];
}
