//! What the tests of whole clusters share: servers, WAL in memory, backups laid down in folders.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ring::digest::{SHA256, digest};
use strongroom_connectors::postgres::physical::{
    ClusterTarget, Ended, ReceiveError, ReceiveOptions, WalEvent, receive,
};
use strongroom_connectors::postgres::{Cluster, ServerBinaries};
use strongroom_proto::Sha256Digest;
use strongroom_proto::manifest::EntryKind;
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, WalPiece, WalSegment, WalSink};
use strongroom_testkit::{Postgres, wait_for};
use tokio::sync::watch;

use crate::memory::Memory;
use crate::server;

pub(crate) const WITHIN: Duration = Duration::from_secs(60);
const SEGMENT_BYTES: u32 = 16 << 20;

pub(crate) fn binaries(major: u32) -> ServerBinaries {
    let mut majors = server::majors().into_iter();
    majors.find(|found| found.major == major).expect("that major version")
}

pub(crate) fn start(major: u32, settings: &[(&str, &str)]) -> Postgres {
    Postgres::start_with(&binaries(major).dir, settings).unwrap()
}

pub(crate) fn target(server: &Postgres) -> ClusterTarget {
    ClusterTarget::new(server.url("postgres").parse().unwrap())
}

pub(crate) fn lsn(server: &Postgres, sql: &str) -> Lsn {
    server.psql("postgres", sql).unwrap().parse().unwrap()
}

/// Runs a program to its end and gives back what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// Makes a folder that the server may use for a tablespace.
pub(crate) fn tablespace_dir(server: &Postgres, name: &str) -> PathBuf {
    let dir = server.data_dir().parent().unwrap().join(name);
    fs::create_dir(&dir).unwrap();
    give(&dir, &server.data_dir());
    dir
}

