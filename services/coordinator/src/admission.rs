//! Admission: what is asked for becomes jobs, or a refusal that says what would have been right.

use chrono::{DateTime, Duration, Utc};
use serde_json::json;
use strongroom_catalog::{CatalogError, CreateOutcome, JobRequest, Origin};
use strongroom_policy::backup_type;
use strongroom_policy::recovery::Refused;
use strongroom_policy::selector::{self, SelectError};
use strongroom_proto::api::{BackupView, CreateBackup, CreateRestore};
use strongroom_proto::events::{Ask, ScenarioDeployed, SchemaUpdated};
use strongroom_proto::timeline::{Annotation, AnnotationKind, RestorePreview};
use strongroom_proto::{BackupId, BackupType, JobId, JobKind, TargetKind, TargetName};

use strongroom_runtime::TargetConfig;

use crate::recovery::{Recovering, drilled};
use crate::restores::Form;
use crate::{Coordinator, restores};

/// The pool whose workers verify: they need the vault and scratch space, not the target.
const VERIFY_POOL: &str = "default";

/// Where a server listens whose URL does not say.
const POSTGRES_PORT: u16 = 5432;

/// The longest retention, a hundred years.
const RETENTION_DAYS_MAX: u32 = 36_500;

/// A request that comes to no job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// A target is not known.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// What it is about does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A moment cannot be recovered.
    #[error(transparent)]
    Recovery(#[from] Refused),
    /// The catalog did not come through.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// A restore as it is to be done.
pub(crate) struct Restoring {
    /// The backup that is restored.
    pub(crate) backup: BackupView,
    /// Of a base backup of a cluster: how it is recovered.
    pub(crate) recovering: Option<Recovering>,
}

impl Restoring {
    fn form(&self) -> Form {
        match (&self.recovering, self.backup.target_kind) {
            (Some(_), _) => Form::Cluster,
            (None, TargetKind::Postgres) => Form::Database,
            (None, kind) => Form::Tree(kind),
        }
    }
}

impl Coordinator {
    /// Creates the jobs that a trigger asks for, and sees to their dispatch.
    pub(crate) async fn admit(&self, ask: &Ask, origin: &Origin) -> Result<CreateOutcome, Refusal> {
        let requests = self.requests(ask).await?;
        let outcome = self.create(origin, &requests).await?;
        self.note_on_timelines(ask, origin, &requests).await?;
        Ok(outcome)
    }

    /// Writes deployments and schema changes on the timelines of the targets that they are about; a repetition of the
    /// trigger writes them again where that did not come about.
    async fn note_on_timelines(&self, ask: &Ask, origin: &Origin, requests: &[JobRequest]) -> Result<(), Refusal> {
        let (kind, text) = match ask {
            Ask::Backup(_) => return Ok(()),
            Ask::Scenario(deployed) => {
                let version = deployed.version.as_ref().map(|version| format!(", version {version}"));
                let commit = deployed.git.as_ref().map(|git| format!(", commit {}", git.sha));
                let more = [version, commit].into_iter().flatten().collect::<String>();
                (AnnotationKind::Deploy, format!("deployed {}{more}", deployed.scenario))
            }
            Ask::Schema(changed) => {
                let databases: Vec<&str> = changed
                    .database
                    .iter()
                    .chain(&changed.databases)
                    .map(String::as_str)
                    .collect();
                let of = if databases.is_empty() {
                    String::new()
                } else {
                    format!(" of {}", databases.join(", "))
                };
                (AnnotationKind::Schema, format!("schema{of} changed"))
            }
        };
        let annotation = Annotation {
            at: Utc::now(),
            kind,
            text,
            source: origin.door.clone(),
        };
        let mut targets: Vec<TargetName> = requests.iter().map(|request| request.target.clone()).collect();
        match ask {
            Ask::Backup(_) => {}
            Ask::Schema(_) => targets.extend(self.clusters_beside(&targets)),
            // A deployment does not say which databases it touches. Who looks for the moment before it looks at a cluster.
            Ask::Scenario(_) => targets.extend(self.all_clusters()),
        }
        for target in targets {
            let key = origin.trigger.as_ref().map(|id| format!("{}/{target}", id.as_str()));
            self.catalog.annotate(&target, &annotation, key.as_deref()).await?;
        }
        Ok(())
    }

    /// The targets that are whole clusters on the servers of these ones, beside them.
    fn clusters_beside(&self, targets: &[TargetName]) -> Vec<TargetName> {
        let all = self.targets.all();
        let (named, others): (Vec<_>, Vec<_>) = all.iter().partition(|(name, _)| targets.contains(name));
        let servers: Vec<_> = named.iter().filter_map(|(_, target)| server_of(target)).collect();
        others
            .into_iter()
            .filter(|(_, target)| target.is_physical() && server_of(target).is_some_and(|at| servers.contains(&at)))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The targets that are whole clusters.
    fn all_clusters(&self) -> Vec<TargetName> {
        let all = self.targets.all().into_iter();
        all.filter(|(_, target)| target.is_physical())
            .map(|(name, _)| name)
            .collect()
    }

    /// The jobs that a trigger asks for.
    pub(crate) async fn requests(&self, ask: &Ask) -> Result<Vec<JobRequest>, Refusal> {
        match ask {
            Ask::Backup(ask) => self.backups(ask).await,
            Ask::Scenario(ask) => Ok(vec![self.scenario(ask)?]),
            Ask::Schema(ask) => self.schema(ask).await,
        }
    }

    /// Every target there is, by name: those that are declared, and the scenarios that were deployed, which are made
    /// of the template.
    pub(crate) async fn known_targets(&self) -> Result<Vec<(TargetName, TargetConfig)>, CatalogError> {
        let mut known = self.targets.all();
        if let Some(template) = &self.loaded.config.scenario {
            for scenario in self.catalog.scenarios().await? {
                if known.iter().all(|(name, _)| *name != scenario.target) {
                    known.push((scenario.target, template.target(scenario.path.into())));
                }
            }
            known.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        Ok(known)
    }

    /// Creates jobs and sees to their dispatch.
    pub(crate) async fn create(&self, origin: &Origin, requests: &[JobRequest]) -> Result<CreateOutcome, Refusal> {
        let outcome = self.catalog.create_jobs(origin, requests).await?;
        self.dispatch.notify_one();
        Ok(outcome)
    }

    pub(crate) async fn backups(&self, ask: &CreateBackup) -> Result<Vec<JobRequest>, Refusal> {
        let known = self.known_targets().await?;
        let kinds: Vec<(TargetName, TargetKind)> =
            known.iter().map(|(name, target)| (name.clone(), target.kind)).collect();
        let names = selector::select(&kinds, &ask.targets)?;
        check_retention(ask.retention_days)?;
        let now = Utc::now();
        let metadata = json!({ "description": ask.description, "git": ask.git });
        Ok(names
            .into_iter()
            .filter_map(|name| known.iter().find(|(known, _)| *known == name))
            .map(|(name, target)| {
                let backup_type = backup_type::or_usual(ask.backup_type, target.kind);
                let request = backup_request(name.clone(), target.kind, target.pool.clone(), backup_type, now);
                // The worker knows what is declared; a scenario's folder it has to be told.
                let declared = self.targets.get(name).is_some();
                let path = target.path.as_ref().filter(|_| !declared);
                JobRequest {
                    metadata: metadata.clone(),
                    params: path.map_or_else(|| json!({}), |path| json!({ "path": path })),
                    retention_until: ask.retention_days.map(|days| now + Duration::days(i64::from(days))),
                    ..request
                }
            })
            .collect())
    }

    fn scenario(&self, ask: &ScenarioDeployed) -> Result<JobRequest, Refusal> {
        let name: TargetName = format!("scenario/{}", ask.scenario)
            .parse()
            .map_err(|error| Refusal::Invalid(format!("the scenario's name cannot name a target: {error}")))?;
        let path = std::path::Path::new(&ask.path);
        let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
        if !path.is_absolute() || !plain || ask.path.contains('\0') {
            return Err(Refusal::Invalid(format!(
                "the path {:?} of scenario {} is not absolute, or climbs with ..: send the folder's full path",
                ask.path, ask.scenario
            )));
        }
        let pool = match self.targets.get(&name) {
            Some(target) => target.pool,
            None => {
                let template = self.loaded.config.scenario.as_ref().ok_or_else(|| {
                    Refusal::Invalid(format!(
                        "target {name} is not configured, and there is no scenario template"
                    ))
                })?;
                template.pool.clone()
            }
        };
        let backup_type = backup_type::or_usual(None, TargetKind::Files);
        let request = backup_request(name, TargetKind::Files, pool, backup_type, Utc::now());
        let description = match &ask.version {
            Some(version) => format!("scenario {}, version {version}", ask.scenario),
            None => format!("scenario {}", ask.scenario),
        };
        Ok(JobRequest {
            metadata: json!({
                "description": description, "scenario": ask.scenario, "version": ask.version, "git": ask.git,
            }),
            params: json!({ "path": ask.path }),
            scenario_path: Some(ask.path.clone()),
            ..request
        })
    }

    async fn schema(&self, ask: &SchemaUpdated) -> Result<Vec<JobRequest>, Refusal> {
        let mut words = ask.targets.clone();
        let known = self.targets.all();
        for database in ask.database.iter().chain(&ask.databases) {
            let before = words.len();
            for (name, target) in known.iter().filter(|(_, target)| target.kind == TargetKind::Postgres) {
                let holds = target
                    .url
                    .as_ref()
                    .is_some_and(|url| database_of(url.expose()).as_deref() == Some(database));
                if holds || name.as_str() == database {
                    words.push(name.to_string());
                }
            }
            if words.len() == before {
                let list: Vec<&str> = known
                    .iter()
                    .filter(|(_, t)| t.kind == TargetKind::Postgres)
                    .map(|(n, _)| n.as_str())
                    .collect();
                return Err(Refusal::Invalid(format!(
                    "no postgres target holds database {database:?}; postgres targets are: {}",
                    if list.is_empty() {
                        "none".to_owned()
                    } else {
                        list.join(", ")
                    }
                )));
            }
        }
        self.backups(&CreateBackup {
            backup_type: Some(BackupType::Incremental),
            targets: words,
            description: Some("schema updated".to_owned()),
            retention_days: None,
            git: None,
        })
        .await
    }

    /// The backup that a text names: a backup id, or the id of the job that made it.
    pub(crate) async fn find_backup(&self, text: &str) -> Result<BackupView, Refusal> {
        let found = if let Ok(id) = text.parse::<BackupId>() {
            self.catalog.backup(&id).await?
        } else if let Ok(id) = text.parse::<JobId>() {
            self.catalog.backup_of_job(id).await?
        } else {
            return Err(Refusal::Invalid(format!(
                "{text:?} is neither a backup id (bkp-…) nor a job id (a UUID)"
            )));
        };
        found.ok_or_else(|| {
            Refusal::NotFound(format!(
                "there is no backup {text}: `strongroom list` shows those there are"
            ))
        })
    }

    /// A verify job for a backup.
    pub(crate) fn verify_request(&self, backup_id: BackupId, target: TargetName, kind: TargetKind) -> JobRequest {
        JobRequest {
            kind: JobKind::Verify,
            backup_id,
            ..backup_request(target, kind, VERIFY_POOL.to_owned(), BackupType::Full, Utc::now())
        }
    }

    /// What a request for a restore means, before anything is made of it.
    pub(crate) async fn restoring(&self, ask: &CreateRestore) -> Result<Restoring, Refusal> {
        let named = (&ask.backup_id, ask.backup_job_id, ask.restore_point_id);
        if let ((None, None, None), Some(_), [target]) = (named, &ask.to, ask.targets.as_slice()) {
            return self.moment_of_target(ask, target).await;
        }
        let backup = self.named_backup(ask).await?;
        let recovering = match self.catalog.cluster_backup(&backup.backup_id).await? {
            Some(base) => Some(self.recover(ask, &backup.target, Some(&base)).await?),
            None => None,
        };
        Ok(Restoring { backup, recovering })
    }

    /// A moment of a target: which base backup it is reached from follows.
    async fn moment_of_target(&self, ask: &CreateRestore, target: &str) -> Result<Restoring, Refusal> {
        let target: TargetName = target.parse().map_err(|error| Refusal::Invalid(format!("{error}")))?;
        self.check_known(&target).await?;
        let recovering = self.recover(ask, &target, None).await?;
        let chosen = recovering.plan.as_ref().map(|plan| plan.backup_id.to_string());
        let backup = self.find_backup(&chosen.unwrap_or_default()).await?;
        Ok(Restoring {
            backup,
            recovering: Some(recovering),
        })
    }

    async fn named_backup(&self, ask: &CreateRestore) -> Result<BackupView, Refusal> {
        let backup = match (&ask.backup_id, ask.backup_job_id, ask.restore_point_id) {
            (Some(id), None, None) => self.find_backup(id.as_str()).await?,
            (None, Some(id), None) => self.find_backup(&id.to_string()).await?,
            (None, None, Some(id)) => {
                let mut backups = self.catalog.restore_point(id).await?;
                if !ask.targets.is_empty() {
                    backups.retain(|backup| ask.targets.iter().any(|t| t == backup.target.as_str()));
                }
                match backups.len() {
                    0 => return Err(Refusal::NotFound(format!("restore point {id} has no such backup"))),
                    1 => backups.remove(0),
                    _ => {
                        return Err(Refusal::Invalid(
                            "the restore point holds several backups: name one of them in targets, one restore each"
                                .into(),
                        ));
                    }
                }
            }
            _ => {
                return Err(Refusal::Invalid(
                    "name one of backup_id, backup_job_id and restore_point_id, or to and one of targets: that is what \
                     is restored"
                        .into(),
                ));
            }
        };
        if !ask.targets.is_empty() && !ask.targets.iter().any(|t| t == backup.target.as_str()) {
            return Err(Refusal::Invalid(format!(
                "backup {} is of target {}, which is not in targets",
                backup.backup_id, backup.target
            )));
        }
        Ok(backup)
    }

    /// A restore job for a request.
    pub(crate) async fn restore_request(&self, ask: &CreateRestore) -> Result<(JobRequest, Restoring), Refusal> {
        let restoring = self.restoring(ask).await?;
        let backup = &restoring.backup;
        let destination = restores::check(ask, restoring.form())?;
        let known = self.known_targets().await?;
        let pool = known
            .into_iter()
            .find(|(name, _)| *name == backup.target)
            .map_or_else(|| VERIFY_POOL.to_owned(), |(_, target)| target.pool);
        let recovery = restoring.recovering.as_ref().map(|recovering| &recovering.recovery);
        let request = JobRequest {
            kind: JobKind::Restore,
            backup_id: backup.backup_id.clone(),
            params: restores::params(ask, destination.as_deref(), recovery),
            metadata: restores::metadata(ask, recovery),
            secret: destination,
            ..backup_request(
                backup.target.clone(),
                backup.target_kind,
                pool,
                BackupType::Full,
                Utc::now(),
            )
        };
        Ok((request, restoring))
    }

    /// What a restore would do.
    pub(crate) async fn preview(&self, ask: &CreateRestore) -> Result<RestorePreview, Refusal> {
        let restoring = self.restoring(ask).await?;
        if ask.destination.is_some() || ask.in_place {
            restores::check(ask, restoring.form())?;
        }
        let estimate = self.estimate(JobKind::Restore, &restoring.backup.target).await?;
        let backup_id = &restoring.backup.backup_id;
        let source = self.catalog.source_facts(backup_id).await?;
        let drilled = match &source.cluster {
            Some(facts) => Some(drilled(self.catalog.newest_drill(backup_id).await?, facts, backup_id)),
            None => None,
        };
        let mut preview = restores::preview(ask, restoring, source, estimate);
        if let Some((tables, note)) = drilled {
            preview.tables = tables;
            preview.notes.push(note);
        }
        Ok(preview)
    }
}

/// Refuses a retention that is none, or reaches past any calendar.
pub(crate) fn check_retention(days: Option<u32>) -> Result<(), Refusal> {
    match days {
        Some(days) if !(1..=RETENTION_DAYS_MAX).contains(&days) => Err(Refusal::Invalid(format!(
            "retention_days is {days}: give 1 to {RETENTION_DAYS_MAX}, or leave it out to keep the backup"
        ))),
        _ => Ok(()),
    }
}

/// The host and the port of a target's server.
fn server_of(target: &TargetConfig) -> Option<(String, u16)> {
    let url = url::Url::parse(target.url.as_ref()?.expose()).ok()?;
    Some((url.host_str()?.to_owned(), url.port().unwrap_or(POSTGRES_PORT)))
}

/// The database that a URL names.
fn database_of(url: &str) -> Option<String> {
    let url = url::Url::parse(url).ok()?;
    let name = url.path().trim_start_matches('/');
    (!name.is_empty()).then(|| name.to_owned())
}

fn backup_request(
    target: TargetName,
    target_kind: TargetKind,
    pool: String,
    backup_type: BackupType,
    now: DateTime<Utc>,
) -> JobRequest {
    let id = JobId::fresh();
    JobRequest {
        id,
        kind: JobKind::Backup,
        backup_type,
        target,
        target_kind,
        pool,
        backup_id: BackupId::for_job(id, now),
        retention_until: None,
        metadata: json!({}),
        params: json!({}),
        secret: None,
        scenario_path: None,
    }
}
