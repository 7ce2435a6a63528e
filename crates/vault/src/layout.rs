//! Where each object lies, and how large it may be. No other module spells a path.

use strongroom_proto::wal::{Lsn, SystemIdentifier, WalPiece, WalSegment};
use strongroom_proto::{Attempt, BackupId, JobId, Sha256Digest};

pub(crate) const VAULT: &str = "vault.json";
pub(crate) const KEYS_FOLDER: &str = "keys";
pub(crate) const GENERATIONS_FOLDER: &str = "keys/generations";
pub(crate) const PACKS_FOLDER: &str = "packs";
pub(crate) const INDEX_FOLDER: &str = "index";
pub(crate) const BACKUPS_FOLDER: &str = "backups";
pub(crate) const WAL_FOLDER: &str = "wal";
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

pub(crate) fn wal_cluster(system: SystemIdentifier) -> String {
    format!("{WAL_FOLDER}/{system}")
}

pub(crate) fn wal_timeline(system: SystemIdentifier, timeline: u32) -> String {
    format!("{}/{timeline:08X}", wal_cluster(system))
}

/// The folder of a segment's pieces, in a cluster with segments of this size.
pub(crate) fn wal_segment(system: SystemIdentifier, segment: WalSegment, segment_bytes: u32) -> String {
    let timeline = wal_timeline(system, segment.timeline);
    format!("{timeline}/{}", segment.file_name(segment_bytes))
}

/// A piece: where it begins and ends in its segment, how large segments are, and its digest.
pub(crate) fn wal_piece(piece: &WalPiece, digest: &Sha256Digest) -> String {
    let segment = piece.segment();
    let from = piece.from.0 - segment.begin(piece.segment_bytes).0;
    format!(
        "{}/{from:08X}-{:08X}-{:08X}.{digest}",
        wal_segment(piece.system_identifier, segment, piece.segment_bytes),
        from + piece.len(),
        piece.segment_bytes
    )
}

pub(crate) fn wal_histories(system: SystemIdentifier, timeline: u32) -> String {
    format!("{}/history", wal_timeline(system, timeline))
}

pub(crate) fn wal_history(system: SystemIdentifier, timeline: u32, digest: &Sha256Digest) -> String {
    format!("{}/{digest}", wal_histories(system, timeline))
}

/// What an object among the WAL is, as its path tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WalObject {
    Piece(WalPiece),
    History { system: SystemIdentifier, timeline: u32 },
}

/// Reads the path of an object among the WAL, and its digest; none where this is the path of something else.
pub(crate) fn wal_object(path: &str) -> Option<(WalObject, Sha256Digest)> {
    let mut parts = path.strip_prefix(WAL_FOLDER)?.strip_prefix('/')?.split('/');
    let (system, timeline) = (parts.next()?, parts.next()?);
    let (folder, name) = (parts.next()?, parts.next()?);
    let system: SystemIdentifier = system.parse().ok()?;
    let timeline = u32::from_str_radix(timeline, 16).ok()?;
    let (object, digest) = if folder == "history" {
        (WalObject::History { system, timeline }, name.parse().ok()?)
    } else {
        let (numbers, digest) = name.split_once('.')?;
        let mut numbers = numbers.split('-').map(|text| u32::from_str_radix(text, 16).ok());
        let (from, to) = (numbers.next()??, numbers.next()??);
        let segment_bytes = numbers.next()?.filter(|bytes| is_segment_size(*bytes))?;
        let segment = WalSegment::from_file_name(folder, segment_bytes)?;
        let begin = segment.begin(segment_bytes).0;
        let piece = WalPiece {
            system_identifier: system,
            timeline,
            from: Lsn(begin + u64::from(from)),
            to: Lsn(begin.checked_add(u64::from(to))?),
            segment_bytes,
            server_time: None,
        };
        let is_within = segment.timeline == timeline && from < to && to <= segment_bytes;
        (WalObject::Piece(is_within.then_some(piece)?), digest.parse().ok()?)
    };
    // Every name has one spelling.
    (object.path(&digest) == path).then_some((object, digest))
}

impl WalObject {
    pub(crate) fn path(&self, digest: &Sha256Digest) -> String {
        match self {
            Self::Piece(piece) => wal_piece(piece, digest),
            Self::History { system, timeline } => wal_history(*system, *timeline, digest),
        }
    }
}

impl std::fmt::Display for WalObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Piece(piece) => write!(
                f,
                "WAL segment {} of cluster {} from {} to {}",
                piece.segment().file_name(piece.segment_bytes),
                piece.system_identifier,
                piece.from,
                piece.to
            ),
            Self::History { system, timeline } => write!(f, "the history of timeline {timeline} of cluster {system}"),
        }
    }
}

/// Whether Postgres makes segments of this size.
pub(crate) const fn is_segment_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 1 << 30
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_wal_are_pinned_and_have_one_spelling() {
        let piece = WalPiece {
            system_identifier: SystemIdentifier(7_412_345_678_901_234_567),
            timeline: 0x1a,
            from: Lsn(0x1_0500_2000),
            to: Lsn(0x1_0600_0000),
            segment_bytes: 16 << 20,
            server_time: None,
        };
        let digest = Sha256Digest::from_bytes([0xab; 32]);
        let path = wal_piece(&piece, &digest);
        let expected = "wal/7412345678901234567/0000001A/0000001A0000000100000005/00002000-01000000-01000000.";
        assert_eq!(path, format!("{expected}{}", "ab".repeat(32)));
        assert_eq!(wal_object(&path), Some((WalObject::Piece(piece), digest)));
        let history = WalObject::History {
            system: SystemIdentifier(7),
            timeline: 2,
        };
        let history_path = history.path(&digest);
        assert_eq!(history_path, format!("wal/7/00000002/history/{}", "ab".repeat(32)));
        assert_eq!(wal_object(&history_path), Some((history, digest)));
        for (from, to) in [
            ("0000001A/0", "0000001B/0"),
            ("/0000001A/", "/1A/"),
            ("wal/74", "wal/074"),
            ("wal/74", "wal/+74"),
            ("00002000-", "01000000-"),
            ("00002000-01000000", "00002000-01000001"),
            ("01000000.", "03000000."),
            ("01000000.", "00080000."),
            (".abab", ".ABAB"),
            ("wal/", "index/"),
        ] {
            let changed = path.replacen(from, to, 1);
            assert_ne!(changed, path);
            assert_eq!(wal_object(&changed), None, "{changed}");
        }
        // The last segment there can be, whose end no number of 64 bits holds.
        let end = format!("wal/7/00000001/00000001FFFFFFFF000000FF/00000000-01000000-01000000.{digest}");
        assert_eq!(wal_object(&end), None);
    }
}
