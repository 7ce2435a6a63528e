//! `strongroom list`: backups, from the API, or what a backup holds, from the vault.

use strongroom_proto::api::{BackupList, BackupView, ListBackups};
use strongroom_runtime::Loaded;

use super::entries::{self, Shape};
use super::{Outcome, print_json};
use crate::args::ListArgs;
use crate::client::Client;
use crate::render;
use crate::vault_access::find_backup;

pub(crate) async fn run(loaded: &Loaded, args: ListArgs) -> anyhow::Result<Outcome> {
    match args.backup.clone() {
        Some(backup) => entries_of(loaded, &backup, &args).await,
        None => backups(&Client::new(loaded)?, args).await,
    }
}

async fn entries_of(loaded: &Loaded, backup: &str, args: &ListArgs) -> anyhow::Result<Outcome> {
    let vault = args.store.open(loaded).await?;
    let identity = args.identity.read(loaded)?;
    let (id, outcome) = find_backup(&vault, backup).await?;
    let shape = Shape::of(args.json, args.long);
    let found = entries::list(&vault, &id, &identity, args.path.as_deref(), shape).await?;
    anyhow::ensure!(
        found > 0 || args.path.is_none(),
        "the backup holds nothing at {}",
        render::safe(args.path.as_deref().unwrap_or_default())
    );
    Ok(outcome)
}

async fn backups(client: &Client, args: ListArgs) -> anyhow::Result<Outcome> {
    let filter = ListBackups {
        backup_type: args.backup_type,
        target: args.target,
        since: args.since,
        limit: args.limit,
    };
    let answer = client.backups(&filter).await?;
    if args.json {
        print_json(&answer)?;
    } else if answer.value.backups.is_empty() {
        render::print("no backups; make one with `strongroom backup TARGET`")?;
    } else {
        render::print(&table(&answer.value))?;
    }
    Ok(Outcome::Done)
}

fn table(list: &BackupList) -> String {
    let rows = list.backups.iter().map(|backup| {
        vec![
            backup.backup_id.to_string(),
            backup.target.to_string(),
            backup.backup_type.to_string(),
            render::time(backup.completed_at),
            render::between(backup.started_at, backup.completed_at),
            render::bytes(backup.size_bytes),
            render::bytes(backup.stored_bytes),
            if backup.partial { "incomplete" } else { "complete" }.to_owned(),
            verified(backup),
            render::or_none(backup.retention_until, render::time),
        ]
    });
    let header = [
        "BACKUP",
        "TARGET",
        "TYPE",
        "COMPLETED",
        "TOOK",
        "SIZE",
        "STORED",
        "STATE",
        "VERIFIED",
        "KEPT UNTIL",
    ];
    render::table(&header, &["TOOK", "SIZE", "STORED"], rows)
}

fn verified(backup: &BackupView) -> String {
    match (backup.verified, backup.verified_at, &backup.verification_error) {
        (true, Some(at), _) => render::time(at),
        (true, None, _) => "yes".to_owned(),
        (false, _, Some(_)) => "FAILED".to_owned(),
        (false, _, None) => "not yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::named::tests::backup;

    #[test]
    fn a_failed_verification_stands_out() {
        let mut failed = backup(2, false);
        failed.verification_error = Some("3 rows are missing".to_owned());
        let text = table(&BackupList {
            backups: vec![failed, backup(1, true), backup(0, false)],
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[1].contains("FAILED") && lines[2].contains("yes") && lines[3].contains("not yet"),
            "{text}"
        );
        assert!(lines[1].contains("30 s  1.0 kB   300 B"), "{text}");
    }
}
