"""JSON files of any shape are one line for the user, never a traceback; changed counts are noticed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import forked
import orjson
import pytest
from models import save_adapter

import predict
from sft.data.records import make_record, read_task_records
from sft.errors import InputError
from sft.model.adapter import require_adapter, settings_of_adapter
from sft.model.hub import problem
from sft.model.kinds import refuse_other_kinds
from sft.prediction.label_studio import rows_path
from sft.prediction.output import GrowingFile, check_output, progress_path
from sft.tasks.classification import Classification
from sft.tasks.evaluation import Tally
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings
from sft.tracking.metrics_log import read_metrics
from sft.tracking.replay import read_samples, settings_of

LABELS = ("体育", "军事")
MUTATIONS = 10_000  # over all readers
ODD = (
    None, True, False, 0, -1, 1, 3.5, -0.0, 1e308, 2**62, -(2**62), "", "x", "体育", "\0", "/", "..", "a" * 5000,
    [], [[]], [None], [1, 2, 3], ["a", "a"], {}, {"a": 1}, {"": None}, [{}], {"a": {"b": [1]}},
)  # fmt: skip


def nodes(value: object) -> list[tuple[object, object]]:
    """Every ``(container, key)`` inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *nodes(inner)]]


def mutated(value: object, draw: random.Random) -> object:
    """A copy with one to three changes: another value, a missing one, another name, a copy, one more."""
    value = orjson.loads(orjson.dumps(value))
    if draw.random() < 0.02:
        return deepcopy(draw.choice(ODD))
    for _ in range(draw.randint(1, 3)):
        places = nodes(value)
        if not places:
            break
        container, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind == 1:
            del container[key]
        elif kind == 2 and isinstance(container, dict):
            container[draw.choice(["", "labels", "task", f"{key}x"])] = container.pop(key)
        elif kind == 3:
            container[key] = [container[key]] if draw.random() < 0.5 else {"a": container[key]}
        elif kind == 4 and isinstance(container, list):
            container.append(deepcopy(draw.choice(ODD)))
        else:
            container[key] = deepcopy(draw.choice(ODD))
    return value


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    save_adapter(tokenizer, folder, LABELS)
    return folder


class Reader:
    """A file with good content, and what reads it."""

    def __init__(self, path: Path, read, content: object = None) -> None:
        self.path, self.read = path, read
        if content is not None:
            path.write_bytes(orjson.dumps(content))
        self.whole = path.read_bytes()
        self.good = orjson.loads(self.whole)
        read()  # the good one passes


def resume(output: Path) -> None:
    check_output(output, None, resume=True, overwrite=False)
    with GrowingFile(output, {"input_file": "x"}, resume=True) as file:
        file.tally.metrics(Classification(LABELS))


def started_output(output: Path) -> Path:
    tally = Tally.of(Classification(LABELS), [{"label": "体育"}], [{"label": "军事", "unparsable": False}])
    with GrowingFile(output, {"input_file": "x"}, resume=False) as file:
        file.add([b"{}"], tally)
    return progress_path(output)


def records_reader(folder: Path, task, fields: dict) -> Reader:
    path = folder / f"{task.name}.jsonl"
    path.write_text("{}")
    return Reader(path, lambda: read_task_records(path, task), make_record(task, fields))


def readers(trained: Path, folder: Path) -> list[Reader]:
    adapter, base = trained / "adapter", trained / "base"
    ner = Ner.with_labels(["人名"])
    settings = {}
    for task in (Classification(LABELS, names={"a": "体育"}), ner):
        settings[task.name] = folder / f"{task.name}.task.json"
        TaskSettings(
            task,
            base_model="base",
            dtype="float32",
            max_length=100,
            max_new_tokens=10,
            usual_text_tokens=40 if task is ner else None,
            version="1",
            threshold=0.5,
            temperature=1.5,
            score_bias=0.1 if task is ner else None,
            base_hash="00-00",
            end_token="<|im_end|>",
            prompt_date="2024-07-26",
            files={"a": "b"},
            conversion={"id": "c"},
        ).write(settings[task.name])
    samples, run = folder / "samples.json", folder / "run"
    samples.write_text('[["对", "文本"], ["错", "文本"]]', encoding="utf-8")
    run.mkdir()
    (run / "task.json").write_text("{}")
    (run / "metrics.jsonl").write_text("{}")
    index = base / "model.safetensors.index.json"
    index.write_text("{}")
    output = folder / "out.jsonl"
    progress = started_output(output)
    entity = {"start": 0, "end": 2, "text": "张伟", "label": "人名"}
    return [
        *(Reader(path, lambda path=path: TaskSettings.read(path, verify=False)) for path in settings.values()),
        *(Reader(path, lambda path=path: TaskSettings.read(path)) for path in settings.values()),
        Reader(adapter / "task.json", lambda: settings_of_adapter(adapter)),
        Reader(adapter / "adapter_config.json", lambda: require_adapter(adapter)),
        Reader(base / "config.json", lambda: refuse_other_kinds(base)),
        Reader(index, lambda: problem(base), {"metadata": {}, "weight_map": {"a": "model.safetensors"}}),
        Reader(progress, lambda: resume(output)),
        Reader(samples, lambda: read_samples(samples)),
        Reader(run / "task.json", lambda: settings_of(run), {"task": "ner", "labels": ["a"]}),
        Reader(run / "metrics.jsonl", lambda: read_metrics(run / "metrics.jsonl"), {"step": 1, "loss": 2.0}),
        records_reader(folder, Classification(LABELS), {"text": "句子", "options": list(LABELS), "label": "体育"}),
        records_reader(folder, ner, {"text": "张伟来了", "entities": [entity]}),
    ]


