//! What the configuration means: the typed sections, their defaults and limits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strongroom_proto::receipt::Git;
use strongroom_proto::{TargetKind, TargetName};

use super::secret::{Secret, SecretUrl, shown_url};
use super::target::{TargetConfig, default_pool};
use super::tree::{self, HooksConfig};
use super::{ConfigError, Origin};

/// The whole configuration. Its `Debug` and `Serialize` forms hold no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which environment this is, for receipts: `dev`, `staging`, `prod`, ….
    pub environment: String,
    /// The commit that is deployed, for receipts.
    pub git: Option<Git>,
    /// The HTTP API.
    pub api: ApiConfig,
    /// The NATS servers.
    pub nats: NatsConfig,
    /// The catalog's Postgres.
    pub catalog: CatalogConfig,
    /// The vault.
    pub vault: VaultConfig,
    /// Where the keys lie.
    pub keys: KeysConfig,
    /// What a worker does.
    pub worker: WorkerConfig,
    /// What the coordinator does.
    pub coordinator: CoordinatorConfig,
    /// OpenTelemetry.
    pub otlp: OtlpConfig,
    /// Logs.
    pub log: LogConfig,
    /// The targets that the file declares; [`crate::TargetBook`] has those of `targets_dir` too.
    pub targets: BTreeMap<TargetName, TargetConfig>,
    /// A folder with one YAML file a target: its `name`, and the keys of a target.
    pub targets_dir: Option<PathBuf>,
    /// What targets named `scenario/<name>` are made of; absent where there are none.
    pub scenario: Option<ScenarioConfig>,
    /// Where the snapshotter keeps what it knows of the last backup of each target. It may be lost: then the next
    /// backup reads everything. Left out, it is `$XDG_CACHE_HOME/strongroom`, root's is `/var/cache/strongroom`.
    pub cache_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            environment: "dev".to_owned(),
            git: None,
            api: ApiConfig::default(),
            nats: NatsConfig::default(),
            catalog: CatalogConfig::default(),
            vault: VaultConfig::default(),
            keys: KeysConfig::default(),
            worker: WorkerConfig::default(),
            coordinator: CoordinatorConfig::default(),
            otlp: OtlpConfig::default(),
            log: LogConfig::default(),
            targets: BTreeMap::new(),
            targets_dir: None,
            scenario: Some(ScenarioConfig::default()),
            cache_dir: PathBuf::from(tree::SYSTEM_CACHE_DIR),
        }
    }
}

/// The HTTP API: where the coordinator listens, and where its clients find it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Where clients find it.
    pub url: String,
    /// Where the coordinator listens, as `address:port`.
    pub listen: String,
    /// The bearer token; [`Config::api_token`] looks into the file too.
    pub token: Option<Secret>,
    /// A file that holds the bearer token.
    pub token_file: Option<PathBuf>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:7070".to_owned(),
            listen: "127.0.0.1:7070".to_owned(),
            token: None,
            token_file: None,
        }
    }
}

/// The NATS servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsConfig {
    /// One URL, or several joined by commas; each may hold a user and a password.
    pub url: SecretUrl,
    /// A credentials file.
    pub credentials_file: Option<PathBuf>,
    /// Copies of each stream: 1 on a single server, 3 in a cluster.
    pub replicas: usize,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            url: SecretUrl::new("nats://127.0.0.1:4222"),
            credentials_file: None,
            replicas: 1,
        }
    }
}

/// The catalog's Postgres.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CatalogConfig {
    /// Its URL; [`Config::catalog_url`] has the password of the file in it too.
    pub url: SecretUrl,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// Connections of one process at most.
    pub max_connections: u32,
}

impl Default for CatalogConfig {
    fn default() -> Self {
        Self {
            url: SecretUrl::new("postgres://127.0.0.1:5432/strongroom"),
            password_file: None,
            max_connections: 10,
        }
    }
}

/// The vault.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaultConfig {
    /// `file:///path`, a path, or `s3://bucket/prefix`; empty until somebody says where.
    pub url: String,
    /// How to reach S3.
    pub s3: S3Config,
}

/// How to reach S3.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// The endpoint, where it is not Amazon's.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The access key's id.
    pub access_key_id: Option<String>,
    /// The access key; [`S3Config::secret_access_key`] looks into the file too.
    pub secret_access_key: Option<Secret>,
    /// A file that holds the access key.
    pub secret_access_key_file: Option<PathBuf>,
    /// Whether the endpoint may be plain HTTP.
    pub allow_http: bool,
}

