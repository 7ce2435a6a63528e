//! A drill: the dump is restored into an empty machine for real, dumped again, and compared.
//!
//! The machine is a scratch cluster of the source's version, of which nothing stays. Its superuser has a name of its
//! own, so that every role of the source is created from the backup. Invariants: a bad backup is a failed check, never
//! an error; an error means that nothing was learned about the backup; a folder that a killed drill has left is
//! removed by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use strongroom_proto::manifest::{Entry, EntrySink, EntrySource};
use strongroom_proto::receipt::{Check, CheckOutcome};

use super::checks::{Checks, TableChecks};
use super::cluster::{Cluster, ClusterError, ClusterOptions, ServerBinaries};
use super::create::LocaleRule;
use super::dump::{DumpError, dump, media};
use super::restore::{Backup, RestoreError, RestoreOptions, is_damage, restore_backup};
use super::sql::{Sql, SqlError};
use super::target::{PostgresTarget, TargetError};
use crate::scratch::ScratchDir;

const SUPERUSER: &str = "strongroom_scratch";
const SCRATCH_PREFIX: &str = "drill-";
const SOCKET_PREFIX: &str = "strongroom-socket-";
/// Where sockets are: their paths must be short.
const SOCKET_PARENT: &str = "/tmp";
/// Names the socket's folder, for who removes what a killed drill has left.
const SOCKET_NOTE: &str = "socket-folder";
/// Differences named in a check's detail.
const NAMED_DIFFERENCES: usize = 3;

const STARTED: &str = "server started";
const RESTORE: &str = "restore";
const ROW_COUNTS: &str = "row counts";
const DIGESTS: &str = "content digests";
const LARGE_OBJECTS: &str = "large objects";
const OBJECTS: &str = "object counts";

/// Kinds of objects that every version counts alike.
const STABLE_KINDS: [&str; 14] = [
    "SCHEMA",
    "TABLE",
    "VIEW",
    "MATERIALIZED VIEW",
    "SEQUENCE",
    "INDEX",
    "FK CONSTRAINT",
    "TRIGGER",
    "FUNCTION",
    "PROCEDURE",
    "TYPE",
    "DOMAIN",
    "EXTENSION",
    "POLICY",
];

/// Where drills are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillConfig {
    /// A folder for scratch clusters, with room for the restored database.
    pub scratch_dir: PathBuf,
    /// Folders searched for servers before the system's.
    pub bin_dirs: Vec<PathBuf>,
}

/// Why a drill could not be held. It says nothing about the backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    /// The scratch folder.
    #[error("{doing} {}", path.display())]
    Scratch {
        /// The step.
        doing: &'static str,
        /// The object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The scratch server.
    #[error("start a scratch server")]
    Server {
        /// Why.
        #[source]
        source: ClusterError,
    },
    /// A question to the scratch server.
    #[error("ask the scratch server for its version")]
    Ask {
        /// Why.
        #[source]
        source: SqlError,
    },
    /// Our own URL was not understood.
    #[error("connect to the scratch server")]
    Url {
        /// Why.
        #[source]
        source: TargetError,
    },
    /// The scratch disk is too small.
    #[error("the disk of {} is full: make room for the restored database, or choose another scratch folder", path.display())]
    DiskFull {
        /// The scratch folder.
        path: PathBuf,
    },
    /// The backup could not be reached; it may be good.
    #[error("read the backup")]
    Read {
        /// Why.
        #[source]
        source: RestoreError,
    },
    /// The restored database could not be dumped for a reason that lies here.
    #[error("dump the restored database")]
    Dump {
        /// Why.
        #[source]
        source: DumpError,
    },
}

impl DrillError {
    /// Whether another attempt can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read { source } => source.is_retryable(),
            Self::Dump { source } => source.is_retryable(),
            Self::Ask { .. } => true,
            _ => false,
        }
    }
}

