"""The report in a real browser: loading without a network, keyboard, filters, two languages."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sft.report.span_errors import KINDS, span_errors
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from tests.browser import console_messages, prefer_dark, requested_urls, resize, screenshot
from tests.reports import ENTITY_LABELS, HOSTILE, LABELS, label_rows, span_rows, write_report

ROWS = 1300  # a tenth of CCFBDCI
CCFBDCI = Path(__file__).resolve().parents[2] / "shared" / "data" / "ner" / "ccfbdci.jsonl"
TASKS = {"labels": Classification(LABELS), "spans": Ner.with_labels(ENTITY_LABELS)}
MADE = {"labels": label_rows, "spans": span_rows}


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """A report of each kind with 1,300 test rows."""
    folder = tmp_path_factory.mktemp("reports")
    return {kind: write_report(folder / kind, TASKS[kind], MADE[kind](ROWS)) for kind in TASKS}


def open_page(browser, path: Path) -> None:
    browser.get(path.as_uri())
    assert console_messages(browser) == []


def focused(browser):
    return browser.switch_to.active_element


def press(browser, *keys: str):
    for key in keys:
        focused(browser).send_keys(key)
    return focused(browser)


def tab_to(browser, selector: str):
    """Press Tab until an element that matches has the focus."""
    for _ in range(60):
        press(browser, Keys.TAB)
        if browser.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return focused(browser)
    raise AssertionError(f"Tab never reaches {selector}")


def total_shown(browser) -> int:
    """The number of rows that pass the filters, as the page shows it."""
    position = browser.find_element(By.ID, "position").text
    return 0 if "没有" in position else int(position.split("共")[1].strip(" 条").replace(",", ""))


def set_filter(browser, name: str, value: str) -> None:
    browser.execute_script(
        "const form = document.getElementById('filters'); form.elements[arguments[0]].value = arguments[1];"
        "form.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def spans_of(row: dict) -> set[tuple[int, int, str]]:
    return {(entity["start"], entity["end"], entity["label"]) for entity in row["entities"]}


# ---- opening ----


def assert_opens_fast_and_alone(browser, path: Path) -> None:
    open_page(browser, path)
    (timing,) = browser.execute_script(
        "return performance.getEntriesByType('navigation').map((entry) => entry.toJSON())"
    )
    assert 0 < timing["loadEventEnd"] < 2000  # milliseconds, with all rows drawn
    assert len(browser.find_elements(By.CSS_SELECTOR, "#list > li")) > 10
    assert requested_urls(browser) == [path.as_uri()]
    assert console_messages(browser) == []


@pytest.mark.parametrize("kind", TASKS)
def test_1300_rows_open_in_two_seconds_without_errors_or_requests(kind, browser, reports):
    assert_opens_fast_and_alone(browser, reports[kind])


@pytest.mark.shared
def test_the_ccfbdci_test_rows_open_in_two_seconds_without_errors_or_requests(browser, tmp_path):
    if not CCFBDCI.is_file():
        pytest.skip(f"no {CCFBDCI}")
    with CCFBDCI.open(encoding="utf-8") as file:
        rows = [
            Ner.convert(json.loads(next(file)), dict(zip(("GPE", "LOC", "ORG", "PER"), ENTITY_LABELS, strict=True)))
            for _ in range(ROWS)
        ]
    predictions = [{"entities": row["entities"][number % 3 :]} for number, row in enumerate(rows)]
    path = write_report(tmp_path, TASKS["spans"], (rows, predictions))
    assert path.stat().st_size < 2_000_000
    assert_opens_fast_and_alone(browser, path)
    set_filter(browser, "kind", "right")
    assert total_shown(browser) == sum(
        row == answer["entities"] for row, answer in zip([row["entities"] for row in rows], predictions, strict=True)
    )


@pytest.mark.parametrize("kind", TASKS)
def test_text_from_data_is_shown_and_not_run(kind, browser, tmp_path):
    records, predictions = MADE[kind](30)
    for record in records:
        record["text"] = HOSTILE + record["text"]
        for name in ("label", "options"):
            record.pop(name, None)
        record |= {"label": HOSTILE} if kind == "labels" else {"entities": [{"start": 0, "end": 9, "label": HOSTILE}]}
    open_page(browser, write_report(tmp_path, TASKS[kind], (records, predictions)))
    for details in browser.find_elements(By.CSS_SELECTOR, "#list details"):
        details.find_element(By.TAG_NAME, "summary").click()
    browser.find_element(By.ID, "language").click()
    assert browser.execute_script("return window.harmed") is None
    assert browser.find_elements(By.CSS_SELECTOR, "main img, main script") == []
    texts = browser.execute_script(
        "return [...document.querySelectorAll('#list .text')].map((item) => item.textContent)"
    )
    shown = [text.replace("😀", "") for text in texts]
    assert any(HOSTILE.replace("😀", "")[9:] in text for text in shown)
    assert console_messages(browser) == []


def test_characters_outside_the_basic_plane_do_not_shift_the_marks(browser, tmp_path):
    text = "😀😀张伟到了𠮷林。"
    gold = [{"start": 2, "end": 4, "label": "人名"}, {"start": 6, "end": 8, "label": "地点"}]
    open_page(
        browser, write_report(tmp_path, TASKS["spans"], ([{"text": text, "entities": gold}], [{"entities": gold}]))
    )
    marks = browser.execute_script("return [...document.querySelectorAll('mark')].map((mark) => mark.firstChild.data)")
    assert marks == ["张伟", "𠮷林"]


# ---- filters ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_of_error_filter_rows_as_they_are_defined(kind, browser, reports):
    open_page(browser, reports["spans"])
    records, predictions = span_rows(ROWS)
    errors = [
        span_errors(spans_of(record), spans_of(prediction))
        for record, prediction in zip(records, predictions, strict=True)
    ]
    set_filter(browser, "kind", kind)
    assert total_shown(browser) == sum(any(error.kind == kind for error in row) for row in errors)
    set_filter(browser, "label", "3")
    with_label = sum(
        any(error.kind == kind and "人名" in [span[2] for span in error[1:] if span] for error in row)
        for row in errors
    )
    assert total_shown(browser) == with_label
    badges = browser.find_elements(By.CSS_SELECTOR, "#list .badge")
    assert with_label == 0 or badges


def test_label_filters_search_and_order_choose_the_rows_they_say(browser, reports):
    open_page(browser, reports["labels"])
    records, predictions = label_rows(ROWS)
    pairs = [(record["label"], row["label"]) for record, row in zip(records, predictions, strict=True)]
    assert total_shown(browser) == sum(gold != predicted for gold, predicted in pairs)
    wrong = [row["score"] for row, (gold, predicted) in zip(predictions, pairs, strict=True) if gold != predicted]
    first = browser.find_element(By.CSS_SELECTOR, "#list .sure").text
    assert first.endswith(f"{max(wrong):.3f}")
    set_filter(browser, "kind", "all")
    set_filter(browser, "gold_label", "1")
    set_filter(browser, "predicted_label", "2")
    assert total_shown(browser) == pairs.count((LABELS[1], LABELS[2]))
    set_filter(browser, "gold_label", "")
    set_filter(browser, "predicted_label", "")
    set_filter(browser, "search", "上海")
    assert total_shown(browser) == sum("上海" in record["text"] for record in records)
    set_filter(browser, "search", "没有这样的话")
    assert total_shown(browser) == 0


def test_a_cell_of_the_confusion_matrix_shows_its_rows(browser, reports):
    open_page(browser, reports["labels"])
    cell = browser.find_element(By.CSS_SELECTOR, "#confusion button[data-gold='0'][data-predicted='2']")
    rows = int(cell.text)
    cell.click()
    assert total_shown(browser) == rows
    assert focused(browser).get_attribute("name") == "gold_label"


# ---- keyboard ----


def test_the_spans_page_works_by_keyboard(browser, reports):
    open_page(browser, reports["spans"])
    assert press(browser, Keys.TAB).get_attribute("class") == "skip"
    assert press(browser, Keys.ENTER).get_attribute("id") == "main"
    tab_to(browser, "[data-chart='chart_loss']")
    reading = browser.find_element(By.CSS_SELECTOR, ".reading").text
    assert "步 59" in reading
    press(browser, Keys.LEFT)
    assert "步 58 · 训练损失 0.06897" in browser.find_element(By.CSS_SELECTOR, ".reading").text
    assert tab_to(browser, "#filters input[name=kind]").get_attribute("value") == "wrong"
    before = total_shown(browser)
    assert press(browser, Keys.RIGHT).get_attribute("value") == "missed"
    assert total_shown(browser) < before
    press(browser, Keys.LEFT)
    tab_to(browser, "select[name=label]").send_keys(Keys.DOWN)
    assert total_shown(browser) < before
    tab_to(browser, "input[type=search]").send_keys("上海")
    assert "上海" in browser.find_element(By.CSS_SELECTOR, "#list .text").text
    press(browser, Keys.CONTROL + "a", Keys.DELETE)
    tab_to(browser, "#next").send_keys(Keys.ENTER)
    assert browser.find_element(By.ID, "position").text.startswith("第 51–")
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is visible


def test_the_labels_page_works_by_keyboard(browser, reports):
    open_page(browser, reports["labels"])
    cell = tab_to(browser, "#confusion button")
    assert (cell.get_attribute("data-gold"), cell.get_attribute("data-predicted")) == ("0", "0")
    assert press(browser, Keys.RIGHT, Keys.DOWN).get_attribute("data-gold") == "1"
    rows = int(focused(browser).text)
    press(browser, Keys.ENTER)
    assert total_shown(browser) == rows
    tab_to(browser, "#list summary").send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "#list details[open] .text").text.strip()


# ---- language, colours, paper ----


@pytest.mark.parametrize("kind", TASKS)
def test_the_switch_turns_every_word_into_english_and_back(kind, browser, reports):
    open_page(browser, reports[kind])
    chinese = browser.find_element(By.TAG_NAME, "body").text
    browser.find_element(By.ID, "language").click()
    assert browser.execute_script("return document.documentElement.lang") == "en"
    words = browser.execute_script(
        "return [...document.querySelectorAll('[data-t], [data-t-label], #position, #list .number, #list .badge')]"
        ".map((element) => element.textContent + (element.ariaLabel ?? ''))"
    )
    of_ours = [word for word in words if not any(name in word for name in (*LABELS, *ENTITY_LABELS))]
    assert not [word for word in of_ours if any("\u4e00" <= character <= "\u9fff" for character in word)]
    browser.find_element(By.ID, "language").click()
    assert browser.find_element(By.TAG_NAME, "body").text == chinese
    assert console_messages(browser) == []


def contrast(browser, selector: str) -> float:
    """The WCAG contrast between an element's text and its background."""
    return browser.execute_script(
        """
        const brightness = (color) => {
          const canvas = new OffscreenCanvas(1, 1).getContext("2d");
          canvas.fillStyle = color;
          canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
            .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
        };
        const element = document.querySelector(arguments[0]);
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(brightness);
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        """,
        selector,
    )


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_in_dark(dark, browser, reports):
    if dark:
        prefer_dark(browser)
    open_page(browser, reports["spans"])
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) < 200) == dark
    for selector in ("h1", ".note", "dt", "nav a", ".badge", "mark", "mark small", ".kinds :checked + span"):
        assert contrast(browser, selector) > 4.5, selector
    hues = browser.execute_script("return HUES")
    for hue in hues:  # one for each label
        browser.execute_script(f"document.querySelector('mark.bad').style.setProperty('--hue', {hue})")
        assert contrast(browser, "mark.bad small") > 4.5, hue


