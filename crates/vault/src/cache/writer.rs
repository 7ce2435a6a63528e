//! Writing a cache file.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_proto::VaultId;

use super::record::{CachedFile, write_record};
use super::{BLOCK_BYTES, BLOCK_MAX_BYTES, FILE_ID_BYTES, NOTE, Seal};
use crate::keys::WriterKey;

/// What a writer that was killed left beside the cache is removed after so long.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// A note is no longer than this.
const NOTE_BYTES: usize = 64 * 1024 * 1024;
/// What the extension of a cache that is being written begins with.
const TEMPORARY: &str = "new-";

/// Writes the cache for the next backup, beside the one in use until it is whole.
pub(crate) struct CacheWriter {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` after an error: a cache that cannot be written costs time, not the backup.
    file: Option<File>,
    seal: Seal,
    block: Vec<u8>,
}

impl CacheWriter {
    pub(crate) fn create(path: &Path, vault: VaultId, writer_key: &WriterKey) -> Self {
        let mut file_id = [0; FILE_ID_BYTES];
        rand::fill(&mut file_id);
        let mut writer = Self {
            path: path.to_owned(),
            temporary: path.with_extension(format!("{TEMPORARY}{}", uuid::Uuid::new_v4())),
            file: None,
            seal: Seal::new(vault, writer_key).of_file(file_id),
            block: Vec::new(),
        };
        let created = writer.begin();
        writer.noting(created);
        writer
    }

    fn begin(&mut self) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        if let Some(folder) = self.path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            if let Err(error) = self.remove_left_behind(folder) {
                tracing::debug!(path = %folder.display(), %error, "what killed writers left behind could not be removed");
            }
        }
        let mut options = std::fs::OpenOptions::new();
        // It names files that only their owner may be able to list.
        let mut file = options.write(true).create_new(true).mode(0o600).open(&self.temporary)?;
        file.write_all(&self.seal.header)?;
        self.file = Some(file);
        Ok(())
    }

    /// Removes what writers of this cache that were killed left beside it.
    fn remove_left_behind(&self, folder: &Path) -> io::Result<()> {
        let ours = self.path.with_extension(TEMPORARY);
        let Some(prefix) = ours.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let suffix = name.to_str().and_then(|name| name.strip_prefix(prefix));
            if suffix.is_none_or(|suffix| uuid::Uuid::try_parse(suffix).is_err()) {
                continue;
            }
            // One that a backup at work writes to is younger; so is one from a future that a clock jumped back from.
            let age = entry.metadata()?.modified()?.elapsed();
            if age.is_ok_and(|age| age > LEFT_BEHIND_AFTER) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn noting(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(path = %self.path.display(), %error, "the file cache cannot be written; the next backup reads every file again");
            if self.file.take().is_some() {
                let _ = std::fs::remove_file(&self.temporary);
            }
        }
    }

    pub(crate) fn put(&mut self, path: &[u8], file: &CachedFile) {
        if self.file.is_none() {
            return;
        }
        write_record(&mut self.block, path, file);
        if self.block.len() >= BLOCK_BYTES {
            let flushed = self.flush();
            self.noting(flushed);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.block.len() > BLOCK_MAX_BYTES {
            self.block.clear();
            return Ok(());
        }
        let mac = self.seal.next_mac(&self.block);
        file.write_all(&(self.block.len() as u32).to_le_bytes())?;
        file.write_all(mac.as_bytes())?;
        file.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    /// Puts it in place of the one before, with this note.
    pub(crate) fn finish(mut self, note: Option<Vec<u8>>) {
        let mut flushed = match self.block.is_empty() {
            true => Ok(()),
            false => self.flush(),
        };
        match note {
            Some(note) if note.len() > NOTE_BYTES => {
                tracing::warn!(
                    bytes = note.len(),
                    "a note to the next backup is too long to be kept; it has to do without it"
                );
            }
            Some(note) if flushed.is_ok() => {
                self.block.extend_from_slice(&NOTE);
                self.block.extend_from_slice(&note);
                flushed = self.flush();
            }
            _ => {}
        }
        self.noting(flushed);
        if let Some(file) = self.file.take() {
            // Else a power loss may leave an empty one in the place of the last.
            let renamed = file
                .sync_data()
                .and_then(|()| std::fs::rename(&self.temporary, &self.path));
            if let Err(error) = renamed {
                let _ = std::fs::remove_file(&self.temporary);
                tracing::warn!(path = %self.path.display(), %error, "the file cache cannot be put in place");
            }
        }
    }
}

impl Drop for CacheWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::CacheReader;
    use super::super::tests::write;
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_removed_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let (vault, key) = (VaultId::fresh(), WriterKey::generate());
        let id = uuid::Uuid::new_v4();
        let hours = |hours: u64| std::time::SystemTime::now() - Duration::from_secs(hours * 3_600);
        let names = [
            (format!("cache.new-{id}"), 25),
            (format!("cache.new-{}", uuid::Uuid::new_v4()), 23),
            (format!("other.new-{id}"), 25),
            ("cache.new-notes".to_owned(), 25),
        ];
        for (name, age) in &names {
            let left = File::create(folder.path().join(name)).unwrap();
            left.set_modified(hours(*age)).unwrap();
        }
        write(&path, vault, &key, 10);
        let is_there = |name: &str| folder.path().join(name).exists();
        let left: Vec<bool> = names.iter().map(|(name, _)| is_there(name)).collect();
        assert_eq!(left, [false, true, true, true]);
        assert!(CacheReader::open(&path, vault, &key).is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        write(&blocked.join("cache"), VaultId::fresh(), &WriterKey::generate(), 10);
    }
}
