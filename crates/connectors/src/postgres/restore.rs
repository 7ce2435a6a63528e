//! The restore side of a logical dump: into a database that is created, or that is empty.
//!
//! The order is: roles; the database; definitions and data from `database.dump`; the large tables, two at a time;
//! indexes, constraints and triggers; the database's own settings. Invariants: a destination that holds anything is
//! refused unless told otherwise; every tool stops at its first error; what the tools read has been checked by the
//! source.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write};
use std::path::PathBuf;
use std::process::ChildStdin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use strongroom_proto::manifest::{EntrySource, Listed};
use strongroom_proto::receipt::{Check, CheckOutcome};

use super::archive::ArchiveReader;
use super::checks::{CHECKS_BYTES_MAX, Checks};
use super::counting::count_statement;
use super::create::{self, LocaleRule};
use super::dump::media;
use super::facts;
use super::globals;
use super::login::Login;
use super::problem::Problem;
use super::quote;
use super::sql::{Sql, SqlError};
use super::target::{Endpoint, PostgresTarget, TargetError};
use super::tools::{self, ToolSet};
use crate::child::{Input, Output, Stop, ToolChild, ToolOutput, describe};

/// Tables restored at the same time.
const PARALLEL_TABLES: usize = 2;
/// The longest `globals.sql` that is read, in bytes.
const GLOBALS_BYTES_MAX: usize = 64 << 20;
/// The longest script of DROP statements that is read, in bytes.
const SCRIPT_BYTES_MAX: u64 = 1 << 30;
/// Databases to connect to while the destination does not exist.
const MAINTENANCE_DATABASES: [&str; 2] = ["postgres", "template1"];
/// Large objects removed in one transaction.
const UNLINKED_TOGETHER: usize = 1_000;
/// SQLSTATE of a database that does not exist.
const NO_SUCH_DATABASE: &str = "3D000";

/// What a restore may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Replace what the destination has of the backup's objects, instead of refusing.
    pub allow_non_empty: bool,
    /// Create the roles that the destination lacks.
    pub globals: bool,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Bytes of content put in place.
    pub restored_bytes: u64,
    /// What was checked afterwards.
    pub checks: Vec<Check>,
    /// Where the result differs from the source, for a person.
    pub notes: Vec<String>,
}

/// Why a restore was refused or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The destination's configuration.
    #[error("restore a database")]
    Target {
        /// What is wrong with it.
        #[source]
        source: TargetError,
    },
    /// The destination holds something.
    #[error(
        "the database {database} is not empty, it holds {}: restore into another database, or allow what it holds to \
         be replaced",
        objects.join(", ")
    )]
    NotEmpty {
        /// Which, without the password.
        database: String,
        /// A few of its objects.
        objects: Vec<String>,
    },
    /// The destination's server is older than the source's.
    #[error(
        "the backup is of version {source_major}, the destination is version {server_major}: restore into {source_major} or newer"
    )]
    OlderServer {
        /// Major version of the server that was backed up.
        source_major: u32,
        /// Major version of the destination.
        server_major: u32,
    },
    /// No tool is new enough.
    #[error(
        "the backup was made by pg_dump {tool_major}, {}: install postgresql-client-{tool_major}",
        newest.map_or_else(
            || "there is no pg_restore here".to_owned(),
            |major| format!("the newest pg_restore here is {major}"),
        )
    )]
    NoTool {
        /// Major version of the pg_dump that made the backup.
        tool_major: u32,
        /// Major version of the newest pg_restore installed.
        newest: Option<u32>,
    },
    /// The backup lacks an entry.
    #[error("the backup has no {entry}: it is not a whole backup of a database, choose another")]
    Incomplete {
        /// The entry.
        entry: &'static str,
    },
    /// The backup's entry cannot be understood.
    #[error("read {entry} of the backup")]
    Malformed {
        /// The entry.
        entry: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The backup cannot be read.
    #[error("read {entry} from the backup")]
    Read {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server did not let us in, or refused a statement.
    #[error("{doing} {object}: {problem}")]
    Sql {
        /// The step.
        doing: &'static str,
        /// Its object, without secrets.
        object: String,
        /// What it means.
        problem: Box<Problem>,
        /// What was said.
        #[source]
        source: SqlError,
    },
    /// pg_restore failed.
    #[error("restore {entry} with pg_restore: {problem}")]
    Tool {
        /// The entry.
        entry: String,
        /// What it means.
        problem: Box<Problem>,
        /// The last lines it wrote.
        #[source]
        output: ToolOutput,
    },
    /// A tool could not be run.
    #[error("run {}", program.display())]
    Run {
        /// The tool.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// Whether another attempt can succeed without anybody doing anything. An attempt that was stopped in the middle
    /// has left a destination that is not empty.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Sql { problem, .. } | Self::Tool { problem, .. } => problem.is_retryable,
            Self::Read { source, .. } => !is_damage(source),
            _ => false,
        }
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Sql { problem, .. } | Self::Tool { problem, .. } => problem.is_disk_full,
            Self::Run { source, .. } | Self::Read { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }

    pub(super) fn sql(doing: &'static str, object: impl ToString) -> impl FnOnce(SqlError) -> Self {
        let object = object.to_string();
        move |source| Self::Sql {
            doing,
            object,
            problem: Box::new(source.problem()),
            source,
        }
    }
}

/// Whether an error of a source says that the backup itself is bad.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
    )
}

