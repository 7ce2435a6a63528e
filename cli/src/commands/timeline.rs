//! `strongroom timeline`: what can be recovered of a target, and what happened to it.

use clap::Args;
use strongroom_proto::TargetName;
use strongroom_proto::timeline::{Moment, RecoveryWindow, TargetTimeline, TimelineBase, WindowEnd};

use super::{Outcome, print_json};
use crate::client::Client;
use crate::render::{self, Tone};

#[derive(Debug, Args)]
pub(crate) struct TimelineArgs {
    /// The target's name
    #[arg(value_name = "TARGET")]
    target: TargetName,
    /// Print the API's answer as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(client: &Client, args: TimelineArgs) -> anyhow::Result<Outcome> {
    let path = ["api", "v1", "targets", args.target.as_str(), "timeline"];
    let answer = client.get::<TargetTimeline>(&path).await?;
    if args.json {
        print_json(&answer)?;
    } else {
        render::print(&text(&answer.value))?;
    }
    Ok(Outcome::Done)
}

fn text(timeline: &TargetTimeline) -> String {
    let sections = [
        ("Wrong now", alerts(timeline)),
        ("Can be recovered", windows(timeline)),
        ("Base backups", bases(timeline)),
        ("WAL that is missing", gaps(timeline)),
        ("WAL is received", stream(timeline)),
        ("What happened", annotations(timeline)),
    ];
    let shown: Vec<String> = sections
        .into_iter()
        .filter_map(|(heading, body)| Some(format!("{}\n{}", render::tone(Tone::Heading, heading), body?)))
        .collect();
    shown.join("\n")
}

fn windows(timeline: &TargetTimeline) -> Option<String> {
    if timeline.windows.is_empty() {
        // A target without a cluster has nothing to tell here.
        let has_cluster = !timeline.bases.is_empty() || timeline.stream.is_some();
        return has_cluster
            .then(|| "nothing yet: no base backup has all of the WAL that it needs to be consistent\n".to_owned());
    }
    let rows = timeline.windows.iter().map(|window| {
        vec![
            render::time(window.from.time),
            render::time(window.to.time),
            format!("{} to {}", window.from.lsn, window.to.lsn),
            timelines(window),
            window.bases.len().to_string(),
            end(window.end).to_owned(),
        ]
    });
    Some(render::table(
        &["FROM", "TO", "WAL", "TIMELINE", "BASES", "AFTER IT"],
        &["BASES"],
        rows,
    ))
}

pub(super) fn timelines(window: &RecoveryWindow) -> String {
    let timelines: Vec<String> = window.timelines.iter().map(u32::to_string).collect();
    timelines.join(" > ")
}

pub(super) const fn end(end: WindowEnd) -> &'static str {
    match end {
        WindowEnd::Newest => "nothing yet",
        WindowEnd::Hole => "a hole",
        WindowEnd::LeftTimeline => "another timeline",
    }
}

fn bases(timeline: &TargetTimeline) -> Option<String> {
    let rows = timeline.bases.iter().map(|base| {
        vec![
            base.backup_id.to_string(),
            base.backup_type.to_string(),
            base.timeline.to_string(),
            moment(&base.stop),
            render::bytes(base.size_bytes),
            render::bytes(base.stored_bytes),
            state(base).to_owned(),
        ]
    });
    (!timeline.bases.is_empty()).then(|| {
        render::table(
            &["BACKUP", "TYPE", "TIMELINE", "RECOVERS FROM", "SIZE", "STORED", "STATE"],
            &["TIMELINE", "SIZE", "STORED"],
            rows,
        )
    })
}

const fn state(base: &TimelineBase) -> &'static str {
    match (base.usable, base.verified, base.verification_error.is_some()) {
        (false, _, _) => "WAL is missing",
        (true, true, _) => "verified",
        (true, false, true) => "did not verify",
        (true, false, false) => "not verified",
    }
}

fn gaps(timeline: &TargetTimeline) -> Option<String> {
    let rows = timeline
        .gaps
        .iter()
        .map(|gap| vec![moment(&gap.from), moment(&gap.to), gap.timeline.to_string()]);
    (!timeline.gaps.is_empty()).then(|| render::table(&["FROM", "TO", "TIMELINE"], &["TIMELINE"], rows))
}

fn stream(timeline: &TargetTimeline) -> Option<String> {
    let stream = timeline.stream.as_ref()?;
    let received = stream
        .received_to
        .map(|lsn| format!("{lsn} on timeline {}", stream.timeline.unwrap_or(1)));
    Some(render::facts([
        ("by", stream.holder.clone().unwrap_or_else(|| "nobody".to_owned())),
        ("slot", stream.slot.clone().unwrap_or_else(|| render::NONE.to_owned())),
        ("up to", received.unwrap_or_else(|| render::NONE.to_owned())),
        ("server's clock", render::or_none(stream.server_time, render::time)),
        ("behind", render::or_none(stream.behind_bytes, render::bytes)),
        ("heard of", render::time_ago(stream.updated_at)),
        ("last error", render::or_none(stream.last_error.clone(), |error| error)),
    ]))
}

fn alerts(timeline: &TargetTimeline) -> Option<String> {
    let rows = timeline
        .alerts
        .iter()
        .map(|alert| vec![render::time(alert.raised_at), alert.kind.clone(), alert.message.clone()]);
    (!timeline.alerts.is_empty()).then(|| render::table(&["SINCE", "KIND", "WHAT"], &[], rows))
}

fn annotations(timeline: &TargetTimeline) -> Option<String> {
    let rows = timeline.annotations.iter().map(|note| {
        vec![
            render::time(note.at),
            note.kind.as_str().to_owned(),
            note.text.clone(),
            note.source.clone(),
        ]
    });
    (!timeline.annotations.is_empty()).then(|| render::table(&["AT", "KIND", "WHAT", "SOURCE"], &[], rows))
}

pub(super) fn moment(moment: &Moment) -> String {
    format!("{} ({})", render::time(moment.time), moment.lsn)
}
