//! Reading ahead of the writer: a source fills batches on its own thread while the writer works on earlier ones.
//!
//! A source that waits for the disk, the network or the kernel would otherwise have the writer wait too, and the other way round.
//! Memory is bounded by [`BATCH_BYTES`] and [`BATCHES`]. What asks the writer something waits for its answer and is in
//! order with everything before it.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use strongroom_proto::manifest::{BackupSink, Entry, EntrySink, FileVersion};

/// Content in a batch.
const BATCH_BYTES: usize = 512 * 1024;
/// Calls in a batch; one takes about as much memory as an entry.
const BATCH_CALLS: usize = 512;
/// Batches that wait for the writer.
const BATCHES: usize = 4;

/// One call, without its content.
enum Call {
    Begin(Box<Entry>),
    BeginFile(Box<Entry>, FileVersion),
    BeginPaged(Box<Entry>, u64),
    /// So many of the batch's bytes.
    Write(usize),
    Page(u64, usize),
    Hole(u64),
    End,
    PutUnchanged(Box<Entry>, FileVersion),
    BeginOverlay(Box<Entry>, u64),
    Note,
    LeaveNote(Vec<u8>),
}

/// What the writer answers to the last call of a batch.
enum Answer {
    Yes(bool),
    Note(Option<Vec<u8>>),
}

#[derive(Default)]
struct Batch {
    calls: Vec<Call>,
    bytes: Vec<u8>,
}

/// The sink that a source fills.
struct Ahead {
    batch: Batch,
    batches: SyncSender<Batch>,
    answers: Receiver<Answer>,
    /// Emptied batches, for their memory.
    emptied: Receiver<Batch>,
}

/// Runs `take` with a sink that is ahead of `writer`, which gets every call in order. An error of the writer reaches
/// `take` with one of its next calls, and is what this returns if `take` does not.
///
/// # Errors
/// What `take` or, made into its error by `failed`, the writer says.
pub(crate) fn read_ahead<W, T, E>(
    writer: &mut W,
    take: impl FnOnce(&mut dyn BackupSink) -> Result<T, E>,
    failed: impl FnOnce(io::Error) -> E,
) -> Result<T, E>
where
    W: BackupSink + Send,
{
    std::thread::scope(|scope| {
        let (batches, batches_out) = sync_channel(BATCHES);
        let (answers_in, answers) = sync_channel(1);
        let (emptied_in, emptied) = sync_channel(BATCHES + 2);
        let writing = scope.spawn(move || {
            while let Ok(mut batch) = batches_out.recv() {
                drain(&mut batch, writer, &answers_in)?;
                // There is room for all there are.
                let _ = emptied_in.try_send(batch);
            }
            Ok(())
        });
        let mut sink = Ahead {
            batch: Batch::default(),
            batches,
            answers,
            emptied,
        };
        let taken = take(&mut sink);
        // Of a source that failed nothing more is worth writing.
        let sent = if taken.is_ok() { sink.send() } else { Ok(()) };
        drop(sink);
        let written = writing
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the writer of the backup panicked")));
        match (taken, written, sent) {
            // The source failed because the writer had: the writer knows why.
            (Err(_), Err(error), _) | (Ok(_), Err(error), _) | (Ok(_), Ok(()), Err(error)) => Err(failed(error)),
            (taken, Ok(()), _) => taken,
        }
    })
}

fn drain(batch: &mut Batch, writer: &mut impl BackupSink, answers: &SyncSender<Answer>) -> io::Result<()> {
    let Batch { calls, bytes } = batch;
    let mut rest = bytes.as_slice();
    let mut next = |length: usize| {
        let (now, later) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        rest = later;
        now
    };
    // Nobody waits only where the source has given up.
    let answer = |answer| {
        let _ = answers.send(answer);
    };
    for call in calls.drain(..) {
        match call {
            Call::Begin(entry) => writer.begin(&entry)?,
            Call::BeginFile(entry, version) => writer.begin_file(&entry, &version)?,
            Call::BeginPaged(entry, length) => writer.begin_paged(&entry, length)?,
            Call::Write(length) => writer.write(next(length))?,
            Call::Page(offset, length) => writer.page(offset, next(length))?,
            Call::Hole(length) => writer.hole(length)?,
            Call::End => writer.end()?,
            Call::LeaveNote(note) => writer.leave_note(note),
            Call::PutUnchanged(entry, version) => answer(Answer::Yes(writer.put_unchanged(&entry, &version)?)),
            Call::BeginOverlay(entry, length) => answer(Answer::Yes(writer.begin_overlay(&entry, length)?)),
            Call::Note => answer(Answer::Note(writer.note()?)),
        }
    }
    bytes.clear();
    Ok(())
}

