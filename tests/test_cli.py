"""Every command answers a wrong command line in the same way: one line in Chinese, exit code 2."""

from __future__ import annotations

import errno

import pytest

import predict
import sft
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
def test_the_version_is_printed(command, capsys):
    with pytest.raises(SystemExit) as stop:
        COMMANDS[command][0](["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"chinese-llm-sft {sft.__version__}\n"


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


SLIPS = [
    ("predict", ["--adaper", "x"], "是不是 --adapter？"),
    ("predict", ["--base_only", "--text", "甲", "--optons", "a,b"], "是不是 --options？"),
    ("predict", ["—adapter", "x"], "是不是 --adapter？开头要用两个英文减号"),
    ("predict", ["——adapter=x"], "是不是 --adapter？开头要用两个英文减号"),
    ("predict", ["－－ａｄａｐｔｅｒ", "x"], "是不是 --adapter？开头要用两个英文减号"),
    ("predict", ["--adapter", "－－text", "甲"], "是不是 --text？开头要用两个英文减号"),
    ("predict", ["-adapter", "x"], "是不是 --adapter？"),
    ("predict", ["--Adapter", "x"], "是不是 --adapter？"),
    ("predict", ["--adapter\u3000", "x"], "是不是 --adapter？里面多了空格"),
    ("predict", ["--adapter =x"], "是不是 --adapter？里面多了空格"),
    ("predict", ["--adapter=", "x"], "请写成 --adapter x"),
    ("predict", ["--", "adapter", "x"], "请写成 --adapter"),
    ("predict", ["--input", "file", "x"], "--input file（是不是 --input_file？）"),
    ("predict", ["--batch-size", "4"], "是不是 --batch_size？"),
    ("predict", ["--model", "x"], "请用 --model_name_or_path"),
    ("predict", ["--lora", "x"], "请用 --adapter"),
    ("predict", ["--adapter", "x", "--input_file", "my", "data.csv"], "不认识的词 data.csv；值里有空格就用引号"),
    ("predict", ["adapter=x"], "是不是 --adapter？"),
    ("predict", ["--adapter", "x", "--text", "-开头"], "请写成 --text=-开头"),
    ("train_ner", ["--train_fil", "x"], "是不是 --train_file？"),
    ("train_cls", ["--lora_target_modules", "q_proj", "—lora_r", "4"], "是不是 --lora_r？开头要用"),
    ("train_cls", ["--learning", "rate", "1e-4"], "是不是 --learning_rate？"),
    ("train_cls", ["--epochs", "3"], "请用 --num_train_epochs"),
    ("train_ner", ["--lr", "1e-4"], "请用 --learning_rate"),
    ("train_ner", ["--batch_size=4"], "请用 --per_device_train_batch_size"),
    ("train_cls", ["--model", "x"], "请用 --model_name_or_path"),
    ("train_cls", ["--adapter", "x"], "请用 --init_adapter"),
    ("train_cls", ["—epochs", "3"], "请用 --num_train_epochs"),
    ("transfer_ner", ["—input_file", "x"], "是不是 --input_file？开头要用"),
    ("replay", ["--swanlab_mod", "local"], "是不是 --swanlab_mode？"),  # and the folder is missing
]


@pytest.mark.parametrize(("command", "words", "said"), SLIPS, ids=[" ".join(words) for _, words, _ in SLIPS])
def test_a_slip_in_a_flag_is_named_before_anything_that_is_missing(command, words, said, capsys):
    assert said in line_of(command, words, capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["--text", "—他说：--adapter 是参数"],
        ["--text", "－－"],
        ["--text", "——"],
        ["--text=-3"],
        ["--text", "-3.5"],
        ["--text", "adapter"],
        ["--text", "--adapter 是什么意思"],
        ["--text", "—adaptation"],
        ["--text="],
    ],
)
def test_a_value_that_begins_with_a_dash_is_a_value(words):
    assert predict.parse_arguments(["--adapter", "x", *words]).text == words[-1].removeprefix("--text=")


def test_flags_that_others_use_are_not_our_own_and_what_is_advised_is():
    """A renamed flag that is also a flag of ours would never be reached; the advised one must exist."""
    from sft.cli import _flags_of
    from sft.prediction.arguments import RENAMED_FLAGS as PREDICTING
    from sft.training.flags import RENAMED_FLAGS as TRAINING
    from sft.training.trainer_arguments import build_parser

    known = _flags_of(build_parser(""))
    for name, advice in TRAINING.items():
        assert f"--{name}" not in known
        assert advice.split("（")[0].split()[0] in known
    for name in PREDICTING:
        with pytest.raises(SystemExit):
            predict.parse_arguments([f"--{name}", "x"])


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


@pytest.mark.parametrize(("local_rank", "waits"), [("0", 0), ("1", 1)])
def test_a_wrong_input_is_told_by_the_first_process_of_a_machine_and_later_by_one_that_is_alone_with_it(
    local_rank, waits, monkeypatch, capsys
):
    """The launcher ends the others as soon as the first one has told it."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with one_line_errors() as outcome:
        raise InputError("甲：错了")
    assert outcome.code == 2
    assert len(waited) == waits
    assert capsys.readouterr().err == "甲：错了\n"
