use std::io;

use strongroom_connectors::postgres::{Checks, DumpError, PostgresTarget, dump, probe, sample_sql};
use strongroom_proto::manifest::{Entry, EntrySink};

use crate::memory::Memory;
use crate::server::{Server, extra_dirs, majors, oldest};

/// Names that patterns, paths and quoting could trip over.
const ODD_TABLES: &str = r#"
CREATE SCHEMA "odd.schema ""*""";
CREATE TABLE "odd.schema ""*"""."new
line / star* dot. question? $dollar \back [x] (y)|z" AS SELECT n, md5(n::text) FROM generate_series(1, 3000) n;
CREATE TABLE "odd.schema ""*"""."new
line / starX dot. question? $dollar \back [x] (y)|z" AS SELECT n FROM generate_series(1, 7) n;
CREATE TABLE "ÜPPER" AS SELECT n FROM generate_series(1, 2000) n;
CREATE TABLE "üpper" AS SELECT n FROM generate_series(1, 5) n;
CREATE TABLE parent (n int);
CREATE TABLE child () INHERITS (parent);
INSERT INTO parent SELECT generate_series(1, 3);
INSERT INTO child SELECT generate_series(1, 40);
CREATE TABLE no_columns ();
INSERT INTO no_columns SELECT FROM generate_series(1, 4);
"#;

fn checks(memory: &Memory) -> Checks {
    serde_json::from_slice(memory.content("checks.json")).unwrap()
}

fn rows(checks: &Checks, name: &str) -> u64 {
    checks
        .tables
        .iter()
        .find(|table| table.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
        .rows
}

#[test]
fn a_dump_of_every_version_holds_what_the_database_holds() {
    for binaries in majors() {
        let server = Server::start(binaries);
        server.create_database("shop", &sample_sql(4));
        let mut memory = Memory::default();
        let mut target = server.target("shop");
        target.large_table_bytes = 300_000;
        let report = dump(&target, &mut memory).unwrap();
        let checks = checks(&memory);

        assert_eq!(memory.paths()[..2], ["globals.sql", "database.dump"]);
        assert_eq!(memory.paths().last(), Some(&"checks.json"));
        assert!(
            memory.paths().iter().any(|path| path.ends_with("-shop.orders.dump")),
            "{:?}",
            memory.paths()
        );
        assert!(memory.text("globals.sql").contains("CREATE ROLE sample_reader"));
        assert!(report.missing.is_empty(), "{:?}", report.missing);
        for table in ["orders", "customers", "documents"] {
            let counted = server.sql("shop", &format!("SELECT count(*) FROM shop.{table}"));
            assert_eq!(rows(&checks, table).to_string(), counted, "{table}");
        }
        let events: u64 = checks
            .tables
            .iter()
            .filter(|table| table.name.starts_with("events_"))
            .map(|table| table.rows)
            .sum();
        assert_eq!(
            events.to_string(),
            server.sql("shop", "SELECT count(*) FROM audit.events")
        );
        assert_eq!(checks.large_objects.count, 40);
        assert_eq!(report.facts.rows, Some(checks.rows()));
        assert_eq!(checks.objects["MATERIALIZED VIEW"], 1);
        assert_eq!(checks.objects["TRIGGER"], 1);

        // The digests do not depend on how the database was cut into streams.
        let mut whole = Memory::default();
        dump(&server.target("shop"), &mut whole).unwrap();
        assert_eq!(self::checks(&whole), checks);
        assert_eq!(whole.paths(), ["globals.sql", "database.dump", "checks.json"]);
    }
}

#[test]
fn names_that_look_like_patterns_or_paths_are_dumped_exactly_once() {
    for binaries in majors() {
        let server = Server::start(binaries);
        server.create_database("odd", ODD_TABLES);
        let mut target = server.target("odd");
        target.large_table_bytes = 60_000;
        let mut memory = Memory::default();
        dump(&target, &mut memory).unwrap();
        let own: Vec<&str> = memory
            .paths()
            .into_iter()
            .filter(|path| path.starts_with("tables/"))
            .collect();
        assert_eq!(own.len(), 2, "{own:?}");
        for path in &own {
            let name = path.strip_prefix("tables/").unwrap();
            assert!(
                name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-%".contains(&b)),
                "{name}"
            );
        }
        let checks = checks(&memory);
        assert_eq!(checks.rows(), 3000 + 7 + 2000 + 5 + 3 + 40 + 4);
        assert_eq!(checks.tables.len(), 7);
        assert_eq!((rows(&checks, "parent"), rows(&checks, "no_columns")), (3, 4));
    }
}

#[test]
fn only_the_rows_that_an_extension_wants_dumped_are_counted() {
    let server = Server::start(oldest());
    // An extension made of what this database holds; no file of the system is touched.
    server.create_database(
        "extended",
        "CREATE TABLE plain AS SELECT generate_series(1, 10) AS n;
         CREATE TABLE settings AS SELECT n, n > 4 AS is_custom FROM generate_series(1, 10) n;
         UPDATE pg_extension SET extconfig = ARRAY['settings'::regclass::oid],
                                 extcondition = ARRAY['WHERE is_custom'] WHERE extname = 'plpgsql';
         INSERT INTO pg_depend VALUES ('pg_class'::regclass, 'settings'::regclass, 0, 'pg_extension'::regclass,
                                       (SELECT oid FROM pg_extension WHERE extname = 'plpgsql'), 0, 'e');",
    );
    let checks = checks(&server.dump("extended"));
    assert_eq!(rows(&checks, "settings"), 6);
    assert_eq!(rows(&checks, "plain"), 10);
}

/// Where something happens before an entry begins.
struct Meanwhile<F> {
    memory: Memory,
    happens: F,
}

impl<F: FnMut(&Entry)> EntrySink for Meanwhile<F> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        (self.happens)(entry);
        self.memory.begin(entry)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.memory.write(bytes)
    }
    fn end(&mut self) -> io::Result<()> {
        self.memory.end()
    }
}

