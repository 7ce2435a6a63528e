//! Whatever is edited in a file tree, and whatever became of the cache and the vault between two backups, every backup
//! restores exactly.

use std::path::Path;

use proptest::prelude::*;
use strongroom_proto::manifest::EntryKind;

use crate::support::*;
use crate::trees::*;

#[derive(Debug, Clone)]
enum Edit {
    InPlace {
        file: usize,
        at: usize,
        seed: u64,
        bytes: usize,
    },
    Append {
        file: usize,
        seed: u64,
        bytes: usize,
    },
    Truncate {
        file: usize,
        to: usize,
    },
    Insert {
        file: usize,
        at: usize,
        seed: u64,
        bytes: usize,
    },
    Delete {
        file: usize,
        at: usize,
        bytes: usize,
    },
    Rename {
        file: usize,
        seed: u64,
    },
    Touch {
        file: usize,
    },
    New {
        seed: u64,
        bytes: usize,
    },
    Remove {
        file: usize,
    },
    ChangeKind {
        file: usize,
    },
    Punch {
        file: usize,
        at: usize,
        bytes: usize,
    },
    FillHoles {
        file: usize,
    },
    SwapContents {
        file: usize,
        other: usize,
    },
}

fn an_edit() -> impl Strategy<Value = Edit> {
    let (file, at, seed) = (0..32_usize, any::<usize>(), 0..1_000_u64);
    let bytes = prop_oneof![0..100_usize, 8_000..20_000_usize, 900_000..1_500_000_usize];
    (0..13_u8, file, at, seed, bytes).prop_map(|(kind, file, at, seed, bytes)| match kind {
        0 => Edit::InPlace { file, at, seed, bytes },
        1 => Edit::Append { file, seed, bytes },
        2 => Edit::Truncate { file, to: at },
        3 => Edit::Insert { file, at, seed, bytes },
        4 => Edit::Delete { file, at, bytes },
        5 => Edit::Rename { file, seed },
        6 => Edit::Touch { file },
        7 => Edit::New { seed, bytes: bytes * 4 },
        8 => Edit::Remove { file },
        9 => Edit::ChangeKind { file },
        10 => Edit::Punch { file, at, bytes },
        11 => Edit::FillHoles { file },
        _ => Edit::SwapContents { file, other: at },
    })
}

/// What becomes of cache and vault before a backup.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    None,
    OtherProcess,
    CacheLost,
    CacheCut {
        at: usize,
    },
    CacheFlipped {
        at: usize,
    },
    CacheOfAnotherVault,
    CacheOfLongAgo,
    IndexRemoved,
    /// An attempt stored everything and left its cache, but made no commit.
    Abandoned,
    /// The same, and what it had stored is gone too.
    AbandonedAndSwept,
}

fn a_mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        4 => Just(Mishap::None),
        1 => Just(Mishap::OtherProcess),
        1 => Just(Mishap::CacheLost),
        2 => any::<usize>().prop_map(|at| Mishap::CacheCut { at }),
        2 => any::<usize>().prop_map(|at| Mishap::CacheFlipped { at }),
        1 => Just(Mishap::CacheOfAnotherVault),
        1 => Just(Mishap::CacheOfLongAgo),
        1 => Just(Mishap::IndexRemoved),
        1 => Just(Mishap::Abandoned),
        2 => Just(Mishap::AbandonedAndSwept),
    ]
}

fn place(at: usize, length: usize) -> usize {
    at % (length + 1)
}

