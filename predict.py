"""用微调好的适配器预测：一段文本、一个文件，或标准输入。

python predict.py --adapter output/Qwen2.5-NER --text "南京大学的张伟昨天到了上海。"
python predict.py --adapter output/Qwen2 --input_file data/test_cls.jsonl --output_file output/predictions.jsonl
cat texts.txt | python predict.py --adapter output/Qwen2.5-NER > predictions.jsonl

结果文件随跑随写；中断之后，原来的命令加 --resume 接着跑，得到的文件与一次跑完的逐字节相同。
多张卡：torchrun --nproc_per_node 2 predict.py …（或 accelerate launch），结果与单个进程的相同。
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from sft.cli import is_closed, one_line_errors, readable_streams, run_script
from sft.errors import InputError, printable
from sft.prediction.arguments import parse_arguments
from sft.processes import is_first_process, let_segments_grow, process_count, process_index
from sft.terminal import columns_of, folded, has_colour

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from sft.errors import RowError
    from sft.prediction.choices import ModelChoice
    from sft.prediction.output import GrowingFile, Stream
    from sft.prediction.predictor import Predictor
    from sft.report.findings import Findings
    from sft.tasks.evaluation import Tally


def main(argv: Sequence[str] | None = None) -> int:
    """Predict as the command line says.

    The predictions go to stdout or into ``--output_file``. If rows have gold answers, the metrics are printed: to
    stdout if the predictions go into a file, else to stderr. All this is JSON in a file or a pipe; on a terminal a
    person reads marked sentences and a line of metrics.

    Returns:
        0 done, 1 the run failed, 2 wrong usage or input, 130 Ctrl-C, 141 the reader of stdout has gone.
    """
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    let_segments_grow()  # before torch is imported
    from sft.console import log_to_stderr, quiet_libraries

    if __name__ == "__main__":  # write UTF-8 even on a GBK console; a notebook's stdout is UTF-8 already
        if sys.stdout is not None and not sys.stdout.isatty():  # None: closed
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        quiet_libraries()
    log_to_stderr(logging.INFO if is_first_process() else logging.ERROR)

    with one_line_errors(piped=True) as outcome:
        metrics = predict(arguments)
        if metrics is not None:
            where = sys.stdout if arguments.output_file else sys.stderr
            print(printable(metrics_text(metrics, columns_of(where))), file=where, flush=True)
    return outcome.code


def metrics_text(metrics: dict[str, float], columns: int | None) -> str:
    """The metrics: as JSON, but in a line for a terminal of so many columns."""
    if columns is None:
        return json.dumps(metrics, ensure_ascii=False, indent=2)
    from sft.prediction.shown import figures

    return folded(figures(metrics), columns)


def predict(arguments: argparse.Namespace) -> dict[str, float] | None:
    """Read the rows, load the model, predict, and write the output and the report.

    Returns:
        The metrics by name. None if no row has a gold answer, and in every process except the first.

    Raises:
        InputError: a flag or a file is wrong.
        RunError: the run cannot continue.
    """
    rows, total = open_rows(arguments)
    path = lines_path(arguments)
    if path is not None and not path.parent.exists():  # then nobody is writing there
        check_places(arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
    from sft.prediction.output import own_output

    with own_output(path if is_first_process() else None):
        check_places(arguments)
        return predict_rows(arguments, rows, total)


def predict_rows(
    arguments: argparse.Namespace, rows: Iterator[dict | RowError], total: int | None
) -> dict[str, float] | None:
    """Load the model, predict the rows, and write the output and the report; see `predict`.

    Args:
        total: how many rows there are; None if that is not known.
    """
    from sft.console import with_progress
    from sft.prediction.output import finished_lines
    from sft.prediction.predictor import metrics_of, warn_of_cut_rows, warn_of_unusable_gold
    from sft.prediction.shown import count_labels
    from sft.prediction.turns import predict_in_turns
    from sft.processes import broadcast, choose_device, process_group
    from sft.report.findings import findings_of
    from sft.report.page import add_lines

    choose_device()
    predictor = load(arguments)
    findings = None if arguments.report is None else findings_of(predictor.task)
    with open_output(arguments, predictor) as output, process_group() as group:
        done = broadcast(output.rows, group)
        counts = count_labels(finished_lines(lines_path(arguments), done))
        if findings is not None:
            add_lines(findings, finished_lines(lines_path(arguments), done))
        windows = predict_in_turns(predictor, islice(rows, done, None), group)
        for lines, tally in with_progress(windows, done, total):
            output.add(lines, tally)
            counts += count_labels(lines)
            if findings is not None:
                add_lines(findings, lines)
        output.finish()
    if process_index() > 0:
        return None
    warn_of_unusable_gold(output.tally)
    warn_of_cut_rows(predictor, output.tally)
    if arguments.output_format == "label_studio":
        write_label_studio(arguments, predictor)
    if findings is not None:
        write_report(arguments, predictor, findings, output.tally)
    metrics = metrics_of(predictor, output.tally)
    if arguments.output_file is not None or metrics is None or sys.stderr.isatty():  # else stderr is for the metrics
        tell_what_was_done(arguments, predictor, output.tally, counts)
    return metrics


def tell_what_was_done(
    arguments: argparse.Namespace, predictor: Predictor, tally: Tally, counts: Counter[str]
) -> None:
    """Log how many rows and entities there are, what was left out, and where the results and the report went.

    Args:
        counts: entities or rows of each label.
    """
    from sft.prediction.shown import what_was_done, what_was_left_out

    threshold = predictor.row_settings.threshold
    done = what_was_done(tally.rows["read"], tally.rows["error"], counts, predictor.task.answers, threshold)
    where = "" if arguments.output_file is None else f"；写在 {arguments.output_file}"
    report = "" if arguments.report is None else f"；报告 {arguments.report}"
    logging.info("%s%s%s%s", done, what_was_left_out(tally.problems), where, report)


def open_rows(arguments: argparse.Namespace) -> tuple[Iterator[dict | RowError], int | None]:
    """The rows that the flags name, and how many there are (None for standard input).

    Raises:
        InputError: the file cannot be read, or several processes would share standard input.
    """
    from sft.data.arguments import ReadOptions
    from sft.data.inputs import count_rows, open_file, read_stream, rows_of
    from sft.prediction.choices import read_settings
    from sft.prediction.other_task import refuse_rows_of_another_task

    if arguments.text is None and arguments.input_file is None:
        if process_count() > 1:
            raise InputError("标准输入不能分给几个进程；请用 --input_file")
        if sys.stdin is None:
            raise InputError("标准输入是关着的；请用 --input_file 或 --text")
    task, options = read_settings(model_choice(arguments)).task, ReadOptions.from_arguments(arguments)
    if arguments.text is not None:
        return iter([{"text": arguments.text}]), 1
    if arguments.input_file is not None:
        source = open_file(arguments.input_file, task.answers, options)
        if options.text_column is options.label_column is None:
            refuse_rows_of_another_task(source, task)
        return islice(rows_of(source), arguments.max_rows), count_rows(source, arguments.max_rows)
    if sys.stdin.isatty():
        logging.info("从键盘读：每行一段文本，最后按 %s", "Ctrl-Z 和回车" if sys.platform == "win32" else "Ctrl-D")
    return islice(read_stream(sys.stdin.buffer, task.answers, options), arguments.max_rows), None


def lines_path(arguments: argparse.Namespace) -> Path | None:
    """Where the output lines grow: ``--output_file``, or beside it if that is to be a Label Studio file."""
    if arguments.output_format == "label_studio":
        from sft.prediction.label_studio import rows_path

        return rows_path(arguments.output_file)
    return arguments.output_file


def check_places(arguments: argparse.Namespace) -> None:
    """Before the model is loaded, refuse output paths that cannot be written or would overwrite something.

    Raises:
        InputError: there is such a path.
    """
    if arguments.output_file is None and is_closed(sys.stdout):
        raise InputError("标准输出是关着的；请用 --output_file 给出结果写到哪里")
    if arguments.output_file is not None:
        from sft.prediction.output import check_output

        resume, overwrite = arguments.resume, arguments.overwrite
        check_output(lines_path(arguments), arguments.input_file, resume=resume, overwrite=overwrite)
    if arguments.output_format == "label_studio":
        from sft.prediction.label_studio import check_tasks_path

        check_tasks_path(arguments.output_file, arguments.input_file, overwrite=arguments.overwrite)
    if arguments.report is not None:
        from sft.report.page import check_report_path

        files = {name: getattr(arguments, name) for name in ("input_file", "output_file", "task_file")}
        check_report_path(arguments.report, files)


def model_choice(arguments: argparse.Namespace) -> ModelChoice:
    """The model and the task that the flags name."""
    from sft.prediction.choices import ModelChoice

    return ModelChoice(
        adapter=arguments.adapter,
        base_only=arguments.base_only,
        task_file=arguments.task_file,
        input_file=arguments.input_file,
        model_name_or_path=arguments.model_name_or_path,
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        allow_other_base=arguments.allow_other_base,
        verify=not arguments.no_verify,
    )


def load(arguments: argparse.Namespace) -> Predictor:
    """Load the model, tokenizer and task that the flags name.

    Raises:
        InputError: see `Predictor.load`.
    """
    from sft.prediction.choices import LimitChoice
    from sft.prediction.predictor import Predictor
    from sft.prediction.rows import RowSettings
    from sft.tasks.options import options_from_flag

    limits = LimitChoice(
        max_length=arguments.max_length,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        constrained=arguments.constrained,
        max_tokens=arguments.max_tokens,
        piece_tokens=arguments.piece_tokens,
    )
    rows = RowSettings(
        options=None if arguments.options is None else options_from_flag(arguments.options),
        threshold=arguments.threshold,
    )
    return Predictor.load(model_choice(arguments), limits, rows)


def open_output(arguments: argparse.Namespace, predictor: Predictor) -> GrowingFile | Stream:
    """The output for the predictions: ``--output_file``, or stdout. Only the first process writes a file."""
    from sft.data.arguments import ReadOptions
    from sft.prediction.output import GrowingFile, Stream
    from sft.prediction.predictor import prediction_identity
    from sft.prediction.shown import ShownRows, look_of

    path = lines_path(arguments)
    if path is None or process_index() > 0:
        columns = columns_of(sys.stdout)
        if columns is None:
            return Stream(sys.stdout)
        look = look_of(columns, predictor.task.labels, coloured=has_colour(sys.stdout))
        return Stream(sys.stdout, ShownRows(look))
    if path.exists() and not path.is_file():  # a pipe, /dev/null
        return Stream(path.open("w", encoding="utf-8", newline="\n"))
    reading = ReadOptions.from_arguments(arguments)._asdict()
    run = prediction_identity(predictor, arguments.input_file, max_rows=arguments.max_rows, **reading)
    return GrowingFile(path, run, resume=arguments.resume)


def write_label_studio(arguments: argparse.Namespace, predictor: Predictor) -> None:
    """Write the finished lines as Label Studio's tasks, and tell which labelling interface they need."""
    from sft.console import say
    from sft.prediction.label_studio import described, write_tasks

    model_version = "base" if predictor.adapter is None else predictor.adapter.resolve().name
    exported = write_tasks(arguments.output_file, model_version)
    for line in described(arguments.output_file, exported, predictor.task.answers, predictor.task.labels):
        say(line)


def readable_name(path: Path) -> str:
    """A file's name with question marks for bytes that are not UTF-8."""
    return path.name.encode("utf-8", "replace").decode()


def write_report(arguments: argparse.Namespace, predictor: Predictor, findings: Findings, tally: Tally) -> None:
    """Write the page that ``--report`` asks for."""
    from sft.report.page import PredictionFacts, write_prediction_page

    facts = PredictionFacts(
        name=readable_name(arguments.input_file) if arguments.input_file else "predict.py",
        base=predictor.model.config.name_or_path,
        adapter=predictor.adapter,
        dtype=str(predictor.model.dtype).removeprefix("torch."),
    )
    write_prediction_page(arguments.report, predictor.task, findings, tally, facts)


if __name__ == "__main__":
    readable_streams()
    run_script(main)
