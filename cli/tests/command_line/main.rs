//! The program as a person or a script meets it: help, exit codes, JSON, settings.
//!
//! What the API answers comes from a stub here; the whole fleet is tested in the `tests` package.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod point_in_time;
mod stub;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::stub::{code, problem, program, stderr, stdout, stub};

const JOB: &str = "01890000-0000-7000-8000-000000000001";
const BACKUP: &str = "bkp-20261121-090000Z-000000000001";

fn run(args: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    program(home.path()).args(args).output().unwrap()
}

fn job(kind: &str, status: &str, changes: Value) -> Value {
    let mut job = json!({
        "id": JOB, "kind": kind, "type": "full", "target": "postgres", "target_identifier": "orders-db",
        "status": status, "created_at": "2026-11-21T09:00:00Z", "started_at": "2026-11-21T09:00:01Z",
        "completed_at": null, "size_bytes": null, "compression_ratio": null, "storage_path": null,
        "checksum": null, "retention_until": null, "metadata": {}, "backup_id": BACKUP, "attempt": 1,
        "worker": "host-1", "error": null, "progress": {"bytes": 0, "files": 0},
        "partial": false, "verified": false
    });
    job.as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    job
}

fn created() -> Value {
    json!({
        "job_id": JOB, "estimated_duration": "unknown", "status": "pending", "targets": ["orders-db"],
        "jobs": [{"job_id": JOB, "target": "orders-db", "coalesced": false}]
    })
}

fn status(word: &str) -> Value {
    json!({
        "system_status": word, "reasons": ["orders-db\u{1b}[2J is late"], "active_jobs": [], "recent_jobs": [],
        "last_successful_backup": null, "last_verified_backup": null,
        "storage_usage": {"used_gb": 1.0, "available_gb": null, "compression_ratio": null}
    })
}

#[test]
fn every_command_has_help() {
    let root = stdout(&run(&["--help"]));
    let commands: Vec<&str> = root
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for wanted in [
        "status",
        "backup",
        "restore",
        "list",
        "verify",
        "schedule",
        "job",
        "target",
        "receipt",
        "config",
        "standalone",
        "demo",
        "completions",
        "version",
        "help",
    ] {
        assert!(commands.contains(&wanted), "{wanted} is missing: {root}");
    }
    for command in commands {
        for form in [
            vec![command, "--help"],
            vec!["help", command],
            vec!["help", "--command", command],
        ] {
            let output = run(&form);
            assert_eq!(code(&output), 0, "{form:?}");
            assert!(
                stdout(&output).contains(&format!("Usage: strongroom {command}")),
                "{form:?}"
            );
        }
    }
    let all = stdout(&run(&["help", "--all"]));
    assert!(
        all.contains("## strongroom schedule create") && all.contains("--no-catch-up"),
        "{all}"
    );
    assert!(stdout(&run(&["completions", "bash"])).contains("strongroom"));
}

#[test]
fn a_wrong_call_is_an_error_and_never_a_warning() {
    let output = run(&["bakcup", "x"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("'backup'"), "{}", stderr(&output));
    for args in [
        &["backup"][..],
        &["backup", "x", "--type", "hourly"],
        &["schedule", "enable"],
        &[],
        &["help", "nothing"],
    ] {
        assert_eq!(code(&run(args)), 1, "{args:?}");
    }
    assert!(stderr(&run(&["list", "--type", "hourly"])).contains("full, incremental, differential"));
}

#[test]
fn a_setting_comes_from_the_file_then_the_environment_then_the_flag() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/strongroom");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("config.yaml"),
        "api: {url: 'http://file:1', token: s3cret}\nenvironment: prod\n",
    )
    .unwrap();
    let shown = |command: &mut Command| {
        let output = command.args(["config", "show", "--json"]).output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert!(!stdout(&output).contains("s3cret"), "{}", stdout(&output));
        let lines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let line = |key: &str| lines.iter().find(|line| line["key"] == key).unwrap().clone();
        assert_eq!(line("environment")["value"], "prod");
        assert_eq!(line("api.token")["value"], "(secret)");
        (
            line("api.url")["value"].clone(),
            line("api.url")["origin"].as_str().unwrap().to_owned(),
        )
    };
    let (value, origin) = shown(&mut program(home.path()));
    assert_eq!(value, "http://file:1");
    assert!(origin.ends_with("/.config/strongroom/config.yaml"), "{origin}");
    let env = shown(program(home.path()).env("STRONGROOM_API", "http://env:2"));
    assert_eq!(env, (json!("http://env:2"), "env STRONGROOM_API".to_owned()));
    let flag = shown(
        program(home.path())
            .env("STRONGROOM_API", "http://env:2")
            .args(["--api-url", "http://flag:3"]),
    );
    assert_eq!(flag, (json!("http://flag:3"), "flag --api-url".to_owned()));
    let text = program(home.path()).args(["config", "show"]).output().unwrap();
    assert!(stdout(&text).contains("http://file:1") && !stdout(&text).contains("s3cret"));
}

