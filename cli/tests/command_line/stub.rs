//! An API that answers what a test says, and the program that asks it.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// The program, with no setting but its home folder.
pub(crate) fn program(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command
        .env_clear()
        .env("HOME", home)
        .env("TZ", "UTC")
        .stdin(Stdio::null());
    command
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An API that answers `METHOD /path` with a status and a body, and remembers what it was asked, and with which bodies.
pub(crate) struct Stub {
    pub(crate) url: String,
    pub(crate) asked: Arc<Mutex<Vec<(String, String)>>>,
}

pub(crate) fn stub(answers: &[(&str, u16, Value)]) -> Stub {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answers: HashMap<String, (u16, String)> = answers
        .iter()
        .map(|(request, status, body)| ((*request).to_owned(), (*status, body.to_string())))
        .collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let remember = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let request = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
            let (mut length, mut header) = (0, String::new());
            while reader.read_line(&mut header).unwrap() > 2 {
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                header.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let missing = (
                404,
                problem(404, &format!("the stub has no answer to {request}")).to_string(),
            );
            let (status, text) = answers.get(&request).cloned().unwrap_or(missing);
            remember
                .lock()
                .unwrap()
                .push((request, String::from_utf8(body).unwrap()));
            let kind = if status < 400 {
                "application/json"
            } else {
                "application/problem+json"
            };
            let head = format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nconnection: close\r\n");
            // The client may have been stopped by the test.
            let _ = write!(stream, "{head}content-length: {}\r\n\r\n{text}", text.len());
        }
    });
    Stub { url, asked }
}

impl Stub {
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let home = tempfile::tempdir().unwrap();
        program(home.path())
            .env("STRONGROOM_API", &self.url)
            .args(args)
            .output()
            .unwrap()
    }

    /// The output of a call that works.
    pub(crate) fn shown(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output)
    }

    /// The JSON body of the one request that begins so.
    pub(crate) fn body(&self, request: &str) -> Value {
        let asked = self.asked.lock().unwrap();
        let bodies: Vec<_> = asked.iter().filter(|(asked, _)| asked.starts_with(request)).collect();
        assert_eq!(bodies.len(), 1, "{asked:?}");
        serde_json::from_str(&bodies[0].1).unwrap()
    }

    /// The JSON body of the last request.
    pub(crate) fn last_body(&self) -> Value {
        serde_json::from_str(&self.asked.lock().unwrap().last().unwrap().1).unwrap()
    }
}

/// A refusal.
pub(crate) fn problem(status: u16, detail: &str) -> Value {
    json!({"type": "about:blank", "title": "X", "status": status, "detail": detail})
}
