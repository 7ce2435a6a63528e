//! The receivers of WAL: one for each cluster that is declared to stream, in one dumper at a time.
//!
//! A lease in the catalog decides which; the replication slot, which serves one connection, is what keeps two from receiving
//! at once whatever the leases say. A catalog that is away is waited for: WAL goes on into the vault meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use strongroom_catalog::{Catalog, LeaseState, WalClaim};
use strongroom_connectors::postgres::physical::{self, ClusterTarget, ReceiveError, ReceiveOptions};
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, TimelineHistory, WalPiece, WalSink};
use strongroom_proto::{TargetName, VaultId};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{TargetBook, TargetConfig, WalTransport};
use strongroom_worker::Writing;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::cluster;
use crate::received::Received;

/// How often the targets are looked at.
const TARGETS_EVERY: Duration = Duration::from_secs(1);
/// Time before a receiver that failed begins again.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How often what was received is written into the catalog.
const NOTE_EVERY: Duration = Duration::from_millis(250);
/// How often the server is asked how much it keeps for the slot.
const SLOT_EVERY: Duration = Duration::from_secs(15);
/// A server that keeps more than this for the slot may fill its disk.
const BEHIND_MAX_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// An error that lasts so long is an alert; less is a restart of the server.
const ALERT_AFTER: Duration = Duration::from_secs(20);

/// What all receivers of a dumper share.
#[derive(Clone)]
pub(crate) struct Receivers {
    pub(crate) catalog: Catalog,
    pub(crate) writing: Writing,
    pub(crate) targets: TargetBook,
    pub(crate) pool: String,
    pub(crate) worker: String,
    pub(crate) lease_seconds: u32,
}

