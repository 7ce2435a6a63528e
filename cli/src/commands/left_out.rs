//! What a partial backup lacks, by name, for whoever waited for it.

use strongroom_proto::api::{JobView, ReceiptView};
use strongroom_proto::receipt::{BackupReceipt, Missing};
use strongroom_proto::{JobKind, JobStatus};

use crate::client::Client;
use crate::render;

/// So many are named; the receipt names more.
const NAMED: usize = 20;

/// The names, one a line; empty where nothing is missing. That the receipt cannot be read changes nothing about the
/// backup, and is said.
pub(crate) async fn text(client: &Client, job: &JobView) -> String {
    if !job.partial || job.kind != JobKind::Backup || job.status != JobStatus::Completed {
        return String::new();
    }
    let path = ["api", "v1", "backups", job.backup_id.as_str(), "receipt"];
    let missing = match client.get::<ReceiptView>(&path).await {
        Ok(answer) => serde_json::from_value::<BackupReceipt>(answer.value.receipt)
            .map(|receipt| receipt.missing)
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match missing {
        Ok(missing) => names(&missing),
        Err(error) => format!("  what is missing could not be read: {}\n", render::safe(&error)),
    }
}

fn names(missing: &[Missing]) -> String {
    let shown = missing.len().min(NAMED);
    let mut text = String::new();
    for missing in missing.iter().take(shown) {
        text.push_str(&format!(
            "  missing: {}: {}\n",
            render::safe(&missing.name),
            render::safe(&missing.reason)
        ));
    }
    if missing.len() > shown {
        text.push_str(&format!("  … and {} more\n", missing.len() - shown));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(count: usize) -> Vec<Missing> {
        (0..count)
            .map(|number| Missing {
                name: format!("dir/f{number}\u{1b}[2J"),
                reason: "permission denied".to_owned(),
                torn: false,
            })
            .collect()
    }

    #[test]
    fn the_first_twenty_are_named_and_the_others_counted() {
        let text = names(&missing(23));
        assert_eq!(text.lines().count(), 21);
        assert!(
            text.starts_with("  missing: dir/f0\\u{1b}[2J: permission denied\n"),
            "{text}"
        );
        assert!(text.ends_with("  … and 3 more\n"), "{text}");
        assert_eq!(names(&missing(20)).lines().count(), 20);
        assert_eq!(names(&[]), "");
    }
}
