//! Servers of every major version that is installed.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use strongroom_connectors::postgres::{Cluster, ClusterOptions, PostgresTarget, ServerBinaries, dump};

use crate::memory::Memory;

pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    _dir: tempfile::TempDir,
}

/// The folder of tools that `deploy/bootstrap` fills.
fn tools_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("STRONGROOM_TOOLS") {
        return dir.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/strongroom/tools".into();
    }
    PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".local/state/strongroom/tools")
}

/// Folders of servers beside the system's own.
pub(crate) fn extra_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::env::var_os("STRONGROOM_PG_DIRS")
        .iter()
        .flat_map(|dirs| std::env::split_paths(dirs).collect::<Vec<_>>())
        .collect();
    for entry in std::fs::read_dir(tools_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("pg") {
            dirs.push(entry.path().join("bin"));
        }
    }
    dirs.sort();
    dirs
}

/// One server of every major version, the oldest first.
pub(crate) fn majors() -> Vec<ServerBinaries> {
    let dirs = extra_dirs();
    let mut found = Vec::new();
    let mut next = 1;
    while let Ok(binaries) = ServerBinaries::find(next, &dirs) {
        next = binaries.major + 1;
        found.push(binaries);
    }
    println!(
        "Postgres versions: {:?}",
        found.iter().map(|binaries| &binaries.version).collect::<Vec<_>>()
    );
    assert!(!found.is_empty(), "there is no Postgres server: run deploy/bootstrap");
    found
}

pub(crate) fn oldest() -> ServerBinaries {
    majors().remove(0)
}

pub(crate) fn options(socket_dir: PathBuf) -> ClusterOptions {
    ClusterOptions {
        superuser: "postgres".to_owned(),
        password: None,
        port: None,
        socket_dir,
        fsync: false,
        settings: Vec::new(),
    }
}

/// A folder that the server's user can pass.
pub(crate) fn passable_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::Builder::new().prefix("sr-test-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

impl Server {
    pub(crate) fn start(binaries: ServerBinaries) -> Self {
        let dir = passable_dir();
        let options = options(dir.path().join("socket"));
        let mut cluster = Cluster::create(binaries, &dir.path().join("data"), options).unwrap();
        cluster.start().unwrap();
        Self { cluster, _dir: dir }
    }

    pub(crate) fn of(cluster: Cluster, dir: tempfile::TempDir) -> Self {
        Self { cluster, _dir: dir }
    }

    pub(crate) fn target(&self, database: &str) -> PostgresTarget {
        let mut target = PostgresTarget::new(self.cluster.url(database).unwrap());
        target.bin_dirs = vec![self.cluster.binaries().dir.clone()];
        target
    }

    /// Runs SQL and gives back what psql prints.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let mut child = Command::new(self.cluster.binaries().program("psql"))
            .args([
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                self.cluster.url(database).unwrap().as_str(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn create_database(&self, name: &str, sql: &str) {
        self.sql("postgres", &format!("CREATE DATABASE \"{name}\""));
        self.sql(name, sql);
    }

    pub(crate) fn dump(&self, database: &str) -> Memory {
        let mut memory = Memory::default();
        dump(&self.target(database), &mut memory).unwrap();
        memory
    }
}
