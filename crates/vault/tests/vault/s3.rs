//! The same vault in a bucket of a real S3 server.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use strongroom_proto::Attempt;
use strongroom_testkit::S3;
use strongroom_vault::*;

use crate::support::*;

fn settings(server: &S3) -> S3Settings {
    S3Settings {
        endpoint: Some(server.endpoint()),
        region: None,
        access_key_id: Some(server.access_key().to_owned()),
        secret_access_key: Some(Secret::new(server.secret_key())),
        allow_http: true,
    }
}

fn config(server: &S3, prefix: &str) -> StoreConfig {
    StoreConfig {
        url: format!("s3://{}/{prefix}", server.bucket()),
        s3: Some(settings(server)),
    }
}

fn fixture(server: &S3, prefix: &str) -> Fixture {
    let store = Store::open(&config(server, prefix)).unwrap();
    Fixture::in_store(tempfile::tempdir().unwrap(), store)
}

/// The bucket as somebody else sees it.
fn bucket(server: &S3) -> impl ObjectStore {
    AmazonS3Builder::new()
        .with_bucket_name(server.bucket())
        .with_region("us-east-1")
        .with_endpoint(server.endpoint())
        .with_access_key_id(server.access_key())
        .with_secret_access_key(server.secret_key())
        .with_allow_http(true)
        .build()
        .unwrap()
}

#[test]
fn a_vault_in_a_bucket_keeps_the_same_promises() {
    let server = S3::start().unwrap();
    let mut fixture = fixture(&server, "some/prefix");
    let url = format!("s3://{}/some/prefix", server.bucket());
    assert_eq!(fixture.vault.url(), url);

    // More than one pack, and a second backup that reuses them.
    let items = vec![
        stream("small", "x"),
        stream("large", noise(1, 70_000_000)),
        file("empty", ""),
    ];
    let (id, sealed) = fixture.back_up(1, &items);
    assert!(sealed.artifacts.iter().all(|artifact| artifact.uri.starts_with(&url)));
    assert!(fixture.read(&id).unwrap() == items);
    let report = fixture.runtime.block_on(fixture.vault.check(&id)).unwrap();
    assert!(report.is_sound() && report.bytes > 70_000_000, "{report:?}");
    let again = fixture
        .runtime
        .block_on(Vault::open(Store::open(&config(&server, "some/prefix")).unwrap()))
        .unwrap();
    // What a writer of another process knows.
    fixture.index = Arc::new(ChunkIndex::new(&again, &fixture.writer_key));
    fixture.runtime.block_on(fixture.index.refresh()).unwrap();
    let (second, sealed) = fixture.back_up(2, &items);
    assert_eq!(sealed.totals.new_chunks, 0);
    let mut expected = vec![id.clone(), second];
    expected.sort();
    assert_eq!(fixture.runtime.block_on(again.backups()).unwrap(), expected);

    // One receipt a backup, though two attempts commit at once.
    let contested = Fixture::id(3);
    let receipts = [1, 2].map(|number| {
        let attempt = Attempt::new(number);
        let sealed = fixture.write(&contested, attempt, &[stream("a", format!("{number}"))]);
        fixture.receipt(&contested, attempt, &sealed)
    });
    let outcomes = fixture.runtime.block_on(async {
        let [a, b] = [0, 1].map(|number| fixture.vault.commit(&receipts[number], &fixture.signer));
        let (a, b) = tokio::join!(a, b);
        [a.unwrap(), b.unwrap()]
    });
    let ours = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Committed::Ours(_)))
        .count();
    assert_eq!(ours, 1, "{outcomes:?}");

    // A second vault in the same place is refused, one beside it is not.
    let key = WriterKey::generate();
    let new = || NewVault {
        recipients: vec![Identity::generate().1],
        writer_key: &key,
        signers: vec![("w".to_owned(), fixture.signer.public_line().unwrap())],
    };
    let over = Vault::create(Store::open(&config(&server, "some/prefix")).unwrap(), new(), at(5));
    assert!(matches!(
        fixture.runtime.block_on(over),
        Err(CreateVaultError::Exists { .. })
    ));
    let beside = Vault::create(Store::open(&config(&server, "some/other")).unwrap(), new(), at(5));
    let beside = fixture.runtime.block_on(beside).unwrap();
    assert_eq!(fixture.runtime.block_on(beside.backups()).unwrap(), []);

    // What somebody deletes or alters in the bucket is found.
    let list = format!("some/prefix/backups/{id}/a1/packs");
    let objects = bucket(&server);
    let pack = fixture.runtime.block_on(async {
        let text = objects.get(&Path::from(list)).await.unwrap().bytes().await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let pack = text
            .lines()
            .find_map(|line| line.split("  ").nth(1).filter(|p| p.starts_with("packs/")));
        let path = Path::from(format!("some/prefix/{}", pack.unwrap()));
        let mut bytes = objects.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        objects.put(&path, bytes.into()).await.unwrap();
        pack.unwrap().to_owned()
    });
    let report = fixture.runtime.block_on(fixture.vault.check(&id)).unwrap();
    assert_eq!(
        report.damage.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("{pack} does not match its digest")]
    );
    let error = fixture.read(&id).unwrap_err();
    assert!(
        ReadError::in_io_error(&error).is_some_and(|error| !error.is_retryable()),
        "{error:?}"
    );
}

#[test]
fn an_outage_shorter_than_the_retries_does_not_fail_the_backup() {
    let server = S3::start().unwrap();
    let fixture = fixture(&server, "");
    let items = vec![stream("large", noise(1, 40_000_000))];
    let id = Fixture::id(1);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    server.kill().unwrap();
    put_all(&mut writer, &items).unwrap();
    let sealed = std::thread::scope(|scope| {
        let finishing = scope.spawn(move || writer.finish());
        server.restart().unwrap();
        finishing.join().unwrap().unwrap()
    });
    let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();
    assert!(fixture.read(&id).unwrap() == items);
}

#[test]
fn a_wrong_key_is_refused_without_retrying_or_showing_it() {
    let server = S3::start().unwrap();
    let runtime = runtime();
    let mut wrong = config(&server, "x");
    if let Some(settings) = &mut wrong.s3 {
        settings.secret_access_key = Some(Secret::new("not-the-secret-key"));
    }
    let error = runtime.block_on(Vault::open(Store::open(&wrong).unwrap())).unwrap_err();
    let shown = format!("{error:?}");
    assert!(!error.is_retryable(), "{shown}");
    assert!(!shown.contains("not-the-secret-key"), "{shown}");
}
