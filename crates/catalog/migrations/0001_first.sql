-- The catalog: an index of the vault and the book of jobs. The CHECKs repeat the invariants of the code.

CREATE TYPE job_kind AS ENUM ('backup', 'verify', 'restore');
CREATE TYPE job_status AS ENUM ('pending', 'running', 'completed', 'failed', 'cancelled');
CREATE TYPE backup_type AS ENUM ('full', 'incremental', 'differential');
CREATE TYPE target_kind AS ENUM ('postgres', 'files', 'bucket', 'config', 'command');
CREATE TYPE initiator AS ENUM ('automation', 'human');
CREATE TYPE receipt_kind AS ENUM ('backup', 'verification', 'restore');
CREATE TYPE validation_method AS ENUM ('checksum', 'spot_restore', 'full_restore_test');

CREATE TABLE backup_schedules (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name <> ''),
    cron_expression text NOT NULL,
    schedule text GENERATED ALWAYS AS (cron_expression) STORED,
    timezone text NOT NULL,
    backup_type backup_type NOT NULL,
    type backup_type GENERATED ALWAYS AS (backup_type) STORED,
    targets text[] NOT NULL CHECK (cardinality(targets) > 0),
    retention_days integer CHECK (retention_days > 0),
    retention_policy_json jsonb,
    destination text,
    enabled boolean NOT NULL,
    catch_up boolean NOT NULL,
    jitter_seconds integer NOT NULL CHECK (jitter_seconds >= 0),
    last_run timestamptz,
    -- The due instant that comes next, without jitter; NULL while disabled.
    next_run timestamptz,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (enabled OR next_run IS NULL)
);

