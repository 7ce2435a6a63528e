//! Base backups of whole clusters, against real servers.

use std::fs;
use std::io::{self, Read as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use strongroom_connectors::postgres::physical::{
    BaseBackup, BaseBackupError, ClusterTarget, DamageError, Progress, TreeWriter, Want, base_backup, probe,
};
use strongroom_proto::manifest::PAGE_BYTES;
use strongroom_proto::wal::{Lsn, Tablespace};
use strongroom_testkit::{Postgres, wait_for};

use crate::memory::{FullOnce, Memory};
use crate::physical::{
    self, MemoryWal, Receiving, binaries, files, give, lay_down, lsn, run, start, tablespace_dir, target,
};
use crate::server::passable_dir;

const MAJORS: [u32; 2] = [15, 18];
/// How long anything may take that ends by itself.
const WITHIN: Duration = Duration::from_secs(30);
/// So long after its last sign, nothing is on its way.
const QUIET: Duration = Duration::from_millis(500);
const SUM: &str = "SELECT count(*), sum(n), (SELECT sum(n) FROM far) FROM near";

fn take(server: &Postgres, memory: &mut Memory, want: Want) -> Result<BaseBackup, BaseBackupError> {
    base_backup(&target(server), memory, want, &mut |_| {})
}

/// Two tables, one of them in a tablespace of its own, beside an empty one.
fn fill(server: &Postgres) {
    for name in ["one", "two"] {
        let dir = tablespace_dir(server, name);
        let sql = format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display());
        server.psql("postgres", &sql).unwrap();
    }
    let sql = "CREATE TABLE near AS SELECT n, repeat('x', 200) AS t FROM generate_series(1, 20000) n;
               CREATE TABLE far TABLESPACE one AS SELECT n FROM generate_series(1, 5000) n;
               CREATE INDEX ON far (n) TABLESPACE one;";
    server.psql("postgres", sql).unwrap();
}

/// Lays a backup down with the WAL it needs, has it verified by the stock tool, and starts its server.
fn restored_sum(major: u32, backup: &Memory, wal: &MemoryWal, like: &Path) -> String {
    let dir = passable_dir();
    let data = dir.path().join("data");
    lay_down(backup, &data);
    wal.write_segments(1, &data.join("pg_wal"));
    let verified = run(Command::new(binaries(major).program("pg_verifybackup")).arg(&data));
    assert!(verified.contains("backup successfully verified"), "{verified}");
    give(dir.path(), like);
    let cluster = physical::start_restored(binaries(major), &data, &dir.path().join("socket"));
    let server = crate::server::Server::of(cluster, dir);
    server.sql("postgres", SUM)
}

#[test]
fn a_cluster_with_tablespaces_comes_back_from_its_base_backup() {
    for major in MAJORS {
        let server = start(major, &[("fsync", "off")]);
        fill(&server);
        let wal = MemoryWal::new();
        let receiving = Receiving::start(target(&server), &wal);
        let mut memory = Memory::default();
        let mut last = Progress::default();
        let taken = base_backup(&target(&server), &mut memory, Want::Full, &mut |done| last = done).unwrap();
        receiving.wait_stored(1, taken.cluster.stop_lsn);
        receiving.stop().unwrap();

        let facts = &taken.cluster;
        assert!(facts.start_lsn < facts.stop_lsn && facts.timeline == 1, "{facts:?}");
        assert_eq!(facts.incremental_from, None);
        let locations: Vec<bool> = facts.tablespaces.iter().map(|t| t.location.ends_with("/one")).collect();
        assert_eq!(locations.len(), 2, "{facts:?}");
        assert!(locations.contains(&true));
        let now: f64 = server
            .psql("postgres", "SELECT extract(epoch FROM now())")
            .unwrap()
            .parse()
            .unwrap();
        assert!((now - facts.stopped_at.timestamp_millis() as f64 / 1000.0).abs() < 60.0);
        assert_eq!(last.done_bytes, taken.read_bytes);
        assert!(last.total_bytes.unwrap() > 10 << 20);
        assert_eq!(
            memory.paths()[..2],
            [".", "pg_tblspc"],
            "folders come before what lies in them"
        );
        assert_eq!(memory.left_note.as_deref(), Some(memory.content("backup_manifest")));

        let expected = server.psql("postgres", SUM).unwrap();
        assert_eq!(
            restored_sum(major, &memory, &wal, &server.data_dir()),
            expected,
            "{major}"
        );
        let looked = probe(&target(&server)).unwrap();
        assert_eq!(looked.system_identifier, facts.system_identifier);
        assert_eq!((looked.server_major, looked.segment_bytes), (major, 16 << 20));
        assert!(looked.data_bytes.unwrap() > 10 << 20);
    }
}

