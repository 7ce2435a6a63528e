//! One server brought to its moment: started, watched, asserted, promoted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use strongroom_proto::receipt::Check;
use strongroom_proto::wal::{ClusterFacts, Lsn, Recovery, RecoveryTarget};

use super::control::Control;
use super::data_folder::remove_mark;
use super::error::{KILLED, RecoveryError, is_local_trouble};
use super::feed::{Feed, WalFetch};
use super::log::{Observed, read_time};
use super::moment::{self, Came, Reached};
use super::server::{Door, PrivateProcess};
use super::settings::{PrivateServer, make_standby, write_owned};
use super::{RECOVERY_LOG, RecoveryProgress};
use crate::child::Stop;
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::run_as::{RunAs, clean_environment};
use crate::postgres::sql::{Sql, SqlError};
use crate::scratch::ScratchDir;

const POLL_EVERY: Duration = Duration::from_millis(20);
/// How long a server that has stopped replaying may take to answer, and one that was promoted to be ready.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a server that got no WAL may take to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a server is started anew because the source's settings had been raised.
const STARTS_MAX: u32 = 16;
const SCRATCH_PARENT: &str = "/tmp";
const SCRATCH_PREFIX: &str = "strongroom-recovery-";
/// It is the number of a socket's file: no other server is in that folder.
const SOCKET_PORT: u16 = 5432;

/// What is recovered and how.
pub(super) struct Replay<'a> {
    pub(super) binaries: &'a ServerBinaries,
    pub(super) run_as: RunAs,
    pub(super) data_dir: &'a Path,
    pub(super) control: &'a Control,
    pub(super) facts: &'a ClusterFacts,
    pub(super) recovery: &'a Recovery,
    pub(super) fsync: bool,
}

/// A promoted server. The order of the fields is the order in which they go.
pub(super) struct Live {
    pub(super) process: PrivateProcess,
    pub(super) door: Door,
    pub(super) checks: Vec<Check>,
    pub(super) notes: Vec<String>,
    pub(super) replayed_to: Lsn,
    pub(super) segments: u64,
    _feed: Feed,
    _scratch: ScratchDir,
}

/// What has been raised or added since the first start.
struct Needs {
    floors: BTreeMap<String, u64>,
    with_libraries: bool,
}

enum Watched {
    Came(Came),
    /// The server has to be started anew with what it needs.
    Again,
}

