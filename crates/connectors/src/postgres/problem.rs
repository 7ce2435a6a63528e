//! What went wrong, in plain words and with what to do about it, from what servers and tools say.

use std::fmt;

use crate::child::ToolOutput;

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What happened.
    pub words: String,
    /// What a person can do.
    pub advice: String,
    /// Whether trying again later can help without anybody doing anything.
    pub is_retryable: bool,
    /// Whether a disk had no space left.
    pub is_disk_full: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)?;
        if !self.advice.is_empty() {
            write!(f, ": {}", self.advice)?;
        }
        Ok(())
    }
}

struct Known {
    /// Any of these in a message; `…` stands for anything between two parts.
    texts: &'static [&'static str],
    /// Or any of these SQLSTATE codes.
    codes: &'static [&'static str],
    advice: &'static str,
    is_retryable: bool,
}

const DISK_FULL: Known = Known {
    texts: &["No space left on device", "Disk quota exceeded"],
    codes: &["53100"],
    advice: "make room on that disk",
    is_retryable: false,
};

/// The causes first, what follows from them last.
const KNOWN: &[Known] = &[
    Known {
        texts: &[
            "password authentication failed",
            "no password supplied",
            "Ident authentication failed",
            "Peer authentication failed",
        ],
        codes: &["28P01"],
        advice: "check the role and its password in the target's configuration",
        is_retryable: false,
    },
    Known {
        texts: &["no pg_hba.conf entry", "is not permitted to log in"],
        codes: &["28000"],
        advice: "allow this host and role in the server's pg_hba.conf, and the role to log in",
        is_retryable: false,
    },
    Known {
        texts: &["would be affected by row-level security policy"],
        codes: &[],
        advice: "give the role BYPASSRLS, or back up with the tables' owner; a dump under a policy would lack rows",
        is_retryable: false,
    },
    Known {
        texts: &["permission denied for"],
        codes: &["42501"],
        advice: "grant the role what it lacks (to dump everything: GRANT pg_read_all_data TO the role, and for large \
                 objects a superuser)",
        is_retryable: false,
    },
    Known {
        texts: &[
            "could not open extension control file",
            "is not available",
            "could not access file \"$libdir",
        ],
        codes: &[],
        advice: "install that extension's package on the server in question",
        is_retryable: false,
    },
    Known {
        texts: &["role \"…\" does not exist"],
        codes: &[],
        advice: "create that role, or restore with the roles that the backup holds",
        is_retryable: false,
    },
    Known {
        texts: &["database \"…\" does not exist"],
        codes: &["3D000"],
        advice: "check the database's name in the target's url",
        is_retryable: false,
    },
    Known {
        texts: &["invalid…locale", "ICU is not supported", "conflicting…locale"],
        codes: &[],
        advice: "install that locale on the destination (locale-gen) and restart its server, or create the database \
                 beforehand with another",
        is_retryable: false,
    },
    Known {
        texts: &["server version mismatch", "unsupported version ("],
        codes: &[],
        advice: "install the PostgreSQL client tools of the server's version or newer",
        is_retryable: false,
    },
    Known {
        texts: &["unrecognized configuration parameter"],
        codes: &[],
        advice: "the backup was made by newer tools than the destination understands, or it sets what is not installed there: \
                 restore into a server of the tools' version",
        is_retryable: false,
    },
    Known {
        texts: &["canceling statement due to lock timeout", "could not obtain lock"],
        codes: &["55P03"],
        advice: "something holds a lock on that table (a migration, VACUUM FULL); it is tried again later",
        is_retryable: true,
    },
    Known {
        texts: &["too many connections", "too many clients", "remaining connection slots"],
        codes: &["53300"],
        advice: "a backup needs three connections: raise the limit or free some",
        is_retryable: true,
    },
    Known {
        texts: &["invalid snapshot identifier", "could not import the requested snapshot"],
        codes: &[],
        advice: "the session that held the snapshot was lost; it is tried again",
        is_retryable: true,
    },
    Known {
        texts: &[
            "the database system is",
            "terminating connection",
            "recovery conflict",
            "canceling statement due to conflict",
        ],
        codes: &["57P01", "57P02", "57P03", "40001"],
        advice: "the server was stopping, starting or replaying; it is tried again",
        is_retryable: true,
    },
    Known {
        texts: &[
            "could not translate host name",
            "Name or service not known",
            "failed to lookup address",
        ],
        codes: &[],
        advice: "check the host in the target's url and the name service",
        is_retryable: true,
    },
    Known {
        texts: &[
            "Connection refused",
            "could not connect",
            "timeout expired",
            "No route to host",
            "Connection timed out",
            "connection to server",
            "No such file or directory (os error 2)",
        ],
        codes: &["08001", "08006"],
        advice: "check that the server runs and can be reached from here",
        is_retryable: true,
    },
    Known {
        texts: &[
            "server closed the connection unexpectedly",
            "connection not open",
            "no connection to the server",
            "SSL connection has been closed",
            "Connection reset",
            "expected to read",
            "unexpected end of file",
        ],
        codes: &["08003", "08000"],
        advice: "the connection to the server was lost; it is tried again",
        is_retryable: true,
    },
    Known {
        texts: &["out of memory", "out of shared memory"],
        codes: &["53200"],
        advice: "raise max_locks_per_transaction or the server's memory",
        is_retryable: false,
    },
];

