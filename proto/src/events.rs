//! Events: the facts Strongroom publishes and the triggers it accepts, as CloudEvents 1.0.
//!
//! What goes out is structured JSON. What comes in may be structured, binary (`ce-` headers) or a bare JSON body;
//! [`parse_trigger`] makes the same [`Trigger`] of all three.

use chrono::{DateTime, Utc};
use cloudevents::{AttributesReader, Event, EventBuilder, EventBuilderV10};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::CreateBackup;
use crate::receipt::{Git, ValidationMethod};
use crate::{Attempt, BackupId, BackupType, JobId, JobKind, JobStatus, Progress, TargetName, TriggerId, subjects};

/// Media type of a structured CloudEvent.
pub const STRUCTURED: &str = "application/cloudevents+json";

/// A fact for the world. The fields the seeds name come first in each; what follows is ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Fact {
    /// `backup.job.started`
    JobStarted(JobStarted),
    /// `backup.job.progress`
    JobProgress(JobProgress),
    /// `backup.job.completed`
    JobCompleted(JobCompleted),
    /// `backup.job.failed`
    JobFailed(JobFailed),
    /// `backup.verify.completed`
    VerifyCompleted(VerifyCompleted),
    /// `backup.verify.failed`
    VerifyFailed(VerifyFailed),
    /// `restore.completed`
    RestoreCompleted(RestoreCompleted),
    /// `restore.failed`
    RestoreFailed(RestoreFailed),
    /// `backup.alert`
    Alert(Alert),
}

/// A worker took the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobStarted {
    /// The job.
    pub job_id: JobId,
    /// What is read.
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    /// The target, as a list of one.
    pub targets: Vec<TargetName>,
    /// What the job does.
    pub kind: JobKind,
    /// Which try this is.
    pub attempt: Attempt,
    /// The backup it makes, verifies or restores.
    pub backup_id: BackupId,
    /// The worker.
    pub worker: String,
}

/// How far a running job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobProgress {
    /// The job.
    pub job_id: JobId,
    /// The target, as a list of one.
    pub targets: Vec<TargetName>,
    /// What the job does.
    pub kind: JobKind,
    /// Which try this is; another one counts from nothing again.
    pub attempt: Attempt,
    /// The backup it makes, verifies or restores.
    pub backup_id: BackupId,
    /// Bytes, files, rate and time left.
    #[serde(flatten)]
    pub progress: Progress,
}

/// A backup has its receipt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobCompleted {
    /// The job.
    pub job_id: JobId,
    /// Always `completed`.
    pub status: JobStatus,
    /// From claim to receipt, e.g. `12.4s`.
    pub duration: String,
    /// Bytes of content.
    pub size_bytes: u64,
    /// Bytes added to the vault.
    pub stored_bytes: u64,
    /// The target, as a list of one.
    pub targets: Vec<TargetName>,
    /// The backup.
    pub backup_id: BackupId,
    /// Whether something is missing; the receipt says what.
    pub partial: bool,
}

/// A job was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobFailed {
    /// The job.
    pub job_id: JobId,
    /// Why, in plain words.
    pub error: String,
    /// Attempts after the first.
    pub retry_count: u32,
    /// The target, as a list of one.
    pub targets: Vec<TargetName>,
    /// What the job was to do.
    pub kind: JobKind,
}

/// A restore of the backup was tried and passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyCompleted {
    /// The verify job.
    pub job_id: JobId,
    /// The backup that was proven.
    pub backup_id: BackupId,
    /// The target it is of.
    pub targets: Vec<TargetName>,
    /// How it was proven.
    pub validation_method: ValidationMethod,
    /// When.
    pub validated_at: DateTime<Utc>,
    /// Checks that passed.
    pub checks_passed: u32,
}

/// A restore of the backup was tried and did not pass, or could not be tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyFailed {
    /// The verify job.
    pub job_id: JobId,
    /// The backup.
    pub backup_id: BackupId,
    /// The target it is of.
    pub targets: Vec<TargetName>,
    /// The checks that failed, or why none could be made.
    pub error: String,
}

/// A restore is in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreCompleted {
    /// The restore job.
    pub restore_id: JobId,
    /// The target whose backup was restored, as a list of one.
    pub targets: Vec<TargetName>,
    /// Always true.
    pub success: bool,
    /// The backup.
    pub backup_id: BackupId,
    /// Where it went; never with a password.
    pub destination: String,
}

