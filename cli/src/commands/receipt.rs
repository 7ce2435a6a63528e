//! `strongroom receipt`

use anyhow::Context as _;
use serde::Serialize;
use strongroom_proto::BackupId;
use strongroom_proto::api::ReceiptView;
use strongroom_proto::receipt::{BackupReceipt, Check, CheckOutcome, ReceiptStatus, VerificationReceipt};
use strongroom_runtime::entry::one_line;
use strongroom_runtime::{Config, Loaded};
use strongroom_vault::{ReadError, Store, Vault};
use strongroom_worker::store_config;

use super::{Outcome, named, print_json};
use crate::args::ReceiptCommand;
use crate::client::Client;
use crate::render::{self, Tone};

pub(crate) async fn run(loaded: &Loaded, command: ReceiptCommand) -> anyhow::Result<Outcome> {
    let client = Client::new(loaded)?;
    let (args, verify) = match &command {
        ReceiptCommand::Show(args) => (args, false),
        ReceiptCommand::Verify(args) => (args, true),
    };
    let backup = named::find_one(&client, &args.backup).await?;
    let answer = client
        .get::<ReceiptView>(&["api", "v1", "backups", backup.as_str(), "receipt"])
        .await?;
    if !verify {
        if args.json {
            print_json(&answer)?;
        } else {
            render::print(&summary(&answer.value)?)?;
        }
        return Ok(Outcome::Done);
    }
    let mut findings = findings(&answer.value, &backup);
    findings.extend(Box::pin(in_vault(&loaded.config, &answer.value, &backup)).await);
    let outcome = findings.iter().map(Finding::outcome).max().unwrap_or(Outcome::Failed);
    if args.json {
        render::print(&serde_json::to_string(&findings)?)?;
    } else {
        render::print(&findings_text(&findings))?;
    }
    Ok(outcome)
}

/// What a person wants to know of a receipt.
pub(crate) fn summary(view: &ReceiptView) -> anyhow::Result<String> {
    let receipt: BackupReceipt = serde_json::from_value(view.receipt.clone())?;
    let backup_type = receipt.backup_type.to_string();
    let status = match receipt.status {
        ReceiptStatus::Success => "success",
        ReceiptStatus::Partial => "partial",
        ReceiptStatus::Failure => "failure",
    };
    let totals = receipt.totals;
    let mut facts = vec![
        ("backup", receipt.backup_id.to_string()),
        ("target", format!("{} ({})", receipt.target, receipt.target_kind)),
        (
            "environment",
            format!("{}, surface {}", receipt.environment, receipt.surface),
        ),
        ("type", backup_type),
        ("status", status.to_owned()),
        (
            "taken",
            format!(
                "{} to {}",
                render::time(receipt.started_at),
                render::time(receipt.completed_at)
            ),
        ),
        (
            "content",
            format!("{}, {} entries", render::bytes(totals.content_bytes), totals.entries),
        ),
        (
            "stored",
            format!(
                "{}; {} of {} chunks were new",
                render::bytes(totals.stored_bytes),
                totals.new_chunks,
                totals.chunks
            ),
        ),
    ];
    let source = &receipt.source;
    let counts: Vec<String> = [
        ("tables", source.tables),
        ("rows", source.rows),
        ("large objects", source.large_objects),
        ("files", source.files),
        ("unchanged", source.unchanged),
        ("directories", source.directories),
        ("links", source.links),
        ("sockets", source.sockets),
        ("left out as configured", source.excluded),
    ]
    .into_iter()
    .filter_map(|(name, count)| count.map(|count| format!("{count} {name}")))
    .collect();
    if !counts.is_empty() {
        facts.push(("source", counts.join(", ")));
    }
    facts.extend(source.path.clone().map(|path| ("path", path)));
    let versions: Vec<String> = [("server", &source.server_version), ("tool", &source.tool_version)]
        .into_iter()
        .filter_map(|(name, version)| version.as_ref().map(|version| format!("{name} {version}")))
        .collect();
    if !versions.is_empty() {
        facts.push(("versions", versions.join(", ")));
    }
    facts.push(("requested by", receipt.operator.principal.clone()));
    if let Some(git) = &receipt.git {
        facts.push(("commit", format!("{} {}", git.repo, git.sha)));
    }
    facts.push(("receipt sha256", view.sha256.clone()));
    let integrity = match (
        view.integrity.validated,
        view.integrity.validation_method,
        view.integrity.validated_at,
    ) {
        (true, Some(method), Some(at)) => format!("passed, {}, {}", word(&method), render::time(at)),
        (true, _, _) => "passed".to_owned(),
        (false, _, _) => "not yet".to_owned(),
    };
    facts.push(("verification", integrity));
    let mut text = render::facts(facts);
    for missing in &receipt.missing {
        text.push_str(&format!(
            "missing: {}: {}\n",
            render::safe(&missing.name),
            render::safe(&missing.reason)
        ));
    }
    for artifact in &receipt.artifacts {
        text.push_str(&format!(
            "artifact: {} {} {}\n",
            artifact.sha256,
            render::bytes(artifact.bytes),
            render::safe(&artifact.uri)
        ));
    }
    if let Some(latest) = verifications(view).next() {
        text.push_str(&format!("\n{}\n", render::tone(Tone::Heading, "LAST VERIFICATION")));
        text.push_str(&checks(&latest.checks));
    }
    Ok(text)
}

