//! The keys of a fleet, as files, and the vault that is sealed to them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use chrono::Utc;
use strongroom_runtime::Config;
use strongroom_vault::{Identity, NewVault, OpenVaultError, Signer, Store, Vault, WriterKey};
use strongroom_worker::store_config;

/// The services that sign receipts; each has a key of its own, so that none can pass for another.
const SIGNERS: [&str; 4] = ["dumper", "snapshotter", "verifier", "restorer"];

/// Who will be able to read what is written.
pub(crate) enum Readers {
    /// The identity in the folder of keys, made where it is missing.
    Identity,
    /// These recipients, whose identities are elsewhere.
    Recipients(Vec<String>),
}

/// Makes the keys that are missing in the folder; what is there stays.
pub(crate) fn ensure(folder: &Path, readers: &Readers) -> anyhow::Result<()> {
    let identity = folder.join("identity.txt");
    if matches!(readers, Readers::Identity) && !identity.exists() {
        let (text, _) = Identity::generate();
        write_private(&identity, &text)?;
    }
    let writer = folder.join("writer.key");
    if !writer.exists() {
        write_private(&writer, &WriterKey::generate().serialize())?;
    }
    for principal in SIGNERS {
        let path = folder.join(format!("signing-{principal}.key"));
        if !path.exists() {
            write_private(&path, &Signer::generate(principal)?.to_openssh()?)?;
        }
    }
    Ok(())
}

/// Makes the configured vault with the keys of the folder. An error where there is one already.
pub(crate) async fn create_vault(config: &Config, folder: &Path, readers: &Readers) -> anyhow::Result<Vault> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let recipients = match readers {
        Readers::Identity => Identity::from_file_text(&read("identity.txt")?)?.recipients(),
        Readers::Recipients(recipients) => recipients.clone(),
    };
    let writer_key = WriterKey::parse(&read("writer.key")?)?;
    let mut signers = Vec::new();
    for principal in SIGNERS {
        let signer = Signer::from_openssh(&read(&format!("signing-{principal}.key"))?, principal)?;
        signers.push((principal.to_owned(), signer.public_line()?));
    }
    let new = NewVault {
        recipients,
        writer_key: &writer_key,
        signers,
    };
    Ok(Vault::create(Store::open(&store_config(config)?)?, new, Utc::now()).await?)
}

/// Makes the configured vault where there is none.
pub(crate) async fn ensure_vault(config: &Config, folder: &Path) -> anyhow::Result<()> {
    match Vault::open(Store::open(&store_config(config)?)?).await {
        Err(OpenVaultError::NoVault { .. }) => {
            let vault = create_vault(config, folder, &Readers::Identity).await?;
            tracing::info!(vault = vault.url(), id = %vault.id(), "vault made");
            Ok(())
        }
        opened => Ok(opened.map(drop)?),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("write {}", path.display());
    let partial = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&partial)
        .with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    fs::rename(&partial, path).with_context(failed)
}
