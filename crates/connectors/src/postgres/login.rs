//! How the tools log in: environment variables and a pass file, never arguments.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use super::target::Endpoint;
use crate::scratch::ScratchDir;

const PASS_FILE: &str = "pgpass";
const DIR_PREFIX: &str = "strongroom-login-";

/// An endpoint with its pass file, which lives as long as this does.
pub(crate) struct Login {
    endpoint: Endpoint,
    dir: ScratchDir,
}

impl Login {
    pub(crate) fn create(endpoint: &Endpoint) -> io::Result<Self> {
        let dir = ScratchDir::create(&std::env::temp_dir(), DIR_PREFIX, 0o700, |_| {})?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.path().join(PASS_FILE))?;
        if let Some(password) = &endpoint.password {
            let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
            writeln!(file, "*:*:*:*:{escaped}")?;
        }
        Ok(Self {
            endpoint: endpoint.clone(),
            dir,
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What must be masked in what the tools say.
    pub(crate) fn secret(&self) -> Option<String> {
        self.endpoint.password.clone()
    }

    /// A command that connects to the endpoint, whatever the environment of this process says.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command
            .env("PGHOST", &self.endpoint.host)
            .env("PGPORT", self.endpoint.port.to_string())
            .env("PGUSER", &self.endpoint.user)
            .env("PGDATABASE", &self.endpoint.database)
            .env("PGPASSFILE", self.dir.path().join(PASS_FILE))
            .env("PGTZ", "UTC")
            // A setting of the database must not change how the same value is written.
            .env("PGOPTIONS", "-c bytea_output=hex -c lc_monetary=C")
            .env("PGAPPNAME", "strongroom")
            .env("PGCONNECT_TIMEOUT", "10")
            // Messages are recognised by their English text.
            .env("LC_ALL", "C");
        for (name, value) in &self.endpoint.tls {
            command.env(format!("PG{}", name.to_uppercase()), value);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::PostgresTarget;

    #[test]
    fn the_password_is_in_the_pass_file_alone_and_the_file_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let target = PostgresTarget::new("postgres://ann:a%3Ab%5Cc@db/shop".parse().unwrap());
        let login = Login::create(&target.endpoint().unwrap()).unwrap();
        let path = login.dir.path().join(PASS_FILE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "*:*:*:*:a\\:b\\\\c\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let command = login.command(Path::new("/bin/true"));
        assert!(!format!("{command:?}").contains("b\\c"));
        drop(login);
        assert!(!path.exists());
    }
}