fn verifications(view: &ReceiptView) -> impl Iterator<Item = VerificationReceipt> + '_ {
    view.verifications
        .iter()
        .filter_map(|receipt| serde_json::from_value(receipt.clone()).ok())
}

fn checks(checks: &[Check]) -> String {
    let rows = checks
        .iter()
        .map(|check| vec![word(&check.outcome), check.name.clone(), check.detail.clone()]);
    render::table(&["OUTCOME", "CHECK", "DETAIL"], &[], rows)
}

/// The word that stands for a value on the wire.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => String::new(),
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Good,
    Open,
    Bad,
}

impl Finding {
    const fn outcome(&self) -> Outcome {
        match self.state {
            State::Good => Outcome::Done,
            State::Open => Outcome::Warning,
            State::Bad => Outcome::Failed,
        }
    }
}

fn finding(name: &'static str, state: State, detail: String) -> Finding {
    Finding { name, state, detail }
}

/// What the receipt says of itself, against what has been proven since.
fn findings(view: &ReceiptView, backup: &BackupId) -> Vec<Finding> {
    let receipt = match serde_json::from_value::<BackupReceipt>(view.receipt.clone()) {
        Ok(receipt) => receipt,
        Err(error) => return vec![finding("receipt", State::Bad, format!("it cannot be read: {error}"))],
    };
    let mut found = Vec::new();
    found.push(if receipt.backup_id == *backup {
        finding("backup", State::Good, "the receipt is about this backup".to_owned())
    } else {
        finding(
            "backup",
            State::Bad,
            format!("the receipt is about {}", receipt.backup_id),
        )
    });
    found.push(match receipt.status {
        ReceiptStatus::Success => finding("completeness", State::Good, "everything is in it".to_owned()),
        ReceiptStatus::Partial => finding(
            "completeness",
            State::Open,
            format!("{} things are missing", receipt.missing.len()),
        ),
        ReceiptStatus::Failure => finding("completeness", State::Bad, "the backup failed".to_owned()),
    });
    let latest = verifications(view).max_by_key(|verification| verification.completed_at);
    match latest {
        None => found.push(finding(
            "verification",
            State::Open,
            format!("nobody has restored it yet; do so with `strongroom verify {backup}`"),
        )),
        Some(verification) => {
            let same = verification.backup_receipt_sha256.to_string() == view.sha256;
            found.push(if same {
                finding(
                    "evidence",
                    State::Good,
                    "the verification is about this receipt, by its SHA-256".to_owned(),
                )
            } else {
                finding(
                    "evidence",
                    State::Bad,
                    "the verification is about another receipt".to_owned(),
                )
            });
            let failed: Vec<&str> = verification
                .checks
                .iter()
                .filter(|check| check.outcome == CheckOutcome::Failed)
                .map(|check| check.name.as_str())
                .collect();
            let at = render::time(verification.completed_at);
            found.push(if verification.integrity.validated && failed.is_empty() {
                finding(
                    "verification",
                    State::Good,
                    format!("passed {} checks, {at}", verification.checks.len()),
                )
            } else {
                finding(
                    "verification",
                    State::Bad,
                    format!("failed, {at}: {}", failed.join(", ")),
                )
            });
        }
    }
    found
}

/// What lies in the vault: the receipt's signature, and every object against its digest. Needs no key.
async fn in_vault(config: &Config, view: &ReceiptView, backup: &BackupId) -> Vec<Finding> {
    let vault = match open_vault(config, view, backup).await {
        Ok(vault) => vault,
        Err(error) => {
            let reason = one_line(error.as_ref());
            let advice = "the vault cannot be looked into from here; set vault.url and its keys to check it too";
            return vec![finding("vault", State::Open, format!("{advice}: {reason}"))];
        }
    };
    let mut found = vec![match vault.receipt(backup).await {
        Ok(Some(committed)) if committed.sha256.to_string() == view.sha256 => finding(
            "signature",
            State::Good,
            format!("it holds, and the catalog has the same receipt as {}", vault.url()),
        ),
        Ok(Some(_)) => finding(
            "signature",
            State::Bad,
            "the catalog's receipt is not the one in the vault".to_owned(),
        ),
        Ok(None) => finding(
            "signature",
            State::Bad,
            format!("the vault {} holds no such backup", vault.url()),
        ),
        Err(error) => unreadable("signature", &error),
    }];
    found.push(match vault.check(backup).await {
        Ok(report) if report.is_sound() => {
            let size = render::bytes(report.bytes);
            finding(
                "objects",
                State::Good,
                format!("{} objects, {size}, each as its digest says", report.objects),
            )
        }
        Ok(report) => {
            let problems: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
            finding("objects", State::Bad, problems.join("; "))
        }
        Err(error) => unreadable("objects", &error),
    });
    found
}

