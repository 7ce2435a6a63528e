//! Which backup a person means: a backup id, a job's id, a restore point's id, or a target's newest.

use anyhow::{Context as _, bail};
use strongroom_proto::api::{BackupView, ListBackups};
use strongroom_proto::{BackupId, JobId, RestorePointId, TargetName};

use crate::client::Client;
use crate::render;

/// A backup as it was named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Backup(BackupId),
    Job(JobId),
    RestorePoint(RestorePointId),
}

/// Which of a target's backups its name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Newest {
    /// The newest one.
    Any,
    /// The newest one that has passed a verification.
    Verified,
}

/// Finds out which backup `text` means. What it chose for a target's name goes to standard error.
pub(crate) async fn find(client: &Client, text: &str, newest: Newest) -> anyhow::Result<Named> {
    if let Ok(id) = text.parse::<BackupId>() {
        return Ok(Named::Backup(id));
    }
    if text.starts_with("bkp-") && text.parse::<TargetName>().is_ok_and(|name| name.as_str().len() > 12) {
        bail!(
            "{} is not a complete backup id; `strongroom list` shows them",
            render::safe(text)
        );
    }
    if let Ok(id) = text.parse::<JobId>() {
        return match client.job(id).await {
            Ok(_) => Ok(Named::Job(id)),
            Err(error) if error.is_not_found() => Ok(Named::RestorePoint(RestorePointId::from_uuid(id.as_uuid()))),
            Err(error) => Err(error.into()),
        };
    }
    let target: TargetName = text
        .parse()
        .context("this is no backup id, no job id and no target's name")?;
    let chosen = newest_of(client, &target, newest).await?;
    eprintln!("{}", choice(&target, &chosen));
    Ok(Named::Backup(chosen.backup_id))
}

/// The same, as the id of one backup.
pub(crate) async fn find_one(client: &Client, text: &str) -> anyhow::Result<BackupId> {
    match find(client, text, Newest::Any).await? {
        Named::Backup(id) => Ok(id),
        Named::Job(id) => Ok(client.job(id).await?.value.backup_id),
        Named::RestorePoint(_) => bail!("there is no job {text}; `strongroom list` shows the backups"),
    }
}

async fn newest_of(client: &Client, target: &TargetName, newest: Newest) -> anyhow::Result<BackupView> {
    let filter = ListBackups {
        target: Some(target.to_string()),
        limit: Some(1000),
        ..ListBackups::default()
    };
    // A name that the API takes for a kind or a glob may bring others.
    let mut backups = client.backups(&filter).await?.value.backups;
    backups.retain(|backup| backup.target == *target);
    choose(target, backups, newest)
}

fn choose(target: &TargetName, backups: Vec<BackupView>, newest: Newest) -> anyhow::Result<BackupView> {
    let Some(latest) = backups.iter().max_by_key(|backup| backup.completed_at).cloned() else {
        bail!("there is no backup of {target}: make one with `strongroom backup {target}`");
    };
    let acceptable = backups
        .into_iter()
        .filter(|backup| newest == Newest::Any || backup.verified);
    acceptable.max_by_key(|backup| backup.completed_at).with_context(|| {
        format!(
            "no backup of {target} has been verified: verify the newest with `strongroom verify {id}`, \
             or name it to restore it as it is",
            id = latest.backup_id
        )
    })
}

fn choice(target: &TargetName, backup: &BackupView) -> String {
    let state = match (backup.verified, backup.partial) {
        (true, false) => "verified",
        (true, true) => "verified, incomplete",
        (false, false) => "not verified",
        (false, true) => "not verified, incomplete",
    };
    format!(
        "{target}: {}, of {}, {state}",
        backup.backup_id,
        render::time(backup.completed_at)
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn backup(minute: u32, verified: bool) -> BackupView {
        serde_json::from_value(serde_json::json!({
            "backup_id": format!("bkp-20261121-09{minute:02}00Z-000000000001"),
            "job_id": "01890000-0000-7000-8000-000000000001",
            "target": "orders-db",
            "target_kind": "postgres",
            "type": "full",
            "started_at": format!("2026-11-21T09:{minute:02}:00Z"),
            "completed_at": format!("2026-11-21T09:{minute:02}:30Z"),
            "size_bytes": 1000,
            "stored_bytes": 300,
            "partial": false,
            "verified": verified,
            "verified_at": null,
            "validation_method": null,
            "verification_error": null,
            "retention_until": null,
            "storage_path": "backups/x/receipt.json"
        }))
        .unwrap()
    }

    #[test]
    fn a_targets_name_stands_for_its_newest_verified_backup() {
        let target: TargetName = "orders-db".parse().unwrap();
        let backups = vec![backup(1, true), backup(3, false), backup(2, true)];
        let chosen = choose(&target, backups.clone(), Newest::Verified).unwrap();
        assert_eq!(chosen.backup_id, backup(2, true).backup_id);
        assert!(choice(&target, &chosen).contains("bkp-20261121-090200Z"));
        assert_eq!(
            choose(&target, backups, Newest::Any).unwrap().backup_id,
            backup(3, false).backup_id
        );
    }

    #[test]
    fn a_target_without_a_verified_backup_says_what_to_do() {
        let target: TargetName = "orders-db".parse().unwrap();
        let none = choose(&target, vec![], Newest::Verified).unwrap_err().to_string();
        assert!(none.contains("strongroom backup orders-db"), "{none}");
        let unverified = choose(&target, vec![backup(1, false)], Newest::Verified)
            .unwrap_err()
            .to_string();
        assert!(
            unverified.contains("strongroom verify bkp-20261121-090100Z"),
            "{unverified}"
        );
    }
}
