//! The targets as they are declared now: the book follows the configuration file and the targets folder.
//!
//! A version that cannot be read never replaces one that could: the book keeps the last good version and says why.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use strongroom_proto::TargetName;

use crate::config::{ConfigError, Loaded, TargetConfig, read_targets, target_files};

/// How long a version is trusted without a look at the files: for a list of all targets, and for one of them, which
/// is about to be used.
const LIST_INTERVAL: Duration = Duration::from_secs(1);
const USE_INTERVAL: Duration = Duration::from_millis(100);

/// All declared targets. Cheap to clone; every clone sees the same version.
#[derive(Clone, Debug)]
pub struct TargetBook {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Option<PathBuf>,
    folder: Option<PathBuf>,
    fixed: BTreeMap<TargetName, TargetConfig>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    checked_at: Instant,
    seen: Vec<Fingerprint>,
    targets: Arc<BTreeMap<TargetName, TargetConfig>>,
}

/// What changes when a file is written or replaced.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    path: PathBuf,
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl TargetBook {
    /// Reads what `loaded` names.
    ///
    /// # Errors
    /// A target that cannot be read or cannot work.
    pub fn new(loaded: &Loaded) -> Result<Self, ConfigError> {
        let (file, folder) = (loaded.file.clone(), loaded.config.targets_dir.clone());
        let seen = fingerprints(file.as_deref(), folder.as_deref());
        // Targets that a program put into the configuration have no file to be read again from.
        let fixed = if file.is_none() {
            loaded.config.targets.clone()
        } else {
            BTreeMap::new()
        };
        let mut targets = fixed.clone();
        targets.extend(read_targets(file.as_deref(), folder.as_deref())?);
        let state = State {
            checked_at: Instant::now(),
            seen,
            targets: Arc::new(targets),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                file,
                folder,
                fixed,
                state: Mutex::new(state),
            }),
        })
    }

    /// One target. A name that is not known is looked for in the files before the answer is no: another process may
    /// have read a new target already and have asked for work on it.
    pub fn get(&self, name: &TargetName) -> Option<TargetConfig> {
        if let Some(target) = self.current(USE_INTERVAL).get(name) {
            return Some(target.clone());
        }
        self.refresh();
        self.lock().targets.get(name).cloned()
    }

    /// All targets, by name.
    pub fn all(&self) -> Vec<(TargetName, TargetConfig)> {
        let current = self.current(LIST_INTERVAL);
        current
            .iter()
            .map(|(name, target)| (name.clone(), target.clone()))
            .collect()
    }

    /// Looks at the files now, however short the time since the last look.
    pub fn refresh(&self) {
        self.refresh_locked(&mut self.lock());
    }

    fn current(&self, trusted_for: Duration) -> Arc<BTreeMap<TargetName, TargetConfig>> {
        let mut state = self.lock();
        if state.checked_at.elapsed() >= trusted_for {
            self.refresh_locked(&mut state);
        }
        Arc::clone(&state.targets)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves a half-made state behind.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh_locked(&self, state: &mut State) {
        state.checked_at = Instant::now();
        let (file, folder) = (self.shared.file.as_deref(), self.shared.folder.as_deref());
        let seen = fingerprints(file, folder);
        if seen == state.seen {
            return;
        }
        // Remembered whether good or bad, so that a bad version is reported once.
        state.seen = seen;
        match read_targets(file, folder) {
            Ok(read) => {
                let mut targets = self.shared.fixed.clone();
                targets.extend(read);
                tracing::info!(targets = targets.len(), "targets read again");
                state.targets = Arc::new(targets);
            }
            Err(error) => {
                tracing::warn!(
                    reason = %crate::entry::one_line(&error),
                    kept = state.targets.len(),
                    "targets changed and cannot be read; the last good version stays in use"
                );
            }
        }
    }
}

fn fingerprints(file: Option<&Path>, folder: Option<&Path>) -> Vec<Fingerprint> {
    let mut paths: Vec<PathBuf> = file.map(Path::to_owned).into_iter().collect();
    if let Some(folder) = folder {
        paths.extend(target_files(folder).unwrap_or_default());
    }
    paths.into_iter().map(fingerprint).collect()
}

