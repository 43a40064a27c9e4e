"""Scores keep what they promise: the calibration error, what makes it smaller, and where that is kept."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import predict
import train_qwen2_classification
from benchmarks import calibration as calibration_benchmark
from sft.errors import InputError
from sft.prediction.choices import AS_TRAINED, LimitChoice, ModelChoice
from sft.prediction.output import GrowingFile, progress_path
from sft.prediction.predictor import Predictor, predict_window
from sft.prediction.rows import RowSettings
from sft.tasks.calibration import BINS, LEAST_OF_EACH, LEAST_SCORED, Calibration, Reliability, rescaled
from sft.tasks.calibration import calibrated as calibrated_result
from sft.tasks.classification import Classification
from sft.tasks.evaluation import Tally, best_calibration, calibrated, metrics_of_predictions
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings, settings_path
from sft.training.trainer_arguments import SftTrainingArguments
from tests.models import save_adapter, save_model, tiny_model

LABELS = ("体育", "军事", "经济")
CLS, NER = Classification(LABELS), Ner.with_labels(["人名", "地点"])
CHANCES = (
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(sum).map(lambda parts: [p / sum(parts) for p in parts])
)


def entity(start: int, score: float | None = None) -> dict:
    return {"start": start, "end": start + 1, "label": "人名"} | ({} if score is None else {"score": score})


def of_labels(chances: list[list[float]], truths: list[int]) -> tuple[list[dict], list[dict]]:
    """Gold and predictions from the probabilities of all labels and the right one of each row."""
    results = []
    for row in chances:
        scores = dict(zip(LABELS, row, strict=True))
        best = max(scores, key=scores.get)
        results.append({"label": best, "score": scores[best], "scores": scores, "unparsable": False})
    return [{"label": LABELS[truth]} for truth in truths], results


def of_entities(scores: list[float], rights: list[bool]) -> tuple[list[dict], list[dict]]:
    """Gold and predictions of rows with one predicted entity each, and an entity that was missed."""
    golds = [{"entities": [entity(5), *([entity(0)] if right else [])]} for right in rights]
    return golds, [{"entities": [entity(0, score)], "unparsable": False, "problems": {}} for score in scores]


def drawn(kind: str, rows: int, needed: Calibration, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Rows whose right answer is drawn with known probabilities; the model claims what needs this calibration."""
    draw = np.random.default_rng(seed)
    if kind == "labels":
        true = np.exp(draw.normal(0, 1.5, (rows, len(LABELS))))
        true /= true.sum(1, keepdims=True)
        truths = [int(draw.choice(len(LABELS), p=row)) for row in true]
        claimed = true**needed.temperature
        return of_labels((claimed / claimed.sum(1, keepdims=True)).tolist(), truths)
    true = draw.uniform(0.02, 0.98, rows)
    claimed = 1 / (1 + np.exp(-needed.temperature * (np.log(true / (1 - true)) - (needed.bias or 0))))
    return of_entities(claimed.tolist(), (draw.random(rows) < true).tolist())


def task_of(kind: str):
    return CLS if kind == "labels" else NER


def error_of(kind: str, golds, results) -> float:
    return metrics_of_predictions(task_of(kind), golds, results)["ece"]


def fitted(kind: str, golds, results) -> Calibration | None:
    return best_calibration(task_of(kind), golds, results)


NONE_NEEDED = Calibration(1.0)
KINDS = pytest.mark.parametrize("kind", ["labels", "entities"])


