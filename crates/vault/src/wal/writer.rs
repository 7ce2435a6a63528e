//! Storing WAL: each piece durable before its position may be told to the server.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use strongroom_proto::wal::{StoredPiece, SystemIdentifier, WalPiece, WalSegment, WalSink};
use tokio::sync::Mutex;

use super::object::{self, HISTORY_BYTES, Press, StatementOf};
use super::reader::list_pieces;
use super::{WalError, is_in_one_segment};
use crate::codec::LEVEL;
use crate::error::StoreError;
use crate::keys::WriterKey;
use crate::layout;
use crate::signing::Signer;
use crate::store::{Store, sha256};
use crate::vault::Vault;

/// A receiver runs for months: after so long it looks whether the vault's keys have changed.
const KEYS_CHECKED_FOR: Duration = Duration::from_secs(60);
/// The level of compression while WAL comes faster than it is stored: more than twice as fast as level 3, and a fifth larger.
const HURRIED_LEVEL: i32 = 1;

/// Stores WAL in a vault. Many calls may run at once; what they share is the barrier.
pub struct WalWriter {
    vault: Vault,
    writer_key: WriterKey,
    signer: Arc<Signer>,
    level: i32,
    presses: Arc<Presses>,
    /// The vault with the keys in force, and when that was looked at.
    checked: Mutex<Option<(Instant, Vault)>>,
    barriers: Barriers,
    /// The histories it has stored, by timeline and BLAKE3. Each put makes an object of its own, and a receiver puts
    /// them again whenever it connects.
    histories: Mutex<BTreeSet<(SystemIdentifier, u32, [u8; 32])>>,
}

impl std::fmt::Debug for WalWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalWriter")
            .field("vault", &self.vault)
            .field("signer", &self.signer)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// A writer of WAL. The writer key, which seals nothing here, proves that the recipients are those that its holders
    /// named: without it, who can write to the store could add one and be sent all WAL.
    pub fn wal_writer(&self, writer_key: WriterKey, signer: Signer) -> WalWriter {
        WalWriter {
            vault: self.clone(),
            writer_key,
            signer: Arc::new(signer),
            level: LEVEL,
            presses: Arc::default(),
            checked: Mutex::new(None),
            barriers: Barriers::default(),
            histories: Mutex::default(),
        }
    }
}

impl WalWriter {
    /// Compresses at this level of zstd, 1 to 19, in place of 3. What is put while another put is under way is compressed at
    /// level 1 whatever is said here: a receiver that is behind has to catch up.
    #[must_use]
    pub fn with_zstd_level(self, level: i32) -> Self {
        Self {
            level: level.clamp(1, 19),
            ..self
        }
    }

    /// The vault with the keys that are in force.
    async fn vault_in_force(&self) -> Result<Vault, WalError> {
        let mut checked = self.checked.lock().await;
        if let Some((at, vault)) = &*checked
            && at.elapsed() < KEYS_CHECKED_FOR
        {
            return Ok(vault.clone());
        }
        let vault = self.vault.for_writing(&self.writer_key).await;
        let vault = vault.map_err(|source| WalError::Keys { source })?;
        let line = self.signer.public_line().ok();
        if !vault.signers_in_force().any(|known| Some(known) == line.as_deref()) {
            return Err(WalError::UnknownSigner {
                principal: self.signer.principal().to_owned(),
            });
        }
        *checked = Some((Instant::now(), vault.clone()));
        Ok(vault)
    }

    /// The pieces in a folder. What is listed may not have reached the disk yet, and the server is told that it has.
    async fn durable_pieces(&self, folder: &str) -> io::Result<Vec<(WalPiece, StoredPiece)>> {
        let found = list_pieces(&self.vault, folder).await?;
        if !found.is_empty() {
            let barrier = self.barriers.after_this(self.vault.store()).await;
            barrier.map_err(|source| WalError::Store { source })?;
        }
        Ok(found)
    }

    async fn put_object(&self, of: StatementOf, bytes: Arc<Vec<u8>>) -> Result<(), WalError> {
        let under_way = UnderWay::begin(&self.presses);
        let level = if under_way.is_hurried {
            HURRIED_LEVEL
        } else {
            self.level
        };
        let vault = self.vault_in_force().await?;
        let object = of.object();
        let (id, recipients, signer) = (vault.id(), Arc::clone(vault.sealed_to()), Arc::clone(&self.signer));
        let presses = Arc::clone(&self.presses);
        let sealed = tokio::task::spawn_blocking(move || {
            let sealed = presses.with(level, |press| object::seal(id, of, &bytes, &signer, &recipients, press))?;
            Ok((sha256(&sealed), sealed))
        });
        let (digest, sealed) = sealed.await.unwrap_or(Err(WalError::Interrupted))?;
        let stored = |source| WalError::Store { source };
        let put = vault.store().put(&object.path(&digest), sealed.into()).await;
        put.map_err(stored)?;
        self.barriers.after_this(vault.store()).await.map_err(stored)
    }
}

