//! One trace from the trigger to the receipt, over NATS and through the catalog, exported by OTLP.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use strongroom_testkit::wait_for_async;
use strongroom_tests::{Fleet, SOON, command_target};

/// What an OTLP receiver got, as bytes: a protobuf message holds trace ids and names as they are.
type Received = Arc<Mutex<Vec<Bytes>>>;

async fn receiver() -> (String, Received) {
    let received = Received::default();
    let store = received.clone();
    let app = axum::Router::new().route(
        "/v1/traces",
        axum::routing::post(async move |body: Bytes| {
            store.lock().unwrap().push(body);
            ""
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, received)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_begun_by_the_publisher_reaches_every_service() {
    let (endpoint, received) = receiver().await;
    let mut fleet = Fleet::prepare().await.unwrap();
    fleet
        .target(command_target("hello", "hello"))
        .set("otlp.endpoint", endpoint);
    fleet.run_all().await.unwrap();

    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let raw: Vec<u8> = (0..16)
        .map(|n| u8::from_str_radix(&trace_id[n * 2..n * 2 + 2], 16).unwrap())
        .collect();
    let event = serde_json::json!({
        "specversion": "1.0", "id": "traced", "source": "/tests", "type": "backup.request",
        "traceparent": format!("00-{trace_id}-00f067aa0ba902b7-01"),
        "data": { "targets": ["hello"] },
    });
    let client = async_nats::connect(fleet.nats.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    jetstream
        .publish("backup.request", event.to_string().into())
        .await
        .unwrap()
        .await
        .unwrap();

    // Batches of spans that belong to the trace, by the service that sent them.
    wait_for_async(
        "spans of the trace from coordinator, dumper and verifier",
        SOON,
        || async {
            let batches = received.lock().unwrap().clone();
            let services: BTreeSet<&str> = ["strongroom-coordinator", "strongroom-dumper", "strongroom-verifier"]
                .into_iter()
                .filter(|service| {
                    batches
                        .iter()
                        .any(|batch| holds(batch, service.as_bytes()) && holds(batch, &raw))
                })
                .collect();
            (services.len() == 3).then_some(())
        },
    )
    .await
    .unwrap();

    let events = fleet.events("backup.verify.completed");
    let verified = wait_for_async("the verification", SOON, || async { events.all().await.ok()?.pop() })
        .await
        .unwrap();
    assert!(
        verified["traceparent"].as_str().unwrap().contains(trace_id),
        "{verified}"
    );
    let log = fleet.process("dumper").output();
    let line = log.lines().find(|line| line.contains("ended")).unwrap();
    for field in ["job", "target", "attempt", "hello"] {
        assert!(line.contains(field), "{line}");
    }
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
