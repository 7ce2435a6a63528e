//! A cluster with an archive of WAL, a base backup of it, and a ledger of what was committed when.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use strongroom_connectors::files::{SnapshotOptions, snapshot};
use strongroom_connectors::postgres::recovery::WalFetch;
use strongroom_connectors::postgres::{Cluster, ClusterOptions, ServerBinaries, StopMode};
use strongroom_proto::manifest::EntryKind;
use strongroom_proto::wal::{ClusterFacts, Lsn, Tablespace};

use crate::memory::Memory;
use crate::server::{Server, options, passable_dir};

/// A server that archives its WAL into a folder.
pub(crate) struct Source {
    pub(crate) server: Server,
    pub(crate) dir: tempfile::TempDir,
}

/// A transaction that was committed.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    /// How many rows the ledger has with it.
    pub(crate) rows: u64,
    pub(crate) xid: u32,
    /// Right after its commit.
    pub(crate) lsn: Lsn,
    /// Its commit's time as Postgres has it.
    pub(crate) time: String,
}

impl Source {
    pub(crate) fn start(binaries: ServerBinaries) -> Self {
        Self::start_as(binaries, "postgres")
    }

    /// With a superuser of this name, and no other role.
    pub(crate) fn start_as(binaries: ServerBinaries, superuser: &str) -> Self {
        let dir = passable_dir();
        let archive = dir.path().join("archive");
        std::fs::create_dir(&archive).unwrap();
        open_to_all(&archive);
        let settings = vec![
            ("archive_mode".to_owned(), "on".to_owned()),
            ("archive_command".to_owned(), format!("cp %p {}/%f", archive.display())),
            ("full_page_writes".to_owned(), "on".to_owned()),
            ("synchronous_commit".to_owned(), "on".to_owned()),
            ("track_commit_timestamp".to_owned(), "on".to_owned()),
        ];
        let options = ClusterOptions {
            superuser: superuser.to_owned(),
            settings,
            ..options(dir.path().join("socket"))
        };
        let mut cluster = Cluster::create(binaries, &dir.path().join("data"), options).unwrap();
        cluster.start().unwrap();
        let server = Server::of(cluster, passable_dir());
        Self { server, dir }
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.sql("postgres", sql)
    }

