//! A vault in a temporary folder, entries to put into it, and a store that records and fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink};
use strongroom_proto::receipt::{
    BACKUP_RECEIPT_SCHEMA, BackupReceipt, InitiatedBy, Integrity, Method, Operator, ReceiptStatus, SourceFacts,
};
use strongroom_proto::{Attempt, BackupId, BackupType, JobId, TargetKind};
use strongroom_vault::*;
use tokio::runtime::Runtime;

pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A vault with everything that is needed to write to and read from it.
pub(crate) struct Fixture {
    pub(crate) runtime: Runtime,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) vault: Vault,
    pub(crate) writer_key: WriterKey,
    pub(crate) identity_text: String,
    pub(crate) identity: Identity,
    pub(crate) signer: Signer,
    pub(crate) index: Arc<ChunkIndex>,
}

pub(crate) fn local(path: &Path) -> Store {
    Store::open(&StoreConfig {
        url: path.to_str().unwrap().to_owned(),
        s3: None,
    })
    .unwrap()
}

/// A bucket in memory: what a bucket promises, without a server.
pub(crate) fn in_memory(objects: &Arc<InMemory>) -> Store {
    // To make a client takes ten times as long as a backup in memory.
    static BUCKET: LazyLock<Store> = LazyLock::new(|| {
        let settings = S3Settings {
            access_key_id: Some("unused".to_owned()),
            secret_access_key: Some(Secret::new("unused")),
            ..S3Settings::default()
        };
        let config = StoreConfig {
            url: "s3://memory".to_owned(),
            s3: Some(settings),
        };
        Store::open(&config).unwrap()
    });
    let objects: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(objects);
    BUCKET.clone().wrapped(|_| objects)
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::over(|store| store)
    }

    /// A vault in a store that `change` has changed.
    pub(crate) fn over(change: impl FnOnce(Store) -> Store) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault");
        std::fs::create_dir(&path).unwrap();
        Self::in_store(folder, change(local(&path)))
    }

    pub(crate) fn in_store(folder: tempfile::TempDir, store: Store) -> Self {
        let runtime = runtime();
        let (identity_text, recipient) = Identity::generate();
        let (_, second_recipient) = Identity::generate();
        let writer_key = WriterKey::generate();
        let signer = Signer::generate("worker@test").unwrap();
        let new = NewVault {
            recipients: vec![recipient, second_recipient],
            writer_key: &writer_key,
            signers: vec![("worker@test".to_owned(), signer.public_line().unwrap())],
        };
        let vault = runtime.block_on(Vault::create(store, new, at(0))).unwrap();
        Self {
            index: Arc::new(ChunkIndex::new(&vault, &writer_key)),
            identity: Identity::from_file_text(&identity_text).unwrap(),
            identity_text: identity_text.to_string(),
            runtime,
            folder,
            vault,
            writer_key,
            signer,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("vault")
    }

    pub(crate) fn id(number: i64) -> BackupId {
        BackupId::for_job(JobId::fresh(), at(number))
    }

    pub(crate) fn writer(&self, id: &BackupId, attempt: Attempt) -> std::result::Result<BackupWriter, WriteError> {
        BackupWriter::begin(
            &self.vault,
            &self.writer_key,
            Arc::clone(&self.index),
            id.clone(),
            attempt,
            self.runtime.handle().clone(),
        )
    }

    pub(crate) fn write(&self, id: &BackupId, attempt: Attempt, content: &[Item]) -> Sealed {
        let mut writer = self.writer(id, attempt).unwrap();
        put_all(&mut writer, content).unwrap();
        writer.finish().unwrap()
    }

    pub(crate) fn receipt(&self, id: &BackupId, attempt: Attempt, sealed: &Sealed) -> BackupReceipt {
        a_receipt(&self.vault, id, attempt, sealed)
    }

    /// Writes and commits a backup.
    pub(crate) fn back_up(&self, number: i64, content: &[Item]) -> (BackupId, Sealed) {
        let id = Self::id(number);
        let sealed = self.write(&id, Attempt::FIRST, content);
        let receipt = self.receipt(&id, Attempt::FIRST, &sealed);
        let committed = self
            .runtime
            .block_on(self.vault.commit(&receipt, &self.signer))
            .unwrap();
        assert!(matches!(committed, Committed::Ours(_)));
        (id, sealed)
    }

    pub(crate) fn read(&self, id: &BackupId) -> io::Result<Vec<Item>> {
        read(&self.runtime, &self.vault, &self.identity, id)
    }

    /// The paths of all objects, relative to the vault.
    pub(crate) fn objects(&self) -> Vec<String> {
        objects(&self.path())
    }
}

