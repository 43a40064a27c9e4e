"""Every command answers a wrong command line in the same way: one line in Chinese, exit code 2."""

from __future__ import annotations

import errno

import pytest

import predict
import train_qwen2_classification
import train_qwen2_ner
import transfer_classification_data
import transfer_ner_data
from sft.cli import one_line_errors
from sft.errors import InputError, RunError, Stopped
from sft.tracking import replay

COMMANDS = {
    "predict": (predict.main, "--adaptor", "--adapter"),
    "train_ner": (train_qwen2_ner.main, "--learning_rat", "--learning_rate"),
    "train_cls": (train_qwen2_classification.main, "--output_dirs", "--output_dir"),
    "transfer_cls": (transfer_classification_data.main, "--output_fil", "--output_file"),
    "transfer_ner": (transfer_ner_data.main, "--test_rati", "--test_ratio"),
    "replay": (replay.main, "--swanlab_mod", "--swanlab_mode"),
}
ALL = pytest.mark.parametrize("command", COMMANDS)


def line_of(command: str, words: list[str], capsys) -> str:
    """A command's message about wrong usage."""
    with pytest.raises(SystemExit) as stop:
        COMMANDS[command][0](words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@ALL
def test_an_unknown_flag_is_answered_with_the_closest_one(command, capsys):
    _, wrong, right = COMMANDS[command]
    words = ["output"] if command == "replay" else []
    assert f"不认识的参数 {wrong}（是不是 {right}？）" in line_of(command, [*words, f"{wrong}=1"], capsys)


@ALL
def test_a_flag_like_no_other_is_named_without_a_guess(command, capsys):
    words = ["output"] if command == "replay" else []
    assert "不认识的参数 --zzzzzz；" in line_of(command, [*words, "--zzzzzz"], capsys)


@ALL
def test_a_missing_value_is_told_in_chinese(command, capsys):
    flag = COMMANDS[command][2]
    line = line_of(command, [flag], capsys)
    assert flag in line
    assert "后面要有一个值" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoding", "latin"], "不能是 'latin'"),
        (["--text", "a", "--input_file", "b"], "只能给一个"),
        (["--batch_size", "0"], "应是不小于 1 的整数"),
    ],
)
def test_other_slips_are_told_in_chinese(words, said, capsys):
    assert said in line_of("predict", words, capsys)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("甲：错了"), 2, "甲：错了"),
        (RunError("乙：停了"), 1, "乙：停了"),
        (Stopped("已停止", 15), 143, "已停止"),
        (KeyboardInterrupt(), 130, "已中断"),
        (
            OSError(errno.ENOSPC, "No space left on device", "丙"),
            1,
            "丙：No space left on device；请检查磁盘空间和权限",
        ),
    ],
    ids=["input", "run", "signal", "ctrl-c", "disk"],
)
def test_each_kind_of_error_has_its_exit_code_and_one_line(error, code, line, capsys):
    with one_line_errors() as outcome:
        raise error
    assert outcome.code == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [ZeroDivisionError(), ConnectionResetError(104, "reset"), OSError("of a library")])
def test_an_error_that_is_not_the_users_is_not_hidden(error):
    with pytest.raises(type(error)), one_line_errors():
        raise error


def test_a_closed_pipe_ends_only_a_command_whose_output_may_be_piped():
    with pytest.raises(BrokenPipeError), one_line_errors():
        raise BrokenPipeError


@pytest.mark.parametrize(("local_rank", "lines"), [("0", 1), ("1", 0)])
def test_a_wrong_input_is_told_once_on_each_machine(local_rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with one_line_errors() as outcome:
        raise InputError("甲：错了")
    assert outcome.code == 2
    assert capsys.readouterr().err.count("\n") == lines