fn apply(edit: &Edit, tree: &mut Tree) {
    let count = tree.nodes.len();
    if count == 0 && !matches!(edit, Edit::New { .. }) {
        return;
    }
    match *edit {
        Edit::InPlace { file, at, seed, bytes } => tree.change(file, |node| {
            let content = &mut node.content;
            content.fill_holes();
            let from = place(at, content.bytes.len());
            let to = (from + bytes).min(content.bytes.len());
            content.bytes[from..to].copy_from_slice(&noise(seed, to - from));
        }),
        Edit::Append { file, seed, bytes } => {
            tree.change(file, |node| node.content.bytes.extend_from_slice(&noise(seed, bytes)));
        }
        Edit::Truncate { file, to } => tree.change(file, |node| {
            node.content.fill_holes();
            let to = place(to, node.content.bytes.len());
            node.content.bytes.truncate(to);
        }),
        Edit::Insert { file, at, seed, bytes } => tree.change(file, |node| {
            node.content.fill_holes();
            let at = place(at, node.content.bytes.len());
            node.content.bytes.splice(at..at, noise(seed, bytes));
        }),
        Edit::Delete { file, at, bytes } => tree.change(file, |node| {
            node.content.fill_holes();
            let from = place(at, node.content.bytes.len());
            let to = (from + bytes).min(node.content.bytes.len());
            node.content.bytes.drain(from..to);
        }),
        Edit::Rename { file, seed } => {
            let from = tree.nodes.keys().nth(file % count).cloned().unwrap();
            if let Some(node) = tree.nodes.remove(&from) {
                tree.nodes.insert(vec!["a".to_owned(), format!("renamed-{seed}")], node);
            }
        }
        Edit::Touch { file } => tree.change(file, |_| ()),
        Edit::New { seed, bytes } => tree.put(&format!("new/{seed}"), Content::of(noise(seed, bytes))),
        Edit::Remove { file } => {
            let path = tree.nodes.keys().nth(file % count).cloned().unwrap();
            tree.nodes.remove(&path);
        }
        Edit::ChangeKind { file } => tree.change(file, |node| match node.kind {
            EntryKind::File => {
                node.kind = EntryKind::Symlink;
                node.content = Content::default();
            }
            _ => {
                node.kind = EntryKind::File;
                node.content = Content::of(rows(7, 40_000));
            }
        }),
        Edit::Punch { file, at, bytes } => tree.change(file, |node| {
            let from = place(at, node.content.bytes.len());
            node.content.punch(from..from + bytes);
        }),
        Edit::FillHoles { file } => tree.change(file, |node| node.content.fill_holes()),
        Edit::SwapContents { file, other } => {
            let mut taken = Content::default();
            tree.change(file, |node| taken.clone_from(&node.content));
            tree.change(other, |node| {
                if node.kind == EntryKind::File {
                    node.content = taken;
                }
            });
        }
    }
}

fn befall(mishap: Mishap, fixture: &mut Fixture, cache: &Path, tree: &Tree, first_cache: &[u8], number: i64) {
    match mishap {
        Mishap::None => {}
        Mishap::OtherProcess => learn_anew(fixture),
        Mishap::CacheLost => {
            let _ = std::fs::remove_file(cache);
        }
        Mishap::CacheCut { at } => {
            let mut bytes = std::fs::read(cache).unwrap_or_default();
            bytes.truncate(place(at, bytes.len()));
            std::fs::write(cache, bytes).unwrap();
        }
        Mishap::CacheFlipped { at } => {
            let mut bytes = std::fs::read(cache).unwrap_or_default();
            if !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] ^= 1 << (at % 8);
            }
            std::fs::write(cache, bytes).unwrap();
        }
        Mishap::CacheOfAnotherVault => {
            let other = Fixture::new();
            write(&other, cache, tree, number);
        }
        Mishap::CacheOfLongAgo => std::fs::write(cache, first_cache).unwrap(),
        Mishap::IndexRemoved => {
            remove(fixture, |object| object.starts_with("index/"));
            learn_anew(fixture);
        }
        Mishap::Abandoned => drop(write(fixture, cache, tree, number)),
        Mishap::AbandonedAndSwept => {
            let before = fixture.objects();
            write(fixture, cache, tree, number);
            remove(fixture, |object| !before.contains(object));
            learn_anew(fixture);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_backup_restores_exactly_whatever_was_edited_and_whatever_became_of_the_cache(
        steps in prop::collection::vec((prop::collection::vec(an_edit(), 0..4), a_mishap()), 1..5)
    ) {
        let mut fixture = Fixture::new();
        let (cache, mut tree) = (cache_of(&fixture), a_tree());
        let first = back_up(&fixture, &cache, &tree, 0);
        let first_cache = std::fs::read(&cache).unwrap();
        let mut kept = vec![(first.id, tree.clone())];
        for (number, (edits, mishap)) in (1..).zip(&steps) {
            edits.iter().for_each(|edit| apply(edit, &mut tree));
            if matches!(mishap, Mishap::IndexRemoved) {
                // Whatever needed it is lost with it.
                kept.clear();
            }
            befall(*mishap, &mut fixture, &cache, &tree, &first_cache, number);
            let outcome = back_up(&fixture, &cache, &tree, number);
            tree.assert_restores(&fixture, &outcome.id);
            kept.push((outcome.id, tree.clone()));
            let again = back_up(&fixture, &cache, &tree, number);
            prop_assert_eq!((again.sealed.totals.new_chunks, again.files_read), (0, 0));
        }
        for (id, tree) in &kept {
            tree.assert_restores(&fixture, id);
        }
    }
}