class TestError:
    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
    def test_it_is_the_mean_gap_of_the_bins_by_their_rows(self, answers):
        counted = Reliability()
        for score, right in answers:
            counted.count(score, right=right)
        scores, rights = (np.array(column, float) for column in zip(*answers, strict=True))
        places = np.minimum((scores * BINS).astype(int), BINS - 1)
        gaps = [abs((rights - scores)[places == place].sum()) for place in range(BINS)]
        assert counted.expected_error() == pytest.approx(sum(gaps) / len(answers), abs=1e-8)

    @KINDS
    def test_scores_that_are_true_probabilities_have_nearly_none(self, kind):
        assert error_of(kind, *drawn(kind, 6000, NONE_NEEDED)) < 0.03
        assert error_of(kind, *drawn(kind, 6000, Calibration(3.0))) > 0.08

    def test_always_sure_and_right_seven_times_in_ten_is_three_tenths(self):
        golds, results = of_entities([1.0] * 10, [True] * 7 + [False] * 3)
        assert error_of("entities", golds, results) == pytest.approx(0.3)

    def test_it_is_over_what_was_said_and_each_entity_counts_once(self):
        golds = [{"entities": [entity(0), entity(3)]}, {"entities": []}]
        said = [{"entities": [entity(0, 0.8), entity(0, 0.8)]}, {"entities": []}]
        said = [row | {"unparsable": False, "problems": {}} for row in said]
        assert error_of("entities", golds, said) == pytest.approx(0.2)
        nothing = [row | {"entities": []} for row in said]
        assert "ece" not in metrics_of_predictions(NER, golds, nothing)

    @pytest.mark.parametrize("score", [None, math.nan, math.inf, -0.5])
    def test_an_answer_without_a_probability_is_left_out(self, score):
        golds, results = of_entities([0.5, 0.5], [True, True])
        results[1]["entities"][0]["score"] = score
        assert error_of("entities", golds, results) == pytest.approx(0.5)
        assert calibrated(results, Calibration(2.0, 1.0))[1] == results[1]
        assert fitted("entities", golds, results) is None

    def test_of_two_checkpoints_the_one_with_the_smaller_error_is_the_better(self, tmp_path):
        for metric, greater in (("eval_ece", False), ("unparsable", False), ("eval_f1", True), ("eval_loss", False)):
            arguments = SftTrainingArguments(str(tmp_path), eval_strategy="epoch", metric_for_best_model=metric)
            assert arguments.greater_is_better is greater, metric


class TestAddingUp:
    @settings(max_examples=40)
    @given(
        rows=st.lists(st.tuples(st.sampled_from([*LABELS, None]), CHANCES.filter(lambda row: len(row) == 3))),
        cut=st.integers(0, 20),
        kind=st.sampled_from(["labels", "entities"]),
    )
    def test_counts_of_parts_in_any_order_through_json_are_those_of_the_whole(self, rows, cut, kind):
        if kind == "labels":
            _, results = of_labels([chances for _, chances in rows], [0] * len(rows))
            golds = [None if label is None else {"label": label} for label, _ in rows]
        else:
            golds, results = of_entities([chances[0] for _, chances in rows], [label == "体育" for label, _ in rows])
        task = task_of(kind)
        whole = Tally.of(task, golds, results)
        for order in ([slice(0, cut), slice(cut, None)], [slice(cut, None), slice(0, cut)]):
            total = Tally()
            for part in order:
                total.add(Tally.of(task, golds[part], results[part]))
                total = Tally.from_json(orjson.loads(orjson.dumps(total.to_json())))
            assert total.reliability == whole.reliability
            assert (total.metrics(task) or {}).get("ece") == (whole.metrics(task) or {}).get("ece")

    def test_progress_of_a_version_that_counted_no_scores_goes_on_without_the_error(self):
        golds, results = of_labels([[0.5, 0.3, 0.2]] * 4, [0, 1, 0, 0])
        tally = Tally.of(CLS, golds, results)
        old = tally.to_json()
        del old["reliability"]
        total = Tally.from_json(orjson.loads(orjson.dumps(old)))
        total.add(tally)
        assert "reliability" not in total.to_json(), "half of the rows would pass for all"
        assert total.metrics(CLS) == {name: value for name, value in tally.metrics(CLS).items() if name != "ece"}
        new = Tally()
        new.add(Tally.from_json(old))
        assert new.reliability is None

    @pytest.mark.parametrize(
        "bins",
        [None, {}, [[0, 0, 0]], [[0, 0]] * BINS, [[0, 0.5, 0]] * BINS, [[1, 0, 2]] * BINS, [[True, 0, 0]] * BINS,
         [[0, 1, 0]] * BINS, [[1, -1, 0]] * BINS, ["000"] * BINS],
    )  # fmt: skip
    def test_counts_that_cannot_be_are_refused(self, bins):
        with pytest.raises(ValueError, match="reliability"):
            Tally.from_json(Tally().to_json() | {"reliability": bins})


