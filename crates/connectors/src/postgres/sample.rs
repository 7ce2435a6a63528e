//! A sample database: varied types, a second schema, roles and grants; the same bytes every time.

/// Rough size of one row of each table on the server's disk, in bytes; the number of rows follows from these.
const ORDER_BYTES: u64 = 330;
const EVENT_BYTES: u64 = 420;
const DOCUMENT_BYTES: u64 = 1_700;
/// Customers for each order.
const CUSTOMERS_PER_ORDER: f64 = 0.1;
const LARGE_OBJECTS: u32 = 40;

/// SQL for `psql` that fills an empty database with at least so many megabytes.
///
/// Everything is derived from row numbers, so two loads are equal. The roles `sample_app` and `sample_reader` are made
/// where they are missing, as roles belong to the whole cluster.
pub fn sample_sql(megabytes: u32) -> String {
    let bytes = u64::from(megabytes.max(1)) * 1_000_000;
    // A third of the bytes each.
    let orders = bytes / 3 / ORDER_BYTES + 100;
    let events = bytes / 3 / EVENT_BYTES + 100;
    let documents = bytes / 3 / DOCUMENT_BYTES + 20;
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let customers = (orders as f64 * CUSTOMERS_PER_ORDER) as u64 + 10;
    SQL.replace("{orders}", &orders.to_string())
        .replace("{events}", &events.to_string())
        .replace("{documents}", &documents.to_string())
        .replace("{customers}", &customers.to_string())
        .replace("{large_objects}", &LARGE_OBJECTS.to_string())
}

const SQL: &str = r#"
\set ON_ERROR_STOP on
SET client_min_messages = warning;
SET synchronous_commit = off;
SET timezone = 'UTC';

DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'sample_app') THEN
        CREATE ROLE sample_app LOGIN PASSWORD 'sample-only';
        ALTER ROLE sample_app SET statement_timeout = '5min';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'sample_reader') THEN
        CREATE ROLE sample_reader;
        GRANT sample_reader TO sample_app;
    END IF;
END
$do$;

CREATE SCHEMA shop;
CREATE SCHEMA audit;
COMMENT ON SCHEMA shop IS 'What customers see';

CREATE TYPE shop.order_state AS ENUM ('new', 'paid', 'packed', 'sent', 'returned');
CREATE DOMAIN shop.email AS text CHECK (VALUE LIKE '%_@_%');
CREATE TYPE shop.money_amount AS (amount numeric(14, 2), currency char(3));

-- A text of about that many characters, made of words, so that it compresses as real texts do.
CREATE FUNCTION shop.prose(seed bigint, words int) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $fn$
    SELECT string_agg(
        (ARRAY['the', 'order', 'of', 'and', 'with', 'delivery', 'was', 'customer', 'to', 'street', 'received', 'a',
               'pärcel', 'quality', 'returned', 'in', 'blue', 'warehouse', 'is', 'on', 'Ωmega', 'payment', 'for',
               'between'])[1 + abs(hashint8(seed * 7919 + n)) % 24]
        || CASE WHEN n % 9 = 0 THEN left(md5((seed + n)::text), 6) ELSE '' END, ' ' ORDER BY n)
    FROM generate_series(1, words) n
$fn$;
COMMENT ON FUNCTION shop.prose(bigint, int) IS 'Words that depend on the seed alone';

CREATE TABLE shop.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    public_id uuid NOT NULL UNIQUE,
    name text NOT NULL,
    email shop.email NOT NULL,
    born date,
    tags text[] NOT NULL DEFAULT '{}',
    last_address inet,
    balance numeric(14, 2) NOT NULL DEFAULT 0,
    settings jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE shop.customers IS 'Who buys';
COMMENT ON COLUMN shop.customers.born IS 'May be unknown';
INSERT INTO shop.customers (public_id, name, email, born, tags, last_address, balance, settings, created_at)
SELECT md5('customer' || n)::uuid, initcap(left(md5(n::text), 5 + (n % 9)::int)) || ' O''Neill' || chr(9) || n,
       'user' || n || '@example.org', CASE WHEN n % 7 > 0 THEN date '1950-01-01' + (n % 20000)::int END,
       ARRAY['t' || n % 5, 'level "' || n % 3 || '"', NULL],
       ('10.' || n % 250 || '.' || n % 199 || '.1/24')::inet, (n * 37 % 1000003)::numeric / 100,
       jsonb_build_object('theme', CASE WHEN n % 2 = 0 THEN 'dark' ELSE 'light' END, 'visits', n % 1000,
                          'nested', jsonb_build_array(n, NULL, 'ü')),
       timestamptz '2020-01-01 00:00:00+00' + n * interval '61.7 seconds'
FROM generate_series(1, {customers}) n;

CREATE SEQUENCE shop.invoice_number START 10000 INCREMENT 3;
CREATE TABLE shop.orders (
    id bigserial PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES shop.customers (id),
    invoice bigint NOT NULL DEFAULT nextval('shop.invoice_number'),
    state shop.order_state NOT NULL,
    total shop.money_amount NOT NULL,
    weight_kilograms double precision,
    delivery tstzrange,
    lines jsonb NOT NULL,
    notes text,
    flags bit(8) NOT NULL DEFAULT B'00000000',
    placed_at timestamp NOT NULL,
    is_gift boolean NOT NULL
);
INSERT INTO shop.orders
       (customer_id, state, total, weight_kilograms, delivery, lines, notes, flags, placed_at, is_gift)
