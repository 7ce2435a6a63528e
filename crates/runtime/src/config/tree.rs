//! How a file tree is taken: the options that `files` targets and the scenario template share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ignore::gitignore::GitignoreBuilder;
use serde::{Deserialize, Serialize};

use super::Origin;

/// The cache of a service of the system.
pub(super) const SYSTEM_CACHE_DIR: &str = "/var/cache/strongroom";

/// How long a hook may take where nothing is said.
const HOOK_TIMEOUT_SECONDS: u64 = 600;

/// What is run around a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HooksConfig {
    /// Run before anything is read; the backup fails where it does.
    pub before: Option<HookConfig>,
    /// Run after the last byte was read, and also where reading failed; not where `before` failed. The backup fails
    /// where it does.
    pub after: Option<HookConfig>,
}

impl HooksConfig {
    /// Whether nothing is run.
    pub const fn is_empty(&self) -> bool {
        self.before.is_none() && self.after.is_none()
    }
}

/// One command that is run around a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HookConfig {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout_seconds: u64,
}

impl Default for HookConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            timeout_seconds: HOOK_TIMEOUT_SECONDS,
        }
    }
}

/// What of the options cannot work, and what to do.
pub(super) fn find_fault(exclude: &[String], max_file_bytes: Option<u64>, hooks: &HooksConfig) -> Option<String> {
    for pattern in exclude {
        if let Err(error) = GitignoreBuilder::new("/").add_line(None, pattern) {
            return Some(format!(
                "the exclude pattern {pattern:?} cannot be read: {error}; it is written as in .gitignore"
            ));
        }
    }
    if max_file_bytes == Some(0) {
        return Some("max_file_bytes must be at least 1; leave it out for no limit".to_owned());
    }
    for (key, hook) in [("hooks.before", &hooks.before), ("hooks.after", &hooks.after)] {
        let Some(hook) = hook else { continue };
        if hook.command.first().is_none_or(String::is_empty) {
            return Some(format!(
                "{key}.command names no program: give the program and its arguments as a list"
            ));
        }
        if hook.command.iter().any(|word| word.contains('\0')) {
            return Some(format!("{key}.command holds a NUL character: remove it"));
        }
        if hook.timeout_seconds == 0 {
            return Some(format!("{key}.timeout_seconds must be at least 1"));
        }
    }
    None
}

/// Where the first of the keys below a section came from.
pub(super) fn origin_below(origins: &BTreeMap<String, Origin>, section: &str) -> String {
    let below = |key: &str| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    origins
        .iter()
        .find(|(key, _)| below(key))
        .map_or(&Origin::Default, |(_, origin)| origin)
        .to_string()
}

/// The cache where nothing was said: a user's own, or the system's.
pub(super) fn default_cache_dir(env: &BTreeMap<String, String>) -> PathBuf {
    let folder = |name: &str| env.get(name).map(Path::new).filter(|path| path.is_absolute());
    if let Some(cache) = folder("XDG_CACHE_HOME") {
        return cache.join("strongroom");
    }
    match folder("HOME") {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".cache/strongroom"),
        _ => PathBuf::from(SYSTEM_CACHE_DIR),
    }
}
