//! A request-reply endpoint, announced as a NATS service so that `nats micro` lists it.

use std::future::Future;

use async_nats::service::ServiceExt;
use async_nats::service::error::Error as ServiceError;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::Bus;

/// What an endpoint answers: a body, or a status with a sentence.
pub type Answer = Result<Vec<u8>, (usize, String)>;

/// Answers requests on `subject` until `stop`. Several processes may: each request is answered by one of them.
pub async fn serve<H, F>(bus: &Bus, subject: &str, stop: &CancellationToken, handle: H)
where
    H: Fn(Vec<u8>, Option<String>) -> F,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = bus
        .client
        .service_builder()
        .description("Strongroom: backup and disaster recovery")
        .start("strongroom", env!("CARGO_PKG_VERSION"))
        .await;
    let service = match service {
        Ok(service) => service,
        Err(error) => {
            tracing::error!(%error, "the NATS endpoint could not be started");
            return;
        }
    };
    let mut requests = match service.endpoint(subject).await {
        Ok(requests) => requests,
        Err(error) => {
            tracing::error!(%error, subject, "the NATS endpoint could not be started");
            return;
        }
    };
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => break,
            request = requests.next() => request,
        };
        let Some(request) = request else { break };
        let traceparent = request
            .message
            .headers
            .as_ref()
            .and_then(|h| h.get("traceparent"))
            .map(ToString::to_string);
        let answer = handle(request.message.payload.to_vec(), traceparent);
        tokio::spawn(async move {
            let answer = answer
                .await
                .map(Into::into)
                .map_err(|(code, status)| ServiceError { code, status });
            if let Err(error) = request.respond(answer).await {
                tracing::debug!(%error, "answer not sent");
            }
        });
    }
}