/// A restore was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreFailed {
    /// The restore job.
    pub restore_id: JobId,
    /// The target whose backup was to be restored, as a list of one.
    pub targets: Vec<TargetName>,
    /// Always false.
    pub success: bool,
    /// The backup.
    pub backup_id: BackupId,
    /// Why, in plain words.
    pub error: String,
}

/// Something needs a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alert {
    /// What about: `dead_letter`, `verification_failed`, `trigger_refused`, or what is wrong with a target's WAL.
    pub subject: String,
    /// What happened and what to do, in plain words.
    pub message: String,
    /// The job, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// The target, as a list of one, or empty.
    pub targets: Vec<TargetName>,
    /// Whether what an earlier alert of this subject and target told is right again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resolved: bool,
}

impl Fact {
    /// The subject it is published on; also the CloudEvents type.
    pub const fn subject(&self) -> &'static str {
        match self {
            Self::JobStarted(_) => subjects::JOB_STARTED,
            Self::JobProgress(_) => subjects::JOB_PROGRESS,
            Self::JobCompleted(_) => subjects::JOB_COMPLETED,
            Self::JobFailed(_) => subjects::JOB_FAILED,
            Self::VerifyCompleted(_) => subjects::VERIFY_COMPLETED,
            Self::VerifyFailed(_) => subjects::VERIFY_FAILED,
            Self::RestoreCompleted(_) => subjects::RESTORE_COMPLETED,
            Self::RestoreFailed(_) => subjects::RESTORE_FAILED,
            Self::Alert(_) => subjects::ALERT,
        }
    }
}

/// The CloudEvent that carries a fact. `id` must be the same for every publication of the same fact: subscribers and
/// the stream know repetitions by it. `data` is the fact as JSON, `subject` its type.
pub fn cloud_event(
    subject: &str,
    data: serde_json::Value,
    id: &str,
    source: &str,
    time: DateTime<Utc>,
    traceparent: Option<&str>,
) -> Result<Event, FactError> {
    let mut builder = EventBuilderV10::new()
        .id(id)
        .source(source)
        .ty(subject)
        .time(time)
        .data("application/json", data);
    if let Some(traceparent) = traceparent {
        builder = builder.extension("traceparent", traceparent);
    }
    builder.build().map_err(|source| FactError::Build { source })
}

/// A fact that could not be made into an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FactError {
    /// An attribute is not allowed.
    #[error("build event")]
    Build {
        /// Why.
        #[source]
        source: cloudevents::event::EventBuilderError,
    },
}

/// Why a job is to exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// Its identity; a repetition makes no second job.
    pub id: TriggerId,
    /// W3C trace context it came with.
    pub traceparent: Option<String>,
    /// What is asked for.
    pub ask: Ask,
}

/// What a trigger asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Back up the named targets.
    Backup(CreateBackup),
    /// Back up a scenario's files.
    Scenario(ScenarioDeployed),
    /// Back up a database incrementally.
    Schema(SchemaUpdated),
}

/// Payload of `scenario.deployed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScenarioDeployed {
    /// Its name; the target is `scenario/<name>`.
    pub scenario: String,
    /// The folder of its files.
    pub path: String,
    /// The version that was deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The commit that was deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<Git>,
}

/// Payload of `postgres.schema_updated`: the databases, by name or as target names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SchemaUpdated {
    /// One database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Several databases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// Targets by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
}

/// A message on a trigger subject that is no trigger. The message will be the same however often it is delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// The body is not JSON.
    #[error("the body of the message on {subject} is not JSON: send a JSON object, bare or in a CloudEvent")]
    NotJson {
        /// Where it came.
        subject: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An attribute that CloudEvents requires is missing.
    #[error(
        "the CloudEvent on {subject} lacks {attribute:?}: CloudEvents 1.0 requires id, source, type and specversion"
    )]
    MissingAttribute {
        /// Where it came.
        subject: String,
        /// Which.
        attribute: &'static str,
    },
    /// The event's version is another.
    #[error("the CloudEvent on {subject} has specversion {version:?}: send 1.0")]
    Version {
        /// Where it came.
        subject: String,
        /// What it said.
        version: String,
    },
    /// The event is of another type.
    #[error("the CloudEvent on {subject} is of type {found:?}: publish it on the subject of its type")]
    OtherType {
        /// Where it came.
        subject: String,
        /// What it said.
        found: String,
    },
    /// The payload has other fields.
    #[error("the payload on {subject} is not understood")]
    Payload {
        /// Where it came.
        subject: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No trigger comes on this subject.
    #[error("no trigger is defined on subject {subject}")]
    UnknownSubject {
        /// Where it came.
        subject: String,
    },
}

