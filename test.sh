#!/usr/bin/env bash
# Set up .venv and run the tests. `bash test.sh --all` also runs the slow tests; other arguments go to pytest.
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
# All of them: one worker for each core, with the tests of a file together. A few: at once, without workers.
workers=()
if [ $# = 0 ]; then
    workers=(-n logical --maxprocesses 4 --dist loadfile)
    export OMP_NUM_THREADS=1
fi
exec python -m pytest "${selection[@]}" "${workers[@]}" "$@"
