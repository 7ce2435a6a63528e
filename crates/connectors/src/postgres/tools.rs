//! The client tools of Postgres that are installed, and which of them fits a server.
//!
//! A tool older than the server may leave things out of a dump, so it is never used; the oldest that is new enough
//! writes what the most servers can read.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One folder of tools of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolSet {
    pub(crate) dir: PathBuf,
    pub(crate) major: u32,
    /// As the tool tells it, e.g. `15.20`.
    pub(crate) version: String,
}

impl ToolSet {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Every folder that holds `program`, in the order of the folders: those given, the distribution's, `PATH`.
pub(crate) fn installed(program: &str, dirs: &[PathBuf]) -> Vec<ToolSet> {
    let mut candidates: Vec<PathBuf> = dirs.to_vec();
    if let Ok(majors) = std::fs::read_dir("/usr/lib/postgresql") {
        candidates.extend(majors.flatten().map(|entry| entry.path().join("bin")));
    }
    candidates.extend(
        std::env::var_os("PATH")
            .iter()
            .flat_map(|path| std::env::split_paths(path)),
    );
    let mut found: Vec<ToolSet> = Vec::new();
    for dir in candidates {
        if !found.iter().any(|set| set.dir == dir)
            && let Some(version) = version_of(&dir.join(program))
            && let Some(major) = major_of(&version)
        {
            found.push(ToolSet { dir, major, version });
        }
    }
    found
}

/// The oldest of them of at least this major version; of two alike the one listed first.
pub(crate) fn oldest_of_at_least(sets: &[ToolSet], major: u32) -> Option<&ToolSet> {
    sets.iter().filter(|set| set.major >= major).min_by_key(|set| set.major)
}

/// The newest of them.
pub(crate) fn newest(sets: &[ToolSet]) -> Option<u32> {
    sets.iter().map(|set| set.major).max()
}

/// The major version in `15.20`, `18beta1` or `17.11 (Debian …)`.
pub(crate) fn major_of(version: &str) -> Option<u32> {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn version_of(program: &Path) -> Option<String> {
    let real = program.canonicalize().ok()?;
    // Debian's wrapper chooses a version by its own rules.
    if !real.is_file() || real.file_name()? == "pg_wrapper" {
        return None;
    }
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
    output.status.success().then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_tool_that_is_new_enough_is_chosen() {
        let set = |major: u32| ToolSet {
            dir: format!("/pg{major}").into(),
            major,
            version: format!("{major}.1"),
        };
        let sets = [set(18), set(15), set(17)];
        assert_eq!(oldest_of_at_least(&sets, 16), Some(&set(17)));
        assert_eq!(oldest_of_at_least(&sets, 15), Some(&set(15)));
        assert_eq!(oldest_of_at_least(&sets, 19), None);
        assert_eq!(newest(&sets), Some(18));
        assert_eq!(major_of("18beta1"), Some(18));
    }
}
