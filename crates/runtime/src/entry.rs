//! The way into a service's process: arguments, configuration, tracing, runtime, and the exit code.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{LoadOptions, Loaded};
use crate::{Shutdown, telemetry};

/// How long blocking work may go on after a service has returned.
const RUNTIME_STOP_SECONDS: u64 = 5;

/// Runs a service as a process: reads `--config FILE`, `--help` and `--version`, loads the configuration, sets up
/// tracing and TLS, and runs until the service returns or a signal cancels the token. Exit code 0, or 1 with the
/// reason on standard error.
pub fn service_main(
    name: &'static str,
    run: impl AsyncFnOnce(Loaded, CancellationToken) -> anyhow::Result<()>,
) -> ExitCode {
    let file = match parse(std::env::args().skip(1)) {
        Ok(Invocation::Run(file)) => file,
        Ok(Invocation::Help) => {
            print!("{}", help(name));
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Version) => {
            println!("{name} {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("{name}: {message}");
            return ExitCode::FAILURE;
        }
    };
    match start(name, file, run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(name, error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Makes *ring* the process's TLS provider. Further calls do nothing.
pub fn install_tls_provider() {
    // It fails when a provider is in place, which is what was wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Prints an error and each of its causes on a line of its own.
pub fn report(name: &str, error: &(dyn Error + 'static)) {
    eprintln!("{name}: {error}");
    for cause in causes(error) {
        eprintln!("  because: {cause}");
    }
}

/// An error and its causes on one line.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    for cause in causes(error) {
        line.push_str(": ");
        line.push_str(&cause.to_string());
    }
    line
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |error: &&'a (dyn Error + 'static)| (*error).source())
}

fn start(
    name: &'static str,
    file: Option<PathBuf>,
    run: impl AsyncFnOnce(Loaded, CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let loaded = Loaded::load(LoadOptions::from_process().with_file(file))?;
    install_tls_provider();
    let _guard = telemetry::init(name, &loaded.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        run(loaded, shutdown.token()).await
    });
    runtime.shutdown_timeout(Duration::from_secs(RUNTIME_STOP_SECONDS));
    result
}

#[derive(Debug, PartialEq, Eq)]
enum Invocation {
    Run(Option<PathBuf>),
    Help,
    Version,
}

fn parse(args: impl Iterator<Item = String>) -> Result<Invocation, String> {
    let mut args = args;
    let mut file = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Invocation::Help),
            "--version" | "-V" => return Ok(Invocation::Version),
            "--config" => match args.next() {
                Some(path) => file = Some(PathBuf::from(path)),
                None => return Err("--config needs a file".to_owned()),
            },
            other => match other.strip_prefix("--config=") {
                Some(path) => file = Some(PathBuf::from(path)),
                None => return Err(format!("unknown argument {other:?}; see --help")),
            },
        }
    }
    Ok(Invocation::Run(file))
}

fn help(name: &str) -> String {
    format!(
        "{name}: a service of Strongroom\n\n\
         Usage: {name} [--config FILE]\n\n\
         Options:\n  \
         --config FILE  the configuration; without it STRONGROOM_CONFIG, then ~/.config/strongroom/config.yaml\n  \
         --help         this text\n  \
         --version      the version\n\n\
         Every key can be set by a variable: nats.url by STRONGROOM_NATS_URL, and so on.\n\
         `strongroom config show` prints all keys with their values and where each came from.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Invocation, String> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn only_the_documented_arguments_are_taken() {
        assert_eq!(parsed(&[]), Ok(Invocation::Run(None)));
        assert_eq!(parsed(&["--config", "a"]), Ok(Invocation::Run(Some("a".into()))));
        assert_eq!(parsed(&["--config=b"]), Ok(Invocation::Run(Some("b".into()))));
        assert_eq!(parsed(&["-h"]), Ok(Invocation::Help));
        assert_eq!(parsed(&["--version"]), Ok(Invocation::Version));
        assert!(parsed(&["--config"]).is_err());
        assert!(parsed(&["--confg=b"]).unwrap_err().contains("--help"));
    }

    #[test]
    fn a_chain_of_causes_fits_on_one_line() {
        let error = anyhow::anyhow!("connection refused").context("connect to NATS");
        assert_eq!(one_line(error.as_ref()), "connect to NATS: connection refused");
    }
}