/// Restores a backup into a scratch cluster and compares the result with what was dumped: the checks `server started`,
/// `restore`, `row counts`, `content digests`, `large objects` and `object counts`, always in this order.
pub fn drill(source: &dyn EntrySource, config: &DrillConfig) -> Result<Vec<Check>, DrillError> {
    let mut checks = DrillChecks::default();
    let backup = match Backup::open(source) {
        Ok(backup) => backup,
        Err(error) => {
            checks.record(RESTORE, CheckOutcome::Failed, bad_backup(error, config)?);
            return Ok(checks.all("the backup cannot be read"));
        }
    };
    // pg_restore of a later version speaks settings that an older server does not know.
    let wanted = &backup.checks;
    let binaries = ServerBinaries::find(wanted.server_major.max(wanted.tool_major), &config.bin_dirs)
        .map_err(|source| DrillError::Server { source })?;
    let scratch = Scratch::create(&config.scratch_dir, binaries)?;
    let target = scratch.target(&wanted.database.name, &config.bin_dirs)?;
    checks.record(STARTED, CheckOutcome::Passed, scratch.version()?);

    let options = RestoreOptions {
        allow_non_empty: false,
        globals: true,
    };
    match restore_backup(&backup, &target, &options, LocaleRule::OrElseC) {
        Ok(report) => {
            let mut detail = format!("{} bytes restored without an error", report.restored_bytes);
            report
                .notes
                .iter()
                .for_each(|note| detail.push_str(&format!("; {note}")));
            checks.record(RESTORE, CheckOutcome::Passed, detail);
        }
        Err(error) => {
            checks.record(RESTORE, CheckOutcome::Failed, bad_backup(error, config)?);
            return Ok(checks.all("the restore failed"));
        }
    }
    match dump_again(target) {
        Ok(found) => checks.compare(wanted, &found),
        Err(source) if source.is_disk_full() => {
            return Err(DrillError::DiskFull {
                path: config.scratch_dir.clone(),
            });
        }
        // What was restored cannot be read: the backup is worth nothing, whatever the reason.
        Err(source @ (DumpError::Ask { .. } | DumpError::Tool { .. } | DumpError::CountsDiffer { .. })) => {
            let detail = format!("the restored database cannot be dumped: {}", chain(&source));
            for name in [ROW_COUNTS, DIGESTS, LARGE_OBJECTS, OBJECTS] {
                checks.record(name, CheckOutcome::Failed, detail.clone());
            }
        }
        Err(source) => return Err(DrillError::Dump { source }),
    }
    Ok(checks.all("not reached"))
}

/// Why a backup is bad, or the error where the reason lies here.
fn bad_backup(error: RestoreError, config: &DrillConfig) -> Result<String, DrillError> {
    match &error {
        error if error.is_disk_full() => Err(DrillError::DiskFull {
            path: config.scratch_dir.clone(),
        }),
        RestoreError::Read { source, .. } if is_damage(source) => Ok(chain(&error)),
        RestoreError::Read { .. } | RestoreError::NoTool { .. } | RestoreError::Run { .. } => {
            Err(DrillError::Read { source: error })
        }
        _ => Ok(chain(&error)),
    }
}

/// Everything an error has to say, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string().replace('\n', "; ");
        if !text.contains(&more) {
            text.push_str(&format!(" ({more})"));
        }
        cause = error.source();
    }
    text
}

fn dump_again(mut target: PostgresTarget) -> Result<Checks, DumpError> {
    target.large_table_bytes = u64::MAX;
    let mut kept = KeptChecks::default();
    dump(&target, &mut kept)?;
    Checks::parse(&kept.bytes).map_err(|error| DumpError::Sink {
        entry: "checks.json".to_owned(),
        source: error.into(),
    })
}

/// Forgets everything but `checks.json`.
#[derive(Default)]
struct KeptChecks {
    is_open: bool,
    bytes: Vec<u8>,
}

impl EntrySink for KeptChecks {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.is_open = entry.media.as_deref() == Some(media::CHECKS);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_open {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.is_open = false;
        Ok(())
    }
}

/// The checks made so far, by name.
#[derive(Default)]
struct DrillChecks {
    made: BTreeMap<&'static str, (CheckOutcome, String)>,
}

impl DrillChecks {
    fn record(&mut self, name: &'static str, outcome: CheckOutcome, detail: String) {
        self.made.insert(name, (outcome, detail));
    }

