//! What a restore of a dump would change in a database: each table as it is in the backup, and as it is now.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a restore into a database would change there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatabaseChanges {
    /// Whether the database is there; where it is not, a restore makes it.
    pub exists: bool,
    /// Why a restore that says no more would be refused; absent where it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// All tables of the backup.
    pub then: TableSize,
    /// All tables of the database.
    pub now: TableSize,
    /// How many tables would be made, replaced and kept.
    pub counts: TableCounts,
    /// Large objects in the backup.
    pub large_objects_then: u64,
    /// Large objects in the database.
    pub large_objects_now: u64,
    /// The tables, the largest changes of rows first.
    pub tables: Vec<TableChange>,
    /// How many more of them there are.
    pub more: u64,
}

impl DatabaseChanges {
    /// So many tables are kept one by one.
    pub const TABLES_MAX: usize = 10_000;

    /// Takes in what becomes of each table: counts and sums all of them, and keeps the largest changes.
    #[must_use]
    pub fn with_tables(mut self, mut tables: Vec<TableChange>) -> Self {
        tables.sort_by_cached_key(TableChange::rank);
        self.then = TableSize::sum(tables.iter().filter_map(|table| table.then));
        self.now = TableSize::sum(tables.iter().filter_map(|table| table.now));
        for table in &tables {
            *match table.change {
                TableChangeKind::Create => &mut self.counts.created,
                TableChangeKind::Replace => &mut self.counts.replaced,
                TableChangeKind::Keep => &mut self.counts.kept,
            } += 1;
        }
        self.more = tables.len().saturating_sub(Self::TABLES_MAX) as u64;
        tables.truncate(Self::TABLES_MAX);
        self.tables = tables;
        self
    }
}

/// How many tables each change is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableCounts {
    /// Only in the backup.
    pub created: u64,
    /// In both.
    pub replaced: u64,
    /// Only in the database.
    pub kept: u64,
}

/// What happens to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableChangeKind {
    /// It is only in the backup and is made.
    Create,
    /// It is in both, and what is there gives way.
    Replace,
    /// It is only in the database and stays as it is.
    Keep,
}

impl TableChangeKind {
    /// The word that stands for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Keep => "keep",
        }
    }
}

/// One table, then and now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableChange {
    /// What happens.
    pub change: TableChangeKind,
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// As in the backup; absent where it is not in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<TableSize>,
    /// As in the database; absent where it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<TableSize>,
}

impl TableChange {
    /// Rows that a restore adds, or, where negative, takes away; `None` where one side is not known. A table that stays
    /// as it is changes by none.
    pub fn rows_changed(&self) -> Option<i128> {
        self.changed(|size| size.rows)
    }

    fn changed(&self, part: fn(&TableSize) -> Option<u64>) -> Option<i128> {
        if self.change == TableChangeKind::Keep {
            return Some(0);
        }
        difference(self.then, self.now, part)
    }

    /// The least comes first: what is not known, then the largest change of rows, of bytes, and by name.
    fn rank(&self) -> (bool, i128, i128, String, String) {
        let rows = self.rows_changed();
        let bytes = self.changed(|size| size.bytes).unwrap_or(0);
        (
            rows.is_some(),
            -rows.unwrap_or(0).abs(),
            -bytes.abs(),
            self.schema.clone(),
            self.table.clone(),
        )
    }
}

/// How large a table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableSize {
    /// Rows; absent where the role may not read them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// What it takes on the server's disk in bytes, with its indexes; absent where an older backup does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// How much more there was of something then than now, or, where negative, less: of a table that is not there nothing,
/// `None` where one side is not known.
pub(crate) fn difference(
    then: Option<TableSize>,
    now: Option<TableSize>,
    part: fn(&TableSize) -> Option<u64>,
) -> Option<i128> {
    let of = |size: Option<TableSize>| size.as_ref().map_or(Some(0), part).map(i128::from);
    Some(of(then)? - of(now)?)
}

impl TableSize {
    /// All of them together; what is not known of one is not known of all.
    pub(crate) fn sum(sizes: impl Iterator<Item = Self>) -> Self {
        let zero = Self {
            rows: Some(0),
            bytes: Some(0),
        };
        sizes.fold(zero, Self::plus)
    }

    /// The sum; what is not known of one is not known of both.
    fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        Self {
            rows: sum(self.rows, other.rows),
            bytes: sum(self.bytes, other.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(rows: u64, bytes: Option<u64>) -> Option<TableSize> {
        let rows = Some(rows);
        Some(TableSize { rows, bytes })
    }

    fn table(name: &str, change: TableChangeKind, then: Option<TableSize>, now: Option<TableSize>) -> TableChange {
        let (schema, table) = ("public".to_owned(), name.to_owned());
        TableChange {
            change,
            schema,
            table,
            then,
            now,
        }
    }

    #[test]
    fn the_largest_changes_come_first_and_what_is_not_known_of_one_is_not_known_of_all() {
        let unread = Some(TableSize {
            rows: None,
            bytes: Some(8),
        });
        let changes = DatabaseChanges::default().with_tables(vec![
            table("same", TableChangeKind::Replace, size(9, None), size(9, Some(1))),
            table("gone", TableChangeKind::Create, size(5, Some(1)), None),
            table("kept", TableChangeKind::Keep, None, size(1_000, Some(1))),
            table("grown", TableChangeKind::Replace, size(10, Some(1)), size(90, Some(2))),
            table("unread", TableChangeKind::Replace, size(1, Some(1)), unread),
        ]);
        let names: Vec<&str> = changes.tables.iter().map(|table| table.table.as_str()).collect();
        assert_eq!(names, ["unread", "grown", "gone", "kept", "same"]);
        assert_eq!(changes.tables[1].rows_changed(), Some(-80));
        assert_eq!((changes.then.rows, changes.then.bytes), (Some(25), None));
        assert_eq!((changes.now.rows, changes.now.bytes), (None, Some(12)));
        let counts = (changes.counts.created, changes.counts.replaced, changes.counts.kept);
        assert_eq!(counts, (1, 3, 1));
    }

    #[test]
    fn more_tables_than_are_kept_are_counted_and_summed() {
        let many = DatabaseChanges::TABLES_MAX + 3;
        let tables = (0..many).map(|n| table(&n.to_string(), TableChangeKind::Create, size(1, Some(2)), None));
        let changes = DatabaseChanges::default().with_tables(tables.collect());
        assert_eq!((changes.tables.len(), changes.more), (DatabaseChanges::TABLES_MAX, 3));
        assert_eq!(changes.then, size(many as u64, Some(2 * many as u64)).unwrap());
    }
}
