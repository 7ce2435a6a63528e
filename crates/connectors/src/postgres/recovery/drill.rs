//! A drill of a base backup: recovered into scratch space for real, and asked.
//!
//! Invariants: a bad backup is a failed check, never an error; an error means that nothing was learned about it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use rustix::process::Signal;
use strongroom_proto::cluster_tables::ClusterTables;
use strongroom_proto::database_changes::TableSize;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::{Check, CheckOutcome};
use strongroom_proto::restore::TableName;
use strongroom_proto::wal::{ClusterFacts, Leave, Recovery, RecoveryTarget};

use super::data_folder::FILES_CHECK;
use super::error::{RecoveryError, was_killed};
use super::feed::WalFetch;
use super::replay::Live;
use super::{Durability, Prepared, RecoveryProgress, RecoveryRequest};
use crate::child::describe;
use crate::postgres::DrillConfig;
use crate::postgres::cluster_tables::{self, Table};
use crate::postgres::compare::stoppable;
use crate::postgres::run_as::clean_environment;
use crate::postgres::sql::{Sql, SqlError};
use crate::scratch::ScratchDir;

const SCRATCH_PREFIX: &str = "drill-";
const RECOVERY: &str = "recovery";
const DATABASES: &str = "databases";
const CHECKSUMS: &str = "page checksums";
const SAID_LINES_MAX: usize = 5;
/// SQLSTATE `lock_not_available`.
const LOCKED: &str = "55P03";

/// Makes a session count, whatever the cluster's own settings for its databases and roles say: for as long as it takes,
/// and by reading the tables themselves.
const COUNTING: &str = "
    SET ROLE NONE; SET search_path = pg_catalog; SET enable_indexscan = off; SET enable_indexonlyscan = off;
    SET lock_timeout = '2s';
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_session_timeout')";

/// What a drill has found.
#[derive(Debug)]
pub struct Drilled {
    /// Each step, and how it ended.
    pub checks: Vec<Check>,
    /// What the tables held, where all of them could be read.
    pub tables: Option<ClusterTables>,
}

