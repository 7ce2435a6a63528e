//! WAL for a server in recovery, brought by this process.
//!
//! The server's `restore_command` is a small script that asks for one file and waits. So neither the vault nor a key has
//! to be open to the user that the server runs as, the next segments are brought while one is replayed, and why a file
//! did not come is known here and need not be read out of a log.
//!
//! Invariant: the script ends with 0 for a file that is there and with 1 for one that is definitely absent. Whatever
//! else happens it ends by a signal, and the server stops instead of taking the end of what it got for the end of WAL.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use strongroom_proto::wal::WalSegment;

use super::error::RecoveryError;
use crate::postgres::run_as::RunAs;

/// The most segments that are brought ahead.
const AHEAD_MAX: u64 = 4;
/// The most bytes that are brought ahead.
const AHEAD_BYTES_MAX: u64 = 256 << 20;
/// A server that asks so often for a file, and got no other meanwhile, has replayed all there is.
const ASKED_IN_VAIN: u32 = 3;
const REQUESTS: &str = "requests";
const SCRIPT: &str = "fetch";
const STOP: &str = "stop";

/// Where the WAL for a recovery comes from.
pub trait WalFetch: Send + Sync {
    /// Makes a file at `to` of the segment or the history file of this name, whole; `false` where there definitely is
    /// none. Whatever is not known for certain is an error: a recovery takes the first absent segment for the end of
    /// WAL. Of a segment that ends early and is the last, the rest is zeros.
    fn fetch(&self, name: &str, to: &Path) -> io::Result<bool>;
}

/// What the server has asked for.
#[derive(Debug, Default)]
struct Asked {
    /// Files that it was given, and how often it asked for what since the last new one.
    given: HashMap<String, ()>,
    since: HashMap<String, u32>,
    last_absent: Option<String>,
    segments: u64,
    /// Whether no more is given.
    is_closed: bool,
    failed: Option<(String, io::Error)>,
}

