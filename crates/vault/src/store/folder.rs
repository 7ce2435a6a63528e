//! A folder as an object store, whose listings leave nothing out in silence and whose large objects go straight to the
//! disk.
//!
//! The listing of [`LocalFileSystem`] leaves out what cannot be looked at, e.g. because a disk fails or a mount went
//! stale. Who asks a vault whether WAL is there would take that for an absence, so here it is an error. Only what
//! vanished while it was listed may be missing.

use std::fs::{File, Metadata, ReadDir};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use strongroom_disk::{Buffers, LARGE_BYTES, NewFile};
use uuid::Uuid;

use crate::layout;

/// How many objects are looked at before the first is handed on.
const BATCH: usize = 1024;

#[derive(Debug)]
pub(super) struct Folder {
    files: LocalFileSystem,
    root: PathBuf,
    buffers: Buffers,
}

impl Folder {
    /// The objects in a folder that exists.
    pub(super) fn open(folder: &std::path::Path, buffers: Buffers) -> io::Result<Self> {
        Ok(Self {
            files: LocalFileSystem::new_with_prefix(folder).map_err(io::Error::other)?,
            root: folder.canonicalize()?,
            buffers,
        })
    }

    /// Makes an object as [`LocalFileSystem`] does, written whole under another name, then linked to its own; but in the
    /// folder for what is on its way, where what a killed process left is seen.
    async fn create_large(&self, path: &Path, payload: PutPayload) -> Result<PutResult> {
        let object = self.files.path_to_filesystem(path)?;
        let (root, buffers) = (self.root.clone(), self.buffers.clone());
        let created = tokio::task::spawn_blocking(move || {
            let staged = staged_for(&root, &object)?;
            let linked = match write_and_link(&buffers, staged, &payload, &object) {
                // Mounts of one file system.
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    write_and_link(&buffers, staged_beside(&object)?, &payload, &object)
                }
                linked => linked,
            };
            match linked {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Err(error)),
                linked => linked.map(Ok).map_err(|error| at(&object, &error)),
            }
        });
        match created.await?.map_err(failed)? {
            Ok(()) => Ok(PutResult {
                e_tag: None,
                version: None,
                extensions: Default::default(),
            }),
            Err(error) => Err(Error::AlreadyExists {
                path: path.to_string(),
                source: Box::new(error),
            }),
        }
    }

    /// The error that says that there is no such object, or another where that is not sure.
    async fn proven_absent(&self, path: &Path, not_found: Error) -> Error {
        let (root, path) = (self.root.clone(), self.root.join(path.as_ref()));
        let looked = tokio::task::spawn_blocking(move || {
            let error = io::ErrorKind::NotFound.into();
            match is_absent(&root, &path, &error) {
                Ok(true) => None,
                Ok(false) => Some(at(&path, &error)),
                Err(error) => Some(error),
            }
        });
        match looked.await {
            Ok(None) => not_found,
            Ok(Some(error)) => failed(error),
            Err(error) => error.into(),
        }
    }

    fn walk(&self, prefix: Option<&Path>) -> Walk {
        let folder = prefix.map_or_else(|| self.root.clone(), |prefix| self.root.join(prefix.as_ref()));
        Walk {
            root: self.root.clone(),
            folder: Some(folder),
            open: Vec::new(),
            goes_down: true,
            wants_unfinished: false,
        }
    }
}

/// How many objects lie there under a name that [`is_on_its_way`], which no listing has, and their bytes.
pub(super) fn unfinished(root: &std::path::Path) -> io::Result<(u64, u64)> {
    let mut walk = Walk {
        root: root.canonicalize()?,
        folder: Some(root.canonicalize()?),
        open: Vec::new(),
        goes_down: true,
        wants_unfinished: true,
    };
    let (mut objects, mut bytes) = (0, 0);
    while let Some(found) = walk.step()? {
        if let Found::Object(object) = found {
            objects += 1;
            bytes += object.size;
        }
    }
    Ok((objects, bytes))
}

impl std::fmt::Display for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.files.fmt(f)
    }
}

/// What a listing comes to.
enum Found {
    Object(ObjectMeta),
    Folder(PathBuf),
}

/// Goes through a folder, down to the objects in its folders where it is to. Links are followed.
struct Walk {
    root: PathBuf,
    /// The folder that is opened next.
    folder: Option<PathBuf>,
    /// Those it is in, the innermost last.
    open: Vec<ReadDir>,
    goes_down: bool,
    /// Looks for what is not finished in place of the objects.
    wants_unfinished: bool,
}

