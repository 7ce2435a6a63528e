//! Roles and memberships from `globals.sql`, applied without changing what the destination has.
//!
//! The statements are run one by one through a session, never through psql, so that a line of the file can only be
//! SQL. Invariants: a role that exists keeps its attributes and its password; nothing is dropped; all or nothing.

use std::collections::{BTreeSet, HashSet};

use super::sql::{Sql, SqlError};

/// A statement that failed, without what may be secret in it.
#[derive(Debug)]
pub(crate) struct GlobalsFailure {
    pub(crate) statement: String,
    pub(crate) source: SqlError,
}

/// Applies `text` in one transaction; the notes say what was left out.
pub(crate) fn apply(sql: &mut Sql, text: &str) -> Result<Vec<String>, GlobalsFailure> {
    let step = |statement: &str| {
        let statement = statement.to_owned();
        move |source| GlobalsFailure { statement, source }
    };
    let roles = sql.column("SELECT rolname FROM pg_roles").map_err(step("list roles"))?;
    let existing: HashSet<String> = roles.into_iter().collect();
    let mut kept = BTreeSet::new();
    let mut tablespaces = 0_u32;
    sql.run("BEGIN").map_err(step("BEGIN"))?;
    for statement in statements(text) {
        match decide(&statement, &existing) {
            Decision::Run(statement) => sql.run(&statement).map_err(step(&summary(&statement)))?,
            Decision::KeepRole(role) => {
                kept.insert(role);
            }
            Decision::SkipTablespace => tablespaces += 1,
            Decision::Skip => {}
        }
    }
    sql.run("COMMIT").map_err(step("COMMIT"))?;
    let mut notes = Vec::new();
    if !kept.is_empty() {
        let names: Vec<String> = kept.into_iter().collect();
        notes.push(format!(
            "roles that existed were left as they are: {}",
            names.join(", ")
        ));
    }
    if tablespaces > 0 {
        notes.push("tablespaces are not restored: everything went into the default one".to_owned());
    }
    Ok(notes)
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Run(String),
    KeepRole(String),
    SkipTablespace,
    Skip,
}

fn decide(statement: &str, existing: &HashSet<String>) -> Decision {
    let words = words(statement);
    let text = |at: usize| words.get(at).map_or("", |word| word.text.as_str());
    let keyword = |at: usize| {
        words
            .get(at)
            .filter(|word| !word.quoted)
            .map_or("", |word| word.text.as_str())
    };
    if words.iter().any(|word| !word.quoted && word.text == "tablespace") {
        return Decision::SkipTablespace;
    }
    let role = match (keyword(0), keyword(1), keyword(2)) {
        ("create" | "alter", "role" | "user" | "group", _) => text(2),
        ("comment", "on", "role") => text(3),
        ("grant", ..) if keyword(2) == "to" => {
            let (role, member) = (text(1), text(3));
            // Where both roles existed, the membership is the destination's business.
            return if existing.contains(role) && existing.contains(member) {
                Decision::KeepRole(member.to_owned())
            } else {
                Decision::Run(without_grantor(statement, &words))
            };
        }
        ("drop" | "revoke", ..) => return Decision::Skip,
        ("set", "client_encoding", _) => return Decision::Skip,
        _ => return Decision::Run(statement.to_owned()),
    };
    if existing.contains(role) {
        Decision::KeepRole(role.to_owned())
    } else {
        Decision::Run(statement.to_owned())
    }
}

/// A membership without `GRANTED BY`: the grantor of the source, typically its first superuser, may have no right to
/// grant where that is another role.
fn without_grantor(statement: &str, words: &[Word]) -> String {
    let at = words
        .windows(3)
        .find(|three| !three[0].quoted && three[0].text == "granted" && !three[1].quoted && three[1].text == "by");
    match at {
        Some(three) => format!("{}{}", &statement[..three[0].start], &statement[three[2].end..]),
        None => statement.to_owned(),
    }
}

