//! A vault opens with the tools of any distribution: age, zstd, jq, sha256sum, ssh-keygen.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use strongroom_proto::Attempt;
use strongroom_proto::manifest::{Entry, EntryKind, EntrySink};

use crate::support::*;

/// Runs a tool that has to be there; the test fails where it is not.
pub(crate) fn run(program: &str, args: &[&str], folder: &Path, stdin: Option<&[u8]>) -> Output {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed for this test ({error}); install it (Debian: apt-get install age zstd jq openssh-client coreutils)"));
    let mut input = child.stdin.take().unwrap();
    let bytes = stdin.unwrap_or_default().to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = input.write_all(&bytes);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    output
}

#[test]
fn every_object_opens_with_the_tool_it_is_made_for() {
    let fixture = Fixture::new();
    let (id, _) = fixture.back_up(1, &[stream("a", rows(1, 3_000_000)), stream("b", noise(2, 100_000))]);
    let vault = fixture.path();
    let identity = fixture.folder.path().join("identity");
    std::fs::write(&identity, &fixture.identity_text).unwrap();
    let identity = identity.to_str().unwrap();

    let list = format!("backups/{id}/a1/packs");
    run("sha256sum", &["--strict", "--quiet", "-c", &list], &vault, None);

    let receipt = std::fs::read(vault.join(format!("backups/{id}/receipt.json"))).unwrap();
    let signers = fixture.folder.path().join("allowed_signers");
    std::fs::write(&signers, fixture.vault.allowed_signers()).unwrap();
    let signature = format!("backups/{id}/a1/receipt.json.sig");
    let verify = [
        "-Y",
        "verify",
        "-f",
        signers.to_str().unwrap(),
        "-I",
        "worker@test",
        "-n",
        "receipt@strongroom",
        "-s",
        &signature,
    ];
    run("ssh-keygen", &verify, &vault, Some(&receipt));

    let manifest = run(
        "age",
        &["-d", "-i", identity, &format!("backups/{id}/a1/manifest")],
        &vault,
        None,
    );
    let manifest = run("zstd", &["-dc"], &vault, Some(&manifest.stdout));
    assert!(manifest.stdout.starts_with(b"{\"format\":1,"));

    let mut raw_bytes = 0_i64;
    for object in fixture.objects() {
        if object.starts_with("packs/") {
            let frames = run("age", &["-d", "-i", identity, &object], &vault, None);
            raw_bytes += run("zstd", &["-dc"], &vault, Some(&frames.stdout)).stdout.len() as i64;
        }
        if object.starts_with("index/") {
            let lines = run("zstd", &["-dc", &object], &vault, None);
            let raw = run("jq", &["-s", "map(.raw) | add"], &vault, Some(&lines.stdout));
            raw_bytes -= String::from_utf8(raw.stdout).unwrap().trim().parse::<i64>().unwrap();
        }
        if object.starts_with("keys/") && object.ends_with(".age") {
            let key = run("age", &["-d", "-i", identity, &object], &vault, None);
            assert_eq!(key.stdout, fixture.writer_key.serialize().as_bytes());
        }
    }
    assert_eq!(raw_bytes, 0, "the index accounts for every byte in the packs");
}

/// The lines a person would type, taken from the page where they would find them.
pub(crate) fn restore_by_hand() -> String {
    let page = include_str!("../../../../docs/format.md");
    let (_, section) = page.split_once("\n## Restore by hand\n").unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    block.split_once("\n```").unwrap().0.to_owned()
}

/// A name as it is in an entry, where it need not be UTF-8.
fn named(kind: EntryKind, path: &[u8]) -> Entry {
    let mut entry = Entry::bare(String::from_utf8_lossy(path), kind);
    entry.path_hex = std::str::from_utf8(path).is_err().then(|| hex::encode(path));
    entry
}

fn linked(kind: EntryKind, path: &[u8], target: &[u8]) -> Entry {
    let mut entry = named(kind, path);
    entry.link_target = Some(String::from_utf8_lossy(target).into_owned());
    entry.link_target_hex = std::str::from_utf8(target).is_err().then(|| hex::encode(target));
    entry
}

/// A part of a file.
enum Part {
    Data(Vec<u8>),
    Hole(u64),
}

/// A tree of everything a file system has that can be made without being root, names that trip scripts among it.
fn tree() -> Vec<(Entry, Vec<Part>)> {
    use EntryKind::{Directory, Fifo, File, Hardlink, Socket, Symlink};
    let data = |bytes: &[u8]| vec![Part::Data(bytes.to_vec())];
    let sparse = vec![
        Part::Hole(1_000_000),
        Part::Data(noise(3, 700_000)),
        Part::Hole(5_000_000),
        Part::Data(b"end".to_vec()),
        Part::Hole(4_096),
    ];
    vec![
        (
            Entry::stream("globals.sql", "command-output"),
            data(b"CREATE ROLE x;\n"),
        ),
        (named(Directory, b"tree"), vec![]),
        (named(Directory, b"tree/-n"), vec![]),
        (named(File, b"tree/-n/--"), data(b"dashes\n")),
        (named(File, b"tree/  two  spaces "), data(b"spaces\n")),
        (named(File, b"tree/back\\slash \\t \\0101"), data(b"escapes\n")),
        (named(File, b"tree/empty"), vec![]),
        (named(Fifo, b"tree/fifo"), vec![]),
        (named(File, b"tree/inner/a file"), data(b"small\n")),
        (named(File, b"tree/line\nbreaks\n"), data(b"breaks\n")),
        (named(File, b"tree/not \xff\xfe\n"), data(b"bytes\n")),
        (linked(Hardlink, b"tree/same \xff", b"tree/not \xff\xfe\n"), vec![]),
        (linked(Hardlink, b"tree/same as empty", b"tree/empty"), vec![]),
        (named(Socket, b"tree/socket"), vec![]),
        (named(File, b"tree/spanning"), data(&noise(1, 9_000_000))),
        (named(File, b"tree/sparse"), sparse),
        (linked(Symlink, b"tree/symlink", b"../else where\n"), vec![]),
        (linked(Symlink, b"tree/symlink \xe9", b"\xe9\t"), vec![]),
        (named(File, b"tree/tab\tulator"), data(b"tab\n")),
        (named(File, "tree/\u{fc}ml\u{e4}ut".as_bytes()), data(b"umlaut\n")),
        (
            Entry::stream("database.dump", "command-output"),
            data(&rows(2, 20_000_000)),
        ),
    ]
}

