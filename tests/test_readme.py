"""The readme: each command is run here, in a copy of the checkout; both languages have the same commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from checkout import REPOSITORY, copy_checkout, first_lines, shorten_samples, stranger
from packaging.requirements import Requirement
from stub_hub import StubHub, stub_hub

from sft.tasks.entity_lines import NO_ENTITY, read_entity

CHINESE, ENGLISH = REPOSITORY / "readme.md", REPOSITORY / "readme_en.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = ("bash", "python", "py", "pip", "modelscope", "swanlab", "torchrun", "accelerate", "jupyter")
PROGRAMS += ("set", "apt", "curl", "conda", "git", "source", "docker", "hf")
TRAIN_ROWS, TEST_ROWS = 24, 6


# ---- what the readme says ----


def blocks(path: Path, *languages: str) -> list[str]:
    """The contents of the fenced blocks marked with one of ``languages``, in order."""
    return [body for language, body in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def commands_of(block: str) -> list[str]:
    """One command for each line; a backslash at the end of a line joins it to the next."""
    lines = block.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def fenced_commands(path: Path, *languages: str) -> list[str]:
    return [command for block in blocks(path, *languages) for command in commands_of(block)]


def inline_commands(path: Path) -> list[str]:
    """Commands in the running text: inline code that begins with a program's name and has further words."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    code = [" ".join(span.split()) for span in re.findall(r"`([^`\n]+)`", text)]
    return [span for span in code if span.split()[0] in PROGRAMS and " " in span]


def all_commands(path: Path) -> list[str]:
    commands = fenced_commands(path, "bash", "bat", "sh", "shell", "console", "powershell", "cmd")
    return list(dict.fromkeys(commands + inline_commands(path)))


STORY = fenced_commands(CHINESE, "bash")
FIRST_BLOCK = commands_of(blocks(CHINESE, "bash")[0])
WINDOWS = fenced_commands(CHINESE, "bat")


# ---- where commands are run ----


class Workspace:
    """A copy of the checkout where commands run exactly as written, each only once."""

    def __init__(self, folder: Path, home: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.home = home
        self.environment = environment
        self.done: dict[str, subprocess.CompletedProcess] = {}

    def run(self, command: str) -> subprocess.CompletedProcess:
        """Run ``command`` as typed into a shell, and require that it succeeds without a traceback."""
        if command not in self.done:
            self.done[command] = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                encoding="utf-8",
                timeout=540,
            )
        done = self.done[command]
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        return done

    def run_after(self, command: str, order: list[str]) -> subprocess.CompletedProcess:
        """Run ``command`` after the python and modelscope commands before it in ``order``."""
        for earlier in order[: order.index(command)]:
            if is_run_here(earlier) and produces_files(earlier):
                self.run(earlier)
        return self.run(command)

    def path(self, name: str) -> Path:
        return self.folder / name


def is_run_here(command: str) -> bool:
    return command.startswith(("python ", "modelscope "))


def produces_files(command: str) -> bool:
    shows = re.search(r"--(preview|dry_run|text)\b|--to gguf|/client\.py", command)
    return not shows and not command.startswith("python predict.py")


@pytest.fixture(scope="module")
def hub() -> Iterator[StubHub]:
    with stub_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, hub: StubHub) -> Workspace:
    """A clone, a hub that serves a small model under the big one's name, and the files a user downloads by hand."""
    home = tmp_path_factory.mktemp("home")
    folder = copy_checkout(tmp_path_factory.mktemp("clone"))
    sample, served = folder / "data" / "sample", tmp_path_factory.mktemp("served")
    hub.repositories["models", "Qwen/Qwen2.5-1.5B-Instruct"] = Path(
        shutil.copytree(folder / "qwen/demo", served / "m")
    )
    news = served / "news"
    news.mkdir()
    (news / "train.jsonl").write_text(first_lines(sample / "news_train.jsonl", TRAIN_ROWS), encoding="utf-8")
    (news / "test.jsonl").write_text(first_lines(sample / "news_test.jsonl", TEST_ROWS), encoding="utf-8")
    hub.repositories["datasets", "swift/zh_cls_fudan-news"] = news
    (folder / "data" / "ccfbdci.jsonl").write_text(first_lines(sample / "ner_train.jsonl", TRAIN_ROWS), "utf-8")
    (folder / "texts.txt").write_text("南京大学的张伟昨天到了上海。\n今天下雨。\n", encoding="utf-8")
    return Workspace(folder, home, stranger(home) | hub.environment(home))


