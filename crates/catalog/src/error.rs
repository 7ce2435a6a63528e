//! What can go wrong between us and the catalog.

/// An operation on the catalog that did not come through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The database refused, or could not be reached.
    #[error("{operation}")]
    Database {
        /// What was being done, as "verb the object".
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("migrate the catalog's schema: start the newest version of the software first, then the others")]
    Migrate {
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A stored value is not one this version knows.
    #[error("read {column} from the catalog: {reason}")]
    Decode {
        /// Where it stands.
        column: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A name is taken.
    #[error("{object} exists already: choose another name, or update it")]
    Exists {
        /// What.
        object: String,
    },
}

impl CatalogError {
    pub(crate) const fn new(operation: &'static str, source: sqlx::Error) -> Self {
        Self::Database { operation, source }
    }

    pub(crate) const fn migrate(source: sqlx::migrate::MigrateError) -> Self {
        Self::Migrate { source }
    }

    pub(crate) fn decode(column: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Decode {
            column,
            reason: reason.to_string(),
        }
    }

    /// Whether the same call may succeed later without anybody changing anything: the database is away, starting,
    /// shutting down or busy.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database { source, .. } => match source {
                sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => true,
                sqlx::Error::Protocol(_) => true,
                sqlx::Error::Database(db) => db.code().is_some_and(|code| {
                    ["08", "40", "53", "55", "57"]
                        .iter()
                        .any(|class| code.starts_with(class))
                }),
                _ => false,
            },
            _ => false,
        }
    }
}
