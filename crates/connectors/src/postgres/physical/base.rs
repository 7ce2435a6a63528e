//! A base backup: the command, its stream, and what it came to.
//!
//! The stream is not compressed by the server: that would only be undone here, where content is compressed after it was
//! compared with what the vault has. The server does not wait for its archiver (`WAIT false`): whoever completes the
//! backup makes sure that WAL up to [`ClusterFacts::stop_lsn`] is in the vault.

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Buf as _;
use strongroom_proto::manifest::{BackupSink, PAGE_BYTES};
use strongroom_proto::receipt::SourceFacts;
use strongroom_proto::wal::{ClusterFacts, Lsn, Tablespace};
use tokio::sync::oneshot;

use super::base_error::{BaseBackupError, DamageError};
use super::commands::{self, Identity, text};
use super::error::{ServerError, WireError};
use super::server_manifest::ServerManifest;
use super::session::Session;
use super::streaming;
use super::target::ClusterTarget;
use super::tree::{TreeSummary, TreeWriter};
use super::wire::{self, Message, Row, tag};
use crate::postgres::target::Endpoint;

/// The first major version with incremental backups.
const INCREMENTAL_MAJOR: u32 = 17;
/// The longest manifest that is taken, in bytes: some ten million files.
const MANIFEST_BYTES_MAX: usize = 2 << 30;
/// Messages that have come and are not looked at yet; a server's have 32 KiB.
const MESSAGES_AHEAD: usize = 64;
/// How much of a manifest is sent at once.
const UPLOAD_BYTES: usize = 64 << 10;
/// The label in `backup_label`.
const LABEL: &str = "strongroom";
/// The SQLSTATE code of damaged data.
const DATA_CORRUPTED: &str = "XX001";

/// How much a base backup is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Everything.
    Full,
    /// What has changed since the last backup, where server and sink know that; else everything.
    IncrementalIfPossible,
}

/// How far a base backup is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that the server has sent.
    pub done_bytes: u64,
    /// Bytes of the cluster's files, where the server told; more than an incremental backup sends.
    pub total_bytes: Option<u64>,
}

/// What a base backup came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackup {
    /// Of the cluster, for the receipt. WAL from its start to its stop is what a restore needs at least.
    pub cluster: ClusterFacts,
    /// Versions and counts, for the receipt; with `cluster`.
    pub facts: SourceFacts,
    /// What a person should know, for the receipt: why it is not incremental where that was wanted, warnings.
    pub notes: Vec<String>,
    /// Bytes that the server sent.
    pub read_bytes: u64,
    /// Files that were laid over the last backup's; none in a full backup.
    pub overlaid: u64,
}

/// Takes a base backup of a whole cluster into `sink`, as [the module](crate::postgres::physical) tells. Blocks until it
/// is done; [`Stop`](crate::Stop) ends it within a second, unless the sink takes longer.
pub fn base_backup(
    target: &ClusterTarget,
    sink: &mut dyn BackupSink,
    want: Want,
    progress: &mut dyn FnMut(Progress),
) -> Result<BaseBackup, BaseBackupError> {
    let endpoint = target.endpoint().map_err(|source| BaseBackupError::Target { source })?;
    let mut notes = Vec::new();
    let mut source = Source::open(&endpoint)?;
    let mut incremental = None;
    if want == Want::IncrementalIfPossible {
        let begun = match source.upload(sink)? {
            Ok(()) => source.begin(target, true)?,
            Err(reason) => Err(reason),
        };
        match begun {
            Ok(begun) => incremental = Some(begun),
            Err(reason) => {
                notes.push(format!("not incremental: {reason}"));
                // The old session may hold half of what was asked for.
                source = Source::open(&endpoint)?;
            }
        }
    }
    let begun = match incremental {
        Some(begun) => begun,
        None => source.begin(target, false)?.map_err(|reason| {
            let said = WireError::log_in(reason);
            BaseBackupError::server("begin a base backup", &endpoint, said)
        })?,
    };
    let copied = source.copy(&begun, sink, progress)?;
    source.finish(begun, copied, notes)
}

/// A server that a base backup is taken of.
struct Source<'a> {
    endpoint: &'a Endpoint,
    session: Session,
    identity: Identity,
    version: String,
    major: u32,
    segment_bytes: u32,
    /// Permission bits of the data folder.
    mode: u32,
}

/// What a server says before it sends the first file.
struct Begun {
    start: Lsn,
    tablespaces: Vec<Tablespace>,
    total_bytes: Option<u64>,
}

