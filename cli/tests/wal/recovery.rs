//! Whole recoveries: a server archives by `wal push`, and a copy of it recovers by `wal fetch`.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use strongroom_testkit::{Postgres, Process, S3, free_port, tools_dir, wait_for};

use crate::place::{Place, SIGTERM, stderr};

const BOUND: Duration = Duration::from_secs(120);
/// How many segments are filled after the base backup.
const SEGMENTS: u64 = 6;

/// A server that has archived everything, and a base backup of it.
struct Archived {
    place: Place,
    server: Postgres,
    /// Where its WAL ended, and the segment that holds this.
    end: String,
    last_segment: String,
    rows: String,
}

fn bin_dir(major: u32) -> PathBuf {
    let candidates = [
        tools_dir().unwrap().join(format!("pg{major}/bin")),
        format!("/usr/lib/postgresql/{major}/bin").into(),
    ];
    let found = candidates.into_iter().find(|dir| dir.join("initdb").is_file());
    found.expect("PostgreSQL is missing: run deploy/bootstrap --tests")
}

impl Archived {
    /// Archives into the place's vault, which `store` tells how to reach.
    fn new(place: Place, major: u32, store: &Value) -> Self {
        let settings = [
            ("fsync", "off"),
            ("archive_mode", "on"),
            ("archive_command", "false"),
            ("max_wal_size", "2GB"),
        ];
        let server = Postgres::start_with(&bin_dir(major), &settings).unwrap();
        let system = server.psql("postgres", "select system_identifier from pg_control_system()");
        place.write_settings(store, system.unwrap().parse().unwrap(), 16 << 20);
        // The server's user can read this one wherever the workspace is.
        std::fs::copy(env!("CARGO_BIN_EXE_strongroom"), place.path("strongroom")).unwrap();
        give_to_owner_of(&server.data_dir(), &place.path("."));
        let push = format!(
            "{} wal push --from {} \"%p\"",
            place.text("strongroom"),
            place.text("push.json")
        );
        server
            .psql("postgres", &format!("alter system set archive_command = '{push}'"))
            .unwrap();
        server
            .psql(
                "postgres",
                "select pg_reload_conf(); create table ledger (id int, filler text)",
            )
            .unwrap();
        let copied = Command::new(server.bin_dir().join("pg_basebackup"))
            .args(["-X", "none", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(server.port().to_string())
            .arg("-D")
            .arg(place.path("base"))
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", stderr(&copied));
        for _ in 0..SEGMENTS {
            let fill = "insert into ledger select n, repeat('x', 100) from generate_series(1, 20000) n; \
                        select pg_switch_wal()";
            server.psql("postgres", fill).unwrap();
        }
        server
            .psql("postgres", "insert into ledger values (0, 'last')")
            .unwrap();
        let end = server.psql("postgres", "select pg_current_wal_lsn()").unwrap();
        let last_segment = server
            .psql("postgres", &format!("select pg_walfile_name('{end}'::pg_lsn - 1)"))
            .unwrap();
        server.psql("postgres", "select pg_switch_wal()").unwrap();
        let archived = || {
            let last = server
                .psql("postgres", "select last_archived_wal from pg_stat_archiver")
                .unwrap();
            (last >= last_segment).then_some(())
        };
        wait_for("everything to be archived", BOUND, archived)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", server.log()));
        let rows = server.psql("postgres", "select count(*), sum(id) from ledger").unwrap();
        Self {
            place,
            server,
            end,
            last_segment,
            rows,
        }
    }

    fn in_folder(major: u32) -> Self {
        let place = Place::with_vault();
        let store = json!({ "store": place.text("vault") });
        Self::new(place, major, &store)
    }

    /// A copy of the base backup that recovers with these settings.
    fn recovering(&self, name: &str, restore_command: &str, settings: &str) -> Recovering<'_> {
        let data = self.place.path(name);
        let copied = Command::new("cp")
            .arg("-a")
            .arg(self.place.path("base"))
            .arg(&data)
            .status()
            .unwrap();
        assert!(copied.success());
        let port = free_port().unwrap();
        let conf = format!(
            "port = {port}\narchive_mode = off\nrestore_command = '{restore_command}'\nrecovery_target_action = promote\n\
             log_min_messages = log\n{settings}\n"
        );
        let path = data.join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&path).unwrap() + &conf;
        std::fs::write(&path, text).unwrap();
        std::fs::write(data.join("recovery.signal"), "").unwrap();
        give_to_owner_of(&self.server.data_dir(), &data);
        Recovering {
            archived: self,
            data,
            port,
        }
    }