/// Restores a dump into `destination`, creating the database where it is missing, and compares the rows afterwards.
pub fn restore(
    source: &dyn EntrySource,
    destination: &PostgresTarget,
    options: &RestoreOptions,
) -> Result<RestoreReport, RestoreError> {
    let backup = Backup::open(source)?;
    let mut report = restore_backup(&backup, destination, options, LocaleRule::Exact)?;
    let endpoint = destination
        .endpoint()
        .map_err(|source| RestoreError::Target { source })?;
    report.checks.push(count_rows(&endpoint, &backup.checks)?);
    Ok(report)
}

/// Restores without checking afterwards.
pub(crate) fn restore_backup(
    backup: &Backup<'_>,
    destination: &PostgresTarget,
    options: &RestoreOptions,
    rule: LocaleRule,
) -> Result<RestoreReport, RestoreError> {
    let endpoint = destination
        .endpoint()
        .map_err(|source| RestoreError::Target { source })?;
    let (mut sql, exists) = connect(&endpoint)?;
    let (_, server_major) =
        facts::server_version(&mut sql).map_err(RestoreError::sql("read the version of", &endpoint))?;
    if server_major < backup.checks.server_major {
        return Err(RestoreError::OlderServer {
            source_major: backup.checks.server_major,
            server_major,
        });
    }
    let tool = choose_tool(destination, backup.checks.tool_major, server_major)?;
    let mut objects = Vec::new();
    if exists {
        objects = create::user_objects(&mut sql).map_err(RestoreError::sql("look into", &endpoint))?;
        if !objects.is_empty() && !options.allow_non_empty {
            return Err(RestoreError::NotEmpty {
                database: endpoint.to_string(),
                objects,
            });
        }
    }
    let mut report = RestoreReport::default();
    if options.globals {
        let text = backup.text("globals.sql", GLOBALS_BYTES_MAX)?;
        let notes = globals::apply(&mut sql, &text)
            .map_err(|failure| RestoreError::sql("restore roles, at", failure.statement)(failure.source))?;
        report.notes.extend(notes);
        report.restored_bytes += text.len() as u64;
    }
    let login = Login::create(&endpoint).map_err(|source| RestoreError::Run {
        program: tool.program("pg_restore"),
        source,
    })?;
    let runner = Runner { backup, tool, login };
    if exists {
        drop(sql);
        if !objects.is_empty() {
            runner.drop_objects(&endpoint)?;
            report
                .notes
                .push("the objects of the backup that existed were replaced".to_owned());
        }
        runner.load(&mut report)?;
    } else {
        let notes = create::create_database(&mut sql, &endpoint.database, &backup.checks.database, rule);
        report
            .notes
            .extend(notes.map_err(RestoreError::sql("create the database", &endpoint))?);
        drop(sql);
        runner.load(&mut report)?;
        // Last: a setting such as default_transaction_read_only would be in the way of the restore itself.
        let mut sql = Sql::connect(&endpoint).map_err(RestoreError::sql("connect to", &endpoint))?;
        report.notes.extend(create::apply_properties(
            &mut sql,
            &endpoint.database,
            &backup.checks.database,
        ));
    }
    Ok(report)
}