/// Reads a message of a trigger subject. `header` looks a header up by its exact name; `fallback_id` names the
/// message where it brings no identity of its own (the stream and its sequence number).
pub fn parse_trigger(
    subject: &str,
    header: &dyn Fn(&str) -> Option<String>,
    body: &[u8],
    fallback_id: &str,
) -> Result<Trigger, TriggerError> {
    let header = |name: &str| header(name).or_else(|| header(&capitalised(name)));
    let missing = |attribute| TriggerError::MissingAttribute {
        subject: subject.to_owned(),
        attribute,
    };
    let json = |bytes: &[u8]| -> Result<serde_json::Value, TriggerError> {
        serde_json::from_slice(bytes).map_err(|source| TriggerError::NotJson {
            subject: subject.to_owned(),
            source,
        })
    };
    let content_type = header("content-type").unwrap_or_default();
    let attribute = |name: &str| header(&format!("ce-{name}")).map(|value| percent_decoded(&value));

    if attribute("specversion").is_some() && !content_type.starts_with(STRUCTURED) {
        check_version(subject, attribute("specversion").as_deref())?;
        check_type(subject, attribute("type").as_deref())?;
        let id = attribute("id").ok_or_else(|| missing("id"))?;
        let source = attribute("source").ok_or_else(|| missing("source"))?;
        return Ok(Trigger {
            id: TriggerId::of_event(&source, &id),
            traceparent: trace_context(attribute("traceparent").or_else(|| header("traceparent"))),
            ask: parse_ask(subject, json(body)?)?,
        });
    }

    let value = json(body)?;
    if content_type.starts_with(STRUCTURED) || value.get("specversion").is_some() {
        let version = value.get("specversion").and_then(|v| v.as_str());
        check_version(subject, version)?;
        check_type(subject, value.get("type").and_then(|v| v.as_str()))?;
        let event: Event = serde_json::from_value(value).map_err(|source| TriggerError::Payload {
            subject: subject.to_owned(),
            source,
        })?;
        if event.id().is_empty() {
            return Err(missing("id"));
        }
        let traceparent = event
            .extension("traceparent")
            .map(ToString::to_string)
            .or_else(|| header("traceparent"));
        let traceparent = trace_context(traceparent);
        let id = TriggerId::of_event(event.source(), event.id());
        let data: serde_json::Value = match event.data() {
            Some(cloudevents::Data::Json(value)) => value.clone(),
            Some(cloudevents::Data::String(text)) => json(text.as_bytes())?,
            Some(cloudevents::Data::Binary(bytes)) => json(bytes)?,
            None => return Err(missing("data")),
        };
        return Ok(Trigger {
            id,
            traceparent,
            ask: parse_ask(subject, data)?,
        });
    }

    let id = header("nats-msg-id").or_else(|| header("Nats-Msg-Id"));
    Ok(Trigger {
        id: TriggerId::of_event(subject, id.as_deref().unwrap_or(fallback_id)),
        traceparent: trace_context(header("traceparent")),
        ask: parse_ask(subject, value)?,
    })
}

