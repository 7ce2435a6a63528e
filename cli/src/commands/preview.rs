//! `strongroom restore --preview`: what a restore would do, before anything is touched.

use serde_json::{Map, Value};
use strongroom_proto::TargetKind;
use strongroom_proto::api::{CreateRestore, JobView};
use strongroom_proto::receipt::Method;
use strongroom_proto::restore::RestoreChanges;
use strongroom_proto::timeline::{RestorePreview, WalPreview};

use super::timeline::{end, moment, timelines};
use super::{Outcome, changes, end_of_job, outcome_of, print_json};
use crate::client::{Answer, Client};
use crate::render;
use crate::wait::{Waited, wait_for_one};

pub(super) enum Form {
    Text,
    Json,
}

pub(super) async fn run(client: &Client, request: CreateRestore, form: Form) -> anyhow::Result<Outcome> {
    let path = ["api", "v1", "restore", "preview"];
    let plan = client.post::<RestorePreview>(&path, Some(&request)).await?;
    let is_text = matches!(form, Form::Text);
    if is_text {
        render::print(&text(&plan.value))?;
    }
    let Some(trial) = trial(request, &plan.value) else {
        match form {
            Form::Text => render::print("nothing was touched")?,
            Form::Json => print_json(&plan)?,
        }
        return Ok(Outcome::Done);
    };
    let created = client.create_restore(&trial).await?;
    let Waited::Ended(job) = wait_for_one(client, created.value.restore_id).await? else {
        return Ok(Outcome::Interrupted);
    };
    let changes = changes::of(client, &job.value).await?;
    match (&changes, is_text) {
        (Some(changes), true) => render::print(&changes::summary(&changes.value))?,
        (None, true) => render::print(&unknown(&plan.value, &job.value))?,
        (_, false) => render::print(&document(&plan.json, changes.as_ref(), &job.value)?)?,
    }
    if is_text {
        render::print("nothing was touched")?;
    }
    // Of a cluster the plan is whole without it: what is there now is not touched, and may be what was lost.
    match plan.value.tables {
        Some(_) => Ok(Outcome::Done),
        None => Ok(outcome_of(&job.value)),
    }
}

/// What is told where nobody could look at what there is now.
fn unknown(plan: &RestorePreview, job: &JobView) -> String {
    let reason = end_of_job(job);
    match &plan.tables {
        Some(tables) => format!(
            "{}what they hold now is not known: {reason}",
            changes::drilled_tables(tables)
        ),
        None => format!("what would change is not known: {reason}"),
    }
}

/// The dry run that tells what would change, or has changed; `None` where there is none: of a cluster whose tables nobody
/// has counted, and of files without a place, at which they would change something.
fn trial(mut request: CreateRestore, plan: &RestorePreview) -> Option<CreateRestore> {
    let has_place = request.destination.is_some() || request.in_place;
    let is_told = match plan.target_kind {
        TargetKind::Postgres => plan.method == Some(Method::LogicalDump) || plan.tables.is_some(),
        TargetKind::Files | TargetKind::Command => has_place,
        TargetKind::Bucket | TargetKind::Config => false,
    };
    // The very backup that the plan is about, whatever has been completed since.
    request.backup_id = Some(plan.backup_id.clone());
    (request.backup_job_id, request.restore_point_id) = (None, None);
    request.dry_run = true;
    request.verify_before_restore = false;
    is_told.then_some(request)
}

/// The plan as the API sent it, with what would change, or why that is not known.
fn document(plan: &str, changes: Option<&Answer<RestoreChanges>>, job: &JobView) -> anyhow::Result<String> {
    let mut document: Map<String, Value> = serde_json::from_str(plan)?;
    match changes {
        Some(changes) => document.insert("changes".to_owned(), serde_json::from_str(&changes.json)?),
        None => {
            let reason = job
                .error
                .clone()
                .unwrap_or_else(|| format!("the dry run is {}", job.status));
            document.insert("changes_error".to_owned(), Value::String(reason))
        }
    };
    Ok(serde_json::to_string(&document)?)
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
        (
            "to fetch",
            // What was stored of it alone says less: chunks that older backups brought are fetched as well.
            format!(
                "{} before compression, so that much or less",
                render::bytes(preview.content_bytes)
            ),
        ),
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
