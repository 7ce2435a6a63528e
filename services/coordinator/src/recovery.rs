//! What can be recovered of a cluster: what the catalog knows, put before `policy::recovery`.

use chrono::{DateTime, Utc};
use strongroom_catalog::{CatalogError, ClusterBackup, Drill, WalStream};
use strongroom_policy::recovery::{self, Base, Cluster, Plan, Proof, Refused, Survey};
use strongroom_proto::api::CreateRestore;
use strongroom_proto::cluster_tables::ClusterTables;
use strongroom_proto::timeline::{Annotation, AnnotationKind, Moment, TargetTimeline, TimelineBase, WalPreview};
use strongroom_proto::wal::{ClusterFacts, Recovery, RecoveryTarget, SystemIdentifier};
use strongroom_proto::{BackupId, TargetName, VaultId};

use crate::Coordinator;
use crate::admission::Refusal;

/// Annotations that a timeline shows.
const ANNOTATIONS_SHOWN: u32 = 1000;
/// The longest annotation.
const ANNOTATION_CHARACTERS: usize = 2000;

/// What the catalog knows of the clusters that a target was and is.
pub(crate) struct Known {
    pub(crate) backups: Vec<ClusterBackup>,
    pub(crate) stream: Option<WalStream>,
    clusters: Vec<Cluster>,
}

impl Known {
    pub(crate) fn survey(&self) -> Survey {
        recovery::survey(&self.clusters)
    }

    pub(crate) fn plan(&self, to: &RecoveryTarget, base: Option<&ClusterBackup>) -> Result<Plan, Refused> {
        recovery::plan(&self.clusters, to, base.map(|base| &base.backup_id))
    }
}

/// How a restore of a cluster is to be done, and what is worth knowing of it.
pub(crate) struct Recovering {
    pub(crate) recovery: Recovery,
    pub(crate) plan: Option<Plan>,
    pub(crate) notes: Vec<String>,
}

impl Coordinator {
    /// What the catalog knows of the clusters that a target was and is.
    pub(crate) async fn clusters(&self, target: &TargetName) -> Result<Known, CatalogError> {
        let backups = self.catalog.cluster_backups(target).await?;
        let stream = self.catalog.wal_stream(target).await?;
        let streamed = stream
            .as_ref()
            .and_then(|stream| Some((stream.vault, stream.view.system_identifier?)));
        let mut names: Vec<(VaultId, SystemIdentifier)> = backups
            .iter()
            .map(|backup| (backup.vault, backup.facts.system_identifier))
            .chain(streamed)
            .collect();
        names.sort_unstable();
        names.dedup();
        let mut clusters = Vec::with_capacity(names.len());
        for (vault, system_identifier) in names {
            let bases = backups
                .iter()
                .filter(|backup| (backup.vault, backup.facts.system_identifier) == (vault, system_identifier))
                .map(base)
                .collect();
            clusters.push(Cluster {
                system_identifier,
                bases,
                ranges: self.catalog.wal_ranges(vault, system_identifier).await?,
                histories: self.catalog.wal_histories(vault, system_identifier).await?,
            });
        }
        Ok(Known {
            backups,
            stream,
            clusters,
        })
    }

    /// What can be recovered of a target, and what happened to it.
    pub(crate) async fn timeline(&self, target: &TargetName) -> Result<TargetTimeline, Refusal> {
        let known = self.clusters(target).await?;
        let survey = known.survey();
        let alerts = self.catalog.active_alerts(Some(target)).await?;
        let annotations = self.catalog.annotations(target, ANNOTATIONS_SHOWN).await?;
        let is_blank =
            known.backups.is_empty() && known.stream.is_none() && annotations.is_empty() && alerts.is_empty();
        if is_blank {
            self.check_known(target).await?;
        }
        Ok(TargetTimeline {
            target: target.clone(),
            bases: known
                .backups
                .iter()
                .map(|backup| timeline_base(backup, !survey.unusable.contains(&backup.backup_id)))
                .collect(),
            windows: survey.windows,
            gaps: survey.gaps,
            stream: known.stream.map(|stream| stream.view),
            alerts: alerts.into_iter().map(|(_, alert)| alert).collect(),
            annotations,
        })
    }

    /// Writes something on a target's timeline.
    pub(crate) async fn write_note(
        &self,
        target: &TargetName,
        text: &str,
        at: DateTime<Utc>,
        source: String,
    ) -> Result<Annotation, Refusal> {
        let text = text.trim();
        if text.is_empty() || text.chars().count() > ANNOTATION_CHARACTERS {
            return Err(Refusal::Invalid(format!(
                "the text of an annotation must have 1 to {ANNOTATION_CHARACTERS} characters"
            )));
        }
        self.check_known(target).await?;
        let annotation = Annotation {
            at,
            kind: AnnotationKind::Note,
            text: text.to_owned(),
            source,
        };
        self.catalog.annotate(target, &annotation, None).await?;
        Ok(annotation)
    }

    /// Refuses a name that stands for nothing: no target of now, and none that has backups.
    pub(crate) async fn check_known(&self, target: &TargetName) -> Result<(), Refusal> {
        let is_declared = self.known_targets().await?.iter().any(|(name, _)| name == target);
        if is_declared || self.catalog.last_content_bytes(target).await?.is_some() {
            return Ok(());
        }
        Err(Refusal::NotFound(format!(
            "there is no target {target}: `strongroom target list` shows the targets"
        )))
    }

