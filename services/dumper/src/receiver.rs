//! The receivers of WAL: one for each cluster that is declared to stream, in one dumper at a time.
//!
//! A lease in the catalog decides which; the replication slot, which serves one connection, is what keeps two from receiving
//! at once whatever the leases say. A catalog that is away is waited for: WAL goes on into the vault meanwhile.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use strongroom_catalog::{Catalog, CatalogError, LeaseState, WalClaim};
use strongroom_connectors::postgres::physical::{self, ClusterTarget, ReceiveError, ReceiveOptions};
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, TimelineHistory, WalPiece, WalSink};
use strongroom_proto::{TargetName, VaultId};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{TargetBook, TargetConfig, WalTransport};
use strongroom_worker::{WalWriter, Writing};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Clusters, cluster};
use crate::received::{Health, Received, TWO_HISTORIES};

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
/// How long the server may take to answer.
const SLOT_WITHIN: Duration = Duration::from_secs(10);
/// WAL that is not received, whatever the reason.
const NOT_RECEIVED: &str = "wal_not_received";
/// WAL that the server has to keep.
const BEHIND: &str = "wal_behind";

/// What all receivers of a dumper share.
#[derive(Clone)]
pub(crate) struct Receivers {
    pub(crate) catalog: Catalog,
    pub(crate) writing: Writing,
    pub(crate) targets: TargetBook,
    pub(crate) pool: String,
    pub(crate) worker: String,
    pub(crate) lease_seconds: u32,
    pub(crate) clusters: Clusters,
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
                if !wanted.contains_key(&name) {
                    for kind in [NOT_RECEIVED, BEHIND] {
                        self.clear(&name, kind).await;
                    }
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
        let received = Arc::new(Received::default());
        let sink = Arc::new(NotingSink {
            inner: match config.zstd_level {
                Some(level) => self.writing.wal_writer().with_zstd_level(level),
                None => self.writing.wal_writer(),
            },
            catalog: self.catalog.clone(),
            vault: self.writing.vault_id(),
            received: Arc::clone(&received),
            untold: Mutex::default(),
        });
        // Ends with the claim.
        let held = stop.child_token();
        tokio::join!(
            self.receive(claim, cluster, config, &sink, &held),
            self.note(claim, config.wal_interval(), &received, &sink, &held),
            self.watch_slot(claim, cluster, &held),
        );
        // What came while it ended. The vault has it, whoever holds the claim now.
        self.note_ranges(claim, &received).await;
        sink.tell_histories().await;
    }

    async fn receive(
        &self,
        claim: &WalClaim,
        cluster: &ClusterTarget,
        config: &TargetConfig,
        sink: &Arc<NotingSink>,
        held: &CancellationToken,
    ) {
        let target = &claim.target;
        let received = &sink.received;
        let mut has_compared = false;
        while !held.is_cancelled() {
            let known = match self.known_stream(target, received).await {
                Ok(known) => known,
                // Without knowing whose WAL it has to be, none is taken.
                Err(error) if received.system().is_none() => {
                    tracing::info!(%target, error = %one_line(&error), "receiving its WAL waits");
                    pause(AGAIN_AFTER, held).await;
                    continue;
                }
                Err(_) => (received.system(), None),
            };
            if let ((Some(system), Some(timeline)), false) = (known, has_compared) {
                has_compared = self.add_stored(target, sink, system, timeline).await;
            }
            let options = ReceiveOptions {
                interval: config.wal_interval(),
                expected_system: known.0,
            };
            let events = |event| received.take(event);
            let receiving = Arc::clone(sink) as Arc<dyn WalSink>;
            match physical::receive(cluster, receiving, options, &events, held.cancelled()).await {
                Ok(ended) => {
                    tracing::info!(%target, timeline = ended.timeline, at = %ended.at, "stopped receiving WAL")
                }
                Err(ReceiveError::Stopped) => {}
                Err(error) => {
                    if matches!(error, ReceiveError::OtherHistory { .. }) {
                        self.clusters.next_is_full(target);
                    }
                    let message = one_line(&error);
                    tracing::warn!(%target, error = message, "receiving WAL failed");
                    received.failed(message);
                    pause(AGAIN_AFTER, held).await;
                }
            }
        }
    }

