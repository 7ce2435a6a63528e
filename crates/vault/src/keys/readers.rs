//! Who can read a vault: recipients, which are public, and identities, which open what recipients were sent.
//!
//! Both are those of the age tools: native keys (`age1…`) and SSH keys (`ssh-ed25519`, `ssh-rsa`). SSH recipients are
//! not anonymous: each sealed object names them by 32 bits of their public key's digest.

use std::fmt;
use std::io::Read;

use age::secrecy::ExposeSecret;
use age::ssh::ParseRecipientKeyError;
use zeroize::{Zeroize, Zeroizing};

use super::WriterKey;
use crate::error::{KeyError, ReadError};

/// Who can read what is written: a public key. Equal where the keys are, whatever their comments.
#[derive(Clone)]
pub struct Recipient(RecipientKey);

#[derive(Clone)]
enum RecipientKey {
    Native(age::x25519::Recipient),
    Ssh(age::ssh::Recipient),
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            RecipientKey::Native(key) => key.fmt(f),
            RecipientKey::Ssh(key) => key.fmt(f),
        }
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Recipient {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Recipient {}

impl Recipient {
    pub(crate) fn as_age(&self) -> &dyn age::Recipient {
        match &self.0 {
            RecipientKey::Native(key) => key,
            RecipientKey::Ssh(key) => key,
        }
    }
}

/// Reads an age recipient: `age1…`, or a line of an SSH public key file.
pub fn parse_recipient(text: &str) -> Result<Recipient, KeyError> {
    let text = text.trim();
    if text.starts_with("ssh-") || text.starts_with("ecdsa-") || text.starts_with("sk-") {
        return parse_ssh_recipient(text);
    }
    match text.parse() {
        Ok(key) => Ok(Recipient(RecipientKey::Native(key))),
        Err(_) => Err(refusal(text)),
    }
}

fn parse_ssh_recipient(text: &str) -> Result<Recipient, KeyError> {
    let unsupported = |what: String| KeyError::UnsupportedRecipient { what };
    match text.parse() {
        Ok(key) => Ok(Recipient(RecipientKey::Ssh(key))),
        Err(ParseRecipientKeyError::RsaModulusTooSmall) => {
            Err(unsupported("an ssh-rsa key of less than 2048 bits".to_owned()))
        }
        Err(ParseRecipientKeyError::RsaModulusTooLarge) => {
            Err(unsupported("an ssh-rsa key of more than 4096 bits".to_owned()))
        }
        Err(ParseRecipientKeyError::Unsupported(kind)) => Err(unsupported(format!("a key of type {kind}"))),
        Err(_) => Err(refusal(text)),
    }
}

/// Says why this is no recipient, without repeating what may be a secret.
fn refusal(text: &str) -> KeyError {
    let upper = text.to_ascii_uppercase();
    if upper.contains("SECRET") || upper.contains("PRIVATE KEY") || upper.contains("AGE-PLUGIN") {
        // A person may have pasted the secret key in its place.
        return KeyError::Recipient {
            text: "(a secret key)".to_owned(),
        };
    }
    // `age1pq1…` and `age1tag1…` are native kinds without a software identity here; `age1name1…` is a plugin's.
    match upper.strip_prefix("AGE1").and_then(|rest| rest.split_once('1')) {
        Some((name, _)) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => {
            KeyError::UnsupportedRecipient {
                what: format!("a recipient of kind age1{}", name.to_ascii_lowercase()),
            }
        }
        _ => KeyError::Recipient { text: text.to_owned() },
    }
}

/// The secret that opens a vault: the keys of an age identity file, or an SSH private key.
#[derive(Clone)]
pub struct Identity(Vec<IdentityKey>);

#[derive(Clone)]
enum IdentityKey {
    Native(age::x25519::Identity),
    Ssh(Box<age::ssh::Identity>),
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} keys)", self.0.len())
    }
}

