//! What a restore of files changed, and what a dry run of one, or of a database's, would change: as text.

use std::cmp::Reverse;

use strongroom_proto::api::JobView;
use strongroom_proto::cluster_tables::{ClusterTable, ClusterTables};
use strongroom_proto::database_changes::{DatabaseChanges, TableChange, TableSize};
use strongroom_proto::restore::{ChangeCounts, ChangeKind, PathChange, RestoreChanges};
use strongroom_proto::{JobStatus, TargetKind};

use super::is_dry_run;
use crate::client::{Answer, Client, ClientError};
use crate::render::{self, NONE};

/// Paths and tables that a summary shows.
const SHOWN: usize = 20;

/// What a restore changed, or would change; `None` where that is not known.
pub(super) async fn of(client: &Client, job: &JobView) -> Result<Option<Answer<RestoreChanges>>, ClientError> {
    let is_tree = matches!(job.target, TargetKind::Files | TargetKind::Command);
    if job.status != JobStatus::Completed || !(is_tree || is_dry_run(job)) {
        return Ok(None);
    }
    client
        .get(&["api", "v1", "jobs", &job.id.to_string(), "changes"])
        .await
        .map(Some)
}

/// Every change that is known one by one.
pub(super) fn listing(changes: &RestoreChanges) -> String {
    if let Some(database) = &changes.database {
        return database_text(&changes.destination, database, usize::MAX) + "nothing was changed\n";
    }
    if let Some(cluster) = &changes.cluster {
        return cluster_text(&changes.destination, cluster, usize::MAX) + "nothing was changed\n";
    }
    let mut text = String::new();
    for change in &changes.changes {
        text.push_str(&line(change));
    }
    if changes.more > 0 {
        text.push_str(&format!("… and {} more\n", changes.more));
    }
    let counts = counts(&changes.counts)
        .map(|(_, count, what)| format!("{count} {what}"))
        .join(", ");
    let (would, place) = (
        if changes.dry_run { "would be " } else { "" },
        render::safe(&changes.destination),
    );
    text.push_str(&format!("{place}: {would}{counts}\n"));
    if changes.dry_run {
        text.push_str("nothing was changed\n");
    }
    text
}

/// The sums of a dry run, and its largest changes.
pub(super) fn summary(changes: &RestoreChanges) -> String {
    if let Some(database) = &changes.database {
        return database_text(&changes.destination, database, SHOWN);
    }
    if let Some(cluster) = &changes.cluster {
        return cluster_text(&changes.destination, cluster, SHOWN);
    }
    let mut text = format!("{}: what would change\n", render::safe(&changes.destination));
    let bytes = changes.bytes.unwrap_or_default();
    let mut rows: Vec<Vec<String>> = counts(&changes.counts)
        .into_iter()
        .map(|(kind, count, what)| {
            let bytes = match kind {
                ChangeKind::Create => Some(bytes.created),
                ChangeKind::Replace => Some(bytes.replaced),
                ChangeKind::Metadata => Some(bytes.metadata),
                ChangeKind::Delete => Some(bytes.deleted),
                ChangeKind::Skip => None,
            };
            vec![
                what.to_owned(),
                count.to_string(),
                render::or_none(bytes, render::bytes),
            ]
        })
        .collect();
    if let Some(unchanged) = changes.unchanged {
        let bytes = render::or_none(bytes.unchanged, render::bytes);
        rows.push(vec!["unchanged".to_owned(), unchanged.to_string(), bytes]);
    }
    text.push_str(&render::table(&["CHANGE", "PATHS", "BYTES"], &["PATHS", "BYTES"], rows));
    let mut largest: Vec<&PathChange> = changes.changes.iter().collect();
    largest.sort_by_key(|change| Reverse(change.bytes.unwrap_or(0)));
    for change in largest.iter().take(SHOWN) {
        text.push_str(&line(change));
    }
    push_more(&mut text, largest.len(), changes.more, "--dry-run lists them");
    text
}

