//! One attempt of a job, from the message to exactly one outcome.
//!
//! Invariants: no work without a claim; the lease is renewed while the handler runs; an attempt that lost its lease is
//! told to stop and its outcome changes nothing; a panic is an outcome; shutdown spends no attempt.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use strongroom_bus::{Bus, ConsumerSpec, Delivery, consume};
use strongroom_catalog::{
    Catalog, CatalogError, ClaimedJob, Finish, FinishedBackup, FinishedRestore, FinishedVerification, LeaseState,
};
use strongroom_outbox::Relay;
use strongroom_policy::rate::Rate;
use strongroom_policy::retry::{self, RetryDecision, RetryRules};
use strongroom_proto::events::JobProgress;
use strongroom_proto::restore::RestoreChanges;
use strongroom_proto::subjects::{self, WorkService};
use strongroom_proto::work::WorkMessage;
use strongroom_proto::{Attempt, Progress as Reported};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::telemetry;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How long running jobs may go on after a shutdown was asked for, before they are interrupted.
const DRAIN: Duration = Duration::from_secs(10);
/// How long one renewal of a lease, or one sign of life to NATS, may take.
const RENEWAL: Duration = Duration::from_secs(2);
/// How long after the interruption a handler may take to return, before its job is given back without it.
const INTERRUPTION: Duration = Duration::from_secs(5);
/// How long an attempt's end is offered to a catalog that does not answer.
const FINISH_PATIENCE: Duration = Duration::from_secs(600);
/// The message of an attempt is delivered again when nobody has claimed or acknowledged it for so long.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Which work it pulls.
    pub service: WorkService,
    /// Of which pool.
    pub pool: String,
    /// What it calls itself in leases and logs.
    pub worker_id: String,
    /// Jobs at once.
    pub concurrency: usize,
    /// A worker that is not heard of for so long has lost its job.
    pub lease_seconds: u32,
    /// What follows a failed attempt.
    pub retry: RetryRules,
}

/// What a service does with a claimed job.
pub trait JobHandler: Send + Sync + 'static {
    /// Does the job. Must return soon after `context.stop()` is cancelled.
    fn handle(&self, job: ClaimedJob, context: AttemptContext) -> impl Future<Output = Outcome> + Send;
}

/// How an attempt ended: exactly one of these.
#[derive(Debug)]
pub enum Outcome {
    /// The backup has its receipt.
    Backup(Box<FinishedBackup>),
    /// The verification has its receipt, passed or not.
    Verification(Box<FinishedVerification>),
    /// The restore has its receipt.
    Restore(Box<FinishedRestore>),
    /// A restore that was to change nothing says what it would have changed.
    DryRun(Box<RestoreChanges>),
    /// Another attempt may succeed.
    Retry(String),
    /// No other attempt will succeed before somebody changes something.
    Failed(String),
    /// The attempt was told to stop, and did.
    Stopped,
}

/// Why an attempt was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody cancelled the job.
    Cancelled,
    /// Another attempt has the job.
    LeaseLost,
    /// The worker shuts down.
    Shutdown,
}

/// What is done and expected; written by the handler, read by the heartbeat.
#[derive(Debug)]
pub struct Progress {
    done_bytes: AtomicU64,
    done_files: AtomicU64,
    total_bytes: AtomicU64,
    began: Instant,
    rate: Mutex<Rate>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            done_bytes: AtomicU64::new(0),
            done_files: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            began: Instant::now(),
            rate: Mutex::default(),
        }
    }
}

impl Progress {
    /// Counts bytes of content.
    pub fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    /// Counts a file, a directory or another entry of a tree.
    pub fn add_file(&self) {
        self.done_files.fetch_add(1, Ordering::Relaxed);
    }
    /// Says how many bytes are expected; 0 for unknown.
    pub fn expect(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }
    fn read(&self) -> Reported {
        let bytes = self.done_bytes.load(Ordering::Relaxed);
        let total = self.total_bytes.load(Ordering::Relaxed);
        let rate = self
            .rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(self.began.elapsed(), bytes);
        let files = self.done_files.load(Ordering::Relaxed);
        Reported::new(bytes, files, (total > 0).then_some(total), rate)
    }
}

