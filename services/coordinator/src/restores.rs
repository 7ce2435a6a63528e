//! What a request for a restore may ask for, and how the restorer is told.

use std::path::{Component, Path};
use std::time::Duration;

use serde_json::{Value, json};
use strongroom_proto::TargetKind;
use strongroom_proto::api::{CreateRestore, without_password};
use strongroom_proto::receipt::{Method, SourceFacts};
use strongroom_proto::restore::TableName;
use strongroom_proto::timeline::RestorePreview;
use strongroom_proto::wal::Recovery;

use crate::admission::{Refusal, Restoring};
use crate::recovery::wal_preview;

/// What stands for a destination that only the restorer knows.
const IN_PLACE: &str = "(where the target lies)";

/// What a backup is restored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One database, into a database.
    Database,
    /// A whole cluster, into an empty folder.
    Cluster,
    /// What targets of other kinds hold, into a folder.
    Tree(TargetKind),
}

impl Form {
    const fn noun(self) -> &'static str {
        match self {
            Self::Database => "a database",
            Self::Cluster => "a whole cluster",
            Self::Tree(_) => "files",
        }
    }
}

/// Where to, where that is said; or what is wrong with the request.
pub(crate) fn check(ask: &CreateRestore, form: Form) -> Result<Option<String>, Refusal> {
    let refused = |reason: &str| Err(Refusal::Invalid(reason.to_owned()));
    let of_trees = [
        ("paths", !ask.paths.is_empty()),
        ("include", !ask.include.is_empty()),
        ("in_place", ask.in_place),
        ("delete", ask.delete),
    ];
    let of_clusters = [
        ("to", ask.to.is_some()),
        ("leave", ask.leave.is_some()),
        ("tablespaces", !ask.tablespaces.is_empty()),
        ("tables", !ask.tables.is_empty()),
    ];
    let misplaced = |options: &[(&str, bool)]| {
        options
            .iter()
            .find(|(_, is_set)| *is_set)
            .map(|(name, _)| (*name).to_owned())
    };
    let is_tree = matches!(form, Form::Tree(TargetKind::Files | TargetKind::Command));
    if let Some(name) = misplaced(&of_trees).filter(|_| !is_tree) {
        return Err(Refusal::Invalid(format!(
            "{name} is for backups of files, this one is of {}: leave it out",
            form.noun()
        )));
    }
    if let Some(name) = misplaced(&of_clusters).filter(|_| form != Form::Cluster) {
        return Err(Refusal::Invalid(format!(
            "{name} is for base backups of clusters (method: physical_basebackup), this backup is of {}: leave it out",
            form.noun()
        )));
    }
    if form == Form::Cluster {
        check_cluster(ask)?;
    }
    if ask.delete && !ask.in_place {
        return refused(
            "delete removes what the backup does not have, which only a restore in_place does: add in_place",
        );
    }
    if ask.delete && !ask.include.is_empty() {
        return refused("delete with include would remove what no pattern names: choose by paths, or leave delete out");
    }
    if ask.in_place && ask.overwrite_reason.is_some() {
        return refused("in_place says already that the destination may hold something: leave overwrite_reason out");
    }
    if ask
        .overwrite_reason
        .as_deref()
        .is_some_and(|reason| reason.trim().is_empty())
    {
        return refused("overwrite_reason is empty: write down why the destination may be written over");
    }
    for path in &ask.paths {
        let climbs = path.split('/').any(|part| part == "..");
        if path.trim_matches('/').is_empty() || path.starts_with('/') || climbs || path.contains('\0') {
            return Err(Refusal::Invalid(format!(
                "{path:?} is no path in a backup: name it as the backup lists it, relative and without .."
            )));
        }
    }
    if ask.include.iter().any(|pattern| pattern.trim().is_empty()) {
        return refused("a pattern of include is empty: leave it out");
    }
    let destination = ask
        .destination
        .as_deref()
        .map(str::trim)
        .filter(|text| !text.is_empty());
    let is_cluster_trial = ask.dry_run && form == Form::Cluster;
    match destination {
        Some(destination) => {
            check_destination(form, destination)?;
            // A cluster goes into an empty folder: there is nothing there to compare it with.
            Ok((!is_cluster_trial).then(|| destination.to_owned()))
        }
        None if ask.in_place && form == Form::Tree(TargetKind::Files) => Ok(None),
        // What would change is asked of the target's own server, which only the restorer's configuration knows.
        None if is_cluster_trial || (ask.dry_run && form == Form::Database) => Ok(None),
        None => {
            refused("no destination is given: name the database (postgres://host/db) or the folder to restore into")
        }
    }
}

