//! One receipt a backup, whoever comes first; evidence beside it.

use std::sync::Arc;

use strongroom_proto::receipt::{
    Check, CheckOutcome, InitiatedBy, Integrity, Operator, RESTORE_RECEIPT_SCHEMA, RestoreReceipt,
    VERIFICATION_RECEIPT_SCHEMA, ValidationMethod, VerificationReceipt,
};
use strongroom_proto::restore::Selected;
use strongroom_proto::{Attempt, BackupId, JobId, Sha256Digest, VaultId};
use strongroom_vault::*;

use crate::support::*;

pub(crate) fn verification(id: &BackupId, job_id: JobId, attempt: Attempt, notes: &str) -> VerificationReceipt {
    VerificationReceipt {
        schema: VERIFICATION_RECEIPT_SCHEMA.to_owned(),
        job_id,
        attempt,
        backup_id: id.clone(),
        backup_receipt_sha256: Sha256Digest::from_bytes([1; 32]),
        target: "orders-db".parse().unwrap(),
        started_at: at(3),
        completed_at: at(4),
        integrity: Integrity {
            validated: true,
            validation_method: Some(ValidationMethod::FullRestoreTest),
            validated_at: Some(at(4)),
        },
        checks: vec![Check {
            name: "row counts".to_owned(),
            outcome: CheckOutcome::Passed,
            detail: "all".to_owned(),
        }],
        operator: Operator {
            initiated_by: InitiatedBy::Automation,
            principal: "verifier".to_owned(),
        },
        software: "test".to_owned(),
        notes: notes.to_owned(),
    }
}

#[test]
fn the_first_attempt_to_commit_wins_and_the_other_gets_its_receipt() {
    let fixture = Fixture::new();
    let id = Fixture::id(1);
    let commit = |attempt: Attempt, content: &str| {
        let sealed = fixture.write(&id, attempt, &[stream("a", content)]);
        let receipt = fixture.receipt(&id, attempt, &sealed);
        let committed = fixture
            .runtime
            .block_on(fixture.vault.commit(&receipt, &fixture.signer))
            .unwrap();
        (receipt, committed)
    };
    let (second, committed) = commit(Attempt::new(2), "of the second attempt");
    assert!(matches!(committed, Committed::Ours(_)));
    let (_, late) = commit(Attempt::FIRST, "of the first attempt, which was paused");
    let Committed::Theirs(theirs) = late else {
        panic!("the paused attempt replaced the receipt: {late:?}");
    };
    assert_eq!(theirs.receipt, second);
    assert_eq!(fixture.read(&id).unwrap(), [stream("a", "of the second attempt")]);
}

#[test]
fn two_attempts_that_commit_at_once_make_one_receipt() {
    let fixture = Fixture::new();
    for round in 0..20 {
        let id = Fixture::id(round);
        let receipts = [1, 2].map(|number| {
            let attempt = Attempt::new(number);
            let sealed = fixture.write(&id, attempt, &[stream("a", format!("{number}"))]);
            fixture.receipt(&id, attempt, &sealed)
        });
        let [a, b] = fixture.runtime.block_on(async {
            let [a, b] = [0, 1].map(|number| fixture.vault.commit(&receipts[number], &fixture.signer));
            let (a, b) = tokio::join!(a, b);
            [a.unwrap(), b.unwrap()]
        });
        let (winner, loser) = match (&a, &b) {
            (Committed::Ours(ours), Committed::Theirs(theirs)) | (Committed::Theirs(theirs), Committed::Ours(ours)) => {
                (ours, theirs)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(winner, loser);
    }
}

#[test]
fn a_commit_whose_answer_was_lost_can_be_repeated() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    let id = Fixture::id(1);
    let sealed = fixture.write(&id, Attempt::FIRST, &[stream("a", "b")]);
    let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
    // Signature, staging, link.
    control.arm(2, Fault::AnswerLost);
    let error = fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let again = fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();
    let Committed::Ours(ours) = again else {
        panic!("{again:?}")
    };
    let stored = fixture.runtime.block_on(fixture.vault.receipt(&id)).unwrap().unwrap();
    assert_eq!(stored, ours);
    assert_eq!(
        stored.bytes,
        std::fs::read(fixture.path().join(format!("backups/{id}/receipt.json"))).unwrap()
    );
}

#[test]
fn a_receipt_that_nobody_could_check_is_refused() {
    let fixture = Fixture::new();
    let id = Fixture::id(1);
    let sealed = fixture.write(&id, Attempt::FIRST, &[]);
    let mut receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
    let stranger = Signer::generate("stranger").unwrap();
    let refused = fixture.runtime.block_on(fixture.vault.commit(&receipt, &stranger));
    assert!(matches!(refused, Err(CommitError::UnknownSigner { .. })), "{refused:?}");
    receipt.vault_id = VaultId::fresh();
    let refused = fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer));
    assert!(matches!(refused, Err(CommitError::WrongVault { .. })), "{refused:?}");
    receipt.vault_id = fixture.vault.id();
    receipt.notes = "x".repeat(17 * 1024 * 1024);
    let refused = fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer));
    assert!(matches!(refused, Err(CommitError::TooLarge { .. })));
    assert!(fixture.runtime.block_on(fixture.vault.receipt(&id)).unwrap().is_none());
}

