//! `strongroom target`

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use strongroom_connectors::postgres::physical::{self, ClusterTarget};
use strongroom_connectors::postgres::{self, PostgresTarget};
use strongroom_proto::api::TargetList;
use strongroom_proto::{TargetKind, TargetName};
use strongroom_runtime::{Loaded, TargetBook, TargetConfig, WalTransport};

use super::restore::value_or_file;
use super::{Outcome, print_json};
use crate::args::{TargetAddArgs, TargetCommand};
use crate::client::{Client, ClientError};
use crate::render;

/// The coordinator looks at its targets about once a second.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) async fn run(loaded: &Loaded, command: TargetCommand) -> anyhow::Result<Outcome> {
    match command {
        TargetCommand::List(args) => {
            let answer = Client::new(loaded)?
                .get::<TargetList>(&["api", "v1", "targets"])
                .await?;
            if args.json {
                print_json(&answer)?;
            } else if answer.value.targets.is_empty() {
                render::print(
                    "no targets; declare one with `strongroom target add` or under targets: in the configuration",
                )?;
            } else {
                render::print(&table(&answer.value))?;
            }
        }
        TargetCommand::Check(args) => {
            let Some(target) = TargetBook::new(loaded)?.get(&args.name) else {
                bail!(
                    "{} is not declared in the configuration that this program reads; see `strongroom config show`",
                    args.name
                );
            };
            render::print(&check_target(loaded, &args.name, target).await?)?;
        }
        TargetCommand::Add(args) => {
            let name = args.name.clone();
            let path = add(loaded, *args)?;
            let seen = seen_by_coordinator(loaded, &name, Listed::Yes).await;
            render::print(&format!("{name} is declared in {}{seen}", path.display()))?;
            render::print(&format!("Try it with: strongroom backup {name} --wait"))?;
        }
        TargetCommand::Remove(args) => {
            let name = &args.name;
            let what = if name.is_scenario() && !is_declared(loaded, name)? {
                forget(&Client::new(loaded)?, name).await?;
                format!("forgot {name} until it is deployed again")
            } else {
                let path = remove(loaded, name)?;
                if name.is_scenario() {
                    // It may have been deployed too. A coordinator that is away is named below.
                    let _ = forget(&Client::new(loaded)?, name).await;
                }
                let seen = seen_by_coordinator(loaded, name, Listed::No).await;
                format!("removed {}{seen}", path.display())
            };
            render::print(&format!("{what}; the backups of {name} stay"))?;
        }
    }
    Ok(Outcome::Done)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    Yes,
    No,
}