#[test]
fn a_mistyped_setting_names_the_nearest_known_one() {
    let home = tempfile::tempdir().unwrap();
    let output = program(home.path())
        .env("STRONGROOM_NATS_ULR", "x")
        .arg("status")
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("did you mean STRONGROOM_NATS_URL?"),
        "{}",
        stderr(&output)
    );
    let file = home.path().join("c.yaml");
    std::fs::write(&file, "vault: {ulr: x}\n").unwrap();
    let output = program(home.path())
        .arg("--config")
        .arg(&file)
        .arg("status")
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("did you mean vault.url?"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn nobody_answering_is_an_error_that_says_what_to_start() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&["--api-url", &format!("http://{free}"), "list"]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("strongroom standalone --dir DIR"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&output).is_empty());
    let version = run(&["--api-url", &format!("http://{free}"), "version", "--json"]);
    assert_eq!(code(&version), 0);
    let document: Value = serde_json::from_slice(&version.stdout).unwrap();
    assert_eq!(document["client"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["api"]["version"], Value::Null);
}

#[test]
fn the_exit_code_of_status_tells_how_the_system_is() {
    for (word, expected) in [("healthy", 0), ("degraded", 2), ("critical", 1)] {
        let api = stub(&[("GET /api/v1/backup/status", 200, status(word))]);
        let text = api.run(&["status"]);
        assert_eq!(code(&text), expected, "{}", stderr(&text));
        assert!(stdout(&text).starts_with(word), "{}", stdout(&text));
        assert!(
            !stdout(&text).contains('\u{1b}'),
            "a control character reached the terminal"
        );
        let json = api.run(&["status", "--json"]);
        assert_eq!(code(&json), expected);
        assert_eq!(stdout(&json).trim(), status(word).to_string(), "the answer was changed");
    }
}

#[test]
fn a_refusal_is_told_in_the_words_of_the_api() {
    let api = stub(&[(
        "POST /api/v1/backup/create",
        422,
        problem(422, "unknown target oders-db; known are orders-db"),
    )]);
    let output = api.run(&["backup", "oders-db"]);
    assert_eq!(code(&output), 1);
    assert_eq!(
        stderr(&output),
        "strongroom: unknown target oders-db; known are orders-db\n"
    );
    let api = stub(&[("GET /api/v1/backup/list", 401, problem(401, "no"))]);
    assert!(stderr(&api.run(&["list"])).contains("set STRONGROOM_TOKEN"));
    let home = tempfile::tempdir().unwrap();
    let output = program(home.path())
        .env("STRONGROOM_API", &api.url)
        .env("STRONGROOM_TOKEN", "s3cret")
        .arg("list")
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("the token from env STRONGROOM_TOKEN"),
        "{}",
        stderr(&output)
    );
    assert!(!stderr(&output).contains("s3cret"));
}

#[test]
fn a_declared_scenario_that_cannot_be_forgotten_too_is_told() {
    let request = "DELETE /api/v1/targets/scenario%2Fcheckout";
    let none = json!({ "targets": [] });
    let refused = stub(&[(request, 500, problem(500, "the catalog does not answer"))]);
    let unknown = stub(&[
        (request, 404, problem(404, "no scenario was deployed")),
        ("GET /api/v1/targets", 200, none.clone()),
    ]);
    let known = stub(&[(request, 204, Value::Null), ("GET /api/v1/targets", 200, none)]);
    for (url, reason) in [
        (&*refused.url, Some("the catalog does not answer; then run this again")),
        ("http://127.0.0.1:1", Some("cannot reach the coordinator")),
        (&*unknown.url, None),
        (&*known.url, None),
    ] {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("scenario+checkout.yaml");
        std::fs::write(&file, "name: scenario/checkout\nkind: files\npath: /srv/checkout\n").unwrap();
        let removed = program(home.path())
            .env("STRONGROOM_API", url)
            .env("STRONGROOM_TARGETS_DIR", home.path())
            .args(["target", "remove", "scenario/checkout"])
            .output()
            .unwrap();
        assert_eq!(code(&removed), 0, "{}", stderr(&removed));
        assert!(!file.exists());
        let told = stdout(&removed);
        assert!(told.contains("the backups of scenario/checkout stay"), "{told}");
        match reason {
            Some(reason) => assert!(told.contains("is a target still") && told.contains(reason), "{told}"),
            None => assert!(!told.contains("still"), "{told}"),
        }
    }
    for stub in [refused, unknown, known] {
        assert_eq!(stub.asked.lock().unwrap()[0].0, request);
    }
}