/// What a handler gets beside the job.
#[derive(Clone)]
pub struct AttemptContext {
    /// Counts what is done.
    pub progress: Arc<Progress>,
    stop: CancellationToken,
    catalog: Catalog,
    lease_seconds: u32,
}

impl AttemptContext {
    /// Cancelled when the attempt must stop.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Has `act` called when the attempt is told to stop, for work that does not look by itself. Dropping what this
    /// returns takes it back. To be called within the runtime.
    pub fn on_stop(&self, act: impl FnOnce() + Send + 'static) -> OnStop {
        let stop = self.stop.clone();
        OnStop(tokio::spawn(async move {
            stop.cancelled().await;
            act();
        }))
    }

    /// Whether this attempt still holds the job at this moment; asked right before something is committed elsewhere.
    /// An unreachable catalog cannot have given the job to anybody else either.
    pub async fn holds_lease(&self, job: &ClaimedJob) -> bool {
        let progress = self.progress.read();
        match self
            .catalog
            .renew(job.id, job.attempt, self.lease_seconds, &progress)
            .await
        {
            Ok(state) => state == LeaseState::Held,
            Err(_) => true,
        }
    }
}

/// What [`AttemptContext::on_stop`] returns.
pub struct OnStop(tokio::task::JoinHandle<()>);

impl Drop for OnStop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Pulls work and does it until `shutdown`; then drains.
pub async fn run<H: JobHandler>(
    catalog: Catalog,
    bus: Bus,
    relay: Relay,
    options: WorkerOptions,
    handler: H,
    shutdown: CancellationToken,
) {
    let spec = ConsumerSpec {
        stream: subjects::WORK_STREAM,
        durable: format!("{}-{}", options.service.as_str(), options.pool),
        filter_subject: options.service.subject(&options.pool),
        ack_wait: ACK_WAIT,
        concurrency: options.concurrency,
    };
    // Running jobs learn of a shutdown later than the consumer: they may finish first.
    let interrupt = CancellationToken::new();
    let drain = tokio::spawn({
        let (shutdown, interrupt) = (shutdown.clone(), interrupt.clone());
        async move {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
            interrupt.cancel();
        }
    });
    let worker = Arc::new(Worker {
        catalog,
        relay,
        options,
        handler,
        interrupt,
    });
    consume(&bus, &spec, &shutdown, |delivery| {
        let worker = worker.clone();
        async move { worker.take(delivery).await }
    })
    .await;
    drain.abort();
}

struct Worker<H> {
    catalog: Catalog,
    relay: Relay,
    options: WorkerOptions,
    handler: H,
    interrupt: CancellationToken,
}

impl<H: JobHandler> Worker<H> {
    async fn take(self: Arc<Self>, delivery: Delivery) {
        let message: WorkMessage = match serde_json::from_slice(delivery.body()) {
            Ok(message) => message,
            Err(error) => {
                // Only the relay publishes here. The job, if there is one, is taken back by the reconciler.
                tracing::error!(%error, subject = delivery.subject(), "a message in the work queue is not work; dropped");
                delivery.ack().await;
                return;
            }
        };
        let span = tracing::info_span!(
            "job",
            job = %message.job_id, kind = %message.kind, target = %message.target, attempt = %message.attempt,
        );
        telemetry::set_parent(&span, message.traceparent.as_deref());
        self.attempt(message, delivery).instrument(span).await;
    }

