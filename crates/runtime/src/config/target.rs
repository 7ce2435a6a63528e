//! One target: what is protected, where it is, and how it is taken.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strongroom_proto::{TargetKind, TargetName};

use super::ConfigError;
use super::model::{secret_or_file, with_password};
use super::physical::{self, PostgresMethod, WalTransport};
use super::secret::{Secret, SecretUrl};
use super::tree::{self, HooksConfig};

/// One target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// Its kind.
    pub kind: TargetKind,
    /// Its label in receipts; [`TargetConfig::surface`] has the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surface: Option<String>,
    /// Which workers reach it.
    #[serde(default = "default_pool")]
    pub pool: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `postgres`: the database; [`TargetConfig::connection_url`] has the password of the file in it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<SecretUrl>,
    /// `postgres`: a file that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// `postgres`: from which size a table becomes a stream of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_table_bytes: Option<u64>,
    /// `postgres`: how it is taken; [`TargetConfig::is_physical`] has the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<PostgresMethod>,
    /// Of a cluster's files: the replication slot; [`TargetConfig::slot_name`] has the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Of a cluster's files: how long WAL waits for its segment to be full before it is stored;
    /// [`TargetConfig::wal_interval`] has the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_interval_seconds: Option<u64>,
    /// Of a cluster's files: how much of them is read in a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate_bytes: Option<u64>,
    /// Of a cluster's files: how WAL comes; [`TargetConfig::wal_transport`] has the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalTransport>,
    /// `files`: the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `files`: what is left out: patterns as in a `.gitignore` file in the root of the tree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// `files`: whether what is mounted below the root is left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_file_system: bool,
    /// `files`: whether the content of folders with a `CACHEDIR.TAG` is left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclude_caches: bool,
    /// `files`: larger files are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_file_bytes: Option<u64>,
    /// `files`: what is run before and after a backup.
    #[serde(default, skip_serializing_if = "HooksConfig::is_empty")]
    pub hooks: HooksConfig,
    /// `command`: the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// `command`: its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `command`: its environment, which may hold secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
    /// How hard zstd tries, 1 to 19; 3 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd_level: Option<i32>,
    /// How long one attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

impl TargetConfig {
    /// A target of this kind with nothing else set.
    pub fn of_kind(kind: TargetKind) -> Self {
        Self {
            kind,
            surface: None,
            pool: default_pool(),
            description: None,
            url: None,
            password_file: None,
            large_table_bytes: None,
            method: None,
            slot: None,
            wal_interval_seconds: None,
            max_rate_bytes: None,
            wal: None,
            path: None,
            exclude: Vec::new(),
            one_file_system: false,
            exclude_caches: false,
            max_file_bytes: None,
            hooks: HooksConfig::default(),
            program: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            zstd_level: None,
            timeout_seconds: None,
        }
    }

    /// Its label in receipts: what was said, or its kind.
    pub fn surface(&self) -> &str {
        self.surface.as_deref().unwrap_or(self.kind.as_str())
    }

    /// Where it is; never with a password.
    pub fn location(&self) -> String {
        let url = self.url.as_ref().map(ToString::to_string);
        let path = self.path.as_ref().map(|path| path.display().to_string());
        url.or(path).or_else(|| self.program.clone()).unwrap_or_default()
    }

