"""Tracking a run with SwanLab: choose a mode, start, log, finish. An error in SwanLab never stops training.

SwanLab's own Trainer callback makes a chart of everything, epoch and step included, so `sft.tracking.charts` chooses.
Nothing here listens on a port, asks for a login, or writes to stdout.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import InputError, one_line
from sft.network import reachable
from sft.processes import is_first_process
from sft.tracking.charts import Charts
from sft.tracking.environment import readable_settings, say_overridden, usable_project

if TYPE_CHECKING:
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

PROJECT = "chinese-llm-sft"  # the default project name
MODES = ("auto", "cloud", "local", "offline", "disabled")
# Modes to try in turn if the first does not start.
FALLBACKS = {"cloud": ("cloud", "local", "offline"), "local": ("local", "offline"), "offline": ("offline",)}
SAMPLES = "预测样例"  # the name of the sample predictions
PROJECT_NAME = re.compile(r"[0-9A-Za-z_\-+.]{1,100}")
PROBE_SECONDS = 5
START_SECONDS = 40
LOG_SECONDS = 30
FINISH_SECONDS = 60
FLUSH_SECONDS = 1  # SwanLab writes after half a second without news; of one batch it writes the texts last


class StillRunning(Exception):
    """A call of SwanLab did not return in time; it still runs in its thread."""


class Tracking:
    """One tracked run. Every method is safe to call at any time and never raises; when disabled, it does nothing.

    Attributes:
        mode: ``cloud``, ``local``, ``offline`` or ``disabled``: where the run is actually recorded.
        where: the same in words, with the command that shows it.
        callback: for ``trainer.add_callback``.
        is_logging: False when disabled, finished, or after an error in SwanLab.
    """

    def __init__(self, mode: str, log_dir: Path, callback: TrainerCallback | None = None) -> None:
        self.mode = mode
        self.where = {
            "cloud": "SwanLab 云端",
            "local": f"SwanLab 记录在本机，用 swanlab watch {shlex.quote(str(log_dir))} 查看",
            "offline": f"SwanLab 存盘在 {log_dir}，以后用 swanlab sync 上传",
            "disabled": "只记 metrics.jsonl",
        }[mode]
        self.callback = callback
        self.is_logging = mode != "disabled"
        self._finished = mode == "disabled"

    def log_texts(self, name: str, texts: Sequence[tuple[str, str]], step: int, *, on_top: bool = False) -> None:
        """Log ``(caption, text)`` pairs, for example sample predictions, under one name.

        Args:
            on_top: they come before any figure and stay above all charts. This takes a second.
        """
        self.attempt(_log_texts, name, texts, step)
        if on_top and self.is_logging:
            time.sleep(FLUSH_SECONDS)

    def replay(self, rows: Sequence[dict]) -> None:
        """Log rows of ``metrics.jsonl``, each at its own step."""
        self.attempt(_replay, rows)

    def attempt(self, action: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call a function of SwanLab; an exception is logged once and switches tracking off, and so is a long wait."""
        if not self.is_logging:
            return
        try:
            _call_in_thread(partial(action, *args, **kwargs), LOG_SECONDS)
        except StillRunning:
            self.is_logging, self._finished = False, True  # to finish would wait for the same thread
            logger.warning("SwanLab %d 秒没有反应，此后不再记录（训练继续，指标照常写入 metrics.jsonl）", LOG_SECONDS)
        except Exception as error:  # any error: hours of training are worth more than their curve
            self.is_logging = False
            logger.warning("SwanLab 出错，此后不再记录（训练继续，指标照常写入 metrics.jsonl）：%s", _with_type(error))

    def finish(self, state: str = "success") -> None:
        """End the run as ``success``, ``crashed`` or ``aborted``; later calls do nothing.

        Do not call this in a signal handler: raise there, and call this where the exception is handled.
        """
        self.is_logging = False
        if self._finished:
            return
        self._finished = True
        reason = None if state == "success" else state  # without a reason the local dashboard shows success
        try:
            _call_in_thread(_finish, FINISH_SECONDS, state, reason)
        except StillRunning:
            logger.warning("SwanLab %d 秒内没有收尾，不再等它", FINISH_SECONDS)
        except Exception as error:  # any error, as in attempt
            logger.warning("SwanLab 没能正常收尾：%s", _with_type(error))


