//! Shutdown: one token that everything waits on, cancelled by a signal.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that a second signal ended: 128 and SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// When to stop. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// One that only [`Shutdown::trigger`] sets off.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM and SIGINT set off. A second signal ends the process at once.
    ///
    /// # Errors
    /// The handlers cannot be installed; also outside of a Tokio runtime.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let trigger = shutdown.clone();
        tokio::spawn(async move {
            let name = either(&mut terminate, &mut interrupt).await;
            tracing::info!(signal = name, "stopping; another signal stops at once");
            trigger.trigger();
            either(&mut terminate, &mut interrupt).await;
            std::process::exit(EXIT_INTERRUPTED);
        });
        Ok(shutdown)
    }

    /// The token to hand on.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts the shutdown.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// Returns when the shutdown has begun.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trigger_reaches_every_token() {
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        assert!(!token.is_cancelled());
        shutdown.clone().trigger();
        shutdown.wait().await;
        assert!(token.is_cancelled());
    }
}
