//! Chunks on their way out of packs: read, opened, decoded and checked by several threads, in the order they are
//! needed.
//!
//! The reading thread plans ahead: it names the chunks of coming entries, neighbours in a pack together, until
//! [`AHEAD_BYTES`] of content are on their way or wait to be used. A chunk is held from then until the last of the
//! extents planned so far has been used. So memory is bounded whatever a backup holds, and a pack is not read again
//! for each of the small files in it.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use strongroom_proto::ChunkId;
use zstd::bulk::Decompressor;

use crate::age_file::{self, Opened};
use crate::chunk_index::ChunkIdHasher;
use crate::codec;
use crate::error::ReadError;
use crate::layout;
use crate::manifest::Part;
use crate::reader::{BackupReader, Place, Planned};

/// Content that is on its way or held.
const AHEAD_BYTES: usize = 48 * 1024 * 1024;
/// Stored bytes that are read and opened at once.
const RUN_BYTES: u64 = 1024 * 1024;
/// Threads that open packs; more than cores, because a disk takes its time and a bucket may be far away.
const THREADS_MIN: usize = 4;
const THREADS_MAX: usize = 8;
/// The beginning of a pack, in which its header lies but for hundreds of recipients.
const HEADER_FIRST_BYTES: u64 = 4 * 1024;
/// Packs whose keys are kept.
const OPENED_PACKS: usize = 4096;
/// Memory that waits to be used again.
const SPARE_BUFFERS: usize = 8;
/// The parts of entries planned ahead, where they have little content.
const AHEAD_ENTRIES: usize = 4096;

type ByChunk<T> = HashMap<ChunkId, T, BuildHasherDefault<ChunkIdHasher>>;

/// Opens packs and takes chunks out of them.
pub(crate) struct Opener<'a> {
    reader: &'a BackupReader,
    packs: Mutex<HashMap<u32, Arc<Opened>>>,
}

impl<'a> Opener<'a> {
    pub(crate) fn new(reader: &'a BackupReader) -> Self {
        Self {
            reader,
            packs: Mutex::new(HashMap::new()),
        }
    }

    fn object(&self, pack: u32) -> String {
        let digest = self.reader.packs.get(pack as usize);
        digest.map(layout::pack).unwrap_or_default()
    }

    fn read(&self, object: &str, range: std::ops::Range<u64>) -> Result<(bytes::Bytes, u64), ReadError> {
        let read = self
            .reader
            .runtime
            .block_on(self.reader.vault.store().get_range(object, range));
        read.map_err(|source| ReadError::store(format!("read {object}"), source))?
            .ok_or_else(|| ReadError::Missing {
                object: object.to_owned(),
            })
    }

    fn pack(&self, number: u32) -> Result<Arc<Opened>, ReadError> {
        if let Some(opened) = locked(&self.packs).get(&number) {
            return Ok(Arc::clone(opened));
        }
        let object = self.object(number);
        let mut header_bytes = HEADER_FIRST_BYTES;
        let opened = loop {
            let (first, file_bytes) = self.read(&object, 0..header_bytes)?;
            let is_all = header_bytes >= file_bytes.min(age_file::HEADER_MAX_BYTES as u64);
            match age_file::open(&first, file_bytes, &self.reader.identity) {
                Ok(opened) => break Arc::new(opened),
                Err(age::DecryptError::NoMatchingKeys) => {
                    return Err(ReadError::WrongIdentity {
                        object,
                        source: Box::new(age::DecryptError::NoMatchingKeys),
                    });
                }
                Err(source) if is_all => return Err(ReadError::malformed(object, source)),
                Err(_) => header_bytes = age_file::HEADER_MAX_BYTES as u64,
            }
        };
        let mut packs = locked(&self.packs);
        if packs.len() >= OPENED_PACKS {
            packs.clear();
        }
        packs.insert(number, Arc::clone(&opened));
        Ok(opened)
    }

