//! The vectors of what a backup consists of: index object, manifest, entry list, list of packs.

use strongroom_vault::*;

use crate::forge::*;
use crate::vectors::{check, flipped, forge, invalid, valid};

fn extent(forge: &Forge, chunk: &[u8], offset: u64, bytes: u64) -> String {
    let id = forge.keys.chunk_id(chunk);
    format!("{{\"extent\":{{\"chunk\":\"{id}\",\"offset\":{offset},\"bytes\":{bytes}}}}}\n")
}

fn end(content: &[u8], bytes: u64) -> String {
    format!(
        "{{\"end\":{{\"bytes\":{bytes},\"blake3\":\"{}\"}}}}\n",
        blake3::hash(content)
    )
}

fn entry(path: &str) -> String {
    format!("{{\"entry\":{{\"path\":\"{path}\",\"kind\":\"file\"}}}}\n")
}

/// The entry list of one file with the first of the forged chunks in it.
pub(crate) fn one_file(forge: &Forge) -> String {
    let [small, _] = chunks();
    entry("a") + &extent(forge, &small, 0, 13) + &end(&small, 13)
}

#[test]
fn index_objects() {
    let forge = forge();
    // Index objects name a pack by its digest: it is kept beside them.
    let entries = one_file(&forge);
    let base = forge.objects(entries.as_bytes());
    let kept = testdata().join("vectors/pack-of-the-index-vectors");
    if is_updating() && !kept.exists() {
        std::fs::write(&kept, &base.pack).unwrap();
    }
    let pack = std::fs::read(kept).unwrap();
    let content = opened(&pack, &forge);
    let (mut lines, mut offset) = (forge.keys.index_header(), 0);
    let [small, large] = chunks();
    let digest = sha256(&pack);
    let line = |chunk: &[u8], offset: u64, stored: u64, raw: u64| {
        let id = forge.keys.chunk_id(chunk);
        format!("{{\"chunk\":\"{id}\",\"pack\":\"{digest}\",\"offset\":{offset},\"stored\":{stored},\"raw\":{raw}}}\n")
    };
    let mut first = String::new();
    for chunk in [&small[..], &large[..], entries.as_bytes()] {
        let stored = zstd::zstd_safe::find_frame_compressed_size(&content[offset..]).unwrap();
        let text = line(chunk, offset as u64, stored as u64, chunk.len() as u64);
        if first.is_empty() {
            first.clone_from(&text);
        }
        lines += &text;
        offset += stored;
    }
    let good = forge.keys.index_object(&lines);
    let framed = |text: &str| forge.keys.index_object(text);
    let cut = good.len() - 40;
    let altered = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let header = forge.keys.index_header();
    let without_header = lines.replace(&header, "");
    let with = |line: &str| format!("{lines}{line}");
    let long = format!("{{\"chunk\":\"{}\"}}\n", "0".repeat(1_100));
    let beyond = lines.replace(&first, &line(&small, content.len() as u64, 50, 13));
    let vectors = vec![
        valid("three-chunks", good.clone()),
        valid("a-chunk-twice", framed(&with(&first))),
        invalid("empty", b"", "too short"),
        invalid("no-mac", &good[..cut], "does not end with a MAC"),
        invalid("mac-cut", &good[..good.len() - 1], "does not end with a MAC"),
        invalid(
            "mac-flipped",
            altered(good.len() - 1),
            "was not made with this vault's writer key",
        ),
        invalid(
            "mac-frame-of-another-length",
            altered(cut + 4),
            "does not end with a MAC",
        ),
        invalid("frame-flipped", altered(cut / 2), "cannot be decoded"),
        invalid(
            "no-zstd",
            forge.keys.with_mac(lines.clone().into_bytes()),
            "Unknown frame descriptor",
        ),
        invalid(
            "frame-cut",
            forge.keys.with_mac(good[..cut - 9].to_vec()),
            "incomplete frame",
        ),
        invalid("no-header", framed(&without_header), "missing field `index`"),
        invalid("nothing", framed(""), "says nothing of its keys"),
        invalid("line-no-json", framed(&with("chunk\n")), "expected value"),
        invalid("line-too-long", framed(&with(&long)), "EOF while parsing a string"),
        invalid(
            "chunk-id-short",
            framed(&with(&first.replace("\"chunk\":\"", "\"chunk\":\"0"))),
            "64",
        ),
        invalid(
            "number-negative",
            framed(&with(&first.replace("\"raw\":", "\"raw\":-"))),
            "invalid value",
        ),
        invalid(
            "chunk-too-large",
            framed(&with(&line(&small, 0, 50, 4_194_305))),
            "larger than any may be",
        ),
        invalid(
            "frame-too-large",
            framed(&with(&line(&small, 0, 4_300_000, 13))),
            "larger than any may be",
        ),
        invalid(
            "offset-beyond-any-pack",
            framed(&with(&line(&small, u64::MAX - 10, 50, 13))),
            "where no pack reaches",
        ),
        invalid("offset-beyond-the-pack", framed(&beyond), "shorter than its index says"),
        invalid(
            "two-frames",
            forge
                .keys
                .with_mac([frame(lines.as_bytes()), frame(first.as_bytes())].concat()),
            "more than one frame",
        ),
    ];
    check("index", vectors, |bytes| {
        let mut objects = base.clone();
        objects.pack.clone_from(&pack);
        objects.index = bytes.to_vec();
        forge.read(&objects)
    });
}

