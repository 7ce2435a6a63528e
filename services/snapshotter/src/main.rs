//! The snapshotter as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    strongroom_runtime::entry::service_main("strongroom-snapshotter", strongroom_snapshotter::run)
}