#[test]
fn a_backup_is_asked_for_as_said_and_waited_for() {
    let ended = |changes| job("backup", "completed", changes);
    for (job, expected) in [
        (
            ended(json!({"size_bytes": 1_200_000_000, "completed_at": "2026-11-21T09:01:01Z"})),
            0,
        ),
        (ended(json!({"partial": true})), 2),
        (job("backup", "failed", json!({"error": "disk full"})), 1),
        (job("backup", "cancelled", json!({})), 1),
    ] {
        let api = stub(&[
            ("POST /api/v1/backup/create", 201, created()),
            (&format!("GET /api/v1/jobs/{JOB}"), 200, job.clone()),
        ]);
        let args = [
            "backup",
            "orders-db,files",
            "--type",
            "incremental",
            "--retention-days",
            "7",
            "--wait",
        ];
        let text = api.run(&args);
        assert_eq!(code(&text), expected, "{}{}", stdout(&text), stderr(&text));
        let body = api.body("POST");
        assert_eq!(
            body,
            json!({"type": "incremental", "targets": ["orders-db", "files"], "retention_days": 7})
        );
        let output = api.run(&["backup", "orders-db", "--wait", "--json"]);
        assert_eq!(code(&output), expected);
        assert_eq!(
            serde_json::from_slice::<Value>(&output.stdout).unwrap(),
            json!({"jobs": [job]})
        );
    }
    let api = stub(&[("POST /api/v1/backup/create", 201, created())]);
    let output = api.run(&["backup", "orders-db", "--json"]);
    assert_eq!(
        (code(&output), stdout(&output).trim()),
        (0, created().to_string().as_str())
    );
}

#[test]
fn wait_verified_waits_for_the_verification_too() {
    let verify = "01890000-0000-7000-8000-000000000002";
    let verification = job("verify", "failed", json!({"id": verify, "error": "3 rows are missing"}));
    let api = stub(&[
        ("POST /api/v1/backup/create", 201, created()),
        (
            &format!("GET /api/v1/jobs/{JOB}"),
            200,
            job("backup", "completed", json!({})),
        ),
        ("GET /api/v1/jobs?limit=200", 200, json!({"jobs": [verification]})),
        (&format!("GET /api/v1/jobs/{verify}"), 200, verification.clone()),
    ]);
    let output = api.run(&["backup", "orders-db", "--wait-verified"]);
    assert_eq!(code(&output), 1, "{}{}", stdout(&output), stderr(&output));
    assert!(
        stdout(&output).contains("verification of orders-db failed") && stdout(&output).contains("3 rows are missing")
    );
}

#[test]
fn a_restore_by_name_takes_the_newest_verified_backup_and_says_so() {
    let backup = |minute: u32, verified: bool| {
        json!({
            "backup_id": format!("bkp-20261121-09{minute:02}00Z-000000000001"), "job_id": JOB, "target": "orders-db",
            "target_kind": "postgres", "type": "full", "started_at": format!("2026-11-21T09:{minute:02}:00Z"),
            "completed_at": format!("2026-11-21T09:{minute:02}:30Z"), "size_bytes": 1, "stored_bytes": 1,
            "partial": false, "verified": verified, "verified_at": null, "validation_method": null,
            "verification_error": null, "retention_until": null, "storage_path": "x"
        })
    };
    let answer = json!({"restore_id": JOB, "estimated_duration": "1m", "status": "pending", "validation_results": []});
    let api = stub(&[
        (
            "GET /api/v1/backup/list?target=orders-db&limit=1000",
            200,
            json!({"backups": [backup(2, false), backup(1, true)]}),
        ),
        ("POST /api/v1/restore/create", 201, answer.clone()),
    ]);
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("destination");
    std::fs::write(&file, "postgres://u:s3cret@h/db\n").unwrap();
    let output = api.run(&[
        "restore",
        "orders-db",
        "--destination",
        &format!("@{}", file.display()),
        "--verify",
        "--json",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output).trim(), answer.to_string());
    assert!(
        stderr(&output).contains("orders-db: bkp-20261121-090100Z-000000000001"),
        "{}",
        stderr(&output)
    );
    let body = api.body("POST");
    assert_eq!(body["backup_id"], "bkp-20261121-090100Z-000000000001");
    assert_eq!(body["destination"], "postgres://u:s3cret@h/db");
    assert_eq!(body["verify_before_restore"], true);
    let none = api.run(&["restore", "orders-db"]);
    assert_eq!(code(&none), 1);
    assert!(stderr(&none).contains("a restore never guesses"), "{}", stderr(&none));
}