    /// The moment that a request names, planned for: from the named base backup, or from the one that suits best.
    pub(crate) async fn recover(
        &self,
        ask: &CreateRestore,
        target: &TargetName,
        base: Option<&ClusterBackup>,
    ) -> Result<Recovering, Refusal> {
        let to = match &ask.to {
            Some(text) => text.parse().map_err(|error| Refusal::Invalid(format!("{error}")))?,
            None => RecoveryTarget::Immediate,
        };
        let known = self.clusters(target).await?;
        let recovering = |timeline, wal_end| Recovery {
            to: to.clone(),
            timeline,
            wal_end,
            leave: ask.leave.unwrap_or_default(),
            tablespaces: ask.tablespaces.clone(),
            tables: ask.tables.clone(),
        };
        match (known.plan(&to, base), base) {
            (Ok(plan), _) => Ok(Recovering {
                recovery: recovering(plan.timeline, Some(plan.window.to.lsn)),
                notes: plan.notes.clone(),
                plan: Some(plan),
            }),
            // Its own WAL was in the vault before it was completed, whatever a refilled catalog knows of it.
            (Err(refused @ Refused::BaseWithoutWal { .. }), Some(base)) if to == RecoveryTarget::Immediate => {
                Ok(Recovering {
                    recovery: recovering(base.facts.timeline, None),
                    plan: None,
                    notes: vec![format!(
                        "as far as the catalog knows, {refused}: it is tried all the same"
                    )],
                })
            }
            (Err(refused), _) => Err(refused.into()),
        }
    }
}

/// What the newest drill of a base backup counted, and what a person is told of it.
pub(crate) fn drilled(
    drill: Option<Drill>,
    facts: &ClusterFacts,
    backup_id: &BackupId,
) -> (Option<ClusterTables>, String) {
    let time = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%SZ");
    let unknown = |why: String| {
        let note = format!(
            "{why}: what its tables held is not known; `strongroom verify {backup_id}` recovers it for a trial and counts"
        );
        (None, note)
    };
    match drill {
        None => unknown("no drill of it has ended".to_owned()),
        Some(drill) if !drill.passed => unknown(format!("its newest drill, at {}, failed", time(drill.completed_at))),
        Some(Drill {
            tables: None,
            completed_at,
            ..
        }) => unknown(format!("of its drill at {} no counts are kept", time(completed_at))),
        Some(Drill {
            tables, completed_at, ..
        }) => {
            let note = format!(
                "what its tables held then is as of the end of the base backup at {}, counted by its drill at {}: what later \
                 WAL changes is not in these figures",
                time(facts.stopped_at),
                time(completed_at)
            );
            (tables, note)
        }
    }
}

/// What is shown of the WAL that a recovery replays.
pub(crate) fn wal_preview(plan: &Plan) -> WalPreview {
    let place_is_known = plan.wal_to != plan.window.to.lsn || plan.time == Some(plan.window.to.time);
    WalPreview {
        timeline: plan.timeline,
        from: plan.wal_from,
        to: plan.wal_to,
        bytes: plan.wal_to.0.saturating_sub(plan.wal_from.0),
        window: plan.window.clone(),
        first_gap: plan.first_gap,
        bytes_before_end: place_is_known.then(|| plan.window.to.lsn.0.saturating_sub(plan.wal_to.0)),
        seconds_before_end: plan
            .time
            .map(|time| u64::try_from((plan.window.to.time - time).num_seconds()).unwrap_or(0)),
    }
}

fn base(backup: &ClusterBackup) -> Base {
    let proof = match (backup.verified, &backup.verification_error) {
        (true, _) => Proof::Passed,
        (false, Some(_)) => Proof::Failed,
        (false, None) => Proof::Unproven,
    };
    Base {
        backup_id: backup.backup_id.clone(),
        facts: backup.facts.clone(),
        proof,
    }
}

fn timeline_base(backup: &ClusterBackup, usable: bool) -> TimelineBase {
    let facts = &backup.facts;
    TimelineBase {
        backup_id: backup.backup_id.clone(),
        backup_type: backup.backup_type,
        system_identifier: facts.system_identifier,
        timeline: facts.timeline,
        start_lsn: facts.start_lsn,
        stop: Moment {
            lsn: facts.stop_lsn,
            time: facts.stopped_at,
        },
        size_bytes: backup.size_bytes,
        stored_bytes: backup.stored_bytes,
        verified: backup.verified,
        verification_error: backup.verification_error.clone(),
        usable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_drill_are_shown_with_their_moment_and_without_them_it_is_said_how_to_get_some() {
        let facts: ClusterFacts = serde_json::from_value(serde_json::json!({
            "system_identifier": "7400000000000000001", "timeline": 1, "start_lsn": "0/2000028", "stop_lsn": "0/2000100",
            "stopped_at": "2026-11-21T09:00:00Z", "segment_bytes": 16 << 20
        }))
        .unwrap();
        let backup_id: BackupId = "bkp-20261121-090000Z-000000000001".parse().unwrap();
        let drill = |passed, tables| {
            Some(Drill {
                passed,
                completed_at: "2026-11-21T09:05:00Z".parse().unwrap(),
                tables,
            })
        };
        let some = || Some(ClusterTables::default());
        let (tables, note) = drilled(drill(true, some()), &facts, &backup_id);
        assert_eq!(tables, some());
        assert!(
            note.contains("base backup at 2026-11-21 09:00:00Z, counted by its drill at 2026-11-21 09:05:00Z"),
            "{note}"
        );
        for (drill, why) in [
            (None, "no drill of it has ended"),
            (
                drill(false, some()),
                "its newest drill, at 2026-11-21 09:05:00Z, failed",
            ),
            (
                drill(true, None),
                "of its drill at 2026-11-21 09:05:00Z no counts are kept",
            ),
        ] {
            let (tables, note) = drilled(drill, &facts, &backup_id);
            assert_eq!(tables, None);
            assert!(note.starts_with(why), "{note}");
            assert!(note.contains(&format!("`strongroom verify {backup_id}`")), "{note}");
        }
    }
}
