//! Checking a whole vault, or some of its backups: without any key, or with an identity down to every chunk.
//!
//! Without a key: the keys' own objects, every receipt and its signature, every list, and against its digest every object
//! that a list names, and every other pack and index object. With an identity: every chunk of every pack is opened and compared with its id, every
//! index object with its MAC, every entry list is read, and every piece of WAL is opened. Each object is read once, however many backups need it.
//! The check goes on after damage, so that the report is whole; [`hits`] says afterwards which backups and files each
//! damaged object concerns. Memory: the names of all objects, and a few packs.

mod content;
mod hits;
mod wal;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use strongroom_proto::{BackupId, ChunkId, Sha256Digest};

use crate::error::ReadError;
use crate::index::IndexKeys;
use crate::keys::Identity;
use crate::layout;
use crate::manifest::Needed;
use crate::store::sha256;
use crate::vault::Vault;

/// What to check.
#[derive(Debug, Clone, Default)]
pub struct CheckScope<'a> {
    /// Only these backups; all of them, and the vault itself, where it is empty.
    pub backups: Vec<BackupId>,
    /// Opens what is sealed.
    pub identity: Option<&'a Identity>,
}

/// What a check of a vault found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VaultReport {
    /// Backups that were checked.
    pub backups: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that were opened and compared with their ids; none without an identity.
    pub chunks: u64,
    /// Entries with content whose extents were looked up; none without an identity.
    pub entries: u64,
    /// Pieces of WAL and history files of timelines that were looked at. What is not there is no damage here.
    pub wal_objects: u64,
    /// What is not as it was stored.
    pub damage: Vec<DamagedObject>,
    /// What could not be checked.
    pub unchecked: Vec<Unchecked>,
    /// What nothing refers to, where the whole vault was checked.
    pub unreferenced: Option<Unreferenced>,
}

/// An object that is not as it was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DamagedObject {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// The chunks in it that are lost, where that is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<ChunkId>,
    /// The backups that need it; none where it belongs to the vault itself, or no backup uses it.
    pub backups: Vec<HitBackup>,
}

/// A backup that a damaged object concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HitBackup {
    /// The backup.
    pub backup_id: BackupId,
    /// The files in it that need the object.
    pub files: HitFiles,
}

/// Which files of a backup are hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "known")]
pub enum HitFiles {
    /// It takes an identity to tell.
    NotLookedFor,
    /// The backup cannot be opened any more, so that all of it is lost until the object is back.
    All {
        /// Why it cannot be told file by file.
        reason: String,
    },
    /// These.
    Named {
        /// How many.
        count: u64,
        /// The first of them, at most [`NAMED_FILES`].
        paths: Vec<String>,
    },
}

/// So many files are named for each object and backup.
pub const NAMED_FILES: usize = 1000;

/// An object that could not be checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    /// The object.
    pub object: String,
    /// Why not.
    pub reason: String,
}

/// Objects that no backup needs: left by attempts that died, or part of a backup that is being made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Unreferenced {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How far a check is; may be read while it runs.
#[derive(Debug, Default)]
pub struct CheckProgress {
    objects: AtomicU64,
    bytes: AtomicU64,
    total_objects: AtomicU64,
}

impl CheckProgress {
    /// Objects read so far, of how many that are known so far, and the bytes read.
    pub fn now(&self) -> (u64, u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.objects), load(&self.total_objects), load(&self.bytes))
    }

    fn read(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn expect(&self, objects: usize) {
        self.total_objects.fetch_add(objects as u64, Ordering::Relaxed);
    }
}

impl VaultReport {
    /// Whether everything that was looked at is as it was stored.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    /// Whether all that was asked for could be looked at.
    pub fn is_whole(&self) -> bool {
        self.unchecked.is_empty()
    }
}

impl fmt::Display for HitFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLookedFor => f.write_str("with --identity it can be told which files"),
            Self::All { reason } => write!(f, "all of it: {reason}"),
            Self::Named { count, .. } => write!(f, "{count} files"),
        }
    }
}

