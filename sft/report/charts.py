"""Coordinates of the charts in a report, in SVG units; the page's template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

# About as many units as a chart has pixels on a phone, so that its text is as large there as the text around it.
WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44  # margins
SQUARE, SQUARE_MARGIN = 300, 46
MOST_BARS = 40
FEW_POINTS = 40  # a curve with at most this many points gets a mark at each
MOST_POINTS = 600  # a longer curve is thinned to every second, third, … point
LOGARITHMIC_FROM, LOGARITHMIC_TO = 20.0, 1e12  # largest value over smallest where a linear axis flattens most of them
MOST_TICKS = 6

Curve = list[tuple[float, float | None]]  # (step or threshold, value); None is a gap
Ticks = list[tuple[float, str]]  # (coordinate, label)


def curves_of(rows: Sequence[dict], names: Sequence[str]) -> dict[str, Curve]:
    """The points of each named metric in the rows of ``metrics.jsonl``; metrics without a number are left out.

    A value of None stands for NaN and leaves a gap in the curve.
    """
    curves = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    return {name: points for name, points in curves.items() if any(value is not None for _, value in points)}


def is_better_logarithmic(curves: dict[str, Curve]) -> bool:
    """Whether the values of the curves differ so much that a linear axis would flatten most of them."""
    values = [value for points in curves.values() for _, value in points if value is not None]
    return bool(values) and min(values) > 0 and LOGARITHMIC_FROM <= max(values) / min(values) <= LOGARITHMIC_TO


def line_chart(
    curves: dict[str, Curve],
    *,
    over: str = "step",
    at_least: tuple[float, float] | None = None,
    chosen: float | None = None,
) -> dict | None:
    """Axes, paths, marks and hover values of curves; None without a curve.

    Args:
        over: what the horizontal axis shows, a key of the report's strings.
        at_least: a range that the vertical axis always covers; it is linear then.
        chosen: where on the horizontal axis to draw a line: what the run keeps.
    """
    if not curves:
        return None
    curves = {name: _thinned(points) for name, points in curves.items()}
    steps = sorted({step for points in curves.values() for step, _ in points})
    values = [value for points in curves.values() for _, value in points if value is not None] + [*(at_least or ())]
    whole = all(step == int(step) for step in steps)
    logarithmic = at_least is None and is_better_logarithmic(curves)
    x_of, x_ticks = _axis(steps[0], steps[-1], LEFT, WIDTH - RIGHT, whole=whole, inside=True)
    y_of, y_ticks = (_log_axis if logarithmic else _axis)(min(values), max(values), HEIGHT - BOTTOM, TOP)
    series = []
    for name, points in curves.items():
        placed = [(x_of(step), None if value is None else y_of(value)) for step, value in points]
        series.append(
            {
                "name": name,
                "path": _path(placed),
                "marks": [place for place in placed if place[1] is not None] if len(points) <= FEW_POINTS else [],
                "values": {f"{step:.12g}": value for step, value in points},
            }
        )
    frame = _frame(WIDTH, HEIGHT, LEFT, BOTTOM, x_ticks, y_ticks)
    inside = chosen is not None and steps[0] <= chosen <= steps[-1]
    return frame | {
        "over": over,
        "steps": steps,
        "step_x": [x_of(step) for step in steps],
        "series": series,
        "logarithmic": logarithmic,
        "chosen": {"x": x_of(chosen), "at": f"{chosen:.6g}"} if inside else None,
    }


def histogram(lengths: Sequence[int], cut: int) -> dict | None:
    """A histogram of lengths in tokens, with a line at ``cut``; None without a row."""
    import numpy as np

    if not lengths:
        return None
    width = max(1, -(-max(lengths) // MOST_BARS))
    edges = np.arange(0, max(lengths) + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    x_of, x_ticks = _axis(0, int(edges[-1]), LEFT, WIDTH - RIGHT, whole=True, inside=True)
    y_of, y_ticks = _axis(0, int(counts.max()), HEIGHT - BOTTOM, TOP, whole=True)
    bars = [
        {
            "x": x_of(low),
            "y": y_of(count),
            "width": round(x_of(low + width) - x_of(low), 2),
            "height": round(y_of(0) - y_of(count), 2),
            "from": low,
            "to": low + width - 1,
            "rows": count,
            "over": low > cut,
        }
        for low, count in zip(edges[:-1].tolist(), counts.tolist(), strict=True)
        if count
    ]
    frame = _frame(WIDTH, HEIGHT, LEFT, BOTTOM, x_ticks, y_ticks)
    return frame | {"bars": bars, "cut_x": x_of(cut) if cut <= edges[-1] else None}


def reliability(bins: Sequence[dict]) -> dict:
    """A square diagram of accuracy by confidence; the more rows a bin has, the larger its mark."""
    most = max(bin_["rows"] for bin_ in bins)
    x_of, x_ticks = _axis(0, 1, SQUARE_MARGIN, SQUARE - RIGHT)
    y_of, y_ticks = _axis(0, 1, SQUARE - SQUARE_MARGIN, TOP)
    marks = [
        {
            "x": x_of(bin_["confidence"]),
            "y": y_of(bin_["accuracy"]),
            "ideal_y": y_of(bin_["confidence"]),
            "radius": round(3 + 7 * (bin_["rows"] / most) ** 0.5, 1),
        }
        for bin_ in bins
    ]
    return _frame(SQUARE, SQUARE, SQUARE_MARGIN, SQUARE_MARGIN, x_ticks, y_ticks) | {"marks": marks}


def _frame(width: int, height: int, left: int, bottom: int, x_ticks: Ticks, y_ticks: Ticks) -> dict:
    return {
        "width": width,
        "height": height,
        "left": left,
        "right": width - RIGHT,
        "top": TOP,
        "bottom": height - bottom,
        "x_ticks": x_ticks,
        "y_ticks": y_ticks,
    }


def _axis(
    low: float, high: float, start: float, end: float, *, whole: bool = False, inside: bool = False
) -> tuple[Callable[[float], float], Ticks]:
    """A function from a value to its coordinate between ``start`` and ``end``, and ticks at round numbers.

    Args:
        low, high: the smallest and largest value.
        whole: put ticks at whole numbers only.
        inside: end the axis at ``low`` and ``high``; otherwise it ends at the ticks around them.
    """
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low, high = (low, low + 1) if whole else (low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2)
    ticks = [round(tick, 12) for tick in MaxNLocator(nbins=5, integer=whole).tick_values(low, high).tolist()]
    if inside:
        ticks = [tick for tick in ticks if low <= tick <= high]
    else:
        low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 2)

    return place, [(place(tick), _tick(tick)) for tick in ticks]


def _log_axis(low: float, high: float, start: float, end: float) -> tuple[Callable[[float], float], Ticks]:
    """As `_axis`, logarithmic; both values are above 0. It ends at the ticks around them."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
    ticks: list[float] = []
    fewest = -(-len(decades) // (MOST_TICKS - 1))
    for steps, stride in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), fewest)):
        all_ticks = [step * 10.0**decade for decade in decades[::stride] for step in steps]
        below = [tick for tick in all_ticks if tick <= low] or all_ticks[:1]
        above = [tick for tick in all_ticks if tick >= high] or all_ticks[-1:]
        ticks = [tick for tick in all_ticks if below[-1] <= tick <= above[0]]
        if len(ticks) <= MOST_TICKS:
            break
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(value: float) -> float:
        return round(start + math.log(value / low) / math.log(high / low) * (end - start), 2)

    return place, [(place(tick), _tick(tick)) for tick in ticks]


def _tick(value: float) -> str:
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e")


def _thinned(points: Curve) -> Curve:
    stride = -(-len(points) // MOST_POINTS)
    thinned = points[::stride]
    return thinned if (len(points) - 1) % stride == 0 else [*thinned, points[-1]]


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """An SVG path through the points, with a gap where a value is None."""
    parts, pen_down = [], False
    for x, y in points:
        if y is not None:
            parts.append(f"{'L' if pen_down else 'M'}{x} {y}")
        pen_down = y is not None
    return "".join(parts)
