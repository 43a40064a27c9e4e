"""``report.html``: one self-contained page about a training run or about predictions. No network, no torch.

jinja2 escapes everything that comes from data, in the HTML and in the JSON that the page's script reads. The page's
content security policy allows that one script and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from sft.errors import InputError, one_line
from sft.files import REPORT_FILE, refuse_folder, same_file, whole_file
from sft.report.charts import reliability
from sft.report.findings import Findings, scores_of
from sft.report.intervals import RESAMPLES
from sft.report.span_errors import KINDS
from sft.report.strings import STRINGS
from sft.tasks.calibration import BINS, LEAST_SCORED

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from sft.tasks.evaluation import Tally
    from sft.tasks.task import Task

Fact = tuple[
    str, object
]  # (key of STRINGS, value); shown as it is, or (key of STRINGS, arguments), or a list of these

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
ROWS_BUDGET_BYTES = 1_500_000  # for the rows; the whole page stays under 2 MB
CONVERSION_FIGURES = (
    "read", "converted", "rejected", "merged", "leaked", "left_out", "repeated", "composed",
    "conflicts", "texts_on_both_sides",
)  # fmt: skip


def check_report_path(path: Path, others: Mapping[str, Path | None]) -> None:
    """Find out before any costly work that no page can be written to ``path``.

    Args:
        others: the other files of the command line, which a page must not replace, by flag.

    Raises:
        InputError: it is a folder, or its folder cannot be made; or something else than a page is there.
    """
    refuse_folder(path, f"--report {path / REPORT_FILE}")
    for flag, other in others.items():
        if other is not None and same_file(path, other):
            raise InputError(f"--report {path}：也是 --{flag}，会盖掉它；请换一个 --report")
    if path.is_file() and not _is_page(path):
        raise InputError(f"--report {path}：已经有这个文件，不是网页；请换一个 --report，如 report.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}：无法写入（{error.strerror}）；请换一个 --report") from error


def _is_page(path: Path) -> bool:
    """Whether a file is empty or begins like a page: an earlier report may be replaced."""
    with path.open("rb") as file:
        beginning = file.read(1000).strip().lower()
    return not beginning or beginning.startswith(b"<!doctype html")


def add_lines(findings: Findings, lines: Iterable[bytes]) -> None:
    """Add output lines of `predict.py`, each one JSON object, to ``findings``."""
    for line in lines:
        row = orjson.loads(line)
        findings.add(row.get("text", ""), row.get("gold"), row)


class PredictionFacts(NamedTuple):
    """What the head of a page about a prediction says.

    Attributes:
        name: of the input.
        base: the base model's name or folder.
        adapter: the adapter's folder; None for the base model alone.
        dtype: of the model's weights, such as ``float32``.
    """

    name: str
    base: str
    adapter: Path | None
    dtype: str


def write_prediction_page(path: Path, task: Task, findings: Findings, tally: Tally, facts: PredictionFacts) -> None:
    """Write the page about a prediction. A failure is logged, not raised.

    Args:
        findings, tally: of all output lines; the tally says which gold cannot be used.
    """
    rows = {"rows": figure(findings.rows), "failed": figure(findings.failed)}
    scores = scores_of(task, findings, tally.metrics(task))
    page = {
        "kind": "report_prediction",
        "name": facts.name,
        "facts": [
            ("base", facts.base),
            ("adapter", ("no_adapter", {}) if facts.adapter is None else str(facts.adapter)),
            ("data", ("rows_failed" if findings.failed else "rows_predicted", rows)),
            ("numbers", facts.dtype),
            *_left_out(tally),
        ],
        "scores": {"predicted": scores} if scores else {},
        "gold_problems": _gold_problems(tally),
        "charts": {},
        "kept": [],
        "search": None,
        "data": None,
        "settings": {},
    }
    with logged_not_raised(path):
        write_page(path, page, "predicted", findings)


def _left_out(tally: Tally) -> list[tuple[str, tuple[str, dict]]]:
    """How many names of the answers are not in the results, as a fact of the page; nothing if there are none."""
    counts = {kind: tally.problems[kind] for kind in ("invented", "repeated")}
    return [("names_left_out", ("left_out_names", {kind: figure(count) for kind, count in counts.items()}))] * any(
        counts.values()
    )


def _gold_problems(tally: Tally) -> dict | None:
    if not tally.rows["unusable_gold"]:
        return None
    return {"rows": figure(tally.rows["unusable_gold"]), "reasons": tally.describe_gold_problems()}


# ---- the page ----


@contextmanager
def logged_not_raised(path: Path) -> Iterator[None]:
    """Log an error in making a page as one warning and go on: the results matter more than the page."""
    try:
        yield
    except Exception as error:
        logger.warning("%s 没有写成（%s: %s）；结果不受影响", path, type(error).__name__, one_line(error))


def write_page(path: Path, page: dict, split: str | None, findings: Findings | None) -> None:
    """Write a page, whole or not at all.

    Args:
        page: what the template shows besides the findings: kind, name, facts, scores, charts, data, settings.
        split: the key in ``page["scores"]`` of the predictions that the findings are about; None without findings.

    Raises:
        InputError: it cannot be written.
    """
    html = render(page, split, findings)
    with whole_file(path) as file:
        file.write(html.encode("utf-8", "replace"))


def render(page: dict, split: str | None, findings: Findings | None) -> str:
    """The page as HTML; arguments as in `write_page`."""
    environment = _environment()
    found, rows, shown = None, [], {}
    if findings is not None:
        embedded = environment.filters["embedded"]
        found = findings.page()
        rows, shown = findings.shown.chosen(ROWS_BUDGET_BYTES, lambda row: len(embedded(row).encode()) + 1)
    estimates = [estimate for scores in page["scores"].values() for estimate in scores.values()]
    script = _source("page.js")
    page = page | {"charts": {name: chart for name, chart in page["charts"].items() if chart}}
    return environment.get_template("page.html").render(
        page=page,
        split=split,
        found=found,
        shown=shown,
        capped=any(group["shown"] < group["seen"] for group in shown.values()),
        first_kind="wrong" if shown and shown["wrong"]["shown"] else "all",
        reliability=reliability(found["calibration"]["bins"]) if found and found.get("calibration") else None,
        sections=_sections(page, found, rows),
        metrics=list(dict.fromkeys(metric for scores in reversed(page["scores"].values()) for metric in scores)),
        intervals={
            "wilson" if estimate.is_wilson else "bootstrap" for estimate in estimates if estimate.low is not None
        },
        written=time.strftime("%Y-%m-%d %H:%M"),
        resamples=RESAMPLES,
        bins=BINS,
        few=LEAST_SCORED,
        conversion_figures=CONVERSION_FIGURES,
        style=_source("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        for_script=_for_script(page, found, rows),
    )


def _sections(page: dict, found: dict | None, rows: list[list]) -> list[str]:
    """The sections that have something to show, in order."""
    has = {
        "summary": True,
        "curves": page["charts"],
        "results": found and found["by_label"],
        "rows": rows,
        "data": page["data"],
        "settings": page["settings"],
    }
    return [section for section, content in has.items() if content]


def _for_script(page: dict, found: dict | None, rows: list[list]) -> dict:
    """The data that the page's script reads."""
    return {
        "strings": STRINGS,
        "kind": found["kind"] if found else None,
        "labels": found["labels"] if found else [],
        "kinds": KINDS,
        "rows": rows,
        "charts": {
            name: {key: chart[key] for key in ("over", "steps", "step_x")} | {"series": _readings(chart)}
            for name, chart in page["charts"].items()
        },
    }


