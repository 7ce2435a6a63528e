//! The life of a job: one `match` of state and event. A pair that is not listed is an error, and the diagram in
//! `docs/job-lifecycle.md` is drawn from the same `match`, so that neither can drift from the other.
//!
//! The catalog carries transitions out as compare-and-set updates; which of them exist is decided here alone.

use std::fmt;

use strongroom_proto::JobStatus;

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobEvent {
    /// A worker took the job: the attempt it will make is the current one.
    Claimed,
    /// The current attempt left its receipt.
    Finished,
    /// The current attempt failed, or its lease ran out, and the rules allow another.
    AttemptLost,
    /// The rules allow no further attempt, or the failure is one that no attempt can mend.
    GaveUp,
    /// Somebody asked for the job to stop.
    Cancelled,
    /// The worker shut down in an orderly way. It spends no attempt.
    Interrupted,
}

impl JobEvent {
    /// Every event, in the order of a job's life.
    pub const ALL: &'static [Self] = &[
        Self::Claimed,
        Self::Finished,
        Self::AttemptLost,
        Self::Interrupted,
        Self::GaveUp,
        Self::Cancelled,
    ];
}

impl fmt::Display for JobEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claimed => "claimed",
            Self::Finished => "finished",
            Self::AttemptLost => "attempt lost",
            Self::GaveUp => "gave up",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        })
    }
}

/// An event that cannot happen to a job in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {status} job cannot be {event}")]
pub struct IllegalTransition {
    /// Where the job stands.
    pub status: JobStatus,
    /// What was to happen to it.
    pub event: JobEvent,
}

/// Where `event` takes a job that stands at `status`.
pub const fn next(status: JobStatus, event: JobEvent) -> Result<JobStatus, IllegalTransition> {
    use JobEvent as E;
    use JobStatus as S;
    match (status, event) {
        (S::Pending, E::Claimed) => Ok(S::Running),
        (S::Running, E::Finished) => Ok(S::Completed),
        (S::Running, E::AttemptLost | E::Interrupted) => Ok(S::Pending),
        (S::Running, E::GaveUp) => Ok(S::Failed),
        (S::Pending | S::Running, E::Cancelled) => Ok(S::Cancelled),
        (status, event) => Err(IllegalTransition { status, event }),
    }
}

/// The states and transitions as a Mermaid diagram.
pub fn diagram() -> String {
    let mut lines = vec![
        "stateDiagram-v2".to_owned(),
        format!("    [*] --> {}", JobStatus::Pending),
    ];
    for &from in JobStatus::ALL {
        for &event in JobEvent::ALL {
            if let Ok(to) = next(from, event) {
                lines.push(format!("    {from} --> {to}: {event}"));
            }
        }
    }
    lines.extend(
        JobStatus::ALL
            .iter()
            .filter(|s| s.is_final())
            .map(|status| format!("    {status} --> [*]")),
    );
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_job_fails_after_it_was_retried_and_not_before_it_existed() {
        let mut status = JobStatus::Pending;
        for event in [
            JobEvent::Claimed,
            JobEvent::AttemptLost,
            JobEvent::Claimed,
            JobEvent::GaveUp,
        ] {
            status = next(status, event).unwrap();
        }
        assert_eq!(status, JobStatus::Failed);
        let refused = next(JobStatus::Pending, JobEvent::Finished).unwrap_err();
        assert_eq!(refused.to_string(), "a pending job cannot be finished");
    }

    #[test]
    fn no_event_leaves_a_final_state() {
        for &status in JobStatus::ALL.iter().filter(|status| status.is_final()) {
            for &event in JobEvent::ALL {
                assert!(next(status, event).is_err(), "{status} {event}");
            }
        }
    }

    #[test]
    fn every_state_is_reached_and_every_unfinished_one_can_be_left() {
        for &status in JobStatus::ALL {
            let reached = JobStatus::ALL
                .iter()
                .any(|&from| JobEvent::ALL.iter().any(|&event| next(from, event) == Ok(status)));
            assert!(reached, "{status}");
            let left = JobEvent::ALL.iter().any(|&event| next(status, event).is_ok());
            assert_eq!(left, !status.is_final(), "{status}");
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_a_job_completes_at_most_once(choices in prop::collection::vec(0..JobEvent::ALL.len(), 0..60)) {
            let mut status = JobStatus::Pending;
            let mut completed = 0;
            for choice in choices {
                if let Ok(after) = next(status, JobEvent::ALL[choice]) {
                    status = after;
                    completed += u32::from(status == JobStatus::Completed);
                }
            }
            prop_assert!(completed <= 1);
        }
    }
}