    pub(crate) fn archive(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    /// A base backup, and what its receipt would say of it.
    pub(crate) fn base_backup(&self) -> (Memory, ClusterFacts) {
        let binaries = self.server.cluster.binaries();
        let backup = tempfile::tempdir().unwrap();
        let places =
            self.sql("SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16383 ORDER BY oid");
        let tablespaces: Vec<Tablespace> = places
            .lines()
            .filter_map(|line| line.split_once('|'))
            .map(|(oid, location)| Tablespace {
                oid: oid.parse().unwrap(),
                location: location.to_owned(),
            })
            .collect();
        let data = backup.path().join("data");
        let mut command = Command::new(binaries.program("pg_basebackup"));
        command
            .arg("-D")
            .arg(&data)
            .args(["-X", "none", "-c", "fast", "--no-sync", "-d"]);
        command.arg(self.server.cluster.url("postgres").unwrap().as_str());
        for tablespace in &tablespaces {
            let new = backup.path().join(tablespace.oid.to_string());
            command.arg(format!(
                "--tablespace-mapping={}={}",
                tablespace.location,
                new.display()
            ));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stopped_at =
            self.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");

        let mut memory = Memory::default();
        snapshot(&data, &SnapshotOptions::default(), &mut memory, &mut || {}).unwrap();
        for (entry, _) in &mut memory.entries {
            if entry.path.starts_with("pg_tblspc/") && entry.kind == EntryKind::Symlink {
                entry.kind = EntryKind::Directory;
                entry.link_target = None;
            }
        }
        for tablespace in &tablespaces {
            let mut part = Memory::default();
            let folder = backup.path().join(tablespace.oid.to_string());
            snapshot(&folder, &SnapshotOptions::default(), &mut part, &mut || {}).unwrap();
            for (mut entry, content) in part.entries {
                if entry.path != "." {
                    entry.path = format!("pg_tblspc/{}/{}", tablespace.oid, entry.path);
                    memory.entries.push((entry, content));
                }
            }
        }
        let manifest: serde_json::Value = serde_json::from_slice(memory.content("backup_manifest")).unwrap();
        let range = &manifest["WAL-Ranges"][0];
        let lsn = |name: &str| range[name].as_str().unwrap().parse().unwrap();
        let facts = ClusterFacts {
            system_identifier: self
                .sql("SELECT system_identifier FROM pg_control_system()")
                .parse()
                .unwrap(),
            timeline: u32::try_from(range["Timeline"].as_u64().unwrap()).unwrap(),
            start_lsn: lsn("Start-LSN"),
            stop_lsn: lsn("End-LSN"),
            stopped_at: stopped_at.parse().unwrap(),
            segment_bytes: 16 << 20,
            incremental_from: None,
            tablespaces,
        };
        (memory, facts)
    }

    /// Starts the server anew with these settings as well.
    pub(crate) fn restart_with(&mut self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            self.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        self.server.cluster.stop(StopMode::Fast);
        self.server.cluster.start().unwrap();
    }

    /// Has the server go on on a new timeline, as after a failover.
    pub(crate) fn begin_new_timeline(&mut self) {
        self.sql("ALTER SYSTEM SET restore_command = 'false'");
        self.server.cluster.stop(StopMode::Fast);
        let signal = self.dir.path().join("data/recovery.signal");
        std::fs::write(&signal, "").unwrap();
        let owner = std::fs::metadata(self.dir.path().join("data")).unwrap();
        std::os::unix::fs::chown(&signal, Some(owner.uid()), Some(owner.gid())).unwrap();
        self.server.cluster.start().unwrap();
        crate::cluster::wait_for("the new timeline", || self.sql("SELECT pg_is_in_recovery()") == "f");
    }

    /// Puts the segment that is being written into the archive as it is, as far as it is; where that ends.
    pub(crate) fn archive_partial(&self) -> Lsn {
        let end = self.sql("SELECT pg_current_wal_lsn()").parse().unwrap();
        let name = self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        let from = self.dir.path().join("data/pg_wal").join(&name);
        std::fs::copy(from, self.archive().join(name)).unwrap();
        end
    }

    /// An empty folder that belongs to the server's user.
    pub(crate) fn own_folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let owner = std::fs::metadata(self.dir.path().join("data")).unwrap();
        std::os::unix::fs::chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        folder
    }

    /// Runs a program as the server's user.
    pub(crate) fn as_server_user(&self, program: &Path, args: &[&str]) -> Output {
        let owner = std::fs::metadata(self.dir.path().join("data")).unwrap();
        let mut command = Command::new(program);
        if rustix::process::geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        command.args(args).current_dir("/").output().unwrap()
    }

    /// Commits so many transactions, one row each, and says what is known of each.
    pub(crate) fn commit(&self, transactions: u64) -> Vec<Committed> {
        self.sql(
            "CREATE TABLE IF NOT EXISTS ledger (id bigint GENERATED ALWAYS AS IDENTITY, xid bigint DEFAULT txid_current(), \
             filler text DEFAULT repeat('x', 300))",
        );
        let before: u64 = self.sql("SELECT count(*) FROM ledger").parse().unwrap();
        let one = "INSERT INTO ledger DEFAULT VALUES;\nSELECT pg_current_wal_insert_lsn();\n";
        let lsns = self.sql(&one.repeat(usize::try_from(transactions).unwrap()));
        let rows = self.sql(&format!(
            "SET TimeZone = 'UTC'; SELECT xid, to_char(pg_xact_commit_timestamp(xid::text::xid), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') \
             FROM ledger ORDER BY id OFFSET {before}"
        ));
        let committed = lsns
            .lines()
            .zip(rows.lines())
            .zip(before + 1..)
            .map(|((lsn, row), rows)| {
                let (xid, time) = row.split_once('|').unwrap();
                Committed {
                    rows,
                    xid: xid.parse().unwrap(),
                    lsn: lsn.parse().unwrap(),
                    time: time.to_owned(),
                }
            });
        let committed: Vec<Committed> = committed.collect();
        assert_eq!(committed.len() as u64, transactions);
        committed
    }

    /// Has everything so far archived; where it ends.
    pub(crate) fn archive_all(&self) -> Lsn {
        // A segment with nothing in it is not switched.
        self.sql("SELECT pg_logical_emit_message(false, 'strongroom', 'the end')");
        let file = self.sql("SELECT pg_walfile_name(pg_switch_wal())");
        let path = self.archive().join(file);
        crate::cluster::wait_for("the archive", || {
            path.metadata().is_ok_and(|facts| facts.len() == 16 << 20)
        });
        self.sql("SELECT pg_current_wal_lsn()").parse().unwrap()
    }
}

/// A folder of WAL that can be made to fail.
pub(crate) struct FolderWal {
    folder: PathBuf,
    /// Fetches of segments that succeed before the store is away.
    pub(crate) until_outage: AtomicU64,
    /// Names that were asked for.
    pub(crate) asked: Mutex<Vec<String>>,
}

impl FolderWal {
    pub(crate) fn of(source: &Source) -> Arc<Self> {
        Self::at(&source.archive())
    }

    pub(crate) fn at(folder: &Path) -> Arc<Self> {
        Arc::new(Self {
            folder: folder.to_owned(),
            until_outage: AtomicU64::new(u64::MAX),
            asked: Mutex::default(),
        })
    }
}

impl WalFetch for FolderWal {
    fn fetch(&self, name: &str, to: &Path) -> io::Result<bool> {
        self.asked.lock().unwrap().push(name.to_owned());
        if !name.ends_with(".history") {
            let left = self
                .until_outage
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if left.is_err() {
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the store is away"));
            }
        }
        match std::fs::copy(self.folder.join(name), to) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}
