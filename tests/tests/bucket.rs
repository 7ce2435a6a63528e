//! A vault in a bucket, with nothing but its address, an identity and the usual variables.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::{Command, Output};

use strongroom_testkit::{S3, bin};

fn run(folder: &std::path::Path, envs: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    let output: Output = Command::new(bin("strongroom").unwrap())
        .args(args)
        .env_clear()
        .env("HOME", folder)
        .envs(envs.iter().copied())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn a_vault_in_a_bucket_is_made_checked_and_looked_into_with_the_usual_variables() {
    let server = S3::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let (keys, identity) = (keys.to_str().unwrap(), keys.join("identity.txt"));
    let (url, endpoint) = (format!("s3://{}/vault", server.bucket()), server.endpoint());
    let made = run(
        folder.path(),
        &[
            ("STRONGROOM_VAULT_S3_ENDPOINT", &endpoint),
            ("STRONGROOM_VAULT_S3_ACCESS_KEY_ID", server.access_key()),
            ("STRONGROOM_VAULT_S3_SECRET_ACCESS_KEY", server.secret_key()),
            ("STRONGROOM_VAULT_S3_ALLOW_HTTP", "true"),
        ],
        &["vault", "create", "--url", &url, "--keys", keys],
    );
    assert_eq!(made.0, 0, "{}", made.1);

    let usual = [
        ("AWS_ACCESS_KEY_ID", server.access_key()),
        ("AWS_SECRET_ACCESS_KEY", server.secret_key()),
        ("AWS_ENDPOINT_URL", &endpoint),
    ];
    let identity = identity.to_str().unwrap();
    let listed = run(
        folder.path(),
        &usual,
        &["rescue", "--store", &url, "--identity", identity, "ls"],
    );
    assert!(listed.0 == 0 && listed.1.contains("holds no backup"), "{}", listed.1);
    let by_flag = [&usual[..2], &[("AWS_REGION", "us-east-1")]].concat();
    let args = [
        "vault",
        "check",
        "--store",
        &url,
        "--s3-endpoint",
        &endpoint,
        "--identity",
        identity,
    ];
    let checked = run(folder.path(), &by_flag, &args);
    assert!(
        checked.0 == 0 && checked.1.contains("sound: 0 backups"),
        "{}",
        checked.1
    );

    let wrong = [usual[0], ("AWS_SECRET_ACCESS_KEY", "not-the-secret"), usual[2]];
    let refused = run(folder.path(), &wrong, &["rescue", "--store", &url, "ls"]);
    assert!(refused.0 == 1 && !refused.1.contains("not-the-secret"), "{}", refused.1);
}
