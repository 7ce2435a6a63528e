//! Restores of dumps into databases, and, on trial, what they would change there.

use strongroom_connectors::postgres::{self, DrillConfig, PostgresTarget, RestoreError, RestoreOptions};
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::restore::RestoreChanges;
use strongroom_runtime::entry::one_line;

use crate::params::Params;
use crate::{RestoreFailed, Restored};

pub(crate) fn restore(
    source: &dyn EntrySource,
    destination: &str,
    params: &Params,
    drill: &DrillConfig,
) -> Result<Restored, RestoreFailed> {
    let url = destination.parse().map_err(|error| RestoreFailed {
        message: format!("the destination is not a URL: {error}"),
        retryable: false,
    })?;
    let mut target = PostgresTarget::new(url);
    target.bin_dirs = drill.bin_dirs.clone();
    let options = RestoreOptions {
        allow_non_empty: params.overwrite_reason.is_some(),
        globals: true,
    };
    if params.dry_run {
        return compare(source, &target, &options, params);
    }
    let report = postgres::restore(source, &target, &options).map_err(|error| RestoreFailed {
        message: one_line(&error),
        retryable: error.is_retryable(),
    })?;
    Ok(Restored {
        bytes: report.restored_bytes,
        checks: report.checks,
        notes: report.notes.join("; "),
        changes: None,
        skipped: Vec::new(),
    })
}

fn compare(
    source: &dyn EntrySource,
    target: &PostgresTarget,
    options: &RestoreOptions,
    params: &Params,
) -> Result<Restored, RestoreFailed> {
    let database = postgres::compare(source, target, options).map_err(|error| RestoreFailed {
        message: one_line(&error),
        // Somebody waits for the answer, and that the destination cannot be reached is one.
        retryable: error.is_retryable() && matches!(error, RestoreError::Read { .. }),
    })?;
    Ok(Restored::on_trial(RestoreChanges {
        destination: params.destination.clone(),
        database: Some(database),
        ..RestoreChanges::default()
    }))
}
