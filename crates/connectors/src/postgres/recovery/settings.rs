//! What a recovering server is told, and what is written into its data folder.
//!
//! A server that recovers is told everything on its command line, which is stronger than any file of the cluster. What
//! whoever starts the folder later is told stands in blocks in `postgresql.auto.conf`.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::SecondsFormat;
use strongroom_proto::wal::{ClusterFacts, Lsn, Recovery, RecoveryTarget};

use super::copy::{Block, Settings, in_list, keep_to_itself, told_to_any};
use super::error::RecoveryError;
use crate::postgres::run_as::RunAs;

/// How long a server that got nothing new waits before it asks again.
const RETRY_INTERVAL: &str = "250ms";
/// Memory for pages: enough to replay fast, and never more than there is because the source had more.
const SHARED_BUFFERS_MIN_BYTES: u64 = 128 << 20;
const SHARED_BUFFERS_MAX_BYTES: u64 = 2 << 30;
const RECOVERY_SIGNAL: &str = "recovery.signal";
const STANDBY_SIGNAL: &str = "standby.signal";

const MINIMAL_CONF: &str = "# Written by Strongroom: the cluster's own postgresql.conf lay outside of its data folder, and a physical\n\
     # backup holds the data folder only. Put the cluster's settings here.\n";
const SAFE_HBA: &str = "# Written by Strongroom: the cluster's own pg_hba.conf lay outside of its data folder. Local users get in under their\n\
     # own names, others by password from this machine only.\n\
     local all all peer\n\
     host all all 127.0.0.1/32 scram-sha-256\n\
     host all all ::1/128 scram-sha-256\n";
const EMPTY_IDENT: &str = "# Written by Strongroom: the cluster's own pg_ident.conf lay outside of its data folder.\n";

/// Puts the configuration files in place that the backup lacks; says which.
pub(super) fn fill_missing_files(data_dir: &Path, run_as: RunAs) -> Result<Vec<String>, RecoveryError> {
    let mut notes = Vec::new();
    for (name, text) in [
        ("postgresql.conf", MINIMAL_CONF),
        ("pg_hba.conf", SAFE_HBA),
        ("pg_ident.conf", EMPTY_IDENT),
    ] {
        let path = data_dir.join(name);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        write_owned(&path, text, run_as)?;
        notes.push(format!(
            "the backup holds no {name} (it lay outside of the data folder): a minimal one was written"
        ));
    }
    Ok(notes)
}

/// Makes the server recover, and keeps it from ever ending the recovery by itself: a standby waits for more WAL where an
/// ordinary recovery would take the end of what it got for the end of all, and be promoted.
pub(super) fn make_standby(data_dir: &Path, run_as: RunAs) -> Result<(), RecoveryError> {
    super::data_folder::remove_if_there(&data_dir.join(RECOVERY_SIGNAL))?;
    write_owned(&data_dir.join(STANDBY_SIGNAL), "", run_as)
}

/// What a private server is told while it recovers.
pub(super) struct PrivateServer<'a> {
    pub(super) major: u32,
    pub(super) data_dir: &'a Path,
    /// Of the socket and of who may connect.
    pub(super) socket_dir: &'a Path,
    pub(super) port: u16,
    pub(super) restore_command: &'a str,
    /// The least that some settings must be.
    pub(super) floors: &'a BTreeMap<String, u64>,
    /// Whether the cluster's own libraries are loaded, without which some WAL cannot be replayed.
    pub(super) with_libraries: bool,
    /// Whether what it writes has to survive a crash of the machine.
    pub(super) fsync: bool,
}

