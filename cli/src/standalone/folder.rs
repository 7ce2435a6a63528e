//! The state folder: configuration, keys, the lock, and the `env` file that says that everything is up.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rand::RngExt as _;
use strongroom_runtime::{Config, LoadOptions, Loaded};

use crate::keys::{self, Readers, write_private};

const FIRST_CONFIG: &str = "\
# Strongroom's settings. `strongroom config show` lists every key with its value and origin.
# Targets may stand here, or one a file in targets/ (`strongroom target add` writes them there):
#
# targets:
#   orders-db:
#     kind: postgres
#     url: postgres://backup@db.internal/orders
#     password_file: /etc/strongroom/orders.password
#   documents:
#     kind: files
#     path: /srv/documents
#     exclude: ['*.tmp', /cache/]
#     hooks:
#       before: {command: [systemctl, stop, documents], timeout_seconds: 60}
#       after: {command: [systemctl, start, documents], timeout_seconds: 60}
environment: standalone
";

/// A state folder.
#[derive(Clone)]
pub(crate) struct Folder(PathBuf);

/// Holds the folder until it is dropped.
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Folder {
    /// Opens the folder, and makes what is missing in it.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let make = |path: &Path, mode| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(path)
                .with_context(|| format!("make the folder {}", path.display()))
        };
        // The database server of a root-owned folder runs as another user, who must be able to pass through.
        make(dir, 0o711)?;
        let dir = dir
            .canonicalize()
            .with_context(|| format!("find the folder {}", dir.display()))?;
        anyhow::ensure!(
            !dir.to_string_lossy()
                .contains(|c: char| c.is_control() || c == '"' || c == '\\'),
            "the folder's name holds quotes, backslashes or control characters: choose another"
        );
        let folder = Self(dir);
        for (name, mode) in [
            ("keys", 0o700),
            ("targets", 0o700),
            ("nats", 0o700),
            ("logs", 0o700),
            ("scratch", 0o711),
            ("cache", 0o700),
        ] {
            make(&folder.path(name), mode)?;
        }
        let config = folder.path("config.yaml");
        if !config.exists() {
            write_private(&config, FIRST_CONFIG)?;
        }
        keys::ensure(&folder.path("keys"), &Readers::Identity)?;
        Ok(folder)
    }

    /// A path below the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Takes the folder for this process.
    pub(crate) fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.path("lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            anyhow::anyhow!(
                "{} is in use by another `strongroom standalone`: stop that one first",
                self.0.display()
            )
        })?;
        Ok(Lock(file))
    }

    /// The settings of the folder's file, the environment, and those that follow from this run.
    pub(crate) fn config(&self, flags: &[(String, String, String)]) -> anyhow::Result<Loaded> {
        let mut options = LoadOptions::from_process().with_file(Some(self.path("config.yaml")));
        // Addresses in the environment are those of another run, or of another fleet: this one makes its own.
        for name in [
            "STRONGROOM_API",
            "STRONGROOM_TOKEN",
            "NATS_URL",
            "CATALOG_URL",
            "STRONGROOM_CONFIG",
        ] {
            options.env.remove(name);
        }
        options.flags = flags.to_vec();
        options.flags.push(flag("targets_dir", self.path("targets").display()));
        options
            .flags
            .push(flag("worker.scratch_dir", self.path("scratch").display()));
        options.flags.push(flag("cache_dir", self.path("cache").display()));
        Ok(Loaded::load(options)?)
    }

    /// A secret of this folder, made when it is first asked for.
    pub(crate) fn secret(&self, name: &str) -> anyhow::Result<String> {
        let path = self.path("keys").join(name);
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            return Ok(text.trim().to_owned());
        }
        let mut rng = rand::rng();
        let secret: String = (0..32).map(|_| format!("{:02x}", rng.random::<u8>())).collect();
        write_private(&path, &format!("{secret}\n"))?;
        Ok(secret)
    }

    /// The ports of the last start: API, NATS, Postgres.
    pub(crate) fn kept_ports(&self) -> [Option<u16>; 3] {
        let text = fs::read_to_string(self.path("ports")).unwrap_or_default();
        let mut ports = text.split_whitespace().map(|port| port.parse().ok());
        [ports.next().flatten(), ports.next().flatten(), ports.next().flatten()]
    }

    pub(crate) fn keep_ports(&self, ports: [u16; 3]) -> anyhow::Result<()> {
        write_private(
            &self.path("ports"),
            &format!("{} {} {}\n", ports[0], ports[1], ports[2]),
        )
    }

    /// Says that everything is up: a file that a shell can source.
    pub(crate) fn write_ready(&self, config: &Config, catalog_url: &str, nats_url: &str) -> anyhow::Result<()> {
        let token = config.api_token()?.unwrap_or_default();
        let mut text = String::new();
        for (name, value) in [
            ("STRONGROOM_API", config.api.url.as_str()),
            ("STRONGROOM_TOKEN", &token),
            ("NATS_URL", nats_url),
            ("CATALOG_URL", catalog_url),
            ("STRONGROOM_CONFIG", &self.path("config.yaml").to_string_lossy()),
            ("STRONGROOM_TARGETS_DIR", &self.path("targets").to_string_lossy()),
        ] {
            text.push_str(&format!("export {name}='{}'\n", value.replace('\'', r"'\''")));
        }
        let partial = self.path("env.partial");
        write_private(&partial, &text)?;
        fs::rename(&partial, self.path("env")).context("put the env file in place")
    }

    /// Says that nothing is up.
    pub(crate) fn forget_ready(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.path("env")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove the env file"),
            _ => Ok(()),
        }
    }
}

/// A setting that follows from this run.
pub(crate) fn flag(key: &str, value: impl std::fmt::Display) -> (String, String, String) {
    (key.to_owned(), value.to_string(), "standalone".to_owned())
}

/// A value of an `env` file.
pub(crate) fn env_value(text: &str, name: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("export ")?.strip_prefix(name)?.strip_prefix('='))?;
    Some(line.trim_matches('\'').replace(r"'\''", "'"))
}
