//! A vault is made only where it can be relied on.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use strongroom_vault::*;

use crate::support::*;

fn new_vault(writer_key: &WriterKey) -> NewVault<'_> {
    NewVault {
        recipients: vec![Identity::generate().1],
        writer_key,
        signers: vec![("w".to_owned(), Signer::generate("w").unwrap().public_line().unwrap())],
    }
}

#[test]
fn a_new_vault_is_its_owners_alone_and_opens_again() {
    let (folder, runtime, key) = (tempfile::tempdir().unwrap(), runtime(), WriterKey::generate());
    let path = folder.path().join("some/where");
    let store = local(&path);
    assert!(!path.exists(), "opening a store makes no folder");
    let vault = runtime.block_on(Vault::create(store, new_vault(&key), at(0))).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let url = format!("file://{}", path.display());
    assert_eq!(vault.url(), url);
    let by_url = Store::open(&StoreConfig { url, s3: None }).unwrap();
    let again = runtime.block_on(Vault::open(by_url)).unwrap();
    assert_eq!((again.id(), again.recipients()), (vault.id(), vault.recipients()));
    let left: Vec<String> = objects(&path).into_iter().filter(|o| !o.starts_with("keys/")).collect();
    assert_eq!(left, ["vault.json"], "the probe cleans up");
}

#[test]
fn a_vault_needs_recipients_and_signers_that_are_valid() {
    let (folder, runtime, key) = (tempfile::tempdir().unwrap(), runtime(), WriterKey::generate());
    let create = |change: fn(&mut NewVault<'_>)| {
        let mut new = new_vault(&key);
        change(&mut new);
        runtime
            .block_on(Vault::create(local(folder.path()), new, at(0)))
            .unwrap_err()
    };
    let error = create(|new| new.recipients.clear());
    assert!(matches!(error, CreateVaultError::NoRecipients));
    assert!(error.to_string().contains("recipient"));
    assert!(matches!(create(|new| new.signers.clear()), CreateVaultError::NoSigners));
    assert!(matches!(
        create(|new| new.recipients[0] = "age1nonsense".to_owned()),
        CreateVaultError::Key { .. }
    ));
    assert!(matches!(
        create(|new| new.signers[0].1 = "ssh-rsa AAAA".to_owned()),
        CreateVaultError::Key { .. }
    ));
    assert!(objects(folder.path()).is_empty(), "a refused vault leaves nothing");
}

#[test]
fn a_vault_is_never_made_over_another() {
    let fixture = Fixture::new();
    let before = std::fs::read(fixture.path().join("vault.json")).unwrap();
    let key = WriterKey::generate();
    let create = Vault::create(local(&fixture.path()), new_vault(&key), at(9));
    assert!(matches!(
        fixture.runtime.block_on(create),
        Err(CreateVaultError::Exists { .. })
    ));
    assert_eq!(std::fs::read(fixture.path().join("vault.json")).unwrap(), before);
}

#[test]
fn a_store_that_overwrites_is_refused_with_the_reason() {
    let (folder, runtime, key) = (tempfile::tempdir().unwrap(), runtime(), WriterKey::generate());
    let control = Arc::new(Control::default());
    control.overwrites.store(true, Ordering::SeqCst);
    let store = control.wrap(local(folder.path()));
    let error = runtime
        .block_on(Vault::create(store, new_vault(&key), at(0)))
        .unwrap_err();
    assert!(matches!(error, CreateVaultError::NoCreateIfAbsent { .. }), "{error:?}");
    assert!(error.to_string().contains("create-if-absent"), "{error}");
    assert!(objects(folder.path()).is_empty());
}