/// The parameters of the job. The destination may hold a password, which stays out of them.
pub(crate) fn params(ask: &CreateRestore, destination: Option<&str>, recovery: Option<&Recovery>) -> Value {
    let mut params = json!({
        "destination": destination.map_or_else(|| IN_PLACE.to_owned(), without_password),
        "overwrite_reason": ask.overwrite_reason,
        "verify_before_restore": ask.verify_before_restore,
        "selected": { "paths": ask.paths, "include": ask.include },
        "in_place": ask.in_place,
        "delete": ask.delete,
        "dry_run": ask.dry_run,
    });
    if let (Some(recovery), Some(params)) = (recovery, params.as_object_mut()) {
        params.insert("recovery".to_owned(), json!(recovery));
    }
    params
}

fn check_cluster(ask: &CreateRestore) -> Result<(), Refusal> {
    let refused = |reason: String| Err(Refusal::Invalid(reason));
    if ask.overwrite_reason.is_some() {
        return refused("a cluster is laid down in an empty folder only: leave overwrite_reason out".into());
    }
    for table in &ask.tables {
        if let Err(error) = table.parse::<TableName>() {
            return refused(error.to_string());
        }
    }
    if !ask.tables.is_empty() && (ask.leave.is_some() || !ask.tablespaces.is_empty()) {
        return refused(
            "with tables no cluster is left behind, only a file for each of them: leave out leave and tablespaces"
                .into(),
        );
    }
    let destination = ask.destination.as_deref().map(|text| Path::new(text.trim()));
    let mut folders: Vec<&Path> = Vec::new();
    for (oid, folder) in &ask.tablespaces {
        let folder = Path::new(folder);
        let climbs = folder.components().any(|part| part == Component::ParentDir);
        if !folder.is_absolute() || climbs {
            return refused(format!(
                "the folder {:?} of tablespace {oid} is not an absolute path, or climbs with ..",
                folder.display().to_string()
            ));
        }
        let lies_in = |other: &Path| folder.starts_with(other) || other.starts_with(folder);
        if destination.is_some_and(lies_in) || folders.iter().any(|other| lies_in(other)) {
            return refused(format!(
                "the folder {} of tablespace {oid} lies in the destination or in another tablespace's, or the other way \
                 round: give each a folder of its own",
                folder.display()
            ));
        }
        folders.push(folder);
    }
    Ok(())
}

/// What a restore would do, for a person to decide.
pub(crate) fn preview(
    ask: &CreateRestore,
    restoring: Restoring,
    source: SourceFacts,
    estimate: Option<Duration>,
) -> RestorePreview {
    let Restoring { backup, recovering } = restoring;
    let mut notes = recovering
        .as_ref()
        .map(|recovering| recovering.notes.clone())
        .unwrap_or_default();
    let plan = recovering.as_ref().and_then(|recovering| recovering.plan.as_ref());
    let is_tree = matches!(backup.target_kind, TargetKind::Files | TargetKind::Command);
    if is_tree && ask.destination.is_none() && !ask.in_place {
        notes.push(
            "what would change is only known of a place: name one (destination, --destination), or ask for a restore \
             in_place (--in-place)"
                .to_owned(),
        );
    }
    if !ask.paths.is_empty() || !ask.include.is_empty() || !ask.tables.is_empty() {
        notes.push("only a part is restored, of which the sizes here say nothing".to_owned());
    }
    if let Some(error) = backup.verification_error.as_ref().filter(|_| !backup.verified) {
        notes.push(format!("its last verification did not pass: {error}"));
    } else if !backup.verified {
        notes.push("it was never verified".to_owned());
    }
    RestorePreview {
        method: match backup.target_kind {
            _ if recovering.is_some() => Some(Method::PhysicalBasebackup),
            TargetKind::Postgres | TargetKind::Command => Some(Method::LogicalDump),
            TargetKind::Files => Some(Method::Snapshot),
            TargetKind::Bucket | TargetKind::Config => None,
        },
        wal: plan.map(wal_preview),
        backup_id: backup.backup_id,
        target: backup.target,
        target_kind: backup.target_kind,
        completed_at: backup.completed_at,
        verified: backup.verified,
        content_bytes: backup.size_bytes,
        estimated_duration: estimate.map_or_else(|| "unknown".to_owned(), strongroom_policy::estimate::humanize),
        source,
        tables: None,
        notes,
    }
}

