//! Streams (a command's output, a database's dumps) as files: how they are tried, and restored where nothing takes them
//! as streams.

use std::collections::BTreeSet;
use std::io;

use strongroom_proto::Sha256Digest;
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink, EntrySource, Listed};

/// A backup of streams, seen as a tree of plain files that only their owner reads.
pub struct StreamsAsFiles<'a>(pub &'a dyn EntrySource);

/// The mode of what was a stream.
const STREAM_MODE: u32 = 0o100_600;
/// The mode of the directories above it.
const FOLDER_MODE: u32 = 0o040_700;

fn as_file(entry: &Entry) -> Entry {
    match entry.kind {
        EntryKind::Stream => Entry {
            kind: EntryKind::File,
            mode: Some(STREAM_MODE),
            media: None,
            ..entry.clone()
        },
        _ => entry.clone(),
    }
}

impl StreamsAsFiles<'_> {
    /// The directories that the streams' names speak of. There are few streams.
    fn folders(&self) -> io::Result<Vec<Entry>> {
        let mut folders = BTreeSet::new();
        self.0.for_each_entry(&mut |listed| {
            let mut path = listed.entry.path.as_str();
            while let Some((folder, _)) = path.rsplit_once('/') {
                folders.insert(folder.to_owned());
                path = folder;
            }
            Ok(())
        })?;
        let entry = |path: String| Entry {
            mode: Some(FOLDER_MODE),
            ..Entry::bare(path, EntryKind::Directory)
        };
        Ok(folders.into_iter().map(entry).collect())
    }
}

/// What a directory comes to: nothing.
fn empty(entry: &Entry) -> Listed<'_> {
    Listed {
        entry,
        bytes: 0,
        hole_bytes: 0,
        // BLAKE3 of nothing.
        blake3: Sha256Digest::from_bytes([
            0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49, 0x9b, 0xcb,
            0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
        ]),
    }
}

impl EntrySource for StreamsAsFiles<'_> {
    fn for_each_entry(&self, each: &mut dyn FnMut(Listed<'_>) -> io::Result<()>) -> io::Result<()> {
        for folder in self.folders()? {
            each(empty(&folder))?;
        }
        self.0.for_each_entry(&mut |listed| {
            each(Listed {
                entry: &as_file(listed.entry),
                ..listed
            })
        })
    }

    fn copy_content(&self, path: &str, out: &mut dyn io::Write) -> io::Result<()> {
        self.0.copy_content(path, out)
    }

    fn replay_where(
        &self,
        wanted: &mut dyn FnMut(Listed<'_>) -> io::Result<bool>,
        sink: &mut dyn EntrySink,
    ) -> io::Result<()> {
        for folder in self.folders()? {
            if wanted(empty(&folder))? {
                sink.begin(&folder)?;
                sink.end()?;
            }
        }
        let mut wanted = |listed: Listed<'_>| {
            wanted(Listed {
                entry: &as_file(listed.entry),
                ..listed
            })
        };
        self.0.replay_where(&mut wanted, &mut FileSink(sink))
    }
}

/// Passes streams on as files.
struct FileSink<'a>(&'a mut dyn EntrySink);

impl EntrySink for FileSink<'_> {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.0.begin(&as_file(entry))
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write(bytes)
    }
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.0.hole(bytes)
    }
    fn end(&mut self) -> io::Result<()> {
        self.0.end()
    }
}
