"""A copy of the checkout as a new user has it after cloning, and an environment to run commands in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE_FILES = ("ner_train", "ner_test", "news_train", "news_test")
NOWHERE = "http://127.0.0.1:9"


def copy_checkout(folder: Path) -> Path:
    """Copy to ``folder`` every file that git tracks or does not ignore."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():  # a tracked file may have been deleted from the working tree
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target)
    return folder


def first_lines(path: Path, count: int) -> str:
    """The first ``count`` lines of a UTF-8 file."""
    with path.open(encoding="utf-8", newline="") as file:
        return "".join(islice(file, count))


def shorten_samples(folder: Path, rows: int) -> None:
    """Keep only the first ``rows`` rows of each sample file of a copy."""
    for name in SAMPLE_FILES:
        path = folder / "data" / "sample" / f"{name}.jsonl"
        path.write_text(first_lines(path, rows), encoding="utf-8", newline="")


def stranger(home: Path) -> dict[str, str]:
    """Environment variables of a user who is logged in nowhere and can reach only this machine."""
    home.mkdir(parents=True, exist_ok=True)
    ours = ("SWANLAB_", "MODELSCOPE_", "HF_", "PYTEST_", "RANK", "PYTHONIOENCODING", "COVERAGE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "SWANLAB_ROOT": str(home / "swanlab"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
    }
