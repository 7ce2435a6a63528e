//! Whether there is room for one more job. A job that finds none stays pending; it is not refused.

use serde::{Deserialize, Serialize};

/// How many jobs may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Jobs of one target. More than one would read the same data twice.
    pub per_target: u32,
    /// Jobs of one pool of workers.
    pub per_pool: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_target: 1,
            per_pool: 64,
        }
    }
}

/// How many jobs run at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Of the target in question.
    pub for_target: u32,
    /// In the pool in question.
    pub in_pool: u32,
}

/// Whether one more job may run.
pub const fn admits(limits: Limits, running: Running) -> bool {
    running.for_target < limits.per_target && running.in_pool < limits.per_pool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_waits_for_its_target_and_for_its_pool() {
        let limits = Limits {
            per_target: 1,
            per_pool: 2,
        };
        assert!(admits(
            limits,
            Running {
                for_target: 0,
                in_pool: 1
            }
        ));
        assert!(
            !admits(
                limits,
                Running {
                    for_target: 1,
                    in_pool: 1
                }
            ),
            "the target is busy"
        );
        assert!(
            !admits(
                limits,
                Running {
                    for_target: 0,
                    in_pool: 2
                }
            ),
            "the pool is full"
        );
    }
}
