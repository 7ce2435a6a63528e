//! The stages behind a writer: compress (many threads), fill packs (one), seal and store them (a few).
//!
//! Memory is bounded by the queues alone: [`COMPRESS_QUEUE_CHUNKS`] and a chunk a thread before compression,
//! [`FRAME_QUEUE_CHUNKS`] and a frame a thread after it, one pack being filled and [`STORE_THREADS`] being sealed or
//! uploaded. The first error of any stage stops all of them and is what the writer's next call returns. Dropping the
//! pipeline stops the stages without storing what is unfinished.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use bytes::Bytes;
use strongroom_proto::{ChunkId, Sha256Digest};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::codec::{EncodeError, Encoder, LEVEL};
use crate::error::WriteError;
use crate::keys::Recipient;
use crate::layout;
use crate::pack::{PackBuilder, PackedChunk, SealedPack};
use crate::store::Store;

/// Chunks waiting for a compressing thread.
const COMPRESS_QUEUE_CHUNKS: usize = 4;
/// Compressed chunks waiting to be sealed.
const FRAME_QUEUE_CHUNKS: usize = 2;
/// Threads that compress, at most; there is one a core.
const COMPRESS_THREADS: usize = 8;
/// How much compression gives way to the machine's other programs, as `nice` does: where a database wants the
/// processors at the same moment it gets three quarters of them.
const COMPRESS_NICE: i32 = 5;
/// Packs that are sealed and stored at the same time.
const STORE_THREADS: usize = 3;

/// A pack in the store.
pub(crate) struct StoredPack {
    pub(crate) digest: Sha256Digest,
    pub(crate) sealed_bytes: u64,
    pub(crate) chunks: Vec<PackedChunk>,
}

/// What all stages share.
struct Shared {
    failure: Mutex<Option<WriteError>>,
    stop: watch::Sender<bool>,
    buffers: Mutex<Vec<Vec<u8>>>,
    pack_buffers: Mutex<Vec<Vec<u8>>>,
    /// Of compression.
    level: AtomicI32,
    /// Packs in the store that nobody has asked for yet.
    stored: Mutex<Vec<StoredPack>>,
    #[cfg(test)]
    tamper: Option<fn(&mut Vec<u8>)>,
}

impl Shared {
    fn fail(&self, error: WriteError) {
        locked(&self.failure).get_or_insert(error);
        self.stop.send_replace(true);
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    fn buffer(&self) -> Vec<u8> {
        locked(&self.buffers).pop().unwrap_or_default()
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        locked(&self.buffers).push(buffer);
    }
}

/// No code runs under these locks that could leave what they guard half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct RawChunk {
    chunk: ChunkId,
    raw: Vec<u8>,
}

struct Frame {
    chunk: ChunkId,
    raw_bytes: u32,
    frame: Vec<u8>,
}

/// The stages; started with the first chunk.
pub(crate) struct Pipeline {
    store: Store,
    recipients: Arc<[Recipient]>,
    runtime: Handle,
    shared: Arc<Shared>,
    stages: Option<Stages>,
}

struct Stages {
    chunks: SyncSender<RawChunk>,
    compressors: Vec<JoinHandle<()>>,
    filler: JoinHandle<()>,
    storers: Vec<JoinHandle<()>>,
}

impl Pipeline {
    pub(crate) fn new(store: Store, recipients: Arc<[Recipient]>, runtime: Handle) -> Self {
        Self {
            store,
            recipients,
            runtime,
            shared: Arc::new(Shared {
                failure: Mutex::new(None),
                stop: watch::Sender::new(false),
                buffers: Mutex::new(Vec::new()),
                pack_buffers: Mutex::new(Vec::new()),
                level: AtomicI32::new(LEVEL),
                stored: Mutex::new(Vec::new()),
                #[cfg(test)]
                tamper: None,
            }),
            stages: None,
        }
    }

    /// Compresses at this level what has not been submitted yet.
    pub(crate) fn set_level(&self, level: i32) {
        self.shared.level.store(level, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn tampered(mut self, tamper: fn(&mut Vec<u8>)) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.tamper = Some(tamper);
        }
        self
    }