fn unreadable(name: &'static str, error: &ReadError) -> Finding {
    let state = if error.is_retryable() { State::Open } else { State::Bad };
    finding(name, state, one_line(error))
}

/// The configured vault, or the one that the receipt names.
async fn open_vault(config: &Config, view: &ReceiptView, backup: &BackupId) -> anyhow::Result<Vault> {
    let mut config = config.clone();
    if config.vault.url.is_empty() {
        let uri = view
            .receipt
            .pointer("/artifacts/0/uri")
            .and_then(serde_json::Value::as_str);
        let base = uri
            .and_then(|uri| uri.split_once(&format!("/backups/{backup}/")))
            .map(|(base, _)| base);
        config.vault.url = base.context("the receipt names no vault")?.to_owned();
    }
    Ok(Vault::open(Store::open(&store_config(&config)?)?).await?)
}

fn findings_text(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|finding| {
        let state = match finding.state {
            State::Good => "ok",
            State::Open => "open",
            State::Bad => "BAD",
        };
        vec![state.to_owned(), finding.name.to_owned(), finding.detail.clone()]
    });
    render::table(&["STATE", "WHAT", "DETAIL"], &[], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const BACKUP: &str = "bkp-20261121-090000Z-000000000001";

    fn view(verified: Option<bool>) -> ReceiptView {
        let operator = json!({"initiated_by": "human", "principal": "cli"});
        let unproven = json!({"validated": false, "validation_method": null, "validated_at": null});
        let receipt = json!({
            "schema": "io.strongroom.backup-receipt.v1", "backup_id": BACKUP, "environment": "dev",
            "surface": "postgres", "method": "logical_dump", "started_at": "2026-11-21T09:00:00Z",
            "completed_at": "2026-11-21T09:00:30Z", "status": "success", "artifacts": [], "integrity": unproven,
            "git": null, "operator": operator, "notes": "", "vault_id": "01890000-0000-7000-8000-000000000002",
            "job_id": "01890000-0000-7000-8000-000000000001", "attempt": 1, "target": "orders-db",
            "target_kind": "postgres", "backup_type": "full",
            "totals": {"entries": 3, "content_bytes": 4_000_000, "new_content_bytes": 4_000_000,
                       "stored_bytes": 1_000_000, "chunks": 9, "new_chunks": 8},
            "missing": [], "software": "0.1.0", "source": {"server_version": "17.2", "tables": 4, "rows": 1234}
        });
        let verification = |good: bool| {
            json!({
                "schema": "io.strongroom.verification-receipt.v1", "job_id": "01890000-0000-7000-8000-000000000003",
                "attempt": 1, "backup_id": BACKUP, "backup_receipt_sha256": "ab".repeat(32), "target": "orders-db",
                "started_at": "2026-11-21T09:01:00Z", "completed_at": "2026-11-21T09:02:00Z",
                "integrity": {"validated": good, "validation_method": "full_restore_test",
                              "validated_at": "2026-11-21T09:02:00Z"},
                "checks": [{"name": "row counts", "outcome": if good { "passed" } else { "failed" },
                            "detail": "4 tables"}],
                "operator": operator, "software": "0.1.0", "notes": ""
            })
        };
        serde_json::from_value(json!({
            "receipt": receipt, "sha256": "ab".repeat(32), "integrity": unproven,
            "verifications": verified.map(verification).into_iter().collect::<Vec<_>>()
        }))
        .unwrap()
    }

    fn outcome(view: &ReceiptView, backup: &str) -> Outcome {
        findings(view, &backup.parse().unwrap())
            .iter()
            .map(Finding::outcome)
            .max()
            .unwrap()
    }

    #[test]
    fn a_receipt_is_good_only_when_its_own_verification_passed() {
        assert_eq!(outcome(&view(Some(true)), BACKUP), Outcome::Done);
        assert_eq!(outcome(&view(None), BACKUP), Outcome::Warning);
        assert_eq!(outcome(&view(Some(false)), BACKUP), Outcome::Failed);
        assert_eq!(
            outcome(&view(Some(true)), "bkp-20261121-090000Z-000000000009"),
            Outcome::Failed
        );
        let mut other = view(Some(true));
        other.sha256 = "cd".repeat(32);
        assert_eq!(outcome(&other, BACKUP), Outcome::Failed);
    }

    #[test]
    fn a_summary_tells_sizes_counts_and_checks() {
        let text = summary(&view(Some(true))).unwrap();
        assert!(text.contains("content         4.0 MB, 3 entries\n"), "{text}");
        assert!(text.contains("source          4 tables, 1234 rows\n"), "{text}");
        assert!(text.contains("passed   row counts  4 tables\n"), "{text}");
    }
}
