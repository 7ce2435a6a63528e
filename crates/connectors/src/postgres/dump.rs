//! A logical dump of one database: the stock tools, one snapshot, streamed.
//!
//! The order is: open a session and export its snapshot; `globals.sql`; `database.dump` without the rows of large
//! tables; one archive a large table; compare the rows that passed with those that SQL counted in the same snapshot;
//! `checks.json`. The next tool is started while the last one's output is still being read, and waits at a full pipe.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::Command;

use strongroom_proto::manifest::{Entry, EntrySink};
use strongroom_proto::receipt::{Missing, SourceFacts};

use super::archive::{ArchiveError, ArchiveReader, ArchiveSummary, TableData};
use super::checks::{CHECKS_SCHEMA, Checks, LargeObjectChecks, TableChecks, digest_text};
use super::counting::{Counts, SnapshotCounts};
use super::facts::{self, LargeTable};
use super::login::Login;
use super::problem::Problem;
use super::quote;
use super::sql::{Sql, SqlError};
use super::target::{Endpoint, PostgresTarget, TargetError};
use super::tools::{self, ToolSet};
use crate::child::{Input, Output, ToolChild, ToolOutput, describe};
use crate::sink::may_be_stored_later;

/// How much of a tool's output is read at once.
const READ_BYTES: usize = 512 << 10;
/// How long pg_dump waits for a table that somebody has locked.
const LOCK_WAIT: &str = "60s";

/// Media of the entries, which the restore side goes by.
pub(crate) mod media {
    pub(crate) const GLOBALS: &str = "postgres-globals";
    pub(crate) const DUMP: &str = "postgres-dump";
    pub(crate) const TABLE: &str = "postgres-table";
    pub(crate) const CHECKS: &str = "postgres-checks";
}

/// What a dump took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpReport {
    /// Versions and counts, for the receipt.
    pub facts: SourceFacts,
    /// What could not be taken, for the receipt.
    pub missing: Vec<Missing>,
}

