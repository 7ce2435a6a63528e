//! What a restore of files takes of a backup, and what it changes at its destination.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster_tables::ClusterTables;
use crate::database_changes::DatabaseChanges;

/// What of a backup is restored. Both empty means everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Selected {
    /// Paths as the backup lists them, each with everything below it.
    pub paths: Vec<String>,
    /// Patterns as in a `.gitignore` file.
    pub include: Vec<String>,
}

impl Selected {
    /// Whether everything is restored.
    pub const fn is_everything(&self) -> bool {
        self.paths.is_empty() && self.include.is_empty()
    }
}

/// What happens to one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is not there and is made.
    Create,
    /// Something else is there and gives way.
    Replace,
    /// It is there; owner, mode, time or attributes are set.
    Metadata,
    /// It is not in the backup and is removed.
    Delete,
    /// It, or a part of it, is not restored; the reason says why.
    Skip,
}

impl ChangeKind {
    /// The word that stands for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Metadata => "metadata",
            Self::Delete => "delete",
            Self::Skip => "skip",
        }
    }
}

/// How often each change happened, or would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeCounts {
    /// What was not there.
    pub created: u64,
    /// What gave way.
    pub replaced: u64,
    /// What kept its content and got another owner, mode, time or attribute.
    pub metadata: u64,
    /// What the backup does not have.
    pub deleted: u64,
    /// What could not be restored, whole or in part.
    pub skipped: u64,
}

impl ChangeCounts {
    /// Counts one change.
    pub const fn add(&mut self, change: ChangeKind) {
        let count = match change {
            ChangeKind::Create => &mut self.created,
            ChangeKind::Replace => &mut self.replaced,
            ChangeKind::Metadata => &mut self.metadata,
            ChangeKind::Delete => &mut self.deleted,
            ChangeKind::Skip => &mut self.skipped,
        };
        *count += 1;
    }
}

/// One change of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PathChange {
    /// What happens.
    pub change: ChangeKind,
    /// The path below the destination; where it is not UTF-8, its lossy rendering.
    pub path: String,
    /// The path's bytes in hex, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Why it is skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of a dry run: bytes of content that would be written there, or that what is deleted holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// How much content a dry run found, in bytes. What is deleted is measured as it lies there, the rest as in the backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeBytes {
    /// Of what would be made.
    pub created: u64,
    /// Of what would give way to it.
    pub replaced: u64,
    /// Of what would keep its content and get other metadata.
    pub metadata: u64,
    /// Of what would be removed.
    pub deleted: u64,
    /// Of what would stay as it is; absent where only a part is restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<u64>,
}

/// `GET /api/v1/jobs/{id}/changes`: what a restore of files did at its destination, or, as a dry run, what a restore of
/// files or of a database would do, and how the tables of a cluster have changed since its base backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreChanges {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Where to.
    pub destination: String,
    /// How often each change happened, or would.
    pub counts: ChangeCounts,
    /// The first changes: all kinds of a dry run, of a restore only what was skipped.
    pub changes: Vec<PathChange>,
    /// How many more of them there are.
    pub more: u64,
    /// Of a dry run: what is there and is as it was in the backup, directories not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<u64>,
    /// Of a dry run: how much content each kind of change is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ChangeBytes>,
    /// What would change in a database; the counts of paths are zero then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseChanges>,
    /// Of a whole cluster, where nothing would change: what its tables held then, and hold now where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterTables>,
}

impl RestoreChanges {
    /// So many changes are kept one by one.
    pub const CHANGES_MAX: usize = 10_000;

    /// Counts a change, and keeps it where there is room.
    pub fn add(&mut self, change: PathChange) {
        self.counts.add(change.change);
        if self.changes.len() < Self::CHANGES_MAX {
            self.changes.push(change);
        } else {
            self.more += 1;
        }
    }
}

/// A table by its full name: `database.schema.table`; a part that holds a dot or a quote is written in double quotes, as
/// in SQL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct TableName {
    /// The database.
    pub database: String,
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
}

/// A text that names no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no table: write it as database.schema.table")]
pub struct ParseTableNameError(String);

impl FromStr for TableName {
    type Err = ParseTableNameError;
    fn from_str(text: &str) -> Result<Self, ParseTableNameError> {
        let parts = (!text.chars().any(char::is_control)).then(|| parts(text)).flatten();
        let parts = parts.and_then(|parts| <[String; 3]>::try_from(parts).ok());
        let [database, schema, table] = parts.ok_or_else(|| ParseTableNameError(text.to_owned()))?;
        Ok(Self {
            database,
            schema,
            table,
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = |part: &str| {
            if part.contains(['.', '"']) {
                format!("\"{}\"", part.replace('"', "\"\""))
            } else {
                part.to_owned()
            }
        };
        let parts = [&self.database, &self.schema, &self.table].map(|part| written(part));
        f.write_str(&parts.join("."))
    }
}

/// What lies between the dots; `None` where a part is empty or a quote is not closed.
fn parts(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => take_quoted(quoted)?,
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                (rest.get(..end)?.to_owned(), rest.get(end..)?)
            }
        };
        if part.is_empty() {
            return None;
        }
        parts.push(part);
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None => return after.is_empty().then_some(parts),
        }
    }
}

/// What is before the closing quote, and what comes after it.
fn take_quoted(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"')?;
        part.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                part.push('"');
                rest = more;
            }
            None => return Some((part, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created() -> PathChange {
        PathChange {
            change: ChangeKind::Create,
            path: "a".to_owned(),
            path_hex: None,
            reason: None,
            bytes: None,
        }
    }

    #[test]
    fn what_is_too_much_to_keep_is_counted() {
        let mut changes = RestoreChanges::default();
        for _ in 0..RestoreChanges::CHANGES_MAX + 7 {
            changes.add(created());
        }
        assert_eq!((changes.changes.len(), changes.more), (RestoreChanges::CHANGES_MAX, 7));
        assert_eq!(changes.counts.created, 10_007);
    }

    #[test]
    fn names_of_tables_are_read_with_and_without_quotes() {
        let parts = |text: &str| {
            let name: Result<TableName, _> = text.parse();
            name.ok().map(|name| [name.database, name.schema, name.table])
        };
        assert_eq!(parts("shop.public.orders").unwrap(), ["shop", "public", "orders"]);
        let quoted = r#"shop."a.b"."c""d""#;
        assert_eq!(parts(quoted).unwrap(), ["shop", "a.b", "c\"d"]);
        assert_eq!(quoted.parse::<TableName>().unwrap().to_string(), quoted);
        for bad in [
            "",
            "orders",
            "public.orders",
            "a.b.c.d",
            "a..c",
            "a.b.",
            "a.\"b.c",
            "a.\"b\"x.c",
            "a.b.c\n",
        ] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
