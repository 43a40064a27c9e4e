"""The ``SWANLAB_*`` variables of the environment: each is obeyed, or said to be ignored.

SwanLab reads them with pydantic, which splits a name at its second ``_``: ``SWANLAB_PROJECT_NAME`` is the name of the
project, and ``SWANLAB_PROJECT`` must be a JSON object. One value that it cannot read, and SwanLab does not start.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

logger = logging.getLogger(__name__)

PREFIX = "SWANLAB_"
# The names that people set, and the ones that SwanLab reads.
READ_AS = {
    "SWANLAB_PROJECT": "SWANLAB_PROJECT_NAME",
    "SWANLAB_EXPERIMENT": "SWANLAB_EXPERIMENT_NAME",
}
# Variables that a flag of this project decides, and that flag.
DECIDED_BY = {
    "mode": ("--swanlab_mode", ("SWANLAB_MODE",)),
    "project": ("--swanlab_project", ("SWANLAB_PROJECT", "SWANLAB_PROJECT_NAME", "SWANLAB_PROJ_NAME")),
    "experiment": ("--swanlab_experiment", ("SWANLAB_EXPERIMENT", "SWANLAB_EXPERIMENT_NAME", "SWANLAB_EXP_NAME")),
    "log_dir": ("--swanlab_logdir", ("SWANLAB_LOG_DIR", "SWANLAB_LOGDIR")),
}


def readable_settings() -> Any:
    """SwanLab's settings, ``swanlab.Settings``. What it cannot read is taken out of this process's environment.

    Raises:
        Exception: SwanLab's settings are broken elsewhere, such as in its ``config.yaml``.
    """
    import swanlab

    for name, known in READ_AS.items():
        if not os.environ.get(name, "{").lstrip().startswith("{"):
            os.environ.setdefault(known, os.environ[name])
            del os.environ[name]
    try:
        return swanlab.Settings()
    except ValueError:  # pydantic's errors are ValueErrors
        _drop_unreadable(swanlab.Settings)
        return swanlab.Settings()


def _drop_unreadable(settings_type: Any) -> None:
    """Take each variable out that SwanLab cannot read when it is the only one, and the ``.env`` file likewise."""
    variables = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    env_file = settings_type.model_config.get("env_file")
    for name in variables:
        del os.environ[name]
    settings_type.model_config["env_file"] = None
    readable = {}
    for name, value in variables.items():
        os.environ[name] = value
        try:
            settings_type()
        except ValueError:
            logger.warning("SwanLab：环境变量 %s 的值 %r 读不懂，不用它", name, value[:60])
        else:
            readable[name] = value
        del os.environ[name]
    settings_type.model_config["env_file"] = env_file
    try:
        settings_type()
    except ValueError as error:
        logger.warning("SwanLab：%s 文件读不懂，不用它（%s）", env_file, str(error).splitlines()[0])
        settings_type.model_config["env_file"] = None
    os.environ.update(readable)


def say_overridden(decided: set[str]) -> None:
    """Log the variables that have no effect because a flag decides.

    Args:
        decided: keys of ``DECIDED_BY``.
    """
    for what in sorted(decided):
        flag, names = DECIDED_BY[what]
        if found := next((name for name in names if os.environ.get(name)), None):
            logger.warning("SwanLab：不用环境变量 %s，以 %s 为准", found, flag)


def usable_project(name: str | None, pattern: re.Pattern) -> str | None:
    """A project's name from the environment; None, with a warning, if SwanLab would not accept it."""
    if name is None or pattern.fullmatch(name):
        return name
    logger.warning("SwanLab：环境变量里的项目名 %r 不合规定，不用它", name[:60])
    return None