def test_no_shape_of_a_json_file_is_a_traceback(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("sft.model.adapter_config._ends_soon", lambda *_: True)  # starts a process; has its own tests
    told = [*read_mutations(readers(trained, tmp_path), MUTATIONS, random.Random(0))]
    assert not [fault for fault in told if fault is not None and fault is not REFUSED]
    assert told.count(REFUSED) > MUTATIONS // 3


REFUSED = "refused in one line"


def read_mutations(all_readers: list[Reader], count: int, draw: random.Random) -> Iterator[str | None]:
    """Give mutated content to the readers in turn. Yields None if it was read, `REFUSED`, or what went wrong."""
    for number in range(count):
        reader = all_readers[number % len(all_readers)]
        content = orjson.dumps(mutated(reader.good, draw))
        if number % 10 == 9:  # some bytes are not even JSON
            content = content[: draw.randrange(len(content) + 1)] + bytes(draw.choices(range(256), k=3))
        reader.path.write_bytes(content)
        try:
            reader.read()
            yield None
        except InputError as error:
            yield REFUSED if len(str(error).splitlines()) == 1 else f"several lines: {error}"
        except Exception as error:
            yield f"{reader.path.name}: {type(error).__name__}: {error}: {content[:300]!r}"
        finally:
            reader.path.write_bytes(reader.whole)


class TestProgress:
    def test_a_changed_count_is_noticed(self, tmp_path):
        output = tmp_path / "out.jsonl"
        path = started_output(output)
        good = json.loads(path.read_text(encoding="utf-8"))
        for change in (
            lambda p: p["tally"]["answers"][0].__setitem__(2, 1001),
            lambda p: p["tally"]["rows"].__setitem__("gold", 7),
            lambda p: p["tally"]["problems"].__setitem__("out_of_options", 3),
            lambda p: p["run"].__setitem__("input_file", "y"),
        ):
            changed = json.loads(json.dumps(good))
            change(changed)
            path.write_text(json.dumps(changed), encoding="utf-8")
            with pytest.raises(InputError, match=r"progress.json：损坏了或被改过"):
                resume(output)
        path.write_text(json.dumps(good), encoding="utf-8")
        resume(output)

    def test_one_flipped_bit_is_noticed(self, tmp_path):
        output = tmp_path / "out.jsonl"
        path = started_output(output)
        whole, draw = path.read_bytes(), random.Random(1)
        for _ in range(100):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"out\.jsonl"):
                resume(output)

    def test_progress_of_an_older_version_can_be_resumed(self, tmp_path):
        output = tmp_path / "out.jsonl"
        path = started_output(output)
        progress = json.loads(path.read_text(encoding="utf-8"))
        del progress["own_sha256"]
        path.write_text(json.dumps(progress), encoding="utf-8")
        resume(output)

    def test_counts_that_contradict_each_other_are_told_in_one_line(self):
        content = {"rows": {"read": 1, "gold": 1, "judged": 1}, "answers": [], "problems": {}, "gold_problems": []}
        with pytest.raises(InputError, match="互相矛盾"):
            Tally.from_json(content).metrics(Classification(LABELS))


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
class TestTwoAtOnce:
    """Two predictions with one ``--output_file``: the second is refused, also with --overwrite and --resume."""

    @pytest.fixture
    def rows(self, tmp_path) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": f"句{n}"}) + "\n" for n in range(3)), encoding="utf-8")
        return path

    @pytest.mark.parametrize("form", ["jsonl", "label_studio"])
    def test_the_second_is_refused_until_the_first_is_killed(self, form, trained, rows, tmp_path, capsys):
        output = tmp_path / "out.json"
        written = output if form == "jsonl" else rows_path(output)
        flags = ["--adapter", str(trained / "adapter"), "--input_file", str(rows), "--output_file", str(output)]
        flags += ["--output_format", form]
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom sft.prediction.output import own_output\n"
            "with own_output(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"
        )
        first = subprocess.Popen([sys.executable, "-c", code, str(written)], cwd=forked.ROOT, stdout=subprocess.PIPE)
        try:
            assert first.stdout.readline() == b"held\n"
            for more in ([], ["--overwrite"], ["--resume"]):
                assert predict.main([*flags, *more]) == 2
                assert "另一个 predict.py 正在写它" in capsys.readouterr().err
                assert not written.exists()
        finally:
            first.kill()
            first.communicate()
        assert list(tmp_path.glob(".*.lock")), "a killed process leaves its lock file behind"
        assert predict.main(flags) == 0
        assert len(output.read_bytes()) > 100
        assert not list(tmp_path.glob(".*"))
