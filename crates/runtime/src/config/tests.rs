use std::collections::BTreeSet;

use super::*;

fn options(yaml: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> (tempfile::TempDir, LoadOptions) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, yaml).unwrap();
    let options = LoadOptions {
        file: Some(file),
        flags: flags
            .iter()
            .map(|(k, v, f)| ((*k).to_owned(), (*v).to_owned(), (*f).to_owned()))
            .collect(),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    (dir, options)
}

fn load(yaml: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Loaded {
    Loaded::load(options(yaml, env, flags).1).unwrap_or_else(|error| panic!("{}", crate::entry::one_line(&error)))
}

fn refused(yaml: &str, env: &[(&str, &str)]) -> String {
    let (_dir, options) = options(yaml, env, &[]);
    crate::entry::one_line(&Loaded::load(options).unwrap_err())
}

fn shown(loaded: &Loaded, key: &str) -> (String, String) {
    let line = loaded
        .show()
        .into_iter()
        .find(|line| line.key == key)
        .unwrap_or_else(|| panic!("{key} is not shown"));
    let value = line
        .value
        .as_str()
        .map_or_else(|| line.value.to_string(), str::to_owned);
    (value, line.origin)
}

#[test]
fn nothing_configured_gives_the_defaults() {
    let loaded = Loaded::load(LoadOptions::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(shown(&loaded, "worker.lease_seconds"), ("30".into(), "default".into()));
    assert_eq!(shown(&loaded, "scenario.pool"), ("default".into(), "default".into()));
}

#[test]
fn the_environment_overrides_the_file_and_a_flag_overrides_both() {
    let yaml = "nats: {url: 'nats://file:1'}\nworker: {lease_seconds: 7, pool: ssd}\n";
    let env = [
        ("STRONGROOM_NATS_URL", "nats://env:2"),
        ("STRONGROOM_WORKER_LEASE_SECONDS", "8"),
    ];
    let loaded = load(yaml, &env, &[("nats.url", "nats://flag:3", "--nats-url")]);
    assert_eq!(
        shown(&loaded, "nats.url"),
        ("nats://flag:3".into(), "flag --nats-url".into())
    );
    assert_eq!(
        shown(&loaded, "worker.lease_seconds"),
        ("8".into(), "env STRONGROOM_WORKER_LEASE_SECONDS".into())
    );
    let (value, origin) = shown(&loaded, "worker.pool");
    assert_eq!(value, "ssd");
    assert!(
        origin.starts_with("file /") && origin.ends_with("config.yaml"),
        "{origin}"
    );
    assert_eq!(loaded.config.nats.url.expose(), "nats://flag:3");
}

#[test]
fn an_alias_sets_its_key_and_loses_against_the_long_name() {
    let env = [
        ("STRONGROOM_API", "http://a:1"),
        ("NATS_URL", "nats://short:1"),
        ("STRONGROOM_NATS_URL", "nats://long:1"),
    ];
    let loaded = load("", &env, &[]);
    assert_eq!(
        shown(&loaded, "api.url"),
        ("http://a:1".into(), "env STRONGROOM_API".into())
    );
    assert_eq!(
        shown(&loaded, "nats.url"),
        ("nats://long:1".into(), "env STRONGROOM_NATS_URL".into())
    );
}

#[test]
fn lists_and_flags_are_read_from_variables() {
    let env = [
        ("STRONGROOM_COORDINATOR_BACKOFF_SECONDS", "1, 2,3"),
        ("STRONGROOM_WORKER_PG_BIN_DIRS", "/a/bin,/b/bin"),
        ("STRONGROOM_COORDINATOR_VERIFY_AFTER_BACKUP", "false"),
        ("STRONGROOM_LOG_FORMAT", ""),
        ("STRONGROOM_TOOLS", "/x"),
    ];
    let config = load("", &env, &[]).config;
    assert_eq!(config.coordinator.backoff_seconds, [1, 2, 3]);
    assert_eq!(config.worker.pg_bin_dirs, [Path::new("/a/bin"), Path::new("/b/bin")]);
    assert!(!config.coordinator.verify_after_backup);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let message = refused("vault: {ulr: x}", &[]);
    assert!(message.starts_with("unknown key vault.ulr in /"), "{message}");
    assert!(message.ends_with("config.yaml: did you mean vault.url?"), "{message}");
    assert!(refused("vualt: {url: x}", &[]).ends_with("did you mean vault?"));
    assert!(refused("lease_seconds: 3", &[]).ends_with("did you mean worker.lease_seconds?"));
    assert!(refused("zebra: 3", &[]).contains("strongroom config show"));
    let target = refused("targets: {orders: {kind: postgres, ulr: x}}", &[]);
    assert!(
        target.contains("targets.orders.ulr") && target.ends_with("did you mean targets.orders.url?"),
        "{target}"
    );
}

#[test]
fn an_unknown_variable_is_refused_with_the_nearest_known_one() {
    let message = refused("", &[("STRONGROOM_NATS_ULR", "x")]);
    assert_eq!(
        message,
        "unknown variable STRONGROOM_NATS_ULR: did you mean STRONGROOM_NATS_URL?"
    );
}

#[test]
fn a_wrong_type_names_the_key_its_origin_and_what_is_expected() {
    let message = refused("worker: {lease_seconds: soon}", &[]);
    assert!(message.starts_with("worker.lease_seconds from file /"), "{message}");
    assert!(
        message.ends_with("expected a whole number that is not negative, found text"),
        "{message}"
    );
    let message = refused("", &[("STRONGROOM_WORKER_CONCURRENCY", "many")]);
    assert!(
        message.starts_with("worker.concurrency from env STRONGROOM_WORKER_CONCURRENCY: expected"),
        "{message}"
    );
    assert!(refused("worker: 3", &[]).contains("worker from file"));
    assert!(refused("log: {format: xml}", &[]).contains("known are text, json"));
    assert!(refused("worker: {concurrency: 0}", &[]).contains("at least 1"));
    assert!(refused("git: {sha: '1'}", &[]).contains("repo"));
    assert!(refused("- a\n- b\n", &[]).contains("the file"));
}

#[test]
fn a_missing_default_file_is_fine_and_a_missing_named_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().display().to_string();
    let env = BTreeMap::from([("HOME".to_owned(), home.clone())]);
    let loaded = Loaded::load(LoadOptions {
        env,
        ..LoadOptions::default()
    })
    .unwrap();
    assert_eq!(loaded.file, None);
    let folder = dir.path().join(".config/strongroom");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.yaml"), "environment: prod\n").unwrap();
    let env = BTreeMap::from([("HOME".to_owned(), home)]);
    assert_eq!(
        Loaded::load(LoadOptions {
            env,
            ..LoadOptions::default()
        })
        .unwrap()
        .config
        .environment,
        "prod"
    );
    for options in [
        LoadOptions::default().with_file(Some(dir.path().join("nowhere.yaml"))),
        LoadOptions {
            env: BTreeMap::from([(FILE_VARIABLE.to_owned(), "/nowhere/else.yaml".to_owned())]),
            ..LoadOptions::default()
        },
    ] {
        assert!(
            Loaded::load(options)
                .unwrap_err()
                .to_string()
                .starts_with("read configuration /")
        );
    }
}

#[test]
fn no_secret_is_shown_printed_or_named_in_an_error() {
    let yaml = "
api: {token: s3cret-token}
nats: {url: 'nats://u:s3cret-nats@h:4222,nats://s3cret-only@h2:4222'}
catalog: {url: 'postgres://u:s3cret-cat@h/db'}
vault: {s3: {secret_access_key: s3cret-s3}}
targets:
  db: {kind: postgres, url: 'postgres://u:s3cret-db@h/db?application_name=x&password=s3cret-q'}
  cmd: {kind: command, program: p, env: {TOKEN: s3cret-env}}
";
    let loaded = load(yaml, &[], &[]);
    for text in [
        format!("{loaded:?} {:#?}", loaded.config),
        serde_json::to_string(&loaded.show()).unwrap(),
        serde_json::to_string(&loaded.config).unwrap(),
        loaded.config.targets.values().map(TargetConfig::location).collect(),
    ] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert_eq!(shown(&loaded, "api.token").0, "(secret)");
    assert_eq!(shown(&loaded, "nats.url").0, "nats://u@h:4222,nats://token@h2:4222");
    assert_eq!(
        shown(&loaded, "targets.db.url").0,
        "postgres://u@h/db?application_name=x"
    );
    assert_eq!(loaded.config.api_token().unwrap().as_deref(), Some("s3cret-token"));
    for bad in [
        "api: {token: [s3cret]}",
        "api: {token: s3cret",
        "api:\n  token: s3cret\n bad indent: 'x",
        "api: {url: 'http://u:s3cret@h'}",
        "log: {format: text}\nenvironment: {s3cret: 1}",
        "targets: {a: {kind: files, path: /x, url: 'postgres://u:s3cret@h/d'}}",
        "targets: {a: {kind: postgres, url: 's3cret'}}",
    ] {
        let message = refused(bad, &[]);
        assert!(!message.contains("s3cret"), "{message}");
    }
}

#[test]
fn secrets_are_read_from_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "p@ss/word\n").unwrap();
    let path = file.display();
    let yaml = format!(
        "api: {{token_file: {path}}}\ncatalog: {{url: 'postgres://u@h:5/db', password_file: {path}}}\n\
         vault: {{s3: {{secret_access_key_file: {path}}}}}\n\
         targets: {{db: {{kind: postgres, url: 'postgres://u@h/db', password_file: {path}}}}}\n"
    );
    let config = load(&yaml, &[], &[]).config;
    assert_eq!(config.api_token().unwrap().as_deref(), Some("p@ss/word"));
    assert_eq!(
        config.catalog_url().unwrap().expose(),
        "postgres://u:p%40ss%2Fword@h:5/db"
    );
    assert_eq!(
        config.vault.s3.secret_access_key().unwrap().unwrap().expose(),
        "p@ss/word"
    );
    let target = config.targets.values().next().unwrap();
    assert_eq!(
        target.connection_url().unwrap().unwrap().expose(),
        "postgres://u:p%40ss%2Fword@h/db"
    );
    std::fs::remove_file(&file).unwrap();
    assert!(config.api_token().unwrap_err().to_string().contains("api.token_file"));
}

