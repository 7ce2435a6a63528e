//! Targets as files in the folder that the coordinator and the workers read.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use strongroom_proto::TargetName;
use strongroom_runtime::{Loaded, TargetBook, TargetConfig};

use crate::args::TargetAddArgs;
use crate::commands::restore::value_or_file;

/// The folder that targets are added to.
fn folder(loaded: &Loaded) -> anyhow::Result<&Path> {
    loaded.config.targets_dir.as_deref().context(
        "targets_dir is not set, so there is no folder to keep targets in: set it in the configuration or as \
         STRONGROOM_TARGETS_DIR to the folder that the coordinator and the workers read",
    )
}

pub(super) fn add(loaded: &Loaded, args: TargetAddArgs) -> anyhow::Result<PathBuf> {
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

pub(super) fn remove(loaded: &Loaded, name: &TargetName) -> anyhow::Result<PathBuf> {
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
pub(super) fn is_declared(loaded: &Loaded, name: &TargetName) -> anyhow::Result<bool> {
    let folder = loaded.config.targets_dir.as_deref();
    let in_folder = folder.map(|folder| declared_in(folder, name)).transpose()?.flatten();
    Ok(in_folder.is_some() || loaded.config.targets.contains_key(name))
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
    use crate::args::{Cli, Command, TargetCommand};
    use clap::Parser as _;

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

    #[test]
    fn without_a_folder_adding_is_refused_with_what_to_set() {
        let error = add(&Loaded::defaults(), add_args(&["a", "--kind", "files", "--path", "/x"])).unwrap_err();
        assert!(error.to_string().contains("STRONGROOM_TARGETS_DIR"), "{error}");
    }
}
