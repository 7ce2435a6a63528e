//! The files of a base backup on their way past: length and CRC-32C of each, for the comparison with the server's
//! manifest.

use std::collections::HashMap;

use crc_fast::{CrcAlgorithm, Digest};

use super::server_manifest::Came;

const ZEROS: &[u8] = &[0; 64 * 1024];

/// What has come of one file so far.
pub(super) struct Coming {
    bytes: u64,
    crc: Digest,
}

impl Coming {
    pub(super) fn new() -> Self {
        Self {
            bytes: 0,
            crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc.update(bytes);
    }

    pub(super) fn finish(self) -> Came {
        Came {
            bytes: self.bytes,
            crc32c: self.crc.finalize() as u32,
        }
    }
}

/// What was written of the files of a base backup, one after the other.
#[derive(Default)]
pub struct LaidDown {
    open: Option<(Vec<u8>, Coming)>,
    pub(super) files: HashMap<Vec<u8>, Came>,
}

impl LaidDown {
    /// Begins a file, by its path as the manifest has it.
    pub fn begin(&mut self, path: Vec<u8>) {
        self.open = Some((path, Coming::new()));
    }

    /// Its next bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some((_, coming)) = &mut self.open {
            coming.update(bytes);
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
        if let Some((path, coming)) = self.open.take() {
            self.files.insert(path, coming.finish());
        }
    }
}