pub(crate) fn a_receipt(vault: &Vault, id: &BackupId, attempt: Attempt, sealed: &Sealed) -> BackupReceipt {
    BackupReceipt {
        schema: BACKUP_RECEIPT_SCHEMA.to_owned(),
        backup_id: id.clone(),
        environment: "test".to_owned(),
        surface: "orders".to_owned(),
        method: Method::LogicalDump,
        started_at: at(1),
        completed_at: at(2),
        status: ReceiptStatus::Success,
        artifacts: sealed.artifacts.clone(),
        integrity: Integrity::UNPROVEN,
        git: None,
        operator: Operator {
            initiated_by: InitiatedBy::Automation,
            principal: "worker@test".to_owned(),
        },
        notes: String::new(),
        vault_id: vault.id(),
        job_id: JobId::fresh(),
        attempt,
        target: "orders-db".parse().unwrap(),
        target_kind: TargetKind::Postgres,
        backup_type: BackupType::Full,
        retention_until: None,
        totals: sealed.totals,
        missing: Vec::new(),
        software: "test".to_owned(),
        source: SourceFacts::default(),
    }
}

pub(crate) fn read(runtime: &Runtime, vault: &Vault, identity: &Identity, id: &BackupId) -> io::Result<Vec<Item>> {
    use strongroom_proto::manifest::EntrySource;
    let reader = runtime.block_on(vault.open_backup(id, identity))?;
    let mut collected = Collector::default();
    reader.replay(&mut collected)?;
    Ok(collected.items)
}

pub(crate) fn objects(vault: &Path) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    walk(vault, &mut found);
    let relative = |path: PathBuf| path.strip_prefix(vault).unwrap().to_str().unwrap().to_owned();
    let mut found: Vec<String> = found.into_iter().map(relative).collect();
    found.sort();
    found
}

/// An entry and its content.
#[derive(Clone, PartialEq)]
pub(crate) struct Item {
    pub(crate) entry: Entry,
    pub(crate) content: Vec<u8>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} with {} bytes", self.entry.path, self.content.len())
    }
}

pub(crate) fn stream(path: &str, content: impl Into<Vec<u8>>) -> Item {
    Item {
        entry: Entry::stream(path, "command-output"),
        content: content.into(),
    }
}

pub(crate) fn file(path: &str, content: impl Into<Vec<u8>>) -> Item {
    Item {
        entry: Entry::bare(path, EntryKind::File),
        content: content.into(),
    }
}

/// Bytes that do not compress; equal for equal seeds.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Lines that compress about as rows of a table do.
pub(crate) fn rows(seed: u64, bytes: usize) -> Vec<u8> {
    let noise = noise(seed, bytes / 8 + 8);
    let mut out = Vec::with_capacity(bytes + 64);
    for (number, part) in noise.chunks(8).enumerate() {
        out.extend_from_slice(format!("{number}\tcustomer-{:?}\tshipped\n", part).as_bytes());
        if out.len() >= bytes {
            break;
        }
    }
    out.truncate(bytes);
    out
}

pub(crate) fn put_all(sink: &mut dyn EntrySink, content: &[Item]) -> io::Result<()> {
    for item in content {
        sink.begin(&item.entry)?;
        for piece in item.content.chunks(60_000) {
            sink.write(piece)?;
        }
        sink.end()?;
    }
    Ok(())
}