    fn fetch(&self) -> String {
        format!(
            "{} wal fetch --from {} \"%f\" \"%p\"",
            self.place.text("strongroom"),
            self.place.text("fetch.json")
        )
    }

    /// `fetch` that takes the vault away when this segment is asked for, once.
    fn fetch_until(&self, segment: &str, take_away: &str) -> String {
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = {segment} ] && [ ! -e {done} ]; then {take_away}; touch {done}; fi\n\
             exec {program} wal fetch --from {settings} \"$1\" \"$2\"\n",
            done = self.place.text("done"),
            program = self.place.text("strongroom"),
            settings = self.place.text("fetch.json"),
        );
        let path = self.place.path("restore.sh");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let _ = std::fs::remove_file(self.place.path("done"));
        format!("{} \"%f\" \"%p\"", path.display())
    }

    /// The segment in the middle of what has to be replayed.
    fn middle(&self) -> String {
        let last = u64::from_str_radix(&self.last_segment[16..], 16).unwrap();
        format!("{}{:08X}", &self.last_segment[..16], last - 2)
    }
}

struct Recovering<'a> {
    archived: &'a Archived,
    data: PathBuf,
    port: u16,
}

impl Recovering<'_> {
    fn start(&self) -> Process {
        let owner = std::fs::metadata(&self.data).unwrap();
        let program = self.archived.server.bin_dir().join("postgres");
        let mut args = Vec::new();
        if owner.uid() != rustix::process::geteuid().as_raw() {
            args.extend([format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid())]);
            args.push("--clear-groups".to_owned());
        }
        args.extend(["--", program.to_str().unwrap(), "-D", self.data.to_str().unwrap()].map(str::to_owned));
        let env = [
            ("LC_ALL", "C.UTF-8"),
            ("HOME", self.archived.place.path(".").to_str().unwrap()),
        ]
        .map(|(k, v)| (k, v.to_owned()));
        Process::start(Path::new("/usr/bin/setpriv"), args, env).unwrap()
    }

    fn psql(&self, sql: &str) -> Option<String> {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        let program = self.archived.server.bin_dir().join("psql");
        let done = Command::new(program)
            .args(["-XAtq", "-d", &url, "-c", sql])
            .output()
            .unwrap();
        let text = String::from_utf8(done.stdout).unwrap().trim().to_owned();
        done.status.success().then_some(text)
    }

    /// Waits until the server has been promoted, and compares its rows.
    fn completes(&self) {
        let server = self.start();
        let promoted = || {
            let answer = self.psql("select pg_is_in_recovery()");
            (answer.as_deref() == Some("f")).then_some(())
        };
        wait_for("the end of the recovery", BOUND, promoted)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", server.output()));
        let rows = self.psql("select count(*), sum(id) from ledger").unwrap();
        assert_eq!(rows, self.archived.rows, "{}", server.output());
        server.interrupt().unwrap();
        server.wait_exit(BOUND).unwrap();
    }

    /// Waits until the server has ended by itself, and makes sure that it was not promoted.
    fn ends_unpromoted(&self, told: &str) {
        let server = self.start();
        let status = server.wait_exit(BOUND).unwrap();
        let log = server.output();
        assert!(!status.success(), "{log}");
        assert!(log.contains(told), "{log}");
        assert!(log.contains("restored log file"), "it was in the middle: {log}");
        for sign in ["selected new timeline ID", "archive recovery complete"] {
            assert!(!log.contains(sign), "{log}");
        }
        assert!(self.data.join("recovery.signal").exists(), "{log}");
        assert!(!self.data.join("pg_wal/00000002.history").exists(), "{log}");
    }
}

fn give_to_owner_of(of: &Path, path: &Path) {
    let owner = std::fs::metadata(of).unwrap();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        if path.is_dir() && !path.is_symlink() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

/// How far a recovery is told to go.
#[derive(Clone, Copy)]
enum To {
    TheLatest,
    APlace,
}

fn an_outage_never_promotes(major: u32, all: &[To]) {
    let archived = Archived::in_folder(major);
    let (vault, away) = (archived.place.text("vault"), archived.place.text("away"));
    let take_away = format!("mv {vault} {away}");
    let target = format!("recovery_target_lsn = '{}'", archived.end);
    for to in all {
        let (name, settings) = match to {
            To::TheLatest => ("latest", ""),
            To::APlace => ("target", target.as_str()),
        };
        let until = archived.fetch_until(&archived.middle(), &take_away);
        let recovering = archived.recovering(name, &until, settings);
        recovering.ends_unpromoted("there is no vault");
        // As long as it is away.
        recovering.ends_again();
        std::fs::rename(&away, &vault).unwrap();
        recovering.completes();
    }
}

impl Recovering<'_> {
    fn ends_again(&self) {
        let server = self.start();
        let status = server.wait_exit(BOUND).unwrap();
        assert!(!status.success(), "{}", server.output());
        assert!(self.data.join("recovery.signal").exists());
    }
}

