//! The contract as documents: JSON Schemas, AsyncAPI and OpenAPI, generated from the types of this crate.
//!
//! They are kept under `proto/schemas/`; a test compares them with what the types say. `UPDATE_DOCUMENTS=1 cargo test
//! -p strongroom-proto` writes them anew.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value, json};

use crate::manifest::Entry;
use crate::receipt::{BackupReceipt, RestoreReceipt, VerificationReceipt};
use crate::restore::RestoreChanges;
use crate::work::WorkMessage;
use crate::{api, events, subjects, timeline};

/// The OpenAPI document, as it is served.
pub const OPENAPI: &str = include_str!("../schemas/openapi.json");

/// Every document with its file name.
pub fn all() -> Vec<(&'static str, Value)> {
    let mut documents = vec![
        ("backup-receipt.json", schema_for!(BackupReceipt).to_value()),
        ("verification-receipt.json", schema_for!(VerificationReceipt).to_value()),
        ("restore-receipt.json", schema_for!(RestoreReceipt).to_value()),
        ("manifest-entry.json", schema_for!(Entry).to_value()),
        ("work-message.json", schema_for!(WorkMessage).to_value()),
    ];
    documents.push(("asyncapi.json", asyncapi()));
    documents.push(("openapi.json", openapi()));
    documents
}

fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|s| s.definitions_path = "/components/schemas".into())
        .into_generator()
}

/// A channel of the AsyncAPI document: what flows on one subject.
struct Channel {
    subject: &'static str,
    summary: &'static str,
    /// Whether Strongroom publishes on it; otherwise it listens.
    published: bool,
    payload: Value,
}

fn asyncapi() -> Value {
    let mut generator = generator();
    let mut schema = |make: fn(&mut SchemaGenerator) -> schemars::Schema| make(&mut generator).to_value();
    let channels = [
        Channel {
            subject: subjects::SCENARIO_DEPLOYED,
            summary: "A scenario was deployed: its files are backed up.",
            published: false,
            payload: schema(subschema::<events::ScenarioDeployed>),
        },
        Channel {
            subject: subjects::SCHEMA_UPDATED,
            summary: "The schema of a database changed: it is backed up incrementally.",
            published: false,
            payload: schema(subschema::<events::SchemaUpdated>),
        },
        Channel {
            subject: subjects::BACKUP_REQUEST,
            summary: "The named targets are backed up.",
            published: false,
            payload: schema(subschema::<api::CreateBackup>),
        },
        Channel {
            subject: subjects::JOB_STARTED,
            summary: "A worker took a job.",
            published: true,
            payload: schema(subschema::<events::JobStarted>),
        },
        Channel {
            subject: subjects::JOB_PROGRESS,
            summary: "How far a running job is, every few seconds. Plain NATS, for who listens now: no stream keeps it.",
            published: true,
            payload: schema(subschema::<events::JobProgress>),
        },
        Channel {
            subject: subjects::JOB_COMPLETED,
            summary: "A backup has its receipt.",
            published: true,
            payload: schema(subschema::<events::JobCompleted>),
        },
        Channel {
            subject: subjects::JOB_FAILED,
            summary: "A job was given up.",
            published: true,
            payload: schema(subschema::<events::JobFailed>),
        },
        Channel {
            subject: subjects::VERIFY_COMPLETED,
            summary: "A restore of a backup was tried and passed.",
            published: true,
            payload: schema(subschema::<events::VerifyCompleted>),
        },
        Channel {
            subject: subjects::VERIFY_FAILED,
            summary: "A restore of a backup was tried and did not pass, or could not be tried.",
            published: true,
            payload: schema(subschema::<events::VerifyFailed>),
        },
        Channel {
            subject: subjects::RESTORE_COMPLETED,
            summary: "A restore is in place.",
            published: true,
            payload: schema(subschema::<events::RestoreCompleted>),
        },
        Channel {
            subject: subjects::RESTORE_FAILED,
            summary: "A restore was given up.",
            published: true,
            payload: schema(subschema::<events::RestoreFailed>),
        },
        Channel {
            subject: subjects::ALERT,
            summary: "Something needs a person.",
            published: true,
            payload: schema(subschema::<events::Alert>),
        },
    ];
    let mut channel_objects = Map::new();
    let mut operations = Map::new();
    for channel in &channels {
        let message = json!({
            "name": channel.subject,
            "contentType": events::STRUCTURED,
            "payload": {
                "type": "object",
                "description": "A CloudEvent 1.0. Inbound, binary mode (ce- headers) and the bare data are accepted too.",
                "required": ["specversion", "id", "source", "type", "data"],
                "properties": {
                    "specversion": { "const": "1.0" },
                    "id": { "type": "string" },
                    "source": { "type": "string", "format": "uri-reference" },
                    "type": { "const": channel.subject },
                    "time": { "type": "string", "format": "date-time" },
                    "datacontenttype": { "type": "string" },
                    "traceparent": { "type": "string", "description": "W3C trace context" },
                    "data": channel.payload,
                },
            },
        });
        channel_objects.insert(
            channel.subject.to_owned(),
            json!({ "address": channel.subject, "description": channel.summary, "messages": { "event": message } }),
        );
        let action = if channel.published { "send" } else { "receive" };
        operations.insert(
            format!("{action}.{}", channel.subject),
            json!({
                "action": action,
                "summary": channel.summary,
                "channel": { "$ref": format!("#/channels/{}", channel.subject) },
            }),
        );
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Strongroom events",
            "version": "1",
            "description": "What Strongroom listens to and publishes on NATS; JetStream keeps all but backup.job.progress.",
        },
        "defaultContentType": events::STRUCTURED,
        "channels": channel_objects,
        "operations": operations,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn subschema<T: JsonSchema>(generator: &mut SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<T>()
}

/// An operation of the OpenAPI document.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    request: Option<Value>,
    status: &'static str,
    answer: Option<Value>,
    query: &'static [(&'static str, &'static str)],
}

