//! Signatures of receipts: SSHSIG with Ed25519, as `ssh-keygen -Y sign` makes and `ssh-keygen -Y verify` checks them.

use std::fmt;

use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};
use strongroom_proto::receipt::RECEIPT_NAMESPACE;
use zeroize::Zeroizing;

use crate::error::{CommitError, KeyError, ReadError};

/// Signs receipts.
#[derive(Clone)]
pub struct Signer {
    key: PrivateKey,
    principal: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// A new key for this principal.
    pub fn generate(principal: &str) -> Result<Self, KeyError> {
        let pair = Ed25519Keypair::random(&mut OsRng);
        let key = PrivateKey::new(KeypairData::Ed25519(pair), principal).map_err(|source| KeyError::Generate {
            source: Box::new(source),
        })?;
        Self::new(key, principal)
    }

    /// Reads an OpenSSH private key without a passphrase.
    pub fn from_openssh(text: &str, principal: &str) -> Result<Self, KeyError> {
        let key = PrivateKey::from_openssh(text).map_err(|_| KeyError::SigningKey)?;
        if key.is_encrypted() || key.algorithm() != Algorithm::Ed25519 {
            return Err(KeyError::SigningKey);
        }
        Self::new(key, principal)
    }

    fn new(key: PrivateKey, principal: &str) -> Result<Self, KeyError> {
        check_principal(principal)?;
        Ok(Self {
            key,
            principal: principal.to_owned(),
        })
    }

    /// The text of the private key's file.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, KeyError> {
        self.key.to_openssh(LineEnding::LF).map_err(|_| KeyError::SigningKey)
    }

    /// Who signs.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// The public key as one OpenSSH line, for `vault.json`.
    pub fn public_line(&self) -> Result<String, KeyError> {
        public_line(self.key.public_key())
    }

    /// The armored signature of these bytes.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<String, CommitError> {
        self.key
            .sign(RECEIPT_NAMESPACE, HashAlg::Sha512, bytes)
            .and_then(|signature| signature.to_pem(LineEnding::LF))
            .map_err(|source| CommitError::Sign {
                source: Box::new(source),
            })
    }
}

/// Reads and normalises a public key line, without its comment.
pub(crate) fn parse_public_line(line: &str) -> Result<String, KeyError> {
    let key = PublicKey::from_openssh(line.trim()).map_err(|_| KeyError::PublicKey)?;
    if key.algorithm() != Algorithm::Ed25519 {
        return Err(KeyError::PublicKey);
    }
    public_line(&key)
}

/// The Ed25519 keys that an `allowed_signers` file lets sign receipts.
pub(crate) fn parse_allowed_signers(text: &str) -> Result<Vec<String>, KeyError> {
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // Principals, then options, then the key; an option may hold spaces, but never this word.
        let Some((before, key)) = line.split_once(" ssh-ed25519 ") else {
            continue;
        };
        let is_for_receipts = match before.split_once("namespaces=\"") {
            Some((_, rest)) => rest
                .split('"')
                .next()
                .is_some_and(|list| list.split(',').any(|n| n == RECEIPT_NAMESPACE)),
            None => true,
        };
        // What says more than this, e.g. until when a key holds, is not ignored but left out.
        let is_understood = !["cert-authority", "valid-after", "valid-before"]
            .iter()
            .any(|word| before.contains(word));
        if is_for_receipts && is_understood {
            keys.push(parse_public_line(&format!("ssh-ed25519 {key}"))?);
        }
    }
    match keys.is_empty() {
        true => Err(KeyError::AllowedSigners),
        false => Ok(keys),
    }
}

fn public_line(key: &PublicKey) -> Result<String, KeyError> {
    PublicKey::new(key.key_data().clone(), "")
        .to_openssh()
        .map(|line| line.trim().to_owned())
        .map_err(|_| KeyError::PublicKey)
}

/// A principal becomes the first word of an `allowed_signers` line, where it is a pattern.
pub(crate) fn check_principal(text: &str) -> Result<(), KeyError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._@-".contains(&b);
    if !text.is_empty() && text.bytes().all(fits) {
        Ok(())
    } else {
        Err(KeyError::Principal { text: text.to_owned() })
    }
}

/// Whether one of these public keys made this signature over these bytes.
pub(crate) fn verify<'a>(
    object: &str,
    bytes: &[u8],
    signature: &[u8],
    mut public_lines: impl Iterator<Item = &'a str>,
) -> Result<(), ReadError> {
    let bad = || ReadError::BadSignature {
        object: object.to_owned(),
    };
    let armored = signature;
    let signature = SshSig::from_pem(armored).map_err(|_| bad())?;
    // One signature has one text; a byte that says nothing is still a byte that was changed.
    if signature.to_pem(LineEnding::LF).map_err(|_| bad())?.as_bytes() != armored {
        return Err(bad());
    }
    let holds = |line: &str| {
        PublicKey::from_openssh(line).is_ok_and(|key| key.verify(RECEIPT_NAMESPACE, bytes, &signature).is_ok())
    };
    if public_lines.any(holds) { Ok(()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_bytes_and_key_only() {
        let (signer, other) = (Signer::generate("a@b").unwrap(), Signer::generate("a@b").unwrap());
        let (line, other_line) = (signer.public_line().unwrap(), other.public_line().unwrap());
        let signature = signer.sign(b"receipt").unwrap();
        let check = |bytes: &[u8], line: &str| verify("x", bytes, signature.as_bytes(), [line].into_iter());
        assert!(check(b"receipt", &line).is_ok());
        assert!(check(b"receipT", &line).is_err());
        assert!(check(b"receipt", &other_line).is_err());
        assert!(verify("x", b"receipt", b"", [line.as_str()].into_iter()).is_err());
    }

    #[test]
    fn an_allowed_signers_file_names_who_may_sign_receipts() {
        let line = Signer::generate("a").unwrap().public_line().unwrap();
        let parse = |text: String| parse_allowed_signers(&text).map_err(|e| e.to_string());
        for good in [
            format!("a {line}"),
            format!("# c\n\na@b,c namespaces=\"receipt@strongroom\" {line} comment\n"),
            format!("a namespaces=\"git,receipt@strongroom\" {line}"),
        ] {
            assert_eq!(parse(good), Ok(vec![line.clone()]));
        }
        for bad in [
            String::new(),
            line.clone(),
            format!("a namespaces=\"git\" {line}"),
            format!("a valid-before=\"20200101\" {line}"),
            format!("a cert-authority {line}"),
            "a ssh-ed25519 AAAA".to_owned(),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_survives_its_file() {
        let signer = Signer::generate("worker").unwrap();
        let again = Signer::from_openssh(&signer.to_openssh().unwrap(), "worker").unwrap();
        assert_eq!(again.public_line().unwrap(), signer.public_line().unwrap());
        assert!(Signer::from_openssh("junk", "worker").is_err());
        assert!(Signer::generate("two words").is_err());
        assert!(Signer::generate("*").is_err());
    }
}
