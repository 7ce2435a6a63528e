//! Every key of the configuration and the shape of its value.
//!
//! Invariant (tested): the keys here are exactly the fields of [`super::Config`].

/// One key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    /// Its path, joined with dots.
    pub(crate) path: &'static str,
    /// What it holds.
    pub(crate) shape: Shape,
}

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    Text,
    /// Never shown.
    Secret,
    /// Shown without its password.
    Url,
    Integer,
    Flag,
    Texts,
    Integers,
    /// Text by name; the values may be secrets.
    SecretMap,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Targets by name, each with these keys.
    Targets(&'static [Leaf]),
}

impl Shape {
    pub(crate) const fn expected(self) -> &'static str {
        match self {
            Self::Text | Self::Secret | Self::Word(_) => "text (quote it where it looks like a number)",
            Self::Url => "a URL as text",
            Self::Integer => "a whole number that is not negative",
            Self::Flag => "true or false",
            Self::Texts => "a list of texts",
            Self::Integers => "a list of whole numbers",
            Self::SecretMap => "texts by name",
            Self::Targets(_) => "targets by name",
        }
    }
}

const fn leaf(path: &'static str, shape: Shape) -> Leaf {
    Leaf { path, shape }
}

/// Sections that `null` switches off.
pub(crate) const NULLABLE_SECTIONS: &[&str] = &["scenario"];

/// Other names of some variables, which lose against `STRONGROOM_<KEY>`.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("STRONGROOM_API", "api.url"),
    ("STRONGROOM_TOKEN", "api.token"),
    ("NATS_URL", "nats.url"),
    ("CATALOG_URL", "catalog.url"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp.endpoint"),
];

/// Variables that are not configuration: the file's name, and what the tools around the program read.
pub(crate) const OTHER_VARIABLES: &[&str] = &[
    "STRONGROOM_CONFIG",
    "STRONGROOM_TOOLS",
    "STRONGROOM_STATE",
    "STRONGROOM_PG_DIRS",
];

pub(crate) const LEAVES: &[Leaf] = &[
    leaf("environment", Shape::Text),
    leaf("git.repo", Shape::Text),
    leaf("git.sha", Shape::Text),
    leaf("git.change_ticket", Shape::Text),
    leaf("api.url", Shape::Url),
    leaf("api.listen", Shape::Text),
    leaf("api.token", Shape::Secret),
    leaf("api.token_file", Shape::Text),
    leaf("nats.url", Shape::Url),
    leaf("nats.credentials_file", Shape::Text),
    leaf("nats.replicas", Shape::Integer),
    leaf("catalog.url", Shape::Url),
    leaf("catalog.password_file", Shape::Text),
    leaf("catalog.max_connections", Shape::Integer),
    leaf("vault.url", Shape::Url),
    leaf("vault.s3.endpoint", Shape::Url),
    leaf("vault.s3.region", Shape::Text),
    leaf("vault.s3.access_key_id", Shape::Text),
    leaf("vault.s3.secret_access_key", Shape::Secret),
    leaf("vault.s3.secret_access_key_file", Shape::Text),
    leaf("vault.s3.allow_http", Shape::Flag),
    leaf("keys.writer_key_file", Shape::Text),
    leaf("keys.identity_file", Shape::Text),
    leaf("keys.signing_key_file", Shape::Text),
    leaf("worker.id", Shape::Text),
    leaf("worker.pool", Shape::Text),
    leaf("worker.concurrency", Shape::Integer),
    leaf("worker.lease_seconds", Shape::Integer),
    leaf("worker.scratch_dir", Shape::Text),
    leaf("worker.pg_bin_dirs", Shape::Texts),
    leaf("coordinator.reconcile_seconds", Shape::Integer),
    leaf("coordinator.per_target", Shape::Integer),
    leaf("coordinator.per_pool", Shape::Integer),
    leaf("coordinator.max_attempts", Shape::Integer),
    leaf("coordinator.backoff_seconds", Shape::Integers),
    leaf("coordinator.verify_after_backup", Shape::Flag),
    leaf("otlp.endpoint", Shape::Url),
    leaf("log.filter", Shape::Text),
    leaf("log.format", Shape::Word(&["text", "json"])),
    leaf("targets", Shape::Targets(TARGET_LEAVES)),
    leaf("targets_dir", Shape::Text),
    leaf("scenario.surface", Shape::Text),
    leaf("scenario.pool", Shape::Text),
    leaf("scenario.exclude", Shape::Texts),
    leaf("scenario.one_file_system", Shape::Flag),
    leaf("scenario.exclude_caches", Shape::Flag),
    leaf("scenario.max_file_bytes", Shape::Integer),
    leaf("scenario.zstd_level", Shape::Integer),
    leaf("scenario.hooks.before.command", Shape::Texts),
    leaf("scenario.hooks.before.timeout_seconds", Shape::Integer),
    leaf("scenario.hooks.after.command", Shape::Texts),
    leaf("scenario.hooks.after.timeout_seconds", Shape::Integer),
    leaf("cache_dir", Shape::Text),
];

pub(crate) const TARGET_LEAVES: &[Leaf] = &[
    leaf(
        "kind",
        Shape::Word(&["postgres", "files", "bucket", "config", "command"]),
    ),
    leaf("surface", Shape::Text),
    leaf("pool", Shape::Text),
    leaf("description", Shape::Text),
    leaf("url", Shape::Url),
    leaf("password_file", Shape::Text),
    leaf("large_table_bytes", Shape::Integer),
    leaf("method", Shape::Word(&["logical_dump", "physical_basebackup"])),
    leaf("slot", Shape::Text),
    leaf("wal_interval_seconds", Shape::Integer),
    leaf("max_rate_bytes", Shape::Integer),
    leaf("wal", Shape::Word(&["stream", "push"])),
    leaf("path", Shape::Text),
    leaf("exclude", Shape::Texts),
    leaf("one_file_system", Shape::Flag),
    leaf("exclude_caches", Shape::Flag),
    leaf("max_file_bytes", Shape::Integer),
    leaf("zstd_level", Shape::Integer),
    leaf("hooks.before.command", Shape::Texts),
    leaf("hooks.before.timeout_seconds", Shape::Integer),
    leaf("hooks.after.command", Shape::Texts),
    leaf("hooks.after.timeout_seconds", Shape::Integer),
    leaf("program", Shape::Text),
    leaf("args", Shape::Texts),
    leaf("env", Shape::SecretMap),
    leaf("timeout_seconds", Shape::Integer),
];
