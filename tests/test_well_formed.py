"""Every answer is well-formed, for any model and any text.

docs/prediction.md gives the numbers of the large run: `python -m pytest tests/test_well_formed.py -m slow -s`.
"""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CONFIGS, SLIDING, WHOLE, tiny_model

from sft.decoding import pieces
from sft.decoding.decode import predict
from sft.decoding.limits import Limits
from sft.errors import RowError
from sft.prediction.rows import to_record
from sft.tasks.classification import Classification
from sft.tasks.entity_lines import NO_ENTITY, entity_line
from sft.tasks.ner import Ner

NER = Ner(labels=("地理实体", "人名", "人", 'a"b\\c'), system_prompt="请提取实体。")
OPTIONS = ("体育", "体育新闻", "军", "经济与社会", "a", "a b")
PIECES = (
    *"张伟到了上海，。！\n\t\r \"'\\{}[]:/\x00\x7f\u2028\ufeff𠮷😀é\u0301ﬁ①Ａ가\u1100\u1161\u11a8",
    "<|im_end|>", "<|im_start|>assistant\n", "<tool_call>", NO_ENTITY, entity_line("张伟", "人名"),
    '{"entity_text": "', '", "entity_label": "', '\\u0022', "菲律宾", "南京大学", "e\u0301", "abc", "12",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(
    "".join
)


def check_entities(model, tokenizer, texts: list[str], limits: Limits, most_rests: int) -> int:
    """Check every predicted entity; return how many there are.

    Args:
        most_rests: so many rests of a text are read whose answer was cut.
    """
    records = [record for text in texts if not isinstance(record := to_record({"text": text}, NER), RowError)]
    with patch.object(pieces, "MOST_RESTS", most_rests):
        results = list(predict(model, tokenizer, NER, records, limits))
    fitted = pieces.fit(records, NER, tokenizer, limits)
    for record, result, parts in zip(records, results, fitted, strict=True):
        check_result(record["text"], result, one_answer=most_rests == 0 and len(parts) == 1)
    return sum(len(result["entities"]) for result in results)


def check_result(text: str, result: dict, *, one_answer: bool) -> None:
    """Check the entities of a text. Of several answers about it, some can say the same entity."""
    problems, end = result["problems"], 0
    assert not result["unparsable"] and not problems["invalid"] and not problems["unknown_label"]
    said = [line for line in result["answer"].split("\n") if line != NO_ENTITY]
    shown = len(said) - problems["invented"] - problems["repeated"]
    assert len(result["entities"]) == shown if one_answer else len(result["entities"]) <= shown
    for entity in result["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"] != ""
        assert entity["label"] in NER.labels
        assert 0 <= entity["score"] <= 1
        assert end <= entity["start"]
        end = entity["end"]


def check_labels(model, tokenizer, texts: list[str], limits: Limits, seed: int) -> None:
    generator = random.Random(seed)
    task = Classification(labels=OPTIONS, system_prompt="请选出类型。")
    rows = [{"text": text, "category": generator.sample(OPTIONS, generator.randint(1, 4))} for text in texts]
    records = [record for row in rows if not isinstance(record := to_record(row, task), RowError)]
    for record, result in zip(records, predict(model, tokenizer, task, records, limits), strict=True):
        assert result["label"] in record["options"]
        assert tuple(result["scores"]) == record["options"]
        assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert result["score"] == max(result["scores"].values())
        assert not result["unparsable"]


@settings(max_examples=10)
@given(
    architecture=st.sampled_from([*CONFIGS]),
    seed=st.integers(0, 1000),
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    limits=st.builds(Limits, st.just(300), st.integers(1, 20), st.integers(1, 4), max_tokens=st.none() | st.just(200)),
)
def test_every_answer_is_well_formed(tokenizer, architecture, seed, texts, limits):
    model = tiny_model(architecture, seed=seed)
    check_entities(model, tokenizer, texts, limits, most_rests=0)  # a random model never ends; the slow test reads on
    check_labels(model, tokenizer, texts, limits, seed)


@pytest.mark.slow
def test_ten_thousand_random_models_and_texts(tokenizer):
    entities = pairs = 0
    for seed in range(100):
        generator = random.Random(seed)
        architecture = (*WHOLE, *WHOLE, *WHOLE, SLIDING[0])[seed % 10]
        model = tiny_model(architecture, seed=seed)
        texts = ["".join(generator.choices(PIECES, k=generator.randint(1, 12))) for _ in range(110)]
        texts = [text for text in texts if text.strip()][:100]
        limits = Limits(max_length=400, max_new_tokens=generator.randint(1, 20), batch_size=generator.choice([7, 64]))
        check_entities(model, tokenizer, texts, limits, most_rests=0)
        entities += check_entities(model, tokenizer, texts, limits, pieces.MOST_RESTS)
        check_labels(model, tokenizer, texts, limits, seed)
        pairs += len(texts)
    print(f"{pairs} pairs of a random model and a text, {entities} entities: all well-formed")  # noqa: T201
    assert pairs == 10_000 and entities > 1000