#[test]
fn an_incremental_backup_is_whole_on_its_own() {
    let server = start(18, &[("fsync", "off"), ("summarize_wal", "on")]);
    fill(&server);
    let wal = MemoryWal::new();
    let receiving = Receiving::start(target(&server), &wal);
    let mut first = Memory::default();
    let full = take(&server, &mut first, Want::IncrementalIfPossible).unwrap();
    assert!(
        full.notes[0].contains("the last backup's manifest is not known here"),
        "{:?}",
        full.notes
    );
    let mut last = first;
    let mut last_start = full.cluster.start_lsn;
    for round in 1..=2 {
        let sql = format!(
            "UPDATE near SET n = n + {round} WHERE n % 1000 = 0; DELETE FROM far WHERE n > {};
             INSERT INTO far SELECT generate_series(1, 3000); CREATE TABLE new{round} AS SELECT 1 AS one;",
            4000 - round
        );
        server.psql("postgres", &sql).unwrap();
        server.psql("postgres", "VACUUM far").unwrap();
        let mut next = last.next();
        let taken = take(&server, &mut next, Want::IncrementalIfPossible).unwrap();
        assert_eq!(taken.notes, Vec::<String>::new());
        assert!(taken.overlaid > 100 && next.overlaid.len() as u64 == taken.overlaid);
        assert_eq!(taken.cluster.incremental_from, Some(last_start));
        assert!(
            taken.read_bytes * 2 < full.read_bytes,
            "{} of {}",
            taken.read_bytes,
            full.read_bytes
        );
        assert!(!next.text("backup_label").contains("INCREMENTAL"));
        receiving.wait_stored(1, taken.cluster.stop_lsn);
        let expected = server.psql("postgres", SUM).unwrap();
        assert_eq!(restored_sum(18, &next, &wal, &server.data_dir()), expected);
        (last, last_start) = (next, taken.cluster.start_lsn);
    }
    receiving.stop().unwrap();
}