fn openapi() -> Value {
    let mut generator = generator();
    let mut schema = |make: fn(&mut SchemaGenerator) -> schemars::Schema| Some(make(&mut generator).to_value());
    let problem = schema(subschema::<api::Problem>);
    let job = schema(subschema::<api::JobView>);
    let schedule = schema(subschema::<api::ScheduleView>);
    let schedule_spec = schema(subschema::<api::ScheduleSpec>);
    let operation = |method, path, summary, request, status, answer| Operation {
        method,
        path,
        summary,
        request,
        status,
        answer,
        query: &[],
    };
    let mut operations = vec![
        operation(
            "get",
            "/health",
            "Whether the coordinator works; without a token.",
            None,
            "200",
            schema(subschema::<api::Health>),
        ),
        operation(
            "post",
            "/api/v1/backup/create",
            "Back targets up now.",
            schema(subschema::<api::CreateBackup>),
            "201",
            schema(subschema::<api::BackupCreated>),
        ),
        operation(
            "post",
            "/api/v1/backup/verify",
            "Try to restore a backup now.",
            schema(subschema::<api::CreateVerify>),
            "201",
            schema(subschema::<api::VerifyCreated>),
        ),
        operation(
            "get",
            "/api/v1/backup/status",
            "How the system is.",
            None,
            "200",
            schema(subschema::<api::Status>),
        ),
        operation(
            "get",
            "/api/v1/backups/{backup_id}/receipt",
            "A backup's receipt.",
            None,
            "200",
            schema(subschema::<api::ReceiptView>),
        ),
        operation(
            "post",
            "/api/v1/restore/create",
            "Restore a backup into a destination.",
            schema(subschema::<api::CreateRestore>),
            "201",
            schema(subschema::<api::RestoreCreated>),
        ),
        operation(
            "post",
            "/api/v1/restore/preview",
            "Say what a restore would do; nothing is touched.",
            schema(subschema::<api::CreateRestore>),
            "200",
            schema(subschema::<timeline::RestorePreview>),
        ),
        operation(
            "get",
            "/api/v1/targets/{name}/timeline",
            "What can be recovered of a target, and what happened to it.",
            None,
            "200",
            schema(subschema::<timeline::TargetTimeline>),
        ),
        operation(
            "post",
            "/api/v1/targets/{name}/annotations",
            "Write something on a target's timeline.",
            schema(subschema::<timeline::CreateAnnotation>),
            "201",
            schema(subschema::<timeline::Annotation>),
        ),
        operation("get", "/api/v1/jobs/{id}", "One job.", None, "200", job.clone()),
        operation(
            "post",
            "/api/v1/jobs/{id}/cancel",
            "Ask a job to stop.",
            None,
            "200",
            job.clone(),
        ),
        operation(
            "get",
            "/api/v1/jobs/{id}/changes",
            "What a restore of files changed, or what a dry run of one, or of a database's, would change.",
            None,
            "200",
            schema(subschema::<RestoreChanges>),
        ),
        operation(
            "delete",
            "/api/v1/targets/{name}",
            "Forget a scenario; its backups stay.",
            None,
            "204",
            None,
        ),
        operation(
            "get",
            "/api/v1/targets",
            "The targets.",
            None,
            "200",
            schema(subschema::<api::TargetList>),
        ),
        operation(
            "get",
            "/api/v1/schedules",
            "The schedules.",
            None,
            "200",
            schema(subschema::<api::ScheduleList>),
        ),
        operation(
            "post",
            "/api/v1/schedules",
            "Make a schedule.",
            schedule_spec.clone(),
            "201",
            schedule.clone(),
        ),
        operation(
            "get",
            "/api/v1/schedules/{name}",
            "One schedule.",
            None,
            "200",
            schedule.clone(),
        ),
        operation(
            "put",
            "/api/v1/schedules/{name}",
            "Replace a schedule.",
            schedule_spec,
            "200",
            schedule.clone(),
        ),
        operation(
            "delete",
            "/api/v1/schedules/{name}",
            "Remove a schedule.",
            None,
            "204",
            None,
        ),
        operation(
            "post",
            "/api/v1/schedules/{name}/enable",
            "Let a schedule fire.",
            None,
            "200",
            schedule.clone(),
        ),
        operation(
            "post",
            "/api/v1/schedules/{name}/disable",
            "Keep a schedule from firing.",
            None,
            "200",
            schedule,
        ),
    ];
    operations.push(Operation {
        query: &[
            ("type", "only of this type"),
            ("target", "only of this target"),
            ("since", "only completed since this day (YYYY-MM-DD) or RFC 3339 time"),
            ("limit", "at most so many; 100 where it is left out"),
        ],
        ..operation(
            "get",
            "/api/v1/backup/list",
            "Backups, newest first.",
            None,
            "200",
            schema(subschema::<api::BackupList>),
        )
    });
    let jobs = job.map(|job| json!({ "type": "object", "required": ["jobs"], "properties": { "jobs": { "type": "array", "items": job } } }));
    operations.push(Operation {
        query: &[
            ("status", "only of this status"),
            ("limit", "at most so many; 100 where it is left out"),
        ],
        ..operation("get", "/api/v1/jobs", "Jobs, newest first.", None, "200", jobs)
    });

    let mut paths = Map::new();
    for operation in operations {
        let item = paths.entry(operation.path.to_owned()).or_insert_with(|| json!({}));
        item[operation.method] = operation_object(&operation, problem.as_ref());
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Strongroom", "version": "1", "description": "The coordinator's HTTP API." },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation_object(operation: &Operation, problem: Option<&Value>) -> Value {
    let mut parameters: Vec<Value> = operation
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(operation.query.iter().map(|(name, description)| {
        json!({ "name": name, "in": "query", "required": false, "description": description, "schema": { "type": "string" } })
    }));
    let answer = match &operation.answer {
        Some(schema) => json!({ "description": "done", "content": { "application/json": { "schema": schema } } }),
        None => json!({ "description": "done" }),
    };
    let error =
        json!({ "description": "refused or failed", "content": { "application/problem+json": { "schema": problem } } });
    let mut object = json!({
        "summary": operation.summary,
        "parameters": parameters,
        "responses": { operation.status: answer, "default": error },
    });
    if let Some(schema) = &operation.request {
        object["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if operation.path == "/health" {
        object["security"] = json!([]);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_say_what_the_types_say() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
        for (name, document) in all() {
            let path = folder.join(name);
            let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
            if std::env::var_os("UPDATE_DOCUMENTS").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                kept == text,
                "{name} has drifted: run UPDATE_DOCUMENTS=1 cargo test -p strongroom-proto, and read the difference"
            );
        }
    }

    #[test]
    fn every_reference_in_a_document_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        found.push(reference.clone());
                    }
                    map.values().for_each(|v| references(v, found));
                }
                Value::Array(list) => list.iter().for_each(|v| references(v, found)),
                _ => {}
            }
        }
        for (name, document) in all() {
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                let pointer = reference.strip_prefix('#').unwrap_or(&reference);
                assert!(document.pointer(pointer).is_some(), "{name}: {reference}");
            }
        }
    }
}
