//! The snapshotter: file trees into the vault. It holds the writer key and no identity.

use std::path::PathBuf;

use strongroom_catalog::ClaimedJob;
use strongroom_connectors::files;
use strongroom_proto::TargetKind;
use strongroom_proto::receipt::Method;
use strongroom_proto::subjects::WorkService;
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{Loaded, TargetBook};
use strongroom_worker::{AttemptContext, Description, JobHandler, Outcome, Service, TakeError, Taken, Writing};
use tokio_util::sync::CancellationToken;

/// Runs the snapshotter until `shutdown`.
pub async fn run(loaded: Loaded, shutdown: CancellationToken) -> anyhow::Result<()> {
    let writing = Writing::open(&loaded.config, "snapshotter").await?;
    let service = Service::connect(&loaded, WorkService::Snapshot).await?;
    let scenario_surface = loaded.config.scenario.as_ref().map(|template| template.surface.clone());
    let snapshotter = Snapshotter {
        writing,
        targets: service.targets.clone(),
        scenario_surface,
    };
    service.work(snapshotter, shutdown).await;
    Ok(())
}

struct Snapshotter {
    writing: Writing,
    targets: TargetBook,
    /// The surface of scenarios that were never configured; `None` where such are not taken.
    scenario_surface: Option<String>,
}

impl JobHandler for Snapshotter {
    async fn handle(&self, job: ClaimedJob, context: AttemptContext) -> Outcome {
        if job.target_kind != TargetKind::Files {
            return Outcome::Failed(format!(
                "target {} is of kind {}, which a snapshotter does not read yet",
                job.target, job.target_kind
            ));
        }
        let configured = self.targets.get(&job.target);
        // A scenario's folder comes with the event that deployed it.
        let brought = job.params.get("path").and_then(|path| path.as_str()).map(PathBuf::from);
        let surface = configured
            .as_ref()
            .map(|target| target.surface().to_owned())
            .or_else(|| self.scenario_surface.clone());
        let path = brought.or_else(|| configured.and_then(|target| target.path));
        let (Some(path), Some(surface)) = (path, surface) else {
            return Outcome::Failed(format!(
                "target {} is not in this snapshotter's configuration: configure it here as on the coordinator",
                job.target
            ));
        };
        let description = Description {
            surface,
            method: Method::Snapshot,
        };
        self.writing
            .back_up(&job, &context, description, move |sink, _| {
                let report = files::snapshot(&path, sink).map_err(|e| TakeError {
                    message: one_line(&e),
                    retryable: e.is_retryable(),
                })?;
                Ok(Taken {
                    facts: report.facts,
                    missing: report.missing,
                })
            })
            .await
    }
}
