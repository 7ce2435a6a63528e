//! Each server starts, answers, and keeps its data across a crash.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use strongroom_testkit::{Nats, Postgres, Process, S3, wait_for};

/// A NATS client of three verbs, enough to ask JetStream.
struct NatsClient(BufReader<TcpStream>);

impl NatsClient {
    fn connect(server: &Nats) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        let mut client = Self(BufReader::new(stream));
        assert!(client.line().starts_with("INFO "));
        client.send("CONNECT {\"verbose\":false}\r\nSUB inbox 1\r\n");
        client
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn request(&mut self, subject: &str, body: &str) -> String {
        self.send(&format!("PUB {subject} inbox {}\r\n{body}\r\n", body.len()));
        while !self.line().starts_with("MSG inbox ") {}
        self.line()
    }
}

#[test]
fn a_stream_of_nats_survives_a_kill() {
    let server = Nats::start().unwrap();
    let mut client = NatsClient::connect(&server);
    let made = client.request(
        "$JS.API.STREAM.CREATE.S",
        r#"{"name":"S","subjects":["s.>"],"storage":"file"}"#,
    );
    assert!(!made.contains("error"), "{made}");
    let stored = client.request("s.one", "hello");
    assert!(stored.contains(r#""seq":1"#), "{stored}");
    server.kill().unwrap();
    server.restart().unwrap();
    let info = NatsClient::connect(&server).request("$JS.API.STREAM.INFO.S", "");
    assert!(info.contains(r#""messages":1"#), "{info}");
    server.stop().unwrap();
    server.restart().unwrap();
}

#[test]
fn a_nats_server_takes_extra_configuration() {
    let server = Nats::start_with("authorization { token: \"let-me-in\" }").unwrap();
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", server.port())).unwrap());
    let mut info = String::new();
    stream.read_line(&mut info).unwrap();
    assert!(info.contains(r#""auth_required":true"#), "{info}");
}

#[test]
fn a_row_of_postgres_survives_a_kill() {
    let server = Postgres::start_durable().unwrap();
    server.create_database("orders").unwrap();
    server
        .psql(
            "orders",
            "create table t (n int, s text); insert into t values (1, 'a|b'), (2, null);",
        )
        .unwrap();
    server.kill().unwrap();
    assert!(
        server.psql("orders", "select 1").is_err(),
        "a killed server does not answer"
    );
    server.restart().unwrap();
    assert_eq!(
        server.psql("orders", "select n, s from t order by n").unwrap(),
        "1|a|b\n2|"
    );
    assert_eq!(server.psql("orders", "show fsync").unwrap(), "on");
}

#[test]
fn an_sql_error_is_reported_with_its_message() {
    let server = Postgres::start().unwrap();
    let err = server
        .psql("postgres", "select 1; select * from nowhere; select 2")
        .unwrap_err();
    assert!(err.to_string().contains("nowhere"), "{err}");
    server.stop().unwrap();
    server.restart().unwrap();
    assert_eq!(server.psql("postgres", "show fsync").unwrap(), "off");
}

#[test]
fn every_pinned_major_of_postgres_starts() {
    for major in [17, 18] {
        let server = Postgres::start_major(major).unwrap();
        let version = server.psql("postgres", "show server_version_num").unwrap();
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, major);
    }
}

/// A signed request through curl: the status code and the body.
fn s3_request(server: &S3, args: &[&str], path: &str) -> String {
    let done = Command::new("curl")
        .args(["-sS", "-w", " %{http_code}", "--aws-sigv4", "aws:amz:us-east-1:s3"])
        .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
        .args(["--user", &format!("{}:{}", server.access_key(), server.secret_key())])
        .args(args)
        .arg(format!("{}/{path}", server.endpoint()))
        .output()
        .unwrap();
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn an_object_of_s3_survives_a_kill_and_is_not_given_without_a_signature() {
    let server = S3::start().unwrap();
    let path = format!("{}/folder/object", server.bucket());
    let put = s3_request(&server, &["-X", "PUT", "--data-binary", "content"], &path);
    assert!(put.ends_with(" 200"), "{put}");
    server.kill().unwrap();
    server.restart().unwrap();
    assert_eq!(s3_request(&server, &[], &path), "content 200");
    assert!(s3_request(&server, &[], "no-such-bucket/object").ends_with(" 404"));
    let unsigned = Command::new("curl")
        .args([
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("{}/{path}", server.endpoint()),
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&unsigned.stdout), "403");
}

/// What [`servers_die_with_the_test_process`] runs in a process of its own; it does nothing when run with the others.
#[test]
fn body_of_servers_die_with_the_test_process() {
    if std::env::var_os("TESTKIT_WAIT_TO_BE_KILLED").is_none() {
        return;
    }
    let postgres = Postgres::start().unwrap();
    let nats = Nats::start().unwrap();
    let folders = [
        postgres.data_dir().parent().unwrap().to_owned(),
        nats.store_dir().to_owned(),
    ];
    println!(
        "ready {} {} {} {}",
        postgres.port(),
        nats.port(),
        folders[0].display(),
        folders[1].display()
    );
    loop {
        std::thread::park();
    }
}

#[test]
fn servers_die_with_the_test_process() {
    let test = std::env::current_exe().unwrap();
    let args = ["--exact", "body_of_servers_die_with_the_test_process", "--nocapture"];
    let process = Process::start(&test, args, [("TESTKIT_WAIT_TO_BE_KILLED", "1")]).unwrap();
    let line = process.wait_for_line("ready ", Duration::from_secs(120)).unwrap();
    let ports: Vec<u16> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert_eq!(ports.len(), 2, "{line}");
    let listening = |port: &u16| TcpStream::connect(("127.0.0.1", *port)).is_ok();
    assert!(ports.iter().all(listening));
    process.kill().unwrap();
    let gone = || (!ports.iter().any(listening)).then_some(());
    wait_for("the servers to die", Duration::from_secs(20), gone).unwrap();
    for folder in line.split(' ').filter(|word| word.starts_with('/')) {
        // A process may still be creating files while it dies.
        let removed = || std::fs::remove_dir_all(folder).ok();
        wait_for("the folder to be removed", Duration::from_secs(20), removed).unwrap();
    }
}
