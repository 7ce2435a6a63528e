//! What is asked of a server before anything is dumped.

use super::checks::{DatabaseChecks, ExtensionChecks, GrantChecks, SettingChecks};
use super::dump::DumpError;
use super::sql::{Sql, SqlError};
use super::target::PostgresTarget;
use super::tools;

/// The most tables that become streams of their own: pg_dump is told of each by an argument.
const LARGE_TABLES_MAX: usize = 1_000;

/// What a look at a target tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Version of the server, e.g. `15.18`.
    pub server_version: String,
    /// Its major version.
    pub server_major: u32,
    /// Size of the database on the server's disk, in bytes; a dump is usually smaller.
    pub database_bytes: u64,
    /// Version of the pg_dump that a backup would use.
    pub tool_version: String,
}

/// Connects to a target and looks whether it could be dumped with the tools installed here.
pub fn probe(target: &PostgresTarget) -> Result<ServerFacts, DumpError> {
    let endpoint = target.endpoint().map_err(|source| DumpError::Target { source })?;
    let ask = |source: SqlError| DumpError::ask(&endpoint, source);
    let mut sql = Sql::connect(&endpoint).map_err(|source| DumpError::connect(&endpoint, source))?;
    let (server_version, server_major) = server_version(&mut sql).map_err(ask)?;
    let database_bytes = sql.number("SELECT pg_database_size(current_database())").map_err(ask)?;
    let installed = tools::installed("pg_dump", &target.bin_dirs);
    let tool = tools::oldest_of_at_least(&installed, server_major)
        .ok_or_else(|| DumpError::no_tool(server_major, &installed))?;
    Ok(ServerFacts {
        server_version,
        server_major,
        database_bytes,
        tool_version: tool.version.clone(),
    })
}

/// The version as text, and its major number.
pub(crate) fn server_version(sql: &mut Sql) -> Result<(String, u32), SqlError> {
    let number = sql.number("SHOW server_version_num")?;
    let text = sql.value("SHOW server_version")?;
    let version = text.split_whitespace().next().unwrap_or_default().to_owned();
    let major = u32::try_from(number / 10_000).map_err(|_| SqlError::other("the server has an unknown version"))?;
    Ok((version, major))
}

/// The database of the session.
pub(crate) fn database(sql: &mut Sql) -> Result<DatabaseChecks, SqlError> {
    // Columns that only some versions have are taken from the row as JSON.
    let rows = sql.rows(
        "SELECT datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype,
                coalesce(row_to_json(d)->>'datlocprovider', 'c'),
                coalesce(row_to_json(d)->>'datlocale', row_to_json(d)->>'daticulocale'), datacl IS NOT NULL
         FROM pg_database d WHERE datname = current_database()",
    )?;
    let row = rows
        .into_iter()
        .next()
        .ok_or_else(|| SqlError::other("the server does not know its own database"))?;
    let [name, owner, encoding, collate, ctype, provider, locale, has_acl] = row
        .try_into()
        .map_err(|_| SqlError::other("the server sent a row of another width"))?;
    let settings = sql.rows(
        "SELECT rolname, split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
         FROM (SELECT setrole, unnest(setconfig) AS setting FROM pg_db_role_setting
               WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())) s
         LEFT JOIN pg_roles r ON r.oid = setrole ORDER BY 1 NULLS FIRST, 2",
    )?;
    let grants = sql.rows(
        "SELECT rolname, privilege_type, is_grantable FROM pg_database, aclexplode(datacl)
         LEFT JOIN pg_roles r ON r.oid = grantee
         WHERE datname = current_database() ORDER BY 1 NULLS FIRST, 2",
    )?;
    Ok(DatabaseChecks {
        name: name.unwrap_or_default(),
        owner: owner.unwrap_or_default(),
        encoding: encoding.unwrap_or_default(),
        collate: collate.unwrap_or_default(),
        ctype: ctype.unwrap_or_default(),
        provider: provider.unwrap_or_default(),
        locale,
        settings: settings
            .into_iter()
            .filter_map(|row| match <[_; 3]>::try_from(row) {
                Ok([role, Some(name), Some(value)]) => Some(SettingChecks { role, name, value }),
                _ => None,
            })
            .collect(),
        grants: (has_acl.as_deref() == Some("t")).then(|| {
            grants
                .into_iter()
                .filter_map(|row| match <[_; 3]>::try_from(row) {
                    Ok([role, Some(privilege), grantable]) => Some(GrantChecks {
                        role,
                        privilege,
                        grantable: grantable.as_deref() == Some("t"),
                    }),
                    _ => None,
                })
                .collect()
        }),
    })
}

/// The extensions of the database but the one that every database has.
pub(crate) fn extensions(sql: &mut Sql) -> Result<Vec<ExtensionChecks>, SqlError> {
    let rows = sql.rows("SELECT extname, extversion FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1")?;
    Ok(rows
        .into_iter()
        .filter_map(|row| match <[_; 2]>::try_from(row) {
            Ok([Some(name), Some(version)]) => Some(ExtensionChecks { name, version }),
            _ => None,
        })
        .collect())
}

/// A table that becomes a stream of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LargeTable {
    pub(crate) schema: String,
    pub(crate) name: String,
}

/// The largest tables of at least `bytes`, by name.
pub(crate) fn large_tables(sql: &mut Sql, bytes: u64, encoding: &str) -> Result<Vec<LargeTable>, SqlError> {
    // Partitions are ordinary tables here. What an extension owns is dumped by the extension's own rules.
    let rows = sql.rows(&format!(
        "SELECT nspname, relname FROM (
             SELECT n.nspname, c.relname, pg_table_size(c.oid) AS bytes
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence <> 't'
               AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                               AND d.deptype = 'e')
             OFFSET 0) t
         WHERE bytes >= {} ORDER BY bytes DESC, 1, 2 LIMIT {LARGE_TABLES_MAX}",
        i64::try_from(bytes).unwrap_or(i64::MAX)
    ))?;
    let mut tables: Vec<LargeTable> = rows
        .into_iter()
        .filter_map(|row| match <[_; 2]>::try_from(row) {
            Ok([Some(schema), Some(name)]) => Some(LargeTable { schema, name }),
            _ => None,
        })
        // pg_dump reads its arguments in the database's encoding; in another than UTF-8 only ASCII names are safe.
        .filter(|table| encoding == "UTF8" || (table.schema.is_ascii() && table.name.is_ascii()))
        .collect();
    // The order of their sizes changes from day to day; that of their names does not.
    tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(tables)
}
