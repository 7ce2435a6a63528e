//! Single tables out of a base backup: the cluster is recovered into scratch space and asked for them.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::{Check, CheckOutcome};

use super::error::RecoveryError;
use super::server::Door;
use super::{Durability, Prepared, Recovered, RecoveryProgress, RecoveryRequest};
use crate::child::{Input, Output, ToolChild, describe};
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::login::Login;
use crate::postgres::problem::Problem;
use crate::postgres::quote;
use crate::scratch::ScratchDir;

const SCRATCH_PREFIX: &str = "tables-";

/// A table by its full name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TableName {
    database: String,
    schema: String,
    table: String,
}

impl TableName {
    /// Reads `database.schema.table`; a part that holds a dot or a quote is written in double quotes, as in SQL.
    fn parse(text: &str) -> Option<Self> {
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
                None if after.is_empty() => break,
                None => return None,
            }
        }
        let [database, schema, table] = <[String; 3]>::try_from(parts).ok()?;
        Some(Self {
            database,
            schema,
            table,
        })
    }

    fn file_name(&self) -> String {
        let parts = [&self.database, &self.schema, &self.table].map(|part| quote::path_component(part));
        format!("{}.dump", parts.join("."))
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

/// Recovers tables into files of their own in the destination, each a `pg_dump` in custom format.
pub(super) fn recover_tables(
    source: &dyn EntrySource,
    request: &RecoveryRequest<'_>,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<Recovered, RecoveryError> {
    let mut tables = Vec::new();
    for text in &request.recovery.tables {
        let table = TableName::parse(text).ok_or_else(|| RecoveryError::Refused {
            what: format!("{text:?} names no table: write database.schema.table"),
        })?;
        let file = request.destination.join(table.file_name());
        if file.symlink_metadata().is_ok() || tables.iter().any(|(_, other)| *other == file) {
            return Err(RecoveryError::Refused {
                what: format!(
                    "{} is there already: remove it, or choose another destination",
                    file.display()
                ),
            });
        }
        tables.push((table, file));
    }
    std::fs::create_dir_all(request.destination).map_err(RecoveryError::file("create", request.destination))?;
    std::fs::create_dir_all(request.scratch_dir).map_err(RecoveryError::file("create", request.scratch_dir))?;
    let scratch = ScratchDir::create(request.scratch_dir, SCRATCH_PREFIX, 0o711, |_| {})
        .map_err(RecoveryError::file("create a folder in", request.scratch_dir))?;
    let data_dir = scratch.path().join("data");
    let prepared = Prepared::make(source, request, &data_dir, Durability::Scratch, progress)?;
    let mut live = prepared.replay(request, progress)?;
    let mut recovered = Recovered {
        bytes: 0,
        segments: live.segments,
        replayed_to: Some(live.replayed_to),
        checks: prepared.checks,
        notes: Vec::new(),
        running: None,
    };
    recovered.checks.append(&mut live.checks);
    for (table, file) in &tables {
        let bytes = dump_table(&prepared.binaries, &live.door, table, file).inspect_err(|_| {
            // What is not whole does not stay.
            let _ = std::fs::remove_file(file);
        })?;
        recovered.bytes += bytes;
        recovered.checks.push(Check {
            name: format!("table {}.{}.{}", table.database, table.schema, table.table),
            outcome: CheckOutcome::Passed,
            detail: format!("{bytes} bytes in {}", file.display()),
        });
        recovered
            .notes
            .push(format!("restore it with pg_restore {}", file.display()));
    }
    live.process.stop(Signal::QUIT);
    Ok(recovered)
}

fn dump_table(binaries: &ServerBinaries, door: &Door, table: &TableName, file: &Path) -> Result<u64, RecoveryError> {
    let endpoint = door.endpoint(&table.database).map_err(RecoveryError::sql("reach"))?;
    let login = Login::create(&endpoint).map_err(RecoveryError::file("log in to", &door.socket_dir))?;
    let program: PathBuf = binaries.program("pg_dump");
    let mut command = login.command(&program);
    let name = format!(
        "{}.{}",
        quote::identifier(&table.schema),
        quote::identifier(&table.table)
    );
    command
        .arg("--format=custom")
        .arg(format!("--table={name}"))
        .arg("--strict-names")
        .arg("--file")
        .arg(file);
    let mut child = ToolChild::spawn(command, Input::Closed, Output::Discarded, None)
        .map_err(RecoveryError::file("run", &program))?;
    let (status, output) = child.wait().map_err(RecoveryError::file("run", &program))?;
    if !status.success() {
        return Err(RecoveryError::Tool {
            doing: format!("dump {}.{}", table.database, name),
            output: Problem::of_tool(&output, &describe(status)).to_string(),
        });
    }
    let written = std::fs::File::open(file).and_then(|file| {
        file.sync_all()?;
        Ok(file.metadata()?.len())
    });
    written.map_err(RecoveryError::file("write", file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_are_read_with_and_without_quotes() {
        let parts = |text: &str| TableName::parse(text).map(|name| [name.database, name.schema, name.table]);
        assert_eq!(parts("shop.public.orders").unwrap(), ["shop", "public", "orders"]);
        assert_eq!(parts(r#"shop."a.b"."c""d""#).unwrap(), ["shop", "a.b", "c\"d"]);
        for bad in [
            "",
            "orders",
            "public.orders",
            "a.b.c.d",
            "a..c",
            "a.b.",
            "a.\"b.c",
            "a.\"b\"x.c",
        ] {
            assert_eq!(parts(bad), None, "{bad}");
        }
        let name = TableName::parse("shop.public.\"../../x\"").unwrap().file_name();
        assert_eq!(name, "shop.public...%2F..%2Fx.dump");
    }
}
