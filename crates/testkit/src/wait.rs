//! Waiting for a condition, with a bound and a message that says what never came.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Calls `check` until it answers `Some`, for at most `timeout`. `what` completes the sentence "waited for …".
pub fn wait_for<T>(what: &str, timeout: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = check() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} for {what}, and it did not come");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// [`wait_for`] with a condition that is itself asynchronous. A check that hangs counts against the time as well.
pub async fn wait_for_async<T, F>(what: &str, timeout: Duration, mut check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Option<T>>,
{
    let poll = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    match tokio::time::timeout(timeout, poll).await {
        Ok(found) => Ok(found),
        Err(_) => bail!("waited {timeout:?} for {what}, and it did not come"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_is_named() {
        let err = wait_for("the tide", Duration::from_millis(30), || None::<()>).unwrap_err();
        assert!(err.to_string().contains("the tide"), "{err}");
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_bounded_too() {
        let err = wait_for_async(
            "an answer",
            Duration::from_millis(30),
            std::future::pending::<Option<()>>,
        )
        .await;
        assert!(err.unwrap_err().to_string().contains("an answer"));
    }
}
