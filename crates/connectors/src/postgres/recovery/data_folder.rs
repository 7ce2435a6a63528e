//! A base backup laid down as a data folder, with its tablespaces in it or where the user says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};
use strongroom_proto::receipt::{Check, CheckOutcome};
use strongroom_proto::wal::ClusterFacts;

use super::error::{RecoveryError, was_killed};
use crate::child::describe;
use crate::files::{self, Change, Existing, Lacks, RestoreOptions, Selection};
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::own_folder::{own_folder, refuse_contents};
use crate::postgres::physical::{LaidDown, ServerManifest};
use crate::postgres::run_as::{RunAs, clean_environment};
use crate::postgres::tools::major_of;

/// Modes of what lies in a data folder: nobody else's.
const FOLDER_MODE: u32 = 0o040_700;
const FILE_MODE: u32 = 0o100_600;
/// Names, relative to the data folder, of tablespaces on the server that was backed up. Taken up by a server, it would lay
/// links to those over the files that are here.
const TABLESPACE_MAP: &str = "tablespace_map";
const MANIFEST: &str = "backup_manifest";
/// In a data folder until its recovery is done or its server is promoted: who may go on with it.
const MARK: &str = "strongroom-recovery";
/// Lines of a failed check that are repeated.
const SAID_LINES_MAX: usize = 5;
pub(super) const FILES_CHECK: &str = "base backup files";

/// A data folder, laid down.
pub(super) struct DataFolder {
    pub(super) path: PathBuf,
    /// Bytes of content that were written.
    pub(super) bytes: u64,
    pub(super) check: Check,
}

/// The major version of the cluster in a backup.
pub(super) fn major_version(source: &dyn EntrySource) -> Result<u32, RecoveryError> {
    let mut text = Vec::new();
    source
        .copy_content("PG_VERSION", &mut text)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RecoveryError::BadBackup {
                what: "it has no PG_VERSION".to_owned(),
            },
            _ => RecoveryError::Read {
                entry: "PG_VERSION".to_owned(),
                source,
            },
        })?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    major_of(&text).ok_or_else(|| RecoveryError::BadBackup {
        what: format!("its PG_VERSION says {text:?}"),
    })
}

/// Lays a base backup down at `destination`, which is absent or empty, for a server that runs as `run_as`, and has the
/// files checked by the server's own tool. With the `mark` of an earlier try in it, it is taken as that left it.
pub(super) fn lay_down(
    source: &dyn EntrySource,
    facts: &ClusterFacts,
    destination: &Path,
    tablespaces: &BTreeMap<u32, String>,
    binaries: &ServerBinaries,
    run_as: RunAs,
    mark: &str,
) -> Result<DataFolder, RecoveryError> {
    let destination = std::path::absolute(destination).map_err(RecoveryError::file("find", destination))?;
    let mapped = mapped_folders(facts, tablespaces, &destination)?;
    let mark_path = destination.join(MARK);
    if std::fs::read_to_string(&mark_path).is_ok_and(|text| text == mark) {
        return Ok(DataFolder {
            path: destination,
            bytes: 0,
            check: check(
                CheckOutcome::Passed,
                "laid down and checked by an earlier attempt".to_owned(),
            ),
        });
    }
    for folder in mapped.values().map(PathBuf::as_path).chain([destination.as_path()]) {
        refuse_contents(folder, |_| false)?;
    }
    for folder in mapped.values().map(PathBuf::as_path).chain([destination.as_path()]) {
        own_folder(folder, run_as)?;
    }
    let mut bytes = 0;
    let laid_down = Mutex::new(LaidDown::default());
    for (oid, folder) in &mapped {
        let part = Part::of_tablespace(source, run_as, *oid, &laid_down);
        bytes += restore(&part, folder)?;
    }
    bytes += restore(
        &Part::of_cluster(source, run_as, mapped.keys().copied().collect(), &laid_down),
        &destination,
    )?;
    let links = destination.join("pg_tblspc");
    for (oid, folder) in &mapped {
        let link = links.join(oid.to_string());
        std::os::unix::fs::symlink(folder, &link).map_err(RecoveryError::file("link", &link))?;
    }
    let check = verify(&destination, &locked(&laid_down), binaries, run_as)?;
    let map = destination.join(TABLESPACE_MAP);
    remove_if_there(&map)?;
    std::fs::write(&mark_path, mark).map_err(RecoveryError::file("write", &mark_path))?;
    Ok(DataFolder {
        path: destination,
        bytes,
        check,
    })
}