/// Serves a server that recovers; ends when dropped.
pub(super) struct Feed {
    dir: PathBuf,
    asked: Arc<Mutex<Asked>>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Begins to serve in `dir`, which is nobody else's and which the server's user can pass.
    pub(super) fn start(
        fetch: Arc<dyn WalFetch>,
        dir: &Path,
        run_as: RunAs,
        segment_bytes: u32,
    ) -> Result<Self, RecoveryError> {
        let fail = |doing, path: &Path| RecoveryError::file(doing, path);
        let shared = dir.join("run");
        let private = dir.join("ahead");
        for folder in [&shared, &private] {
            std::fs::create_dir(folder).map_err(fail("create", folder))?;
            std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(fail("close", folder))?;
        }
        let script = dir.join(SCRIPT);
        std::fs::write(&script, script_text(&shared)).map_err(fail("write", &script))?;
        std::fs::set_permissions(&script, Permissions::from_mode(0o755)).map_err(fail("open", &script))?;
        let requests = shared.join(REQUESTS);
        rustix::fs::mknodat(CWD, &requests, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .map_err(|error| fail("create", &requests)(error.into()))?;
        run_as.own(&requests).map_err(fail("give away", &requests))?;
        run_as.own(&shared).map_err(fail("give away", &shared))?;
        // Open for writing too: it does not end when nobody writes.
        let reading = OpenOptions::new().read(true).write(true).open(&requests);
        let reading = reading.map_err(fail("open", &requests))?;
        let asked = Arc::new(Mutex::new(Asked::default()));
        let mut server = FeedThread {
            ahead: Ahead {
                fetch,
                folder: private,
                segment_bytes,
                under_way: HashMap::new(),
            },
            shared,
            run_as,
            asked: asked.clone(),
            answered: None,
        };
        let thread = std::thread::Builder::new()
            .name("wal-feed".to_owned())
            .spawn(move || server.serve(reading))
            .map_err(fail("serve", &requests))?;
        Ok(Self {
            dir: dir.to_owned(),
            asked,
            thread: Some(thread),
        })
    }

    /// The `restore_command` that asks this feed.
    pub(super) fn restore_command(&self) -> String {
        // A percent sign in the path would be taken for a placeholder; the folder's name is ours and has none.
        format!("exec /bin/sh '{}' '%f' '%p'", self.dir.join(SCRIPT).display())
    }

    /// Whether the server has replayed everything there is: it asks again and again and gets nothing new.
    pub(super) fn is_exhausted(&self) -> bool {
        self.asked().since.values().any(|times| *times >= ASKED_IN_VAIN)
    }

    /// The file that it asked for last and that is not there.
    pub(super) fn last_absent(&self) -> Option<String> {
        self.asked().last_absent.clone()
    }

    /// Segments brought so far.
    pub(super) fn segments(&self) -> u64 {
        self.asked().segments
    }

    /// Why a file did not come; once.
    pub(super) fn take_failure(&self) -> Option<RecoveryError> {
        let (name, source) = self.asked().failed.take()?;
        Some(RecoveryError::Wal { name, source })
    }

    /// From now on no segment is there but what the server has already.
    pub(super) fn close(&self) {
        let mut asked = self.asked();
        asked.since.clear();
        asked.is_closed = true;
    }

    /// Forgets what a server that is gone has asked for.
    pub(super) fn begin_again(&self) {
        *self.asked() = Asked::default();
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let requests = self.dir.join("run").join(REQUESTS);
        // It is read as long as the thread lives, so this does not wait.
        let told = OpenOptions::new()
            .read(true)
            .write(true)
            .open(requests)
            .and_then(|mut file| writeln!(file, "{STOP}"));
        if told.is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The `restore_command`'s script. It is the server's user that runs it.
fn script_text(shared: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         # Asks the recovery that started this server for a file of WAL: NAME PATH.\n\
         die() {{ echo \"strongroom: $1\" >&2; kill -TERM $$; exit 255; }}\n\
         cd_from=$PWD\n\
         there='{}'\n\
         mkfifo -m 600 \"$there/answer.$$\" || die 'cannot ask for WAL'\n\
         echo \"$$ $1\" > \"$there/{REQUESTS}\" || die 'cannot ask for WAL'\n\
         read -r answer < \"$there/answer.$$\" || answer=broken\n\
         rm -f \"$there/answer.$$\"\n\
         case \"$answer\" in\n\
         found) mv -f \"$there/file.$$\" \"$cd_from/$2\" || die \"cannot write $2\" ;;\n\
         absent) exit 1 ;;\n\
         *) die \"$1 could not be brought\" ;;\n\
         esac\n",
        shared.display()
    )
}

struct FeedThread {
    ahead: Ahead,
    shared: PathBuf,
    run_as: RunAs,
    asked: Arc<Mutex<Asked>>,
    /// The last answer's pipe: what is in it lasts until it has been read, or the next one asks.
    answered: Option<File>,
}

impl FeedThread {
    fn serve(&mut self, requests: File) {
        for line in BufReader::new(requests).lines() {
            let Ok(line) = line else { return };
            if line == STOP {
                return;
            }
            let Some((id, name)) = line.split_once(' ') else {
                continue;
            };
            let is_id = !id.is_empty() && id.len() <= 10 && id.bytes().all(|byte| byte.is_ascii_digit());
            if !is_id {
                continue;
            }
            let found = self.bring(id, name);
            let word = match &found {
                Ok(true) => "found",
                Ok(false) => "absent",
                Err(_) => "failed",
            };
            self.note(name, found);
            self.answered = None;
            match self.answer(id, word) {
                Ok(pipe) => self.answered = Some(pipe),
                // Whoever asked is gone.
                Err(error) => tracing::info!(name, %error, "nobody waits for the answer about WAL"),
            }
        }
    }

    /// Brings a file to where the one who asked takes it.
    fn bring(&mut self, id: &str, name: &str) -> io::Result<bool> {
        if name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not the name of a file of WAL",
            ));
        }
        let is_closed = self.asked.lock().unwrap_or_else(PoisonError::into_inner).is_closed;
        if is_closed && !name.contains('.') {
            return Ok(false);
        }
        let Some(path) = self.ahead.bring(name)? else {
            return Ok(false);
        };
        self.run_as.own(&path)?;
        std::fs::rename(&path, self.shared.join(format!("file.{id}")))?;
        Ok(true)
    }

    fn note(&self, name: &str, found: io::Result<bool>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(true) => {
                if asked.given.insert(name.to_owned(), ()).is_none() {
                    asked.since.clear();
                    asked.segments += u64::from(!name.contains('.'));
                }
                *asked.since.entry(name.to_owned()).or_default() += 1;
            }
            Ok(false) => {
                // History files are asked for in vain all the time.
                if !name.contains('.') {
                    *asked.since.entry(name.to_owned()).or_default() += 1;
                    asked.last_absent = Some(name.to_owned());
                }
            }
            Err(error) => asked.failed = Some((name.to_owned(), error)),
        }
    }