/// A W3C trace context, or nothing: what came from outside goes on into headers, and must be what it says it is.
fn trace_context(text: Option<String>) -> Option<String> {
    text.filter(|text| text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

fn check_version(subject: &str, version: Option<&str>) -> Result<(), TriggerError> {
    match version {
        Some("1.0") => Ok(()),
        other => Err(TriggerError::Version {
            subject: subject.to_owned(),
            version: other.unwrap_or("").to_owned(),
        }),
    }
}

fn check_type(subject: &str, found: Option<&str>) -> Result<(), TriggerError> {
    match found {
        Some(found) if found == subject => Ok(()),
        Some(found) => Err(TriggerError::OtherType {
            subject: subject.to_owned(),
            found: found.to_owned(),
        }),
        None => Err(TriggerError::MissingAttribute {
            subject: subject.to_owned(),
            attribute: "type",
        }),
    }
}

fn parse_ask(subject: &str, data: serde_json::Value) -> Result<Ask, TriggerError> {
    let payload = |source| TriggerError::Payload {
        subject: subject.to_owned(),
        source,
    };
    match subject {
        subjects::BACKUP_REQUEST => serde_json::from_value(data).map(Ask::Backup).map_err(payload),
        subjects::SCENARIO_DEPLOYED => serde_json::from_value(data).map(Ask::Scenario).map_err(payload),
        subjects::SCHEMA_UPDATED => serde_json::from_value(data).map(Ask::Schema).map_err(payload),
        other => Err(TriggerError::UnknownSubject {
            subject: other.to_owned(),
        }),
    }
}

/// `content-type` as `Content-Type`: header names on NATS keep their case, and clients differ in it.
fn capitalised(name: &str) -> String {
    let word = |w: &str| {
        let mut chars = w.chars();
        chars
            .next()
            .map(|c| c.to_ascii_uppercase().to_string() + chars.as_str())
            .unwrap_or_default()
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

/// A text with its `%XX` sequences replaced by the bytes they stand for.
pub fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match code.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                out.push(decoded);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"type":"full","targets":["orders-db"]}"#;

    fn parse(headers: &[(&str, &str)], body: &str) -> Result<Trigger, TriggerError> {
        let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        parse_trigger("backup.request", &find, body.as_bytes(), "7")
    }

    #[test]
    fn bare_structured_and_binary_messages_ask_for_the_same() {
        let structured = format!(
            r#"{{"specversion":"1.0","id":"e1","source":"/ci","type":"backup.request","traceparent":"00-aa-bb-01","data":{BODY}}}"#
        );
        let binary = [
            ("ce-specversion", "1.0"),
            ("ce-id", "e1"),
            ("ce-source", "/c%69"),
            ("ce-type", "backup.request"),
            ("ce-traceparent", "00-aa-bb-01"),
            ("content-type", "application/json"),
        ];
        let a = parse(&[], &structured).unwrap();
        let b = parse(&binary, BODY).unwrap();
        let c = parse(&[("Content-Type", STRUCTURED)], &structured).unwrap();
        assert_eq!(a, b);
        assert_eq!(a, c);
        assert_eq!(a.id.as_str(), "/ci#e1");
        assert_eq!(a.traceparent.as_deref(), Some("00-aa-bb-01"));
        let bare = parse(&[], BODY).unwrap();
        assert_eq!(bare.ask, a.ask);
        assert_eq!(bare.id.as_str(), "backup.request#7");
        assert_eq!(
            parse(&[("Nats-Msg-Id", "m1")], BODY).unwrap().id.as_str(),
            "backup.request#m1"
        );
    }

    #[test]
    fn what_is_no_trigger_is_refused_with_the_reason() {
        for (body, reason) in [
            ("", "not JSON"),
            ("[1]", "not understood"),
            (r#"{"targets":[]  ,"tarets":1}"#, "not understood"),
            (
                r#"{"specversion":"0.3","id":"e","source":"/s","type":"backup.request","data":{}}"#,
                "specversion",
            ),
            (
                r#"{"specversion":"1.0","id":"e","source":"/s","type":"other","data":{}}"#,
                "type",
            ),
            (
                r#"{"specversion":"1.0","source":"/s","type":"backup.request","data":{}}"#,
                "not understood",
            ),
            (
                r#"{"specversion":"1.0","id":"e","source":"/s","type":"backup.request"}"#,
                "lacks \"data\"",
            ),
        ] {
            let err = parse(&[], body).unwrap_err();
            assert!(err.to_string().contains(reason), "{body}: {err}");
        }
    }

    #[test]
    fn a_fact_is_a_structured_cloud_event_with_the_fields_of_the_contract() {
        let fact = Fact::RestoreCompleted(RestoreCompleted {
            restore_id: JobId::from_uuid(uuid::Uuid::nil()),
            targets: vec!["orders-db".parse().unwrap()],
            success: true,
            backup_id: "bkp-20260216-070000Z-abcdefghijkl".parse().unwrap(),
            destination: "postgres://db/orders".into(),
        });
        let data = serde_json::to_value(&fact).unwrap();
        let event = cloud_event(
            fact.subject(),
            data,
            "f1",
            "/strongroom/dev",
            DateTime::UNIX_EPOCH,
            Some("00-aa-bb-01"),
        )
        .unwrap();
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["specversion"], "1.0");
        assert_eq!(json["type"], "restore.completed");
        assert_eq!(json["traceparent"], "00-aa-bb-01");
        assert_eq!(json["data"]["restore_id"], "00000000-0000-0000-0000-000000000000");
        assert_eq!(json["data"]["success"], true);
        assert_eq!(json["data"]["targets"][0], "orders-db");
    }
}
