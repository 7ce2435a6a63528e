//! What a recovering server says in its log, as far as it tells how the recovery goes.

use chrono::{DateTime, Utc};
use strongroom_proto::wal::Lsn;

/// Where the server stopped because of what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoppedAt {
    /// Before a transaction that ended later than the moment.
    BeforeTransaction { xid: u32, time: DateTime<Utc> },
    /// After the transaction that was named.
    AfterTransaction { xid: u32, was_committed: bool },
    /// Before a record.
    BeforeLsn(Lsn),
    /// At a restore point.
    RestorePoint(String),
    /// As soon as it was consistent.
    Consistent,
}

/// What the log has told so far.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) stopped_at: Option<StoppedAt>,
    /// Whether it waits to be told what to do.
    pub(super) is_paused: bool,
    pub(super) consistent_at: Option<Lsn>,
    /// Whether it takes writes.
    pub(super) is_promoted: bool,
    /// Settings that the source had raised meanwhile, without which no more is replayed.
    pub(super) too_low: Vec<(String, u64)>,
    /// Whether replay needs the cluster's own libraries.
    pub(super) needs_libraries: bool,
    /// The last lines that say why something failed.
    pub(super) complaints: Vec<String>,
}

/// Lines of complaint that are kept.
const COMPLAINTS_MAX: usize = 8;

impl Observed {
    /// Takes a line of the log.
    pub(super) fn take(&mut self, line: &str) {
        // `2026-11-21 14:03:05 UTC LOG:  message`
        let Some((severity, message)) = ["LOG", "WARNING", "FATAL", "ERROR", "PANIC", "DETAIL", "HINT"]
            .iter()
            .find_map(|word| Some((*word, line.split_once(&format!(" {word}:  "))?.1)))
        else {
            return;
        };
        match severity {
            "LOG" => self.take_message(message),
            "DETAIL" => {
                if let Some(raised) = too_low(message) {
                    self.too_low.push(raised);
                } else if !self.complaints.is_empty() {
                    self.complain(message);
                }
            }
            "HINT" if !self.complaints.is_empty() => self.complain(message),
            // Whoever connects too early is told so; that is no failure.
            "FATAL" | "PANIC" | "ERROR" if !message.starts_with("the database system is ") => {
                self.needs_libraries |=
                    message.contains("resource manager with ID") && message.contains("not registered");
                self.complain(message);
            }
            _ => {}
        }
    }

    fn take_message(&mut self, message: &str) {
        if message == "pausing at the end of recovery" {
            self.is_paused = true;
        } else if message == "database system is ready to accept connections" {
            self.is_promoted = true;
        } else if let Some(lsn) = message.strip_prefix("consistent recovery state reached at ") {
            self.consistent_at = lsn.trim().parse().ok();
        } else if let Some(how) = message.strip_prefix("recovery stopping ") {
            self.stopped_at = stopped_at(how);
        }
    }

    fn complain(&mut self, message: &str) {
        if self.complaints.len() == COMPLAINTS_MAX {
            self.complaints.remove(0);
        }
        self.complaints.push(message.to_owned());
    }
}

fn stopped_at(how: &str) -> Option<StoppedAt> {
    let place = |text: &str| text.trim_matches('"').parse().ok();
    if how == "after reaching consistency" {
        return Some(StoppedAt::Consistent);
    }
    if let Some(lsn) = how.strip_prefix("before WAL location (LSN) ") {
        return place(lsn).map(StoppedAt::BeforeLsn);
    }
    if let Some(rest) = how.strip_prefix("at restore point \"") {
        // The name itself may hold what follows it.
        let (name, _) = rest.rsplit_once("\", time ")?;
        return Some(StoppedAt::RestorePoint(name.to_owned()));
    }
    let (side, rest) = how.split_once(' ')?;
    let (ending, rest) = rest.split_once(" of transaction ")?;
    let (xid, time) = rest.split_once(", time ")?;
    let (xid, time) = (xid.parse().ok()?, read_time(time)?);
    match side {
        "before" => Some(StoppedAt::BeforeTransaction { xid, time }),
        "after" => Some(StoppedAt::AfterTransaction {
            xid,
            was_committed: ending == "commit",
        }),
        _ => None,
    }
}

/// A time as a server writes it.
pub(super) fn read_time(text: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_str(text.trim(), "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
    Some(time.with_timezone(&Utc))
}

/// `max_connections = 10 is a lower setting than on the primary server, where its value was 20.`
fn too_low(message: &str) -> Option<(String, u64)> {
    let (name, rest) = message.split_once(" = ")?;
    let (_, value) = rest.split_once("is a lower setting than on the primary server, where its value was ")?;
    Some((name.to_owned(), value.trim_end_matches('.').parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Observed {
        let mut observed = Observed::default();
        lines.iter().for_each(|line| observed.take(line));
        observed
    }

    #[test]
    fn a_stop_is_told_with_what_it_stopped_at() {
        let stop =
            |message: &str| after(&[&format!("2026-11-21 17:00:00 UTC LOG:  recovery stopping {message}")]).stopped_at;
        let time = "2026-11-21T17:00:01.5Z".parse().unwrap();
        assert_eq!(
            stop("before commit of transaction 731, time 2026-11-21 17:00:01.5+00"),
            Some(StoppedAt::BeforeTransaction { xid: 731, time })
        );
        assert_eq!(
            stop("after abort of transaction 731, time 2026-11-21 17:00:01.5+00"),
            Some(StoppedAt::AfterTransaction {
                xid: 731,
                was_committed: false
            })
        );
        assert_eq!(
            stop("before WAL location (LSN) \"0/16B3740\""),
            Some(StoppedAt::BeforeLsn(Lsn(0x16B_3740)))
        );
        let name = "a\", time b";
        assert_eq!(
            stop(&format!("at restore point \"{name}\", time 2026-11-21 17:00:01.5+00")),
            Some(StoppedAt::RestorePoint(name.to_owned()))
        );
        assert_eq!(stop("after reaching consistency"), Some(StoppedAt::Consistent));
        assert_eq!(stop("for reasons of its own"), None);
    }

    #[test]
    fn a_raised_setting_and_a_complaint_are_told_apart() {
        let observed = after(&[
            "2026-11-21 17:00:00 UTC WARNING:  hot standby is not possible because of insufficient parameter settings",
            "2026-11-21 17:00:00 UTC DETAIL:  max_connections = 100 is a lower setting than on the primary server, where its value was 250.",
            "2026-11-21 17:00:00 UTC FATAL:  the database system is starting up",
            "2026-11-21 17:00:00 UTC FATAL:  could not access file \"nothing\": No such file or directory",
        ]);
        assert_eq!(observed.too_low, [("max_connections".to_owned(), 250)]);
        assert_eq!(observed.complaints.len(), 1, "{:?}", observed.complaints);
        assert!(!observed.is_paused && !observed.is_promoted);
    }
}
