//! A vault that exists: opening it, and what it says of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use strongroom_proto::receipt::RECEIPT_NAMESPACE;
use strongroom_proto::{BackupId, Sha256Digest, VaultId};

use crate::create::{self, NewVault};
use crate::describe::{Description, FORMAT};
use crate::error::{CreateVaultError, KeyError, OpenVaultError, ReadError};
use crate::generation::{Generation, History};
use crate::keys::{Identity, Recipient, WriterKey};
use crate::layout;
use crate::signing::parse_allowed_signers;
use crate::store::{Store, sha256};

/// A vault. Clones are cheap and share everything.
///
/// The keys it tells of are those that were in force when it was opened. Writing always looks for newer ones, reading
/// where something needs them, so a vault may be kept open for long.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    store: Store,
    description: Description,
    /// `vault.json` as stored: what the MAC is over.
    bytes: Bytes,
    keys: History,
    /// The public keys whose receipts are believed, where they are not those of the vault itself.
    trusted: Option<Vec<String>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault")
            .field("id", &self.id())
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Makes a vault where there is none.
    ///
    /// The store is probed first: one that overwrites where it was told to create is refused.
    pub async fn create(store: Store, new: NewVault<'_>, now: DateTime<Utc>) -> Result<Self, CreateVaultError> {
        let store = create::create(store, new, now).await?;
        Self::open(store).await.map_err(|error| match error {
            OpenVaultError::Store { source } => CreateVaultError::Store { source },
            other => CreateVaultError::Seal {
                source: std::io::Error::other(other),
            },
        })
    }

    /// Opens the vault in this store.
    pub async fn open(store: Store) -> Result<Self, OpenVaultError> {
        let url = || store.url().to_owned();
        if !store.exists() {
            return Err(OpenVaultError::NoVault { url: url() });
        }
        let bytes = store
            .get(layout::VAULT, layout::DOCUMENT_BYTES)
            .await
            .map_err(|source| OpenVaultError::Store { source })?
            .ok_or_else(|| OpenVaultError::NoVault { url: url() })?;
        let malformed =
            |source: Box<dyn std::error::Error + Send + Sync>| OpenVaultError::Malformed { url: url(), source };
        let unsupported = |what| OpenVaultError::Unsupported { url: url(), what };
        // The version first: a newer one may have other fields.
        let anything: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.into()))?;
        let format = anything.get("format").and_then(serde_json::Value::as_u64);
        match format {
            None => return Err(malformed("it names no format".into())),
            Some(format) if format != u64::from(FORMAT) => return Err(unsupported(format!("format {format}"))),
            Some(_) => {}
        }
        let description: Description = serde_json::from_value(anything).map_err(|e| malformed(e.into()))?;
        if !description.chunker.are_supported() {
            return Err(unsupported(format!("the chunker {:?}", description.chunker)));
        }
        let mut keys = History::begin(&description, &bytes).map_err(|e| malformed(e.into()))?;
        keys.read_later(&store, description.vault_id)
            .await
            .map_err(|source| OpenVaultError::Keys { source })?;
        Ok(Self(Arc::new(Inner {
            store,
            description,
            bytes,
            keys,
            trusted: None,
        })))
    }

    /// The vault's id.
    pub fn id(&self) -> VaultId {
        self.0.description.vault_id
    }

    /// Where it is, without any key.
    pub fn url(&self) -> &str {
        self.0.store.url()
    }

    /// Who can read what is written now.
    pub fn recipients(&self) -> &[String] {
        &self.0.keys.newest().recipients
    }

    /// The name of the writer key that its writers hold now.
    pub fn writer_key_id(&self) -> &str {
        &self.0.keys.newest().writer_key_id
    }

    /// The number of the generation of keys that is in force, from 1.
    pub fn key_generation(&self) -> u32 {
        self.0.keys.newest().number
    }

    /// Who signs receipts, or ever did: the text of an `allowed_signers` file for `ssh-keygen -Y verify`.
    pub fn allowed_signers(&self) -> String {
        let mut lines = BTreeSet::new();
        let mut text = String::new();
        for signer in self.0.keys.all().flat_map(|generation| &generation.signers) {
            let line = format!(
                "{} namespaces=\"{RECEIPT_NAMESPACE}\" {}\n",
                signer.principal, signer.public_key
            );
            if lines.insert(line.clone()) {
                text.push_str(&line);
            }
        }
        text
    }

    /// The same vault, whose receipts are believed only with a signature of these keys, whatever the vault itself says:
    /// the text of an `allowed_signers` file, kept where nobody who writes to the vault can change it.
    pub fn trusting(&self, allowed_signers: &str) -> Result<Self, KeyError> {
        let mut inner = Inner::clone(&self.0);
        inner.trusted = Some(parse_allowed_signers(allowed_signers)?);
        Ok(Self(Arc::new(inner)))
    }

    /// The ids of all backups that have a receipt, in order, which is that of the time they were asked for.
    pub async fn backups(&self) -> Result<Vec<BackupId>, ReadError> {
        let paths = self
            .store()
            .list(layout::BACKUPS_FOLDER)
            .await
            .map_err(|source| ReadError::store("list the vault's backups", source))?;
        let ids: BTreeSet<BackupId> = paths
            .iter()
            .filter_map(|path| {
                let id: BackupId = path.split('/').nth(1)?.parse().ok()?;
                (*path == layout::receipt(&id)).then_some(id)
            })
            .collect();
        Ok(ids.into_iter().collect())
    }

    /// The writer key with this id, sealed in the vault so that an identity alone can check what it reads.
    ///
    /// The vault's description and every generation of keys that this key vouches for are as its holder wrote them.
    pub(crate) async fn open_writer_key(&self, key_id: &str, identity: &Identity) -> Result<WriterKey, ReadError> {
        if !self.0.keys.knows(key_id)
            && let Some(newer) = self.newer().await?
        {
            return newer.open_known_writer_key(key_id, identity).await;
        }
        self.open_known_writer_key(key_id, identity).await
    }

    async fn open_known_writer_key(&self, key_id: &str, identity: &Identity) -> Result<WriterKey, ReadError> {
        let mut failed = None;
        for (object, digest) in self.sealed_writer_keys(key_id) {
            match self.open_sealed_writer_key(&object, digest, key_id, identity).await {
                Ok(key) => {
                    self.check_macs(&key).await?;
                    return Ok(key);
                }
                Err(error) if error.is_retryable() => return Err(error),
                // One that is damaged says more than one that was sealed to somebody else.
                Err(error) => match (&failed, &error) {
                    (None, _) | (Some(ReadError::WrongIdentity { .. }), _) => failed = Some(error),
                    _ => {}
                },
            }
        }
        Err(failed.unwrap_or_else(|| ReadError::Missing {
            object: layout::writer_key(key_id),
        }))
    }

    /// Where this writer key lies sealed, sealed last first, with the digest of what lies there where one is known.
    pub(crate) fn sealed_writer_keys(&self, key_id: &str) -> Vec<(String, Option<Sha256Digest>)> {
        let mut places: Vec<_> = self
            .0
            .keys
            .all()
            .rev()
            .flat_map(|generation| &generation.writer_keys)
            .filter(|sealed| sealed.writer_key == key_id)
            .map(|sealed| (layout::sealed_writer_key(key_id, &sealed.sealed), Some(sealed.sealed)))
            .collect();
        if self.0.description.writer_key_id == key_id {
            places.push((layout::writer_key(key_id), None));
        }
        places
    }

    pub(crate) async fn open_sealed_writer_key(
        &self,
        object: &str,
        digest: Option<Sha256Digest>,
        key_id: &str,
        identity: &Identity,
    ) -> Result<WriterKey, ReadError> {
        let damaged = |problem| ReadError::Damaged {
            object: object.to_owned(),
            problem,
        };
        let sealed = self.get_document("read the writer key", object).await?;
        let sealed = sealed.ok_or_else(|| ReadError::Missing {
            object: object.to_owned(),
        })?;
        if digest.is_some_and(|digest| sha256(&sealed) != digest) {
            return Err(damaged("its SHA-256 is not its name"));
        }
        let key = identity.open_writer_key(object, &sealed, layout::DOCUMENT_BYTES)?;
        match key.key_id() == key_id {
            true => Ok(key),
            false => Err(damaged("it holds another writer key than its name says")),
        }
    }

    /// Makes sure that this was a writer key of the vault, and that everything that it vouches for is as it was written.
    pub(crate) async fn check_macs(&self, key: &WriterKey) -> Result<(), ReadError> {
        let id = key.key_id();
        if !self.0.keys.knows(&id) {
            return Err(self.wrong_writer_key(id));
        }
        self.0.keys.check_macs(key)?;
        if self.0.description.writer_key_id != id {
            return Ok(());
        }
        let object = layout::vault_mac(&id);
        let mac = self.get_document("check vault.json", &object).await?;
        let mac = mac.ok_or(ReadError::Missing { object })?;
        let stored = std::str::from_utf8(&mac)
            .ok()
            .and_then(|text| blake3::Hash::from_hex(text.strip_suffix('\n')?).ok());
        if stored == Some(key.macs().mac(&self.0.bytes)) {
            Ok(())
        } else {
            Err(ReadError::Damaged {
                object: layout::VAULT.to_owned(),
                problem: "its MAC was not made with this vault's writer key",
            })
        }
    }

    /// The vault with the keys that are in force now, for a holder of the writer key; an error where this is not it.
    ///
    /// Without this, who can write to the store could add a recipient and be sent every later backup.
    pub(crate) async fn for_writing(&self, key: &WriterKey) -> Result<Self, ReadError> {
        let vault = self.newer().await?.unwrap_or_else(|| self.clone());
        vault.check_macs(key).await?;
        let found = key.key_id();
        if vault.writer_key_id() == found {
            return Ok(vault);
        }
        // Its successor was vouched for by this key, or `check_macs` had refused it.
        Err(ReadError::WriterKeyRotated {
            vault: vault.id(),
            found,
            expected: vault.writer_key_id().to_owned(),
        })
    }

    /// The vault with the generations of keys that came since it was opened, where there are any.
    pub(crate) async fn newer(&self) -> Result<Option<Self>, ReadError> {
        let known = self.key_generation();
        let next = layout::generation(known + 1);
        if self.get_document("look for newer keys", &next).await?.is_none() {
            return Ok(None);
        }
        let mut inner = Inner::clone(&self.0);
        inner.keys.read_later(&self.0.store, self.id()).await?;
        Ok(Some(Self(Arc::new(inner))))
    }

    fn wrong_writer_key(&self, found: String) -> ReadError {
        ReadError::WrongWriterKey {
            vault: self.id(),
            found,
            expected: self.writer_key_id().to_owned(),
        }
    }

    pub(crate) fn generations(&self) -> impl DoubleEndedIterator<Item = &Generation> {
        self.0.keys.all()
    }

    pub(crate) fn generation(&self, number: u32) -> Option<&Generation> {
        self.0.keys.get(number)
    }

    pub(crate) fn newest_generation(&self) -> &Generation {
        self.0.keys.newest()
    }

    pub(crate) fn description(&self) -> &Description {
        &self.0.description
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn sealed_to(&self) -> &Arc<[Recipient]> {
        &self.0.keys.newest().sealed_to
    }

    /// The public keys that may sign a receipt now.
    pub(crate) fn signers_in_force(&self) -> impl Iterator<Item = &str> {
        self.0
            .keys
            .newest()
            .signers
            .iter()
            .map(|signer| signer.public_key.as_str())
    }

    /// The public keys whose receipts are believed: those of all generations, for receipts outlive the key that made
    /// them, or those that somebody else named.
    pub(crate) fn public_lines(&self) -> impl Iterator<Item = &str> {
        let own = self.0.keys.all().flat_map(|generation| &generation.signers);
        let own = self
            .0
            .trusted
            .is_none()
            .then(|| own.map(|signer| signer.public_key.as_str()));
        let others = self.0.trusted.iter().flatten().map(String::as_str);
        own.into_iter().flatten().chain(others)
    }

    pub(crate) async fn get_document(&self, doing: &str, object: &str) -> Result<Option<Bytes>, ReadError> {
        self.store()
            .get(object, layout::DOCUMENT_BYTES)
            .await
            .map_err(|source| ReadError::store(doing, source))
    }
}