/// Gives a tree to the owner of `like`.
pub(crate) fn give(tree: &Path, like: &Path) {
    let owner = fs::metadata(like).unwrap();
    for found in walkdir::WalkDir::new(tree) {
        chown(found.unwrap().path(), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// Lays a backup down in an empty folder, as entries say.
pub(crate) fn lay_down(backup: &Memory, dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    for (entry, content) in &backup.entries {
        let path = if entry.path == "." {
            dir.to_owned()
        } else {
            dir.join(&entry.path)
        };
        match entry.kind {
            EntryKind::Directory => fs::create_dir_all(&path).unwrap(),
            EntryKind::File => fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", entry.path)),
            other => panic!("{}: {other:?}", entry.path),
        }
        let mode = entry.mode.expect("a mode") & 0o7777;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// The files below a folder, links followed, with their contents.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for found in walkdir::WalkDir::new(dir).follow_links(true) {
        let found = found.unwrap();
        if found.file_type().is_file() {
            let path = found.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            files.insert(path, fs::read(found.path()).unwrap());
        }
    }
    files
}

/// Starts the server of a folder that a backup was laid down in, without the port of the one it is of.
pub(crate) fn start_restored(binaries: ServerBinaries, data: &Path, socket: &Path) -> Cluster {
    let mut options = server::options(socket.to_owned());
    // Folders in the place of links to tablespaces.
    options.settings = vec![("allow_in_place_tablespaces".to_owned(), "on".to_owned())];
    let mut cluster = Cluster::open(binaries, data, options).unwrap();
    cluster.start().unwrap();
    cluster
}

/// A piece, and its bytes.
type Put = (WalPiece, Vec<u8>);

/// WAL in memory. While its gate is closed nothing gets through; switched to failing, nothing is taken.
#[derive(Debug)]
pub(crate) struct MemoryWal {
    pub(crate) pieces: Mutex<Vec<Put>>,
    /// Objects of the first timeline that are listed and hold nothing.
    pub(crate) hollow: Mutex<Vec<(Lsn, Lsn)>>,
    pub(crate) histories: Mutex<BTreeMap<u32, String>>,
    pub(crate) histories_put: AtomicUsize,
    pub(crate) gate: watch::Sender<bool>,
    pub(crate) fails: AtomicBool,
}

impl MemoryWal {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            pieces: Mutex::default(),
            hollow: Mutex::default(),
            histories: Mutex::default(),
            histories_put: AtomicUsize::new(0),
            gate: watch::Sender::new(true),
            fails: AtomicBool::new(false),
        })
    }

    fn of(&self, timeline: u32) -> Vec<Put> {
        let pieces = self.pieces.lock().unwrap();
        let mut found: Vec<Put> = pieces
            .iter()
            .filter(|(piece, _)| piece.timeline == timeline)
            .cloned()
            .collect();
        found.sort_by_key(|(piece, _)| piece.from);
        found
    }

    /// The WAL of a timeline from where it begins: no hole, nothing twice that differs, no piece beyond its segment.
    pub(crate) fn whole(&self, timeline: u32) -> (Lsn, Vec<u8>) {
        let pieces = self.of(timeline);
        let begin = pieces.first().expect("a piece").0.from;
        let mut bytes = Vec::new();
        for (piece, content) in pieces {
            let at = (piece.from.0 - begin.0) as usize;
            assert!(at <= bytes.len(), "a hole before {piece:?}");
            let known = content.len().min(bytes.len() - at);
            assert!(bytes[at..at + known] == content[..known], "{piece:?} differs");
            assert_eq!(piece.len(), content.len() as u64);
            assert!(piece.to <= piece.segment().end(piece.segment_bytes), "{piece:?}");
            bytes.extend(&content[known..]);
        }
        (begin, bytes)
    }

    pub(crate) fn end(&self, timeline: u32) -> Lsn {
        let pieces = self.of(timeline);
        pieces.iter().map(|(piece, _)| piece.to).max().unwrap_or_default()
    }

    /// Writes the segments of a timeline into a folder, as a server has them.
    pub(crate) fn write_segments(&self, timeline: u32, dir: &Path) {
        let (begin, bytes) = self.whole(timeline);
        for (number, content) in bytes.chunks(SEGMENT_BYTES as usize).enumerate() {
            let at = Lsn(begin.0 + number as u64 * u64::from(SEGMENT_BYTES));
            let name = WalSegment::holding(timeline, at, SEGMENT_BYTES).file_name(SEGMENT_BYTES);
            let mut segment = content.to_vec();
            segment.resize(SEGMENT_BYTES as usize, 0);
            fs::write(dir.join(name), segment).unwrap();
        }
    }

    /// Compares with the files that the server itself has of it.
    pub(crate) fn compare_with(&self, timeline: u32, data: &Path) {
        let (begin, bytes) = self.whole(timeline);
        assert_eq!(begin.0 % u64::from(SEGMENT_BYTES), 0, "it begins with a segment");
        let mut compared = 0;
        for (number, content) in bytes.chunks(SEGMENT_BYTES as usize).enumerate() {
            let at = Lsn(begin.0 + number as u64 * u64::from(SEGMENT_BYTES));
            let name = WalSegment::holding(timeline, at, SEGMENT_BYTES).file_name(SEGMENT_BYTES);
            // Older ones are removed by the server in time.
            if let Ok(own) = fs::read(data.join("pg_wal").join(&name)) {
                assert!(own[..content.len()] == *content, "segment {name} differs");
                compared += 1;
            }
        }
        assert!(compared > 0, "the server has none of these segments");
    }
}

#[async_trait]
impl WalSink for MemoryWal {
    async fn put(&self, piece: &WalPiece, bytes: Arc<Vec<u8>>) -> io::Result<()> {
        let mut gate = self.gate.subscribe();
        gate.wait_for(|open| *open).await.map_err(io::Error::other)?;
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        assert_eq!(piece.len(), bytes.len() as u64);
        self.pieces.lock().unwrap().push((piece.clone(), bytes.to_vec()));
        Ok(())
    }