def _readings(chart: dict) -> list[dict]:
    return [{"name": series["name"], "values": series["values"]} for series in chart["series"]]


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps

    environment = Environment(
        loader=FileSystemLoader(HERE, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = lambda value: htmlsafe_json_dumps(value, dumps=_compact_json)
    environment.filters["figure"] = figure
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    environment.filters["score"] = lambda score: "–" if score is None or math.isnan(score) else f"{score:.3f}"
    environment.filters["breakable"] = _breakable
    environment.globals |= {
        "t": _translated,
        "words": lambda key, **arguments: _words(key, arguments),
    }
    return environment


def _breakable(text: object) -> Markup:
    """A name or path that may be broken after a separator, and nowhere else."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[\w.])([/_\\.=-])(?=\w)", r"\1<wbr>", str(escape(str(text)))))


def _compact_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _translated(key: str, **arguments: object) -> Markup:
    """A string in Chinese, with what the page's script needs to show it in English.

    A key that is not in the table is the name of a task's own metric, the same in both languages.
    """
    from markupsafe import Markup

    if key not in STRINGS:
        return Markup("<span>{}</span>").format(_words(key, {}))
    if not arguments:
        return Markup('<span data-t="{}">{}</span>').format(key, _words(key, arguments))
    packed = _compact_json({name: str(value) for name, value in arguments.items()})
    return Markup('<span data-t="{}" data-a="{}">{}</span>').format(key, packed, _words(key, arguments))


def _words(key: str, arguments: dict[str, object]) -> str:
    """The Chinese string, or a metric's own name; an argument that is itself a key is put into words."""
    if key not in STRINGS:
        return key.removeprefix("eval_")
    return STRINGS[key][0].format_map(
        {name: STRINGS[value][0] if value in STRINGS else value for name, value in arguments.items()}
    )


def _source(name: str) -> Markup:
    """A file of this folder that goes into the page unescaped."""
    from markupsafe import Markup

    return Markup((HERE / name).read_text(encoding="utf-8"))


def figure(number: float) -> str:
    """A count with thousands separators."""
    return f"{number:,}"
