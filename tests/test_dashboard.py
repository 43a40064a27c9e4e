"""SwanLab's local dashboard as a user sees it: a real run, ``swanlab watch``, and a headless Chromium."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from checkout import stranger

import train_qwen2_classification
from sft.files import ALL_RESULTS_FILE
from sft.tasks.classification import Classification
from sft.tracking import replay as replay_metrics
from sft.tracking.metrics_log import read_metrics
from tests.browser import console_errors
from tests.models import save_model, tiny_model
from tests.test_training import LABELS, articles, write_records

WHOLE, RESUMED, REPLAYED = 1, 2, 3  # the experiments, as the dashboard numbers them
STEPS = 6
CHARTS = [  # from top to bottom
    *("预测样例", "train/loss", "eval/loss", "eval/accuracy", "eval/macro_f1", "eval/ece"),
    *("train/learning_rate", "train/grad_norm", "train/tokens_per_second"),
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tokenizer) -> Path:
    """Three experiments: a run of six steps, the same resumed after step 2, and its metrics replayed."""
    folder = tmp_path_factory.mktemp("看板")
    base = save_model(tiny_model("qwen2"), tokenizer, folder / "tiny")
    write_records(folder / "train_cls.jsonl", Classification(LABELS), articles(30, 0))
    write_records(folder / "test_cls.jsonl", Classification(LABELS), articles(4, 1))
    arguments = [
        *("--model_name_or_path", str(base), "--train_file", str(folder / "train_cls.jsonl"), "--dtype", "float32"),
        *("--output_dir", str(folder / "run"), "--swanlab_mode", "local"),
        *(
            "--swanlab_logdir",
            str(folder / "swanlog"),
            "--per_device_train_batch_size",
            "4",
            "--max_steps",
            f"{STEPS}",
        ),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"),
        *("--save_total_limit", "9", "--logging_steps", "1", "--learning_rate", "1e-2", "--validation_ratio", "0.1"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - stranger(folder / "home").keys():
            patch.delenv(name)
        patch.setenv("SWANLAB_ROOT", str(folder / "home" / "swanlab"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert train_qwen2_classification.main(arguments) == 0
        checkpoint = str(folder / "run" / "checkpoint-2")
        (folder / "run" / ALL_RESULTS_FILE).unlink()  # as if it had been killed: a finished run is not resumed
        assert train_qwen2_classification.main([*arguments, "--resume_from_checkpoint", checkpoint]) == 0
        torch.set_num_threads(threads)
        replaying = [str(folder / "run"), "--swanlab_mode", "local", "--swanlab_logdir", str(folder / "swanlog")]
        assert replay_metrics.main([*replaying, "--swanlab_experiment", "again"]) == 0
    return folder


@pytest.fixture(scope="module")
def dashboard(run_folder: Path) -> Iterator[str]:
    """The address of ``swanlab watch`` with those runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("swanlab")
    process = subprocess.Popen(
        [program, "watch", "swanlog", "--host", "127.0.0.1", "--port", str(port)],
        cwd=run_folder,
        env=stranger(run_folder / "home"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], object], seconds: float = 60) -> object:
    """Wait until ``condition`` is true, and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


class Traffic:
    """The requests of the page and their answers, by address."""

    def __init__(self, browser) -> None:
        self.browser = browser
        self.request_ids: dict[str, str] = {}

    def answer(self, address: str) -> dict | None:
        """The JSON answer of ``address`` to the page; None if there is none yet."""
        for entry in self.browser.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                url = unquote(event["params"]["request"]["url"])
                local = ("http://127.0.0.1:", "data:", "blob:", "about:", "chrome:")
                assert url.startswith(local), "only this machine is asked"
            if event["method"] == "Network.responseReceived":
                self.request_ids[unquote(event["params"]["response"]["url"])] = event["params"]["requestId"]
        if address not in self.request_ids:
            return None
        body = self.browser.execute_cdp_cmd("Network.getResponseBody", {"requestId": self.request_ids[address]})
        return json.loads(body["body"])


def reported(run_folder: Path, name: str) -> list[tuple[int, float]]:
    rows = read_metrics(run_folder / "run" / "metrics.jsonl")
    return [(row["step"], row[name]) for row in rows if name in row]


# How many pixels of a chart's canvas are coloured (axes and text are grey), and over what share of its width.
INK = """
const title = [...document.querySelectorAll('p, span, div')].find(
    (element) => element.children.length === 0 && element.textContent.trim() === arguments[0]);
