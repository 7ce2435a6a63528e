//! `strongroom wal`: hands WAL to a vault and gets it back, one file at a time, as `archive_command` and
//! `restore_command` ask for it. No configuration is read: the commands run once for every segment.

mod end;
mod fetch;
mod notice;
mod place;
mod prefetch;
mod push;
mod spool;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

pub(crate) use end::{by_signal, on_panic};

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// Write the WAL file that Postgres asks for: restore_command = 'strongroom wal fetch --from FILE "%f" "%p"'
    ///
    /// Exit code 0 when it was found, 1 when the vault definitely has neither this file nor anything after it. Whatever
    /// else happens (no answer, a wrong key, damage, a hole, no space) ends this process by SIGTERM: any other exit code
    /// would tell Postgres that the WAL ends here, and it would promote a server that lacks the rest.
    Fetch(fetch::FetchArgs),
    /// Store a WAL file that Postgres hands over: archive_command = 'strongroom wal push --from FILE "%p"'
    ///
    /// Exit code 0 when it is in the vault for good, 1 when it is not: Postgres keeps it and tries again. A segment whose
    /// content contradicts what the vault has is stored beside it, with a warning, and counts as stored: to refuse it for
    /// ever would fill the database's disk.
    Push(push::PushArgs),
    /// Bring segments ahead; started by fetch
    #[command(hide = true)]
    Prefetch,
}

pub(crate) async fn run(command: WalCommand) -> anyhow::Result<ExitCode> {
    match command {
        WalCommand::Fetch(args) => fetch::run(args).await,
        WalCommand::Push(args) => push::run(args).await,
        WalCommand::Prefetch => prefetch::run().await,
    }
}

/// Whether a command line is a call of `wal fetch`, however wrong: a wrong call must not look like the end of the WAL.
pub(crate) fn is_fetch(args: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let mut args = args.skip(1).skip_while(|arg| arg != "wal");
    args.next().is_some() && args.any(|arg| arg == "fetch")
}

/// Reads a settings file, which may hold secrets: only its owner may be able to read it.
fn read_settings<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let failed = || format!("read {}", path.display());
    let mode = std::fs::metadata(path).with_context(failed)?.mode();
    anyhow::ensure!(
        mode & 0o077 == 0,
        "{0} can be read by others than its owner, and may hold a key: chmod 600 {0}",
        path.display()
    );
    let text = std::fs::read(path).with_context(failed)?;
    serde_json::from_slice(&text).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_that_was_meant_to_fetch_is_recognised() {
        let is = |text: &str| is_fetch(text.split(' ').map(Into::into));
        for text in [
            "strongroom wal fetch a b",
            "strongroom --config x wal fetch",
            "strongroom wal --config x fetch a b",
            "strongroom wal --wrong fetch",
        ] {
            assert!(is(text), "{text}");
        }
        for text in [
            "strongroom",
            "strongroom wal push fetcher",
            "strongroom fetch wal",
            "wal fetch",
        ] {
            assert!(!is(text), "{text}");
        }
    }
}
