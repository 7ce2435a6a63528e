//! `checks.json`: what a restored database must be equal to, written as the last entry of every dump.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The `schema` of [`Checks`].
pub const CHECKS_SCHEMA: &str = "io.strongroom.postgres-checks.v1";
/// The longest `checks.json` that is read, in bytes.
pub(crate) const CHECKS_BYTES_MAX: usize = 256 << 20;

/// What was in the snapshot that was dumped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Always [`CHECKS_SCHEMA`].
    pub schema: String,
    /// Version of the server, e.g. `15.18`.
    pub server_version: String,
    /// Its major version.
    pub server_major: u32,
    /// Version of the pg_dump that made the archives.
    pub tool_version: String,
    /// Its major version; a restore needs tools of this version or newer.
    pub tool_major: u32,
    /// The database itself.
    pub database: DatabaseChecks,
    /// Every table whose data was dumped.
    pub tables: Vec<TableChecks>,
    /// The large objects.
    pub large_objects: LargeObjectChecks,
    /// Objects by kind, e.g. `INDEX`.
    pub objects: BTreeMap<String, u64>,
    /// Extensions.
    pub extensions: Vec<ExtensionChecks>,
}

/// What a database is created with, which no archive carries in a form that fits another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseChecks {
    /// Its name.
    pub name: String,
    /// The role that owns it.
    pub owner: String,
    /// Encoding, e.g. `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// Locale provider: `c` libc, `i` ICU, `b` built in.
    pub provider: String,
    /// Locale of the provider, where it is not libc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Settings (`ALTER DATABASE … SET`, `ALTER ROLE … IN DATABASE … SET`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<SettingChecks>,
    /// Privileges on the database, where they are not the built-in ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<Vec<GrantChecks>>,
}

/// A setting of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingChecks {
    /// The role it is for; none for everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Name of the parameter.
    pub name: String,
    /// Value, as the catalog holds it.
    pub value: String,
}

/// A privilege on a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantChecks {
    /// The role; none for PUBLIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// E.g. `CONNECT`.
    pub privilege: String,
    /// Whether the role may pass it on.
    pub grantable: bool,
}

/// The data of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChecks {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Rows: counted by SQL, and equal to those in the archive.
    pub rows: u64,
    /// Wrapping sum of XXH3-128 over the rows as COPY text, in hex.
    pub digest: String,
    /// What it took on the server's disk in bytes, with its indexes, while it was dumped; older backups do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The large objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjectChecks {
    /// How many: counted by SQL, and equal to those in the archive.
    pub count: u64,
    /// Wrapping sum of XXH3-128 over each one's id and content, in hex.
    pub digest: String,
}

/// An extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtensionChecks {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
}

impl Checks {
    /// Rows over all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let checks: Self = serde_json::from_slice(bytes)?;
        if checks.schema == CHECKS_SCHEMA {
            Ok(checks)
        } else {
            let text = format!(
                "its schema is {:?}, this version reads {CHECKS_SCHEMA:?}: upgrade Strongroom",
                checks.schema
            );
            Err(serde::de::Error::custom(text))
        }
    }
}

/// A 128-bit digest as text.
pub(crate) fn digest_text(sum: u128) -> String {
    format!("{sum:032x}")
}