    /// Every check, in order; those that were not made are skipped for this reason.
    fn all(mut self, reason: &str) -> Vec<Check> {
        let mut check = |name: &str| {
            let made = self.made.remove(name);
            let (outcome, detail) = made.unwrap_or_else(|| (CheckOutcome::Skipped, format!("skipped: {reason}")));
            Check {
                name: name.to_owned(),
                outcome,
                detail,
            }
        };
        [STARTED, RESTORE, ROW_COUNTS, DIGESTS, LARGE_OBJECTS, OBJECTS]
            .map(&mut check)
            .to_vec()
    }

    fn compare(&mut self, wanted: &Checks, found: &Checks) {
        let by_name = |checks: &Checks| -> BTreeMap<(String, String), TableChecks> {
            let tables = checks.tables.iter();
            tables
                .map(|table| ((table.schema.clone(), table.name.clone()), table.clone()))
                .collect()
        };
        let (wanted_tables, found_tables) = (by_name(wanted), by_name(found));
        let mut counts = Vec::new();
        let mut digests = Vec::new();
        let mut compared = 0;
        for name in wanted_tables.keys().chain(found_tables.keys()).collect::<BTreeSet<_>>() {
            let text = format!("{}.{}", name.0, name.1);
            match (wanted_tables.get(name), found_tables.get(name)) {
                (Some(wanted), Some(found)) if wanted.rows != found.rows => {
                    counts.push(format!("{text}: expected {} found {}", wanted.rows, found.rows));
                }
                (Some(wanted), Some(found)) => {
                    compared += 1;
                    if wanted.digest != found.digest {
                        digests.push(format!("{text}: expected {} found {}", wanted.digest, found.digest));
                    }
                }
                (Some(wanted), None) => counts.push(format!("{text}: expected {} found no table", wanted.rows)),
                (None, _) => counts.push(format!("{text}: expected no table")),
            }
        }
        let summary = |checks: &Checks| format!("{} rows in {} tables", checks.rows(), checks.tables.len());
        self.judge(
            ROW_COUNTS,
            format!("expected {}, found {}", summary(wanted), summary(found)),
            &counts,
        );
        let equal = compared - digests.len();
        self.judge(
            DIGESTS,
            format!("expected {compared} equal digests of tables, found {equal}"),
            &digests,
        );

        let (wanted_objects, found_objects) = (&wanted.large_objects, &found.large_objects);
        let mut differences = Vec::new();
        if wanted_objects != found_objects {
            differences.push(format!(
                "expected digest {} found {}",
                wanted_objects.digest, found_objects.digest
            ));
        }
        let detail = format!(
            "expected {} large objects, found {}",
            wanted_objects.count, found_objects.count
        );
        self.judge(LARGE_OBJECTS, detail, &differences);

        // Versions differ in what they keep as an object of its own.
        let same_version = wanted.server_major == found.server_major && wanted.tool_major == found.tool_major;
        let counted = |checks: &Checks| -> BTreeMap<String, u64> {
            let kinds = checks.objects.iter();
            let kinds = kinds.filter(|(kind, _)| same_version || STABLE_KINDS.contains(&kind.as_str()));
            kinds.map(|(kind, count)| (kind.clone(), *count)).collect()
        };
        let (wanted_kinds, found_kinds) = (counted(wanted), counted(found));
        let mut differences = Vec::new();
        for kind in wanted_kinds.keys().chain(found_kinds.keys()).collect::<BTreeSet<_>>() {
            let count = |kinds: &BTreeMap<String, u64>| kinds.get(kind).copied().unwrap_or(0);
            let (wanted, found) = (count(&wanted_kinds), count(&found_kinds));
            if wanted != found {
                differences.push(format!("{kind}: expected {wanted} found {found}"));
            }
        }
        let total = |kinds: &BTreeMap<String, u64>| kinds.values().sum::<u64>();
        let detail = format!(
            "expected {} objects, found {}",
            total(&wanted_kinds),
            total(&found_kinds)
        );
        self.judge(OBJECTS, detail, &differences);
    }

    fn judge(&mut self, name: &'static str, mut detail: String, differences: &[String]) {
        if differences.is_empty() {
            return self.record(name, CheckOutcome::Passed, detail);
        }
        let named: Vec<&str> = differences.iter().take(NAMED_DIFFERENCES).map(String::as_str).collect();
        detail.push_str(&format!("; {} differ: {}", differences.len(), named.join(", ")));
        self.record(name, CheckOutcome::Failed, detail);
    }
}

