//! The tables of a whole cluster: what each held at the end of a base backup, and what it holds now where it runs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::database_changes::{TableSize, difference};
use crate::restore::TableName;

/// What the tables of a cluster held when a base backup of it ended, as its drill counted them, and what they hold now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterTables {
    /// All tables then.
    pub then: TableSize,
    /// All tables now; absent where nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<TableSize>,
    /// The tables, the largest first; with those of now, the largest differences of rows first.
    pub tables: Vec<ClusterTable>,
    /// How many more of them there are.
    pub more: u64,
}

/// One table of a cluster, then and now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterTable {
    /// Which one.
    #[serde(flatten)]
    pub name: TableName,
    /// As the drill counted it; absent where it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<TableSize>,
    /// As it is now; absent where it is not there, and where nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<TableSize>,
}

impl ClusterTables {
    /// So many tables are kept one by one.
    pub const TABLES_MAX: usize = 10_000;

    /// What a drill has counted: sums all tables, and keeps the largest.
    pub fn drilled(mut counted: Vec<(TableName, TableSize)>) -> Self {
        counted.sort_by(|(a, a_size), (b, b_size)| b_size.bytes.cmp(&a_size.bytes).then_with(|| a.cmp(b)));
        let then = TableSize::sum(counted.iter().map(|(_, size)| *size));
        let more = counted.len().saturating_sub(Self::TABLES_MAX) as u64;
        counted.truncate(Self::TABLES_MAX);
        let tables = counted.into_iter().map(|(name, size)| ClusterTable {
            name,
            then: Some(size),
            now: None,
        });
        Self {
            then,
            now: None,
            tables: tables.collect(),
            more,
        }
    }

    /// Puts beside each table what it holds now, and keeps the largest differences.
    #[must_use]
    pub fn beside(mut self, counted: Vec<(TableName, TableSize)>) -> Self {
        self.now = Some(TableSize::sum(counted.iter().map(|(_, size)| *size)));
        let mut now: BTreeMap<TableName, TableSize> = counted.into_iter().collect();
        for table in &mut self.tables {
            table.now = now.remove(&table.name);
        }
        // Where not all of then are known, such a table may have been there.
        let then = (self.more > 0).then(TableSize::default);
        self.more = self.more.saturating_sub(now.len() as u64);
        self.tables.extend(now.into_iter().map(|(name, size)| ClusterTable {
            name,
            then,
            now: Some(size),
        }));
        self.tables.sort_by_cached_key(ClusterTable::rank);
        self.more += self.tables.len().saturating_sub(Self::TABLES_MAX) as u64;
        self.tables.truncate(Self::TABLES_MAX);
        self
    }
}

impl ClusterTable {
    /// Rows that it had more then than now, or, where negative, less; `None` where one side is not known.
    pub fn rows_changed(&self) -> Option<i128> {
        difference(self.then, self.now, |size| size.rows)
    }

    /// The least comes first: what is not known, then the largest difference of rows, of bytes, and by name.
    fn rank(&self) -> (bool, i128, i128, TableName) {
        let rows = self.rows_changed();
        let bytes = difference(self.then, self.now, |size| size.bytes).unwrap_or(0);
        (
            rows.is_some(),
            -rows.unwrap_or(0).abs(),
            -bytes.abs(),
            self.name.clone(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(tables: &[(&str, u64)]) -> Vec<(TableName, TableSize)> {
        let size = |rows| TableSize {
            rows: Some(rows),
            bytes: Some(rows * 10),
        };
        tables
            .iter()
            .map(|(name, rows)| (name.parse().unwrap(), size(*rows)))
            .collect()
    }

    fn names(tables: &ClusterTables) -> Vec<String> {
        tables.tables.iter().map(|table| table.name.to_string()).collect()
    }

    #[test]
    fn the_largest_come_first_and_beside_now_the_largest_differences() {
        let then = ClusterTables::drilled(counted(&[("a.s.same", 50), ("a.s.gone", 7), ("b.s.same", 60)]));
        assert_eq!(names(&then), ["b.s.same", "a.s.same", "a.s.gone"]);
        assert_eq!(
            (then.then.rows, then.then.bytes, then.now),
            (Some(117), Some(1170), None)
        );
        let both = then.beside(counted(&[("a.s.same", 53), ("b.s.same", 60), ("b.s.new", 9)]));
        assert_eq!(names(&both), ["b.s.new", "a.s.gone", "a.s.same", "b.s.same"]);
        let changed: Vec<_> = both.tables.iter().map(ClusterTable::rows_changed).collect();
        assert_eq!(changed, [Some(-9), Some(7), Some(-3), Some(0)]);
        assert_eq!((both.tables[0].then, both.tables[1].now), (None, None));
        assert_eq!(
            (both.then.rows, both.now.unwrap().rows, both.more),
            (Some(117), Some(122), 0)
        );
    }

    #[test]
    fn tables_that_are_not_kept_are_summed_and_never_taken_for_new_ones() {
        let most: Vec<String> = (0..ClusterTables::TABLES_MAX).map(|n| format!("d.s.t{n}")).collect();
        let mut tables: Vec<(&str, u64)> = most.iter().map(|name| (name.as_str(), 5)).collect();
        tables.extend([("d.s.small", 1), ("d.s.tiny", 0)]);
        let then = ClusterTables::drilled(counted(&tables));
        assert_eq!((then.tables.len(), then.more), (ClusterTables::TABLES_MAX, 2));
        assert_eq!(then.then.rows, Some(5 * most.len() as u64 + 1));
        let both = then.beside(counted(&tables[..=most.len()]));
        assert_eq!(both.tables[0].name.table, "small");
        assert_eq!(
            (both.tables[0].then, both.tables[0].rows_changed()),
            (Some(TableSize::default()), None)
        );
        assert_eq!((both.tables.len(), both.more), (ClusterTables::TABLES_MAX, 2));
    }
}