impl S3Config {
    /// The access key, from the configuration or its file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn secret_access_key(&self) -> Result<Option<Secret>, ConfigError> {
        secret_or_file(
            self.secret_access_key.as_ref(),
            "vault.s3.secret_access_key_file",
            self.secret_access_key_file.as_deref(),
        )
    }
}

/// Where the keys lie. A worker is given those that it needs and no more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// The secret that whoever writes into the vault needs.
    pub writer_key_file: Option<PathBuf>,
    /// The age identity that whoever reads the vault needs.
    pub identity_file: Option<PathBuf>,
    /// The key that signs receipts.
    pub signing_key_file: Option<PathBuf>,
}

/// What a worker does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Its name in leases and logs; [`Config::worker_id`] makes one where there is none.
    pub id: Option<String>,
    /// Which work it takes.
    pub pool: String,
    /// Jobs at a time.
    pub concurrency: u32,
    /// How long a claim lasts without a heartbeat.
    pub lease_seconds: u32,
    /// Where temporary files and scratch databases go; the system's folder where it is left out.
    pub scratch_dir: Option<PathBuf>,
    /// Folders with Postgres programs, looked at before the usual ones.
    pub pg_bin_dirs: Vec<PathBuf>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            id: None,
            pool: default_pool(),
            concurrency: 2,
            lease_seconds: 30,
            scratch_dir: None,
            pg_bin_dirs: Vec::new(),
        }
    }
}

/// What the coordinator does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Time between two full scans.
    pub reconcile_seconds: u32,
    /// Jobs of one target at a time.
    pub per_target: u32,
    /// Jobs of one pool at a time.
    pub per_pool: u32,
    /// Attempts of a job at most.
    pub max_attempts: u32,
    /// Time before the second, third, … attempt; the last counts for all that follow.
    pub backoff_seconds: Vec<u64>,
    /// Whether every completed backup is verified.
    pub verify_after_backup: bool,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            reconcile_seconds: 5,
            per_target: 1,
            per_pool: 64,
            max_attempts: 4,
            backoff_seconds: vec![5, 30, 120],
            verify_after_backup: true,
        }
    }
}

/// OpenTelemetry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpConfig {
    /// Where traces go, by OTLP over HTTP; nowhere where it is left out.
    pub endpoint: Option<String>,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Levels, as `info` or `info,strongroom_bus=debug`.
    pub filter: String,
    /// For people or for programs.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What targets named `scenario/<name>` are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScenarioConfig {
    /// Their surface label.
    pub surface: String,
    /// Which workers reach them.
    pub pool: String,
    /// As for a target.
    pub exclude: Vec<String>,
    /// As for a target.
    pub one_file_system: bool,
    /// As for a target.
    pub exclude_caches: bool,
    /// As for a target.
    pub max_file_bytes: Option<u64>,
    /// As for a target.
    pub zstd_level: Option<i32>,
    /// As for a target.
    pub hooks: HooksConfig,
}

impl Default for ScenarioConfig {
    fn default() -> Self {
        Self {
            surface: "scenario".to_owned(),
            pool: default_pool(),
            exclude: Vec::new(),
            one_file_system: false,
            exclude_caches: false,
            max_file_bytes: None,
            zstd_level: None,
            hooks: HooksConfig::default(),
        }
    }
}

impl ScenarioConfig {
    /// The target of a scenario whose files lie at `path`.
    pub fn target(&self, path: PathBuf) -> TargetConfig {
        TargetConfig {
            surface: Some(self.surface.clone()),
            pool: self.pool.clone(),
            path: Some(path),
            exclude: self.exclude.clone(),
            one_file_system: self.one_file_system,
            exclude_caches: self.exclude_caches,
            max_file_bytes: self.max_file_bytes,
            zstd_level: self.zstd_level,
            hooks: self.hooks.clone(),
            ..TargetConfig::of_kind(TargetKind::Files)
        }
    }
}

