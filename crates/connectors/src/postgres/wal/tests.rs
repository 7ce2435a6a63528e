//! A vault in memory, and what is asked of it and pushed into it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::DateTime;
use strongroom_proto::Sha256Digest;
use strongroom_proto::wal::{Lsn, StoredPiece, SystemIdentifier, WalPiece, WalSegment, WalSink, WalSource};

use super::page::tests::segment_of;
pub(crate) use super::page::tests::{MIB, SYSTEM};
use super::{Answer, AssembleError, HeadProblem, HistoryBefore, PushError, Pushed, find, push};

#[derive(Default)]
pub(crate) struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    pieces: Vec<(StoredPiece, WalPiece, Vec<u8>)>,
    histories: BTreeMap<u32, String>,
    /// Pieces that come after so many more calls.
    late: Option<(u32, u64, u32, u32)>,
    calls: u32,
    /// Pieces, by their place in the list, that cannot be opened.
    bad: Vec<usize>,
    /// The call that fails.
    fails_at: Option<u32>,
}

pub(crate) const fn first(number: u64) -> WalSegment {
    WalSegment { timeline: 1, number }
}

const fn on(timeline: u32, number: u64) -> WalSegment {
    WalSegment { timeline, number }
}

pub(crate) fn content(segment: WalSegment) -> Vec<u8> {
    segment_of(segment, &[200_000, 300_000, 400_000, 100_000])
}

impl Memory {
    pub(crate) fn add(&self, segment: WalSegment, from: u32, to: u32) {
        self.add_bytes(segment, from, &content(segment)[from as usize..to as usize]);
    }

    fn add_bytes(&self, segment: WalSegment, from: u32, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap();
        let begin = segment.begin(MIB).0 + u64::from(from);
        let piece = WalPiece {
            system_identifier: SYSTEM,
            timeline: segment.timeline,
            from: Lsn(begin),
            to: Lsn(begin + bytes.len() as u64),
            segment_bytes: MIB,
            server_time: None,
        };
        state.put(&piece, bytes.to_vec());
    }

    /// A piece that comes after so many more calls.
    pub(crate) fn comes_after(&self, calls: u32, number: u64, from: u32, to: u32) {
        self.0.lock().unwrap().late = Some((calls, number, from, to));
    }

    /// The piece that came as this one cannot be opened.
    fn spoil(&self, number: usize) {
        self.0.lock().unwrap().bad.push(number);
    }

    fn history(&self, timeline: u32, text: &str) {
        self.0.lock().unwrap().histories.insert(timeline, text.to_owned());
    }

    /// Counts a call, and fails the one that was chosen.
    fn called(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        if state.fails_at == Some(state.calls) {
            return Err(io::Error::other("the store is gone"));
        }
        if let Some((calls, number, from, to)) = state.late
            && state.calls > calls
        {
            state.late = None;
            drop(state);
            self.add(first(number), from, to);
            return Ok(self.0.lock().unwrap());
        }
        Ok(state)
    }

    async fn ask(&self, name: &str) -> Result<Answer, AssembleError> {
        find(self, SYSTEM, MIB, name).await
    }

    async fn ask_segment(&self, segment: WalSegment) -> Result<Answer, AssembleError> {
        self.ask(&segment.file_name(MIB)).await
    }
}

impl State {
    fn put(&mut self, piece: &WalPiece, bytes: Vec<u8>) {
        let mut digest = [0; 32];
        digest[0] = u8::try_from(self.pieces.len()).unwrap();
        let stored = StoredPiece {
            timeline: piece.timeline,
            from: piece.from,
            to: piece.to,
            sha256: Sha256Digest::from_bytes(digest),
            stored_at: DateTime::UNIX_EPOCH,
        };
        self.pieces.push((stored, piece.clone(), bytes));
    }
}