SELECT 1 + n % {customers}, (enum_range(NULL::shop.order_state))[1 + n % 5],
       ROW((n * 7919 % 100000)::numeric / 100, CASE WHEN n % 3 = 0 THEN 'EUR' ELSE 'USD' END)::shop.money_amount,
       CASE WHEN n % 11 > 0 THEN sqrt(n::float8) / 3 END,
       tstzrange(timestamptz '2023-01-01 00:00:00+00' + n * interval '1 minute',
                 timestamptz '2023-01-03 00:00:00+00' + n * interval '1 minute'),
       jsonb_build_array(jsonb_build_object('sku', 'SKU-' || n % 5000, 'count', 1 + n % 4, 'price', n % 997),
                         jsonb_build_object('sku', 'SKU-' || n * 31 % 5000, 'count', 1 + n % 3, 'price', n % 499)),
       CASE WHEN n % 4 = 0 THEN shop.prose(n, 12) || E'\n\\. ' || chr(9) || '"quoted"' END,
       (n % 256)::int::bit(8), timestamp '2023-01-01' + n * interval '1 minute', n % 10 = 0
FROM generate_series(1, {orders}) n;
CREATE INDEX orders_customer ON shop.orders (customer_id, placed_at DESC);
CREATE INDEX orders_open ON shop.orders (placed_at) WHERE state IN ('new', 'paid');
CREATE INDEX orders_lines ON shop.orders USING gin (lines jsonb_path_ops) WHERE state = 'returned';
CREATE INDEX customers_name_lower ON shop.customers (lower(name));

CREATE TABLE audit.events (
    id bigint NOT NULL,
    happened_at timestamptz NOT NULL,
    kind text NOT NULL,
    actor uuid,
    payload jsonb,
    checksum bytea NOT NULL,
    PRIMARY KEY (id, happened_at)
) PARTITION BY RANGE (happened_at);
CREATE TABLE audit.events_2023 PARTITION OF audit.events FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE audit.events_2024 PARTITION OF audit.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE audit.events_2025 PARTITION OF audit.events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE audit.events_rest PARTITION OF audit.events DEFAULT;
INSERT INTO audit.events
SELECT n, timestamptz '2023-01-01 00:00:00+00' + (n % 1200) * interval '1 day' + n * interval '1 millisecond',
       (ARRAY['login', 'logout', 'update', 'delete', 'export'])[1 + n % 5], md5('customer' || n % 1000)::uuid,
       jsonb_build_object('request', md5('r' || n), 'path', '/api/v1/orders/' || n, 'milliseconds', n % 900,
                          'agent', 'Mozilla/5.0 (X11; Linux x86_64) Version/' || n % 40),
       decode(md5('a' || n) || md5('b' || n), 'hex')
FROM generate_series(1, {events}) n;
CREATE INDEX events_kind ON audit.events (kind, happened_at);

CREATE TABLE shop.documents (
    id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    title varchar(200) NOT NULL,
    body text NOT NULL,
    scan bytea,
    matrix int[][],
    length_characters int GENERATED ALWAYS AS (length(body)) STORED
);
INSERT INTO shop.documents (title, body, scan, matrix)
SELECT 'Document ' || n, shop.prose(n, 150),
       (SELECT decode(string_agg(md5(n || '-' || k), ''), 'hex') FROM generate_series(1, 40) k),
       ARRAY[[n, n + 1], [n % 7, NULL]]
FROM generate_series(1, {documents}) n;

CREATE TABLE shop."Odd name; with ""quotes"", dots. and *stars?" (
    "primary key" int PRIMARY KEY, "select" text, "ünïcode" interval, precise time(3) with time zone, place point);
INSERT INTO shop."Odd name; with ""quotes"", dots. and *stars?"
SELECT n, CASE WHEN n % 3 = 0 THEN NULL WHEN n % 3 = 1 THEN '' ELSE E'a\tb\\n' END, n * interval '1 hour 3 seconds',
       time with time zone '10:00:00.123+02', point(n, -n)
FROM generate_series(1, 50) n;
CREATE TABLE public.empty_table (nothing int);
CREATE UNLOGGED TABLE audit.cache (key text PRIMARY KEY, value xml, area cidr, hardware macaddr, bounds int4range);
INSERT INTO audit.cache SELECT 'k' || n, NULL, '192.168.0.0/16', '08:00:2b:01:02:03', int4range(n, n + 10)
FROM generate_series(1, 20) n;

CREATE FUNCTION audit.touch() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    INSERT INTO audit.events VALUES (-NEW.id, now(), 'order ' || TG_OP, NULL, NULL, '\x00');
    RETURN NEW;
END
$fn$;
CREATE TRIGGER orders_touch AFTER UPDATE OF state ON shop.orders FOR EACH ROW EXECUTE FUNCTION audit.touch();

CREATE VIEW shop.open_orders AS
    SELECT o.id, c.name, (o.total).amount FROM shop.orders o JOIN shop.customers c ON c.id = o.customer_id
    WHERE o.state IN ('new', 'paid');
CREATE MATERIALIZED VIEW shop.revenue AS
    SELECT date_trunc('month', placed_at) AS month, (total).currency, sum((total).amount) AS amount, count(*) AS orders
    FROM shop.orders GROUP BY 1, 2;
CREATE UNIQUE INDEX revenue_month ON shop.revenue (month, currency);

SELECT count(lo_from_bytea(0, convert_to(shop.prose(n, 200 * (1 + n % 20)), 'UTF8') || decode(md5(n::text), 'hex')))
FROM generate_series(1, {large_objects}) n;

GRANT USAGE ON SCHEMA shop, audit TO sample_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA shop TO sample_reader;
GRANT INSERT, UPDATE (state, notes) ON shop.orders TO sample_app;
ALTER TABLE shop.documents OWNER TO sample_app;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO sample_reader;
ANALYZE;
"#;
