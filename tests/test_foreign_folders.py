"""Folders from elsewhere run no code, ask nothing, and use up neither time nor memory: they work, or one line refuses.

Each payload changes a good base or adapter. The code in it writes a file, the canary, which must never appear.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from models import save_adapter

import predict
import train_qwen2_classification
from sft.model import adapter_config
from sft.tasks.settings import TaskSettings, settings_path

LABELS = ("体育", "军事")
CODE = "open({!r}, 'w').close()\nfrom transformers import *\nclass Evil(PreTrainedTokenizerFast): pass\n"


@pytest.fixture(scope="module")
def good(tokenizer, tmp_path_factory) -> Path:
    """A folder with ``adapter`` and ``base``."""
    folder = tmp_path_factory.mktemp("good")
    save_adapter(tokenizer, folder, LABELS)
    return folder


def plant(good: Path, folder: Path) -> None:
    """Copy ``adapter`` and ``base``, and put code in every place where it could be looked for."""
    for name in ("adapter", "base"):
        shutil.copytree(good / name, folder / name)
        for place in (folder, folder / name, folder / name / "custom_generate"):
            place.mkdir(exist_ok=True)
            for code in ("evil", "generate", "modeling_evil", "tokenization_evil", "megatron_evil"):
                (place / f"{code}.py").write_text(CODE.format(str(folder / "canary")))


@pytest.fixture
def folder(good, tmp_path, monkeypatch) -> Path:
    """What `plant` makes of them; the working directory."""
    plant(good, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 99), encoding="utf-8"))
    return tmp_path


def change(name: str, **values: object):
    """A payload that sets values in a JSON file of a folder."""

    def apply(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(content | values), encoding="utf-8")

    return apply


def template(text: str):
    """A payload that is a chat template."""

    def apply(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")

    return apply


class Pickled:
    def __reduce__(self):
        return open, (str(Path.cwd() / "canary"), "w")


def pickled(name: str, *, instead_of: str | None = None):
    """A payload that is a pickled file."""

    def apply(folder: Path) -> None:
        if instead_of:
            (folder / instead_of).unlink()
        if name.endswith(".pt"):
            torch.save(Pickled(), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Pickled()))

    return apply


EVERYWHERE = {
    "tokenizer class of its own": change(
        "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]}
    ),
    "tokenizer in a list": change("tokenizer_config.json", auto_map=["evil.Evil", "evil.Evil"]),
    "tokenizer on the hub": change(
        "tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": ["o/n--evil.Evil", "o/n--evil.Evil"]}
    ),
    "processor": change("processor_config.json", processor_class="Evil", auto_map={"AutoProcessor": "evil.Evil"}),
    "preprocessor": change(
        "preprocessor_config.json", feature_extractor_type="Evil", auto_map={"AutoProcessor": "evil.Evil"}
    ),
    "generation config": change("generation_config.json", custom_generate="./custom_generate", trust_remote_code=True),
    "template reads a class": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template calls a module": template("{{ cycler.__init__.__globals__.os.system('touch canary') }}"),
    "template changes a list": template("{{ messages.append(messages) }}{% for m in messages %}x{% endfor %}"),
    "template with import": template("{% import 'evil.py' as evil %}{{ evil }}"),
    "template with include": template("{% include '/etc/passwd' %}"),
    "template with attr filter": template("{{ (messages|attr('__class__')).mro() }}"),
    "pickled beside": pickled("pytorch_model.bin"),
    "pickled optimizer": pickled("training_args.bin"),
}
BASE = EVERYWHERE | {
    "model of its own": change(
        "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    ),
    "model class of its own": change("config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"}),
    "known model, config of its own": change("config.json", auto_map={"AutoConfig": "modeling_evil.Evil"}),
    "attention from the hub": change("config.json", attn_implementation="evil/kernel", _attn_implementation="evil/k"),
    "weights elsewhere": change("config.json", transformers_weights="../evil.bin"),
    "an adapter in the base": change(
        "adapter_config.json", peft_type="LORA", base_model_name_or_path="evil", r=2, target_modules=["q_proj"]
    ),
    "only pickled": pickled("pytorch_model.bin", instead_of="model.safetensors"),
    "only pickled, new": pickled("model.pt", instead_of="model.safetensors"),
}
ADAPTER = EVERYWHERE | {
    "config beside": change("config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
    "layers of a named module": change("adapter_config.json", megatron_config={"a": 1}, megatron_core="megatron_evil"),
    "auto_mapping": change(
        "adapter_config.json", auto_mapping={"base_model_class": "Evil", "parent_library": "modeling_evil"}
    ),
    "PEFT type of its own": change("adapter_config.json", peft_type="EVIL", auto_map={"AutoPeft": "evil.Evil"}),
    "another adapter": change("adapter_config.json", peft_type="XLORA", adapters={"0": "./evil"}),
    "only pickled": pickled("adapter_model.bin", instead_of="adapter_model.safetensors"),
}


def trained(folder: Path, capsys, *flags: str) -> tuple[int, str]:
    records = folder / "train.jsonl"
    if not records.exists():
        from sft.data.records import make_record
        from sft.tasks.classification import Classification

        task = Classification(LABELS)
        TaskSettings(task).write(settings_path(records))
        rows = [make_record(task, {"text": f"新闻{n}", "label": LABELS[n % 2]}) for n in range(8)]
        records.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code = train_qwen2_classification.main(
        ["--train_file", str(records), "--output_dir", str(folder / "run"), "--dry_run", "--test_file", "none", *flags]
    )
    return code, capsys.readouterr().err


def predicted(folder: Path, capsys) -> tuple[int, str]:
    flags = ["--model_name_or_path", str(folder / "base"), "--no_verify", "--allow_other_base"]
    code = predict.main(["--adapter", str(folder / "adapter"), "--text", "昨天赢了", *flags])
    return code, capsys.readouterr().err


def require_harmless(folder: Path, code: int, error: str) -> None:
    assert code in (0, 2), error
    assert "Traceback" not in error
    assert not (folder / "canary").exists(), "its code ran"
    assert sys.stdin.read(2) == "y\n", "it read an answer from standard input"


@pytest.mark.parametrize("payload", ADAPTER)
def test_an_adapter_folder_runs_no_code(payload, folder, capsys):
    ADAPTER[payload](folder / "adapter")
    require_harmless(folder, *predicted(folder, capsys))


@pytest.mark.parametrize("payload", BASE)
def test_a_base_folder_runs_no_code(payload, folder, capsys):
    BASE[payload](folder / "base")
    if payload in EVERYWHERE:  # predict takes the tokenizer of the adapter
        require_harmless(folder, *trained(folder, capsys, "--model_name_or_path", str(folder / "base")))
    else:
        require_harmless(folder, *predicted(folder, capsys))


@pytest.mark.parametrize("payload", ["tokenizer class of its own", "auto_mapping", "layers of a named module"])
def test_training_on_from_such_an_adapter_runs_no_code(payload, folder, capsys):
    ADAPTER[payload](folder / "adapter")
    TaskSettings.read(folder / "adapter/task.json", verify=False).write(folder / "adapter/task.json")
    flags = ["--init_adapter", str(folder / "adapter"), "--model_name_or_path", str(folder / "base")]
    code, error = trained(folder, capsys, *flags, "--allow_other_base", "true")
    require_harmless(folder, code, error)
    assert code == 2


BOMBS = {
    "rank": {"r": 10_000_000},
    "rank of one layer": {"rank_pattern": {"q_proj": 10_000_000}},
    "nested repeats": {"target_modules": r"(.*)*(.*)*(.*)*(.*)*!q_proj"},
    "overlapping words": {"target_modules": r"(\w|\w\w|[a-z.0-9_])+$x"},
    "in a rank pattern": {"rank_pattern": {r"(\w+\.?)+\w+x": 2}},
    "in an alpha pattern": {"alpha_pattern": {r"([a-z._0-9]+)+@": 2}},
    "excluded": {"exclude_modules": r"(([a-z._0-9])+)+@"},
    "layers again and again": {"layer_replication": [[0, 2]] * 100_000},
    "no expression": {"target_modules": "(q_proj"},
    "huge repeat": {"target_modules": "(?:q{65535}){65535}"},
    "alpha of no size": {"lora_alpha": "8"},
    "negative rank": {"r": -1},
    "deep": {"rank_pattern": {"(" * 3000 + ")" * 3000: 2}},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_in_an_adapters_config_is_refused_quickly(bomb, folder, capsys, monkeypatch):
    monkeypatch.setattr(adapter_config, "MATCHING_SECONDS", 1)
    change("adapter_config.json", **BOMBS[bomb])(folder / "adapter")
    started = time.monotonic()
    code, error = predicted(folder, capsys)
    assert code == 2 and "adapter" in error and "Traceback" not in error
    assert len(error.splitlines()) == 1 and len(error) < 500
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "modules",
    ["all-linear", r".*\.(q_proj|v_proj)", r"^(?!.*(?:lm_head|visual)).*(?:q_proj|k_proj|v_proj|o_proj).*", "q_proj"],
)
def test_usual_target_modules_pass(modules, folder):
    change("adapter_config.json", target_modules=modules)(folder / "adapter")
    adapter_config.check_adapter_config(folder / "adapter")


class TestTemplates:
    """Templates that work for the probe and fail at particular texts."""

    PICKY = (
        "{% if '坏' in messages[-1].content or '坏' in messages[1].content %}{{ raise_exception('no such text') }}"
        "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    UNDEFINED = PICKY.replace("raise_exception('no such text')", "nothing.at.all")
    DIVIDES = PICKY.replace("raise_exception('no such text')", "1 // 0")

    @pytest.mark.parametrize("text", [PICKY, UNDEFINED, DIVIDES], ids=["raises", "undefined", "divides"])
    def test_a_row_at_which_the_template_fails_is_an_error_in_its_place(self, text, folder, capsys):
        template(text)(folder / "adapter")
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("好的", "坏的", "也好")), encoding="utf-8")
        flags = ["--adapter", "adapter", "--input_file", str(rows), "--no_verify", "--output_file", "out.jsonl"]
        assert predict.main([*flags, "--model_name_or_path", str(folder / "base")]) == 0
        results = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        assert ["error" in result for result in results] == [False, True, False]
        assert "对话模板" in results[1]["error"]

    @pytest.mark.parametrize("text", [PICKY, UNDEFINED, DIVIDES], ids=["raises", "undefined", "divides"])
    def test_training_names_the_row_at_which_the_template_fails(self, text, folder, capsys):
        template(text.replace("坏", "新闻6"))(folder / "base")
        code, error = trained(folder, capsys, "--model_name_or_path", str(folder / "base"), "--eval_strategy", "no")
        assert code == 2 and "第 7 行" in error and "对话模板" in error and "Traceback" not in error

    @pytest.mark.parametrize(
        "text", ["{{ raise_exception('no') }}", "{% for %}", "{{ nope.x }}", "hello<|im_end|>", "{{ ''.__class__ }}"]
    )
    def test_a_template_that_never_works_is_one_line_in_training_and_prediction(self, text, folder, capsys):
        template(text)(folder / "adapter")
        template(text)(folder / "base")
        for code, error in (
            predicted(folder, capsys),
            trained(folder, capsys, "--model_name_or_path", str(folder / "base")),
        ):
            assert code == 2 and "对话模板" in error and "Traceback" not in error
