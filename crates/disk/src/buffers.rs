//! Aligned memory, used again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What disks and file systems ask addresses, lengths and places in files to be multiples of; most ask for less.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Written or read at once.
pub(crate) const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Memory that large files are written from and read into, 4 MiB each; as many as were ever written or read at once.
#[derive(Debug, Clone, Default)]
pub struct Buffers(Arc<Mutex<Vec<Buffer>>>);

impl Buffers {
    pub(crate) fn take(&self) -> Buffer {
        self.spare().pop().unwrap_or_else(Buffer::new)
    }

    pub(crate) fn put_back(&self, buffer: Buffer) {
        self.spare().push(buffer);
    }

    /// No code runs under this lock that could leave what it guards half-changed.
    pub(crate) fn spare(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    /// Where in the memory the first address lies that a disk takes.
    pub(crate) start: usize,
    /// Bytes in it that are not written yet.
    pub(crate) filled: usize,
}

impl Buffer {
    pub(crate) fn new() -> Self {
        let memory = vec![0; BUFFER_BYTES + BLOCK_BYTES];
        // Were there no such address, the file system would refuse this one, and the page cache be used.
        let start = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self {
            memory,
            start,
            filled: 0,
        }
    }

    pub(crate) fn window(&mut self) -> &mut [u8] {
        let window = self.memory.get_mut(self.start..self.start + BUFFER_BYTES);
        window.unwrap_or_default()
    }

    /// Takes as many of the bytes as there is room for.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> usize {
        let filled = self.filled;
        let free = self.window().get_mut(filled..).unwrap_or_default();
        let taken = bytes.len().min(free.len());
        if let (Some(free), Some(bytes)) = (free.get_mut(..taken), bytes.get(..taken)) {
            free.copy_from_slice(bytes);
        }
        self.filled += taken;
        taken
    }

    pub(crate) fn first(&mut self, bytes: usize) -> &[u8] {
        self.window().get(..bytes).unwrap_or_default()
    }

    pub(crate) fn drop_first(&mut self, bytes: usize) {
        let filled = self.filled;
        self.window().copy_within(bytes..filled, 0);
        self.filled -= bytes;
    }
}
