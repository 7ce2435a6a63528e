//! Logs to standard error, traces to an OTLP endpoint, and the trace context that travels with messages.
//!
//! Invariant: spans have valid trace ids whether or not an endpoint is configured, so that a trace begun by one
//! process is whole when another one exports it.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

use crate::config::{Config, LogFormat};

const TRACES_PATH: &str = "/v1/traces";

/// The exporter's own requests must not become spans, or each export would cause the next.
const EXPORTED_SPANS: &str = "info,hyper=off,hyper_util=off,h2=off,reqwest=off,opentelemetry=off,opentelemetry_sdk=off,\
                              opentelemetry_otlp=off";

/// Whether this process has its subscriber.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// What can go wrong when tracing is set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The filter is not valid.
    #[error("log.filter {filter:?} is not valid: expected levels like info or info,strongroom_bus=debug")]
    Filter {
        /// The filter.
        filter: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The exporter cannot be made.
    #[error("prepare the export of traces to {endpoint}: check otlp.endpoint")]
    Exporter {
        /// The endpoint.
        endpoint: String,
        /// Why.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The thread that makes the exporter died.
    #[error("prepare the export of traces: the preparing thread failed")]
    ExporterThread,
    /// Another subscriber is in place.
    #[error("install the log subscriber")]
    Install(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends what has not been sent when it is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard ends the export of traces"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            // The exporter's client blocks, which must not happen on a thread of the runtime.
            let flush = std::thread::spawn(move || provider.shutdown());
            if let Ok(Err(error)) = flush.join() {
                tracing::warn!(%error, "traces at the end of the process were not exported");
            }
        }
    }
}

/// Sets up logs and traces for this process. The first call does so; a later one, from another service in the same
/// process, answers with a guard that does nothing.
///
/// # Errors
/// A filter or endpoint that is not valid, or another subscriber in place.
pub fn init(service: &'static str, config: &Config) -> Result<TelemetryGuard, TelemetryError> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(TelemetryGuard { provider: None });
    }
    let logs = log_layer(config)?;
    let provider = tracer_provider(service, config.otlp.endpoint.as_deref())?;
    let traces = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("strongroom"))
        .with_filter(EnvFilter::new(EXPORTED_SPANS));
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    tracing_subscriber::registry()
        .with(logs)
        .with(traces)
        .try_init()
        .map_err(TelemetryError::Install)?;
    *installed = true;
    Ok(TelemetryGuard {
        provider: Some(provider),
    })
}

/// Makes `span` a child of the trace that a message came with. Does nothing without a valid `traceparent`. It must be
/// called before the span is entered.
pub fn set_parent(span: &tracing::Span, traceparent: Option<&str>) {
    let Some(traceparent) = traceparent else { return };
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    if context.span().span_context().is_valid() {
        // It fails for a span that has begun or is filtered out; the trace is then cut in two and nothing else.
        let _ = span.set_parent(context);
    }
}

/// The `traceparent` of the current span, to travel with what it causes.
pub fn current_traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut carrier);
    carrier.remove("traceparent")
}

fn log_layer(config: &Config) -> Result<Box<dyn Layer<Registry> + Send + Sync>, TelemetryError> {
    let levels = EnvFilter::try_new(&config.log.filter).map_err(|source| TelemetryError::Filter {
        filter: config.log.filter.clone(),
        source,
    })?;
    // Spans pass at every filter: a warning without its job and target would be of little use.
    let filter = levels.or(filter_fn(|metadata| {
        metadata.is_span() && *metadata.level() <= LevelFilter::INFO
    }));
    let base = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    Ok(match config.log.format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            base.with_ansi(colour).with_filter(filter).boxed()
        }
        LogFormat::Json => base
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(true)
            .with_filter(filter)
            .boxed(),
    })
}

fn tracer_provider(service: &'static str, endpoint: Option<&str>) -> Result<SdkTracerProvider, TelemetryError> {
    let resource = opentelemetry_sdk::Resource::builder()
        .with_service_name(service)
        .build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(builder.build());
    };
    let endpoint = traces_endpoint(endpoint);
    // The blocking client brings a runtime of its own, which must not be made inside another one.
    // The HTTP client wants a TLS provider even for plain HTTP.
    crate::entry::install_tls_provider();
    let exporter = std::thread::spawn({
        let endpoint = endpoint.clone();
        move || {
            opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .with_endpoint(endpoint)
                .with_headers(HashMap::new())
                .build()
        }
    })
    .join()
    .map_err(|_| TelemetryError::ExporterThread)?
    .map_err(|source| TelemetryError::Exporter { endpoint, source })?;
    Ok(builder.with_batch_exporter(exporter).build())
}

fn traces_endpoint(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.ends_with(TRACES_PATH) {
        endpoint.to_owned()
    } else {
        format!("{endpoint}{TRACES_PATH}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traces_path_is_appended_once() {
        for given in ["http://h:4318", "http://h:4318/", "http://h:4318/v1/traces"] {
            assert_eq!(traces_endpoint(given), "http://h:4318/v1/traces");
        }
    }
}