def start_tracking(
    *,
    mode: str,
    project: str | None,
    experiment: str | None,
    default_experiment: str | None = None,
    log_dir: Path,
    config: dict,
    metrics_path: Path,
) -> Tracking:
    """Start a SwanLab run in the mode that was asked for, or the nearest one that works; the log says why.

    Args:
        mode: one of ``MODES``.
        project, experiment: the names that SwanLab shows; None takes those of the environment (``SWANLAB_PROJECT``,
            ``SWANLAB_EXPERIMENT``), else ``PROJECT`` and ``default_experiment``.
        default_experiment: None lets SwanLab choose a name.
        log_dir: where SwanLab keeps runs on this machine.
        config: the run's settings, shown beside its curves; values of None are left out.
        metrics_path: the run's ``metrics.jsonl``; a resumed run sends its rows again.

    Raises:
        InputError: no such mode, or a project name that SwanLab does not accept.
    """
    if mode not in MODES:
        raise InputError(f"--swanlab_mode {mode}：应是 {'、'.join(MODES)} 之一")
    require_project_name(project)
    if mode == "disabled" or not is_first_process():
        return _untracked(log_dir)
    try:
        resolved, reason = resolve_mode(mode)
        settings = readable_settings()
    except Exception as error:  # any error: SwanLab is missing, or its settings are broken
        logger.warning("SwanLab 用不了，本次只记 metrics.jsonl：%s", _with_type(error))
        return _untracked(log_dir)
    if reason:
        logger.warning("SwanLab：%s，改为 %s", reason, resolved)
    decided = {"mode": mode != "auto", "project": project, "experiment": experiment, "log_dir": True}
    say_overridden({what for what, flag in decided.items() if flag})
    project = project or usable_project(settings.project.name, PROJECT_NAME) or PROJECT
    experiment = experiment or settings.experiment.name or default_experiment
    for candidate in FALLBACKS.get(resolved, ()):
        try:
            return _start(candidate, project, experiment, log_dir, config, metrics_path)
        except StillRunning:
            logger.warning("SwanLab %d 秒内没有启动（%s）", START_SECONDS, candidate)
            break  # the call still holds SwanLab's lock; another one would wait for it
        except Exception as error:  # any error, as in Tracking.attempt
            logger.warning("SwanLab 启动失败（%s）：%s", candidate, _with_type(error))
    if resolved != "disabled":
        logger.warning("SwanLab 用不了，本次只记 metrics.jsonl")
    return _untracked(log_dir)


def require_project_name(project: str | None) -> None:
    """Refuse a name for a project that SwanLab does not accept.

    Raises:
        InputError: it is one.
    """
    if project is not None and PROJECT_NAME.fullmatch(project) is None:
        raise InputError(
            f"--swanlab_project {project}：SwanLab 的项目名只能有英文字母、数字和 _ - + .，最长 100 个字符"
        )


def resolve_mode(requested: str) -> tuple[str, str]:
    """The mode to use for ``requested``, and the reason if it is a different one (otherwise empty).

    ``auto`` is the mode that SwanLab is configured to use (``SWANLAB_MODE``, ``swanlab local`` …); otherwise cloud if
    logged in, otherwise local. Cloud needs a login and an answer from the server within five seconds, otherwise it
    becomes local. Local needs swanboard, otherwise it becomes offline.
    """
    import swanlab

    _quiet_stdout(swanlab)
    settings = readable_settings()
    if requested == "auto":
        requested = _configured_mode(settings) or ("cloud" if settings.api_key else "local")
    reason = ""
    if requested == "cloud":
        if settings.api_key is None:
            requested, reason = "local", "没有登录（要上云请先运行 swanlab login）"
        elif not reachable(settings.api_host, PROBE_SECONDS):
            requested, reason = "local", f"{PROBE_SECONDS} 秒内连不上 {settings.api_host}"
    if requested == "local" and not _dashboard_installed():
        requested = "offline"
        reason += "；" * bool(reason) + '没有装好本地看板（pip install "swanlab[dashboard]"）'
    return requested, reason