    /// The frames of chunks that lie one after the other in a pack, opened: their bytes, and where the first begins.
    fn frames(&self, pack: u32, from: u64, to: u64) -> Result<(Vec<u8>, usize), ReadError> {
        let opened = self.pack(pack)?;
        let object = self.object(pack);
        let content_bytes = opened.content_bytes().unwrap_or(0);
        if to > content_bytes {
            return Err(ReadError::Damaged {
                object,
                problem: "it is shorter than its index says",
            });
        }
        let segments = opened.segments(from..to);
        let (sealed, _) = self.read(&object, segments.start..segments.end)?;
        // No copy: nobody else holds these bytes.
        let mut bytes = Vec::from(sealed);
        opened
            .open_segments(segments, &mut bytes)
            .map_err(|source| ReadError::malformed(object, source))?;
        Ok((bytes, segments.lead))
    }

    fn decode(
        &self,
        place: &Place,
        frame: &[u8],
        decoder: &mut Decompressor<'static>,
        raw: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let decoded = codec::decode(decoder, frame, place.raw_bytes as usize, raw);
        if decoded.is_ok() && self.reader.ids.id(raw) == place.chunk {
            Ok(())
        } else {
            let digest = self.reader.packs.get(place.pack as usize);
            Err(ReadError::ChunkCorrupt {
                chunk: place.chunk,
                pack: digest.map(ToString::to_string).unwrap_or_default(),
            })
        }
    }

    /// The content of a single chunk, checked.
    pub(crate) fn open_one(&self, place: &Place) -> Result<Vec<u8>, ReadError> {
        let end = place.offset + u64::from(place.stored_bytes);
        let (frames, lead) = self.frames(place.pack, place.offset, end)?;
        let frame = frames.get(lead..lead + place.stored_bytes as usize).unwrap_or_default();
        let mut decoder = new_decoder()?;
        let mut raw = Vec::new();
        self.decode(place, frame, &mut decoder, &mut raw)?;
        Ok(raw)
    }
}

fn new_decoder() -> Result<Decompressor<'static>, ReadError> {
    Decompressor::new().map_err(|source| ReadError::malformed("zstd", source))
}

/// Chunks that lie one after the other in a pack.
struct Run {
    pack: u32,
    from: u64,
    to: u64,
    places: Vec<Place>,
}

/// What the threads share.
struct Desk {
    state: Mutex<State>,
    /// Something is to be done, or nothing ever will be.
    work: Condvar,
    /// Something has been done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    runs: VecDeque<Run>,
    results: ByChunk<Result<Vec<u8>, ReadError>>,
    buffers: Vec<Vec<u8>>,
    is_over: bool,
}

impl State {
    /// Memory for content, used before where it is about as large: what is held is counted by its content.
    fn buffer(&mut self, bytes: usize) -> Vec<u8> {
        let fits = |buffer: &Vec<u8>| buffer.capacity() >= bytes && buffer.capacity() <= bytes + bytes / 2;
        match self.buffers.iter().position(fits) {
            Some(at) => self.buffers.swap_remove(at),
            None => Vec::new(),
        }
    }
}

/// Hands out the content of chunks in the order they are needed.
pub(crate) struct Fetcher<'a> {
    reader: &'a BackupReader,
    desk: &'a Desk,
    /// Entries that are planned, wholly or in part, and not yet handed out.
    planned: VecDeque<Planned>,
    /// The place up to which is planned: an entry of `planned`, and a part of it.
    next_entry: usize,
    next_part: usize,
    is_all_read: bool,
    /// The entry that is being handed out has parts that are not planned yet; their chunks, in order.
    rest: VecDeque<ChunkId>,
    run: Option<Run>,
    /// How many planned extents each chunk still serves, and its length.
    uses: ByChunk<(u32, usize)>,
    ahead_bytes: usize,
    current: Option<(ChunkId, Vec<u8>)>,
}