    /// The cluster whose WAL this target has been until now, none before its first, and the timeline.
    async fn known_stream(
        &self,
        target: &TargetName,
        received: &Received,
    ) -> Result<(Option<SystemIdentifier>, Option<u32>), CatalogError> {
        if let Some(stream) = self.catalog.wal_stream(target).await?
            && stream.view.system_identifier.is_some()
        {
            received.was_level(stream.view.server_time);
            received.was_on(stream.view.timeline);
            return Ok((stream.view.system_identifier, stream.view.timeline));
        }
        let backups = self.catalog.cluster_backups(target).await?;
        let last = backups.last();
        Ok((
            last.map(|backup| backup.facts.system_identifier),
            last.map(|backup| backup.facts.timeline),
        ))
    }

    /// Tells the catalog of what a receiver stored that could not tell it any more.
    async fn add_stored(
        &self,
        target: &TargetName,
        sink: &NotingSink,
        system: SystemIdentifier,
        timeline: u32,
    ) -> bool {
        let pieces = match sink.pieces(system, timeline).await {
            Ok(pieces) => pieces,
            Err(error) => {
                tracing::info!(%target, %error, "the vault's WAL was not compared with the catalog's");
                return false;
            }
        };
        let added = self
            .catalog
            .add_stored_wal(self.writing.vault_id(), system, &pieces)
            .await;
        if let Err(error) = &added {
            tracing::info!(%target, error = %one_line(error), "the vault's WAL was not compared with the catalog's");
        }
        added.is_ok()
    }

