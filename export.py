"""把训练好的适配器导出成别的程序能用的样子，并在说“好了”之前，用自己的数据与适配器对照。

python export.py --adapter output/Qwen2.5-NER --to merged --output_dir output/Qwen2.5-NER-merged
python export.py --adapter output/Qwen2.5-NER --to gguf --gguf_type q8_0 --output_dir output/Qwen2.5-NER-gguf
python export.py --adapter output/Qwen2.5-NER --to ollama --output_dir output/Qwen2.5-NER-ollama
python export.py --adapter output/Qwen2.5-NER --to vllm --output_dir output/Qwen2.5-NER-vllm
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft.cli import one_line_errors, readable_streams, run_script
from sft.export.arguments import parse_arguments

if TYPE_CHECKING:
    from sft.export.proof import Proof


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line says. The proof is printed to stdout as JSON.

    Returns:
        0 exported and proved equal, 1 it answers differently or the run failed, 2 wrong usage or input, 130 Ctrl-C.
    """
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    from sft.console import log_to_stderr, quiet_libraries

    if __name__ == "__main__":
        quiet_libraries()
    log_to_stderr(logging.INFO)
    with one_line_errors() as outcome:
        proof = export(arguments)
        print(json.dumps(proof.to_json(), ensure_ascii=False, indent=2), flush=True)
    return outcome.code


def export(arguments: argparse.Namespace) -> Proof:
    """Check the adapter, write the target, compare it with the adapter, and put it in its place.

    Raises:
        InputError: a flag, a file or the adapter is wrong, or the target cannot hold this model.
        RunError: the target answers differently; it is left beside ``--output_dir``.
    """
    from sft.export.place import being_written
    from sft.export.reference import reference_of
    from sft.export.rows import rows_to_compare
    from sft.export.source import open_source
    from sft.export.targets import target_of

    source = open_source(arguments)
    target = target_of(source, arguments)
    rows = rows_to_compare(arguments.rows or source.adapter, source, arguments.max_rows)
    with being_written(arguments.output_dir, overwrite=arguments.overwrite) as place:
        reference = reference_of(source, rows, arguments.batch_size, answers=target.answers)
        target.write(place.folder, reference)
        proof = target.prove(place.folder, reference)
        place.finish(proof)
    return proof


if __name__ == "__main__":
    readable_streams()
    run_script(main)