class TestCalibration:
    @pytest.mark.parametrize(
        ("kind", "needed"),
        [("labels", Calibration(0.4)), ("labels", Calibration(2.5)), ("entities", Calibration(0.4, 0.0)),
         ("entities", Calibration(2.5, -0.5)), ("entities", Calibration(1.3, 1.5))],
    )  # fmt: skip
    def test_it_is_found_again_and_takes_the_error_away(self, kind, needed):
        found = fitted(kind, *drawn(kind, 3000, needed))
        assert found.temperature == pytest.approx(needed.temperature, rel=0.12)
        assert (found.bias is None) == (kind == "labels")
        assert found.bias is None or found.bias == pytest.approx(needed.bias, abs=0.15)
        golds, results = drawn(kind, 3000, needed, seed=1)
        before, after = (error_of(kind, golds, calibrated(results, tried)) for tried in (None, found))
        by_chance = error_of(kind, *drawn(kind, 3000, NONE_NEEDED, seed=1))  # of the true probabilities of these rows
        assert after < by_chance + 0.01 < before - 0.02

    @KINDS
    @pytest.mark.parametrize("seed", range(4))
    def test_scores_that_need_none_hardly_change(self, kind, seed):
        found = fitted(kind, *drawn(kind, 1000, NONE_NEEDED, seed))
        assert found is None or (0.8 < found.temperature < 1.25 and abs(found.bias or 0) < 0.3)

    @KINDS
    def test_few_rows_or_hardly_any_mistake_give_none(self, kind):
        golds, results = drawn(kind, LEAST_SCORED - 1, Calibration(3.0))
        assert fitted(kind, golds, results) is None
        rows = 400
        for wrong in (0, LEAST_OF_EACH - 1):
            if kind == "labels":
                golds, results = of_labels([[0.6, 0.2, 0.2]] * rows, [1] * wrong + [0] * (rows - wrong))
            else:
                golds, results = of_entities([0.6] * rows, [number >= wrong for number in range(rows)])
            assert fitted(kind, golds, results) is None

    def test_what_fits_only_the_rows_it_was_fitted_on_is_not_kept(self):
        rights = [number % 2 == 0 or number % 4 == 1 for number in range(400)]  # even rows all, odd ones by half
        assert fitted("entities", *of_entities([0.9] * 400, rights)) is None

    def test_rows_without_gold_and_failed_ones_are_passed_over(self):
        golds, results = drawn("labels", 2000, Calibration(2.5))
        expected = fitted("labels", golds, results)
        golds += [None, {"label": "体育"}]
        results += [results[0], {"error": "太长"}]
        assert fitted("labels", golds, results) == expected is not None
        assert calibrated(results, Calibration(2.0))[-1] == {"error": "太长"}

    @given(CHANCES, st.floats(0.1, 10))
    def test_what_is_best_stays_best_and_all_sum_to_one(self, chances, temperature):
        soft = rescaled(chances, Calibration(temperature))
        assert sum(soft) == pytest.approx(1)
        assert all(0 <= chance <= 1 for chance in soft)
        assert [soft[place] for place in sorted(range(len(chances)), key=chances.__getitem__)] == sorted(soft)

    @given(CHANCES.filter(lambda row: len(row) == 3), st.floats(0.1, 10))
    def test_a_label_stays_and_its_score_is_the_highest(self, chances, temperature):
        _, (result,) = of_labels([chances], [0])
        changed = calibrated_result(result, Calibration(temperature))
        assert changed["label"] == result["label"] and list(changed["scores"]) == list(result["scores"])
        assert changed["score"] == changed["scores"][result["label"]] == max(changed["scores"].values())

    @given(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 10), st.floats(-5, 5))
    def test_entities_keep_their_order(self, one, other, temperature, bias):
        result = {"entities": [entity(0, one), entity(1, other)]}
        entities = calibrated_result(result, Calibration(temperature, bias))["entities"]
        changed = {found["start"]: found["score"] for found in entities}
        assert sorted(changed.values()) == [changed[start] for start in ((0, 1) if one <= other else (1, 0))]
        assert all(0 <= score <= 1 for score in changed.values())


