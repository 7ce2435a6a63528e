//! The same vault in a bucket of a real S3 server.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use strongroom_proto::Attempt;
use strongroom_testkit::S3;
use strongroom_vault::*;

use crate::conformance::{Place, keeps_the_promises};
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

#[test]
fn a_vault_in_a_bucket_of_a_real_server_keeps_its_promises() {
    let server = S3::start().unwrap();
    let vaults = config(&server, "some/prefix");
    let builder = AmazonS3Builder::new()
        .with_bucket_name(server.bucket())
        .with_region("us-east-1")
        .with_endpoint(server.endpoint())
        .with_access_key_id(server.access_key())
        .with_secret_access_key(server.secret_key())
        .with_allow_http(true);
    keeps_the_promises(&Place {
        open: Box::new(move |name| {
            let mut config = vaults.clone();
            config.url = format!("{}/{name}", config.url);
            Store::open(&config).unwrap()
        }),
        objects: Box::new(move |name| {
            let bucket = builder.clone().build().unwrap();
            Arc::new(PrefixStore::new(bucket, format!("some/prefix/{name}")))
        }),
        // A server answers with 1,000 at a time.
        many: 1_001,
    });
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
