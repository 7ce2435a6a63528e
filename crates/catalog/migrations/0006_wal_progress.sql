-- When anything came of receiving: WAL became durable, or the server had none. A claim or a lease that is renewed is neither.
ALTER TABLE wal_streams ADD COLUMN progressed_at timestamptz;
-- The claim under which that was.
ALTER TABLE wal_streams ADD COLUMN progressed_claim bigint CHECK (progressed_claim <= claim);
