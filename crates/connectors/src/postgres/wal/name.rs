//! The names of files in an archive of WAL.

use strongroom_proto::wal::WalSegment;

/// What Postgres names when it archives or asks for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalFileName {
    /// A segment.
    Segment(WalSegment),
    /// The last segment of a timeline that was left, as far as it was written: `NAME.partial`.
    Partial(WalSegment),
    /// The history of a timeline: `NNNNNNNN.history`.
    History(u32),
    /// The label of a backup: `NAME.OFFSET.backup`. It says nothing that a receipt does not.
    BackupLabel,
}

impl WalFileName {
    /// Reads a name; `None` where no such file is in an archive of a cluster with segments of this size.
    pub fn parse(name: &str, segment_bytes: u32) -> Option<Self> {
        let hex8 = |text: &str| {
            let is_hex = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
            is_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten()
        };
        let segment = |text: &str| WalSegment::from_file_name(text, segment_bytes).filter(|s| s.timeline > 0);
        if let Some(found) = segment(name) {
            return Some(Self::Segment(found));
        }
        let (rest, ending) = name.rsplit_once('.')?;
        match ending {
            "partial" => segment(rest).map(Self::Partial),
            "history" => hex8(rest).filter(|timeline| *timeline > 0).map(Self::History),
            "backup" => {
                let (of, offset) = rest.split_once('.')?;
                (segment(of).is_some() && hex8(offset).is_some()).then_some(Self::BackupLabel)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB16: u32 = 16 << 20;

    #[test]
    fn names_are_what_an_archive_holds_and_nothing_else() {
        let segment = WalSegment {
            timeline: 2,
            number: 0x105,
        };
        for (name, expected) in [
            ("000000020000000100000005", WalFileName::Segment(segment)),
            ("000000020000000100000005.partial", WalFileName::Partial(segment)),
            ("0000001F.history", WalFileName::History(31)),
            ("000000020000000100000005.00000028.backup", WalFileName::BackupLabel),
        ] {
            assert_eq!(WalFileName::parse(name, MIB16), Some(expected), "{name}");
        }
        for name in [
            "",
            ".history",
            "00000000.history",
            "1F.history",
            "0000001f.history",
            "000000000000000100000005",
            "000000020000000100000105",
            "000000020000000100000005.backup",
            "000000020000000100000005.28.backup",
            "000000020000000100000005.partial.partial",
            "../000000020000000100000005",
            "000000020000000100000005\n",
            "postgresql.conf",
        ] {
            assert_eq!(WalFileName::parse(name, MIB16), None, "{name:?}");
        }
    }
}