#[test]
fn what_cannot_be_incremental_is_full_and_says_why() {
    let server = start(18, &[("fsync", "off"), ("summarize_wal", "on")]);
    let mut first = Memory::default();
    take(&server, &mut first, Want::Full).unwrap();

    let mut forgetful = first.next();
    forgetful.last_pages.clear();
    let error = take(&server, &mut forgetful, Want::IncrementalIfPossible).unwrap_err();
    assert!(matches!(error, BaseBackupError::NeedsFull { .. }), "{error}");

    let mut damaged = first.next();
    damaged.last_note.as_mut().unwrap()[100] ^= 1;
    let taken = take(&server, &mut damaged, Want::IncrementalIfPossible).unwrap();
    assert!(
        taken.notes[0].contains("the last backup's manifest is unusable"),
        "{:?}",
        taken.notes
    );

    let other = start(18, &[("fsync", "off"), ("summarize_wal", "on")]);
    let taken = take(&other, &mut first.next(), Want::IncrementalIfPossible).unwrap();
    assert!(taken.notes[0].contains("is of the cluster"), "{:?}", taken.notes);
    drop(other);

    // A summary that is missing.
    for file in fs::read_dir(server.data_dir().join("pg_wal/summaries")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let taken = take(&server, &mut first.next(), Want::IncrementalIfPossible).unwrap();
    assert!(
        taken.notes[0].contains("WAL summaries are required"),
        "{:?}",
        taken.notes
    );
    assert_eq!((taken.overlaid, taken.cluster.incremental_from), (0, None));

    let sql = "ALTER SYSTEM SET summarize_wal = off";
    server.psql("postgres", sql).unwrap();
    server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    let taken = take(&server, &mut first.next(), Want::IncrementalIfPossible).unwrap();
    assert!(taken.notes[0].contains("set summarize_wal to on"), "{:?}", taken.notes);

    let old = start(15, &[("fsync", "off")]);
    let taken = take(&old, &mut first.next(), Want::IncrementalIfPossible).unwrap();
    assert!(taken.notes[0].contains("PostgreSQL 15 cannot"), "{:?}", taken.notes);
}

/// Takes a base backup with the stock tool, its archives as the server sent them.
fn stock(server: &Postgres, dir: &Path, more: &[&str]) {
    let mut command = Command::new(server.bin_dir().join("pg_basebackup"));
    command.args(["-Ft", "-X", "none", "-c", "fast", "--manifest-checksums=CRC32C"]);
    command
        .args(["-d", &server.url("postgres")])
        .arg("-D")
        .arg(dir)
        .args(more);
    run(&mut command);
}

/// Feeds the archives of a folder to the code that reads a server's, in pieces of the server's size.
fn feed(dir: &Path, memory: &mut Memory, damage: Option<usize>) -> Result<(), BaseBackupError> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|found| found.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".tar"))
        .collect();
    // Tablespaces begin with a digit, and the server sends them first.
    names.sort();
    let tablespace = |name: &String| {
        Some(Tablespace {
            oid: name.strip_suffix(".tar")?.parse().ok()?,
            location: "/nowhere".to_owned(),
        })
    };
    let tablespaces: Vec<Tablespace> = names.iter().filter_map(tablespace).collect();
    let mut tree = TreeWriter::create(memory, &tablespaces, 0o700)?;
    for name in names {
        let mut archive = fs::read(dir.join(&name)).unwrap();
        if let Some(at) = damage.filter(|_| name == "base.tar") {
            let at = archive.len() * at / 100;
            archive[at] ^= 1;
        }
        tree.begin_archive(&name)?;
        archive.chunks(32 << 10).try_for_each(|piece| tree.write(piece))?;
    }
    tree.finish(&fs::read(dir.join("backup_manifest")).unwrap()).map(|_| ())
}

/// Unpacks a stock backup into the folders that the server had.
fn unpack(from: &Path, to: &Path) -> Vec<std::path::PathBuf> {
    let mut tablespaces = Vec::new();
    fs::create_dir(to).unwrap();
    let untar = |name: &str, to: &Path| run(Command::new("tar").arg("xf").arg(from.join(name)).arg("-C").arg(to));
    untar("base.tar", to);
    fs::copy(from.join("backup_manifest"), to.join("backup_manifest")).unwrap();
    for found in fs::read_dir(from).unwrap() {
        let name = found.unwrap().file_name().into_string().unwrap();
        let Some(oid) = name.strip_suffix(".tar").filter(|stem| *stem != "base") else {
            continue;
        };
        let dir = to.with_extension(oid);
        fs::create_dir(&dir).unwrap();
        untar(&name, &dir);
        std::os::unix::fs::symlink(&dir, to.join("pg_tblspc").join(oid)).unwrap();
        tablespaces.push(dir);
    }
    tablespaces
}

