//! What a laid down cluster says of itself: its control file, and the name of its first superuser.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use strongroom_proto::wal::SystemIdentifier;

use super::error::RecoveryError;
use crate::postgres::cluster::ServerBinaries;
use crate::postgres::run_as::{RunAs, clean_environment};

/// Settings that a standby may not have lower than its primary, and what the control file calls them.
const FLOORS: [(&str, &str); 5] = [
    ("max_connections", "max_connections setting"),
    ("max_worker_processes", "max_worker_processes setting"),
    ("max_wal_senders", "max_wal_senders setting"),
    ("max_prepared_transactions", "max_prepared_xacts setting"),
    ("max_locks_per_transaction", "max_locks_per_xact setting"),
];
const NO_CHECKSUMS: &str = "0";
/// The number of the role that initdb made, and of the relation that roles are in.
const FIRST_ROLE: u32 = 10;
const PG_AUTHID: u32 = 1260;
const MAP_MAGIC: u32 = 0x0059_2717;
const NAME_BYTES: usize = 64;
/// The largest file of roles that is looked through, in bytes.
const ROLES_BYTES_MAX: u64 = 64 << 20;

/// A control file.
pub(super) struct Control {
    pub(super) system_identifier: SystemIdentifier,
    /// Whether pages carry checksums.
    pub(super) has_checksums: bool,
    /// The least that settings must be for a server to be asked while it recovers.
    pub(super) floors: BTreeMap<String, u64>,
    block_bytes: usize,
}

impl Control {
    /// Has the control file of a data folder read by the server's own tool.
    pub(super) fn read(data_dir: &Path, binaries: &ServerBinaries, run_as: RunAs) -> Result<Self, RecoveryError> {
        let program = binaries.program("pg_controldata");
        let mut command = run_as.command(&program, None);
        clean_environment(&mut command)
            .arg("-D")
            .arg(data_dir)
            .stdin(Stdio::null());
        let output = command.output().map_err(RecoveryError::file("run", &program))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let bad = |what: String| RecoveryError::BadBackup { what };
        // A warning about a wrong checksum comes with exit code 0.
        if !output.status.success() || text.contains("WARNING") {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(bad(format!("its control file cannot be read: {said}")));
        }
        let lines: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let value = |name: &str| {
            lines
                .get(name)
                .copied()
                .ok_or_else(|| bad(format!("its control file does not tell the {name:?}")))
        };
        let number = |name: &str| -> Result<u64, RecoveryError> {
            value(name)?
                .parse()
                .map_err(|_| bad(format!("its control file has no number for {name:?}")))
        };
        let mut floors = BTreeMap::new();
        for (setting, line) in FLOORS {
            floors.insert(setting.to_owned(), number(line)?);
        }
        Ok(Self {
            system_identifier: SystemIdentifier(number("Database system identifier")?),
            has_checksums: value("Data page checksum version")? != NO_CHECKSUMS,
            floors,
            block_bytes: usize::try_from(number("Database block size")?).unwrap_or(8192),
        })
    }

    /// Names that the superuser which initdb made has or had, the likeliest first. Nobody else need be able to log in,
    /// and a server that has not answered yet cannot be asked.
    pub(super) fn superusers(&self, data_dir: &Path) -> Vec<String> {
        let global = data_dir.join("global");
        let file_number = std::fs::read(global.join("pg_filenode.map"))
            .ok()
            .and_then(|map| file_number(&map))
            .unwrap_or(PG_AUTHID);
        let path = global.join(file_number.to_string());
        let is_small = std::fs::metadata(&path).is_ok_and(|facts| facts.len() <= ROLES_BYTES_MAX);
        let pages = is_small
            .then(|| std::fs::read(&path).ok())
            .flatten()
            .unwrap_or_default();
        let mut names: Vec<String> = pages
            .chunks(self.block_bytes.max(1))
            .flat_map(first_role_names)
            .collect();
        names.reverse();
        names.push("postgres".to_owned());
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Which file the roles are in: pairs of a relation and its file, after a magic number and how many there are.
fn file_number(map: &[u8]) -> Option<u32> {
    if u32_at(map, 0)? != MAP_MAGIC {
        return None;
    }
    let pairs = u32_at(map, 4)?.min(64) as usize;
    (0..pairs).find_map(|pair| {
        let at = 8 + pair * 8;
        (u32_at(map, at)? == PG_AUTHID).then(|| u32_at(map, at + 4))?
    })
}

/// The names in a heap page of `pg_authid` of the first role, in all versions of its row. A page that is torn, or of
/// something else, gives none, or one that cannot log in.
fn first_role_names(page: &[u8]) -> Vec<String> {
    const HEADER_BYTES: usize = 24;
    const NORMAL: u32 = 1;
    let lower = usize::from(u16_at(page, 12).unwrap_or(0));
    let name_of = |pointer: u32| -> Option<String> {
        let (offset, flags) = ((pointer & 0x7fff) as usize, (pointer >> 15) & 3);
        let header_bytes = usize::from(*page.get(offset + 22)?);
        let row = page.get(offset + header_bytes..)?;
        if flags != NORMAL || u32_at(row, 0)? != FIRST_ROLE {
            return None;
        }
        let name = row.get(4..4 + NAME_BYTES)?.split(|byte| *byte == 0).next()?;
        (!name.is_empty())
            .then(|| String::from_utf8(name.to_vec()).ok())
            .flatten()
    };
    (HEADER_BYTES..lower)
        .step_by(4)
        .filter_map(|at| name_of(u32_at(page, at)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_page_of_roles_names_nobody() {
        assert!(first_role_names(&[]).is_empty());
        assert!(first_role_names(&[0xff; 8192]).is_empty());
        assert!(first_role_names(&[0; 8192]).is_empty());
        assert_eq!(file_number(&[0; 524]), None);
        let mut map = MAP_MAGIC.to_le_bytes().to_vec();
        for number in [2u32, 1262, 7, PG_AUTHID, 16_999] {
            map.extend_from_slice(&number.to_le_bytes());
        }
        assert_eq!(file_number(&map), Some(16_999));
        assert_eq!(file_number(&map[..20]), None);
    }
}
