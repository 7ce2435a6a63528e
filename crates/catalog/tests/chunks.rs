//! The table of chunks that writers look up.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use strongroom_catalog::{Catalog, FoundChunk, ListedPack};
use strongroom_proto::{ChunkId, Sha256Digest, VaultId};
use strongroom_testkit::Postgres;

fn digest(number: u8) -> Sha256Digest {
    Sha256Digest::from_bytes([number; 32])
}

fn chunk(number: u32) -> ChunkId {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    ChunkId::from_bytes(bytes)
}

fn listed(pack: u8, chunks: Vec<ChunkId>) -> ListedPack {
    ListedPack {
        pack: digest(pack),
        pack_bytes: (pack != 3).then(|| u64::from(pack) * 1_000_000),
        chunks,
    }
}

fn found(number: u32, pack: u8, index_object: u8) -> FoundChunk {
    FoundChunk {
        chunk: chunk(number),
        pack: digest(pack),
        pack_bytes: listed(pack, Vec::new()).pack_bytes,
        index_object: digest(index_object),
    }
}

#[tokio::test]
async fn chunks_are_found_while_an_index_object_of_their_vault_lists_them() {
    let server = Postgres::start().unwrap();
    server.create_database("catalog").unwrap();
    let catalog = Catalog::connect(&server.url("catalog"), 4).await.unwrap();
    let (vault, other) = (VaultId::fresh(), VaultId::fresh());
    let many: Vec<ChunkId> = (0..25_000).map(chunk).collect();
    let packs = [listed(1, many.clone()), listed(2, vec![chunk(5), chunk(30_000)])];
    for _ in 0..2 {
        catalog.add_index_object(vault, digest(10), &packs).await.unwrap();
    }
    catalog
        .add_index_object(vault, digest(11), &[listed(3, vec![chunk(7), chunk(40_000)])])
        .await
        .unwrap();
    let mut objects = catalog.index_objects(vault).await.unwrap();
    objects.sort_unstable();
    assert_eq!(objects, [digest(10), digest(11)]);
    assert!(catalog.index_objects(other).await.unwrap().is_empty());

    let asked = [chunk(5), chunk(7), chunk(30_000), chunk(40_000), chunk(50_000)];
    let places = catalog.look_up_chunks(vault, &asked, &[]).await.unwrap();
    assert_eq!(
        places,
        [
            found(5, 1, 10),
            found(7, 1, 10),
            found(30_000, 2, 10),
            found(40_000, 3, 11),
        ]
    );
    assert_eq!(
        catalog.look_up_chunks(vault, &many, &[]).await.unwrap().len(),
        many.len()
    );
    assert!(catalog.look_up_chunks(other, &asked, &[]).await.unwrap().is_empty());

    // Packs that are gone do not count, where another holds the chunk and where none does.
    let places = catalog
        .look_up_chunks(vault, &asked, &[digest(1), digest(2)])
        .await
        .unwrap();
    assert_eq!(places, [found(7, 3, 11), found(40_000, 3, 11)]);
    let places = catalog.look_up_chunks(vault, &asked, &[digest(1)]).await.unwrap();
    assert_eq!(
        places,
        [
            found(5, 2, 10),
            found(7, 3, 11),
            found(30_000, 2, 10),
            found(40_000, 3, 11)
        ]
    );

    catalog.forget_index_objects(other, &[digest(10)]).await.unwrap();
    catalog.forget_index_objects(vault, &[digest(10)]).await.unwrap();
    let places = catalog.look_up_chunks(vault, &asked, &[]).await.unwrap();
    // The second pack that held chunk 7 still does.
    assert_eq!(places, [found(7, 3, 11), found(40_000, 3, 11)]);
    let left = server.psql("catalog", "SELECT count(*) FROM vault_chunks").unwrap();
    assert_eq!(left.trim(), "2");
}
