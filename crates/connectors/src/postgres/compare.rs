//! What a restore of a dump would change in a database: every table in the backup, and as it is now.
//!
//! Invariant: nothing is written. What is there is read in one transaction that the server keeps read-only.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use strongroom_proto::database_changes::{DatabaseChanges, TableChange, TableChangeKind, TableSize};
use strongroom_proto::manifest::EntrySource;

use super::checks::Checks;
use super::counting::count_statement;
use super::restore::{Backup, RestoreError, RestoreOptions, choose_tool, connect};
use super::sql::{Sql, SqlError};
use super::target::PostgresTarget;
use super::{create, facts};
use crate::child::Stop;

/// How soon a count that takes long is ended after a stop.
const STOP_WITHIN: Duration = Duration::from_millis(200);

/// The schema and the name of a table.
type Name = (String, String);

/// Says what [`restore`](fn@super::restore) would change at `destination`, and whether it would be refused. Every row
/// there is counted, every table's size on disk is in bytes.
pub fn compare(
    source: &dyn EntrySource,
    destination: &PostgresTarget,
    options: &RestoreOptions,
) -> Result<DatabaseChanges, RestoreError> {
    let backup = Backup::open(source)?;
    let checks = &backup.checks;
    let endpoint = destination
        .endpoint()
        .map_err(|source| RestoreError::Target { source })?;
    let (mut sql, exists) = connect(&endpoint)?;
    let look = || RestoreError::sql("look into", &endpoint);
    // A restore cannot wait for somebody's lock for ever, neither does this.
    sql.run(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
         SET LOCAL row_security = off; SET LOCAL search_path = pg_catalog; SET LOCAL lock_timeout = '30s'",
    )
    .map_err(look())?;
    let (_, server_major) = facts::server_version(&mut sql).map_err(look())?;
    let mut found = Found::default();
    if exists {
        found = Found::read(&mut sql).map_err(look())?;
    }
    let refused = if server_major < checks.server_major {
        Some(RestoreError::OlderServer {
            source_major: checks.server_major,
            server_major,
        })
    } else if !found.objects.is_empty() && !options.allow_non_empty {
        Some(RestoreError::NotEmpty {
            database: endpoint.to_string(),
            objects: found.objects,
        })
    } else {
        choose_tool(destination, checks.tool_major, server_major).err()
    };
    let changes = DatabaseChanges {
        exists,
        refused: refused.map(|reason| reason.to_string()),
        large_objects_then: checks.large_objects.count,
        large_objects_now: found.large_objects,
        ..DatabaseChanges::default()
    };
    Ok(changes.with_tables(join(checks, found.tables)))
}

/// What a database holds.
#[derive(Default)]
struct Found {
    /// A few of its objects.
    objects: Vec<String>,
    tables: BTreeMap<Name, TableSize>,
    large_objects: u64,
}

impl Found {
    fn read(sql: &mut Sql) -> Result<Self, SqlError> {
        Ok(Self {
            objects: create::user_objects(sql)?,
            large_objects: sql.number("SELECT count(*) FROM pg_largeobject_metadata")?,
            tables: stoppable(sql, tables)?,
        })
    }
}

/// The tables whose rows a dump would hold, with the rows that it would hold of them.
fn tables(sql: &mut Sql) -> Result<BTreeMap<Name, TableSize>, SqlError> {
    let listed = sql.rows(
        "SELECT nspname, relname, pg_total_relation_size(oid), is_readable, condition FROM (
             SELECT n.nspname, c.relname, c.oid, t.condition,
                    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
                        AND NOT row_security_active(c.oid) AS is_readable,
                    t.id IS NOT NULL OR NOT EXISTS (
                        SELECT FROM pg_depend d
                        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') AS is_dumped
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             LEFT JOIN (SELECT t.* FROM pg_extension, unnest(extconfig, extcondition) AS t(id, condition)) t
                 ON t.id = c.oid
             WHERE c.relkind = 'r' AND c.relpersistence <> 't'
               AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema') tables
         WHERE is_dumped",
    )?;
    let mut tables = BTreeMap::new();
    for row in listed {
        let Ok([Some(schema), Some(name), bytes, is_readable, condition]) = <[_; 5]>::try_from(row) else {
            continue;
        };
        let rows = match is_readable.as_deref() {
            Some("t") => Some(sql.number(&count_statement(&schema, &name, condition.as_deref()))?),
            _ => None,
        };
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        tables.insert((schema, name), TableSize { rows, bytes });
    }
    Ok(tables)
}

/// Ends the statement of a session when the operation of this thread is stopped.
pub(super) fn stoppable<T, E>(sql: &mut Sql, ask: impl FnOnce(&mut Sql) -> Result<T, E>) -> Result<T, E> {
    let (stop, cancel) = (Stop::current(), sql.canceller());
    let (done, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(STOP_WITHIN) == Err(RecvTimeoutError::Timeout) {
                if stop.is_stopped() {
                    cancel.notify_one();
                }
            }
        });
        let answer = ask(sql);
        drop(done);
        answer
    })
}

/// Puts the tables of the backup beside those of the database.
fn join(checks: &Checks, mut now: BTreeMap<Name, TableSize>) -> Vec<TableChange> {
    let mut changes: Vec<TableChange> = checks
        .tables
        .iter()
        .map(|table| {
            let now = now.remove(&(table.schema.clone(), table.name.clone()));
            TableChange {
                change: match now {
                    Some(_) => TableChangeKind::Replace,
                    None => TableChangeKind::Create,
                },
                schema: table.schema.clone(),
                table: table.name.clone(),
                then: Some(TableSize {
                    rows: Some(table.rows),
                    bytes: table.bytes,
                }),
                now,
            }
        })
        .collect();
    changes.extend(now.into_iter().map(|((schema, table), now)| TableChange {
        change: TableChangeKind::Keep,
        schema,
        table,
        then: None,
        now: Some(now),
    }));
    changes
}