/// A session with the destination, or with another database of its server where it does not exist.
pub(super) fn connect(endpoint: &Endpoint) -> Result<(Sql, bool), RestoreError> {
    match Sql::connect(endpoint) {
        Ok(sql) => return Ok((sql, true)),
        Err(error) if error.code() == Some(NO_SUCH_DATABASE) => {}
        Err(error) => return Err(RestoreError::sql("connect to", endpoint)(error)),
    }
    let mut last = None;
    for database in MAINTENANCE_DATABASES {
        match Sql::connect(&endpoint.with_database(database)) {
            Ok(sql) => return Ok((sql, false)),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| SqlError::other("there is no database to create another from"));
    Err(RestoreError::sql("connect to", endpoint)(error))
}

/// The oldest pg_restore that reads the archive, new enough for the server where there is one.
pub(super) fn choose_tool(
    destination: &PostgresTarget,
    tool_major: u32,
    server_major: u32,
) -> Result<ToolSet, RestoreError> {
    let installed = tools::installed("pg_restore", &destination.bin_dirs);
    let best = tools::oldest_of_at_least(&installed, tool_major.max(server_major));
    let tool = best.or_else(|| tools::oldest_of_at_least(&installed, tool_major));
    tool.cloned().ok_or_else(|| RestoreError::NoTool {
        tool_major,
        newest: tools::newest(&installed),
    })
}

/// Counts the rows of every table of the backup in a database.
fn count_rows(endpoint: &Endpoint, checks: &Checks) -> Result<Check, RestoreError> {
    let mut sql = Sql::connect(endpoint).map_err(RestoreError::sql("connect to", endpoint))?;
    sql.run("SET row_security = off; SET search_path = pg_catalog")
        .map_err(RestoreError::sql("count rows in", endpoint))?;
    let mut found = 0;
    let mut differences = Vec::new();
    for table in &checks.tables {
        let name = format!("{}.{}", table.schema, table.name);
        // The rows of an extension's configuration table are partly the extension's own.
        let condition = format!(
            "SELECT condition FROM pg_extension, unnest(extconfig, extcondition) AS t(id, condition)
             WHERE id = to_regclass({})",
            quote::literal(&format!(
                "{}.{}",
                quote::identifier(&table.schema),
                quote::identifier(&table.name)
            ))
        );
        let count = sql.column(&condition).and_then(|condition| {
            let condition = condition.first().map(String::as_str);
            sql.number(&count_statement(&table.schema, &table.name, condition))
        });
        match count {
            Ok(rows) => {
                found += rows;
                if rows != table.rows {
                    differences.push(format!("{name}: expected {} found {rows}", table.rows));
                }
            }
            Err(error) => differences.push(format!("{name}: {error}")),
        }
    }
    let mut detail = format!(
        "expected {} rows in {} tables, found {found}",
        checks.rows(),
        checks.tables.len()
    );
    if let Some(first) = differences.first() {
        detail.push_str(&format!("; {} tables differ, first {first}", differences.len()));
    }
    Ok(Check {
        name: "row counts".to_owned(),
        outcome: if differences.is_empty() {
            CheckOutcome::Passed
        } else {
            CheckOutcome::Failed
        },
        detail,
    })
}

/// The entries of a backup that a restore needs.
pub(crate) struct Backup<'a> {
    source: &'a dyn EntrySource,
    pub(crate) checks: Checks,
    /// Path of the archive of the database, and its length in bytes.
    database: (String, u64),
    /// The same of the archives of large tables.
    tables: Vec<(String, u64)>,
}

