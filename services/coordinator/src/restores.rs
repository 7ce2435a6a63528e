//! What a request for a restore may ask for, and how the restorer is told.

use serde_json::{Value, json};
use strongroom_proto::TargetKind;
use strongroom_proto::api::{CreateRestore, without_password};

use crate::admission::Refusal;

/// What stands for a destination that only the restorer knows.
const IN_PLACE: &str = "(where the target lies)";

/// Where to, where that is said; or what is wrong with the request.
pub(crate) fn check(ask: &CreateRestore, kind: TargetKind) -> Result<Option<String>, Refusal> {
    let refused = |reason: &str| Err(Refusal::Invalid(reason.to_owned()));
    let is_tree = matches!(kind, TargetKind::Files | TargetKind::Command);
    let for_trees = [
        ("paths", !ask.paths.is_empty()),
        ("include", !ask.include.is_empty()),
        ("in_place", ask.in_place),
        ("delete", ask.delete),
        ("dry_run", ask.dry_run),
    ];
    if let Some((name, _)) = for_trees.iter().find(|(_, is_set)| *is_set && !is_tree) {
        return Err(Refusal::Invalid(format!(
            "{name} is for backups of files, this one is of kind {kind}: leave it out"
        )));
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
    match destination {
        Some(destination) => {
            check_destination(kind, destination)?;
            Ok(Some(destination.to_owned()))
        }
        None if ask.in_place && kind == TargetKind::Files => Ok(None),
        None => {
            refused("no destination is given: name the database (postgres://host/db) or the folder to restore into")
        }
    }
}

/// The parameters of the job. The destination may hold a password, which stays out of them.
pub(crate) fn params(ask: &CreateRestore, destination: Option<&str>) -> Value {
    json!({
        "destination": destination.map_or_else(|| IN_PLACE.to_owned(), without_password),
        "overwrite_reason": ask.overwrite_reason,
        "verify_before_restore": ask.verify_before_restore,
        "selected": { "paths": ask.paths, "include": ask.include },
        "in_place": ask.in_place,
        "delete": ask.delete,
        "dry_run": ask.dry_run,
    })
}

fn check_destination(kind: TargetKind, destination: &str) -> Result<(), Refusal> {
    let database = destination.starts_with("postgres://") || destination.starts_with("postgresql://");
    match kind {
        TargetKind::Postgres => {
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
pub(crate) fn metadata(ask: &CreateRestore) -> Value {
    if ask.dry_run {
        json!({ "dry_run": true })
    } else {
        json!({})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(edit: impl FnOnce(&mut CreateRestore)) -> CreateRestore {
        let mut ask: CreateRestore = serde_json::from_value(json!({ "destination": "/srv/back" })).unwrap();
        edit(&mut ask);
        ask
    }

    fn refusal(kind: TargetKind, edit: impl FnOnce(&mut CreateRestore)) -> String {
        check(&ask(edit), kind).unwrap_err().to_string()
    }

    #[test]
    fn what_would_harm_or_mean_nothing_is_refused_with_what_to_do() {
        let files = TargetKind::Files;
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
        assert!(refusal(TargetKind::Postgres, |ask| ask.dry_run = true).contains("dry_run is for backups of files"));
        let command = |ask: &mut CreateRestore| (ask.in_place, ask.destination) = (true, None);
        assert!(refusal(TargetKind::Command, command).contains("no destination"));
    }

    #[test]
    fn only_a_restore_in_place_may_leave_the_destination_to_the_restorer() {
        let in_place = ask(|ask| (ask.in_place, ask.destination) = (true, None));
        assert_eq!(check(&in_place, TargetKind::Files).unwrap(), None);
        assert_eq!(params(&in_place, None)["destination"], IN_PLACE);
        let elsewhere = ask(|ask| ask.paths = vec!["etc/passwd".to_owned(), "..a/b".to_owned()]);
        assert_eq!(
            check(&elsewhere, TargetKind::Files).unwrap().as_deref(),
            Some("/srv/back")
        );
        assert_eq!(
            params(&elsewhere, Some("/srv/back"))["selected"]["paths"][0],
            "etc/passwd"
        );
    }
}
