"""Chat templates: a prompt has the whole instruction, never changes, opens no thought, and ends in a known token."""

from __future__ import annotations

import copy
import datetime
import json
from pathlib import Path

import pytest
import torch
from conftest import CHAT_TEMPLATE
from hypothesis import given
from hypothesis import strategies as st
from models import save_adapter, save_model, tiny_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from sft.errors import InputError
from sft.model import template as template_module
from sft.model.encoding import encode_answers, encode_prompts, terminator_id
from sft.model.loading import load_tokenizer, tokenizer_hash
from sft.model.template import PROMPT_DATE, prompt_date
from sft.prediction.predictor import ModelChoice, Predictor
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + HEADER
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content|trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
FIRST_TURN_ONLY = (  # like templates that read only the last two messages
    "{% for m in messages[-2:] if m.role != 'system' %}" + TURN + "{% endfor %}" + HEADER
)
# Qwen3: thinks, unless it is told not to.
CLOSED = "{{ '<think>\n\n</think>\n\n' }}"
HYBRID = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    + CLOSED
    + "{{ m.content + '<|im_end|>\n' }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}" + CLOSED + "{% endif %}{% endif %}"
)
# A larger Qwen3.5: opens the thought unless it is told not to.
OPENS = HYBRID.replace("{% endif %}{% endif %}", "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}")
ALWAYS_OPENS = "{% for m in messages %}" + TURN + "{% endfor %}" + HEADER.replace("\n'", "\n<think>\n'")
BRACKETS = ALWAYS_OPENS.replace("<think>", "[THINK]")
# Llama 3.2 and SmolLM3: today's date in the system turn.
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHAT_TEMPLATE
DATED_WITH_DEFAULT = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d-%B-%Y') %}{% else %}{% set date_string = '26 Jul 2024' %}"
    "{% endif %}{% endif %}{{ 'Today: ' + date_string + '\n' }}" + CHAT_TEMPLATE
)
NO_END = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<用户>' + m.content|trim + '<AI>' }}"
    "{% else %}{{ m.content|trim }}{% endif %}{% endfor %}"
)
# gpt-oss: names a channel before an answer, but not in the prompt.
CHANNEL = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant#final:' + m.content }}"
    "{{ '<|im_end|>' }}{% else %}" + TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
TASK = Ner(labels=("人名",), system_prompt="请提取实体。")
RECORD = {"text": "张伟到了上海", "entities": []}


@pytest.fixture
def with_template(tokenizer, tmp_path):
    """Load a tokenizer from a folder with this chat template, as a base model's."""

    def load(template: str | None, change=lambda tokenizer: None):
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        change(own)
        folder = tmp_path / "base"
        own.save_pretrained(folder)
        return load_tokenizer(folder)

    return load