#[test]
fn a_synthetic_full_is_byte_for_byte_what_pg_combinebackup_makes() {
    for major in [17, 18] {
        let server = start(
            major,
            &[("fsync", "off"), ("summarize_wal", "on"), ("autovacuum", "off")],
        );
        fill(&server);
        // Relations that shrink, grow, shrink and grow again, vanish, are rewritten, and stay.
        let before = "CREATE TABLE shrinks AS SELECT n, repeat('s', 300) AS t FROM generate_series(1, 5000) n;
                      CREATE TABLE regrows AS SELECT n, repeat('r', 300) AS t FROM generate_series(1, 5000) n;
                      CREATE TABLE vanishes AS SELECT 1 AS n; CREATE TABLE emptied AS SELECT n FROM generate_series(1, 9999) n;
                      CREATE TABLE stays AS SELECT n FROM generate_series(1, 9999) n; CREATE UNLOGGED TABLE u (n int);";
        server.psql("postgres", before).unwrap();
        let dir = passable_dir();
        let (full, changed) = (dir.path().join("full"), dir.path().join("changed"));
        stock(&server, &full, &[]);
        let after = "DELETE FROM shrinks WHERE n > 1000; DELETE FROM regrows WHERE n > 1000; DROP TABLE vanishes;
                     TRUNCATE emptied; UPDATE near SET n = -n WHERE n % 500 = 0; UPDATE far SET n = n WHERE n = 77;";
        server.psql("postgres", after).unwrap();
        for sql in [
            "VACUUM (TRUNCATE true) shrinks",
            "VACUUM (TRUNCATE true) regrows",
            "INSERT INTO regrows SELECT n, repeat('R', 300) FROM generate_series(1, 2500) n",
            "INSERT INTO near SELECT n, 'more' FROM generate_series(1, 30000) n",
            "CREATE DATABASE another",
            "CHECKPOINT",
        ] {
            server.psql("postgres", sql).unwrap();
        }
        let incremental = format!("--incremental={}", full.join("backup_manifest").display());
        stock(&server, &changed, &[&incremental]);

        let (mut first, combined) = (Memory::default(), dir.path().join("combined"));
        feed(&full, &mut first, None).unwrap();
        let mut second = first.next();
        feed(&changed, &mut second, None).unwrap();
        assert!(second.overlaid.len() > 100);

        let (full_dir, changed_dir) = (dir.path().join("a"), dir.path().join("b"));
        unpack(&full, &full_dir);
        let mut combine = Command::new(server.bin_dir().join("pg_combinebackup"));
        combine
            .arg("-N")
            .arg("-o")
            .arg(&combined)
            .arg(&full_dir)
            .arg(&changed_dir);
        for tablespace in unpack(&changed, &changed_dir) {
            let to = tablespace.with_extension(format!("{}c", tablespace.extension().unwrap().to_str().unwrap()));
            combine.arg(format!("-T{}={}", tablespace.display(), to.display()));
        }
        run(&mut combine);

        let mut expected = files(&combined);
        expected.remove("backup_manifest").unwrap();
        let made: Vec<&str> = second
            .entries
            .iter()
            .filter(|(entry, _)| entry.kind.has_content() && entry.path != "backup_manifest")
            .map(|(entry, _)| entry.path.as_str())
            .collect();
        assert_eq!(made.len(), expected.len());
        for (path, content) in &expected {
            assert!(second.content(path) == content, "{major}: {path} differs");
        }
        let laid = dir.path().join("laid");
        lay_down(&second, &laid);
        let verified = run(Command::new(server.bin_dir().join("pg_verifybackup"))
            .arg("-n")
            .arg(&laid));
        assert!(verified.contains("backup successfully verified"), "{verified}");
    }
}

#[test]
fn a_damaged_stream_is_refused() {
    let server = start(15, &[("fsync", "off")]);
    let dir = passable_dir();
    let stored = dir.path().join("stored");
    stock(&server, &stored, &[]);
    feed(&stored, &mut Memory::default(), None).unwrap();
    for at in [5, 30, 50, 70, 95] {
        let mut memory = Memory::default();
        let error = feed(&stored, &mut memory, Some(at)).unwrap_err();
        assert!(matches!(error, BaseBackupError::Damaged { .. }), "{at}: {error}");
        assert_eq!(memory.left_note, None);
    }
    // A file that never came, and a manifest that was changed.
    let manifest = fs::read_to_string(stored.join("backup_manifest")).unwrap();
    fs::write(
        stored.join("backup_manifest"),
        manifest.replacen("PG_VERSION", "PG_VERSIOM", 1),
    )
    .unwrap();
    let error = feed(&stored, &mut Memory::default(), None).unwrap_err();
    assert!(
        matches!(
            error,
            BaseBackupError::Damaged {
                source: DamageError::ManifestChecksum
            }
        ),
        "{error}"
    );
}

