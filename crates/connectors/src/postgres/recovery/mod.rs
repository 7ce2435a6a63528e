//! Recovery of a whole cluster: a base backup laid down, its server brought to a moment, and the moment asserted.
//!
//! The order is: files, checked by the server's own tool; a private server that replays WAL as a standby, which never ends
//! a recovery by itself; what it reached, compared with what was asked for; only then promotion, and an answer to a
//! question. Invariants: nothing that existed is changed; a server is promoted only after the moment was reached; a
//! vault that cannot be read ends in an error and a cluster that was not promoted; the server can be reached by its
//! own user and us alone until it has been promoted.

mod control;
mod copy;
mod data_folder;
mod drill;
mod error;
mod feed;
mod log;
mod moment;
mod replay;
mod running;
mod server;
mod settings;
mod tables;
mod vault_wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Signal;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::{Check, CheckOutcome};
use strongroom_proto::wal::{ClusterFacts, Leave, Lsn, Recovery, RecoveryTarget};

use self::control::Control;
use self::data_folder::{lay_down, major_version, remove_mark};
use self::replay::{Live, Replay};
use super::cluster::{ClusterError, ServerBinaries};
use super::run_as::RunAs;

pub use self::drill::{Drilled, drill_cluster};
pub use self::error::RecoveryError;
pub use self::feed::WalFetch;
pub use self::running::Running;
pub use self::vault_wal::VaultWal;

/// The server's log in a data folder whose recovery failed.
pub const RECOVERY_LOG: &str = "strongroom-recovery.log";

/// What is recovered, to when and where.
pub struct RecoveryRequest<'a> {
    /// The base backup, as its receipt describes it.
    pub facts: &'a ClusterFacts,
    /// The moment, and what is left behind.
    pub recovery: &'a Recovery,
    /// The data folder to be: absent or empty. For single tables, the folder their dumps go to.
    pub destination: &'a Path,
    /// Where WAL comes from.
    pub wal: Arc<dyn WalFetch>,
    /// A `restore_command` for [`Leave::Unstarted`], which serves whoever starts the server.
    pub restore_command: Option<&'a str>,
    /// Folders searched for servers before the system's.
    pub bin_dirs: &'a [PathBuf],
    /// Room for a whole cluster, for single tables.
    pub scratch_dir: &'a Path,
    /// Names this recovery: another try of the same one goes on in the destination that the last one left.
    pub mark: &'a str,
}

/// What a recovery does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryProgress {
    /// The base backup is being laid down and checked.
    LayingDown,
    /// WAL is replayed; so many segments were brought so far.
    Replaying {
        /// Segments.
        segments: u64,
    },
    /// The moment was reached; the server is promoted.
    Promoting,
}

/// What a recovery came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Bytes of content put in place, without WAL.
    pub bytes: u64,
    /// Segments of WAL that were replayed.
    pub segments: u64,
    /// Where replay ended; `None` where no server was started.
    pub replayed_to: Option<Lsn>,
    /// What was checked.
    pub checks: Vec<Check>,
    /// For a person: what was written anew, and how to start the server or reach it.
    pub notes: Vec<String>,
    /// The server, where it was left running.
    pub running: Option<Running>,
}

/// Recovers a cluster.
pub fn recover(
    source: &dyn EntrySource,
    request: &RecoveryRequest<'_>,
    progress: &mut dyn FnMut(RecoveryProgress),
) -> Result<Recovered, RecoveryError> {
    refuse_early(request)?;
    if !request.recovery.tables.is_empty() {
        return tables::recover_tables(source, request, progress);
    }
    let mut prepared = Prepared::make(source, request, request.destination, Durability::Whole, progress)?;
    if request.recovery.leave == Leave::Unstarted {
        return prepared.leave_unstarted(request);
    }
    // Before any server of it is started: whatever happens, one that somebody starts by hand keeps to itself.
    copy::keep_to_itself(&prepared.data_dir, None, prepared.run_as)?;
    let mut live = prepared.replay(request, progress)?;
    let mut recovered = Recovered {
        bytes: prepared.bytes,
        segments: live.segments,
        replayed_to: Some(live.replayed_to),
        checks: std::mem::take(&mut prepared.checks),
        notes: std::mem::take(&mut prepared.notes),
        running: None,
    };
    recovered.checks.append(&mut live.checks);
    recovered.notes.append(&mut live.notes);
    live.process.stop(Signal::INT);
    drop(live);
    // `pg_ctl restart` would take up what the private server was told.
    for left in [RECOVERY_LOG, "postmaster.opts"] {
        data_folder::remove_if_there(&prepared.data_dir.join(left))?;
    }
    // The first port may have been taken meanwhile.
    let port = copy::keep_to_itself(&prepared.data_dir, None, prepared.run_as)?;
    if request.recovery.leave == Leave::Running {
        let running = running::start(&prepared.binaries, prepared.run_as, &prepared.data_dir, port)?;
        recovered.notes.push(running.describe(&prepared.start_command()));
        recovered.running = Some(running);
    } else {
        recovered.notes.push(format!(
            "start the server with {}, as the folder's owner; {}",
            prepared.start_command(),
            copy::describe(port)
        ));
    }
    Ok(recovered)
}