    fn answer(&self, id: &str, word: &str) -> io::Result<File> {
        let path = self.shared.join(format!("answer.{id}"));
        // Neither waited for nor followed: the folder is the server's.
        let mut pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(&path)?;
        if !pipe.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a pipe"));
        }
        writeln!(pipe, "{word}")?;
        Ok(pipe)
    }
}

/// Brings the segments after the one that was asked for.
struct Ahead {
    fetch: Arc<dyn WalFetch>,
    folder: PathBuf,
    segment_bytes: u32,
    under_way: HashMap<String, Receiver<bool>>,
}

impl Ahead {
    fn bring(&mut self, name: &str) -> io::Result<Option<PathBuf>> {
        let path = self.folder.join(name);
        let segment = WalSegment::from_file_name(name, self.segment_bytes);
        // What was brought ahead is used once. Whatever went wrong then is tried again now, and what was absent then may
        // be there now.
        let was_brought = self
            .under_way
            .remove(name)
            .is_some_and(|coming| coming.recv().unwrap_or(false));
        let is_there = was_brought || self.fetch.fetch(name, &path)?;
        if !is_there {
            return Ok(None);
        }
        if let Some(segment) = segment {
            let bytes = std::fs::metadata(&path)?.len();
            if bytes != u64::from(self.segment_bytes) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the segment is {bytes} bytes long, not {}", self.segment_bytes),
                ));
            }
            self.go_ahead(segment);
        }
        Ok(Some(path))
    }

    fn go_ahead(&mut self, from: WalSegment) {
        let most = (AHEAD_BYTES_MAX / u64::from(self.segment_bytes)).clamp(1, AHEAD_MAX);
        self.under_way.retain(|name, coming| {
            let number = WalSegment::from_file_name(name, self.segment_bytes).map(|segment| segment.number);
            let is_wanted = number.is_some_and(|number| number > from.number && number <= from.number + most);
            if !is_wanted && coming.recv().is_ok() {
                let _ = std::fs::remove_file(self.folder.join(name));
            }
            is_wanted
        });
        for step in 1..=most {
            let next = WalSegment {
                number: from.number + step,
                ..from
            };
            let name = next.file_name(self.segment_bytes);
            if self.under_way.contains_key(&name) {
                continue;
            }
            let (done, coming) = channel();
            let (fetch, path) = (self.fetch.clone(), self.folder.join(&name));
            let spawned = std::thread::Builder::new().name("wal-ahead".to_owned()).spawn({
                let name = name.clone();
                move || {
                    let _ = done.send(matches!(fetch.fetch(&name, &path), Ok(true)));
                }
            });
            if spawned.is_ok() {
                self.under_way.insert(name, coming);
            }
        }
    }
}
