//! Which chunks a vault holds, for writers to look up; filled from the vault's index objects.

use strongroom_proto::{ChunkId, Sha256Digest, VaultId};

use crate::{Catalog, CatalogError};

/// Chunks that are inserted by one statement.
const INSERTED_CHUNKS: usize = 10_000;

/// A pack that an index object lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPack {
    /// The pack.
    pub pack: Sha256Digest,
    /// Its size as stored, in bytes, where that is known.
    pub pack_bytes: Option<u64>,
    /// The chunks in it.
    pub chunks: Vec<ChunkId>,
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// The pack that holds it.
    pub pack: Sha256Digest,
    /// The size of the pack as stored, in bytes, where that is known.
    pub pack_bytes: Option<u64>,
    /// The index object that lists the pack.
    pub index_object: Sha256Digest,
}

/// Chunk, pack, the pack's size, index object.
type FoundRow = (Vec<u8>, Vec<u8>, Option<i64>, Vec<u8>);

impl Catalog {
    /// The index objects of a vault whose chunks are in the catalog.
    pub async fn index_objects(&self, vault: VaultId) -> Result<Vec<Sha256Digest>, CatalogError> {
        let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT object FROM vault_indexes WHERE vault_id = $1")
            .bind(vault.as_uuid())
            .fetch_all(&self.pool)
            .await
            .map_err(|e| CatalogError::new("list the vault's index objects", e))?;
        rows.iter().map(|row| digest("vault_indexes.object", row)).collect()
    }

    /// Adds what an index object lists: each pack with its chunks. All of it or nothing; a second time changes nothing.
    pub async fn add_index_object(
        &self,
        vault: VaultId,
        object: Sha256Digest,
        packs: &[ListedPack],
    ) -> Result<(), CatalogError> {
        let failed = |e| CatalogError::new("add chunks to the catalog", e);
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let index: Option<i64> = sqlx::query_scalar(
            "INSERT INTO vault_indexes (vault_id, object) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id",
        )
        .bind(vault.as_uuid())
        .bind(object.as_bytes().as_slice())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed)?;
        let Some(index) = index else { return Ok(()) };
        for listed in packs {
            let pack: i64 = sqlx::query_scalar(
                "INSERT INTO vault_packs (index_id, pack, pack_bytes) VALUES ($1, $2, $3) RETURNING id",
            )
            .bind(index)
            .bind(listed.pack.as_bytes().as_slice())
            .bind(listed.pack_bytes.and_then(|bytes| i64::try_from(bytes).ok()))
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)?;
            for some in listed.chunks.chunks(INSERTED_CHUNKS) {
                let some: Vec<&[u8]> = some.iter().map(|chunk| chunk.as_bytes().as_slice()).collect();
                sqlx::query(
                    "INSERT INTO vault_chunks (chunk, pack_id) SELECT chunk, $2 FROM unnest($1::bytea[]) AS chunk \
                     ON CONFLICT DO NOTHING",
                )
                .bind(some)
                .bind(pack)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
            }
        }
        transaction.commit().await.map_err(failed)
    }

    /// Forgets what index objects list.
    pub async fn forget_index_objects(&self, vault: VaultId, objects: &[Sha256Digest]) -> Result<(), CatalogError> {
        let objects: Vec<&[u8]> = objects.iter().map(|object| object.as_bytes().as_slice()).collect();
        sqlx::query("DELETE FROM vault_indexes WHERE vault_id = $1 AND object = ANY ($2)")
            .bind(vault.as_uuid())
            .bind(objects)
            .execute(&self.pool)
            .await
            .map_err(|e| CatalogError::new("forget index objects", e))?;
        Ok(())
    }

    /// Where each of these chunks lies that the vault holds, other than in the packs of `without`; a chunk in two packs
    /// comes once.
    pub async fn look_up_chunks(
        &self,
        vault: VaultId,
        chunks: &[ChunkId],
        without: &[Sha256Digest],
    ) -> Result<Vec<FoundChunk>, CatalogError> {
        let wanted: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes().as_slice()).collect();
        let without: Vec<&[u8]> = without.iter().map(|pack| pack.as_bytes().as_slice()).collect();
        let rows: Vec<FoundRow> = sqlx::query_as(
            "SELECT DISTINCT ON (c.chunk) c.chunk, p.pack, p.pack_bytes, i.object FROM vault_chunks c \
             JOIN vault_packs p ON p.id = c.pack_id JOIN vault_indexes i ON i.id = p.index_id \
             WHERE c.chunk = ANY ($2) AND i.vault_id = $1 AND p.pack <> ALL ($3) ORDER BY c.chunk, c.pack_id",
        )
        .bind(vault.as_uuid())
        .bind(wanted)
        .bind(without)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| CatalogError::new("look up chunks", e))?;
        rows.iter()
            .map(|(chunk, pack, pack_bytes, object)| {
                let chunk = digest("vault_chunks.chunk", chunk)?;
                Ok(FoundChunk {
                    chunk: ChunkId::from_bytes(*chunk.as_bytes()),
                    pack: digest("vault_packs.pack", pack)?,
                    pack_bytes: pack_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
                    index_object: digest("vault_indexes.object", object)?,
                })
            })
            .collect()
    }
}

fn digest(column: &'static str, bytes: &[u8]) -> Result<Sha256Digest, CatalogError> {
    <[u8; 32]>::try_from(bytes)
        .map(Sha256Digest::from_bytes)
        .map_err(|_| CatalogError::decode(column, "32 bytes are expected"))
}
