//! A vault that exists: opening it, and what it says of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use strongroom_proto::receipt::RECEIPT_NAMESPACE;
use strongroom_proto::{BackupId, VaultId};

use crate::create::{self, NewVault};
use crate::describe::{ChunkerParameters, Description, FORMAT};
use crate::error::{CreateVaultError, OpenVaultError, ReadError};
use crate::keys::{Identity, Recipient, WriterKey, parse_recipient};
use crate::layout;
use crate::store::Store;

/// A vault. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    store: Store,
    description: Description,
    /// `vault.json` as stored: what the MAC is over.
    bytes: Bytes,
    recipients: Arc<[Recipient]>,
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
        if description.chunker != ChunkerParameters::ours() {
            return Err(unsupported(format!("the chunker {:?}", description.chunker)));
        }
        let recipients: Vec<Recipient> = description
            .recipients
            .iter()
            .map(|text| parse_recipient(text))
            .collect::<Result<_, _>>()
            .map_err(|e| malformed(e.into()))?;
        if recipients.is_empty() {
            return Err(malformed("it names no recipient".into()));
        }
        Ok(Self(Arc::new(Inner {
            store,
            description,
            bytes,
            recipients: recipients.into(),
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

    /// Who can read it.
    pub fn recipients(&self) -> &[String] {
        &self.0.description.recipients
    }

    /// The name of the writer key its writers hold.
    pub fn writer_key_id(&self) -> &str {
        &self.0.description.writer_key_id
    }

    /// Who signs receipts: the text of an `allowed_signers` file for `ssh-keygen -Y verify`.
    pub fn allowed_signers(&self) -> String {
        let line = |s: &crate::describe::KnownSigner| {
            format!("{} namespaces=\"{RECEIPT_NAMESPACE}\" {}\n", s.principal, s.public_key)
        };
        self.0.description.signers.iter().map(line).collect()
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

    /// The number of the set of keys that is in force, from 1.
    pub(crate) fn key_generation(&self) -> u32 {
        1
    }

    /// The writer key with this id, sealed in the vault so that an identity alone can check what it reads.
    pub(crate) async fn open_writer_key(&self, key_id: &str, identity: &Identity) -> Result<WriterKey, ReadError> {
        let object = layout::writer_key(key_id);
        let sealed = self.get_document("read the writer key", &object).await?;
        let sealed = sealed.ok_or_else(|| ReadError::Missing { object: object.clone() })?;
        identity.open_writer_key(&object, &sealed, layout::DOCUMENT_BYTES)
    }

    /// Makes sure that this is the vault's writer key and that `vault.json` is as its holder wrote it.
    ///
    /// Without this, who can write to the bucket could add a recipient and be sent every later backup.
    pub(crate) async fn check_writer_key(&self, key: &WriterKey) -> Result<(), ReadError> {
        let found = key.key_id();
        if found != self.0.description.writer_key_id {
            return Err(ReadError::WrongWriterKey {
                vault: self.id(),
                found,
                expected: self.0.description.writer_key_id.clone(),
            });
        }
        let object = layout::vault_mac(&found);
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

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn sealed_to(&self) -> &Arc<[Recipient]> {
        &self.0.recipients
    }

    pub(crate) fn public_lines(&self) -> impl Iterator<Item = &str> {
        self.0
            .description
            .signers
            .iter()
            .map(|signer| signer.public_key.as_str())
    }

    pub(crate) async fn get_document(&self, doing: &str, object: &str) -> Result<Option<Bytes>, ReadError> {
        self.store()
            .get(object, layout::DOCUMENT_BYTES)
            .await
            .map_err(|source| ReadError::store(doing, source))
    }
}
