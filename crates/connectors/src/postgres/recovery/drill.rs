//! A drill of a base backup: recovered into scratch space for real, and asked.
//!
//! Invariants: a bad backup is a failed check, never an error; an error means that nothing was learned about it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use rustix::process::Signal;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::{Check, CheckOutcome};
use strongroom_proto::wal::{ClusterFacts, Leave, Recovery, RecoveryTarget};

use super::data_folder::FILES_CHECK;
use super::error::{RecoveryError, was_killed};
use super::feed::WalFetch;
use super::replay::Live;
use super::{Durability, Prepared, RecoveryProgress, RecoveryRequest};
use crate::child::describe;
use crate::postgres::run_as::clean_environment;
use crate::postgres::{DrillConfig, quote};
use crate::scratch::ScratchDir;

const SCRATCH_PREFIX: &str = "drill-";
const RECOVERY: &str = "recovery";
const DATABASES: &str = "databases";
const CHECKSUMS: &str = "page checksums";
const SAID_LINES_MAX: usize = 5;

/// Lays a base backup down in scratch space, recovers it to where it is consistent with the vault's WAL, connects to every
/// database, and has the checksums of all pages checked.
pub fn drill_cluster(
    source: &dyn EntrySource,
    facts: &ClusterFacts,
    wal: Arc<dyn WalFetch>,
    config: &DrillConfig,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<Vec<Check>, RecoveryError> {
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
    checks.push(match visit_databases(&mut live) {
        Ok(detail) => check(DATABASES, CheckOutcome::Passed, detail),
        Err(error) if !error.is_about_backup() => return Err(error),
        Err(error) => check(DATABASES, CheckOutcome::Failed, one_line(&error)),
    });
    // Everything must be written before the pages are looked at.
    live.process.stop(Signal::INT);
    drop(live);
    checks.push(check_pages(&prepared)?);
    Ok(checks)
}

/// Connects to every database and counts its relations; what was found.
fn visit_databases(live: &mut Live) -> Result<String, RecoveryError> {
    let ask = || RecoveryError::sql("ask");
    let mut sql = live
        .door
        .connect("postgres")
        .or_else(|_| live.door.connect("template1"))
        .map_err(ask())?;
    let databases = sql
        .column("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
        .map_err(ask())?;
    let mut relations = 0;
    for database in &databases {
        let mut sql = live.door.connect(database).map_err(ask())?;
        relations += sql.number("SELECT count(*) FROM pg_class").map_err(ask())?;
        // Catalogs alone might be whole: of every table that has rows, the first is read as well.
        let tables = sql
            .rows(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'r' AND c.relpersistence = 'p'",
            )
            .map_err(ask())?;
        for table in tables {
            let mut name = table
                .into_iter()
                .map(|part| quote::identifier(&part.unwrap_or_default()));
            let (Some(schema), Some(table)) = (name.next(), name.next()) else {
                continue;
            };
            sql.run(&format!("SELECT 1 FROM ONLY {schema}.{table} LIMIT 1"))
                .map_err(ask())?;
        }
    }
    Ok(format!(
        "{} databases answer, with {relations} relations",
        databases.len()
    ))
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
fn bad_backup(mut checks: Vec<Check>, name: &str, error: RecoveryError) -> Result<Vec<Check>, RecoveryError> {
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
    Ok(checks)
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
