-- What point-in-time recovery needs: who receives a cluster's WAL, which WAL a vault holds, and what happened to a target.

-- Who receives the WAL of a target, and how far that is. A claim is a fence: whoever holds an older one is refused.
CREATE TABLE wal_streams (
    target_identifier text PRIMARY KEY,
    vault_id uuid NOT NULL,
    system_identifier text CHECK (system_identifier ~ '^[0-9]{1,20}$'),
    slot text,
    holder text,
    lease_until timestamptz,
    claim bigint NOT NULL DEFAULT 1 CHECK (claim > 0),
    timeline bigint CHECK (timeline > 0),
    received_to pg_lsn,
    -- The server's clock at that time.
    server_time timestamptz,
    behind_bytes bigint CHECK (behind_bytes >= 0),
    last_error text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((holder IS NULL) = (lease_until IS NULL)),
    CHECK ((timeline IS NULL) = (received_to IS NULL))
);

-- WAL without a hole. Ranges of a timeline neither touch nor overlap: what touches is one range.
CREATE TABLE wal_ranges (
    vault_id uuid NOT NULL,
    system_identifier text NOT NULL CHECK (system_identifier ~ '^[0-9]{1,20}$'),
    timeline bigint NOT NULL CHECK (timeline > 0),
    from_lsn pg_lsn NOT NULL,
    to_lsn pg_lsn NOT NULL,
    first_time timestamptz NOT NULL,
    last_time timestamptz NOT NULL,
    PRIMARY KEY (vault_id, system_identifier, timeline, from_lsn),
    CHECK (from_lsn < to_lsn),
    CHECK (first_time <= last_time)
);

-- Where each timeline came from.
CREATE TABLE wal_histories (
    vault_id uuid NOT NULL,
    system_identifier text NOT NULL CHECK (system_identifier ~ '^[0-9]{1,20}$'),
    timeline bigint NOT NULL CHECK (timeline > 0),
    ancestors jsonb NOT NULL,
    PRIMARY KEY (vault_id, system_identifier, timeline)
);

CREATE TYPE annotation_kind AS ENUM ('note', 'backup', 'deploy', 'schema', 'alert');

CREATE TABLE annotations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target_identifier text NOT NULL,
    at timestamptz NOT NULL,
    kind annotation_kind NOT NULL,
    text text NOT NULL CHECK (text <> ''),
    source text NOT NULL,
    -- What makes it the same annotation, where it may be written twice.
    key text UNIQUE
);
CREATE INDEX annotations_by_target ON annotations (target_identifier, at DESC);

-- What is wrong with a target, from when it was found until it is right again: at most one of a kind at a time.
CREATE TABLE alerts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target_identifier text NOT NULL,
    kind text NOT NULL CHECK (kind <> ''),
    message text NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    cleared_at timestamptz,
    CHECK (cleared_at IS NULL OR cleared_at >= raised_at)
);
CREATE UNIQUE INDEX alerts_one_active ON alerts (target_identifier, kind) WHERE cleared_at IS NULL;

-- The base backups of a cluster, whose receipts tell where they lie in its WAL.
CREATE INDEX receipts_of_clusters ON receipts (backup_id) WHERE kind = 'backup' AND body #> '{source,cluster}' IS NOT NULL;
