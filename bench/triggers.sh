#!/usr/bin/env bash
# Triggers: from publish to backup.job.started on an idle fleet, and 10,000 queued at once over 1,000 targets.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec "${STRONGROOM_TOOLS:-$(deploy/bootstrap --print-tools)}/venv/bin/python" bench/triggers.py "$@"