def test_it_prints_on_white_without_controls(browser, reports):
    prefer_dark(browser)
    open_page(browser, reports["spans"])
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    for selector in ("nav", "#filters", "#next", "#language"):
        assert not browser.find_element(By.CSS_SELECTOR, selector).is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, "#list li").is_displayed()
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


# ---- on a phone and on a large screen ----

# What lies beyond the sides of the screen and cannot be scrolled to inside a box of its own.
STICKING_OUT = """
const scrolls = (element) => element && (
    ["auto", "scroll", "hidden"].includes(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
return [...document.body.querySelectorAll("*")]
    .filter((element) => !element.closest(".skip, script, noscript"))
    .filter((element) => {
      const box = element.getBoundingClientRect();
      return box.width > 0 && (box.left < -0.5 || box.right > arguments[0] + 0.5) && !scrolls(element.parentElement);
    })
    .map((element) => `${element.tagName}.${element.className} ${element.textContent.slice(0, 40)}`);
"""
# Words of the page that are broken over two lines: letters and digits anywhere but in the user's texts, and in tags,
# heads of tables, buttons and links anything at all.
BROKEN = """
const broken = [];
const lines = (node, start, end) => {
  const range = document.createRange();
  range.setStart(node, start);
  range.setEnd(node, end);
  return new Set([...range.getClientRects()].filter((box) => box.width > 0).map((box) => Math.round(box.top))).size;
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, parent = node.parentElement;
  if (parent.closest("script, style, noscript, option, svg")) continue;
  const whole = parent.closest(arguments[0]);
  if (!whole && parent.closest(".text, .excerpt")) continue;
  for (const word of node.data.matchAll(whole ? /.+/gs : /[A-Za-z0-9]+/g)) {
    if (lines(node, word.index, word.index + word[0].length) > 1) broken.push(word[0]);
  }
}
return broken;
"""
TAGS = "th, button, nav a, .badge, .legend li, .kinds label, mark small, .number, .interval, .of"


