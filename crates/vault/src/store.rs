//! The store under a vault: a folder or a bucket, seen through `object_store`.
//!
//! Every put is create-if-absent and confirmed: by the server's own SHA-256 check on S3, by reading back on a file
//! system. [`Store::barrier`] makes everything put before it durable; on S3 each answered put already is.

mod folder;
mod sync;

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, CopyMode, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use ring::digest;
use serde::Deserialize;
use strongroom_disk::Buffers;
use strongroom_proto::Sha256Digest;
use uuid::Uuid;
use zeroize::Zeroizing;

use self::folder::Folder;
use self::sync::Sync;
use crate::bucket::Bucket;
use crate::error::StoreError;
use crate::layout;

/// How long one request to S3 is retried in all.
const RETRY_SECONDS: u64 = 60;
/// How long one request may take: a whole pack over a slow line.
const REQUEST_SECONDS: u64 = 180;
/// How often a put is tried again after a failure whose outcome is unknown; each try is create-if-absent.
const PUT_TRIES: u32 = 3;
/// The pause between them.
const PUT_PAUSE: Duration = Duration::from_millis(500);
/// Objects of at least this size are asked for once more after an S3 put, to compare their size.
const HEAD_AFTER_PUT_BYTES: usize = 1024 * 1024;

/// A text that no log, error or `Debug` output shows.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Hides this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }
    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a vault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// `file:///abs/path`, a plain path, or `s3://bucket/prefix`.
    pub url: String,
    /// How to reach the bucket.
    pub s3: Option<S3Settings>,
}

/// How to reach a bucket. What is left out is taken as the store's defaults; without an access key here, the usual
/// variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, …) count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Settings {
    /// The service's URL; AWS where it is left out.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region; `us-east-1` where it is left out.
    #[serde(default)]
    pub region: Option<String>,
    /// The access key's id.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// The access key.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// Whether an endpoint without TLS may be used.
    #[serde(default)]
    pub allow_http: bool,
}

/// A folder or bucket that holds a vault, or is to hold one.
#[derive(Clone)]
pub struct Store {
    objects: Option<Arc<dyn ObjectStore>>,
    folder: Option<PathBuf>,
    buffers: Buffers,
    sync: Arc<Sync>,
    bucket: Option<Bucket>,
    url: String,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url).finish_non_exhaustive()
    }
}

/// How a create-if-absent put ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    Now,
    Before,
}