fn counts(counts: &ChangeCounts) -> [(ChangeKind, u64, &'static str); 5] {
    [
        (ChangeKind::Create, counts.created, "created"),
        (ChangeKind::Replace, counts.replaced, "replaced"),
        (ChangeKind::Metadata, counts.metadata, "with other metadata"),
        (ChangeKind::Delete, counts.deleted, "deleted"),
        (ChangeKind::Skip, counts.skipped, "skipped"),
    ]
}

fn line(change: &PathChange) -> String {
    let reason = change
        .reason
        .as_deref()
        .map(|reason| format!(": {}", render::safe(reason)));
    format!(
        "{:8}  {}{}\n",
        change.change.as_str(),
        render::safe(&change.path),
        reason.unwrap_or_default()
    )
}

fn push_more(text: &mut String, known: usize, more: u64, advice: &str) {
    let more = more.saturating_add(known.saturating_sub(SHOWN) as u64);
    if more > 0 {
        text.push_str(&format!("… and {more} more: {advice}\n"));
    }
}

fn database_text(destination: &str, changes: &DatabaseChanges, shown: usize) -> String {
    let mut text = render::safe(destination);
    text.push_str(if changes.exists {
        ": its tables now, and then, in the backup\n"
    } else {
        ": there is no such database now, it would be made\n"
    });
    let mut rows: Vec<Vec<String>> = changes.tables.iter().take(shown).map(table_row).collect();
    let all = "all tables".to_owned();
    rows.push(size_row(
        all,
        String::new(),
        Some(changes.now),
        Some(changes.then),
        String::new(),
    ));
    text.push_str(&size_table("CHANGE", rows));
    push_more_tables(&mut text, changes.more, changes.tables.len(), shown);
    let counts = &changes.counts;
    text.push_str(&format!(
        "tables: {} would be created, {} replaced, {} kept that the backup does not have\n",
        counts.created, counts.replaced, counts.kept
    ));
    if (changes.large_objects_now, changes.large_objects_then) != (0, 0) {
        text.push_str(&format!(
            "large objects: {} now, {} then\n",
            changes.large_objects_now, changes.large_objects_then
        ));
    }
    if let Some(reason) = &changes.refused {
        text.push_str(&format!("such a restore would be refused: {}\n", render::safe(reason)));
    }
    text
}

fn table_row(table: &TableChange) -> Vec<String> {
    let name = format!("{}.{}", table.schema, table.table);
    size_row(
        name,
        table.change.as_str().to_owned(),
        table.now,
        table.then,
        difference(table.rows_changed()),
    )
}

/// What the tables of a cluster held at the end of its base backup, alone: what they hold now is not known.
pub(super) fn drilled_tables(tables: &ClusterTables) -> String {
    sizes_then_and_now(
        "the tables then, at the end of the base backup\n".to_owned(),
        tables,
        SHOWN,
    )
}

fn cluster_text(server: &str, tables: &ClusterTables, shown: usize) -> String {
    let title = format!(
        "{}: the running cluster's tables now, and then, at the end of the base backup\n",
        render::safe(server)
    );
    let mut text = sizes_then_and_now(title, tables, shown);
    text.push_str("the restore goes into an empty folder: nothing of what is there now is touched\n");
    text
}

fn sizes_then_and_now(mut text: String, tables: &ClusterTables, shown: usize) -> String {
    let row = |table: &ClusterTable| {
        let (since, changed) = match (tables.now, table.then, table.now) {
            (None, _, _) => ("", None),
            (_, None, _) => ("new", table.rows_changed()),
            (_, _, None) => ("gone", table.rows_changed()),
            _ => ("", table.rows_changed()),
        };
        let name = table.name.to_string();
        size_row(name, since.to_owned(), table.now, table.then, difference(changed))
    };
    let mut rows: Vec<Vec<String>> = tables.tables.iter().take(shown).map(row).collect();
    let all = "all tables".to_owned();
    rows.push(size_row(
        all,
        String::new(),
        tables.now,
        Some(tables.then),
        String::new(),
    ));
    text.push_str(&size_table("SINCE THEN", rows));
    push_more_tables(&mut text, tables.more, tables.tables.len(), shown);
    text
}

/// A table of rows and bytes, whose second column has this name.
fn size_table(second: &str, rows: Vec<Vec<String>>) -> String {
    let sizes = ["ROWS NOW", "ROWS THEN", "DIFFERENCE", "BYTES NOW", "BYTES THEN"];
    render::table(&[&["TABLE", second], sizes.as_slice()].concat(), &sizes, rows)
}

fn push_more_tables(text: &mut String, more: u64, known: usize, shown: usize) {
    let more = more + known.saturating_sub(shown) as u64;
    if more > 0 {
        text.push_str(&format!("… and {more} more tables: --dry-run and --json list them\n"));
    }
}

fn difference(rows: Option<i128>) -> String {
    match rows {
        Some(0) => "0".to_owned(),
        Some(rows) => format!("{rows:+}"),
        None => NONE.to_owned(),
    }
}

fn size_row(
    name: String,
    change: String,
    now: Option<TableSize>,
    then: Option<TableSize>,
    difference: String,
) -> Vec<String> {
    let rows = |size: Option<TableSize>| render::or_none(size.and_then(|size| size.rows), |rows| rows.to_string());
    let bytes = |size: Option<TableSize>| render::or_none(size.and_then(|size| size.bytes), render::bytes);
    vec![name, change, rows(now), rows(then), difference, bytes(now), bytes(then)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_dry_run_shows_each_change_and_nothing_that_a_terminal_would_obey() {
        let changes: RestoreChanges = serde_json::from_value(serde_json::json!({
            "dry_run": true, "destination": "/srv/x", "more": 7,
            "counts": {"created": 8, "replaced": 0, "metadata": 1, "deleted": 2, "skipped": 1},
            "changes": [{"change": "create", "path": "a\n\u{1b}[2J"}, {"change": "skip", "path": "s", "reason": "a socket"}]
        }))
        .unwrap();
        assert_eq!(
            listing(&changes),
            "create    a\\n\\u{1b}[2J\nskip      s: a socket\n… and 7 more\n\
             /srv/x: would be 8 created, 0 replaced, 1 with other metadata, 2 deleted, 1 skipped\nnothing was changed\n"
        );
    }

    fn change(kind: &str, path: &str, bytes: u64) -> serde_json::Value {
        json!({ "change": kind, "path": path, "bytes": bytes })
    }

    #[test]
    fn a_summary_of_files_shows_the_sums_and_the_largest_changes_first() {
        let mut listed = vec![change("create", "small", 1), change("replace", "large", 9_000_000)];
        listed.extend((0..30).map(|n| change("delete", &format!("old/{n:02}"), 5)));
        let changes: RestoreChanges = serde_json::from_value(json!({
            "dry_run": true, "destination": "/srv/x", "more": 3, "unchanged": 70,
            "counts": { "created": 1, "replaced": 1, "metadata": 0, "deleted": 33, "skipped": 0 },
            "bytes": { "created": 1, "replaced": 9_000_000, "metadata": 0, "deleted": 165, "unchanged": 4_000 },
            "changes": listed
        }))
        .unwrap();
        let text = summary(&changes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "/srv/x: what would change");
        for wanted in [
            "replaced                 1  9.0 MB",
            "unchanged               70  4.0 kB",
            "skipped                  0       -",
        ] {
            assert!(lines.contains(&wanted), "{wanted:?} in:\n{text}");
        }
        assert_eq!(lines[8], "replace   large");
        assert!(!text.contains("small") && !text.contains("old/20"), "{text}");
        assert_eq!(*lines.last().unwrap(), "… and 15 more: --dry-run lists them");
    }

    #[test]
    fn a_database_shows_its_largest_changes_aligned_and_how_many_more_there_are() {
        let size = |rows: u64| json!({ "rows": rows, "bytes": rows * 1_000 });
        let mut tables = vec![
            json!({ "change": "replace", "schema": "public", "table": "a\u{1b}[2J", "then": size(10), "now": size(90) }),
            json!({ "change": "create", "schema": "public", "table": "gone", "then": { "rows": 7 } }),
            json!({ "change": "keep", "schema": "public", "table": "new", "now": { "bytes": 5 } }),
        ];
        tables.extend(
            (0..30).map(|n| json!({ "change": "create", "schema": "s", "table": format!("t{n}"), "then": size(1) })),
        );
        let changes: DatabaseChanges = serde_json::from_value(json!({
            "exists": true, "refused": "the database is not empty", "then": { "rows": 47 }, "now": { "bytes": 90_005 },
            "counts": { "created": 31, "replaced": 1, "kept": 1 }, "large_objects_then": 2, "large_objects_now": 0,
            "tables": tables, "more": 4
        }))
        .unwrap();
        let text = database_text("postgres://u@h/db", &changes, SHOWN);
        let expected = "\
postgres://u@h/db: its tables now, and then, in the backup
TABLE              CHANGE   ROWS NOW  ROWS THEN  DIFFERENCE  BYTES NOW  BYTES THEN
public.a\\u{1b}[2J  replace        90         10         -80    90.0 kB     10.0 kB
public.gone        create          -          7          +7          -           -
public.new         keep            -          -           0        5 B           -
";
        assert!(text.starts_with(expected), "{text}");
        for wanted in [
            "all tables                         -         47                90.0 kB           -",
            "… and 17 more tables: --dry-run and --json list them",
            "tables: 31 would be created, 1 replaced, 1 kept that the backup does not have",
            "large objects: 0 now, 2 then",
            "such a restore would be refused: the database is not empty",
        ] {
            assert!(text.lines().any(|line| line == wanted), "{wanted:?} in:\n{text}");
        }
    }

    #[test]
    fn a_cluster_shows_what_has_changed_since_and_what_is_known_of_then_alone() {
        let table = |name: &str, sizes: serde_json::Value| {
            let mut table = json!({ "database": "shop", "schema": "a.b", "table": name });
            table
                .as_object_mut()
                .unwrap()
                .extend(sizes.as_object().unwrap().clone());
            table
        };
        let size = |rows: u64| json!({ "rows": rows, "bytes": rows * 1_000 });
        let (then, now) = (json!({ "then": size(7) }), json!({ "now": size(9) }));
        let tables: ClusterTables = serde_json::from_value(json!({
            "then": { "rows": 17 }, "now": { "bytes": 99_000 }, "more": 3, "tables": [
                table("both\u{1b}[2J", json!({ "then": size(10), "now": size(90) })),
                table("made", now), table("lost", then), table("unread", json!({ "then": {}, "now": { "bytes": 5 } }))
            ]
        }))
        .unwrap();
        let expected = "\
u@h/db: the running cluster's tables now, and then, at the end of the base backup
TABLE                     SINCE THEN  ROWS NOW  ROWS THEN  DIFFERENCE  BYTES NOW  BYTES THEN
shop.\"a.b\".both\\u{1b}[2J                    90         10         -80    90.0 kB     10.0 kB
shop.\"a.b\".made           new                9          -          -9     9.0 kB           -
shop.\"a.b\".lost           gone               -          7          +7          -      7.0 kB
shop.\"a.b\".unread                            -          -           -        5 B           -
all tables                                   -         17                99.0 kB           -
… and 3 more tables: --dry-run and --json list them
the restore goes into an empty folder: nothing of what is there now is touched
";
        assert_eq!(cluster_text("u@h/db", &tables, SHOWN), expected);

        let mut alone = tables;
        alone.now = None;
        for table in &mut alone.tables {
            table.now = None;
        }
        let text = drilled_tables(&alone);
        let lost = text.lines().find(|line| line.contains("lost")).unwrap();
        let words: Vec<&str> = lost.split_whitespace().collect();
        assert_eq!(words, ["shop.\"a.b\".lost", "-", "7", "-", "-", "7.0", "kB"], "{text}");
    }
}
