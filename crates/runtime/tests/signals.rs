//! Signals of the process: hence one test.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use strongroom_runtime::Shutdown;

#[tokio::test]
async fn sigterm_cancels_the_token() {
    let shutdown = Shutdown::on_signals().unwrap();
    assert!(!shutdown.token().is_cancelled());
    let pid = std::process::id().to_string();
    assert!(
        Command::new("/bin/sh")
            .args(["-c", &format!("kill -TERM {pid}")])
            .status()
            .unwrap()
            .success()
    );
    tokio::time::timeout(Duration::from_secs(10), shutdown.wait())
        .await
        .expect("the token was not cancelled");
}
