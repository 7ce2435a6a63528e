use std::collections::BTreeMap;
use std::time::Duration;

use strongroom_connectors::StreamsAsFiles;
use strongroom_connectors::command::{CommandError, CommandTarget, dump};
use strongroom_connectors::files::{Existing, FilesRestore, drill_files};
use strongroom_proto::manifest::{Entry, EntrySink as _, EntrySource as _};
use strongroom_proto::receipt::CheckOutcome;

use crate::files::{options, restore};
use crate::memory::Memory;

fn shell(script: &str, timeout: Duration) -> CommandTarget {
    CommandTarget {
        program: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: BTreeMap::from([("NAME".to_owned(), "value".to_owned())]),
        timeout,
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn the_output_of_a_command_is_the_backup() {
    let mut memory = Memory::default();
    let report = dump(&shell("echo $NAME; seq 200000", MINUTE), &mut memory).unwrap();
    assert!(memory.text("output").starts_with("value\n1\n2\n"));
    assert_eq!(report.bytes, memory.content("output").len() as u64);
    let scratch = tempfile::tempdir().unwrap();
    let checks = drill_files(&StreamsAsFiles(&memory), scratch.path()).unwrap();
    assert!(
        checks.iter().all(|check| check.outcome == CheckOutcome::Passed),
        "{checks:?}"
    );

    let destination = scratch.path().join("restored");
    let mut restore = FilesRestore::create(&destination, false).unwrap();
    StreamsAsFiles(&memory).replay(&mut restore).unwrap();
    restore.finish().unwrap();
    assert_eq!(
        std::fs::read(destination.join("output")).unwrap(),
        memory.content("output")
    );
}

#[test]
fn a_command_that_fails_leaves_no_backup() {
    let mut memory = Memory::default();
    let error = dump(&shell("seq 100000; echo no more disk >&2; exit 7", MINUTE), &mut memory).unwrap_err();
    assert!(memory.entries.is_empty() && memory.is_open());
    assert!(error.to_string().contains("exit code 7"), "{error}");
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("no more disk")
    );
    assert!(matches!(
        dump(&shell("kill -9 $$", MINUTE), &mut Memory::default()),
        Err(CommandError::Failed { .. })
    ));
}

#[test]
fn a_command_that_hangs_is_ended_with_its_children() {
    let mut memory = Memory::default();
    let script = "echo begun; sleep 600 & sleep 600";
    let error = dump(&shell(script, Duration::from_millis(300)), &mut memory).unwrap_err();
    assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    assert!(memory.entries.is_empty());
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let target = CommandTarget {
        program: "no-such-program".to_owned(),
        ..shell("", MINUTE)
    };
    let error = dump(&target, &mut Memory::default()).unwrap_err();
    assert!(
        error.to_string().contains("no-such-program") && !error.is_retryable(),
        "{error}"
    );
}

#[test]
fn the_environment_is_not_shown() {
    assert!(!format!("{:?}", shell("echo secret", MINUTE)).contains("value"));
}

#[test]
fn streams_come_back_as_files_that_only_their_owner_reads_in_folders_of_their_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut memory = Memory::default();
    for path in ["globals.sql", "tables/public/orders.dump", "tables/public/lines.dump"] {
        memory.begin(&Entry::stream(path, "pg_dump")).unwrap();
        memory.write(path.as_bytes()).unwrap();
        memory.end().unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let destination = scratch.path().join("restored");
    restore(&StreamsAsFiles(&memory), &destination, options(Existing::Refuse)).unwrap();
    let mode = |path: &str| destination.join(path).metadata().unwrap().permissions().mode() & 0o7777;
    for path in memory.paths() {
        assert_eq!(std::fs::read_to_string(destination.join(path)).unwrap(), path);
        assert_eq!(mode(path), 0o600, "{path}");
    }
    assert_eq!((mode("tables"), mode("tables/public")), (0o700, 0o700));
}