    /// Empty memory for a chunk.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.shared.buffer()
    }

    /// Hands a chunk to the stages; waits while they are busy with earlier ones.
    pub(crate) fn submit(&mut self, chunk: ChunkId, raw: Vec<u8>) -> Result<(), WriteError> {
        if self.shared.is_stopped() {
            return Err(self.failure());
        }
        if self.stages.is_none() {
            self.stages = Some(self.start().map_err(|source| WriteError::Thread { source })?);
        }
        let sent = self
            .stages
            .as_ref()
            .map(|stages| stages.chunks.send(RawChunk { chunk, raw }));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.failure()),
        }
    }

    /// The packs that have come into the store since the last call.
    pub(crate) fn take_stored(&self) -> Vec<StoredPack> {
        std::mem::take(&mut *locked(&self.shared.stored))
    }

    /// Seals and stores what is left and says which packs came into the store since they were last taken. Nothing may
    /// be submitted any more.
    pub(crate) fn finish(&mut self) -> Result<Vec<StoredPack>, WriteError> {
        let Some(stages) = self.stages.take() else {
            return Ok(self.take_stored());
        };
        if stages.join() && !self.shared.is_stopped() {
            Ok(self.take_stored())
        } else {
            Err(self.failure())
        }
    }

    fn failure(&self) -> WriteError {
        let reported = locked(&self.shared.failure).take();
        match reported {
            Some(error) => error,
            None if self.shared.is_stopped() => WriteError::GivenUp,
            None => {
                self.shared.stop.send_replace(true);
                WriteError::StageEnded
            }
        }
    }

    fn start(&self) -> std::io::Result<Stages> {
        let (chunks, chunks_out) = sync_channel(COMPRESS_QUEUE_CHUNKS);
        let (frames, frames_out) = sync_channel(FRAME_QUEUE_CHUNKS);
        // A rendezvous: the next pack is filled only when somebody has taken this one.
        let (packs, packs_out) = sync_channel(0);
        let shared = &self.shared;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let packs_out = Arc::new(Mutex::new(packs_out));
        let mut storers = Vec::with_capacity(STORE_THREADS);
        for _ in 0..STORE_THREADS {
            let (shared, store, runtime) = (Arc::clone(shared), self.store.clone(), self.runtime.clone());
            let packs_out = Arc::clone(&packs_out);
            let run = move || seal_and_store(&shared, &store, &runtime, &packs_out);
            storers.push(Builder::new().name("vault-store".to_owned()).spawn(run)?);
        }
        let filler = {
            let (shared, recipients) = (Arc::clone(shared), Arc::clone(&self.recipients));
            let run = move || fill(&shared, &recipients, &frames_out, &packs);
            Builder::new().name("vault-fill".to_owned()).spawn(run)?
        };
        // Only the compressing threads hold the receiving end: when the last of them is gone, sending fails.
        let chunks_out = Arc::new(Mutex::new(chunks_out));
        let threads = cores.min(COMPRESS_THREADS);
        let mut compressors = Vec::with_capacity(threads);
        for _ in 0..threads {
            let (shared, chunks_out, frames) =
                (Arc::clone(shared), Arc::clone(&chunks_out), SyncSender::clone(&frames));
            let run = move || {
                // On Linux of this thread alone.
                let _ = rustix::process::nice(COMPRESS_NICE);
                compress(&shared, &chunks_out, &frames);
            };
            compressors.push(Builder::new().name("vault-compress".to_owned()).spawn(run)?);
        }
        Ok(Stages {
            chunks,
            compressors,
            filler,
            storers,
        })
    }
}

impl Stages {
    /// Lets every stage come to its end, and says whether each did without a panic.
    fn join(self) -> bool {
        drop(self.chunks);
        let threads = self.compressors.into_iter().chain([self.filler]).chain(self.storers);
        // All of them are waited for, also after one that panicked.
        let ends: Vec<bool> = threads.map(|thread| thread.join().is_ok()).collect();
        ends.into_iter().all(|well| well)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
        if let Some(stages) = self.stages.take() {
            // Quick: each thread ends after the chunk at hand, and an upload is abandoned at once.
            stages.join();
        }
    }
}

fn compress(shared: &Shared, chunks: &Mutex<Receiver<RawChunk>>, frames: &SyncSender<Frame>) {
    let mut encoder = None;
    loop {
        let received = locked(chunks).recv();
        let Ok(RawChunk { chunk, raw }) = received else { return };
        if shared.is_stopped() {
            return;
        }
        let mut frame = shared.buffer();
        if let Err(error) = encode(shared, &mut encoder, chunk, &raw, &mut frame) {
            return shared.fail(error);
        }
        let frame = Frame {
            chunk,
            raw_bytes: raw.len() as u32,
            frame,
        };
        shared.give_back(raw);
        if frames.send(frame).is_err() {
            return;
        }
    }
}

fn encode(
    shared: &Shared,
    encoder: &mut Option<Encoder>,
    chunk: ChunkId,
    raw: &[u8],
    frame: &mut Vec<u8>,
) -> Result<(), WriteError> {
    let failed = |source| WriteError::Compress { chunk, source };
    let encoder = match encoder {
        Some(encoder) => encoder,
        None => {
            let new = Encoder::new(shared.level.load(Ordering::Relaxed)).map_err(failed)?;
            let new = encoder.insert(new);
            #[cfg(test)]
            {
                new.tamper = shared.tamper;
            }
            new
        }
    };
    encoder.encode(raw, frame).map_err(|error| match error {
        EncodeError::Failed(source) => failed(source),
        EncodeError::DoesNotDecode => WriteError::CodecCorrupt { chunk },
    })
}

