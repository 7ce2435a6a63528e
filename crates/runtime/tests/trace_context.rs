//! The trace context flows without an exporter. One process, one subscriber: hence one test.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use strongroom_runtime::{Config, telemetry};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn the_trace_context_flows_without_an_exporter_and_at_every_log_level() {
    let mut config = Config::default();
    config.log.filter = "error".to_owned();
    let guard = telemetry::init("test", &config).unwrap();
    let second = telemetry::init("another", &config).unwrap();
    assert_eq!(telemetry::current_traceparent(), None, "there is no span yet");

    let root = tracing::info_span!("root");
    let begun = root.in_scope(telemetry::current_traceparent).unwrap();
    assert_eq!(begun.split('-').count(), 4, "{begun}");
    assert!(!begun.contains(&"0".repeat(16)), "{begun}");

    let child = tracing::info_span!("child");
    telemetry::set_parent(&child, Some(PARENT));
    let continued = child.in_scope(telemetry::current_traceparent).unwrap();
    assert!(
        continued.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
        "{continued}"
    );
    assert_ne!(continued, PARENT, "the child has an id of its own");

    let other = tracing::info_span!("other");
    telemetry::set_parent(&other, None);
    telemetry::set_parent(&other, Some("not a traceparent"));
    assert!(other.in_scope(telemetry::current_traceparent).is_some());
    drop((guard, second));
}
