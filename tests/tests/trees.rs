//! File trees through the whole system: what is read, what is missing, the hooks around it, and every way back.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};
use strongroom_testkit::{wait_for, wait_for_async};
use strongroom_tests::{Fleet, SOON, files_target};

/// A tree of a few files and folders.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("etc/app")).unwrap();
    fs::create_dir_all(root.join("var")).unwrap();
    for (name, text) in [
        ("readme.txt", "hello"),
        ("etc/app/main.conf", "a = 1"),
        ("etc/app/other.conf", "b = 2"),
        ("etc/hosts", "localhost"),
        ("var/data", "0123456789"),
    ] {
        fs::write(root.join(name), text).unwrap();
    }
}

/// Every path below a folder with its content, sorted.
fn listing(root: &Path) -> Vec<String> {
    fn walk(at: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                found.push(format!("{name}/"));
                walk(&path, root, found);
            } else {
                found.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

/// The newest backup of a target, waited for through the command line.
async fn backed_up(fleet: &Fleet, args: &[&str]) -> Value {
    let told = fleet
        .strongroom(&[&["backup"], args, &["--wait", "--json"]].concat())
        .unwrap();
    let jobs: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
    assert_eq!(jobs["jobs"][0]["status"], "completed", "{jobs}");
    jobs["jobs"][0].clone()
}

async fn receipt(fleet: &Fleet, job: &Value) -> Value {
    let id = job["backup_id"].as_str().unwrap();
    let (status, view) = fleet.api.get(&format!("/api/v1/backups/{id}/receipt")).await.unwrap();
    assert_eq!(status, 200, "{view}");
    view["receipt"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_files_reads_what_changed_unless_everything_is_asked_for() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let tree = fleet.dir().join("tree");
    make_tree(&tree);
    let options = "\n    exclude: ['*.tmp']\n    max_file_bytes: 100";
    fleet.target(files_target("docs", &tree) + options);
    fleet.run_all().await.unwrap();
    fs::write(tree.join("scratch.tmp"), "left out").unwrap();
    fs::write(tree.join("big"), [b'x'; 101]).unwrap();

    let first = backed_up(&fleet, &["docs"]).await;
    assert_eq!(first["type"], "incremental");
    let taken = receipt(&fleet, &first).await;
    assert_eq!(taken["status"], "success", "{taken}");
    let source = &taken["source"];
    assert_eq!(
        (&source["files"], &source["excluded"], &source["path"]),
        (&json!(5), &json!(2), &json!(tree.display().to_string()))
    );
    assert!(first["progress"]["files"].as_u64().unwrap() >= 5, "{first}");
    assert_eq!(first["progress"]["bytes"], first["size_bytes"]);

    fs::write(tree.join("etc/hosts"), "localhost, again").unwrap();
    // The first backup read files that had just been written, which it could not rely on: the second could.
    wait_for_async("a backup that reads one file", SOON, || async {
        let job = backed_up(&fleet, &["docs"]).await;
        (receipt(&fleet, &job).await["source"]["unchanged"] == 5).then_some(())
    })
    .await
    .unwrap();

    let full = backed_up(&fleet, &["docs", "--type", "full"]).await;
    let taken = receipt(&fleet, &full).await;
    assert_eq!(
        (&taken["backup_type"], &taken["source"]["unchanged"]),
        (&json!("full"), &Value::Null)
    );
    fleet.api.verified(full["id"].as_str().unwrap()).await.unwrap();

    // What the backup was never to hold is not what it lacks.
    fs::write(tree.join("since"), "made since then").unwrap();
    let told = fleet
        .strongroom(&["restore", "docs", "--in-place", "--delete", "--wait"])
        .unwrap();
    assert_eq!(told.code, 0, "{told:?}");
    assert!(!tree.join("since").exists());
    assert!(tree.join("scratch.tmp").exists() && tree.join("big").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_backup_names_what_is_missing_and_ends_with_exit_code_2() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let tree = fleet.dir().join("tree");
    make_tree(&tree);
    for number in 0..25 {
        let file = tree.join(format!("bad{number:02}\u{1b}[2J"));
        fs::write(&file, "x").unwrap();
        // The name of an attribute that is not text cannot be kept, whoever reads it.
        let name = OsStr::from_bytes(b"user.\xff");
        rustix::fs::setxattr(&file, name, b"v", rustix::fs::XattrFlags::empty()).unwrap();
    }
    fleet.target(files_target("docs", &tree));
    fleet.run_all().await.unwrap();

    let told = fleet.strongroom(&["backup", "docs", "--wait"]).unwrap();
    assert_eq!(told.code, 2, "{told:?}");
    let named: Vec<&str> = told.stdout.lines().filter(|line| line.contains("missing: ")).collect();
    assert_eq!(named.len(), 20, "{told:?}");
    assert!(named[0].contains("bad00\\u{1b}[2J"), "{}", named[0]);
    assert!(told.stdout.contains("… and 5 more"), "{told:?}");

    let (_, list) = fleet.api.get("/api/v1/jobs?limit=10").await.unwrap();
    let jobs = list["jobs"].as_array().unwrap();
    let job = jobs.iter().find(|job| job["kind"] == "backup").unwrap();
    assert_eq!((&job["status"], &job["partial"]), (&json!("completed"), &json!(true)));
    let taken = receipt(&fleet, job).await;
    assert_eq!(taken["status"], "partial");
    assert_eq!(taken["missing"].as_array().unwrap().len(), 25);
    let id = job["id"].as_str().unwrap();
    let events = fleet.events("backup.job.completed");
    let event = events.wait("job_id", id).await.unwrap();
    assert_eq!(
        (&event["data"]["status"], &event["data"]["partial"]),
        (&json!("completed"), &json!(true))
    );
    assert_eq!(fleet.strongroom(&["job", "wait", id]).unwrap().code, 2);

    // Nor is a restore of it whole.
    let backup = job["backup_id"].as_str().unwrap();
    let told = fleet.strongroom(&["restore", backup, "--in-place", "--wait"]).unwrap();
    assert_eq!(told.code, 2, "{told:?}");
    assert!(
        told.stdout.contains("missing from the backup: its attribute"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_around_the_reading_and_a_backup_whose_hook_fails_does_not_exist() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let tree = fleet.dir().join("tree");
    make_tree(&tree);
    let (log, nowhere) = (fleet.dir().join("log"), fleet.dir().join("nowhere"));
    let target = |name: &str, path: &Path, before: &str, after: &str| {
        let hook = |script: &str| format!("{{command: [sh, -c, \"{script}\"], timeout_seconds: 60}}");
        format!(
            "{}\n    hooks: {{before: {}, after: {}}}",
            files_target(name, path),
            hook(before),
            hook(after)
        )
    };
    let say = |word: &str| {
        format!(
            "echo {word} $STRONGROOM_TARGET $STRONGROOM_BACKUP_ID $STRONGROOM_JOB_ID >> {}",
            log.display()
        )
    };
    let secrets = format!("env > {}.env; {}", log.display(), say("before"));
    fleet
        .target(target("good", &tree, &secrets, &say("after")))
        .target(target(
            "locked",
            &tree,
            "echo cannot get the lock; exit 7",
            &say("after"),
        ))
        .target(target("stuck", &tree, "true", "echo still frozen >&2; exit 9"))
        .target(target("gone", &nowhere, &say("before"), &say("after")))
        .set("coordinator.max_attempts", "1");
    fleet.run_all().await.unwrap();
    let said = || fs::read_to_string(&log).unwrap_or_default();

    let job = backed_up(&fleet, &["good"]).await;
    let ids = format!(
        "good {} {}",
        job["backup_id"].as_str().unwrap(),
        job["id"].as_str().unwrap()
    );
    assert_eq!(said(), format!("before {ids}\nafter {ids}\n"));
    let env = fs::read_to_string(log.with_extension("env")).unwrap();
    assert!(!env.contains("TOKEN") && !env.contains("postgres://"), "{env}");

    for (name, reason, says) in [
        ("locked", "exit code 7: cannot get the lock", ""),
        ("stuck", "exit code 9: still frozen", ""),
        ("gone", "nowhere", "before gone after gone"),
    ] {
        fs::remove_file(&log).ok();
        let told = fleet.strongroom(&["backup", name, "--wait"]).unwrap();
        assert_eq!(told.code, 1, "{told:?}");
        assert!(told.stdout.contains(reason), "{told:?}");
        let words: Vec<String> = said()
            .lines()
            .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(words.join(" "), says);
    }
    let (_, list) = fleet.api.get("/api/v1/backup/list").await.unwrap();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1, "{list}");
    let receipts = fs::read_dir(fleet.vault_dir().join("backups")).unwrap();
    let receipts = receipts.filter(|entry| entry.as_ref().unwrap().path().join("receipt.json").exists());
    assert_eq!(receipts.count(), 1);
}

/// Keeps writers from looking up chunks until it is dropped.
struct LookUpsHeld(std::process::Child);

impl LookUpsHeld {
    fn begin(fleet: &Fleet) -> Self {
        use std::io::Write as _;
        let mut psql = std::process::Command::new(fleet.catalog.bin_dir().join("psql"))
            .args(["-XAtq", "-d", &fleet.catalog.url("strongroom")])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = psql.stdin.take().unwrap();
        stdin
            .write_all(b"BEGIN; LOCK TABLE vault_chunks IN ACCESS EXCLUSIVE MODE;\n")
            .unwrap();
        // With its input open the session stays.
        psql.stdin = Some(stdin);
        let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted \
                    AND relation = 'vault_chunks'::regclass";
        wait_for("the lock", SOON, || (fleet.sql(held).unwrap() == "1").then_some(())).unwrap();
        Self(psql)
    }
}

impl Drop for LookUpsHeld {
    fn drop(&mut self) {
        self.0.stdin = None;
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_before_began_after_ends_also_when_the_job_is_cancelled() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let (tree, log) = (fleet.dir().join("tree"), fleet.dir().join("log"));
    fs::create_dir(&tree).unwrap();
    // More than a writer takes before its first look-up, and more to come after that.
    for number in 0..40 {
        fs::write(tree.join(format!("{number:02}")), lines(number, 120_000)).unwrap();
    }
    let hook = |word: &str| format!("{{command: [sh, -c, 'echo {word} >> {}']}}", log.display());
    fleet.target(format!(
        "{}\n    hooks: {{before: {}, after: {}}}",
        files_target("docs", &tree),
        hook("before"),
        hook("after")
    ));
    fleet.run_all().await.unwrap();
    let held = LookUpsHeld::begin(&fleet);
    let id = fleet.api.backup(&["docs"]).await.unwrap().remove(0);
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%vault_chunks%'";
    wait_for_async("the look-up that waits", SOON, || async {
        (fleet.sql(waiting).unwrap() == "1").then_some(())
    })
    .await
    .unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "before\n");

    let (status, told) = fleet
        .api
        .post(&format!("/api/v1/jobs/{id}/cancel"), json!({}))
        .await
        .unwrap();
    assert!(status < 300, "{status}: {told}");
    // The answer to this renewal is that the job is cancelled.
    let lease = format!("SELECT lease_expires_at FROM backup_jobs WHERE id = '{id}'");
    let before = fleet.sql(&lease).unwrap();
    wait_for_async("a renewal of the lease", SOON, || async {
        (fleet.sql(&lease).unwrap() != before).then_some(())
    })
    .await
    .unwrap();
    drop(held);
    assert_eq!(fleet.api.ended(&id).await.unwrap()["status"], "cancelled");
    assert_eq!(fs::read_to_string(&log).unwrap(), "before\nafter\n");
    assert_eq!(fleet.vault().await.unwrap().backups().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_back_in_part_in_place_and_first_of_all_on_trial() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let tree = fleet.dir().join("tree");
    make_tree(&tree);
    fleet.target(files_target("docs", &tree));
    fleet.run_all().await.unwrap();
    let whole = listing(&tree);
    let job = backed_up(&fleet, &["docs"]).await;
    let backup = job["backup_id"].as_str().unwrap();
    let run = |args: &[&str]| fleet.strongroom(&[&["restore", backup], args].concat()).unwrap();
    let folder = |name: &str| fleet.dir().join(name).display().to_string();

    let (part, matching) = (folder("part"), folder("matching"));
    let told = run(&[
        "--wait",
        "--destination",
        &part,
        "--path",
        "etc/app",
        "--path",
        "readme.txt",
    ]);
    assert_eq!(told.code, 0, "{told:?}");
    let expected = [
        "etc/",
        "etc/app/",
        "etc/app/main.conf=a = 1",
        "etc/app/other.conf=b = 2",
        "readme.txt=hello",
    ];
    assert_eq!(listing(Path::new(&part)), expected);
    let told = run(&[
        "--wait",
        "--destination",
        &matching,
        "--include",
        "*.conf",
        "--include",
        "!other.conf",
    ]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(
        listing(Path::new(&matching)),
        ["etc/", "etc/app/", "etc/app/main.conf=a = 1"]
    );

    // What is there now differs in every way that there is.
    fs::write(tree.join("etc/hosts"), "changed by mistake").unwrap();
    fs::remove_file(tree.join("readme.txt")).unwrap();
    fs::write(tree.join("var/new"), "not in the backup").unwrap();
    // Of the same length and time, but not of the same content.
    let main = tree.join("etc/app/main.conf");
    let time = main.metadata().unwrap().modified().unwrap();
    fs::write(&main, "a = 9").unwrap();
    let main = fs::File::options().write(true).open(main).unwrap();
    main.set_modified(time).unwrap();
    let changed = listing(&tree);
    let restores = || fleet.vault_dir().join("backups").join(backup).join("restores");
    let receipts = || fs::read_dir(restores()).map_or(0, Iterator::count);
    let before = receipts();
    let told = run(&["--in-place", "--delete", "--dry-run"]);
    assert_eq!(told.code, 0, "{told:?}");
    for line in [
        "create    readme.txt",
        "replace   etc/hosts",
        "replace   etc/app/main.conf",
        "delete    var/new",
        "nothing was changed",
    ] {
        assert!(told.stdout.lines().any(|found| found == line), "{line}: {told:?}");
    }
    assert!(told.stdout.contains("would be 1 created, 2 replaced"), "{told:?}");
    assert_eq!((listing(&tree), receipts()), (changed, before));
    let told = run(&["--in-place", "--delete", "--dry-run", "--json"]);
    let tried: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(
        (&tried["dry_run"], &tried["counts"]["deleted"]),
        (&json!(true), &json!(1))
    );

    let told = run(&["--in-place", "--delete", "--wait", "--json"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(listing(&tree), whole);
    let restored: Value = serde_json::from_str(told.stdout.trim()).unwrap();
    let id = restored["id"].as_str().unwrap();
    let evidence: Value = serde_json::from_slice(&fs::read(restores().join(format!("{id}.json"))).unwrap()).unwrap();
    assert_eq!(evidence["changes"], tried["counts"]);
    assert_eq!(evidence["destination"], json!(tree.display().to_string()));
    let event = fleet.events("restore.completed").wait("restore_id", id).await.unwrap();
    assert_eq!(event["data"]["destination"], evidence["destination"]);
    assert_eq!(fleet.events("restore.completed").all().await.unwrap().len(), 3);

    for (args, says) in [
        (&["--delete", "--destination", &part][..], "--in-place"),
        (&["--destination", &part, "--path", "../etc"], "without .."),
        (
            &[
                "--destination",
                &part,
                "--path",
                "etc/nothing",
                "--dry-run",
                "--in-place",
            ],
            "nothing at",
        ),
        (&["--destination", &part, "--wait"], "not empty"),
    ] {
        let told = run(args);
        assert_ne!(told.code, 0, "{args:?}");
        let text = format!("{}{}", told.stdout, told.stderr);
        assert!(text.contains(says), "{args:?}: {text}");
    }
}

/// Lines that compress about as text does, equal for equal seeds.
fn lines(seed: u32, count: u32) -> String {
    (0..count).map(|line| format!("{seed} {line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_says_so_in_place_and_destroys_no_file() {
    let mut fleet = Fleet::prepare().await.unwrap();
    let tree = fleet.dir().join("tree");
    fs::create_dir(&tree).unwrap();
    // Each in chunks of its own, for the most part.
    let names: Vec<String> = (0..8).map(|number| format!("{number:02}")).collect();
    let path = |name: &str| tree.join(name);
    for (number, name) in (0..).zip(&names) {
        fs::write(path(name), lines(number, 500_000)).unwrap();
    }
    fleet
        .target(files_target("docs", &tree))
        .set("coordinator.max_attempts", "2");
    fleet.run_all().await.unwrap();
    let job = backed_up(&fleet, &["docs"]).await;
    let backup = job["backup_id"].as_str().unwrap();

    let objects = fleet.vault_dir().join("packs");
    let folders = fs::read_dir(&objects).unwrap().map(|folder| folder.unwrap().path());
    let packs: Vec<_> = folders
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|pack| pack.unwrap().path()))
        .collect();
    let pack = packs.iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(pack, bytes).unwrap();
    let (store, identity) = (
        format!("file://{}", fleet.vault_dir().display()),
        fleet.identity_file().display().to_string(),
    );
    let check = ["vault", "check", "--json", "--store", &store, "--identity", &identity];
    let told = fleet.strongroom(&check).unwrap();
    assert_eq!(told.code, 2, "{told:?}");
    let report: Value = serde_json::from_str(&told.stdout).unwrap();
    let hit = &report["damage"][0]["backups"][0]["files"]["paths"];
    let hit: Vec<&str> = hit
        .as_array()
        .unwrap()
        .iter()
        .map(|path| path.as_str().unwrap())
        .collect();
    assert!(!hit.is_empty() && hit.len() < names.len(), "{report}");
    let is_hit = |name: &String| hit.contains(&name.as_str());
    assert!(!is_hit(&names[0]), "{report}");

    let today = |name: &str| format!("{name} as it is today");
    for name in &names[..7] {
        fs::write(path(name), today(name)).unwrap();
    }
    let told = fleet
        .strongroom(&["restore", backup, "--in-place", "--delete", "--wait"])
        .unwrap();
    assert_eq!(told.code, 1, "{told:?}");
    let digest = pack.file_name().unwrap().to_str().unwrap();
    let said = format!("{}{}", told.stdout, told.stderr);
    assert!(said.contains("is damaged") && said.contains(digest), "{told:?}");
    // It ends at the first damage: what comes before that is restored, and the rest is as it was.
    let first = names.iter().position(is_hit).unwrap();
    for (number, name) in (0..).zip(&names) {
        let expected = match (number as usize) < first || number == 7 {
            true => lines(number, 500_000),
            false => today(name),
        };
        assert!(fs::read_to_string(path(name)).unwrap() == expected, "{name}: {said}");
    }
    assert_eq!(listing(&tree).len(), names.len());

    // What is not hit can be had.
    let mut args = vec!["restore", backup, "--in-place", "--wait"];
    for name in names.iter().filter(|name| !is_hit(name)) {
        args.extend(["--path", name]);
    }
    let told = fleet.strongroom(&args).unwrap();
    assert_eq!(told.code, 0, "{told:?}");
    for (number, name) in (0..).zip(&names) {
        let expected = match is_hit(name) && number != 7 {
            true => today(name),
            false => lines(number, 500_000),
        };
        assert!(fs::read_to_string(path(name)).unwrap() == expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_scenario_becomes_a_target_and_is_found_again_where_it_lay() {
    let mut fleet = Fleet::prepare().await.unwrap();
    fleet.set("scenario.exclude", "*.tmp").set("scenario.surface", "scenes");
    fleet.run_all().await.unwrap();
    let (first, second) = (fleet.dir().join("v1"), fleet.dir().join("v2"));
    for (folder, text) in [(&first, "one"), (&second, "two")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("flow.json"), text).unwrap();
        fs::write(folder.join("left.tmp"), "x").unwrap();
    }
    let client = async_nats::connect(fleet.nats.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client);
    let deploy = |folder: &Path, version: &str, sha: &str| {
        let body = json!({
            "scenario": "checkout", "path": folder, "version": version,
            "git": { "repo": "https://git.example/checkout", "sha": sha, "change_ticket": "CHG-7" },
        });
        stream.publish("scenario.deployed", body.to_string().into())
    };
    deploy(&first, "1.4.2", "abc123").await.unwrap().await.unwrap();
    let newest = || async {
        let (_, list) = fleet
            .api
            .get("/api/v1/backup/list?target=scenario/checkout")
            .await
            .unwrap();
        list["backups"].as_array().unwrap().first().cloned()
    };
    let backup = wait_for_async("the scenario's backup", SOON, newest).await.unwrap();
    let taken = receipt(&fleet, &backup).await;
    assert_eq!(
        (&taken["surface"], &taken["backup_type"]),
        (&json!("scenes"), &json!("incremental"))
    );
    assert_eq!(
        (&taken["git"]["sha"], &taken["git"]["change_ticket"]),
        (&json!("abc123"), &json!("CHG-7"))
    );
    assert!(taken["notes"].as_str().unwrap().contains("version 1.4.2"), "{taken}");
    assert_eq!(
        (&taken["source"]["files"], &taken["source"]["excluded"]),
        (&json!(1), &json!(1))
    );

    let listed = || fleet.strongroom(&["target", "list"]).unwrap().stdout;
    assert!(listed().contains("scenario/checkout") && listed().contains(&first.display().to_string()));
    for word in ["scenarios", "scenario/checkout", "files"] {
        let job = backed_up(&fleet, &[word]).await;
        assert_eq!(job["target_identifier"], "scenario/checkout");
        assert_eq!(
            receipt(&fleet, &job).await["source"]["path"],
            json!(first.display().to_string())
        );
    }

    // It moves with its next deployment, and its older backup still knows where it was.
    deploy(&second, "1.5.0", "def456").await.unwrap().await.unwrap();
    wait_for_async("the move", SOON, || async { listed().contains("/v2").then_some(()) })
        .await
        .unwrap();
    fs::remove_dir_all(&first).unwrap();
    let id = backup["backup_id"].as_str().unwrap();
    let told = fleet.strongroom(&["restore", id, "--in-place", "--wait"]).unwrap();
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(listing(&first), ["flow.json=one"]);

    let told = fleet.strongroom(&["target", "remove", "scenario/checkout"]).unwrap();
    assert!(told.stdout.contains("forgot scenario/checkout"), "{told:?}");
    assert!(!listed().contains("scenario/checkout"));
    assert_ne!(fleet.strongroom(&["backup", "scenarios"]).unwrap().code, 0);
}