#[test]
fn a_target_that_cannot_work_is_refused_with_what_it_needs() {
    for (yaml, says) in [
        ("{kind: postgres}", "needs a url"),
        ("{kind: files}", "needs a path"),
        ("{kind: files, path: here}", "absolute"),
        ("{kind: command}", "needs a program"),
        ("{kind: bucket}", "not supported yet"),
        (
            "{kind: files, path: /x, url: 'postgres://h/d'}",
            "url belongs to targets of kind postgres",
        ),
        ("{kind: postgres, url: 'mysql://h/d'}", "postgres://"),
        ("{kind: files, path: /x, pool: 'a.b'}", "pool"),
        ("{url: 'postgres://h/d'}", "needs a kind"),
        ("{kind: postgress}", "known are postgres"),
        ("{kind: files, path: /x, exclude: ['a{b']}", "exclude pattern"),
        ("{kind: files, path: /x, exclude: a}", "a list of texts"),
        ("{kind: files, path: /x, max_file_bytes: 0}", "max_file_bytes"),
        ("{kind: files, path: /x, zstd_level: 20}", "1 to 19"),
        ("{kind: command, program: x, zstd_level: 0}", "1 to 19"),
        ("{kind: files, path: /x, max_file_bytes: 1G}", "a whole number"),
        (
            "{kind: files, path: /x, hooks: {befor: {command: [x]}}}",
            "hooks.before",
        ),
        (
            "{kind: files, path: /x, hooks: {before: {command: []}}}",
            "hooks.before.command names no program",
        ),
        (
            "{kind: files, path: /x, hooks: {after: {timeout_seconds: 3}}}",
            "hooks.after.command names no program",
        ),
        (
            "{kind: files, path: /x, hooks: {after: {command: [x], timeout_seconds: 0}}}",
            "at least 1",
        ),
        (
            "{kind: command, program: x, hooks: {after: {command: [x]}}}",
            "hooks belongs to targets of kind files",
        ),
    ] {
        let message = refused(&format!("targets: {{orders: {yaml}}}"), &[]);
        assert!(message.contains("orders") && message.contains(says), "{message}");
    }
    assert!(refused("targets: {'../x': {kind: files, path: /x}}", &[]).contains("target name"));
}