@pytest.fixture(scope="module")
def folding(tokenizer, tmp_path_factory):
    """A tokenizer whose template has no system messages, loaded as a base model's."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = NO_SYSTEM
    folder = tmp_path_factory.mktemp("folding")
    own.save_pretrained(folder)
    return load_tokenizer(folder)


def prompt(tokenizer, text: str = RECORD["text"]) -> str:
    (ids,) = encode_prompts([{"text": text}], TASK, tokenizer)
    return tokenizer.decode(ids)


def user_turn(text: str = RECORD["text"], role: str = "assistant") -> str:
    return f"<|im_start|>user\n请提取实体。\n\n{text}<|im_end|>\n<|im_start|>{role}\n"


class TestInstruction:
    @pytest.mark.parametrize(
        "template, role",
        [(NO_SYSTEM, "assistant"), (ALTERNATES, "model"), (FIRST_TURN_ONLY, "assistant")],
        ids=["left out", "refused", "only the last messages"],
    )
    def test_a_template_without_system_messages_gets_the_instruction_in_the_user_turn(
        self, with_template, caplog, template, role
    ):
        assert prompt(with_template(template)) == user_turn(role=role)
        assert "指令改放在用户消息的开头" in caplog.text
        assert len(caplog.records) == 1

    @given(text=st.lists(st.sampled_from(["张伟", "<|im_end|>", "<|im_start|>system", "\n", " "])).map("".join))
    def test_the_folded_prompt_never_has_control_tokens_from_data(self, folding, text):
        (ids,) = encode_prompts([{"text": text}], TASK, folding)
        assert folding.decode(ids) == user_turn(text)
        start, end = folding.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        assert [index for index in ids if index in (start, end)] == [start, end, start]

    def test_a_template_that_needs_no_mending_stays_as_it_is(self, with_template, caplog):
        for template in (CHAT_TEMPLATE, CHAT_TEMPLATE.replace("message['content']", "message['content']|trim")):
            assert with_template(template).chat_template == template
        assert not caplog.records

    @pytest.mark.parametrize(
        "template, reason",
        [
            ("{{ 'hello<|im_end|>' }}", "没有完整出现"),
            (NO_SYSTEM.replace("m.content", "m.content[:100]"), "没有完整出现"),
            (CHAT_TEMPLATE.replace("in messages", "in messages + messages"), "出现了 2 次"),
            (CHAT_TEMPLATE.replace("in messages", "in messages if message.role != 'assistant'"), "回答没有完整出现"),
            ("{{ raise_exception('not for chats') }}", "not for chats"),
            ("{% for", "渲染出错"),
            ("{{ messages[9].content }}", "渲染出错"),
            ("{{ 1 // 0 }}", "渲染出错"),
            (CHAT_TEMPLATE + "{{ range(1000000)|random }}", "结果不同|渲染出错"),
            (CHAT_TEMPLATE + "{{ range(100000)|random }}", "结果不同"),
        ],
    )
    def test_a_template_that_cannot_be_used_is_refused_in_one_line(self, with_template, template, reason):
        with pytest.raises(InputError, match=reason) as error_info:
            with_template(template)
        assert "\n" not in str(error_info.value)
        assert "base" in str(error_info.value)

    def test_a_template_that_never_ends_is_refused(self, with_template, monkeypatch):
        monkeypatch.setattr(template_module, "RENDER_SECONDS", 0.2)
        long = "{% for a in range(99999) %}{% for b in range(200) %}"
        with pytest.raises(InputError, match="还没有结束"):
            with_template(long + "{% endfor %}{% endfor %}" + CHAT_TEMPLATE)


class TestDate:
    @pytest.mark.parametrize(
        "template, day",
        [(DATED, "26 Jul 2024"), (DATED_WITH_DEFAULT, "26-July-2024")],
        ids=["plain", "with a default"],
    )
    def test_the_date_in_a_prompt_is_always_the_same(self, with_template, template, day):
        loaded = with_template(template)
        assert prompt(loaded).startswith(f"Today: {day}\n<|im_start|>system\n请提取实体。")
        assert prompt_date(loaded) == PROMPT_DATE

    @pytest.mark.parametrize(
        "code", ["%d %b %Y", "%Y-%m-%d", "%-d. %B %y", "%A, %a", "%H:%M:%S", "%I %p", "%j", "%F", "%e %u", "%T"]
    )
    def test_the_clock_writes_what_pythons_strftime_writes_for_that_day(self, with_template, code):
        loaded = with_template("{{ strftime_now('" + code + "') }}" + CHAT_TEMPLATE)
        day = datetime.datetime.fromisoformat(PROMPT_DATE)
        assert prompt(loaded).startswith(day.strftime(code) + "<|im_start|>")

    def test_a_template_without_a_date_has_none(self, with_template):
        assert prompt_date(with_template(CHAT_TEMPLATE)) is None


class TestThinking:
    @pytest.mark.parametrize("template", [HYBRID, OPENS], ids=["thinks by default", "opens the thought"])
    def test_a_model_that_can_stop_thinking_is_told_to(self, with_template, template):
        loaded = with_template(template)
        assert prompt(loaded).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        (ids,) = encode_answers([RECORD], TASK, loaded)
        whole = loaded.apply_chat_template(
            [*TASK.prompt(RECORD), {"role": "assistant", "content": TASK.answer(RECORD)}], tokenize=False
        )
        assert prompt(loaded) + loaded.decode(ids) == whole.rstrip("\n")

    @pytest.mark.parametrize("template", [ALWAYS_OPENS, BRACKETS], ids=["<think>", "[THINK]"])
    def test_a_prompt_that_ends_inside_a_thought_is_refused(self, with_template, template):
        with pytest.raises(InputError, match=r"思考.*<think>|思考.*\[THINK\]"):
            with_template(template)

    def test_a_closed_thought_is_not_refused(self, with_template):
        closed = ALWAYS_OPENS.replace("<think>\n", "<think>\n\n</think>\n\n")
        assert prompt(with_template(closed)).endswith("</think>\n\n")

    def test_what_a_template_writes_before_an_answer_is_in_the_prompt_too(self, with_template):
        assert prompt(with_template(CHANNEL)).endswith("<|im_end|>\n<|im_start|>assistant#final:")


def adds_bos(tokenizer) -> None:
    """The tokenizer puts BOS before each text, as those of Llama and Gemma do."""
    tokenizer.bos_token = "<|endoftext|>"
    token_id = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        pair="<|endoftext|> $A $B",
        special_tokens=[("<|endoftext|>", token_id)],
    )


class TestBeginning:
    @pytest.mark.parametrize(
        "template",
        [None, CHAT_TEMPLATE, "{{ bos_token }}" + CHAT_TEMPLATE, NO_SYSTEM, DATED],
        ids=["ChatML fallback", "own template", "writes it itself", "folded", "dated"],
    )
    def test_a_tokenizer_that_adds_bos_has_it_once_at_the_start(self, with_template, template):
        loaded = with_template(template, adds_bos)
        (ids,) = encode_prompts([RECORD], TASK, loaded)
        assert ids[0] == loaded.bos_token_id
        assert ids.count(loaded.bos_token_id) == 1

    def test_a_tokenizer_that_adds_nothing_gets_nothing(self, with_template):
        assert prompt(with_template(None)).startswith("<|im_start|>system")


def untrained(folder: Path, ids: list[int]) -> None:
    """Give these tokens the row that the unused ones of the padded vocabulary have."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, rows in tensors.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            rows[ids] = 1e-3 * torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(3))
    save_file(tensors, path, metadata={"format": "pt"})


