//! What of a backup to restore: paths and patterns.

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use strongroom_proto::manifest::{Entry, EntryKind};

use super::walk::ROOT_PATH;

/// Entries of a tree: everything, or what is named by paths and patterns.
#[derive(Debug, Clone)]
pub struct Selection {
    paths: Vec<String>,
    patterns: Gitignore,
    is_everything: bool,
}

/// Why a selection makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectionError {
    /// A path that no entry can have.
    #[error("{path:?} is no path in a backup: name it as the backup lists it, relative to the root and without ..")]
    Path {
        /// The path.
        path: String,
    },
    /// A pattern that cannot be read.
    #[error("understand the pattern {pattern:?}: it is written as in .gitignore")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        #[source]
        source: PatternError,
    },
}

/// What is wrong with a pattern.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PatternError(#[from] ignore::Error);

impl Selection {
    /// Takes every entry.
    pub fn everything() -> Self {
        Self {
            paths: Vec::new(),
            patterns: Gitignore::empty(),
            is_everything: true,
        }
    }

    /// Takes what one of the `paths` names, with everything below it, and what the `patterns` match, which are written
    /// as in `.gitignore` and read as one such file: `*.conf`, `etc/**/x`, `etc/`, and `!` for what is not taken after
    /// all. A name that is not UTF-8 is compared as it is listed. Without any path or pattern, takes everything.
    pub fn new(paths: &[String], patterns: &[String]) -> Result<Self, SelectionError> {
        if paths.is_empty() && patterns.is_empty() {
            return Ok(Self::everything());
        }
        let paths = paths.iter().map(|path| plain(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            // The root names everything.
            is_everything: paths.iter().any(String::is_empty),
            paths,
            patterns: matcher(patterns).map_err(|(pattern, source)| SelectionError::Pattern { pattern, source })?,
        })
    }

    /// Whether the entry is taken for itself; the directories above what is taken come along without it.
    pub fn takes(&self, entry: &Entry) -> bool {
        let is_directory = entry.kind == EntryKind::Directory;
        if entry.path == ROOT_PATH && !self.is_everything {
            return false;
        }
        self.is_everything
            || self.paths.iter().any(|path| Self::is_at_or_below(&entry.path, path))
            || self
                .patterns
                .matched_path_or_any_parents(entry.path.trim_start_matches('/'), is_directory)
                .is_ignore()
    }

    /// Whether a path is that of a directory or of something in it.
    pub(super) fn is_at_or_below(path: &str, directory: &str) -> bool {
        path.strip_prefix(directory)
            .is_some_and(|rest| directory.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether every entry is taken.
    pub fn is_everything(&self) -> bool {
        self.is_everything
    }

    /// Whether patterns choose, so that what they would match in another tree is not known.
    pub(super) fn has_patterns(&self) -> bool {
        !self.is_everything && !self.patterns.is_empty()
    }

    /// The paths, relative to the root.
    pub(super) fn paths(&self) -> &[String] {
        &self.paths
    }
}

/// A matcher of patterns as in `.gitignore`, or the first pattern that cannot be read.
pub(super) fn matcher(patterns: &[String]) -> Result<Gitignore, (String, PatternError)> {
    let mut builder = GitignoreBuilder::new(".");
    builder.allow_unclosed_class(false);
    for pattern in patterns {
        builder
            .add_line(None, pattern)
            .map_err(|error| (pattern.clone(), error.into()))?;
    }
    builder
        .build()
        .map_err(|error| (patterns.join(", "), PatternError(error)))
}

/// A path without `./` before it and `/` after it; the root is the empty path.
fn plain(path: &str) -> Result<String, SelectionError> {
    let components: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let is_relative = !path.starts_with('/') && !path.is_empty();
    if !is_relative || components.contains(&"..") || path.contains('\0') {
        return Err(SelectionError::Path { path: path.to_owned() });
    }
    Ok(components.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken<'a>(selection: &Selection, paths: &[&'a str]) -> Vec<&'a str> {
        let entry = |path: &&str| match path.strip_suffix('/') {
            Some(path) => Entry::bare(path, EntryKind::Directory),
            None => Entry::bare(*path, EntryKind::File),
        };
        let is_taken = |path: &&&str| selection.takes(&entry(path));
        paths.iter().filter(is_taken).copied().collect()
    }

    fn selection(paths: &[&str], patterns: &[&str]) -> Result<Selection, SelectionError> {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        Selection::new(&owned(paths), &owned(patterns))
    }

    const TREE: [&str; 8] = [
        "etc/",
        "etc/app/",
        "etc/app/x.conf",
        "etc/hosts",
        "etc2/",
        "etc2/hosts",
        "x.conf",
        "etc-file",
    ];

    #[test]
    fn a_path_takes_the_entry_and_what_lies_below_it_and_no_more() {
        let etc = selection(&["./etc/"], &[]).unwrap();
        assert_eq!(taken(&etc, &TREE), ["etc/", "etc/app/", "etc/app/x.conf", "etc/hosts"]);
        assert_eq!(taken(&selection(&["etc/hosts"], &[]).unwrap(), &TREE), ["etc/hosts"]);
        assert_eq!(taken(&selection(&["."], &[]).unwrap(), &TREE), TREE);
        assert_eq!(taken(&selection(&[], &[]).unwrap(), &TREE), TREE);
    }

    #[test]
    fn patterns_are_read_as_in_gitignore() {
        let patterns = |patterns: &[&str]| selection(&[], patterns).unwrap();
        assert_eq!(taken(&patterns(&["*.conf"]), &TREE), ["etc/app/x.conf", "x.conf"]);
        assert_eq!(taken(&patterns(&["/*.conf"]), &TREE), ["x.conf"]);
        assert_eq!(taken(&patterns(&["etc/**/x.conf"]), &TREE), ["etc/app/x.conf"]);
        assert_eq!(taken(&patterns(&["app/"]), &TREE), ["etc/app/", "etc/app/x.conf"]);
        assert_eq!(
            taken(&patterns(&["etc/", "!hosts"]), &TREE),
            ["etc/", "etc/app/", "etc/app/x.conf"]
        );
        let both = selection(&["etc2"], &["x.conf"]).unwrap();
        assert_eq!(taken(&both, &TREE), ["etc/app/x.conf", "etc2/", "etc2/hosts", "x.conf"]);
    }

    #[test]
    fn what_no_entry_can_match_is_refused() {
        for path in ["/etc", "../etc", "etc/../..", "", "a\0b"] {
            assert!(
                matches!(selection(&[path], &[]), Err(SelectionError::Path { .. })),
                "{path:?}"
            );
        }
        let error = selection(&[], &["fine", "[z-a]"]).unwrap_err();
        assert!(error.to_string().contains("[z-a]"), "{error}");
    }
}
