"""What a GGUF file answers, through llama-cpp-python: its own chat template, tokenizer and end of answer."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

from sft.errors import RunError
from sft.export.merged import scores_leg
from sft.export.proof import Leg, compare
from sft.export.reference import Reference, text_of
from sft.export.source import Source

logger = logging.getLogger(__name__)

LEAST = {"f32": 0.99, "f16": 0.99, "bf16": 0.98, "q8_0": 0.9}  # share of equal answers
MOST_SCORE = {"f32": 0.02, "f16": 0.02, "bf16": 0.1, "q8_0": 0.1}  # see `sft.export.merged.MOST_SCORE`
SCORED = 50  # rows whose answers' log-probabilities are compared: each needs the logits of the whole row
PROGRAM = Path(__file__).with_name("llama_process.py")


def answers_legs(
    path: Path, source: Source, reference: Reference, number_type: str, least: float | None
) -> tuple[list[Leg], list[str]]:
    """The comparisons of prompts, answers and scores, and the answers as texts.

    Raises:
        RunError: llama.cpp cannot use the file.
    """
    logger.info("GGUF 在 llama.cpp 里答 %d 条", len(reference.prompts))
    scored = list(zip(reference.prompts, reference.answers, strict=True))[:SCORED]
    request = {
        "path": str(path),
        "chats": reference.messages,
        "most": source.max_new_tokens,
        "scored": scored,
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], input=json.dumps(request), capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        raise RunError(
            f"{path.name}：llama.cpp 用不了这个文件（退出码 {done.returncode}：{last}）；请把这一行报给本项目"
        )
    answered = json.loads(done.stdout)
    texts = [text_of(ids, source) for ids in answered["answers"]]
    scores = [math.nan if score is None else score for score in answered["scores"]]
    least, as_text = LEAST[number_type] if least is None else least, source.tokenizer.decode
    legs = [
        compare("prompts", reference.prompts, answered["prompts"], as_text),
        compare("answers", reference.answers, answered["answers"], as_text, least),
        scores_leg(reference.scores[:SCORED], scores, MOST_SCORE[number_type]),
    ]
    return legs, texts