def _configured_mode(settings) -> str | None:
    """The mode that the user set in SwanLab itself; None if it is SwanLab's default."""
    if "mode" not in settings.model_fields_set:
        return None
    return "cloud" if settings.mode == "online" else settings.mode


def _dashboard_installed() -> bool:
    """Whether swanboard is installed in the version that SwanLab requires. SwanLab itself only fails without it."""
    from importlib import metadata  # slow to import; the flags of training need only the names above

    try:
        pinned = f"swanboard=={metadata.version('swanboard')}"
    except metadata.PackageNotFoundError:
        return False
    return any(line.replace(" ", "").startswith(pinned) for line in metadata.requires("swanlab") or ())


def _untracked(log_dir: Path) -> Tracking:
    from transformers import TrainerCallback

    return Tracking("disabled", log_dir, TrainerCallback())


def _start(mode: str, project: str, experiment: str | None, log_dir: Path, config: dict, metrics_path: Path):
    import swanlab

    from sft.tracking.callbacks import TrackingCallback

    _call_in_thread(_init, START_SECONDS, mode, project, experiment, log_dir, config)
    swanlab.get_run()  # raises if init did not start a run
    tracking = Tracking(mode, log_dir)
    if mode == "cloud":
        tracking.where = f"SwanLab 云端 {swanlab.get_run().url or ''}".rstrip()
    tracking.callback = TrackingCallback(_charts(), tracking.attempt, metrics_path)
    return tracking


def _init(mode: str, project: str, experiment: str | None, log_dir: Path, config: dict) -> None:
    import swanlab

    settings = swanlab.Settings(
        interactive=False,
        terminal={"proxy_type": "stderr"},  # logs go to stderr; stdout is for results
        probe={"git": False},  # a git remote's URL can contain a password
    )
    with _without_greeting(swanlab):
        swanlab.init(
            mode=mode,
            project=project,
            experiment_name=experiment,
            log_dir=str(log_dir),
            config={name: value for name, value in config.items() if value is not None},  # else "[object Object]"
            settings=settings,
            reinit=True,
        )


def _finish(state: str, reason: str | None) -> None:
    import swanlab

    with _without_greeting(swanlab):
        swanlab.finish(state=state, error=reason)


@contextmanager
def _without_greeting(swanlab) -> Iterator[None]:
    """Keep SwanLab from printing where the run is: `Tracking.where` says it. Errors are raised all the same."""
    console = swanlab.pkg.console.c
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False


def _log_texts(name: str, texts: Sequence[tuple[str, str]], step: int) -> None:
    import swanlab

    # Without captions the local dashboard shows none of the texts.
    swanlab.log({name: [swanlab.Text(text, caption=caption) for caption, text in texts]}, step=step)


def _replay(rows: Sequence[dict]) -> None:
    from sft.tracking.callbacks import add_rows

    charts = _charts()
    add_rows(charts, rows)
    charts.end()


def _charts() -> Charts:
    import swanlab

    return Charts(
        lambda figures, step: swanlab.log(figures, step=step), lambda figures: swanlab.config.update(figures)
    )


def _quiet_stdout(swanlab) -> None:
    """Send SwanLab's own messages to stderr, until the process ends."""
    swanlab.pkg.console.c.stderr = True


def _call_in_thread(action: Callable[..., object], seconds: float, *args: Any) -> None:
    """Call ``action`` in a thread and wait for at most ``seconds``.

    SwanLab replaces signal handlers only when it is started in the main thread, so it is started in another.

    Raises:
        StillRunning: it did not return in time.
    """
    outcome: futures.Future = futures.Future()

    def work() -> None:
        try:
            outcome.set_result(action(*args))
        except Exception as error:  # raised again in the caller's thread
            outcome.set_exception(error)
        except BaseException as error:  # SystemExit, which would end the training
            outcome.set_exception(RuntimeError(_with_type(error)))

    with redirect_stdout(sys.stderr):
        threading.Thread(target=work, name="swanlab", daemon=True).start()
        futures.wait([outcome], timeout=seconds)
    if not outcome.done():
        raise StillRunning
    outcome.result()


def _with_type(error: BaseException) -> str:
    message = one_line(error)
    return f"{type(error).__name__}：{message}" if message else type(error).__name__
