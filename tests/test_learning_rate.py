"""``--learning_rate auto``: what it chooses, that it leaves no trace, and that it survives being stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import stopped_runs
from hypothesis import given
from hypothesis import strategies as st
from stopped_runs import Stop

import train_qwen2_classification
from sft.errors import InputError
from sft.files import RATE_SEARCH_FILE
from sft.tasks.classification import Classification
from sft.training.choosing_rows import chosen_rows
from sft.training.rate_plan import (
    CLEARLY_BETTER,
    RATES,
    Round,
    Search,
    Trial,
    best_first,
    chosen_of,
    plan_search,
    successive_halving,
)
from tests.models import save_model, tiny_model
from tests.test_training import LABELS, articles, train, write_records

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")

KILLED = -getattr(signal, "SIGKILL", 9)
RESUME = ("--resume_from_checkpoint", "true")
ADAPTER = "adapter_model.safetensors"
ROUNDS = (Round(len(RATES), 4), Round(3, 16))
LOSSES = st.lists(
    st.none() | st.sampled_from([0, 0.96, 0.98, 1, 1.02, 1.1, 2, 5]), min_size=len(RATES), max_size=len(RATES)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "train.jsonl", Classification(LABELS), articles(36, 0))
    return folder / "train.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def flags(base, data):
    """52 steps of one row, with dropout, so that the random state matters. Saved twice."""

    def of(output_dir: Path, rate: str, *more: str) -> list[str]:
        return [
            *(
                "--model_name_or_path",
                str(base),
                "--train_file",
                str(data),
                "--dtype",
                "float32",
                "--test_file",
                "none",
            ),
            *("--output_dir", str(output_dir), "--swanlab_mode", "disabled", "--disable_tqdm", "true"),
            *("--per_device_train_batch_size", "1", "--max_steps", "52", "--max_validation_rows", "5"),
            *("--validation_ratio", "0.2", "--lora_dropout", "0.1"),
            *("--eval_strategy", "steps", "--eval_steps", "26", "--save_strategy", "steps", "--save_steps", "26"),
            *("--lora_r", "2", "--warmup_steps", "0.1", "--learning_rate", rate, *more),
        ]

    return of


@pytest.fixture(scope="module")
def searched(flags, tmp_path_factory) -> Path:
    """The output folder of an undisturbed run with ``auto``."""
    folder = tmp_path_factory.mktemp("searched")
    done = stopped_runs.run(flags(folder / "run", "auto"), folder)
    assert done.code == 0, done.errors
    (folder / "run" / "errors.txt").write_text(done.errors, encoding="utf-8")
    return folder / "run"


def chosen(output_dir: Path) -> float:
    return json.loads((output_dir / "all_results.json").read_text())["learning_rate"]


# ---- what it leaves ----


def test_the_run_is_the_one_that_the_rate_given_by_hand_would_be(searched, flags, tmp_path):
    assert train(flags(tmp_path / "hand", repr(chosen(searched)))) == 0
    assert (searched / ADAPTER).read_bytes() == (tmp_path / "hand" / ADAPTER).read_bytes()
    ours, theirs = (stopped_runs.result(folder) for folder in (searched, tmp_path / "hand"))
    assert [row for row in ours["rows"] if "trial_loss" not in row] == theirs["rows"]
    assert ours["results"] == theirs["results"] | {"learning_rate": chosen(searched)}


def test_the_rate_and_the_trials_are_told_wherever_a_rate_by_hand_is(searched):
    rate = chosen(searched)
    errors = (searched / "errors.txt").read_text(encoding="utf-8")
    assert f"选定 --learning_rate {rate:.0e}".replace("e-0", "e-") in errors
    assert f"；学习率 {rate:.0e}（auto 选的）".replace("e-0", "e-") in errors
    assert sum("试 " in line and "步后的验证损失" in line for line in errors.splitlines()) == len(ROUNDS)
    assert f"学习率 {rate:g}，" in (searched / "README.md").read_text(encoding="utf-8")
    page = (searched / "report.html").read_text(encoding="utf-8")
    table = page.split("试学习率")[1].split("</table>")[0]
    assert all(f">{tried:g}" in table for tried in RATES) and f">{rate:g} *<" in table
    rows = [row for row in stopped_runs.rows(searched) if "trial_loss" in row]
    assert [row["trial_learning_rate"] for row in rows][: len(RATES)] == sorted(RATES)
    assert len(rows) == sum(round.rates for round in ROUNDS) and {row["step"] for row in rows} == {0}
    assert not list(searched.glob("checkpoint-[48]"))  # of trials


# ---- stopped and resumed ----


@pytest.mark.parametrize(
    ("stop", "code", "searches_again"),
    [
        (Stop("step", 7, signal.SIGTERM), 128 + signal.SIGTERM, True),  # the second round has more than four steps
        pytest.param(Stop("step", 6), KILLED, True, marks=pytest.mark.slow),
        pytest.param(
            Stop("step", 40), KILLED, False, marks=pytest.mark.slow
        ),  # in the run, after its first checkpoint
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(stop, code, searches_again, searched, flags, tmp_path):
    words = flags(tmp_path / "run", "auto")
    stopped = stopped_runs.run(words, tmp_path, stop)
    assert stopped.code == code, stopped.errors
    if code > 0:
        assert stopped.errors.splitlines()[-1].startswith("已停止：还在试学习率")
        assert "完成这一步后停止" in stopped.errors
    assert (tmp_path / "run" / RATE_SEARCH_FILE).is_file()
    resumed = stopped_runs.run([*words, *RESUME], tmp_path)
    assert resumed.code == 0, resumed.errors
    assert ("里已有 7 次的结果" in resumed.errors) == searches_again
    assert ("步后的验证损失" in resumed.errors) == searches_again
    assert stopped_runs.result(tmp_path / "run") == stopped_runs.result(searched)


def test_trials_of_another_run_or_damaged_ones_are_not_taken(tmp_path, caplog):
    from sft.training.learning_rate import _finished_trials

    path = tmp_path / RATE_SEARCH_FILE
    trials = [[5e-5, 4, 1.5], [1e-4, 4, None]]
    path.write_text(json.dumps({"identity": {"seed": 1}, "trials": trials}))
    assert [list(trial) for trial in _finished_trials(path, {"seed": 1})] == trials
    assert _finished_trials(path, {"seed": 2}) == ()
    assert not caplog.text
    for damaged in ("{", "[]", '{"identity": {"seed": 1}, "trials": [[1]]}', '{"identity": {"seed": 1}}'):
        path.write_text(damaged)
        assert _finished_trials(path, {"seed": 1}) == ()
        assert "重新试" in caplog.text
        caplog.clear()


def test_a_rate_by_hand_is_another_run_and_is_refused(searched, flags, capsys):
    assert train([*flags(searched, repr(chosen(searched))), *RESUME]) == 2
    assert "learning_rate：auto →" in capsys.readouterr().err


# ---- refused ----


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--max_steps", "49"], "只有 49 步"),
        (["--eval_strategy", "no"], "请去掉 --eval_strategy no"),
        (["--validation_ratio", "0"], "没有验证数据"),
        (["--learning_rate", "automatic"], "应是 float 或 auto，实际是 'automatic'"),
    ],
)
def test_what_it_cannot_search_is_refused_in_one_line(change, said, flags, tmp_path, capsys):
    try:
        code = train(flags(tmp_path / "run", "auto", *change))
    except SystemExit as stop:  # raised by argparse
        code = stop.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and said in last and "--learning_rate" in last
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_search(flags, tmp_path, capsys):
    assert train(flags(tmp_path / "run", "auto", "--dry_run")) == 0
    assert "试学习率  7 个各 4 步，3 个各 16 步，共 76 步" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


# ---- what it chooses ----


@given(first=LOSSES, second=LOSSES)
def test_the_best_of_each_round_goes_on_and_no_rate_is_tried_twice(first, second):
    tables = {4: dict(zip(RATES, first, strict=True)), 16: dict(zip(RATES, second, strict=True))}
    told: list[Trial] = []
    trials = successive_halving(ROUNDS, lambda rate, steps: tables[steps][rate], told.extend)
    assert told == trials
    assert len({(trial.rate, trial.steps) for trial in trials}) == len(trials) == len(RATES) + 3
    early, late = trials[: len(RATES)], trials[len(RATES) :]
    assert [trial.rate for trial in early] == sorted(RATES)
    worst = lambda trial: math.inf if trial.loss is None else trial.loss  # noqa: E731
    left = [trial for trial in early if trial.rate not in {trial.rate for trial in late}]
    kept = [trial for trial in early if trial not in left]
    assert max(map(worst, kept)) <= min(map(worst, left))
    best, taken = best_first(late)[0], chosen_of(late)
    assert worst(best) == min(map(worst, late))
    assert all(trial.rate >= best.rate for trial in late if worst(trial) == worst(best))
    assert taken.rate <= best.rate and (taken == best or worst(best) >= CLEARLY_BETTER * worst(taken))
    assert all(worst(best) < CLEARLY_BETTER * worst(trial) for trial in late if trial.rate < taken.rate)
    assert Search.from_json(json.loads(json.dumps(Search(best.rate, tuple(trials)).to_json()))).trials == tuple(trials)


def training(**changes):
    """What a plan needs of transformers' arguments."""
    defaults = {"world_size": 1, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "seed": 42}
    defaults |= {"max_steps": -1, "num_train_epochs": 2.0, "dataloader_drop_last": False}
    return SimpleNamespace(**defaults | changes)