#[test]
fn all_streams_show_one_instant_whatever_happens_meanwhile() {
    let server = Server::start(oldest());
    server.create_database(
        "busy",
        "CREATE TABLE numbers AS SELECT n, repeat('x', 90) AS t FROM generate_series(1, 20000) n;
         CREATE TABLE others (n int)",
    );
    let mut target = server.target("busy");
    target.large_table_bytes = 100_000;
    let mut sink = Meanwhile {
        memory: Memory::default(),
        happens: |entry: &Entry| {
            if entry.path == "database.dump" {
                server.sql(
                    "busy",
                    "DELETE FROM numbers WHERE n > 5; INSERT INTO others VALUES (1), (2)",
                );
            }
        },
    };
    dump(&target, &mut sink).unwrap();
    let checks = checks(&sink.memory);
    assert_eq!((rows(&checks, "numbers"), rows(&checks, "others")), (20_000, 0));
    assert_eq!(server.sql("busy", "SELECT count(*) FROM numbers"), "5");
}

#[test]
fn a_role_without_rights_gets_plain_words_and_no_short_dump() {
    let server = Server::start(oldest());
    server.create_database(
        "shop",
        "CREATE ROLE backup LOGIN; CREATE TABLE open (n int); GRANT SELECT ON open TO backup;
         CREATE TABLE salaries (n int);",
    );
    let mut target = server.target("shop");
    target.url.set_username("backup").unwrap();
    let mut memory = Memory::default();
    let error = dump(&target, &mut memory).unwrap_err();
    assert!(
        error.to_string().contains("permission denied for table salaries"),
        "{error}"
    );
    assert!(error.to_string().contains("grant the role"), "{error}");
    assert!(!error.is_retryable());
    assert!(
        !memory.paths().contains(&"database.dump"),
        "a short dump was called complete"
    );

    server.sql("shop", "GRANT SELECT ON salaries TO backup");
    let report = dump(&target, &mut Memory::default()).unwrap();
    assert_eq!(report.missing.len(), 1);
    assert_eq!(report.missing[0].name, "role passwords");
}

#[test]
fn a_full_vault_ends_the_dump_and_its_tools() {
    let server = Server::start(oldest());
    server.create_database("shop", &sample_sql(4));
    let mut memory = Memory::full_after(1_000_000);
    let error = dump(&server.target("shop"), &mut memory).unwrap_err();
    assert!(matches!(error, DumpError::Sink { .. }), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(memory.paths(), ["globals.sql"]);
    crate::cluster::wait_for("the sessions of the dump to end", || {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND pid <> pg_backend_pid()";
        server.sql("shop", sessions) == "0"
    });
}

/// Ends every session of the dump once its archive has begun.
struct Cutting<'a> {
    server: &'a Server,
    memory: Memory,
    is_cut: bool,
}

impl EntrySink for Cutting<'_> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.memory.begin(entry)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.memory.paths() == ["globals.sql"] && !self.is_cut {
            self.is_cut = true;
            self.server.sql(
                "postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shop'",
            );
        }
        self.memory.write(bytes)
    }
    fn end(&mut self) -> io::Result<()> {
        self.memory.end()
    }
}

