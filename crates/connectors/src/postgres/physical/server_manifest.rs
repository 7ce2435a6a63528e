//! The server's list of what a base backup contains (`backup_manifest`): read, compared, and made anew where incremental
//! files became whole ones.
//!
//! The format is that of the chapter "Backup Manifest Format" of the Postgres manual. The last line is the SHA-256 of
//! all before it.

use std::collections::HashMap;
use std::fmt::Write as _;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use strongroom_proto::wal::{Lsn, SystemIdentifier};

use super::base_error::DamageError;
use super::laid_down::LaidDown;

const CRC32C: &str = "CRC32C";
const LAST_LINE: &str = "\"Manifest-Checksum\"";

/// A server's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ServerManifest {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "System-Identifier")]
    system: Option<u64>,
    #[serde(rename = "Files")]
    files: Vec<ManifestFile>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<ManifestWal>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestFile {
    #[serde(rename = "Path", skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path", skip_serializing_if = "Option::is_none")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    bytes: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm", skip_serializing_if = "Option::is_none")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum", skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestWal {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

/// A file as it came: how many bytes, and their CRC-32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
}

/// A file that is other than it came: made whole of an incremental one, or without some lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    /// Its path in the whole tree.
    pub(super) path: Vec<u8>,
    pub(super) bytes: u64,
    /// `None` where nobody has read all of it.
    pub(super) crc32c: Option<u32>,
}

impl ServerManifest {
    /// Reads a manifest whose own checksum is right.
    pub fn parse(text: &[u8]) -> Result<Self, DamageError> {
        let broken = || DamageError::Manifest;
        let text = std::str::from_utf8(text).map_err(|_| broken())?;
        let (before, last) = text.trim_end_matches('\n').rsplit_once('\n').ok_or_else(broken)?;
        let said = last
            .split('"')
            .nth(3)
            .filter(|_| last.starts_with(LAST_LINE))
            .ok_or_else(broken)?;
        if said != hex::encode(digest(&SHA256, format!("{before}\n").as_bytes())) {
            return Err(DamageError::ManifestChecksum);
        }
        serde_json::from_str(text).map_err(|_| broken())
    }

    /// The cluster, where it is told (Postgres 17 and newer).
    pub fn system(&self) -> Option<SystemIdentifier> {
        self.system.map(SystemIdentifier)
    }

    /// The timeline on which the backup ended, and where it began there.
    pub fn end(&self) -> Option<(u32, Lsn)> {
        self.wal_ranges
            .iter()
            .max_by_key(|range| range.timeline)
            .map(|range| (range.timeline, range.start))
    }

    /// Compares what came, file for file: nothing missing, nothing more, nothing different.
    pub(super) fn check(&self, mut came: HashMap<Vec<u8>, Came>) -> Result<(), DamageError> {
        for file in &self.files {
            let path = file.path_bytes()?;
            let name = || String::from_utf8_lossy(&path).into_owned();
            let found = came
                .remove(&path)
                .ok_or_else(|| DamageError::Missing { path: name() })?;
            if file.algorithm.as_deref() != Some(CRC32C) || !file.is_as(found) {
                return Err(DamageError::Content { path: name() });
            }
        }
        match came.len() {
            0 => Ok(()),
            files => Err(DamageError::Unlisted { files }),
        }
    }

    /// Compares files as they were laid down with what is listed of their content; how many could be. Whether all files are
    /// there, and no others, is not looked at. `None` where a checksum is of another kind than is known here.
    pub fn compare_content(&self, laid_down: &LaidDown) -> Result<Option<u64>, DamageError> {
        let mut compared = 0;
        for file in &self.files {
            let path = file.path_bytes()?;
            match (laid_down.files.get(&path), file.algorithm.as_deref()) {
                (None, _) | (_, None) => {}
                (Some(found), Some(CRC32C)) if file.is_as(*found) => compared += 1,
                (Some(_), Some(CRC32C)) => {
                    return Err(DamageError::Content {
                        path: String::from_utf8_lossy(&path).into_owned(),
                    });
                }
                (Some(_), Some(_)) => return Ok(None),
            }
        }
        Ok(Some(compared))
    }

