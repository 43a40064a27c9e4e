"""The loss curve of a run as a PNG, drawn from its ``metrics.jsonl``."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from sft.files import whole_file
from sft.report.charts import Curve, curves_of, is_better_logarithmic
from sft.tasks.metrics import METRIC_NAMES
from sft.tracking.metrics_log import read_metrics

logger = logging.getLogger(__name__)

# Fonts with Chinese glyphs that come with Linux, Windows or macOS, or are often installed.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "STHeiti",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans CJK JP",
    "Droid Sans Fallback",
    "SimSun",
    "Arial Unicode MS",
)
SCORES = ("accuracy", "macro_f1", "f1")
# The picture is looked at beside others and at half its size, so its text and lines are large.
STYLE = {
    "font.size": 14, "lines.linewidth": 2.4, "lines.markersize": 7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 13,
}  # fmt: skip
BLUE, ORANGE = "#2b5f8f", "#c2611f"
COLOURS = {"loss": BLUE, "eval_loss": ORANGE, "eval_accuracy": BLUE, "eval_f1": BLUE, "eval_macro_f1": ORANGE}
LABELS = {
    "step": ("步数", "step"),
    "loss": ("训练损失", "training loss"),
    "eval_loss": ("验证损失", "validation loss"),
    "losses": ("损失", "loss"),
    "scores": ("验证指标", "validation score"),
    "kept": ("采用的权重：第 {step} 步", "weights kept: step {step}"),
    **{f"eval_{name}": METRIC_NAMES[name] for name in SCORES},
}


def draw_loss_curve(metrics_path: Path, png_path: Path, kept_step: int | None = None) -> None:
    """Draw training and validation loss by step, and below them the validation scores if there are any.

    The axis of losses is logarithmic where a linear one would flatten most of them. Labels are Chinese if a font with
    Chinese glyphs is installed, otherwise English. Without any loss, no file is written.

    Args:
        kept_step: the step whose weights are kept; a vertical line shows it.

    Raises:
        InputError: ``png_path`` cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = read_metrics(metrics_path)
    losses = curves_of(rows, ("loss", "eval_loss"))
    scores = curves_of(rows, [f"eval_{name}" for name in SCORES])
    if not losses:
        logger.warning("%s 里没有损失，不画曲线", metrics_path)
        return
    font = _chinese_font()
    language = 0 if font else 1
    fonts = {"font.family": [font, "DejaVu Sans"] if font else ["DejaVu Sans"], "axes.unicode_minus": False}
    with rc_context(STYLE | fonts):
        figure = Figure(figsize=(7.2, 6.6 if scores else 3.8), layout="constrained")
        axes = figure.subplots(2 if scores else 1, sharex=True, squeeze=False)[:, 0]
        _draw(axes[0], losses, LABELS["losses"][language], language)
        if is_better_logarithmic(losses):
            _make_logarithmic(axes[0])
        if scores:
            _draw(axes[1], scores, LABELS["scores"][language], language)
            axes[1].set_ylim(0, 1.02)
        if kept_step is not None:
            label = LABELS["kept"][language].format(step=kept_step)
            for number, panel in enumerate(axes):
                panel.axvline(kept_step, color="#62676d", linestyle=":", linewidth=1.8, label="" if number else label)
        for panel in axes:
            panel.legend(frameon=False)
        axes[-1].set_xlabel(LABELS["step"][language])
        with whole_file(png_path) as file:
            figure.savefig(file, format="png", dpi=150)


def _draw(axes, curves: dict[str, Curve], title: str, language: int) -> None:
    for name, points in curves.items():
        steps = [step for step, _ in points]
        values = [float("nan") if value is None else value for _, value in points]
        marker = "" if name == "loss" and len(points) > 1 else "o"  # a single point draws no line
        axes.plot(steps, values, marker=marker, label=LABELS[name][language], color=COLOURS[name])
    axes.set_ylabel(title)


def _make_logarithmic(axes) -> None:
    """Give the vertical axis a logarithmic scale with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


@functools.cache
def _chinese_font() -> str | None:
    """The first installed font with Chinese glyphs; None, with a warning, if there is none. Found once a process."""
    from matplotlib.font_manager import fontManager

    for refresh in (False, True):
        if refresh:
            _add_new_fonts(fontManager)
        installed = {font.name for font in fontManager.ttflist}
        for name in CHINESE_FONTS:
            if name in installed:
                return name
    logger.warning("没有中文字体，曲线图用英文标注（Debian/Ubuntu：apt install fonts-noto-cjk）")
    return None


def _add_new_fonts(font_manager) -> None:
    """Add fonts that were installed after matplotlib made its list, which it caches on its first run."""
    from matplotlib.font_manager import findSystemFonts

    known = {Path(font.fname) for font in font_manager.ttflist}
    for path in findSystemFonts():
        if Path(path) not in known:
            try:
                font_manager.addfont(path)
            except (OSError, RuntimeError, ValueError):  # FreeType cannot read it; matplotlib skips it too
                continue