impl Store {
    /// Opens the store. Nothing is read or written yet, and a folder that does not exist is not made.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        if let Some(bucket) = config.url.strip_prefix("s3://") {
            return Self::open_s3(bucket, config.s3.clone().unwrap_or_default());
        }
        let path = match config.url.split_once("://") {
            Some(("file", _)) => url::Url::parse(&config.url)
                .ok()
                .and_then(|url| url.to_file_path().ok())
                .ok_or(StoreError::BadUrl {
                    rule: "file:///absolute/path is expected",
                })?,
            Some(_) => {
                return Err(StoreError::BadUrl {
                    rule: "file:///absolute/path, a path, or s3://bucket/prefix is expected",
                });
            }
            None if config.url.is_empty() => {
                return Err(StoreError::BadUrl {
                    rule: "file:///absolute/path, a path, or s3://bucket/prefix is expected",
                });
            }
            None => PathBuf::from(&config.url),
        };
        let folder_error = |source| StoreError::Folder {
            path: path.clone(),
            source,
        };
        let folder = std::path::absolute(&path).map_err(folder_error)?;
        let url = url::Url::from_directory_path(&folder).map_err(|()| StoreError::BadUrl {
            rule: "file:///absolute/path is expected",
        })?;
        let mut store = Self {
            objects: None,
            url: url.as_str().trim_end_matches('/').to_owned(),
            folder: Some(folder),
            buffers: Buffers::default(),
            sync: Arc::default(),
            bucket: None,
        };
        store.open_folder()?;
        Ok(store)
    }

    fn open_s3(bucket_and_prefix: &str, settings: S3Settings) -> Result<Self, StoreError> {
        let (bucket, prefix) = bucket_and_prefix.split_once('/').unwrap_or((bucket_and_prefix, ""));
        let prefix = prefix.trim_matches('/');
        if bucket.is_empty() || bucket_and_prefix.contains(['@', '?', '#']) {
            return Err(StoreError::BadUrl {
                rule: "s3://bucket/prefix is expected, with keys in the settings and not in the URL",
            });
        }
        // The process may have installed one already; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = match settings.access_key_id {
            Some(_) => AmazonS3Builder::new(),
            // What everybody's tools take: AWS_ACCESS_KEY_ID and its like.
            None => AmazonS3Builder::from_env(),
        };
        let region_of_env = builder.get_config_value(&AmazonS3ConfigKey::Region);
        let region = settings.region.or(region_of_env);
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        let mut builder = builder
            .with_bucket_name(bucket)
            .with_region(&region)
            .with_allow_http(settings.allow_http)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_client_options(
                ClientOptions::new()
                    .with_allow_http(settings.allow_http)
                    .with_connect_timeout(Duration::from_secs(5))
                    .with_timeout(Duration::from_secs(REQUEST_SECONDS)),
            )
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    max_backoff: Duration::from_secs(5),
                    ..BackoffConfig::default()
                },
                // The time is the limit; the first tries follow one another within milliseconds.
                max_retries: 10_000,
                retry_timeout: Duration::from_secs(RETRY_SECONDS),
            });
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(id) = &settings.access_key_id {
            builder = builder.with_access_key_id(id);
        }
        if let Some(key) = &settings.secret_access_key {
            builder = builder.with_secret_access_key(key.expose());
        }
        let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
        let url = if prefix.is_empty() {
            format!("s3://{bucket}")
        } else {
            format!("s3://{bucket}/{prefix}")
        };
        let s3 = builder.build().map_err(|source| StoreError::Configure {
            url: url.clone(),
            source: Box::new(source),
        })?;
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let bucket = Bucket {
            url: format!("{}/{bucket}", endpoint.trim_end_matches('/')),
            region,
            prefix: prefix.to_owned(),
            credentials: Arc::clone(s3.credentials()),
            allow_http: settings.allow_http,
        };
        let objects: Arc<dyn ObjectStore> = if prefix.is_empty() {
            Arc::new(s3)
        } else {
            Arc::new(PrefixStore::new(s3, Path::from(prefix)))
        };
        Ok(Self {
            objects: Some(objects),
            folder: None,
            buffers: Buffers::default(),
            sync: Arc::default(),
            bucket: Some(bucket),
            url,
        })
    }

    /// The store's URL, without any key.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same store with its objects seen through `wrap`, which may record, delay or fail calls. For tests.
    pub fn wrapped(self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Self {
        Self {
            objects: self.objects.map(wrap),
            ..self
        }
    }

    /// The bucket this is, where it is one.
    pub(crate) const fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// Makes the folder of a local vault, readable by its owner only.
    pub(crate) fn make_folder(&mut self) -> Result<(), StoreError> {
        if let (Some(folder), None) = (&self.folder, &self.objects) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| StoreError::Folder {
                    path: folder.clone(),
                    source,
                })?;
            self.open_folder()?;
        }
        Ok(())
    }

    fn open_folder(&mut self) -> Result<(), StoreError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let folder_error = |source| StoreError::Folder {
            path: folder.clone(),
            source,
        };
        match std::fs::metadata(folder) {
            Ok(found) if !found.is_dir() => return Err(folder_error(io::ErrorKind::NotADirectory.into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(folder_error(error)),
        }
        let files = Folder::open(folder, self.buffers.clone()).map_err(folder_error)?;
        self.sync.begin(folder).map_err(folder_error)?;
        self.objects = Some(Arc::new(files));
        Ok(())
    }

    fn objects(&self) -> Result<&Arc<dyn ObjectStore>, StoreError> {
        self.objects.as_ref().ok_or_else(|| StoreError::Folder {
            path: self.folder.clone().unwrap_or_default(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Whether the store can hold a vault's objects at all, that is, whether its folder exists.
    pub(crate) const fn exists(&self) -> bool {
        self.objects.is_some()
    }

    /// Stores an object under a name nobody else uses for other content, and confirms it.
    pub(crate) async fn put(&self, object: &str, bytes: Bytes) -> Result<(), StoreError> {
        match self.create(object, bytes.clone()).await? {
            Created::Now => self.confirm(object, &bytes).await,
            // Our own earlier try may have landed although its answer was lost.
            Created::Before if self.holds(object, &bytes).await? => Ok(()),
            Created::Before => Err(StoreError::Exists {
                object: object.to_owned(),
            }),
        }
    }

    /// Makes an object appear whole and durable at once, if it is not there: the commit of a receipt.
    ///
    /// Everything put before it is durable before it appears. On a file system the bytes are staged, made durable and
    /// then linked, so that a crash leaves either no object or all of it.
    pub(crate) async fn put_commit(&self, object: &str, bytes: Bytes) -> Result<Created, StoreError> {
        if self.folder.is_none() {
            let created = self.create(object, bytes.clone()).await?;
            if created == Created::Now {
                self.confirm(object, &bytes).await?;
            }
            return Ok(created);
        }
        let staged = format!("{}/{}", layout::STAGING_FOLDER, Uuid::new_v4());
        self.put(&staged, bytes).await?;
        self.barrier().await?;
        let linked = self
            .objects()?
            .copy_opts(
                &Path::from(staged.as_str()),
                &Path::from(object),
                CopyOptions::new().with_mode(CopyMode::Create),
            )
            .await;
        let created = match linked {
            Ok(()) => Created::Now,
            Err(object_store::Error::AlreadyExists { .. }) => Created::Before,
            Err(error) => return Err(classify("put", object, error)),
        };
        // Also where it was there before: whoever linked it may not have come to its barrier.
        self.barrier().await?;
        if let Err(error) = self.delete(&staged).await {
            tracing::debug!(object = %staged, error = %error, "a staged copy was left behind; it is harmless");
        }
        Ok(created)
    }

    async fn create(&self, object: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let path = Path::from(object);
        let mut tries_left = PUT_TRIES;
        loop {
            tries_left -= 1;
            let payload = PutPayload::from_bytes(bytes.clone());
            let put = self
                .objects()?
                .put_opts(&path, payload, PutOptions::from(PutMode::Create))
                .await;
            match put {
                Ok(_) => return Ok(Created::Now),
                Err(object_store::Error::AlreadyExists { .. }) => return Ok(Created::Before),
                Err(error) => {
                    let error = classify("put", object, error);
                    // Most failures were retried below already; this is for those whose outcome is unknown, a put
                    // that timed out among them.
                    if tries_left == 0 || !error.is_retryable() {
                        return Err(error);
                    }
                    tokio::time::sleep(PUT_PAUSE).await;
                }
            }
        }
    }

    async fn confirm(&self, object: &str, bytes: &Bytes) -> Result<(), StoreError> {
        if self.folder.is_some() {
            return match self.holds(object, bytes).await? {
                true => Ok(()),
                false => Err(StoreError::Differs {
                    object: object.to_owned(),
                }),
            };
        }
        if bytes.len() < HEAD_AFTER_PUT_BYTES {
            return Ok(());
        }
        let path = Path::from(object);
        let found = self
            .objects()?
            .head(&path)
            .await
            .map_err(|error| classify("head", object, error))?;
        if found.size == bytes.len() as u64 {
            Ok(())
        } else {
            Err(StoreError::Differs {
                object: object.to_owned(),
            })
        }
    }

    /// Whether the object's bytes are exactly these.
    async fn holds(&self, object: &str, bytes: &Bytes) -> Result<bool, StoreError> {
        let path = Path::from(object);
        let found = match self.objects()?.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(classify("read back", object, error)),
        };
        if found.meta.size != bytes.len() as u64 {
            return Ok(false);
        }
        let rest = bytes.clone();
        each_block(object, found, self.buffers.clone(), rest, |rest, block| {
            match rest.get(..block.len()) {
                Some(expected) if expected == block => {
                    let _ = rest.split_to(block.len());
                    true
                }
                _ => false,
            }
        })
        .await
        .map(|(rest, all_equal)| all_equal && rest.is_empty())
    }

    /// The object's bytes, where it exists; refused before reading where they are more than `limit_bytes`.
    pub(crate) async fn get(&self, object: &str, limit_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let path = Path::from(object);
        let found = match self.objects()?.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(classify("get", object, error)),
        };
        if found.meta.size > limit_bytes {
            return Err(StoreError::TooLarge {
                object: object.to_owned(),
                bytes: found.meta.size,
                limit_bytes,
            });
        }
        let bytes = found.bytes().await.map_err(|error| classify("get", object, error))?;
        Ok(Some(bytes))
    }

    /// A part of the object and the size of all of it, where it exists. The part may end early at the object's end.
    pub(crate) async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Option<(Bytes, u64)>, StoreError> {
        let path = Path::from(object);
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(range)));
        let found = match self.objects()?.get_opts(&path, options).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(classify("get", object, error)),
        };
        let size = found.meta.size;
        let bytes = found.bytes().await.map_err(|error| classify("get", object, error))?;
        Ok(Some((bytes, size)))
    }

    /// The size of the object in bytes, where it exists.
    ///
    /// An error is an error and never an absence; nor is a folder that has lost its vault, e.g. by being unmounted.
    pub(crate) async fn size(&self, object: &str) -> Result<Option<u64>, StoreError> {
        match self.objects()?.head(&Path::from(object)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => self.check_is_there().map(|()| None),
            Err(error) => Err(classify("head", object, error)),
        }
    }

    /// SHA-256 and size of the object, where it exists, read in blocks.
    pub(crate) async fn digest(&self, object: &str) -> Result<Option<(Sha256Digest, u64)>, StoreError> {
        let path = Path::from(object);
        let found = match self.objects()?.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(classify("get", object, error)),
        };
        let state = (digest::Context::new(&digest::SHA256), 0_u64);
        let ((context, size), _) = each_block(object, found, self.buffers.clone(), state, |(context, size), block| {
            context.update(block);
            *size += block.len() as u64;
            true
        })
        .await?;
        Ok(Some((finished(context), size)))
    }

    /// The paths of all objects under a folder.
    ///
    /// An error is an error and never an empty list; nor is a folder that has lost its vault, e.g. by being unmounted.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        Ok(self
            .list_sizes(folder)
            .await?
            .into_iter()
            .map(|(path, _)| path)
            .collect())
    }

    /// The same with their sizes in bytes; those of the whole store where the folder is empty.
    pub(crate) async fn list_sizes(&self, folder: &str) -> Result<Vec<(String, u64)>, StoreError> {
        self.list_as(folder, |found| (found.location.to_string(), found.size))
            .await
    }

    /// How many objects of a folder were not finished, and their bytes: what [`list`](Self::list) leaves out. A writer is
    /// about to finish them, or was killed.
    pub(crate) async fn unfinished(&self) -> Result<(u64, u64), StoreError> {
        let Some(root) = self.folder.clone() else {
            return Ok((0, 0));
        };
        self.check_is_there()?;
        let path = root.clone();
        let counted = tokio::task::spawn_blocking(move || folder::unfinished(&root)).await;
        let counted = counted.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
        counted.map_err(|source| StoreError::Folder { path, source })
    }

    /// The same with when they were stored, by the store's clock.
    pub(crate) async fn list_times(&self, folder: &str) -> Result<Vec<(String, DateTime<Utc>)>, StoreError> {
        self.list_as(folder, |found| (found.location.to_string(), found.last_modified))
            .await
    }

    async fn list_as<T>(&self, folder: &str, each: impl Fn(ObjectMeta) -> T) -> Result<Vec<T>, StoreError> {
        self.check_is_there()?;
        let prefix = Path::from(folder);
        let found = self.objects()?.list(Some(&prefix)).map_ok(each).try_collect().await;
        let found = found.map_err(|error| classify("list", folder, error))?;
        // Nor is one that lost it in the middle.
        self.check_is_there()?;
        Ok(found)
    }

    /// The folders in a folder by name; one that was emptied may be among them.
    pub(crate) async fn list_folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        self.check_is_there()?;
        let prefix = Path::from(folder);
        let found = self.objects()?.list_with_delimiter(Some(&prefix)).await;
        let found = found.map_err(|error| classify("list", folder, error))?;
        self.check_is_there()?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(found.common_prefixes.iter().filter_map(name).collect())
    }

    /// Whether any object lies under a folder.
    pub(crate) async fn has_any(&self, folder: &str) -> Result<bool, StoreError> {
        self.check_is_there()?;
        let prefix = Path::from(folder);
        let first = self.objects()?.list(Some(&prefix)).try_next().await;
        let first = first.map_err(|error| classify("list", folder, error))?;
        self.check_is_there()?;
        Ok(first.is_some())
    }

    /// A folder that lost its vault, e.g. by being unmounted, is not an empty one.
    fn check_is_there(&self) -> Result<(), StoreError> {
        let Some(root) = &self.folder else { return Ok(()) };
        std::fs::metadata(root.join(layout::VAULT))
            .map(drop)
            .map_err(|source| StoreError::Folder {
                path: root.clone(),
                source,
            })
    }

    pub(crate) async fn delete(&self, object: &str) -> Result<(), StoreError> {
        match self.objects()?.delete(&Path::from(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(classify("delete", object, error)),
        }
    }

    /// Makes everything put so far durable. One call for any number of objects: syncing each costs far more.
    pub(crate) async fn barrier(&self) -> Result<(), StoreError> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        tracing::trace!(folder = %folder.display(), "barrier");
        let path = folder.clone();
        let sync = Arc::clone(&self.sync);
        let synced = tokio::task::spawn_blocking(move || sync.run(&folder))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
        synced.map_err(|source| StoreError::Sync { path, source })
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Sha256Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(bytes);
    finished(context)
}