impl Vault {
    /// Checks the vault, or some backups of it.
    ///
    /// Damage is in the report; an error where the store cannot be listed or does not answer, or a backup that was
    /// asked for does not exist.
    pub async fn check_vault(
        &self,
        scope: &CheckScope<'_>,
        progress: &CheckProgress,
    ) -> Result<VaultReport, ReadError> {
        let vault = self.newer().await?.unwrap_or_else(|| self.clone());
        let mut run = Run {
            vault: &vault,
            identity: scope.identity,
            progress,
            report: VaultReport::default(),
            objects: Objects::default(),
            damaged: BTreeMap::new(),
        };
        let listed = match scope.backups.is_empty() {
            true => Some(vault.store().list_sizes("").await),
            false => None,
        };
        let listed = listed
            .transpose()
            .map_err(|source| ReadError::store("list the vault", source))?;
        let backups = match &listed {
            Some(_) => vault.backups().await?,
            None => scope.backups.clone(),
        };
        run.check_keys().await?;
        for id in &backups {
            run.check_backup(id, listed.is_none()).await?;
        }
        run.check_content().await?;
        let mut unfinished = (0, 0);
        if let Some(listed) = &listed {
            run.check_unlisted(listed).await?;
            run.check_wal(listed).await?;
            let found = vault.store().unfinished().await;
            unfinished = found.map_err(|source| ReadError::store("list the vault", source))?;
        }
        let readable = run.report.unchecked.is_empty();
        run.name_hits(&backups).await?;
        let Run {
            mut report,
            objects,
            damaged,
            ..
        } = run;
        report.backups = backups.len() as u64;
        report.damage = damaged.into_values().collect();
        // What could not be read may be what refers to the rest.
        report.unreferenced = listed.filter(|_| readable).map(|listed| {
            let mut found = objects.unreferenced(&listed);
            found.objects += unfinished.0;
            found.bytes += unfinished.1;
            found
        });
        Ok(report)
    }
}

/// A check while it runs.
struct Run<'a> {
    vault: &'a Vault,
    identity: Option<&'a Identity>,
    progress: &'a CheckProgress,
    report: VaultReport,
    objects: Objects,
    /// By object.
    damaged: BTreeMap<String, DamagedObject>,
}

/// What the backups refer to.
#[derive(Default)]
struct Objects {
    packs: HashSet<Sha256Digest>,
    indexes: BTreeSet<Sha256Digest>,
    /// Receipts, signatures, manifests, lists, keys, WAL.
    documents: HashSet<String>,
}

impl Objects {
    fn unreferenced(&self, listed: &[(String, u64)]) -> Unreferenced {
        let mut found = Unreferenced::default();
        for (path, bytes) in listed {
            let digest = || {
                path.rsplit('/')
                    .next()
                    .and_then(|name| name.parse::<Sha256Digest>().ok())
            };
            let is_needed = match path.split('/').next() {
                Some(layout::PACKS_FOLDER) => digest().is_some_and(|digest| self.packs.contains(&digest)),
                Some(layout::INDEX_FOLDER) => digest().is_some_and(|digest| self.indexes.contains(&digest)),
                _ => self.documents.contains(path),
            };
            if !is_needed {
                found.objects += 1;
                found.bytes += bytes;
            }
        }
        found
    }
}

