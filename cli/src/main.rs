//! `strongroom`: the command line.
//!
//! Client commands are thin: they speak the HTTP API and print what it says. Exit codes: 0 done, 1 failed, 2 done or
//! answered with a warning.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod args;
mod client;
mod commands;
mod demo;
mod keys;
mod render;
mod standalone;
mod vault_access;
mod wait;

use std::process::ExitCode;

use clap::Parser as _;

use args::Cli;
use commands::wal;
use strongroom_runtime::entry::one_line;

/// How long blocking work may go on after the command has ended.
const BLOCKING_WORK: std::time::Duration = std::time::Duration::from_secs(2);
/// The exit code of an answer that needs attention.
const EXIT_WARNING: u8 = 2;

fn main() -> ExitCode {
    // Its failures must not have an exit code.
    let is_fetch = wal::is_fetch(std::env::args_os());
    if is_fetch {
        wal::on_panic();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if is_fetch && error.use_stderr() => wal::by_signal(&error.to_string()),
        Err(error) => {
            // clap's own code for a wrong call is 2, which means a warning here.
            let code = if error.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
            let _ = error.print();
            return code;
        }
    };
    strongroom_runtime::entry::install_tls_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) if is_fetch => wal::by_signal(&format!("start the runtime: {error}")),
        Err(error) => {
            eprintln!("strongroom: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(Box::pin(commands::run(cli)));
    if is_fetch && let Err(error) = &result {
        wal::by_signal(&render::safe(&one_line(error.as_ref())));
    }
    // Blocking work that did not see its end does not keep the process.
    runtime.shutdown_timeout(BLOCKING_WORK);
    match result {
        Ok(code) => code,
        Err(error) => {
            let mut lines = error.chain().map(|cause| render::safe_lines(&cause.to_string()));
            eprintln!("strongroom: {}", lines.next().unwrap_or_default());
            for cause in lines {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}