#[test]
fn pages_that_are_damaged_on_the_server_fail_the_backup() {
    let server = start(18, &[("fsync", "off")]);
    server
        .psql(
            "postgres",
            "CREATE TABLE t AS SELECT n FROM generate_series(1, 5000) n; CHECKPOINT;",
        )
        .unwrap();
    assert!(probe(&target(&server)).unwrap().has_checksums);
    let relation = server.psql("postgres", "SELECT pg_relation_filepath('t')").unwrap();
    server.stop().unwrap();
    let file = server.data_dir().join(&relation);
    let mut content = fs::read(&file).unwrap();
    content[3 * PAGE_BYTES as usize + 5000] ^= 1;
    fs::write(&file, content).unwrap();
    server.restart().unwrap();
    let mut memory = Memory::default();
    let error = take(&server, &mut memory, Want::Full).unwrap_err();
    assert!(matches!(error, BaseBackupError::Checksums { .. }), "{error}");
    assert!(error.to_string().contains(&relation), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(memory.left_note, None);
}

#[test]
fn a_full_disk_and_a_stop_end_a_backup() {
    let server = start(15, &[("fsync", "off")]);
    let error = take(&server, &mut Memory::full_after(1 << 20), Want::Full).unwrap_err();
    assert!(matches!(&error, BaseBackupError::Sink { .. }), "{error}");
    assert!(!error.is_retryable());

    let mut slow = target(&server);
    // The slowest there is: the whole would take many minutes.
    slow.rate_bytes_per_second = Some(1);
    let stop = strongroom_connectors::Stop::default();
    let stopping = stop.clone();
    let mut memory = Memory::default();
    let ended = stop.run(|| base_backup(&slow, &mut memory, Want::Full, &mut |_| stopping.stop()));
    assert!(matches!(ended, Err(BaseBackupError::Stopped)), "{ended:?}");
    assert_eq!(memory.left_note, None);
}

#[test]
fn a_rate_limit_is_told_to_the_server_in_its_unit() {
    for major in MAJORS {
        let server = start(major, &[("fsync", "off"), ("log_replication_commands", "on")]);
        let mut limited = target(&server);
        limited.rate_bytes_per_second = Some(512 << 20);
        for target in [target(&server), limited] {
            base_backup(&target, &mut Memory::default(), Want::Full, &mut |_| {}).unwrap();
        }
        let log = server.log();
        let commands: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("received replication command: BASE_BACKUP"))
            .collect();
        assert_eq!(commands.len(), 2, "{log}");
        assert!(!commands[0].contains("MAX_RATE"), "{}", commands[0]);
        assert!(commands[1].contains("MAX_RATE 524288"), "{}", commands[1]);
    }
}

/// Passes on what a client says, and of what the server says two megabytes and, when they are written, a little more, which
/// the disk has no room for. Then it is silent and holds the connection.
fn stalling(server: &Postgres, disk: Arc<FullOnce>) -> ClusterTarget {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut url: url::Url = server.url("postgres").parse().unwrap();
    let address = (url.host_str().unwrap().to_owned(), url.port().unwrap());
    url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let upstream = TcpStream::connect(address).unwrap();
        let (mut from, mut to) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            io::copy(&mut (&mut from).take(2 << 20), &mut to).unwrap();
            // Whoever reads has to be waiting for the server. Were it not, the test would show less, and not fail.
            let mut written = 0;
            wait_for("a sink that has written all", WITHIN, || {
                std::thread::sleep(QUIET);
                let before = std::mem::replace(&mut written, disk.written_bytes.load(Ordering::SeqCst));
                (before == written && written > 0).then_some(())
            })
            .unwrap();
            disk.is_full.store(true, Ordering::SeqCst);
            io::copy(&mut (&mut from).take(128 << 10), &mut to).unwrap();
            std::thread::sleep(QUIET);
            disk.may_fail.wait();
        });
        // Ends when the client goes.
        let _ = io::copy(&mut &client, &mut &upstream);
    });
    ClusterTarget::new(url)
}

#[test]
fn a_full_disk_ends_a_backup_of_a_server_that_says_nothing_more() {
    let server = start(15, &[("fsync", "off")]);
    let disk = Arc::new(FullOnce {
        written_bytes: AtomicUsize::new(0),
        is_full: AtomicBool::new(false),
        may_fail: Barrier::new(2),
    });
    let stalled = stalling(&server, Arc::clone(&disk));
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let mut memory = Memory::default();
        memory.full_once = Some(disk);
        let taken = base_backup(&stalled, &mut memory, Want::Full, &mut |_| {});
        ended.send(taken.map(|_| ())).unwrap();
    });
    let error = end.recv_timeout(WITHIN).expect("the backup's end").unwrap_err();
    assert!(matches!(&error, BaseBackupError::Sink { .. }), "{error}");
    wait_for("the end of the server's side", WITHIN, || {
        let senders = server
            .psql("postgres", "SELECT count(*) FROM pg_stat_replication")
            .ok()?;
        (senders.trim() == "0").then_some(())
    })
    .unwrap();
}

