"""Flags for yes or no: alone, with a value or as ``--no_…``, of every script and in the file of ``--config``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import NO, YES, boolean
from sft.data.arguments import conversion_parser
from sft.errors import InputError
from sft.export.arguments import parse_arguments as parse_export
from sft.prediction.arguments import parse_arguments as parse_prediction
from sft.tracking import replay
from sft.training.arguments import parse_arguments
from sft.training.config import with_config
from sft.training.trainer_arguments import SftTrainingArguments, build_parser

TRAINING = build_parser("")
FLAGS = [action.dest for action in TRAINING._actions if action.type is boolean]
PREDICTING = ("base_only", "allow_other_base", "no_verify", "resume", "overwrite", "constrained")
REFUSED = ("fp16", "bf16", "fp16_full_eval", "bf16_full_eval", "use_liger_kernel")  # a yes is answered in one line


def predicted(*words: str) -> argparse.Namespace:
    needed = ["--adapter", "a"]
    if "--resume" in " ".join(words):
        needed += ["--input_file", "i", "--output_file", "o"]
    return parse_prediction([*needed, *words])


def test_no_flag_for_yes_or_no_is_left_out():
    """By the types of the fields, not by how the parser treats them."""
    hints = typing.get_type_hints(SftTrainingArguments)
    fields = {field.name for field in dataclasses.fields(SftTrainingArguments) if field.init}
    assert {name for name in fields if hints[name] in (bool, bool | None)} <= set(FLAGS)
    assert {"dry_run", "use_rslora", "allow_other_base", "overwrite_output_dir"} <= set(FLAGS)
    storing = (argparse._StoreTrueAction, argparse._StoreFalseAction)
    transfer = conversion_parser("", "", formats=(), output_file="", labels="", other_labels="")
    assert not [action for action in transfer._actions if isinstance(action, storing) or action.type is boolean]


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_of_training_can_stand_alone_have_a_value_or_a_no(flag):
    spellings = {f"--{flag}", f"--{flag.replace('_', '-')}"}
    for spelling in spellings:
        for words, value in (
            *(([spelling], True), ([spelling, "--seed", "3"], True), ([spelling, "true"], True)),
            *(([f"{spelling}=true"], True), ([spelling, "false"], False), ([f"{spelling}=False"], False)),
            *(([f"--no_{flag}"], False), ([spelling, f"--no_{flag}"], False), ([f"--no_{flag}", spelling], True)),
        ):
            assert getattr(TRAINING.parse_args(words), flag) is value, words
    by_itself, default = getattr(TRAINING.parse_args([]), flag), TRAINING.get_default(flag)
    assert by_itself is (default if default is None else default in (True, "true"))


@pytest.mark.parametrize("flag", PREDICTING)
def test_every_flag_of_prediction_can_stand_alone_have_a_value_or_a_no(flag):
    for words, value in (
        *(([f"--{flag}"], True), ([f"--{flag}", "true"], True), ([f"--{flag}=no"], False)),
        *(([f"--{flag}", "false"], False), ([f"--{flag}", "--text", "甲"], True)),
    ):
        if flag == "resume":
            words = [word for word in words if word not in ("--text", "甲")]
        assert getattr(predicted(*words), flag) is value, words
    if not flag.startswith("no_"):
        assert getattr(predicted(f"--{flag}", f"--no_{flag}"), flag) is False


@pytest.mark.parametrize("flag", ["overwrite", "allow_other_base", "no_verify"])
def test_every_flag_of_an_export_can_stand_alone_or_have_a_value(flag):
    needed = ["--adapter", "a", "--to", "merged", "--output_dir", "o"]
    for words, value in (([f"--{flag}"], True), ([f"--{flag}", "false"], False), ([f"--{flag}=on"], True)):
        assert getattr(parse_export([*needed, *words]), flag) is value


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag not in REFUSED and not flag.startswith("do_")])
def test_what_is_typed_counts_as_given(flag):
    from sft.training.arguments import given_flags

    for word in (f"--{flag}", f"--{flag}=false", f"--no_{flag}", f"--{flag.replace('_', '-')}"):
        assert given_flags(TRAINING, [word, "--lora-r=4", "data"]) == {flag, "lora_r"}


@given(st.sampled_from([*YES, *NO, "maybe", "2", "", "ture", "是"]), st.sampled_from(["lower", "upper", "title"]))
def test_a_word_is_yes_no_or_refused(word, case):
    word = getattr(word, case)()
    if word.lower() in (*YES, *NO):
        assert boolean(word) is (word.lower() in YES)
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="应是 true 或 false"):
            boolean(word)


@pytest.mark.parametrize("words", [["--gradient_checkpointing", "ture"], ["--no_gradient_checkpointing=true"]])
def test_another_word_is_refused_in_one_line_of_chinese(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments("", words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "应是 true 或 false" in line or "后面不能有值" in line


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag != "config"])
def test_every_flag_can_stand_in_a_file(flag, tmp_path):
    for ending, text, value in (
        *(("yaml", f"{flag}: {word}", True) for word in ("true", "yes", "on", "True", "1")),
        *(("yaml", f"{flag}: {word}", False) for word in ("false", "no", "off", "False", "0")),
        *(("json", json.dumps({flag: value}), value) for value in (True, False)),
    ):
        path = tmp_path / f"run.{ending}"
        path.write_text(text, encoding="utf-8")
        words = with_config(TRAINING, ["--config", str(path)])
        assert getattr(TRAINING.parse_args(words), flag) is value, text
        assert (
            getattr(TRAINING.parse_args([*words, f"--no_{flag}"]), flag) is False
        )  # the command line counts for more
    path = tmp_path / "run.yaml"
    path.write_text(f"{flag}: ~", encoding="utf-8")
    assert with_config(TRAINING, ["--config", str(path)]) == ["--config", str(path)]


def test_a_key_with_nothing_after_it_is_neither_yes_nor_no(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("validation_file:\ngradient_checkpointing:\nseed: 1", encoding="utf-8")
    with pytest.raises(InputError, match="gradient_checkpointing 后面没有值；请写 true 或 false"):
        with_config(TRAINING, ["--config", str(path)])


@pytest.mark.parametrize("words", [["--resume_from_checkpoint"], ["--resume_from_checkpoint", "true"]])
def test_resuming_needs_no_value(words):
    assert TRAINING.parse_args(words).resume_from_checkpoint == "true"


def test_the_other_scripts_have_no_such_flag():
    """If one gets one, it belongs into this file."""
    assert "store_true" not in Path(replay.__file__).read_text(encoding="utf-8")