fn check_destination(form: Form, destination: &str) -> Result<(), Refusal> {
    let database = destination.starts_with("postgres://") || destination.starts_with("postgresql://");
    match form {
        Form::Database => {
            let url = url::Url::parse(destination).ok().filter(|_| database);
            match url {
                Some(url) if url.path().trim_start_matches('/').is_empty() => Err(Refusal::Invalid(
                    "the destination names no database: write it as postgres://user@host:port/database".into(),
                )),
                Some(_) => Ok(()),
                None => Err(Refusal::Invalid(
                    "the backup is of a database: write the destination as postgres://user@host:port/database".into(),
                )),
            }
        }
        Form::Cluster if database => Err(Refusal::Invalid(
            "the backup is of a whole cluster, which is laid down as files: give an empty folder as destination".into(),
        )),
        _ if database => Err(Refusal::Invalid(
            "the backup is not of a database: give a folder as destination".into(),
        )),
        _ if std::path::Path::new(destination).is_absolute() => Ok(()),
        _ => Err(Refusal::Invalid(format!(
            "the destination {destination:?} is not an absolute path: the restorer works elsewhere"
        ))),
    }
}

/// What whoever looks at the job is to know.
pub(crate) fn metadata(ask: &CreateRestore, recovery: Option<&Recovery>) -> Value {
    match recovery {
        _ if ask.dry_run => json!({ "dry_run": true }),
        Some(recovery) => json!({ "to": recovery.to.to_string(), "timeline": recovery.timeline }),
        None => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use strongroom_proto::wal::Leave;

    use super::*;

    fn ask(edit: impl FnOnce(&mut CreateRestore)) -> CreateRestore {
        let mut ask: CreateRestore = serde_json::from_value(json!({ "destination": "/srv/back" })).unwrap();
        edit(&mut ask);
        ask
    }

    fn refusal(form: Form, edit: impl FnOnce(&mut CreateRestore)) -> String {
        check(&ask(edit), form).unwrap_err().to_string()
    }

    #[test]
    fn what_would_harm_or_mean_nothing_is_refused_with_what_to_do() {
        let files = Form::Tree(TargetKind::Files);
        assert!(refusal(files, |ask| ask.delete = true).contains("add in_place"));
        let both = refusal(files, |ask| {
            (ask.delete, ask.in_place) = (true, true);
            ask.include = vec!["*.conf".to_owned()];
        });
        assert!(both.contains("leave delete out"), "{both}");
        for path in ["../etc", "a/../../b", "/etc", "", "/", "a\0b"] {
            let message = refusal(files, |ask| ask.paths = vec![path.to_owned()]);
            assert!(message.contains("without .."), "{path:?}: {message}");
        }
        assert!(refusal(files, |ask| ask.destination = None).contains("no destination"));
        assert!(refusal(files, |ask| ask.destination = Some("back".to_owned())).contains("absolute"));
        assert!(refusal(files, |ask| ask.overwrite_reason = Some(" ".to_owned())).contains("is empty"));
        let command = |ask: &mut CreateRestore| (ask.in_place, ask.destination) = (true, None);
        assert!(refusal(Form::Tree(TargetKind::Command), command).contains("no destination"));
    }

    #[test]
    fn a_database_on_trial_is_the_targets_own_unless_another_is_named_and_a_cluster_always_is() {
        let own = ask(|ask| (ask.dry_run, ask.destination) = (true, None));
        assert_eq!(check(&own, Form::Database).unwrap(), None);
        let other = ask(|ask| (ask.dry_run, ask.destination) = (true, Some("postgres://h/d".to_owned())));
        assert_eq!(
            check(&other, Form::Database).unwrap().as_deref(),
            Some("postgres://h/d")
        );
        let folder = ask(|ask| ask.dry_run = true);
        for cluster in [&own, &folder] {
            assert_eq!(
                check(cluster, Form::Cluster).unwrap(),
                None,
                "a cluster is compared with the one that runs"
            );
        }
        assert!(refusal(Form::Database, |ask| ask.destination = None).contains("no destination"));
        assert!(refusal(Form::Cluster, |ask| ask.destination = None).contains("no destination"));
        assert!(refusal(Form::Tree(TargetKind::Command), |ask| *ask = own.clone()).contains("no destination"));
    }

    #[test]
    fn only_a_restore_in_place_may_leave_the_destination_to_the_restorer() {
        let in_place = ask(|ask| (ask.in_place, ask.destination) = (true, None));
        assert_eq!(check(&in_place, Form::Tree(TargetKind::Files)).unwrap(), None);
        assert_eq!(params(&in_place, None, None)["destination"], IN_PLACE);
        let elsewhere = ask(|ask| ask.paths = vec!["etc/passwd".to_owned(), "..a/b".to_owned()]);
        assert_eq!(
            check(&elsewhere, Form::Tree(TargetKind::Files)).unwrap().as_deref(),
            Some("/srv/back")
        );
        assert_eq!(
            params(&elsewhere, Some("/srv/back"), None)["selected"]["paths"][0],
            "etc/passwd"
        );
    }

    #[test]
    fn options_of_a_cluster_are_refused_where_they_mean_nothing() {
        for form in [Form::Database, Form::Tree(TargetKind::Files)] {
            let message = refusal(form, |ask| ask.to = Some("latest".to_owned()));
            assert!(message.contains("to is for base backups of clusters"), "{message}");
            assert!(refusal(form, |ask| ask.tables = vec!["a.b.c".to_owned()]).contains("tables is for"));
        }
        let cluster = Form::Cluster;
        assert!(
            refusal(cluster, |ask| ask.destination = Some("postgres://h/d".to_owned())).contains("an empty folder")
        );
        assert!(refusal(cluster, |ask| ask.destination = Some("here".to_owned())).contains("absolute"));
        assert!(
            refusal(cluster, |ask| ask.overwrite_reason = Some("why not".to_owned())).contains("empty folder only")
        );
        for table in ["orders", "public.orders", "db..orders", "db.public.or\nders"] {
            let message = refusal(cluster, |ask| ask.tables = vec![table.to_owned()]);
            assert!(message.contains("database.schema.table"), "{table:?}: {message}");
        }
        for folder in ["back", "/srv/../etc", "/srv/back/ts", "/srv", "/other/b"] {
            let message = refusal(cluster, |ask| {
                ask.tablespaces = [(1, "/other/b/c".to_owned()), (2, folder.to_owned())].into();
            });
            assert!(message.contains("tablespace 2"), "{folder:?}: {message}");
        }
        let both = refusal(cluster, |ask| {
            (ask.tables, ask.leave) = (vec!["a.b.c".to_owned()], Some(Leave::Running));
        });
        assert!(both.contains("leave out leave"), "{both}");
    }

    #[test]
    fn how_to_recover_travels_with_the_job() {
        let cluster = ask(|ask| {
            ask.to = Some("0/16B3740".to_owned());
            ask.tablespaces = [(16_400, "/fast".to_owned())].into();
        });
        assert_eq!(check(&cluster, Form::Cluster).unwrap().as_deref(), Some("/srv/back"));
        let recovery = Recovery {
            to: cluster.to.as_deref().unwrap().parse().unwrap(),
            timeline: 2,
            wal_end: None,
            leave: Leave::Unstarted,
            tablespaces: cluster.tablespaces.clone(),
            tables: vec![],
        };
        let params = params(&cluster, Some("/srv/back"), Some(&recovery));
        assert_eq!(
            serde_json::from_value::<Recovery>(params["recovery"].clone()).unwrap(),
            recovery
        );
        assert_eq!(
            metadata(&cluster, Some(&recovery)),
            json!({ "to": "0/16B3740", "timeline": 2 })
        );
    }
}
