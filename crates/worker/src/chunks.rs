//! The catalog as the table in which writers look up chunks.

use std::collections::HashMap;

use strongroom_catalog::{Catalog, FoundChunk, ListedPack};
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
        let packs: Vec<ListedPack> = chunks
            .packs
            .into_iter()
            .map(|listed| ListedPack {
                pack: listed.pack,
                pack_bytes: listed.pack_bytes,
                chunks: listed.chunks,
            })
            .collect();
        Ok(self.0.add_index_object(vault, chunks.index_object, &packs).await?)
    }

    async fn forget(&self, vault: VaultId, index_objects: &[Sha256Digest]) -> Result<(), TableError> {
        Ok(self.0.forget_index_objects(vault, index_objects).await?)
    }

    async fn look_up(
        &self,
        vault: VaultId,
        chunks: &[ChunkId],
        without: &[Sha256Digest],
    ) -> Result<Vec<Option<ChunkPlace>>, TableError> {
        let found = self.0.look_up_chunks(vault, chunks, without).await?;
        let place = |found: FoundChunk| ChunkPlace {
            pack: found.pack,
            index_object: found.index_object,
            pack_bytes: found.pack_bytes,
        };
        let found: HashMap<ChunkId, ChunkPlace> = found.into_iter().map(|found| (found.chunk, place(found))).collect();
        Ok(chunks.iter().map(|chunk| found.get(chunk).copied()).collect())
    }
}
