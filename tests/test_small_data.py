"""Little data: how much of it is held out, when a threshold is chosen, and when a run says that it is too short."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.tasks.classification import Classification
from sft.tasks.evaluation import LEAST_GOLD_ENTITIES, best_threshold
from sft.tasks.ner import Ner
from sft.training.choosing_rows import sample, warn_of_labels_without_rows
from sft.training.steps import FEW_STEPS, advice_on_few_steps, planned_steps
from sft.training.validation_size import FEWEST_ROWS, SIZE_FLAGS, WANTS_VALIDATION, standard_error, validation_texts
from tests.models import save_model, tiny_model
from tests.test_training import LABELS, articles, train, write_records

NER = Ner.with_labels(["人名"])


def arguments(ratio: float = 0.05, most: int = 200, given: frozenset[str] = frozenset()):
    data = SimpleNamespace(validation_ratio=ratio, max_validation_rows=most, validation_file=None)
    return SimpleNamespace(data=data, given=given)


# ---- the validation slice ----


@pytest.mark.parametrize(
    ("texts", "held"),
    [(12, 0), (60, 0), (99, 0), (100, 20), (200, 40), (480, 50), (1000, 50), (2000, 100), (4000, 200), (90_000, 200)],
)
def test_how_many_rows_are_held_out_where_nobody_says(texts, held):
    assert validation_texts(texts, arguments()) == held


@given(st.integers(0, 20_000))
def test_a_slice_is_never_too_small_to_tell_anything_nor_more_than_a_fifth(texts):
    held = validation_texts(texts, arguments())
    assert held == 0 or FEWEST_ROWS <= held <= texts / 5
    assert held >= min(200, int(0.05 * texts)) or texts < 100
    assert validation_texts(texts + 1, arguments()) >= held


@given(st.integers(0, 5000), st.floats(0, 0.99), st.integers(0, 300), st.sampled_from(sorted(SIZE_FLAGS)))
def test_a_flag_for_the_size_is_obeyed(texts, ratio, most, flag):
    asked = arguments(ratio, most, frozenset({flag}))
    assert validation_texts(texts, asked) == min(most, int(texts * ratio))


@pytest.mark.parametrize("flag", sorted(WANTS_VALIDATION))
def test_who_wants_a_validation_gets_one_however_small(flag):
    assert validation_texts(60, arguments(given=frozenset({flag}))) == 12


def test_the_error_it_names_is_that_of_an_accuracy():
    assert standard_error(50) == pytest.approx(math.sqrt(0.8 * 0.2 / 50))


# ---- thresholds ----


def spans(rows: int) -> tuple[list[dict], list[dict]]:
    """One gold entity a row, which is found, and another that is not one, with a lower score."""
    right = {"start": 0, "end": 2, "text": "张伟", "label": "人名", "score": 0.9}
    wrong = {"start": 4, "end": 6, "text": "上海", "label": "人名", "score": 0.2}
    gold = {key: right[key] for key in ("start", "end", "text", "label")}
    return [{"entities": [gold]}] * rows, [{"entities": [right, wrong]}] * rows


def test_a_threshold_is_chosen_by_enough_entities_only():
    assert best_threshold(NER, *spans(LEAST_GOLD_ENTITIES - 1)) is None
    threshold = best_threshold(NER, *spans(LEAST_GOLD_ENTITIES))
    assert 0.2 < threshold <= 0.9


# ---- a run that is too short ----


def training(rows_a_step: int, epochs: float, max_steps: int = -1):
    return SimpleNamespace(
        per_device_train_batch_size=rows_a_step,
        gradient_accumulation_steps=1,
        world_size=1,
        num_train_epochs=epochs,
        max_steps=max_steps,
        dataloader_drop_last=False,
    )


@given(st.integers(1, 3000), st.integers(1, 32), st.sampled_from([0.5, 1, 2, 3]))
def test_a_short_run_is_told_how_many_epochs_are_enough(rows, rows_a_step, epochs):
    asked = training(rows_a_step, epochs)
    steps = planned_steps(rows, asked)[0]
    advice = advice_on_few_steps(rows, asked)
    assert (advice is not None) == (steps < FEW_STEPS)
    if advice is not None:
        enough = int(advice.split("--num_train_epochs ")[1].split()[0])
        assert f"只有 {steps} 步" in advice
        assert planned_steps(rows, training(rows_a_step, enough))[0] >= FEW_STEPS
        assert planned_steps(rows, training(rows_a_step, enough - 1))[0] < FEW_STEPS
    assert advice_on_few_steps(rows, training(rows_a_step, epochs, max_steps=3)) is None


# ---- a whole run ----


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer) -> list[str]:
    """Flags for a run on twelve rows."""
    folder = tmp_path_factory.mktemp("small")
    write_records(folder / "train.jsonl", Classification(LABELS), articles(12, 0))
    base = save_model(tiny_model("qwen2"), tokenizer, folder / "base")
    return [
        *("--model_name_or_path", str(base), "--train_file", str(folder / "train.jsonl"), "--dtype", "float32"),
        *("--swanlab_mode", "disabled", "--disable_tqdm", "true", "--lora_r", "2"),
    ]


def test_twelve_rows_are_all_trained_on_and_the_run_says_what_it_lacks(small, tmp_path, capsys, caplog):
    for more in (["--dry_run"], []):
        caplog.clear()
        assert train([*small, "--output_dir", str(tmp_path / "run"), *more]) == 0
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len([text for text in warnings if "只有 2 步" in text and "--num_train_epochs 50" in text]) == 1
        assert len([text for text in warnings if "全部用来训练，不验证" in text]) == 1
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert not [name for name in results if name.startswith("eval_")]
    assert len((tmp_path / "run" / "check_rows.jsonl").read_text().splitlines()) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert (state["global_step"], state["best_global_step"]) == (2, None)


def test_a_sample_of_a_file_that_is_sorted_by_label_has_every_label(small, tmp_path):
    rows = [(line, {"text": f"文本{line}", "label": LABELS[line // 50]}) for line in range(100)]
    few, more = (sample(rows, most, seed=1) for most in (20, 40))
    assert len(few) == 20 and {record["label"] for _, record in few} == set(LABELS[:2])
    assert few == [row for row in more if row in few] and more == sorted(more) != sample(rows, 40, seed=2)
    assert sample(rows, None, seed=1) == sample(rows, 100, seed=1) == rows
    words = [*small, "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1"]
    assert train([*words, "--max_train_samples", "7", "--per_device_train_batch_size", "1"]) == 0
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["max_steps"] == 7


def test_labels_that_no_training_row_has_are_told(small, tmp_path, caplog):
    path = tmp_path / "sorted.jsonl"
    write_records(path, Classification(LABELS), [row for row in articles(12, 0) if row["label"] == LABELS[0]])
    assert train([*small, "--train_file", str(path), "--output_dir", str(tmp_path / "run"), "--dry_run"]) == 0
    assert f"这些标签一条也没有，学不到：{'、'.join(LABELS[1:])}" in caplog.text
    caplog.clear()
    records = [{"text": "张伟", "entities": [{"start": 0, "end": 2, "text": "张伟", "label": "人名"}]}, {"text": "无"}]
    warn_of_labels_without_rows(Ner.with_labels(["人名", "地名"]), list(enumerate(records)), path)
    assert "训练用的 2 条里，这些标签一个也没有，学不到：地名" in caplog.text


def test_flags_for_a_validation_that_does_not_take_place_are_told(small, tmp_path, caplog):
    beside = str(tmp_path / "train_cls.jsonl")
    words = [*small, "--output_dir", str(tmp_path / "run"), "--dry_run", "--eval_strategy", "no"]
    for more, told in (
        (["--validation_file", beside, "--max_validation_rows", "9"], ["--max_validation_rows、--validation_file"]),
        (["--validation_ratio", "0.5"], ["--validation_ratio"]),
        (["--validation_ratio", "0"], []),
        ([], []),
    ):
        caplog.clear()
        assert train([*words, *more]) == 0
        said = [line for line in caplog.messages if line.startswith("--eval_strategy no")]
        assert said == [f"--eval_strategy no：不验证，{flags} 没有用上；训练集全部用来训练" for flags in told]


def test_a_checkpoint_of_another_slice_is_refused(small, tmp_path, capsys, monkeypatch):
    """Such as one of an earlier version, which held out fewer rows: its rows to train on were others."""
    from sft.training import validation_size

    words = [*small, "--output_dir", str(tmp_path / "run"), "--eval_strategy", "epoch", "--num_train_epochs", "1"]
    with monkeypatch.context() as earlier:
        earlier.setattr(validation_size, "LARGEST_SHARE", 0.1)
        assert train(words) == 0
    capsys.readouterr()
    assert train([*words, "--resume_from_checkpoint", "true"]) == 2
    assert "validation_rows：1 → 2" in capsys.readouterr().err
    with monkeypatch.context() as earlier:
        earlier.setattr(validation_size, "LARGEST_SHARE", 0.1)
        assert train([*words, "--resume_from_checkpoint", "true"]) == 0


# ---- the closing lines ----


@pytest.mark.parametrize(
    ("before", "results", "told"),
    [
        ({"eval_accuracy": 0.25, "eval_macro_f1": 0.1}, {"eval_accuracy": 0.9, "eval_macro_f1": 0.8}, "0.250 → 0.900"),
        ({"eval_f1": 0.0104, "eval_recall": 0.5}, {"eval_f1": 0.8171, "eval_recall": 0.75}, "F1 0.010 → 0.817"),
        (None, {"eval_f1": 0.8171}, "F1 0.817"),
        ({"eval_f1": 0.25}, {"test_f1": 0.8171}, "F1 0.817"),
    ],
)
def test_the_closing_lines_compare_with_the_score_before_training(before, results, told, tmp_path):
    from sft.training.summary import after_training

    rows = [{"step": 0, "trial_loss": 1.0}]
    rows += [{"step": 0, "eval_loss": 3.0} | before] if before else []
    rows += [{"step": 9, "loss": 1.0}, {"step": 9, "eval_loss": 0.5, "eval_f1": 0.5, "eval_accuracy": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = SimpleNamespace(training=SimpleNamespace(output_dir=str(tmp_path)), data=SimpleNamespace(test_file="none"))
    run.data.train_file = str(tmp_path / "train.jsonl")
    run.training.load_best_model_at_end, run.training.metric_for_best_model = True, "eval_f1"
    figures = {"train_runtime": 9.0, "logical_tokens": 100} | results
    text = after_training(figures, run)
    assert told in text and text.count("→") == ("→" in told)
    for best, kept in ((3, "权重　 采用第 3 步的（共 9 步）：验证成绩最好（F1）"), (9, None), (None, None)):
        (tmp_path / "trainer_state.json").write_text(json.dumps({"best_global_step": best, "global_step": 9}))
        assert [line for line in after_training(figures, run).split("\n") if "权重" in line] == (
            [kept] if kept else []
        )
    run.training.load_best_model_at_end = False
    (tmp_path / "trainer_state.json").write_text('{"best_global_step": 3, "global_step": 9}')
    assert "权重" not in after_training(figures, run)
