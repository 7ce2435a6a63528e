//! The message that hands an attempt of a job to a worker.
//!
//! It names the job and nothing else of consequence: the worker reads the job from the catalog when it claims it, so
//! a message can be lost, repeated or late without harm, and holds no secret.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Attempt, JobId, JobKind, TargetName};

/// One attempt of one job, for whoever pulls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkMessage {
    /// The job.
    pub job_id: JobId,
    /// The attempt; a claim of any other is refused.
    pub attempt: Attempt,
    /// What the job does.
    pub kind: JobKind,
    /// The target it is about.
    pub target: TargetName,
    /// W3C trace context of the trigger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl WorkMessage {
    /// The message id on the stream: one message a job and attempt.
    pub fn message_id(&self) -> String {
        format!("{}.{}", self.job_id, self.attempt)
    }
}