/// Waits a little until the coordinator lists the target, or lists it no more, so that the next command meets it so.
/// Says what is to be known about that; nothing where all is well.
async fn seen_by_coordinator(loaded: &Loaded, name: &TargetName, wanted: Listed) -> String {
    let Ok(client) = Client::new(loaded) else {
        return String::new();
    };
    let began = Instant::now();
    loop {
        let targets = match client.get::<TargetList>(&["api", "v1", "targets"]).await {
            Ok(answer) => answer.value.targets,
            // A target may be declared before the coordinator runs.
            Err(error) => return format!("; whether the coordinator reads it is not known: {error}"),
        };
        let listed = targets.iter().any(|target| target.name == *name);
        if listed == (wanted == Listed::Yes) {
            return String::new();
        }
        if began.elapsed() > SEEN_WITHIN {
            let url = client.url();
            return format!("; the coordinator at {url} has not taken that up: does it read that folder?");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

pub(crate) fn table(list: &TargetList) -> String {
    let rows = list.targets.iter().map(|target| {
        vec![
            target.name.to_string(),
            target.kind.to_string(),
            target.surface.clone(),
            target.pool.clone(),
            target.location.clone(),
            render::or_none(target.last_backup_at, render::time),
            if target.last_backup.is_some() {
                render::yes_no(target.last_backup_verified)
            } else {
                render::NONE
            }
            .to_owned(),
        ]
    });
    render::table(
        &["NAME", "KIND", "SURFACE", "POOL", "LOCATION", "LAST BACKUP", "VERIFIED"],
        &[],
        rows,
    )
}

/// Tries to reach a target from here, and says what was found.
async fn check_target(loaded: &Loaded, name: &TargetName, target: TargetConfig) -> anyhow::Result<String> {
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

/// The folder that targets are added to.
fn folder(loaded: &Loaded) -> anyhow::Result<&Path> {
    loaded.config.targets_dir.as_deref().context(
        "targets_dir is not set, so there is no folder to keep targets in: set it in the configuration or as \
         STRONGROOM_TARGETS_DIR to the folder that the coordinator and the workers read",
    )
}

fn add(loaded: &Loaded, args: TargetAddArgs) -> anyhow::Result<PathBuf> {
    let folder = folder(loaded)?;
    let book = TargetBook::new(loaded)?;
    if book.get(&args.name).is_some() {
        bail!(
            "{0} is declared already; remove it first with `strongroom target remove {0}`, or choose another name",
            args.name
        );
    }
    let name = args.name.clone();
    let declaration = declaration(args)?;
    // The same rules as when it is read, before anything is written.
    let mut target = declaration.clone();
    target.as_object_mut().and_then(|map| map.remove("name"));
    serde_json::from_value::<TargetConfig>(target)
        .context("declare the target")?
        .validate(&name)?;
    write_private(folder, &file_name(&name), &serde_saphyr::to_string(&declaration)?)
}

/// Declares a database, or declares it anew.
pub(crate) fn declare_postgres(folder: &Path, name: &TargetName, url: &str) -> anyhow::Result<PathBuf> {
    let declaration = json!({ "name": name, "kind": "postgres", "url": url });
    write_private(folder, &file_name(name), &serde_saphyr::to_string(&declaration)?)
}

fn declaration(args: TargetAddArgs) -> anyhow::Result<Value> {
    let mut map = Map::new();
    map.insert("name".to_owned(), json!(args.name));
    map.insert("kind".to_owned(), json!(args.kind));
    let path = |path: PathBuf| {
        path.into_os_string()
            .into_string()
            .map_err(|_| anyhow::anyhow!("a path is not UTF-8"))
    };
    let hook = |command: Vec<String>| {
        let mut hook = Map::from_iter([("command".to_owned(), Value::from(command))]);
        hook.extend(
            args.hook_timeout_seconds
                .map(|seconds| ("timeout_seconds".to_owned(), seconds.into())),
        );
        Value::from(hook)
    };
    let hooks: Map<String, Value> = [("before", args.before), ("after", args.after)]
        .into_iter()
        .filter(|(_, command)| !command.is_empty())
        .map(|(name, command)| (name.to_owned(), hook(command)))
        .collect();
    if hooks.is_empty() && args.hook_timeout_seconds.is_some() {
        bail!("--hook-timeout-seconds needs --before or --after: there is nothing else it could limit");
    }
    let hooks = (!hooks.is_empty()).then(|| Value::from(hooks));
    let values = [
        ("surface", args.surface.map(Value::from)),
        ("pool", args.pool.map(Value::from)),
        ("description", args.description.map(Value::from)),
        (
            "url",
            args.url.as_deref().map(value_or_file).transpose()?.map(Value::from),
        ),
        (
            "password_file",
            args.password_file.map(path).transpose()?.map(Value::from),
        ),
        ("large_table_bytes", args.large_table_bytes.map(Value::from)),
        ("method", args.method.map(Value::from)),
        ("slot", args.slot.map(Value::from)),
        ("wal_interval_seconds", args.wal_interval_seconds.map(Value::from)),
        ("max_rate_bytes", args.max_rate_bytes.map(Value::from)),
        ("wal", args.wal.map(Value::from)),
        ("path", args.path.map(path).transpose()?.map(Value::from)),
        ("exclude", (!args.exclude.is_empty()).then(|| Value::from(args.exclude))),
        ("one_file_system", args.one_file_system.then_some(Value::Bool(true))),
        ("exclude_caches", args.exclude_caches.then_some(Value::Bool(true))),
        ("max_file_bytes", args.max_file_bytes.map(Value::from)),
        ("zstd_level", args.zstd_level.map(Value::from)),
        ("hooks", hooks),
        ("program", args.program.map(Value::from)),
        ("args", (!args.args.is_empty()).then(|| Value::from(args.args))),
        ("timeout_seconds", args.timeout_seconds.map(Value::from)),
    ];
    for (key, value) in values {
        if let Some(value) = value {
            map.insert(key.to_owned(), value);
        }
    }
    Ok(Value::Object(map))
}

/// One name, one file: '/' is the one character of a name that a file's name cannot have, and '+' is none of a name.
fn file_name(name: &TargetName) -> String {
    format!("{}.yaml", name.as_str().replace('/', "+"))
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(folder: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    let failed = || format!("write {}", path.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    // A name with a leading dot is not read as a target before it is in place.
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)
        .with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(&path).with_context(failed)?;
    Ok(path)
}

fn remove(loaded: &Loaded, name: &TargetName) -> anyhow::Result<PathBuf> {
    let folder = folder(loaded)?;
    if let Some(path) = declared_in(folder, name)? {
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        return Ok(path);
    }
    if loaded.config.targets.contains_key(name) {
        let file = loaded
            .file
            .as_ref()
            .map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string());
        bail!("{name} is declared in {file}: remove it there");
    }
    bail!(
        "no target {name} is declared in {}; `strongroom target list` shows the known ones",
        folder.display()
    )
}

/// Whether a file here declares it.
fn is_declared(loaded: &Loaded, name: &TargetName) -> anyhow::Result<bool> {
    let folder = loaded.config.targets_dir.as_deref();
    let in_folder = folder.map(|folder| declared_in(folder, name)).transpose()?.flatten();
    Ok(in_folder.is_some() || loaded.config.targets.contains_key(name))
}

/// Has the coordinator forget a scenario that was deployed.
async fn forget(client: &Client, name: &TargetName) -> Result<(), ClientError> {
    client.delete(&["api", "v1", "targets", name.as_str()]).await
}

fn declared_in(folder: &Path, name: &TargetName) -> anyhow::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        if !path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
        {
            continue;
        }
        // A file that cannot be read is not this target's; the coordinator reports it.
        let declared = std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| serde_saphyr::from_str::<Value>(&text).ok())
            .and_then(|tree| tree.get("name").and_then(Value::as_str).map(str::to_owned));
        if declared.as_deref() == Some(name.as_str()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;
    use strongroom_runtime::HookConfig;

    fn loaded(folder: &Path) -> Loaded {
        let mut loaded = Loaded::defaults();
        loaded.config.targets_dir = Some(folder.to_owned());
        loaded
    }

    fn add_args(words: &[&str]) -> TargetAddArgs {
        let cli = Cli::try_parse_from(["strongroom", "target", "add"].iter().chain(words)).unwrap();
        match cli.command {
            Command::Target(TargetCommand::Add(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_added_target_is_read_by_the_book_and_only_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("targets");
        let loaded = loaded(&folder);
        let url = "postgres://u:p%40ss@h:5/db";
        let path = add(
            &loaded,
            add_args(&[
                "scenario/db",
                "--kind",
                "postgres",
                "--url",
                url,
                "--description",
                "yes: #1",
            ]),
        )
        .unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let name = "scenario/db".parse().unwrap();
        let target = TargetBook::new(&loaded).unwrap().get(&name).unwrap();
        assert_eq!(target.url.unwrap().expose(), url);
        assert_eq!(target.description.as_deref(), Some("yes: #1"));
        let again = add(&loaded, add_args(&["scenario/db", "--kind", "files", "--path", "/x"])).unwrap_err();
        assert!(again.to_string().contains("declared already"), "{again}");
        assert_eq!(remove(&loaded, &name).unwrap(), path);
        assert!(TargetBook::new(&loaded).unwrap().get(&name).is_none());
        assert!(
            remove(&loaded, &name)
                .unwrap_err()
                .to_string()
                .contains("no target scenario/db")
        );
    }

    #[test]
    fn the_options_of_a_cluster_are_written_as_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = loaded(dir.path());
        let words = "shop --kind postgres --url postgres://r@h --method physical_basebackup --slot s \
                     --wal-interval-seconds 3 --max-rate-bytes 1000000 --wal stream";
        let words: Vec<&str> = words.split_whitespace().collect();
        add(&loaded, add_args(&words)).unwrap();
        let name = "shop".parse().unwrap();
        let target = TargetBook::new(&loaded).unwrap().get(&name).unwrap();
        assert!(target.is_physical());
        assert_eq!(
            (target.slot_name(&name).as_str(), target.wal_interval().as_secs()),
            ("s", 3)
        );
        assert_eq!(target.max_rate_bytes, Some(1_000_000));
        for (words, advice) in [
            (
                "a --kind postgres --url postgres://r@h/d --slot s",
                "add method: physical_basebackup",
            ),
            (
                "a --kind postgres --url postgres://r@h/d --method snapshot",
                "declare the target",
            ),
        ] {
            let words: Vec<&str> = words.split_whitespace().collect();
            let error = add(&loaded, add_args(&words)).unwrap_err();
            assert!(format!("{error:#}").contains(advice), "{error:#}");
        }
    }

    #[test]
    fn the_options_of_a_tree_are_written_as_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = loaded(dir.path());
        let words = "docs --kind files --path /srv --exclude *.tmp --exclude !keep.tmp --one-file-system \
                     --exclude-caches --max-file-bytes 1000000 --before fsfreeze --before -f --before /srv \
                     --after fsfreeze --after -u --after /srv --hook-timeout-seconds 9";
        let words: Vec<&str> = words.split_whitespace().collect();
        add(&loaded, add_args(&words)).unwrap();
        let target = TargetBook::new(&loaded).unwrap().get(&"docs".parse().unwrap()).unwrap();
        assert_eq!(target.exclude, ["*.tmp", "!keep.tmp"]);
        assert!(target.one_file_system && target.exclude_caches);
        assert_eq!(target.max_file_bytes, Some(1_000_000));
        let (before, after) = (target.hooks.before.unwrap(), target.hooks.after.unwrap());
        assert_eq!(before.command, ["fsfreeze", "-f", "/srv"]);
        assert_eq!(after.command, ["fsfreeze", "-u", "/srv"]);
        assert_eq!((before.timeout_seconds, after.timeout_seconds), (9, 9));
        let useless = add_args(&["a", "--kind", "files", "--path", "/x", "--hook-timeout-seconds", "9"]);
        assert!(
            add(&loaded, useless)
                .unwrap_err()
                .to_string()
                .contains("needs --before")
        );
    }

    #[test]
    fn a_target_that_cannot_work_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = loaded(dir.path());
        let error = add(
            &loaded,
            add_args(&["a", "--kind", "files", "--url", "postgres://u:s3cret@h/d"]),
        )
        .unwrap_err();
        assert!(error.to_string().contains("needs a path"), "{error}");
        assert!(!format!("{error:#?}").contains("s3cret"), "{error:#?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

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

    #[test]
    fn without_a_folder_adding_is_refused_with_what_to_set() {
        let error = add(&Loaded::defaults(), add_args(&["a", "--kind", "files", "--path", "/x"])).unwrap_err();
        assert!(error.to_string().contains("STRONGROOM_TARGETS_DIR"), "{error}");
    }
}
