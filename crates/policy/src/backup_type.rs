//! What a backup reads where nobody said.

use strongroom_proto::{BackupType, TargetKind};

/// The type that was said, or the one that is usual for the kind: of files what changed, because an unchanged file is
/// known without reading it; of anything else everything.
pub fn or_usual(said: Option<BackupType>, kind: TargetKind) -> BackupType {
    said.unwrap_or(match kind {
        TargetKind::Files => BackupType::Incremental,
        TargetKind::Postgres | TargetKind::Bucket | TargetKind::Config | TargetKind::Command => BackupType::Full,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_and_files_are_read_where_they_changed() {
        assert_eq!(or_usual(None, TargetKind::Files), BackupType::Incremental);
        assert_eq!(or_usual(None, TargetKind::Postgres), BackupType::Full);
        for said in [BackupType::Full, BackupType::Differential] {
            assert_eq!(or_usual(Some(said), TargetKind::Files), said);
            assert_eq!(or_usual(Some(said), TargetKind::Command), said);
        }
    }
}
