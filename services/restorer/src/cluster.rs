//! Restores of whole clusters: a base backup, recovered to a moment with the vault's WAL.

use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom_connectors::postgres::physical::ClusterTarget;
use strongroom_connectors::postgres::recovery::{
    self, RecoveryError, RecoveryProgress, RecoveryRequest, VaultWal, drill_cluster,
};
use strongroom_connectors::postgres::wal::{FetchBucket, FetchSettings, Hidden};
use strongroom_connectors::postgres::{DrillConfig, count_cluster};
use strongroom_proto::JobId;
use strongroom_proto::cluster_tables::ClusterTables;
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::receipt::Check;
use strongroom_proto::restore::RestoreChanges;
use strongroom_proto::wal::{ClusterFacts, Leave, Lsn, Recovery, RecoveryTarget, WalSource};
use strongroom_runtime::Config;
use strongroom_runtime::entry::one_line;
use tokio::runtime::Handle;

use crate::params::Params;
use crate::{RestoreFailed, Restored};

/// What `strongroom wal fetch` is called.
const PROGRAM: &str = "strongroom";

/// How a server that somebody starts later gets its WAL: by the command line, from a file of its own.
#[derive(Clone)]
pub(crate) struct Fetching {
    store: String,
    bucket: FetchBucket,
    identity_file: Option<PathBuf>,
}

impl Fetching {
    /// From the service's configuration.
    pub(crate) fn of(config: &Config) -> anyhow::Result<Self> {
        let s3 = &config.vault.s3;
        Ok(Self {
            store: config.vault.url.clone(),
            bucket: FetchBucket {
                endpoint: s3.endpoint.clone(),
                region: s3.region.clone(),
                access_key_id: s3.access_key_id.clone(),
                secret_access_key: s3.secret_access_key()?.map(|secret| Hidden(secret.expose().to_owned())),
                allow_http: s3.allow_http,
            },
            identity_file: config.keys.identity_file.clone(),
        })
    }

    fn settings(&self, facts: &ClusterFacts) -> FetchSettings {
        let identity_file = self.identity_file.clone().unwrap_or_default();
        FetchSettings {
            s3: self.store.starts_with("s3:").then(|| self.bucket.clone()),
            segment_bytes: facts.segment_bytes,
            ..FetchSettings::new(self.store.clone(), identity_file, facts.system_identifier)
        }
    }
}

/// A backup of a whole cluster, and what its restore needs beside it.
pub(crate) struct Physical {
    facts: ClusterFacts,
    source: Arc<dyn WalSource>,
    fetching: Fetching,
    job: JobId,
    runtime: Handle,
    /// Of a dry run: what its drill counted.
    pub(crate) drilled: Option<ClusterTables>,
}

impl Physical {
    /// To be called within the runtime.
    pub(crate) fn new(facts: ClusterFacts, source: Arc<dyn WalSource>, fetching: Fetching, job: JobId) -> Self {
        Self {
            facts,
            source,
            fetching,
            job,
            drilled: None,
            runtime: Handle::current(),
        }
    }

    fn wal(&self, wal_end: Option<Lsn>) -> Arc<VaultWal> {
        let (system, segment_bytes) = (self.facts.system_identifier, self.facts.segment_bytes);
        let wal = VaultWal::new(self.source.clone(), system, segment_bytes, self.runtime.clone());
        Arc::new(wal.up_to(wal_end))
    }

    /// Recovers it in scratch space.
    pub(crate) fn drill(&self, source: &dyn EntrySource, drill: &DrillConfig) -> Result<Vec<Check>, RestoreFailed> {
        drill_cluster(source, &self.facts, self.wal(None), drill, &mut told)
            .map(|drilled| drilled.checks)
            .map_err(|error| recovery_failed(&error))
    }

    /// Recovers it at its destination; on trial, says what its target's tables held then and hold now.
    pub(crate) fn restore(
        &self,
        source: &dyn EntrySource,
        destination: &str,
        params: &Params,
        drill: &DrillConfig,
    ) -> Result<Restored, RestoreFailed> {
        if params.dry_run {
            return self.compare(destination, params);
        }
        let destination = Path::new(destination);
        if !destination.is_absolute() {
            return Err(refused(format!(
                "a cluster is restored into a folder, {destination:?} is not the absolute path of one"
            )));
        }
        let recovery = params.recovery.clone().unwrap_or_else(|| Recovery {
            to: RecoveryTarget::Immediate,
            timeline: self.facts.timeline,
            wal_end: None,
            leave: Leave::Stopped,
            tablespaces: Default::default(),
            tables: Vec::new(),
        });
        let later = match recovery.leave {
            Leave::Unstarted => Some(self.later(destination)?),
            Leave::Stopped | Leave::Running => None,
        };
        let request = RecoveryRequest {
            facts: &self.facts,
            recovery: &recovery,
            destination,
            wal: self.wal(recovery.wal_end),
            restore_command: later.as_ref().map(|later| later.command.as_str()),
            bin_dirs: &drill.bin_dirs,
            scratch_dir: &drill.scratch_dir,
            mark: &self.job.to_string(),
        };
        let mut recovered = recovery::recover(source, &request, &mut told).map_err(|error| recovery_failed(&error))?;
        if let Some(later) = later {
            recovered.notes.push(self.leave_settings(&later, destination)?);
        }
        Ok(Restored {
            bytes: recovered.bytes,
            checks: recovered.checks,
            notes: recovered.notes.join("; "),
            changes: None,
            skipped: Vec::new(),
        })
    }