impl Run<'_> {
    fn damage(&mut self, object: String, problem: impl Into<String>) -> &mut DamagedObject {
        self.damaged.entry(object.clone()).or_insert_with(|| DamagedObject {
            object,
            problem: problem.into(),
            chunks: Vec::new(),
            backups: Vec::new(),
        })
    }

    /// Sorts an error into damage, what could not be checked, and what ends the check.
    fn take_error(&mut self, error: ReadError) -> Result<(), ReadError> {
        match error {
            error if error.is_retryable() => return Err(error),
            ReadError::Missing { object } => drop(self.damage(object, "is missing")),
            ReadError::BadSignature { object } => {
                self.damage(object, "has no valid signature of a signer of this vault");
            }
            ReadError::Malformed { object, .. } => drop(self.damage(object, "cannot be decoded")),
            ReadError::Damaged { object, problem } => drop(self.damage(object, problem)),
            ReadError::ForgedGeneration { object } => {
                self.damage(object, "was not made by a holder of the vault's writer key");
            }
            ReadError::Misplaced { object, found, .. } => {
                self.damage(object, format!("was written for {found}"));
            }
            ReadError::NewerFormat { object, format } => self.report.unchecked.push(Unchecked {
                object,
                reason: format!("it has format {format}, which takes a newer version"),
            }),
            ReadError::WrongIdentity { object, .. } => self.report.unchecked.push(Unchecked {
                object,
                reason: "the identity does not open it".to_owned(),
            }),
            ReadError::Store { doing, source } => self.report.unchecked.push(Unchecked {
                object: doing,
                reason: source.to_string(),
            }),
            other => return Err(other),
        }
        Ok(())
    }

    async fn document(&mut self, object: &str) -> Result<Option<bytes::Bytes>, ReadError> {
        self.progress.expect(1);
        self.objects.documents.insert(object.to_owned());
        match self.vault.get_document(&format!("check {object}"), object).await {
            Ok(Some(bytes)) => {
                self.count(bytes.len() as u64);
                Ok(Some(bytes))
            }
            Ok(None) => {
                self.damage(object.to_owned(), "is missing");
                Ok(None)
            }
            Err(error) => self.take_error(error).map(|()| None),
        }
    }

    fn count(&mut self, bytes: u64) {
        self.report.objects += 1;
        self.report.bytes += bytes;
        self.progress.read(bytes);
    }

    /// The objects that the vault itself consists of. That the generations follow one another was checked on opening.
    async fn check_keys(&mut self) -> Result<(), ReadError> {
        let vault = self.vault;
        self.objects.documents.insert(layout::VAULT.to_owned());
        let first_key = vault.description().writer_key_id.clone();
        for object in [layout::writer_key(&first_key), layout::vault_mac(&first_key)] {
            if let Some(bytes) = self.document(&object).await? {
                let is_mac = object.ends_with("mac");
                let is_age = age::Decryptor::new(&bytes[..]).is_ok();
                let is_hex =
                    bytes.len() == 65 && bytes.ends_with(b"\n") && bytes.iter().take(64).all(u8::is_ascii_hexdigit);
                if (is_mac && !is_hex) || (!is_mac && !is_age) {
                    self.damage(object, "cannot be decoded");
                }
            }
        }
        let mut keys = BTreeSet::new();
        for generation in vault.generations() {
            self.objects.documents.insert(generation.object());
            keys.insert(generation.writer_key_id.clone());
            for sealed in &generation.writer_keys {
                let object = layout::sealed_writer_key(&sealed.writer_key, &sealed.sealed);
                if let Some(bytes) = self.document(&object).await?
                    && sha256(&bytes) != sealed.sealed
                {
                    self.damage(object, "does not match its digest");
                }
            }
        }
        if let Some(identity) = self.identity {
            for key in keys {
                self.check_sealed_key(&key, identity).await?;
            }
        }
        Ok(())
    }

    /// Opens every copy of a writer key that is sealed to this identity, and checks what the key vouches for.
    async fn check_sealed_key(&mut self, key_id: &str, identity: &Identity) -> Result<(), ReadError> {
        let vault = self.vault;
        let own = identity.recipients();
        for (object, digest) in vault.sealed_writer_keys(key_id) {
            match vault.open_sealed_writer_key(&object, digest, key_id, identity).await {
                Ok(key) => {
                    if let Err(error) = vault.check_macs(&key).await {
                        self.take_error(error)?;
                    }
                }
                // That of a later generation was checked by its digest.
                Err(ReadError::WrongIdentity { .. }) => {
                    let first = vault
                        .generation(1)
                        .map(|first| first.recipients.as_slice())
                        .unwrap_or_default();
                    if digest.is_none() && own.iter().any(|recipient| first.contains(recipient)) {
                        self.damage(object, "does not open, though it was sealed to this identity");
                    }
                }
                Err(error) => self.take_error(error)?,
            }
        }
        Ok(())
    }

    /// A backup's documents; what it needs is gathered, to be read once.
    async fn check_backup(&mut self, id: &BackupId, is_asked_for: bool) -> Result<(), ReadError> {
        let vault = self.vault;
        self.progress.expect(1);
        self.objects.documents.insert(layout::receipt(id));
        let committed = match vault.receipt(id).await {
            Ok(Some(committed)) => committed,
            // It expired since the vault was listed.
            Ok(None) if !is_asked_for => return Ok(()),
            Ok(None) => return Err(ReadError::NoBackup { id: id.clone() }),
            Err(error) => return self.take_error(error),
        };
        self.count(committed.bytes.len() as u64);
        let receipt = &committed.receipt;
        self.objects
            .documents
            .insert(layout::receipt_signature(id, receipt.attempt));
        let (list, manifest) = (
            layout::packs_list(id, receipt.attempt),
            layout::manifest(id, receipt.attempt),
        );
        for object in [&list, &manifest] {
            let artifact = receipt
                .artifacts
                .iter()
                .find(|a| a.uri.ends_with(&format!("/{object}")));
            let Some(artifact) = artifact else {
                self.damage(layout::receipt(id), "names no manifest or no list of packs");
                continue;
            };
            self.progress.expect(1);
            self.objects.documents.insert(object.clone());
            let found = vault.store().get(object, layout::MANIFEST_BYTES).await;
            let found = found.map_err(|source| ReadError::store(format!("check {object}"), source));
            match found {
                Ok(Some(bytes)) => {
                    self.count(bytes.len() as u64);
                    if sha256(&bytes) != artifact.sha256 {
                        self.damage(object.clone(), "does not match its digest");
                    } else if *object == list {
                        match Needed::decode(object, &bytes) {
                            Ok(needed) => {
                                self.objects.packs.extend(needed.packs());
                                self.objects.indexes.extend(needed.indexes());
                            }
                            Err(error) => self.take_error(error)?,
                        }
                    }
                }
                Ok(None) => drop(self.damage(object.clone(), "is missing")),
                Err(error) => self.take_error(error)?,
            }
        }
        self.check_evidence(id).await
    }

    async fn check_evidence(&mut self, id: &BackupId) -> Result<(), ReadError> {
        let vault = self.vault;
        for (folder, is_verification) in [
            (layout::verifications_folder(id), true),
            (layout::restores_folder(id), false),
        ] {
            let paths = vault.store().list(&folder).await;
            let paths = paths.map_err(|source| ReadError::store(format!("list {folder}"), source))?;
            for object in paths.into_iter().filter(|path| path.ends_with(".json")) {
                self.progress.expect(1);
                self.objects.documents.insert(object.clone());
                let Some(job) = layout::evidence_job(&object) else {
                    self.damage(object, "has a name that is not that of a job");
                    continue;
                };
                let signature = match is_verification {
                    true => vault.verification(id, job).await.map(|found| {
                        found.map(|(receipt, _)| layout::verification_signature(id, job, receipt.attempt))
                    }),
                    false => vault
                        .restore(id, job)
                        .await
                        .map(|found| found.map(|(receipt, _)| layout::restore_signature(id, job, receipt.attempt))),
                };
                match signature {
                    Ok(signature) => {
                        self.objects.documents.extend(signature);
                        self.count(0);
                    }
                    Err(error) => self.take_error(error)?,
                }
            }
        }
        Ok(())
    }

    /// Whether these are keys of the vault; if not, a generation that was there is gone.
    fn knows(&self, keys: &IndexKeys) -> bool {
        let generation = self.vault.generation(keys.generation);
        generation.is_some_and(|generation| generation.writer_key_id == keys.writer_key)
    }
}
