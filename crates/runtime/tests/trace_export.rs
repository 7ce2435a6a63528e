//! Spans reach an OTLP endpoint. One process, one subscriber: hence one test.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use strongroom_runtime::{Config, telemetry};

#[tokio::test]
async fn spans_reach_the_endpoint_when_the_guard_is_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..read]);
            if read == 0 || request.windows(13).any(|part| part == b"exported-span") {
                break;
            }
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        sender.send(request).unwrap();
    });

    let mut config = Config::default();
    config.otlp.endpoint = Some(format!("http://{address}"));
    let guard = telemetry::init("export-test", &config).unwrap();
    tracing::info_span!("exported-span", job = "j-1").in_scope(|| tracing::info!("inside"));
    drop(guard);

    let request = received.recv_timeout(Duration::from_secs(10)).unwrap();
    let text = String::from_utf8_lossy(&request);
    assert!(text.starts_with("POST /v1/traces HTTP/1.1"), "{text}");
    assert!(
        text.contains("export-test") && text.contains("exported-span") && text.contains("j-1"),
        "{text}"
    );
}