CREATE TABLE backup_jobs (
    id uuid PRIMARY KEY,
    kind job_kind NOT NULL,
    type backup_type NOT NULL,
    target target_kind NOT NULL,
    target_identifier text NOT NULL,
    pool text NOT NULL,
    status job_status NOT NULL DEFAULT 'pending',
    -- The current attempt; 0 until the first is dispatched.
    attempt integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    -- When the current attempt was handed to the queue.
    dispatched_at timestamptz,
    -- A retry waits until then.
    not_before timestamptz NOT NULL DEFAULT now(),
    worker text,
    lease_expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    completed_at timestamptz,
    backup_id text NOT NULL,
    size_bytes bigint CHECK (size_bytes >= 0),
    stored_bytes bigint CHECK (stored_bytes >= 0),
    compression_ratio double precision
        GENERATED ALWAYS AS (CASE WHEN stored_bytes > 0 THEN size_bytes::double precision / stored_bytes END) STORED,
    storage_path text,
    checksum text,
    retention_until timestamptz,
    partial boolean NOT NULL DEFAULT false,
    error text,
    -- Attempts that were spent and lost.
    retry_count integer NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    progress_bytes bigint NOT NULL DEFAULT 0,
    progress_total_bytes bigint,
    metadata jsonb NOT NULL DEFAULT '{}',
    params jsonb NOT NULL DEFAULT '{}',
    -- What a restore needs and nobody may read later; gone when the job ends.
    secret text,
    trigger_id text,
    schedule_id uuid REFERENCES backup_schedules (id) ON DELETE SET NULL,
    initiated_by initiator NOT NULL,
    principal text NOT NULL,
    traceparent text,
    cancel_requested boolean NOT NULL DEFAULT false,
    CHECK ((status = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK (status <> 'running' OR (worker IS NOT NULL AND started_at IS NOT NULL AND attempt > 0)),
    CHECK ((status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)),
    CHECK (status <> 'failed' OR error IS NOT NULL),
    CHECK (status <> 'completed' OR kind <> 'backup' OR checksum IS NOT NULL),
    CHECK (secret IS NULL OR status IN ('pending', 'running'))
);
-- A backup that waits and was never begun: another request for its target joins it.
CREATE UNIQUE INDEX backup_jobs_one_waiting ON backup_jobs (target_identifier)
    WHERE kind = 'backup' AND status = 'pending' AND started_at IS NULL;
CREATE UNIQUE INDEX backup_jobs_one_backup ON backup_jobs (backup_id) WHERE kind = 'backup';
CREATE INDEX backup_jobs_undispatched ON backup_jobs (created_at) WHERE status = 'pending' AND dispatched_at IS NULL;
CREATE INDEX backup_jobs_active ON backup_jobs (status) WHERE status IN ('pending', 'running');
CREATE INDEX backup_jobs_by_target ON backup_jobs (target_identifier, created_at DESC);
CREATE INDEX backup_jobs_ended ON backup_jobs (completed_at DESC) WHERE completed_at IS NOT NULL;
CREATE INDEX backup_jobs_by_backup ON backup_jobs (backup_id);

CREATE TABLE receipts (
    sha256 text PRIMARY KEY CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    kind receipt_kind NOT NULL,
    job_id uuid NOT NULL,
    backup_id text NOT NULL,
    body jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kind, job_id)
);
CREATE INDEX receipts_by_backup ON receipts (backup_id, created_at DESC);

CREATE TABLE backups (
    id uuid PRIMARY KEY,
    backup_id text NOT NULL UNIQUE,
    type backup_type NOT NULL,
    target target_kind NOT NULL,
    target_identifier text NOT NULL,
    destination text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    stored_bytes bigint NOT NULL CHECK (stored_bytes >= 0),
    started_at timestamptz NOT NULL,
    completed_at timestamptz NOT NULL,
    partial boolean NOT NULL,
    receipt_sha256 text NOT NULL REFERENCES receipts (sha256),
    verified boolean NOT NULL DEFAULT false,
    verified_at timestamptz,
    validation_method validation_method,
    verification_error text,
    retention_until timestamptz,
    -- Whether a verify job was made for it.
    verification_asked boolean NOT NULL DEFAULT false,
    CHECK (verified = (verified_at IS NOT NULL)),
    CHECK (verified = (validation_method IS NOT NULL))
);
CREATE INDEX backups_by_target ON backups (target_identifier, completed_at DESC);
CREATE INDEX backups_not_asked ON backups (completed_at) WHERE NOT verification_asked;
CREATE INDEX backups_by_time ON backups (completed_at DESC);

CREATE TABLE verifications (
    job_id uuid PRIMARY KEY,
    backup_id text NOT NULL,
    passed boolean NOT NULL,
    method validation_method,
    completed_at timestamptz NOT NULL,
    checks jsonb NOT NULL,
    CHECK (NOT passed OR method IS NOT NULL)
);
CREATE INDEX verifications_by_backup ON verifications (backup_id, completed_at DESC);

CREATE TABLE restores (
    job_id uuid PRIMARY KEY,
    backup_id text NOT NULL,
    destination text NOT NULL,
    overwrite_reason text,
    started_at timestamptz,
    completed_at timestamptz,
    success boolean,
    error text,
    CHECK ((success IS NULL) = (completed_at IS NULL))
);

CREATE TABLE restore_points (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name <> ''),
    backup_job_ids uuid[] NOT NULL CHECK (cardinality(backup_job_ids) > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    description text NOT NULL DEFAULT '',
    verified boolean NOT NULL DEFAULT false,
    verification_date timestamptz,
    CHECK (verified = (verification_date IS NOT NULL))
);

-- What must be published because it was committed. The message id makes a repetition recognisable.
CREATE TABLE outbox (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id text NOT NULL UNIQUE,
    subject text NOT NULL,
    body jsonb NOT NULL,
    traceparent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz
);
CREATE INDEX outbox_unsent ON outbox (position) WHERE sent_at IS NULL;
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

-- Every trigger that was taken, by its identity: the same one makes no second job, however late it comes.
CREATE TABLE triggers (
    id text PRIMARY KEY,
    subject text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    job_ids uuid[] NOT NULL,
    refusal text,
    CHECK ((refusal IS NOT NULL) = (cardinality(job_ids) = 0))
);

CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    subject text NOT NULL,
    reference text NOT NULL,
    reason text NOT NULL,
    payload jsonb NOT NULL,
    UNIQUE (subject, reference)
);

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    principal text NOT NULL,
    action text NOT NULL,
    object text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