fn writer_ended() -> io::Error {
    io::Error::other("the writer of the backup has failed")
}

impl Ahead {
    fn call(&mut self, call: Call) -> io::Result<()> {
        self.batch.calls.push(call);
        if self.batch.calls.len() >= BATCH_CALLS || self.batch.bytes.len() >= BATCH_BYTES {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        let next = self.emptied.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.batch, next);
        self.batches.send(full).map_err(|_| writer_ended())
    }

    fn ask(&mut self, call: Call) -> io::Result<Answer> {
        self.batch.calls.push(call);
        self.send()?;
        self.answers.recv().map_err(|_| writer_ended())
    }

    fn ask_whether(&mut self, call: Call) -> io::Result<bool> {
        match self.ask(call)? {
            Answer::Yes(yes) => Ok(yes),
            Answer::Note(_) => Err(io::Error::other("the writer answered another question")),
        }
    }

    /// Content in pieces that fit into batches.
    fn content(&mut self, bytes: &[u8], call: impl Fn(usize, usize) -> Call) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let room = BATCH_BYTES.saturating_sub(self.batch.bytes.len()).max(1);
            let now = rest.get(..room).unwrap_or(rest);
            self.batch.bytes.extend_from_slice(now);
            self.call(call(done, now.len()))?;
            done += now.len();
        }
        Ok(())
    }
}

impl EntrySink for Ahead {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        self.call(Call::Begin(Box::new(entry.clone())))
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.content(bytes, |_, length| Call::Write(length))
    }
    fn hole(&mut self, bytes: u64) -> io::Result<()> {
        self.call(Call::Hole(bytes))
    }
    fn end(&mut self) -> io::Result<()> {
        self.call(Call::End)
    }
}

