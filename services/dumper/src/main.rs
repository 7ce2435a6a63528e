//! The dumper as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    strongroom_runtime::entry::service_main("strongroom-dumper", strongroom_dumper::run)
}