    fn compare(&self, url: &str, params: &Params) -> Result<Restored, RestoreFailed> {
        let drilled = self.drilled.clone().ok_or_else(|| {
            refused(
                "no drill that passed has counted the tables of this backup: verify it (`strongroom verify`), then ask again"
                    .to_owned(),
            )
        })?;
        let url = url
            .parse()
            .map_err(|error| refused(format!("the target's url is not understood: {error}")))?;
        // Somebody waits for the answer, and that the cluster cannot be reached is one.
        let now = count_cluster(&ClusterTarget::new(url)).map_err(|error| refused(one_line(&error)))?;
        Ok(Restored::on_trial(RestoreChanges {
            destination: params.destination.clone(),
            cluster: Some(drilled.beside(now)),
            ..RestoreChanges::default()
        }))
    }

    /// How the server that is started later asks for WAL.
    fn later(&self, destination: &Path) -> Result<Later, RestoreFailed> {
        let name = destination.file_name().unwrap_or_default().to_string_lossy();
        let file = destination.with_file_name(format!("{name}.wal-fetch.json"));
        if file.symlink_metadata().is_ok() {
            return Err(refused(format!("{} is there already: remove it first", file.display())));
        }
        let program = program().ok_or_else(|| {
            refused(format!(
                "the program {PROGRAM}, which brings WAL to the server, is neither beside this one nor in PATH: install it, \
                 or have the server started by the restore"
            ))
        })?;
        Ok(Later {
            command: format!(
                "exec {} wal fetch --from {} \"%f\" \"%p\"",
                shell(&program)?,
                shell(&file)?
            ),
            file,
        })
    }

    /// Writes what the command reads, for the owner of the data folder alone.
    fn leave_settings(&self, later: &Later, destination: &Path) -> Result<String, RestoreFailed> {
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec_pretty(&self.fetching.settings(&self.facts))?;
            let owner = std::fs::metadata(destination)?;
            let mut file = std::fs::File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&later.file)?;
            io::Write::write_all(&mut file, &text)?;
            file.sync_all()?;
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))
        };
        write().map_err(|error| refused(format!("write {}: {error}", later.file.display())))?;
        Ok(format!(
            "WAL is fetched with the settings in {0}, and with the identity that they name, which the server's user must be \
             able to read; remove {0} when the recovery is done",
            later.file.display()
        ))
    }
}

/// What a server that is started later needs.
struct Later {
    command: String,
    file: PathBuf,
}

/// A path in a shell's command line that is itself a `restore_command`.
fn shell(path: &Path) -> Result<String, RestoreFailed> {
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => {
            Ok(format!("'{}'", text.replace('\'', "'\\''").replace('%', "%%")))
        }
        _ => Err(refused(format!(
            "{path:?} cannot be written into a restore_command: choose another path"
        ))),
    }
}

/// The command line's program: this one, beside this one, or in `PATH`.
fn program() -> Option<PathBuf> {
    let ours = std::env::current_exe().ok()?;
    let beside = ours.with_file_name(PROGRAM);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(beside)
        .chain(std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)))
        .find(|program| program.is_file())
}

fn told(progress: RecoveryProgress) {
    tracing::info!(?progress, "recovery of a cluster");
}

fn refused(message: String) -> RestoreFailed {
    RestoreFailed {
        message,
        retryable: false,
    }
}

fn recovery_failed(error: &RecoveryError) -> RestoreFailed {
    RestoreFailed {
        message: one_line(error),
        retryable: error.is_retryable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_survives_the_shell_and_the_placeholders() {
        let quoted = |path: &str| shell(Path::new(path)).map_err(|error| error.message);
        assert_eq!(quoted("/a b/it's 5%").unwrap(), "'/a b/it'\\''s 5%%'");
        assert!(quoted("/a\nb").unwrap_err().contains("choose another path"));
    }
}
