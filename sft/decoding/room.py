"""How much of a pass fits into memory: everything, until memory runs out; from then on less."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache

from sft.errors import RunError, is_out_of_memory, memory_name

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Room:
    """What fits at once. It halves when memory runs out, and stays so as long as this object is used.

    Args:
        what: what is done in it, for messages.

    Attributes:
        divisor: what was asked for is divided by it.
    """

    def __init__(self, what: str = "预测") -> None:
        self.what, self.divisor = what, 1

    def of(self, most: int) -> int:
        """How many of ``most`` rows or tokens run at once; at least one."""
        return max(1, most // self.divisor)

    def tried(self, work: Callable[[], Result], *, divisible: bool) -> Result | None:
        """What ``work`` returns; None if memory ran out: then this room is half as large, and the work is due again.

        The first time is told in one line.

        Args:
            divisible: whether the work can be done in smaller parts.

        Raises:
            RunError: memory ran out, and the work cannot be divided.
        """
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            name = memory_name(error)
            if not divisible:
                raise RunError(
                    f"{name}不够，{self.what}时一条也放不下：请减小 --max_length，用 --quantization nf4，"
                    "或换小一些的模型；别的程序占着它，就先关掉"
                ) from error
        if self.divisor == 1:
            told = "%s不够：%s改为每次少算几条，还放不下就再减半；重算这一批，结果不变"
            logger.warning(told, name, self.what)
        self.divisor *= 2
        clear_device_cache(garbage_collection=True)  # after the error is gone, and with it the tensors it held
        return None
