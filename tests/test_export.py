"""Exports answer as the adapter does, and an export with a fault is never called done."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import exports
import pytest
import torch
from models import save_adapter
from peft import LoraConfig, get_peft_model
from test_served import model_of, with_lora

import export
from sft.errors import InputError, RunError
from sft.export import gguf_target
from sft.export import reference as reference_module
from sft.export.arguments import parse_arguments
from sft.export.merged import prove_merged
from sft.export.reference import mean_log_probabilities
from sft.export.rows import rows_to_compare
from sft.files import read_json
from sft.model.hub import license_of, published_id
from sft.report.model_card import write_model_card
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.sealed import sealed_bytes
from sft.tasks.settings import TaskSettings


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
    assert f"{len(exports.TEXTS)} 条，回答都是贪心的" in card


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


def on_the_head(model):
    """The model with an adapter on its output layer: that layer cannot be run by itself."""
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False)).eval()


@pytest.mark.parametrize(
    ("name", "changed"),
    [("qwen3_moe", None), ("qwen3_moe", with_lora), ("granite", None), ("gemma2", None), ("qwen3_moe", on_the_head)],
)
@torch.no_grad()
def test_scores_of_answers_are_those_of_each_alone_and_few_logits_exist_at_once(name, changed, monkeypatch) -> None:
    model, plain = model_of(name) if changed is None else map(changed, model_of(name))
    prompts = [[5, 9, 3] * 4, [7, 11], [8] * 30, [1, 2, 3], [4] * 9]
    answers = [[1, 2, 3, 4, 5, 6, 7], [9], [3, 1, 4, 1, 5], [2, 7], [6] * 7]
    head, sizes = model.get_output_embeddings(), []
    head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel() // output.shape[-1]))
    monkeypatch.setattr(reference_module, "CHUNK_LOGITS", 5 * model.config.vocab_size)
    found = mean_log_probabilities(model, prompts, answers, 5)
    assert max(sizes) <= (5 if changed is not on_the_head else reference_module.ROWS_OF_LOGITS * 8)
    for prompt, answer, mean in zip(prompts, answers, found, strict=True):
        logits = plain(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).mean().item()
        assert mean == pytest.approx(alone, rel=1e-5, abs=1e-5)


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


def gguf_proof(source, reference, folder: Path, number_type: str, least: float | None = None):
    """Write a GGUF file as `export.py` does, and prove it."""
    from sft.export.gguf_target import Gguf

    target = Gguf(source, "model", number_type, least)
    folder.mkdir()
    target.write(folder, reference)
    return target.prove(folder, reference)


def unanswered(reference):
    """The reference where llama-cpp-python is not installed."""
    return replace(reference, answers=(), texts=(), scores=())


@pytest.mark.parametrize("number_type", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_a_gguf_file_has_the_merged_model_in_it(sources, tmp_path: Path, architecture: str, number_type: str) -> None:
    source, reference = sources[architecture]
    proof = gguf_proof(source, unanswered(reference), tmp_path / "out", number_type)
    assert [leg.name for leg in proof.legs] == ["prompts", "settings", "weights"]
    assert proof.failed == [], proof.lines()
    assert any("没有装 llama-cpp-python" in line for line in proof.not_run)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_a_gguf_file_answers_as_the_adapter(sources, tmp_path: Path, architecture: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs requirements-export.txt")
    source, reference = sources[architecture]
    # llama.cpp ends an answer at <|endoftext|>, too, which a random model writes now and then
    proof = gguf_proof(source, reference, tmp_path / "out", "f32", least=0.5)
    assert {leg.name for leg in proof.legs} == {"prompts", "settings", "weights", "answers", "scores", "metric"}
    assert proof.failed == [], proof.lines()
    (answers,) = (leg for leg in proof.legs if leg.name == "answers")
    end_of_text = str(source.tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    shown = [difference.wanted + difference.found for difference in answers.differences]
    assert all("<|endoftext|>" in text or end_of_text in text for text in shown)


@pytest.mark.parametrize("name", exports.GGUF_FAULTS)
def test_a_fault_in_a_gguf_file_is_caught(sources, tmp_path: Path, monkeypatch, name: str) -> None:
    from sft.export import gguf_file

    architecture, plant, leg = exports.gguf_faults()[name]
    source, reference = sources[architecture]
    plant(gguf_file, monkeypatch.setattr)
    proof = gguf_proof(source, unanswered(reference), tmp_path / "out", "f32")
    assert leg in [one.name for one in proof.failed], proof.lines()


@pytest.mark.slow
@pytest.mark.parametrize("name", exports.GGUF_FAULTS)
def test_llama_cpp_finds_the_faults_that_it_can_see(sources, tmp_path: Path, monkeypatch, name: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs requirements-export.txt")
    from sft.export import gguf_file

    architecture, plant, leg = exports.gguf_faults()[name]
    source, reference = sources[architecture]
    plant(gguf_file, monkeypatch.setattr)
    try:
        failed = [one.name for one in gguf_proof(source, reference, tmp_path / "out", "f32", least=0.5).failed]
    except RunError as error:
        assert "llama.cpp 用不了这个文件" in str(error)
        return
    assert leg in failed
    if name in ("swapped q and k", "zeroed tensor", "rope theta wrong"):
        assert "scores" in failed


def test_a_model_that_gguf_cannot_hold_here_is_refused_before_it_is_loaded(sources, tmp_path: Path) -> None:
    from sft.export.gguf_file import refuse_other_models
    from sft.model.loading import load_config

    source, _ = sources["qwen2"]
    config = load_config(source.base.folder)
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    with pytest.raises(InputError, match=r"yarn.*convert_hf_to_gguf\.py"):
        refuse_other_models(source, config)
    config.model_type = "gemma3_text"
    with pytest.raises(InputError, match=r"gemma3_text.*convert_hf_to_gguf\.py"):
        refuse_other_models(source, config)


def test_without_the_library_the_line_says_what_to_install(opened, monkeypatch) -> None:
    monkeypatch.setattr(gguf_target, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install -r requirements-export\.txt.*pip install gguf==\d"):
        gguf_target.Gguf(opened[0], "model", "f16", None)


def test_the_development_requirements_have_the_same_library() -> None:
    folder = Path(export.__file__).parent
    pins = [(folder / f"requirements-{name}.txt").read_text(encoding="utf-8") for name in ("dev", "export")]
    (pin,) = {re.search(r"^gguf==\S+", text, re.MULTILINE)[0] for text in pins}
    assert f"pip install {pin}" == gguf_target.ONLY_GGUF


# ---- Ollama ----

MODELFILE_FAULTS = {
    "wrong template": ('<|im_start|>assistant\\n"', '<|im_start|>assistant"', "prompts"),
    "no system message": ("{{ .System }}", "", "prompts"),
    "other system message": ("请提取实体。", "请提取实体", "prompts"),
    "sampling left on": ("PARAMETER temperature 0\n", "", "settings"),
    "repetition punished": ("PARAMETER repeat_penalty 1\n", "", "settings"),
    "missing terminator": ('PARAMETER stop "<|im_end|>"\n', "", "settings"),
}


def modelfile_proof(source, reference, text: str):
    from sft.export.ollama import prove_modelfile
    from sft.export.proof import Leg, Proof

    return prove_modelfile(text, source, reference, Proof("gguf f16", (Leg("prompts", 1), Leg("settings", 1))))


def test_ollama_gets_the_same_prompt(opened) -> None:
    from sft.export.ollama import modelfile

    source, reference = opened
    proof = modelfile_proof(source, reference, modelfile(source, "model.gguf"))
    assert proof.failed == [], proof.lines()
    assert proof.legs[0].compared == 1 + len(exports.TEXTS)


@pytest.mark.parametrize("name", MODELFILE_FAULTS)
def test_a_fault_in_a_modelfile_is_caught(opened, name: str) -> None:
    from sft.export.ollama import modelfile

    source, reference = opened
    old, new, leg = MODELFILE_FAULTS[name]
    text = modelfile(source, "model.gguf")
    assert old in text
    assert leg in [one.name for one in modelfile_proof(source, reference, text.replace(old, new)).failed]


@pytest.mark.parametrize(
    "system", ['三个引号 """ 在里面', '"开头', '结尾"', "多\n行\n", "反斜杠 \\ 和 {{ .Prompt }}", "短"]
)
def test_any_instruction_can_be_written_in_a_modelfile(opened, system: str) -> None:
    from sft.export.ollama import modelfile, read_modelfile, rendered

    source, _ = opened
    task = replace(source.task, system_prompt=system)
    source = source._replace(settings=source.settings.replace(task=task))
    read = read_modelfile(modelfile(source, "model.gguf"))
    messages = task.prompt({"text": "{{ .System }}一段"})
    wanted = source.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered(read, None, messages[-1]["content"]) == wanted


