"""The loss curve: what it shows, in which language, and no file without a loss."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import matplotlib.axes
import matplotlib.image
import numpy as np
import orjson
import pytest

from sft.report import curves
from sft.report.curves import draw_loss_curve


@pytest.fixture(autouse=True)
def look_for_fonts_anew():
    curves._chinese_font.cache_clear()
    yield
    curves._chinese_font.cache_clear()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list, list]]:
    """``(label, steps, values)`` of every curve that is drawn."""
    lines = []
    plot = matplotlib.axes.Axes.plot

    def recorded(axes, steps, values, **options):
        lines.append((options["label"], list(steps), list(values)))
        return plot(axes, steps, values, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", recorded)
    return lines


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    return path


ROWS = [
    {"step": 1, "epoch": 0.5, "time": 1.0, "loss": 3.0, "learning_rate": 1e-4},
    {"step": 2, "epoch": 1.0, "time": 2.0, "loss": None},
    {"step": 2, "epoch": 1.0, "time": 2.0, "eval_loss": 2.5, "eval_f1": 0.25, "eval_f1_人名": 0.5},
    {"step": 3, "epoch": 1.5, "time": 3.0, "loss": 1.0},
    {"step": 3, "epoch": 1.5, "time": 3.0, "train_loss": 2.0, "train_runtime": 9.0},
]


def test_losses_and_generated_metrics_are_drawn_by_step(tmp_path: Path, drawn: list, caplog) -> None:
    draw_loss_curve(write_rows(tmp_path / "metrics.jsonl", ROWS), tmp_path / "loss.png")
    names = [name for name, _, _ in drawn]
    assert names in (["training loss", "validation loss", "micro F1"], ["训练损失", "验证损失", "微平均 F1"])
    assert drawn[0][1] == [1, 2, 3]
    assert np.array_equal(drawn[0][2], [3.0, np.nan, 1.0], equal_nan=True)
    assert drawn[1][1:] == ([2], [2.5])
    assert drawn[2][1:] == ([2], [0.25])
    picture = matplotlib.image.imread(tmp_path / "loss.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 500
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_without_generated_metrics_there_is_one_panel(tmp_path: Path, drawn: list) -> None:
    draw_loss_curve(write_rows(tmp_path / "metrics.jsonl", ROWS[:1]), tmp_path / "loss.png")
    assert len(drawn) == 1
    height, width = matplotlib.image.imread(tmp_path / "loss.png").shape[:2]
    assert width > 1.5 * height


def test_without_a_chinese_font_labels_are_english_and_said_so_once(
    tmp_path: Path, drawn: list, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(curves, "CHINESE_FONTS", ())
    metrics = write_rows(tmp_path / "metrics.jsonl", ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about a missing glyph
        draw_loss_curve(metrics, tmp_path / "one.png")
        draw_loss_curve(metrics, tmp_path / "two.png")
    assert drawn[0][0] == "training loss"
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_with_a_chinese_font_labels_are_chinese(tmp_path: Path, drawn: list, monkeypatch: pytest.MonkeyPatch) -> None:
    # Any font shows which language is chosen; a Chinese font may not be installed here.
    monkeypatch.setattr(curves, "CHINESE_FONTS", ("No Such Font", "DejaVu Serif"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw_loss_curve(write_rows(tmp_path / "metrics.jsonl", ROWS), tmp_path / "loss.png")
    assert drawn[0][0] == "训练损失"


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": None}], [{"step": 1, "eval_f1": 0.5}]])
def test_without_any_loss_nothing_is_written(
    rows: list[dict], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw_loss_curve(write_rows(tmp_path / "metrics.jsonl", rows), tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
    assert "没有损失" in caplog.text


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    draw_loss_curve(tmp_path / "none.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