/// Takes the mark away, so that it stays away when the machine goes down: from now on nobody may go on with this folder.
pub(super) fn remove_mark(data_dir: &Path) -> Result<(), RecoveryError> {
    remove_if_there(&data_dir.join(MARK))?;
    let synced = std::fs::File::open(data_dir).and_then(|folder| folder.sync_all());
    synced.map_err(RecoveryError::file("sync", data_dir))
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), RecoveryError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecoveryError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Where tablespaces go that do not stay in the data folder.
fn mapped_folders(
    facts: &ClusterFacts,
    tablespaces: &BTreeMap<u32, String>,
    destination: &Path,
) -> Result<BTreeMap<u32, PathBuf>, RecoveryError> {
    let refused = |what| Err(RecoveryError::Refused { what });
    let mut folders: BTreeMap<u32, PathBuf> = BTreeMap::new();
    for (oid, place) in tablespaces {
        if !facts.tablespaces.iter().any(|known| known.oid == *oid) {
            let known: Vec<String> = facts.tablespaces.iter().map(|known| known.oid.to_string()).collect();
            return refused(format!(
                "the backup has no tablespace {oid}: it has {}; name one that it has, or leave this one out",
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            ));
        }
        let folder = PathBuf::from(place);
        if !folder.is_absolute() {
            return refused(format!("tablespace {oid} goes to {place:?}: name an absolute folder"));
        }
        let overlaps = |other: &Path| folder.starts_with(other) || other.starts_with(&folder);
        if overlaps(destination) || folders.values().any(|other| overlaps(other)) {
            return refused(format!(
                "tablespace {oid} goes to {place:?}, where something else of the cluster goes: name a folder of its own"
            ));
        }
        folders.insert(*oid, folder);
    }
    Ok(folders)
}

fn restore(part: &Part<'_>, destination: &Path) -> Result<u64, RecoveryError> {
    let mut problem = None;
    let options = RestoreOptions {
        select: Selection::everything(),
        existing: Existing::Refuse,
        delete: false,
        dry_run: false,
        backup_began: None,
        lacks: Lacks::nothing(),
    };
    let restored = files::restore(part, destination, options, &mut |change, path, reason| {
        if change == Change::Skip && problem.is_none() {
            problem = Some(format!("{}: {}", path.display(), reason.unwrap_or_default()));
        }
    });
    let restored = restored.map_err(|source| RecoveryError::LayDown { source })?;
    match problem {
        None => Ok(restored.bytes),
        Some(problem) => Err(RecoveryError::Refused {
            what: format!(
                "the data folder cannot be laid down whole: {problem}; mend that, or choose another destination"
            ),
        }),
    }
}

/// Has the files compared with the manifest that the server made of them: their content here, as it was written, and
/// everything else by the server's own tool, which would read all of it once more.
fn verify(
    data_dir: &Path,
    laid_down: &LaidDown,
    binaries: &ServerBinaries,
    run_as: RunAs,
) -> Result<Check, RecoveryError> {
    let program = binaries.program("pg_verifybackup");
    let manifest_path = data_dir.join(MANIFEST);
    let manifest = match std::fs::read(&manifest_path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = "the backup has no manifest of the server's to compare the files with";
            return Ok(check(CheckOutcome::Skipped, why.to_owned()));
        }
        Err(error) => return Err(RecoveryError::file("read", &manifest_path)(error)),
    };
    let compared = ServerManifest::parse(&manifest).and_then(|manifest| manifest.compare_content(laid_down));
    let compared = compared.map_err(|damage| RecoveryError::BadBackup {
        what: format!("its files are not as its server's manifest says: {damage}"),
    })?;
    if !program.is_file() {
        let why = format!(
            "{} is missing: install the whole of PostgreSQL {}",
            program.display(),
            binaries.major
        );
        return Ok(check(CheckOutcome::Skipped, why));
    }
    let mut command = run_as.command(&program, None);
    clean_environment(&mut command)
        .args(["--no-parse-wal", "--quiet", "--ignore=tablespace_map"])
        .args(compared.map(|_| "--skip-checksums"))
        .arg(data_dir)
        .stdin(Stdio::null());
    let output = command.output().map_err(RecoveryError::file("run", &program))?;
    if output.status.success() {
        let mut detail = format!("every file is as pg_verifybackup {} expects it", binaries.version);
        if let Some(files) = compared {
            detail.push_str(&format!(
                "; the server's checksums of {files} files are those of what was written"
            ));
        }
        return Ok(check(CheckOutcome::Passed, detail));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.is_empty())
        .take(SAID_LINES_MAX)
        .collect();
    if was_killed(output.status) {
        return Err(RecoveryError::Tool {
            doing: "compare the files with the server's manifest".to_owned(),
            output: describe(output.status),
        });
    }
    Err(RecoveryError::BadBackup {
        what: format!("pg_verifybackup says: {}", lines.join("; ")),
    })
}

fn check(outcome: CheckOutcome, detail: String) -> Check {
    Check {
        name: FILES_CHECK.to_owned(),
        outcome,
        detail,
    }
}

