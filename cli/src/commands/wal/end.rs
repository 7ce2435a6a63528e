//! Ending this process by a signal.
//!
//! Postgres takes every exit code of `restore_command` up to 125 for "there is no such file", ends the recovery there and
//! promotes; only a signal makes it stop.

use std::io::Write as _;
use std::process::abort;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// How long the signal may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(2);

/// Says why, on one line, and ends this process by SIGTERM, or by SIGABRT where that is ignored.
pub(crate) fn by_signal(reason: &str) -> ! {
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "strongroom: {line}");
    let _ = kill_process(getpid(), Signal::TERM);
    std::thread::sleep(ARRIVAL);
    abort()
}

/// Has a panic of any thread end this process by a signal.
pub(crate) fn on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        by_signal(&format!("this is a defect of strongroom: {panic}"));
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    const IN_CHILD: &str = "STRONGROOM_TEST_PANICS";

    /// Runs this very test once more as a process of its own, where it panics in a thread beside.
    #[test]
    fn a_panic_of_any_thread_ends_the_process_by_a_signal() {
        if std::env::var_os(IN_CHILD).is_some() {
            super::on_panic();
            let _ = std::thread::spawn(|| panic!("as if\nsomething were wrong")).join();
            std::process::exit(1);
        }
        let name = "commands::wal::end::tests::a_panic_of_any_thread_ends_the_process_by_a_signal";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(15), "{child:?}");
        let told = String::from_utf8_lossy(&child.stderr);
        assert!(
            told.contains("a defect of strongroom") && told.contains("as if something were wrong"),
            "{told}"
        );
    }
}