fn fingerprint(path: PathBuf) -> Fingerprint {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(&path).ok();
    Fingerprint {
        modified: metadata.as_ref().and_then(|metadata| metadata.modified().ok()),
        bytes: metadata.as_ref().map_or(0, std::fs::Metadata::len),
        inode: metadata.as_ref().map_or(0, MetadataExt::ino),
        path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoadOptions;

    fn load(file: &Path) -> Loaded {
        Loaded::load(LoadOptions::default().with_file(Some(file.to_owned()))).unwrap()
    }

    fn names(book: &TargetBook) -> Vec<String> {
        book.all().into_iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn a_target_added_to_the_folder_or_the_file_appears() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("c.yaml"), dir.path().join("targets"));
        std::fs::write(
            &file,
            format!(
                "targets_dir: {}\ntargets: {{a: {{kind: files, path: /a}}}}\n",
                folder.display()
            ),
        )
        .unwrap();
        let book = TargetBook::new(&load(&file)).unwrap();
        assert_eq!(names(&book), ["a"]);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("x.yaml"), "name: b\nkind: postgres\nurl: postgres://h/b\n").unwrap();
        std::fs::write(folder.join(".hidden.yaml"), "name: c\n").unwrap();
        book.refresh();
        assert_eq!(names(&book), ["a", "b"]);
        assert_eq!(book.get(&"b".parse().unwrap()).unwrap().location(), "postgres://h/b");
        std::fs::remove_file(folder.join("x.yaml")).unwrap();
        book.clone().refresh();
        assert_eq!(names(&book), ["a"]);
    }

    #[test]
    fn a_change_appears_without_being_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "targets: {a: {kind: files, path: /a}}\n").unwrap();
        let book = TargetBook::new(&load(&file)).unwrap();
        std::fs::write(&file, "targets: {other: {kind: files, path: /a}}\n").unwrap();
        let bound = Instant::now() + Duration::from_secs(10);
        while names(&book) != ["other"] {
            assert!(Instant::now() < bound, "still {:?}", names(&book));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_target_that_another_process_has_read_already_is_found_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut loaded = Loaded::defaults();
        loaded.config.targets_dir = Some(dir.path().to_owned());
        let book = TargetBook::new(&loaded).unwrap();
        for name in ["a", "b", "c"] {
            assert!(book.get(&name.parse().unwrap()).is_none());
            std::fs::write(
                dir.path().join(format!("{name}.yaml")),
                format!("{{name: {name}, kind: files, path: /x}}"),
            )
            .unwrap();
            assert!(book.get(&name.parse().unwrap()).is_some());
        }
    }

    #[test]
    fn a_bad_version_keeps_the_last_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "targets: {a: {kind: files, path: /a}}\n").unwrap();
        let book = TargetBook::new(&load(&file)).unwrap();
        for bad in [
            "targets: {a: {kind: files}}",
            "targets: [",
            "targets: {b: {kind: postgres, ulr: x}}",
        ] {
            std::fs::write(&file, bad).unwrap();
            book.refresh();
            assert_eq!(names(&book), ["a"], "{bad}");
        }
        std::fs::remove_file(&file).unwrap();
        book.refresh();
        assert_eq!(names(&book), ["a"]);
        std::fs::write(&file, "targets: {b: {kind: files, path: /b}}").unwrap();
        book.refresh();
        assert_eq!(names(&book), ["b"]);
    }

    #[test]
    fn a_name_declared_twice_is_refused_with_both_places() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(dir.path().join("one.yaml"), "name: a\nkind: files\npath: /1\n").unwrap();
        std::fs::write(dir.path().join("two.yaml"), "name: a\nkind: files\npath: /2\n").unwrap();
        let mut loaded = Loaded::defaults();
        loaded.config.targets_dir = Some(dir.path().to_owned());
        let message = TargetBook::new(&loaded).unwrap_err().to_string();
        assert!(
            message.contains("one.yaml") && message.contains("two.yaml"),
            "{message}"
        );
        assert!(!file.exists());
    }
}
