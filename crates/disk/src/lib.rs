//! Large files on their way to a local disk and back, past the page cache.
//!
//! What a backup or a restore writes is not read again soon. In the page cache it would push out what the machine's
//! databases keep there, cost a copy and a fresh page for every 4 KiB, and leave the disk idle until the end, when all
//! of it has to be made durable at once. So it is written from one aligned piece of memory straight to the disk
//! (`O_DIRECT`), and where the file system cannot do that, through the page cache with the disk asked to begin early.
//!
//! Neither makes anything durable: that takes a sync, as ever.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod buffers;
mod new_file;
mod read;

use std::fs::File;
use std::io;

use rustix::fs::OFlags;

pub use crate::buffers::Buffers;
pub use crate::new_file::NewFile;
pub use crate::read::{read_once, read_part};

/// What of a file comes after so many bytes, or is written in pieces as large, goes past the page cache.
pub const LARGE_BYTES: u64 = 1024 * 1024;

fn set_direct(file: &File, is_direct: bool) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    let wanted = if is_direct {
        flags | OFlags::DIRECT
    } else {
        flags - OFlags::DIRECT
    };
    Ok(rustix::fs::fcntl_setfl(file, wanted)?)
}