fn opened(sealed: &[u8], forge: &Forge) -> Vec<u8> {
    use std::io::Read;
    let text = std::fs::read_to_string(testdata().join("test-keys/identity")).unwrap();
    let line = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY")).unwrap();
    let identity: age::x25519::Identity = line.parse().unwrap();
    assert_eq!(identity.to_public().to_string(), forge.keys.recipient());
    let file = age::Decryptor::new(sealed).unwrap();
    let mut content = Vec::new();
    let mut reader = file.decrypt([&identity as &dyn age::Identity].into_iter()).unwrap();
    reader.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn manifests() {
    let forge = forge();
    let entries = one_file(&forge);
    let root = forge.root(entries.as_bytes());
    let seal = |text: &str| forge.keys.seal(&frame(text.as_bytes()));
    let changed = |from: &str, to: &str| {
        assert!(root.contains(from), "{from} in {root}");
        seal(&root.replacen(from, to, 1))
    };
    let other: age::x25519::Recipient = Identity::generate().1.parse().unwrap();
    let whole = seal(&root);
    let id = forge.keys.chunk_id(entries.as_bytes());
    let empty = changed(
        &format!("\"entries\":1,\"content_bytes\":0,\"chunks\":[\"{id}\"]"),
        "\"entries\":0,\"content_bytes\":0,\"chunks\":[]",
    );
    let bomb = frame(&vec![b' '; 65 * 1024 * 1024]);
    let vectors = vec![
        valid("one-file", whole.clone()),
        valid("no-entries", empty),
        valid("unknown-field", changed("\"format\":1", "\"format\":1,\"later\":true")),
        invalid("empty", b"", "fill whole buffer"),
        invalid("not-sealed", frame(root.as_bytes()), "Header is invalid"),
        invalid("cut", &whole[..whole.len() - 1], "cannot"),
        invalid("segment-flipped", flipped(&whole, whole.len() - 20), "cannot"),
        invalid(
            "header-mac-flipped",
            flipped(&whole, position(&whole, b"--- ") + 10),
            "cannot",
        ),
        invalid(
            "sealed-to-somebody-else",
            seal_to(&other, &frame(root.as_bytes())),
            "identity",
        ),
        invalid("no-zstd", forge.keys.seal(root.as_bytes()), "Unknown frame descriptor"),
        invalid("no-json", seal("{"), "EOF"),
        invalid("larger-than-any", forge.keys.seal(&bomb), "larger than any such object"),
        invalid("format-2", changed("\"format\":1", "\"format\":2"), "format 2"),
        invalid(
            "of-another-backup",
            changed(BACKUP_ID, &BACKUP_ID.replace("0000Z-0", "0000Z-1")),
            "bkp-20270115",
        ),
        invalid(
            "key-of-nobody",
            changed(&forge.keys.key_id(), "0123456789abcdef"),
            "0123456789abcdef",
        ),
        invalid("chunk-of-no-index", changed(&id, &"01".repeat(32)), "is in no index"),
        invalid("chunk-id-no-hex", changed(&id, &"zz".repeat(32)), "64"),
        invalid(
            "more-entries-than-it-says",
            changed("\"entries\":1", "\"entries\":0"),
            "more entries than it says",
        ),
        invalid(
            "fewer-entries-than-it-says",
            changed("\"entries\":1", "\"entries\":2"),
            "ends before its last entry",
        ),
        invalid("entries-missing", changed("\"entries\":1,", ""), "missing field"),
    ];
    let base = forge.objects(entries.as_bytes());
    check("manifest", vectors, |bytes| {
        let mut objects = base.clone();
        objects.manifest = bytes.to_vec();
        forge.read(&objects)
    });
}

fn position(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap()
}

#[test]
fn entry_lists() {
    let forge = forge();
    let [small, large] = chunks();
    let all = large.len() as u64;
    let good = one_file(&forge);
    let unknown = extent(&forge, b"never stored", 0, 13);
    let kinds = [
        "directory",
        "symlink",
        "hardlink",
        "fifo",
        "chardevice",
        "blockdevice",
        "socket",
        "stream",
    ];
    let every_kind: String = kinds
        .map(|kind| format!("{{\"entry\":{{\"path\":\"{kind}\",\"kind\":\"{kind}\",\"mode\":493,\"uid\":0,\"gid\":0,\"mtime_seconds\":-1,\"mtime_nanoseconds\":999999999,\"link_target\":\"a\",\"device_major\":1,\"device_minor\":3,\"xattrs\":{{\"user.x\":\"00ff\"}},\"media\":\"command-output\"}}}}\n{}", end(b"", 0)))
        .concat();
    let mixed = [&large[5..105], b"vault\n", &large[all as usize - 3..]].concat();
    let pieces = entry("pieces")
        + &extent(&forge, &large, 5, 100)
        + "{\"hole\":{\"bytes\":1099511627776}}\n"
        + &extent(&forge, &small, 7, 6)
        + &extent(&forge, &large, all - 3, 3)
        + &end(&mixed, (1 << 40) + 109);
    let hex_name = format!(
        "{{\"entry\":{{\"path\":\"\u{fffd}\",\"path_hex\":\"ff\",\"kind\":\"file\"}}}}\n{}",
        end(b"", 0)
    );
    let holes = "{\"hole\":{\"bytes\":18446744073709551615}}\n";
    let file = |parts: &str, bytes: u64| entry("a") + parts + &end(&small, bytes);
    let vectors = vec![
        valid("one-file", good.clone()),
        valid("every-kind", every_kind),
        valid("pieces-and-a-hole", pieces),
        valid("a-name-in-hex", hex_name),
        valid("unknown-field", good.replace("\"kind\"", "\"later\":{},\"kind\"")),
        valid("the-same-path-twice", format!("{good}{good}")),
        invalid("no-json", "{\"entry\":\n", "EOF"),
        invalid("kind-unknown", good.replace("file", "door"), "unknown variant"),
        invalid("line-unknown", good.replace("\"end\"", "\"fin\""), "unknown variant"),
        invalid(
            "extent-before-any-entry",
            extent(&forge, &small, 0, 13) + &good,
            "an entry is missing",
        ),
        invalid("entry-within-an-entry", entry("a") + &good, "an entry does not end"),
        invalid(
            "no-end",
            entry("a") + &extent(&forge, &small, 0, 13),
            "an entry does not end",
        ),
        invalid("last-line-cut", good.trim_end(), "ends within a line"),
        invalid(
            "end-too-short",
            file(&extent(&forge, &small, 0, 13), 12),
            "does not match its digest",
        ),
        invalid(
            "end-too-long",
            file(&extent(&forge, &small, 0, 13), 14),
            "does not match its digest",
        ),
        invalid(
            "other-content",
            file(&extent(&forge, &large, 0, 13), 13),
            "does not match its digest",
        ),
        invalid(
            "extent-beyond-its-chunk",
            file(&extent(&forge, &small, 1, 13), 13),
            "does not match its digest",
        ),
        invalid(
            "extent-far-beyond",
            file(&extent(&forge, &small, u64::from(u32::MAX), 13), 13),
            "does not match its digest",
        ),
        invalid(
            "extent-too-large",
            file(&extent(&forge, &small, 0, 1 << 32), 1 << 32),
            "invalid value",
        ),
        invalid("chunk-of-no-index", file(&unknown, 13), "is in no index"),
        invalid(
            "holes-without-end",
            file(&format!("{holes}{holes}"), 13),
            "longer than anything can be",
        ),
        invalid(
            "no-text",
            [b"{\"entry\":{\"path\":\"\xff\"}}\n".as_slice(), good.as_bytes()].concat(),
            "invalid unicode",
        ),
    ];
    check("entries", vectors, |bytes| forge.read(&forge.objects(bytes)));
    // Too large to be kept: a line of 1 MiB, and one that is a byte longer.
    let around = entry("").len() - 1;
    for (bytes, is_taken) in [(1 << 20, true), ((1 << 20) + 1, false)] {
        let list = entry(&"x".repeat(bytes - around)) + &end(b"", 0);
        let found = forge.read(&forge.objects(list.as_bytes()));
        assert_eq!(found.is_ok(), is_taken);
        assert!(is_taken || found.is_err_and(|error| error.contains("longer than any may be")));
    }
}

#[test]
fn lists_of_packs() {
    let forge = forge();
    let entries = one_file(&forge);
    let objects = forge.objects(entries.as_bytes());
    // Lines that name this backup's own objects cannot be kept: what is sealed is another each time.
    let own = |objects: &Objects| {
        let (pack, index) = (sha256(&objects.pack).to_string(), sha256(&objects.index));
        format!("{index}  index/{index}\n{pack}  packs/{}/{pack}\n", &pack[..2])
    };
    let one = "01".repeat(32);
    let other = "02".repeat(32);
    let vectors = vec![
        valid("nothing-more", b""),
        valid("a-pack-that-is-not-needed", format!("{one}  packs/01/{one}\n")),
        invalid(
            "one-space",
            format!("{one} packs/01/{one}\n"),
            "not a digest and a path",
        ),
        invalid("no-digest", format!("01  packs/01/{one}\n"), "64"),
        invalid(
            "another-name",
            format!("{one}  packs/02/{other}\n"),
            "name that is not its own",
        ),
        invalid(
            "another-folder",
            format!("{one}  packs/02/{one}\n"),
            "name that is not its own",
        ),
        invalid("outside", format!("{one}  ../{one}\n"), "name that is not its own"),
        invalid(
            "absolute",
            format!("{one}  /packs/01/{one}\n"),
            "name that is not its own",
        ),
        invalid(
            "upwards",
            format!("{one}  backups/../x/manifest\n"),
            "name that is not its own",
        ),
        invalid(
            "a-receipt",
            format!("{one}  backups/{BACKUP_ID}/receipt.json\n"),
            "name that is not its own",
        ),
        invalid(
            "an-index-object-that-is-not-there",
            format!("{one}  index/{one}\n"),
            "is missing",
        ),
        invalid("no-text", b"\xff\n", "utf-8"),
    ];
    check("packs", vectors, |bytes| {
        let mut objects = objects.clone();
        objects.list = Some([own(&objects).as_bytes(), bytes].concat());
        forge.read(&objects)
    });
}
