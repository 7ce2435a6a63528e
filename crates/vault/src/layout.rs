//! Where each object lies, and how large it may be. No other module spells a path.

use strongroom_proto::{Attempt, BackupId, JobId, Sha256Digest};

pub(crate) const VAULT: &str = "vault.json";
pub(crate) const KEYS_FOLDER: &str = "keys";
pub(crate) const GENERATIONS_FOLDER: &str = "keys/generations";
pub(crate) const PACKS_FOLDER: &str = "packs";
pub(crate) const INDEX_FOLDER: &str = "index";
pub(crate) const BACKUPS_FOLDER: &str = "backups";
/// Local file systems only: bytes on their way to a commit; may be deleted at any time nothing is written.
pub(crate) const STAGING_FOLDER: &str = "staging";
pub(crate) const PROBE_FOLDER: &str = "probe";

/// A receipt, a signature, `vault.json`, a writer key.
pub(crate) const DOCUMENT_BYTES: u64 = 16 * MIB;
/// A sealed manifest, and the list of packs: 64 MiB are 450,000 packs, 14 TiB.
pub(crate) const MANIFEST_BYTES: u64 = 64 * MIB;
/// A pack as stored, with room to spare.
pub(crate) const PACK_OBJECT_BYTES: u64 = 64 * MIB;
/// An index object as stored.
pub(crate) const INDEX_OBJECT_BYTES: u64 = 64 * MIB;

const MIB: u64 = 1024 * 1024;

pub(crate) fn writer_key(key_id: &str) -> String {
    format!("{KEYS_FOLDER}/{key_id}.age")
}

pub(crate) fn vault_mac(key_id: &str) -> String {
    format!("{KEYS_FOLDER}/{key_id}.vault-mac")
}

/// A writer key that a later generation sealed again, named by its own digest.
pub(crate) fn sealed_writer_key(key_id: &str, sealed: &Sha256Digest) -> String {
    format!("{KEYS_FOLDER}/{key_id}.{sealed}.age")
}

pub(crate) fn generation(number: u32) -> String {
    format!("{GENERATIONS_FOLDER}/{number}.jsonl")
}

/// The number in the path of a generation; none where this is the path of something else.
pub(crate) fn generation_number(object: &str) -> Option<u32> {
    let number: u32 = object.rsplit('/').next()?.strip_suffix(".jsonl")?.parse().ok()?;
    (number > 1 && generation(number) == object).then_some(number)
}

pub(crate) fn pack(digest: &Sha256Digest) -> String {
    let name = digest.to_string();
    let shard = name.get(..2).unwrap_or_default();
    format!("{PACKS_FOLDER}/{shard}/{name}")
}

pub(crate) fn index(digest: &Sha256Digest) -> String {
    format!("{INDEX_FOLDER}/{digest}")
}

fn attempt_folder(id: &BackupId, attempt: Attempt) -> String {
    format!("{BACKUPS_FOLDER}/{id}/a{attempt}")
}

pub(crate) fn manifest(id: &BackupId, attempt: Attempt) -> String {
    format!("{}/manifest", attempt_folder(id, attempt))
}

pub(crate) fn packs_list(id: &BackupId, attempt: Attempt) -> String {
    format!("{}/packs", attempt_folder(id, attempt))
}

pub(crate) fn receipt(id: &BackupId) -> String {
    format!("{BACKUPS_FOLDER}/{id}/receipt.json")
}

pub(crate) fn receipt_signature(id: &BackupId, attempt: Attempt) -> String {
    format!("{}/receipt.json.sig", attempt_folder(id, attempt))
}

pub(crate) fn verifications_folder(id: &BackupId) -> String {
    format!("{BACKUPS_FOLDER}/{id}/verifications")
}

pub(crate) fn verification(id: &BackupId, job: JobId) -> String {
    format!("{}/{job}.json", verifications_folder(id))
}

pub(crate) fn verification_signature(id: &BackupId, job: JobId, attempt: Attempt) -> String {
    format!("{}/{job}.a{attempt}.json.sig", verifications_folder(id))
}

pub(crate) fn restores_folder(id: &BackupId) -> String {
    format!("{BACKUPS_FOLDER}/{id}/restores")
}

pub(crate) fn restore(id: &BackupId, job: JobId) -> String {
    format!("{}/{job}.json", restores_folder(id))
}

pub(crate) fn restore_signature(id: &BackupId, job: JobId, attempt: Attempt) -> String {
    format!("{}/{job}.a{attempt}.json.sig", restores_folder(id))
}

/// The job that a path of a verification or restore names.
pub(crate) fn evidence_job(object: &str) -> Option<JobId> {
    object.rsplit('/').next()?.strip_suffix(".json")?.parse().ok()
}