/// What can be told to be impossible before anything is touched.
fn refuse_early(request: &RecoveryRequest<'_>) -> Result<(), RecoveryError> {
    let (facts, recovery) = (request.facts, request.recovery);
    let refused = |what: String| Err(RecoveryError::Refused { what });
    match recovery.to {
        RecoveryTarget::Time(time) if time < facts.stopped_at => refused(format!(
            "the base backup ended at {}, after the moment {time}: recover from an earlier backup",
            facts.stopped_at
        )),
        RecoveryTarget::Lsn(lsn) if lsn < facts.stop_lsn => refused(format!(
            "the base backup ended at {}, after {lsn}: recover from an earlier backup",
            facts.stop_lsn
        )),
        _ if recovery.timeline < facts.timeline => refused(format!(
            "the base backup is of timeline {}, the moment lies on timeline {}: recover from an earlier backup",
            facts.timeline, recovery.timeline
        )),
        _ if recovery.leave == Leave::Unstarted && request.restore_command.is_none() => refused(
            "a server that is started later needs a restore_command, and none is known here: have the server started"
                .to_owned(),
        ),
        _ if !recovery.tables.is_empty() && recovery.leave != Leave::Stopped => refused(
            "single tables come from a scratch server, of which nothing is left: leave out what is to be left behind"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Whether what is written has to survive a crash of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    Whole,
    Scratch,
}

/// A data folder that a server can be started in.
struct Prepared {
    binaries: ServerBinaries,
    run_as: RunAs,
    data_dir: PathBuf,
    control: Control,
    durability: Durability,
    bytes: u64,
    checks: Vec<Check>,
    notes: Vec<String>,
}

impl Prepared {
    fn make(
        source: &dyn EntrySource,
        request: &RecoveryRequest<'_>,
        data_dir: &Path,
        durability: Durability,
        progress: &mut dyn FnMut(RecoveryProgress),
    ) -> Result<Self, RecoveryError> {
        progress(RecoveryProgress::LayingDown);
        let major = major_version(source)?;
        let binaries = match ServerBinaries::find(major, request.bin_dirs) {
            Ok(binaries) if binaries.major == major => binaries,
            Ok(_) | Err(ClusterError::NoServer { .. }) => return Err(RecoveryError::NoServer { major }),
            Err(source) => return Err(RecoveryError::Server { source }),
        };
        let run_as = RunAs::unprivileged().map_err(RecoveryError::file("read", Path::new("/etc/passwd")))?;
        let nowhere = BTreeMap::new();
        // A scratch cluster takes nobody's folders.
        let tablespaces = match durability {
            Durability::Whole => &request.recovery.tablespaces,
            Durability::Scratch => &nowhere,
        };
        let folder = lay_down(
            source,
            request.facts,
            data_dir,
            tablespaces,
            &binaries,
            run_as,
            request.mark,
        )?;
        let control = Control::read(&folder.path, &binaries, run_as)?;
        if control.system_identifier != request.facts.system_identifier {
            return Err(RecoveryError::OtherCluster {
                expected: request.facts.system_identifier,
                found: control.system_identifier,
            });
        }
        let notes = settings::fill_missing_files(&folder.path, run_as)?;
        Ok(Self {
            binaries,
            run_as,
            data_dir: folder.path,
            control,
            durability,
            bytes: folder.bytes,
            checks: vec![folder.check],
            notes,
        })
    }

    /// Brings a private server to the moment, and promotes it.
    fn replay(
        &self,
        request: &RecoveryRequest<'_>,
        progress: &mut dyn FnMut(RecoveryProgress),
    ) -> Result<Live, RecoveryError> {
        Replay {
            binaries: &self.binaries,
            run_as: self.run_as,
            data_dir: &self.data_dir,
            control: &self.control,
            facts: request.facts,
            recovery: request.recovery,
            fsync: self.durability == Durability::Whole,
        }
        .run(request.wal.clone(), progress)
    }

    /// How a person starts the server.
    fn start_command(&self) -> String {
        let program = self.binaries.program("pg_ctl");
        format!(
            "{} {} start",
            copy::shell(&program.to_string_lossy()),
            copy::pg_ctl_options(&self.binaries, self.run_as, &self.data_dir)
        )
    }

    fn leave_unstarted(self, request: &RecoveryRequest<'_>) -> Result<Recovered, RecoveryError> {
        let recovery = request.recovery;
        let stays = |oid: u32| !recovery.tablespaces.contains_key(&oid);
        let port = settings::leave_unstarted(
            &self.data_dir,
            request.facts,
            recovery,
            request.restore_command.unwrap_or_default(),
            request.facts.tablespaces.iter().any(|tablespace| stays(tablespace.oid)),
            self.run_as,
        )?;
        remove_mark(&self.data_dir)?;
        let start = self.start_command();
        let mut checks = self.checks;
        checks.push(Check {
            name: moment::CHECK.to_owned(),
            outcome: CheckOutcome::Skipped,
            detail: "no server was started: the first one that is recovers the cluster".to_owned(),
        });
        let mut notes = self.notes;
        notes.push(format!(
            "the first start, with {start}, as the folder's owner, recovers to {}; it brings WAL by the restore_command in \
             postgresql.auto.conf, where the lines \"of the recovery\" are to be removed when the server is up; {}",
            recovery.to,
            copy::describe(port)
        ));
        Ok(Recovered {
            bytes: self.bytes,
            segments: 0,
            replayed_to: None,
            checks,
            notes,
            running: None,
        })
    }
}
