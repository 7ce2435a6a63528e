//! The catalog: jobs, schedules, receipts and the outbox in Postgres.
//!
//! This crate owns every SQL statement against the catalog. A job changes by compare-and-set on its attempt and status
//! only; whatever must be published because of a change is written to the outbox in the same transaction. It decides
//! nothing: limits, retries and schedules come from `policy` through its callers.
//!
//! The catalog is an index of the vault. Losing it loses no backup.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod annotations;
mod audit;
mod backups;
mod chunks;
mod clusters;
mod dispatch;
mod error;
mod finish;
mod intake;
mod jobs;
mod listen;
mod outbox;
mod restores;
mod scenarios;
mod schedules;
mod status;
mod triggers;
mod wal;
mod wal_streams;

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};

use audit::AuditEntry;
pub use backups::{BackupFilter, OwedVerification};
pub use chunks::{FoundChunk, ListedPack};
pub use clusters::{ClusterBackup, Drill};
pub use dispatch::{DispatchLimits, Dispatched};
pub use error::CatalogError;
pub use finish::{Finish, FinishedBackup, FinishedRestore, FinishedVerification};
pub use intake::Taken;
pub use jobs::{ClaimedJob, CreateOutcome, Created, ExpiredLease, JobRequest, LeaseState, Origin};
pub use listen::Listener;
pub use outbox::OutboxMessage;
pub use scenarios::Scenario;
pub use status::Totals;
pub use wal_streams::{WalClaim, WalNews, WalProgress, WalStream};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// A connection to the catalog; cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalog {
    pool: PgPool,
}

impl Catalog {
    /// Connects and brings the schema up to date. Migrations run under a lock of their own, so that services may
    /// start together. `url` is `postgres://user:password@host:port/database`.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, CatalogError> {
        let options: PgConnectOptions = url
            .parse()
            .map_err(|source| CatalogError::new("parse the catalog's URL", source))?;
        // A process that is paused or cut off inside a transaction must not hold its locks for hours.
        let options = options
            .application_name("strongroom")
            .options([
                ("idle_in_transaction_session_timeout", "30s"),
                ("lock_timeout", "10s"),
                ("tcp_user_timeout", "30s"),
            ])
            .disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options)
            .await
            .map_err(|source| CatalogError::new("connect to the catalog", source))?;
        MIGRATIONS.run(&pool).await.map_err(CatalogError::migrate)?;
        Ok(Self { pool })
    }

    /// Makes the database that `url` names, where the server has none of that name.
    pub async fn ensure_database(url: &str) -> Result<(), CatalogError> {
        use sqlx::migrate::MigrateDatabase as _;
        let failed = |e| CatalogError::new("create the catalog's database", e);
        if !sqlx::Postgres::database_exists(url).await.map_err(failed)? {
            sqlx::Postgres::create_database(url).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the catalog answers.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        sqlx::query("SELECT 1")
            .execute(&self.pool)
            .await
            .map_err(|e| CatalogError::new("reach the catalog", e))?;
        Ok(())
    }
}