    async fn attempt(self: Arc<Self>, message: WorkMessage, delivery: Delivery) {
        let options = &self.options;
        let claim = self
            .catalog
            .claim(
                message.job_id,
                message.attempt,
                &options.worker_id,
                options.lease_seconds,
            )
            .await;
        let job = match claim {
            Ok(Some(job)) => job,
            Ok(None) => {
                tracing::debug!("not the current attempt; dropped");
                delivery.ack().await;
                return;
            }
            Err(error) => {
                tracing::info!(error = %one_line(&error), "claim not possible, trying again");
                delivery.retry_after(Duration::from_secs(1)).await;
                return;
            }
        };
        self.relay.kick();
        tracing::info!(backup = %job.backup_id, "started");

        let context = AttemptContext {
            progress: Arc::new(Progress::default()),
            stop: CancellationToken::new(),
            catalog: self.catalog.clone(),
            lease_seconds: options.lease_seconds,
        };
        let (reason_tx, reason_rx) = tokio::sync::watch::channel(None);
        let finished = CancellationToken::new();
        let heartbeat = tokio::spawn({
            let (worker, job, context, finished) = (self.clone(), job.clone(), context.clone(), finished.clone());
            let span = tracing::Span::current();
            async move {
                worker.hold(&job, &context, &delivery, &reason_tx, &finished).await;
                delivery
            }
            .instrument(span)
        });

        let handling = tokio::spawn({
            let (worker, job, context) = (self.clone(), job.clone(), context.clone());
            async move { worker.handler.handle(job, context).await }.instrument(tracing::Span::current())
        });
        // What blocks in a tool that prints nothing does not see that it must stop. At a shutdown the process ends with
        // it, and the tool with the process.
        let abandoned = async {
            self.interrupt.cancelled().await;
            tokio::time::sleep(INTERRUPTION).await;
        };
        let outcome = tokio::select! {
            handled = handling => handled
                .unwrap_or_else(|panic| Outcome::Retry(format!("the worker panicked: {}", panic_text(panic)))),
            () = abandoned => Outcome::Stopped,
        };

        let reason = *reason_rx.borrow();
        self.finish(&job, outcome, reason).await;
        self.relay.kick();
        finished.cancel();
        if let Ok(delivery) = heartbeat.await {
            delivery.ack().await;
        }
    }

    /// Renews the lease until the attempt has finished. Tells it to stop when the job was cancelled, taken by another
    /// attempt, or the worker shuts down.
    async fn hold(
        &self,
        job: &ClaimedJob,
        context: &AttemptContext,
        delivery: &Delivery,
        reason: &tokio::sync::watch::Sender<Option<StopReason>>,
        finished: &CancellationToken,
    ) {
        let every = Duration::from_millis(u64::from(self.options.lease_seconds) * 1000 / 4).min(Duration::from_secs(2));
        let stop = |why: StopReason| {
            reason.send_if_modified(|slot| slot.is_none() && slot.replace(why).is_none());
            context.stop.cancel();
        };
        let mut told = (0, Reported::default());
        loop {
            tokio::select! {
                () = finished.cancelled() => return,
                () = self.interrupt.cancelled(), if !context.stop.is_cancelled() => stop(StopReason::Shutdown),
                () = tokio::time::sleep(every) => {}
            }
            let progress = context.progress.read();
            let renewal = self
                .catalog
                .renew(job.id, job.attempt, self.options.lease_seconds, &progress);
            let Ok(renewed) = tokio::time::timeout(RENEWAL, renewal).await else {
                tracing::info!("lease not renewed in time, trying again");
                continue;
            };
            match renewed {
                Ok(LeaseState::Held) => {}
                Ok(LeaseState::CancelRequested) => stop(StopReason::Cancelled),
                Ok(LeaseState::Lost) if finished.is_cancelled() => return,
                Ok(LeaseState::Lost) => stop(StopReason::LeaseLost),
                // Nobody else can take the job while the catalog is away; the work goes on.
                Err(error) => tracing::info!(error = %one_line(&error), "lease not renewed, trying again"),
            }
            // While NATS is away the client's queue may be full: this must not keep the lease from being renewed.
            if tokio::time::timeout(RENEWAL, delivery.in_progress()).await.is_err() {
                tracing::debug!("no sign of life sent to NATS");
            }
            if progress != told.1 && !context.stop.is_cancelled() {
                told = (told.0 + 1, progress);
                self.tell(job, told.0, progress).await;
            }
        }
    }

