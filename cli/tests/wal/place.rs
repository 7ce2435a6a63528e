//! A vault made by the program, with its keys, in a folder that a server's user can reach.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// The size of the segments that are made here.
pub(crate) const MIB: usize = 1 << 20;
pub(crate) const SYSTEM: u64 = 7_566_123_456_789_012_345;
pub(crate) const SIGTERM: i32 = 15;

pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A folder with keys and, unless another vault is named, a vault.
    pub(crate) fn new() -> Self {
        let place = Self {
            folder: tempfile::Builder::new()
                .prefix("strongroom-wal-")
                .tempdir_in("/tmp")
                .unwrap(),
        };
        // The server's user must find its way to the files in it that are its own.
        std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        place
    }

    pub(crate) fn with_vault() -> Self {
        let place = Self::new();
        place.make_vault(&place.text("vault"), &[]);
        place.write_settings(&json!({ "store": place.text("vault") }), SYSTEM, MIB);
        place
    }

    pub(crate) fn make_vault(&self, url: &str, envs: &[(&str, &str)]) {
        let mut command = self.command(&["vault", "create", "--url", url, "--keys", &self.text("keys")]);
        let made = command.envs(envs.iter().copied()).output().unwrap();
        assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    }

    /// Writes what push and fetch are told: `fetch.json` and `push.json`.
    pub(crate) fn write_settings(&self, store: &Value, system: u64, segment_bytes: usize) {
        let mut fetch = store.clone();
        fetch["identity_file"] = json!(self.text("keys/identity.txt"));
        fetch["system_identifier"] = json!(system.to_string());
        fetch["segment_bytes"] = json!(segment_bytes);
        fetch["retry_seconds"] = json!(1);
        let mut push = store.clone();
        push["writer_key_file"] = json!(self.text("keys/writer.key"));
        push["signing_key_file"] = json!(self.text("keys/signing-dumper.key"));
        push["system_identifier"] = json!(system.to_string());
        for (name, settings) in [("fetch.json", fetch), ("push.json", push)] {
            write_private(&self.path(name), &settings.to_string());
        }
    }

    /// Changes one of the settings of fetch.
    pub(crate) fn set(&self, name: &str, value: Value) {
        self.set_in("fetch.json", name, value);
    }

    pub(crate) fn set_in(&self, file: &str, name: &str, value: Value) {
        let path = self.path(file);
        let mut settings: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        settings[name] = value;
        write_private(&path, &settings.to_string());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command.env_clear().env("HOME", self.folder.path()).stdin(Stdio::null());
        command.args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Hands a file over under its name.
    pub(crate) fn push(&self, name: &str, bytes: &[u8], more: &[&str]) -> Output {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        let settings = self.text("push.json");
        let path = path.to_str().unwrap();
        let pushed = self.run(&[&["wal", "push", path, "--from", &settings], more].concat());
        std::fs::remove_file(path).unwrap();
        pushed
    }

    pub(crate) fn pushed(&self, name: &str, bytes: &[u8]) {
        let pushed = self.push(name, bytes, &[]);
        assert_eq!(pushed.status.code(), Some(0), "{name}: {}", stderr(&pushed));
    }

    /// Asks for a file; what is answered lies at `got`.
    pub(crate) fn fetch(&self, name: &str, more: &[&str]) -> Output {
        let (settings, got) = (self.text("fetch.json"), self.text("got"));
        let _ = std::fs::remove_file(&got);
        self.run(&[&["wal", "fetch", name, &got, "--from", &settings], more].concat())
    }

    /// What is answered, which must be there.
    pub(crate) fn fetched(&self, name: &str) -> Vec<u8> {
        let fetched = self.fetch(name, &[]);
        assert_eq!(fetched.status.code(), Some(0), "{name}: {}", stderr(&fetched));
        std::fs::read(self.path("got")).unwrap()
    }

    /// Makes sure that a fetch ended by SIGTERM, wrote nothing, and said why on one line; that line.
    pub(crate) fn ended(&self, output: &Output) -> String {
        assert_eq!(output.status.signal(), Some(SIGTERM), "{output:?}");
        for name in ["got", "got.tmp"] {
            assert!(!self.path(name).exists(), "{name} was written");
        }
        let told = stderr(output);
        assert!(
            told.starts_with("strongroom: ") && told.trim_end().lines().count() == 1,
            "{told}"
        );
        told
    }

    /// The objects of the vault's WAL.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("vault/wal")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => found.push(entry.path()),
                }
            }
        }
        found.sort();
        found
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// The name of a segment of 1 MiB.
pub(crate) fn name(timeline: u32, number: u64) -> String {
    format!("{timeline:08X}{:08X}{:08X}", number / 4096, number % 4096)
}

/// A segment of 1 MiB as Postgres 18 begins it, whose content differs from any other's.
pub(crate) fn segment(timeline: u32, number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&0xD118_u16.to_le_bytes());
    bytes.extend_from_slice(&2_u16.to_le_bytes());
    bytes.extend_from_slice(&timeline.to_le_bytes());
    bytes.extend_from_slice(&(number * MIB as u64).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&SYSTEM.to_le_bytes());
    bytes.extend_from_slice(&(MIB as u32).to_le_bytes());
    bytes.extend_from_slice(&8192_u32.to_le_bytes());
    let mut state = number + 1;
    while bytes.len() < MIB {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
