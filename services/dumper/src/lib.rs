//! The dumper: databases, whole clusters with their WAL, and commands into the vault. It holds the writer key and no
//! identity: it cannot read what it wrote.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod cluster;
mod pushed;
mod received;
mod receiver;

use std::collections::BTreeMap;
use std::time::Duration;

use strongroom_catalog::ClaimedJob;
use strongroom_connectors::Stop;
use strongroom_connectors::command::{self, CommandTarget};
use strongroom_connectors::postgres::{self, PostgresTarget};
use strongroom_proto::TargetKind;
use strongroom_proto::receipt::Method;
use strongroom_proto::subjects::WorkService;
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{Loaded, TargetBook, TargetConfig};
use strongroom_worker::{AttemptContext, Description, JobHandler, Outcome, Service, TakeError, Taken, Writing};
use tokio_util::sync::CancellationToken;

use cluster::Clusters;
use pushed::{PushedWal, Pushes};
use receiver::Receivers;

/// How long a command may take where its target does not say.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Runs the dumper until `shutdown`.
pub async fn run(loaded: Loaded, shutdown: CancellationToken) -> anyhow::Result<()> {
    let service = Service::connect(&loaded, WorkService::Dump).await?;
    let writing = Writing::open(&loaded.config, "dumper", &service.catalog).await?;
    let pushed = PushedWal::new(service.catalog.clone(), &writing);
    let clusters = Clusters::new(service.catalog.clone(), pushed.clone());
    let receivers = Receivers {
        clusters: clusters.clone(),
        catalog: service.catalog.clone(),
        writing: writing.clone(),
        targets: service.targets.clone(),
        pool: service.options.pool.clone(),
        worker: service.options.worker_id.clone(),
        lease_seconds: service.options.lease_seconds,
    };
    let receiving = tokio::spawn(receivers.run(shutdown.clone()));
    let pushes = Pushes {
        pushed,
        targets: service.targets.clone(),
        pool: service.options.pool.clone(),
    };
    let pushing = tokio::spawn(pushes.run(shutdown.clone()));
    let dumper = Dumper {
        writing,
        clusters,
        targets: service.targets.clone(),
        pg_bin_dirs: loaded.config.worker.pg_bin_dirs.clone(),
    };
    service.work(dumper, shutdown).await;
    receiving.await?;
    pushing.await?;
    Ok(())
}

struct Dumper {
    writing: Writing,
    clusters: Clusters,
    targets: TargetBook,
    pg_bin_dirs: Vec<std::path::PathBuf>,
}

impl JobHandler for Dumper {
    async fn handle(&self, job: ClaimedJob, context: AttemptContext) -> Outcome {
        let Some(target) = self.targets.get(&job.target) else {
            return Outcome::Failed(format!(
                "target {} is not in this dumper's configuration: configure it here as on the coordinator",
                job.target
            ));
        };
        let surface = target.surface().to_owned();
        match target.kind {
            TargetKind::Postgres if target.is_physical() => {
                self.clusters.back_up(&self.writing, &job, &context, &target).await
            }
            TargetKind::Postgres => {
                let source = match self.postgres(&target) {
                    Ok(source) => source,
                    Err(error) => return Outcome::Failed(format!("{error:#}")),
                };
                let description = Description {
                    surface,
                    method: Method::LogicalDump,
                    zstd_level: target.zstd_level,
                };
                self.writing
                    .back_up(&job, &context, description, move |sink, context| {
                        dump(&source, sink, context)
                    })
                    .await
            }
            TargetKind::Command => {
                let Some(program) = target.program.clone() else {
                    return Outcome::Failed(format!(
                        "target {} names no program: set targets.{0}.program",
                        job.target
                    ));
                };
                let source = CommandTarget {
                    program,
                    args: target.args.clone(),
                    env: target
                        .env
                        .iter()
                        .map(|(k, v)| (k.clone(), v.expose().to_owned()))
                        .collect::<BTreeMap<_, _>>(),
                    timeout: target.timeout_seconds.map_or(COMMAND_TIMEOUT, Duration::from_secs),
                };
                let description = Description {
                    surface,
                    method: Method::LogicalDump,
                    zstd_level: target.zstd_level,
                };
                let take = move |sink: &mut dyn strongroom_proto::manifest::BackupSink, context: &AttemptContext| {
                    let stop = Stop::default();
                    let _watch = context.on_stop({
                        let stop = stop.clone();
                        move || stop.stop()
                    });
                    let report = stop.run(|| command::dump(&source, sink)).map_err(|e| TakeError {
                        message: one_line(&e),
                        retryable: e.is_retryable(),
                    })?;
                    Ok(Taken {
                        facts: report.facts,
                        missing: report.missing,
                        notes: Vec::new(),
                    })
                };
                self.writing.back_up(&job, &context, description, take).await
            }
            kind => Outcome::Failed(format!(
                "target {} is of kind {kind}, which a dumper does not read",
                job.target
            )),
        }
    }
}

impl Dumper {
    fn postgres(&self, target: &TargetConfig) -> anyhow::Result<PostgresTarget> {
        let url = target
            .connection_url()?
            .ok_or_else(|| anyhow::anyhow!("the target has no url"))?;
        let mut source = PostgresTarget::new(url.expose().parse()?);
        source.bin_dirs = self.pg_bin_dirs.clone();
        if let Some(bytes) = target.large_table_bytes {
            source.large_table_bytes = bytes;
        }
        Ok(source)
    }
}

fn dump(
    source: &PostgresTarget,
    sink: &mut dyn strongroom_proto::manifest::EntrySink,
    context: &AttemptContext,
) -> Result<Taken, TakeError> {
    let failed = |e: postgres::DumpError| TakeError {
        message: one_line(&e),
        retryable: e.is_retryable(),
    };
    let stop = Stop::default();
    let _watch = context.on_stop({
        let stop = stop.clone();
        move || stop.stop()
    });
    let report = stop.run(|| {
        let facts = postgres::probe(source)?;
        context.progress.expect(facts.database_bytes);
        postgres::dump(source, sink)
    });
    let report = report.map_err(failed)?;
    Ok(Taken {
        facts: report.facts,
        missing: report.missing,
        notes: Vec::new(),
    })
}
