"""Send a finished run's metrics and sample predictions to SwanLab again: after training offline or elsewhere.

python -m sft.tracking.replay output/Qwen2
python -m sft.tracking.replay output/Qwen2 --swanlab_mode cloud --swanlab_experiment 新机器
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sft.cli import Parser, one_line_errors, parse
from sft.console import log_to_stderr
from sft.errors import InputError, RunError
from sft.files import METRICS_FILE, SAMPLES_FILE, TASK_FILE, read_json
from sft.tracking.metrics_log import read_metrics
from sft.tracking.swanlab import MODES, PROJECT, SAMPLES, start_tracking

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the flags have the names of the training scripts."""
    parser = Parser(
        prog="python -m sft.tracking.replay",
        description="把训练留下的 metrics.jsonl 再记进 SwanLab 一次：离线训练的、没用 SwanLab 的、从别的机器拷来的",
    )
    parser.add_argument("output_dir", type=Path, help="训练脚本的 --output_dir")
    parser.add_argument("--swanlab_mode", choices=MODES[:-1], default="auto", help="记到哪里（默认 %(default)s）")
    parser.add_argument("--swanlab_project", help=f"项目名（默认用环境变量 SWANLAB_PROJECT，没有就是 {PROJECT}）")
    parser.add_argument("--swanlab_experiment", help="实验名（默认用输出文件夹的名字）")
    parser.add_argument("--swanlab_logdir", type=Path, default=Path("swanlog"), help="在本机写到哪里（默认 swanlog）")
    return parse(parser, argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0 done, 1 SwanLab could not be used, 2 wrong usage or input."""
    arguments = parse_arguments(argv)
    log_to_stderr()
    with one_line_errors() as outcome:
        replay(
            arguments.output_dir,
            mode=arguments.swanlab_mode,
            project=arguments.swanlab_project,
            experiment=arguments.swanlab_experiment,
            log_dir=arguments.swanlab_logdir,
        )
    return outcome.code


def replay(output_dir: Path, *, mode: str, project: str | None, experiment: str | None, log_dir: Path) -> None:
    """Send every row of ``output_dir/metrics.jsonl`` as training did, each at its own step, as a new experiment.

    Raises:
        InputError: there are no rows.
        RunError: SwanLab did not take all of them.
    """
    path = output_dir / METRICS_FILE
    rows = read_metrics(path)
    if not rows:
        reason = "里面没有指标" if path.is_file() else "没有这个文件"
        raise InputError(f"{path}：{reason}；请给出训练脚本的 --output_dir")
    tracking = start_tracking(
        mode=mode,
        project=project,
        experiment=experiment,
        default_experiment=output_dir.resolve().name,
        log_dir=log_dir,
        config=settings_of(output_dir),
        metrics_path=path,
    )
    samples = output_dir / SAMPLES_FILE
    if samples.is_file():  # first, so that they are on top
        tracking.log_texts(SAMPLES, read_samples(samples), rows[-1]["step"], on_top=True)
    tracking.replay(rows)
    complete = tracking.is_logging
    tracking.finish()
    if not complete:
        raise RunError(f"{path}：没能记进 SwanLab，原因见上")
    logger.info("%s：%d 条指标；%s", path, len(rows), tracking.where)


def read_samples(path: Path) -> list[tuple[str, str]]:
    """The ``(caption, text)`` pairs of a run's sample predictions.

    Raises:
        InputError: they are something else.
    """
    samples = read_json(path)
    pairs = isinstance(samples, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in samples)
    if not pairs or not all(isinstance(part, str) for pair in samples for part in pair):
        raise InputError(f"{path}：应是 [[标题, 文字], …]；它损坏了，删去它就只记指标")
    return [(caption, text) for caption, text in samples]


def settings_of(output_dir: Path) -> dict:
    """The settings in a finished run's ``task.json``, and the output folder; only the latter if unfinished."""
    task_file = output_dir / TASK_FILE
    settings = read_json(task_file) if task_file.is_file() else {}
    if not isinstance(settings, dict):
        raise InputError(f"{task_file}：不是一个 JSON 对象；它损坏了，请恢复它")
    return {name: value for name, value in settings.items() if name != "system_prompt"} | {
        "output_dir": str(output_dir)
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
