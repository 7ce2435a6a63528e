//! `strongroom wal fetch`: one file for `restore_command`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use strongroom_connectors::postgres::wal::{
    Answer, AssembleError, DEFAULT_SEGMENT_BYTES, FetchBucket, FetchSettings, WalFileName, find,
};
use strongroom_proto::wal::{SystemIdentifier, WalSegment};
use strongroom_vault::{OpenVaultError, ReadError, S3Settings, Secret, Store, StoreConfig, Vault};

use super::place;
use super::spool::Spool;
use crate::vault_access::{StoreArgs, read_identity};

/// The pause after a try that failed, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A line that is slower than this does not work: bytes in a second.
const SLOWEST_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// The file's name: %f
    #[arg(value_name = "NAME")]
    name: String,
    /// Where it is written: %p
    #[arg(value_name = "PATH")]
    path: PathBuf,
    #[command(flatten)]
    from: FromArgs,
}

/// Where from.
#[derive(Debug, Args)]
struct FromArgs {
    /// Everything below, as JSON, in a file that only its owner can read: store, s3, identity_file, system_identifier,
    /// segment_bytes, allowed_signers_file, spool_dir, prefetch_segments, retry_seconds
    #[arg(long, value_name = "FILE", conflicts_with_all = ["store", "identity", "system"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// The identity file: age's, or an SSH private key without a passphrase
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    identity: Option<PathBuf>,
    /// The cluster's system identifier, as pg_controldata shows it
    #[arg(long, value_name = "NUMBER", required_unless_present = "from")]
    system: Option<SystemIdentifier>,
    /// The size of the cluster's segments [default: 16777216]
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<u32>,
    /// Believe WAL that these keys signed, instead of those that the vault itself names
    #[arg(long, value_name = "FILE")]
    allowed_signers: Option<PathBuf>,
    /// A private folder for segments that are brought ahead; without it none are
    #[arg(long, value_name = "DIR")]
    spool_dir: Option<PathBuf>,
    /// How many segments are brought ahead [default: 8]
    #[arg(long, value_name = "NUMBER")]
    prefetch: Option<u32>,
    /// How long a store that does not answer is tried again [default: 30]
    #[arg(long, value_name = "SECONDS")]
    retry_seconds: Option<u64>,
}

impl FromArgs {
    fn settings(self) -> anyhow::Result<FetchSettings> {
        let mut settings = match (&self.from, self.identity, self.system) {
            (Some(path), ..) => super::read_settings(path)?,
            (None, Some(identity), Some(system)) => {
                let url = self.store.store.clone();
                let url = url.context("no vault is named: give --store URL, or --from FILE")?;
                let mut settings = FetchSettings::new(url, identity, system);
                settings.s3 = self.store.named(&settings.store).s3.map(|s3| FetchBucket {
                    endpoint: s3.endpoint,
                    region: s3.region,
                    allow_http: s3.allow_http,
                    ..FetchBucket::default()
                });
                settings
            }
            _ => anyhow::bail!("give --from FILE, or --store, --identity and --system"),
        };
        settings.segment_bytes = self.segment_bytes.unwrap_or(settings.segment_bytes);
        settings.allowed_signers_file = self.allowed_signers.or(settings.allowed_signers_file);
        settings.spool_dir = self.spool_dir.or(settings.spool_dir);
        settings.prefetch_segments = self.prefetch.unwrap_or(settings.prefetch_segments);
        settings.retry_seconds = self.retry_seconds.unwrap_or(settings.retry_seconds);
        anyhow::ensure!(
            settings.segment_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&settings.segment_bytes),
            "segments of {} bytes do not exist: give a power of two from 1048576 to 1073741824, usually {}",
            settings.segment_bytes,
            DEFAULT_SEGMENT_BYTES
        );
        Ok(settings)
    }
}