let card = title;
while (card && !card.querySelector('canvas')) card = card.parentElement;
if (!card || card.querySelectorAll('canvas').length !== 1) return null;
const canvas = card.querySelector('canvas');
const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
const columns = new Set();
let pixels = 0;
for (let i = 0; i < data.length; i += 4) {
    const [red, green, blue, alpha] = data.slice(i, i + 4);
    if (alpha > 128 && Math.max(red, green, blue) - Math.min(red, green, blue) > 40) {
        pixels += 1;
        columns.add((i / 4) % canvas.width);
    }
}
return pixels > 0 ? [pixels, columns.size / canvas.width] : null;
"""


@pytest.mark.parametrize("experiment", [WHOLE, RESUMED, REPLAYED])
def test_the_page_gets_the_reported_losses_and_draws_them(run_folder, dashboard, browser, experiment):
    """For a run, a resumed run (without a gap), and one replayed from its metrics.jsonl."""
    traffic = Traffic(browser)
    browser.get(f"{dashboard}/experiment/{experiment}/chart")
    address = f"{dashboard}/api/v1/experiment/{experiment}/tag/train/loss"
    points = wait_for(lambda: traffic.answer(address))["data"]["list"]
    assert [(point["index"], point["data"]) for point in points] == reported(run_folder, "loss")
    assert [point["index"] for point in points] == list(range(1, STEPS + 1))

    pixels, width = wait_for(lambda: browser.execute_script(INK, "train/loss"))
    assert pixels > 100
    assert width > 0.5, "a line across the chart, not one point"
    assert console_errors(browser) == []


@pytest.mark.parametrize("experiment", [WHOLE, REPLAYED])
def test_the_page_shows_project_experiment_and_every_chart(dashboard, browser, experiment):
    browser.get(f"{dashboard}/experiment/{experiment}/chart")
    wait_for(lambda: set(CHARTS) <= set(page_text(browser).splitlines()))
    lines = page_text(browser).splitlines()
    assert [line for line in lines if line in CHARTS or line.startswith(("train/", "eval/", "test/"))] == CHARTS
    assert {"run", "again"} <= set(page_text(browser).splitlines())
    browser.execute_script("arguments[0].scrollIntoView()", browser.find_element("xpath", "//*[text()='预测样例']"))
    wait_for(lambda: re.search(r"[对错]\s+文本：.+\s+预测：.+\s+正确：", page_text(browser)))

    browser.get(dashboard)
    wait_for(lambda: "chinese-llm-sft" in page_text(browser))


def page_text(browser) -> str:
    return browser.execute_script("return document.body.innerText")


def test_the_card_shows_the_settings_that_matter(dashboard, browser):
    browser.get(f"{dashboard}/experiment/{WHOLE}/index")
    wait_for(lambda: "learning_rate" in page_text(browser))
    text = page_text(browser)
    for name in ("model", "train_file", "lora_r", "max_length", "output_dir", "test_accuracy", "train_loss"):
        assert name in text.splitlines(), name
    assert "[object Object]" not in text


def test_a_curve_has_one_point_a_step(run_folder):
    """The validation after training uses the best weights, not the last ones, so it is not part of the curve."""
    for name in ("loss", "eval_loss", "eval_accuracy"):
        steps = [step for step, _ in reported(run_folder, name)]
        assert steps == sorted(set(steps))
    assert [step for step, _ in reported(run_folder, "eval_loss")] == [0, 2, 4, 6]