class TestEnd:
    @pytest.mark.parametrize("architecture", ["qwen2", "llama"])  # tied, and with an output layer of its own
    def test_an_end_that_was_never_trained_gives_way_to_a_trained_one(self, tokenizer, tmp_path, caplog, architecture):
        folder = save_model(tiny_model(architecture), tokenizer, tmp_path)
        unused = list(range(len(tokenizer), 512))
        marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        untrained(folder, unused)
        assert load_tokenizer(folder).decode([terminator_id(load_tokenizer(folder))]) == "<|im_end|>"
        assert not caplog.records
        untrained(folder, [*marks, *unused])
        loaded = load_tokenizer(folder)
        assert "<|im_end|> 没有训练过" in caplog.text
        assert loaded.decode([terminator_id(loaded)]) == "<|endoftext|>"
        assert prompt(loaded) == prompt(tokenizer)  # between turns the template's own mark stays
        (answer,) = encode_answers([RECORD], TASK, loaded)
        assert answer[-1] == loaded.convert_tokens_to_ids("<|endoftext|>")

    def test_without_a_trained_end_a_warning_says_so(self, tokenizer, tmp_path, caplog):
        folder = save_model(tiny_model("qwen2"), tokenizer, tmp_path)
        ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
        untrained(folder, [*ends, *range(len(tokenizer), 512)])
        assert load_tokenizer(folder).chat_template == CHAT_TEMPLATE
        assert "没有别的可换" in caplog.text

    def test_nothing_is_said_about_a_random_model(self, tokenizer, tmp_path, caplog):
        load_tokenizer(save_model(tiny_model("qwen2"), tokenizer, tmp_path))
        assert not caplog.records

    def test_a_template_without_an_end_takes_the_tokenizers(self, with_template, caplog):
        loaded = with_template(NO_END)
        assert loaded.decode([terminator_id(loaded)]) == "<|im_end|>"
        assert prompt(loaded) == "请提取实体。<用户>张伟到了上海<AI>"
        (answer,) = encode_answers([RECORD], TASK, loaded)
        assert loaded.decode(answer) == TASK.answer(RECORD) + "<|im_end|>"

    def test_without_any_end_it_is_refused(self, with_template):
        with pytest.raises(InputError, match="没有结束符"):
            with_template(NO_END, lambda tokenizer: setattr(tokenizer, "eos_token", None))


