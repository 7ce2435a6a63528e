//! `strongroom config`

use serde_json::Value;
use strongroom_runtime::Loaded;

use super::Outcome;
use crate::args::ConfigCommand;
use crate::render::{self, NONE};

pub(crate) fn run(command: &ConfigCommand, loaded: &Loaded) -> anyhow::Result<Outcome> {
    let ConfigCommand::Show(args) = command;
    let shown = loaded.show();
    if args.json {
        render::print(&serde_json::to_string_pretty(&shown)?)?;
        return Ok(Outcome::Done);
    }
    let rows = shown
        .into_iter()
        .map(|line| vec![line.key, value(&line.value), line.origin]);
    let file = loaded
        .file
        .as_ref()
        .map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    let table = render::table(&["KEY", "VALUE", "ORIGIN"], &[], rows);
    render::print(&format!("configuration file: {}\n\n{table}", render::safe(&file)))?;
    Ok(Outcome::Done)
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => NONE.to_owned(),
        Value::String(text) if text.is_empty() => NONE.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(self::value).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
