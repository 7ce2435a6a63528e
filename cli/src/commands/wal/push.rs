//! `strongroom wal push`: one file from `archive_command`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use strongroom_connectors::postgres::wal::{HistoryBefore, Pushed, push};
use strongroom_proto::TargetName;
use strongroom_proto::wal::{SystemIdentifier, WalSource};
use strongroom_runtime::entry::one_line;
use strongroom_vault::{S3Settings, Secret, Signer, Store, StoreConfig, Vault, WriterKey};

use super::notice;
use crate::render;
use crate::vault_access::{StoreArgs, read_identity};

/// Who signs where nothing else is said.
const SIGNER: &str = "dumper";

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The file: %p
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Everything below, as JSON, in a file that only its owner can read: store, s3, writer_key_file, signing_key_file,
    /// signer, system_identifier, identity_file; also catalog_url and target, for the timeline and for alerts
    #[arg(long, value_name = "FILE", conflicts_with_all = ["store", "writer_key", "signing_key", "system"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// The vault's writer key
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    writer_key: Option<PathBuf>,
    /// The key that signs what is stored; the vault must know it
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    signing_key: Option<PathBuf>,
    /// The name of that key in the vault
    #[arg(long, value_name = "NAME", default_value = SIGNER)]
    signer: String,
    /// The cluster's system identifier, as pg_controldata shows it: WAL of another one is refused
    #[arg(long, value_name = "NUMBER", required_unless_present = "from")]
    system: Option<SystemIdentifier>,
    /// Compare what the vault has of a segment already. Who reads does that in any case; better not on a database host
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// What a push needs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PushSettings {
    store: String,
    #[serde(default)]
    s3: Option<S3Settings>,
    writer_key_file: PathBuf,
    signing_key_file: PathBuf,
    #[serde(default = "default_signer")]
    signer: String,
    system_identifier: SystemIdentifier,
    #[serde(default)]
    identity_file: Option<PathBuf>,
    /// The catalog to tell of it; a URL with a password, so it is never a flag.
    #[serde(default)]
    catalog_url: Option<Secret>,
    /// The target that alerts are about.
    #[serde(default)]
    target: Option<TargetName>,
}

fn default_signer() -> String {
    SIGNER.to_owned()
}

impl PushArgs {
    fn settings(self) -> anyhow::Result<(PushSettings, PathBuf)> {
        let settings = match (self.from, self.writer_key, self.signing_key, self.system) {
            (Some(path), ..) => {
                let mut settings: PushSettings = super::read_settings(&path)?;
                settings.identity_file = self.identity.or(settings.identity_file);
                settings
            }
            (None, Some(writer_key_file), Some(signing_key_file), Some(system_identifier)) => {
                let url = self.store.store.as_deref();
                let config = self
                    .store
                    .named(url.context("no vault is named: give --store URL, or --from FILE")?);
                PushSettings {
                    store: config.url,
                    s3: config.s3,
                    writer_key_file,
                    signing_key_file,
                    signer: self.signer,
                    system_identifier,
                    identity_file: self.identity,
                    catalog_url: None,
                    target: None,
                }
            }
            _ => anyhow::bail!("give --from FILE, or --store, --writer-key, --signing-key and --system"),
        };
        Ok((settings, self.path))
    }
}

pub(super) async fn run(args: PushArgs) -> anyhow::Result<ExitCode> {
    let (settings, path) = args.settings()?;
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let writer_key = WriterKey::parse(&read(&settings.writer_key_file)?)?;
    let signer = Signer::from_openssh(&read(&settings.signing_key_file)?, &settings.signer)?;
    let identity = settings.identity_file.as_deref().map(read_identity).transpose()?;
    let config = StoreConfig {
        url: settings.store,
        s3: settings.s3,
    };
    let vault = Vault::open(Store::open(&config)?).await?;
    let sink = vault.wal_writer(writer_key, signer);
    let source = identity.map(|identity| vault.wal_reader(Arc::new(identity)));
    let source = source.as_ref().map(|source| source as &dyn WalSource);
    let pushed = push(&sink, source, settings.system_identifier, &path).await?;
    let warning = warning(&pushed);
    if let Some(warning) = &warning {
        eprintln!("strongroom: WARNING: {}", render::safe(warning));
    }
    if let Some(url) = &settings.catalog_url {
        let told = notice::tell(url, settings.target.as_ref(), vault.id(), &pushed, warning.as_deref()).await;
        match told {
            Ok(None) => {}
            Ok(Some(warning)) => eprintln!("strongroom: WARNING: {}", render::safe(&warning)),
            // The dumper makes up for it, as does a rebuild of the catalog. The file is stored, which is what counts here.
            Err(error) => {
                let error = render::safe(&one_line(error.as_ref()));
                eprintln!(
                    "strongroom: the WAL is stored, but the catalog was not told: {error}; where the target says wal: push, a dumper \
                     tells it within a minute; see whether catalog_url is right and its server answers, or leave it out"
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a person must know although the file is stored.
fn warning(pushed: &Pushed) -> Option<String> {
    match pushed {
        Pushed::StoredApart { piece, at, other } => Some(format!(
            "two servers write timeline {} of this cluster, or one was set back: what was stored now differs at {at} from \
             {other}. Both versions are kept, and neither can be recovered from until one is moved away: stop the server \
             that should not run",
            piece.timeline
        )),
        Pushed::StoredBeside { piece, others } => Some(format!(
            "the vault had WAL of {} already ({}{}); both are kept, and whoever reads compares them. That is harmless where \
             this file was handed over before. If not, two servers write timeline {}",
            piece.segment().file_name(piece.segment_bytes),
            others.first().map(String::as_str).unwrap_or_default(),
            match others.len() {
                0 | 1 => String::new(),
                more => format!(" and {} more", more - 1),
            },
            piece.timeline
        )),
        Pushed::StoredHistory {
            history,
            before: HistoryBefore::Another,
            ..
        } => Some(notice::two_histories(history.timeline)),
        Pushed::StoredHistory {
            history,
            before: HistoryBefore::Unknown,
            ..
        } => Some(format!(
            "the vault had a history of timeline {} already; both are kept, and whoever reads compares them. That is harmless \
             where this file was handed over before. If not, two servers went on upon that timeline from different places",
            history.timeline
        )),
        Pushed::Stored(_) | Pushed::AlreadyThere(_) | Pushed::StoredHistory { .. } | Pushed::Ignored => None,
    }
}