pub(crate) fn finished(context: digest::Context) -> Sha256Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Sha256Digest::from_bytes(bytes)
}

/// Calls `each` on the object's bytes in order until it says `false`; also returns what it said last.
async fn each_block<S: Send + 'static>(
    object: &str,
    found: GetResult,
    buffers: Buffers,
    mut state: S,
    each: impl Fn(&mut S, &[u8]) -> bool + Send + 'static,
) -> Result<(S, bool), StoreError> {
    let size = found.meta.size;
    match found.payload {
        GetResultPayload::File(file, _) => {
            let read = tokio::task::spawn_blocking(move || -> io::Result<(S, bool)> {
                let mut is_wanted = true;
                // A byte more than there should be: what is longer is seen as well.
                strongroom_disk::read_once(&file, 0..size.saturating_add(1), &buffers, |block| {
                    is_wanted = each(&mut state, block);
                    if is_wanted {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })?;
                Ok((state, is_wanted))
            })
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
            read.map_err(|source| StoreError::Refused {
                operation: "read",
                object: object.to_owned(),
                source: Box::new(source),
            })
        }
        GetResultPayload::Stream(mut stream) => {
            while let Some(block) = stream.next().await {
                let block = block.map_err(|error| classify("read", object, error))?;
                if !each(&mut state, &block) {
                    return Ok((state, false));
                }
            }
            Ok((state, true))
        }
    }
}

/// Sorts an error of the object store by what can be done about it.
fn classify(operation: &'static str, object: &str, error: object_store::Error) -> StoreError {
    use object_store::Error as E;
    let object = object.to_owned();
    if io_kind_in(&error).is_some_and(|kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    {
        return StoreError::Full {
            operation,
            object,
            source: Box::new(error),
        };
    }
    let unavailable = match &error {
        // What S3 answers with a definite no has a variant of its own; the rest are 5xx, time-outs and lost lines.
        E::Generic { store, .. } => *store != "LocalFileSystem",
        E::JoinError { .. } => true,
        _ => false,
    };
    if unavailable {
        StoreError::Unavailable {
            operation,
            object,
            source: Box::new(error),
        }
    } else {
        StoreError::Refused {
            operation,
            object,
            source: Box::new(error),
        }
    }
}

fn io_kind_in(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<io::Error>() {
            return Some(found.kind());
        }
        next = current.source();
    }
    None
}
