#!/usr/bin/env bash
# Whole Postgres clusters and their WAL, beside pgBackRest and pg_basebackup; installs the former once (see setup/peers.sh).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
STRONGROOM_TOOLS=${STRONGROOM_TOOLS:-$(deploy/bootstrap --print-tools)}
export STRONGROOM_TOOLS
exec "$STRONGROOM_TOOLS/venv/bin/python" bench/postgres.py "$@"
