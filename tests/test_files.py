"""Written files: devices stay devices, permissions stay, planted links are not followed, two writers do not mix."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

import transfer_classification_data
import transfer_ner_data
from sft.files import whole_file, write_json

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions and links as on POSIX systems")


def temporary_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
class TestWholeFile:
    def test_a_link_planted_at_the_temporary_name_is_not_followed(self, tmp_path):
        victim, path = tmp_path / "victim", tmp_path / "report.html"
        victim.write_text("precious")
        temporary_of(path).symlink_to(victim)
        write_json(path, {"a": 1})
        assert victim.read_text() == "precious"
        assert not path.is_symlink()
        assert names_in(tmp_path) == ["report.html", "victim"]

    def test_a_link_to_nothing_planted_there_creates_nothing(self, tmp_path):
        path = tmp_path / "report.html"
        temporary_of(path).symlink_to(tmp_path / "made")
        write_json(path, {"a": 1})
        assert names_in(tmp_path) == ["report.html"]

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
    def test_a_file_that_is_replaced_keeps_its_permissions(self, mode, tmp_path):
        path = tmp_path / "train.jsonl"
        path.write_text("old")
        path.chmod(mode)
        with whole_file(path) as file:
            (temporary,) = (entry for entry in tmp_path.iterdir() if entry != path)
            assert stat.S_IMODE(temporary.stat().st_mode) == mode  # even before it holds anything
            file.write(b"new")
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)

    def test_a_new_file_has_the_permissions_of_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            write_json(tmp_path / "a.json", {})
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640

    def test_a_pipe_stays_a_pipe_and_gets_the_content(self, tmp_path):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        write_json(path, {"a": 1})
        assert os.read(reader, 100) == b'{\n  "a": 1\n}\n'
        assert stat.S_ISFIFO(path.stat().st_mode)
        os.close(reader)


@posix
class TestDevices:
    @pytest.mark.parametrize(
        ("script", "row"),
        [
            (transfer_ner_data, '{"text": "张伟", "entities": []}\n'),
            (transfer_classification_data, '{"text": "张伟", "output": "甲"}\n'),
        ],
    )
    def test_a_conversion_into_a_device_is_refused_and_leaves_nothing_beside_it(self, script, row, tmp_path, capsys):
        raw, pipe = tmp_path / "raw.jsonl", tmp_path / "pipe"
        raw.write_text(row * 4, encoding="utf-8")
        os.mkfifo(pipe)
        flags = ["--input_file", str(raw), "--test_file", str(tmp_path / "test.jsonl")]
        assert script.main([*flags, "--output_file", str(pipe)]) == 2
        assert "设备" in capsys.readouterr().err
        assert names_in(tmp_path) == ["pipe", "raw.jsonl"]
        assert stat.S_ISFIFO(pipe.stat().st_mode)
