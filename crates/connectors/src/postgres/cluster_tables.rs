//! Every table of a whole cluster with its rows counted: on the server that a drill has recovered, and where it runs.
//!
//! Temporary tables and unlogged ones, which a recovery empties, are no part of it. Partitioned and foreign tables hold no
//! rows of their own.

use strongroom_proto::database_changes::TableSize;
use strongroom_proto::restore::TableName;

use super::compare::stoppable;
use super::counting::count_statement;
use super::physical::ClusterTarget;
use super::restore::RestoreError;
use super::sql::{Sql, SqlError};
use super::target::Endpoint;

/// A table of the database of a session.
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    /// Whether it is the server's own: of interest to whoever looks for damage only.
    pub(super) is_system: bool,
    id: u32,
    /// Whether the role may read all of it.
    is_readable: bool,
    /// Whether the server itself knows how to, and we its name: an extension that stores it may be missing, or want to be
    /// loaded beforehand, and of bytes that are no text nothing can be asked.
    is_known: bool,
}

impl Table {
    /// Its full name.
    pub(super) fn named(&self, database: &str) -> TableName {
        TableName {
            database: database.to_owned(),
            schema: self.schema.clone(),
            table: self.name.clone(),
        }
    }
}

/// The databases that can be connected to. One whose removal was interrupted cannot.
pub(super) fn databases(sql: &mut Sql) -> Result<Vec<String>, SqlError> {
    sql.column("SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname")
}

/// The tables that have rows of their own.
pub(super) fn tables(sql: &mut Sql) -> Result<Vec<Table>, SqlError> {
    let listed = sql.rows(
        "SELECT n.nspname, c.relname, c.oid, n.nspname LIKE 'pg\\_%' OR n.nspname = 'information_schema',
                has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
                    AND NOT row_security_active(c.oid),
                a.amname = 'heap'
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am a ON a.oid = c.relam
         WHERE c.relkind = 'r' AND c.relpersistence = 'p'",
    )?;
    let is = |flag: Option<String>| flag.as_deref() == Some("t");
    let table = |row: Vec<Option<String>>| match <[_; 6]>::try_from(row) {
        Ok([Some(schema), Some(name), Some(id), is_system, is_readable, is_heap]) => Some(Table {
            is_known: is(is_heap)
                && ![&schema, &name]
                    .iter()
                    .any(|name| name.contains(char::REPLACEMENT_CHARACTER)),
            schema,
            name,
            is_system: is(is_system),
            id: id.parse().ok()?,
            is_readable: is(is_readable),
        }),
        _ => None,
    };
    Ok(listed.into_iter().filter_map(table).collect())
}

/// How large it is, its rows counted one by one.
pub(super) fn size(sql: &mut Sql, table: &Table) -> Result<TableSize, SqlError> {
    if !table.is_known {
        return Ok(TableSize::default());
    }
    let rows = match table.is_readable {
        true => Some(sql.number(&count_statement(&table.schema, &table.name, None))?),
        false => None,
    };
    let bytes = sql.value(&format!("SELECT pg_total_relation_size({})", table.id))?;
    Ok(TableSize {
        rows,
        bytes: bytes.parse().ok(),
    })
}

/// What every table of a running cluster holds. Nothing is written: each database is read in one transaction that the
/// server keeps read-only.
pub fn count_cluster(cluster: &ClusterTarget) -> Result<Vec<(TableName, TableSize)>, RestoreError> {
    let endpoint = cluster.endpoint().map_err(|source| RestoreError::Target { source })?;
    let connect = |to: &Endpoint| Sql::connect(to).map_err(RestoreError::sql("connect to", to));
    let names = databases(&mut connect(&endpoint)?).map_err(RestoreError::sql("look into", &endpoint))?;
    let mut counted = Vec::new();
    for database in names {
        let endpoint = endpoint.with_database(&database);
        let mut sql = connect(&endpoint)?;
        let count = |sql: &mut Sql| -> Result<(), SqlError> {
            sql.run(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
                 SET LOCAL row_security = off; SET LOCAL search_path = pg_catalog; SET LOCAL lock_timeout = '30s'",
            )?;
            for table in tables(sql)?.into_iter().filter(|table| !table.is_system) {
                counted.push((table.named(&database), size(sql, &table)?));
            }
            Ok(())
        };
        stoppable(&mut sql, count).map_err(RestoreError::sql("look into", &endpoint))?;
    }
    Ok(counted)
}