impl PrivateServer<'_> {
    /// Its settings, in the order in which they are given.
    pub(super) fn settings(&self, facts: &ClusterFacts, recovery: &Recovery) -> Settings {
        let mut settings = private_settings(self.data_dir, self.socket_dir, self.port);
        let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
        // Messages are recognised by their English text, and times are read as UTC.
        for (name, value) in [
            ("lc_messages", "C"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("log_min_messages", "warning"),
            ("log_line_prefix", "%t "),
            ("log_destination", "stderr"),
            ("logging_collector", "off"),
        ] {
            set(name, value);
        }
        set("hba_file", &self.socket_dir.join("hba.conf").to_string_lossy());
        set("ident_file", &self.socket_dir.join("ident.conf").to_string_lossy());
        for (name, value) in [
            ("hot_standby", "on"),
            ("wal_level", "replica"),
            ("autovacuum", "off"),
            ("session_preload_libraries", ""),
            ("local_preload_libraries", ""),
            ("recovery_min_apply_delay", "0"),
            ("allow_in_place_tablespaces", "on"),
            ("wal_retrieve_retry_interval", RETRY_INTERVAL),
        ] {
            set(name, value);
        }
        set("shared_buffers", &format!("{}kB", shared_buffers_bytes() / 1024));
        if !self.with_libraries {
            // They are seldom needed to replay, may be missing here, and some would begin to act once it is promoted.
            set("shared_preload_libraries", "");
        }
        if self.major <= 15 {
            set("promote_trigger_file", "");
        }
        if self.major >= 17 {
            set("sync_replication_slots", "off");
            set("summarize_wal", "off");
        }
        for (name, value) in self.floors {
            set(name, &value.to_string());
        }
        if !self.fsync {
            set("fsync", "off");
            set("full_page_writes", "off");
        }
        set("restore_command", self.restore_command);
        set("recovery_target_action", "pause");
        settings.extend(target_settings(facts, recovery, Exactness::Ours));
        settings
    }
}

/// What keeps a server that recovers to itself: no place of the original, no connection from outside or to others.
fn private_settings(data_dir: &Path, socket_dir: &Path, port: u16) -> Settings {
    let mut settings = told_to_any(port);
    settings.extend(
        [
            ("data_directory", data_dir.to_string_lossy().into_owned()),
            ("listen_addresses", String::new()),
            ("unix_socket_directories", in_list(socket_dir)),
            ("ssl", "off".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    settings
}

/// How the end of what is replayed is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exactness {
    /// A server of ours, which waits where WAL ends.
    Ours,
    /// Whichever server is started later: it refuses a moment that no record shows to be over.
    AnyServer,
}

/// The moment. Every way to tell one is emptied first: what the cluster's own files still say from an earlier recovery
/// would contradict it.
fn target_settings(facts: &ClusterFacts, recovery: &Recovery, exactness: Exactness) -> Settings {
    let timeline = if recovery.timeline == facts.timeline {
        // Its own history is not needed to stay on it.
        "current".to_owned()
    } else {
        recovery.timeline.to_string()
    };
    let mut settings: Settings = ["", "_time", "_lsn", "_xid", "_name"]
        .map(|kind| (format!("recovery_target{kind}"), String::new()))
        .to_vec();
    settings.push(("recovery_target_timeline".to_owned(), timeline));
    let mut is_inclusive = true;
    let (name, value) = match &recovery.to {
        RecoveryTarget::Latest => return settings,
        RecoveryTarget::Immediate => ("recovery_target", "immediate".to_owned()),
        RecoveryTarget::Time(time) => {
            let time = time.to_rfc3339_opts(SecondsFormat::Micros, true);
            ("recovery_target_time", time.replace('T', " ").replace('Z', "+00"))
        }
        RecoveryTarget::Xid(xid) => ("recovery_target_xid", xid.to_string()),
        RecoveryTarget::Name(name) => ("recovery_target_name", name.clone()),
        RecoveryTarget::Lsn(lsn) if exactness == Exactness::AnyServer => ("recovery_target_lsn", lsn.to_string()),
        // A place between two records would take the later one in as well.
        RecoveryTarget::Lsn(lsn) => {
            is_inclusive = false;
            ("recovery_target_lsn", Lsn(lsn.0.saturating_add(1)).to_string())
        }
    };
    let inclusive = if is_inclusive { "on" } else { "off" };
    settings.push(("recovery_target_inclusive".to_owned(), inclusive.to_owned()));
    settings.push((name.to_owned(), value));
    settings
}

/// Leaves a data folder whose first server recovers it, to itself on the port that is given back.
pub(super) fn leave_unstarted(
    data_dir: &Path,
    facts: &ClusterFacts,
    recovery: &Recovery,
    restore_command: &str,
    has_own_tablespaces: bool,
    run_as: RunAs,
) -> Result<u16, RecoveryError> {
    let mut settings = target_settings(facts, recovery, Exactness::AnyServer);
    let fixed = [
        ("restore_command", restore_command),
        ("recovery_target_action", "promote"),
        // The original's own would clear its archive, and act when the copy is promoted.
        ("archive_cleanup_command", ""),
        ("recovery_end_command", ""),
        ("recovery_min_apply_delay", "0"),
    ];
    settings.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if has_own_tablespaces {
        settings.push(("allow_in_place_tablespaces".to_owned(), "on".to_owned()));
    }
    let port = keep_to_itself(data_dir, Some(Block::of_recovery(settings)), run_as)?;
    super::data_folder::remove_if_there(&data_dir.join(STANDBY_SIGNAL))?;
    write_owned(&data_dir.join(RECOVERY_SIGNAL), "", run_as)?;
    Ok(port)
}

/// Writes a file that only the server's user can read.
pub(super) fn write_owned(path: &Path, text: &str, run_as: RunAs) -> Result<(), RecoveryError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        let mut file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        run_as.own(path)
    };
    write().map_err(RecoveryError::file("write", path))
}

