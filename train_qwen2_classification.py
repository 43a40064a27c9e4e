"""LoRA 微调：文本分类。

python train_qwen2_classification.py --train_file data/train_cls.jsonl --output_dir output/Qwen2
python train_qwen2_classification.py --train_file data/train_cls.jsonl --output_dir output/Qwen2 --dry_run
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from sft.cli import one_line_errors, readable_streams, run_script
from sft.errors import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says, and print the results on stdout: as JSON, but a table on a terminal.

    Returns:
        0 done, 1 the run failed, 2 wrong usage or input, 128 + n stopped by signal n.
    """
    from sft.tasks.classification import Classification
    from sft.training.arguments import parse_arguments

    arguments = parse_arguments(
        "LoRA 微调：文本分类",
        sys.argv[1:] if argv is None else argv,
        train_file="data/train_cls.jsonl",
        output_dir="output/Qwen2",
        metric_for_best_model=f"eval_{Classification.metric}",
    )
    from sft.console import log_level, log_to_stderr

    log_to_stderr(log_level(arguments.training))
    with one_line_errors() as outcome:
        from sft.training.fine_tune import fine_tune
        from sft.training.summary import after_training

        results = fine_tune(Classification, arguments)
        if results is not None and arguments.training.process_index == 0:  # only one process reports
            told = after_training(results, arguments)
            if sys.stdout.isatty():  # for a person
                print(printable(told))
            else:  # for a program
                if __name__ == "__main__":  # UTF-8 whatever the code page is; a notebook's stdout is UTF-8 already
                    sys.stdout.reconfigure(encoding="utf-8")
                print(printable(json.dumps(results, ensure_ascii=False, indent=2)))
                logging.info(told)
    return outcome.code


if __name__ == "__main__":
    from sft.console import quiet_libraries

    quiet_libraries()
    readable_streams()  # --preview can print what a GBK console cannot: emoji, parts of characters
    run_script(main)