    /// Tells who listens how far the attempt is.
    async fn tell(&self, job: &ClaimedJob, number: u64, progress: Reported) {
        let id = format!("{}.{}.progress.{number}", job.id, job.attempt);
        let progress = JobProgress {
            job_id: job.id,
            targets: vec![job.target.clone()],
            kind: job.kind,
            attempt: job.attempt,
            backup_id: job.backup_id.clone(),
            progress,
        };
        self.relay.tell(progress, id, job.traceparent.as_deref()).await;
    }

    /// Commits the outcome, and keeps offering it to a catalog that is away.
    async fn finish(&self, job: &ClaimedJob, outcome: Outcome, reason: Option<StopReason>) {
        let deadline = tokio::time::Instant::now() + FINISH_PATIENCE;
        loop {
            match self.commit(job, &outcome, reason).await {
                Ok((what, Finish::Accepted)) => {
                    match &outcome {
                        Outcome::Retry(error) | Outcome::Failed(error) => {
                            tracing::warn!(outcome = what, error, "ended")
                        }
                        _ => tracing::info!(outcome = what, "ended"),
                    }
                    return;
                }
                Ok((what, Finish::Stale)) => {
                    tracing::info!(outcome = what, "another attempt has the job; this one changed nothing");
                    return;
                }
                Err(error)
                    if error.is_retryable()
                        && tokio::time::Instant::now() < deadline
                        && !self.interrupt.is_cancelled() =>
                {
                    tracing::info!(error = %one_line(&error), "outcome not committed, trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => {
                    // The lease runs out, and another attempt finds what this one left in the vault.
                    tracing::error!(error = %one_line(&error), "outcome not committed; the job will be tried again");
                    return;
                }
            }
        }
    }

    async fn commit(
        &self,
        job: &ClaimedJob,
        outcome: &Outcome,
        reason: Option<StopReason>,
    ) -> Result<(&'static str, Finish), CatalogError> {
        let catalog = &self.catalog;
        let (id, attempt) = (job.id, job.attempt);
        Ok(match outcome {
            Outcome::Backup(done) => ("completed", catalog.finish_backup(id, attempt, done).await?),
            Outcome::Verification(done) if done.receipt.integrity.validated => {
                ("verified", catalog.finish_verification(id, attempt, done).await?)
            }
            Outcome::Verification(done) => ("disproven", catalog.finish_verification(id, attempt, done).await?),
            Outcome::Restore(done) => ("restored", catalog.finish_restore(id, attempt, done).await?),
            Outcome::DryRun(changes) => ("tried", catalog.finish_dry_run(id, attempt, changes).await?),
            Outcome::Stopped => match reason {
                Some(StopReason::Cancelled) => ("cancelled", catalog.cancelled(id, attempt).await?),
                Some(StopReason::Shutdown) | None => ("interrupted", catalog.interrupt(id, attempt).await?),
                Some(StopReason::LeaseLost) => ("lease lost", Finish::Stale),
            },
            Outcome::Failed(error) => ("failed", catalog.fail(id, attempt, error).await?),
            Outcome::Retry(error) => {
                let spent = Attempt::new(job.retry_count + 1);
                match retry::decide(&self.options.retry, spent, true) {
                    RetryDecision::Retry { delay, .. } => ("retry", catalog.retry(id, attempt, error, delay).await?),
                    RetryDecision::GiveUp { reason } => (
                        "failed",
                        catalog.fail(id, attempt, &format!("{error} ({reason})")).await?,
                    ),
                }
            }
        })
    }
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "without words".to_owned()),
        Err(_) => "its task was dropped".to_owned(),
    }
}
