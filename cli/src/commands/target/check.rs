//! `strongroom target check`: whether a target can be backed up from here.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use strongroom_connectors::postgres::physical::{self, ClusterTarget};
use strongroom_connectors::postgres::{self, PostgresTarget};
use strongroom_proto::{TargetKind, TargetName};
use strongroom_runtime::{Loaded, TargetConfig, WalTransport};

use crate::render;

/// Tries to reach a target from here, and says what was found.
pub(super) async fn check_target(loaded: &Loaded, name: &TargetName, target: TargetConfig) -> anyhow::Result<String> {
    let (bin_dirs, shown) = (loaded.config.worker.pg_bin_dirs.clone(), name.clone());
    let name = name.clone();
    let found = tokio::task::spawn_blocking(move || match target.kind {
        TargetKind::Postgres if target.is_physical() => check_cluster(&name, &target),
        TargetKind::Postgres => check_postgres(&target, bin_dirs),
        TargetKind::Files => check_files(&target),
        TargetKind::Command => check_command(&target),
        kind @ (TargetKind::Bucket | TargetKind::Config) => bail!("targets of kind {kind} cannot be checked yet"),
    })
    .await
    .context("check the target")?;
    found
        .map(|found| format!("{shown}: {found}"))
        .with_context(|| format!("target {shown} cannot be backed up from here"))
}

fn check_postgres(target: &TargetConfig, bin_dirs: Vec<PathBuf>) -> anyhow::Result<String> {
    let url = target.url.as_ref().context("it has no url")?;
    let parsed = url
        .expose()
        .parse()
        .map_err(|_| anyhow::anyhow!("its url is not valid"))?;
    let mut probed = PostgresTarget::new(parsed);
    probed.password_file.clone_from(&target.password_file);
    probed.bin_dirs = bin_dirs;
    let facts = postgres::probe(&probed)?;
    Ok(format!(
        "reached {url}: PostgreSQL {}, {} on its disk, pg_dump {}",
        facts.server_version,
        render::bytes(facts.database_bytes),
        facts.tool_version
    ))
}

/// Looks whether a whole cluster can be backed up: over the replication protocol, as its role.
fn check_cluster(name: &TargetName, target: &TargetConfig) -> anyhow::Result<String> {
    let url = target.url.as_ref().context("it has no url")?;
    let parsed = url
        .expose()
        .parse()
        .map_err(|_| anyhow::anyhow!("its url is not valid"))?;
    let mut cluster = ClusterTarget::new(parsed);
    cluster.password_file.clone_from(&target.password_file);
    if target.wal_transport() == WalTransport::Stream {
        cluster.slot = target.slot_name(name);
    }
    let facts = physical::probe(&cluster)?;
    let size = facts
        .data_bytes
        .map(|bytes| format!(", {} on its disk", render::bytes(bytes)));
    let incremental = match facts.summarizes_wal {
        Some(true) => "incremental backups read what changed",
        Some(false) => "incremental backups read everything: set summarize_wal to on for them to read what changed",
        None => "incremental backups read everything",
    };
    let checksums = if facts.has_checksums {
        ""
    } else {
        "; its pages have no checksums"
    };
    Ok(format!(
        "reached the cluster at {url}: PostgreSQL {}, system {}, timeline {}{}; {incremental}{checksums}",
        facts.server_version,
        facts.system_identifier,
        facts.timeline,
        size.unwrap_or_default()
    ))
}

fn check_files(target: &TargetConfig) -> anyhow::Result<String> {
    let path = target.path.as_deref().context("it has no path")?;
    let mut entries = 0_u64;
    for entry in std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        entry.with_context(|| format!("read {}", path.display()))?;
        entries += 1;
    }
    let mut found = format!("{} can be read, {entries} entries at its top", path.display());
    for hook in [&target.hooks.before, &target.hooks.after].into_iter().flatten() {
        let program = hook.command.first().context("a hook names no program")?;
        found.push_str(&format!("; its hook {} can be run", find_program(program)?.display()));
    }
    Ok(found)
}

fn check_command(target: &TargetConfig) -> anyhow::Result<String> {
    let program = target.program.as_deref().context("it has no program")?;
    Ok(format!("{} can be run; it was not", find_program(program)?.display()))
}

/// Where a program lies that can be run.
fn find_program(program: &str) -> anyhow::Result<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![PathBuf::from(program)]
    } else {
        std::env::split_paths(&folders)
            .map(|folder| folder.join(program))
            .collect()
    };
    let runs = |path: &&PathBuf| {
        std::fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
    };
    candidates
        .iter()
        .find(runs)
        .cloned()
        .with_context(|| format!("there is no program {program} that can be run"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_runtime::HookConfig;

    #[tokio::test]
    async fn a_check_tells_what_it_found_or_what_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = Loaded::defaults();
        let name: TargetName = "a".parse().unwrap();
        let files = |path: PathBuf| TargetConfig {
            path: Some(path),
            ..TargetConfig::of_kind(TargetKind::Files)
        };
        let found = check_target(&loaded, &name, files(dir.path().to_owned()))
            .await
            .unwrap();
        assert!(found.ends_with("can be read, 0 entries at its top"), "{found}");
        let mut hooked = files(dir.path().to_owned());
        hooked.hooks.before = Some(HookConfig {
            command: vec!["no-such-program".to_owned()],
            ..HookConfig::default()
        });
        let error = check_target(&loaded, &name, hooked).await.unwrap_err();
        assert!(format!("{error:#}").contains("no program no-such-program"), "{error:#}");
        let missing = check_target(&loaded, &name, files(dir.path().join("x")))
            .await
            .unwrap_err();
        assert!(
            missing.to_string().contains("target a cannot be backed up"),
            "{missing}"
        );
        let command = |program: &str| TargetConfig {
            program: Some(program.to_owned()),
            ..TargetConfig::of_kind(TargetKind::Command)
        };
        assert!(
            check_target(&loaded, &name, command("sh"))
                .await
                .unwrap()
                .contains("/sh can be run")
        );
        assert!(check_target(&loaded, &name, command("no-such-program")).await.is_err());
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut database = TargetConfig::of_kind(TargetKind::Postgres);
        database.url = Some(strongroom_runtime::SecretUrl::new(format!(
            "postgres://u:s3cret@{free}/db"
        )));
        let error = check_target(&loaded, &name, database).await.unwrap_err();
        assert!(!format!("{error:#} {error:?}").contains("s3cret"), "{error:#}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cluster_is_checked_as_it_is_backed_up_and_a_role_that_may_not_is_told() {
        let server = strongroom_testkit::Postgres::start_major(17).unwrap();
        server.psql("postgres", "CREATE ROLE plain LOGIN").unwrap();
        let name: TargetName = "shop".parse().unwrap();
        let cluster = |url: String| TargetConfig {
            url: Some(strongroom_runtime::SecretUrl::new(url)),
            method: Some(strongroom_runtime::PostgresMethod::PhysicalBasebackup),
            ..TargetConfig::of_kind(TargetKind::Postgres)
        };
        let loaded = Loaded::defaults();
        let found = check_target(&loaded, &name, cluster(server.url("postgres")))
            .await
            .unwrap();
        let wanted = ["PostgreSQL 17", "timeline 1", "set summarize_wal to on"];
        assert!(wanted.iter().all(|text| found.contains(text)), "{found}");
        let plain = format!("postgres://plain@127.0.0.1:{}", server.port());
        let error = check_target(&loaded, &name, cluster(plain)).await.unwrap_err();
        assert!(format!("{error:#}").to_lowercase().contains("replication"), "{error:#}");
    }
}