/// Lays a base backup down in scratch space, recovers it to where it is consistent with the vault's WAL, counts the rows of
/// every table of every database, and has the checksums of all pages checked.
pub fn drill_cluster(
    source: &dyn EntrySource,
    facts: &ClusterFacts,
    wal: Arc<dyn WalFetch>,
    config: &DrillConfig,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<Drilled, RecoveryError> {
    std::fs::create_dir_all(&config.scratch_dir).map_err(RecoveryError::file("create", &config.scratch_dir))?;
    let scratch = ScratchDir::create(&config.scratch_dir, SCRATCH_PREFIX, 0o711, |_| {})
        .map_err(RecoveryError::file("create a folder in", &config.scratch_dir))?;
    let data_dir: PathBuf = scratch.path().join("data");
    let recovery = Recovery {
        to: RecoveryTarget::Immediate,
        timeline: facts.timeline,
        wal_end: None,
        leave: Leave::Stopped,
        tablespaces: Default::default(),
        tables: Vec::new(),
    };
    let request = RecoveryRequest {
        facts,
        recovery: &recovery,
        destination: &data_dir,
        wal,
        restore_command: None,
        bin_dirs: &config.bin_dirs,
        scratch_dir: &config.scratch_dir,
        mark: "drill",
    };
    let prepared = match Prepared::make(source, &request, &data_dir, Durability::Scratch, progress) {
        Ok(prepared) => prepared,
        Err(error) => return bad_backup(Vec::new(), FILES_CHECK, error),
    };
    let mut checks = prepared.checks.clone();
    let mut live = match prepared.replay(&request, progress) {
        Ok(live) => live,
        Err(error) => return bad_backup(checks, RECOVERY, error),
    };
    checks.append(&mut live.checks);
    let mut tables = None;
    checks.push(match count_databases(&mut live) {
        Ok((counted, detail)) => {
            tables = Some(counted);
            check(DATABASES, CheckOutcome::Passed, detail)
        }
        Err(error) if !error.is_about_backup() => return Err(error),
        Err(error) => check(DATABASES, CheckOutcome::Failed, one_line(&error)),
    });
    // Everything must be written before the pages are looked at.
    live.process.stop(Signal::INT);
    drop(live);
    checks.push(check_pages(&prepared)?);
    Ok(Drilled { checks, tables })
}

/// Connects to every database and counts the rows of its tables, the server's own among them: a catalog that is damaged
/// is found as well. What users' tables hold, and what was found in a few words.
fn count_databases(live: &mut Live) -> Result<(ClusterTables, String), RecoveryError> {
    let ask = || RecoveryError::sql("ask");
    let mut sql = live
        .door
        .connect("postgres")
        .or_else(|_| live.door.connect("template1"))
        .map_err(ask())?;
    let databases = cluster_tables::databases(&mut sql).map_err(ask())?;
    let mut relations = 0;
    let mut counted: Vec<(TableName, TableSize)> = Vec::new();
    for database in &databases {
        let mut sql = live.door.connect(database).map_err(ask())?;
        stoppable(&mut sql, |sql| -> Result<(), RecoveryError> {
            sql.run(COUNTING).map_err(ask())?;
            relations += sql.number("SELECT count(*) FROM pg_class").map_err(ask())?;
            for table in cluster_tables::tables(sql).map_err(ask())? {
                let name = table.named(database);
                let size = count(sql, &table).map_err(RecoveryError::sql(format!("count the rows of {name} in")))?;
                if !table.is_system {
                    counted.push((name, size));
                }
            }
            Ok(())
        })?;
    }
    let unread = counted.iter().filter(|(_, size)| size.rows.is_none()).count();
    let rows: u64 = counted.iter().filter_map(|(_, size)| size.rows).sum();
    let mut detail = format!(
        "{} databases answer, with {relations} relations and {rows} rows in {} tables",
        databases.len(),
        counted.len() - unread
    );
    if unread > 0 {
        detail.push_str(&format!(
            "; {unread} tables were not counted: a prepared transaction locks them, or an extension stores them"
        ));
    }
    Ok((ClusterTables::drilled(counted), detail))
}

/// How large a table is; not known of one that a prepared transaction of the cluster keeps locked.
fn count(sql: &mut Sql, table: &Table) -> Result<TableSize, SqlError> {
    match cluster_tables::size(sql, table) {
        Err(error) if error.code() == Some(LOCKED) => Ok(TableSize::default()),
        counted => counted,
    }
}

/// Has every page's checksum checked, where the cluster has them.
fn check_pages(prepared: &Prepared) -> Result<Check, RecoveryError> {
    let program = prepared.binaries.program("pg_checksums");
    if !prepared.control.has_checksums {
        let detail = "the cluster was made without page checksums: there are none to check";
        return Ok(check(CHECKSUMS, CheckOutcome::Passed, detail.to_owned()));
    }
    if !program.is_file() {
        let detail = format!("{} is missing: install the whole of PostgreSQL", program.display());
        return Ok(check(CHECKSUMS, CheckOutcome::Skipped, detail));
    }
    let mut command = prepared.run_as.command(&program, None);
    clean_environment(&mut command)
        .arg("--check")
        .arg("-D")
        .arg(&prepared.data_dir)
        .stdin(Stdio::null());
    let output = command.output().map_err(RecoveryError::file("run", &program))?;
    if was_killed(output.status) {
        return Err(RecoveryError::Tool {
            doing: "check the checksums of all pages".to_owned(),
            output: describe(output.status),
        });
    }
    let said = String::from_utf8_lossy(if output.status.success() {
        &output.stdout
    } else {
        &output.stderr
    });
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(SAID_LINES_MAX)
        .collect();
    let outcome = if output.status.success() {
        CheckOutcome::Passed
    } else {
        CheckOutcome::Failed
    };
    Ok(check(CHECKSUMS, outcome, lines.join("; ")))
}

/// The failed check of a backup that is bad, or the error where the reason lies here.
fn bad_backup(mut checks: Vec<Check>, name: &str, error: RecoveryError) -> Result<Drilled, RecoveryError> {
    if !error.is_about_backup() {
        return Err(error);
    }
    checks.push(check(name, CheckOutcome::Failed, one_line(&error)));
    for name in [DATABASES, CHECKSUMS] {
        checks.push(check(
            name,
            CheckOutcome::Skipped,
            "skipped: the server was not recovered".to_owned(),
        ));
    }
    Ok(Drilled { checks, tables: None })
}

fn check(name: &str, outcome: CheckOutcome, detail: String) -> Check {
    Check {
        name: name.to_owned(),
        outcome,
        detail,
    }
}

/// An error with its causes.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {}", error.to_string().replace('\n', "; ")));
        cause = error.source();
    }
    text
}
