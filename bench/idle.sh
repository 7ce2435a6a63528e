#!/usr/bin/env bash
# An idle standalone: processor time and memory of our process over a minute.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec "${STRONGROOM_TOOLS:-$(deploy/bootstrap --print-tools)}/venv/bin/python" bench/idle.py "$@"
