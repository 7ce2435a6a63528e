#!/usr/bin/env bash
# Backup of one Postgres database, beside `pg_dump -Fc -Z0 | zstd -3 | age` on the same database.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec "${STRONGROOM_TOOLS:-$(deploy/bootstrap --print-tools)}/venv/bin/python" bench/dump.py "$@"
