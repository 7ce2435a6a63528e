//! WAL out of a vault, in this process.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strongroom_proto::wal::{SystemIdentifier, WalSource};
use tokio::runtime::Handle;

use super::feed::WalFetch;
use crate::postgres::wal::{Answer, AssembleError, find};

/// How long a vault that does not answer is asked again before the recovery ends.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A vault's WAL of one cluster.
pub struct VaultWal {
    source: Arc<dyn WalSource>,
    system: SystemIdentifier,
    segment_bytes: u32,
    runtime: Handle,
}

impl VaultWal {
    /// The WAL of this cluster. `runtime` is where the vault is asked; [`fetch`](WalFetch::fetch) is called outside of it.
    pub fn new(source: Arc<dyn WalSource>, system: SystemIdentifier, segment_bytes: u32, runtime: Handle) -> Self {
        Self {
            source,
            system,
            segment_bytes,
            runtime,
        }
    }
}

impl WalFetch for VaultWal {
    fn fetch(&self, name: &str, to: &Path) -> io::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            let asked = find(&*self.source, self.system, self.segment_bytes, name);
            let error = match self.runtime.block_on(asked) {
                Ok(Answer::Found(found)) => return std::fs::write(to, found.bytes).map(|()| true),
                Ok(Answer::Absent) => return Ok(false),
                Err(error) => error,
            };
            if !may_pass(&error) || Instant::now() > deadline {
                return Err(io::Error::new(kind_of(&error), error));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Whether a vault that is away, or lists what is not there yet, may answer better soon.
fn may_pass(error: &AssembleError) -> bool {
    match error {
        AssembleError::Source { source, .. } => !matches!(
            source.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied
        ),
        _ => false,
    }
}

/// What a recovery may conclude: damage stays, an outage passes.
fn kind_of(error: &AssembleError) -> io::ErrorKind {
    match error {
        AssembleError::Source { source, .. } => source.kind(),
        _ => io::ErrorKind::InvalidData,
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use strongroom_proto::wal::{StoredPiece, WalPiece, WalSegment};

    use super::*;

    /// A vault that answers everything in the same way.
    struct Broken(io::ErrorKind);

    impl Broken {
        fn answer<T>(&self) -> io::Result<T> {
            Err(io::Error::new(self.0, "no answer"))
        }
    }

    #[async_trait]
    impl WalSource for Broken {
        async fn timelines(&self, _: SystemIdentifier) -> io::Result<Vec<u32>> {
            self.answer()
        }
        async fn segment_pieces(&self, _: SystemIdentifier, _: WalSegment) -> io::Result<Vec<StoredPiece>> {
            self.answer()
        }
        async fn segments(&self, _: SystemIdentifier, _: u32) -> io::Result<Vec<WalSegment>> {
            self.answer()
        }
        async fn read(&self, _: SystemIdentifier, _: &StoredPiece) -> io::Result<(WalPiece, Vec<u8>)> {
            self.answer()
        }
        async fn history(&self, _: SystemIdentifier, _: u32) -> io::Result<Option<String>> {
            self.answer()
        }
    }

    #[test]
    fn a_vault_that_cannot_be_read_is_never_taken_for_one_without_the_segment() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        for kind in [io::ErrorKind::InvalidData, io::ErrorKind::PermissionDenied] {
            let source = Arc::new(Broken(kind));
            let wal = VaultWal::new(source, SystemIdentifier(7), 16 << 20, runtime.handle().clone());
            for name in ["000000010000000000000001", "00000002.history"] {
                let to = dir.path().join(name);
                assert_eq!(wal.fetch(name, &to).unwrap_err().kind(), kind, "{name}");
                assert!(!to.exists());
            }
        }
    }
}