#[test]
fn the_options_of_a_tree_are_the_same_for_a_target_and_for_the_scenario_template() {
    let options = "exclude: ['*.tmp', '!keep.tmp'], one_file_system: true, exclude_caches: true, max_file_bytes: 7, \
                   hooks: {before: {command: [sync, -f]}, after: {command: [x], timeout_seconds: 3}}";
    let yaml = format!("scenario: {{{options}}}\ntargets: {{t: {{kind: files, path: /x, {options}}}}}\n");
    let loaded = load(&yaml, &[], &[]);
    let target = loaded.config.targets.values().next().unwrap().clone();
    let made = loaded.config.scenario.as_ref().unwrap().target("/x".into());
    assert_eq!(TargetConfig { surface: None, ..made }, target);
    assert_eq!(target.exclude, ["*.tmp", "!keep.tmp"]);
    let (before, after) = (target.hooks.before.unwrap(), target.hooks.after.unwrap());
    assert_eq!((before.command.len(), before.timeout_seconds), (2, 600));
    assert_eq!((after.command.len(), after.timeout_seconds), (1, 3));
    assert_eq!(shown(&loaded, "targets.t.hooks.after.timeout_seconds").0, "3");
    let message = refused("scenario: {exclude: ['a{b']}", &[]);
    assert!(
        message.starts_with("scenario from file /") && message.contains("a{b"),
        "{message}"
    );
}