impl Identity {
    /// Reads the text of an identity file: lines as `age-keygen` writes them, OpenSSH private keys without a
    /// passphrase, or several of both.
    pub fn from_file_text(text: &str) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if !line.starts_with("-----BEGIN ") {
                keys.push(parse_native(line)?);
                continue;
            }
            let mut block = Zeroizing::new(format!("{line}\n"));
            for line in lines.by_ref() {
                block.push_str(line);
                block.push('\n');
                if line.starts_with("-----END ") {
                    break;
                }
            }
            keys.push(parse_ssh(&block)?);
        }
        match keys {
            keys if keys.is_empty() => Err(KeyError::Identity),
            keys => Ok(Self(keys)),
        }
    }

    /// A new native key: the text of its identity file, and its recipient.
    pub fn generate() -> (Zeroizing<String>, String) {
        let key = age::x25519::Identity::generate();
        let recipient = key.to_public().to_string();
        let secret = key.to_string();
        let text = format!("# public key: {recipient}\n{}\n", secret.expose_secret());
        (Zeroizing::new(text), recipient)
    }

    /// The recipients this identity opens.
    pub fn recipients(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|key| match key {
                IdentityKey::Native(key) => Some(key.to_public().to_string()),
                IdentityKey::Ssh(key) => age::ssh::Recipient::try_from((**key).clone())
                    .ok()
                    .map(|recipient| recipient.to_string()),
            })
            .collect()
    }

    pub(crate) fn as_age(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|key| match key {
            IdentityKey::Native(key) => key as &dyn age::Identity,
            IdentityKey::Ssh(key) => &**key,
        })
    }

    /// Opens a small age file whole, of at most `limit_bytes` content.
    pub(crate) fn open_whole(&self, object: &str, sealed: &[u8], limit_bytes: u64) -> Result<Vec<u8>, ReadError> {
        let reader = age::Decryptor::new(sealed).and_then(|file| file.decrypt(self.as_age()));
        let reader = reader.map_err(|source| match source {
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

fn parse_native(line: &str) -> Result<IdentityKey, KeyError> {
    line.parse().map(IdentityKey::Native).map_err(|_| {
        let upper = line.to_ascii_uppercase();
        if upper.starts_with("AGE-PLUGIN-") {
            KeyError::UnsupportedIdentity {
                what: "a plugin's identity",
            }
        } else if upper.starts_with("AGE-SECRET-KEY-PQ-") {
            KeyError::UnsupportedIdentity {
                what: "a post-quantum identity",
            }
        } else {
            KeyError::Identity
        }
    })
}

fn parse_ssh(block: &str) -> Result<IdentityKey, KeyError> {
    use age::ssh::{Identity as Ssh, UnsupportedKey};
    if block.contains("BEGIN AGE ENCRYPTED FILE") {
        return Err(KeyError::IdentityPassphrase);
    }
    match Ssh::from_buffer(block.as_bytes(), None) {
        Ok(key @ Ssh::Unencrypted(_)) => Ok(IdentityKey::Ssh(Box::new(key))),
        Ok(Ssh::Encrypted(_) | Ssh::Unsupported(UnsupportedKey::EncryptedPem | UnsupportedKey::EncryptedSsh(_))) => {
            Err(KeyError::IdentityPassphrase)
        }
        Ok(Ssh::Unsupported(_)) => Err(KeyError::UnsupportedIdentity {
            what: "an SSH key that is neither ssh-ed25519 nor ssh-rsa",
        }),
        Err(_) => Err(KeyError::Identity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::seal_whole;

    fn ssh_key_pair(kind: &str, passphrase: &str) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let mut keygen = std::process::Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", kind, "-N", passphrase, "-C", "ops@host", "-f"])
            .arg(&path);
        if kind == "rsa" {
            keygen.args(["-b", "2048"]);
        }
        assert!(keygen.status().unwrap().success());
        let read = |path| std::fs::read_to_string(path).unwrap();
        (read(&path), read(&path.with_extension("pub")))
    }

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
    fn each_key_of_a_mixed_identity_file_opens_what_it_was_sent() {
        let (native, native_recipient) = Identity::generate();
        let (ed25519, ed25519_recipient) = ssh_key_pair("ed25519", "");
        let (rsa, rsa_recipient) = ssh_key_pair("rsa", "");
        let identity = Identity::from_file_text(&format!("# all\n{ed25519}\n{}\n{rsa}", native.as_str())).unwrap();
        let recipients = [ed25519_recipient, native_recipient, rsa_recipient];
        let parsed = recipients.map(|text| parse_recipient(&text).unwrap());
        assert_eq!(
            identity.recipients(),
            parsed.clone().map(|recipient| recipient.to_string())
        );
        for recipient in parsed {
            // The comment of a public key file is gone, and what is left reads as the same key.
            assert_eq!(parse_recipient(&recipient.to_string()).unwrap(), recipient);
            let sealed = seal_whole(std::slice::from_ref(&recipient), b"content").unwrap();
            assert_eq!(
                identity.open_whole("x", &sealed, 100).unwrap(),
                b"content",
                "{recipient}"
            );
        }
    }

    #[test]
    fn an_ssh_key_with_a_passphrase_is_refused_with_the_reason() {
        let (text, _) = ssh_key_pair("ed25519", "secret words");
        let error = Identity::from_file_text(&text).unwrap_err();
        assert!(matches!(error, KeyError::IdentityPassphrase), "{error}");
        assert!(error.to_string().contains("ssh-keygen -p"), "{error}");
        let (text, public) = ssh_key_pair("ecdsa", "");
        assert!(matches!(
            Identity::from_file_text(&text),
            Err(KeyError::UnsupportedIdentity { .. })
        ));
        assert!(matches!(
            parse_recipient(&public),
            Err(KeyError::UnsupportedRecipient { .. })
        ));
    }

    #[test]
    fn recipients_that_the_library_cannot_use_are_named() {
        for text in ["age1pq1qqqqqq", "age1yubikey1qqqqqq", "age1tagpq1qqqq"] {
            let error = parse_recipient(text).unwrap_err().to_string();
            assert!(error.contains("not supported"), "{error}");
        }
        for text in ["AGE-PLUGIN-YUBIKEY-1QQQQ", "AGE-SECRET-KEY-PQ-1QQQQ"] {
            let error = Identity::from_file_text(text).unwrap_err();
            assert!(matches!(error, KeyError::UnsupportedIdentity { .. }), "{error}");
        }
        for text in [
            "",
            "age1",
            "age1nonsense",
            "ssh-ed25519 AAAA",
            "ssh-ed25519",
            "nonsense",
        ] {
            assert!(
                matches!(parse_recipient(text), Err(KeyError::Recipient { .. })),
                "{text}"
            );
        }
        for text in [
            "",
            "nonsense",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
            "# nothing\n",
        ] {
            assert!(
                matches!(Identity::from_file_text(text), Err(KeyError::Identity)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_secret_key_given_as_recipient_is_not_repeated() {
        let (text, _) = Identity::generate();
        let secret = text.lines().last().unwrap().to_owned();
        let error = parse_recipient(&secret).unwrap_err().to_string();
        assert!(!error.contains(&secret), "{error}");
    }
}