#[test]
fn an_outage_in_mid_recovery_never_promotes_on_15() {
    an_outage_never_promotes(15, &[To::TheLatest, To::APlace]);
}

#[test]
fn an_outage_in_mid_recovery_never_promotes_on_17() {
    an_outage_never_promotes(17, &[To::TheLatest]);
}

#[test]
fn an_outage_in_mid_recovery_never_promotes_on_18() {
    an_outage_never_promotes(18, &[To::TheLatest, To::APlace]);
}

#[test]
fn an_outage_of_a_bucket_in_mid_recovery_never_promotes() {
    let bucket = S3::start().unwrap();
    let place = Place::new();
    let url = format!("s3://{}/wal", bucket.bucket());
    let endpoint = bucket.endpoint();
    place.make_vault(
        &url,
        &[
            ("STRONGROOM_VAULT_S3_ENDPOINT", endpoint.as_str()),
            ("STRONGROOM_VAULT_S3_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", bucket.access_key()),
            ("AWS_SECRET_ACCESS_KEY", bucket.secret_key()),
        ],
    );
    let store = json!({ "store": url, "s3": {
        "endpoint": bucket.endpoint(),
        "access_key_id": bucket.access_key(),
        "secret_access_key": bucket.secret_key(),
        "allow_http": true,
    }});
    let archived = Archived::new(place, 18, &store);
    let go = archived.place.text("go");
    // The bucket is taken away by the test, which the script waits for.
    let wait = format!("touch {go}.asked; while [ ! -e {go} ]; do sleep 0.01; done");
    let until = archived.fetch_until(&archived.middle(), &wait);
    let recovering = archived.recovering("latest", &until, "");
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| recovering.ends_unpromoted("the recovery must stop here"));
        let asked = || Path::new(&format!("{go}.asked")).exists().then_some(());
        wait_for("the middle of the recovery", BOUND, asked).unwrap();
        bucket.kill().unwrap();
        std::fs::write(&go, "").unwrap();
        ended.join().unwrap();
    });
    bucket.restart().unwrap();
    recovering.completes();
}

#[test]
fn a_recovery_with_segments_brought_ahead_has_every_row() {
    for major in [15, 18] {
        let archived = Archived::in_folder(major);
        archived.place.set("spool_dir", json!(archived.place.text("spool")));
        give_to_owner_of(&archived.server.data_dir(), &archived.place.path("."));
        archived.recovering("ahead", &archived.fetch(), "").completes();
        assert!(archived.place.path("spool").is_dir());
    }
}

#[test]
fn a_recovery_to_the_latest_follows_a_promotion() {
    for major in [15, 18] {
        let mut archived = Archived::in_folder(major);
        // The first server is gone; a copy of it is promoted, and archives into the same vault.
        let push = format!(
            "archive_mode = on\narchive_command = '{} wal push --from {} \"%p\"'",
            archived.place.text("strongroom"),
            archived.place.text("push.json")
        );
        archived.server.kill().unwrap();
        let promoted = archived.recovering("promoted", &archived.fetch(), &push);
        let server = promoted.start();
        let more = "insert into ledger select n, 'later' from generate_series(1, 1000) n";
        let written = || promoted.psql(more);
        wait_for("the promotion", BOUND, written).unwrap_or_else(|error| panic!("{error:#}\n{}", server.output()));
        let rows = promoted.psql("select count(*), sum(id) from ledger").unwrap();
        let segment = promoted
            .psql("select pg_walfile_name(pg_current_wal_lsn() - 1)")
            .unwrap();
        assert_eq!(&segment[..8], "00000002");
        promoted.psql("select pg_switch_wal()").unwrap();
        let is_archived = || {
            let last = promoted.psql("select last_archived_wal from pg_stat_archiver")?;
            (last >= segment).then_some(())
        };
        wait_for("the new timeline to be archived", BOUND, is_archived)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", server.output()));
        server.kill().unwrap();
        archived.rows = rows;
        archived.recovering("again", &archived.fetch(), "").completes();
    }
}

#[test]
fn a_fetch_that_is_shot_ends_the_recovery_as_one_that_fails() {
    let archived = Archived::in_folder(18);
    let shot = format!("kill -{SIGTERM} $$");
    let until = archived.fetch_until(
        &archived.middle(),
        &format!("touch {}; {shot}", archived.place.text("done")),
    );
    let recovering = archived.recovering("shot", &until, "");
    recovering.ends_unpromoted("restored log file");
    recovering.completes();
}
