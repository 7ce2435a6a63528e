//! The coordinator as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    strongroom_runtime::entry::service_main("strongroom-coordinator", async |loaded, shutdown| {
        strongroom_coordinator::run(loaded, None, shutdown).await
    })
}
