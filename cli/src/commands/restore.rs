//! `strongroom restore`

use anyhow::{Context as _, bail};
use strongroom_proto::api::{CreateRestore, RestoreCreated, without_password};
use strongroom_proto::{BackupId, JobId, TargetName};

use super::named::{Named, Newest, find};
use super::{Outcome, changes, end_of_job, outcome_of, preview, print_json};
use crate::args::RestoreArgs;
use crate::client::Client;
use crate::render;
use crate::wait::{Waited, wait_for_one};

pub(crate) async fn run(client: &Client, args: RestoreArgs) -> anyhow::Result<Outcome> {
    let destination = match args.destination.as_deref() {
        Some(destination) => Some(value_or_file(destination)?),
        None if args.in_place || args.preview => None,
        None => bail!(
            "say where to restore to: --destination postgres://user@host/database for a database, \
             --destination /path for files or a cluster, or --in-place for files where they were; a restore never \
             guesses"
        ),
    };
    let (text, targets) = which(args.backup.as_deref(), args.targets)?;
    // With a moment, a target's name stands for whatever base backup reaches it.
    let (named, targets) = match text.parse::<TargetName>() {
        Ok(target) if args.to.is_some() && !is_id(&text) => (None, vec![target.to_string()]),
        _ => (Some(find(client, &text, Newest::Verified).await?), targets),
    };
    let mut request = CreateRestore {
        targets,
        destination: destination.clone(),
        verify_before_restore: args.verify,
        overwrite_reason: args.overwrite_reason,
        paths: args.paths,
        include: args.include,
        in_place: args.in_place,
        delete: args.delete,
        dry_run: args.dry_run,
        to: args.to.map(|to| to.to_string()),
        leave: args.leave,
        tablespaces: args.tablespaces.into_iter().collect(),
        tables: args.tables,
        ..CreateRestore::default()
    };
    match named {
        Some(Named::Backup(id)) => request.backup_id = Some(id),
        Some(Named::Job(id)) => request.backup_job_id = Some(id),
        Some(Named::RestorePoint(id)) => request.restore_point_id = Some(id),
        None => {}
    }
    if args.preview {
        let form = if args.json {
            preview::Form::Json
        } else {
            preview::Form::Text
        };
        return preview::run(client, request, form).await;
    }
    let created = client.create_restore(&request).await?;
    if !args.json {
        render::print(&created_text(&created.value, destination.as_deref()))?;
    }
    // What would be changed is the answer to a dry run.
    if !args.wait && !args.dry_run {
        if args.json {
            print_json(&created)?;
        }
        return Ok(Outcome::Done);
    }
    let Waited::Ended(job) = wait_for_one(client, created.value.restore_id).await? else {
        return Ok(Outcome::Interrupted);
    };
    let changes = changes::of(client, &job.value).await?;
    match changes {
        Some(changes) if args.json && args.dry_run => print_json(&changes)?,
        _ if args.json => print_json(&job)?,
        Some(changes) => {
            render::print(&end_of_job(&job.value))?;
            render::print(&changes::listing(&changes.value))?;
        }
        None => render::print(&end_of_job(&job.value))?,
    }
    Ok(outcome_of(&job.value))
}

/// A value, or the content of the file that `@FILE` names.
pub(crate) fn value_or_file(text: &str) -> anyhow::Result<String> {
    match text.strip_prefix('@') {
        Some(path) => {
            let content = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
            Ok(content.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => Ok(text.to_owned()),
    }
}

/// Whether a text is the id of something, and not a target's name.
fn is_id(text: &str) -> bool {
    text.parse::<BackupId>().is_ok() || text.parse::<JobId>().is_ok()
}

/// What names the backup, and which targets to choose of it.
fn which(backup: Option<&str>, targets: Vec<String>) -> anyhow::Result<(String, Vec<String>)> {
    match (backup, targets.as_slice()) {
        (Some(backup), _) => Ok((backup.to_owned(), targets)),
        (None, [target]) => Ok((target.clone(), Vec::new())),
        (None, []) => {
            bail!("say what to restore: a backup id, a job id, or a target's name for its newest verified backup")
        }
        (None, _) => bail!("one destination takes one target: restore them one at a time, or name a restore point"),
    }
}

fn created_text(created: &RestoreCreated, destination: Option<&str>) -> String {
    let place = destination.map_or_else(|| "where the target lies".to_owned(), without_password);
    let mut text = format!("restore {} to {}\n", created.restore_id, render::safe(&place));
    for result in &created.validation_results {
        let state = if result.validated { "verified" } else { "NOT verified" };
        text.push_str(&format!(
            "  {}: {state}; {}\n",
            result.backup_id,
            render::safe(&result.detail)
        ));
    }
    for note in &created.notes {
        text.push_str(&format!("  {}\n", render::safe(note)));
    }
    text.push_str(&format!(
        "Expected to take: {}\n",
        render::safe(&created.estimated_duration)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_restore_is_named_by_the_backup_or_by_one_target() {
        assert_eq!(
            which(Some("x"), vec!["a".into()]).unwrap(),
            ("x".to_owned(), vec!["a".to_owned()])
        );
        assert_eq!(which(None, vec!["a".into()]).unwrap(), ("a".to_owned(), vec![]));
        assert!(
            which(None, vec![])
                .unwrap_err()
                .to_string()
                .contains("say what to restore")
        );
        assert!(
            which(None, vec!["a".into(), "b".into()])
                .unwrap_err()
                .to_string()
                .contains("one at a time")
        );
    }

    #[test]
    fn a_restore_shows_its_destination_without_the_password() {
        let created: RestoreCreated = serde_json::from_value(serde_json::json!({
            "restore_id": "01890000-0000-7000-8000-000000000001",
            "estimated_duration": "2m",
            "status": "pending",
            "validation_results": [{"backup_id": "bkp-20261121-090000Z-000000000001", "validated": false, "detail": "never"}]
        }))
        .unwrap();
        let text = created_text(&created, Some("postgres://u:s3cret@h/db"));
        assert!(!text.contains("s3cret") && text.contains("postgres://u@h/db"), "{text}");
        assert!(text.contains("NOT verified; never"), "{text}");
    }

    #[test]
    fn a_destination_can_be_read_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        std::fs::write(&file, "postgres://u:p@h/db\n").unwrap();
        assert_eq!(
            value_or_file(&format!("@{}", file.display())).unwrap(),
            "postgres://u:p@h/db"
        );
        assert_eq!(value_or_file("/srv/x").unwrap(), "/srv/x");
        assert!(value_or_file("@/nowhere").is_err());
    }
}
