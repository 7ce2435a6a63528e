//! The snapshotter: file trees into the vault. It holds the writer key and no identity.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod source;

use std::path::PathBuf;

use strongroom_catalog::{Catalog, ClaimedJob};
use strongroom_proto::TargetKind;
use strongroom_proto::receipt::Method;
use strongroom_proto::subjects::WorkService;
use strongroom_runtime::config::ScenarioConfig;
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{Loaded, TargetBook, TargetConfig};
use strongroom_worker::{AttemptContext, Description, JobHandler, Outcome, Service, Writing};
use tokio_util::sync::CancellationToken;

use source::Tree;

/// Runs the snapshotter until `shutdown`.
pub async fn run(loaded: Loaded, shutdown: CancellationToken) -> anyhow::Result<()> {
    let service = Service::connect(&loaded, WorkService::Snapshot).await?;
    let writing = Writing::open(&loaded.config, "snapshotter", &service.catalog).await?;
    let snapshotter = Snapshotter {
        writing,
        targets: service.targets.clone(),
        catalog: service.catalog.clone(),
        scenario: loaded.config.scenario.clone(),
    };
    Box::pin(service.work(snapshotter, shutdown)).await;
    Ok(())
}

struct Snapshotter {
    writing: Writing,
    targets: TargetBook,
    catalog: Catalog,
    /// What scenarios that were never configured are made of; `None` where such are not taken.
    scenario: Option<ScenarioConfig>,
}

impl JobHandler for Snapshotter {
    async fn handle(&self, job: ClaimedJob, context: AttemptContext) -> Outcome {
        if job.target_kind != TargetKind::Files {
            return Outcome::Failed(format!(
                "target {} is of kind {}, which a snapshotter does not read yet",
                job.target, job.target_kind
            ));
        }
        let Some(target) = self.target(&job) else {
            return Outcome::Failed(format!(
                "target {} is not in this snapshotter's configuration: configure it here as on the coordinator",
                job.target
            ));
        };
        let description = Description {
            surface: target.surface().to_owned(),
            method: Method::Snapshot,
            zstd_level: target.zstd_level,
        };
        let Some(tree) = Tree::of(&job, target) else {
            return Outcome::Failed(format!("target {} names no path: set targets.{0}.path", job.target));
        };
        // Only for the display of progress: without it the job goes on as well.
        match self.catalog.last_content_bytes(&job.target).await {
            Ok(bytes) => context.progress.expect(bytes.unwrap_or(0)),
            Err(error) => tracing::debug!(error = %one_line(&error), "the last backup's size is not known"),
        }
        let take = move |sink: &mut dyn strongroom_proto::manifest::BackupSink, context: &AttemptContext| {
            tree.take(sink, context)
        };
        Box::pin(self.writing.back_up(&job, &context, description, take)).await
    }
}

impl Snapshotter {
    /// The target as it is configured, or as the template makes it. A scenario's folder comes with the event that
    /// deployed it.
    fn target(&self, job: &ClaimedJob) -> Option<TargetConfig> {
        let brought = job.params.get("path").and_then(|path| path.as_str()).map(PathBuf::from);
        match (self.targets.get(&job.target), brought) {
            (Some(target), Some(path)) => Some(TargetConfig {
                path: Some(path),
                ..target
            }),
            (Some(target), None) => Some(target),
            (None, Some(path)) => self.scenario.as_ref().map(|template| template.target(path)),
            (None, None) => None,
        }
    }
}
