//! A vault opens with the tools of any distribution: age, zstd, jq, sha256sum, ssh-keygen.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use strongroom_proto::manifest::{Entry, EntryKind};

use crate::support::*;

/// Runs a tool that has to be there; the test fails where it is not.
fn run(program: &str, args: &[&str], folder: &Path, stdin: Option<&[u8]>) -> Output {
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
fn restore_by_hand() -> String {
    let page = include_str!("../../../../docs/format.md");
    let (_, section) = page.split_once("\n## Restore by hand\n").unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    block.split_once("\n```").unwrap().0.to_owned()
}

#[test]
fn the_restore_by_hand_in_the_documentation_restores_every_entry() {
    let fixture = Fixture::new();
    let mut link = Item {
        entry: Entry::bare("tree/link", EntryKind::Symlink),
        content: Vec::new(),
    };
    link.entry.link_target = Some("inner/a file with spaces".to_owned());
    let items = vec![
        stream("globals.sql", "CREATE ROLE x;\n"),
        Item {
            entry: Entry::bare("tree", EntryKind::Directory),
            content: Vec::new(),
        },
        file("tree/inner/a file with spaces", "small\n"),
        file("tree/odd \\t name\twith\nbreaks", "odd\n"),
        file("tree/empty", ""),
        link,
        file("tree/spanning", noise(1, 9_000_000)),
        stream("database.dump", rows(2, 20_000_000)),
        stream("checks.json", "{}"),
    ];
    fixture.back_up(1, &[stream("database.dump", rows(2, 20_000_000))]);
    let (id, _) = fixture.back_up(2, &items);
    let identity = fixture.folder.path().join("identity");
    std::fs::write(&identity, &fixture.identity_text).unwrap();
    for shell in ["sh", "bash"] {
        let out = fixture.folder.path().join(format!("out {shell}"));
        let output = Command::new(shell)
            .args(["-c", &restore_by_hand()])
            .env("VAULT", fixture.path())
            .env("IDENTITY", &identity)
            .env("BACKUP", id.as_str())
            .env("OUT", &out)
            .env_remove("DATABASE_URL")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{shell}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        for item in &items {
            let path = out.join(&item.entry.path);
            match item.entry.kind {
                EntryKind::Directory => assert!(path.is_dir()),
                EntryKind::Symlink => assert_eq!(
                    std::fs::read_link(&path).unwrap().to_str(),
                    item.entry.link_target.as_deref()
                ),
                _ => assert!(std::fs::read(&path).unwrap() == item.content, "{shell}: {item:?}"),
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
