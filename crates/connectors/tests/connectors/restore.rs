use strongroom_connectors::postgres::{RestoreError, RestoreOptions, dump, restore, sample_sql};
use strongroom_proto::receipt::CheckOutcome;

use crate::memory::Memory;
use crate::server::{Server, majors, oldest};

const ALL: RestoreOptions = RestoreOptions {
    allow_non_empty: false,
    globals: true,
};

/// A text that is equal for equal contents.
const FINGERPRINT: &str = r"
SELECT md5(string_agg(o::text, '|' ORDER BY id)) FROM shop.orders o;
SELECT md5(string_agg(c::text, '|' ORDER BY id)) FROM shop.customers c;
SELECT md5(string_agg(d::text, '|' ORDER BY id)) FROM shop.documents d;
SELECT md5(string_agg(e::text, '|' ORDER BY id)) FROM audit.events e;
SELECT md5(string_agg(r::text, '|' ORDER BY month, currency)) FROM shop.revenue r;
SELECT md5(string_agg(md5(lo_get(oid)), '|' ORDER BY oid)) FROM pg_largeobject_metadata;
SELECT last_value, is_called FROM shop.invoice_number;
SELECT string_agg(indexdef, '|' ORDER BY indexname) FROM pg_indexes WHERE schemaname IN ('shop', 'audit');
SELECT has_table_privilege('sample_reader', 'shop.orders', 'SELECT'),
       has_column_privilege('sample_app', 'shop.orders', 'state', 'UPDATE');
";

fn options(database: &str) -> String {
    format!("SELECT datname, pg_get_userbyid(datdba), datacl FROM pg_database WHERE datname = '{database}'")
}

#[test]
fn a_database_of_every_version_comes_back_into_an_empty_server() {
    for binaries in majors() {
        let source = Server::start(binaries.clone());
        source.create_database("shop", &sample_sql(4));
        source.sql(
            "postgres",
            "ALTER DATABASE shop OWNER TO sample_app; ALTER DATABASE shop SET search_path = shop, public;
             ALTER DATABASE shop SET default_transaction_read_only = on;
             GRANT CONNECT, TEMPORARY ON DATABASE shop TO sample_reader; REVOKE ALL ON DATABASE shop FROM PUBLIC",
        );
        let mut target = source.target("shop");
        target.large_table_bytes = 300_000;
        let mut memory = Memory::default();
        dump(&target, &mut memory).unwrap();

        let destination = Server::start(binaries);
        let report = restore(&memory, &destination.target("shop"), &ALL).unwrap();
        assert_eq!(destination.sql("shop", FINGERPRINT), source.sql("shop", FINGERPRINT));
        assert_eq!(
            destination.sql("shop", &options("shop")),
            source.sql("shop", &options("shop"))
        );
        assert_eq!(destination.sql("shop", "SHOW search_path"), "shop, public");
        assert_eq!(destination.sql("shop", "SHOW default_transaction_read_only"), "on");
        assert_eq!(report.checks.len(), 1);
        assert_eq!(report.checks[0].outcome, CheckOutcome::Passed, "{:?}", report.checks);
        let bytes: usize = memory.entries.iter().map(|(_, content)| content.len()).sum();
        assert_eq!(
            report.restored_bytes,
            (bytes - memory.content("checks.json").len()) as u64
        );
    }
}

#[test]
fn a_backup_comes_back_into_every_newer_version() {
    let majors = majors();
    let source = Server::start(majors[0].clone());
    source.create_database("shop", &sample_sql(2));
    let memory = source.dump("shop");
    for newer in &majors[1..] {
        let destination = Server::start(newer.clone());
        let report = restore(&memory, &destination.target("shop"), &ALL).unwrap();
        assert_eq!(report.checks[0].outcome, CheckOutcome::Passed, "{:?}", report.checks);
        assert_eq!(destination.sql("shop", FINGERPRINT), source.sql("shop", FINGERPRINT));
    }
}