impl Walk {
    fn step(&mut self) -> io::Result<Option<Found>> {
        loop {
            if let Some(folder) = self.folder.take() {
                match std::fs::read_dir(&folder) {
                    Ok(entries) => self.open.push(entries),
                    Err(error) if is_absent(&self.root, &folder, &error)? => {}
                    Err(error) => return Err(at(&folder, &error)),
                }
            }
            let Some(entries) = self.open.last_mut() else {
                return Ok(None);
            };
            let Some(entry) = entries.next() else {
                self.open.pop();
                continue;
            };
            let path = entry.map_err(|error| at(&self.root, &error))?.path();
            let found = match std::fs::metadata(&path) {
                Ok(found) => found,
                Err(error) if is_absent(&self.root, &path, &error)? => continue,
                Err(error) => return Err(at(&path, &error)),
            };
            if found.is_dir() {
                if !self.goes_down {
                    return Ok(Some(Found::Folder(path)));
                }
                self.folder = Some(path);
            } else if found.is_file() {
                let location = self.location(&path)?;
                if is_on_its_way(&location) == self.wants_unfinished {
                    return Ok(Some(Found::Object(meta(location, &found)?)));
                }
            }
        }
    }

    fn location(&self, path: &std::path::Path) -> io::Result<Path> {
        let invalid = |error: String| at(path, &io::Error::new(io::ErrorKind::InvalidData, error));
        let within = path
            .strip_prefix(&self.root)
            .map_err(|error| invalid(error.to_string()))?;
        let name = within
            .to_str()
            .ok_or_else(|| invalid("its name is no text".to_owned()))?;
        Path::parse(name).map_err(|error| invalid(error.to_string()))
    }
}

/// Whether the error says that there is nothing of this name, not even a link to what is not there.
fn is_absent(root: &std::path::Path, path: &std::path::Path, error: &io::Error) -> io::Result<bool> {
    if error.kind() != io::ErrorKind::NotFound {
        return Ok(false);
    }
    for above in path.ancestors().take_while(|above| *above != root) {
        match std::fs::symlink_metadata(above) {
            Ok(found) if found.is_symlink() => return Ok(std::fs::metadata(above).is_ok()),
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(above, &error)),
        }
    }
    Ok(true)
}

/// The next objects, and the walk where it goes on.
async fn next_batch(walk: Option<Walk>) -> Result<Option<(Vec<ObjectMeta>, Option<Walk>)>> {
    let Some(mut walk) = walk else { return Ok(None) };
    let batch = tokio::task::spawn_blocking(move || {
        let mut objects = Vec::new();
        while objects.len() < BATCH {
            match walk.step()? {
                Some(Found::Object(object)) => objects.push(object),
                Some(Found::Folder(_)) => {}
                None => return Ok((objects, None)),
            }
        }
        Ok((objects, Some(walk)))
    });
    batch.await?.map(Some).map_err(failed)
}

/// A new file for an object that is to be, in the folder for what is on its way where a link can lead from there.
fn staged_for(root: &std::path::Path, object: &std::path::Path) -> io::Result<(PathBuf, File)> {
    let staging = root.join(layout::STAGING_FOLDER);
    let folder = object.parent().unwrap_or(root);
    for folder in [&staging, folder] {
        if !folder.exists() {
            std::fs::create_dir_all(folder).map_err(|error| at(folder, &error))?;
        }
    }
    let disk = |folder: &std::path::Path| std::fs::metadata(folder).map(|found| found.dev());
    if disk(&staging)? != disk(folder)? {
        return staged_beside(object);
    }
    let staged = staging.join(Uuid::new_v4().to_string());
    let file = File::create_new(&staged).map_err(|error| at(&staged, &error))?;
    Ok((staged, file))
}

