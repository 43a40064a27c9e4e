"""What predict and training read is what was written: a changed, swapped or half-replaced file is told in one line."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from models import save_adapter
from safetensors.torch import load_file, save_file

import predict
import train_qwen2_classification
import train_qwen2_ner
import transfer_classification_data
import transfer_ner_data
from sft.errors import InputError
from sft.model.adapter import settings_of_adapter
from sft.model.hub import model_hash
from sft.tasks.settings import TaskSettings

LABELS = ("体育", "军事")
FLIPS = 9  # of each file


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory) -> Path:
    """A folder with an adapter as training leaves it, and its base model."""
    folder = tmp_path_factory.mktemp("trained")
    adapter = save_adapter(tokenizer, folder, LABELS)
    settings = TaskSettings.read(adapter / "task.json")
    settings.replace(base_hash=model_hash(folder / "base"), threshold=0.25, end_token="<|im_end|>").write(
        adapter / "task.json"
    )
    return folder


@pytest.fixture
def adapter(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))


def predicted(capsys, adapter: Path, *more: str) -> tuple[int, str, str]:
    code = predict.main(["--adapter", str(adapter), "--text", "昨天国家队赢了比赛", *more])
    out, error = capsys.readouterr()
    assert "Traceback" not in error
    return code, out, error.strip().splitlines()[-1] if error.strip() else ""


def change_weights(path: Path) -> None:
    save_file({name: tensor + 0.1 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


FILES = (
    "adapter_model.safetensors", "adapter_config.json", "task.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip


class TestBits:
    def test_an_undisturbed_adapter_is_read(self, adapter, capsys):
        assert predicted(capsys, adapter)[0] == 0

    @pytest.mark.parametrize("name", FILES)
    def test_one_flipped_bit_anywhere_is_noticed_and_the_file_named(self, name, adapter, capsys, monkeypatch):
        monkeypatch.setattr(
            "sft.prediction.predictor.load_base", lambda *_: pytest.fail("read on with a damaged file")
        )
        path, draw = adapter / name, random.Random(name)
        whole = path.read_bytes()
        for _ in range(FLIPS):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            code, out, line = predicted(capsys, adapter)
            assert (code, out) == (2, "") and name in line, line

    def test_one_flipped_bit_of_the_base_is_noticed(self, trained, adapter, tmp_path, capsys):
        base = Path(shutil.copytree(trained / "base", tmp_path / "base"))
        for name in ("model.safetensors", "config.json"):
            path, draw = base / name, random.Random(name)
            whole = path.read_bytes()
            for _ in range(FLIPS):
                damaged = bytearray(whole)
                damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
                path.write_bytes(damaged)
                code, out, line = predicted(capsys, adapter, "--model_name_or_path", str(base))
                assert (code, out) == (2, "") and str(base) in line
            path.write_bytes(whole)

    @pytest.mark.parametrize(
        ("name", "change"),
        [("lora_alpha", 64), ("use_rslora", True), ("r", 1), ("target_modules", ["q_proj"]), ("use_dora", True)],
    )
    def test_other_values_in_the_adapters_config_are_noticed(self, name, change, adapter, capsys):
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: change}))
        code, _, line = predicted(capsys, adapter)
        assert code == 2 and "adapter_config.json：与训练写下的不同" in line and "--no_verify" in line

    @pytest.mark.parametrize("name", ["vocab.json", "config.json", "chat_template.json", "added_tokens.json"])
    def test_a_file_that_was_added_is_noticed(self, name, adapter, capsys):
        (adapter / name).write_text("{}")
        code, _, line = predicted(capsys, adapter)
        assert code == 2 and f"{name}：训练时没有这个文件" in line

    def test_a_file_that_is_gone_is_noticed(self, adapter, capsys):
        (adapter / "chat_template.jinja").unlink()
        code, _, line = predicted(capsys, adapter)
        assert code == 2 and "chat_template.jinja：没有这个文件" in line

    def test_a_new_adapter_beside_the_task_json_of_an_older_run_is_noticed(self, adapter, tokenizer, tmp_path, capsys):
        new = save_adapter(tokenizer, tmp_path / "new", LABELS)
        change_weights(new / "adapter_model.safetensors")
        shutil.copy(new / "adapter_model.safetensors", adapter)
        code, _, line = predicted(capsys, adapter)
        assert code == 2 and "adapter_model.safetensors：与训练写下的不同" in line

    def test_what_is_only_looked_at_may_be_changed(self, adapter, capsys):
        for name in ("README.md", "report.html", "metrics.jsonl", "all_results.json", "loss.png"):
            (adapter / name).write_text("mine")
        assert predicted(capsys, adapter)[0] == 0


class TestOnPurpose:
    def test_a_threshold_that_was_edited_says_what_to_do_instead(self, adapter, capsys):
        path = adapter / "task.json"
        path.write_text(path.read_text(encoding="utf-8").replace("0.25", "0.75"), encoding="utf-8")
        code, _, line = predicted(capsys, adapter)
        assert code == 2 and "--threshold" in line and "--no_verify" in line
        assert predicted(capsys, adapter, "--no_verify")[0] == 0

    def test_changed_files_are_used_if_the_user_says_so(self, adapter, capsys):
        (adapter / "vocab.json").write_text("{}")
        (adapter / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text() + "\n")
        assert predicted(capsys, adapter)[0] == 2
        assert predicted(capsys, adapter, "--no_verify")[0] == 0

    def test_an_adapter_of_an_older_version_is_read_as_it_is(self, adapter, capsys):
        path = adapter / "task.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        old = {name: value for name, value in content.items() if name not in ("sha256", "files", "base_hash")}
        path.write_text(json.dumps(old | {"threshold": 0.5}), encoding="utf-8")
        (adapter / "vocab.json").write_text("{}")
        assert predicted(capsys, adapter)[0] == 0

    def test_taking_away_only_the_seal_is_not_enough(self, adapter, capsys):
        path = adapter / "task.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["sha256"]
        path.write_text(json.dumps(content | {"threshold": 0.5}), encoding="utf-8")
        code, _, line = predicted(capsys, adapter)
        assert code == 2 and "sha256" in line

    def test_training_from_a_changed_adapter_is_refused_and_says_how(self, adapter):
        path = adapter / "tokenizer_config.json"
        path.write_text(path.read_text() + "\n")
        with pytest.raises(InputError, match=r"tokenizer_config.json.*sha256 和 files"):
            settings_of_adapter(adapter)


RAW = {
    transfer_ner_data: (
        '{{"text": "张伟{0}", "entities": [{{"start_idx": 0, "end_idx": 2, "entity_label": "{1}"}}]}}'
    ),
    transfer_classification_data: '{{"text": "新闻{0}", "output": "{1}"}}',
}
TRAINERS = {transfer_ner_data: train_qwen2_ner, transfer_classification_data: train_qwen2_classification}
OUTPUTS = 6  # files that a conversion puts in their places


def convert(script, folder: Path, first: int, *, label: str = "甲", die_before: int | None = None) -> int:
    """Convert rows ``first``, ``first`` + 1 …; the process kills itself before the given rename, counted from 0."""
    raw = folder / "raw.jsonl"
    raw.write_text(
        "".join(RAW[script].format(first + n, "丙" if n % 2 else label) + "\n" for n in range(20)), encoding="utf-8"
    )
    flags = ["--input_file", str(raw), "--output_file", str(folder / "train.jsonl")]
    flags += ["--test_file", str(folder / "test.jsonl"), "--test_ratio", "0.3"]
    child = os.fork()
    if child == 0:
        replace, calls = Path.replace, []

        def counted(self, target):
            if len(calls) == die_before:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(target)
            return replace(self, target)

        Path.replace = counted
        os._exit(script.main(flags))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("script", RAW)
class TestKilledConversion:
    def flags(self, trained, tmp_path, *more: str) -> list[str]:
        base = ["--model_name_or_path", str(trained / "base"), "--output_dir", str(tmp_path / "run")]
        return [*base, "--train_file", str(tmp_path / "train.jsonl"), "--dry_run", *more]

    def train(self, script, trained, tmp_path, capsys, *more: str) -> tuple[int, str]:
        capsys.readouterr()
        code = TRAINERS[script].main(self.flags(trained, tmp_path, *more))
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return code, (error.splitlines() or [""])[-1]

    @pytest.mark.parametrize("again", [True, False], ids=["over an older one", "the first time"])
    def test_records_of_two_conversions_are_never_used_together(self, script, again, trained, tmp_path, capsys):
        for die_before in range(OUTPUTS) if script is transfer_ner_data else (1, OUTPUTS - 1):
            folder = tmp_path / str(die_before)
            folder.mkdir()
            if again:
                assert convert(script, folder, 0) == 0
            assert convert(script, folder, 10, label="乙" if die_before % 2 else "甲", die_before=die_before) == -9
            code, line = self.train(script, trained, folder, capsys)
            if again and die_before == 0:  # nothing was replaced
                assert code == 0, line
            else:
                assert code == 2 and re.search("不是同一次转换|没有这个文件|对不上", line), line
        assert convert(script, folder, 10) == 0
        assert self.train(script, trained, folder, capsys)[0] == 0

    def test_the_same_rows_again_are_the_same_conversion(self, script, trained, tmp_path, capsys):
        assert convert(script, tmp_path, 0) == 0
        assert convert(script, tmp_path, 0, die_before=3) == -9
        assert self.train(script, trained, tmp_path, capsys)[0] == 0

    def test_a_test_file_of_another_conversion_can_be_used_by_itself(self, script, trained, tmp_path, capsys):
        assert convert(script, tmp_path, 0) == 0
        other = tmp_path / "other"
        other.mkdir()
        assert convert(script, other, 50) == 0
        test_file = str(other / "test.jsonl")
        assert self.train(script, trained, tmp_path, capsys, "--test_file", test_file)[0] == 0
        shutil.copy(test_file, tmp_path / "test.jsonl")  # … but not in the place of its own, without its settings
        shutil.copy(other / "test.task.json", tmp_path / "test.task.json")
        code, line = self.train(script, trained, tmp_path, capsys)
        assert code == 2 and "移到别处" in line

    def test_rows_that_were_taken_out_by_hand_are_still_the_same_conversion(self, script, trained, tmp_path, capsys):
        assert convert(script, tmp_path, 0) == 0
        path = tmp_path / "train.jsonl"
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[1:]), encoding="utf-8")
        assert self.train(script, trained, tmp_path, capsys)[0] == 0

    def test_a_flipped_bit_in_the_settings_beside_records_is_noticed(self, script, trained, tmp_path, capsys):
        assert convert(script, tmp_path, 0) == 0
        path, draw = tmp_path / "train.task.json", random.Random(0)
        whole = path.read_bytes()
        for _ in range(FLIPS):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            code, line = self.train(script, trained, tmp_path, capsys)
            assert code == 2 and "train.task.json" in line
