//! Rotating keys: a new generation says who reads and who writes from now on; nothing stored is touched.
//!
//! What it needs is stored first: the writer keys, sealed to the new recipients. Then the generation is created if
//! absent, which is the commit; of two rotations at once one wins. What one that lost or died left behind is garbage.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::describe::{FORMAT, KnownSigner};
use crate::error::{ReadError, RotateError};
use crate::generation::{self, GenerationLine, SealedWriterKey};
use crate::keys::{Identity, Recipient, WriterKey, parse_recipient, seal_whole};
use crate::layout;
use crate::signing::{check_principal, parse_public_line};
use crate::store::{Created, sha256};
use crate::vault::Vault;

/// What to rotate. What is left out stays as it is.
#[derive(Debug, Clone)]
pub struct Rotation<'a> {
    /// The writer key in force.
    pub writer_key: &'a WriterKey,
    /// Who will be able to read what is written from now on.
    pub recipients: Option<Vec<String>>,
    /// The key that writers will hold.
    pub new_writer_key: Option<&'a WriterKey>,
    /// Who may sign receipts from now on: principal and OpenSSH public key line.
    pub signers: Option<Vec<(String, String)>>,
    /// Opens the writer keys of before, so that the new recipients can check what was written with them. Without it
    /// only the writer key in force and the new one are sealed again.
    pub identity: Option<&'a Identity>,
    /// Why, for people.
    pub reason: String,
}

impl Vault {
    /// Puts other keys in force, from now on. Packs that are there stay sealed to whom they were sealed to.
    ///
    /// Returns the vault with the new keys. Writers that hold an older writer key are refused from here on.
    pub async fn rotate(&self, rotation: Rotation<'_>, now: DateTime<Utc>) -> Result<Self, RotateError> {
        let read_error = |source| RotateError::Read { source };
        let key_error = |source| RotateError::Key { source };
        let store_error = |source| RotateError::Store { source };
        let vault = self.for_writing(rotation.writer_key).await.map_err(read_error)?;
        let before = vault.newest_generation();

        let texts = rotation.recipients.unwrap_or_else(|| before.recipients.clone());
        let mut recipients: Vec<Recipient> = Vec::with_capacity(texts.len());
        for text in &texts {
            let recipient = parse_recipient(text).map_err(key_error)?;
            if !recipients.contains(&recipient) {
                recipients.push(recipient);
            }
        }
        if recipients.is_empty() {
            return Err(key_error(crate::KeyError::NoRecipients));
        }
        let texts: Vec<String> = recipients.iter().map(ToString::to_string).collect();
        let signers = match rotation.signers {
            Some(signers) => known_signers(signers)?,
            None => before.signers.clone(),
        };
        let writer_key = match rotation.new_writer_key {
            Some(new) if new.key_id() == rotation.writer_key.key_id() => rotation.writer_key,
            Some(new) if vault.generations().any(|found| found.writer_key_id == new.key_id()) => {
                return Err(RotateError::OldWriterKey { key_id: new.key_id() });
            }
            Some(new) => new,
            None => rotation.writer_key,
        };
        let is_new_key = writer_key.key_id() != before.writer_key_id;
        let sorted = |texts: &[String]| texts.iter().cloned().collect::<BTreeSet<_>>();
        if !is_new_key && sorted(&texts) == sorted(&before.recipients) && signers == before.signers {
            return Err(RotateError::NothingNew);
        }

        let mut keys = vec![writer_key.clone()];
        if is_new_key {
            keys.push(rotation.writer_key.clone());
        }
        if let Some(identity) = rotation.identity {
            keys.extend(vault.older_writer_keys(&keys, identity).await.map_err(read_error)?);
        }
        let mut writer_keys = Vec::with_capacity(keys.len());
        for key in &keys {
            let sealed = seal_whole(&recipients, key.serialize().as_bytes());
            let sealed = sealed.map_err(|source| RotateError::Seal { source })?;
            let entry = SealedWriterKey {
                writer_key: key.key_id(),
                sealed: sha256(&sealed),
            };
            let object = layout::sealed_writer_key(&entry.writer_key, &entry.sealed);
            vault.store().put(&object, sealed.into()).await.map_err(store_error)?;
            writer_keys.push(entry);
        }

        let number = before.number + 1;
        let line = GenerationLine {
            format: FORMAT,
            vault_id: vault.id(),
            generation: number,
            previous: before.sha256,
            created_at: now,
            recipients: texts,
            writer_key_id: writer_key.key_id(),
            signers,
            writer_keys,
            reason: rotation.reason,
        };
        let mut authors = vec![rotation.writer_key];
        if is_new_key {
            authors.push(writer_key);
        }
        let bytes =
            generation::encode(&line, &authors).map_err(|source| RotateError::Seal { source: source.into() })?;
        let object = layout::generation(number);
        let created = vault
            .store()
            .put_commit(&object, bytes.clone())
            .await
            .map_err(store_error)?;
        if created == Created::Before {
            let stored = vault.get_document("read the generation that is there", &object).await;
            // Our own earlier try may have landed although its answer was lost.
            if stored.map_err(read_error)?.is_none_or(|stored| stored != bytes) {
                return Err(RotateError::Overtaken { generation: number });
            }
        }
        // Read back as any writer will.
        vault.for_writing(writer_key).await.map_err(read_error)
    }

    /// The writer keys of earlier generations, other than these.
    async fn older_writer_keys(&self, known: &[WriterKey], identity: &Identity) -> Result<Vec<WriterKey>, ReadError> {
        let known: BTreeSet<String> = known.iter().map(WriterKey::key_id).collect();
        let older: BTreeSet<&str> = self.generations().map(|found| found.writer_key_id.as_str()).collect();
        let mut keys = Vec::new();
        for id in older.into_iter().filter(|id| !known.contains(*id)) {
            keys.push(self.open_writer_key(id, identity).await?);
        }
        Ok(keys)
    }
}

fn known_signers(signers: Vec<(String, String)>) -> Result<Vec<KnownSigner>, RotateError> {
    let key_error = |source| RotateError::Key { source };
    if signers.is_empty() {
        return Err(RotateError::NoSigners);
    }
    let mut known = Vec::with_capacity(signers.len());
    for (principal, line) in signers {
        check_principal(&principal).map_err(key_error)?;
        let public_key = parse_public_line(&line).map_err(key_error)?;
        known.push(KnownSigner { principal, public_key });
    }
    Ok(known)
}
