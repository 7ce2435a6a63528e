//! What a request for a restore said.

use std::path::Path;
use std::time::SystemTime;

use serde::Deserialize;
use strongroom_catalog::ClaimedJob;
use strongroom_proto::TargetKind;
use strongroom_proto::receipt::{BackupReceipt, SourceFacts};
use strongroom_proto::restore::Selected;
use strongroom_proto::wal::Recovery;
use strongroom_runtime::TargetConfig;
use strongroom_runtime::entry::one_line;

/// What the request said, beside the destination, which may hold a password and so comes apart.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Params {
    /// As it may be shown.
    pub(crate) destination: String,
    pub(crate) overwrite_reason: Option<String>,
    pub(crate) verify_before_restore: bool,
    #[serde(default)]
    pub(crate) selected: Selected,
    #[serde(default)]
    pub(crate) in_place: bool,
    #[serde(default)]
    pub(crate) delete: bool,
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// For a backup of a whole cluster; without it, to where that is consistent.
    #[serde(default)]
    pub(crate) recovery: Option<Recovery>,
    /// When the backup began, where it is restored to the very place it was taken from.
    #[serde(skip)]
    pub(crate) backup_began: Option<SystemTime>,
}

impl Params {
    /// Whether every byte of the backup is written.
    pub(crate) const fn writes_everything(&self) -> bool {
        self.selected.is_everything() && !self.in_place && !self.dry_run
    }

    /// When a backup began, if its tree lay at this destination then: only there do the times of files tell that they were
    /// not touched since.
    pub(crate) fn began_at(source: &SourceFacts, destination: &str) -> Option<SystemTime> {
        let is_its_place = source
            .path
            .as_ref()
            .is_some_and(|path| Path::new(path) == Path::new(destination));
        source.read_from.filter(|_| is_its_place).map(SystemTime::from)
    }

    /// Whether a destination that holds something is refused.
    pub(crate) const fn needs_empty_destination(&self) -> bool {
        self.overwrite_reason.is_none() && !self.in_place
    }

    /// Where to: what the request said; in place, where the configuration says that the target lies; of a database on
    /// trial, or a cluster, the target's own as the configuration has it, with its password. A scenario lies where the backup found it.
    /// Otherwise why that is not known.
    pub(crate) fn destination(
        &self,
        job: &ClaimedJob,
        backup: &BackupReceipt,
        target: Option<TargetConfig>,
    ) -> Result<String, String> {
        if let Some(said) = &job.secret {
            return Ok(said.clone());
        }
        if job.target_kind == TargetKind::Postgres && self.dry_run {
            return match backup.source.cluster {
                Some(_) => own_url(target)?.ok_or_else(|| {
                    format!(
                        "how target {0} is reached is not known here, so what its tables hold now is not either: configure {0} \
                         on the restorer too",
                        job.target
                    )
                }),
                None => own_database(job, target),
            };
        }
        let configured = target.and_then(|target| Some(target.path?.display().to_string()));
        let recorded = backup.source.path.clone().filter(|_| job.target.is_scenario());
        recorded.or(configured).ok_or_else(|| {
            format!(
                "where target {0} lies is not known here: configure it on the restorer too, or name the destination",
                job.target
            )
        })
    }
}

/// How a target's server is reached, with its password; `None` where the configuration does not know the target.
fn own_url(target: Option<TargetConfig>) -> Result<Option<String>, String> {
    match target.map(|target| target.connection_url()) {
        Some(Ok(url)) => Ok(url.map(|url| url.expose().to_owned())),
        Some(Err(error)) => Err(one_line(&error)),
        None => Ok(None),
    }
}

/// The database that a target is of.
fn own_database(job: &ClaimedJob, target: Option<TargetConfig>) -> Result<String, String> {
    own_url(target)?.ok_or_else(|| {
        format!(
            "no destination is given, and how target {0} is reached is not known here: name the database to compare with \
             (destination, --destination postgres://user@host/database), or configure {0} on the restorer too",
            job.target
        )
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn times_of_files_are_believed_only_where_they_were_backed_up() {
        let began = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let source = SourceFacts {
            path: Some("/srv/docs".to_owned()),
            read_from: Some(began),
            ..SourceFacts::default()
        };
        for place in ["/srv/docs", "/srv/docs/"] {
            assert_eq!(Params::began_at(&source, place), Some(began.into()));
        }
        for place in ["/srv/docs2", "/srv", "docs"] {
            assert_eq!(Params::began_at(&source, place), None);
        }
        assert_eq!(Params::began_at(&SourceFacts::default(), "/srv/docs"), None);
    }
}
