"""The flags of training: what is typed does what it says, or is refused in one line before a model is read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import LINEAR_PROJECTIONS, SIZES
from transformers import GPT2Config, Phi3Config, Qwen2Config
from transformers.utils import is_liger_kernel_available

from sft.errors import InputError
from sft.model.lora import target_modules
from sft.training.arguments import parse_arguments
from sft.training.ranges import RANGES
from sft.training.sharding import is_asked_for, refuse_where_it_cannot

CONFIGS = {
    "qwen2": Qwen2Config(**SIZES),
    "phi3": Phi3Config(**SIZES | {"pad_token_id": 0}),
    "gpt2": GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4),
}


def parsed(*words: str):
    return parse_arguments("", words)


def refusal(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_arguments("", words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


class TestBareFlags:
    @pytest.mark.parametrize("flag", ["gradient_checkpointing", "load_best_model_at_end", "eval_on_start"])
    def test_a_flag_for_yes_or_no_means_yes_when_it_stands_alone(self, flag, tmp_path, recwarn):
        for words in ([f"--{flag}"], [f"--{flag}", "--seed", "3"], [f"--{flag}", "true"]):
            assert getattr(parsed(*words, "--output_dir", str(tmp_path)).training, flag) is True
        assert getattr(parsed(f"--{flag}", "false").training, flag) is False
        assert not recwarn.list

    @pytest.mark.parametrize("words", [["--report_to", "none"], ["--report_to", "swanlab"], []])
    def test_no_tools_besides_swanlab(self, words):
        assert parsed(*words).training.report_to == []

    def test_several_tools_are_read_with_commas_or_blanks(self, capsys):
        for words in (["swanlab", "nosuchtool"], ["swanlab,nosuchtool"], ["swanlab nosuchtool"]):
            assert "--report_to nosuchtool：没有这个工具" in refusal(["--report_to", *words], capsys)


class TestRefusals:
    @pytest.mark.parametrize(
        "words, advice",
        [
            (["--bf16"], "--dtype bfloat16"),
            (["--fp16", "true"], "--dtype float16"),
            (["--bf16", "false"], "--dtype float32"),
            (["--fp16=false"], "--dtype float32"),
            (["--fp16_full_eval"], "--dtype float16"),
            (["--bf16_full_eval", "true"], "--dtype bfloat16"),
            (["--half_precision_backend", "auto"], "--dtype"),
            (["--torch_dtype", "bfloat16"], "--dtype"),
            (["--tf32", "true"], "Ampere"),
            (["--label_smoothing_factor", "0.1"], "标签平滑"),
            (["--neftune_noise_alpha", "5"], "噪声"),
            (["--use_liger_kernel"], "只在 NVIDIA 显卡上"),
            (["--compile_layers"], "只在显卡上"),
            (["--deepspeed", "ds.json"], "--use_fsdp --fsdp_version 2"),
            (["--fsdp_config", "fsdp.json"], "--fsdp"),
            (["--load_in_4bit"], "请用 --quantization nf4"),
            (["--auto_find_batch_size"], "自动分几次算"),
            (["--remove_unused_columns", "true"], "请去掉它"),
            (["--prediction_loss_only"], "--max_validation_rows"),
            (["--eval_accumulation_steps", "4"], "--per_device_eval_batch_size"),
            (["--include_num_input_tokens_seen"], "executed_tokens"),
            (["--label_names", "labels"], "请去掉它"),
            (["--include_for_metrics", "loss"], "请去掉它"),
            (["--debug", "underflow_overflow"], "请去掉它"),
            (["--do_eval"], "请用 predict.py"),
            (["--do_predict", "true"], "请用 predict.py"),
            (["--do_train", "false"], "请用 predict.py"),
        ],
    )
    def test_what_would_do_nothing_is_refused_and_the_right_flag_is_named(self, words, advice, capsys):
        line = refusal(words, capsys)
        assert words[0].partition("=")[0] in line
        assert advice in line

    @pytest.mark.parametrize(
        "words, advice",
        [
            (["--eval_strategy", "epochs"], "--eval_strategy 应是 no、steps、epoch 之一"),
            (["--save_strategy", "never"], "--save_strategy 应是 no、steps、epoch、best 之一"),
            (["--lr_scheduler_kwargs", "num_cycles=2"], "--lr_scheduler_kwargs num_cycles=2：应是 JSON 对象"),
            (["--lr_scheduler_kwargs", "{num_cycles: 2}"], """如 '{"num_cycles": 2}'"""),
            (["--gradient_checkpointing_kwargs", "x"], """如 '{"use_reentrant": false}'"""),
            (["--optim_args", "momentum"], "如 momentum=0.9"),
            (["--accelerator_config", "none.json"], "none.json"),
        ],
    )
    def test_a_value_of_another_kind_is_told_with_its_flag_and_an_example(self, words, advice, capsys):
        assert advice in refusal(words, capsys)

    @pytest.mark.parametrize("flag", ["train_file", "test_file", "output_dir", "lora_target_modules", "run_name"])
    def test_an_empty_value_as_from_a_variable_that_is_not_set_is_named(self, flag, capsys):
        assert f"--{flag} 的值是空的" in refusal([f"--{flag}", ""], capsys)

    @pytest.mark.parametrize(
        "config, words",
        [
            ({"version": 1}, "FSDP2"),
            ({"fsdp_version": 1}, "FSDP2"),
            ({"cpu_offload": True}, "--gradient_checkpointing"),
            ({"fsdp_activation_checkpointing": "true"}, "--gradient_checkpointing"),
            ([], "JSON"),
        ],
    )
    def test_what_of_fsdp_was_never_tried_is_refused(self, config, words, tmp_path, capsys):
        (tmp_path / "fsdp.json").write_text(json.dumps(config))
        assert words in refusal(["--fsdp", "--fsdp_config", str(tmp_path / "fsdp.json")], capsys)

    @pytest.mark.parametrize(
        "environment, words",
        [
            ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_fsdp --fsdp_version 2"),
            ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "torchrun"),
            ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "torchrun"),
            ({"ACCELERATE_USE_FSDP": "true"}, "FSDP2"),  # of version 1, where none is named
            ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP2"),
            ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "cpu_offload"),
        ],
    )
    def test_what_a_launcher_asks_for_is_refused_like_a_flag(self, environment, words, monkeypatch, capsys):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert words in refusal([], capsys)

    @pytest.mark.parametrize("words", [["--fsdp"], ["--fsdp", "true"], ["--fsdp", "full_shard auto_wrap"]])
    def test_fsdp_needs_several_processes_and_gpus(self, words, monkeypatch):
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # restored afterwards: the flags change it
        training = parsed(*words).training
        assert training.fsdp_plugin_args["fsdp_version"] == 2
        with pytest.raises(InputError, match="几个进程"):
            refuse_where_it_cannot(training, torch.bfloat16)

    def test_fsdp_does_not_spread_a_base_in_4_bits(self):
        training = SimpleNamespace(fsdp=True, world_size=2, device=torch.device("cuda"))
        refuse_where_it_cannot(training, torch.bfloat16)
        with pytest.raises(InputError, match="nf4"):
            refuse_where_it_cannot(training, torch.bfloat16, "nf4")

    def test_the_flags_of_transformers_own_examples_are_taken(self):
        assert parsed("--do_train", "--do_eval", "--do_predict").training.do_train

    def test_fsdp_can_be_switched_off(self):
        training = parsed("--fsdp", "false").training
        assert not is_asked_for(training) and not training.fsdp_plugin_args

    def test_what_is_refused_can_be_switched_off(self):
        training = parsed("--fp16_full_eval", "false", "--label_smoothing_factor", "0").training
        assert not training.fp16_full_eval
        assert not training.label_smoothing_factor

    @pytest.mark.skipif(is_liger_kernel_available(), reason="liger-kernel is installed")
    def test_on_a_gpu_liger_s_package_is_named(self, capsys, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert "pip install liger-kernel" in refusal(["--use_liger_kernel"], capsys)

    def test_layers_are_not_compiled_on_windows(self, capsys, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("sys.platform", "win32")
        assert "Windows" in refusal(["--compile_layers"], capsys)

    def test_an_optimizer_whose_package_is_missing_is_named_before_training(self, capsys):
        assert "apollo_torch" in refusal(["--optim", "apollo_adamw", "--optim_target_modules", "all-linear"], capsys)

    @pytest.mark.parametrize(
        "flag, value",
        [
            ("per_device_train_batch_size", "0"), ("learning_rate", "-1"), ("learning_rate", "nan"),
            ("max_steps", "0"), ("max_steps", "-2"), ("num_train_epochs", "0"), ("num_train_epochs", "inf"),
            ("max_train_samples", "-5"), ("validation_ratio", "1.5"), ("lora_r", "0"), ("lora_dropout", "1"),
            ("lora_alpha", "0"), ("max_length", "-1"), ("preview", "-1"), ("seed", "-1"), ("seed", "4294967296"),
            ("data_seed", "-1"), ("adam_beta1", "1"), ("adam_beta2", "nan"), ("adam_epsilon", "-1"),
            ("eval_delay", "-1"),
        ],
    )  # fmt: skip
    def test_a_number_out_of_range_is_named_with_the_range(self, flag, value, capsys):
        line = refusal([f"--{flag}", value], capsys)
        assert f"--{flag} 应是" in line
        assert line.count("实际是") == 1

    @given(name=st.sampled_from(sorted(RANGES)), value=st.integers(-3, 3))
    def test_a_range_says_exactly_what_it_takes(self, name, value):
        limits = RANGES[name]
        beyond = value == limits.least if limits.above else False
        inside = value >= limits.least and not beyond and (limits.below is None or value < limits.below)
        assert limits.has(value) == (inside or value == limits.besides)
        assert not any(limits.has(float(word)) for word in ("nan", "inf", "-inf"))

    def test_the_defaults_are_in_range(self):
        assert parsed().lora.lora_r == 8


class TestTargetModules:
    @pytest.mark.parametrize(
        "words",
        [["q_proj,v_proj"], ["q_proj", "v_proj"], ["q_proj，v_proj"], ["q_proj、", "v_proj"], ["q_proj v_proj"]],
    )
    def test_names_are_separated_by_blanks_or_commas(self, words):
        assert parsed("--lora_target_modules", *words).lora.lora_target_modules == ["q_proj", "v_proj"]

    def test_all_linear_can_be_written_with_either_line(self):
        for word in ("all-linear", "all_linear"):
            assert parsed("--lora_target_modules", word).lora.lora_target_modules == ["all-linear"]

    @pytest.mark.parametrize("names", [["q_prj", "v_proj"], ["query"], ["proj"], ["all-linear", "q_proj"]])
    def test_a_name_that_the_model_does_not_have_is_refused_with_the_names_that_it_has(self, names):
        with pytest.raises(
            InputError, match=r"模型里没有 .*q_proj、k_proj.*--lora_target_modules all-linear"
        ) as refused:
            target_modules(CONFIGS["qwen2"], names)
        assert "v_proj" not in str(refused.value).partition("；")[0]

    @pytest.mark.parametrize("names", [["q_proj"], ["self_attn.q_proj"], ["layers.1.mlp.up_proj"]])
    def test_a_name_can_be_the_end_of_a_path(self, names):
        assert target_modules(CONFIGS["qwen2"], names) == names

    @pytest.mark.parametrize(
        "name, layers",
        [
            ("qwen2", LINEAR_PROJECTIONS),
            ("phi3", ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]),
            ("gpt2", ["c_attn", "c_proj", "c_fc"]),
        ],
    )
    def test_the_default_is_every_linear_layer_of_the_model(self, name, layers):
        assert target_modules(CONFIGS[name], parsed().lora.lora_target_modules) == layers