/// An error where this is no piece of WAL.
fn check_piece(piece: &WalPiece, bytes: &[u8]) -> Result<(), WalError> {
    let rule = if !layout::is_segment_size(piece.segment_bytes) {
        "the size of segments is no power of two from 1 MiB to 1 GiB"
    } else if piece.timeline == 0 {
        "there is no timeline 0"
    } else if piece.is_empty() {
        "it is empty"
    } else if !is_in_one_segment(piece) {
        "it goes beyond the segment it begins in"
    } else if bytes.len() as u64 != piece.len() {
        "its bytes are not as many as it says"
    } else {
        return Ok(());
    };
    Err(WalError::Refused {
        what: format!(
            "WAL of timeline {} from {} to {} ({} bytes)",
            piece.timeline,
            piece.from,
            piece.to,
            bytes.len()
        ),
        rule,
    })
}

#[async_trait]
impl WalSink for WalWriter {
    async fn put(&self, piece: &WalPiece, bytes: Arc<Vec<u8>>) -> io::Result<()> {
        check_piece(piece, &bytes)?;
        Ok(self.put_object(StatementOf::WalPiece(piece.clone()), bytes).await?)
    }

    async fn put_history(&self, system: SystemIdentifier, timeline: u32, text: &str) -> io::Result<()> {
        if text.len() > HISTORY_BYTES || timeline == 0 {
            return Err(WalError::Refused {
                what: format!("the history of timeline {timeline} ({} bytes)", text.len()),
                rule: "no history is so long, and there is no timeline 0",
            }
            .into());
        }
        let history = (system, timeline, *blake3::hash(text.as_bytes()).as_bytes());
        if self.histories.lock().await.contains(&history) {
            return Ok(());
        }
        let of = StatementOf::WalHistory {
            system_identifier: system,
            timeline,
            bytes: text.len() as u64,
        };
        self.put_object(of, Arc::new(text.as_bytes().to_vec())).await?;
        self.histories.lock().await.insert(history);
        Ok(())
    }

    async fn has_history(&self, system: SystemIdentifier, timeline: u32) -> io::Result<bool> {
        let folder = layout::wal_histories(system, timeline);
        let listed = self.vault.store().list(&folder).await;
        let listed = listed.map_err(|source| WalError::Store { source })?;
        Ok(listed.iter().any(|path| layout::wal_object(path).is_some()))
    }

    async fn segment_pieces(
        &self,
        system: SystemIdentifier,
        segment: WalSegment,
        segment_bytes: u32,
    ) -> io::Result<Vec<StoredPiece>> {
        let folder = layout::wal_segment(system, segment, segment_bytes);
        let found = self.durable_pieces(&folder).await?;
        let is_of_size = |(piece, stored): (WalPiece, _)| (piece.segment_bytes == segment_bytes).then_some(stored);
        Ok(found.into_iter().filter_map(is_of_size).collect())
    }

    async fn pieces(&self, system: SystemIdentifier, timeline: u32) -> io::Result<Vec<StoredPiece>> {
        let found = self.durable_pieces(&layout::wal_timeline(system, timeline)).await?;
        Ok(found.into_iter().map(|(_, stored)| stored).collect())
    }
}

/// What is compressed with, kept for as long as puts follow one another: a receiver that keeps up holds no memory.
#[derive(Default)]
struct Presses {
    spare: std::sync::Mutex<Vec<Press>>,
    /// Puts under way.
    puts: AtomicU64,
}

impl Presses {
    fn with<T>(&self, level: i32, work: impl FnOnce(&mut Press) -> Result<T, WalError>) -> Result<T, WalError> {
        let spare = self.spare().pop();
        let mut press = match spare {
            Some(press) => press,
            None => Press::new(level)?,
        };
        press.set_level(level)?;
        let done = work(&mut press)?;
        self.spare().push(press);
        Ok(done)
    }

    /// No code runs under this lock that could leave what it guards half-changed.
    fn spare(&self) -> MutexGuard<'_, Vec<Press>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A put under way, until it ends in whatever way.
struct UnderWay<'a> {
    presses: &'a Presses,
    /// Whether another one was.
    is_hurried: bool,
}

impl<'a> UnderWay<'a> {
    fn begin(presses: &'a Presses) -> Self {
        let is_hurried = presses.puts.fetch_add(1, Ordering::SeqCst) > 0;
        Self { presses, is_hurried }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.presses.puts.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.presses.spare().clear();
        }
    }
}

/// One barrier for all that wait for one.
#[derive(Default)]
struct Barriers {
    /// How many have come to wait.
    arrived: AtomicU64,
    /// How many of them a barrier has begun and ended for.
    covered: Mutex<u64>,
}

impl Barriers {
    /// Returns after a barrier that began after this was called.
    async fn after_this(&self, store: &Store) -> Result<(), StoreError> {
        let ours = self.arrived.fetch_add(1, Ordering::SeqCst) + 1;
        let mut covered = self.covered.lock().await;
        if *covered < ours {
            let all_so_far = self.arrived.load(Ordering::SeqCst);
            store.barrier().await?;
            *covered = all_so_far;
        }
        Ok(())
    }
}
