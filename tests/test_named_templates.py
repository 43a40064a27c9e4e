"""Prompts of nine well-known chat templates are the same token ids in training and prediction, on 200 rows each.

The templates here are written anew; they do to our prompts what those of the models do.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from models import save_adapter
from test_templates import adds_bos
from test_training import write_records
from transformers import AutoTokenizer

import export
from sft.errors import InputError
from sft.model.encoding import encode_prompts, encode_rows, terminator_id
from sft.model.loading import load_tokenizer
from sft.prediction.predictor import Predictor
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings

ROOT = Path(__file__).resolve().parents[1]
TASK = Ner(labels=("人名", "地理实体"), system_prompt="请提取实体。")
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
ASSISTANT = "{{ '<|im_start|>assistant\n' }}"
CLOSED = "{{ '<think>\n\n</think>\n\n' }}"
ANSWERED = "{% if m.role == 'assistant' %}" + ASSISTANT + CLOSED + "{{ m.content + '<|im_end|>\n' }}{% else %}"
THINKING_OFF = "enable_thinking is defined and enable_thinking is false"
THINKING_ON = "enable_thinking is defined and enable_thinking is true"


def chatml(beginning: str = "", at_the_end: str = "", turn: str = TURN) -> str:
    prompt = "{% if add_generation_prompt %}" + ASSISTANT + at_the_end + "{% endif %}"
    return beginning + "{% for m in messages %}" + turn + "{% endfor %}" + prompt


def either(condition: str, then: str, otherwise: str = "") -> str:
    return "{% if " + condition + " %}" + then + "{% else %}" + otherwise + "{% endif %}"


OPEN = "{{ '<think>\n' }}"
TEMPLATES = {
    "Qwen2.5": chatml(  # a default system prompt
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
    ),
    "Qwen3": chatml("", either(THINKING_OFF, CLOSED), ANSWERED + TURN + "{% endif %}"),
    "Qwen3-2507": chatml(),
    "Qwen3.5 small": chatml("", either(THINKING_ON, OPEN, CLOSED), ANSWERED + TURN + "{% endif %}"),
    "Qwen3.5 large": chatml("", either(THINKING_OFF, CLOSED, OPEN), ANSWERED + TURN + "{% endif %}"),
    "MiniCPM5": "{{ bos_token }}" + chatml("", either(THINKING_OFF, CLOSED), ANSWERED + TURN + "{% endif %}"),
    "Gemma 3": (  # no system turn, roles must alternate
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ (first if loop.first else '') + m.content|trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "SmolLM3": (  # the date, a mode, and the system prompt inside a block of its own
        "{{ '<|im_start|>system\n## Metadata\nToday Date: ' + strftime_now('%d %B %Y') + '\nReasoning Mode: ' }}"
        "{{ '/no_think' if enable_thinking is defined and not enable_thinking else '/think' }}"
        "{{ '\n\n## Custom Instructions\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% for m in messages if m.role != 'system' %}"
        + ANSWERED + TURN + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + ASSISTANT + either(THINKING_OFF, CLOSED) + "{% endif %}"
    ),
    "Llama 3.2": (
        "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
        "{% endif %}{% if messages[0].role == 'system' %}{% set system = messages[0].content|trim %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system }}"
        "{{ '<|eot_id|>' }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content|trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "two tokens end a turn": chatml(turn=TURN.replace("<|im_end|>\n", "<|im_end|><|endoftext|>")),
}  # fmt: skip
MARKS = ["<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
ENDS = {"Gemma 3": "<end_of_turn>", "Llama 3.2": "<|eot_id|>"}


@pytest.fixture(scope="module")
def records() -> list[dict]:
    with (ROOT / "data" / "sample" / "ner_train.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(196)]
    texts += ["<|im_end|>\n<|im_start|>system", "<think>\n", " 前后有空格 ", "<end_of_turn>\n<|eot_id|>"]
    return [{"text": text, "entities": []} for text in texts]


@pytest.fixture(params=TEMPLATES)
def trained(request, tokenizer, tmp_path):
    """The name of the template, and a tokenizer with it, loaded as a base model's."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": MARKS})
    own.chat_template = TEMPLATES[request.param]
    if "bos_token" in own.chat_template:
        adds_bos(own)
    own.save_pretrained(tmp_path / "base")
    return request.param, load_tokenizer(tmp_path / "base")


def test_200_prompts_are_the_same_ids_in_training_and_prediction(trained, records, tmp_path):
    name, in_training = trained
    in_prediction = Predictor.load(save_adapter(in_training, tmp_path / "run", ("人名",))).tokenizer
    rows, _ = encode_rows(list(enumerate(records, start=1)), TASK, in_training, 2000)
    ids = [row.prompt_ids for row in rows]
    assert len(ids) == 200
    assert ids == encode_prompts([{"text": record["text"]} for record in records], TASK, in_prediction)
    plain = AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter")
    for record, own in list(zip(records, ids, strict=True))[:196]:  # the others have marks of the template in them
        text = plain.apply_chat_template(TASK.prompt(record), add_generation_prompt=True, tokenize=False)
        assert plain(text, add_special_tokens=False)["input_ids"] == own
    end = ENDS.get(name, "<|im_end|>")
    assert {row.answer_ids[-1] for row in rows} == {terminator_id(in_training)}
    assert in_training.decode([terminator_id(in_training)]) == end


def test_200_prompts_are_the_same_ids_in_an_export(trained, records, tmp_path, capsys):
    _, in_training = trained
    adapter = save_adapter(in_training, tmp_path / "run", ("人名",))
    settings = TaskSettings(TASK, str(tmp_path / "run" / "base"), "float32", max_length=2000, max_new_tokens=8)
    settings.write(adapter / "task.json")
    more = [{"text": f"张伟去了{place}。", "entities": []} for place in "ABCD"]
    plain = records[:196] + more  # the others have marks of the template in them, which other programs obey
    rows = write_records(tmp_path / "rows.jsonl", TASK, plain)
    words = ["--adapter", str(adapter), "--rows", str(rows), "--to", "vllm", "--output_dir", str(tmp_path / "served")]
    assert export.main(words) == 0
    prompts = json.loads(capsys.readouterr().out)["legs"]["prompts"]
    assert prompts["equal"] == prompts["compared"] == 200


def test_no_prompt_thinks_and_every_one_has_the_instruction_once(trained, records):
    _, loaded = trained
    for record in records[:20]:
        (ids,) = encode_prompts([{"text": record["text"]}], TASK, loaded)
        prompt = loaded.decode(ids)
        assert prompt.count(TASK.system_prompt) == 1
        assert prompt.count("<think>") == prompt.count("</think>")
        assert "/think" not in prompt.replace("</think>", "")
        assert "You are Qwen" not in prompt
        assert ids.count(loaded.bos_token_id) <= 1 or loaded.bos_token_id is None


def test_a_template_that_always_opens_a_thought_is_refused(tokenizer, tmp_path):
    """As Qwen3.5's large one would be without its switch."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = chatml("", OPEN, ANSWERED + TURN + "{% endif %}")
    own.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="思考"):
        load_tokenizer(tmp_path)
