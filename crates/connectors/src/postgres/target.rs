//! A Postgres database as configuration names it, and what connecting to it takes.

use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

/// Tables of this size and more become streams of their own, unless told otherwise.
pub const LARGE_TABLE_BYTES: u64 = 32 << 20;

/// A database to dump or to restore into.
#[derive(Clone)]
pub struct PostgresTarget {
    /// `postgres://user[:password]@host[:port]/database`, or a socket's folder as `?host=/folder`. Never printed.
    pub url: Url,
    /// A file that holds the password on its first line; it takes precedence over the URL.
    pub password_file: Option<PathBuf>,
    /// Folders searched for `pg_dump` and the other tools before the system's.
    pub bin_dirs: Vec<PathBuf>,
    /// Tables of this size and more become streams of their own.
    pub large_table_bytes: u64,
}

impl PostgresTarget {
    /// The database at `url`, with the system's tools and the usual limits.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            password_file: None,
            bin_dirs: Vec::new(),
            large_table_bytes: LARGE_TABLE_BYTES,
        }
    }

    pub(crate) fn endpoint(&self) -> Result<Endpoint, TargetError> {
        Endpoint::parse(&self.url, self.password_file.as_deref())
    }
}

impl fmt::Debug for PostgresTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self
            .endpoint()
            .map_or_else(|_| "<not valid>".to_owned(), |endpoint| endpoint.to_string());
        f.debug_struct("PostgresTarget")
            .field("url", &url)
            .field("password_file", &self.password_file)
            .field("bin_dirs", &self.bin_dirs)
            .field("large_table_bytes", &self.large_table_bytes)
            .finish()
    }
}

/// Why a target's configuration cannot be used. No variant shows a value from the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Another scheme.
    #[error("the url of a Postgres target begins with postgres:// or postgresql://")]
    Scheme,
    /// A part that must be there is not.
    #[error("the url of the Postgres target names no {what}: write postgres://user@host/database")]
    Lacks {
        /// The part.
        what: &'static str,
    },
    /// A parameter that would be ignored.
    #[error(
        "the url parameter {name:?} is not supported: use host, port, sslmode, sslrootcert, sslcert, sslkey or \
         connect_timeout"
    )]
    Parameter {
        /// Its name.
        name: String,
    },
    /// A part that cannot be understood.
    #[error("the {what} in the url of the Postgres target is not valid")]
    Invalid {
        /// The part.
        what: &'static str,
    },
    /// A replication slot that no server would make.
    #[error("the replication slot's name is not valid: use 1 to 63 lower-case letters, digits and underscores")]
    Slot,
    /// The password file cannot be read.
    #[error("read the password file {}", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What connecting takes, parsed. Shown as `user@host:port/database`, never with the password.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// A host name, or the folder of a Unix socket.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
    pub(crate) database: String,
    /// `sslmode` and its files, by the names that libpq gives them.
    pub(crate) tls: Vec<(&'static str, String)>,
}

const TLS_PARAMETERS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

impl Endpoint {
    fn parse(url: &Url, password_file: Option<&Path>) -> Result<Self, TargetError> {
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(TargetError::Scheme);
        }
        let mut host = decode(url.host_str().unwrap_or_default(), "host")?;
        if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            host = address.to_owned();
        }
        let mut port = url.port();
        let mut user = decode(url.username(), "user")?;
        let mut password = url.password().map(|text| decode(text, "password")).transpose()?;
        let mut database = decode(url.path().trim_start_matches('/'), "database")?;
        let mut tls = Vec::new();
        for (name, value) in url.query_pairs() {
            let value = value.into_owned();
            match &*name {
                "host" => host = value,
                "port" => port = Some(value.parse().map_err(|_| TargetError::Invalid { what: "port" })?),
                "user" => user = value,
                "password" => password = Some(value),
                "dbname" => database = value,
                "connect_timeout" | "application_name" => {}
                "sslmode" if !SSL_MODES.contains(&&*value) => return Err(TargetError::Invalid { what: "sslmode" }),
                name => match TLS_PARAMETERS.iter().find(|known| **known == name) {
                    Some(known) => tls.push((*known, value)),
                    None => return Err(TargetError::Parameter { name: name.to_owned() }),
                },
            }
        }
        if let Some(path) = password_file {
            let fail = |source| TargetError::PasswordFile {
                path: path.to_owned(),
                source,
            };
            let text = std::fs::read_to_string(path).map_err(fail)?;
            password = text.lines().next().map(str::to_owned);
        }
        for (what, text) in [("host", &host), ("user", &user), ("database", &database)] {
            if text.is_empty() {
                return Err(TargetError::Lacks { what });
            }
            if text.contains('\0') {
                return Err(TargetError::Invalid { what });
            }
        }
        if password.as_ref().is_some_and(|text| text.contains(['\n', '\r', '\0'])) {
            return Err(TargetError::Invalid { what: "password" });
        }
        Ok(Self {
            host,
            port: port.unwrap_or(5432),
            user,
            password: password.filter(|text| !text.is_empty()),
            database,
            tls,
        })
    }

    /// The same server and role, another database.
    pub(crate) fn with_database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// The value of a TLS parameter, where it is set.
    pub(crate) fn tls(&self, name: &str) -> Option<&str> {
        self.tls
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

fn decode(text: &str, what: &'static str) -> Result<String, TargetError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next().unwrap_or_default(), bytes.next().unwrap_or_default()];
        let mut decoded = [0];
        hex::decode_to_slice(digits, &mut decoded).map_err(|_| TargetError::Invalid { what })?;
        out.extend(decoded);
    }
    String::from_utf8(out).map_err(|_| TargetError::Invalid { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> PostgresTarget {
        PostgresTarget::new(url.parse().unwrap())
    }

    #[test]
    fn every_part_of_the_url_is_understood() {
        let endpoint = target("postgres://ann:p%40ss@db.example:5433/my%20shop?sslmode=require")
            .endpoint()
            .unwrap();
        assert_eq!(endpoint.to_string(), "ann@db.example:5433/my shop");
        assert_eq!(endpoint.password.as_deref(), Some("p@ss"));
        assert_eq!(endpoint.tls("sslmode"), Some("require"));
        let socket = target("postgres://ann@localhost/shop?host=%2Frun%2Fpg&port=6000")
            .endpoint()
            .unwrap();
        assert_eq!((socket.host.as_str(), socket.port), ("/run/pg", 6000));
        assert_eq!(target("postgres://ann@[::1]/shop").endpoint().unwrap().host, "::1");
    }

    #[test]
    fn the_password_is_never_shown() {
        let target = target("postgres://ann:hunter2@db/shop");
        assert!(!format!("{target:?} {:?}", target.endpoint().unwrap()).contains("hunter2"));
        for bad in [
            "mysql://a:hunter2@h/d",
            "postgres://a:hunter2%zz@h/d",
            "postgres://a:hunter2@h/d?x=hunter2",
        ] {
            let error = self::target(bad).endpoint().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_password_file_takes_precedence() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from-file\n").unwrap();
        let mut target = target("postgres://ann:from-url@db/shop");
        target.password_file = Some(file.path().to_owned());
        assert_eq!(target.endpoint().unwrap().password.as_deref(), Some("from-file"));
        target.password_file = Some("/nowhere/password".into());
        assert!(matches!(target.endpoint(), Err(TargetError::PasswordFile { .. })));
    }
}
