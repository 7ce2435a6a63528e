//! Drills of base backups: recovered in scratch space with the vault's own WAL.

use std::sync::Arc;

use strongroom_connectors::postgres::DrillConfig;
use strongroom_connectors::postgres::recovery::{Drilled, RecoveryProgress, VaultWal, drill_cluster};
use strongroom_proto::manifest::EntrySource;
use strongroom_proto::wal::{ClusterFacts, WalSource};
use strongroom_runtime::entry::one_line;
use tokio::runtime::Handle;

use crate::CannotTry;

/// A base backup to be tried, and the WAL it needs.
pub(crate) struct Physical {
    facts: ClusterFacts,
    wal: Arc<VaultWal>,
}

impl Physical {
    /// To be called within the runtime.
    pub(crate) fn new(facts: ClusterFacts, source: Arc<dyn WalSource>) -> Self {
        let wal = VaultWal::new(source, facts.system_identifier, facts.segment_bytes, Handle::current());
        Self {
            facts,
            wal: Arc::new(wal),
        }
    }

    /// Recovers it for real.
    pub(crate) fn drill(&self, source: &dyn EntrySource, config: &DrillConfig) -> Result<Drilled, CannotTry> {
        let mut told = |progress: RecoveryProgress| tracing::info!(?progress, "drill of a cluster");
        drill_cluster(source, &self.facts, self.wal.clone(), config, &mut told).map_err(|error| CannotTry {
            message: one_line(&error),
            retryable: error.is_retryable(),
        })
    }
}