#[test]
fn the_cache_lies_where_it_is_said_else_with_the_user_or_the_system() {
    let cache = |yaml: &str, env: &[(&str, &str)]| load(yaml, env, &[]).config.cache_dir.display().to_string();
    assert_eq!(cache("cache_dir: /c", &[("XDG_CACHE_HOME", "/x")]), "/c");
    assert_eq!(cache("", &[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), "/x/strongroom");
    let of_user = cache("", &[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]);
    let expected = if rustix::process::geteuid().is_root() {
        "/var/cache/strongroom"
    } else {
        "/h/.cache/strongroom"
    };
    assert_eq!(of_user, expected);
    assert_eq!(cache("", &[]), "/var/cache/strongroom");
    assert!(refused("cache_dir: here", &[]).contains("cache_dir from file"));
}

#[test]
fn a_section_set_to_null_is_switched_off_or_left_at_its_defaults() {
    assert_eq!(load("scenario:\n", &[], &[]).config.scenario, None);
    assert_eq!(load("worker:\n", &[], &[]).config.worker, WorkerConfig::default());
    assert_eq!(
        load("scenario: {pool: x}", &[], &[]).config.scenario.unwrap().surface,
        "scenario"
    );
}

#[test]
fn every_field_has_its_key_and_every_key_its_field() {
    let hook = "{command: [x]}";
    let yaml =
        format!("git: {{repo: r, sha: s, change_ticket: c}}\nscenario: {{hooks: {{before: {hook}, after: {hook}}}}}\n");
    let tree = serde_json::to_value(load(&yaml, &[], &[]).config).unwrap();
    let mut fields = BTreeSet::new();
    collect(&tree, "", &mut fields);
    let keys: BTreeSet<String> = schema::LEAVES.iter().map(|leaf| leaf.path.to_owned()).collect();
    assert_eq!(fields, keys);
}

fn collect(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if at != "targets" => {
            for (key, value) in map {
                collect(
                    value,
                    &if at.is_empty() {
                        key.clone()
                    } else {
                        format!("{at}.{key}")
                    },
                    into,
                );
            }
        }
        _ => {
            into.insert(at.to_owned());
        }
    }
}

#[test]
fn a_cluster_is_taken_whole_with_options_of_its_own() {
    let target = |keys: &str| {
        let yaml = format!("targets: {{Shop/db-1.x: {{kind: postgres, url: 'postgres://u@h', {keys}}}}}");
        load(&yaml, &[], &[]).config.targets.into_iter().next().unwrap()
    };
    let (name, logical) = target("method: logical_dump");
    assert!(!logical.is_physical());
    let (_, physical) = target("method: physical_basebackup");
    assert!(physical.is_physical());
    assert_eq!(physical.slot_name(&name), "strongroom_shop_db_1_x");
    assert_eq!(physical.wal_interval().as_secs(), 10);
    assert_eq!(physical.wal_transport(), WalTransport::Stream);
    let (_, said) = target("method: physical_basebackup, slot: s1, wal_interval_seconds: 2, max_rate_bytes: 1000000");
    assert_eq!(
        (said.slot_name(&name).as_str(), said.wal_interval().as_secs()),
        ("s1", 2)
    );
    assert_eq!(said.max_rate_bytes, Some(1_000_000));
    let (_, pushed) = target("method: physical_basebackup, wal: push");
    assert_eq!(pushed.wal_transport(), WalTransport::Push);
}

#[test]
fn options_of_a_cluster_that_mean_nothing_are_refused_with_what_to_do() {
    let physical = "kind: postgres, url: 'postgres://u@h', method: physical_basebackup";
    for (keys, advice) in [
        (
            "kind: postgres, url: 'postgres://u@h/d', slot: s",
            "add method: physical_basebackup",
        ),
        (
            "kind: postgres, url: 'postgres://u@h/d', method: snapshot",
            "known are logical_dump, physical_basebackup",
        ),
        ("kind: postgres, method: physical_basebackup", "needs a url"),
        (
            "kind: files, path: /x, method: physical_basebackup",
            "method belongs to targets of kind postgres",
        ),
        (
            &format!("{physical}, large_table_bytes: 1"),
            "belongs to method: logical_dump",
        ),
        (&format!("{physical}, wal_interval_seconds: 0"), "must be 1 to 3600"),
        (&format!("{physical}, max_rate_bytes: 9"), "must be 32768 to 1073741824"),
        (
            &format!("{physical}, slot: Bad-Name"),
            "is no name of a replication slot",
        ),
        (
            &format!("{physical}, wal: push, slot: s"),
            "slot belongs to wal: stream",
        ),
    ] {
        let message = refused(&format!("targets: {{db: {{{keys}}}}}"), &[]);
        assert!(message.contains(advice), "{keys}: {message}");
    }
    let long = format!("targets: {{{}: {{{physical}}}}}", "x".repeat(60));
    assert!(refused(&long, &[]).contains("set slot to 1 to 63"));
}