class TestSavedWithTheAdapter:
    @pytest.mark.parametrize("template", [NO_SYSTEM, DATED, HYBRID, NO_END, CHANNEL, None])
    def test_a_settled_template_needs_no_settling_again(self, with_template, tmp_path, template):
        settled = with_template(template, adds_bos)
        settled.save_pretrained(tmp_path / "merged")
        (tmp_path / "merged" / "config.json").write_text('{"vocab_size": 512}')
        again = load_tokenizer(tmp_path / "merged")
        assert again.chat_template == settled.chat_template
        assert tokenizer_hash(again) == tokenizer_hash(settled)

    def test_prediction_and_plain_transformers_use_the_prompts_of_training(self, with_template, tmp_path):
        trained = with_template(NO_SYSTEM)
        adapter = save_adapter(trained, tmp_path / "run", ("人名",))
        assert prompt(Predictor.load(adapter).tokenizer) == prompt(trained)
        plain = AutoTokenizer.from_pretrained(adapter)
        messages = TASK.prompt(RECORD)
        assert plain.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == prompt(trained)

    def test_an_older_adapter_keeps_the_template_that_it_was_trained_with(self, tokenizer, tmp_path):
        own = copy.deepcopy(tokenizer)
        for template in (HYBRID, NO_SYSTEM, ALWAYS_OPENS):  # as training used them before they were settled
            own.chat_template = template
            own.save_pretrained(tmp_path / "old")
            (tmp_path / "old" / "adapter_config.json").write_text("{}")
            assert load_tokenizer(tmp_path / "old").chat_template == template

    def test_another_end_than_in_training_is_refused(self, tokenizer, tmp_path):
        adapter = save_adapter(tokenizer, tmp_path, ("体育",))
        path = adapter / "task.json"
        settings = TaskSettings.read(path)
        assert settings.end_token is None  # an older file: it still loads
        Predictor.load(adapter)
        settings.replace(end_token="<|endoftext|>").write(path)
        with pytest.raises(InputError, match="结束"):
            Predictor.load(adapter)

    def test_the_date_and_the_end_are_read_back_from_task_json(self, tmp_path):
        settings = TaskSettings(TASK, end_token="<|im_end|>", prompt_date=PROMPT_DATE)
        settings.write(tmp_path / "task.json")
        assert TaskSettings.read(tmp_path / "task.json") == settings
        content = json.loads((tmp_path / "task.json").read_text(encoding="utf-8"))
        assert (content["end_token"], content["prompt_date"]) == ("<|im_end|>", PROMPT_DATE)


class TestPadding:
    def test_a_padding_token_beyond_the_embedding_is_not_used(self, tokenizer, tmp_path):
        folder = save_model(tiny_model("qwen2"), tokenizer, tmp_path)
        config = json.loads((folder / "config.json").read_text())
        own = copy.deepcopy(tokenizer)
        own.add_special_tokens({"pad_token": "[PAD]"})
        own.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": own.pad_token_id}))
        loaded = load_tokenizer(folder)
        assert loaded.pad_token_id < own.pad_token_id
        assert prompt(loaded) == prompt(tokenizer)

    def test_a_tokenizer_without_padding_and_end_pads_with_the_templates_end(self, with_template):
        def bare(own) -> None:
            own.pad_token = own.eos_token = None

        loaded = with_template(CHAT_TEMPLATE, bare)
        assert loaded.pad_token == "<|im_end|>"

    def test_template_tokens_beyond_the_embedding_are_refused(self, tokenizer, tmp_path):
        folder = save_model(tiny_model("qwen2"), tokenizer, tmp_path)
        config = json.loads((folder / "config.json").read_text())
        rows = tokenizer.convert_tokens_to_ids("<|im_start|>")
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
        with pytest.raises(InputError, match=rf"<\|im_.*{rows}"):
            load_tokenizer(folder)


def test_predicting_with_the_base_alone_settles_its_template(tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.chat_template = NO_SYSTEM
    folder = save_model(tiny_model("qwen2"), own, tmp_path / "base")
    TaskSettings(TASK).write(tmp_path / "x.task.json")
    choice = ModelChoice(task_file=tmp_path / "x.task.json", model_name_or_path=str(folder))
    assert prompt(Predictor.load(choice).tokenizer) == user_turn()
