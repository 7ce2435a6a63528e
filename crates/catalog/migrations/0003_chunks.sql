-- Which chunks a vault holds, as its index objects list them: what writers look up before they store a chunk. It is
-- filled from the vault and may be emptied at any time.
CREATE TABLE vault_indexes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vault_id uuid NOT NULL,
    object bytea NOT NULL,
    UNIQUE (vault_id, object)
);

CREATE TABLE vault_packs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    index_id bigint NOT NULL REFERENCES vault_indexes ON DELETE CASCADE,
    pack bytea NOT NULL
);
CREATE INDEX ON vault_packs (index_id);

-- A chunk may lie in two packs: two writers stored it at the same time.
CREATE TABLE vault_chunks (
    chunk bytea NOT NULL,
    pack_id bigint NOT NULL REFERENCES vault_packs ON DELETE CASCADE,
    PRIMARY KEY (chunk, pack_id)
);
CREATE INDEX ON vault_chunks (pack_id);
