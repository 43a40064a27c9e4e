"""Run the reliability matrix, and write its table to docs/reliability.md.

    python -m benchmarks.reliability                    # everything, on two processes; the table has the seconds
    python -m benchmarks.reliability E1 C1 --workers 4  # some families; the table keeps the others' last results
    python -m benchmarks.reliability --short            # a small fixed sample of each; writes no table
    python -m benchmarks.reliability --every 10         # a tenth of each; the table says so

Needs ``requirements-dev.txt``: the cases use the helpers of the tests. Exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"}
warnings.filterwarnings("ignore", message=".*register_random")  # pytest's, of no account here


def main(arguments: list[str]) -> int:
    from benchmarks.reliability.preload import start_again_with_library

    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="E1, E2 …; all by default")
    parser.add_argument("--short", action="store_true", help="a small fixed sample; writes no table")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th of the cases' groups")
    parser.add_argument(
        "--page", action=argparse.BooleanOptionalAction, help="write docs/reliability.md; by default without --short"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    chosen = parser.parse_args(arguments)
    if "RELIABILITY_FOLDER" not in os.environ:
        start_again_with_library(Path(tempfile.mkdtemp(prefix="reliability-")), arguments)
    folder = Path(os.environ.pop("RELIABILITY_FOLDER", None) or tempfile.mkdtemp(prefix="reliability-"))
    os.environ.pop("LD_PRELOAD", None)
    os.chdir(ROOT)
    try:
        return run_matrix(chosen, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_matrix(chosen: argparse.Namespace, folder: Path) -> int:
    """Run the chosen families, and write down what each found as soon as it is finished."""
    from benchmarks.reliability.families import FAMILIES
    from benchmarks.reliability.matrix import Extent, run_family
    from benchmarks.reliability.runs import World
    from benchmarks.reliability.table import write_down

    unknown = set(chosen.families) - {family.name for family in FAMILIES}
    if unknown:
        sys.stderr.write(f"没有 {'、'.join(sorted(unknown))}；有 {' '.join(family.name for family in FAMILIES)}\n")
        return 2
    import_everything()
    world, failed, extent = World.create(folder), False, Extent(chosen.short, chosen.every)
    for family in FAMILIES:
        if chosen.families and family.name not in chosen.families:
            continue
        result = run_family(family, world, extent, chosen.workers)
        failed |= bool(result.failures)
        passed = result.cases - len(result.failures)
        sys.stdout.write(
            f"{family.name}：{passed:,} / {result.cases:,} 通过，{result.seconds:.0f} 秒"
            f"（CPU {result.cpu_seconds:.0f} 秒）{result.skipped}\n"
        )
        sys.stdout.write("".join(f"  {failure}\n" for failure in result.failures[:40]))
        sys.stdout.flush()
        if not chosen.short if chosen.page is None else chosen.page:
            write_down(family, result, extent)
    return int(failed)


def import_everything() -> None:
    """Import here, once, what the forked processes would each import."""
    import matplotlib.pyplot  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch

    import sft.training.fine_tune  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a collection in a forked process need not walk through all of this


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
