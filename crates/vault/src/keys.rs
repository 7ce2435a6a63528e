//! The writer key, and the age recipients and identities.
//!
//! Who writes holds the writer key, who reads an identity. From the writer key come, each with its own context, the
//! key of chunk ids, the key of MACs and the key's public name; none of them tells anything about another.

use std::fmt;
use std::io::{self, Read, Write};

use age::secrecy::ExposeSecret;
use strongroom_proto::ChunkId;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{KeyError, ReadError};

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

/// Who can read what is written: an age public key.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Recipient {
    pub(crate) fn as_age(&self) -> &dyn age::Recipient {
        &self.0
    }
}

/// Reads an age recipient, `age1…`.
pub fn parse_recipient(text: &str) -> Result<Recipient, KeyError> {
    let key = text.trim().parse().map_err(|_| KeyError::Recipient {
        // A person may have pasted the secret key in its place; it must not come back in a message.
        text: match text.to_ascii_uppercase().contains("SECRET") {
            true => "(a secret key)".to_owned(),
            false => text.to_owned(),
        },
    })?;
    Ok(Recipient(key))
}

/// The secret that opens a vault: the keys of a stock age identity file.
#[derive(Clone)]
pub struct Identity(Vec<age::x25519::Identity>);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} keys)", self.0.len())
    }
}

impl Identity {
    /// Reads the text of an identity file as `age-keygen` writes it.
    pub fn from_file_text(text: &str) -> Result<Self, KeyError> {
        let keys: Result<Vec<age::x25519::Identity>, _> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| line.parse().map_err(|_| KeyError::Identity))
            .collect();
        match keys? {
            keys if keys.is_empty() => Err(KeyError::Identity),
            keys => Ok(Self(keys)),
        }
    }

    /// A new key: the text of its identity file, and its recipient.
    pub fn generate() -> (Zeroizing<String>, String) {
        let key = age::x25519::Identity::generate();
        let recipient = key.to_public().to_string();
        let secret = key.to_string();
        let text = format!("# public key: {recipient}\n{}\n", secret.expose_secret());
        (Zeroizing::new(text), recipient)
    }

    /// The recipients this identity opens.
    pub fn recipients(&self) -> Vec<String> {
        self.0.iter().map(|key| key.to_public().to_string()).collect()
    }

    pub(crate) fn as_age(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|key| key as &dyn age::Identity)
    }

    /// Opens an age file for reading.
    pub(crate) fn open<R: Read>(&self, input: R) -> Result<age::stream::StreamReader<R>, age::DecryptError> {
        age::Decryptor::new(input)?.decrypt(self.as_age())
    }

    /// Opens a small age file whole, of at most `limit_bytes` content.
    pub(crate) fn open_whole(&self, object: &str, sealed: &[u8], limit_bytes: u64) -> Result<Vec<u8>, ReadError> {
        let reader = self.open(sealed).map_err(|source| match source {
            age::DecryptError::NoMatchingKeys => ReadError::WrongIdentity {
                object: object.to_owned(),
                source: Box::new(source),
            },
            source => ReadError::malformed(object, source),
        })?;
        let mut plain = Vec::new();
        reader
            .take(limit_bytes + 1)
            .read_to_end(&mut plain)
            .map_err(|source| ReadError::malformed(object, source))?;
        if plain.len() as u64 > limit_bytes {
            plain.zeroize();
            return Err(ReadError::malformed(object, "it is larger than any such object"));
        }
        Ok(plain)
    }

    /// The writer key, sealed in the vault so that the identity alone can check what it reads.
    pub(crate) fn open_writer_key(
        &self,
        object: &str,
        sealed: &[u8],
        limit_bytes: u64,
    ) -> Result<WriterKey, ReadError> {
        let plain = Zeroizing::new(self.open_whole(object, sealed, limit_bytes)?);
        let text = std::str::from_utf8(&plain).map_err(|source| ReadError::malformed(object, source))?;
        WriterKey::parse(text).map_err(|source| ReadError::malformed(object, source))
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

    #[test]
    fn an_identity_file_opens_what_its_recipient_was_sent() {
        let (text, recipient) = Identity::generate();
        let sealed = seal_whole(&[parse_recipient(&recipient).unwrap()], b"content").unwrap();
        let identity = Identity::from_file_text(&text).unwrap();
        assert_eq!(identity.open_whole("x", &sealed, 100).unwrap(), b"content");
        let (other, _) = Identity::generate();
        let refused = Identity::from_file_text(&other).unwrap().open_whole("x", &sealed, 100);
        assert!(matches!(refused, Err(ReadError::WrongIdentity { .. })));
    }

    #[test]
    fn a_secret_key_given_as_recipient_is_not_repeated() {
        let (text, _) = Identity::generate();
        let secret = text.lines().last().unwrap().to_owned();
        let error = parse_recipient(&secret).unwrap_err().to_string();
        assert!(!error.contains(&secret), "{error}");
    }
}