    async fn put_history(&self, _: SystemIdentifier, timeline: u32, text: &str) -> io::Result<()> {
        self.histories_put.fetch_add(1, Ordering::SeqCst);
        self.histories.lock().unwrap().insert(timeline, text.to_owned());
        Ok(())
    }

    async fn pieces(&self, _: SystemIdentifier, timeline: u32) -> io::Result<Vec<StoredPiece>> {
        let stored = |(piece, bytes): Put| StoredPiece {
            timeline,
            from: piece.from,
            to: piece.to,
            sha256: digest(&SHA256, &bytes)
                .as_ref()
                .try_into()
                .map(Sha256Digest::from_bytes)
                .unwrap(),
            stored_at: piece.server_time.unwrap_or_default(),
        };
        let mut pieces: Vec<StoredPiece> = self.of(timeline).into_iter().map(stored).collect();
        let hollow = self.hollow.lock().unwrap().clone();
        pieces.extend(
            hollow
                .into_iter()
                .filter(|_| timeline == 1)
                .map(|(from, to)| StoredPiece {
                    timeline,
                    from,
                    to,
                    sha256: Sha256Digest::from_bytes([0; 32]),
                    stored_at: chrono::DateTime::UNIX_EPOCH,
                }),
        );
        pieces.sort_by_key(|piece| piece.from);
        Ok(pieces)
    }
}

/// A receiver on a thread of its own.
pub(crate) struct Receiving {
    pub(crate) events: Arc<Mutex<Vec<WalEvent>>>,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<Result<Ended, ReceiveError>>,
    /// Why it ended, once it has.
    outcome: Arc<Mutex<String>>,
}

impl Receiving {
    pub(crate) fn start(target: ClusterTarget, wal: &Arc<MemoryWal>) -> Self {
        Self::start_expecting(target, wal, None)
    }

    pub(crate) fn start_expecting(
        target: ClusterTarget,
        wal: &Arc<MemoryWal>,
        expected_system: Option<SystemIdentifier>,
    ) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let (stop, mut stopped) = watch::channel(false);
        let (told, sink) = (Arc::clone(&events), Arc::clone(wal));
        let outcome = Arc::new(Mutex::new(String::new()));
        let ending = Arc::clone(&outcome);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let options = ReceiveOptions {
                interval: Duration::from_millis(200),
                expected_system,
            };
            let tell = move |event| told.lock().unwrap().push(event);
            let ended = runtime.block_on(receive(&target, sink, options, &tell, async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            }));
            *ending.lock().unwrap() = format!("{ended:?}");
            ended
        });
        Self {
            events,
            stop,
            thread,
            outcome,
        }
    }

    /// Waits until an event is as wanted.
    pub(crate) fn wait<T>(&self, what: &str, wanted: impl Fn(&WalEvent) -> Option<T>) -> T {
        wait_for(what, WITHIN, || {
            assert!(
                !self.thread.is_finished(),
                "the receiver ended while waiting for {what}: {}",
                self.outcome.lock().unwrap()
            );
            self.events.lock().unwrap().iter().find_map(&wanted)
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", self.events.lock().unwrap()))
    }

    /// Waits until everything before a place is durable.
    pub(crate) fn wait_stored(&self, timeline: u32, at: Lsn) {
        self.wait(&format!("{at} on timeline {timeline}"), |event| match event {
            WalEvent::Stored { timeline: on, to, .. } if *on == timeline && *to >= at => Some(()),
            _ => None,
        });
    }

    pub(crate) fn stop(self) -> Result<Ended, ReceiveError> {
        self.stop.send_replace(true);
        self.thread.join().unwrap()
    }

    /// Waits for its end without telling it.
    pub(crate) fn ended(self) -> Result<Ended, ReceiveError> {
        self.thread.join().unwrap()
    }
}