#[test]
fn a_lost_connection_is_an_error_to_try_again() {
    let server = Server::start(oldest());
    server.create_database("shop", &sample_sql(16));
    let mut sink = Cutting {
        server: &server,
        memory: Memory::default(),
        is_cut: false,
    };
    let error = dump(&server.target("shop"), &mut sink).unwrap_err();
    assert!(sink.is_cut);
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(sink.memory.paths(), ["globals.sql"]);
}

#[test]
fn a_tool_older_than_the_server_is_refused_by_name() {
    let mut majors = majors();
    let newest = majors.pop().unwrap();
    let Some(older) = majors.pop() else {
        panic!("a second Postgres version is needed: run deploy/bootstrap --tests")
    };
    let server = Server::start(newest);
    let mut target = server.target("postgres");
    target.bin_dirs = vec![older.dir.clone()];
    let error = probe(&target).unwrap_err().to_string();
    let server_major = server.cluster.binaries().major;
    assert!(
        error.contains(&format!("the server is version {server_major}")),
        "{error}"
    );
    assert!(
        error.contains(&format!("install postgresql-client-{server_major}")),
        "{error}"
    );
    assert!(matches!(
        dump(&target, &mut Memory::default()),
        Err(DumpError::NoTool { .. })
    ));
}

#[test]
fn a_server_that_is_not_there_is_named_and_tried_again() {
    let target = PostgresTarget::new("postgres://ann:hunter2@127.0.0.1:1/shop".parse().unwrap());
    let error = probe(&target).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("ann@127.0.0.1:1/shop"), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[test]
fn no_tool_is_started_with_a_password_in_sight() {
    let server = Server::start(oldest());
    server.create_database(
        "shop",
        "CREATE ROLE secretive SUPERUSER LOGIN PASSWORD 'hunter2-canary';
         CREATE TABLE t AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 20000) n",
    );
    let mut target = server.target("shop");
    target.url.set_username("secretive").unwrap();
    target.url.set_password(Some("hunter2-canary")).unwrap();

    struct Looking(Vec<String>);
    impl EntrySink for Looking {
        fn begin(&mut self, _: &Entry) -> io::Result<()> {
            Ok(())
        }
        fn write(&mut self, _: &[u8]) -> io::Result<()> {
            // The tool whose output this is waits at a full pipe, or has just ended.
            if self.0.len() < 30 {
                let parent = format!(" {} ", std::process::id());
                for process in std::fs::read_dir("/proc")?.flatten() {
                    let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
                    let is_child = stat
                        .rsplit(") ")
                        .next()
                        .is_some_and(|rest| rest.get(1..).unwrap_or("").starts_with(&parent));
                    if !is_child {
                        continue;
                    }
                    for file in ["cmdline", "environ"] {
                        let seen = std::fs::read(process.path().join(file)).unwrap_or_default();
                        self.0.push(String::from_utf8_lossy(&seen).into_owned());
                    }
                }
            }
            Ok(())
        }
        fn end(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Looking(Vec::new());
    dump(&target, &mut sink).unwrap();
    assert!(sink.0.iter().any(|seen| seen.contains("pg_dump")), "no tool was seen");
    assert!(
        !sink.0.iter().any(|seen| seen.contains("hunter2")),
        "a tool was given the password"
    );
}

#[test]
fn the_oldest_tool_that_fits_is_used() {
    let server = Server::start(oldest());
    let mut target = server.target("postgres");
    target.bin_dirs = extra_dirs();
    let facts = probe(&target).unwrap();
    assert_eq!(
        facts.tool_version.split('.').next(),
        facts.server_version.split('.').next()
    );
    assert!(facts.database_bytes > 1_000_000);
}

#[test]
fn a_table_cannot_be_emptied_between_the_streams_of_a_dump() {
    let server = Server::start(oldest());
    server.create_database(
        "shop",
        "CREATE TABLE big AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n",
    );
    let mut target = server.target("shop");
    target.large_table_bytes = 100_000;
    let mut refused = 0;
    let mut sink = Meanwhile {
        memory: Memory::default(),
        happens: |entry: &Entry| {
            if entry.path != "checks.json" {
                let said = server.sql(
                    "shop",
                    "SET lock_timeout = '50ms'; DO $$ BEGIN TRUNCATE big; EXCEPTION WHEN lock_not_available THEN PERFORM set_config('t.r', 'refused', false); END $$; SELECT current_setting('t.r', true)",
                );
                refused += usize::from(said.contains("refused"));
            }
        },
    };
    dump(&target, &mut sink).unwrap();
    assert_eq!(rows(&checks(&sink.memory), "big"), 20_000);
    assert_eq!(refused, 3, "while each of globals, database and table was read");
}