#[test]
fn evidence_is_kept_once_a_job_and_read_back() {
    let fixture = Fixture::new();
    let (id, _) = fixture.back_up(1, &[stream("a", "b")]);
    let job = JobId::fresh();
    let first = verification(&id, job, Attempt::FIRST, "first");
    let put = |receipt: &VerificationReceipt| {
        fixture
            .runtime
            .block_on(fixture.vault.put_verification(receipt, &fixture.signer))
    };
    let digest = put(&first).unwrap();
    assert_eq!(put(&first).unwrap(), digest);
    let other = verification(&id, job, Attempt::new(2), "second");
    assert!(matches!(put(&other), Err(CommitError::AlreadyExists { .. })));
    put(&verification(&id, JobId::fresh(), Attempt::FIRST, "another")).unwrap();
    let found = fixture.runtime.block_on(fixture.vault.verifications(&id)).unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&first));
    assert_eq!(
        fixture
            .runtime
            .block_on(fixture.vault.verifications(&Fixture::id(2)))
            .unwrap(),
        []
    );

    let restore = RestoreReceipt {
        schema: RESTORE_RECEIPT_SCHEMA.to_owned(),
        job_id: job,
        attempt: Attempt::FIRST,
        backup_id: id,
        target: "orders-db".parse().unwrap(),
        destination: "postgres://host/db".to_owned(),
        started_at: at(3),
        completed_at: at(4),
        success: true,
        restored_bytes: 1,
        selected: Selected::default(),
        changes: None,
        skipped: Vec::new(),
        checks: Vec::new(),
        operator: first.operator.clone(),
        software: "test".to_owned(),
        notes: String::new(),
    };
    let put = || {
        fixture
            .runtime
            .block_on(fixture.vault.put_restore(&restore, &fixture.signer))
    };
    assert_eq!(put().unwrap(), put().unwrap());
}

#[test]
fn a_verification_that_died_between_signature_and_receipt_can_be_done_again() {
    let control = Arc::new(Control::default());
    let fixture = Fixture::over(|store| control.wrap(store));
    let (id, _) = fixture.back_up(1, &[stream("a", "b")]);
    let job = JobId::fresh();
    control.arm(1, Fault::Refused);
    let first = verification(&id, job, Attempt::FIRST, "first");
    assert!(
        fixture
            .runtime
            .block_on(fixture.vault.put_verification(&first, &fixture.signer))
            .is_err()
    );
    assert_eq!(fixture.runtime.block_on(fixture.vault.verifications(&id)).unwrap(), []);
    let second = verification(&id, job, Attempt::new(2), "second");
    fixture
        .runtime
        .block_on(fixture.vault.put_verification(&second, &fixture.signer))
        .unwrap();
    assert_eq!(
        fixture.runtime.block_on(fixture.vault.verifications(&id)).unwrap(),
        [second]
    );
}
