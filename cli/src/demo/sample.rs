//! The sample server of the demo: a private Postgres with a database worth backing up.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use rand::RngExt as _;
use strongroom_connectors::postgres::{Cluster, ClusterOptions, ServerBinaries, StopMode, sample_sql};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use url::Url;

pub(super) const SAMPLE_DATABASE: &str = "sample";
const SUPERUSER: &str = "sample_admin";
const MAINTENANCE_DATABASE: &str = "postgres";

/// One line a table: its name, a tab, its rows. psql runs what the query writes.
const ROW_COUNTS: &str = r"
SELECT format('SELECT %L || E''\t'' || count(*) FROM %I.%I', n.nspname || '.' || c.relname, n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
ORDER BY 1 \gexec
SELECT E'large objects\t' || count(*) FROM pg_largeobject_metadata;
";

pub(super) struct Sample {
    cluster: Cluster,
    port: u16,
    pass_file: PathBuf,
    psql: PathBuf,
    /// Removed with the server. A socket's path must be short, and the demo's folder may not be.
    _sockets: TempDir,
}

impl Sample {
    /// Makes a new server in `dir`. What an earlier run left there is removed.
    pub(super) async fn create(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || create(&dir))
            .await
            .context("create the sample server")?
    }

    /// Creates the sample database.
    pub(super) async fn fill(&self, megabytes: u32) -> anyhow::Result<()> {
        let create = format!("CREATE DATABASE {SAMPLE_DATABASE} TEMPLATE template0;\n");
        self.psql(MAINTENANCE_DATABASE, &create)
            .await
            .context("create the sample database")?;
        self.psql(SAMPLE_DATABASE, &sample_sql(megabytes))
            .await
            .context("fill the sample database")
            .map(drop)
    }

    /// Drops a database, where there is one.
    pub(super) async fn drop_database(&self, name: &str) -> anyhow::Result<()> {
        let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE);\n");
        self.psql(MAINTENANCE_DATABASE, &sql)
            .await
            .with_context(|| format!("drop the database {name}"))
            .map(drop)
    }

    pub(super) async fn database_bytes(&self, name: &str) -> anyhow::Result<u64> {
        let text = self
            .psql(name, "SELECT pg_database_size(current_database());\n")
            .await?;
        text.trim().parse().context("ask for the size of the sample database")
    }

    /// Rows by table, and the number of large objects.
    pub(super) async fn row_counts(&self, name: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        let text = self
            .psql(name, ROW_COUNTS)
            .await
            .with_context(|| format!("count the rows of {name}"))?;
        text.lines()
            .map(|line| {
                let (table, rows) = line.split_once('\t').context("a count without a table")?;
                Ok((table.to_owned(), rows.parse().context("a count that is no number")?))
            })
            .collect()
    }

    /// How to connect to one of its databases. Holds the password.
    pub(super) fn url(&self, name: &str) -> anyhow::Result<Url> {
        Ok(self.cluster.url(name)?)
    }

    pub(super) async fn stop(self) {
        let mut cluster = self.cluster;
        // It cannot fail: what does not stop is killed.
        let _ = tokio::task::spawn_blocking(move || cluster.stop(StopMode::Immediate)).await;
    }

    /// Runs a script and returns what it prints. The first error ends it.
    async fn psql(&self, database: &str, script: &str) -> anyhow::Result<String> {
        let mut command = Command::new(&self.psql);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command
            .args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-U",
                SUPERUSER,
                "-d",
                database,
            ])
            .args(["-p", &self.port.to_string()])
            .env("PGPASSFILE", &self.pass_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("run psql")?;
        let mut stdin = child.stdin.take().context("run psql")?;
        let write = async {
            // It fails when psql has ended early; what it said then tells more.
            let _ = stdin.write_all(script.as_bytes()).await;
            drop(stdin);
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        let output = output.context("run psql")?;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("psql printed what is not UTF-8")
    }
}

fn create(dir: &Path) -> anyhow::Result<Sample> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}, which an earlier run left", dir.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let binaries = ServerBinaries::find(0, &[])?;
    let psql = binaries.program("psql");
    let sockets = tempfile::Builder::new()
        .prefix("strongroom-")
        .tempdir()
        .context("create a folder for sockets")?;
    let password: String = rand::rng()
        .random::<[u8; 16]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let port = free_port()?;
    let pass_file = write_pass_file(dir, port, &password)?;
    let options = ClusterOptions {
        superuser: SUPERUSER.to_owned(),
        password: Some(password),
        port: Some(port),
        socket_dir: sockets.path().to_owned(),
        fsync: false,
        settings: vec![("max_wal_size".to_owned(), "2GB".to_owned())],
    };
    let mut cluster = Cluster::create(binaries, &dir.join("data"), options)?;
    cluster.start()?;
    Ok(Sample {
        cluster,
        port,
        pass_file,
        psql,
        _sockets: sockets,
    })
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}

/// psql takes the password from a file, so that it shows in no list of processes.
fn write_pass_file(dir: &Path, port: u16, password: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join("pgpass");
    let failed = || format!("write {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(failed)?;
    writeln!(file, "127.0.0.1:{port}:*:{SUPERUSER}:{password}").with_context(failed)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_sample_is_made_anew_over_what_an_earlier_run_left() {
        let dir = tempfile::tempdir().unwrap();
        // For root the server runs as somebody else, who must be able to pass.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        for _ in ["first", "again"] {
            let sample = Sample::create(&dir.path().join("sample")).await.unwrap();
            sample.fill(1).await.unwrap();
            assert!(sample.database_bytes(SAMPLE_DATABASE).await.unwrap() > 1_000_000);
            let counts = sample.row_counts(SAMPLE_DATABASE).await.unwrap();
            assert!(counts["large objects"] > 0 && counts.len() > 5, "{counts:?}");
            sample.drop_database(SAMPLE_DATABASE).await.unwrap();
            let error = sample.row_counts(SAMPLE_DATABASE).await.unwrap_err();
            assert!(format!("{error:#}").contains("does not exist"), "{error:#}");
            sample.stop().await;
        }
    }
}