impl Replay<'_> {
    pub(super) fn run(
        &self,
        wal: Arc<dyn WalFetch>,
        progress: &mut dyn FnMut(RecoveryProgress),
    ) -> Result<Live, RecoveryError> {
        let parent = Path::new(SCRATCH_PARENT);
        let scratch = ScratchDir::create(parent, SCRATCH_PREFIX, 0o711, |_| {});
        let scratch = scratch.map_err(RecoveryError::file("create a folder in", parent))?;
        let feed = Feed::start(wal, scratch.path(), self.run_as, self.facts.segment_bytes)?;
        let mut door = self.make_door(scratch.path())?;
        make_standby(self.data_dir, self.run_as)?;
        let mut needs = Needs {
            floors: self.control.floors.clone(),
            with_libraries: false,
        };
        for _ in 0..STARTS_MAX {
            let mut process = self.start(&door, &feed, &needs, self.recovery)?;
            let mut observed = Observed::default();
            match self.watch(&mut process, &mut observed, &feed, &mut needs, progress)? {
                Watched::Again => {
                    process.stop(Signal::INT);
                    feed.begin_again();
                }
                Watched::Came(came) => {
                    let reached = self.look(&mut process, &mut observed, &mut door, &feed, came)?;
                    let missing = feed.last_absent();
                    let mut checks = vec![moment::assert(
                        self.recovery,
                        self.data_dir,
                        self.facts,
                        &reached,
                        missing,
                    )?];
                    let segments = feed.segments();
                    if came == Came::ToTheEndOfWal && self.recovery.to != RecoveryTarget::Latest {
                        (process, observed) = self.start_without_moment(process, &door, &feed, &mut needs)?;
                    }
                    // Another try would make a standby of a folder that is promoted, and maybe in use.
                    remove_mark(self.data_dir)?;
                    progress(RecoveryProgress::Promoting);
                    checks.push(self.promote(&mut process, &mut observed, &mut door, &feed)?);
                    return Ok(Live {
                        process,
                        door,
                        checks,
                        notes: Vec::new(),
                        replayed_to: reached.replayed_to.unwrap_or_default(),
                        segments,
                        _feed: feed,
                        _scratch: scratch,
                    });
                }
            }
        }
        Err(RecoveryError::Ended {
            doing: "replay WAL",
            log: "the server asked for higher settings again and again: recover from a later base backup".to_owned(),
        })
    }

    /// A folder for the socket, and who is let in by it: whoever the server's user or root is.
    fn make_door(&self, scratch: &Path) -> Result<Door, RecoveryError> {
        use std::os::unix::fs::PermissionsExt as _;
        let socket_dir = scratch.join("socket");
        std::fs::create_dir(&socket_dir).map_err(RecoveryError::file("create", &socket_dir))?;
        std::fs::set_permissions(&socket_dir, std::fs::Permissions::from_mode(0o700))
            .map_err(RecoveryError::file("close", &socket_dir))?;
        self.run_as
            .own(&socket_dir)
            .map_err(RecoveryError::file("give away", &socket_dir))?;
        write_owned(&socket_dir.join("hba.conf"), "local all all trust\n", self.run_as)?;
        write_owned(&socket_dir.join("ident.conf"), "", self.run_as)?;
        Ok(Door {
            socket_dir,
            port: SOCKET_PORT,
            superusers: self.control.superusers(self.data_dir),
        })
    }

    /// Postgres does not promote a server that was told a moment and found no record to show that it is over. One that
    /// was asserted by other means is told none, gets no more WAL than it has, and comes to the same place.
    fn start_without_moment(
        &self,
        mut process: PrivateProcess,
        door: &Door,
        feed: &Feed,
        needs: &mut Needs,
    ) -> Result<(PrivateProcess, Observed), RecoveryError> {
        process.stop(Signal::INT);
        feed.close();
        let all = Recovery {
            to: RecoveryTarget::Latest,
            ..self.recovery.clone()
        };
        let mut process = self.start(door, feed, needs, &all)?;
        let mut observed = Observed::default();
        match self.watch(&mut process, &mut observed, feed, needs, &mut |_| {})? {
            Watched::Came(Came::ToTheEndOfWal) => Ok((process, observed)),
            Watched::Came(Came::ToAStop) | Watched::Again => Err(RecoveryError::Ended {
                doing: "come to the same place again",
                log: format!("{}; tell the moment as a place in WAL", process.log_tail()),
            }),
        }
    }

    fn start(
        &self,
        door: &Door,
        feed: &Feed,
        needs: &Needs,
        recovery: &Recovery,
    ) -> Result<PrivateProcess, RecoveryError> {
        let restore_command = feed.restore_command();
        let server = PrivateServer {
            major: self.binaries.major,
            data_dir: self.data_dir,
            socket_dir: &door.socket_dir,
            port: door.port,
            restore_command: &restore_command,
            floors: &needs.floors,
            with_libraries: needs.with_libraries,
            fsync: self.fsync,
        };
        let settings = server.settings(self.facts, recovery);
        let log = self.data_dir.join(RECOVERY_LOG);
        PrivateProcess::start(self.binaries, self.run_as, self.data_dir, &settings, &log)
    }

    /// Watches the server until it has stopped replaying, one way or another.
    fn watch(
        &self,
        process: &mut PrivateProcess,
        observed: &mut Observed,
        feed: &Feed,
        needs: &mut Needs,
        progress: &mut dyn FnMut(RecoveryProgress),
    ) -> Result<Watched, RecoveryError> {
        let stop = Stop::current();
        let mut told_segments = u64::MAX;
        loop {
            let ending = process.ended_within(POLL_EVERY);
            process.new_lines().iter().for_each(|line| observed.take(line));
            if let Some(error) = feed.take_failure() {
                // It ends by itself; nothing here may promote it meanwhile.
                let _ = process.ended_within(END_TIMEOUT);
                return Err(error);
            }
            if observed.needs_libraries && !needs.with_libraries {
                needs.with_libraries = true;
                return Ok(Watched::Again);
            }
            if !observed.too_low.is_empty() {
                needs.floors.extend(observed.too_low.drain(..));
                return Ok(Watched::Again);
            }
            if let Some(ending) = ending {
                return Err(self.ended(process, observed, &ending));
            }
            if stop.is_stopped() {
                return Err(RecoveryError::Stopped);
            }
            if observed.is_paused || observed.is_promoted {
                return Ok(Watched::Came(Came::ToAStop));
            }
            if feed.is_exhausted() {
                return Ok(Watched::Came(Came::ToTheEndOfWal));
            }
            let segments = feed.segments();
            if segments != told_segments {
                told_segments = segments;
                progress(RecoveryProgress::Replaying { segments });
            }
        }
    }

    /// Why the server ended.
    fn ended(&self, process: &PrivateProcess, observed: &Observed, ending: &str) -> RecoveryError {
        let said = observed.complaints.join("; ");
        if said.contains("before consistent recovery point") {
            return RecoveryError::NotReached {
                target: self.recovery.to.to_string(),
                what: "it lies before the end of the base backup: recover from an earlier one".to_owned(),
            };
        }
        let log = if said.is_empty() { process.log_tail() } else { said };
        let doing = "run a server that recovers the cluster";
        let is_local = ending.contains(KILLED) || is_local_trouble(&log);
        let log = format!("it ended with {ending}: {log}{}", advice(&log));
        match is_local {
            true => RecoveryError::Here { doing, log },
            false => RecoveryError::Ended { doing, log },
        }
    }

    /// Asks the server, which does not replay any more, how far it came.
    fn look(
        &self,
        process: &mut PrivateProcess,
        observed: &mut Observed,
        door: &mut Door,
        feed: &Feed,
        came: Came,
    ) -> Result<Reached, RecoveryError> {
        let mut reached = Reached {
            came,
            stopped_at: observed.stopped_at.clone(),
            replayed_to: None,
            last_commit: None,
        };
        if came == Came::ToTheEndOfWal && observed.consistent_at.is_none() {
            // It lets nobody in before it is consistent.
            return Ok(reached);
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let asked = loop {
            let asked = door.connect("postgres").or_else(|_| door.connect("template1"));
            let ending = process.ended_within(Duration::ZERO);
            match (asked.and_then(|mut sql| ask(&mut sql)), ending) {
                (Ok(asked), _) => break asked,
                (Err(_), Some(ending)) => {
                    if let Some(error) = feed.take_failure() {
                        return Err(error);
                    }
                    process.new_lines().iter().for_each(|line| observed.take(line));
                    return Err(self.ended(process, observed, &ending));
                }
                (Err(error), None) if Instant::now() > deadline => return Err(RecoveryError::sql("ask")(error)),
                (Err(_), None) => {}
            }
            let _ = process.ended_within(POLL_EVERY);
            process.new_lines().iter().for_each(|line| observed.take(line));
        };
        (reached.replayed_to, reached.last_commit) = asked;
        Ok(reached)
    }

    /// Ends the recovery, and has the server answer as one that takes writes.
    fn promote(
        &self,
        process: &mut PrivateProcess,
        observed: &mut Observed,
        door: &mut Door,
        feed: &Feed,
    ) -> Result<Check, RecoveryError> {
        if !observed.is_promoted {
            let program = self.binaries.program("pg_ctl");
            let mut command = self.run_as.command(&program, None);
            clean_environment(&mut command)
                .args(["promote", "--no-wait", "--silent", "-D"])
                .arg(self.data_dir)
                .stdin(std::process::Stdio::null());
            let output = command.output().map_err(RecoveryError::file("run", &program))?;
            if !output.status.success() {
                return Err(RecoveryError::Tool {
                    doing: "promote the recovered server".to_owned(),
                    output: String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
                });
            }
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while !observed.is_promoted {
            let ending = process.ended_within(POLL_EVERY);
            process.new_lines().iter().for_each(|line| observed.take(line));
            if let Some(error) = feed.take_failure() {
                let _ = process.ended_within(END_TIMEOUT);
                return Err(error);
            }
            if let Some(ending) = ending {
                return Err(self.ended(process, observed, &ending));
            }
            if Instant::now() > deadline {
                return Err(RecoveryError::Here {
                    doing: "promote the recovered server in time",
                    log: format!(
                        "{}; see what holds it up on this machine, and try again",
                        process.log_tail()
                    ),
                });
            }
        }
        let mut sql = door
            .connect("postgres")
            .or_else(|_| door.connect("template1"))
            .map_err(RecoveryError::sql("connect to"))?;
        let answer = sql
            .rows("SELECT pg_is_in_recovery()::text, current_setting('server_version'), pg_current_wal_lsn()::text")
            .map_err(RecoveryError::sql("ask"))?;
        let row = answer.into_iter().next().unwrap_or_default();
        moment::answers(&row)
    }
}

type HowFar = (Option<Lsn>, Option<chrono::DateTime<chrono::Utc>>);

fn ask(sql: &mut Sql) -> Result<HowFar, SqlError> {
    let rows = sql.rows("SELECT pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()::text")?;
    let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
    let mut next = || row.next().flatten();
    Ok((
        next().and_then(|lsn| lsn.parse().ok()),
        next().and_then(|time| read_time(&time)),
    ))
}

/// What a person can do about a server that does not start.
fn advice(log: &str) -> &'static str {
    if log.contains("could not access file") {
        "; install the packages of the libraries in shared_preload_libraries here"
    } else if log.contains("No space left on device") {
        "; make room on that disk"
    } else if log.contains("Create this directory for the tablespace") {
        "; a tablespace was made after the base backup: make that folder, or recover from a later backup"
    } else if log.contains("could not open configuration") || log.contains("could not open configuration directory") {
        "; the cluster's configuration names files that lay outside of its data folder: put them in place"
    } else {
        "; mend what it says, or recover from another base backup"
    }
}
