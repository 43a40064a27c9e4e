"""How many passes an answer takes with drafts, if the model says exactly the gold answers: no model is needed.

    python -m benchmarks.draft_passes --tokenizer qwen/demo --records data/quickstart/test_ner.jsonl

``bold`` is how a GPU guesses. Answers run one after the other; in a batch, drafts learn a little later.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sft.data.records import read_task_records
from sft.decoding.automaton import Automaton, answer_format
from sft.decoding.constrained import Bounds, Row, draft_of
from sft.decoding.drafts import Drafter, sources_of
from sft.decoding.inline import InlineRules
from sft.decoding.inline_drafts import InlineDrafter
from sft.decoding.rules import Drafts, Rules
from sft.decoding.vocabulary import Vocabulary, vocabulary_of
from sft.errors import InputError
from sft.model.loading import load_tokenizer
from sft.tasks.settings import TaskSettings, settings_path

BOUNDS = Bounds(rows=1, answer_tokens=1 << 20)


class Work(NamedTuple):
    """What an answer took.

    Attributes:
        tokens: of the answer, with its end.
        passes: forward passes.
        fed: tokens in them, those of the prompt not counted.
    """

    tokens: int
    passes: int
    fed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of the means.

    Returns:
        0 done, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model's folder; its weights are not read")
    parser.add_argument("--records", type=Path, required=True, help="records of transfer_ner_data.py")
    parser.add_argument("--every", type=int, default=1, help="only every so manieth record")
    arguments = parser.parse_args(argv)
    try:
        task = TaskSettings.read(settings_path(arguments.records)).task
        if task.answers != "entities":
            raise InputError(f"{arguments.records}：这里数的是实体识别的答案")
        records = [record for _, record in read_task_records(arguments.records, task)][:: arguments.every]
        vocabulary = vocabulary_of(load_tokenizer(arguments.tokenizer))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    inline = task.answer_format == "inline"
    form = answer_format(tuple(task.labels))
    print("| answers | guesses | tokens of an answer | passes | tokens in passes |\n|---|---|---|---|---|")
    for bold in (False,) if inline else (False, True):
        drafts = InlineDrafter(vocabulary, task.labels) if inline else Drafter(vocabulary, task.labels, bold)
        works = []
        for record in records:
            text, answer = record["text"], task.answer(record)
            rules = InlineRules(text, task.labels, vocabulary) if inline else Automaton(text, form, vocabulary)
            works.append(work_of(answer, rules, drafts, vocabulary))
        means = " | ".join(f"{sum(counted) / len(works):.1f}" for counted in zip(*works, strict=True))
        print(f"| {task.answer_format}, {len(works)} rows | {'bold' if bold else 'plain'} | {means} |")
    return 0


def work_of(answer: str, rules: Rules, drafts: Drafts, vocabulary: Vocabulary) -> Work:
    """What an answer takes of which a model is sure; the drafts learn from it."""
    (source,) = sources_of([rules.source], vocabulary)
    row = Row(rules, source, [], rules.begin)
    wanted = [*vocabulary.encode([answer])[0], vocabulary.end]
    tokens, passes, fed = len(wanted), 0, 0
    while wanted:
        draft, decisions = draft_of(row, drafts, vocabulary, BOUNDS)
        passes += 1
        fed += bool(row.answer) + len(draft)
        for place, decision in enumerate(decisions):
            chosen = wanted.pop(0)
            drafts.learn(decision.state, chosen, source)
            spelt = vocabulary.spelling.get(chosen, b"")
            row.state = decision.allowed.get(chosen) or rules.after(decision.state, spelt)
            row.answer.append(chosen)
            if not wanted or place == len(draft) or draft[place] != chosen:
                break
    return Work(tokens, passes, fed)


if __name__ == "__main__":
    sys.exit(main())