impl Receivers {
    /// Receives what the targets say, as they say it now, until `shutdown`; then stores what has come and returns.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut running: HashMap<TargetName, (TargetConfig, CancellationToken, JoinHandle<()>)> = HashMap::new();
        while !shutdown.is_cancelled() {
            let wanted: HashMap<TargetName, TargetConfig> = self
                .targets
                .all()
                .into_iter()
                .filter(|(_, target)| {
                    target.is_physical() && target.wal_transport() == WalTransport::Stream && target.pool == self.pool
                })
                .collect();
            let changed: Vec<TargetName> = running
                .iter()
                .filter(|(name, (config, _, task))| wanted.get(*name) != Some(config) || task.is_finished())
                .map(|(name, _)| name.clone())
                .collect();
            for name in changed {
                if let Some((_, stop, task)) = running.remove(&name) {
                    stop.cancel();
                    ended(&name, task).await;
                }
            }
            for (name, config) in wanted {
                running.entry(name.clone()).or_insert_with(|| {
                    let stop = shutdown.child_token();
                    let receiver = self.clone().receive_target(name, config.clone(), stop.clone());
                    (config, stop, tokio::spawn(receiver))
                });
            }
            tokio::select! {
                () = tokio::time::sleep(TARGETS_EVERY) => {}
                () = shutdown.cancelled() => {}
            }
        }
        for (name, (_, _, task)) in running {
            ended(&name, task).await;
        }
    }

    /// Receives one target's WAL whenever no other dumper does.
    async fn receive_target(self, name: TargetName, config: TargetConfig, stop: CancellationToken) {
        let cluster = match cluster(&name, &config) {
            Ok(cluster) => cluster,
            Err(error) => {
                tracing::error!(target = %name, error = format!("{error:#}"), "its WAL cannot be received");
                stop.cancelled().await;
                return;
            }
        };
        let vault = self.writing.vault_id();
        while !stop.is_cancelled() {
            let slot = Some(cluster.slot.as_str());
            let claimed = self
                .catalog
                .claim_wal_stream(&name, vault, slot, &self.worker, self.lease_seconds)
                .await;
            match claimed {
                Ok(Some(claim)) => {
                    self.hold(&claim, &cluster, &config, &stop).await;
                    if let Err(error) = self.catalog.release_wal_stream(&claim).await {
                        tracing::info!(target = %name, error = %one_line(&error), "the lease of its WAL runs out by itself");
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::info!(target = %name, error = %one_line(&error), "receiving its WAL waits"),
            }
            pause(AGAIN_AFTER, &stop).await;
        }
    }

    /// Receives as long as the claim is held.
    async fn hold(&self, claim: &WalClaim, cluster: &ClusterTarget, config: &TargetConfig, stop: &CancellationToken) {
        let target = &claim.target;
        let vault = self.writing.vault_id();
        let sink: Arc<dyn WalSink> = Arc::new(NotingSink {
            inner: self.writing.wal_writer(),
            catalog: self.catalog.clone(),
            vault,
        });
        let received = Received::default();
        // Ends with the claim.
        let held = stop.child_token();
        let noting = self.note(claim, cluster, &received, &held);
        let receiving = async {
            while !held.is_cancelled() {
                let options = ReceiveOptions {
                    interval: config.wal_interval(),
                    expected_system: self.known_system(target).await,
                };
                let events = |event| received.take(event);
                let ended = physical::receive(cluster, Arc::clone(&sink), options, &events, held.cancelled()).await;
                match ended {
                    Ok(ended) => {
                        tracing::info!(%target, timeline = ended.timeline, at = %ended.at, "stopped receiving WAL")
                    }
                    Err(ReceiveError::Stopped) => {}
                    Err(error) => {
                        let message = one_line(&error);
                        tracing::warn!(%target, error = message, "receiving WAL failed");
                        received.failed(message);
                        pause(AGAIN_AFTER, &held).await;
                    }
                }
            }
        };
        tokio::join!(receiving, noting);
    }

    /// The cluster whose WAL this target has been until now; none before its first.
    async fn known_system(&self, target: &TargetName) -> Option<SystemIdentifier> {
        let stream = self.catalog.wal_stream(target).await.ok().flatten();
        if let Some(system) = stream.and_then(|stream| stream.view.system_identifier) {
            return Some(system);
        }
        let backups = self.catalog.cluster_backups(target).await.ok()?;
        backups.last().map(|backup| backup.facts.system_identifier)
    }

    /// Writes what was received into the catalog and keeps the lease, until the end has been written.
    async fn note(&self, claim: &WalClaim, cluster: &ClusterTarget, received: &Received, held: &CancellationToken) {
        let renew_every = Duration::from_secs(u64::from(self.lease_seconds)) / 3;
        let mut renewed = tokio::time::Instant::now() - renew_every;
        let mut slot_looked_at = tokio::time::Instant::now();
        loop {
            let is_last = held.is_cancelled();
            let has_news = self.note_ranges(claim, received).await;
            if has_news || renewed.elapsed() >= renew_every {
                let progress = received.progress();
                match self
                    .catalog
                    .renew_wal_stream(claim, self.lease_seconds, progress.as_ref())
                    .await
                {
                    Ok(LeaseState::Lost) => {
                        tracing::warn!(target = %claim.target, "another dumper receives its WAL now");
                        held.cancel();
                        return;
                    }
                    // Nobody can ask a stream to stop; its target is taken out of the configuration.
                    Ok(LeaseState::Held | LeaseState::CancelRequested) => renewed = tokio::time::Instant::now(),
                    Err(error) => {
                        tracing::info!(target = %claim.target, error = %one_line(&error), "the catalog is behind on its WAL")
                    }
                }
            }
            self.note_trouble(claim, received).await;
            if slot_looked_at.elapsed() >= SLOT_EVERY {
                slot_looked_at = tokio::time::Instant::now();
                self.look_at_slot(&claim.target, cluster).await;
            }
            if is_last {
                return;
            }
            pause(NOTE_EVERY, held).await;
        }
    }

    /// Adds what has become durable; what the catalog does not take now is added later.
    async fn note_ranges(&self, claim: &WalClaim, received: &Received) -> bool {
        let vault = self.writing.vault_id();
        let Some(system) = received.system() else { return false };
        let mut has_news = false;
        let mut ranges = received.take_ranges().into_iter();
        while let Some(range) = ranges.next() {
            if let Err(error) = self.catalog.add_wal(vault, system, &range).await {
                tracing::info!(target = %claim.target, error = %one_line(&error), "the catalog is behind on its WAL");
                received.put_back(std::iter::once(range).chain(ranges));
                return has_news;
            }
            has_news = true;
        }
        if let Some((timeline, to, time)) = received.take_idle() {
            match self.catalog.touch_wal(vault, system, timeline, to, time).await {
                Ok(_) => has_news = true,
                Err(error) => {
                    tracing::info!(target = %claim.target, error = %one_line(&error), "the catalog is behind on its WAL")
                }
            }
        }
        has_news
    }

    async fn note_trouble(&self, claim: &WalClaim, received: &Received) {
        let target = &claim.target;
        for (kind, message) in received.take_alerts() {
            tracing::warn!(%target, kind, message, "alert");
            // Each time is an alert of its own.
            self.clear(target, kind).await;
            self.raise(target, kind, &message).await;
        }
        match received.trouble() {
            Some((message, since)) => {
                if let Err(error) = self.catalog.fail_wal_stream(claim, &message).await {
                    tracing::info!(%target, error = %one_line(&error), "the catalog is behind on its WAL");
                }
                if since.elapsed() >= ALERT_AFTER {
                    let message = format!(
                        "WAL of {target} has not been received for {} s: {message}; until it is, what is committed there can be \
                         lost with the server, and the server's disk fills up with WAL that it keeps for the slot",
                        since.elapsed().as_secs()
                    );
                    self.raise(target, "wal_not_received", &message).await;
                }
            }
            None => self.clear(target, "wal_not_received").await,
        }
    }

    async fn look_at_slot(&self, target: &TargetName, cluster: &ClusterTarget) {
        let asked = {
            let cluster = cluster.clone();
            tokio::task::spawn_blocking(move || physical::check_slot(&cluster)).await
        };
        let facts = match asked {
            Ok(Ok(Some(facts))) => facts,
            // The receiver says what is wrong.
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!(%target, error = %one_line(&error), "the slot could not be looked at");
                return;
            }
            Err(error) => {
                tracing::error!(%target, %error, "looking at the slot panicked");
                return;
            }
        };
        let behind = facts.behind_bytes.unwrap_or(0);
        let is_near_its_end = facts.safe_bytes.is_some_and(|safe| safe < behind);
        if behind > BEHIND_MAX_BYTES || is_near_its_end {
            let room = facts.safe_bytes.map_or_else(
                || "nothing limits it (max_slot_wal_keep_size), so its disk can fill up".to_owned(),
                |bytes| format!("after {} MiB more the slot is lost", bytes / 1024 / 1024),
            );
            let message = format!(
                "the server of {target} keeps {} MiB of WAL for slot {}: {room}; see whether the dumper receives and the vault \
                 takes it fast enough, or drop the slot to save the server: SELECT pg_drop_replication_slot('{}')",
                behind / 1024 / 1024,
                cluster.slot,
                cluster.slot
            );
            self.raise(target, "wal_behind", &message).await;
        } else {
            self.clear(target, "wal_behind").await;
        }
    }

    async fn raise(&self, target: &TargetName, kind: &str, message: &str) {
        if let Err(error) = self.catalog.raise_alert(target, kind, message).await {
            tracing::error!(%target, kind, message, error = %one_line(&error), "an alert could not be raised");
        }
    }

    async fn clear(&self, target: &TargetName, kind: &str) {
        if let Err(error) = self.catalog.clear_alert(target, kind).await {
            tracing::info!(%target, kind, error = %one_line(&error), "an alert could not be cleared");
        }
    }
}