#[test]
fn what_is_not_a_vault_does_not_open() {
    let (folder, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let open = |path| runtime.block_on(Vault::open(local(path))).unwrap_err();
    assert!(matches!(open(folder.path()), OpenVaultError::NoVault { .. }));
    let missing = folder.path().join("missing");
    assert!(matches!(open(&missing), OpenVaultError::NoVault { .. }));
    assert!(!missing.exists());
    std::fs::write(folder.path().join("vault.json"), "{").unwrap();
    assert!(matches!(open(folder.path()), OpenVaultError::Malformed { .. }));
    std::fs::write(folder.path().join("vault.json"), r#"{"format":2,"else":1}"#).unwrap();
    assert!(matches!(open(folder.path()), OpenVaultError::Unsupported { .. }));
}

#[test]
fn a_recipient_added_behind_the_writers_back_stops_the_writer() {
    let fixture = Fixture::new();
    let path = fixture.path().join("vault.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, intruder) = Identity::generate();
    let changed = text.replace(&fixture.vault.recipients()[1], &intruder);
    assert_ne!(changed, text);
    std::fs::write(&path, changed).unwrap();
    let vault = fixture.runtime.block_on(Vault::open(local(&fixture.path()))).unwrap();
    let index = Arc::new(ChunkIndex::new(&vault, &fixture.writer_key));
    let handle = fixture.runtime.handle().clone();
    let begun = BackupWriter::begin(
        &vault,
        &fixture.writer_key,
        index,
        Fixture::id(1),
        strongroom_proto::Attempt::FIRST,
        handle,
    );
    assert!(matches!(begun, Err(WriteError::Vault { .. })));
}

#[test]
fn urls_that_name_no_store_are_refused_without_repeating_a_key() {
    for url in [
        "",
        "ftp://x/y",
        "s3://",
        "s3:///x",
        "s3://AKIA:secret@bucket/x",
        "file://host/x",
    ] {
        let error = Store::open(&StoreConfig {
            url: url.to_owned(),
            s3: None,
        })
        .expect_err(url);
        assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
    }
    let settings = S3Settings {
        secret_access_key: Some(Secret::new("hidden")),
        ..S3Settings::default()
    };
    assert!(!format!("{settings:?}").contains("hidden"));
}

#[test]
fn what_the_store_can_do_is_found_out_and_written_down() {
    let (folder, runtime, key) = (tempfile::tempdir().unwrap(), runtime(), WriterKey::generate());
    let capabilities =
        |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["capabilities"].clone();
    runtime
        .block_on(Vault::create(local(folder.path()), new_vault(&key), at(0)))
        .unwrap();
    let written = std::fs::read(folder.path().join("vault.json")).unwrap();
    assert_eq!(
        capabilities(&written),
        serde_json::json!({ "create_if_absent": true, "checksums": false, "versioning": false, "lock": false })
    );

    let server = strongroom_testkit::S3::start().unwrap();
    let store = Store::open(&StoreConfig {
        url: format!("s3://{}/a/vault", server.bucket()),
        s3: Some(S3Settings {
            endpoint: Some(server.endpoint()),
            region: None,
            access_key_id: Some(server.access_key().to_owned()),
            secret_access_key: Some(Secret::new(server.secret_key())),
            allow_http: true,
        }),
    });
    runtime
        .block_on(Vault::create(store.unwrap(), new_vault(&key), at(0)))
        .unwrap();
    let bucket = object_store::aws::AmazonS3Builder::new()
        .with_bucket_name(server.bucket())
        .with_region("us-east-1")
        .with_endpoint(server.endpoint())
        .with_access_key_id(server.access_key())
        .with_secret_access_key(server.secret_key())
        .with_allow_http(true)
        .build()
        .unwrap();
    let left = runtime.block_on(async {
        use futures::TryStreamExt;
        use object_store::{ObjectStore, ObjectStoreExt};
        let written = bucket
            .get(&"a/vault/vault.json".into())
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        assert_eq!(
            capabilities(&written),
            serde_json::json!({ "create_if_absent": true, "checksums": true, "versioning": false, "lock": false })
        );
        bucket.list(None).try_collect::<Vec<_>>().await.unwrap()
    });
    assert!(
        left.iter().all(|object| !object.location.to_string().contains("probe")),
        "{left:?}"
    );
}