/// The first words of a statement: enough to find it, too few to show a password.
fn summary(statement: &str) -> String {
    let words = words(statement);
    words
        .iter()
        .take(3)
        .map(|word| word.text.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

#[derive(Debug)]
struct Word {
    /// Unquoted words in lower case, quoted names without their quotes.
    text: String,
    quoted: bool,
    start: usize,
    end: usize,
}

/// The words and names of a statement; values and signs are passed over.
fn words(statement: &str) -> Vec<Word> {
    let bytes = statement.as_bytes();
    let mut words = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        at = match bytes[at] {
            b'"' => {
                let end = quoted_end(bytes, at, b'"', false);
                let inner = statement.get(start + 1..end.saturating_sub(1)).unwrap_or_default();
                words.push(Word {
                    text: inner.replace("\"\"", "\""),
                    quoted: true,
                    start,
                    end,
                });
                end
            }
            b'\'' => quoted_end(bytes, at, b'\'', at > 0 && bytes[at - 1].eq_ignore_ascii_case(&b'e')),
            byte if is_word(byte) => {
                let length = bytes[at..].iter().take_while(|byte| is_word(**byte)).count();
                let end = at + length;
                words.push(Word {
                    text: statement[start..end].to_lowercase(),
                    quoted: false,
                    start,
                    end,
                });
                end
            }
            _ => at + 1,
        };
    }
    words
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || !byte.is_ascii()
}

/// The statements of a script, without comments and without psql's own commands.
pub(crate) fn statements(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut statements = Vec::new();
    let mut statement = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = match rest[0] {
            b'-' if rest.starts_with(b"--") => {
                at = line_end(bytes, at);
                continue;
            }
            // pg_dump and pg_dumpall write \restrict and \unrestrict since 2025.
            b'\\' if statement.trim().is_empty() => {
                at = line_end(bytes, at);
                continue;
            }
            b';' => {
                finish_statement(&mut statement, &mut statements);
                at += 1;
                continue;
            }
            b'\'' => quoted_end(bytes, at, b'\'', at > 0 && bytes[at - 1].eq_ignore_ascii_case(&b'e')),
            b'"' => quoted_end(bytes, at, b'"', false),
            b'$' => dollar_end(text, at),
            _ => at + 1 + rest[1..].iter().take_while(|byte| !b"-\\;'\"$".contains(byte)).count(),
        };
        statement.push_str(&text[at..end]);
        at = end;
    }
    finish_statement(&mut statement, &mut statements);
    statements
}

fn finish_statement(statement: &mut String, statements: &mut Vec<String>) {
    let text = std::mem::take(statement);
    if !text.trim().is_empty() {
        statements.push(text.trim().to_owned());
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    memchr::memchr(b'\n', &bytes[at..]).map_or(bytes.len(), |length| at + length + 1)
}

/// The end of a quoted piece that begins at `at`; a doubled quote stands for one.
fn quoted_end(bytes: &[u8], at: usize, quote: u8, backslashes: bool) -> usize {
    let mut at = at + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if backslashes => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of a dollar-quoted piece that begins at `at`, or of the sign alone.
fn dollar_end(text: &str, at: usize) -> usize {
    let rest = &text[at + 1..];
    let Some(length) = rest.find('$') else { return at + 1 };
    if !rest[..length].bytes().all(is_word) {
        return at + 1;
    }
    let tag = &text[at..at + length + 2];
    let body = at + tag.len();
    text[body..]
        .find(tag)
        .map_or(text.len(), |length| body + length + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide_with(statement: &str, existing: &[&str]) -> Decision {
        decide(statement, &existing.iter().map(|role| (*role).to_owned()).collect())
    }

    #[test]
    fn a_script_is_cut_at_its_semicolons_only() {
        let text = "-- a ; comment\n\\restrict abc\nSET x = 'a;b''c';\nALTER ROLE \"we;ird\" PASSWORD E'\\';x';\n\
                    COMMENT ON ROLE a IS $t$ ; -- no $t$;\n\\unrestrict abc\n";
        assert_eq!(
            statements(text),
            [
                "SET x = 'a;b''c'",
                "ALTER ROLE \"we;ird\" PASSWORD E'\\';x'",
                "COMMENT ON ROLE a IS $t$ ; -- no $t$"
            ]
        );
    }

    #[test]
    fn a_role_that_exists_keeps_its_password() {
        let alter = "ALTER ROLE postgres WITH SUPERUSER PASSWORD 'SCRAM-SHA-256$4096:…'";
        assert_eq!(
            decide_with(alter, &["postgres"]),
            Decision::KeepRole("postgres".to_owned())
        );
        assert_eq!(decide_with(alter, &["other"]), Decision::Run(alter.to_owned()));
        let quoted = "CREATE ROLE \"odd \"\"role\"";
        assert_eq!(
            decide_with(quoted, &["odd \"role"]),
            Decision::KeepRole("odd \"role".to_owned())
        );
        assert_eq!(
            decide_with("GRANT a TO b", &["a", "b"]),
            Decision::KeepRole("b".to_owned())
        );
        assert_eq!(
            decide_with("GRANT pg_monitor TO b", &["pg_monitor", "b"]),
            Decision::KeepRole("b".to_owned())
        );
    }

    #[test]
    fn a_membership_loses_its_grantor_and_nothing_else() {
        assert_eq!(
            decide_with(
                "GRANT a TO \"granted by\" WITH ADMIN OPTION GRANTED BY postgres",
                &["a"]
            ),
            Decision::Run("GRANT a TO \"granted by\" WITH ADMIN OPTION ".to_owned())
        );
    }

    #[test]
    fn nothing_is_dropped_and_tablespaces_are_left_out() {
        assert_eq!(decide_with("DROP ROLE a", &[]), Decision::Skip);
        assert_eq!(
            decide_with("CREATE TABLESPACE fast OWNER a LOCATION '/x'", &[]),
            Decision::SkipTablespace
        );
        assert_eq!(
            decide_with("GRANT ALL ON TABLESPACE fast TO a", &[]),
            Decision::SkipTablespace
        );
    }

    #[test]
    fn an_error_shows_no_password() {
        assert_eq!(
            summary("ALTER ROLE bob WITH LOGIN PASSWORD 'hunter2'"),
            "alter role bob"
        );
    }
}