#[async_trait]
impl WalSource for Memory {
    async fn timelines(&self, system: SystemIdentifier) -> io::Result<Vec<u32>> {
        let state = self.called()?;
        let mut found: Vec<u32> = state.histories.keys().copied().collect();
        found.extend(state.pieces.iter().map(|(p, ..)| p.timeline));
        found.sort_unstable();
        found.dedup();
        Ok(if system == SYSTEM { found } else { Vec::new() })
    }
    async fn segment_pieces(&self, system: SystemIdentifier, segment: WalSegment) -> io::Result<Vec<StoredPiece>> {
        let state = self.called()?;
        let mut found: Vec<StoredPiece> = state.pieces.iter().map(|(p, ..)| p.clone()).collect();
        found.retain(|p| WalSegment::holding(p.timeline, p.from, MIB) == segment && system == SYSTEM);
        found.sort_by_key(|p| p.from);
        Ok(found)
    }
    async fn segments(&self, _: SystemIdentifier, timeline: u32) -> io::Result<Vec<WalSegment>> {
        let state = self.called()?;
        let mut found: Vec<WalSegment> = state.pieces.iter().map(|(_, p, _)| p.segment()).collect();
        found.retain(|s| s.timeline == timeline);
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
    async fn read(&self, _: SystemIdentifier, piece: &StoredPiece) -> io::Result<(WalPiece, Vec<u8>)> {
        let state = self.called()?;
        let found = state.pieces.iter().position(|(p, ..)| p == piece);
        if found.is_some_and(|number| state.bad.contains(&number)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its signature is not valid"));
        }
        let found = found.and_then(|number| state.pieces.get(number));
        let (_, piece, bytes) = found.ok_or(io::ErrorKind::NotFound)?;
        Ok((piece.clone(), bytes.clone()))
    }
    async fn history(&self, _: SystemIdentifier, timeline: u32) -> io::Result<Option<String>> {
        Ok(self.called()?.histories.get(&timeline).cloned())
    }
}

#[async_trait]
impl WalSink for Memory {
    async fn put(&self, piece: &WalPiece, bytes: Arc<Vec<u8>>) -> io::Result<()> {
        self.called()?.put(piece, bytes.to_vec());
        Ok(())
    }
    async fn put_history(&self, _: SystemIdentifier, timeline: u32, text: &str) -> io::Result<()> {
        self.called()?.histories.insert(timeline, text.to_owned());
        Ok(())
    }
    async fn has_history(&self, _: SystemIdentifier, timeline: u32) -> io::Result<bool> {
        Ok(self.called()?.histories.contains_key(&timeline))
    }
    async fn pieces(&self, _: SystemIdentifier, timeline: u32) -> io::Result<Vec<StoredPiece>> {
        let state = self.called()?;
        let mut found: Vec<StoredPiece> = state.pieces.iter().map(|(p, ..)| p.clone()).collect();
        found.retain(|p| p.timeline == timeline);
        found.sort_by_key(|p| p.from);
        Ok(found)
    }
}

fn found(answer: Result<Answer, AssembleError>) -> (Vec<u8>, bool) {
    match answer {
        Ok(Answer::Found(found)) => (found.bytes, found.is_whole),
        other => panic!("{other:?}"),
    }
}

fn hole(answer: Result<Answer, AssembleError>) -> (u64, u64) {
    match answer {
        Err(AssembleError::Hole { from, to, .. }) => (from.0, to.0),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn pieces_one_after_the_other_are_the_segment() {
    let vault = Memory::default();
    vault.add(first(5), 500_000, MIB);
    vault.add(first(5), 0, 100_000);
    vault.add(first(5), 100_000, 500_000);
    assert_eq!(found(vault.ask_segment(first(5)).await), (content(first(5)), true));
}

#[tokio::test]
async fn pieces_that_overlap_and_agree_are_the_segment() {
    let vault = Memory::default();
    for (from, to) in [(0, 700), (0, 700), (300, 500), (200, MIB), (0, MIB), (4000, 5000)] {
        vault.add(first(5), from, to);
    }
    assert_eq!(found(vault.ask_segment(first(5)).await), (content(first(5)), true));
}

#[tokio::test]
async fn of_two_versions_none_is_chosen() {
    let vault = Memory::default();
    vault.add(first(5), 0, 600_000);
    vault.add(first(5), 600_000, MIB);
    let mut other = content(first(5))[500_000..700_000].to_vec();
    other[150_000] ^= 1;
    vault.add_bytes(first(5), 500_000, &other);
    match vault.ask_segment(first(5)).await {
        Err(AssembleError::TwoVersions { at, one, other }) => {
            assert_eq!(at, Lsn(first(5).begin(MIB).0 + 650_000));
            // Both can be found in the vault by these names.
            let folder = format!("wal/{SYSTEM}/00000001/000000010000000000000005");
            assert!(
                one.starts_with(&format!("{folder}/0007A120-000AAE60-00100000.")),
                "{one}"
            );
            assert!(
                other.starts_with(&format!("{folder}/000927C0-00100000-00100000.")),
                "{other}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_hole_inside_a_segment_is_an_error() {
    let vault = Memory::default();
    let begin = first(5).begin(MIB).0;
    vault.add(first(5), 0, 1000);
    vault.add(first(5), 1008, MIB);
    assert_eq!(hole(vault.ask_segment(first(5)).await), (begin + 1000, begin + 1008));
    let headless = Memory::default();
    headless.add(first(5), 8, MIB);
    assert_eq!(hole(headless.ask_segment(first(5)).await), (begin, begin + 8));
}

#[tokio::test]
async fn the_last_segment_is_filled_up_and_grows() {
    let vault = Memory::default();
    vault.add(first(4), 0, MIB);
    vault.add(first(5), 0, 1000);
    let mut expected = content(first(5))[..1000].to_vec();
    expected.resize(MIB as usize, 0);
    assert_eq!(found(vault.ask_segment(first(5)).await), (expected, false));
    vault.add(first(5), 1000, MIB);
    assert_eq!(found(vault.ask_segment(first(5)).await), (content(first(5)), true));
    assert_eq!(vault.ask_segment(first(6)).await.unwrap(), Answer::Absent);
}

#[tokio::test]
async fn a_segment_that_is_short_or_missing_before_another_is_a_hole() {
    let vault = Memory::default();
    vault.add(first(3), 0, 1000);
    vault.add(first(5), 0, 1000);
    let end_of = |number| first(number).end(MIB).0;
    let short = hole(vault.ask_segment(first(3)).await);
    assert_eq!(short, (first(3).begin(MIB).0 + 1000, end_of(3)));
    assert_eq!(
        hole(vault.ask_segment(first(4)).await),
        (first(4).begin(MIB).0, end_of(4))
    );
    let told = vault.ask_segment(first(4)).await.unwrap_err().to_string();
    assert!(told.contains("000000010000000000000005 is there"), "{told}");
    // Before the first one as well: it was there once.
    assert_eq!(hole(vault.ask_segment(first(2)).await).1, end_of(2));
}

#[tokio::test]
async fn what_comes_while_it_is_asked_for_is_no_hole() {
    let vault = Memory::default();
    vault.add(first(5), 0, 1000);
    vault.add(first(6), 0, 1000);
    // The rest of 5 is listed the second time only.
    vault.comes_after(2, 5, 1000, MIB);
    assert_eq!(found(vault.ask_segment(first(5)).await), (content(first(5)), true));
}

#[tokio::test]
async fn a_timeline_that_was_left_must_reach_the_place_where_it_was_left() {
    let vault = Memory::default();
    let left_at = first(5).begin(MIB).0 + 5000;
    vault.add(first(5), 0, 4096);
    vault.history(2, &format!("1\t{}\tno recovery target specified\n", Lsn(left_at)));
    let missing = hole(vault.ask_segment(first(5)).await);
    assert_eq!(missing.0, first(5).begin(MIB).0 + 4096);
    vault.add(first(5), 4096, 5000);
    assert!(!found(vault.ask_segment(first(5)).await).1);
    assert_eq!(vault.ask_segment(first(6)).await.unwrap(), Answer::Absent);
    // Left further on than anything that is there: absent would end a recovery too early.
    vault.history(3, &format!("1\t{}\tx\n", first(7).begin(MIB)));
    assert_eq!(hole(vault.ask_segment(first(6)).await).1, first(6).end(MIB).0);
    // A timeline has no segment before the one in which it began.
    vault.add(on(2, 5), 0, MIB);
    assert_eq!(vault.ask_segment(on(2, 4)).await.unwrap(), Answer::Absent);
    assert!(found(vault.ask_segment(on(2, 5)).await).1);
    vault.history(3, "what is this");
    let damaged = vault.ask_segment(first(6)).await;
    assert!(
        matches!(damaged, Err(AssembleError::HistoryDamaged { timeline: 3 })),
        "{damaged:?}"
    );
}

#[tokio::test]
async fn histories_are_answered_and_a_missing_one_does_not_hide_a_timeline() {
    let vault = Memory::default();
    vault.add(first(5), 0, MIB);
    assert_eq!(vault.ask("00000002.history").await.unwrap(), Answer::Absent);
    assert_eq!(vault.ask("00000001.history").await.unwrap(), Answer::Absent);
    let text = "1\t0/600000\tno recovery target specified\n";
    vault.history(2, text);
    assert_eq!(
        found(vault.ask("00000002.history").await),
        (text.as_bytes().to_vec(), true)
    );
    assert_eq!(vault.ask("00000003.history").await.unwrap(), Answer::Absent);
    vault.add(on(3, 7), 0, 1000);
    let hidden = vault.ask("00000003.history").await;
    assert!(
        matches!(hidden, Err(AssembleError::HistoryMissing { timeline: 3, known: 3 })),
        "{hidden:?}"
    );
    vault.history(4, "junk\n");
    let damaged = vault.ask("00000004.history").await;
    assert!(
        matches!(damaged, Err(AssembleError::HistoryDamaged { timeline: 4 })),
        "{damaged:?}"
    );
}

#[tokio::test]
async fn a_vault_without_wal_of_the_cluster_does_not_say_absent() {
    let vault = Memory::default();
    for name in [
        "000000010000000000000005",
        "00000002.history",
        "000000010000000000000005.00000028.backup",
    ] {
        let answer = vault.ask(name).await;
        assert!(matches!(answer, Err(AssembleError::NoWal { .. })), "{answer:?}");
    }
    vault.add(first(5), 0, MIB);
    let label = vault.ask("000000010000000000000005.00000028.backup").await;
    assert_eq!(label.unwrap(), Answer::Absent);
    let other = find(&vault, SystemIdentifier(1), MIB, "000000010000000000000005").await;
    assert!(matches!(other, Err(AssembleError::NoWal { .. })), "{other:?}");
    for name in [
        "",
        "..",
        "postgresql.conf",
        "00000001000000000000000g",
        "00000001000000000000000500",
    ] {
        let answer = vault.ask(name).await;
        assert!(matches!(answer, Err(AssembleError::Name { .. })), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn what_does_not_begin_as_its_name_says_is_refused() {
    let wrong = Memory::default();
    wrong.add_bytes(first(5), 0, &content(first(4)));
    let answer = wrong.ask_segment(first(5)).await;
    let Err(AssembleError::Head { source, .. }) = answer else {
        panic!("{answer:?}")
    };
    assert!(matches!(source, HeadProblem::Address { .. }));
    let junk = Memory::default();
    junk.add_bytes(first(5), 0, &[0; 1000]);
    let answer = junk.ask_segment(first(5)).await;
    assert!(matches!(answer, Err(AssembleError::Head { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_piece_that_contradicts_its_name_is_refused() {
    let vault = Memory::default();
    vault.add(first(5), 0, MIB);
    let spoil = |change: fn(&mut (StoredPiece, WalPiece, Vec<u8>))| {
        let vault = Memory::default();
        vault.add(first(5), 0, MIB);
        change(&mut vault.0.lock().unwrap().pieces[0]);
        vault
    };
    for spoilt in [
        spoil(|(_, says, _)| says.segment_bytes = 16 * MIB),
        spoil(|(_, says, _)| says.system_identifier = SystemIdentifier(2)),
        spoil(|(_, says, _)| says.timeline = 2),
        spoil(|(_, says, _)| says.to.0 -= 8),
        spoil(|(.., bytes)| bytes.truncate(1000)),
        spoil(|(stored, ..)| stored.to.0 += 1),
    ] {
        let answer = spoilt.ask_segment(first(5)).await;
        assert!(matches!(answer, Err(AssembleError::Piece { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn a_bad_piece_matters_only_where_no_sound_one_covers_its_place() {
    let vault = Memory::default();
    vault.add(first(5), 0, MIB);
    vault.add(first(5), 0, 600_000);
    vault.spoil(0);
    let answer = vault.ask_segment(first(5)).await;
    assert!(matches!(answer, Err(AssembleError::Source { .. })), "{answer:?}");
    vault.add(first(5), 700_000, MIB);
    let answer = vault.ask_segment(first(5)).await;
    assert!(matches!(answer, Err(AssembleError::Source { .. })), "{answer:?}");
    vault.add(first(5), 500_000, 700_000);
    assert_eq!(found(vault.ask_segment(first(5)).await), (content(first(5)), true));
    // One that is not what its name says, and one that belongs elsewhere.
    vault.add(first(5), 1000, 2000);
    vault.0.lock().unwrap().pieces[4].2.truncate(10);
    vault.add(first(5), 3000, MIB);
    vault.0.lock().unwrap().pieces[5].0.to.0 += 8;
    assert_eq!(found(vault.ask_segment(first(5)).await), (content(first(5)), true));
    // A store that does not answer is no bad piece.
    for fails_at in 1..=6 {
        {
            let mut state = vault.0.lock().unwrap();
            (state.calls, state.fails_at) = (0, Some(fails_at));
        }
        let answer = vault.ask_segment(first(5)).await;
        assert!(
            matches!(answer, Err(AssembleError::Source { .. })),
            "{fails_at}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_source_that_fails_at_any_call_is_never_an_absence() {
    for name in [
        "000000010000000000000005",
        "000000010000000000000006",
        "00000002.history",
        "00000003.history",
        "000000020000000000000007",
    ] {
        let vault = Memory::default();
        vault.add(first(5), 0, 500_000);
        vault.add(first(5), 500_000, 600_000);
        vault.history(2, &format!("1\t{}\tx\n", Lsn(first(5).begin(MIB).0 + 600_000)));
        let answer = vault.ask(name).await.unwrap();
        let calls = vault.0.lock().unwrap().calls;
        assert!(calls > 0);
        for fails_at in 1..=calls {
            {
                let mut state = vault.0.lock().unwrap();
                (state.calls, state.fails_at) = (0, Some(fails_at));
            }
            let failed = vault.ask(name).await;
            assert!(
                matches!(failed, Err(AssembleError::Source { .. })),
                "{name} at {fails_at}: {failed:?}"
            );
        }
        vault.0.lock().unwrap().fails_at = None;
        assert_eq!(vault.ask(name).await.unwrap(), answer);
    }
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

async fn hand_over(vault: &Memory, name: &str, bytes: &[u8]) -> Result<Pushed, PushError> {
    let (_folder, path) = file(name, bytes);
    push(vault, None, SYSTEM, &path).await
}

#[tokio::test]
async fn a_pushed_segment_is_answered_as_it_was() {
    let vault = Memory::default();
    let name = first(5).file_name(MIB);
    let Pushed::Stored(piece) = hand_over(&vault, &name, &content(first(5))).await.unwrap() else {
        panic!("not stored")
    };
    assert_eq!((piece.from, piece.to), (first(5).begin(MIB), first(5).end(MIB)));
    assert!(piece.server_time.is_some());
    assert_eq!(found(vault.ask(&name).await), (content(first(5)), true));
    // Of a segment whose timeline was left, what was written: nothing is claimed of the rest.
    let partial = segment_of(first(6), &[100_000]);
    let Pushed::Stored(piece) = hand_over(&vault, &format!("{}.partial", first(6).file_name(MIB)), &partial)
        .await
        .unwrap()
    else {
        panic!("not stored")
    };
    assert_eq!(piece.len(), 40 + 100_000 + 12 * 24);
    assert_eq!(found(vault.ask_segment(first(6)).await), (partial, false));
}

#[tokio::test]
async fn histories_are_stored_and_labels_are_not_needed() {
    let vault = Memory::default();
    let text = "1\t0/600000\tno recovery target specified\n";
    let stored = hand_over(&vault, "00000002.history", text.as_bytes()).await.unwrap();
    assert!(
        matches!(&stored, Pushed::StoredHistory { history, before: HistoryBefore::None, .. } if history.timeline == 2),
        "{stored:?}"
    );
    assert_eq!(found(vault.ask("00000002.history").await).0, text.as_bytes());
    for bad in [&b""[..], b"junk", b"\xff", b"3\t0/1\tx\n"] {
        let refused = hand_over(&vault, "00000003.history", bad).await;
        assert!(matches!(refused, Err(PushError::History { .. })), "{refused:?}");
    }
    // What is there already is compared by who may read it, and told by who may not.
    let other = text.replace("0/600000", "0/700000");
    for (text, blind, seeing) in [
        (text, HistoryBefore::Unknown, HistoryBefore::Same),
        (&other, HistoryBefore::Unknown, HistoryBefore::Another),
    ] {
        let (_folder, path) = file("00000002.history", text.as_bytes());
        for (source, expected) in [(Some(&vault as &dyn WalSource), seeing), (None, blind)] {
            let pushed = push(&vault, source, SYSTEM, &path).await.unwrap();
            assert!(
                matches!(&pushed, Pushed::StoredHistory { before, .. } if *before == expected),
                "{text}: {pushed:?}"
            );
        }
    }
    let label = hand_over(&vault, "000000010000000000000005.00000028.backup", b"START WAL").await;
    assert_eq!(label.unwrap(), Pushed::Ignored);
}

#[tokio::test]
async fn what_is_not_the_segment_it_is_called_is_not_stored() {
    let vault = Memory::default();
    let good = content(first(5));
    let name = first(5).file_name(MIB);
    let refused = |name: &str, bytes: &[u8]| {
        let (name, bytes) = (name.to_owned(), bytes.to_vec());
        let vault = &vault;
        async move { hand_over(vault, &name, &bytes).await.unwrap_err() }
    };
    assert!(matches!(refused(&name, &[]).await, PushError::Empty { .. }));
    assert!(matches!(refused(&name, &good[..10]).await, PushError::Head { .. }));
    assert!(matches!(refused(&name, &good[..8192]).await, PushError::Length { .. }));
    assert!(matches!(
        refused(&name, &good[..good.len() - 1]).await,
        PushError::Length { .. }
    ));
    let long = [&good[..], &[0]].concat();
    assert!(matches!(refused(&name, &long).await, PushError::Length { .. }));
    assert!(matches!(
        refused(&name, &vec![0; MIB as usize]).await,
        PushError::Head { .. }
    ));
    for other in [first(6), on(2, 4)] {
        let error = refused(&other.file_name(MIB), &good).await;
        assert!(matches!(error, PushError::Head { .. }), "{error:?}");
    }
    assert!(matches!(refused("nonsense", &good).await, PushError::Name { .. }));
    let (_folder, path) = file(&name, &good);
    let foreign = push(&vault, None, SystemIdentifier(3), &path).await.unwrap_err();
    let PushError::Head { source, .. } = foreign else {
        panic!("{foreign:?}")
    };
    assert!(matches!(source, HeadProblem::System { .. }));
    assert!(vault.0.lock().unwrap().pieces.is_empty(), "nothing was stored");
    let gone = push(&vault, None, SYSTEM, &path.with_extension("history")).await;
    assert!(matches!(gone, Err(PushError::Name { .. })), "{gone:?}");
    let gone = push(&vault, None, SYSTEM, &path.with_file_name("000000010000000000000009")).await;
    assert!(matches!(gone, Err(PushError::Read { .. })), "{gone:?}");
}

#[tokio::test]
async fn what_is_there_already_is_compared_by_who_may_read_it() {
    let vault = Memory::default();
    let name = first(5).file_name(MIB);
    let good = content(first(5));
    let (_folder, path) = file(&name, &good);
    let stored = || vault.0.lock().unwrap().pieces.len();
    vault.add(first(5), 0, 1000);
    // Only a part of it.
    let first_time = push(&vault, Some(&vault), SYSTEM, &path).await.unwrap();
    assert!(matches!(first_time, Pushed::Stored(_)), "{first_time:?}");
    assert_eq!(stored(), 2);
    let again = push(&vault, Some(&vault), SYSTEM, &path).await.unwrap();
    assert!(matches!(again, Pushed::AlreadyThere(_)), "{again:?}");
    assert_eq!(stored(), 2);
    // Who cannot read stores it once more, and says what else is there.
    let blind = push(&vault, None, SYSTEM, &path).await.unwrap();
    assert!(
        matches!(&blind, Pushed::StoredBeside { others, .. } if others.len() == 2),
        "{blind:?}"
    );
    assert_eq!(found(vault.ask(&name).await), (good.clone(), true));
    // Bad pieces keep nothing out.
    for number in 0..3 {
        vault.spoil(number);
    }
    let beside = push(&vault, Some(&vault), SYSTEM, &path).await.unwrap();
    assert!(
        matches!(&beside, Pushed::StoredBeside { others, .. } if others.len() == 3),
        "{beside:?}"
    );
    // Another server's version: kept, told, and never chosen between.
    let mut other = good;
    other[777] ^= 1;
    std::fs::write(&path, &other).unwrap();
    let apart = push(&vault, Some(&vault), SYSTEM, &path).await.unwrap();
    assert!(
        matches!(&apart, Pushed::StoredApart { at, .. } if at.0 == first(5).begin(MIB).0 + 777),
        "{apart:?}"
    );
    assert_eq!(stored(), 5);
    let two = vault.ask(&name).await;
    assert!(matches!(two, Err(AssembleError::TwoVersions { .. })), "{two:?}");
}

#[tokio::test]
async fn a_very_large_segment_becomes_several_pieces() {
    const LARGE: u32 = 32 * MIB;
    let segment = first(5);
    let mut bytes = content(segment);
    bytes.resize(LARGE as usize, 7);
    // The place and the size that the first page tells.
    bytes[8..16].copy_from_slice(&segment.begin(LARGE).0.to_le_bytes());
    bytes[32..36].copy_from_slice(&LARGE.to_le_bytes());
    let (_folder, path) = file(&segment.file_name(LARGE), &bytes);
    let vault = Memory::default();
    let pushed = push(&vault, None, SYSTEM, &path).await.unwrap();
    assert!(
        matches!(&pushed, Pushed::Stored(piece) if piece.from == segment.begin(LARGE) && piece.to == segment.end(LARGE)),
        "{pushed:?}"
    );
    let state = vault.0.into_inner().unwrap();
    let sizes: Vec<u64> = state.pieces.iter().map(|(_, piece, _)| piece.len()).collect();
    assert_eq!(sizes, [u64::from(16 * MIB); 2]);
    assert_eq!(state.pieces[1].0.from.0, segment.begin(LARGE).0 + u64::from(16 * MIB));
    let joined: Vec<u8> = state.pieces.into_iter().flat_map(|(.., bytes)| bytes).collect();
    assert!(joined == bytes, "the pieces in order are the segment");
}

#[tokio::test]
async fn a_push_is_an_error_where_the_vault_fails_at_any_call() {
    let good = content(first(5));
    let (_folder, path) = file(&first(5).file_name(MIB), &good);
    for fails_at in 1..=4 {
        let vault = Memory::default();
        vault.add(first(5), 0, 1000);
        vault.add(first(5), 1000, 2000);
        vault.0.lock().unwrap().fails_at = Some(fails_at);
        let failed = push(&vault, Some(&vault), SYSTEM, &path).await;
        assert!(matches!(failed, Err(PushError::Vault { .. })), "{fails_at}: {failed:?}");
        assert_eq!(vault.0.lock().unwrap().pieces.len(), 2);
    }
}
