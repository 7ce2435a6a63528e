//! `strongroom schedule`

use strongroom_proto::api::{ScheduleList, ScheduleSpec, ScheduleView};

use super::{Outcome, print_json};
use crate::args::{ScheduleCommand, ScheduleCreateArgs, ScheduleUpdateArgs};
use crate::client::{Answer, Client};
use crate::render;

const SCHEDULES: [&str; 3] = ["api", "v1", "schedules"];

pub(crate) async fn run(client: &Client, command: ScheduleCommand) -> anyhow::Result<Outcome> {
    match command {
        ScheduleCommand::List(args) => {
            let answer = client.get::<ScheduleList>(&SCHEDULES).await?;
            if args.json {
                print_json(&answer)?;
            } else if answer.value.schedules.is_empty() {
                render::print(
                    "no schedules; make one with `strongroom schedule create NAME --cron '30 2 * * *' --targets LIST`",
                )?;
            } else {
                render::print(&table(&answer.value.schedules))?;
            }
        }
        ScheduleCommand::Create(args) => {
            let json = args.json;
            let answer = client.post::<ScheduleView>(&SCHEDULES, Some(&created(args))).await?;
            show(&answer, json)?;
        }
        ScheduleCommand::Update(args) => {
            let (json, name) = (args.json, args.name.get().to_owned());
            let path = ["api", "v1", "schedules", &name];
            let before = client.get::<ScheduleView>(&path).await?.value.spec;
            let answer = client.put::<ScheduleView>(&path, &updated(before, args)).await?;
            show(&answer, json)?;
        }
        ScheduleCommand::Delete(args) => {
            let name = args.name.get();
            client.delete(&["api", "v1", "schedules", name]).await?;
            if args.json {
                render::print(&serde_json::json!({ "deleted": name }).to_string())?;
            } else {
                render::print(&format!("deleted {}; its backups stay", render::safe(name)))?;
            }
        }
        ScheduleCommand::Enable(args) => switch(client, args.name.get(), "enable", args.json).await?,
        ScheduleCommand::Disable(args) => switch(client, args.name.get(), "disable", args.json).await?,
    }
    Ok(Outcome::Done)
}

async fn switch(client: &Client, name: &str, action: &str, json: bool) -> anyhow::Result<()> {
    let path = ["api", "v1", "schedules", name, action];
    show(&client.post::<ScheduleView>(&path, None::<&()>).await?, json)
}

fn show(answer: &Answer<ScheduleView>, json: bool) -> anyhow::Result<()> {
    if json {
        print_json(answer)
    } else {
        render::print(&table(std::slice::from_ref(&answer.value)))
    }
}

fn created(args: ScheduleCreateArgs) -> ScheduleSpec {
    ScheduleSpec {
        name: args.name.get().to_owned(),
        cron_expression: args.cron,
        timezone: args.timezone,
        backup_type: args.backup_type,
        targets: args.targets,
        retention_days: args.retention,
        enabled: true,
        catch_up: !args.no_catch_up,
        jitter_seconds: args.jitter,
    }
}

fn updated(before: ScheduleSpec, args: ScheduleUpdateArgs) -> ScheduleSpec {
    ScheduleSpec {
        name: before.name,
        cron_expression: args.cron.unwrap_or(before.cron_expression),
        timezone: args.timezone.unwrap_or(before.timezone),
        backup_type: args.backup_type.or(before.backup_type),
        targets: if args.targets.is_empty() {
            before.targets
        } else {
            args.targets
        },
        retention_days: args.retention.or(before.retention_days),
        enabled: before.enabled,
        catch_up: args.catch_up || (before.catch_up && !args.no_catch_up),
        jitter_seconds: args.jitter.unwrap_or(before.jitter_seconds),
    }
}

fn table(schedules: &[ScheduleView]) -> String {
    let rows = schedules.iter().map(|schedule| {
        let spec = &schedule.spec;
        vec![
            spec.name.clone(),
            spec.cron_expression.clone(),
            spec.timezone.clone(),
            spec.targets.join(","),
            render::or_none(spec.backup_type, |kind| kind.to_string()),
            render::yes_no(spec.enabled).to_owned(),
            render::or_none(schedule.next_run, render::time),
            render::or_none(schedule.last_run, render::time),
            render::or_none(spec.retention_days, |days| format!("{days} d")),
        ]
    });
    let header = [
        "NAME", "CRON", "ZONE", "TARGETS", "TYPE", "ENABLED", "NEXT", "LAST", "KEPT",
    ];
    render::table(&header, &["KEPT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;

    fn update(words: &str) -> ScheduleUpdateArgs {
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        match cli.command {
            Command::Schedule(ScheduleCommand::Update(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let before = ScheduleSpec {
            name: "nightly".to_owned(),
            cron_expression: "30 2 * * *".to_owned(),
            timezone: "Europe/Berlin".to_owned(),
            backup_type: Some(strongroom_proto::BackupType::Full),
            targets: vec!["orders-db".to_owned()],
            retention_days: Some(30),
            enabled: false,
            catch_up: true,
            jitter_seconds: 60,
        };
        let same = updated(before.clone(), update("strongroom schedule update nightly"));
        assert_eq!(same, before);
        let after = updated(
            before.clone(),
            update("strongroom schedule update --name nightly --jitter 5 --no-catch-up"),
        );
        assert_eq!(
            after,
            ScheduleSpec {
                jitter_seconds: 5,
                catch_up: false,
                ..before
            }
        );
    }
}
