//! Segments brought ahead: a folder beside the recovering server, filled by one process and emptied by the fetches.
//!
//! A file here is a convenience. Its name holds its digest, so whatever is left by a process that was killed is noticed;
//! losing all of it costs time only. Only segments that the vault has to their end come here, for those never change.
//!
//! ```text
//! <spool_dir>/<digest of the settings>/
//!     lock                held by the process that fills the folder
//!     at                  the name of the segment that was asked for last
//!     <segment>.part      being brought
//!     <segment>.<blake3>  there
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use strongroom_connectors::postgres::wal::FetchSettings;
use strongroom_proto::wal::WalSegment;

use super::place;

/// How long a fetch waits for a segment that is being brought.
const WAIT: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

const LOCK: &str = "lock";
const AT: &str = "at";
const PART: &str = "part";

/// The folder of one cluster in one vault.
pub(super) struct Spool {
    folder: PathBuf,
    settings: FetchSettings,
}

impl Spool {
    /// Opens the folder, made where it is missing; `None` where there is to be none, or cannot be.
    pub(super) fn open(settings: &FetchSettings) -> Option<Self> {
        let dir = settings.spool_dir.as_ref().filter(|_| settings.prefetch_segments > 0)?;
        let mut settings = settings.clone();
        // Who fills it runs elsewhere.
        settings.spool_dir = Some(std::path::absolute(dir).ok()?);
        settings.identity_file = std::path::absolute(&settings.identity_file).ok()?;
        if let Some(path) = &settings.allowed_signers_file {
            settings.allowed_signers_file = Some(std::path::absolute(path).ok()?);
        }
        if !settings.store.contains("://") {
            settings.store = std::path::absolute(&settings.store).ok()?.to_str()?.to_owned();
        }
        // WAL of another cluster or vault has the same names.
        let text = format!(
            "{}\n{}\n{}",
            settings.store, settings.system_identifier, settings.segment_bytes
        );
        let name = blake3::hash(text.as_bytes()).to_hex();
        let folder = settings.spool_dir.as_ref()?.join(name.get(..16)?);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).ok()?;
        Some(Self { folder, settings })
    }

    pub(super) const fn settings(&self) -> &FetchSettings {
        &self.settings
    }

    /// Tells who fills the folder how far the recovery has come.
    pub(super) fn asked_for(&self, segment: WalSegment) {
        let path = self.folder.join(AT);
        let passing = place::beside(&path, &format!(".{}", std::process::id()));
        let name = self.name(segment);
        let _ = place::write(&passing, name.as_bytes()).and_then(|_| fs::rename(&passing, &path));
    }

    /// How far the recovery has come.
    pub(super) fn at(&self) -> Option<WalSegment> {
        let name = fs::read_to_string(self.folder.join(AT)).ok()?;
        WalSegment::from_file_name(&name, self.settings.segment_bytes)
    }

    /// Takes a segment out of the folder; waits a little where it is being brought.
    pub(super) async fn take(&self, segment: WalSegment) -> Option<Vec<u8>> {
        let give_up = Instant::now() + WAIT;
        loop {
            // Looked for before the file: it becomes the file.
            let is_coming = self.part(segment).exists();
            if let Some((path, digest)) = self.ready(segment) {
                let bytes = fs::read(&path).ok();
                let _ = fs::remove_file(&path);
                return bytes.filter(|bytes| {
                    bytes.len() == self.settings.segment_bytes as usize
                        && blake3::hash(bytes).to_hex().as_str() == digest
                });
            }
            if !is_coming || Instant::now() > give_up || self.lock().is_some() {
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether a segment is there.
    pub(super) fn has(&self, segment: WalSegment) -> bool {
        self.ready(segment).is_some()
    }

    /// Says that a segment is being brought.
    pub(super) fn begin(&self, segment: WalSegment) -> io::Result<()> {
        place::write(&self.part(segment), &[]).map(drop)
    }

    /// Puts a segment into the folder.
    pub(super) fn put(&self, segment: WalSegment, bytes: &[u8]) -> io::Result<()> {
        let part = self.part(segment);
        let digest = blake3::hash(bytes).to_hex();
        let put = place::write(&part, bytes)
            .and_then(|_| fs::rename(&part, self.folder.join(format!("{}.{digest}", self.name(segment)))));
        if put.is_err() {
            self.give_up(segment);
        }
        put
    }

    /// Says that a segment is no longer being brought.
    pub(super) fn give_up(&self, segment: WalSegment) {
        let _ = fs::remove_file(self.part(segment));
    }

    /// Removes what the recovery is past, and what is left of a process that was killed. For the holder of the lock.
    pub(super) fn clean(&self, keep: impl Fn(WalSegment) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((segment, _)) = name.split_once('.') else {
                continue;
            };
            match WalSegment::from_file_name(segment, self.settings.segment_bytes) {
                Some(segment) if keep(segment) => {}
                Some(_) => {
                    let _ = fs::remove_file(&path);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Makes sure that somebody fills the folder. Without success nothing is lost but time.
    pub(super) fn keep_filled(&self) {
        if let Some(lock) = self.lock() {
            drop(lock);
            let _ = self.start();
        }
    }

    /// The right to fill the folder, which ends with the process that holds it; `None` where another one has it.
    pub(super) fn lock(&self) -> Option<File> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.folder.join(LOCK))
            .ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(file)
    }

    /// Starts the process that fills it. It outlives this one, in a process group of its own, and ends by itself.
    fn start(&self) -> io::Result<()> {
        let settings = serde_json::to_vec(&self.settings)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["wal", "prefetch"])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        // By a pipe: they may hold a key, and the command line is for everybody.
        child
            .stdin
            .take()
            .map_or(Ok(()), |mut stdin| stdin.write_all(&settings))
    }

    fn name(&self, segment: WalSegment) -> String {
        segment.file_name(self.settings.segment_bytes)
    }

    fn part(&self, segment: WalSegment) -> PathBuf {
        self.folder.join(format!("{}.{PART}", self.name(segment)))
    }

    fn ready(&self, segment: WalSegment) -> Option<(PathBuf, String)> {
        let prefix = format!("{}.", self.name(segment));
        let entries = fs::read_dir(&self.folder).ok()?.flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let digest = name.strip_prefix(&prefix)?;
                (digest.len() == blake3::OUT_LEN * 2).then(|| (entry.path(), digest.to_owned()))
            })
            .next()
    }

    #[cfg(test)]
    pub(super) fn folder(&self) -> &std::path::Path {
        &self.folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_proto::wal::SystemIdentifier;

    const SEGMENT: WalSegment = WalSegment { timeline: 1, number: 7 };

    fn spool() -> (tempfile::TempDir, Spool) {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = FetchSettings::new("/vault", "/identity".into(), SystemIdentifier(7));
        settings.segment_bytes = 1 << 20;
        settings.spool_dir = Some(folder.path().join("spool"));
        let spool = Spool::open(&settings).unwrap();
        (folder, spool)
    }

    #[tokio::test]
    async fn what_is_put_is_taken_once_and_damage_is_not_taken() {
        let (_folder, spool) = spool();
        let bytes = vec![7; 1 << 20];
        assert_eq!(spool.take(SEGMENT).await, None);
        spool.begin(SEGMENT).unwrap();
        spool.put(SEGMENT, &bytes).unwrap();
        assert!(spool.has(SEGMENT));
        assert_eq!(spool.take(SEGMENT).await.as_ref(), Some(&bytes));
        assert_eq!(spool.take(SEGMENT).await, None);
        spool.put(SEGMENT, &bytes).unwrap();
        let (path, _) = spool.ready(SEGMENT).unwrap();
        let mut damaged = bytes.clone();
        damaged[99] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(spool.take(SEGMENT).await, None);
        spool.put(SEGMENT, &bytes).unwrap();
        std::fs::write(spool.ready(SEGMENT).unwrap().0, &bytes[..1000]).unwrap();
        assert_eq!(spool.take(SEGMENT).await, None);
    }

    #[tokio::test]
    async fn what_a_killed_process_was_bringing_is_not_waited_for() {
        let (_folder, spool) = spool();
        spool.begin(SEGMENT).unwrap();
        let before = Instant::now();
        assert_eq!(spool.take(SEGMENT).await, None);
        assert!(before.elapsed() < WAIT);
        // Whoever fills the folder next takes it away.
        spool.clean(|_| false).unwrap();
        assert!(!spool.part(SEGMENT).exists());
    }

    #[test]
    fn one_process_fills_the_folder_and_knows_how_far_the_recovery_is() {
        let (_folder, spool) = spool();
        assert_eq!(spool.at(), None);
        spool.asked_for(SEGMENT);
        assert_eq!(spool.at(), Some(SEGMENT));
        let lock = spool.lock().unwrap();
        assert!(spool.lock().is_none());
        drop(lock);
        assert!(spool.lock().is_some());
        let next = WalSegment { timeline: 1, number: 8 };
        spool.put(SEGMENT, &[1; 1 << 20]).unwrap();
        spool.put(next, &[2; 1 << 20]).unwrap();
        spool.clean(|segment| segment.number > 7).unwrap();
        assert!(!spool.has(SEGMENT) && spool.has(next));
        assert_eq!(spool.at(), Some(SEGMENT), "only segments are removed");
        let mode = std::fs::metadata(spool.folder()).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
    }

    #[test]
    fn two_clusters_do_not_share_a_folder() {
        let (folder, spool) = spool();
        let mut other = spool.settings().clone();
        other.system_identifier = SystemIdentifier(8);
        let other = Spool::open(&other).unwrap();
        assert_ne!(other.folder(), spool.folder());
        assert!(other.folder().starts_with(folder.path()));
    }
}
