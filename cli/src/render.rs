//! How things look in a terminal: tables, sizes, times, colour.
//!
//! Invariant: no control character from outside reaches the terminal; names go through [`safe`].

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use chrono::{DateTime, Local, Utc};
use comfy_table::{CellAlignment, Table, presets};

/// What stands for nothing in a table.
pub(crate) const NONE: &str = "-";

/// Prints to standard output; nothing for an empty text. A reader that has gone away, as `head` does, is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    let result = out.write_all(text.as_bytes()).and_then(|()| {
        if text.ends_with('\n') {
            out.flush()
        } else {
            out.write_all(b"\n").and_then(|()| out.flush())
        }
    });
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// A text on one line without anything that a terminal would obey.
pub(crate) fn safe(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if is_harmless(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        out
    })
}

/// The same for a text that may have several lines.
pub(crate) fn safe_lines(text: &str) -> String {
    text.lines().map(safe).collect::<Vec<_>>().join("\n")
}

/// Control characters steer a terminal; the directional ones reorder what is read.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Bytes, in powers of 1000.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    // What rounds to 1000.0 is shown as 1.0 of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A span of time, as precise as is of use.
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", span.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A span between two instants; nothing where the clock went backwards.
pub(crate) fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    duration((to - from).to_std().unwrap_or_default())
}

/// An instant in local time.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S%:z").to_string()
}

/// An instant and how long ago it was.
pub(crate) fn time_ago(at: DateTime<Utc>) -> String {
    format!("{} ({} ago)", time(at), between(at, Utc::now()))
}

/// An optional thing, or [`NONE`].
pub(crate) fn or_none<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), show)
}

/// A yes or a no.
pub(crate) const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Rows under a heading; columns named in `right` are aligned to the right. Cells are made safe here.
pub(crate) fn table(header: &[&str], right: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| safe(cell)));
    }
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if right.contains(name) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.lines().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

/// Names and values, one a line, the values in one column. Values are made safe here.
pub(crate) fn facts<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:width$}  {}", safe(value));
        text
    })
}

/// How something is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warning,
    Bad,
    Heading,
}

/// The text in the colour of its tone, where standard output is a terminal and `NO_COLOR` is not set.
pub(crate) fn tone(tone: Tone, text: &str) -> String {
    let wanted = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted { coloured(tone, text) } else { text.to_owned() }
}

fn coloured(tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Good => 32,
        Tone::Warning => 33,
        Tone::Bad => 31,
        Tone::Heading => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable_and_never_read_1000_of_a_unit() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_960, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn spans_are_as_precise_as_is_of_use() {
        for (seconds, text) in [
            (1.25, "1.2 s"),
            (59.9, "59 s"),
            (125.0, "2 min 5 s"),
            (3660.0, "1 h 1 min"),
            (180_000.0, "2 d 2 h"),
        ] {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_passes() {
        let hostile = "a\x1b[2Jb\nc\u{9b}d\u{202e}e";
        let shown = safe(hostile);
        assert_eq!(shown, "a\\u{1b}[2Jb\\nc\\u{9b}d\\u{202e}e");
        assert!(!table(&["NAME"], &[], [vec![hostile.to_owned()]]).contains('\x1b'));
        assert!(!facts([("name", hostile.to_owned())]).contains('\x1b'));
        assert_eq!(safe("größe ✓"), "größe ✓");
        assert_eq!(safe_lines("a\n\x1bb"), "a\n\\u{1b}b");
    }

    #[test]
    fn a_table_lines_up_and_carries_no_trailing_space() {
        let text = table(
            &["NAME", "SIZE"],
            &["SIZE"],
            [
                vec!["orders".to_owned(), "1.2 GB".to_owned()],
                vec!["x".to_owned(), "5 B".to_owned()],
            ],
        );
        assert_eq!(text, "NAME      SIZE\norders  1.2 GB\nx          5 B\n");
    }
}
