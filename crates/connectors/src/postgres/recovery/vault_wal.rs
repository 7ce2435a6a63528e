//! WAL out of a vault, in this process.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strongroom_proto::wal::{Lsn, SystemIdentifier, WalSource};
use tokio::runtime::Handle;

use super::feed::WalFetch;
use crate::postgres::wal::{Answer, AssembleError, find_up_to};

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
    wal_end: Option<Lsn>,
    patience: Duration,
}

impl VaultWal {
    /// The WAL of this cluster. `runtime` is where the vault is asked; [`fetch`](WalFetch::fetch) is called outside of it.
    pub fn new(source: Arc<dyn WalSource>, system: SystemIdentifier, segment_bytes: u32, runtime: Handle) -> Self {
        Self {
            source,
            system,
            segment_bytes,
            runtime,
            wal_end: None,
            patience: PATIENCE,
        }
    }

    /// The same for a recovery that needs no WAL from `wal_end` on, where that is known: a hole there is the end of WAL.
    #[must_use]
    pub fn up_to(self, wal_end: Option<Lsn>) -> Self {
        Self { wal_end, ..self }
    }
}

impl WalFetch for VaultWal {
    fn fetch(&self, name: &str, to: &Path) -> io::Result<bool> {
        let deadline = Instant::now() + self.patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let asked = find_up_to(&*self.source, self.system, self.segment_bytes, name, self.wal_end);
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

/// Whether a vault that is away, or does not have yet what is on its way, may answer better soon.
fn may_pass(error: &AssembleError) -> bool {
    match error {
        AssembleError::Source { source, .. } => !matches!(
            source.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied
        ),
        _ => error.may_pass(),
    }
}

/// What a recovery may conclude: damage stays, an outage passes. A hole is no damage of what is there, and may be filled.
fn kind_of(error: &AssembleError) -> io::ErrorKind {
    match error {
        AssembleError::Source { source, .. } => source.kind(),
        AssembleError::Hole { .. } => io::ErrorKind::NotFound,
        _ => io::ErrorKind::InvalidData,
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use strongroom_proto::wal::{StoredPiece, WalPiece, WalSegment};

    use super::*;
    use crate::postgres::recovery::RecoveryError;
    use crate::postgres::wal::tests::{MIB, Memory, SYSTEM, content, first};

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

    fn wal_of(source: Memory, runtime: &tokio::runtime::Runtime) -> VaultWal {
        VaultWal {
            patience: Duration::ZERO,
            ..VaultWal::new(Arc::new(source), SYSTEM, MIB, runtime.handle().clone())
        }
    }

    #[test]
    fn a_hole_is_waited_for_and_one_that_stays_is_no_damage() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (name, to) = (first(5).file_name(MIB), dir.path().join("wal"));
        let holed = || {
            let vault = Memory::default();
            vault.add(first(5), 0, 1000);
            vault.add(first(6), 0, 1000);
            vault
        };
        let error = wal_of(holed(), &runtime).fetch(&name, &to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        let error = RecoveryError::Wal {
            name: name.clone(),
            source: error,
        };
        assert!(error.is_retryable() && !error.is_about_backup(), "{error}");
        assert!(!to.exists());
        // The rest comes after the hole was seen.
        let vault = holed();
        vault.comes_after(20, 5, 1000, MIB);
        let wal = VaultWal {
            patience: PATIENCE,
            ..wal_of(vault, &runtime)
        };
        assert!(wal.fetch(&name, &to).unwrap());
        assert_eq!(std::fs::read(&to).unwrap(), content(first(5)));
    }

    #[test]
    fn a_hole_where_a_window_ends_is_the_end_of_wal() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("wal");
        let vault = Memory::default();
        vault.add(first(5), 0, 1000);
        vault.add(first(5), 1008, MIB);
        vault.add(first(8), 0, 1000);
        let end = Lsn(first(5).begin(MIB).0 + 1000);
        let wal = wal_of(vault, &runtime).up_to(Some(end));
        assert!(wal.fetch(&first(5).file_name(MIB), &to).unwrap());
        let mut expected = content(first(5))[..1000].to_vec();
        expected.resize(MIB as usize, 0);
        assert_eq!(std::fs::read(&to).unwrap(), expected);
        for number in [6, 7, 9] {
            let absent = dir.path().join("absent");
            assert!(!wal.fetch(&first(number).file_name(MIB), &absent).unwrap(), "{number}");
            assert!(!absent.exists());
        }
        // A hole before the end stays one.
        let wal = wal.up_to(Some(Lsn(end.0 + 1)));
        let error = wal.fetch(&first(5).file_name(MIB), &to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        assert!(wal.fetch(&first(6).file_name(MIB), &to).is_ok_and(|found| !found));
    }
}
