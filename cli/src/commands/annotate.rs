//! `strongroom annotate`

use chrono::{DateTime, Utc};
use clap::Args;
use strongroom_proto::TargetName;
use strongroom_proto::timeline::{Annotation, CreateAnnotation};
use strongroom_proto::wal::RecoveryTarget;

use super::{Outcome, print_json};
use crate::client::Client;
use crate::render;

#[derive(Debug, Args)]
pub(crate) struct AnnotateArgs {
    /// The target's name
    #[arg(value_name = "TARGET")]
    target: TargetName,
    /// What happened
    #[arg(value_name = "TEXT")]
    text: String,
    /// When it happened, with its zone, e.g. 2026-11-21T14:03:05Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<DateTime<Utc>>,
    /// Print the API's answer as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(client: &Client, args: AnnotateArgs) -> anyhow::Result<Outcome> {
    let request = CreateAnnotation {
        text: args.text,
        at: args.at,
    };
    let path = ["api", "v1", "targets", args.target.as_str(), "annotations"];
    let answer = client.post::<Annotation>(&path, Some(&request)).await?;
    if args.json {
        print_json(&answer)?;
    } else {
        let written = &answer.value;
        let (at, text) = (render::time(written.at), render::safe(&written.text));
        render::print(&format!("{} at {at}: {text}", args.target))?;
    }
    Ok(Outcome::Done)
}

/// A time as moments to recover to are written.
fn time(text: &str) -> Result<DateTime<Utc>, String> {
    match text.parse() {
        Ok(RecoveryTarget::Time(time)) => Ok(time),
        _ => Err("write it with its zone, e.g. 2026-11-21T14:03:05Z".to_owned()),
    }
}