async fn ended(name: &TargetName, task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(target = %name, %error, "the receiver of its WAL panicked; it begins again");
    }
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}

/// Stores WAL, and notes the histories of timelines in the catalog.
struct NotingSink<S> {
    inner: S,
    catalog: Catalog,
    vault: VaultId,
}

#[async_trait]
impl<S: WalSink> WalSink for NotingSink<S> {
    async fn put(&self, piece: &WalPiece, bytes: Vec<u8>) -> std::io::Result<()> {
        self.inner.put(piece, bytes).await
    }

    async fn put_history(&self, system: SystemIdentifier, timeline: u32, text: &str) -> std::io::Result<()> {
        self.inner.put_history(system, timeline, text).await?;
        let history = TimelineHistory::parse(timeline, text)
            .ok_or_else(|| std::io::Error::other(format!("the history of timeline {timeline} is not one")))?;
        // Receiving begins again, and with it this, until the catalog knows.
        self.catalog
            .add_wal_history(self.vault, system, &history)
            .await
            .map(|_| ())
            .map_err(std::io::Error::other)
    }

    async fn pieces(&self, system: SystemIdentifier, timeline: u32) -> std::io::Result<Vec<StoredPiece>> {
        self.inner.pieces(system, timeline).await
    }
}

/// A moment of a stream that had nothing more.
pub(crate) type IdleAt = (u32, Lsn, chrono::DateTime<chrono::Utc>);
