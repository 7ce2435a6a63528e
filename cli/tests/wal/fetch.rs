//! What `wal fetch` answers, and how it ends where it cannot.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use strongroom_testkit::wait_for;

use crate::place::{MIB, Place, SIGTERM, SYSTEM, name, segment, stderr};

const BOUND: Duration = Duration::from_secs(30);

#[test]
fn what_is_there_is_written_and_what_comes_after_it_is_absent() {
    let place = Place::with_vault();
    for number in 3..6 {
        place.pushed(&name(1, number), &segment(1, number));
    }
    place.pushed("00000002.history", b"1\t0/600000\tno recovery target specified\n");
    for number in 3..6 {
        assert_eq!(place.fetched(&name(1, number)), segment(1, number));
    }
    assert_eq!(
        place.fetched("00000002.history"),
        b"1\t0/600000\tno recovery target specified\n"
    );
    let mode = std::fs::metadata(place.path("got")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for absent in [
        name(1, 6),
        name(2, 6),
        "00000003.history".to_owned(),
        format!("{}.00000028.backup", name(1, 3)),
    ] {
        let answer = place.fetch(&absent, &[]);
        assert_eq!(answer.status.code(), Some(1), "{absent}: {}", stderr(&answer));
        assert!(!place.path("got").exists());
        assert_eq!(stderr(&answer), "");
    }
}

#[test]
fn flags_say_the_same_as_a_file_of_settings() {
    let place = Place::with_vault();
    place.pushed(&name(1, 3), &segment(1, 3));
    let (store, identity, got) = (place.text("vault"), place.text("keys/identity.txt"), place.text("got"));
    let system = SYSTEM.to_string();
    let flags = [
        "wal",
        "fetch",
        &name(1, 3),
        &got,
        "--store",
        &store,
        "--identity",
        &identity,
        "--system",
        &system,
        "--segment-bytes",
        "1048576",
        "--retry-seconds",
        "1",
    ];
    let fetched = place.run(&flags);
    assert_eq!(fetched.status.code(), Some(0), "{}", stderr(&fetched));
    assert_eq!(std::fs::read(&got).unwrap(), segment(1, 3));
    std::fs::remove_file(&got).unwrap();
    // Without the size of segments, which is not the usual one, another segment would have this name.
    let told = place.ended(&place.run(&flags[..10]));
    assert!(
        told.contains("with segments of 16777216 bytes") && told.contains("--segment-bytes"),
        "{told}"
    );
}

#[test]
fn a_wrong_call_ends_by_a_signal() {
    let place = Place::with_vault();
    place.pushed(&name(1, 3), &segment(1, 3));
    let (settings, got, wanted) = (place.text("fetch.json"), place.text("got"), name(1, 3));
    let calls: [&[&str]; 9] = [
        &["wal", "fetch"],
        &["wal", "fetch", &wanted],
        &["wal", "fetch", &wanted, &got],
        &["wal", "fetch", &wanted, &got, "--from"],
        &["wal", "fetch", &wanted, &got, "--form", &settings],
        &["wal", "fetch", &wanted, &got, "--from", "/nonexistent/fetch.json"],
        &[
            "wal",
            "fetch",
            &wanted,
            &got,
            "--from",
            &settings,
            "--segment-bytes",
            "0",
        ],
        &["wal", "--wrong", "fetch", &wanted, &got, "--from", &settings],
        &["wal", "fetch", "pg_hba.conf", &got, "--from", &settings],
    ];
    for call in calls {
        let output = place.run(call);
        assert_eq!(output.status.signal(), Some(SIGTERM), "{call:?}: {output:?}");
        assert!(!stderr(&output).is_empty(), "{call:?}");
        assert!(!place.path("got").exists());
    }
    // Also where nobody listens.
    let mut deaf = place.command(&["wal", "fetch", "nonsense", &got, "--from", &settings]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = deaf.stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.signal(), Some(SIGTERM));
    // Settings that others can read may hold a key.
    std::fs::set_permissions(&settings, PermissionsExt::from_mode(0o640)).unwrap();
    let told = place.ended(&place.fetch(&wanted, &[]));
    assert!(told.contains("chmod 600"), "{told}");
}

#[test]
fn a_vault_that_cannot_be_read_is_never_an_absence() {
    let place = Place::with_vault();
    for number in [3, 5] {
        place.pushed(&name(1, number), &segment(1, number));
    }
    let ended = |wanted: &str, expected: &str| {
        let told = place.ended(&place.fetch(wanted, &[]));
        assert!(told.contains(expected), "{told}");
    };
    ended(&name(1, 4), "hole");
    // Absent otherwise.
    let last = name(1, 6);
    assert_eq!(place.fetch(&last, &[]).status.code(), Some(1));
    std::fs::rename(place.path("vault"), place.path("away")).unwrap();
    ended(&last, "no vault");
    std::fs::create_dir(place.path("vault")).unwrap();
    ended(&last, "no vault");
    std::fs::remove_dir(place.path("vault")).unwrap();
    std::fs::rename(place.path("away"), place.path("vault")).unwrap();
    place.set("system_identifier", json!("1"));
    ended(&last, "no WAL of the cluster with system identifier 1");
    place.set("system_identifier", json!(SYSTEM.to_string()));
    place.set("identity_file", json!(place.text("keys/none.txt")));
    ended(&last, "none.txt");
    let other = Place::with_vault();
    place.set("identity_file", json!(other.text("keys/identity.txt")));
    ended(&name(1, 5), "identity");
    place.set("identity_file", json!(place.text("keys/identity.txt")));
    place.set("allowed_signers_file", json!(place.text("signers")));
    ended(&name(1, 5), "signers");
    let signers = other.run(&["vault", "signers", "--store", &other.text("vault")]);
    std::fs::write(place.path("signers"), signers.stdout).unwrap();
    ended(&name(1, 5), "sign");
    let signers = place.run(&["vault", "signers", "--store", &place.text("vault")]);
    std::fs::write(place.path("signers"), signers.stdout).unwrap();
    assert_eq!(place.fetched(&name(1, 5)), segment(1, 5));
    let nowhere = place.text("missing/RECOVERYXLOG");
    let told = place.run(&[
        "wal",
        "fetch",
        &name(1, 5),
        &nowhere,
        "--from",
        &place.text("fetch.json"),
    ]);
    assert_eq!(told.status.signal(), Some(SIGTERM), "{told:?}");
    // A flipped bit in the middle of the piece.
    let piece = place
        .objects()
        .into_iter()
        .find(|path| path.to_string_lossy().contains(&name(1, 5)));
    let piece = piece.unwrap();
    let mut bytes = std::fs::read(&piece).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&piece, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&piece, bytes).unwrap();
    ended(&name(1, 5), "SHA-256");
}