#[test]
fn a_role_needs_the_attribute_and_its_password() {
    for major in MAJORS {
        let server = start(major, &[("fsync", "off")]);
        let sql = "CREATE ROLE plain LOGIN; CREATE ROLE carl LOGIN REPLICATION PASSWORD 'p:w\\x ü'";
        server.psql("postgres", sql).unwrap();
        let hba = server.data_dir().join("pg_hba.conf");
        let rules = fs::read_to_string(&hba).unwrap();
        fs::write(
            &hba,
            format!("host replication,all carl 127.0.0.1/32 scram-sha-256\n{rules}"),
        )
        .unwrap();
        server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
        let as_role = |role: &str, password: Option<&str>| {
            let mut url: url::Url = server.url("postgres").parse().unwrap();
            url.set_username(role).unwrap();
            url.set_password(password).unwrap();
            ClusterTarget::new(url)
        };
        let error = probe(&as_role("plain", None)).unwrap_err().to_string();
        assert!(error.contains("ALTER ROLE name REPLICATION"), "{error}");
        let error = probe(&as_role("carl", Some("wrong"))).unwrap_err();
        assert!(error.to_string().contains("check the role and its password"), "{error}");
        assert!(!format!("{error:?}").contains("wrong"));
        let error = probe(&as_role("carl", None)).unwrap_err().to_string();
        assert!(error.contains("no password supplied"), "{error}");
        let looked = probe(&as_role("carl", Some("p:w\\x ü"))).unwrap();
        assert!(looked.at > Lsn(0) && looked.at <= lsn(&server, "SELECT pg_current_wal_lsn()"));
    }
}

/// Makes an authority and a certificate of it for this name, in the server's data folder.
fn certify(server: &Postgres, name: &str) {
    let data = server.data_dir();
    let openssl = |args: &[&str]| run(Command::new("openssl").current_dir(&data).args(args));
    let key = [
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=test",
    ];
    openssl(
        &[
            &key[..],
            &["-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt"],
        ]
        .concat(),
    );
    openssl(&[&key[..], &["-keyout", "server.key", "-out", "server.csr"]].concat());
    fs::write(data.join("san"), format!("subjectAltName = {name}")).unwrap();
    let sign = "x509 -req -days 2 -CA ca.crt -CAkey ca.key -CAcreateserial -in server.csr -extfile san -out server.crt";
    openssl(&sign.split(' ').collect::<Vec<_>>());
    give(&data, &data);
    for sql in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        server.psql("postgres", sql).unwrap();
    }
}

#[test]
fn a_certificate_is_looked_at_as_far_as_sslmode_asks() {
    let looks = |server: &Postgres, parameters: String| {
        let url = format!("{}?{parameters}", server.url("postgres"));
        probe(&ClusterTarget::new(url.parse().unwrap())).map(|looked| looked.at)
    };
    let server = start(15, &[("fsync", "off")]);
    looks(&server, "sslmode=prefer".to_owned()).unwrap();
    let error = looks(&server, "sslmode=require".to_owned()).unwrap_err().to_string();
    assert!(error.contains("does not speak TLS"), "{error}");
    certify(&server, "IP:127.0.0.1");
    let rules = server.data_dir().join("pg_hba.conf");
    let only_tls = fs::read_to_string(&rules).unwrap().replace("host  ", "hostssl  ");
    fs::write(&rules, only_tls).unwrap();
    server.restart().unwrap();
    let root = format!("sslrootcert={}", server.data_dir().join("ca.crt").display());
    looks(&server, "sslmode=disable".to_owned()).unwrap_err();
    for mode in [
        "sslmode=require".to_owned(),
        format!("sslmode=verify-ca&{root}"),
        format!("sslmode=verify-full&{root}"),
    ] {
        looks(&server, mode).unwrap();
    }
    // An authority that nobody knows.
    looks(&server, "sslmode=verify-ca".to_owned()).unwrap_err();
    let other = start(15, &[("fsync", "off")]);
    certify(&other, "DNS:elsewhere.example");
    other.restart().unwrap();
    let root = format!("sslrootcert={}", other.data_dir().join("ca.crt").display());
    looks(&other, format!("sslmode=verify-ca&{root}")).unwrap();
    looks(&other, format!("sslmode=verify-full&{root}")).unwrap_err();
}
