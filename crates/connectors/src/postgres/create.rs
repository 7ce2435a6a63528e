//! Creating a database like the one that was dumped, and finding out whether one is empty.

use super::checks::DatabaseChecks;
use super::quote::{identifier, literal};
use super::sql::{Sql, SqlError};

/// Object ids below this are a fresh cluster's own.
const FIRST_USER_OBJECT: u32 = 16_384;
/// Objects of a destination that is not empty, named in the refusal.
const NAMED_OBJECTS: usize = 5;

/// Parameters whose value is a list that the catalog holds ready-quoted.
const LIST_PARAMETERS: [&str; 6] = [
    "search_path",
    "temp_tablespaces",
    "session_preload_libraries",
    "local_preload_libraries",
    "shared_preload_libraries",
    "unix_socket_directories",
];

/// What to do where the destination lacks the source's locale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocaleRule {
    /// Refuse: texts would sort differently.
    Exact,
    /// Take the C locale: contents are the same.
    OrElseC,
}

/// Creates the database, owned as the source's where that role exists; the notes say where it differs.
pub(crate) fn create_database(
    sql: &mut Sql,
    name: &str,
    like: &DatabaseChecks,
    rule: LocaleRule,
) -> Result<Vec<String>, SqlError> {
    let mut notes = Vec::new();
    let major = sql.number("SHOW server_version_num")? / 10_000;
    let owner_exists = !sql
        .column(&format!(
            "SELECT 1 FROM pg_roles WHERE rolname = {}",
            literal(&like.owner)
        ))?
        .is_empty();
    let mut begin = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {}",
        identifier(name),
        literal(&like.encoding)
    );
    if owner_exists {
        begin.push_str(&format!(" OWNER {}", identifier(&like.owner)));
    } else {
        notes.push(format!(
            "the owner {} does not exist here; the database belongs to us",
            like.owner
        ));
    }
    let locale = locale_clause(like, major);
    match sql.run(&format!("{begin}{locale}")) {
        Ok(()) => Ok(notes),
        Err(error) if rule == LocaleRule::OrElseC && error.to_string().to_lowercase().contains("locale") => {
            let provider = if major >= 15 { " LOCALE_PROVIDER libc" } else { "" };
            sql.run(&format!("{begin}{provider} LC_COLLATE 'C' LC_CTYPE 'C'"))?;
            notes.push(format!(
                "the locale {} is not installed here, C was used: {error}",
                like.collate
            ));
            Ok(notes)
        }
        Err(error) => Err(error),
    }
}

fn locale_clause(like: &DatabaseChecks, server_major: u64) -> String {
    let mut clause = format!(
        " LC_COLLATE {} LC_CTYPE {}",
        literal(&like.collate),
        literal(&like.ctype)
    );
    let locale = like.locale.as_deref().unwrap_or_default();
    match like.provider.as_str() {
        "i" => clause.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", literal(locale))),
        "b" => clause.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", literal(locale))),
        _ if server_major >= 15 => clause.push_str(" LOCALE_PROVIDER libc"),
        _ => {}
    }
    clause
}

/// Gives a database that was just created the settings and privileges of the source; the notes name those that the
/// destination refuses.
pub(crate) fn apply_properties(sql: &mut Sql, name: &str, like: &DatabaseChecks) -> Vec<String> {
    let database = identifier(name);
    let mut statements = Vec::new();
    for setting in &like.settings {
        let subject = match &setting.role {
            Some(role) => format!("ROLE {} IN DATABASE {database}", identifier(role)),
            None => format!("DATABASE {database}"),
        };
        let value = if LIST_PARAMETERS.contains(&setting.name.as_str()) && !setting.value.is_empty() {
            setting.value.clone()
        } else {
            literal(&setting.value)
        };
        let parameter: Vec<String> = setting.name.split('.').map(identifier).collect();
        statements.push((
            format!("setting {}", setting.name),
            format!("ALTER {subject} SET {} TO {value}", parameter.join(".")),
        ));
    }
    if let Some(grants) = &like.grants {
        statements.push((
            "privileges of PUBLIC".to_owned(),
            format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
        ));
        for grant in grants.iter().filter(|grant| is_privilege(&grant.privilege)) {
            let role = grant.role.as_deref().map_or_else(|| "PUBLIC".to_owned(), identifier);
            let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
            let statement = format!("GRANT {} ON DATABASE {database} TO {role}{option}", grant.privilege);
            statements.push((format!("privilege {} of {role}", grant.privilege), statement));
        }
    }
    let mut notes = Vec::new();
    for (what, statement) in statements {
        if let Err(error) = sql.run(&statement) {
            notes.push(format!("the database's {what} is not restored: {error}"));
        }
    }
    notes
}

fn is_privilege(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b' ')
}

/// A few of the objects that a user has put into the database of the session; none where it is as created.
pub(crate) fn user_objects(sql: &mut Sql) -> Result<Vec<String>, SqlError> {
    let not_of_an_extension = |catalog: &str| {
        format!(
            "NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = o.oid
                         AND d.deptype IN ('e', 'i'))"
        )
    };
    let schemas = "JOIN pg_namespace n ON n.oid = NAMESPACE AND n.nspname NOT LIKE 'pg\\_%'
                   AND n.nspname <> 'information_schema'";
    let relations = format!(
        "SELECT 1, 'relation ' || n.nspname || '.' || o.relname FROM pg_class o {}
         WHERE o.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND {}",
        schemas.replace("NAMESPACE", "o.relnamespace"),
        not_of_an_extension("pg_class")
    );
    let functions = format!(
        "SELECT 2, 'function ' || n.nspname || '.' || o.proname FROM pg_proc o {} WHERE {}",
        schemas.replace("NAMESPACE", "o.pronamespace"),
        not_of_an_extension("pg_proc")
    );
    let types = format!(
        "SELECT 3, 'type ' || n.nspname || '.' || o.typname FROM pg_type o {} WHERE o.typtype <> 'p' AND {}",
        schemas.replace("NAMESPACE", "o.typnamespace"),
        not_of_an_extension("pg_type")
    );
    let namespaces = format!(
        "SELECT 4, 'schema ' || o.nspname FROM pg_namespace o
         WHERE o.oid >= {FIRST_USER_OBJECT} AND o.nspname NOT LIKE 'pg\\_%' AND {}",
        not_of_an_extension("pg_namespace")
    );
    let large_objects = "SELECT 5, 'large object ' || o.oid FROM pg_largeobject_metadata o";
    let limited = [relations, functions, types, namespaces, large_objects.to_owned()]
        .map(|query| format!("({query} LIMIT {NAMED_OBJECTS})"));
    sql.column(&format!(
        "SELECT name FROM ({}) t (rank, name) ORDER BY rank, name LIMIT {NAMED_OBJECTS}",
        limited.join(" UNION ALL ")
    ))
}
