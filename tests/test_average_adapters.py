"""The mean of adapters computes the mean of their changes, and is refused for adapters that do not belong together."""

from __future__ import annotations

import pytest
import torch
from models import save_model, tiny_model, with_random_lora
from peft import PeftModel

from benchmarks.average_adapters import main
from sft.tasks.classification import Classification
from sft.tasks.settings import TaskSettings


@pytest.fixture
def adapters(tokenizer, tmp_path) -> list:
    base = save_model(tiny_model("qwen2"), tokenizer, tmp_path / "base")
    folders = []
    for seed in (0, 1):
        folders.append(save_model(with_random_lora(tiny_model("qwen2"), seed), tokenizer, tmp_path / f"run-{seed}"))
        settings = TaskSettings(Classification(("甲", "乙")), str(base), "float32", max_length=200, max_new_tokens=8)
        settings.replace(threshold=0.4).write(folders[-1] / "task.json")
    return folders


def merged_weights(folder) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(tiny_model("qwen2"), folder).merge_and_unload().state_dict()


def test_merged_weights_are_the_mean_of_those_of_the_runs(adapters, tmp_path):
    assert main(["--adapters", *map(str, adapters), "--output_dir", str(tmp_path / "mean")]) == 0
    one, two, mean = (merged_weights(folder) for folder in (*adapters, tmp_path / "mean"))
    assert not torch.equal(one["model.layers.0.mlp.up_proj.weight"], two["model.layers.0.mlp.up_proj.weight"])
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (one[name] + two[name]) / 2, rtol=1e-5, atol=1e-6)
    assert TaskSettings.read(tmp_path / "mean/task.json").threshold == 0.4
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run-0", "run-1", "mean"}


def test_adapters_of_different_labels_are_refused(adapters, tmp_path, capsys):
    settings = TaskSettings.read(adapters[1] / "task.json").replace(task=Classification(("甲", "丙")))
    settings.write(adapters[1] / "task.json")
    assert main(["--adapters", *map(str, adapters), "--output_dir", str(tmp_path / "mean")]) == 2
    assert "another task" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