@pytest.fixture(scope="module")
def small_reports(tmp_path_factory) -> dict[str, Path]:
    """Reports of small runs: some rows, labels of any length, and one of a single row."""
    folder = tmp_path_factory.mktemp("small")
    long_names = ("Organisation_or_company", "人名", "一个长得一行放不下的实体类别名称，因为有人就是这样起名的", "LOC")
    records, predictions = span_rows(40)
    for row in (*records, *predictions):
        for found in row["entities"]:
            found["label"] = long_names[ENTITY_LABELS.index(found["label"])]
    return {
        "labels": write_report(folder / "labels", TASKS["labels"], label_rows(40)),
        "spans": write_report(folder / "spans", TASKS["spans"], span_rows(40)),
        "long_names": write_report(folder / "news_v2_final", Ner.with_labels(long_names), (records, predictions)),
        "one_row": write_report(folder / "one_row", TASKS["labels"], label_rows(1)),
    }


@pytest.mark.parametrize("english", [False, True], ids=["chinese", "english"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("kind", ["labels", "spans", "long_names", "one_row"])
def test_nothing_leaves_the_screen_and_no_word_is_broken(kind, width, dark, english, browser, small_reports, tmp_path):
    if dark:
        prefer_dark(browser)
    resize(browser, width)
    open_page(browser, small_reports[kind])
    if english:
        browser.execute_script("document.getElementById('language').click()")
    browser.execute_script(
        "document.querySelector('#filters [value=all]').click();"
        "document.querySelectorAll('details').forEach((details, number) => { details.open = number % 2 })"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(STICKING_OUT, width) == []
    assert browser.execute_script(BROKEN, TAGS) == []
    assert console_messages(browser) == []
    picture = screenshot(browser, tmp_path / f"{kind}-{width}.png")
    assert (picture[0, -1].mean() < 0.5) == dark  # the colours of the page reach its edge
    text = browser.execute_script("return document.getElementById('list').innerText")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#list > li")) in (1, 25, 40)
    assert text.count("\n") > len(browser.find_elements(By.CSS_SELECTOR, "#list > li"))


def test_the_checks_above_find_what_they_look_for(browser, small_reports):
    resize(browser, 390)
    open_page(browser, small_reports["spans"])
    browser.execute_script("document.querySelector('h1').innerHTML = '<b style=\\'margin-left:380px\\'>out</b>'")
    assert browser.execute_script(STICKING_OUT, 390)
    browser.execute_script("document.querySelector('.badge').style = 'display:block;width:1em;white-space:normal'")
    assert browser.execute_script(BROKEN, TAGS)


def test_the_list_of_mistakes_shows_their_text(browser, small_reports):
    open_page(browser, small_reports["labels"])
    records, predictions = label_rows(40)
    wrong = [row["text"] for row, answer in zip(records, predictions, strict=True) if row["label"] != answer["label"]]
    shown = [line.text for line in browser.find_elements(By.CSS_SELECTOR, "#list .excerpt")]
    assert sorted(shown) == sorted(wrong)
