//! One stored object as a file to read and seek in, over ranged reads.
//!
//! Reads ahead the further the more it is read in sequence, so that a whole pack streams and a single chunk costs a
//! single small read. Holds at most two windows of [`WINDOW_MAX_BYTES`].

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{ReadError, StoreError};
use crate::store::Store;

/// The first read at a new place.
const WINDOW_MIN_BYTES: u64 = 512 * 1024;
/// A read far into a sequence.
pub(crate) const WINDOW_MAX_BYTES: u64 = 4 * 1024 * 1024;

type Window = Result<Option<(Bytes, u64)>, StoreError>;

pub(crate) struct RangedObject {
    store: Store,
    runtime: Handle,
    object: String,
    object_bytes: u64,
    position: u64,
    window: Bytes,
    window_start: u64,
    window_bytes: u64,
    ahead: Option<(u64, JoinHandle<Window>)>,
}

impl RangedObject {
    /// Opens the object at its beginning.
    pub(crate) fn open(store: Store, runtime: Handle, object: String) -> Result<Self, ReadError> {
        let first = runtime.block_on(store.get_range(&object, 0..WINDOW_MIN_BYTES));
        match first.map_err(|source| ReadError::store(format!("open {object}"), source))? {
            None => Err(ReadError::Missing { object }),
            Some((window, object_bytes)) => Ok(Self {
                store,
                runtime,
                object,
                object_bytes,
                position: 0,
                window,
                window_start: 0,
                window_bytes: WINDOW_MIN_BYTES,
                ahead: None,
            }),
        }
    }

    fn window_end(&self) -> u64 {
        self.window_start + self.window.len() as u64
    }

    /// Brings the bytes at the current position into the window.
    fn load(&mut self) -> Result<(), ReadError> {
        let start = self.position;
        let in_sequence = start == self.window_end();
        self.window_bytes = match in_sequence {
            true => (self.window_bytes * 2).min(WINDOW_MAX_BYTES),
            false => WINDOW_MIN_BYTES,
        };
        let read = match self.ahead.take() {
            Some((at, task)) if at == start => match self.runtime.block_on(task) {
                Ok(read) => read,
                Err(_) => {
                    return Err(ReadError::Interrupted {
                        doing: format!("read {}", self.object),
                    });
                }
            },
            other => {
                if let Some((_, task)) = other {
                    task.abort();
                }
                let end = self.object_bytes.min(start + self.window_bytes);
                self.runtime.block_on(self.store.get_range(&self.object, start..end))
            }
        };
        let read = read.map_err(|source| ReadError::store(format!("read {}", self.object), source))?;
        let (window, _) = read.ok_or_else(|| ReadError::Missing {
            object: self.object.clone(),
        })?;
        self.window = window;
        self.window_start = start;
        if self.window.is_empty() {
            return Err(ReadError::Damaged {
                object: self.object.clone(),
                problem: "it became shorter while it was read",
            });
        }
        let next = self.window_end();
        if in_sequence && next < self.object_bytes {
            let end = self
                .object_bytes
                .min(next + WINDOW_MAX_BYTES.min(self.window_bytes * 2));
            let (store, object) = (self.store.clone(), self.object.clone());
            let task = self
                .runtime
                .spawn(async move { store.get_range(&object, next..end).await });
            self.ahead = Some((next, task));
        }
        Ok(())
    }
}

impl Drop for RangedObject {
    fn drop(&mut self) {
        if let Some((_, task)) = self.ahead.take() {
            task.abort();
        }
    }
}

impl Read for RangedObject {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.object_bytes || out.is_empty() {
            return Ok(0);
        }
        if self.position < self.window_start || self.position >= self.window_end() {
            self.load()?;
        }
        let from = (self.position - self.window_start) as usize;
        let there = self.window.get(from..).unwrap_or_default();
        let n = there.len().min(out.len());
        if let (Some(out), Some(there)) = (out.get_mut(..n), there.get(..n)) {
            out.copy_from_slice(there);
        }
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for RangedObject {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.object_bytes.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