fn fill(shared: &Shared, recipients: &[Recipient], frames: &Receiver<Frame>, packs: &SyncSender<PackBuilder>) {
    let mut filling: Option<PackBuilder> = None;
    while let Ok(Frame {
        chunk,
        raw_bytes,
        frame,
    }) = frames.recv()
    {
        if shared.is_stopped() {
            return;
        }
        if let Some(full) = filling.take_if(|pack| pack.is_full_for(frame.len()))
            && packs.send(full).is_err()
        {
            return;
        }
        let open = match filling.take() {
            Some(open) => Ok(open),
            None => PackBuilder::begin(recipients, locked(&shared.pack_buffers).pop().unwrap_or_default()),
        };
        let appended = open.and_then(|mut open| {
            open.append(chunk, raw_bytes, &frame)?;
            Ok(open)
        });
        match appended {
            Ok(open) => filling = Some(open),
            Err(source) => return shared.fail(seal_error(source)),
        }
        shared.give_back(frame);
    }
    // The compressing threads are done, or given up; only in the first case the rest is worth storing.
    if let (Some(last), false) = (filling, shared.is_stopped()) {
        // Nobody takes it only where storing failed, which is reported already.
        let _ = packs.send(last);
    }
}

fn seal_error(source: std::io::Error) -> WriteError {
    WriteError::Seal {
        object: "a pack",
        source,
    }
}

fn seal_and_store(shared: &Shared, store: &Store, runtime: &Handle, packs: &Mutex<Receiver<PackBuilder>>) {
    let mut stop = shared.stop.subscribe();
    loop {
        let received = locked(packs).recv();
        let Ok(pack) = received else { return };
        if shared.is_stopped() {
            return;
        }
        let SealedPack { digest, bytes, chunks } = match pack.seal() {
            Ok(sealed) => sealed,
            Err(source) => return shared.fail(seal_error(source)),
        };
        let bytes = Bytes::from(bytes);
        let object = layout::pack(&digest);
        let put = runtime.block_on(async {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => None,
                put = store.put(&object, bytes.clone()) => Some(put),
            }
        });
        match put {
            None => return,
            Some(Err(source)) => {
                return shared.fail(WriteError::Store {
                    doing: "store a pack",
                    source,
                });
            }
            Some(Ok(())) => {}
        }
        locked(&shared.stored).push(StoredPack {
            digest,
            sealed_bytes: bytes.len() as u64,
            chunks,
        });
        // The next pack goes into the same memory; a client that still holds the bytes keeps them.
        if bytes.is_unique() {
            locked(&shared.pack_buffers).push(bytes.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Identity, WriterKey, parse_recipient};
    use crate::store::StoreConfig;

    fn pipeline(folder: &std::path::Path, runtime: &tokio::runtime::Runtime) -> Pipeline {
        let store = Store::open(&StoreConfig {
            url: folder.to_str().unwrap().to_owned(),
            s3: None,
        });
        let recipients = vec![parse_recipient(&Identity::generate().1).unwrap()];
        Pipeline::new(store.unwrap(), recipients.into(), runtime.handle().clone())
    }

    #[test]
    fn a_corrupting_compressor_stops_the_backup_before_anything_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let ids = WriterKey::generate().chunk_ids();
        let mut pipeline = pipeline(folder.path(), &runtime).tampered(|frame| frame[10] ^= 1);
        let mut outcome = Ok(());
        for number in 0_u32..100 {
            let raw = number.to_le_bytes().repeat(10_000);
            outcome = pipeline.submit(ids.id(&raw), raw);
            if outcome.is_err() {
                break;
            }
        }
        assert!(matches!(outcome, Err(WriteError::CodecCorrupt { .. })), "{outcome:?}");
        assert!(matches!(
            pipeline.submit(ids.id(b"x"), b"x".to_vec()),
            Err(WriteError::GivenUp)
        ));
        assert!(pipeline.finish().is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn compression_gives_way_to_other_programs_and_nothing_else_does() {
        static NICE: AtomicI32 = AtomicI32::new(i32::MIN);
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let ids = WriterKey::generate().chunk_ids();
        // Called by the thread that compresses, whose priority is asked for; nothing is changed.
        let mut pipeline = pipeline(folder.path(), &runtime)
            .tampered(|_| NICE.store(rustix::process::getpriority_process(None).unwrap(), Ordering::Relaxed));
        let before = rustix::process::getpriority_process(None).unwrap();
        pipeline.submit(ids.id(b"x"), b"x".to_vec()).unwrap();
        pipeline.finish().unwrap();
        assert_eq!(NICE.load(Ordering::Relaxed), (before + COMPRESS_NICE).min(19));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn a_single_corrupted_chunk_is_caught_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let ids = WriterKey::generate().chunk_ids();
        let mut pipeline = pipeline(folder.path(), &runtime).tampered(|frame| frame.truncate(3));
        pipeline.submit(ids.id(b"x"), b"x".to_vec()).unwrap();
        assert!(matches!(pipeline.finish(), Err(WriteError::CodecCorrupt { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