/// Why there is no dump. What was written to the sink before is not a backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The configuration.
    #[error("dump a database")]
    Target {
        /// What is wrong with it.
        #[source]
        source: TargetError,
    },
    /// No tool is new enough.
    #[error(
        "the server is version {server_major}, {}: install postgresql-client-{server_major}",
        newest.map_or_else(|| "there is no pg_dump here".to_owned(), |major| format!("the newest pg_dump here is {major}"))
    )]
    NoTool {
        /// Major version of the server.
        server_major: u32,
        /// Major version of the newest pg_dump installed.
        newest: Option<u32>,
    },
    /// The server did not let us in.
    #[error("connect to {server}: {problem}")]
    Connect {
        /// Which, without the password.
        server: String,
        /// What it means.
        problem: Box<Problem>,
        /// What was said.
        #[source]
        source: SqlError,
    },
    /// A question to the server failed.
    #[error("read the contents of {server}: {problem}")]
    Ask {
        /// Which, without the password.
        server: String,
        /// What it means.
        problem: Box<Problem>,
        /// What was said.
        #[source]
        source: SqlError,
    },
    /// A tool failed.
    #[error("dump {entry} with {tool}: {problem}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// The entry it was to write.
        entry: String,
        /// What it means.
        problem: Box<Problem>,
        /// The last lines it wrote.
        #[source]
        output: ToolOutput,
    },
    /// A tool could not be started, or its output not be read.
    #[error("run {}", program.display())]
    Run {
        /// The tool.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool ended well, but what it wrote is no whole archive.
    #[error("dump {entry}: the archive is not whole; it is tried again")]
    Archive {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// Rows passed by that SQL does not count, or the other way round.
    #[error("dump {what}: {dumped} were dumped, SQL counts {counted} in the same snapshot; it is tried again")]
    CountsDiffer {
        /// Rows of a table, or large objects.
        what: String,
        /// What the archive holds.
        dumped: u64,
        /// What SQL counts.
        counted: u64,
    },
    /// What was read could not be put away.
    #[error("store {entry}")]
    Sink {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DumpError {
    /// Whether another attempt can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Target { .. } | Self::NoTool { .. } => false,
            Self::Connect { problem, .. } | Self::Ask { problem, .. } | Self::Tool { problem, .. } => {
                problem.is_retryable
            }
            Self::Run { source, .. } => {
                !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            }
            Self::Archive { source, .. } => !matches!(source, ArchiveError::UnknownVersion { .. }),
            Self::CountsDiffer { .. } => true,
            Self::Sink { source, .. } => may_be_stored_later(source),
        }
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Connect { problem, .. } | Self::Ask { problem, .. } | Self::Tool { problem, .. } => {
                problem.is_disk_full
            }
            Self::Run { source, .. } | Self::Sink { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }

    pub(crate) fn connect(endpoint: &Endpoint, source: SqlError) -> Self {
        Self::Connect {
            server: endpoint.to_string(),
            problem: Box::new(source.problem()),
            source,
        }
    }

    pub(crate) fn ask(endpoint: &Endpoint, source: SqlError) -> Self {
        Self::Ask {
            server: endpoint.to_string(),
            problem: Box::new(source.problem()),
            source,
        }
    }

    pub(crate) fn no_tool(server_major: u32, installed: &[ToolSet]) -> Self {
        Self::NoTool {
            server_major,
            newest: tools::newest(installed),
        }
    }
}

/// Dumps a database into `sink`, as [the module](crate::postgres) tells. Blocks until it is done; the tools die with
/// an error or a panic of the sink.
pub fn dump(target: &PostgresTarget, sink: &mut dyn EntrySink) -> Result<DumpReport, DumpError> {
    let endpoint = target.endpoint().map_err(|source| DumpError::Target { source })?;
    let mut sql = Sql::connect(&endpoint).map_err(|source| DumpError::connect(&endpoint, source))?;
    let ask = |source| DumpError::ask(&endpoint, source);
    let (server_version, server_major) = facts::server_version(&mut sql).map_err(ask)?;
    let installed = tools::installed("pg_dump", &target.bin_dirs);
    let tool = tools::oldest_of_at_least(&installed, server_major)
        .ok_or_else(|| DumpError::no_tool(server_major, &installed))?;
    let plan = Plan::read(&mut sql, target.large_table_bytes).map_err(ask)?;
    let database = facts::database(&mut sql).map_err(ask)?;
    let extensions = facts::extensions(&mut sql).map_err(ask)?;
    let counted_objects = sql
        .number("SELECT count(*) FROM pg_largeobject_metadata")
        .map_err(ask)?;
    let counts = SnapshotCounts::start(sql);

    let login = Login::create(&endpoint).map_err(|source| DumpError::Run {
        program: tool.program("pg_dump"),
        source,
    })?;
    let mut archives = Archives::default();
    let mut missing = Vec::new();
    let mut streams = plan.streams(tool, &login).into_iter();
    let mut next = streams.next().map(|stream| stream.start(&login)).transpose()?;
    while let Some(running) = next {
        // Starting takes a tool longer than many a table takes to read: the next one starts now, and waits.
        next = streams.next().map(|stream| stream.start(&login)).transpose()?;
        running.copy(sink, &counts, &mut archives, &mut missing)?;
    }
    if !plan.reads_passwords {
        missing.push(Missing {
            name: "role passwords".to_owned(),
            reason: format!(
                "the role {} may not read pg_authid; back up as a superuser to include them",
                endpoint.user
            ),
            torn: false,
        });
    }
    let counts = counts.finish().map_err(ask)?;
    let checks = Checks {
        schema: CHECKS_SCHEMA.to_owned(),
        server_version: server_version.clone(),
        server_major,
        tool_version: tool.version.clone(),
        tool_major: tool.major,
        database,
        tables: archives.compare(counts)?,
        large_objects: archives.compare_large_objects(counted_objects)?,
        objects: archives.objects,
        extensions,
    };
    write_checks(&checks, sink)?;
    let facts = SourceFacts {
        server_version: Some(server_version),
        tool_version: Some(tool.version.clone()),
        tables: Some(checks.tables.len() as u64),
        rows: Some(checks.rows()),
        large_objects: Some(checks.large_objects.count),
        ..SourceFacts::default()
    };
    Ok(DumpReport { facts, missing })
}

/// Tables locked by one statement.
const LOCK_BATCH: usize = 200;
/// How often the list of tables is read again because one of them was dropped before it was locked.
const LOCK_TRIES: usize = 3;

/// Begins the transaction whose snapshot everything is dumped in, with every table locked against TRUNCATE, rewriting
/// ALTER TABLE and DROP before the snapshot is taken. Those do not respect snapshots: a table truncated between two of
/// our streams would be read as empty, and counted as empty.
fn begin_with_locks(sql: &mut Sql) -> Result<(), SqlError> {
    let mut tries = 1;
    loop {
        let tables = sql.column(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
               AND n.nspname <> 'information_schema' AND has_table_privilege(c.oid, 'SELECT')
             ORDER BY c.oid",
        )?;
        sql.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let locked = tables.chunks(LOCK_BATCH).try_for_each(|batch| {
            let list: Vec<String> = batch.iter().map(|table| format!("ONLY {table}")).collect();
            sql.run(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", list.join(", ")))
        });
        match locked {
            Ok(()) => return Ok(()),
            Err(error) => {
                sql.run("ROLLBACK")?;
                if tries == LOCK_TRIES {
                    return Err(error);
                }
                tries += 1;
            }
        }
    }
}

/// What is dumped, decided in the snapshot.
struct Plan {
    snapshot: String,
    large_tables: Vec<LargeTable>,
    reads_passwords: bool,
}

impl Plan {
    /// Begins the transaction whose snapshot everything is dumped in, and looks around in it.
    fn read(sql: &mut Sql, large_table_bytes: u64) -> Result<Self, SqlError> {
        sql.run(
            "SET statement_timeout = 0; SET lock_timeout = '60s'; SET idle_in_transaction_session_timeout = 0;
             SET row_security = off; SET search_path = pg_catalog",
        )?;
        let (_, major) = facts::server_version(sql)?;
        if major >= 17 {
            sql.run("SET transaction_timeout = 0")?;
        }
        begin_with_locks(sql)?;
        let snapshot = sql.value("SELECT pg_export_snapshot()")?;
        let encoding = sql.value("SHOW server_encoding")?;
        let large_tables = facts::large_tables(sql, large_table_bytes, &encoding)?;
        let reads_passwords = sql.value("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")? == "t";
        Ok(Self {
            snapshot,
            large_tables,
            reads_passwords,
        })
    }

    fn streams(&self, tool: &ToolSet, login: &Login) -> Vec<Stream> {
        let mut streams = vec![self.globals(tool, login), self.database(tool, login)];
        let tables = self.large_tables.iter().enumerate();
        streams.extend(tables.map(|(at, table)| self.table(at + 1, table, tool, login)));
        streams
    }

    fn globals(&self, tool: &ToolSet, login: &Login) -> Stream {
        let program = tool.program("pg_dumpall");
        let mut command = login.command(&program);
        // As a connection string, or a database named `a=b` would be taken for one.
        let database = format!("--database=dbname={}", quote::conninfo(&login.endpoint().database));
        command
            .args(["--no-password", "--globals-only", &database])
            .env("PGCLIENTENCODING", "UTF8");
        if !self.reads_passwords {
            command.arg("--no-role-passwords");
        }
        Stream {
            tool: "pg_dumpall",
            program,
            command,
            entry: Entry::stream("globals.sql", media::GLOBALS),
        }
    }

    fn database(&self, tool: &ToolSet, login: &Login) -> Stream {
        let mut stream = self.archive(tool, login, Entry::stream("database.dump", media::DUMP));
        stream.command.arg("-b");
        for table in &self.large_tables {
            stream.command.arg(format!("--exclude-table-data={}", pattern(table)));
        }
        stream
    }

    fn table(&self, number: usize, table: &LargeTable, tool: &ToolSet, login: &Login) -> Stream {
        let name = quote::path_component(&format!("{}.{}", table.schema, table.name));
        let entry = Entry::stream(format!("tables/{number:04}-{name}.dump"), media::TABLE);
        let mut stream = self.archive(tool, login, entry);
        stream
            .command
            .args(["--data-only", &format!("--table={}", pattern(table))]);
        stream
    }

    fn archive(&self, tool: &ToolSet, login: &Login, entry: Entry) -> Stream {
        let program = tool.program("pg_dump");
        let mut command = login.command(&program);
        command.args(["--no-password", "-Fc", "-Z0"]);
        command
            .arg(format!("--snapshot={}", self.snapshot))
            .arg(format!("--lock-wait-timeout={LOCK_WAIT}"));
        Stream {
            tool: "pg_dump",
            program,
            command,
            entry,
        }
    }
}

/// A pattern that matches this table alone.
fn pattern(table: &LargeTable) -> String {
    format!(
        "{}.{}",
        quote::identifier(&table.schema),
        quote::identifier(&table.name)
    )
}

/// An entry and the tool that writes it.
struct Stream {
    tool: &'static str,
    program: PathBuf,
    command: Command,
    entry: Entry,
}

impl Stream {
    fn start(self, login: &Login) -> Result<Running, DumpError> {
        let child = ToolChild::spawn(self.command, Input::Closed, Output::Piped, login.secret());
        Ok(Running {
            child: child.map_err(|source| DumpError::Run {
                program: self.program.clone(),
                source,
            })?,
            tool: self.tool,
            program: self.program,
            entry: self.entry,
        })
    }
}

struct Running {
    child: ToolChild,
    tool: &'static str,
    program: PathBuf,
    entry: Entry,
}

impl Running {
    /// Copies the tool's output into the sink, and into the archive reader where it is an archive.
    fn copy(
        mut self,
        sink: &mut dyn EntrySink,
        counts: &SnapshotCounts,
        archives: &mut Archives,
        missing: &mut Vec<Missing>,
    ) -> Result<(), DumpError> {
        let entry = self.entry.path.clone();
        let store = |source| DumpError::Sink {
            entry: entry.clone(),
            source,
        };
        let run = |source| DumpError::Run {
            program: self.program.clone(),
            source,
        };
        let mut reader = (self.tool == "pg_dump").then(ArchiveReader::default);
        let mut announced = false;
        let mut broken = None;
        let mut stdout = self
            .child
            .take_stdout()
            .ok_or_else(|| run(io::ErrorKind::BrokenPipe.into()))?;
        let mut buffer = vec![0; READ_BYTES];
        sink.begin(&self.entry).map_err(store)?;
        loop {
            let bytes = match stdout.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => &buffer[..length],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(run(error)),
            };
            if let Some(reader) = &mut reader {
                if let Err(error) = reader.feed(bytes) {
                    broken = Some(error);
                    self.child.kill();
                    break;
                }
                if !announced && let Some(tables) = reader.data_tables() {
                    announced = true;
                    counts.request(tables.into_iter().map(|(_, _, oid)| oid).collect());
                }
            }
            sink.write(bytes).map_err(store)?;
        }
        drop(stdout);
        let (status, output) = self.child.wait().map_err(run)?;
        if let Some(source) = broken {
            return Err(DumpError::Archive { entry, source });
        }
        if !status.success() {
            return Err(DumpError::Tool {
                tool: self.tool,
                entry,
                problem: Box::new(Problem::of_tool(&output, &describe(status))),
                output,
            });
        }
        missing.extend(left_out(self.tool, &output));
        if let Some(reader) = reader {
            let summary = reader.finish().map_err(|source| DumpError::Archive {
                entry: entry.clone(),
                source,
            })?;
            archives.add(summary, self.entry.media.as_deref() == Some(media::DUMP));
        }
        sink.end().map_err(store)
    }
}

/// What a tool left out although it ended well.
fn left_out(tool: &str, output: &ToolOutput) -> Option<Missing> {
    for line in &output.lines {
        tracing::info!(tool, line, "a tool had something to say");
    }
    let skipped = output.lines.iter().find(|line| line.contains("not dumped because"))?;
    let words = skipped.rsplit("warning: ").next().unwrap_or(skipped);
    Some(Missing {
        name: words.split(" not dumped").next().unwrap_or(words).to_owned(),
        reason: words.to_owned(),
        torn: false,
    })
}

/// What all archives of a dump held together.
#[derive(Default)]
struct Archives {
    tables: Vec<TableData>,
    objects: BTreeMap<String, u64>,
    large_objects: u64,
    large_object_digest: u128,
}

impl Archives {
    fn add(&mut self, summary: ArchiveSummary, is_whole_database: bool) {
        self.tables.extend(summary.tables);
        self.large_objects += summary.large_objects;
        self.large_object_digest = self.large_object_digest.wrapping_add(summary.large_object_digest);
        // A table's own archive repeats what the database's lists.
        if is_whole_database {
            self.objects = summary.objects;
        }
    }

    /// The tables, where the archives hold exactly the rows that SQL counted.
    fn compare(&mut self, mut counts: Counts) -> Result<Vec<TableChecks>, DumpError> {
        let mut tables = Vec::with_capacity(self.tables.len());
        for table in self.tables.drain(..) {
            let differ = |counted| DumpError::CountsDiffer {
                what: format!("rows of {}.{}", table.schema, table.name),
                dumped: table.rows,
                counted,
            };
            // Removed, so that a table that is in two archives is refused.
            let counted = counts.remove(&table.oid).ok_or_else(|| differ(0))?;
            if counted.rows != table.rows {
                return Err(differ(counted.rows));
            }
            tables.push(TableChecks {
                schema: counted.schema,
                name: counted.name,
                rows: table.rows,
                digest: digest_text(table.digest),
                bytes: counted.bytes,
            });
        }
        tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        Ok(tables)
    }

    fn compare_large_objects(&self, counted: u64) -> Result<LargeObjectChecks, DumpError> {
        if counted == self.large_objects {
            Ok(LargeObjectChecks {
                count: counted,
                digest: digest_text(self.large_object_digest),
            })
        } else {
            Err(DumpError::CountsDiffer {
                what: "large objects".to_owned(),
                dumped: self.large_objects,
                counted,
            })
        }
    }
}

fn write_checks(checks: &Checks, sink: &mut dyn EntrySink) -> Result<(), DumpError> {
    let entry = Entry::stream("checks.json", media::CHECKS);
    let store = |source| DumpError::Sink {
        entry: entry.path.clone(),
        source,
    };
    let text = serde_json::to_vec_pretty(checks).map_err(|error| store(error.into()))?;
    sink.begin(&entry).map_err(store)?;
    sink.write(&text).map_err(store)?;
    sink.end().map_err(store)
}