class TestKept:
    @pytest.mark.parametrize(
        "changes",
        [*({"temperature": value} for value in (0, -1, 0.05, 11, 1e300, True, "1.5", [1.5])),
         *({"temperature": 1.5, "score_bias": value} for value in (-6, 5.5, False, "0")), {"score_bias": 0.5}],
        ids=str,
    )  # fmt: skip
    def test_a_value_that_no_training_writes_is_one_line(self, changes, tmp_path):
        path = tmp_path / "x.task.json"
        path.write_text(json.dumps(TaskSettings(NER).to_json() | changes), encoding="utf-8")
        with pytest.raises(InputError, match=list(changes)[-1]) as told:
            TaskSettings.read(path)
        assert "\n" not in str(told.value)

    def test_it_is_written_read_and_sealed(self, tmp_path):
        path = tmp_path / "x.task.json"
        TaskSettings(CLS, temperature=1.25).write(path)
        assert TaskSettings.read(path).calibration == Calibration(1.25)
        path.write_text(path.read_text(encoding="utf-8").replace("1.25", "1.75"), encoding="utf-8")
        with pytest.raises(InputError, match="sha256"):
            TaskSettings.read(path)
        TaskSettings(CLS, temperature=1.25, score_bias=0.5).write(path)
        with pytest.raises(InputError, match="score_bias 只用于实体"):
            TaskSettings.read(path)
        TaskSettings(CLS).write(path)
        assert "temperature" not in path.read_text(encoding="utf-8")
        assert TaskSettings.read(path).calibration is None
        TaskSettings(NER, temperature=1.25, score_bias=-0.5).write(path)
        assert TaskSettings.read(path).calibration == Calibration(1.25, -0.5)


ROWS = [{"text": text, "output": label} for text in ("打仗", "比赛赢了", "国家队", "钱", "昨天") for label in LABELS]


@pytest.fixture(scope="module")
def adapters(tokenizer, tmp_path_factory) -> tuple[Path, Path]:
    """An adapter of an older version, and the same with a temperature."""
    old = save_adapter(tokenizer, tmp_path_factory.mktemp("adapters"), LABELS)
    new = Path(shutil.copytree(old, old.with_name("calibrated")))
    TaskSettings.read(old / "task.json").replace(temperature=4.0).write(new / "task.json")
    return old, new