# ---- vLLM, SGLang ----


@pytest.fixture(scope="module")
def served(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "out"
    assert export.main(["--adapter", str(adapter), "--to", "vllm", "--output_dir", str(folder)]) == 0
    return folder


def test_vllm_gets_the_adapter_as_it_is(adapter: Path, served: Path) -> None:
    from sft.model.adapter import settings_of_adapter

    settings_of_adapter(served)  # with every hash
    assert (served / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    script = (served / "serve.sh").read_text(encoding="utf-8")
    assert "--max-lora-rank 8 " in script
    assert subprocess.run(["bash", "-n", str(served / "serve.sh")], check=False).returncode == 0
    card = (served / "README.md").read_text(encoding="utf-8")
    assert f"{len(exports.TEXTS)} 条，没有对照回答，" in card


@pytest.mark.parametrize("file", ["chat_template.jinja", "adapter_model.safetensors"])
def test_a_fault_in_what_is_served_is_caught(served: Path, opened, tmp_path: Path, file: str) -> None:
    from sft.export.serving import prove_serving

    source, reference = opened
    folder = shutil.copytree(served, tmp_path / "out")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content.replace(b"assistant", b"model") if b"assistant" in content else content[::-1])
    assert len(prove_serving(folder, source, reference).failed) == 1


def load_client(folder: Path):
    spec = importlib.util.spec_from_file_location("exported_client", folder / "client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_client_asks_what_training_asked(served: Path, opened) -> None:
    _, reference = opened
    client, task = load_client(served), read_json(served / "task.json")
    asked = [client.messages_of(task, text) for text in exports.TEXTS]
    assert asked == list(reference.messages)
    news = Classification(("体育", "军事"))
    content = TaskSettings(news).to_json()
    for record in ({"text": "{options}{text}"}, {"text": "甲", "options": ("经济", "{text}")}):
        options = list(record.get("options", ())) or None
        assert client.messages_of(content, record["text"], options) == news.prompt(record)


def test_the_client_sends_the_form_of_the_answer(served: Path) -> None:
    client, task = load_client(served), read_json(served / "task.json")
    body = client.request_of(task, "甲", "vllm")
    assert body["temperature"] == 0
    assert body["structured_outputs"] == {"grammar": client.grammar_of(task)}
    news = TaskSettings(Classification(("体育", "军事"))).to_json()
    assert client.request_of(news, "甲", "vllm")["structured_outputs"] == {"choice": ["体育", "军事"]}
    received = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()
            answer = {"message": {"content": "体育"}, "finish_reason": "length"}
            self.wfile.write(json.dumps({"choices": [answer]}).encode())

        def log_message(self, *_) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.handle_request, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, str(served / "client.py"), "--url", url, "今天下雨。"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    server.server_close()
    assert done.stdout == "体育\n", done.stderr
    assert done.stderr.startswith("答案到了 max_new_tokens")
    assert client.is_long(task | {"usual_text_tokens": 5}, "甲" * 21)
    assert not client.is_long(task | {"usual_text_tokens": 5}, "甲" * 20) and not client.is_long({}, "甲" * 9999)
    articles = {"user_prompt": "{options}{text}", "max_length": 5}
    assert client.is_long(articles, "甲" * 21) and not client.is_long(articles, "甲" * 20)
    assert received == [("/v1/chat/completions", client.request_of(task, "今天下雨。", "vllm"))]


@pytest.mark.parametrize("status", [None, 400])
def test_the_client_tells_in_one_line_that_no_answer_comes(served: Path, status) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"error": "no such model"}')

        def log_message(self, *_) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    url = f"http://127.0.0.1:{server.server_port}"
    if status is None:
        server.server_close()  # nobody listens there
    else:
        threading.Thread(target=server.handle_request, daemon=True).start()
    command = [sys.executable, str(served / "client.py"), "--url", url, "今天下雨。"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    server.server_close()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"{url}：")
    assert ("连不上" if status is None else '（400）：{"error": "no such model"}') in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed")
def test_the_client_says_what_to_install_for_a_gguf_file(served: Path, tmp_path) -> None:
    for name in ("client.py", "task.json"):
        shutil.copy(served / name, tmp_path)
    (tmp_path / "a.gguf").touch()
    command = [sys.executable, str(tmp_path / "client.py"), "--api", "gguf", "今天下雨。"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install llama-cpp-python" in done.stderr


def test_the_grammar_takes_every_answer_of_the_task_and_no_other(served: Path) -> None:
    """The grammar read as a regular expression."""
    client, task = load_client(served), read_json(served / "task.json")
    pattern = as_pattern(client.grammar_of(task))
    entities = [
        {"text": text, "label": label} for text in ("张伟", '引"号\\', "换\n行\t", "\x7f") for label in exports.LABELS
    ]
    ner = Ner(exports.LABELS, "")
    for chosen in ([], entities[:1], entities):
        assert pattern.fullmatch(ner.answer({"entities": chosen}))
    good = ner.answer({"entities": entities[:1]})
    for bad in (
        "",
        good + "\n",
        good.replace("地理实体", "组织"),
        good.replace("张伟", ""),
        good.replace("张伟", '张"'),
    ):
        assert not pattern.fullmatch(bad)


def as_pattern(grammar: str) -> re.Pattern:
    """A GBNF grammar without recursion as a regular expression."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())

    def translated(rule: str) -> str:
        parts = re.findall(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[a-z]+|[|()+*]', rules[rule])
        return "".join(
            re.escape(json.loads(part)) if part[0] == '"'
            else f"(?:{translated(part)})" if part in rules
            else part.replace("(", "(?:")
            for part in parts
        )  # fmt: skip

    return re.compile(translated("root"))


# ---- the adapter's own card, and the Python interface ----


def card_of(source, folder: Path, adapter: Path, **settings: object) -> str:
    """The card that training would write about the adapter."""
    run = {
        "output_dir": str(adapter), "train_file": "train.jsonl", "num_train_epochs": 2.0, "rows_a_step": 16,
        "seed": 42, "lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj"],
        "learning_rate": 1e-4,
    }  # fmt: skip
    results = {"train_loss": 1.0, "epoch": 0.25, "eval_f1": 0.5, "eval_f1_人名": 0.25, "eval_loss": 2.0}
    results["test_f1"] = 0.75
    write_model_card(folder, run | source.settings.to_json() | settings, results)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_programs_in_the_adapters_card_run(adapter: Path, opened, tmp_path: Path) -> None:
    source, reference = opened
    card = card_of(source, tmp_path, adapter)
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) == 5
    told: list[str] = []
    exec(code.replace('"一段文本"', json.dumps(exports.TEXTS[0])), {"print": told.append})
    ids = [one for one in reference.answers[0] if one not in source.tokenizer.all_special_ids]
    assert told == [source.tokenizer.decode(ids)]
    commands = [line for line in card.splitlines() if line.startswith("python export.py")]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.partition(" && ")[0])[2:]
        assert parse_arguments(words).adapter == adapter


def test_the_card_names_the_base_on_the_hub_only_if_it_is_known(adapter: Path, opened, tmp_path: Path) -> None:
    source, _ = opened
    assert published_id("qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"
    assert published_id("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert published_id("qwen/demo") is None
    assert published_id("/models/mine") is None
    card = card_of(source, tmp_path, adapter, hub_id=None, license=None)
    assert "base_model:" not in card
    card = card_of(source, tmp_path, adapter, hub_id="Qwen/Qwen3-0.6B", license="apache-2.0")
    assert card.startswith("---\nbase_model: Qwen/Qwen3-0.6B\nlicense: apache-2.0\n")
    assert "| f1 | 0.5000 | 0.7500 |" in card
    assert "人名 | 0.25" not in card


def test_the_card_says_how_long_was_trained_and_not_what_was_asked_for(adapter: Path, opened, tmp_path: Path) -> None:
    assert "train.jsonl，0.25 轮，" in card_of(opened[0], tmp_path, adapter)


def test_the_licence_is_what_the_bases_own_card_says(tmp_path: Path) -> None:
    assert license_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlanguage: zh\nlicense: apache-2.0\n---\n# x\n", encoding="utf-8")
    assert license_of(tmp_path) == "apache-2.0"
    (tmp_path / "README.md").write_text("# x\nlicense: mit\n", encoding="utf-8")
    assert license_of(tmp_path) is None


def test_a_user_message_of_another_version_is_refused(adapter: Path, tmp_path: Path) -> None:
    content = TaskSettings(Classification(("体育", "军事"))).to_json()
    assert content["user_prompt"] == "类型选项：{options}\n文本：{text}"
    assert content["options_separator"] == "、"
    path = tmp_path / "old.task.json"
    old = {name: value for name, value in content.items() if name not in ("user_prompt", "options_separator")}
    path.write_bytes(sealed_bytes(old))
    assert TaskSettings.read(path).task == Classification(("体育", "军事"))
    path.write_bytes(sealed_bytes(content | {"user_prompt": "请分类：{text}"}))
    with pytest.raises(InputError, match="请分类"):
        TaskSettings.read(path)


def test_the_interface_of_three_lines_gives_what_predict_writes(adapter: Path, tmp_path: Path, capsys) -> None:
    import predict
    from sft.prediction.predictor import Predictor

    texts = [text for text in exports.TEXTS if "\n" not in text]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    assert predict.main(["--adapter", str(adapter), "--input_file", str(tmp_path / "texts.txt")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    predictor = Predictor.load(str(adapter))
    assert predictor(texts) == lines
    assert predictor([{"text": texts[0]}, {"text": ""}])[1] == {"error": "text: 文本是空的"}
    # The cells of a table: an empty one is no reason to lose the others.
    assert predictor([None, float("nan"), texts[0]]) == [
        {"error": "text: 缺少这个字段"},
        {"error": "text: 应是字符串，实际是 float"},
        *predictor([texts[0]]),
    ]
    with pytest.raises(InputError, match="列表"):
        predictor("一段文本")


def test_a_text_that_is_longer_than_those_of_training_is_not_said_to_exceed_max_length(opened, tmp_path: Path) -> None:
    source = opened[0]._replace(settings=opened[0].settings.replace(usual_text_tokens=8))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "张伟到了上海。" * 3}), encoding="utf-8")
    rows = rows_to_compare(tmp_path / "rows.jsonl", source, 1)
    reference = reference_module.reference_of(source, rows, 8, answers=False)
    assert len(reference.records) > 1
    (note,) = reference.notes
    assert "正文超过训练时常见的 8 个 token" in note


def test_a_long_article_is_cut_for_the_comparison_as_in_training_and_the_card_says_how(tokenizer, tmp_path) -> None:
    adapter = save_adapter(tokenizer, tmp_path, ("体育", "军事"))
    exports.edit_json("adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))(adapter, None)
    settings = TaskSettings.read(adapter / "task.json")
    task = replace(settings.task, long_text="ends")
    settings.replace(task=task, end_token="<|im_end|>", version="test").write(adapter / "task.json")
    rows = [{"task": "classification", "text": text} for text in ("国家队赢了。", "开头" * 200 + "结尾" * 200)]
    (adapter / "check_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, reference = exports.open_adapter(adapter)
    short, long = (record["text"] for record in reference.records)
    assert short == rows[0]["text"] and re.fullmatch("(开头)+开?…尾?(结尾)+", long)
    command = ["--adapter", str(adapter), "--to", "merged", "--output_dir", str(tmp_path / "merged")]
    assert export.main(command) == 0
    assert "开头和结尾各一半" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert read_json(tmp_path / "merged" / "task.json")["long_text"] == "ends"
