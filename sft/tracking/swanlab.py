"""SwanLab as a guest of the run: which mode, the start, the end. A fault of the tracker's never stops training.

SwanLab's own Trainer callback is used; the one in transformers fails with the SwanLab of today. Nothing here listens
on a port, asks for a login, or writes to stdout.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import InputError, one_line
from sft.network import reachable
from sft.processes import is_first_process

if TYPE_CHECKING:
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

PROJECT = "chinese-llm-sft"  # the default project name
MODES = ("auto", "cloud", "local", "offline", "disabled")
# What to try when a mode does not start.
FALLBACKS = {"cloud": ("cloud", "local", "offline"), "local": ("local", "offline"), "offline": ("offline",)}
SAMPLES = "预测样例"  # what sample predictions are called
PROJECT_NAME = re.compile(r"[0-9A-Za-z_\-+.]{1,100}")
PROBE_SECONDS = 5
START_SECONDS = 40
FINISH_SECONDS = 60


class StillRunning(Exception):
    """A call of SwanLab's that did not return in time; it goes on in its thread."""


class Tracking:
    """One tracked run. Every method is safe to call at any time, whatever SwanLab does; off, they do nothing.

    Attributes:
        mode: ``cloud``, ``local``, ``offline`` or ``disabled``: where the run is really recorded.
        where: the same for a person, with what to type to see it.
        callback: for ``trainer.add_callback``.
        is_logging: whether SwanLab still takes what it is given.
    """

    def __init__(self, mode: str, log_dir: Path, callback: TrainerCallback | None = None) -> None:
        self.mode = mode
        self.where = {
            "cloud": "SwanLab 云端",
            "local": f"SwanLab 记录在本机，用 swanlab watch {log_dir} 查看",
            "offline": f"SwanLab 存盘在 {log_dir}，以后用 swanlab sync 上传",
            "disabled": "只记 metrics.jsonl",
        }[mode]
        self.callback = callback
        self.is_logging = mode != "disabled"
        self._finished = mode == "disabled"

    def log_texts(self, name: str, texts: Sequence[tuple[str, str]], step: int) -> None:
        """Log ``(caption, text)`` pairs, such as sample predictions, under one name."""
        self.attempt(_log_texts, name, texts, step)

    def replay(self, rows: Sequence[dict]) -> None:
        """Log rows of a ``metrics.jsonl`` again, each at its own step."""
        self.attempt(_replay, rows)

    def attempt(self, action: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call a function of SwanLab's; what it raises is reported once and switches the tracker off."""
        if not self.is_logging:
            return
        try:
            action(*args, **kwargs)
        except Exception as error:  # whatever it is, hours of training are worth more than their curve
            self.is_logging = False
            logger.warning("SwanLab 出错，此后不再记录（训练继续，指标照常写入 metrics.jsonl）：%s", _with_type(error))

    def finish(self, state: str = "success") -> None:
        """Close the run as ``success``, ``crashed`` or ``aborted``; later calls do nothing.

        Not for use inside a signal handler: raise there, and call this where the exception is handled.
        """
        self.is_logging = False
        if self._finished:
            return
        self._finished = True
        reason = None if state == "success" else state  # without a reason the local dashboard shows success
        try:
            _call(_finish, FINISH_SECONDS, state, reason)
        except StillRunning:
            logger.warning("SwanLab %d 秒内没有收尾，不再等它", FINISH_SECONDS)
        except Exception as error:  # as in attempt
            logger.warning("SwanLab 没能正常收尾：%s", _with_type(error))


def start_tracking(
    *, mode: str, project: str, experiment: str | None, log_dir: Path, config: dict, metrics_path: Path
) -> Tracking:
    """Start a SwanLab run as ``--swanlab_mode`` asks, or the nearest that works, and say on the log why it is another.

    Args:
        mode: one of ``MODES``.
        project, experiment: the names SwanLab shows; without an experiment name SwanLab makes one up.
        log_dir: where runs are kept, ``swanlog`` by default of SwanLab's.
        config: the run's settings, shown beside its curves; those that are None are left out.
        metrics_path: the run's ``metrics.jsonl``; a resumed run shows its rows again.

    Raises:
        InputError: no such mode, or a project name SwanLab does not take.
    """
    if mode not in MODES:
        raise InputError(f"--swanlab_mode {mode}：应是 {'、'.join(MODES)} 之一")
    if PROJECT_NAME.fullmatch(project) is None:
        raise InputError(
            f"--swanlab_project {project}：SwanLab 的项目名只能有英文字母、数字和 _ - + .，最长 100 个字符"
        )
    if mode == "disabled" or not is_first_process():
        return _untracked(log_dir)
    try:
        resolved, reason = resolve_mode(mode)
    except Exception as error:  # as in Tracking.attempt: SwanLab is missing, or its settings are broken
        logger.warning("SwanLab 用不了，本次只记 metrics.jsonl：%s", _with_type(error))
        return _untracked(log_dir)
    if reason:
        logger.warning("SwanLab：%s，改为 %s", reason, resolved)
    for candidate in FALLBACKS.get(resolved, ()):
        try:
            return _start(candidate, project, experiment, log_dir, config, metrics_path)
        except StillRunning:
            logger.warning("SwanLab %d 秒内没有启动（%s）", START_SECONDS, candidate)
            break  # it holds SwanLab's lock; another attempt would wait for it
        except Exception as error:  # as in Tracking.attempt
            logger.warning("SwanLab 启动失败（%s）：%s", candidate, _with_type(error))
    if resolved != "disabled":
        logger.warning("SwanLab 用不了，本次只记 metrics.jsonl")
    return _untracked(log_dir)


def resolve_mode(requested: str) -> tuple[str, str]:
    """The mode to use for ``requested``, and why it is another one than was wanted (empty when it is not).

    ``auto`` is what SwanLab was configured to (``SWANLAB_MODE``, ``swanlab local`` …), else cloud when logged in, else
    local. Cloud needs a login and an answer from the server within five seconds, local needs swanboard; otherwise the
    next one takes its place.
    """
    import swanlab

    _quiet_stdout(swanlab)
    settings = swanlab.Settings()
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
    """The mode the user gave to SwanLab itself, None when it is only SwanLab's default."""
    if "mode" not in settings.model_fields_set:
        return None
    return "cloud" if settings.mode == "online" else settings.mode


def _dashboard_installed() -> bool:
    """Whether swanboard is there in the version that SwanLab insists on; in local mode it says so only by failing."""
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
    from swanlab.integration.transformers import SwanLabCallback

    from sft.tracking.callbacks import TrackingCallback

    _call(_init, START_SECONDS, mode, project, experiment, log_dir, config)
    swanlab.get_run()  # raises when init did not leave a run behind
    tracking = Tracking(mode, log_dir)
    # The settings shown are `config`: all of transformers', two hundred, would bury them.
    tracking.callback = TrackingCallback(SwanLabCallback(log_config=False), tracking.attempt, metrics_path)
    return tracking


def _init(mode: str, project: str, experiment: str | None, log_dir: Path, config: dict) -> None:
    import swanlab

    settings = swanlab.Settings(
        interactive=False,
        terminal={"proxy_type": "stderr"},  # logs are on stderr; stdout belongs to results
        probe={"git": False},  # the address of a git remote can hold a password
    )
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

    swanlab.finish(state=state, error=reason)


def _log_texts(name: str, texts: Sequence[tuple[str, str]], step: int) -> None:
    import swanlab

    # Texts without captions break the local dashboard's page: it shows none of them.
    swanlab.log({name: [swanlab.Text(text, caption=caption) for caption, text in texts]}, step=step)


def _replay(rows: Sequence[dict]) -> None:
    from swanlab.integration.transformers import SwanLabCallback

    from sft.tracking.callbacks import replay_rows

    replay_rows(SwanLabCallback(log_config=False), rows)


def _quiet_stdout(swanlab) -> None:
    """Send SwanLab's own messages to stderr for as long as the process lives."""
    swanlab.pkg.console.c.stderr = True


def _call(action: Callable[..., object], seconds: float, *args: Any) -> None:
    """Call ``action`` in a thread for at most ``seconds``.

    A thread also keeps SwanLab's hands off the signal handlers, which it replaces when started in the main one.

    Raises:
        StillRunning: it has not returned in time.
    """
    outcome: futures.Future = futures.Future()

    def work() -> None:
        try:
            outcome.set_result(action(*args))
        except BaseException as error:  # handed to the caller, who decides
            outcome.set_exception(error)

    with redirect_stdout(sys.stderr):
        threading.Thread(target=work, name="swanlab", daemon=True).start()
        futures.wait([outcome], timeout=seconds)
    if not outcome.done():
        raise StillRunning
    outcome.result()


def _with_type(error: BaseException) -> str:
    message = one_line(error)
    return f"{type(error).__name__}：{message}" if message else type(error).__name__
