-- The size of each pack as stored, in bytes, so that a writer sees that one was cut short; null where its index object does
-- not tell. What is here is emptied: it is filled again from the vault, with the sizes.
DELETE FROM vault_indexes;
ALTER TABLE vault_packs ADD COLUMN pack_bytes bigint CHECK (pack_bytes >= 0);