/// Keeps what is replayed into it.
#[derive(Default)]
pub(crate) struct Collector {
    pub(crate) items: Vec<Item>,
    is_open: bool,
}

impl EntrySink for Collector {
    fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        assert!(!self.is_open);
        self.is_open = true;
        self.items.push(Item {
            entry: entry.clone(),
            content: Vec::new(),
        });
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert!(self.is_open);
        self.items.last_mut().unwrap().content.extend_from_slice(bytes);
        Ok(())
    }
    fn end(&mut self) -> io::Result<()> {
        assert!(self.is_open);
        self.is_open = false;
        Ok(())
    }
}

/// What happens to a call that changes the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused, and would be again.
    Refused,
    /// It fails before anything is stored; the next try succeeds.
    Lost,
    /// It is done, but the answer is lost.
    AnswerLost,
    /// Something else is stored.
    Altered,
    /// There is no space.
    Full,
    /// A read comes up short, and nothing says so; what changes the store is not touched.
    Short,
}

/// Records every call that changes the store, and fails the one it is told to.
#[derive(Debug)]
pub(crate) struct Meddler {
    inner: Arc<dyn ObjectStore>,
    control: Arc<Control>,
}

#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) calls: Mutex<Vec<String>>,
    /// These, and the calls that only read.
    all: Mutex<Vec<String>>,
    /// The number of the call, from now, and what happens to it.
    pub(crate) fault: Mutex<Option<(usize, Fault)>>,
    /// Reads are counted and fail like calls that change the store.
    pub(crate) counts_reads: AtomicBool,
    /// Creates overwrite, as on a store that ignores the condition.
    pub(crate) overwrites: AtomicBool,
    pub(crate) fails_lists: AtomicBool,
}

impl Control {
    pub(crate) fn wrap(self: &Arc<Self>, store: Store) -> Store {
        let control = Arc::clone(self);
        store.wrapped(|inner| Arc::new(Meddler { inner, control }))
    }

    pub(crate) fn arm(&self, call: usize, fault: Fault) {
        *self.fault.lock().unwrap() = Some((call, fault));
    }

    /// Whether the fault has not come to pass yet.
    pub(crate) fn disarm(&self) -> bool {
        self.fault.lock().unwrap().take().is_some()
    }

    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Notes a call that changes nothing, or something else that happens between calls.
    pub(crate) fn note(&self, call: String) {
        self.all.lock().unwrap().push(call);
    }

    /// Every call, those that only read among them.
    pub(crate) fn take_all(&self) -> Vec<String> {
        self.take_calls();
        std::mem::take(&mut self.all.lock().unwrap())
    }

    /// A call that only reads.
    fn next_read(&self, call: String) -> Option<Fault> {
        if self.counts_reads.load(Ordering::SeqCst) {
            return self.next(call);
        }
        self.note(call);
        None
    }

    fn next(&self, call: String) -> Option<Fault> {
        self.note(call.clone());
        self.calls.lock().unwrap().push(call);
        let mut armed = self.fault.lock().unwrap();
        match armed.take() {
            Some((0, fault)) => Some(fault),
            Some((more, fault)) => {
                *armed = Some((more - 1, fault));
                None
            }
            None => None,
        }
    }
}

fn lost() -> object_store::Error {
    object_store::Error::Generic {
        store: "Meddler",
        source: "the line broke".into(),
    }
}

fn refused(path: &ObjectPath) -> object_store::Error {
    object_store::Error::PermissionDenied {
        path: path.to_string(),
        source: "no".into(),
    }
}

fn full() -> object_store::Error {
    object_store::Error::Generic {
        store: "LocalFileSystem",
        source: Box::new(io::Error::from(io::ErrorKind::StorageFull)),
    }
}

