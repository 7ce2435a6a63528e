//! `strongroom restore --preview`: what a restore would do, before anything is touched.

use strongroom_proto::api::CreateRestore;
use strongroom_proto::receipt::Method;
use strongroom_proto::timeline::{RestorePreview, WalPreview};

use super::timeline::{end, moment, timelines};
use super::{Outcome, print_json};
use crate::client::Client;
use crate::render;

pub(super) enum Form {
    Text,
    Json,
}

pub(super) async fn run(client: &Client, request: &CreateRestore, form: Form) -> anyhow::Result<Outcome> {
    let path = ["api", "v1", "restore", "preview"];
    let answer = client.post::<RestorePreview>(&path, Some(request)).await?;
    match form {
        Form::Json => print_json(&answer)?,
        Form::Text => render::print(&text(&answer.value))?,
    }
    Ok(Outcome::Done)
}

fn text(preview: &RestorePreview) -> String {
    let verified = if preview.verified { "verified" } else { "not verified" };
    let mut facts = vec![
        (
            "backup",
            format!("{} of {}, {verified}", preview.backup_id, preview.target),
        ),
        ("complete at", render::time(preview.completed_at)),
        (
            "taken as",
            render::or_none(preview.method, |method| noun(method).to_owned()),
        ),
        ("to fetch", render::bytes(preview.content_bytes)),
    ];
    if let Some(wal) = &preview.wal {
        facts.extend(wal_facts(wal));
    }
    let source = &preview.source;
    let counts = [
        ("tables", source.tables),
        ("rows", source.rows),
        ("large objects", source.large_objects),
        ("files", source.files),
        ("folders", source.directories),
    ];
    facts.extend(
        counts
            .iter()
            .filter_map(|(name, count)| Some((*name, (*count)?.to_string()))),
    );
    facts.push(("expected to take", preview.estimated_duration.clone()));
    let mut text = render::facts(facts);
    for note in &preview.notes {
        text.push_str(&format!("{}\n", render::safe(note)));
    }
    text.push_str("nothing was touched\n");
    text
}

fn wal_facts(wal: &WalPreview) -> Vec<(&'static str, String)> {
    let window = &wal.window;
    let mut facts = vec![
        (
            "WAL to replay",
            format!(
                "{} to {} on timeline {}, {} or less",
                wal.from,
                wal.to,
                wal.timeline,
                render::bytes(wal.bytes)
            ),
        ),
        (
            "window",
            format!(
                "{} to {}, timeline {}; after it comes {}",
                moment(&window.from),
                moment(&window.to),
                timelines(window),
                end(window.end)
            ),
        ),
    ];
    let seconds = wal
        .seconds_before_end
        .map(|seconds| render::duration(std::time::Duration::from_secs(seconds)));
    let distance: Vec<String> = [
        wal.bytes_before_end
            .map(|bytes| format!("{} of WAL", render::bytes(bytes))),
        seconds,
    ]
    .into_iter()
    .flatten()
    .collect();
    if !distance.is_empty() {
        facts.push(("before its end", distance.join(", ")));
    }
    let hole = wal
        .first_gap
        .as_ref()
        .map(|gap| format!("{} to {}", moment(&gap.from), moment(&gap.to)));
    facts.push(("first hole", hole.unwrap_or_else(|| "none".to_owned())));
    facts
}

const fn noun(method: Method) -> &'static str {
    match method {
        Method::Snapshot => "a copy of files",
        Method::LogicalDump => "a dump",
        Method::PhysicalBasebackup => "a whole cluster",
        Method::RebuildOnly => "nothing; it is rebuilt from others",
    }
}
