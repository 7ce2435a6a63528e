//! Properties of any tree: it comes back, and after any changes a restore in place brings it back again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use strongroom_connectors::files::{Change, Existing, RestoreOptions};

use crate::files::{backup, describe, options, past, restore, set_mode, set_time, snapshot};

/// Names that are hard to handle, few enough to meet again.
const NAMES: [&[u8]; 8] = [
    b"a",
    b"b-",
    b"b",
    b"new\nline",
    b"\xff\xfe",
    b"~ space ",
    b"-rf",
    b"....",
];

#[derive(Debug, Clone)]
enum Step {
    File(Vec<u8>),
    Sparse(u32, Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Hardlink(PathBuf),
    Fifo,
    Remove,
    Mode(u32),
    Time(u32),
}

fn path() -> impl Strategy<Value = PathBuf> {
    let name = prop::sample::select(NAMES.to_vec());
    prop::collection::vec(name, 1..4).prop_map(|names| names.into_iter().map(OsStr::from_bytes).collect())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..3_000).prop_map(Step::File),
        1 => (0..3_000_000_u32, prop::collection::vec(any::<u8>(), 0..10)).prop_map(|(at, bytes)| Step::Sparse(at, bytes)),
        3 => Just(Step::Directory),
        1 => prop::collection::vec(1..=255_u8, 1..20).prop_map(Step::Symlink),
        2 => path().prop_map(Step::Hardlink),
        1 => Just(Step::Fifo),
        2 => Just(Step::Remove),
        2 => (0..0o1000_u32).prop_map(|mode| Step::Mode(mode | 0o700)),
        2 => any::<u32>().prop_map(Step::Time),
    ]
}

fn steps(most: usize) -> impl Strategy<Value = Vec<(PathBuf, Step)>> {
    prop::collection::vec((path(), step()), 0..most)
}

/// Does what is possible of a list of steps.
fn apply(root: &Path, steps: &[(PathBuf, Step)]) {
    for (path, step) in steps {
        let path = root.join(path);
        let there = path.symlink_metadata();
        let is_link = there.as_ref().is_ok_and(|facts| facts.is_symlink());
        let is_file = there.as_ref().is_ok_and(|facts| facts.is_file());
        // Nothing is written through a link, which leads out of the tree.
        if is_link && !matches!(step, Step::Remove | Step::Time(_)) {
            continue;
        }
        match step {
            Step::File(content) if there.is_err() || is_file => drop(fs::write(&path, content)),
            Step::Sparse(at, content) if there.is_err() || is_file => {
                if let Ok(file) = File::create(&path) {
                    file.write_all_at(content, u64::from(*at)).unwrap();
                    file.set_len(u64::from(*at) + 100_000).unwrap();
                }
            }
            Step::Directory => drop(fs::create_dir_all(&path)),
            Step::Symlink(target) => drop(symlink(OsStr::from_bytes(target), &path)),
            // Only regular files have further names in a backup.
            Step::Hardlink(other) => {
                let other = root.join(other);
                if other.symlink_metadata().is_ok_and(|facts| facts.is_file()) {
                    let _ = fs::hard_link(other, &path);
                }
            }
            Step::Fifo => {
                let fifo = rustix::fs::FileType::Fifo;
                let _ = rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::RWXU, 0);
            }
            Step::Remove if there.as_ref().is_ok_and(|facts| facts.is_dir()) => drop(fs::remove_dir_all(&path)),
            Step::Remove => drop(fs::remove_file(&path)),
            Step::Mode(mode) if there.is_ok() => set_mode(&path, *mode),
            Step::Time(seconds) if there.is_ok() => {
                set_time(
                    &path,
                    past() + std::time::Duration::from_nanos(u64::from(*seconds) * 1_000_003),
                );
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_and_comes_back_again_after_any_changes(made in steps(40), changed in steps(20)) {
        let source = tempfile::tempdir().unwrap();
        apply(source.path(), &made);
        let memory = backup(source.path());
        let expected = describe(source.path());
        let scratch = tempfile::tempdir().unwrap();
        let destination = scratch.path().join("new");
        restore(&memory, &destination, options(Existing::Refuse)).unwrap();
        prop_assert_eq!(describe(&destination), expected.clone());

        apply(&destination, &changed);
        let before = describe(&destination);
        let in_place = RestoreOptions { delete: true, ..options(Existing::InPlace) };
        let dry_run = RestoreOptions { dry_run: true, ..in_place.clone() };
        let (foreseen_counts, foreseen) = restore(&memory, &destination, dry_run).unwrap();
        prop_assert_eq!(describe(&destination), before);
        let (counts, changes) = restore(&memory, &destination, in_place.clone()).unwrap();
        prop_assert_eq!(&changes, &foreseen);
        prop_assert_eq!(counts, foreseen_counts);
        prop_assert_eq!(describe(&destination), expected.clone());
        let (_, again) = restore(&memory, &destination, in_place).unwrap();
        prop_assert_eq!(again, Vec::new());

        // What is as in a backup before is the same as if it had been read.
        let mut after = memory.next();
        let report = snapshot(&destination, &mut after).unwrap();
        prop_assert!(report.missing.is_empty());
        prop_assert_eq!(&after.entries, &memory.entries);
    }

    #[test]
    fn a_backup_after_changes_is_what_a_full_one_would_be(made in steps(30), changed in steps(15)) {
        let source = tempfile::tempdir().unwrap();
        apply(source.path(), &made);
        let first = backup(source.path());
        apply(source.path(), &changed);
        let mut second = first.next();
        snapshot(source.path(), &mut second).unwrap();
        prop_assert_eq!(&second.entries, &backup(source.path()).entries);
        let scratch = tempfile::tempdir().unwrap();
        let destination = scratch.path().join("new");
        let (_, changes) = restore(&second, &destination, options(Existing::Refuse)).unwrap();
        prop_assert!(changes.iter().all(|(change, _, _)| *change == Change::Create));
        prop_assert_eq!(describe(&destination), describe(source.path()));
    }
}