/// The same answer with half of the bytes that it promises.
async fn shorter(found: GetResult, is_head: bool) -> Result<GetResult> {
    use futures::StreamExt;
    let (mut meta, range) = (found.meta.clone(), found.range.clone());
    let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
    let bytes = match is_head {
        true => {
            meta.size /= 2;
            bytes::Bytes::new()
        }
        false => found.bytes().await?,
    };
    let half = bytes.slice(..bytes.len() / 2);
    Ok(GetResult {
        payload: GetResultPayload::Stream(futures::stream::once(async { Ok(half) }).boxed()),
        meta,
        range,
        attributes,
        extensions,
    })
}

impl std::fmt::Display for Meddler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meddler({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Meddler {
    async fn put_opts(&self, path: &ObjectPath, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        if self.control.overwrites.load(Ordering::SeqCst) {
            opts.mode = PutMode::Overwrite;
        }
        match self.control.next(format!("put {path}")) {
            None | Some(Fault::Short) => self.inner.put_opts(path, payload, opts).await,
            Some(Fault::Refused) => Err(refused(path)),
            Some(Fault::Lost) => Err(lost()),
            Some(Fault::Full) => Err(full()),
            Some(Fault::AnswerLost) => {
                self.inner.put_opts(path, payload, opts).await?;
                Err(lost())
            }
            Some(Fault::Altered) => {
                let mut bytes: Vec<u8> = payload.iter().flat_map(|part| part.to_vec()).collect();
                *bytes.last_mut().unwrap() ^= 1;
                self.inner.put_opts(path, bytes.into(), opts).await
            }
        }
    }
    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, opts).await
    }
    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let doing = if options.head { "head" } else { "get" };
        match self.control.next_read(format!("{doing} {path}")) {
            None => self.inner.get_opts(path, options).await,
            Some(Fault::Refused) => Err(refused(path)),
            Some(Fault::Short | Fault::Altered) => {
                shorter(self.inner.get_opts(path, options).await?, doing == "head").await
            }
            Some(Fault::Lost | Fault::AnswerLost | Fault::Full) => Err(lost()),
        }
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<ObjectPath>>) -> BoxStream<'static, Result<ObjectPath>> {
        use futures::StreamExt;
        let control = Arc::clone(&self.control);
        let noted = move |path: &Result<ObjectPath>| {
            if let Ok(path) = path {
                control.note(format!("delete {path}"));
            }
        };
        self.inner.delete_stream(paths.inspect(noted).boxed())
    }
    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        use futures::StreamExt;
        let listed = format!("list {}", prefix.map(ToString::to_string).unwrap_or_default());
        let fault = self.control.next_read(listed);
        if self.control.fails_lists.load(Ordering::SeqCst) {
            return futures::stream::once(async { Err(lost()) }).boxed();
        }
        match fault {
            None => self.inner.list(prefix),
            Some(Fault::Refused) => {
                let error = refused(prefix.unwrap_or(&ObjectPath::default()));
                futures::stream::once(async { Err(error) }).boxed()
            }
            // A list that breaks off says so: the error comes after a part of it.
            Some(_) => {
                let broken = futures::stream::once(async { Err(lost()) });
                self.inner.list(prefix).take(1).chain(broken).boxed()
            }
        }
    }
    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        match self.control.next_read(format!(
            "folders {}",
            prefix.map(ToString::to_string).unwrap_or_default()
        )) {
            None => self.inner.list_with_delimiter(prefix).await,
            Some(_) => Err(lost()),
        }
    }
    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, mut options: CopyOptions) -> Result<()> {
        if self.control.overwrites.load(Ordering::SeqCst) {
            options.mode = object_store::CopyMode::Overwrite;
        }
        match self.control.next(format!("link {to}")) {
            None | Some(Fault::Altered | Fault::Short) => self.inner.copy_opts(from, to, options).await,
            Some(Fault::Refused) => Err(refused(to)),
            Some(Fault::Lost) => Err(lost()),
            Some(Fault::Full) => Err(full()),
            Some(Fault::AnswerLost) => {
                self.inner.copy_opts(from, to, options).await?;
                Err(lost())
            }
        }
    }
}
