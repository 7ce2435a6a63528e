//! Single tables out of a base backup: the cluster is recovered into scratch space and asked for them.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::{Check, CheckOutcome};
use strongroom_proto::restore::TableName;

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

/// The name of its file.
fn file_name(name: &TableName) -> String {
    let parts = [&name.database, &name.schema, &name.table].map(|part| quote::path_component(part));
    format!("{}.dump", parts.join("."))
}

/// Recovers tables into files of their own in the destination, each a `pg_dump` in custom format.
pub(super) fn recover_tables(
    source: &dyn EntrySource,
    request: &RecoveryRequest<'_>,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<Recovered, RecoveryError> {
    let mut tables = Vec::new();
    for text in &request.recovery.tables {
        let table: TableName = text.parse().map_err(|error| RecoveryError::Refused {
            what: format!("{error}"),
        })?;
        let file = request.destination.join(file_name(&table));
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
    fn files_are_named_after_their_tables_and_lie_in_the_destination() {
        let name = file_name(&"shop.public.\"../../x\"".parse().unwrap());
        assert_eq!(name, "shop.public...%2F..%2Fx.dump");
    }
}
