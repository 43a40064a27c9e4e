"""Texts that two of the three splits share: the scores on them are better than those on new texts. They are told."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

NAMES = {"train": "训练集", "validation": "验证集", "test": "测试集"}
PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))  # what is scored, and what has seen it


def warn_of_shared_texts(**splits: Sequence[dict]) -> None:
    """Tell how many records have a text that another split has, too, as with one file for two flags.

    Args:
        splits: the records of ``train``, ``validation`` and ``test``.
    """
    texts = {name: {record["text"] for record in records} for name, records in splits.items()}
    for scored, seen in PAIRS:
        shared = sum(record["text"] in texts[seen] for record in splits[scored])
        if shared:
            logger.warning(
                "%s的 %d 条里，有 %d 条的文本%s里也有：%s的成绩会偏高，请换一份没有重复的",
                *(NAMES[scored], len(splits[scored]), shared, NAMES[seen], NAMES[scored]),
            )
