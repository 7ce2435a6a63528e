//! A recovered server that is left running.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::error::RecoveryError;
use super::server::log_tail;
use super::settings::copy_settings;
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::run_as::{RunAs, clean_environment};

const START_SECONDS: &str = "120";
const LOG: &str = "strongroom-server.log";

/// A recovered server that runs by itself, on the loopback address alone. Its own pg_hba.conf says who is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The folder of its socket: its data folder.
    pub socket_dir: PathBuf,
    /// The program that stops it: `pg_ctl -D FOLDER stop`.
    pub pg_ctl: PathBuf,
}

impl Running {
    pub(super) fn describe(&self) -> String {
        let folder = self.socket_dir.display();
        format!(
            "the server runs on 127.0.0.1 port {} (socket in {folder}), without archiving and subscriptions; stop it with \
             {} -D {folder} stop, as the folder's owner",
            self.port,
            self.pg_ctl.display()
        )
    }
}

/// Starts a server that outlives this process.
pub(super) fn start(binaries: &ServerBinaries, run_as: RunAs, data_dir: &Path) -> Result<Running, RecoveryError> {
    // Free at this moment; who takes it in between makes the start fail, and nothing worse.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| Ok(listener.local_addr()?.port()));
    let port = port.map_err(RecoveryError::file("find a free port for", data_dir))?;
    let folder = data_dir.to_string_lossy().replace('"', "\"\"");
    let mut settings = copy_settings(binaries.major, data_dir, port);
    settings.push(("listen_addresses".to_owned(), Ipv4Addr::LOCALHOST.to_string()));
    settings.push(("unix_socket_directories".to_owned(), format!("\"{folder}\"")));
    settings.push(("logging_collector".to_owned(), "off".to_owned()));
    settings.push(("log_destination".to_owned(), "stderr".to_owned()));
    // pg_ctl has a shell read them.
    let options: Vec<String> = settings
        .iter()
        .map(|(name, value)| format!("-c '{}'", format!("{name}={value}").replace('\'', "'\\''")))
        .collect();
    let program = binaries.program("pg_ctl");
    let log = data_dir.join(LOG);
    let mut command = run_as.command(&program, None);
    clean_environment(&mut command)
        .args(["start", "--wait", "--silent", "--timeout", START_SECONDS, "-D"])
        .arg(data_dir)
        .arg("-l")
        .arg(&log)
        .arg("-o")
        .arg(options.join(" "));
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
        socket_dir: data_dir.to_owned(),
        pg_ctl: program,
    })
}