#[test]
fn an_id_that_is_no_jobs_is_taken_for_a_restore_point() {
    let answer = json!({"restore_id": JOB, "estimated_duration": "1m", "status": "pending", "validation_results": []});
    let api = stub(&[("POST /api/v1/restore/create", 201, answer)]);
    let output = api.run(&["restore", JOB, "--targets", "a,b", "--destination", "/srv/x"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(api.body("POST")["restore_point_id"], JOB);
    assert_eq!(api.body("POST")["targets"], json!(["a", "b"]));
}

#[test]
fn schedules_are_created_and_switched() {
    let schedule = json!({
        "id": "01890000-0000-7000-8000-000000000009", "name": "nightly", "cron_expression": "30 2 * * *",
        "timezone": "Europe/Berlin", "backup_type": "full", "targets": ["postgres"], "enabled": true, "catch_up": false,
        "jitter_seconds": 60, "last_run": null, "next_run": "2026-11-22T01:30:00Z", "created_by": "cli"
    });
    let api = stub(&[
        ("POST /api/v1/schedules", 201, schedule.clone()),
        ("POST /api/v1/schedules/nightly/disable", 200, schedule.clone()),
        ("DELETE /api/v1/schedules/nightly", 204, json!(null)),
    ]);
    let output = api.run(&[
        "schedule",
        "create",
        "--name",
        "nightly",
        "--cron",
        "30 2 * * *",
        "--targets",
        "postgres",
        "--timezone",
        "Europe/Berlin",
        "--jitter",
        "60",
        "--no-catch-up",
        "--retention",
        "30",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let body = api.body("POST /api/v1/schedules");
    assert_eq!(
        (&body["catch_up"], &body["retention_days"], &body["jitter_seconds"]),
        (&json!(false), &json!(30), &json!(60))
    );
    assert!(
        stdout(&output).contains("nightly  30 2 * * *  Europe/Berlin"),
        "{}",
        stdout(&output)
    );
    assert_eq!(
        stdout(&api.run(&["schedule", "disable", "nightly", "--json"])).trim(),
        schedule.to_string()
    );
    assert_eq!(code(&api.run(&["schedule", "delete", "nightly"])), 0);
}

#[test]
fn ctrl_c_ends_the_wait_and_says_that_the_job_goes_on() {
    let api = stub(&[(
        &format!("GET /api/v1/jobs/{JOB}"),
        200,
        job("backup", "running", json!({"progress": {"bytes": 5, "files": 0}})),
    )]);
    let home = tempfile::tempdir().unwrap();
    let mut child: Child = program(home.path())
        .env("STRONGROOM_API", &api.url)
        .args(["job", "wait", JOB])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line of progress shows that it waits.
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert!(line.starts_with("backup orders-db: 5 B"), "{line}");
    let kill = Command::new("/bin/sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status()
        .unwrap();
    assert!(kill.success());
    let mut rest = String::new();
    errors.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        rest.contains("goes on") && rest.contains(&format!("strongroom job wait {JOB}")),
        "{rest}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = tempfile::tempdir().unwrap();
    let mut child = program(home.path())
        .args(["help", "--all"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn the_install_script_puts_both_names_in_place() {
    let home = tempfile::tempdir().unwrap();
    let bin = home.path().join("a bin");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh");
    let install = |program: &str| {
        Command::new("/bin/sh")
            .arg(&script)
            .arg("--bin-dir")
            .arg(&bin)
            .arg(program)
            .env_clear()
            .envs([("HOME", home.path()), ("PATH", Path::new("/usr/bin:/bin"))])
            .output()
            .unwrap()
    };
    for _ in ["first", "again"] {
        let output = install(env!("CARGO_BIN_EXE_strongroom"));
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert!(stdout(&output).contains("add it to your PATH"), "{}", stdout(&output));
        for name in ["strongroom", "data-backup-manager"] {
            let version = Command::new(bin.join(name)).arg("--version").output().unwrap();
            assert_eq!(stdout(&version), format!("strongroom {}\n", env!("CARGO_PKG_VERSION")));
        }
    }
    let missing = install("/nowhere/strongroom");
    assert_eq!(code(&missing), 1);
    assert!(
        stderr(&missing).contains("cargo build --release"),
        "{}",
        stderr(&missing)
    );
}