/// A part of a base backup as a tree of its own, owned by the server's user.
struct Part<'a> {
    source: &'a dyn EntrySource,
    owner: Option<(u32, u32)>,
    kind: PartKind,
    laid_down: &'a Mutex<LaidDown>,
}

enum PartKind {
    /// Everything but these tablespaces.
    Cluster { without: BTreeSet<u32> },
    /// What lies below `pg_tblspc/<oid>`.
    Tablespace { folder: String },
}

impl<'a> Part<'a> {
    fn of_cluster(
        source: &'a dyn EntrySource,
        run_as: RunAs,
        without: BTreeSet<u32>,
        laid_down: &'a Mutex<LaidDown>,
    ) -> Self {
        Self::new(source, run_as, PartKind::Cluster { without }, laid_down)
    }

    fn of_tablespace(source: &'a dyn EntrySource, run_as: RunAs, oid: u32, laid_down: &'a Mutex<LaidDown>) -> Self {
        let folder = format!("pg_tblspc/{oid}");
        Self::new(source, run_as, PartKind::Tablespace { folder }, laid_down)
    }

    fn new(source: &'a dyn EntrySource, run_as: RunAs, kind: PartKind, laid_down: &'a Mutex<LaidDown>) -> Self {
        let owner = match run_as {
            RunAs::Ourselves => None,
            RunAs::Other { uid, gid } => Some((uid, gid)),
        };
        Self {
            source,
            owner,
            kind,
            laid_down,
        }
    }

    /// An entry as it is laid down; `None` where it is not of this part.
    fn placed(&self, entry: &Entry) -> Option<Entry> {
        let mut placed = entry.clone();
        match &self.kind {
            PartKind::Cluster { without } => {
                let below = entry.path.strip_prefix("pg_tblspc/");
                let oid = below.and_then(|below| below.split('/').next()?.parse().ok());
                if oid.is_some_and(|oid| without.contains(&oid)) {
                    return None;
                }
                // A link to where the tablespace lay on its server.
                if oid.is_some() && entry.kind == EntryKind::Symlink {
                    placed.kind = EntryKind::Directory;
                    (placed.link_target, placed.link_target_hex) = (None, None);
                }
            }
            PartKind::Tablespace { folder } => {
                let rest = entry.path.strip_prefix(folder.as_str())?;
                placed.path = match rest.strip_prefix('/') {
                    Some(rest) => rest.to_owned(),
                    None if rest.is_empty() => ".".to_owned(),
                    None => return None,
                };
                // Two digits of hex a byte, and two for the slash.
                placed.path_hex = match &entry.path_hex {
                    Some(hex) => Some(hex.get(folder.len() * 2 + 2..)?.to_owned()),
                    None => None,
                };
                if placed.path == "." {
                    placed.kind = EntryKind::Directory;
                    (placed.link_target, placed.link_target_hex) = (None, None);
                }
            }
        }
        placed.mode = match placed.kind {
            EntryKind::Directory => Some(FOLDER_MODE),
            EntryKind::File => Some(FILE_MODE),
            _ => placed.mode,
        };
        (placed.uid, placed.gid) = self.owner.unzip();
        placed.xattrs.clear();
        Some(placed)
    }
}

impl EntrySource for Part<'_> {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        self.source
            .for_each_entry(&mut |listed| match self.placed(listed.entry) {
                Some(entry) => each(Listed {
                    entry: &entry,
                    ..listed
                }),
                None => Ok(()),
            })
    }

    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
        match &self.kind {
            PartKind::Cluster { .. } => self.source.copy_content(path, out),
            PartKind::Tablespace { folder } => self.source.copy_content(&format!("{folder}/{path}"), out),
        }
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        self.source.replay_where(
            &mut |listed| match self.placed(listed.entry) {
                Some(entry) => wanted(Listed {
                    entry: &entry,
                    ..listed
                }),
                None => Ok(false),
            },
            &mut Placing { sink, part: self },
        )
    }
}

/// No code runs under this lock that could leave what it guards half-changed.
fn locked(laid_down: &Mutex<LaidDown>) -> MutexGuard<'_, LaidDown> {
    laid_down.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Placing<'a> {
    sink: &'a mut dyn EntrySink,
    part: &'a Part<'a>,
}

impl EntrySink for Placing<'_> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        let Some(placed) = self.part.placed(entry) else {
            return Err(io::Error::other("an entry that was not asked for"));
        };
        if entry.kind == EntryKind::File {
            locked(self.part.laid_down).begin(files::path_of(entry)?);
        }
        self.sink.begin(&placed)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        locked(self.part.laid_down).write(bytes);
        self.sink.write(bytes)
    }

    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        locked(self.part.laid_down).hole(bytes);
        self.sink.hole(bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        locked(self.part.laid_down).end();
        self.sink.end()
    }
}