/// A new file beside an object that is to be, under a name that [`is_on_its_way`].
fn staged_beside(object: &std::path::Path) -> io::Result<(PathBuf, File)> {
    let mut number = 1;
    loop {
        let mut staged = object.as_os_str().to_owned();
        staged.push(format!("#{number}"));
        match File::create_new(&staged) {
            Ok(file) => return Ok((staged.into(), file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match object.parent() {
                Some(folder) if !folder.exists() => std::fs::create_dir_all(folder)?,
                _ => return Err(at(object, &error)),
            },
            Err(error) => return Err(at(object, &error)),
        }
    }
}

/// Fills a staged file and links it to its place; the staged name is gone afterwards.
fn write_and_link(
    buffers: &Buffers,
    (staged, file): (PathBuf, File),
    payload: &PutPayload,
    object: &std::path::Path,
) -> io::Result<()> {
    let mut writing = NewFile::begin(file, buffers);
    let written = payload.iter().try_for_each(|part| writing.write(part));
    let written = written.and_then(|()| writing.finish().map(drop));
    let linked = written.and_then(|()| std::fs::hard_link(&staged, object));
    // One that stays is no object.
    let _ = std::fs::remove_file(&staged);
    linked
}

/// Whether the name is one under which [`LocalFileSystem`] writes an object before it is whole.
fn is_on_its_way(location: &Path) -> bool {
    let suffix = location.filename().and_then(|name| name.split_once('#'));
    suffix.is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn meta(location: Path, found: &Metadata) -> io::Result<ObjectMeta> {
    Ok(ObjectMeta {
        location,
        last_modified: DateTime::<Utc>::from(found.modified()?),
        size: found.len(),
        e_tag: None,
        version: None,
    })
}

fn at(path: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn failed(error: io::Error) -> Error {
    Error::Generic {
        store: "LocalFileSystem",
        source: Box::new(error),
    }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let is_new = options.mode == PutMode::Create && options.attributes.is_empty();
        if is_new && payload.content_length() as u64 >= LARGE_BYTES {
            return self.create_large(path, payload).await;
        }
        self.files.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let is_part = options.range.is_some();
        let found = match self.files.get_opts(path, options).await {
            Err(error @ Error::NotFound { .. }) => return Err(self.proven_absent(path, error).await),
            found => found?,
        };
        match found.payload {
            GetResultPayload::File(file, _) if is_part => {
                let (part, buffers) = (found.range.clone(), self.buffers.clone());
                let read = tokio::task::spawn_blocking(move || strongroom_disk::read_part(&file, part, &buffers));
                let bytes = read.await?.map_err(failed)?;
                let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(bytes.into()) }).boxed());
                Ok(GetResult { payload, ..found })
            }
            _ => Ok(found),
        }
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let batches = futures::stream::try_unfold(Some(self.walk(prefix)), next_batch).map_ok(|batch| {
            let objects = batch.into_iter().map(Ok);
            futures::stream::iter(objects)
        });
        batches.try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut walk = self.walk(prefix);
        walk.goes_down = false;
        let listed = tokio::task::spawn_blocking(move || -> io::Result<_> {
            let (mut objects, mut common_prefixes) = (Vec::new(), Vec::new());
            while let Some(found) = walk.step()? {
                match found {
                    Found::Object(object) => objects.push(object),
                    Found::Folder(path) => common_prefixes.push(walk.location(&path)?),
                }
            }
            common_prefixes.sort_unstable();
            Ok((objects, common_prefixes))
        });
        let (objects, common_prefixes) = listed.await?.map_err(failed)?;
        Ok(ListResult {
            common_prefixes,
            objects,
            extensions: Default::default(),
        })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    async fn listed(folder: &Folder, prefix: &str) -> Result<Vec<String>> {
        let prefix = Path::from(prefix);
        let mut paths: Vec<String> = folder
            .list(Some(&prefix))
            .map_ok(|found| found.location.to_string())
            .try_collect()
            .await?;
        paths.sort();
        Ok(paths)
    }

    async fn folders(folder: &Folder, prefix: &str) -> Result<Vec<String>> {
        let listed = folder.list_with_delimiter(Some(&Path::from(prefix))).await?;
        Ok(listed.common_prefixes.iter().map(ToString::to_string).collect())
    }

    fn with_objects(root: &std::path::Path) -> Folder {
        std::fs::create_dir_all(root.join("wal/7/empty")).unwrap();
        for name in ["wal/7/a", "wal/7/b#1", "wal/7/b#x", "wal/8/c", "d"] {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), "abc").unwrap();
        }
        Folder::open(root, Buffers::default()).unwrap()
    }

    #[tokio::test]
    async fn a_listing_is_that_of_the_library() {
        let root = tempfile::tempdir().unwrap();
        let folder = with_objects(root.path());
        // A folder on another disk.
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("e"), "x").unwrap();
        symlink(other.path(), root.path().join("wal/9")).unwrap();
        let whole = ["d", "wal/7/a", "wal/7/b#x", "wal/8/c", "wal/9/e"];
        assert_eq!(listed(&folder, "").await.unwrap(), whole);
        assert_eq!(listed(&folder, "wal/7").await.unwrap(), whole[1..3]);
        assert_eq!(listed(&folder, "none/such").await.unwrap(), Vec::<String>::new());
        assert_eq!(folders(&folder, "wal").await.unwrap(), ["wal/7", "wal/8", "wal/9"]);
        assert_eq!(folders(&folder, "none").await.unwrap(), Vec::<String>::new());
        for prefix in ["", "wal", "wal/7", "none"] {
            let prefix = Path::from(prefix);
            let [ours, theirs] = [&folder as &dyn ObjectStore, &folder.files].map(|store| store.list(Some(&prefix)));
            let by_name = |mut objects: Vec<ObjectMeta>| {
                objects.sort_by(|a, b| a.location.cmp(&b.location));
                let facts = |found: ObjectMeta| (found.location, found.size, found.last_modified);
                objects.into_iter().map(facts).collect::<Vec<_>>()
            };
            let [ours, theirs] = [ours.try_collect().await, theirs.try_collect().await].map(Result::unwrap);
            assert_eq!(by_name(ours), by_name(theirs));
            let [ours, theirs] = [
                folder.list_with_delimiter(Some(&prefix)).await.unwrap(),
                folder.files.list_with_delimiter(Some(&prefix)).await.unwrap(),
            ];
            assert_eq!(ours.common_prefixes, theirs.common_prefixes);
            assert_eq!(by_name(ours.objects), by_name(theirs.objects));
        }
    }

    #[tokio::test]
    async fn what_cannot_be_looked_at_is_an_error_and_not_an_absence() {
        let root = tempfile::tempdir().unwrap();
        let folder = with_objects(root.path());
        // A link in a circle cannot be looked at by anybody; one to nothing may be to a disk that is away.
        for target in ["x", "/nowhere/at/all"] {
            for name in ["wal/8", "wal", ""] {
                let link = root.path().join(name).join("x");
                symlink(target, &link).unwrap();
                assert!(listed(&folder, name).await.is_err(), "{target} {name}");
                assert!(folders(&folder, name).await.is_err(), "{target} {name}");
                assert!(listed(&folder, "").await.is_err(), "{target} {name}");
                // Nor is what lies below such a link.
                let below = format!("{name}/x/7");
                assert!(listed(&folder, &below).await.is_err(), "{target} {below}");
                assert!(folders(&folder, &below).await.is_err(), "{target} {below}");
                std::fs::remove_file(link).unwrap();
                assert!(listed(&folder, "").await.is_ok());
            }
        }
        // The folder asked for is a file.
        assert!(listed(&folder, "d").await.is_err());
        // An endless way down ends.
        symlink(".", root.path().join("wal/8/x")).unwrap();
        assert!(listed(&folder, "wal").await.is_err());
    }

    #[tokio::test]
    async fn what_a_killed_put_leaves_lies_where_a_listing_has_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path(), Buffers::default()).unwrap();
        let object = folder.root.join("packs/aa/aabb");
        // Killed before the link.
        let (staged, file) = staged_for(&folder.root, &object).unwrap();
        std::fs::write(&staged, "abc").unwrap();
        drop(file);
        let left = listed(&folder, "").await.unwrap();
        assert!(left.len() == 1 && left[0].starts_with("staging/"), "{left:?}");
        assert_eq!(std::fs::read_dir(object.parent().unwrap()).unwrap().count(), 0);
        // The next put of the same object is not in its way, and leaves nothing.
        let bytes = vec![7; LARGE_BYTES as usize];
        let path = Path::from("packs/aa/aabb");
        let put = |bytes: &Vec<u8>| folder.put_opts(&path, bytes.clone().into(), PutMode::Create.into());
        put(&bytes).await.unwrap();
        assert!(matches!(put(&bytes).await, Err(Error::AlreadyExists { .. })));
        assert_eq!(listed(&folder, "packs").await.unwrap(), ["packs/aa/aabb"]);
        assert_eq!(listed(&folder, "staging").await.unwrap(), left);
        assert!(std::fs::read(&object).unwrap() == bytes);
        // The one and only name that no listing has.
        let (beside, _) = staged_beside(&object).unwrap();
        std::fs::write(beside, "abcd").unwrap();
        assert_eq!(listed(&folder, "packs").await.unwrap(), ["packs/aa/aabb"]);
        assert_eq!(unfinished(&folder.root).unwrap(), (1, 4));
    }

    #[tokio::test]
    async fn listings_longer_than_a_batch_are_whole() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..2 * BATCH + 5 {
            std::fs::write(root.path().join(format!("{number:05}")), "").unwrap();
        }
        let folder = Folder::open(root.path(), Buffers::default()).unwrap();
        let expected: Vec<String> = (0..2 * BATCH + 5).map(|number| format!("{number:05}")).collect();
        assert_eq!(listed(&folder, "").await.unwrap(), expected);
    }
}
