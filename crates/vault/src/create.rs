//! Making a vault: probe the store, seal the writer key to the recipients, write `vault.json` last.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use strongroom_proto::VaultId;
use uuid::Uuid;

use crate::chunker::ChunkerParameters;
use crate::describe::{Capabilities, Description, FORMAT, KnownSigner};
use crate::error::{CreateVaultError, StoreError};
use crate::keys::{Recipient, WriterKey, parse_recipient, seal_whole};
use crate::layout;
use crate::signing::{check_principal, parse_public_line};
use crate::store::{Created, Store};

/// What a new vault is made of.
#[derive(Debug, Clone)]
pub struct NewVault<'a> {
    /// Who will be able to read it: `age1…`.
    pub recipients: Vec<String>,
    /// The key its writers will hold.
    pub writer_key: &'a WriterKey,
    /// Who may sign receipts: principal and OpenSSH public key line.
    pub signers: Vec<(String, String)>,
}

pub(crate) async fn create(mut store: Store, new: NewVault<'_>, now: DateTime<Utc>) -> Result<Store, CreateVaultError> {
    let key_error = |source| CreateVaultError::Key { source };
    let store_error = |source| CreateVaultError::Store { source };
    if new.recipients.is_empty() {
        return Err(CreateVaultError::NoRecipients);
    }
    if new.signers.is_empty() {
        return Err(CreateVaultError::NoSigners);
    }
    let recipients: Vec<Recipient> = new
        .recipients
        .iter()
        .map(|text| parse_recipient(text))
        .collect::<Result<_, _>>()
        .map_err(key_error)?;
    let mut signers = Vec::with_capacity(new.signers.len());
    for (principal, line) in new.signers {
        check_principal(&principal).map_err(key_error)?;
        let public_key = parse_public_line(&line).map_err(key_error)?;
        signers.push(KnownSigner { principal, public_key });
    }

    store.make_folder().map_err(store_error)?;
    let exists = || CreateVaultError::Exists {
        url: store.url().to_owned(),
    };
    let found = store
        .get(layout::VAULT, layout::DOCUMENT_BYTES)
        .await
        .map_err(store_error)?;
    if found.is_some() {
        return Err(exists());
    }
    probe(&store).await?;
    let capabilities = match store.bucket() {
        Some(bucket) => {
            let object = format!("{}/{}", layout::PROBE_FOLDER, Uuid::new_v4());
            let capabilities = bucket.capabilities(&object).await;
            store.delete(&object).await.map_err(store_error)?;
            capabilities
        }
        None => Capabilities::FILE_SYSTEM,
    };

    let key_id = new.writer_key.key_id();
    let description = Description {
        format: FORMAT,
        vault_id: VaultId::fresh(),
        created_at: now,
        chunker: ChunkerParameters::of_new_vaults(),
        recipients: recipients.iter().map(ToString::to_string).collect(),
        writer_key_id: key_id.clone(),
        signers,
        capabilities,
    };
    let seal_error = |source| CreateVaultError::Seal { source };
    let mut bytes = serde_json::to_vec_pretty(&description).map_err(|e| seal_error(e.into()))?;
    bytes.push(b'\n');
    let sealed_key = seal_whole(&recipients, new.writer_key.serialize().as_bytes()).map_err(seal_error)?;
    let mac = format!("{}\n", new.writer_key.macs().mac(&bytes).to_hex());
    // An attempt that died before vault.json may have left these two; without it they mean nothing.
    for (object, content) in [
        (layout::writer_key(&key_id), sealed_key),
        (layout::vault_mac(&key_id), mac.into_bytes()),
    ] {
        store.delete(&object).await.map_err(store_error)?;
        store.put(&object, content.into()).await.map_err(store_error)?;
    }
    match store
        .put_commit(layout::VAULT, bytes.into())
        .await
        .map_err(store_error)?
    {
        Created::Now => Ok(store),
        Created::Before => Err(exists()),
    }
}

/// Makes sure that of two writers who create one object only one succeeds: on that every commit rests.
async fn probe(store: &Store) -> Result<(), CreateVaultError> {
    let object = format!("{}/{}", layout::PROBE_FOLDER, Uuid::new_v4());
    let outcome = probe_object(store, &object).await;
    let deleted = store.delete(&object).await;
    let found = outcome.map_err(|source| CreateVaultError::Store { source })?;
    if let Some(found) = found {
        return Err(CreateVaultError::NoCreateIfAbsent {
            url: store.url().to_owned(),
            found,
        });
    }
    deleted.map_err(|source| CreateVaultError::Store { source })
}

async fn probe_object(store: &Store, object: &str) -> Result<Option<&'static str>, StoreError> {
    const OVERWROTE: Option<&str> = Some("a second put of the same name replaced the first");
    let (first, second) = (Bytes::from_static(b"first\n"), Bytes::from_static(b"second\n"));
    store.put(object, first.clone()).await?;
    match store.put(object, second.clone()).await {
        Err(StoreError::Exists { .. }) => {}
        Err(other) => return Err(other),
        Ok(()) => return Ok(OVERWROTE),
    }
    if store.put_commit(object, second).await? == Created::Now {
        return Ok(OVERWROTE);
    }
    let kept = store.get(object, layout::DOCUMENT_BYTES).await?;
    Ok(match kept {
        Some(kept) if kept == first => None,
        Some(_) => Some("a refused second put changed the object all the same"),
        None => Some("an object that was put is not there"),
    })
}
