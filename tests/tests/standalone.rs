//! One machine, one command: `strongroom standalone` and the clients against it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use strongroom_testkit::{Process, bin, tools_dir, wait_for};
use strongroom_tests::{SOON, sample_server};

fn folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("sr-alone-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    dir
}

fn start(dir: &Path) -> Process {
    let tools = tools_dir().unwrap();
    let args = ["standalone".into(), "--dir".into(), dir.as_os_str().to_owned()];
    let process = Process::start(
        &bin("strongroom").unwrap(),
        args,
        [("STRONGROOM_TOOLS", tools.as_os_str())],
    )
    .unwrap();
    process.wait_for_line("strongroom is up", SOON).unwrap();
    process
}

fn check(dir: &Path) -> bool {
    Command::new(bin("strongroom").unwrap())
        .args(["standalone", "--check", "--dir"])
        .arg(dir)
        .output()
        .unwrap()
        .status
        .success()
}

/// The variables of `DIR/env`, as a shell reads them.
fn env(dir: &Path) -> BTreeMap<String, String> {
    let script = format!("set -a; . {}/env; env -0", dir.display());
    let output = Command::new("sh").args(["-c", &script]).env_clear().output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split('\0')
        .filter_map(|line| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect()
}

fn strongroom(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(bin("strongroom").unwrap())
        .args(args)
        .envs(env(dir))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Processes whose command line names the folder, or that run below it.
fn processes_of(dir: &Path) -> Vec<String> {
    let name = dir.display().to_string();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = process.path();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let below = std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if line.contains(&name) || below {
            found.push(line);
        }
    }
    found
}

fn nothing_runs(dir: &Path) {
    wait_for("the end of every process of the fleet", Duration::from_secs(30), || {
        processes_of(dir).is_empty().then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", processes_of(dir)));
}

#[test]
fn a_database_is_backed_up_proven_and_restored_with_the_command_line() {
    let source = sample_server(2).unwrap();
    let dir = folder();
    assert!(!check(dir.path()));
    let process = start(dir.path());
    assert!(check(dir.path()));
    for name in ["STRONGROOM_API", "STRONGROOM_TOKEN", "NATS_URL", "CATALOG_URL"] {
        assert!(env(dir.path()).contains_key(name), "{name}");
    }
    let run = |args: &[&str]| strongroom(dir.path(), args);

    let (code, out, err) = run(&[
        "target",
        "add",
        "orders-db",
        "--kind",
        "postgres",
        "--url",
        &source.url("orders"),
    ]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, err) = run(&["target", "check", "orders-db"]);
    assert_eq!(code, 0, "{out}{err}");
    let added = wait_for("the target to be known", SOON, || {
        let (code, out, _) = run(&["target", "list", "--json"]);
        (code == 0 && out.contains("orders-db")).then_some(())
    });
    added.unwrap();

    let (code, out, err) = run(&["backup", "orders-db", "--wait-verified", "--json"]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, _) = run(&["list", "--json"]);
    assert_eq!(code, 0);
    let list: Value = serde_json::from_str(&out).unwrap();
    let backup = list["backups"][0]["backup_id"].as_str().unwrap().to_owned();
    assert_eq!(list["backups"][0]["verified"], true);
    let (code, out, err) = run(&["receipt", "show", &backup]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains(&backup));

    source.create_database("copy").unwrap();
    let (code, out, err) = run(&["restore", "orders-db", "--destination", &source.url("copy"), "--wait"]);
    assert_eq!(code, 0, "{out}{err}");
    let rows = |database: &str| {
        source.psql(database, "SELECT sum(n_live_tup) FROM (SELECT (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM %I.%I', schemaname, relname), false, true, '')))[1]::text::bigint AS n_live_tup FROM pg_stat_user_tables) s").unwrap()
    };
    assert_eq!(rows("copy"), rows("orders"));
    let (code, out, err) = run(&["restore", "orders-db", "--destination", &source.url("copy"), "--wait"]);
    assert_eq!(code, 1);
    assert!(
        out.contains("empty") || err.contains("empty"),
        "the reason is told: {out}{err}"
    );

    let (code, out, err) = run(&[
        "schedule",
        "create",
        "--name",
        "nightly",
        "--cron",
        "30 2 * * *",
        "--targets",
        "orders-db",
    ]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, _) = run(&["schedule", "list"]);
    assert_eq!(code, 0);
    assert!(out.contains("nightly") && out.contains("30 2 * * *"), "{out}");
    let (code, out, _) = run(&["status"]);
    assert_eq!(code, 2, "a restore has failed today, and a person should know: {out}");
    let (code, _, err) = run(&["backup", "orders"]);
    assert_eq!(code, 1);
    assert!(err.contains("orders-db"), "the known targets are named: {err}");

    // Restarting keeps everything, the ports too.
    let before = env(dir.path());
    process.interrupt().unwrap();
    process.wait_success(Duration::from_secs(60)).unwrap();
    nothing_runs(dir.path());
    assert!(!check(dir.path()));
    let _again = start(dir.path());
    assert_eq!(env(dir.path()), before);
    let (_, out, _) = run(&["list", "--json"]);
    assert!(out.contains(&backup));
}

#[test]
fn a_killed_standalone_leaves_nothing_running_and_starts_again() {
    let dir = folder();
    let process = start(dir.path());
    process.kill().unwrap();
    nothing_runs(dir.path());
    let _again = start(dir.path());
    assert!(check(dir.path()));
}

#[test]
fn servers_that_die_under_it_are_started_again() {
    let dir = folder();
    let _process = start(dir.path());
    for pattern in ["nats-server", "postgres -D"] {
        let script = format!("pkill -KILL -o -f '{pattern}.*{}'", dir.path().display());
        let killed = Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(killed.success(), "{pattern} was found");
        wait_for(&format!("a healthy fleet after the death of {pattern}"), SOON, || {
            let running = processes_of(dir.path())
                .iter()
                .any(|line| line.contains(pattern.trim_end_matches(" -D")));
            (running && check(dir.path())).then_some(())
        })
        .unwrap();
    }
}

#[test]
fn a_second_standalone_in_the_same_folder_is_refused() {
    let dir = folder();
    let _process = start(dir.path());
    let second = Command::new(bin("strongroom").unwrap())
        .args(["standalone", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("in use"),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    assert!(check(dir.path()));
}

/// Root starts the fleet as somebody else; anybody else runs it as they are, which every other test here does.
#[test]
fn an_ordinary_user_runs_it_too() {
    let dir = folder();
    let program = dir.path().join("strongroom");
    std::fs::copy(bin("strongroom").unwrap(), &program).unwrap();
    let state = dir.path().join("state");
    let id = Command::new("id").args(["-u"]).output().unwrap();
    let mut args: Vec<std::ffi::OsString> = Vec::new();
    let mut run = program.clone();
    if String::from_utf8_lossy(&id.stdout).trim() == "0" {
        std::fs::create_dir(&state).unwrap();
        assert!(
            Command::new("chown")
                .arg("nobody")
                .arg(&state)
                .status()
                .unwrap()
                .success()
        );
        run = "/usr/bin/setpriv".into();
        args.extend(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"].map(Into::into));
        args.push(program.clone().into());
    }
    args.extend(["standalone".into(), "--dir".into(), state.clone().into()]);
    let tools = tools_dir().unwrap();
    let envs = [("STRONGROOM_TOOLS", tools.as_os_str()), ("HOME", state.as_os_str())];
    let process = Process::start(&run, args, envs).unwrap();
    process.wait_for_line("strongroom is up", SOON).unwrap();
    assert!(check(&state));
    process.interrupt().unwrap();
    process.wait_success(Duration::from_secs(60)).unwrap();
    nothing_runs(&state);
}
