//! Whether a failed attempt is followed by another, and after how long.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_proto::Attempt;

/// How often and how patiently a job is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryRules {
    /// Attempts a job gets in all, the first included.
    pub max_attempts: u32,
    /// The wait before the second attempt, the third, and so on; the last one holds for all that follow.
    pub backoff_seconds: Vec<u64>,
}

impl Default for RetryRules {
    fn default() -> Self {
        Self {
            max_attempts: 4,
            backoff_seconds: vec![5, 30, 120],
        }
    }
}

/// What becomes of a job whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again.
    Retry {
        /// The attempt that will be made.
        next: Attempt,
        /// How long to wait before it.
        delay: Duration,
    },
    /// The job has failed.
    GiveUp {
        /// Why there is no further attempt.
        reason: GiveUpReason,
    },
}

/// Why a job is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUpReason {
    /// Another attempt would meet the same failure: somebody has to mend something first.
    NotRetryable,
    /// Every attempt the rules allow was made.
    AttemptsSpent {
        /// How many that were.
        attempts: u32,
    },
}

impl fmt::Display for GiveUpReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRetryable => f.write_str("another attempt would fail in the same way"),
            Self::AttemptsSpent { attempts: 1 } => f.write_str("the only attempt failed"),
            Self::AttemptsSpent { attempts } => write!(f, "all {attempts} attempts failed"),
        }
    }
}

/// What follows the failure of `failed`. `retryable` says whether time alone may mend it.
pub fn decide(rules: &RetryRules, failed: Attempt, retryable: bool) -> RetryDecision {
    if !retryable {
        return RetryDecision::GiveUp {
            reason: GiveUpReason::NotRetryable,
        };
    }
    if failed.number() >= rules.max_attempts {
        return RetryDecision::GiveUp {
            reason: GiveUpReason::AttemptsSpent {
                attempts: failed.number(),
            },
        };
    }
    let place = failed.number().saturating_sub(1) as usize;
    let seconds = rules
        .backoff_seconds
        .get(place)
        .or(rules.backoff_seconds.last())
        .copied()
        .unwrap_or_default();
    RetryDecision::Retry {
        next: failed.next(),
        delay: Duration::from_secs(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(rules: &RetryRules) -> (Vec<u64>, GiveUpReason) {
        let mut delays = Vec::new();
        let mut attempt = Attempt::FIRST;
        loop {
            match decide(rules, attempt, true) {
                RetryDecision::Retry { next, delay } => {
                    assert_eq!(next, attempt.next());
                    delays.push(delay.as_secs());
                    attempt = next;
                }
                RetryDecision::GiveUp { reason } => return (delays, reason),
            }
        }
    }

    #[test]
    fn by_default_a_job_is_tried_four_times_more_patiently_each_time() {
        assert_eq!(
            delays(&RetryRules::default()),
            (vec![5, 30, 120], GiveUpReason::AttemptsSpent { attempts: 4 })
        );
    }

    #[test]
    fn the_last_wait_holds_for_all_that_follow_and_none_is_none() {
        let rules = RetryRules {
            max_attempts: 5,
            backoff_seconds: vec![1, 7],
        };
        assert_eq!(delays(&rules).0, [1, 7, 7, 7]);
        assert_eq!(
            delays(&RetryRules {
                max_attempts: 3,
                backoff_seconds: vec![]
            })
            .0,
            [0, 0]
        );
    }

    #[test]
    fn a_failure_that_time_does_not_mend_is_final_at_once() {
        let decision = decide(&RetryRules::default(), Attempt::FIRST, false);
        assert_eq!(
            decision,
            RetryDecision::GiveUp {
                reason: GiveUpReason::NotRetryable
            }
        );
    }

    #[test]
    fn rules_of_no_attempts_give_up_and_say_so() {
        let (_, reason) = delays(&RetryRules {
            max_attempts: 0,
            backoff_seconds: vec![],
        });
        assert_eq!(reason.to_string(), "the only attempt failed");
    }
}