    /// Writes what was received into the catalog and keeps the lease.
    async fn note(
        &self,
        claim: &WalClaim,
        interval: Duration,
        received: &Received,
        sink: &NotingSink,
        held: &CancellationToken,
    ) {
        let renew_every = Duration::from_secs(u64::from(self.lease_seconds)) / 3;
        let mut renewed = None::<tokio::time::Instant>;
        let (mut told, mut told_count) = (None, 0);
        let mut told_error = None;
        // An earlier holder may have raised it.
        let mut is_alarmed = None;
        while !held.is_cancelled() {
            let has_news = self.note_ranges(claim, received).await;
            sink.tell_histories().await;
            let (progress, count) = received.progress(told_count);
            let error = received.error();
            if has_news
                || progress != told
                || error != told_error
                || renewed.is_none_or(|at| at.elapsed() >= renew_every)
            {
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
                    Ok(LeaseState::Held | LeaseState::CancelRequested) => {
                        renewed = Some(tokio::time::Instant::now());
                        (told, told_count) = (progress, count);
                    }
                    Err(error) => {
                        tracing::info!(target = %claim.target, error = %one_line(&error), "the catalog is behind on its WAL");
                    }
                }
                let failed = match &error {
                    Some(error) => self.catalog.fail_wal_stream(claim, error).await.map(drop),
                    None => Ok(()),
                };
                match failed {
                    Ok(()) => told_error = error,
                    Err(error) => {
                        tracing::info!(target = %claim.target, error = %one_line(&error), "the catalog is behind on its WAL")
                    }
                }
            }
            self.note_alerts(&claim.target, received).await;
            is_alarmed = self
                .note_health(&claim.target, received, received.health(interval), is_alarmed)
                .await;
            tokio::select! {
                () = pause(NOTE_EVERY, held) => {}
                () = received.news() => {}
            }
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

    /// Raises what there is to raise.
    async fn note_alerts(&self, target: &TargetName, received: &Received) {
        for (kind, message) in received.take_alerts() {
            tracing::warn!(%target, kind, message, "alert");
            // Each time is an alert of its own.
            self.clear(target, kind).await;
            if !self.raise(target, kind, &message).await {
                received.alert(kind, message);
            }
        }
    }

    /// Raises or clears the alert about nothing being received, and says whether it stands, where that is known.
    async fn note_health(
        &self,
        target: &TargetName,
        received: &Received,
        health: Health,
        is_alarmed: Option<bool>,
    ) -> Option<bool> {
        let silence = match health {
            Health::Silent(silence) => silence,
            // Whoever held the claim before may have raised it, and that it begins anew ends nothing.
            Health::Unknown => return is_alarmed,
            Health::Well if is_alarmed == Some(false) || self.clear(target, NOT_RECEIVED).await => return Some(false),
            Health::Well => return None,
        };
        if is_alarmed == Some(true) {
            return is_alarmed;
        }
        let why = received
            .error()
            .unwrap_or_else(|| "the server or the vault does not answer".to_owned());
        let message = format!(
            "WAL of {target} has not been received for {} s: {why}; until it is, what is committed there can be lost with the \
             server, and the server's disk fills up with WAL that it keeps for the slot",
            silence.as_secs()
        );
        self.raise(target, NOT_RECEIVED, &message).await.then_some(true)
    }

    async fn watch_slot(&self, claim: &WalClaim, cluster: &ClusterTarget, held: &CancellationToken) {
        loop {
            pause(SLOT_EVERY, held).await;
            if held.is_cancelled() {
                return;
            }
            self.look_at_slot(&claim.target, cluster).await;
        }
    }

    async fn look_at_slot(&self, target: &TargetName, cluster: &ClusterTarget) {
        let asked = {
            let cluster = cluster.clone();
            tokio::task::spawn_blocking(move || physical::check_slot(&cluster))
        };
        let facts = match tokio::time::timeout(SLOT_WITHIN, asked).await {
            Ok(Ok(Ok(Some(facts)))) => facts,
            // The receiver says what is wrong.
            Ok(Ok(Ok(None))) => return,
            Ok(Ok(Err(error))) => {
                tracing::info!(%target, error = %one_line(&error), "how much WAL the server keeps could not be asked");
                return;
            }
            Ok(Err(error)) => {
                tracing::error!(%target, %error, "looking at the slot panicked");
                return;
            }
            Err(_) => {
                tracing::info!(%target, "the server did not say in time how much WAL it keeps");
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
            self.raise(target, BEHIND, &message).await;
        } else {
            self.clear(target, BEHIND).await;
        }
    }

    /// Whether the alert stands.
    async fn raise(&self, target: &TargetName, kind: &str, message: &str) -> bool {
        let raised = self.catalog.raise_alert(target, kind, message).await;
        if let Err(error) = &raised {
            tracing::error!(%target, kind, message, error = %one_line(error), "an alert could not be raised");
        }
        raised.is_ok()
    }

    /// Whether it is cleared.
    async fn clear(&self, target: &TargetName, kind: &str) -> bool {
        let cleared = self.catalog.clear_alert(target, kind).await;
        if let Err(error) = &cleared {
            tracing::info!(%target, kind, error = %one_line(error), "an alert could not be cleared");
        }
        cleared.is_ok()
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

/// Stores WAL, and the histories of timelines once each, of which the catalog is told when it is there.
struct NotingSink {
    inner: WalWriter,
    catalog: Catalog,
    vault: VaultId,
    received: Arc<Received>,
    untold: Mutex<Vec<(SystemIdentifier, TimelineHistory)>>,
}

impl NotingSink {
    fn untold(&self) -> MutexGuard<'_, Vec<(SystemIdentifier, TimelineHistory)>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell_histories(&self) {
        let untold = std::mem::take(&mut *self.untold());
        for (system, history) in untold {
            if let Err(error) = self.catalog.add_wal_history(self.vault, system, &history).await {
                tracing::info!(%system, timeline = history.timeline, error = %one_line(&error), "the catalog does not know the history of a timeline yet");
                self.untold().push((system, history));
            }
        }
    }
}

#[async_trait]
impl WalSink for NotingSink {
    async fn put(&self, piece: &WalPiece, bytes: Arc<Vec<u8>>) -> io::Result<()> {
        self.inner.put(piece, bytes).await
    }

    async fn put_history(&self, system: SystemIdentifier, timeline: u32, text: &str) -> io::Result<()> {
        let history = TimelineHistory::parse(timeline, text)
            .ok_or_else(|| io::Error::other(format!("the history of timeline {timeline} is not one")))?;
        // A catalog that is away does not keep WAL from the vault.
        let known = self.catalog.wal_histories(self.vault, system).await.unwrap_or_default();
        match known.iter().find(|known| known.timeline == timeline) {
            Some(known) if *known == history => return Ok(()),
            Some(_) => {
                let message = format!(
                    "two servers of cluster {system} went on upon timeline {timeline}, from different places: the vault keeps the WAL of \
                     the first and takes none of this one; see which is the right one, and stop the other. Where it is this one, \
                     declare it as a target of its own with another vault"
                );
                self.received.alert(TWO_HISTORIES, message.clone());
                return Err(io::Error::other(message));
            }
            None => {}
        }
        self.inner.put_history(system, timeline, text).await?;
        self.untold().push((system, history));
        self.tell_histories().await;
        Ok(())
    }

    async fn pieces(&self, system: SystemIdentifier, timeline: u32) -> io::Result<Vec<StoredPiece>> {
        self.inner.pieces(system, timeline).await
    }
}

/// A moment of a stream that had nothing more.
pub(crate) type IdleAt = (u32, Lsn, chrono::DateTime<chrono::Utc>);
