//! Looking into a vault from the command line: which one, and with whose keys.
//!
//! What the flags name counts; then what the settings say; then what lies beside the configuration file, where
//! `strongroom standalone` keeps it.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use anyhow::Context as _;
use clap::Args;
use strongroom_proto::BackupId;
use strongroom_runtime::Loaded;
use strongroom_runtime::entry::one_line;
use strongroom_vault::{Identity, ReadError, S3Settings, Store, StoreConfig, Vault};
use strongroom_worker::store_config;

use crate::commands::Outcome;
use crate::render;

/// Where a vault is, on the command line.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct StoreArgs {
    /// The vault: file:///path or s3://bucket/prefix; without it vault.url of the settings. For S3 the usual variables
    /// count: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// The endpoint of an S3 service that is not Amazon's
    #[arg(long, value_name = "URL", requires = "store")]
    pub(crate) s3_endpoint: Option<String>,
    /// The region of the bucket
    #[arg(long, value_name = "REGION", requires = "store")]
    pub(crate) s3_region: Option<String>,
}

/// Whose eyes it is seen with.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct IdentityArgs {
    /// The identity file; without it keys.identity_file of the settings, or that of a standalone folder
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens the vault that is named, or configured.
    pub(crate) async fn open(&self, loaded: &Loaded) -> anyhow::Result<Vault> {
        let config = match &self.store {
            Some(url) => self.named(url),
            None if !loaded.config.vault.url.is_empty() => store_config(&loaded.config)?,
            None => {
                let folder = beside(loaded, "vault").filter(|folder| folder.join("vault.json").is_file());
                let folder = folder.context("no vault is named: give --store URL, or set vault.url")?;
                StoreConfig {
                    url: folder.to_string_lossy().into_owned(),
                    s3: None,
                }
            }
        };
        open(&config).await
    }

    /// Opens the vault that is named, whatever is configured.
    pub(crate) async fn open_named(&self) -> anyhow::Result<Vault> {
        let url = self.store.as_deref().context("no vault is named: give --store URL")?;
        open(&self.named(url)).await
    }

    /// The store at this URL, reached as the flags and variables say.
    pub(crate) fn named(&self, url: &str) -> StoreConfig {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = self
            .s3_endpoint
            .clone()
            .or_else(|| variable("AWS_ENDPOINT_URL_S3"))
            .or_else(|| variable("AWS_ENDPOINT_URL"));
        StoreConfig {
            url: url.to_owned(),
            s3: Some(S3Settings {
                // Whoever writes http:// has decided.
                allow_http: endpoint
                    .as_ref()
                    .is_some_and(|endpoint| endpoint.starts_with("http://")),
                endpoint,
                region: self.s3_region.clone(),
                ..S3Settings::default()
            }),
        }
    }
}

async fn open(config: &StoreConfig) -> anyhow::Result<Vault> {
    Ok(Vault::open(Store::open(config)?).await?)
}

impl IdentityArgs {
    fn path(&self, loaded: &Loaded) -> Option<PathBuf> {
        self.identity
            .clone()
            .or_else(|| loaded.config.keys.identity_file.clone())
            .or_else(|| beside(loaded, "keys/identity.txt").filter(|path| path.is_file()))
    }

    /// Whether there is one.
    pub(crate) fn is_named(&self, loaded: &Loaded) -> bool {
        self.path(loaded).is_some()
    }

    /// Reads the identity that is named, or configured.
    pub(crate) fn read(&self, loaded: &Loaded) -> anyhow::Result<Identity> {
        let path = self
            .path(loaded)
            .context("no identity is named: give --identity FILE, or set keys.identity_file")?;
        read_identity(&path)
    }
}

/// Reads an identity file.
pub(crate) fn read_identity(path: &Path) -> anyhow::Result<Identity> {
    let failed = || format!("read the identity from {}", path.display());
    let text = std::fs::read_to_string(path).with_context(failed)?;
    Identity::from_file_text(&text).with_context(failed)
}

/// A path beside the configuration file.
pub(crate) fn beside(loaded: &Loaded, name: &str) -> Option<PathBuf> {
    Some(loaded.file.as_ref()?.parent()?.join(name))
}

/// The backup that a text names: by its id, or by a target's name for its newest one. A warning where receipts were passed
/// over on the way that cannot be read.
pub(crate) async fn find_backup(vault: &Vault, text: &str) -> anyhow::Result<(BackupId, Outcome)> {
    if let Ok(id) = BackupId::from_str(text) {
        return Ok((id, Outcome::Done));
    }
    let mut outcome = Outcome::Done;
    // Ids are in the order of time.
    for id in vault.backups().await?.into_iter().rev() {
        match vault.receipt(&id).await {
            Ok(Some(committed)) if committed.receipt.target.as_str() == text => return Ok((id, outcome)),
            Ok(_) => {}
            Err(error) if error.is_damage() => {
                outcome = Outcome::Warning;
                tell_passed_over(&id, &error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!(
        "the vault holds no backup {0} and none of a target {0}{1}",
        render::safe(text),
        match outcome {
            Outcome::Done => "",
            _ => " whose receipt can be read",
        }
    )
}

/// Says that a backup is passed over, of whatever target it is: its receipt, or what lists its content, is missing, damaged
/// or not to be trusted.
pub(crate) fn tell_passed_over(id: &BackupId, error: &ReadError) {
    eprintln!(
        "strongroom: backup {id} is passed over: {}; `strongroom vault check` names all that is damaged",
        render::safe(&one_line(error))
    );
}
