"""Runs that are stopped anywhere and resumed: the result is the undisturbed one's, or the run is refused in a line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import stopped_runs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from stopped_runs import TRACEBACK, Done, Stop, result, rows

import train_qwen2_classification
from sft.errors import InputError, RunError
from sft.files import locked
from sft.training import checkpoints, manifests, resuming
from tests.models import save_model, tiny_model
from tests.test_training import articles, write_records

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")

RESUME = ("--resume_from_checkpoint", "true")
STEPS = ("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2")
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from sft.tasks.classification import Classification

    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "train.jsonl", Classification(("体育", "军事", "经济")), articles(30, 0))
    return folder / "train.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def flags(base, data):
    """Six steps of eight rows in two epochs, with dropout. Saved and evaluated at the end of each epoch."""

    def of(output_dir: Path, *more: str) -> list[str]:
        return [
            *("--model_name_or_path", str(base), "--train_file", str(data), "--dtype", "float32"),
            *("--output_dir", str(output_dir), "--swanlab_mode", "disabled", "--disable_tqdm", "true"),
            *("--per_device_train_batch_size", "8", "--num_train_epochs", "2", "--validation_ratio", "0.2"),
            *("--logging_steps", "1", "--learning_rate", "2e-2", "--lora_dropout", "0.1", "--lora_r", "2"),
            *("--test_file", "none", *more),
        ]

    return of


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    """The output folder of a run that nothing stopped, for each set of flags; each is trained once."""
    runs: dict[tuple[str, ...], Path] = {}

    def of(*more: str) -> Path:
        if more not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            done = stopped_runs.run(flags(folder / "run", *more), folder)
            assert done.code == 0, done.errors
            runs[more] = folder / "run"
        return runs[more]

    return of


def resumed(flags, folder: Path, *more: str) -> Done:
    return stopped_runs.run([*flags(folder / "run", *more), *RESUME], folder)


def refused(arguments: list[str], capsys) -> str:
    """Run the script in this process: nothing is trained. Returns the one line that it says."""
    try:
        code = train_qwen2_classification.main(arguments)
    except SystemExit as stop:  # raised by argparse
        code = stop.code
    errors = capsys.readouterr().err
    assert code == 2 and "Traceback" not in errors, errors
    return errors.strip().splitlines()[-1]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# ---- the best step ----


@pytest.mark.parametrize(
    "more",
    [
        ("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "4"),
        ("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "epoch", "--save_total_limit", "1"),
        ("--eval_strategy", "epoch", "--save_strategy", "steps", "--save_steps", "5"),
        ("--eval_strategy", "steps", "--eval_steps", "0.3", "--save_strategy", "best"),
    ],
)
def test_the_best_evaluated_step_is_kept_however_often_steps_are_saved(more, undisturbed):
    output_dir = undisturbed(*more)
    evaluated = [row for row in rows(output_dir) if "eval_macro_f1" in row and row["step"] > 0]
    best = max(evaluated, key=lambda row: (row["eval_macro_f1"], -row["eval_loss"], -row["step"]))["step"]
    state = json.loads((output_dir / "trainer_state.json").read_text())
    assert state["best_global_step"] == best and state["best_model_checkpoint"] == f"checkpoint-{best}"
    saved = load_file(output_dir / "adapter_model.safetensors")
    of_best = load_file(output_dir / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert saved.keys() == of_best.keys() and all(torch.equal(saved[name], of_best[name]) for name in saved)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--save_strategy", "no"), "--save_strategy best"),
        (("--load_best_model_at_end", "true", "--eval_strategy", "no"), "--eval_strategy"),
    ],
)
def test_a_best_step_that_could_not_be_kept_is_refused_before_training(more, said, flags, tmp_path, capsys):
    assert said in refused(flags(tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()


# ---- what was due is done ----


@pytest.mark.parametrize(
    ("stop", "more"),
    [
        (Stop("step", 3, signal.SIGTERM), ()),  # the last step of an epoch: its evaluation is due
        (Stop("step", 6, signal.SIGINT), ("--logging_strategy", "epoch")),  # the last of all
        (Stop("step", 4, signal.SIGHUP), ("--logging_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2")),
        (Stop("step", 5), ("--save_strategy", "steps", "--save_steps", "3", "--logging_steps", "4")),
        (Stop("end"), ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no")),
        (Stop("end"), ("--num_train_epochs", "6", "--learning_rate", "0", "--early_stopping_patience", "1")),
        (Stop("end"), ("--max_steps", "5", *STEPS)),
    ],
)
def test_what_was_due_when_a_run_stopped_is_done_when_it_is_resumed(stop, more, flags, undisturbed, tmp_path):
    done = stopped_runs.run(flags(tmp_path / "run", *more), tmp_path, stop)
    assert done.code == (KILLED if stop.signal == signal.SIGKILL else 128 + stop.signal), done.errors
    done = resumed(flags, tmp_path, *more)
    assert done.code == 0, done.errors
    assert result(tmp_path / "run") == result(undisturbed(*more))


def test_a_run_killed_at_writes_again_and_again_ends_like_an_undisturbed_one(flags, undisturbed, tmp_path):
    folder, more = tmp_path / "run", (*STEPS, "--save_total_limit", "1")
    for number in (22, 31, 9):
        done = stopped_runs.run([*flags(folder, *more), *RESUME], tmp_path, Stop("write", number))
        assert done.code in (KILLED, 0), done.errors
    done = resumed(flags, tmp_path, *more)
    assert done.code == 0, done.errors
    assert result(folder) == result(undisturbed(*more))


@pytest.mark.slow
def test_a_closed_terminal_saves_a_checkpoint_although_the_progress_bar_cannot_be_drawn(flags, tmp_path):
    import pty
    import termios

    arguments = flags(tmp_path / "run", "--num_train_epochs", "9000", "--eval_strategy", "no")
    arguments[arguments.index("--disable_tqdm") + 1] = "false"
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, train_qwen2_classification.__file__, *arguments])
    termios.tcsetwinsize(terminal, (24, 120))  # a terminal without a width has no bar
    shown = b""
    while "损失".encode() not in shown or "训练:".encode() not in shown:
        shown += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + signal.SIGHUP
    (_, newest), *_ = checkpoints.checkpoints_in(tmp_path / "run")
    assert manifests.problem(newest, manifests.RESUMABLE) is None


def test_resuming_a_finished_run_says_so_and_changes_nothing(flags, undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed(*STEPS), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    done = resumed(flags, tmp_path, *STEPS)
    assert done.code == 0 and "已经完成" in done.errors
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert "learning_rate" in refused([*flags(tmp_path / "run", *STEPS, "--learning_rate", "1"), *RESUME], capsys)


def test_a_run_keeps_its_past_when_its_folder_is_moved_and_its_log_is_lost(flags, undisturbed, tmp_path):
    (tmp_path / "first").mkdir()
    stop = Stop("step", 5)
    assert stopped_runs.run(flags(tmp_path / "first" / "run", *STEPS), tmp_path / "first", stop).code == KILLED
    (tmp_path / "first" / "run").rename(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('[]\n{"step": "x"}\n7\n')
    done = resumed(flags, tmp_path, *STEPS)
    assert done.code == 0, done.errors
    assert result(tmp_path / "run") == result(undisturbed(*STEPS))
    assert "验证集，微调前" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


# ---- which checkpoint is used ----


@pytest.fixture
def stopped(flags, tmp_path_factory, tmp_path) -> Path:
    """A folder whose ``run`` was killed in step 6; checkpoints 2 and 4, the best and the newest, are there."""
    known = tmp_path_factory.getbasetemp() / "stopped"
    if not known.exists():
        known.mkdir()
        stop, more = Stop("step", 6), (*STEPS, "--save_total_limit", "9")
        assert stopped_runs.run(flags(known / "run", *more), known, stop).code == KILLED
    shutil.copytree(known / "run", tmp_path / "run")
    return tmp_path


@pytest.mark.parametrize("victim", ["optimizer.pt", "manifest.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("step", [2, 4])
def test_a_damaged_checkpoint_is_told_and_the_result_is_the_same(victim, step, flags, stopped, undisturbed):
    damage(stopped / "run" / f"checkpoint-{step}" / victim)
    done = resumed(flags, stopped, *STEPS, "--save_total_limit", "9")
    assert done.code == 0 and ("已损坏" in done.errors or "manifest" in done.errors or step == 2), done.errors
    assert result(stopped / "run") == result(undisturbed(*STEPS, "--save_total_limit", "9"))


def identity(stopped: Path) -> dict:
    return manifests.identity_of(stopped / "run" / "checkpoint-4")


def seal(folder: Path, **changed: object) -> None:
    """Write the manifest of a checkpoint anew, as somebody could who changed its files."""
    run = manifests.saved_run(folder) if (folder / "manifest.json").exists() else {}
    (folder / "manifest.json").unlink(missing_ok=True)
    manifests.write_manifest(folder, run | changed)


def test_a_checkpoint_whose_best_one_is_damaged_is_passed_over(stopped):
    best = manifests.best_step_of(stopped / "run" / "checkpoint-4")
    if best == 4:
        pytest.skip("the newest is the best")
    damage(stopped / "run" / f"checkpoint-{best}" / "adapter_config.json")
    assert resuming.newest_of_run(stopped / "run", identity(stopped)) is None


def test_the_checkpoints_of_another_run_are_not_taken_for_this_ones(flags, stopped, tmp_path):
    run = stopped / "run"
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-40")
    state = json.loads((run / "checkpoint-40" / "trainer_state.json").read_text()) | {"global_step": 40}
    (run / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))
    seal(run / "checkpoint-40", seed=7)
    assert resuming.newest_of_run(run, identity(stopped)) == run / "checkpoint-4"
    checkpoints.rotate(run, 1, {4}, identity(stopped))
    assert (run / "checkpoint-40").is_dir() and not (run / "checkpoint-2").exists()
    other = tmp_path / "other"
    shutil.copytree(run / "checkpoint-4", other / "checkpoint-4")
    with pytest.raises(InputError, match="另一次训练"):
        resuming.refuse_runs_mixed(other / "checkpoint-4", run, identity(stopped))


def test_another_run_is_not_deleted_for_a_checkpoint_that_cannot_be_resumed(flags, stopped, tmp_path, capsys):
    other = tmp_path / "other" / "checkpoint-4"
    shutil.copytree(stopped / "run" / "checkpoint-4", other)
    seal(other, seed=7)
    damage(stopped / "run" / "checkpoint-4" / "optimizer.pt")
    words = ["--resume_from_checkpoint", str(stopped / "run" / "checkpoint-4"), "--overwrite_output_dir"]
    arguments = flags(other.parent, *STEPS, "--save_total_limit", "9", *words)
    for more in (["--dry_run"], []):
        assert "不能续跑" in refused([*arguments, *more], capsys)
        assert other.is_dir()


def test_rotation_never_deletes_a_whole_checkpoint_for_a_damaged_one(stopped, caplog):
    damage(stopped / "run" / "checkpoint-4" / "optimizer.pt")
    checkpoints.rotate(stopped / "run", 1, {None}, identity(stopped))
    assert (stopped / "run" / "checkpoint-2").is_dir() and "optimizer.pt 已损坏" in caplog.text


def test_a_link_in_place_of_a_checkpoint_is_neither_followed_nor_emptied(flags, stopped):
    run, elsewhere = stopped / "run", stopped / "bigger_disk"
    (run / "checkpoint-4").rename(elsewhere)
    (run / "checkpoint-4").symlink_to(elsewhere)
    (run / ".saving-note").write_text("mine")
    (run / ".saving-checkpoint-9").symlink_to(elsewhere)
    before = sorted(path.name for path in elsewhere.iterdir())
    assert resuming.newest_of_run(run, identity(stopped)) == run / "checkpoint-2"
    checkpoints.remove_leftovers(run)
    checkpoints.remove_all(run)
    assert sorted(path.name for path in elsewhere.iterdir()) == before
    assert (run / ".saving-note").read_text() == "mine" and not (run / "checkpoint-4").is_symlink()


def test_what_a_killed_save_or_deletion_left_is_put_right(stopped):
    run = stopped / "run"
    (run / "checkpoint-4").rename(run / ".replaced-checkpoint-4")
    (run / ".deleting-checkpoint-2").mkdir()
    (run / ".saving-checkpoint-6" / "checkpoint-6").mkdir(parents=True)
    (run / ".task.json.123.tmp").write_text("{")
    (run / ".tmpMCp8YG").write_bytes(b"half a safetensors file")
    checkpoints.remove_leftovers(run)
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["checkpoint-2", "checkpoint-4"]
    assert [path.name for path in run.glob(".*")] == [".training.lock"]  # nobody has it: the killed run left it


@pytest.mark.parametrize(("failures", "stays"), [(1, False), (1000, True)])
def test_a_disk_that_cannot_delete_a_checkpoint_is_told_and_stops_nothing(
    stopped, monkeypatch, caplog, failures, stays
):
    left, unlink = [failures], os.unlink

    def failing(path, *arguments, **names):
        if Path(path).name == "optimizer.pt" and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error", str(path))
        unlink(path, *arguments, **names)

    monkeypatch.setattr(os, "unlink", failing)
    monkeypatch.setattr(checkpoints, "PAUSES_SECONDS", (0.0,))
    run = stopped / "run"
    for _ in range(2):  # the second time, the place of a half deleted checkpoint may be taken
        checkpoints.rotate(run, 1, {4}, identity(stopped))
    assert not (run / "checkpoint-2").exists() and (run / "checkpoint-4").is_dir()
    assert (run / ".deleting-checkpoint-2").exists() == ("没有删掉" in caplog.text) == stays
    monkeypatch.setattr(os, "unlink", unlink)
    checkpoints.remove_leftovers(run)
    assert not (run / ".deleting-checkpoint-2").exists()


def test_a_checkpoint_with_another_name_can_be_resumed(flags, stopped, undisturbed):
    more = (*STEPS, "--save_total_limit", "9")
    (stopped / "run").rename(stopped / "old")
    (stopped / "old" / "checkpoint-4").rename(stopped / "old" / "keep")
    arguments = flags(stopped / "run", *more, "--resume_from_checkpoint", str(stopped / "old" / "keep"))
    done = stopped_runs.run(arguments, stopped)
    assert done.code == 0, done.errors
    assert result(stopped / "run") == result(undisturbed(*more))


# ---- manifests and contents of the wrong shape ----


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=3), st.lists(st.booleans(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(-9, 9), max_size=2),
)  # fmt: skip


@settings(max_examples=150)
@given(st.sampled_from(["whole", "run", "files", "format", "sha256", "versions", "entry"]), WRONG, st.booleans())
def test_a_manifest_of_the_wrong_shape_is_a_damaged_checkpoint(tmp_path_factory, where, value, sealed):
    folder = tmp_path_factory.getbasetemp() / "shape" / "checkpoint-3"
    if not folder.exists():
        folder.mkdir(parents=True)
        for name in manifests.RESUMABLE:
            (folder / name).write_text('{"global_step": 3}')
        manifests.write_manifest(folder, {"seed": 1})
        assert manifests.problem(folder, manifests.RESUMABLE) is None
        shutil.copy(folder / "manifest.json", folder.parent / "good.json")
    good = json.loads((folder.parent / "good.json").read_text())
    manifest = json.loads((folder.parent / "good.json").read_text())
    if where == "entry":
        manifest["files"]["optimizer.pt"] = value
    elif where == "whole":
        manifest = value
    else:
        manifest[where] = value
    if sealed and isinstance(manifest, dict) and where != "sha256":
        manifest["sha256"] = manifests._own_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reason = manifests.problem(folder, manifests.RESUMABLE)
    if manifest == good:
        assert reason is None
    elif where == "run" and sealed and isinstance(value, dict):
        assert reason is None and manifests.identity_of(folder) == value  # then it is another run's
    elif where == "versions" and sealed and isinstance(value, dict):
        assert reason is None and isinstance(manifests.changed_versions(folder), str)
    else:
        assert reason is not None and "\n" not in reason


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_in_a_manifest_never_looks_like_another_run(tmp_path_factory, place, bit):
    folder = tmp_path_factory.getbasetemp() / "flips" / "checkpoint-3"
    if not folder.exists():
        folder.mkdir(parents=True)
        for name in manifests.RESUMABLE:
            (folder / name).write_text('{"global_step": 3}')
        manifests.write_manifest(folder, {"seed": 1, "labels": ["体育"]})
        shutil.copy(folder / "manifest.json", folder.parent / "good.json")
    content = bytearray((folder.parent / "good.json").read_bytes())
    content[place % len(content)] ^= 1 << bit
    (folder / "manifest.json").write_bytes(content)
    reason = manifests.problem(folder, manifests.RESUMABLE)
    assert reason is not None or manifests.identity_of(folder) == {"seed": 1, "labels": ["体育"]}
    assert not manifests.is_of_other_format(folder)


def test_a_checkpoint_of_an_older_version_is_refused_by_one_line_and_not_started_over(stopped):
    for step in (2, 4):
        path = stopped / "run" / f"checkpoint-{step}" / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({"run": manifest["run"], "files": manifest["files"]}))
    run = json.loads(path.read_text())["run"]
    with pytest.raises(InputError, match="另一个版本"):
        resuming.to_resume("true", stopped / "run", run)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "progress.json", "trainer_state.json"]
)
def test_a_sealed_checkpoint_with_foreign_content_is_refused_in_one_line(name, flags, stopped, capsys):
    folder = stopped / "run" / "checkpoint-4"
    if name.endswith(".json"):
        content = {"global_step": 4, "log_history": 3, "best_global_step": None, "losses": "x"}
        (folder / name).write_text(json.dumps(content))
    else:
        torch.save({"foreign": Path("x")}, folder / name)
    seal(folder)
    assert "checkpoint-4" in refused([*flags(stopped / "run", *STEPS, "--save_total_limit", "9"), *RESUME], capsys)


# ---- full disk, two at once, secrets ----


@pytest.mark.parametrize("number", [12, 30, 34])
def test_a_full_disk_is_one_line_and_the_checkpoints_before_it_stay(number, flags, undisturbed, tmp_path):
    more = (*STEPS, "--save_total_limit", "9")
    done = stopped_runs.run(flags(tmp_path / "run", *more), tmp_path, Stop("full", number))
    assert done.code in (1, 2) and done.code != TRACEBACK and "Traceback" not in done.errors, done.errors
    for _, folder in checkpoints.checkpoints_in(tmp_path / "run"):
        assert manifests.problem(folder, manifests.RESUMABLE) is None
    done = resumed(flags, tmp_path, *more)
    assert done.code == 0, done.errors
    assert result(tmp_path / "run") == result(undisturbed(*more))


def test_what_torch_and_safetensors_raise_on_a_full_disk_is_one_line(tmp_path):
    from safetensors.torch import save_file

    for write in (
        lambda: torch.save({"a": torch.zeros(9)}, "/dev/full"),
        lambda: save_file({"a": torch.zeros(9)}, str(tmp_path / "absent" / "x.safetensors")),
    ):
        with pytest.raises(RunError, match="没有写成") as told, checkpoints.told_if_not_written(Path("checkpoint-1")):
            write()
        assert "\n" not in str(told.value)


def test_a_second_training_in_the_same_folder_is_refused_and_a_kill_ends_the_lock(flags, tmp_path):
    path = tmp_path / "lock"
    code = f"from pathlib import Path; from sft.files import locked\nwith locked(Path({str(path)!r}), 'x'):\n"
    code += "    print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="busy"), locked(path, "busy"):
            pass
        assert path.exists()
        holder.kill()
    with locked(path, "busy"):
        assert path.exists()
    assert not path.exists()


def test_no_token_and_no_absolute_path_is_in_what_a_run_writes_for_others(flags, tmp_path):
    secret = "hf_SECRETSECRET"
    done = stopped_runs.run(flags(tmp_path / "run", "--max_steps", "1", "--hub_token", secret), tmp_path)
    assert done.code == 0, done.errors
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes() or path.suffix == ".bin"]
    for name in ("README.md", "report.html", "trainer_state.json", "checkpoint-1/trainer_state.json"):
        assert str(tmp_path).encode() not in (tmp_path / "run" / name).read_bytes(), name


def test_target_modules_stand_in_one_order(undisturbed):
    for path in undisturbed(*STEPS).rglob("adapter_config.json"):
        modules = json.loads(path.read_text())["target_modules"]
        assert modules == sorted(modules)


# ---- what is compared ----


@pytest.mark.parametrize(
    "change",
    [
        ("--neftune_noise_alpha", "5"), ("--ignore_data_skip", "true"), ("--optim_args", "eps=1e-3"),
        ("--dataloader_drop_last", "true"), ("--metric_for_best_model", "eval_accuracy"), ("--eval_steps", "3"),
        ("--early_stopping_patience", "3"), ("--label_smoothing_factor", "0.1"), ("--max_length", "999"),
    ],
)  # fmt: skip
def test_a_changed_flag_that_can_matter_is_refused_by_name(change, flags, stopped, capsys):
    arguments = [*flags(stopped / "run", *STEPS, "--save_total_limit", "9"), *change, *RESUME]
    assert f"{change[0].removeprefix('--')}：" in refused(arguments, capsys)


def test_flags_that_cannot_matter_may_change(flags, stopped, undisturbed):
    other = ("--save_total_limit", "3", "--gradient_checkpointing", "true", "--per_device_eval_batch_size", "3")
    done = resumed(flags, stopped, *STEPS, *other)
    assert done.code == 0, done.errors
    assert result(stopped / "run") == result(undisturbed(*STEPS, "--save_total_limit", "9"))


@pytest.mark.parametrize("what", ["tokenizer", "chat_template"])
def test_another_tokenizer_or_template_is_refused_by_name(what, base, flags, stopped, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    if what == "tokenizer":
        path = other / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model"]["merges"].pop()
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        path = other / "chat_template.jinja"
        path.write_text(path.read_text(encoding="utf-8").replace("assistant", "bot"), encoding="utf-8")
    arguments = [*flags(stopped / "run", *STEPS, "--save_total_limit", "9"), *RESUME]
    arguments[1] = str(other)
    assert f"{what}：" in refused(arguments, capsys)


def test_other_versions_give_a_line_and_no_refusal(stopped, caplog):
    folder = stopped / "run" / "checkpoint-4"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    manifest["sha256"] = manifests._own_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert resuming.to_resume("true", stopped / "run", identity(stopped)) == folder
    assert "torch：1.0" in caplog.text
