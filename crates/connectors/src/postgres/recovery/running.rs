//! A recovered server that is left running.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::copy::{self, data_directory_option};
use super::error::RecoveryError;
use super::server::log_tail;
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::run_as::{RunAs, clean_environment};

const START_SECONDS: &str = "120";
const LOG: &str = "strongroom-server.log";

/// A recovered server that runs by itself, on the loopback address alone. Its own pg_hba.conf says who is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// The program that stops it: `pg_ctl -D FOLDER stop`.
    pub pg_ctl: PathBuf,
}

impl Running {
    /// For a person: how it is stopped, and with which command it is started again.
    pub(super) fn describe(&self, start_command: &str) -> String {
        format!(
            "the server runs; stop it with {} -D {} stop, as the folder's owner; start it again with {start_command}, as the \
             folder's owner; {}",
            copy::shell(&self.pg_ctl.to_string_lossy()),
            copy::shell(&self.data_dir.to_string_lossy()),
            copy::describe(self.port)
        )
    }
}

/// Starts a server that outlives this process, in a folder that is kept to itself on this port.
pub(super) fn start(
    binaries: &ServerBinaries,
    run_as: RunAs,
    data_dir: &Path,
    port: u16,
) -> Result<Running, RecoveryError> {
    // pg_ctl has a shell read them. What it says while it starts goes to our log.
    let options = format!(
        "{} -c logging_collector=off -c log_destination=stderr",
        data_directory_option(&data_dir.to_string_lossy())
    );
    let program = binaries.program("pg_ctl");
    let log = data_dir.join(LOG);
    let mut command = run_as.command(&program, None);
    clean_environment(&mut command)
        .args(["start", "--wait", "--silent", "--timeout", START_SECONDS, "-D"])
        .arg(data_dir)
        .arg("-l")
        .arg(&log)
        .arg("-o")
        .arg(options);
    // Its server would keep a pipe of ours open.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().map_err(RecoveryError::file("run", &program))?;
    if !status.success() {
        return Err(RecoveryError::Ended {
            doing: "start the recovered cluster's server",
            log: format!(
                "{}; the cluster itself is recovered: mend what the server complains of and start it",
                log_tail(&log)
            ),
        });
    }
    Ok(Running {
        port,
        data_dir: data_dir.to_owned(),
        pg_ctl: program,
    })
}
