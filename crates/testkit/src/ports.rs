//! Free loopback ports, not handed out twice however many test processes run at once.

use std::fs::File;
use std::net::TcpListener;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};

/// Below the range the kernel takes outgoing ports from, so that no connection grabs a port before its server does.
const PORTS: Range<u16> = 15_000..32_000;

/// Locks on the ports handed out by this process; the kernel releases them when it ends.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A loopback TCP port that nobody listens on, reserved for this process among all test processes of this user.
pub fn free_port() -> Result<u16> {
    let dir = PathBuf::from(format!(
        "/tmp/strongroom-test-ports-{}",
        rustix::process::geteuid().as_raw()
    ));
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let count = u32::from(PORTS.end - PORTS.start);
    let start = starting_point();
    for step in 0..count {
        let port = PORTS.start + u16::try_from(start.wrapping_add(step) % count)?;
        let path = dir.join(port.to_string());
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if lock.try_lock().is_err() || TcpListener::bind(("127.0.0.1", port)).is_err() {
            continue;
        }
        HELD.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(lock);
        return Ok(port);
    }
    bail!("no free loopback port between {} and {}", PORTS.start, PORTS.end)
}

/// Somewhere in the range that differs between processes and between calls.
fn starting_point() -> u32 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let mut ports: Vec<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