# ---- one check for each kind of command ----


def downloads_the_model(workspace: Workspace, hub: StubHub, command: str) -> None:
    workspace.run_after(command, STORY)
    served = hub.repositories["models", "Qwen/Qwen2.5-1.5B-Instruct"]
    for path in served.iterdir():
        assert (workspace.path("qwen/Qwen2.5-1.5B-Instruct") / path.name).read_bytes() == path.read_bytes()


def downloads_the_data(workspace: Workspace, hub: StubHub, command: str) -> None:
    workspace.run_after(command, STORY)
    for path in hub.repositories["datasets", "swift/zh_cls_fudan-news"].iterdir():
        assert (workspace.path("data") / path.name).read_bytes() == path.read_bytes()


def downloads_one_file(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Into the place where the conversion looks for it; the file that is there already is put back."""
    hub.repositories["hf", flag_of_the_hub(command)] = served = workspace.home / "served_by_hf"
    path = served / command.split()[3]
    path.parent.mkdir(parents=True)
    path.write_text("downloaded\n", encoding="utf-8")
    target = workspace.path(command.split()[3])
    before = target.read_bytes()
    target.unlink()
    here = command.replace("hf ", "python -m huggingface_hub.cli.hf ", 1)  # what the program hf runs
    assert any(entry.name == "hf" for entry in metadata.entry_points(group="console_scripts"))
    workspace.run(f"HF_HUB_OFFLINE=0 HF_ENDPOINT={hub.endpoint} {here}")
    assert target.read_text(encoding="utf-8") == "downloaded\n"
    target.write_bytes(before)


def flag_of_the_hub(command: str) -> str:
    """The data set that ``hf download`` names."""
    assert flag_value(command, "--repo-type") == "dataset"
    return command.split()[2]


def converts(workspace: Workspace, hub: StubHub, command: str) -> None:
    done = workspace.run_after(command, STORY)
    task = "cls" if "classification" in command else "ner"
    for name in (f"train_{task}.jsonl", f"test_{task}.jsonl", f"train_{task}.task.json", f"test_{task}.task.json"):
        assert workspace.path(f"data/{name}").stat().st_size > 0
    report = json.loads(workspace.path(f"data/train_{task}.report.json").read_text(encoding="utf-8"))
    assert report["read"] == report["converted"] + report["rejected"] + report["merged"] + report["leaked"]
    assert report["converted"] >= TRAIN_ROWS
    assert "两边都有的文本：0" in done.stderr


def trains(workspace: Workspace, hub: StubHub, command: str) -> None:
    done = workspace.run_after(command, STORY)
    assert_trained(workspace, command, done)


def assert_trained(workspace: Workspace, command: str, done: subprocess.CompletedProcess) -> None:
    results = json.loads(done.stdout)
    assert results["train_loss"] > 0
    assert any(name.startswith("test_") for name in results)
    output_dir = workspace.path(flag_value(command, "--output_dir"))
    for name in promised_files():
        if name not in ("eval_results.json", "learning_rate.json"):  # so few rows are not split, nor rates tried
            assert (output_dir / name).stat().st_size > 0, name


def promised_files() -> list[str]:
    """The files that, by the readme, a run writes."""
    paragraph = re.search(r"^输出文件夹里有：.*?\n\n", CHINESE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names = re.findall(r"`([\w.]+)`", paragraph[0])
    assert len(names) >= 8
    return [*names, "adapter_model.safetensors", "tokenizer.json"]


def flag_value(command: str, flag: str) -> str:
    words = shlex.split(command)
    return words[words.index(flag) + 1]


def previews(workspace: Workspace, hub: StubHub, command: str) -> None:
    rows = workspace.run_after(command, STORY).stdout
    assert rows.count("── 第 ") == int(flag_value(command, "--preview"))
    assert "【<|im_end|>】" in rows, "the end of the answer is learned"


def plans(workspace: Workspace, hub: StubHub, command: str) -> None:
    plan = workspace.run_after(command, STORY).stdout
    for word in ("步数", "token", "内存", "时间", "检查通过"):
        assert word in plan


def predicts(workspace: Workspace, hub: StubHub, command: str) -> None:
    done = workspace.run_after(command, STORY)
    classification = not command.startswith("python predict.py --adapter output/Qwen2.5-NER")
    if "--output_file" in command:
        json.loads(done.stdout)  # the metrics
        text = workspace.path(flag_value(command, "--output_file")).read_text(encoding="utf-8")
    elif ">" in command:
        text = workspace.path(command.rpartition("> ")[2]).read_text(encoding="utf-8")
    else:
        text = done.stdout
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines
    for line in lines:
        assert list(line)[: 4 if classification else 2] == example_fields()[0 if classification else 1]
    if "<" in command:
        assert [line["text"] for line in lines] == workspace.path("texts.txt").read_text(encoding="utf-8").splitlines()


def predicts_with_a_report(workspace: Workspace, hub: StubHub, command: str) -> None:
    metrics = json.loads(workspace.run_after(command, STORY).stdout)
    page = workspace.path(flag_value(command, "--report")).read_text(encoding="utf-8")
    assert f"{metrics['f1']:.3f}" in page


def predicts_in_two_processes(workspace: Workspace, hub: StubHub, command: str) -> None:
    alone = next(one for one in STORY if one.startswith("python predict.py") and "--output_file" in one)
    output = flag_value(alone, "--output_file")
    shared = command.removesuffix("…") + alone.partition("predict.py ")[2].replace(output, "output/shared.jsonl")
    workspace.environment["PET_MASTER_PORT"] = str(free_port())
    workspace.run_after(alone, STORY)
    workspace.run(shared)
    assert workspace.path("output/shared.jsonl").read_bytes() == workspace.path(output).read_bytes()


def example_fields() -> list[list[str]]:
    """The field names of the two predictions that the readme shows: first classification, then NER."""
    examples = [json.loads(line) for block in blocks(CHINESE, "") for line in block.splitlines() if line[:1] == "{"]
    assert len(examples) == 2
    return [list(example) for example in examples]


def logs_in_when_wanted(workspace: Workspace, hub: StubHub, command: str) -> None:
    """The command connects to swanlab.cn, so only its help is run. No other command here needs that site."""
    assert "Login to the SwanLab cloud" in workspace.run(f"{command} --help").stdout


def installs(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Every requirement is pinned, and the packages of this environment meet it."""
    requirements = requirements_of(workspace.path(command.split()[-1]))
    assert len(requirements) >= 10
    for requirement in requirements:
        assert str(requirement.specifier).startswith("=="), f"{requirement} is not pinned"
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


def requirements_of(path: Path) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def installs_optional(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Every requirement is pinned; what is installed here meets it."""
    for requirement in requirements_of(workspace.path(command.split()[-1])):
        assert str(requirement.specifier).startswith("=="), f"{requirement} is not pinned"
        try:
            assert requirement.specifier.contains(metadata.version(requirement.name)), requirement
        except metadata.PackageNotFoundError:  # they are optional
            continue


def installs_one_of_the_optional(workspace: Workspace, hub: StubHub, command: str) -> None:
    """In the version that the file of all of them pins."""
    pins = map(str, requirements_of(workspace.path("requirements-export.txt")))
    assert command.removeprefix("pip install ") in pins


def frees_the_place_of_another_build(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Without it pip sees that the pinned version is there, whatever it was built for."""
    (pin,) = (one for one in requirements_of(workspace.path("requirements.txt")) if one.name == command.split()[-1])
    assert pin.specifier.contains(f"{next(iter(pin.specifier)).version}+cpu")


def exports(workspace: Workspace, hub: StubHub, command: str) -> None:
    if "--to gguf" in command:
        pytest.importorskip("gguf", reason="needs requirements-export.txt")
    proof = json.loads(workspace.run_after(command, STORY).stdout)
    assert proof["passed"]
    kept = workspace.path("output/Qwen2.5-NER/check_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert proof["legs"]["prompts"]["compared"] == len(kept) > 0
    assert json.loads((workspace.path(flag_value(command, "--output_dir")) / "export.json").read_text()) == proof


def asks_the_export(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Every line of the answer is one that the task can read."""
    pytest.importorskip("llama_cpp", reason="needs requirements-export.txt")
    workspace.run_after(next(one for one in STORY if "--to gguf" in one), STORY)
    for line in workspace.run_after(command, STORY).stdout.splitlines():
        assert line == NO_ENTITY or read_entity(line)


def trains_in_two_processes(workspace: Workspace, hub: StubHub, command: str) -> None:
    single = next(command for command in STORY if command.startswith("python train_qwen2_ner.py --train_file"))
    full = command.removesuffix("…") + single.partition("train_qwen2_ner.py ")[2]
    full = full.replace("output/Qwen2.5-NER", "output/two_processes")
    workspace.environment["PET_MASTER_PORT"] = str(free_port())
    for earlier in STORY:
        if earlier.startswith(("modelscope", "python transfer_")):
            workspace.run(earlier)
    assert_trained(workspace, full, workspace.run(full))


def needs_gpus(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Without GPUs it is refused; `test_two_processes.py` runs it all the same."""
    single = next(command for command in STORY if command.startswith("python train_qwen2_ner.py --train_file"))
    full = command.removesuffix("…") + single.partition("train_qwen2_ner.py ")[2]
    for earlier in STORY:
        if earlier.startswith(("modelscope", "python transfer_")):
            workspace.run(earlier)
    done = subprocess.run(
        ["bash", "-c", full], cwd=workspace.folder, env=workspace.environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, encoding="utf-8", timeout=280,
    )  # fmt: skip
    assert done.returncode != 0
    assert "FSDP 要显卡" in done.stderr, done.stderr[-2000:]


def says_what_it_lacks(workspace: Workspace, hub: StubHub, command: str) -> None:
    """A benchmark of the repository, where there is no GPU."""
    done = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=280,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert "--rehearse" in done.stderr


def watches(workspace: Workspace, hub: StubHub, command: str) -> None:
    """The dashboard answers on 127.0.0.1; here it uses a free port."""
    workspace.path("swanlog").mkdir(exist_ok=True)
    port = free_port()
    with running(workspace, f"exec {command} --port {port}") as process:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)


@contextmanager
def running(workspace: Workspace, command: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def replays(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Replaying writes the metrics of the earlier run to SwanLab's local store again."""
    trained = next(other for other in STORY if f"--output_dir {command.split()[-1]}" in other)
    workspace.run_after(trained, STORY)
    before = {path.name for path in workspace.path("swanlog").glob("run-*")}
    assert "SwanLab 记录在本机" in workspace.run(command).stderr
    assert len({path.name for path in workspace.path("swanlog").glob("run-*")} - before) == 1


def opens_notebooks(workspace: Workspace, hub: StubHub, command: str) -> None:
    """The notebook front end is the user's choice and is not installed; the kernel it needs is installed."""
    assert command in ("pip install notebook", "jupyter notebook")
    kernels = workspace.run("python -c 'import ipykernel.kernelspec as k; print(k.KERNEL_NAME)'").stdout.split()
    notebook = json.loads((REPOSITORY / "qwen_ner.ipynb").read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] in kernels


def makes_an_environment(workspace: Workspace, hub: StubHub, command: str) -> None:
    """``py`` is Python's launcher on Windows. Leave pip out: another command installs the packages."""
    version = re.search(r"py -3\.(\d+) ", command)
    assert int(version[1]) >= 11
    here = command.replace(version[0].strip(), shlex.quote(sys.executable)).replace("-m venv", "-m venv --without-pip")
    workspace.run(here)
    assert workspace.path(".venv/pyvenv.cfg").is_file()


def activates(workspace: Workspace, hub: StubHub, command: str) -> None:
    """The script exists only on Windows. Check only that its path is in the environment created before."""
    assert command == r".venv\Scripts\activate"
    assert next(line for line in WINDOWS if "venv" in line).split()[-1] == command.split("\\")[0]


def sets_utf8(workspace: Workspace, hub: StubHub, command: str) -> None:
    name, _, value = command.removeprefix("set ").partition("=")
    assert workspace.environment[name] == value
    code = "import sys; print(sys.flags.utf8_mode)"
    assert workspace.run(f"LC_ALL=C python -c '{code}'").stdout.strip() == "1"


def is_the_first_block(workspace: Workspace, hub: StubHub, command: str) -> None:
    """`test_the_first_block_...` below really runs it."""
    assert command in FIRST_BLOCK


def is_what_quickstart_says(workspace: Workspace, hub: StubHub, command: str) -> None:
    """In Git Bash on Windows."""
    assert f'then echo "    {command}"' in (REPOSITORY / "quickstart.sh").read_text(encoding="utf-8")


def builds_and_runs_the_container(workspace: Workspace, hub: StubHub, command: str) -> None:
    """There is no Docker here: check the image's name and folder against the Dockerfile."""
    assert "chinese-llm-sft" in command
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    assert command in dockerfile
    if "-v" in command:
        assert f"{command.split(':')[1].split('/output')[0]}" == re.search(r"^WORKDIR (.*)$", dockerfile, re.M)[1]


def is_quickstart(workspace: Workspace, hub: StubHub, command: str) -> None:
    """`test_quickstart_...` below really runs it."""
    assert command.split()[-1] == "quickstart.sh"


def is_the_windows_quickstart(workspace: Workspace, hub: StubHub, command: str) -> None:
    """The same words as quickstart.sh runs; `test_windows_commands_...` below really runs them."""
    assert shlex.split(command)[1:] in quickstart_calls(workspace.home)


def runs_what_test_sh_should(workspace: Workspace, hub: StubHub, command: str) -> None:
    """Check only what test.sh would run: test.sh itself runs this test."""
    folder, log = with_fake_python(workspace.home / "test_sh")
    shutil.copy(folder / ".shim/python", folder / ".shim/ruff")
    workers = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"]
    for more, expected in (
        ("", ["-m", "pytest", "-m", "not slow", *workers]),
        (" --all", ["-m", "pytest", *workers]),
        (" tests/test_x.py", ["-m", "pytest", "-m", "not slow", "tests/test_x.py"]),
    ):
        log.write_text("")
        subprocess.run(["bash", "-c", command + more], cwd=folder, env=workspace.environment, check=True, timeout=60)
        assert json.loads(log.read_text().splitlines()[-1]) == expected


def is_a_package(workspace: Workspace, hub: StubHub, command: str) -> None:
    """`tests/test_project_files.py` installs it; here only that there is something to install."""
    assert "[project]" in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def begins_like_a_command_of_the_story(workspace: Workspace, hub: StubHub, command: str) -> None:
    """``modelscope download …`` is short for a command that another rule tests."""
    assert any(other.startswith(command.removesuffix(" …")) for other in STORY)


@dataclass(frozen=True)
class Rule:
    pattern: str
    check: Callable[[Workspace, StubHub, str], None]


RULES = [
    Rule(r"bash quickstart\.sh", is_quickstart),
    Rule(r"git clone URL \S+ && cd \S+", is_the_first_block),
    Rule(r"source \.venv/bin/activate", is_the_first_block),
    Rule(r"source \.venv/Scripts/activate", is_what_quickstart_says),
    Rule(r"docker (build|run) .*", builds_and_runs_the_container),
    Rule(r"hf download \S+ \S+ --repo-type dataset --local-dir \.", downloads_one_file),
    Rule(r"bash test\.sh", runs_what_test_sh_should),
    Rule(r"py -3\.\d+ -m venv \.venv", makes_an_environment),
    Rule(r"\.venv\\Scripts\\activate", activates),
    Rule(r"pip install -r requirements\.txt", installs),
    Rule(r"pip install -r requirements-(export|quantization)\.txt", installs_optional),
    Rule(r"pip install gguf==\S+", installs_one_of_the_optional),
    Rule(r"python export\.py --adapter output/Qwen2\.5-NER --to (merged|vllm|gguf) --output_dir \S+", exports),
    Rule(r"python output/Qwen2\.5-NER-gguf/client\.py \S+", asks_the_export),
    Rule(r"pip uninstall -y torch", frees_the_place_of_another_build),
    Rule(r"pip install -e \.", is_a_package),
    Rule(r"set \w+=\w+", sets_utf8),
    Rule(r"python -m sft\.tracking\.replay output/\w+", replays),
    Rule(r"pip install notebook", opens_notebooks),
    Rule(r"jupyter notebook", opens_notebooks),
    Rule(r"modelscope download --model \S+ --local_dir \S+", downloads_the_model),
    Rule(r"modelscope download --dataset \S+ --local_dir \S+", downloads_the_data),
    Rule(r"modelscope download …", begins_like_a_command_of_the_story),
    Rule(r"python transfer_(classification|ner)_data\.py", converts),
    Rule(r"swanlab login", logs_in_when_wanted),
    Rule(r"swanlab watch swanlog", watches),
    Rule(r"python train_qwen2_(classification|ner)\.py --train_file \S+ --output_dir output/Qwen\S+", trains),
    Rule(r"python train_qwen2_\w+\.py --preview \d+", previews),
    Rule(r"python train_qwen2_\w+\.py --dry_run", plans),
    Rule(r"torchrun --nproc_per_node 2 train_qwen2_ner\.py …", trains_in_two_processes),
    Rule(r"accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 train_qwen2_ner\.py …", needs_gpus),
    Rule(r"python -m benchmarks\.gpu", says_what_it_lacks),
    Rule(r"torchrun --nproc_per_node 2 predict\.py …", predicts_in_two_processes),
    Rule(r"python predict\.py --adapter output/Qwen[^/]*", predicts),
    Rule(r"python predict\.py --adapter output/Qwen.* --report \S+", predicts_with_a_report),
    Rule(r"python predict\.py --adapter output/Qwen2 --input_file \S+ --output_file \S+", predicts),
    Rule(r"python .*data/quickstart/.*", is_the_windows_quickstart),
    Rule(r"python predict\.py --adapter output/quickstart/ner --text .*", is_the_windows_quickstart),
]
SLOW = (trains_in_two_processes, predicts_in_two_processes, needs_gpus, says_what_it_lacks)


def rules_of(command: str) -> list[Rule]:
    return [rule for rule in RULES if re.fullmatch(rule.pattern, command)]


def marked(command: str) -> object:
    slow = any(rule.check in SLOW for rule in rules_of(command))
    return pytest.param(command, marks=pytest.mark.slow) if slow else command


@pytest.mark.parametrize("command", [marked(command) for command in all_commands(CHINESE)])
def test_every_command_is_run(workspace: Workspace, hub: StubHub, command: str) -> None:
    rules = rules_of(command)
    assert len(rules) == 1, f"one rule of this file must say how this is tested, not {len(rules)}: {command}"
    rules[0].check(workspace, hub, command)


def test_the_three_lines_of_python_give_what_predict_prints(workspace: Workspace) -> None:
    (code,) = blocks(CHINESE, "python")
    assert blocks(ENGLISH, "python") == [code]
    command = next(one for one in STORY if one.startswith("python predict.py") and "--text" in one)
    line = json.loads(workspace.run_after(command, STORY).stdout)
    assert workspace.run(f"python -c {shlex.quote(code)}").stdout == f"{[line]}\n"


def test_every_rule_is_used() -> None:
    commands = all_commands(CHINESE)
    assert [rule.pattern for rule in RULES if not any(re.fullmatch(rule.pattern, one) for one in commands)] == []


def test_a_new_command_without_a_rule_is_found(tmp_path: Path) -> None:
    path = tmp_path / "readme.md"
    path.write_text(
        "```bash\npython new.py \\\n  --flag 1   # comment\n```\n也可以 `python other.py --x`。\n", "utf-8"
    )
    assert all_commands(path) == ["python new.py --flag 1 # comment", "python other.py --x"]
    assert not any(map(rules_of, all_commands(path)))


# ---- quickstart.sh ----

FAKE_PYTHON = """#!{python}
import json, os, subprocess, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments[:1] == ["-"]:
    sys.exit(subprocess.run(["{python}", *arguments]).returncode)
with open("{log}", "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments[:1] == ["predict.py"]:
    print('{{"accuracy": 0.25, "f1": 0.125}}')
if arguments[:1] and arguments[0].startswith("train_"):
    folder = Path(arguments[arguments.index("--output_dir") + 1])
    folder.mkdir(parents=True)
    (folder / "all_results.json").write_text('{{"test_accuracy": 0.75, "test_f1": 0.5}}')
"""


def with_fake_python(folder: Path) -> tuple[Path, Path]:
    """A folder with the shell scripts and a ``.venv`` whose python only logs its arguments; and that log file."""
    log, shims = folder / "calls.jsonl", folder / ".shim"
    shims.mkdir(parents=True)
    for name in ("quickstart.sh", "test.sh", "setup.sh", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(REPOSITORY / name, folder / name)
    (shims / "python").write_text(FAKE_PYTHON.format(python=sys.executable, log=log))
    (shims / "python").chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f'PATH="{shims}:$PATH"\n')
    mark_installed(folder)
    return folder, log


def mark_installed(folder: Path) -> None:
    """Write the files that setup.sh leaves in ``.venv`` when everything is installed."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(folder / name, folder / f".venv/installed-{name}.txt")
    shutil.copy(folder / "requirements.txt", folder / ".venv/installed-base.txt")


def quickstart_calls(home: Path) -> list[list[str]]:
    """The python commands that quickstart.sh runs, each as a list of words."""
    folder = home / "quickstart_calls"
    log = folder / "calls.jsonl"
    if not folder.exists():
        with_fake_python(folder)
        subprocess.run(["bash", "quickstart.sh"], cwd=folder, check=True, capture_output=True, timeout=60)
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_windows_users_get_what_quickstart_runs(tmp_path: Path) -> None:
    commands = [shlex.split(command)[1:] for command in WINDOWS if command.startswith("python ")]
    assert commands == quickstart_calls(tmp_path)


DOCS = REPOSITORY / "docs"
FLAGS = REPOSITORY / "sft/training/flags.py"


def test_quickstart_uses_flags_that_exist(tmp_path: Path) -> None:
    for script, *words in quickstart_calls(tmp_path):
        source = [REPOSITORY / script, *(REPOSITORY / "sft").glob("*/arguments.py"), FLAGS]
        known = "".join(path.read_text(encoding="utf-8") for path in source)
        for flag in (word for word in words if word.startswith("--")):
            assert flag in known or flag.removeprefix("--") in known or is_trainer_flag(flag), f"{script} {flag}"


def is_trainer_flag(flag: str) -> bool:
    from transformers import TrainingArguments

    return flag.removeprefix("--") in TrainingArguments.__dataclass_fields__


def test_quickstart_shows_both_tasks_before_and_after_and_does_not_train_again(tmp_path: Path) -> None:
    folder, log = with_fake_python(tmp_path / "clone")
    for trainings in (2, 0):
        log.write_text("")
        done = subprocess.run(["bash", "quickstart.sh"], cwd=folder, check=True, capture_output=True, timeout=60)
        assert quickstart_table(done.stdout.decode()) == {"准确率": (0.25, 0.75), "F1": (0.125, 0.5)}
        assert log.read_text().count('["train_') == trainings


def quickstart_table(output: str) -> dict[str, tuple[float, float]]:
    """Metric → its value before and after training, from the last lines that quickstart.sh prints."""
    rows = re.findall(r"^\S+ .*?(准确率|F1) +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    return {metric: (float(before), float(after)) for metric, before, after in rows}


@pytest.mark.slow
def test_quickstart_teaches_the_demo_model_both_tasks(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "clone")
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    mark_installed(folder)
    environment = stranger(tmp_path / "home")
    del environment["OMP_NUM_THREADS"]
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        done = subprocess.run(
            ["bash", "quickstart.sh"], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=1800
        )
        seconds.append(time.monotonic() - started)
        assert done.returncode == 0, done.stderr[-3000:]
        table = quickstart_table(done.stdout)
        before, after = table["准确率"]
        assert before <= 0.55
        assert after >= 0.90
        before, after = table["F1"]
        assert before <= 0.20
        assert after >= 0.80
    assert seconds[1] < 60


@pytest.mark.slow
def test_the_first_block_works_in_a_fresh_shell(tmp_path: Path) -> None:
    """From a clone, with small samples; only the packages are there already.

    `tests/test_first_minutes.py` types what quickstart says next.
    """
    source = copy_checkout(tmp_path / "source")
    shorten_samples(source, TRAIN_ROWS)
    (source / ".venv").mkdir()
    (source / ".venv/bin").symlink_to(Path(sys.executable).parent)
    mark_installed(source)
    environment = stranger(tmp_path / "home")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("init", "-q"), ("add", "--force", "."), (*identity, "commit", "-q", "-m", "all")):
        subprocess.run(["git", *words], cwd=source, env=environment, check=True)

    def typed(*lines: str, cwd: Path) -> subprocess.CompletedProcess:
        script = "\n".join(("set -e", *lines))
        words = ["bash", "-c", script]
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=900)

    first = [command.replace("URL", shlex.quote(str(source))) for command in FIRST_BLOCK]
    done = typed(*first, "python -c 'import torch'", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "微调后" in done.stdout


@pytest.mark.slow
def test_windows_commands_run_in_order(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "clone")
    shorten_samples(folder, TRAIN_ROWS)
    workspace = Workspace(folder, tmp_path / "home", stranger(tmp_path / "home"))
    for command in WINDOWS:
        if command.startswith("python "):
            done = workspace.run(command)
            if command.startswith("python train_"):
                assert_trained(workspace, command, done)


# ---- both readmes ----


def test_both_languages_have_the_same_commands() -> None:
    assert fenced_commands(CHINESE, "bash") == fenced_commands(ENGLISH, "bash")
    assert fenced_commands(CHINESE, "bat") == fenced_commands(ENGLISH, "bat")
    assert set(inline_commands(CHINESE)) == set(inline_commands(ENGLISH))


def test_both_languages_name_the_same_flags_and_figures() -> None:
    def flags(path: Path) -> set[str]:
        return set(re.findall(r"--\w+", path.read_text(encoding="utf-8")))

    def figures(path: Path) -> list[str]:
        return re.findall(r"^\|.*?\b(\d[\d.e-]*)\b", path.read_text(encoding="utf-8"), re.MULTILINE)

    assert flags(CHINESE) == flags(ENGLISH)
    assert figures(CHINESE) == figures(ENGLISH)


DOCUMENTS = ["readme.md", "readme_en.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in DOCS.glob("*.md"))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_named_in_documents_exist(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:sft|tests|benchmarks|demo)/[\w/]+\.py", text)) | {
        f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (sft[\w.]+)", text)
    }
    assert [module for module in sorted(named) if not (REPOSITORY / module).is_file()] == []


def test_contributing_has_a_word_for_each_room_in_both_languages() -> None:
    chinese, _, english = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## English")
    for path in (REPOSITORY / "sft").iterdir():
        if not path.name.startswith("__"):
            name = f"`{path.name}/`" if path.is_dir() else f"`{path.name}`"
            assert name in chinese, name
            assert name in english, name


@pytest.mark.parametrize("path", [CHINESE, ENGLISH], ids=lambda path: path.name)
def test_folders_named_in_the_tree_exist(path: Path) -> None:
    tree = next(block for block in blocks(path, "") if "transfer_ner_data.py" in block)
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line)[:-1]
        assert names, line
        for name in (part for group in names for part in group.split()):
            assert (REPOSITORY / name).exists(), name


def test_the_tree_names_every_folder_and_script() -> None:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\n")
    top = {name.split("/")[0] + "/" for name in tracked if "/" in name} - {".ci/"}
    top |= {name for name in tracked if name.endswith((".py", ".ipynb")) and "/" not in name}
    tree = next(block for block in blocks(CHINESE, "") if "transfer_ner_data.py" in block)
    assert [name for name in sorted(top) if name not in tree] == []