/// An eighth of the memory that is free, within limits.
fn shared_buffers_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = available.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    (kilobytes.unwrap_or(0) * 1024 / 8).clamp(SHARED_BUFFERS_MIN_BYTES, SHARED_BUFFERS_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::super::copy::AUTO_CONF;
    use super::*;
    use strongroom_proto::wal::{Leave, SystemIdentifier};

    fn facts() -> ClusterFacts {
        ClusterFacts {
            system_identifier: SystemIdentifier(1),
            timeline: 2,
            start_lsn: Lsn(0x200_0028),
            stop_lsn: Lsn(0x200_0100),
            stopped_at: chrono::DateTime::UNIX_EPOCH,
            segment_bytes: 16 << 20,
            incremental_from: None,
            tablespaces: Vec::new(),
        }
    }

    fn recovery(to: RecoveryTarget, timeline: u32) -> Recovery {
        Recovery {
            to,
            timeline,
            wal_end: None,
            leave: Leave::Stopped,
            tablespaces: BTreeMap::new(),
            tables: Vec::new(),
        }
    }

    fn told(to: RecoveryTarget, timeline: u32, exactness: Exactness) -> Vec<String> {
        target_settings(&facts(), &recovery(to, timeline), exactness)
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    #[test]
    fn a_place_takes_in_the_record_that_begins_at_it_and_no_other() {
        let ours = told(RecoveryTarget::Lsn(Lsn(0x300_00ff)), 2, Exactness::Ours);
        let expected = [
            "recovery_target_timeline=current",
            "recovery_target_inclusive=off",
            "recovery_target_lsn=0/3000100",
        ];
        assert_eq!(ours, expected);
        let any = told(RecoveryTarget::Lsn(Lsn(0x300_00ff)), 2, Exactness::AnyServer);
        assert_eq!(any.last().unwrap(), "recovery_target_lsn=0/30000FF");
        assert!(any.contains(&"recovery_target_inclusive=on".to_owned()));
    }

    #[test]
    fn a_moment_on_another_timeline_names_it_and_the_moment_comes_last() {
        let time = "2026-11-21T14:03:05.1234567Z".parse().unwrap();
        let told = told(RecoveryTarget::Time(time), 3, Exactness::Ours);
        assert_eq!(told[0], "recovery_target_timeline=3");
        // What follows a moment may not empty another kind of it.
        assert_eq!(
            told.last().unwrap(),
            "recovery_target_time=2026-11-21 14:03:05.123456+00"
        );
    }

    #[test]
    fn what_the_user_has_set_stays_before_our_block() {
        let dir = tempfile::tempdir().unwrap();
        let auto = dir.path().join(AUTO_CONF);
        std::fs::write(&auto, "work_mem = '7MB'").unwrap();
        let recovery = recovery(RecoveryTarget::Name("it's \\ here".to_owned()), 2);
        let ours = RunAs::Ourselves;
        leave_unstarted(dir.path(), &facts(), &recovery, "fetch '%f'", true, ours).unwrap();
        let text = std::fs::read_to_string(&auto).unwrap();
        assert!(text.starts_with("work_mem = '7MB'\n# Strongroom"), "{text}");
        assert!(text.contains("recovery_target_name = 'it''s \\\\ here'\n"), "{text}");
        assert!(text.contains("restore_command = 'fetch ''%f'''\n"), "{text}");
        assert!(dir.path().join(RECOVERY_SIGNAL).exists());
    }
}
