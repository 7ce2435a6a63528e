//! What a backup does not hold although it was there: a restore neither removes it nor puts a part of it in its place.

use std::collections::HashMap;

use rustix::fs::Statx;
use strongroom_proto::receipt::{LeftOut, Missing, SourceFacts};

use super::exclude::Excluded;
use super::facts::{is_directory, is_regular};

/// What a backup lacks, as its receipt tells.
#[derive(Debug, Clone, Default)]
pub struct Lacks {
    missing: HashMap<String, Missing>,
    /// Whether more is missing than is named.
    has_unnamed: bool,
    /// How many things were left out because the target says so, and by what rules.
    excluded: u64,
    left_out: Option<LeftOut>,
}

/// Why it cannot be told what is not in a backup only because it was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// The receipt names only some of what is missing.
    #[error("more is missing from this backup than its receipt names")]
    Unnamed,
    /// The receipt does not say by what rules things were left out.
    #[error("things were left out of this backup, and its receipt does not say by what rules")]
    Rules,
}

impl Lacks {
    /// Nothing.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// What the receipt of a tree says, in these parts of it.
    pub fn of(missing: &[Missing], source: &SourceFacts) -> Self {
        let mut lacks = Self {
            excluded: source.excluded.unwrap_or(0),
            left_out: source.left_out.clone(),
            ..Self::default()
        };
        for missing in missing {
            lacks.has_unnamed |= missing.name == super::missing::MORE;
            // Something may be missing of one file for several reasons.
            let known = lacks.missing.get(&missing.name);
            if known.is_none_or(|known| !known.torn) {
                lacks.missing.insert(missing.name.clone(), missing.clone());
            }
        }
        lacks
    }

    /// What is missing, by its path as it can be shown.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Missing> {
        self.missing.values()
    }

    /// Why the backup has only a part of a file's content, where it has.
    pub(super) fn torn(&self, path: &[u8]) -> Option<&str> {
        let missing = self.named(path)?;
        missing.torn.then_some(missing.reason.as_str())
    }

    fn named(&self, path: &[u8]) -> Option<&Missing> {
        if self.missing.is_empty() {
            return None;
        }
        // As it was written down: of names that look alike all are meant.
        self.missing.get(String::from_utf8_lossy(path).as_ref())
    }

    /// Whether all that is missing is named.
    pub(super) fn are_told(&self) -> Result<(), Untold> {
        if self.has_unnamed { Err(Untold::Unnamed) } else { Ok(()) }
    }

    /// Says what of a destination was never taken.
    pub(super) fn untaken(&self) -> Result<Untaken<'_>, Untold> {
        self.are_told()?;
        let nothing = LeftOut::default();
        let left_out = match &self.left_out {
            Some(left_out) => left_out,
            None if self.excluded > 0 => return Err(Untold::Rules),
            None => &nothing,
        };
        Ok(Untaken {
            lacks: self,
            // They could be read when the backup was made.
            excluded: Excluded::new(&left_out.patterns).map_err(|_| Untold::Rules)?,
            caches: left_out.caches,
            files_over_bytes: left_out.files_over_bytes,
        })
    }
}

/// Tells what was not taken from what was not there.
#[derive(Debug)]
pub(super) struct Untaken<'a> {
    lacks: &'a Lacks,
    excluded: Excluded,
    /// Whether the content of caches was left out.
    pub(super) caches: bool,
    files_over_bytes: Option<u64>,
}

impl Untaken<'_> {
    /// Whether a thing that the backup lacks may have been there.
    pub(super) fn contains(&self, path: &[u8], facts: &Statx) -> bool {
        let is_too_large = is_regular(facts) && self.files_over_bytes.is_some_and(|limit| facts.stx_size > limit);
        is_too_large || self.lacks.named(path).is_some() || self.excluded.contains(path, is_directory(facts))
    }

    /// Whether the content of a directory may be missing.
    pub(super) fn is_unlisted(&self, path: &[u8]) -> bool {
        self.lacks.named(path).is_some()
    }
}
