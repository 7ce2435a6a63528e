-- What backups and restores of file trees need: progress by files, what a restore changed, and the scenarios.

ALTER TABLE backup_jobs
    ADD COLUMN progress_files bigint NOT NULL DEFAULT 0 CHECK (progress_files >= 0),
    -- Bytes a second over the last seconds; NULL where nothing runs or too little is known.
    ADD COLUMN progress_rate_bytes bigint CHECK (progress_rate_bytes >= 0),
    -- What a restore of files changed, or would change.
    ADD COLUMN changes jsonb;

ALTER TABLE restores ADD COLUMN dry_run boolean NOT NULL DEFAULT false;

-- A schedule that names no type: each of its targets gets what is usual for its kind.
ALTER TABLE backup_schedules ALTER COLUMN backup_type DROP NOT NULL;

-- Where each scenario's files lay when it was deployed last: it is a target without being declared as one.
CREATE TABLE scenarios (
    target_identifier text PRIMARY KEY CHECK (target_identifier LIKE 'scenario/_%'),
    path text NOT NULL CHECK (path <> ''),
    deployed_at timestamptz NOT NULL DEFAULT now()
);