impl Config {
    /// The API's bearer token, from the configuration or its file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn api_token(&self) -> Result<Option<String>, ConfigError> {
        let token = secret_or_file(
            self.api.token.as_ref(),
            "api.token_file",
            self.api.token_file.as_deref(),
        )?;
        Ok(token.map(|token| token.expose().to_owned()))
    }

    /// The catalog's URL, with the password of its file where the URL has none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn catalog_url(&self) -> Result<SecretUrl, ConfigError> {
        let file = self.catalog.password_file.as_deref();
        with_password(
            &self.catalog.url,
            secret_or_file(None, "catalog.password_file", file)?,
            "catalog.url",
        )
    }

    /// The worker's name: what was said, or host and process.
    pub fn worker_id(&self) -> String {
        self.worker.id.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = host.trim();
            let host = if host.is_empty() { "localhost" } else { host };
            format!("{host}-{}", std::process::id())
        })
    }

    /// Checks what types cannot: limits, and URLs that must not hold a password.
    pub(crate) fn validate(&self, origins: &BTreeMap<String, Origin>) -> Result<(), ConfigError> {
        let fail = |key: &str, reason: &str| {
            Err(ConfigError::InvalidValue {
                key: key.to_owned(),
                origin: origins.get(key).unwrap_or(&Origin::Default).to_string(),
                reason: reason.to_owned(),
            })
        };
        let at_least_one = [
            ("catalog.max_connections", self.catalog.max_connections),
            ("worker.concurrency", self.worker.concurrency),
            ("worker.lease_seconds", self.worker.lease_seconds),
            ("coordinator.reconcile_seconds", self.coordinator.reconcile_seconds),
            ("coordinator.per_target", self.coordinator.per_target),
            ("coordinator.per_pool", self.coordinator.per_pool),
            ("coordinator.max_attempts", self.coordinator.max_attempts),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return fail(key, "must be at least 1");
            }
        }
        let shown_in_full = [
            ("api.url", Some(&self.api.url)),
            ("vault.url", Some(&self.vault.url)),
            ("vault.s3.endpoint", self.vault.s3.endpoint.as_ref()),
            ("otlp.endpoint", self.otlp.endpoint.as_ref()),
        ];
        for (key, url) in shown_in_full {
            let userinfo = url
                .and_then(|url| url::Url::parse(url).ok())
                .is_some_and(|url| !url.username().is_empty() || url.password().is_some());
            if userinfo {
                return fail(key, "must not hold a user or a password; use the keys made for secrets");
            }
        }
        if !self.api.url.starts_with("http://") && !self.api.url.starts_with("https://") {
            return fail("api.url", "must begin with http:// or https://");
        }
        if !self.cache_dir.is_absolute() {
            return fail("cache_dir", "must be an absolute path");
        }
        if let Some(reason) = self.scenario.as_ref().and_then(|template| {
            let target = template.target(PathBuf::from("/"));
            target.find_fault()
        }) {
            return Err(ConfigError::InvalidValue {
                key: "scenario".to_owned(),
                origin: tree::origin_below(origins, "scenario"),
                reason,
            });
        }
        if self.worker.pool.is_empty() || self.worker.pool.contains(['.', '*', '>', ' ']) {
            return fail("worker.pool", "must be made of letters, digits, '-' and '_'");
        }
        Ok(())
    }
}

pub(super) fn secret_or_file(
    secret: Option<&Secret>,
    key: &'static str,
    file: Option<&Path>,
) -> Result<Option<Secret>, ConfigError> {
    match (secret, file) {
        (Some(secret), _) => Ok(Some(secret.clone())),
        (None, Some(path)) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))),
            Err(source) => Err(ConfigError::ReadSecret {
                key,
                path: path.to_owned(),
                source,
            }),
        },
        (None, None) => Ok(None),
    }
}

pub(super) fn with_password(url: &SecretUrl, password: Option<Secret>, key: &str) -> Result<SecretUrl, ConfigError> {
    let Some(password) = password else {
        return Ok(url.clone());
    };
    let invalid = |reason: &str| ConfigError::InvalidValue {
        key: key.to_owned(),
        origin: format!("the configuration ({})", shown_url(url.expose())),
        reason: reason.to_owned(),
    };
    let mut parsed = url::Url::parse(url.expose()).map_err(|_| invalid("is not a valid URL"))?;
    if parsed.password().is_some() {
        return Ok(url.clone());
    }
    parsed
        .set_password(Some(password.expose()))
        .map_err(|()| invalid("needs a host before a password can belong to it"))?;
    Ok(SecretUrl::new(parsed.to_string()))
}
