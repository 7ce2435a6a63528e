//! `strongroom help` and `strongroom completions`

use anyhow::bail;
use clap::{Command, CommandFactory as _};

use super::Outcome;
use crate::args::{Cli, HelpArgs};
use crate::render;

pub(crate) fn run(args: &HelpArgs) -> anyhow::Result<Outcome> {
    let mut root = Cli::command();
    root.build();
    if args.all {
        let mut text = String::new();
        write_all(&mut root, &mut text);
        render::print(&text)?;
        return Ok(Outcome::Done);
    }
    let words: Vec<&str> = args
        .command
        .iter()
        .flat_map(|name| name.split_whitespace())
        .chain(args.words.iter().map(String::as_str))
        .collect();
    let mut command = &mut root;
    for word in words {
        let known: Vec<String> = command
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .collect();
        let name = command.get_name().to_owned();
        match command.find_subcommand_mut(word) {
            Some(found) => command = found,
            None if known.is_empty() => bail!("{name} has no subcommand {}", render::safe(word)),
            None => bail!(
                "{name} has no command {}; known are {}",
                render::safe(word),
                known.join(", ")
            ),
        }
    }
    render::print(&command.render_long_help().to_string())?;
    Ok(Outcome::Done)
}

fn write_all(command: &mut Command, text: &mut String) {
    let heading = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    text.push_str(&format!("## {heading}\n\n{}\n", command.render_long_help()));
    for sub in command.get_subcommands_mut() {
        write_all(sub, text);
    }
}

pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "strongroom", &mut script);
    render::print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