    /// The password that its file holds.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn password(&self) -> Result<Option<Secret>, ConfigError> {
        secret_or_file(None, "targets.*.password_file", self.password_file.as_deref())
    }

    /// Its URL, with the password of the file where the URL has none.
    ///
    /// # Errors
    /// The password file cannot be read.
    pub fn connection_url(&self) -> Result<Option<SecretUrl>, ConfigError> {
        let Some(url) = &self.url else { return Ok(None) };
        with_password(url, self.password()?, "targets.*.url").map(Some)
    }

    /// Whether it has what its kind needs, and nothing that its kind does not know.
    ///
    /// # Errors
    /// What is missing or out of place, and what to do.
    pub fn validate(&self, name: &TargetName) -> Result<(), ConfigError> {
        self.validate_from(name, "the configuration")
    }

    pub(crate) fn validate_from(&self, name: &TargetName, origin: &str) -> Result<(), ConfigError> {
        let fault = self.find_fault().or_else(|| physical::find_slot_fault(self, name));
        fault.map_or(Ok(()), |reason| {
            Err(ConfigError::InvalidTarget {
                name: name.clone(),
                origin: origin.to_owned(),
                reason,
            })
        })
    }

    pub(super) fn find_fault(&self) -> Option<String> {
        let needed = match self.kind {
            TargetKind::Postgres if self.url.is_none() => {
                Some("a postgres target needs a url, e.g. url: postgres://user@host:5432/database")
            }
            TargetKind::Files if self.path.is_none() => Some("a files target needs a path, e.g. path: /srv/app/data"),
            TargetKind::Command if self.program.is_none() => {
                Some("a command target needs a program, e.g. program: /usr/bin/ldapsearch")
            }
            TargetKind::Bucket | TargetKind::Config => {
                Some("targets of this kind are not supported yet; use postgres, files or command")
            }
            _ => None,
        };
        if let Some(needed) = needed {
            return Some(needed.to_owned());
        }
        let out_of_place = [
            ("url", TargetKind::Postgres, self.url.is_some()),
            ("password_file", TargetKind::Postgres, self.password_file.is_some()),
            (
                "large_table_bytes",
                TargetKind::Postgres,
                self.large_table_bytes.is_some(),
            ),
            ("method", TargetKind::Postgres, self.method.is_some()),
            ("slot", TargetKind::Postgres, self.slot.is_some()),
            (
                "wal_interval_seconds",
                TargetKind::Postgres,
                self.wal_interval_seconds.is_some(),
            ),
            ("max_rate_bytes", TargetKind::Postgres, self.max_rate_bytes.is_some()),
            ("wal", TargetKind::Postgres, self.wal.is_some()),
            ("path", TargetKind::Files, self.path.is_some()),
            ("exclude", TargetKind::Files, !self.exclude.is_empty()),
            ("one_file_system", TargetKind::Files, self.one_file_system),
            ("exclude_caches", TargetKind::Files, self.exclude_caches),
            ("max_file_bytes", TargetKind::Files, self.max_file_bytes.is_some()),
            ("hooks", TargetKind::Files, !self.hooks.is_empty()),
            ("program", TargetKind::Command, self.program.is_some()),
            ("args", TargetKind::Command, !self.args.is_empty()),
            ("env", TargetKind::Command, !self.env.is_empty()),
        ];
        for (key, kind, is_set) in out_of_place {
            if is_set && kind != self.kind {
                return Some(format!(
                    "{key} belongs to targets of kind {kind}, this one is of kind {}: remove it",
                    self.kind
                ));
            }
        }
        if let Some(url) = &self.url {
            let scheme = url.expose().split_once("://").map(|(scheme, _)| scheme);
            if !matches!(scheme, Some("postgres" | "postgresql")) {
                return Some("its url must begin with postgres:// or postgresql://".to_owned());
            }
        }
        if self.path.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Some("its path must be absolute, so that it means the same in every process".to_owned());
        }
        if self.pool.is_empty()
            || self
                .pool
                .contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
        {
            return Some("its pool must be made of letters, digits, '-' and '_'".to_owned());
        }
        if self.timeout_seconds == Some(0) {
            return Some("timeout_seconds must be at least 1; leave it out for no limit".to_owned());
        }
        if self.zstd_level.is_some_and(|level| !(1..=19).contains(&level)) {
            return Some("zstd_level must be 1 to 19; leave it out for 3".to_owned());
        }
        if let Some(fault) = physical::find_fault(self) {
            return Some(fault);
        }
        tree::find_fault(&self.exclude, self.max_file_bytes, &self.hooks)
    }
}

pub(super) fn default_pool() -> String {
    "default".to_owned()
}