impl<'a> Fetcher<'a> {
    /// Runs `work` with threads that fetch for it.
    pub(crate) fn run(reader: &BackupReader, work: impl FnOnce(&mut Fetcher<'_>) -> io::Result<()>) -> io::Result<()> {
        let desk = Desk {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        };
        let opener = Opener::new(reader);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            let over = Over(&desk);
            for _ in 0..cores.clamp(THREADS_MIN, THREADS_MAX) {
                let spawned = std::thread::Builder::new()
                    .name("vault-fetch".to_owned())
                    .spawn_scoped(scope, || fetch(&opener, &desk));
                spawned?;
            }
            let result = work(&mut Fetcher {
                reader,
                desk: &desk,
                planned: VecDeque::new(),
                next_entry: 0,
                next_part: 0,
                is_all_read: false,
                rest: VecDeque::new(),
                run: None,
                uses: ByChunk::default(),
                ahead_bytes: 0,
                current: None,
            });
            drop(over);
            result
        })
    }

    /// The next entry; the content of its extents is then to be asked for in order, each followed by a `release`.
    pub(crate) fn next_entry(
        &mut self,
        read: &mut dyn FnMut() -> io::Result<Option<Planned>>,
    ) -> io::Result<Option<Planned>> {
        self.plan(read)?;
        let Some(entry) = self.planned.pop_front() else {
            return Ok(None);
        };
        if self.next_entry == 0 {
            // It is planned in part only.
            let rest = entry.parts.get(self.next_part..).unwrap_or_default();
            self.rest = rest.iter().filter_map(chunk_of).collect();
            self.next_part = 0;
        } else {
            self.next_entry -= 1;
        }
        Ok(Some(entry))
    }

    /// The content of a chunk.
    pub(crate) fn content(
        &mut self,
        chunk: &ChunkId,
        read: &mut dyn FnMut() -> io::Result<Option<Planned>>,
    ) -> io::Result<&[u8]> {
        if self.current.as_ref().is_none_or(|(held, _)| held != chunk) {
            self.plan(read)?;
            self.put_back();
            let content = self.wait_for(chunk)?;
            self.current = Some((*chunk, content));
        }
        Ok(self
            .current
            .as_ref()
            .map(|(_, content)| content.as_slice())
            .unwrap_or_default())
    }

    /// Says that one extent of the chunk has been used.
    pub(crate) fn release(&mut self, chunk: &ChunkId) {
        if let Some((uses, _)) = self.uses.get_mut(chunk) {
            *uses -= 1;
        }
    }

    /// Lets go of the chunk handed out last, or keeps it for extents that are planned.
    fn put_back(&mut self) {
        let Some((chunk, content)) = self.current.take() else {
            return;
        };
        let mut state = locked(&self.desk.state);
        match self.uses.get(&chunk) {
            Some((0, bytes)) => {
                self.ahead_bytes -= bytes;
                self.uses.remove(&chunk);
                if state.buffers.len() < SPARE_BUFFERS {
                    state.buffers.push(content);
                }
            }
            _ => {
                state.results.insert(chunk, Ok(content));
            }
        }
    }

    fn wait_for(&mut self, chunk: &ChunkId) -> Result<Vec<u8>, ReadError> {
        let mut state = locked(&self.desk.state);
        loop {
            if let Some(result) = state.results.remove(chunk) {
                return result;
            }
            if !self.uses.contains_key(chunk) {
                return Err(ReadError::ChunkUnknown { chunk: *chunk });
            }
            if state.is_over {
                return Err(ReadError::Interrupted {
                    doing: "read packs".to_owned(),
                });
            }
            if let Some(run) = self.run.take() {
                state.runs.push_back(run);
                self.desk.work.notify_one();
            }
            state = self.desk.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Plans until enough is on its way.
    fn plan(&mut self, read: &mut dyn FnMut() -> io::Result<Option<Planned>>) -> io::Result<()> {
        while self.ahead_bytes < AHEAD_BYTES {
            if let Some(chunk) = self.rest.pop_front() {
                self.schedule(&chunk)?;
                continue;
            }
            let chunk = match self.planned.get(self.next_entry) {
                Some(entry) => {
                    let part = entry.parts.get(self.next_part);
                    self.next_part += 1;
                    match part {
                        Some(part) => chunk_of(part),
                        None => {
                            self.next_entry += 1;
                            self.next_part = 0;
                            None
                        }
                    }
                }
                None if self.is_all_read || self.planned.len() >= AHEAD_ENTRIES => return Ok(()),
                None => {
                    match read()? {
                        Some(entry) => self.planned.push_back(entry),
                        None => self.is_all_read = true,
                    }
                    None
                }
            };
            if let Some(chunk) = chunk {
                self.schedule(&chunk)?;
            }
        }
        // At least the entry that comes next is known, however much is ahead.
        if self.planned.is_empty() && !self.is_all_read {
            match read()? {
                Some(entry) => self.planned.push_back(entry),
                None => self.is_all_read = true,
            }
        }
        Ok(())
    }

    fn schedule(&mut self, chunk: &ChunkId) -> Result<(), ReadError> {
        if let Some((uses, _)) = self.uses.get_mut(chunk) {
            *uses += 1;
            return Ok(());
        }
        let place = self.reader.place(chunk)?;
        self.uses.insert(*chunk, (1, place.raw_bytes as usize));
        self.ahead_bytes += place.raw_bytes as usize;
        let end = place.offset.saturating_add(u64::from(place.stored_bytes));
        if let Some(run) = &mut self.run
            && run.pack == place.pack
            && run.to == place.offset
            && end - run.from <= RUN_BYTES
        {
            run.to = end;
            run.places.push(place);
            return Ok(());
        }
        let run = Run {
            pack: place.pack,
            from: place.offset,
            to: end,
            places: vec![place],
        };
        if let Some(full) = self.run.replace(run) {
            locked(&self.desk.state).runs.push_back(full);
            self.desk.work.notify_one();
        }
        Ok(())
    }
}

const fn chunk_of(part: &Part) -> Option<ChunkId> {
    match part {
        Part::Extent(extent) => Some(extent.chunk),
        Part::Hole(_) => None,
    }
}

/// Tells the threads that nothing more will come, also where the work panicked.
struct Over<'a>(&'a Desk);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        locked(&self.0.state).is_over = true;
        self.0.work.notify_all();
        self.0.done.notify_all();
    }
}