/// What came.
struct Copied {
    read_bytes: u64,
    tree: TreeSummary,
    /// Where the backup ended, and on which timeline.
    stop: (Lsn, u32),
}

impl<'a> Source<'a> {
    fn open(endpoint: &'a Endpoint) -> Result<Self, BaseBackupError> {
        let mut session = Session::open(endpoint)
            .map_err(|source| BaseBackupError::server("connect for a base backup", endpoint, source))?;
        let asked = session.run(async |connection| {
            let (version, major) = commands::version(connection)?;
            let identity = commands::identify(connection).await?;
            let segment_bytes = commands::segment_bytes(connection).await?;
            let mode = commands::show(connection, "data_directory_mode").await?;
            let mode = u32::from_str_radix(&mode, 8).map_err(|_| WireError::protocol("a mode of its data folder"))?;
            Ok((version, major, identity, segment_bytes, mode))
        });
        let (version, major, identity, segment_bytes, mode) =
            asked.map_err(|source| BaseBackupError::server("ask for the state", endpoint, source))?;
        Ok(Self {
            endpoint,
            session,
            identity,
            version,
            major,
            segment_bytes,
            mode,
        })
    }

    fn failed(&self, source: WireError) -> BaseBackupError {
        BaseBackupError::server("read a base backup", self.endpoint, source)
    }

