"""LoRA 微调：文本分类。

python train_qwen2_classification.py --train_file data/train_cls.jsonl --output_dir output/Qwen2
python train_qwen2_classification.py --train_file data/train_cls.jsonl --output_dir output/Qwen2 --dry_run
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; print the results as JSON on stdout.

    Returns:
        0 done, 1 the run failed, 2 wrong usage or input, 128 + n stopped by signal n.
    """
    from sft.tasks.classification import Classification
    from sft.training.arguments import parse_arguments

    arguments = parse_arguments(
        "LoRA 微调：文本分类",
        argv,
        train_file="data/train_cls.jsonl",
        output_dir="output/Qwen2",
        metric_for_best_model=f"eval_{Classification.metric}",
    )
    from sft.console import log_level, log_to_stderr

    log_to_stderr(log_level(arguments.training))
    from sft.errors import InputError, RunError
    from sft.training.fine_tune import Interrupted, fine_tune
    from sft.training.summary import after_training

    try:
        results = fine_tune(Classification, arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"已停止；续训加 --resume_from_checkpoint true（{arguments.training.output_dir}）", file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        return 130
    if results is not None and arguments.training.process_index == 0:  # of several processes one reports
        if __name__ == "__main__":  # results are UTF-8 also where the console is GBK; a notebook's stdout always is
            sys.stdout.reconfigure(encoding="utf-8")
        print(json.dumps(results, ensure_ascii=False, indent=2))
        logging.info(after_training(results, arguments))
    return 0


if __name__ == "__main__":
    from sft.console import quiet_libraries

    quiet_libraries()
    sys.stdout.reconfigure(errors="replace")  # --preview on a GBK console: half characters, emoji
    sys.exit(main())
