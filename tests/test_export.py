"""Exports answer as the adapter does, and an export with a fault is never called done."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import exports
import pytest

import export
from sft.errors import RunError
from sft.export.merged import prove_merged
from sft.files import read_json


@pytest.fixture(scope="module")
def adapter(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.make_adapter(tokenizer, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def opened(adapter: Path):
    return exports.open_adapter(adapter)


@pytest.fixture(scope="module")
def merged(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "out"
    command = ["--adapter", str(adapter), "--to", "merged", "--output_dir", str(folder)]
    assert export.main(command) == 0
    return folder


def test_a_merged_model_answers_as_the_adapter(merged: Path) -> None:
    proof = read_json(merged / "export.json")
    assert proof["passed"]
    for name in ("prompts", "answers", "scores"):
        leg = proof["legs"][name]
        assert leg["compared"] == leg["equal"] == len(exports.TEXTS)
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert f"提示的 token：{len(exports.TEXTS)} / {len(exports.TEXTS)} 相同" in card


@pytest.mark.parametrize("name", exports.MERGED_FAULTS)
def test_a_fault_in_a_merged_model_is_caught(merged: Path, opened, tmp_path: Path, name: str) -> None:
    source, reference = opened
    fault, leg = exports.MERGED_FAULTS[name]
    folder = shutil.copytree(merged, tmp_path / "out")
    fault(folder, source)
    proof = prove_merged(folder, source, reference, "float32", None, 8)
    failed = [one.name for one in proof.failed]
    assert leg in failed, proof.lines()


def test_the_proof_has_no_failure_without_a_fault(merged: Path, opened) -> None:
    source, reference = opened
    assert prove_merged(merged, source, reference, "float32", None, 8).failed == []


def test_what_is_not_equal_is_not_put_in_its_place(adapter: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    import sft.export.merged as module

    write = module.write_merged

    def faulty(model, source, folder, dtype):
        write(model, source, folder, dtype)
        exports.without_adapter(folder, source)

    monkeypatch.setattr(module, "write_merged", faulty)
    output_dir = tmp_path / "out"
    with pytest.raises(RunError, match=r"没有导出：与适配器不同的是 .*对数概率"):
        export.export(exports.arguments_for(adapter, "merged", output_dir))
    assert not output_dir.exists()
    assert not read_json(tmp_path / "out.unproved" / "export.json")["passed"]


# ---- the command line ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "check_rows.jsonl").unlink(), "--rows"),
        (lambda folder: (folder / "check_rows.jsonl").write_text(""), "空的"),
        (
            lambda folder: (folder / "check_rows.jsonl").write_text('{"task": "classification", "text": "a"}'),
            "任务是 ner",
        ),
        (lambda folder: (folder / "check_rows.jsonl").write_text("a,b\n"), "jsonl:1"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{{ 1 }}"), "与训练写下的不同"),
    ],
)
def test_mistakes_are_told_in_one_line(adapter: Path, tmp_path: Path, capsys, change, words: str) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    change(folder)
    code = export.main(["--adapter", str(folder), "--to", "merged", "--output_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_never_replaced(adapter: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    command = ["--adapter", str(adapter), "--to", "merged", "--output_dir", str(tmp_path), "--overwrite"]
    assert export.main(command) == 2
    assert "里面有别的东西" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_merged_folder_is_all_that_a_stranger_needs(merged: Path, opened) -> None:
    """The program in the folder's README.md, run as it stands there, writes the adapter's answer."""
    source, reference = opened
    card = (merged / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0].replace('"."', json.dumps(str(merged)))
    told: list[str] = []
    for record, answer in zip(reference.records, reference.texts, strict=True):
        written = code.replace('"一段文本"', json.dumps(record["text"]))
        exec(written, {"print": told.append})
        assert told.pop().strip() == source.tokenizer.decode(
            source.tokenizer(answer, add_special_tokens=False).input_ids, skip_special_tokens=True
        ).strip()  # fmt: skip


# ---- GGUF ----


@pytest.fixture(scope="module")
def adapters(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each architecture that can be written as GGUF."""
    pytest.importorskip("gguf", reason="needs requirements-export.txt")
    return {
        name: exports.make_adapter(tokenizer, tmp_path_factory.mktemp(name), name)
        for name in ("qwen2", "qwen3", "llama")
    }


@pytest.fixture(scope="module")
def sources(adapters: dict[str, Path]) -> dict:
    return {name: exports.open_adapter(adapter) for name, adapter in adapters.items()}


def gguf_proof(source, reference, folder: Path, number_type: str):
    """Write a GGUF file as `export.py` does, and prove it."""
    from sft.export.gguf_target import Gguf

    target = Gguf(source, "model", number_type, None)
    folder.mkdir()
    target.write(folder, reference)
    return target.prove(folder, reference)


@pytest.mark.parametrize("number_type", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_a_gguf_file_has_the_merged_model_in_it(sources, tmp_path: Path, architecture: str, number_type: str) -> None:
    source, reference = sources[architecture]
    proof = gguf_proof(source, reference, tmp_path / "out", number_type)
    structure = [leg for leg in proof.legs if leg.name in ("prompts", "settings", "weights")]
    assert len(structure) == 3
    assert all(leg.passed for leg in structure), proof.lines()
    if number_type in ("f32", "f16"):  # a random model decides by nothing: rounding may turn its answers
        assert proof.failed == [], proof.lines()


@pytest.mark.parametrize("with_llama", [True, False], ids=["llama-cpp-python", "without it"])
@pytest.mark.parametrize("name", exports.GGUF_FAULTS)
def test_a_fault_in_a_gguf_file_is_caught(sources, tmp_path: Path, monkeypatch, name: str, with_llama: bool) -> None:
    from sft.export import gguf_file

    if with_llama:
        pytest.importorskip("llama_cpp", reason="needs requirements-export.txt")
    architecture, plant, leg = exports.gguf_faults()[name]
    source, reference = sources[architecture]
    if not with_llama:
        reference = replace(reference, answers=(), texts=(), scores=())
    plant(gguf_file, monkeypatch.setattr)
    proof = gguf_proof(source, reference, tmp_path / "out", "f32")
    assert leg in [one.name for one in proof.failed], proof.lines()
