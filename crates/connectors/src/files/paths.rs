//! The paths of entries, refused where they could lead out of a destination.

use std::io;

use strongroom_proto::manifest::Entry;

use super::walk::ROOT_PATH;

/// The bytes of an entry's path, relative to the root; empty for the root itself. It is made of names only: never
/// absolute, without `.`, `..`, empty components and NUL.
pub(crate) fn path_of(entry: &Entry) -> io::Result<Vec<u8>> {
    let path = bytes_of(&entry.path, entry.path_hex.as_deref())?;
    if entry.path == ROOT_PATH && path == ROOT_PATH.as_bytes() {
        return Ok(Vec::new());
    }
    checked(path)
}

/// The path of the entry whose content a hard link shares.
pub(super) fn link_source_of(entry: &Entry) -> io::Result<Vec<u8>> {
    checked(target_of(entry)?)
}

/// Where a link points, which may be anywhere.
pub(super) fn target_of(entry: &Entry) -> io::Result<Vec<u8>> {
    let target = entry
        .link_target
        .as_deref()
        .ok_or_else(|| invalid("a link without its target"))?;
    let target = bytes_of(target, entry.link_target_hex.as_deref())?;
    if target.is_empty() || target.contains(&0) {
        return Err(invalid("a link without a possible target"));
    }
    Ok(target)
}

/// The directory part and the name of a path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Whether one path comes before the other in the order of a tree: component by component, a directory before its
/// content.
pub(super) fn comes_before(one: &[u8], other: &[u8]) -> bool {
    one.split(|byte| *byte == b'/').lt(other.split(|byte| *byte == b'/'))
}

/// Bytes and their lossy rendering, which have to agree: what a person reads in a listing is what is written.
fn bytes_of(text: &str, hex: Option<&str>) -> io::Result<Vec<u8>> {
    let Some(hex) = hex else {
        return Ok(text.as_bytes().to_vec());
    };
    let bytes = hex::decode(hex).map_err(|_| invalid(&format!("the bytes of the name {text:?} are not hex")))?;
    if String::from_utf8_lossy(&bytes) != text {
        return Err(invalid(&format!(
            "the name {text:?} and its bytes in hex are not the same"
        )));
    }
    Ok(bytes)
}

fn checked(path: Vec<u8>) -> io::Result<Vec<u8>> {
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    if path.split(|byte| *byte == b'/').all(is_name) {
        return Ok(path);
    }
    let shown = String::from_utf8_lossy(&path);
    Err(invalid(&format!("the path {shown:?} leads out of the destination")))
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use strongroom_proto::manifest::EntryKind;

    use super::*;

    #[test]
    fn only_names_below_the_root_are_paths() {
        let path = |path: &str| path_of(&Entry::bare(path, EntryKind::File));
        assert_eq!(path("a/new\nline/..c").unwrap(), b"a/new\nline/..c");
        assert_eq!(path(".").unwrap(), b"");
        for bad in ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\0b"] {
            assert_eq!(path(bad).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }

    #[test]
    fn bytes_in_hex_have_to_be_those_of_the_name() {
        let entry = |path: &str, bytes: &[u8]| Entry {
            path_hex: Some(hex::encode(bytes)),
            ..Entry::bare(path, EntryKind::File)
        };
        assert_eq!(path_of(&entry("a\u{fffd}", b"a\xff")).unwrap(), b"a\xff");
        assert!(path_of(&entry("harmless", b"../victim")).is_err());
        assert!(path_of(&entry("harmless", b"other")).is_err());
        let link = Entry {
            link_target: Some("harmless".to_owned()),
            link_target_hex: Some(hex::encode("../victim")),
            ..Entry::bare("link", EntryKind::Hardlink)
        };
        assert!(link_source_of(&link).is_err());
    }

    #[test]
    fn the_order_is_that_of_components() {
        assert!(comes_before(b"a/b", b"a-b"), "- sorts before /, but a comes before a-b");
        assert!(comes_before(b"a", b"a/b"));
        assert!(!comes_before(b"a/b", b"a/b"));
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
        assert_eq!(split(b"c"), (b"".as_slice(), b"c".as_slice()));
    }
}