ROWS = [[number] * 20 for number in range(9000)]  # their length is all that a plan looks at


def rows(count: int) -> list[list[int]]:
    return ROWS[:count]


@given(count=st.integers(1000, 9000), validation=st.integers(1, 400), epochs=st.sampled_from([1.0, 1.5, 3.0]))
def test_a_normal_run_pays_about_a_quarter_more_at_most(count, validation, epochs):
    plan = plan_search(rows(count), rows(validation), training(num_train_epochs=epochs))
    assert plan.steps <= max(76, 0.2 * plan.run_steps)
    assert all(len(plan.rows_of(round.steps)) == min(count, 16 * round.steps) for round in plan.rounds)
    assert plan.rows_of(plan.rounds[0].steps) == plan.rows_of(plan.rounds[1].steps)[: 16 * plan.rounds[0].steps]
    if plan.run_steps > 400:
        assert plan.share <= 0.25


def test_a_run_of_400_steps_pays_about_a_quarter_more_and_one_of_50_one_and_a_half_times_as_much_again():
    shares = [plan_search(rows(8 * steps), rows(50), training()).share for steps in (400, 1000, 50)]
    assert 0.15 < shares[1] < shares[0] < 0.3
    assert 1.4 < shares[2] < 1.9


def test_several_processes_are_refused():
    with pytest.raises(InputError, match=r"--learning_rate auto：只能在一个进程里试，现在有 2 个"):
        plan_search(rows(4000), rows(200), training(world_size=2))


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 9))
def test_slices_depend_on_the_seed_and_a_smaller_one_is_the_beginning_of_a_larger(count, more, seed):
    everything = rows(250)
    small, large = chosen_rows(everything, count, seed), chosen_rows(everything, count + more, seed)
    assert large[: len(small)] == small
    assert len(small) == min(count, 250) and len({row[0] for row in small}) == len(small)