pub(super) async fn run(args: FetchArgs) -> anyhow::Result<ExitCode> {
    let settings = args.from.settings()?;
    let segment = match WalFileName::parse(&args.name, settings.segment_bytes) {
        Some(WalFileName::Segment(segment)) => Some(segment),
        _ => None,
    };
    let spool = segment.and_then(|segment| Some((Spool::open(&settings)?, segment)));
    let place = |bytes: &[u8]| {
        place::durable(&args.path, bytes).with_context(|| format!("write {} for Postgres", args.path.display()))
    };
    if let Some((spool, segment)) = &spool {
        spool.asked_for(*segment);
        if let Some(bytes) = spool.take(*segment).await {
            place(&bytes)?;
            spool.keep_filled();
            return Ok(ExitCode::SUCCESS);
        }
    }
    match with_retries(&settings, &args.name).await? {
        Answer::Found(found) => {
            place(&found.bytes)?;
            if let (Some((spool, _)), true) = (&spool, found.is_whole) {
                spool.keep_filled();
            }
            Ok(ExitCode::SUCCESS)
        }
        Answer::Absent => Ok(ExitCode::FAILURE),
    }
}

/// Asks the vault, again and again while it does not answer and there is time.
async fn with_retries(settings: &FetchSettings, name: &str) -> anyhow::Result<Answer> {
    let retries_end = Instant::now() + Duration::from_secs(settings.retry_seconds);
    let transfer = Duration::from_secs(u64::from(settings.segment_bytes) / SLOWEST_BYTES);
    let mut pause = FIRST_PAUSE;
    loop {
        let left = retries_end.saturating_duration_since(Instant::now()) + transfer;
        let answer = tokio::time::timeout(left, ask(settings, name)).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("the vault at {} did not answer in time", settings.store),
        };
        if !may_pass(&error) || Instant::now() + pause >= retries_end {
            return Err(error.context(format!("{name} was not fetched, so the recovery must stop here")));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A vault with the identity that reads it.
pub(super) struct Opened {
    vault: Vault,
    source: strongroom_vault::WalReader,
}

pub(super) async fn open(settings: &FetchSettings) -> anyhow::Result<Opened> {
    let identity = Arc::new(read_identity(&settings.identity_file)?);
    let mut vault = Vault::open(Store::open(&store_config(settings))?).await?;
    if let Some(path) = &settings.allowed_signers_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        vault = vault.trusting(&text)?;
    }
    let source = vault.wal_reader(identity);
    Ok(Opened { vault, source })
}

impl Opened {
    pub(super) async fn find(&self, settings: &FetchSettings, name: &str) -> Result<Answer, AssembleError> {
        find(&self.source, settings.system_identifier, settings.segment_bytes, name).await
    }
}

async fn ask(settings: &FetchSettings, name: &str) -> anyhow::Result<Answer> {
    let opened = open(settings).await?;
    let answer = opened.find(settings, name).await?;
    if !matches!(&answer, Answer::Found(found) if found.is_whole) {
        // That there is nothing more was found by listing. A folder whose disk was unmounted meanwhile lists nothing.
        let again = Vault::open(Store::open(&store_config(settings))?).await?;
        anyhow::ensure!(
            again.id() == opened.vault.id(),
            "the vault was exchanged for another one"
        );
    }
    Ok(answer)
}

fn store_config(settings: &FetchSettings) -> StoreConfig {
    StoreConfig {
        url: settings.store.clone(),
        s3: settings.s3.clone().map(|s3| S3Settings {
            endpoint: s3.endpoint,
            region: s3.region,
            access_key_id: s3.access_key_id,
            secret_access_key: s3.secret_access_key.map(|key| Secret::new(key.0)),
            allow_http: s3.allow_http,
        }),
    }
}

/// Whether the next try may succeed although nobody did anything.
fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        if let Some(error) = cause.downcast_ref::<AssembleError>() {
            return error.may_pass();
        }
        if let Some(error) = cause.downcast_ref::<OpenVaultError>() {
            // A folder that is not there may be a disk that is not mounted yet.
            return error.is_retryable()
                || matches!(error, OpenVaultError::NoVault { .. } | OpenVaultError::Store { .. });
        }
        let read = cause.downcast_ref::<ReadError>();
        let read = read.or_else(|| ReadError::in_io_error(cause.downcast_ref::<io::Error>()?));
        // What was listed and is missing goes with the whole store, or its absence is told by the next list.
        read.is_some_and(|e| e.is_retryable() || matches!(e, ReadError::Store { .. } | ReadError::Missing { .. }))
    })
}

/// The segment after this one.
pub(super) const fn next(segment: WalSegment) -> WalSegment {
    WalSegment {
        timeline: segment.timeline,
        number: segment.number + 1,
    }
}
