//! Dispatch: waiting jobs go to the queue as soon as the limits allow. It is woken by requests, by the catalog's
//! notifications, and by the clock.

use std::time::Duration;

use strongroom_catalog::{DispatchLimits, Dispatched};
use strongroom_runtime::entry::one_line;
use tokio_util::sync::CancellationToken;

use crate::Coordinator;

/// The pause before the lock of another coordinator's dispatcher is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// The pause before a catalog that is away is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

pub(crate) async fn run(coordinator: &Coordinator, stop: &CancellationToken) {
    let config = &coordinator.loaded.config.coordinator;
    let limits = DispatchLimits {
        per_target: config.per_target,
        per_pool: config.per_pool,
    };
    let interval = Duration::from_secs(u64::from(config.reconcile_seconds.max(1)));
    let mut listener = None;
    while !stop.is_cancelled() {
        if listener.is_none() {
            listener = coordinator.catalog.listen().await.ok();
        }
        match coordinator.catalog.dispatch(limits).await {
            Ok(Dispatched::Jobs(0)) => {}
            Ok(Dispatched::Busy) => {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            Ok(Dispatched::Jobs(_)) => {
                coordinator.relay.kick();
                // One batch may not have been all.
                continue;
            }
            Err(error) => {
                tracing::info!(error = %one_line(&error), "dispatch waits for the catalog");
                listener = None;
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
                continue;
            }
        }
        let changed = async {
            match &mut listener {
                Some(listener) => listener.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let lost = tokio::select! {
            () = stop.cancelled() => return,
            () = coordinator.dispatch.notified() => false,
            () = tokio::time::sleep(interval) => false,
            heard = changed => {
                coordinator.relay.kick();
                coordinator.changed.notify_one();
                !heard
            }
        };
        if lost {
            listener = None;
        }
    }
}
