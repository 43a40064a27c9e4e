"""Take the pictures of the readme from the runs of quickstart.sh: the reports, the loss curves, SwanLab's dashboard.

python benchmarks/draw_pictures.py output/quickstart

Needs chromium and chromedriver, requirements-dev.txt, and a font with Chinese glyphs.
"""

from __future__ import annotations

import base64
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import FLAGS  # noqa: E402

DASHBOARD_SECONDS = 15  # until its charts are drawn
COLOURS = 96  # of a picture's palette: text and flat areas need no more
REPORT_WIDTH, REPORT_HEIGHT, REPORT_SCALE = 500, 1090, 1.6  # readable at half the width of a page
# The rows come first, a few of them, and what a picture cannot use is left out.
ARRANGE = """
const main = document.querySelector("main");
const hide = (selector) => document.querySelectorAll(selector).forEach((element) => element.remove());
const rows = document.getElementById("rows"), summary = document.getElementById("summary");
if (arguments[0] === "ner") document.querySelector("#filters [value=all]").click();
main.insertBefore(rows, summary);
const numberOf = (row) => row.querySelector(".number").textContent.match(/[0-9]+/)[0];
for (const row of [...rows.querySelectorAll("#list > li")]) {
  if (!arguments[1].includes(numberOf(row))) row.remove();
}
hide(".scores tbody tr:nth-child(n+2)");
hide("nav, #filters, .pager, .note, .facts, #curves, #data, #settings, footer, #language, .screen");
if (arguments[0] === "cls") {
  document.querySelector("main").insertBefore(document.getElementById("confusion").closest("div.pair"), summary);
  hide("#results, #calibration-title, .square, .pair details");
}
"""


def main() -> None:
    """Write the pictures into img/."""
    output, log_dir = Path(sys.argv[1]), ROOT / "swanlog"
    driver = open_browser()
    try:
        for task, name in (("cls", "classification"), ("ner", "ner")):
            draw_report(driver, output / task / "report.html", task, ROOT / "img" / f"report-{name}.png")
            shrink((output / task / "loss.png").read_bytes(), ROOT / "img" / f"loss-{name}.png")
        draw_dashboard(driver, log_dir)
    finally:
        driver.quit()


def open_browser():
    """A headless Chromium in light colours."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (*FLAGS, "--lang=zh-CN", "--accept-lang=zh-CN", f"--user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def draw_report(driver, path: Path, task: str, picture: Path) -> None:
    """A report in a narrow window, its rows on top."""
    resize(driver, REPORT_WIDTH, REPORT_SCALE)
    driver.get(path.resolve().as_uri())
    driver.execute_script(ARRANGE, task, chosen_rows(driver, task))
    height = driver.execute_script("return document.documentElement.scrollHeight")
    shrink(capture(driver, REPORT_WIDTH, min(height, REPORT_HEIGHT)), picture)


def chosen_rows(driver, task: str) -> list[str]:
    """The numbers of the rows to show: short ones, for entities both right ones and ones with an error."""
    return driver.execute_script(
        """
        const rows = page.rows.map(read);
        const brief = (row) => row.length >= 18 && row.length <= 46 && row.predicted.length >= 2;
        const surest = rows.filter((row) => row.wrong).sort((a, b) => b.score - a.score);
        const taken = arguments[0] === "cls" ? surest.slice(0, 3)
          : [...rows.filter((row) => !row.wrong && brief(row)).slice(0, 2),
             ...rows.filter((row) => row.wrong && brief(row)).slice(0, 2)];
        return taken.map((row) => String(row.number));
        """,
        task,
    )


def draw_dashboard(driver, log_dir: Path) -> None:
    """The first experiment in the local dashboard: the sample predictions and the charts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("swanlab")
    process = subprocess.Popen([program, "watch", str(log_dir), "--host", "127.0.0.1", "--port", str(port)])
    try:
        while not answers(port):
            time.sleep(0.3)
        resize(driver, 1300, 1.0, height=1350)
        driver.get(f"http://127.0.0.1:{port}/experiment/1/chart")
        time.sleep(DASHBOARD_SECONDS)
        shrink(capture(driver, 1300, 1300), ROOT / "img" / "swanlab-charts.png")
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def resize(driver, width: int, scale: float, height: int = 1000) -> None:
    """A window of this many CSS pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def capture(driver, width: int, height: int) -> bytes:
    """The top of the page as a PNG."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(taken["data"])


def shrink(png: bytes, path: Path) -> None:
    """Write a PNG with a small palette."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
