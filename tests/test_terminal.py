"""Text on a terminal: widths, broken lines, and commands that a shell reads as they were meant."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sft import terminal

TEXTS = st.text(alphabet="中文字，。（）“”abc/.-1 ２a\u0301", max_size=120)
WORDS = st.text(alphabet="中a b'\"$`\\!*？-=", min_size=1, max_size=30)


@given(TEXTS, st.integers(4, 40), st.integers(0, 3), st.booleans())
@example("a" * 50, 10, 2, True)
def test_the_parts_of_a_line_are_the_whole_line(text, columns, indent, split_words):
    parts = list(terminal.folds(text, columns, indent, split_words=split_words))
    assert "".join(text[start:end] for start, end in parts) == text


@given(TEXTS, st.integers(8, 40), st.integers(0, 3))
@example("a" * 50, 10, 2)
@example("中" * 50, 9, 2)
def test_no_part_is_wider_than_the_terminal_if_words_may_be_split(text, columns, indent):
    for number, (start, end) in enumerate(terminal.folds(text, columns, indent, split_words=True)):
        assert terminal.display_width(text[start:end].rstrip()) <= columns - indent * (number > 0)


@given(TEXTS, st.integers(8, 40))
def test_paths_stay_whole_and_no_line_begins_with_a_comma(text, columns):
    lines = [text[start:end] for start, end in terminal.folds(text, columns)]
    for before, after in pairwise(lines):
        assert after[0] not in "，。）”"
        assert before[-1] not in "（“"
        assert not (before[-1].isascii() and after[0].isascii() and before[-1] != " "), "inside a word"


def test_what_fits_and_what_is_a_command_is_left_alone():
    line = "    python predict.py --adapter output/a --text 一句话"
    assert terminal.folded(f"短\n{line}", 20) == f"短\n{line}"
    assert terminal.folded("长" * 30, None) == "长" * 30
    assert terminal.folded("长" * 12, 10) == "长长长长长\n  长长长长\n  长长长"


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("中文", 4), ("a\u0301", 1), ("１，", 4), ("", 0)])
def test_a_chinese_character_takes_two_columns_and_an_accent_none(text, columns):
    assert terminal.display_width(text) == columns


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@given(st.lists(st.tuples(st.sampled_from(["--adapter", "--text", "--x"]), WORDS), max_size=4), st.integers(20, 90))
def test_a_command_reads_as_the_words_that_were_meant(flags, columns):
    words = ["python", "predict.py", *(word for flag in flags for word in flag)]
    text = terminal.command(words, columns)
    assert shlex.split(text.replace("\\\n", "")) == words


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_a_shell_runs_a_broken_command_as_typed():
    words = [
        sys.executable,
        "-c",
        "import sys; print(sys.argv[1:])",
        "--text",
        "it's $HOME `x`\\ 中文",
        "--x",
        "y" * 40,
    ]
    text = terminal.command(words, 60)
    assert "\\\n" in text
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == f"{words[3:]}\n"


def test_on_windows_a_command_is_one_line_in_double_quotes(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    words = ["python", "predict.py", "--adapter", r"D:\my run", "--text", "一句话。" * 20]
    assert terminal.command(words, 80) == rf'    python predict.py --adapter "D:\my run" --text {"一句话。" * 20}'


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_only_where_the_terminal_has_them_and_the_user_wants_them(monkeypatch, variables, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.has_colour(Terminal()) == coloured
    assert not terminal.has_colour(StringIO())


def test_a_script_is_named_from_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(terminal.Path(terminal.__file__).parents[1])
    assert terminal.script_path("predict.py") == "predict.py"
    monkeypatch.chdir(tmp_path)
    assert terminal.Path(terminal.script_path("predict.py")).is_file()
