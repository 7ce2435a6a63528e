//! Being woken when something was committed. A notification may be missed; every listener has a timed scan beside it.

use sqlx::postgres::PgListener;

use crate::{Catalog, CatalogError};

pub(crate) const JOBS_CHANNEL: &str = "strongroom_jobs";

/// Wakes its holder when jobs were created or ended.
pub struct Listener(PgListener);

impl Catalog {
    /// Listens from now on.
    pub async fn listen(&self) -> Result<Listener, CatalogError> {
        let failed = |e| CatalogError::new("listen to the catalog", e);
        let mut listener = PgListener::connect_with(&self.pool).await.map_err(failed)?;
        listener.listen(JOBS_CHANNEL).await.map_err(failed)?;
        Ok(Listener(listener))
    }
}

impl Listener {
    /// Waits for the next change. An error means that some may have been missed: scan, and listen anew.
    pub async fn changed(&mut self) -> Result<(), CatalogError> {
        self.0
            .recv()
            .await
            .map_err(|e| CatalogError::new("wait for a change in the catalog", e))?;
        // However many came together, they are one reason to look.
        while self.0.next_buffered().is_some() {}
        Ok(())
    }
}