impl<'a> Backup<'a> {
    pub(crate) fn open(source: &'a dyn EntrySource) -> Result<Self, RestoreError> {
        let mut database = None;
        let mut tables = Vec::new();
        let mut has_globals = false;
        let mut has_checks = false;
        let listed = source.for_each_entry(&mut |Listed { entry, bytes, .. }| {
            match entry.media.as_deref() {
                Some(media::DUMP) => database = Some((entry.path.clone(), bytes)),
                Some(media::TABLE) => tables.push((entry.path.clone(), bytes)),
                Some(media::GLOBALS) => has_globals = true,
                Some(media::CHECKS) => has_checks = true,
                _ => {}
            }
            Ok(())
        });
        listed.map_err(|source| RestoreError::Read {
            entry: "the list of entries".to_owned(),
            source,
        })?;
        let lacks = |entry| RestoreError::Incomplete { entry };
        let database = database.ok_or_else(|| lacks("database.dump"))?;
        if !has_globals {
            return Err(lacks("globals.sql"));
        }
        if !has_checks {
            return Err(lacks("checks.json"));
        }
        let text = read_text(source, "checks.json", CHECKS_BYTES_MAX)?;
        let checks = Checks::parse(text.as_bytes()).map_err(|source| RestoreError::Malformed {
            entry: "checks.json",
            source,
        })?;
        Ok(Self {
            source,
            checks,
            database,
            tables,
        })
    }

    fn text(&self, path: &str, limit_bytes: usize) -> Result<String, RestoreError> {
        read_text(self.source, path, limit_bytes)
    }
}

fn read_text(source: &dyn EntrySource, path: &str, limit_bytes: usize) -> Result<String, RestoreError> {
    let fail = |source| RestoreError::Read {
        entry: path.to_owned(),
        source,
    };
    let mut text = Limited {
        bytes: Vec::new(),
        limit_bytes,
    };
    source.copy_content(path, &mut text).map_err(fail)?;
    String::from_utf8(text.bytes).map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Keeps what is written, up to a limit.
struct Limited {
    bytes: Vec<u8>,
    limit_bytes: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit_bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("longer than {} bytes", self.limit_bytes),
            ));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs pg_restore on the archives of a backup.
struct Runner<'a> {
    backup: &'a Backup<'a>,
    tool: ToolSet,
    login: Login,
}

