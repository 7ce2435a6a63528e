//! The files of a base backup while they are laid down: their CRC-32C, for the comparison with the server's manifest.

use std::collections::HashMap;

use crc_fast::{CrcAlgorithm, Digest};

use super::server_manifest::Came;

const ZEROS: &[u8] = &[0; 64 * 1024];

/// What was written of the files of a base backup, one after the other.
#[derive(Default)]
pub struct LaidDown {
    open: Option<(Vec<u8>, Digest, u64)>,
    pub(super) files: HashMap<Vec<u8>, Came>,
}

impl LaidDown {
    /// Begins a file, by its path as the manifest has it.
    pub fn begin(&mut self, path: Vec<u8>) {
        self.open = Some((path, Digest::new(CrcAlgorithm::Crc32Iscsi), 0));
    }

    /// Its next bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some((_, crc, length)) = &mut self.open {
            crc.update(bytes);
            *length += bytes.len() as u64;
        }
    }

    /// Its next bytes are zeros.
    pub fn hole(&mut self, mut bytes: u64) {
        while bytes > 0 {
            let piece = bytes.min(ZEROS.len() as u64);
            self.write(ZEROS.get(..piece as usize).unwrap_or_default());
            bytes -= piece;
        }
    }

    /// Ends it; nothing where what ends is no file.
    pub fn end(&mut self) {
        if let Some((path, crc, bytes)) = self.open.take() {
            let crc32c = crc.finalize() as u32;
            self.files.insert(path, Came { bytes, crc32c });
        }
    }
}