    /// The manifest of the tree in which these files, by the path they came under, are others.
    pub(super) fn with(mut self, made: &HashMap<Vec<u8>, Made>) -> Result<String, DamageError> {
        for file in &mut self.files {
            if let Some(new) = made.get(&file.path_bytes()?) {
                file.put_path(&new.path);
                file.bytes = new.bytes;
                file.algorithm = new.crc32c.map(|_| CRC32C.to_owned());
                file.checksum = new.crc32c.map(|crc| hex::encode(crc.to_le_bytes()));
            }
        }
        Ok(self.text())
    }

    /// As a server writes it.
    fn text(&self) -> String {
        let mut text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {},\n", self.version);
        if let Some(system) = self.system {
            let _ = writeln!(text, "\"System-Identifier\": {system},");
        }
        text.push_str("\"Files\": [\n");
        push_lines(&mut text, &self.files);
        text.push_str("],\n\"WAL-Ranges\": [\n");
        push_lines(&mut text, &self.wal_ranges);
        text.push_str("],\n");
        let sum = hex::encode(digest(&SHA256, text.as_bytes()));
        let _ = writeln!(text, "{LAST_LINE}: \"{sum}\"}}");
        text
    }

    #[cfg(test)]
    fn sizes(&self) -> HashMap<String, u64> {
        let path = |file: &ManifestFile| String::from_utf8_lossy(&file.path_bytes().unwrap_or_default()).into_owned();
        self.files.iter().map(|file| (path(file), file.bytes)).collect()
    }
}

impl ManifestFile {
    /// Whether a file has this length and CRC-32C.
    fn is_as(&self, found: Came) -> bool {
        found.bytes == self.bytes
            // As the bytes lie in the server's memory.
            && self.checksum.as_deref().is_some_and(|sum| {
                sum.eq_ignore_ascii_case(&hex::encode(found.crc32c.to_le_bytes()))
                    || sum.eq_ignore_ascii_case(&hex::encode(found.crc32c.to_be_bytes()))
            })
    }

    fn path_bytes(&self) -> Result<Vec<u8>, DamageError> {
        match (&self.path, &self.encoded_path) {
            (Some(path), None) => Ok(path.clone().into_bytes()),
            (None, Some(encoded)) => hex::decode(encoded).map_err(|_| DamageError::Manifest),
            _ => Err(DamageError::Manifest),
        }
    }

    fn put_path(&mut self, path: &[u8]) {
        match std::str::from_utf8(path) {
            Ok(text) => (self.path, self.encoded_path) = (Some(text.to_owned()), None),
            Err(_) => (self.path, self.encoded_path) = (None, Some(hex::encode(path))),
        }
    }
}