impl Runner<'_> {
    fn load(&self, report: &mut RestoreReport) -> Result<(), RestoreError> {
        let (database, bytes) = &self.backup.database;
        self.feed(database, &["--section=pre-data", "--section=data"])?;
        report.restored_bytes += bytes;
        self.load_tables()?;
        report.restored_bytes += self.backup.tables.iter().map(|(_, bytes)| bytes).sum::<u64>();
        self.feed(database, &["--section=post-data"])
    }

    fn load_tables(&self) -> Result<(), RestoreError> {
        let queue: Mutex<VecDeque<&str>> =
            Mutex::new(self.backup.tables.iter().map(|(path, _)| path.as_str()).collect());
        let stopped = AtomicBool::new(false);
        let work = || {
            while !stopped.load(Ordering::Relaxed) {
                let path = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(path) = path else { break };
                if let Err(error) = self.feed(path, &["--section=data"]) {
                    stopped.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        let stop = Stop::current();
        std::thread::scope(|scope| {
            let workers = PARALLEL_TABLES.min(self.backup.tables.len());
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(|| stop.run(work))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            // All are waited for, the first error counts.
            let results: Vec<Result<(), RestoreError>> = threads.into_iter().map(join).collect();
            results.into_iter().collect()
        })
    }

    /// Restores sections of one archive.
    fn feed(&self, path: &str, sections: &[&str]) -> Result<(), RestoreError> {
        let database = format!("--dbname=dbname={}", quote::conninfo(&self.login.endpoint().database));
        let mut arguments = vec!["--exit-on-error", database.as_str()];
        arguments.extend(sections);
        self.run(path, &arguments, Output::Discarded).map(|_| ())
    }

    /// Removes what the archive would create, in one transaction: it fails where anything else depends on it.
    fn drop_objects(&self, endpoint: &Endpoint) -> Result<(), RestoreError> {
        let (database, _) = &self.backup.database;
        let arguments = ["--clean", "--if-exists", "--schema-only", "--file=-"];
        let script = self.run(database, &arguments, Output::Piped)?;
        let step = |doing| RestoreError::sql(doing, endpoint);
        let mut sql = Sql::connect(endpoint).map_err(step("connect to"))?;
        let replace = || step("replace objects in");
        sql.run("BEGIN").map_err(replace())?;
        // The tool's order does not always fit (parts of a partitioned table cannot go before the whole, for one), so
        // what fails is tried again after the rest, as long as that changes anything.
        let mut left = globals::statements(drops(&script));
        while !left.is_empty() {
            let mut failed = Vec::new();
            let mut first_error = None;
            let tried = left.len();
            for statement in left {
                sql.run("SAVEPOINT one").map_err(replace())?;
                match sql.run(&statement) {
                    Ok(()) => sql.run("RELEASE SAVEPOINT one").map_err(replace())?,
                    Err(error) => {
                        sql.run("ROLLBACK TO SAVEPOINT one").map_err(replace())?;
                        first_error.get_or_insert(error);
                        failed.push(statement);
                    }
                }
            }
            match first_error {
                Some(error) if failed.len() == tried => return Err(replace()(error)),
                _ => left = failed,
            }
        }
        sql.run("COMMIT").map_err(replace())?;
        if self.backup.checks.large_objects.count == 0 {
            return Ok(());
        }
        let mut remover = LargeObjectRemover {
            reader: ArchiveReader::with_large_object_ids(),
            sql,
            error: None,
        };
        let copied = self.backup.source.copy_content(database, &mut remover);
        match (remover.error, copied) {
            (Some(error), _) => Err(replace()(error)),
            (None, copied) => copied.map_err(|source| RestoreError::Read {
                entry: database.clone(),
                source,
            }),
        }
    }

    /// Runs pg_restore with an archive on its standard input; gives back what it wrote where that is asked for.
    fn run(&self, path: &str, arguments: &[&str], output: Output) -> Result<String, RestoreError> {
        let program = self.tool.program("pg_restore");
        let fail = |source| RestoreError::Run {
            program: program.clone(),
            source,
        };
        let mut command = self.login.command(&program);
        command
            .args(["--no-password", "--no-tablespaces", "-Fc"])
            .args(arguments);
        let mut child = ToolChild::spawn(command, Input::Piped, output, self.login.secret()).map_err(fail)?;
        let stdin = child
            .take_stdin()
            .ok_or_else(|| fail(io::ErrorKind::BrokenPipe.into()))?;
        let stdout = child.take_stdout();
        let mut feed = Feed { stdin, refused: None };
        let mut script = String::new();
        let copied = std::thread::scope(|scope| {
            let reader = scope.spawn(|| match stdout {
                Some(stdout) => stdout.take(SCRIPT_BYTES_MAX).read_to_string(&mut script).map(|_| ()),
                None => Ok(()),
            });
            let copied = self.backup.source.copy_content(path, &mut feed);
            if copied.is_err() && feed.refused.is_none() {
                child.kill();
            }
            let Feed { stdin, refused } = feed;
            drop(stdin);
            let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (copied, refused, read)
        });
        let (status, said) = child.wait().map_err(fail)?;
        let (copied, refused, read) = copied;
        if let (Err(source), None) = (copied, &refused) {
            return Err(RestoreError::Read {
                entry: path.to_owned(),
                source,
            });
        }
        // A tool that has all it needs stops reading: that is no error when it ends well.
        if !status.success() {
            return Err(RestoreError::Tool {
                entry: path.to_owned(),
                problem: Box::new(Problem::of_tool(&said, &describe(status))),
                output: said,
            });
        }
        match refused {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(fail(error)),
            _ => read.map_err(fail)?,
        }
        Ok(script)
    }
}

/// Removes from a database the large objects that an archive written to it holds.
struct LargeObjectRemover {
    reader: ArchiveReader,
    sql: Sql,
    error: Option<SqlError>,
}

impl Write for LargeObjectRemover {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reader
            .feed(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let ids: Vec<String> = self.reader.take_large_object_ids().iter().map(u32::to_string).collect();
        // Each takes a lock until its transaction ends.
        for some in ids.chunks(UNLINKED_TOGETHER) {
            let statement = format!(
                "SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE oid IN ({})",
                some.join(",")
            );
            if let Err(error) = self.sql.run(&statement) {
                self.error = Some(error);
                return Err(io::Error::other("a large object could not be removed"));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The part of a script of `pg_restore --clean` before the first object is created.
fn drops(script: &str) -> &str {
    script.find("\n-- Name: ").map_or(script, |end| &script[..end])
}

/// The standard input of a tool, remembering why it took no more.
struct Feed {
    stdin: ChildStdin,
    refused: Option<io::Error>,
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdin.write(bytes).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.refused = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.flush()
    }
}
