//! `strongroom target`

mod check;
mod declared;

use std::time::{Duration, Instant};

use anyhow::bail;
use strongroom_proto::TargetName;
use strongroom_proto::api::TargetList;
use strongroom_runtime::{Loaded, TargetBook};

use self::declared::{add, is_declared, remove};
use super::{Outcome, print_json};
use crate::args::TargetCommand;
use crate::client::{Client, ClientError};
use crate::render;

pub(crate) use self::declared::declare_postgres;

/// The coordinator looks at its targets about once a second.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) async fn run(loaded: &Loaded, command: TargetCommand) -> anyhow::Result<Outcome> {
    match command {
        TargetCommand::List(args) => {
            let answer = Client::new(loaded)?
                .get::<TargetList>(&["api", "v1", "targets"])
                .await?;
            if args.json {
                print_json(&answer)?;
            } else if answer.value.targets.is_empty() {
                render::print(
                    "no targets; declare one with `strongroom target add` or under targets: in the configuration",
                )?;
            } else {
                render::print(&table(&answer.value))?;
            }
        }
        TargetCommand::Check(args) => {
            let Some(target) = TargetBook::new(loaded)?.get(&args.name) else {
                bail!(
                    "{} is not declared in the configuration that this program reads; see `strongroom config show`",
                    args.name
                );
            };
            render::print(&check::check_target(loaded, &args.name, target).await?)?;
        }
        TargetCommand::Add(args) => {
            let name = args.name.clone();
            let path = add(loaded, *args)?;
            let seen = seen_by_coordinator(loaded, &name, Listed::Yes).await;
            render::print(&format!("{name} is declared in {}{seen}", path.display()))?;
            render::print(&format!("Try it with: strongroom backup {name} --wait"))?;
        }
        TargetCommand::Remove(args) => {
            let name = &args.name;
            let what = if name.is_scenario() && !is_declared(loaded, name)? {
                forget(&Client::new(loaded)?, name).await?;
                format!("forgot {name} until it is deployed again")
            } else {
                let path = remove(loaded, name)?;
                let told = match forget_too(loaded, name).await {
                    Ok(()) => seen_by_coordinator(loaded, name, Listed::No).await,
                    Err(error) => format!(
                        "; if {name} was deployed too it is a target still, for the coordinator did not forget it: {error}; \
                         then run this again"
                    ),
                };
                format!("removed {}{told}", path.display())
            };
            render::print(&format!("{what}; the backups of {name} stay"))?;
        }
    }
    Ok(Outcome::Done)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    Yes,
    No,
}

/// Waits a little until the coordinator lists the target, or lists it no more, so that the next command meets it so.
/// Says what is to be known about that; nothing where all is well.
async fn seen_by_coordinator(loaded: &Loaded, name: &TargetName, wanted: Listed) -> String {
    let Ok(client) = Client::new(loaded) else {
        return String::new();
    };
    let began = Instant::now();
    loop {
        let targets = match client.get::<TargetList>(&["api", "v1", "targets"]).await {
            Ok(answer) => answer.value.targets,
            // A target may be declared before the coordinator runs.
            Err(error) => return format!("; whether the coordinator reads it is not known: {error}"),
        };
        let listed = targets.iter().any(|target| target.name == *name);
        if listed == (wanted == Listed::Yes) {
            return String::new();
        }
        if began.elapsed() > SEEN_WITHIN {
            let url = client.url();
            return format!("; the coordinator at {url} has not taken that up: does it read that folder?");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

pub(crate) fn table(list: &TargetList) -> String {
    let rows = list.targets.iter().map(|target| {
        vec![
            target.name.to_string(),
            target.kind.to_string(),
            target.surface.clone(),
            target.pool.clone(),
            target.location.clone(),
            render::or_none(target.last_backup_at, render::time),
            if target.last_backup.is_some() {
                render::yes_no(target.last_backup_verified)
            } else {
                render::NONE
            }
            .to_owned(),
        ]
    });
    render::table(
        &["NAME", "KIND", "SURFACE", "POOL", "LOCATION", "LAST BACKUP", "VERIFIED"],
        &[],
        rows,
    )
}

/// Has the coordinator forget a scenario that was deployed.
async fn forget(client: &Client, name: &TargetName) -> Result<(), ClientError> {
    client.delete(&["api", "v1", "targets", name.as_str()]).await
}

/// What was declared here may have been deployed too, or may not.
async fn forget_too(loaded: &Loaded, name: &TargetName) -> anyhow::Result<()> {
    if !name.is_scenario() {
        return Ok(());
    }
    match forget(&Client::new(loaded)?, name).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}
