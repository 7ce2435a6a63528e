#!/usr/bin/env bash
# Backups and restores of files, beside restic, rustic and borg; installs these once (see setup/peers.sh).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
STRONGROOM_TOOLS=${STRONGROOM_TOOLS:-$(deploy/bootstrap --print-tools)}
export STRONGROOM_TOOLS
exec "$STRONGROOM_TOOLS/venv/bin/python" bench/files.py "$@"