    /// Tells the server what the last backup holds; or why it need not be told.
    fn upload(&mut self, sink: &mut dyn BackupSink) -> Result<Result<(), String>, BaseBackupError> {
        if self.major < INCREMENTAL_MAJOR {
            return Ok(Err(format!(
                "PostgreSQL {} cannot, {INCREMENTAL_MAJOR} and newer can; everything was read, and what has not changed was \
                 not stored again",
                self.major
            )));
        }
        let note = sink.note().map_err(|source| BaseBackupError::Sink {
            entry: "backup_manifest".to_owned(),
            source,
        })?;
        let Some(note) = note else {
            return Ok(Err("the last backup's manifest is not known here".to_owned()));
        };
        if let Err(reason) = self.fits(&note) {
            return Ok(Err(reason));
        }
        let asked = self.session.run(async |connection| {
            Ok((
                commands::show(connection, "summarize_wal").await?,
                commands::show(connection, "block_size").await?,
            ))
        });
        let (summaries, page) = asked.map_err(|source| self.failed(source))?;
        if summaries != "on" {
            return Ok(Err(
                "the server does not summarize its WAL: set summarize_wal to on".to_owned()
            ));
        }
        if page != PAGE_BYTES.to_string() {
            return Ok(Err(format!("the server's pages have {page} bytes")));
        }
        let uploaded = self.session.run(async |connection| {
            connection.query("UPLOAD_MANIFEST").await?;
            let message = connection.message().await?;
            match message.tag {
                tag::COPY_IN => {}
                tag::ERROR => {
                    let error = ServerError::parse(&message.body);
                    // So that the session is usable after it.
                    connection.rest().await?;
                    return Err(error.into());
                }
                _ => return Err(WireError::protocol("an answer to UPLOAD_MANIFEST")),
            }
            for piece in note.chunks(UPLOAD_BYTES) {
                connection.put_copy_data(piece);
                connection.flush().await?;
            }
            connection.put_copy_done();
            connection.flush().await?;
            connection.rest().await
        });
        match uploaded {
            Ok(_) => Ok(Ok(())),
            Err(WireError::Server { source }) => {
                Ok(Err(format!("the server refused the last backup's manifest: {source}")))
            }
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Whether a manifest is of this cluster, on the timeline it is on.
    fn fits(&self, note: &[u8]) -> Result<(), String> {
        let last =
            ServerManifest::parse(note).map_err(|error| format!("the last backup's manifest is unusable: {error}"))?;
        match last.system() {
            Some(system) if system == self.identity.system => {}
            Some(system) => {
                return Err(format!(
                    "the last backup is of the cluster {system}, this is {}",
                    self.identity.system
                ));
            }
            None => return Err("the last backup is of an older major version".to_owned()),
        }
        match last.end() {
            Some((timeline, _)) if timeline == self.identity.timeline => Ok(()),
            Some((timeline, _)) => Err(format!(
                "the last backup is of timeline {timeline}, the server is on {}",
                self.identity.timeline
            )),
            None => Err("the last backup's manifest names no WAL".to_owned()),
        }
    }

    /// Sends the command and reads up to the first file; or what the server has against an incremental one.
    fn begin(&mut self, target: &ClusterTarget, incremental: bool) -> Result<Result<Begun, String>, BaseBackupError> {
        let mut options = vec![
            format!("LABEL '{LABEL}'"),
            "PROGRESS".to_owned(),
            "CHECKPOINT 'fast'".to_owned(),
            "WAIT false".to_owned(),
            "MANIFEST 'yes'".to_owned(),
            "MANIFEST_CHECKSUMS 'CRC32C'".to_owned(),
            "VERIFY_CHECKSUMS true".to_owned(),
        ];
        options.extend(target.rate_kib().map(|kib| format!("MAX_RATE {kib}")));
        options.extend(incremental.then(|| "INCREMENTAL".to_owned()));
        let command = format!("BASE_BACKUP ({})", options.join(", "));
        self.session
            .run(async |connection| connection.query(&command).await)
            .map_err(|source| self.failed(source))?;
        let mut results: Vec<Vec<Row>> = vec![Vec::new()];
        loop {
            let message = self.session.message().map_err(|source| self.failed(source))?;
            match message.tag {
                tag::DATA_ROW => {
                    let row = wire::row(message.body).map_err(|source| self.failed(source))?;
                    if let Some(last) = results.last_mut() {
                        last.push(row);
                    }
                }
                tag::COMMAND_COMPLETE => results.push(Vec::new()),
                tag::COPY_OUT => break,
                tag::ERROR => {
                    let error = ServerError::parse(&message.body);
                    if incremental && !error.is_fatal() {
                        return Ok(Err(format!("the server refused: {error}")));
                    }
                    return Err(self.failed(error.into()));
                }
                _ => {}
            }
        }
        let begun = || {
            let mut results = results.iter();
            let start = results.next()?.first()?;
            let mut begun = Begun {
                start: text(start, 0)?.parse().ok()?,
                tablespaces: Vec::new(),
                total_bytes: None,
            };
            for row in results.next()? {
                if let Some(kib) = text(row, 2).and_then(|kib| kib.parse::<u64>().ok()) {
                    *begun.total_bytes.get_or_insert(0) += kib * 1024;
                }
                if let Some(oid) = text(row, 0) {
                    begun.tablespaces.push(Tablespace {
                        oid: oid.parse().ok()?,
                        location: text(row, 1)?.to_owned(),
                    });
                }
            }
            Some(begun)
        };
        begun()
            .map(Ok)
            .ok_or_else(|| self.failed(WireError::protocol("an answer to BASE_BACKUP")))
    }

    /// Copies the files into the sink. The result of the command is still to be read.
    fn copy(
        &mut self,
        begun: &Begun,
        sink: &mut dyn BackupSink,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Copied, BaseBackupError> {
        let mut tree = TreeWriter::create(sink, &begun.tablespaces, self.mode)?;
        let mut done = Progress {
            done_bytes: 0,
            total_bytes: begun.total_bytes,
        };
        let (sender, messages) = sync_channel(MESSAGES_AHEAD);
        // Dropped together with the messages' taker, which wakes a reader to whom a silent server sends nothing.
        let (taker, taker_gone) = oneshot::channel();
        let session = &mut self.session;
        let manifest = std::thread::scope(|scope| {
            // So that the server goes on sending while what came is looked at.
            let reader = std::thread::Builder::new().name("base-read".to_owned());
            let reader = reader.spawn_scoped(scope, move || read_ahead(session, &sender, taker_gone));
            reader.map_err(|source| Failed::Wire(WireError::Io { source }))?;
            take_copy(messages, taker, &mut tree, &mut done, progress)
        });
        let manifest = manifest.map_err(|failed| match failed {
            Failed::Wire(source) => self.failed(source),
            Failed::Server(error) => self.refused(error.into()),
            Failed::Backup(error) => error,
        })?;
        progress(done);
        let manifest = manifest.ok_or(BaseBackupError::damaged(DamageError::Manifest))?;
        // Damage that the server found itself is told after the last file, and explains more than what follows from it.
        let stop = self.end()?;
        Ok(Copied {
            read_bytes: done.done_bytes,
            tree: tree.finish(&manifest)?,
            stop,
        })
    }

    /// Where the backup ended: the last result of the command.
    fn end(&mut self) -> Result<(Lsn, u32), BaseBackupError> {
        let rest = self.session.run(async |connection| connection.rest().await);
        let rows = rest.map_err(|source| self.refused(source))?;
        let row = rows.first();
        let end = || Some((text(row?, 0)?.parse().ok()?, text(row?, 1)?.parse().ok()?));
        end().ok_or_else(|| self.failed(WireError::protocol("the end of a base backup")))
    }

    fn refused(&self, source: WireError) -> BaseBackupError {
        let is_damage = source
            .server()
            .is_some_and(|error| error.code() == DATA_CORRUPTED || error.message().contains("checksum verification"));
        if !is_damage {
            return self.failed(source);
        }
        let said: Vec<&str> = self
            .session
            .connection
            .notices()
            .filter(|notice| notice.contains("checksum"))
            .collect();
        BaseBackupError::Checksums {
            server: self.endpoint.to_string(),
            said: if said.is_empty() {
                source.to_string()
            } else {
                said.join("; ")
            },
        }
    }

    fn finish(mut self, begun: Begun, copied: Copied, mut notes: Vec<String>) -> Result<BaseBackup, BaseBackupError> {
        let (stop_lsn, timeline) = copied.stop;
        notes.extend(
            self.session
                .connection
                .notices()
                .map(|notice| format!("the server warned: {notice}")),
        );
        let clock = self
            .session
            .run(async |connection| streaming::server_clock(connection).await);
        let stopped_at = clock.map_err(|source| self.failed(source))?;
        let facts = SourceFacts {
            server_version: Some(self.version),
            files: Some(copied.tree.files),
            directories: Some(copied.tree.directories),
            ..SourceFacts::default()
        };
        let cluster = ClusterFacts {
            system_identifier: self.identity.system,
            timeline,
            start_lsn: begun.start,
            stop_lsn,
            stopped_at,
            segment_bytes: self.segment_bytes,
            incremental_from: copied.tree.incremental_from,
            tablespaces: begun.tablespaces,
        };
        Ok(BaseBackup {
            facts: SourceFacts {
                cluster: Some(cluster.clone()),
                ..facts
            },
            cluster,
            notes,
            read_bytes: copied.read_bytes,
            overlaid: copied.tree.overlaid,
        })
    }
}

/// Why a copy ended early.
enum Failed {
    Wire(WireError),
    Server(ServerError),
    Backup(BaseBackupError),
}

impl From<BaseBackupError> for Failed {
    fn from(error: BaseBackupError) -> Self {
        Self::Backup(error)
    }
}

/// Has its receiver told, when it is dropped, that nobody takes messages any more.
type Taker = oneshot::Sender<Infallible>;

/// Reads the messages of a copy up to its end, or until nobody takes them any more.
fn read_ahead(
    session: &mut Session,
    messages: &SyncSender<Result<Message, WireError>>,
    mut taker_gone: oneshot::Receiver<Infallible>,
) {
    loop {
        let Some(message) = session.message_unless(&mut taker_gone) else {
            return;
        };
        let goes_on = message.as_ref().is_ok_and(|message| message.tag == tag::COPY_DATA);
        if messages.send(message).is_err() || !goes_on {
            return;
        }
    }
}

/// Takes archives apart as they come, and gives back the server's manifest. The messages are its own: whoever sends them
/// is to end when this does, in whatever way.
fn take_copy(
    messages: Receiver<Result<Message, WireError>>,
    _taker: Taker,
    tree: &mut TreeWriter<'_>,
    done: &mut Progress,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<Vec<u8>>, Failed> {
    let mut manifest: Option<Vec<u8>> = None;
    loop {
        // Whoever reads sends the end, or why there is none.
        let message = messages
            .recv()
            .unwrap_or_else(|_| Err(WireError::protocol("the end of a base backup")));
        let message = message.map_err(Failed::Wire)?;
        let mut body = message.body;
        match message.tag {
            tag::COPY_DATA => {}
            tag::COPY_DONE => return Ok(manifest),
            tag::ERROR => return Err(Failed::Server(ServerError::parse(&body))),
            _ => return Err(Failed::Wire(WireError::protocol("a message in a base backup"))),
        }
        match body.try_get_u8().unwrap_or_default() {
            b'n' => {
                let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
                tree.begin_archive(&String::from_utf8_lossy(name))?;
            }
            b'm' => manifest = Some(Vec::new()),
            b'd' => match &mut manifest {
                Some(manifest) if manifest.len() + body.len() > MANIFEST_BYTES_MAX => {
                    return Err(BaseBackupError::damaged(DamageError::Manifest).into());
                }
                Some(manifest) => manifest.extend_from_slice(&body),
                None => {
                    done.done_bytes += body.len() as u64;
                    tree.write(&body)?;
                }
            },
            b'p' => progress(*done),
            _ => return Err(Failed::Wire(WireError::protocol("a message in a base backup"))),
        }
    }
}