impl Problem {
    /// What a tool's last words mean; `ending` describes how it ended, for when it said nothing.
    pub(crate) fn of_tool(output: &ToolOutput, ending: &str) -> Self {
        for known in std::iter::once(&DISK_FULL).chain(KNOWN) {
            let said = |line: &&String| known.texts.iter().any(|text| says(line, text));
            if let Some(line) = output.lines.iter().find(said) {
                return Self::of_known(known, plain(line));
            }
        }
        let complaint = |line: &&String| ["ERROR:", "FATAL:", "error:"].iter().any(|mark| line.contains(mark));
        let line = output.lines.iter().find(complaint).or(output.lines.last());
        Self {
            words: line.map_or_else(|| format!("it ended with {ending}"), |line| plain(line)),
            advice: match line {
                Some(_) => format!("it ended with {ending}"),
                None => "it is tried again".to_owned(),
            },
            // Without a word: killed, most likely for memory.
            is_retryable: line.is_none() || ending.starts_with("killed"),
            is_disk_full: false,
        }
    }

    /// What a server's message or a failed connection means.
    pub(crate) fn of_message(message: &str, code: Option<&str>) -> Self {
        for known in std::iter::once(&DISK_FULL).chain(KNOWN) {
            let matches = code.is_some_and(|code| known.codes.contains(&code))
                || known.texts.iter().any(|text| says(message, text));
            if matches {
                return Self::of_known(known, message.to_owned());
            }
        }
        Self {
            words: message.to_owned(),
            advice: String::new(),
            is_retryable: false,
            is_disk_full: false,
        }
    }

    fn of_known(known: &Known, words: String) -> Self {
        Self {
            words,
            advice: known.advice.to_owned(),
            is_retryable: known.is_retryable,
            is_disk_full: known.texts == DISK_FULL.texts,
        }
    }
}

fn says(message: &str, text: &str) -> bool {
    text.split('…').all(|part| message.contains(part))
}

/// A line without the names of tools and severities before the message itself.
fn plain(line: &str) -> String {
    let marks = ["ERROR:", "FATAL:", "PANIC:", "error:"];
    let start = marks
        .iter()
        .filter_map(|mark| line.rfind(mark).map(|at| at + mark.len()))
        .max()
        .unwrap_or(0);
    line[start..].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Problem {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        Problem::of_tool(&ToolOutput { lines }, "exit code 1")
    }

    #[test]
    fn what_tools_say_becomes_plain_words_with_advice() {
        let denied = of(&[
            "pg_dump: error: query failed: ERROR:  permission denied for table salaries",
            "pg_dump: detail: Query was: LOCK TABLE public.salaries IN ACCESS SHARE MODE",
        ]);
        assert_eq!(denied.words, "permission denied for table salaries");
        assert!(denied.advice.contains("grant the role"));
        assert!(!denied.is_retryable);
        let lost = of(&[
            "pg_dump: error: Dumping the contents of table \"t\" failed: PQgetResult() failed.",
            "pg_dump: detail: Error message from server: FATAL:  terminating connection due to administrator command",
            "server closed the connection unexpectedly",
        ]);
        assert!(lost.is_retryable, "{lost}");
        assert!(of(&["pg_restore: error: could not write: No space left on device"]).is_disk_full);
        assert_eq!(
            of(&["pg_dump: error: the moon is full"]).to_string(),
            "the moon is full: it ended with exit code 1"
        );
    }

    #[test]
    fn a_tool_that_was_killed_without_a_word_is_tried_again() {
        let killed = Problem::of_tool(&ToolOutput::default(), "killed by signal 9");
        assert!(killed.is_retryable);
        assert!(killed.to_string().contains("killed by signal 9"));
    }
}
