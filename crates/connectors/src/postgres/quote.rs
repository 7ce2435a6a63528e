//! Quoting: names and values in SQL, names in pg_dump's patterns and in entry paths.

/// A name in SQL; also, between two dots, in the patterns of `pg_dump --table`, where quotes make every character
/// stand for itself.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text value in SQL, whatever `standard_conforming_strings` says.
pub(crate) fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A value in a libpq connection string.
pub(crate) fn conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The most bytes that [`path_component`] gives, so that the name with what surrounds it fits any file system.
const PATH_COMPONENT_BYTES_MAX: usize = 180;

/// A name as part of an entry's path: everything but `A-Z a-z 0-9 . _ -` percent-encoded, and cut where it is long (a
/// number beside it keeps paths apart).
pub(crate) fn path_component(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        let piece = match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        if out.len() + piece.len() > PATH_COMPONENT_BYTES_MAX {
            break;
        }
        out.push_str(&piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_left() {
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
        assert_eq!(conninfo(r"a\'b"), r"'a\\\'b'");
    }

    #[test]
    fn an_entry_path_holds_no_separator_whatever_the_table_is_called() {
        assert_eq!(path_component("public.order lines/2"), "public.order%20lines%2F2");
        assert_eq!(path_component("\n\"é%"), "%0A%22%C3%A9%25");
        assert!(path_component(&"é".repeat(500)).len() <= PATH_COMPONENT_BYTES_MAX);
    }
}