#[test]
fn the_restore_by_hand_in_the_documentation_restores_every_entry() {
    let fixture = Fixture::new();
    fixture.back_up(1, &[stream("database.dump", rows(2, 20_000_000))]);
    let id = Fixture::id(2);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    for (entry, parts) in tree() {
        writer.begin(&entry).unwrap();
        for part in parts {
            match part {
                Part::Data(bytes) => writer.write(&bytes).unwrap(),
                Part::Hole(bytes) => writer.hole(bytes).unwrap(),
            }
        }
        writer.end().unwrap();
    }
    let sealed = writer.finish().unwrap();
    let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
    let committed = fixture.vault.commit(&receipt, &fixture.signer);
    fixture.runtime.block_on(committed).unwrap();
    let identity = fixture.folder.path().join("identity");
    std::fs::write(&identity, &fixture.identity_text).unwrap();
    for (shell, locale) in [("sh", "C"), ("bash", "C.UTF-8")] {
        let out = fixture.folder.path().join(format!("out {shell}"));
        let output = Command::new(shell)
            .args(["-c", &restore_by_hand()])
            .env("VAULT", fixture.path())
            .env("IDENTITY", &identity)
            .env("BACKUP", id.as_str())
            .env("OUT", &out)
            .env("LC_ALL", locale)
            .env_remove("DATABASE_URL")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{shell}: {said}");
        assert_eq!(said, "skipped: socket tree/socket\n", "{shell}");
        let mut expected: Vec<Vec<u8>> = Vec::new();
        for (entry, parts) in tree() {
            assert_restored(&out, &entry, &parts);
            if entry.kind != EntryKind::Socket {
                expected.push(bytes_of(&entry.path, entry.path_hex.as_deref()));
            }
        }
        // Nothing else was made but a directory that is no entry.
        expected.push(b"tree/inner".to_vec());
        expected.sort();
        assert_eq!(names(&out), expected);
    }
}

fn bytes_of(text: &str, hex_digits: Option<&str>) -> Vec<u8> {
    hex_digits.map_or_else(|| text.as_bytes().to_vec(), |digits| hex::decode(digits).unwrap())
}

fn names(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec());
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

fn assert_restored(out: &Path, entry: &Entry, parts: &[Part]) {
    let in_out = |name: &[u8]| out.join(OsStr::from_bytes(name));
    let path = in_out(&bytes_of(&entry.path, entry.path_hex.as_deref()));
    let target = entry.link_target.as_deref().unwrap_or_default();
    let target = bytes_of(target, entry.link_target_hex.as_deref());
    match entry.kind {
        EntryKind::Directory => assert!(path.is_dir(), "{path:?}"),
        EntryKind::Symlink => assert_eq!(std::fs::read_link(&path).unwrap().as_os_str().as_bytes(), target),
        EntryKind::Fifo => assert!(path.symlink_metadata().unwrap().file_type().is_fifo()),
        EntryKind::Hardlink => {
            let inode = |path: &Path| path.symlink_metadata().unwrap().ino();
            assert_eq!(inode(&path), inode(&in_out(&target)), "{path:?}");
        }
        EntryKind::Socket => assert!(!path.exists()),
        _ => {
            let mut expected = Vec::new();
            let mut data_bytes = 0;
            for part in parts {
                match part {
                    Part::Data(bytes) => {
                        expected.extend_from_slice(bytes);
                        data_bytes += bytes.len() as u64;
                    }
                    Part::Hole(bytes) => expected.resize(expected.len() + *bytes as usize, 0),
                }
            }
            assert!(std::fs::read(&path).unwrap() == expected, "{path:?}");
            if data_bytes + 1_000_000 < expected.len() as u64 {
                let taken = path.metadata().unwrap().blocks() * 512;
                assert!(taken < expected.len() as u64 / 2, "{path:?} has no holes any more");
            }
        }
    }
}

#[test]
fn the_restore_by_hand_stops_at_damage() {
    let fixture = Fixture::new();
    let (id, _) = fixture.back_up(1, &[stream("a", noise(1, 100_000))]);
    let identity = fixture.folder.path().join("identity");
    std::fs::write(&identity, &fixture.identity_text).unwrap();
    let pack = fixture
        .objects()
        .into_iter()
        .find(|path| path.starts_with("packs/"))
        .unwrap();
    let mut bytes = std::fs::read(fixture.path().join(&pack)).unwrap();
    bytes[50_000] ^= 1;
    std::fs::write(fixture.path().join(&pack), bytes).unwrap();
    let status = Command::new("sh")
        .args(["-c", &restore_by_hand()])
        .env("VAULT", fixture.path())
        .env("IDENTITY", &identity)
        .env("BACKUP", id.as_str())
        .env("OUT", fixture.folder.path().join("out"))
        .output()
        .unwrap()
        .status;
    assert!(!status.success());
    assert!(!fixture.folder.path().join("out/a").exists());
}
