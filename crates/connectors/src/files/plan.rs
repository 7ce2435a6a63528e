//! What has to be known of a whole backup before a part of it is restored.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;

use strongroom_proto::manifest::{Entry, EntryKind, EntrySource};

use super::facts::{describe_path, describe_target};
use super::paths::{comes_before, invalid, link_source_of, path_of, split};
use super::restore::FilesRestoreError;
use super::select::Selection;

/// Which entries are restored, and under which path.
#[derive(Debug)]
pub(super) struct Plan {
    select: Selection,
    /// The directories above what is selected.
    parents: HashSet<Vec<u8>>,
    /// Files that are not selected but whose further names are: the first of these, under which they are restored.
    first_names: HashMap<Vec<u8>, Vec<u8>>,
}

impl Plan {
    /// Reads the list of entries where it has to be known, and checks its order where it is relied on.
    pub(super) fn make(source: &dyn EntrySource, select: Selection, in_order: bool) -> Result<Self, FilesRestoreError> {
        let mut plan = Self {
            select,
            parents: HashSet::new(),
            first_names: HashMap::new(),
        };
        if plan.select.is_everything() && !in_order {
            return Ok(plan);
        }
        let mut found = Found::default();
        let mut refused = None;
        source
            .for_each_entry(&mut |listed| {
                plan.add(listed.entry, in_order, &mut found)
                    .inspect_err(|_| refused = Some(listed.entry.path.clone()))
            })
            .map_err(|source| match refused {
                Some(path) => FilesRestoreError::Entry { path, source },
                None => FilesRestoreError::Read { source },
            })?;
        let missed = plan
            .select
            .paths()
            .iter()
            .zip(found.paths.into_iter().chain(std::iter::repeat(false)))
            .find(|(_, is_found)| !is_found);
        match missed {
            _ if plan.select.is_everything() => Ok(plan),
            Some((path, _)) => Err(FilesRestoreError::NotInBackup { path: path.clone() }),
            None if !found.anything => Err(FilesRestoreError::NothingSelected),
            None => Ok(plan),
        }
    }

    fn add(&mut self, entry: &Entry, in_order: bool, found: &mut Found) -> io::Result<()> {
        let path = path_of(entry)?;
        if in_order {
            if found.last.as_ref().is_some_and(|last| !comes_before(last, &path)) {
                return Err(invalid(
                    "the backup's entries are not in order, so what it lacks is not told: restore without deleting",
                ));
            }
            found.last = Some(path.clone());
        }
        if self.select.is_everything() || !self.select.takes(entry) {
            return Ok(());
        }
        found.anything = true;
        found.paths.resize(self.select.paths().len(), false);
        for (is_found, selected) in found.paths.iter_mut().zip(self.select.paths()) {
            *is_found |= Selection::is_at_or_below(&entry.path, selected);
        }
        let (mut parent, _) = split(&path);
        while !parent.is_empty() && self.parents.insert(parent.to_vec()) {
            (parent, _) = split(parent);
        }
        if entry.kind == EntryKind::Hardlink {
            let source = link_source_of(entry)?;
            if !self.takes_path(&source) {
                self.first_names.entry(source).or_insert(path);
            }
        }
        Ok(())
    }

    /// Whether something of this name is restored for itself.
    pub(super) fn takes_path(&self, path: &[u8]) -> bool {
        self.select
            .takes(&Entry::bare(String::from_utf8_lossy(path), EntryKind::File))
    }

    /// Whether an entry is restored.
    pub(super) fn wants(&self, entry: &Entry) -> io::Result<bool> {
        if self.select.takes(entry) {
            return Ok(true);
        }
        let path = path_of(entry)?;
        Ok(match entry.kind {
            EntryKind::Directory => self.parents.contains(&path),
            EntryKind::File => self.first_names.contains_key(&path),
            _ => false,
        })
    }

    /// The entry as it is restored; nothing for a further name under which the file itself is restored.
    pub(super) fn restored_as<'e>(&self, entry: &'e Entry) -> io::Result<Option<Cow<'e, Entry>>> {
        if self.first_names.is_empty() {
            return Ok(Some(Cow::Borrowed(entry)));
        }
        let mut renamed = match entry.kind {
            EntryKind::File => self.first_names.get(&path_of(entry)?),
            EntryKind::Hardlink => self.first_names.get(&link_source_of(entry)?),
            _ => None,
        }
        .map(|first| (entry.clone(), first));
        Ok(match &mut renamed {
            None => Some(Cow::Borrowed(entry)),
            Some((_, first)) if entry.kind == EntryKind::Hardlink && path_of(entry)? == **first => None,
            Some((renamed, first)) => {
                if entry.kind == EntryKind::File {
                    describe_path(renamed, first);
                } else {
                    describe_target(renamed, first);
                }
                Some(Cow::Owned(renamed.clone()))
            }
        })
    }

    /// Whether everything in a directory is restored, so that what else lies in it is not in the backup.
    pub(super) fn covers(&self, directory: &Entry) -> bool {
        self.select.takes(directory)
    }
}

#[derive(Debug, Default)]
struct Found {
    anything: bool,
    /// Which of the selected paths were found.
    paths: Vec<bool>,
    last: Option<Vec<u8>>,
}
