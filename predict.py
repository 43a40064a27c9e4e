"""用微调好的适配器预测：一段文本、一个文件，或标准输入。

python predict.py --adapter output/Qwen2.5-NER --text "南京大学的张伟昨天到了上海。"
python predict.py --adapter output/Qwen2 --input_file data/test_cls.jsonl --output_file output/predictions.jsonl
cat texts.txt | python predict.py --adapter output/Qwen2.5-NER > predictions.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}：参数有误：{message}；python {self.prog} --help 列出所有参数\n")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(description="用微调好的适配器预测", allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, help="训练脚本的 --output_dir")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", help="一段文本")
    source.add_argument(
        "--input_file", type=Path, help="原始数据或转换后的 jsonl、csv/tsv，或每行一段文本；都不给则读标准输入"
    )
    parser.add_argument("--output_file", type=Path, help="结果写到这里（每行一条 JSON，顺序同输入）；默认标准输出")
    parser.add_argument("--report", type=Path, help="把成绩、错误和逐条对照另写成一页 HTML")
    parser.add_argument("--base_only", action="store_true", help="不加载适配器，看微调之前的模型")
    parser.add_argument("--task_file", type=Path, help="没有 --adapter 时的任务设置：data/*.task.json")
    parser.add_argument("--model_name_or_path", help="基座模型；默认用训练时的那个")
    parser.add_argument("--max_rows", type=int, help="只预测前多少条")
    parser.add_argument("--batch_size", type=int, default=16, help="每批多少条（默认 16）")
    parser.add_argument("--max_length", type=int, help="一条最多多少词元；默认同训练")
    parser.add_argument("--max_new_tokens", type=int, help="答案最多多少词元；默认按训练数据")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], help="数值类型；默认同训练")
    arguments = parser.parse_args(argv)
    if arguments.adapter is None and not arguments.base_only:
        parser.error("请用 --adapter 给出训练脚本的 --output_dir；想看未微调的模型请加 --base_only")
    if arguments.batch_size < 1:
        parser.error("--batch_size 至少是 1")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        parser.error("--max_rows 至少是 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Predict as the command line says: predictions on stdout or in ``--output_file``, metrics where gold is there.

    Returns:
        0 done, 1 the run failed, 2 wrong usage or input.
    """
    arguments = parse_arguments(argv)
    if __name__ == "__main__":  # results are UTF-8 also where the console is GBK; a notebook's stdout always is
        sys.stdout.reconfigure(encoding="utf-8")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from sft.records import InputError, RunError

    try:
        metrics = run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # predict.py … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if metrics is not None:
        where = sys.stdout if arguments.output_file else sys.stderr
        print(json.dumps(metrics, ensure_ascii=False, indent=2), file=where)
    return 0


def run(arguments: argparse.Namespace) -> dict[str, float] | None:
    """Load, predict, write; the metrics where rows had gold."""
    from sft.prediction import read_file, read_lines

    if arguments.text is not None:
        rows = iter([{"text": arguments.text}])
    elif arguments.input_file is not None:
        if not arguments.input_file.is_file():
            from sft.records import InputError

            raise InputError(f"{arguments.input_file}：没有这个文件；请检查 --input_file")
        rows = read_file(arguments.input_file)
    else:
        rows = read_lines(sys.stdin.buffer)

    from tqdm import tqdm

    from sft.inference import load_for_prediction, predict_rows

    loaded = load_for_prediction(
        adapter=arguments.adapter,
        base_only=arguments.base_only,
        task_file=arguments.task_file,
        input_file=arguments.input_file,
        model_name_or_path=arguments.model_name_or_path,
        dtype=arguments.dtype,
        max_length=arguments.max_length,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
    )
    rows = tqdm(islice(rows, arguments.max_rows), desc="预测", unit="条", disable=not sys.stderr.isatty())
    outputs, metrics = predict_rows(loaded, rows)
    if arguments.report is not None:
        from sft.report import reporting

        name = arguments.input_file.name if arguments.input_file else "predict.py"
        adapter = None if arguments.base_only else arguments.adapter
        outputs = reporting(outputs, arguments.report, loaded, name=name, adapter=adapter)
    if arguments.output_file is None:
        for line in outputs:
            print(line.decode())
        return metrics()
    from sft.records import whole_file

    with whole_file(arguments.output_file) as file:
        file.writelines(line + b"\n" for line in outputs)
    return metrics()


if __name__ == "__main__":
    sys.exit(main())
