//! Restores of file trees: what is selected of them, into a folder that may hold something already.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use strongroom_connectors::files::{self, Change, Existing, Lacks, RestoreOptions, SOCKET_NOT_MADE, Selection};
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::Missing;
use strongroom_proto::restore::{ChangeBytes, ChangeKind, PathChange, RestoreChanges};
use strongroom_runtime::entry::one_line;
use strongroom_worker::AttemptContext;

use crate::params::Params;
use crate::sizes::Sizes;
use crate::{RestoreFailed, Restored};

/// The receipt names so many things that were skipped.
const SKIPPED_NAMED: u64 = 1_000;

pub(crate) fn restore(
    source: &dyn EntrySource,
    lacks: &Lacks,
    destination: &str,
    params: &Params,
    context: &AttemptContext,
) -> Result<Restored, RestoreFailed> {
    let select = Selection::new(&params.selected.paths, &params.selected.include).map_err(|error| RestoreFailed {
        message: one_line(&error),
        retryable: false,
    })?;
    let existing = match (params.in_place, &params.overwrite_reason) {
        (true, _) => Existing::InPlace,
        (false, Some(_)) => Existing::Replace,
        (false, None) => Existing::Refuse,
    };
    let options = RestoreOptions {
        select,
        existing,
        delete: params.delete,
        dry_run: params.dry_run,
        backup_began: params.backup_began,
        lacks: lacks.clone(),
    };
    let mut changes = RestoreChanges {
        dry_run: params.dry_run,
        destination: destination.to_owned(),
        ..RestoreChanges::default()
    };
    let mut skipped = Skipped::default();
    let sizes = Sizes::new(source, Path::new(destination));
    let mut bytes = ChangeBytes::default();
    let source: &dyn EntrySource = if params.dry_run { &sizes } else { source };
    let restored = files::restore(source, Path::new(destination), options, &mut |change, path, reason| {
        context.progress.add_file();
        let mut change = path_change(change, path, reason);
        if params.dry_run {
            change.bytes = sizes.measure(change.change, path, &mut bytes);
        }
        if change.change == ChangeKind::Skip && reason != Some(SOCKET_NOT_MADE) {
            skipped.add(&change);
        }
        changes.add(change);
    })
    .map_err(|error| RestoreFailed {
        message: one_line(&error),
        retryable: error.is_retryable(),
    })?;
    if params.dry_run {
        bytes.unchanged = params.selected.is_everything().then(|| sizes.unchanged(&bytes));
        changes.unchanged = Some(restored.unchanged);
        changes.bytes = Some(bytes);
    }
    Ok(Restored {
        bytes: restored.bytes,
        checks: Vec::new(),
        notes: String::new(),
        changes: Some(changes),
        skipped: skipped.into_named(),
    })
}

/// What is to be named in the receipt.
#[derive(Default)]
struct Skipped {
    named: Vec<Missing>,
    more: u64,
}

impl Skipped {
    fn add(&mut self, change: &PathChange) {
        if self.named.len() as u64 == SKIPPED_NAMED {
            self.more += 1;
            return;
        }
        self.named.push(Missing {
            name: change.path.clone(),
            reason: change.reason.clone().unwrap_or_default(),
            torn: false,
        });
    }

    fn into_named(mut self) -> Vec<Missing> {
        if self.more > 0 {
            self.named.push(Missing {
                name: "…".to_owned(),
                reason: format!("and {} more", self.more),
                torn: false,
            });
        }
        self.named
    }
}

fn path_change(change: Change, path: &Path, reason: Option<&str>) -> PathChange {
    let change = match change {
        Change::Create => ChangeKind::Create,
        Change::Replace => ChangeKind::Replace,
        Change::Metadata => ChangeKind::Metadata,
        Change::Delete => ChangeKind::Delete,
        Change::Skip => ChangeKind::Skip,
    };
    let bytes = path.as_os_str().as_bytes();
    let is_text = path.to_str().is_some();
    PathChange {
        change,
        path: String::from_utf8_lossy(bytes).into_owned(),
        path_hex: (!is_text).then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        reason: reason.map(str::to_owned),
        bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_name_that_is_not_text_keeps_its_bytes() {
        let change = path_change(Change::Create, Path::new(OsStr::from_bytes(b"a/\xff\n")), None);
        assert_eq!(
            (change.path.as_str(), change.path_hex.as_deref()),
            ("a/\u{fffd}\n", Some("612fff0a"))
        );
        assert_eq!(path_change(Change::Delete, Path::new("ä"), None).path_hex, None);
    }

    #[test]
    fn what_is_skipped_is_named_up_to_a_limit_and_then_counted() {
        let mut skipped = Skipped::default();
        for _ in 0..SKIPPED_NAMED + 3 {
            skipped.add(&path_change(
                Change::Skip,
                Path::new("dev/null"),
                Some("no right to make a device"),
            ));
        }
        let named = skipped.into_named();
        assert_eq!(named.len(), 1_001);
        assert_eq!(named[0].reason, "no right to make a device");
        assert_eq!(named[1_000].reason, "and 3 more");
    }
}