#[test]
fn a_full_disk_ends_by_a_signal_and_leaves_nothing() {
    let place = Place::with_vault();
    place.pushed(&name(1, 3), &segment(1, 3));
    let mut command = Command::new("sh");
    // Files of at most 512 KiB, as on a disk that is nearly full; the signal that tells so is ignored, as Rust's runtime
    // would find it.
    command.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "sh"]);
    command.arg(env!("CARGO_BIN_EXE_strongroom"));
    command.args([
        "wal",
        "fetch",
        &name(1, 3),
        &place.text("got"),
        "--from",
        &place.text("fetch.json"),
    ]);
    let told = place.ended(&command.stdin(Stdio::null()).output().unwrap());
    assert!(told.contains("for Postgres"), "{told}");
}

#[test]
fn segments_are_brought_ahead_and_whoever_brings_them_may_die() {
    let place = Place::with_vault();
    let count = 30_u64;
    for number in 1..=count {
        place.pushed(&name(1, number), &segment(1, number));
    }
    let spool = place.text("spool");
    place.set("spool_dir", json!(spool));
    place.set("prefetch_segments", json!(5));
    assert_eq!(place.fetched(&name(1, 1)), segment(1, 1));
    let folder = || -> PathBuf { std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap().path() };
    let ahead = || -> Vec<u64> {
        let names = std::fs::read_dir(folder()).unwrap();
        let names = names.filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let (segment, digest) = name.split_once('.')?;
            (digest.len() == 64).then(|| u64::from_str_radix(&segment[16..], 16).unwrap())
        });
        let mut numbers: Vec<u64> = names.collect();
        numbers.sort_unstable();
        numbers
    };
    let is_ahead = |expected: &[u64]| wait_for("segments ahead", BOUND, || (ahead() == expected).then_some(()));
    is_ahead(&[2, 3, 4, 5, 6]).unwrap();
    // From the folder: the vault is not needed for these.
    std::fs::rename(place.path("vault"), place.path("away")).unwrap();
    assert_eq!(place.fetched(&name(1, 2)), segment(1, 2));
    assert_eq!(place.fetched(&name(1, 3)), segment(1, 3));
    std::fs::rename(place.path("away"), place.path("vault")).unwrap();
    // Whoever fills the folder is killed in the middle, again and again.
    for number in 4..=count {
        if let Some(pid) = prefetcher(&folder()) {
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
            assert!(killed.success() || prefetcher(&folder()).is_none_or(|now| now != pid));
        }
        assert_eq!(place.fetched(&name(1, number)), segment(1, number), "{number}");
        assert!(ahead().len() <= 7, "{:?}", ahead());
    }
    assert_eq!(place.fetch(&name(1, count + 1), &[]).status.code(), Some(1));
    // What lies in the folder is believed only if it is what its name says.
    place.pushed(&name(1, count + 1), &segment(1, count + 1));
    let lie = folder().join(format!("{}.{}", name(1, count + 1), "0".repeat(64)));
    std::fs::write(lie, vec![0; MIB]).unwrap();
    assert_eq!(place.fetched(&name(1, count + 1)), segment(1, count + 1));
    // It ends by itself, long before nobody asks any more, when there is nothing to bring.
    wait_for("the end of the process", BOUND, || {
        prefetcher(&folder()).is_none().then_some(())
    })
    .unwrap();
}

/// The process that holds the folder's lock, as the kernel lists it.
fn prefetcher(folder: &std::path::Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(folder.join("lock")).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let holds = words.get(1) == Some(&"FLOCK") && words.get(5)?.rsplit(':').next()?.parse() == Ok(inode);
        holds.then(|| words.get(4)?.parse().ok()).flatten()
    })
}

#[test]
fn the_last_segment_is_answered_as_far_as_it_is_there_every_time() {
    let place = Place::with_vault();
    place.pushed(&name(1, 3), &segment(1, 3));
    place.set("spool_dir", json!(place.text("spool")));
    // Its records end at once: the rest is not what Postgres 18 would have written.
    place.pushed(&format!("{}.partial", name(1, 4)), &segment(1, 4));
    assert_eq!(place.fetched(&name(1, 3)), segment(1, 3));
    let partial = place.fetched(&name(1, 4));
    assert_eq!(partial.len(), MIB);
    assert_eq!(partial[..40], segment(1, 4)[..40]);
    assert!(partial[100..].iter().all(|b| *b == 0));
    place.pushed(&name(1, 4), &segment(1, 4));
    assert_eq!(
        place.fetched(&name(1, 4)),
        segment(1, 4),
        "what came since then is answered"
    );
}
