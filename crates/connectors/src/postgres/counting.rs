//! Row counts by SQL, in the snapshot of a dump and while the dump runs.
//!
//! The session that exported the snapshot must live as long as dumps may still import it. It is kept busy on a thread
//! of its own: it counts the tables that a dump has announced, and asks for nothing now and then, so that no firewall
//! takes it for dead.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;

use super::quote;
use super::sql::{Sql, SqlError};

/// How long the session may be silent.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
/// Tables whose names are looked up together.
const LOOK_UP_TABLES: usize = 500;

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) rows: u64,
    /// On the server's disk, with its indexes. It is the size of now, not of the snapshot.
    pub(crate) bytes: Option<u64>,
}

/// The counts by object id.
pub(crate) type Counts = HashMap<u32, Counted>;

/// The session of a snapshot, counting.
pub(crate) struct SnapshotCounts {
    requests: Option<Sender<Vec<u32>>>,
    cancel: Arc<Notify>,
    thread: Option<JoinHandle<Result<Counts, SqlError>>>,
}

impl SnapshotCounts {
    /// Takes over a session in whose transaction the snapshot was exported.
    pub(crate) fn start(sql: Sql) -> Self {
        let (requests, received) = channel();
        let cancel = sql.canceller();
        let thread = std::thread::spawn(move || serve(sql, &received));
        Self {
            requests: Some(requests),
            cancel,
            thread: Some(thread),
        }
    }

    /// Asks for the rows of these tables to be counted.
    pub(crate) fn request(&self, tables: Vec<u32>) {
        if let Some(requests) = &self.requests {
            // A thread that has ended has an error to tell, in `finish`.
            let _ = requests.send(tables);
        }
    }

    /// Waits for the counts and ends the session.
    pub(crate) fn finish(mut self) -> Result<Counts, SqlError> {
        self.requests = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(SqlError::other("counting rows ended unexpectedly")),
        }
    }
}

impl Drop for SnapshotCounts {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            self.cancel.notify_one();
            let _ = thread.join();
        }
    }
}

fn serve(mut sql: Sql, requests: &Receiver<Vec<u32>>) -> Result<Counts, SqlError> {
    let mut counts = Counts::new();
    loop {
        match requests.recv_timeout(KEEP_ALIVE_EVERY) {
            Ok(tables) => {
                for some in tables.chunks(LOOK_UP_TABLES) {
                    counts.extend(count(&mut sql, some)?);
                }
            }
            Err(RecvTimeoutError::Timeout) => sql.run("SELECT 1")?,
            Err(RecvTimeoutError::Disconnected) => return Ok(counts),
        }
    }
}

fn count(sql: &mut Sql, tables: &[u32]) -> Result<Counts, SqlError> {
    let ids: Vec<String> = tables.iter().map(u32::to_string).collect();
    // Of a configuration table of an extension only the rows that fit its condition are dumped.
    let rows = sql.rows(&format!(
        "SELECT c.oid, n.nspname, c.relname,
                (SELECT condition FROM pg_extension, unnest(extconfig, extcondition) AS t(id, condition)
                 WHERE id = c.oid LIMIT 1),
                pg_total_relation_size(c.oid)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({})",
        ids.join(",")
    ))?;
    let mut counts = Counts::new();
    for row in rows {
        let Ok([Some(id), Some(schema), Some(name), condition, bytes]) = <[_; 5]>::try_from(row) else {
            continue;
        };
        let Ok(id) = id.parse() else { continue };
        let rows = sql.number(&count_statement(&schema, &name, condition.as_deref()))?;
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        counts.insert(
            id,
            Counted {
                schema,
                name,
                rows,
                bytes,
            },
        );
    }
    Ok(counts)
}

/// Counts the rows that a dump of this table holds: its own, without those of tables that inherit from it.
pub(crate) fn count_statement(schema: &str, name: &str, condition: Option<&str>) -> String {
    format!(
        "SELECT count(*) FROM ONLY {}.{} {}",
        quote::identifier(schema),
        quote::identifier(name),
        condition.unwrap_or_default()
    )
}
