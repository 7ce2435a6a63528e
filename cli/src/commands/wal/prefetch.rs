//! `strongroom wal prefetch`: brings the segments after the one that was asked for last, while Postgres replays.
//!
//! It tells nobody anything: what it cannot bring is asked for again by the fetch that needs it, which says why.

use std::io::Read as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use strongroom_connectors::postgres::wal::{Answer, FetchSettings};
use strongroom_proto::wal::WalSegment;
use tokio::task::JoinSet;

use super::fetch::{self, Opened};
use super::spool::Spool;

/// How many segments are brought at a time, and how many bytes of them at most, but for one.
const AT_ONCE: usize = 4;
const AT_ONCE_BYTES: usize = 256 << 20;
/// How long nobody may have asked for anything.
const IDLE: Duration = Duration::from_secs(20);
/// How often it looks how far the recovery is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// More than the settings need.
const SETTINGS_MAX_BYTES: u64 = 1 << 20;

pub(super) async fn run() -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    std::io::stdin().take(SETTINGS_MAX_BYTES).read_to_end(&mut text)?;
    let settings: FetchSettings = serde_json::from_slice(&text).context("read the settings")?;
    let spool = Spool::open(&settings).context("open the spool folder")?;
    let Some(_lock) = spool.lock() else {
        return Ok(ExitCode::SUCCESS);
    };
    fill(&spool).await?;
    Ok(ExitCode::SUCCESS)
}

async fn fill(spool: &Spool) -> anyhow::Result<()> {
    let settings = spool.settings().clone();
    let mut at = spool.at().context("nobody asked for anything")?;
    let window = |at: WalSegment| {
        let last = at.number + u64::from(settings.prefetch_segments);
        move |segment: WalSegment| {
            segment.timeline == at.timeline && segment.number > at.number && segment.number <= last
        }
    };
    // Nothing is being brought now, whatever a process that was killed has left.
    spool.clean(|segment| window(at)(segment) && spool.has(segment))?;
    let vault = Arc::new(fetch::open(&settings).await?);
    let at_once = (AT_ONCE_BYTES / settings.segment_bytes as usize).clamp(1, AT_ONCE);
    let mut asked_at = Instant::now();
    let mut coming: JoinSet<Brought> = JoinSet::new();
    let mut next = fetch::next(at);
    let mut is_at_end = false;
    loop {
        let now_at = spool.at().context("the folder is gone")?;
        if now_at != at {
            asked_at = Instant::now();
            if now_at.timeline != at.timeline || now_at.number < at.number {
                next = fetch::next(now_at);
            }
            at = now_at;
            next = next.max(fetch::next(at));
            spool.clean(|segment| segment == at || window(at)(segment))?;
        }
        while !is_at_end && coming.len() < at_once && window(at)(next) {
            if !spool.has(next) {
                spool.begin(next)?;
                coming.spawn(bring(Arc::clone(&vault), settings.clone(), next));
            }
            next = fetch::next(next);
        }
        if coming.is_empty() && (is_at_end || asked_at.elapsed() > IDLE) {
            return Ok(());
        }
        tokio::select! {
            Some(brought) = coming.join_next() => match brought.context("bring a segment")? {
                (segment, Some(bytes)) => spool.put(segment, &bytes)?,
                (segment, None) => {
                    spool.give_up(segment);
                    is_at_end = true;
                }
            },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// A segment, and its bytes where the vault has all of them.
type Brought = (WalSegment, Option<Vec<u8>>);

async fn bring(vault: Arc<Opened>, settings: FetchSettings, segment: WalSegment) -> Brought {
    let name = segment.file_name(settings.segment_bytes);
    let bytes = match vault.find(&settings, &name).await {
        Ok(Answer::Found(found)) if found.is_whole => Some(found.bytes),
        _ => None,
    };
    (segment, bytes)
}
