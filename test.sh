#!/usr/bin/env bash
# Set up and run the tests. `bash test.sh --all` adds the slow ones; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh
set_up requirements-dev.txt
activate
set_up_browser

selection=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
    selection=()
    shift
fi
ruff check .
ruff format --check .
exec python -m pytest "${selection[@]}" "$@"