# ---- a trial ----


def test_a_trial_is_the_run_made_small(flags, tmp_path):
    from sft.training.arguments import parse_arguments
    from sft.training.learning_rate import arguments_of_trial

    more = ["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 100}']
    run = parse_arguments("", flags(tmp_path, "auto", *more, "--warmup_steps", "50", "--max_steps", "500")).training
    trial = arguments_of_trial(run, 1e-3, 10, 500)
    assert (trial.max_steps, trial.warmup_steps) == (10, 1)
    assert trial.learning_rate == pytest.approx(1e-3 * 50 ** (1 / 3))  # fewer steps want a larger rate
    assert trial.lr_scheduler_kwargs == {"num_decay_steps": 2} and run.lr_scheduler_kwargs == {"num_decay_steps": 100}
    same = {"lr_scheduler_type", "optim", "weight_decay", "max_grad_norm", "seed", "per_device_train_batch_size"}
    assert all(getattr(trial, name) == getattr(run, name) for name in same)
    assert (run.max_steps, run.warmup_steps) == (500, 50) and run.searches_rate


def test_a_rate_that_diverges_is_the_worst_and_stops_nothing(flags, tmp_path, monkeypatch, capsys):
    from sft.training import fine_tune, rate_plan

    monkeypatch.setattr(rate_plan, "RATES", (1e-3, 1e30, 1e38))
    monkeypatch.setattr(rate_plan, "KEPT", 2)
    models: list[weakref.ref] = []

    def load(prepared):
        assert [model() for model in models] == [None] * len(models), (
            "the model of the trials takes no memory any more"
        )
        loaded = fine_tune_load(prepared)
        models.append(weakref.ref(loaded[0]))
        return loaded

    fine_tune_load = fine_tune.load
    monkeypatch.setattr(fine_tune, "load", load)
    assert train_qwen2_classification.main(flags(tmp_path / "run", "auto", "--lora_dropout", "0")) == 0
    assert len(models) == 2
    assert chosen(tmp_path / "run") == 1e-3
    assert "发散" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
