-- What the drill of a whole cluster counted in its tables. It is no part of its receipt, which anybody who sees the vault can
-- read.
ALTER TABLE verifications ADD COLUMN tables jsonb;
