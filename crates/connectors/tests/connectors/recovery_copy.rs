//! A recovered cluster beside the original: it keeps to itself, whoever starts it, until its block is taken out.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use strongroom_connectors::postgres::StopMode;
use strongroom_connectors::postgres::recovery::{Recovered, RecoveryRequest, recover};
use strongroom_proto::wal::{Leave, Recovery, RecoveryTarget};
use strongroom_testkit::free_port;

use crate::recovery_moments::{both_ends, to};
use crate::recovery_source::{FolderWal, Source};
use crate::server::{extra_dirs, passable_dir};

/// A group that only the original's machine would have.
const GROUP: &str = "of-the-original";

/// A source whose own files have it archive, subscribe and listen to everybody.
struct Original {
    source: Source,
    /// A file of this folder is made for every segment that is archived, and for every other command of the original.
    marks: PathBuf,
    sockets: PathBuf,
    port: u16,
    /// Where its subscription looks for its publisher.
    publisher: TcpListener,
}

impl Original {
    fn start(binaries: strongroom_connectors::postgres::ServerBinaries) -> Self {
        let source = Source::start(binaries);
        let publisher = TcpListener::bind("127.0.0.1:0").unwrap();
        publisher.set_nonblocking(true).unwrap();
        let (marks, sockets) = (source.own_folder("marks"), source.own_folder("sockets"));
        let port = free_port().unwrap();
        for (name, value) in [
            ("archive_mode", "on".to_owned()),
            ("archive_command", format!("touch {}/%f", marks.display())),
            ("archive_cleanup_command", format!("touch {}/cleared", marks.display())),
            ("recovery_end_command", format!("touch {}/ended", marks.display())),
            ("unix_socket_group", GROUP.to_owned()),
            ("primary_conninfo", "host=127.0.0.1 user=nobody".to_owned()),
            ("listen_addresses", "*".to_owned()),
            ("port", port.to_string()),
            ("unix_socket_directories", sockets.display().to_string()),
        ] {
            source.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        // A folder that is named there is opened in the place of the copy's.
        let conf = source.dir.path().join("data/postgresql.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        let data = source.dir.path().join("data");
        std::fs::write(&conf, format!("{text}\ndata_directory = '{}'\n", data.display())).unwrap();
        source.sql(&format!(
            "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=x password=x dbname=x' PUBLICATION p \
             WITH (connect = false, slot_name = 's')",
            publisher.local_addr().unwrap().port()
        ));
        source.sql("ALTER SUBSCRIPTION s ENABLE");
        Self {
            source,
            marks,
            sockets,
            port,
            publisher,
        }
    }

    fn is_subscribed(&self) -> bool {
        match self.publisher.accept() {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                false
            }
        }
    }

    fn archived(&self) -> usize {
        self.marks.read_dir().unwrap().count()
    }

    fn ask(&self, host: &Path, port: u16, sql: &str) -> String {
        let psql = self.source.server.cluster.binaries().program("psql");
        let (host, port) = (host.to_str().unwrap(), port.to_string());
        let args = [
            "-XAtq", "-h", host, "-p", &port, "-U", "postgres", "-d", "postgres", "-c", sql,
        ];
        let output = self.source.as_server_user(&psql, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs what a note tells, as the folder's owner.
    fn run_told(&self, recovered: &Recovered, before: &str) {
        let note = recovered.notes.iter().find(|note| note.contains(before));
        let note = note.unwrap_or_else(|| panic!("{:?}", recovered.notes));
        let told = note.split_once(before).unwrap().1;
        let command = told.split_once(", as the folder's owner").unwrap().0;
        let quiet = format!("{command} >/dev/null 2>&1 </dev/null");
        let done = self.source.as_server_user(Path::new("/bin/sh"), &["-c", &quiet]);
        assert!(done.status.success(), "{command}");
    }

    fn stop(&self, data: &Path) {
        let pg_ctl = self.source.server.cluster.binaries().program("pg_ctl");
        let options = format!("-c data_directory={}", data.display());
        let args = ["-D", data.to_str().unwrap(), "-o", &options, "-m", "fast", "-s", "stop"];
        assert!(self.source.as_server_user(&pg_ctl, &args).status.success());
    }

    /// Makes sure that the server of a folder touches nothing outside of it.
    fn keeps_to_itself(&self, data: &Path, rows: &str) {
        let pid_file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let port = pid_file.lines().nth(3).unwrap().parse().unwrap();
        crate::cluster::wait_for("the end of the recovery", || {
            self.ask(data, port, "SELECT pg_is_in_recovery()") == "f"
        });
        assert_ne!(port, self.port);
        for (name, expected) in [
            ("data_directory", data.to_str().unwrap()),
            ("archive_mode", "off"),
            ("archive_command", "(disabled)"),
            ("archive_cleanup_command", ""),
            ("recovery_end_command", ""),
            ("unix_socket_group", ""),
            ("unix_socket_permissions", "0700"),
            ("listen_addresses", "127.0.0.1"),
            ("primary_conninfo", ""),
            ("max_logical_replication_workers", "0"),
        ] {
            assert_eq!(self.ask(data, port, &format!("SHOW {name}")), expected, "{name}");
        }
        let acting = "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'archiver|logical replication'";
        assert_eq!(self.ask(data, port, acting), "0");
        assert_eq!(self.ask(data, port, "SELECT count(*) FROM ledger"), rows);
        self.ask(data, port, "CREATE TABLE IF NOT EXISTS of_the_copy (id int)");
        self.ask(data, port, "SELECT pg_switch_wal()");
        assert!(!self.is_subscribed());
        assert_eq!(self.archived(), 0);
    }
}

/// Takes out the lines that the comment names, and the original's group, which is not here.
fn remove_block(data: &Path) {
    let path = data.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = text.find("# Strongroom, begin of the copy").unwrap();
    let end = "# Strongroom, end of the copy\n";
    let end = text.find(end).unwrap() + end.len();
    let text = format!("{}{}", &text[..begin], &text[end..]);
    let group = format!("unix_socket_group = '{GROUP}'\n");
    assert!(text.contains(&group), "{text}");
    std::fs::write(&path, text.replace(&group, "")).unwrap();
}

#[test]
fn a_copy_keeps_to_itself_until_its_block_is_taken_out() {
    for binaries in both_ends() {
        let mut original = Original::start(binaries);
        let (backup, facts) = original.source.base_backup();
        original.source.commit(3);
        original.source.archive_all();
        original.source.server.cluster.stop(StopMode::Fast);
        while original.is_subscribed() {}

        let dir = passable_dir();
        let restore_command = format!("cp '{}/%f' '%p'", original.source.archive().display());
        let recovered = |leave: Leave, data: &Path| {
            let recovery = Recovery {
                leave,
                ..to(RecoveryTarget::Latest, None)
            };
            let request = RecoveryRequest {
                facts: &facts,
                recovery: &recovery,
                destination: data,
                wal: FolderWal::of(&original.source),
                restore_command: Some(&restore_command),
                bin_dirs: &extra_dirs(),
                scratch_dir: dir.path(),
                mark: "one",
            };
            recover(&backup, &request, &mut |_| {}).unwrap()
        };
        let running = dir.path().join("running");
        let told = recovered(Leave::Running, &running);
        original.keeps_to_itself(&running, "3");
        original.run_told(&told, "stop it with ");
        assert!(!running.join("postmaster.pid").exists());
        // Not the original, whose folder its files name.
        original.run_told(&told, "start it again with ");
        original.keeps_to_itself(&running, "3");
        original.run_told(&told, "stop it with ");

        let unstarted = dir.path().join("it's unstarted");
        let told = recovered(Leave::Unstarted, &unstarted);
        original.run_told(&told, "the first start, with ");
        original.keeps_to_itself(&unstarted, "3");
        original.stop(&unstarted);

        let stopped = dir.path().join("stopped");
        let told = recovered(Leave::Stopped, &stopped);
        original.run_told(&told, "start the server with ");
        original.keeps_to_itself(&stopped, "3");
        original.stop(&stopped);
        remove_block(&stopped);
        original.run_told(&told, "start the server with ");
        let ask = |sql: &str| original.ask(&original.sockets, original.port, sql);
        assert_eq!(ask("SHOW archive_mode"), "on");
        ask("SELECT pg_switch_wal()");
        crate::cluster::wait_for("the archive", || original.archived() > 0);
        crate::cluster::wait_for("the subscription", || original.is_subscribed());
        original.stop(&stopped);
    }
}