/// No code runs under these locks that could leave what they guard half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fetch(opener: &Opener<'_>, desk: &Desk) {
    // A thread that ends for any other reason ends all: nobody waits for what will not come.
    let over = Over(desk);
    let Ok(mut decoder) = new_decoder() else { return };
    loop {
        let mut state = locked(&desk.state);
        let run = loop {
            if state.is_over {
                return;
            }
            if let Some(run) = state.runs.pop_front() {
                break run;
            }
            state = desk.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        match opener.frames(run.pack, run.from, run.to) {
            Err(error) => {
                // The consumer comes to the first of them first, and ends there.
                let chunk = run.places.first().map(|place| place.chunk);
                let mut state = locked(&desk.state);
                state.results.extend(chunk.map(|chunk| (chunk, Err(error))));
            }
            Ok((frames, lead)) => {
                for place in &run.places {
                    let from = lead + (place.offset - run.from) as usize;
                    let frame = frames.get(from..from + place.stored_bytes as usize).unwrap_or_default();
                    let mut raw = locked(&desk.state).buffer(place.raw_bytes as usize);
                    let decoded = opener.decode(place, frame, &mut decoder, &mut raw);
                    locked(&desk.state).results.insert(place.chunk, decoded.map(|()| raw));
                    desk.done.notify_one();
                }
            }
        }
        desk.done.notify_one();
        let _ = &over;
    }
}
