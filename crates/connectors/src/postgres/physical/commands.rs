//! The questions that a WAL sender answers.

use strongroom_proto::wal::{Lsn, SystemIdentifier, TimelineHistory};

use super::error::WireError;
use super::wire::{Connection, Row};

/// The oldest major version whose base backups are understood.
const MAJOR_MIN: u32 = 15;

/// Who a server is, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) system: SystemIdentifier,
    pub(super) timeline: u32,
    /// What it has written, or a standby has received.
    pub(super) at: Lsn,
}

/// A physical slot as the server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// The oldest WAL it holds back; `None` where it holds back nothing.
    pub(super) restart: Option<Lsn>,
}

pub(super) async fn identify(connection: &mut Connection) -> Result<Identity, WireError> {
    let rows = connection.rows("IDENTIFY_SYSTEM").await?;
    let row = rows.first();
    let identity = || {
        Some(Identity {
            system: text(row?, 0)?.parse().ok()?,
            timeline: text(row?, 1)?.parse().ok()?,
            at: text(row?, 2)?.parse().ok()?,
        })
    };
    identity().ok_or(WireError::protocol("an answer to IDENTIFY_SYSTEM"))
}

/// The value of a setting; an error where the server has no such.
pub(super) async fn show(connection: &mut Connection, name: &'static str) -> Result<String, WireError> {
    let rows = connection.rows(&format!("SHOW {name}")).await?;
    rows.first()
        .and_then(|row| text(row, 0))
        .map(str::to_owned)
        .ok_or(WireError::protocol("an answer to SHOW"))
}

/// Whether a server is a standby, or recovers.
pub(super) async fn is_standby(connection: &mut Connection) -> Result<bool, WireError> {
    Ok(show(connection, "in_hot_standby").await? == "on")
}

/// The version as text, and its major number.
pub(super) fn version(connection: &Connection) -> Result<(String, u32), WireError> {
    let version = connection.server_version.split_whitespace().next().unwrap_or_default();
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let major = digits.parse().map_err(|_| WireError::protocol("a version"))?;
    if major < MAJOR_MIN {
        return Err(WireError::log_in(format!(
            "the server is version {version}: physical base backups need PostgreSQL {MAJOR_MIN} or newer; back up its \
             databases with method logical_dump"
        )));
    }
    Ok((version.to_owned(), major))
}

/// The size of WAL segments, in bytes.
pub(super) async fn segment_bytes(connection: &mut Connection) -> Result<u32, WireError> {
    let shown = show(connection, "wal_segment_size").await?;
    parse_segment_bytes(&shown).ok_or(WireError::protocol("a size of WAL segments"))
}

/// A setting that is a size, in bytes; `None` where it is below zero, which stands for no limit.
pub(super) async fn size(connection: &mut Connection, name: &'static str) -> Result<Option<u64>, WireError> {
    let shown = show(connection, name).await?;
    if shown.starts_with('-') {
        return Ok(None);
    }
    parse_size(&shown).map(Some).ok_or(WireError::protocol("a size"))
}

fn parse_size(shown: &str) -> Option<u64> {
    let digits = shown.find(|c: char| !c.is_ascii_digit()).unwrap_or(shown.len());
    let (number, unit) = shown.split_at(digits);
    let unit: u64 = match unit {
        "TB" => 1 << 40,
        "GB" => 1 << 30,
        "MB" => 1 << 20,
        "kB" => 1 << 10,
        "B" | "" => 1,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn parse_segment_bytes(shown: &str) -> Option<u32> {
    let bytes = u32::try_from(parse_size(shown)?).ok()?;
    (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(bytes)
}

/// The text of a timeline's history file.
pub(super) async fn history(
    connection: &mut Connection,
    timeline: u32,
) -> Result<(String, TimelineHistory), WireError> {
    let rows = connection.rows(&format!("TIMELINE_HISTORY {timeline}")).await?;
    let found = rows.first().and_then(|row| text(row, 1)).and_then(|text| {
        let history = TimelineHistory::parse(timeline, text)?;
        Some((text.to_owned(), history))
    });
    found.ok_or(WireError::protocol("the history of a timeline"))
}

/// What the server knows of a slot; `None` where there is none.
pub(super) async fn slot(connection: &mut Connection, name: &str) -> Result<Option<Slot>, WireError> {
    let rows = connection.rows(&format!("READ_REPLICATION_SLOT {name}")).await?;
    let row = rows.first().ok_or(WireError::protocol("an answer about a slot"))?;
    if text(row, 0).is_none() {
        return Ok(None);
    }
    let restart = text(row, 1).map(|lsn| lsn.parse().map_err(|_| WireError::protocol("a place in WAL")));
    Ok(Some(Slot {
        restart: restart.transpose()?,
    }))
}

/// Makes a slot that holds back WAL from the last checkpoint on.
pub(super) async fn create_slot(connection: &mut Connection, name: &str) -> Result<Slot, WireError> {
    connection
        .rows(&format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL"))
        .await?;
    let made = slot(connection, name).await?;
    made.ok_or(WireError::protocol("an answer about a slot"))
}

pub(super) async fn drop_slot(connection: &mut Connection, name: &str) -> Result<(), WireError> {
    connection.rows(&format!("DROP_REPLICATION_SLOT {name}")).await?;
    Ok(())
}

/// A value of a row as text; `None` where it is NULL or absent.
pub(super) fn text(row: &Row, column: usize) -> Option<&str> {
    std::str::from_utf8(row.get(column)?.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_segments_are_read_and_others_are_not() {
        for (shown, bytes) in [("16MB", 16 << 20), ("1GB", 1 << 30), ("1MB", 1 << 20)] {
            assert_eq!(parse_segment_bytes(shown), Some(bytes));
        }
        for bad in ["", "MB", "3MB", "512kB", "2GB", "16 MB", "99999999GB"] {
            assert_eq!(parse_segment_bytes(bad), None, "{bad}");
        }
    }
}