impl BackupSink for Ahead {
    fn put_unchanged(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<bool> {
        self.ask_whether(Call::PutUnchanged(Box::new(entry.clone()), *version))
    }
    fn begin_file(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<()> {
        self.call(Call::BeginFile(Box::new(entry.clone()), *version))
    }
    fn begin_paged(&mut self, entry: &Entry, bytes: u64) -> io::Result<()> {
        self.call(Call::BeginPaged(Box::new(entry.clone()), bytes))
    }
    fn begin_overlay(&mut self, entry: &Entry, bytes: u64) -> io::Result<bool> {
        self.ask_whether(Call::BeginOverlay(Box::new(entry.clone()), bytes))
    }
    fn page(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Pages stay whole: a batch takes a little more than its size.
        self.batch.bytes.extend_from_slice(bytes);
        self.call(Call::Page(offset, bytes.len()))
    }
    fn note(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.ask(Call::Note)? {
            Answer::Note(note) => Ok(note),
            Answer::Yes(_) => Err(io::Error::other("the writer answered another question")),
        }
    }
    fn leave_note(&mut self, note: Vec<u8>) {
        // Whether it is sent shows with the next call, or at the end.
        self.batch.calls.push(Call::LeaveNote(note));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it is called with.
    #[derive(Default)]
    struct Log {
        calls: Vec<String>,
        content: Vec<u8>,
        fails_at: Option<usize>,
    }

    impl Log {
        fn note_call(&mut self, call: String) -> io::Result<()> {
            if self.fails_at == Some(self.calls.len()) {
                return Err(io::Error::other("no space is left"));
            }
            self.calls.push(call);
            Ok(())
        }
    }

    impl EntrySink for Log {
        fn begin(&mut self, entry: &Entry) -> io::Result<()> {
            self.note_call(format!("begin {}", entry.path))
        }
        fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.content.extend_from_slice(bytes);
            // Pieces may be others.
            match bytes.is_empty() || self.calls.last().is_some_and(|call| call == "write") {
                true => Ok(()),
                false => self.note_call("write".to_owned()),
            }
        }
        fn hole(&mut self, bytes: u64) -> io::Result<()> {
            self.note_call(format!("hole {bytes}"))
        }
        fn end(&mut self) -> io::Result<()> {
            self.note_call("end".to_owned())
        }
    }

    impl BackupSink for Log {
        fn put_unchanged(&mut self, entry: &Entry, _: &FileVersion) -> io::Result<bool> {
            self.note_call(format!("unchanged? {}", entry.path))?;
            Ok(entry.path.starts_with("same"))
        }
        fn begin_file(&mut self, entry: &Entry, version: &FileVersion) -> io::Result<()> {
            self.note_call(format!("file {} {}", entry.path, version.inode))
        }
        fn begin_paged(&mut self, entry: &Entry, bytes: u64) -> io::Result<()> {
            self.note_call(format!("paged {} {bytes}", entry.path))
        }
        fn begin_overlay(&mut self, entry: &Entry, bytes: u64) -> io::Result<bool> {
            self.note_call(format!("overlay? {} {bytes}", entry.path))?;
            Ok(true)
        }
        fn page(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.content.extend_from_slice(bytes);
            self.note_call(format!("page {offset} {}", bytes.len()))
        }
        fn note(&mut self) -> io::Result<Option<Vec<u8>>> {
            self.note_call("note?".to_owned())?;
            Ok(Some(b"before".to_vec()))
        }
        fn leave_note(&mut self, note: Vec<u8>) {
            self.calls.push(format!("leave {}", String::from_utf8_lossy(&note)));
        }
    }

    fn entry(path: &str) -> Entry {
        Entry::bare(path, strongroom_proto::manifest::EntryKind::File)
    }

    fn version(inode: u64) -> FileVersion {
        FileVersion {
            device: 1,
            inode,
            bytes: 0,
            mtime: (0, 0),
            ctime: (0, 0),
        }
    }

    /// Every kind of call, and far more content than a batch holds.
    fn source(sink: &mut dyn BackupSink) -> io::Result<()> {
        assert_eq!(sink.note()?.as_deref(), Some(b"before".as_slice()));
        for number in 0..2_000_u64 {
            sink.begin_file(&entry("new"), &version(number))?;
            sink.write(&number.to_le_bytes())?;
            sink.end()?;
        }
        assert!(!sink.put_unchanged(&entry("other"), &version(1))?);
        assert!(sink.put_unchanged(&entry("same"), &version(1))?);
        sink.begin(&entry("large"))?;
        let content: Vec<u8> = (0..3 * BATCH_BYTES + 17).map(|i| (i % 251) as u8).collect();
        sink.write(&content)?;
        sink.hole(9)?;
        sink.write(&[])?;
        sink.end()?;
        sink.begin_paged(&entry("table"), 8_192)?;
        sink.write(&content[..8_192])?;
        sink.end()?;
        assert!(sink.begin_overlay(&entry("table"), 16_384)?);
        sink.page(8_192, &content[7..8_199])?;
        sink.end()?;
        sink.leave_note(b"after".to_vec());
        Ok(())
    }

    #[test]
    fn the_writer_gets_every_call_in_order() {
        let mut direct = Log::default();
        source(&mut direct).unwrap();
        let mut ahead = Log::default();
        read_ahead(&mut ahead, source, |error| error).unwrap();
        assert_eq!(direct.calls, ahead.calls);
        assert!(direct.content == ahead.content, "other content arrived");
    }

    #[test]
    fn an_error_of_the_writer_is_what_is_told_wherever_it_happens() {
        let calls = {
            let mut log = Log::default();
            source(&mut log).unwrap();
            log.calls.len()
        };
        // The last call, the note for the next backup, cannot fail.
        for fails_at in [0, 1, 2, 5_999, 6_000, 6_001, 6_002, 6_003, calls - 2] {
            let mut log = Log {
                fails_at: Some(fails_at),
                ..Log::default()
            };
            let error = read_ahead(&mut log, source, |error| error).unwrap_err();
            assert_eq!(error.to_string(), "no space is left", "at call {fails_at}");
            assert_eq!(log.calls.len(), fails_at);
        }
    }

    #[test]
    fn an_error_of_the_source_is_told_as_it_is() {
        let mut log = Log::default();
        let outcome: Result<(), String> = read_ahead(&mut log, |_| Err("gone".to_owned()), |error| error.to_string());
        assert_eq!(outcome.unwrap_err(), "gone");
    }
}