fn push_lines(text: &mut String, values: &[impl Serialize]) {
    let lines: Vec<String> = values
        .iter()
        .filter_map(|value| serde_json::to_string(value).ok())
        .collect();
    text.push_str(&lines.join(",\n"));
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> ServerManifest {
        let file = |path: &str, encoded: bool| ManifestFile {
            path: (!encoded).then(|| path.to_owned()),
            encoded_path: encoded.then(|| path.to_owned()),
            bytes: 4,
            last_modified: "2026-11-21 14:03:05 GMT".to_owned(),
            algorithm: Some("CRC32C".to_owned()),
            checksum: Some("d1f4c1d2".to_owned()),
        };
        ServerManifest {
            version: 2,
            system: Some(u64::MAX),
            files: vec![file("base/1/INCREMENTAL.2", false), file("ff0a", true)],
            wal_ranges: vec![ManifestWal {
                timeline: 3,
                start: Lsn(0x200_0028),
                end: Lsn(0x200_0100),
            }],
        }
    }

    fn came(crc32c: u32) -> HashMap<Vec<u8>, Came> {
        let came = Came { bytes: 4, crc32c };
        HashMap::from([(b"base/1/INCREMENTAL.2".to_vec(), came), (vec![0xff, b'\n'], came)])
    }

    #[test]
    fn a_manifest_is_read_as_written_and_any_change_is_found() {
        let text = manifest().text();
        let read = ServerManifest::parse(text.as_bytes()).unwrap();
        assert_eq!(read, manifest());
        assert_eq!(read.system(), Some(SystemIdentifier(u64::MAX)));
        assert_eq!(read.end(), Some((3, Lsn(0x200_0028))));
        for at in 0..text.len() - 3 {
            let mut damaged = text.clone().into_bytes();
            damaged[at] ^= 1;
            assert!(ServerManifest::parse(&damaged).is_err(), "{at}");
            assert!(ServerManifest::parse(&text.as_bytes()[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn files_that_are_missing_more_or_different_are_found() {
        let crc = u32::from_le_bytes([0xd1, 0xf4, 0xc1, 0xd2]);
        manifest().check(came(crc)).unwrap();
        assert!(matches!(
            manifest().check(came(crc ^ 1)),
            Err(DamageError::Content { .. })
        ));
        let mut less = came(crc);
        less.remove(&b"base/1/INCREMENTAL.2"[..]);
        assert!(matches!(manifest().check(less), Err(DamageError::Missing { .. })));
        let mut more = came(crc);
        more.insert(b"other".to_vec(), Came { bytes: 0, crc32c: 0 });
        assert!(matches!(
            manifest().check(more),
            Err(DamageError::Unlisted { files: 1 })
        ));
    }

    #[test]
    fn content_is_compared_with_the_checksums_that_are_known() {
        let path = || b"base/1/INCREMENTAL.2".to_vec();
        let write = |content: &[u8], hole: u64| {
            let mut laid_down = LaidDown::default();
            laid_down.begin(path());
            laid_down.write(content);
            laid_down.hole(hole);
            laid_down.end();
            // A folder has no content to end.
            laid_down.end();
            laid_down
        };
        // The check value of the algorithm's catalogue.
        let mut server = manifest();
        server.files[0].bytes = 9;
        server.files[0].checksum = Some(hex::encode(0xe306_9283_u32.to_le_bytes()));
        assert_eq!(server.compare_content(&write(b"123456789", 0)).unwrap(), Some(1));
        for other in [
            write(b"123456780", 0),
            write(b"12345678", 0),
            write(b"12345678", 1),
            write(b"123456789", 1),
        ] {
            let compared = server.compare_content(&other);
            assert!(matches!(compared, Err(DamageError::Content { path }) if path == "base/1/INCREMENTAL.2"));
        }
        let zeros = 200_000;
        server.files[0].bytes = zeros;
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &vec![0; zeros as usize]) as u32;
        server.files[0].checksum = Some(hex::encode(crc.to_le_bytes()));
        assert_eq!(server.compare_content(&write(b"", zeros)).unwrap(), Some(1));
        // Put together of an older file and blocks: nobody has read all of it.
        (server.files[0].algorithm, server.files[0].checksum) = (None, None);
        assert_eq!(server.compare_content(&write(b"x", 0)).unwrap(), Some(0));
        server.files[0].algorithm = Some("SHA256".to_owned());
        assert_eq!(server.compare_content(&write(b"x", 0)).unwrap(), None);
    }

    #[test]
    fn files_that_were_made_whole_take_the_place_of_those_that_came() {
        let made = Made {
            path: b"base/1/2".to_vec(),
            bytes: 8192,
            crc32c: None,
        };
        let text = manifest()
            .with(&HashMap::from([(b"base/1/INCREMENTAL.2".to_vec(), made)]))
            .unwrap();
        let sizes = ServerManifest::parse(text.as_bytes()).unwrap().sizes();
        assert_eq!(sizes.get("base/1/2"), Some(&8192));
        assert!(!text.contains("INCREMENTAL"));
    }
}
