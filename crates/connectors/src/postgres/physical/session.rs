//! A connection for replication that blocks, and that the operation's [`Stop`] ends.

use std::time::Duration;

use tokio::runtime::Runtime;

use super::error::WireError;
use super::wire::{Connection, Message};
use crate::child::Stop;
use crate::postgres::target::Endpoint;

/// How soon a stop is noticed while nothing comes.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) struct Session {
    // Before the runtime, which must outlive it.
    pub(super) connection: Connection,
    runtime: Runtime,
    stop: Stop,
}

impl Session {
    pub(super) fn open(endpoint: &Endpoint) -> Result<Self, WireError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| WireError::Io { source })?;
        let stop = Stop::current();
        let connection = runtime.block_on(unless(&stop, Connection::open(endpoint)))?;
        Ok(Self {
            connection,
            runtime,
            stop,
        })
    }

    /// Runs questions and answers on the connection.
    pub(super) fn run<T>(
        &mut self,
        operation: impl AsyncFnOnce(&mut Connection) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        self.runtime
            .block_on(unless(&self.stop, operation(&mut self.connection)))
    }

    /// The next message.
    pub(super) fn message(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.connection.buffered()? {
                return Ok(message);
            }
            self.runtime.block_on(unless(&self.stop, self.connection.fill()))?;
        }
    }

    /// The next message; `None` where one is still to come when `gone` is ready. It may be asked for again until then.
    pub(super) fn message_unless(&mut self, gone: impl Future + Unpin) -> Option<Result<Message, WireError>> {
        match self.connection.buffered() {
            Ok(Some(message)) => return Some(Ok(message)),
            Ok(None) => {}
            Err(error) => return Some(Err(error)),
        }
        let message = unless(&self.stop, self.connection.message());
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = gone => None,
                message = message => Some(message),
            }
        })
    }
}

async fn unless<T>(stop: &Stop, operation: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    let stopped = async {
        while !stop.is_stopped() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        // Bytes that come without a pause must not keep a stop from being seen.
        biased;
        () = stopped => Err(WireError::Stopped),
        result = operation => result,
    }
}