#[test]
fn a_destination_that_holds_anything_is_refused_and_left_alone() {
    let server = Server::start(oldest());
    server.create_database("shop", &sample_sql(1));
    let memory = server.dump("shop");
    for (name, sql, found) in [
        (
            "with_table",
            "CREATE TABLE precious AS SELECT 1 AS n",
            "relation public.precious",
        ),
        (
            "with_function",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function public.f",
        ),
        ("with_type", "CREATE TYPE mood AS ENUM ('good')", "type public.mood"),
        ("with_schema", "CREATE SCHEMA mine", "schema mine"),
        ("with_object", "SELECT lo_create(4711)", "large object 4711"),
    ] {
        server.create_database(name, sql);
        let error = restore(&memory, &server.target(name), &ALL).unwrap_err();
        assert!(matches!(error, RestoreError::NotEmpty { .. }), "{error}");
        assert!(error.to_string().contains(found), "{error}");
        assert_eq!(
            server.sql(name, "SELECT count(*) FROM pg_namespace WHERE nspname = 'shop'"),
            "0"
        );
    }
    // An extension alone is not contents.
    server.create_database("fresh", "");
    restore(&memory, &server.target("fresh"), &ALL).unwrap();
    assert_eq!(server.sql("fresh", FINGERPRINT), server.sql("shop", FINGERPRINT));
}

#[test]
fn what_exists_is_replaced_only_when_that_is_allowed() {
    for binaries in majors() {
        let server = Server::start(binaries);
        server.create_database("shop", &sample_sql(1));
        let before = server.sql("shop", FINGERPRINT);
        let memory = server.dump("shop");
        server.sql(
            "shop",
            "UPDATE shop.orders SET notes = 'spoiled'; DELETE FROM audit.events; DROP INDEX shop.orders_open;
             CREATE TABLE unrelated AS SELECT 5 AS n",
        );
        let options = RestoreOptions {
            allow_non_empty: true,
            globals: true,
        };
        let report = restore(&memory, &server.target("shop"), &options).unwrap();
        assert_eq!(server.sql("shop", FINGERPRINT), before);
        assert_eq!(server.sql("shop", "SELECT n FROM unrelated"), "5");
        assert!(
            report.notes.iter().any(|note| note.contains("were replaced")),
            "{:?}",
            report.notes
        );
    }
}

#[test]
fn roles_that_exist_keep_their_password_and_their_rights() {
    let source = Server::start(oldest());
    source.create_database(
        "shop",
        "CREATE ROLE ann LOGIN PASSWORD 'of-the-source' CREATEDB; CREATE ROLE \"odd; role\" LOGIN;
         GRANT ann TO \"odd; role\"; CREATE TABLE t (n int); ALTER TABLE t OWNER TO ann",
    );
    let memory = source.dump("shop");
    let destination = Server::start(oldest());
    destination.sql("postgres", "CREATE ROLE ann LOGIN PASSWORD 'of-the-destination'");
    let authentication = "SELECT rolpassword, rolcreatedb FROM pg_authid WHERE rolname = 'ann'";
    let before = destination.sql("postgres", authentication);
    let report = restore(&memory, &destination.target("shop"), &ALL).unwrap();
    assert_eq!(destination.sql("postgres", authentication), before);
    assert!(
        report.notes.iter().any(|note| note.contains("ann")),
        "{:?}",
        report.notes
    );
    assert_eq!(
        destination.sql("postgres", "SELECT pg_has_role('odd; role', 'ann', 'MEMBER')"),
        "t"
    );
}

#[test]
fn a_restore_without_the_roles_says_which_one_is_missing() {
    let source = Server::start(oldest());
    source.create_database(
        "shop",
        "CREATE ROLE ann; CREATE TABLE t (n int); ALTER TABLE t OWNER TO ann",
    );
    let memory = source.dump("shop");
    let destination = Server::start(oldest());
    let error = restore(&memory, &destination.target("shop"), &RestoreOptions::default()).unwrap_err();
    assert!(error.to_string().contains("role \"ann\" does not exist"), "{error}");
    assert!(error.to_string().contains("restore with the roles"), "{error}");
}

#[test]
fn an_older_destination_is_refused_before_anything_is_touched() {
    let mut majors = majors();
    let newest = majors.pop().unwrap();
    let older = majors
        .pop()
        .expect("a second Postgres version is needed: run deploy/bootstrap --tests");
    let source = Server::start(newest);
    source.create_database("shop", "CREATE TABLE t (n int)");
    let memory = source.dump("shop");
    let destination = Server::start(older);
    let error = restore(&memory, &destination.target("shop"), &ALL).unwrap_err();
    assert!(matches!(error, RestoreError::OlderServer { .. }), "{error}");
    assert_eq!(
        destination.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'shop'"),
        "0"
    );
}
