//! The catalog as the table in which writers look up chunks.

use std::collections::HashMap;

use strongroom_catalog::Catalog;
use strongroom_proto::{ChunkId, Sha256Digest, VaultId};
use strongroom_vault::{ChunkPlace, ChunkTable, IndexedChunks, TableError};

/// The chunks that the catalog knows of.
pub(crate) struct CatalogChunks(pub(crate) Catalog);

#[async_trait::async_trait]
impl ChunkTable for CatalogChunks {
    async fn index_objects(&self, vault: VaultId) -> Result<Vec<Sha256Digest>, TableError> {
        Ok(self.0.index_objects(vault).await?)
    }

    async fn add(&self, vault: VaultId, chunks: IndexedChunks) -> Result<(), TableError> {
        Ok(self
            .0
            .add_index_object(vault, chunks.index_object, &chunks.packs)
            .await?)
    }

    async fn forget(&self, vault: VaultId, index_objects: &[Sha256Digest]) -> Result<(), TableError> {
        Ok(self.0.forget_index_objects(vault, index_objects).await?)
    }

    async fn look_up(&self, vault: VaultId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkPlace>>, TableError> {
        let found = self.0.look_up_chunks(vault, chunks).await?;
        let found: HashMap<ChunkId, ChunkPlace> = found
            .into_iter()
            .map(|(chunk, pack, index_object)| (chunk, ChunkPlace { pack, index_object }))
            .collect();
        Ok(chunks.iter().map(|chunk| found.get(chunk).copied()).collect())
    }
}