class TestPrediction:
    def test_the_scores_are_those_of_the_model_at_the_temperature(self, adapters):
        plain, soft = (Predictor.load(adapter)(ROWS) for adapter in adapters)
        assert [row["label"] for row in soft] == [row["label"] for row in plain]
        for before, after in zip(plain, soft, strict=True):
            assert after == calibrated_result(before, Calibration(4.0))
            assert after["score"] < before["score"]

    def test_the_threshold_is_for_scores_at_the_temperature(self, adapters):
        scores = sorted(row["score"] for row in Predictor.load(adapters[1])(ROWS))
        middle = scores[len(scores) // 2]
        kept = Predictor.load(adapters[1], row_settings=RowSettings(threshold=middle))(ROWS)
        assert all((row["label"] is not None) == (row["score"] >= middle) for row in kept)

    def test_only_constrained_answers_of_the_adapter_are_calibrated(self, adapters):
        def used(choice: ModelChoice, limits: LimitChoice = AS_TRAINED) -> Calibration | None:
            return Predictor.load(choice, limits).row_settings.calibration

        old, new = adapters
        assert used(ModelChoice(new)) == Calibration(4.0)
        assert used(ModelChoice(old)) is None
        assert used(ModelChoice(new, base_only=True)) is None
        assert used(ModelChoice(new), LimitChoice(constrained=False)) is None

    def test_a_resumed_prediction_has_the_error_of_an_undisturbed_one(self, adapters, tmp_path, capsys):
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 4), encoding="utf-8")
        outputs = [tmp_path / name for name in ("whole.jsonl", "resumed.jsonl")]
        words = ["--adapter", str(adapters[1]), "--input_file", str(rows), "--batch_size", "1", "--output_file"]
        assert predict.main([*words, str(outputs[0])]) == 0
        whole = json.loads(capsys.readouterr().out)
        progress = json.loads(progress_path(outputs[0]).read_text(encoding="utf-8"))
        loaded = Predictor.load(adapters[1], LimitChoice(batch_size=1))
        with GrowingFile(outputs[1], progress["run"], resume=False) as output:
            output.add(*predict_window(loaded, ROWS[:16]))
        assert predict.main([*words, str(outputs[1]), "--resume"]) == 0
        assert json.loads(capsys.readouterr().out) == whole
        assert 0 < whole["ece"] < 1
        assert outputs[0].read_bytes() == outputs[1].read_bytes()
        assert progress["run"]["calibration"] == [4.0, None]

    def test_progress_of_a_version_without_calibration_is_resumed(self, adapters, tmp_path, capsys):
        rows, output = tmp_path / "rows.jsonl", tmp_path / "predictions.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        words = ["--adapter", str(adapters[0]), "--input_file", str(rows), "--output_file", str(output)]
        assert predict.main(words) == 0
        whole = json.loads(capsys.readouterr().out)
        path = progress_path(output)
        old = json.loads(path.read_text(encoding="utf-8"))
        assert "calibration" not in old["run"]
        del old["own_sha256"], old["tally"]["reliability"]
        path.write_text(json.dumps(old), encoding="utf-8")
        assert predict.main([*words, "--resume"]) == 0
        assert json.loads(capsys.readouterr().out) == {name: whole[name] for name in whole if name != "ece"}


def test_training_fits_it_on_validation_and_prediction_uses_it(tokenizer, tmp_path, capsys):
    draw = random.Random(0)
    for name, count in (("train", 8), ("validation", 120), ("test", 60)):
        texts = ["".join(draw.choices("国家队赢了比赛坦克演习股市上涨", k=12)) for _ in range(count)]
        records = [{"text": text, "label": draw.choice(LABELS)} for text in texts]
        path = tmp_path / f"{name}_cls.jsonl"
        messages = [[*CLS.prompt(record), {"role": "assistant", "content": record["label"]}] for record in records]
        lines = [record | {"messages": said, "task": CLS.name} for record, said in zip(records, messages, strict=True)]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        TaskSettings(CLS).write(settings_path(path))
    base, run = save_model(tiny_model("qwen2"), tokenizer, tmp_path / "base"), tmp_path / "run"
    words = ["--model_name_or_path", str(base), "--dtype", "float32", "--swanlab_mode", "disabled", "--max_steps", "1"]
    words += ["--train_file", str(tmp_path / "train_cls.jsonl"), "--output_dir", str(run), "--eval_on_start", "false"]
    words += ["--validation_file", str(tmp_path / "validation_cls.jsonl"), "--disable_tqdm", "true"]
    assert train_qwen2_classification.main([*words, "--save_strategy", "steps", "--save_steps", "1"]) == 0
    kept = TaskSettings.read(run / "task.json")
    assert kept.temperature > 1, "a random model is sure of labels that it gets wrong"
    assert TaskSettings.read(run / "checkpoint-1/task.json").calibration == kept.calibration
    evaluated, tested = (json.loads((run / f"{split}_results.json").read_text()) for split in ("eval", "test"))
    assert evaluated["eval_temperature"] == tested["test_temperature"] == kept.temperature
    assert f"概率按温度 {kept.temperature:g} 校准过" in (run / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    words = ["--adapter", str(run), "--input_file", str(tmp_path / "test_cls.jsonl"), "--output_file"]
    assert predict.main([*words, str(tmp_path / "out.jsonl")]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["ece"] == tested["test_ece"]
    words = ["--adapter", str(run), "--train_file", str(tmp_path / "validation_cls.jsonl")]
    assert calibration_benchmark.main([*words, "--records", str(tmp_path / "test_cls.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "24 validation rows, 60 test rows" in said and "| the model's own |" in said