/// A scratch cluster that runs, and its folders. The order of the fields is the order in which they go.
struct Scratch {
    cluster: Cluster,
    _socket_dir: tempfile::TempDir,
    _dir: ScratchDir,
}

impl Scratch {
    fn create(scratch_dir: &Path, binaries: ServerBinaries) -> Result<Self, DrillError> {
        std::fs::create_dir_all(scratch_dir).map_err(scratch_error("create", scratch_dir))?;
        // Open to pass, not to read: the server runs as another user where we are root.
        let dir = ScratchDir::create(scratch_dir, SCRATCH_PREFIX, 0o711, remove_socket_dir)
            .map_err(scratch_error("create a folder in", scratch_dir))?;
        let socket_dir = tempfile::Builder::new().prefix(SOCKET_PREFIX).tempdir_in(SOCKET_PARENT);
        let socket_dir = socket_dir.map_err(scratch_error("create a socket folder in", Path::new(SOCKET_PARENT)))?;
        let note = dir.path().join(SOCKET_NOTE);
        std::fs::write(&note, socket_dir.path().as_os_str().as_encoded_bytes())
            .map_err(scratch_error("write", &note))?;
        // Nothing in it must survive a crash, and nothing of it may act on its own: no jobs, no replication.
        let settings = [
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
            ("max_logical_replication_workers", "0"),
            ("autovacuum", "off"),
            ("max_wal_size", "4GB"),
            ("checkpoint_timeout", "1h"),
            ("shared_buffers", "64MB"),
            ("maintenance_work_mem", "128MB"),
            ("max_connections", "20"),
            ("max_locks_per_transaction", "1024"),
            ("jit", "off"),
        ];
        let options = ClusterOptions {
            superuser: SUPERUSER.to_owned(),
            password: None,
            port: None,
            socket_dir: socket_dir.path().to_owned(),
            fsync: false,
            settings: settings
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
        };
        let mut cluster = Cluster::create(binaries, &dir.path().join("data"), options)
            .map_err(|source| server_error(source, scratch_dir))?;
        cluster.start().map_err(|source| server_error(source, scratch_dir))?;
        Ok(Self {
            cluster,
            _socket_dir: socket_dir,
            _dir: dir,
        })
    }

    fn target(&self, database: &str, bin_dirs: &[PathBuf]) -> Result<PostgresTarget, DrillError> {
        let url = self
            .cluster
            .url(database)
            .map_err(|source| DrillError::Server { source })?;
        let mut target = PostgresTarget::new(url);
        target.bin_dirs = vec![self.cluster.binaries().dir.clone()];
        target.bin_dirs.extend_from_slice(bin_dirs);
        Ok(target)
    }

    fn version(&self) -> Result<String, DrillError> {
        let endpoint = self
            .target("postgres", &[])?
            .endpoint()
            .map_err(|source| DrillError::Url { source })?;
        let ask = |source| DrillError::Ask { source };
        Sql::connect(&endpoint)
            .map_err(ask)?
            .value("SELECT version()")
            .map_err(ask)
    }
}

fn server_error(source: ClusterError, scratch_dir: &Path) -> DrillError {
    if source.to_string().contains("No space left on device") {
        return DrillError::DiskFull {
            path: scratch_dir.to_owned(),
        };
    }
    DrillError::Server { source }
}

/// Removes the socket's folder of a drill that was killed.
fn remove_socket_dir(scratch: &Path) {
    let Ok(socket_dir) = std::fs::read_to_string(scratch.join(SOCKET_NOTE)) else {
        return;
    };
    let socket_dir = Path::new(&socket_dir);
    let name = socket_dir.file_name().unwrap_or_default().as_encoded_bytes();
    if socket_dir.parent() == Some(Path::new(SOCKET_PARENT)) && name.starts_with(SOCKET_PREFIX.as_bytes()) {
        let _ = std::fs::remove_dir_all(socket_dir);
    }
}

fn scratch_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DrillError {
    let path = path.to_owned();
    move |source| {
        if source.kind() == io::ErrorKind::StorageFull {
            DrillError::DiskFull { path }
        } else {
            DrillError::Scratch { doing, path, source }
        }
    }
}
